//! [`Sieve`]: passes on to a run what of a sorted stream of events is kept.
//!
//! Invariants:
//!
//! - Internal keys come in rising order, and those that are kept are written in that order.
//! - What may go is settled by [`Terms`] when the stream begins.
//! - Each tombstone that went was below the floor that is told for its partition.

use std::collections::BTreeMap;
use std::sync::Arc;

use starling_clock::Stamp;
use starling_clock::mutation::{self, Mutation};

use super::history::{Candidate, History, Verdict};
use super::internal_key;
use super::run_writer::RunWriter;
use super::stored::{Stored, StoredRef};
use crate::disk::Disk;
use crate::error::Error;
use crate::event::Action;
use crate::{HistoryRetention, Retentions};

/// What decides whether an event may go.
#[derive(Clone)]
pub(crate) struct Terms {
    pub(crate) retentions: Arc<Retentions>,
    /// Milliseconds since the Unix epoch.
    pub(crate) now_ms: u64,
}

impl Terms {
    /// Whether any tombstone may go.
    pub(crate) fn tombstones_may_go(&self) -> bool {
        self.retentions.has_tombstone_floors() || mutation::is(Mutation::DropTombstoneEarly)
    }
}

/// See the file's head.
pub(crate) struct Sieve {
    terms: Terms,
    history: History,
    /// The key whose versions are being judged, its partition, and what its keyspace keeps.
    prefix: Vec<u8>,
    partition: u32,
    retention: HistoryRetention,
    /// A tombstone that goes unless an older version of its key is kept.
    held: Option<(Vec<u8>, Stored)>,
    /// Of the partitions of which a tombstone went.
    floors: BTreeMap<u32, Stamp>,
}

impl Sieve {
    pub(crate) fn new(terms: Terms) -> Self {
        Self {
            terms,
            history: History::default(),
            prefix: Vec::new(),
            partition: 0,
            retention: HistoryRetention::default(),
            held: None,
            floors: BTreeMap::new(),
        }
    }

    /// Takes the next event. `has_older` tells whether an older version of its key may be where the stream does not go;
    /// it is asked only about a tombstone that could go.
    pub(crate) fn pass<D: Disk>(
        &mut self,
        internal: &[u8],
        stored: StoredRef<'_>,
        writer: &mut RunWriter<D>,
        has_older: impl FnOnce(Candidate) -> bool,
    ) -> Result<(), Error> {
        let prefix = internal_key::prefix_of(internal);
        if self.prefix != prefix {
            self.next_key(internal, prefix)?;
        }
        let candidate = Candidate {
            partition: self.partition,
            stamp: internal_key::stamp_of(internal).ok_or_else(no_internal_key)?,
            is_delete: stored.action == Action::Delete,
            retention: self.retention,
        };
        let Terms { retentions, now_ms } = &self.terms;
        match self.history.judge(candidate, retentions, *now_ms, || has_older(candidate)) {
            Verdict::Keep => {
                if let Some((key, tombstone)) = self.held.take() {
                    writer.add(&key, tombstone.borrow())?;
                }
                writer.add(internal, stored)?;
            }
            Verdict::Hold => {
                self.held = Some((internal.to_vec(), stored.to_stored()));
            }
            Verdict::Drop => {}
        }
        Ok(())
    }

    /// There is no further event: the floors under which tombstones went, by partition.
    pub(crate) fn finish(&mut self) -> BTreeMap<u32, Stamp> {
        self.let_go();
        std::mem::take(&mut self.floors)
    }

    fn next_key(&mut self, internal: &[u8], prefix: &[u8]) -> Result<(), Error> {
        self.let_go();
        let parts = internal_key::decode(internal).ok_or_else(no_internal_key)?;
        self.prefix.clear();
        self.prefix.extend_from_slice(prefix);
        self.partition = parts.partition;
        self.retention = self.terms.retentions.history(parts.keyspace);
        self.history.next_key();
        Ok(())
    }

    /// Nothing older of its key was kept: the tombstone has nothing to hide.
    fn let_go(&mut self) {
        if self.held.take().is_some() {
            let floor = self.terms.retentions.tombstone_floor(self.partition);
            if Stamp::ZERO < floor {
                self.floors.insert(self.partition, floor);
            }
        }
    }
}

/// Behind a good checksum this takes a writer that was wrong; it is refused all the same.
fn no_internal_key() -> Error {
    Error::corrupt("a table in a merge", 0, "an internal key that is none")
}
