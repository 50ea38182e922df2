//! [`Recovery`]: puts the tree, the change log and the hints together from what the write-ahead log has.
//!
//! Invariants:
//!
//! - The change log gets what it misses and nothing else.
//! - Nothing comes back that was dropped with its partition.
//! - No memtable grows beyond `memtable_bytes_max` by more than an event, however long the log is.
//! - Events come to a memtable all at once, when it is full or the log ends: sorted they need no search.

use bytes::Bytes;
use starling_clock::Stamp;
use starling_clock::mutation::{self, Mutation};

use super::{TABLES_DIR, WAL_DIR};
use crate::changes::ChangeLog;
use crate::hints::Hints;
use crate::log::parse_segment_name;
use crate::state::State;
use crate::tree::inspect::inspect_manifest;
use crate::tree::{Addresses, Bulk, Tree, is_dropped};
use crate::wal::record::WalRecordRef;
use crate::{Disk, Error, Lsn};

const MANIFEST: &str = "tables/MANIFEST";

/// Whether the write-ahead log goes back to where the state file and the tables end. It has to be known before anything is changed:
/// tables that a manifest does not name any more are removed by the next to read it.
///
/// # Errors
/// [`Error::Missing`] or [`Error::Corrupt`] for what ends too early, or failed IO.
pub(super) fn check_begin<D: Disk>(disk: &D, state: &State) -> Result<(), Error> {
    let names = disk.list(WAL_DIR).map_err(Error::io("list", WAL_DIR))?;
    // Without any, whoever opens the log has the word.
    let Some(first) = names.iter().find_map(|name| parse_segment_name(name)) else { return Ok(()) };
    let early = |file: &str, is_there: bool| {
        if is_there {
            Error::corrupt(file, 0, "the write-ahead log begins behind where it ends")
        } else {
            Error::Missing { file: file.to_owned() }
        }
    };
    if state.up_to.0.saturating_add(1) < first {
        let is_there = disk.exists("state").map_err(Error::io("look for", "state"))?;
        return Err(early("state", is_there));
    }
    match inspect_manifest(disk, TABLES_DIR) {
        Ok((manifest, ..)) if manifest.flushed.0.saturating_add(1) < first => {
            Err(early(MANIFEST, true))
        }
        Err(Error::Missing { .. }) if 1 < first => Err(early(MANIFEST, false)),
        Err(error @ Error::Io { .. }) => Err(error),
        // What is wrong with it otherwise the tree tells.
        _ => Ok(()),
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
    /// Events of the active memtable that are not in it yet.
    pub(super) bulk: Option<Bulk>,
    /// Memory for the address of an event.
    pub(super) addresses: Addresses,
    pub(super) last_change: Option<u64>,
    /// The greatest stamp in the log's events.
    pub(super) greatest: Stamp,
}

impl<D: Disk> Recovery<D> {
    /// One record of the write-ahead log; `sealed` if it is known to be on disk.
    pub(super) fn take(
        &mut self,
        lsn: Lsn,
        sealed: bool,
        record: &WalRecordRef<'_>,
    ) -> Result<(), Error> {
        match *record {
            WalRecordRef::Event { sequence, ref event, change, .. } => {
                self.greatest = self.greatest.max(event.stamp);
                if self.changes.next() < sequence {
                    return Err(Error::corrupt("changes", 0, "changes are missing"));
                }
                let address = self.addresses.only(event.partition, event.id());
                if self.changes.next() == sequence {
                    self.changes.stage((address.id_hash, event.stamp), change);
                }
                self.last_change = Some(sequence);
                if self.tree.flushed() < lsn
                    && !is_dropped(self.tree.dropped(), event.partition, lsn)
                {
                    let bulk = self.bulk.get_or_insert_with(|| self.tree.bulk());
                    bulk.add_at(address, event);
                    if self.memtable_bytes_max <= bulk.bytes() {
                        self.fill_memtable();
                        self.tree.rotate(lsn);
                    }
                }
            }
            WalRecordRef::Hint { .. } if mutation::is(Mutation::LoseHints) => {}
            WalRecordRef::Hint { target, sequence, hint, .. } => {
                self.hints.recover(target, sequence, hint)?;
            }
            WalRecordRef::HintsDone { target, up_to } => self.hints.consume(target, up_to),
            WalRecordRef::Meta { name, value } => {
                if self.state.up_to < lsn {
                    self.state.metas.insert(name.to_owned(), Bytes::copy_from_slice(value));
                }
            }
        }
        let staged = || self.changes.staged_bytes() + self.hints.staged_bytes();
        if sealed && staged() > self.buffer_bytes_max {
            self.changes.publish();
            self.hints.publish();
            self.changes.write_out()?;
            self.hints.write_out()?;
        }
        Ok(())
    }

    fn fill_memtable(&mut self) {
        if let Some(bulk) = self.bulk.take() {
            bulk.finish();
        }
    }

    /// Puts the rest into the memtable, and checks whether the write-ahead log has all that later places prove it had.
    pub(super) fn finish(&mut self, last: Lsn) -> Result<(), Error> {
        self.fill_memtable();
        let lost = "the end of the log is missing: later files know of it";
        if last < self.tree.log_end() || last < self.state.up_to {
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
