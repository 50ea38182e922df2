//! [`TreeView`]: reads of the tree as it was when the view was taken, and of what was inserted into its active
//! memtable since.
//!
//! Invariants:
//!
//! - Cheap to make and to clone, readable from any thread, and never waits for a write.
//! - A point read stops at a table only if the version found is not below the greatest stamp of every table left.
//! - Memory is bounded by the caller's limits: `limit` events, and about `bytes_max` bytes plus one event.
//! - Damage is an error of the read that met it: a read never leaves out what it could not read.

use std::collections::VecDeque;
use std::sync::Arc;

use starling_clock::Stamp;

use super::Snapshot;
use super::cursor::{MergeCursor, Source};
use super::internal_key;
use super::stored::Stored;
use super::table::{TableCursor, key_hash};
use crate::disk::Disk;
use crate::error::Error;
use crate::event::{Event, EventId, KEY_SIZE_MAX, KeyspaceId};
use crate::types::{Digest, Order, PartitionCursor};

/// Versions of a key that a scan steps over before it searches for the next key.
const STEPS_BEFORE_SEEK: usize = 8;

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
    fn reached(self, events: usize, bytes: usize) -> bool {
        self.events <= events || (0 < events && self.bytes <= bytes)
    }
}

/// A readable moment of the tree.
pub(crate) struct TreeView<D: Disk> {
    snapshot: Arc<Snapshot<D::File>>,
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
        let found = self.find(partition, keyspace, key, at)?;
        found.map(|(internal, stored)| event(stored, &internal)).transpose()
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
        let found = self.find(partition, keyspace, key, Stamp::MAX)?;
        Ok(found.and_then(|(internal, _)| internal_key::stamp_of(&internal)))
    }

    /// Whether this event is here.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn contains(&self, partition: u32, id: EventId<'_>) -> Result<bool, Error> {
        let internal = internal_key::encode(partition, id.keyspace, id.key, id.stamp);
        if self.snapshot.memtables().any(|memtable| memtable.contains(&internal)) {
            return Ok(true);
        }
        let hash = key_hash(internal_key::prefix_of(&internal));
        for table in self.snapshot.version.tables() {
            let bounds = table.bounds();
            if bounds.stamp_greatest < id.stamp {
                break;
            }
            if id.stamp < bounds.stamp_least || !table.may_contain(partition, hash) {
                continue;
            }
            let cursor = TableCursor::seek(Arc::clone(table), &internal, true)?;
            if cursor.key() == Some(&internal) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Versions of the key with `from` <= stamp <= `to`. With [`Order::Ascending`] the oldest ones come first, and
    /// the read costs as much as all versions in the range, whatever the limit.
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
        let prefix = internal_key::prefix(partition, keyspace, key);
        let mut cursor =
            self.cursor(&internal_key::seek_version(&prefix, to), partition, Some(&prefix))?;
        let end = internal_key::seek_version(&prefix, from);
        let mut window = Window::new(limits);
        while let Some(internal) = cursor.key().filter(|internal| *internal <= end.as_slice()) {
            if order == Order::Descending && window.is_full() {
                window.more = true;
                break;
            }
            window.push(event(cursor.stored()?, internal)?, order);
            cursor.advance()?;
        }
        Ok(window.page(order))
    }

    /// The newest event not newer than `at` of each key that begins with `prefix` and is above `after_key`, in the
    /// order of keys. Tombstones are returned as such.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn scan(
        &self,
        partition: u32,
        keyspace: KeyspaceId,
        prefix: &[u8],
        after_key: Option<&[u8]>,
        at: Stamp,
        limits: Limits,
    ) -> Result<Page, Error> {
        let range = internal_key::keys_from(partition, keyspace, prefix);
        let mut from = range.clone();
        if let Some(after) = after_key {
            let after = internal_key::prefix(partition, keyspace, after);
            from = from.max(internal_key::past(&after).expect("a prefix of a key ends in 0x01"));
        }
        let mut cursor = self.cursor(&from, partition, None)?;
        let (mut page, mut bytes) = (Page::default(), 0);
        while let Some(internal) = cursor.key().filter(|internal| internal.starts_with(&range)) {
            if limits.reached(page.events.len(), bytes) {
                page.more = true;
                break;
            }
            let key = internal_key::prefix_of(internal).to_vec();
            let target = internal_key::seek_version(&key, at);
            self.step_to(&mut cursor, &target, partition)?;
            if let Some(internal) = cursor.key().filter(|internal| internal.starts_with(&key)) {
                let event = event(cursor.stored()?, internal)?;
                bytes += event.key.len() + event.payload.len();
                page.events.push(event);
                let next = internal_key::past(&key).expect("a prefix of a key ends in 0x01");
                self.step_to(&mut cursor, &next, partition)?;
            }
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
        let mut cursor = self.cursor(&from, partition, None)?;
        let (mut page, mut bytes) = (Page::default(), 0);
        while let Some(internal) = cursor.key().filter(|internal| is_in(partition, internal)) {
            if limits.reached(page.events.len(), bytes) {
                page.more = true;
                break;
            }
            let event = event(cursor.stored()?, internal)?;
            bytes += event.key.len() + event.payload.len();
            page.events.push(event);
            cursor.advance()?;
        }
        Ok(page)
    }

    /// A summary of all events of the partition. Reads all of it.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn digest(&self, partition: u32) -> Result<Digest, Error> {
        let mut cursor = self.cursor(&partition.to_be_bytes(), partition, None)?;
        let mut digest = Digest::default();
        while let Some(internal) = cursor.key().filter(|internal| is_in(partition, internal)) {
            let parts = internal_key::decode(internal).ok_or_else(no_internal_key)?;
            let id = EventId { keyspace: parts.keyspace, key: &parts.key, stamp: parts.stamp };
            digest.add(id.hash());
            cursor.advance()?;
        }
        Ok(digest)
    }

    fn find(
        &self,
        partition: u32,
        keyspace: KeyspaceId,
        key: &[u8],
        at: Stamp,
    ) -> Result<Option<(Vec<u8>, Stored)>, Error> {
        if key.len() > KEY_SIZE_MAX {
            return Ok(None);
        }
        let prefix = internal_key::prefix(partition, keyspace, key);
        let target = internal_key::seek_version(&prefix, at);
        let mut best: Option<(Vec<u8>, Stored)> = None;
        for memtable in self.snapshot.memtables() {
            let cursor = memtable.seek(&target);
            if let Some(internal) = better(cursor.key(), &prefix, best.as_ref()) {
                best = Some((internal.to_vec(), cursor.stored().clone()));
            }
        }
        let hash = key_hash(&prefix);
        for table in self.snapshot.version.tables() {
            let bounds = table.bounds();
            let found = best.as_ref().and_then(|(internal, _)| internal_key::stamp_of(internal));
            if found.is_some_and(|found| bounds.stamp_greatest <= found) {
                break;
            }
            if at < bounds.stamp_least || !table.may_contain(partition, hash) {
                continue;
            }
            let cursor = TableCursor::seek(Arc::clone(table), &target, true)?;
            if let Some(internal) = better(cursor.key(), &prefix, best.as_ref()) {
                best = Some((internal.to_vec(), cursor.stored()?));
            }
        }
        Ok(best)
    }

    /// A cursor on the first event at or after `from`, over what may have events of `partition`, or, if `key` is
    /// given, of that key.
    fn cursor(
        &self,
        from: &[u8],
        partition: u32,
        key: Option<&[u8]>,
    ) -> Result<MergeCursor<'_, D::File>, Error> {
        let mut sources: Vec<_> =
            self.snapshot.memtables().map(|table| Source::Memtable(table.seek(from))).collect();
        let hash = key.map(key_hash);
        for table in self.snapshot.version.tables() {
            let wanted = match hash {
                Some(hash) => table.may_contain(partition, hash),
                None => table.spans(partition),
            };
            if wanted {
                let cursor = TableCursor::seek(Arc::clone(table), from, true)?;
                sources.push(Source::Table(Box::new(cursor)));
            }
        }
        Ok(MergeCursor::new(sources))
    }

    /// Moves forward to `target`: by steps if it is near, else by a new search.
    fn step_to<'a>(
        &'a self,
        cursor: &mut MergeCursor<'a, D::File>,
        target: &[u8],
        partition: u32,
    ) -> Result<(), Error> {
        for _ in 0..STEPS_BEFORE_SEEK {
            if cursor.key().is_none_or(|key| target <= key) {
                return Ok(());
            }
            cursor.advance()?;
        }
        *cursor = self.cursor(target, partition, None)?;
        Ok(())
    }
}

/// The last events pushed, within limits: from the front for [`Order::Descending`], from the back for
/// [`Order::Ascending`], which meets the newest first and wants the oldest.
struct Window {
    limits: Limits,
    events: VecDeque<Event>,
    bytes: usize,
    more: bool,
}

impl Window {
    fn new(limits: Limits) -> Self {
        Self { limits, events: VecDeque::new(), bytes: 0, more: false }
    }

    fn is_full(&self) -> bool {
        self.limits.reached(self.events.len(), self.bytes)
    }

    fn push(&mut self, event: Event, order: Order) {
        self.bytes += size(&event);
        self.events.push_back(event);
        if order == Order::Descending {
            return;
        }
        // As many of the newest go as leave a page that would be full without them.
        while let Some(newest) = self.events.front() {
            let (events, bytes) = (self.events.len() - 1, self.bytes - size(newest));
            if !self.limits.reached(events, bytes) {
                break;
            }
            self.bytes = bytes;
            self.events.pop_front();
            self.more = true;
        }
    }

    fn page(self, order: Order) -> Page {
        let mut events = Vec::from(self.events);
        if order == Order::Ascending {
            events.reverse();
        }
        Page { events, more: self.more }
    }
}

fn size(event: &Event) -> usize {
    event.key.len() + event.payload.len()
}

/// `candidate`, if it is a version of the key and newer than `best`: newer versions have lesser internal keys.
fn better<'a>(
    candidate: Option<&'a [u8]>,
    prefix: &[u8],
    best: Option<&(Vec<u8>, Stored)>,
) -> Option<&'a [u8]> {
    let internal = candidate.filter(|internal| internal.starts_with(prefix))?;
    best.is_none_or(|(best, _)| internal < best.as_slice()).then_some(internal)
}

fn is_in(partition: u32, internal: &[u8]) -> bool {
    internal.starts_with(&partition.to_be_bytes())
}

fn event(stored: Stored, internal: &[u8]) -> Result<Event, Error> {
    stored.into_event(internal).ok_or_else(no_internal_key)
}

/// Behind a good checksum this takes a writer that was wrong; it is refused all the same.
fn no_internal_key() -> Error {
    Error::corrupt("a table", 0, "an internal key that is none")
}
