//! Digests of the keyspaces of a partition: what tells two replicas whether there is anything to compare.
//!
//! Invariants:
//!
//! - Equal sets of events that are not newer than a stamp have equal digests, however they lie in tables and memtables.
//! - No payload is read into memory of its own, and nothing is kept of a key.
//! - A table is read for a partition once after it has nothing newer than what is asked for: it does not change any more.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use starling_clock::Stamp;

use super::internal_key;
use super::table::{Table, TableCursor};
use super::view::{TreeView, is_in, no_internal_key};
use crate::disk::{Disk, DiskFile};
use crate::error::Error;
use crate::event::{EventId, KeyspaceId};
use crate::types::{Digest, KeyspaceDigest};

/// What a table has of each keyspace in a partition, whatever its stamps.
type TableDigests = Arc<[(KeyspaceId, Digest)]>;

/// What was found out of a table, by partition. Some bytes a partition and keyspace, for as long as the table is open.
#[derive(Debug, Default)]
pub(super) struct KnownDigests {
    partitions: Mutex<BTreeMap<u32, TableDigests>>,
}

impl KnownDigests {
    fn get(&self, partition: u32) -> Option<TableDigests> {
        let partitions = self.partitions.lock().unwrap_or_else(PoisonError::into_inner);
        partitions.get(&partition).cloned()
    }

    fn set(&self, partition: u32, digests: TableDigests) {
        let mut partitions = self.partitions.lock().unwrap_or_else(PoisonError::into_inner);
        partitions.insert(partition, digests);
    }
}

/// The sum over some sources. An event is in one of them only, for one that is anywhere is not inserted again.
struct Sums {
    up_to: Stamp,
    done: BTreeMap<KeyspaceId, (Digest, u64)>,
    /// Of the keyspace at hand: a source has one after the other.
    keyspace: KeyspaceId,
    settled: Digest,
    newer: u64,
}

impl Sums {
    fn new(up_to: Stamp) -> Self {
        let (done, settled) = (BTreeMap::new(), Digest::default());
        Self { up_to, done, keyspace: KeyspaceId(0), settled, newer: 0 }
    }

    fn add(&mut self, internal: &[u8]) -> Result<(), Error> {
        let parts = internal_key::decode(internal).ok_or_else(no_internal_key)?;
        let (keyspace, stamp) = (parts.keyspace, parts.stamp);
        if keyspace != self.keyspace {
            self.store();
            self.keyspace = keyspace;
        }
        if self.up_to < stamp {
            self.newer += 1;
        } else {
            self.settled.add(EventId { keyspace, key: &parts.key, stamp }.hash());
        }
        Ok(())
    }

    fn add_table<F: DiskFile>(
        &mut self,
        table: &Arc<Table<F>>,
        partition: u32,
    ) -> Result<(), Error> {
        let mut cursor = TableCursor::seek(Arc::clone(table), &partition.to_be_bytes(), true)?;
        while let Some(internal) = cursor.key().filter(|key| is_in(partition, key)) {
            self.add(internal)?;
            cursor.advance()?;
        }
        Ok(())
    }

    fn combine(&mut self, known: &[(KeyspaceId, Digest)]) {
        for (keyspace, digest) in known {
            self.done.entry(*keyspace).or_default().0.combine(*digest);
        }
    }

    fn store(&mut self) {
        let (settled, newer) = (std::mem::take(&mut self.settled), std::mem::take(&mut self.newer));
        if 0 < settled.events + newer {
            let sum = self.done.entry(self.keyspace).or_default();
            sum.0.combine(settled);
            sum.1 += newer;
        }
    }

    fn finish(mut self) -> BTreeMap<KeyspaceId, (Digest, u64)> {
        self.store();
        self.done
    }
}

/// What a table has of a partition, whatever its stamps.
fn digests_of<F: DiskFile>(table: &Arc<Table<F>>, partition: u32) -> Result<TableDigests, Error> {
    if let Some(known) = table.known_digests().get(partition) {
        return Ok(known);
    }
    let mut sums = Sums::new(Stamp::MAX);
    sums.add_table(table, partition)?;
    let digests = sums.finish().into_iter().map(|(keyspace, (digest, _))| (keyspace, digest));
    let digests: TableDigests = digests.collect();
    table.known_digests().set(partition, Arc::clone(&digests));
    Ok(digests)
}

impl<D: Disk> TreeView<D> {
    /// A summary of each keyspace that has events in the partition, of those that are not newer than `up_to`, in the order of
    /// ids. Every event is looked at that is in a memtable or in a table with something newer.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn keyspace_digests(
        &self,
        partition: u32,
        up_to: Stamp,
    ) -> Result<Vec<KeyspaceDigest>, Error> {
        let mut sums = Sums::new(up_to);
        for memtable in self.snapshot.memtables_of(partition) {
            let mut cursor = memtable.seek(&partition.to_be_bytes());
            while let Some(internal) = cursor.key().filter(|key| is_in(partition, key)) {
                sums.add(internal)?;
                cursor.advance();
            }
        }
        for table in self.snapshot.version.tables().iter().filter(|it| it.spans(partition)) {
            if table.bounds().stamp_greatest <= up_to {
                sums.combine(&digests_of(table, partition)?);
            } else {
                sums.add_table(table, partition)?;
            }
        }
        let digest = |(keyspace, (settled, newer))| KeyspaceDigest { keyspace, settled, newer };
        Ok(sums.finish().into_iter().map(digest).collect())
    }
}
