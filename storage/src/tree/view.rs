//! [`TreeView`]: reads of the tree as it was when the view was taken, and of what was inserted into its active
//! memtable since.
//!
//! Invariants:
//!
//! - Cheap to make and to clone, readable from any thread, and never waits for a write.
//! - A point read stops at a table only if the version found is not below the greatest stamp of every table left.
//! - Memory is bounded by the caller's limits: `limit` events, and about `bytes_max` bytes plus one event.
//! - Damage is an error of the read that met it: a read never leaves out what it could not read.

use std::borrow::Borrow;
use std::sync::Arc;

use bytes::Bytes;
use starling_clock::Stamp;

use super::Snapshot;
use super::address::Address;
use super::cursor::{MergeCursor, Source};
use super::internal_key::{self, SearchKey};
use super::memtable::Entry;
use super::stored::{Stored, StoredRef};
use super::table::{FoundEvent, Table, TableCursor, key_hash};
use crate::disk::Disk;
use crate::error::Error;
use crate::event::{Action, Event, EventId, EventRef, KEY_SIZE_MAX, KeyspaceId};
use crate::types::{Digest, Estimate, Order, PartitionCursor};

/// Events in order, as many as the limits let.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The events.
    pub events: Vec<Event>,
    /// The limits ended the read: there may be more.
    pub more: bool,
}

/// How much a read may return.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// At most this many events.
    pub(crate) events: usize,
    /// No further event once there are this many bytes of key and payload; the first is returned whatever its size.
    pub(crate) bytes: usize,
}

impl Limits {
    pub(super) fn reached(self, events: usize, bytes: usize) -> bool {
        self.events <= events || (0 < events && self.bytes <= bytes)
    }
}

/// A readable moment of the tree.
pub(crate) struct TreeView<D: Disk> {
    pub(super) snapshot: Arc<Snapshot<D::File>>,
}

impl<D: Disk> Clone for TreeView<D> {
    fn clone(&self) -> Self {
        Self { snapshot: Arc::clone(&self.snapshot) }
    }
}

impl<D: Disk> TreeView<D> {
    pub(super) fn new(snapshot: Arc<Snapshot<D::File>>) -> Self {
        Self { snapshot }
    }

    /// The greatest event of the key that is not newer than `at`; a tombstone is returned as such.
    ///
    /// # Errors
    /// [`Error::Corrupt`] or [`Error::Io`] if a table that may have it can't be read.
    pub(crate) fn get(
        &self,
        partition: u32,
        keyspace: KeyspaceId,
        key: &[u8],
        at: Stamp,
    ) -> Result<Option<Event>, Error> {
        let Some(newest) = self.find(partition, keyspace, key, at)? else { return Ok(None) };
        let Stored { action, request, payload } = newest.stored;
        let key = Bytes::copy_from_slice(key);
        let stamp = newest.stamp;
        Ok(Some(Event { partition, keyspace, key, stamp, request, action, payload }))
    }

    /// Shows the event that [`Self::get`] would give to `read`, where it lies, and gives what that says.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn get_with<T>(
        &self,
        partition: u32,
        keyspace: KeyspaceId,
        key: &[u8],
        at: Stamp,
        read: impl FnOnce(EventRef<'_>) -> T,
    ) -> Result<Option<T>, Error> {
        let Some(found) = self.locate(partition, keyspace, key, at)? else { return Ok(None) };
        let stamp = found.stamp();
        let StoredRef { action, request, payload } = found.borrowed()?;
        Ok(Some(read(EventRef { partition, keyspace, key, stamp, request, action, payload })))
    }

    /// The stamp of the newest event of the key.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn newest_stamp(
        &self,
        partition: u32,
        keyspace: KeyspaceId,
        key: &[u8],
    ) -> Result<Option<Stamp>, Error> {
        let found = self.locate(partition, keyspace, key, Stamp::MAX)?;
        Ok(found.map(|found| found.stamp()))
    }

    /// [`Self::newest_stamp`] of the key of an event in `partition` whose address is known.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn newest_stamp_at(
        &self,
        partition: u32,
        address: Address<'_>,
    ) -> Result<Option<Stamp>, Error> {
        let prefix = internal_key::prefix_of(address.key);
        let place = (prefix, address.key_hash, Stamp::MAX);
        let target = || SearchKey::newest_of(prefix);
        Ok(self.locate_in(partition, place, target)?.map(|found| found.stamp()))
    }

    /// Begins to bring near what [`Self::newest_stamp_at`] will look at.
    pub(crate) fn prefetch(&self, partition: u32, address: Address<'_>) {
        for memtable in self.snapshot.memtables_of(partition) {
            memtable.prefetch(address.key_hash);
        }
    }

    /// Whether this event is here.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn contains(&self, partition: u32, id: EventId<'_>) -> Result<bool, Error> {
        let internal = internal_key::encode(partition, id.keyspace, id.key, id.stamp);
        if self.snapshot.memtables_of(partition).any(|memtable| memtable.contains(&internal)) {
            return Ok(true);
        }
        let hash = key_hash(internal_key::prefix_of(&internal));
        for table in self.snapshot.version.tables() {
            let bounds = table.bounds();
            if bounds.stamp_greatest < id.stamp {
                break;
            }
            if id.stamp < bounds.stamp_least || !table.spans(partition) {
                continue;
            }
            if table.get(&internal, hash)?.is_some_and(|found| found.stamp == id.stamp) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Versions of the key with `from` <= stamp <= `to`; with [`Order::Ascending`] the oldest ones come first. Either
    /// way the read costs as much as what it returns.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn versions(
        &self,
        partition: u32,
        keyspace: KeyspaceId,
        key: &[u8],
        (from, to): (Stamp, Stamp),
        order: Order,
        limits: Limits,
    ) -> Result<Page, Error> {
        if key.len() > KEY_SIZE_MAX || to < from {
            return Ok(Page::default());
        }
        let newest = internal_key::encode(partition, keyspace, key, to);
        // Just above the oldest that is wanted.
        let mut end = internal_key::encode(partition, keyspace, key, from);
        end.push(0);
        let mut cursor = MergeCursor::new(self.sources(partition, Some(&newest))?);
        match order {
            Order::Descending => cursor.seek(&newest)?,
            Order::Ascending => cursor.seek_before(&end)?,
        }
        let (mut page, mut bytes) = (Page::default(), 0);
        while let Some(internal) = cursor.key() {
            if internal < newest.as_slice() || end.as_slice() <= internal {
                break;
            }
            if limits.reached(page.events.len(), bytes) {
                page.more = true;
                break;
            }
            cursor.arrive()?;
            let internal = cursor.key().expect("it has not moved");
            let event = event(cursor.stored()?, internal)?;
            bytes += event.key.len() + event.payload.len();
            page.events.push(event);
            cursor.advance()?;
        }
        Ok(page)
    }

    /// All events of the partition after a place, in the order of [`PartitionCursor`].
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn partition_events(
        &self,
        partition: u32,
        after: Option<&PartitionCursor>,
        limits: Limits,
    ) -> Result<Page, Error> {
        self.partition_page(partition, after, limits, MergeCursor::stored)
    }

    /// The same without payloads, which are neither copied nor counted.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn partition_identities(
        &self,
        partition: u32,
        after: Option<&PartitionCursor>,
        limits: Limits,
    ) -> Result<Page, Error> {
        self.partition_page(partition, after, limits, |cursor| {
            let StoredRef { action, request, .. } = cursor.borrowed()?;
            Ok(Stored { action, request, payload: Bytes::new() })
        })
    }

    /// Tells of every event of the partition, in the order of [`PartitionCursor`].
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn visit_partition(
        &self,
        partition: u32,
        mut visit: impl FnMut(EventId<'_>, Action),
    ) -> Result<(), Error> {
        let mut cursor = self.cursor(partition)?;
        cursor.seek(&partition.to_be_bytes())?;
        while cursor.key().is_some_and(|internal| is_in(partition, internal)) {
            cursor.arrive()?;
            let internal = cursor.key().expect("it is on an event");
            let parts = internal_key::decode(internal).ok_or_else(no_internal_key)?;
            let (keyspace, stamp) = (parts.keyspace, parts.stamp);
            visit(EventId { keyspace, key: &parts.key, stamp }, cursor.borrowed()?.action);
            cursor.advance()?;
        }
        Ok(())
    }

    fn partition_page<'a>(
        &'a self,
        partition: u32,
        after: Option<&PartitionCursor>,
        limits: Limits,
        stored: impl Fn(&MergeCursor<'a, D::File>) -> Result<Stored, Error>,
    ) -> Result<Page, Error> {
        let from = match after {
            Some(after) => {
                let mut from =
                    internal_key::encode(partition, after.keyspace, &after.key, after.stamp);
                // The next internal key in byte order: nothing lies between.
                from.push(0);
                from
            }
            None => partition.to_be_bytes().to_vec(),
        };
        let mut cursor = self.cursor(partition)?;
        cursor.seek(&from)?;
        let (mut page, mut bytes) = (Page::default(), 0);
        while cursor.key().is_some_and(|internal| is_in(partition, internal)) {
            if limits.reached(page.events.len(), bytes) {
                page.more = true;
                break;
            }
            cursor.arrive()?;
            let internal = cursor.key().expect("it has not moved");
            let event = event(stored(&cursor)?, internal)?;
            bytes += event.key.len() + event.payload.len();
            page.events.push(event);
            cursor.advance()?;
        }
        Ok(page)
    }

    /// A summary of all events of the partition: the sum of what tables and memtables keep of theirs. An event is in
    /// one of them only, for one that is anywhere is not inserted again.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn digest(&self, partition: u32) -> Result<Digest, Error> {
        let mut digest = Digest::default();
        for memtable in self.snapshot.memtables_of(partition) {
            digest.combine(memtable.digest(partition));
        }
        for table in self.snapshot.version.tables() {
            digest.combine(table.summary(partition)?.unwrap_or_default().digest);
        }
        Ok(digest)
    }

    /// About how much of the partition there is in tables. Reads no events.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn estimate(&self, partition: u32) -> Result<Estimate, Error> {
        let mut estimate = Estimate::default();
        for table in self.snapshot.version.tables() {
            let Some(summary) = table.summary(partition)? else { continue };
            estimate.events += summary.digest.events;
            estimate.deletes += summary.deletes;
            estimate.keys += summary.keys;
            estimate.bytes += summary.bytes;
        }
        Ok(estimate)
    }

    /// About how much there is in tables of the keys that begin with `prefix`: what the partition has, in proportion to
    /// the bytes of files.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn estimate_prefix(
        &self,
        partition: u32,
        keyspace: KeyspaceId,
        prefix: &[u8],
    ) -> Result<Estimate, Error> {
        let range = internal_key::keys_from(partition, keyspace, prefix);
        let whole = partition.to_be_bytes();
        let mut estimate = Estimate::default();
        for table in self.snapshot.version.tables() {
            let Some(summary) = table.summary(partition)? else { continue };
            let file_bytes = |range: &[u8]| -> Result<u64, Error> {
                let end = internal_key::past(range).map(|end| table.offset_of(&end));
                let end = end.unwrap_or_else(|| table.offset_of(&[0xff; 32]))?;
                Ok(end.saturating_sub(table.offset_of(range)?))
            };
            let (part, all) = (file_bytes(&range)?, file_bytes(&whole)?);
            let share = |count: u64| match all {
                0 => count,
                _ => u64::try_from(u128::from(count) * u128::from(part.min(all)) / u128::from(all))
                    .unwrap_or(count),
            };
            estimate.events += share(summary.digest.events);
            estimate.deletes += share(summary.deletes);
            estimate.keys += share(summary.keys);
            estimate.bytes += share(summary.bytes);
        }
        Ok(estimate)
    }

    /// The newest version of the key that is not newer than `at`.
    pub(super) fn find(
        &self,
        partition: u32,
        keyspace: KeyspaceId,
        key: &[u8],
        at: Stamp,
    ) -> Result<Option<Newest>, Error> {
        let found = self.locate(partition, keyspace, key, at)?;
        found.map(Located::read).transpose()
    }

    fn locate(
        &self,
        partition: u32,
        keyspace: KeyspaceId,
        key: &[u8],
        at: Stamp,
    ) -> Result<Option<Located<'_, D>>, Error> {
        if key.len() > KEY_SIZE_MAX {
            return Ok(None);
        }
        let target = SearchKey::new(partition, keyspace, key, at);
        let prefix = internal_key::prefix_of(target.as_bytes());
        self.locate_in(partition, (prefix, key_hash(prefix), at), || &target)
    }

    /// `target` is asked for once tables have to be read.
    fn locate_in<T: Borrow<SearchKey>>(
        &self,
        partition: u32,
        (prefix, hash, at): (&[u8], u64, Stamp),
        target: impl FnOnce() -> T,
    ) -> Result<Option<Located<'_, D>>, Error> {
        let mut best: Option<Located<'_, D>> = None;
        for memtable in self.snapshot.memtables_of(partition) {
            let Some(entry) = memtable.get(prefix, hash, at) else { continue };
            if best.as_ref().is_none_or(|best| best.stamp() < entry.stamp()) {
                best = Some(Located::Memtable(entry));
            }
        }
        let tables = self.snapshot.version.tables();
        if tables.is_empty() {
            return Ok(best);
        }
        let target = target();
        let target = target.borrow().as_bytes();
        for table in tables {
            let bounds = table.bounds();
            let newest = best.as_ref().map(Located::stamp);
            if newest.is_some_and(|newest| bounds.stamp_greatest <= newest) {
                break;
            }
            if at < bounds.stamp_least || !table.spans(partition) {
                continue;
            }
            let Some(found) = table.get(target, hash)? else { continue };
            if newest.is_none_or(|newest| newest < found.stamp) {
                best = Some(Located::Table(table, found));
            }
        }
        Ok(best)
    }

    /// A cursor, on no event in particular, over what may have events of `partition`: seek with it.
    pub(super) fn cursor(&self, partition: u32) -> Result<MergeCursor<'_, D::File>, Error> {
        Ok(MergeCursor::new(self.sources(partition, None)?))
    }

    /// What may have events of `partition`; if `newest` is given, of its key, as new as that or older.
    fn sources(
        &self,
        partition: u32,
        newest: Option<&[u8]>,
    ) -> Result<Vec<Source<'_, D::File>>, Error> {
        let memtables = self.snapshot.memtables_of(partition);
        let snapshot = &self.snapshot;
        let most = 1 + snapshot.frozen.len() + snapshot.version.tables().len();
        let mut sources = Vec::with_capacity(most);
        sources.extend(memtables.map(|memtable| Source::Memtable(memtable, memtable.none())));
        let newest = newest.map(|newest| (newest, key_hash(internal_key::prefix_of(newest))));
        for table in self.snapshot.version.tables() {
            let wanted = table.spans(partition)
                && match newest {
                    Some((newest, hash)) => table.may_contain(newest, hash)?,
                    None => true,
                };
            if wanted {
                sources.push(Source::Table(Box::new(TableCursor::new(Arc::clone(table), true))));
            }
        }
        Ok(sources)
    }
}

/// A version of a key.
pub(super) struct Newest {
    pub(super) stamp: Stamp,
    pub(super) stored: Stored,
}

/// Where a version of a key is.
enum Located<'a, D: Disk> {
    Memtable(Entry<'a>),
    Table(&'a Table<D::File>, FoundEvent),
}

impl<D: Disk> Located<'_, D> {
    fn stamp(&self) -> Stamp {
        match self {
            Self::Memtable(entry) => entry.stamp(),
            Self::Table(_, found) => found.stamp,
        }
    }

    fn borrowed(&self) -> Result<StoredRef<'_>, Error> {
        match self {
            Self::Memtable(entry) => Ok(entry.stored()),
            Self::Table(table, found) => found.borrowed().ok_or_else(|| damaged(table.path())),
        }
    }

    fn read(self) -> Result<Newest, Error> {
        match self {
            Self::Memtable(entry) => {
                Ok(Newest { stamp: entry.stamp(), stored: entry.stored().to_stored() })
            }
            Self::Table(table, found) => {
                let stored = found.stored().ok_or_else(|| damaged(table.path()))?;
                Ok(Newest { stamp: found.stamp, stored })
            }
        }
    }
}

fn damaged(table: &str) -> Error {
    Error::corrupt(table, 0, "an event that is none")
}

pub(super) fn is_in(partition: u32, internal: &[u8]) -> bool {
    internal.starts_with(&partition.to_be_bytes())
}

pub(super) fn event(stored: Stored, internal: &[u8]) -> Result<Event, Error> {
    stored.into_event(internal).ok_or_else(no_internal_key)
}

/// Behind a good checksum this takes a writer that was wrong; it is refused all the same.
pub(super) fn no_internal_key() -> Error {
    Error::corrupt("a table", 0, "an internal key that is none")
}
