//! [`Flush`]: writes a frozen memtable to a run of tables, in steps.
//!
//! Invariants:
//!
//! - Of the memtable's events those are left out that the history retention lets go; the newest of each key is
//!   written, and so is every tombstone that it keeps: only merges drop those.
//! - What was dropped with its partition is left out.
//! - The memtable stays readable until its tables are in the manifest.

use std::sync::Arc;

use super::internal_key;
use super::memtable::Memtable;
use super::run_writer::{RunWriter, Written};
use super::sieve::{Sieve, Terms};
use crate::disk::Disk;
use crate::error::Error;
use crate::lsn::Lsn;

/// A flush under way.
pub(crate) struct Flush<D: Disk> {
    memtable: Arc<Memtable>,
    /// What the tree has reached with it.
    pub(crate) up_to: Lsn,
    /// The event looked at last.
    after: Option<Vec<u8>>,
    sieve: Sieve,
    writer: RunWriter<D>,
}

impl<D: Disk> Flush<D> {
    pub(crate) fn new(
        memtable: Arc<Memtable>,
        up_to: Lsn,
        terms: Terms,
        writer: RunWriter<D>,
    ) -> Self {
        Self { memtable, up_to, after: None, sieve: Sieve::new(terms), writer }
    }

    /// Reads about `bytes` more; the tables, once all is written.
    pub(crate) fn step(&mut self, bytes: usize) -> Result<Option<Written<D>>, Error> {
        let mut cursor = match &self.after {
            Some(after) => self.memtable.seek_past(after),
            None => self.memtable.seek(&[]),
        };
        let mut done = 0;
        while let Some(entry) = cursor.entry() {
            let internal = entry.key();
            let partition = internal_key::partition_of(internal).expect("an internal key");
            if self.memtable.hidden().has(partition) {
                let Some(next) = partition.checked_add(1) else { break };
                cursor = self.memtable.seek(&next.to_be_bytes());
                continue;
            }
            let stored = entry.stored();
            done += internal.len() + stored.payload.len();
            // A memtable sees too little to let a tombstone go: as if something older were elsewhere.
            self.sieve.pass(internal, stored, &mut self.writer, |_| true)?;
            if bytes <= done {
                self.after = Some(internal.to_vec());
                return Ok(None);
            }
            cursor.advance();
        }
        self.writer.finish().map(Some)
    }

    /// Removes what was written.
    pub(crate) fn abandon(self) {
        self.writer.abandon();
    }
}
