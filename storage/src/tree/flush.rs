//! [`Flush`]: writes a frozen memtable to a run of tables, in steps.
//!
//! Invariants:
//!
//! - Every event of the memtable is written, old versions and tombstones too: only merges drop anything.
//! - The memtable stays readable until its tables are in the manifest.

use std::sync::Arc;

use super::memtable::Memtable;
use super::run_writer::{RunWriter, TableNumbers, Written};
use super::table::BlockCache;
use crate::disk::Disk;
use crate::error::Error;

/// A flush under way.
pub(crate) struct Flush<D: Disk> {
    memtable: Arc<Memtable>,
    /// The event written last.
    after: Option<Vec<u8>>,
    pub(crate) writer: RunWriter<D>,
}

impl<D: Disk> Flush<D> {
    pub(crate) fn new(memtable: Arc<Memtable>, writer: RunWriter<D>) -> Self {
        Self { memtable, after: None, writer }
    }

    /// Writes about `bytes` more; the tables, once all is written.
    pub(crate) fn step(
        &mut self,
        bytes: usize,
        numbers: &mut TableNumbers,
        cache: &Arc<BlockCache>,
    ) -> Result<Option<Written<D>>, Error> {
        let mut cursor = match &self.after {
            Some(after) => self.memtable.seek_past(after),
            None => self.memtable.seek(&[]),
        };
        let mut done = 0;
        while let Some(internal) = cursor.key() {
            let stored = cursor.stored();
            self.writer.add(numbers, internal, stored)?;
            done += internal.len() + stored.payload.len();
            if bytes <= done {
                self.after = Some(internal.to_vec());
                return Ok(None);
            }
            cursor.advance();
        }
        self.writer.finish(cache).map(Some)
    }
}
