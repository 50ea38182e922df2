//! [`Recovery`]: puts the tree, the change log and the hints together from what the write-ahead log has.
//!
//! Invariants:
//!
//! - The change log gets what it misses and nothing else.
//! - No memtable grows beyond `memtable_bytes_max` by more than an event, however long the log is.
//! - Events come to a memtable in batches of bounded size, each nearly in its order: neighbours meet the same cache
//!   lines, which makes most of what an insert costs.

use bytes::Bytes;
use starling_clock::Stamp;
use starling_clock::mutation::{self, Mutation};

use super::WAL_DIR;
use crate::changes::ChangeLog;
use crate::hints::Hints;
use crate::state::State;
use crate::tree::Tree;
use crate::wal::WalRecord;
use crate::{Disk, Error, Event, Lsn};

/// A batch is put into the memtable once its events have so many bytes.
const BATCH_BYTES_MAX: usize = 16 << 20;
/// What an event costs in a memtable besides key and payload, in bytes, about.
const EVENT_OVERHEAD: usize = 80;

/// Events that wait to be put into the memtable.
#[derive(Default)]
pub(super) struct Batch {
    events: Vec<Event>,
    bytes: usize,
}

impl Batch {
    fn take(&mut self, event: Event) {
        self.bytes += event.key.len() + event.payload.len() + EVENT_OVERHEAD;
        self.events.push(event);
    }

    /// Empties the batch. Events of one key come in the order in which they were taken: the first of two with one identity
    /// is the one that stays.
    fn drain_into<D: Disk>(&mut self, tree: &mut Tree<D>) {
        let place = |(index, event): (usize, &Event)| {
            let mut start = [0; 8];
            let length = event.key.len().min(8);
            start[..length].copy_from_slice(&event.key[..length]);
            let keyspace = event.keyspace.0 & u64::from(u32::MAX);
            let group = (u64::from(event.partition) << 32) | keyspace;
            ((u128::from(group) << 64) | u128::from(u64::from_be_bytes(start)), index)
        };
        let mut order: Vec<(u128, usize)> = self.events.iter().enumerate().map(place).collect();
        order.sort_unstable();
        for (_, index) in order {
            tree.insert(&self.events[index]);
        }
        self.events.clear();
        self.bytes = 0;
    }
}

/// What is put together while the write-ahead log is read.
pub(super) struct Recovery<D: Disk> {
    pub(super) tree: Tree<D>,
    pub(super) changes: ChangeLog<D>,
    pub(super) hints: Hints<D>,
    pub(super) state: State,
    pub(super) buffer_bytes_max: usize,
    pub(super) memtable_bytes_max: usize,
    pub(super) batch: Batch,
    pub(super) last_change: Option<u64>,
    /// The greatest stamp in the log's events.
    pub(super) greatest: Stamp,
}

impl<D: Disk> Recovery<D> {
    /// One record of the write-ahead log; `sealed` if it is known to be on disk.
    pub(super) fn take(&mut self, lsn: Lsn, sealed: bool, record: WalRecord) -> Result<(), Error> {
        match record {
            WalRecord::Event { sequence, event, change, .. } => {
                self.greatest = self.greatest.max(event.stamp);
                if self.changes.next() < sequence {
                    return Err(Error::corrupt("changes", 0, "changes are missing"));
                }
                if self.changes.next() == sequence {
                    self.changes.stage(event.id(), &change);
                }
                self.last_change = Some(sequence);
                if self.tree.flushed() < lsn {
                    self.batch.take(event);
                    self.insert_batch(lsn);
                }
            }
            WalRecord::Hint { .. } if mutation::is(Mutation::LoseHints) => {}
            WalRecord::Hint { target, sequence, hint, .. } => {
                self.hints.recover(target, sequence, &hint)?;
            }
            WalRecord::HintsDone { target, up_to } => self.hints.consume(target, up_to),
            WalRecord::Meta { name, value } => {
                if self.state.up_to < lsn {
                    self.state.metas.insert(name, Bytes::copy_from_slice(&value));
                }
            }
        }
        let staged = self.changes.staged_bytes() + self.hints.staged_bytes();
        if sealed && staged > self.buffer_bytes_max {
            self.changes.publish();
            self.hints.publish();
            self.changes.write_out()?;
            self.hints.write_out()?;
        }
        Ok(())
    }

    /// Puts what waits into the memtable if it is enough, and ends a memtable that is full. `lsn` is the last record taken.
    fn insert_batch(&mut self, lsn: Lsn) {
        let expected = self.tree.memtable_bytes() + self.batch.bytes;
        if self.batch.bytes < BATCH_BYTES_MAX && expected < self.memtable_bytes_max {
            return;
        }
        self.batch.drain_into(&mut self.tree);
        if self.memtable_bytes_max <= self.tree.memtable_bytes() {
            self.tree.rotate(lsn);
        }
    }

    /// Puts the rest into the memtable, and checks whether the write-ahead log has all that later places prove it had.
    pub(super) fn finish(&mut self, last: Lsn) -> Result<(), Error> {
        self.batch.drain_into(&mut self.tree);
        let lost = "the end of the log is missing: later files know of it";
        if last < self.tree.flushed() || last < self.state.up_to {
            return Err(Error::corrupt(WAL_DIR, 0, lost));
        }
        if self.changes.next() < self.state.changes {
            return Err(Error::corrupt("changes", 0, "changes are missing"));
        }
        if self.last_change.is_some_and(|sequence| sequence + 1 != self.changes.next()) {
            return Err(Error::corrupt(WAL_DIR, 0, lost));
        }
        Ok(())
    }
}
