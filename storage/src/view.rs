//! [`View`]: reads, from any thread, of the tree and of the change log.
//!
//! Invariants:
//!
//! - Cheap to clone; never waits for a write or a sync.
//! - Reads of the tree see what was there when the view was taken; they may see events that were applied since.
//!   Reads of the change log see what is published when they are made.
//! - A read as of a stamp gives the same whenever it is made, through any view, but for events with lesser stamps that
//!   came since (as copies do), and for history that a merge dropped by the keyspace's retention. A view that is held
//!   keeps the tables and memtables that it was taken with: what merges drop stays readable through it, and takes space
//!   on the disk and in memory, for as long. It costs nothing else.
//! - Memory is bounded by the limits that the caller gives.
//! - What is damaged is an error, never left out.

use std::ops::{ControlFlow, RangeInclusive};

use starling_clock::Stamp;

use crate::changes::ChangeReader;
use crate::tree::{Limits, TreeView};
use crate::{
    Action, Change, Digest, Disk, Error, Estimate, Event, EventId, EventRef, KeyspaceDigest,
    KeyspaceId, Order, PartitionCursor, Scan, ScanEnd, ScanPage,
};

pub use crate::tree::Page;

/// A readable moment of storage. See the file's head.
pub struct View<D: Disk> {
    tree: TreeView<D>,
    changes: ChangeReader<D::File>,
}

impl<D: Disk> Clone for View<D> {
    fn clone(&self) -> Self {
        Self { tree: self.tree.clone(), changes: self.changes.clone() }
    }
}

impl<D: Disk> View<D> {
    pub(crate) fn new(tree: TreeView<D>, changes: ChangeReader<D::File>) -> Self {
        Self { tree, changes }
    }

    pub(crate) fn tree(&self) -> &TreeView<D> {
        &self.tree
    }

    /// The greatest event of the key at or before `at`; a delete is returned as such. [`Stamp::MAX`]: the newest.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Missing`] or a failed read.
    pub fn get(
        &self,
        partition: u32,
        keyspace: KeyspaceId,
        key: &[u8],
        at: Stamp,
    ) -> Result<Option<Event>, Error> {
        self.tree.get(partition, keyspace, key, at)
    }

    /// Shows the event that [`Self::get`] would give to `read`, where it lies, without a copy, and gives what that says:
    /// for who needs less of it than all, or puts it somewhere else.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn get_with<T>(
        &self,
        partition: u32,
        keyspace: KeyspaceId,
        key: &[u8],
        at: Stamp,
        read: impl FnOnce(EventRef<'_>) -> T,
    ) -> Result<Option<T>, Error> {
        self.tree.get_with(partition, keyspace, key, at, read)
    }

    /// The stamp of the key's newest event.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn newest_stamp(
        &self,
        partition: u32,
        keyspace: KeyspaceId,
        key: &[u8],
    ) -> Result<Option<Stamp>, Error> {
        self.tree.newest_stamp(partition, keyspace, key)
    }

    /// Events of the key with `from` <= stamp <= `to`, at most `limit`, and no further one once there are
    /// `bytes_max` bytes of keys and payloads; one at the least.
    ///
    /// # Errors
    /// As [`Self::get`].
    #[expect(clippy::too_many_arguments, reason = "a query has that many parts")]
    pub fn versions(
        &self,
        partition: u32,
        keyspace: KeyspaceId,
        key: &[u8],
        from: Stamp,
        to: Stamp,
        order: Order,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Page, Error> {
        let limits = Limits { events: limit, bytes: bytes_max };
        self.tree.versions(partition, keyspace, key, (from, to), order, limits)
    }

    /// The greatest event at or before `at` of each key that begins with `prefix` and comes after `after_key`, in the
    /// order of keys; deletes are returned as such. Limits as in [`Self::versions`].
    ///
    /// # Errors
    /// As [`Self::get`].
    #[expect(clippy::too_many_arguments, reason = "a query has that many parts")]
    pub fn scan(
        &self,
        partition: u32,
        keyspace: KeyspaceId,
        prefix: &[u8],
        after_key: Option<&[u8]>,
        at: Stamp,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Page, Error> {
        let scan = Scan {
            after: after_key,
            at,
            limit,
            bytes_max,
            ..Scan::new(partition, keyspace, prefix)
        };
        let ScanPage { events, more, .. } = self.tree.scan(&scan)?;
        Ok(Page { events, more })
    }

    /// As [`Self::scan`], of several partitions, one after the other, with one search for all of them: `after_key` is for the
    /// first. The page has `more` if not all of them were looked at to their end.
    ///
    /// # Errors
    /// As [`Self::get`].
    #[expect(clippy::too_many_arguments, reason = "a query has that many parts")]
    pub fn scan_partitions(
        &self,
        partitions: RangeInclusive<u32>,
        keyspace: KeyspaceId,
        prefix: &[u8],
        after_key: Option<&[u8]>,
        at: Stamp,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Page, Error> {
        let scan = Scan {
            after: after_key,
            at,
            limit,
            bytes_max,
            ..Scan::new(*partitions.start(), keyspace, prefix)
        };
        self.tree.scan_partitions(&scan, partitions)
    }

    /// As [`Self::scan`], in either order of keys, without deletes if they are not wanted, and with a bound on the
    /// work of one page.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn scan_page(&self, scan: &Scan<'_>) -> Result<ScanPage, Error> {
        self.tree.scan(scan)
    }

    /// As [`Self::scan_page`], but shows each event where it lies, without a copy, and in one go as long as `visit`
    /// says so: memory does not grow with what there is, and no limit is needed.
    ///
    /// # Errors
    /// As [`Self::get`]; the events before were shown.
    pub fn scan_each(
        &self,
        scan: &Scan<'_>,
        visit: impl FnMut(EventRef<'_>) -> ControlFlow<()>,
    ) -> Result<ScanEnd, Error> {
        self.tree.scan_each(scan, visit)
    }

    /// About how much there is of the keys that begin with `prefix`, from what tables tell of themselves.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn estimate(
        &self,
        partition: u32,
        keyspace: KeyspaceId,
        prefix: &[u8],
    ) -> Result<Estimate, Error> {
        self.tree.estimate_prefix(partition, keyspace, prefix)
    }

    /// About how much there is of the partition, from what tables tell of themselves.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn estimate_partition(&self, partition: u32) -> Result<Estimate, Error> {
        self.tree.estimate(partition)
    }

    /// All events of the partition after a place: keyspace, key, newest first. Limits as in [`Self::versions`].
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn partition_events(
        &self,
        partition: u32,
        after: Option<&PartitionCursor>,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Page, Error> {
        let limits = Limits { events: limit, bytes: bytes_max };
        self.tree.partition_events(partition, after, limits)
    }

    /// The same without their payloads: what comparisons of replicas need. Payloads are neither copied nor counted.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn partition_identities(
        &self,
        partition: u32,
        after: Option<&PartitionCursor>,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Page, Error> {
        let limits = Limits { events: limit, bytes: bytes_max };
        self.tree.partition_identities(partition, after, limits)
    }

    /// Tells of every event of the partition: its identity and whether it is a delete, in internal order, as
    /// [`Self::partition_events`] has them, without memory for any of them.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn visit_partition(
        &self,
        partition: u32,
        visit: impl FnMut(EventId<'_>, Action),
    ) -> Result<(), Error> {
        self.tree.visit_partition(partition, visit)
    }

    /// A summary of all events of the partition, to compare with another replica's. Tables keep theirs: no event is read.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn digest(&self, partition: u32) -> Result<Digest, Error> {
        self.tree.digest(partition)
    }

    /// A summary of each keyspace that has events in the partition, of those that are not newer than `up_to`, in the order of
    /// ids. The keys are read of memtables, and of tables that have something newer; of other tables once, for all times.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn keyspace_digests(
        &self,
        partition: u32,
        up_to: Stamp,
    ) -> Result<Vec<KeyspaceDigest>, Error> {
        self.tree.keyspace_digests(partition, up_to)
    }

    /// The first change that is kept, and one past the last that may be read.
    pub fn change_range(&self) -> (u64, u64) {
        self.changes.range()
    }

    /// Changes from sequence `from` on, at most `limit`, and no further one once they hold `bytes_max` bytes; one at
    /// the least. Empty at the end.
    ///
    /// # Errors
    /// [`Error::Gap`] if retention passed `from`; otherwise as [`Self::get`].
    pub fn changes(&self, from: u64, limit: usize, bytes_max: usize) -> Result<Vec<Change>, Error> {
        self.changes.read(from, limit, bytes_max)
    }

    /// The first sequence that is kept and whose event's stamp is at or after `stamp`; the end if there is none.
    /// Later sequences may have events with earlier stamps: the log is in the order of application.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn changes_at(&self, stamp: Stamp) -> Result<u64, Error> {
        self.changes.seek(stamp)
    }
}
