//! The memtable: events that are in the write-ahead log and not yet in a table, in the order of internal keys.
//!
//! Invariants:
//!
//! - Many threads read while one inserts; a reader sees an event whole or not at all.
//! - An event that is there already changes nothing: identity decides, not the payload.
//! - Nothing is ever removed: a memtable is frozen, flushed and dropped as a whole.
//! - Key and payload are copies: a memtable keeps no buffer of a log or of a network alive.
//!
//! It does not know what a log or a table is. The skiplist is used here and nowhere else.

use std::ops::Bound;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use crossbeam_skiplist::SkipMap;
use crossbeam_skiplist::map::Entry;

use super::internal_key;
use super::stored::Stored;
use crate::event::Event;

/// What an entry costs beside its key and payload, in bytes, as measured with this skiplist.
const ENTRY_OVERHEAD: usize = 160;

/// Events in memory, sorted.
#[derive(Default)]
pub(crate) struct Memtable {
    entries: SkipMap<Box<[u8]>, Stored>,
    bytes: AtomicUsize,
}

impl Memtable {
    /// Adds an event. One thread at a time does this: otherwise the accounting may count an event twice.
    pub(crate) fn insert(&self, event: &Event) {
        let key = internal_key::encode(event.partition, event.keyspace, &event.key, event.stamp);
        let size = key.len() + event.payload.len() + ENTRY_OVERHEAD;
        let mut is_new = false;
        self.entries.get_or_insert_with(key.into_boxed_slice(), || {
            is_new = true;
            Stored {
                action: event.action,
                request: event.request,
                payload: Bytes::copy_from_slice(&event.payload),
            }
        });
        if is_new {
            self.bytes.fetch_add(size, Ordering::Relaxed);
        }
    }

    /// Memory held, in bytes, about.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether the event with this internal key is here.
    pub(crate) fn contains(&self, internal: &[u8]) -> bool {
        self.entries.contains_key(internal)
    }

    /// A cursor on the first event at or after `from`.
    pub(crate) fn seek(&self, from: &[u8]) -> MemtableCursor<'_> {
        MemtableCursor { entry: self.entries.lower_bound(Bound::Included(from)) }
    }

    /// A cursor on no event.
    pub(crate) fn none(&self) -> MemtableCursor<'_> {
        MemtableCursor { entry: None }
    }

    /// A cursor on the last event before `end`.
    pub(crate) fn seek_before(&self, end: &[u8]) -> MemtableCursor<'_> {
        MemtableCursor { entry: self.entries.upper_bound(Bound::Excluded(end)) }
    }

    /// A cursor on the first event after `after`.
    pub(crate) fn seek_past(&self, after: &[u8]) -> MemtableCursor<'_> {
        MemtableCursor { entry: self.entries.lower_bound(Bound::Excluded(after)) }
    }
}

/// Walks a memtable in order. Events inserted meanwhile are met or not.
pub(crate) struct MemtableCursor<'a> {
    entry: Option<Entry<'a, Box<[u8]>, Stored>>,
}

impl MemtableCursor<'_> {
    /// The internal key of the event, `None` past the last one.
    pub(crate) fn key(&self) -> Option<&[u8]> {
        self.entry.as_ref().map(|entry| &**entry.key())
    }

    /// # Panics
    /// If the cursor is past the last event.
    pub(crate) fn stored(&self) -> &Stored {
        self.entry.as_ref().expect("the cursor is on an event").value()
    }

    /// Moves to the next event.
    pub(crate) fn advance(&mut self) {
        self.entry = self.entry.take().and_then(|entry| entry.next());
    }

    /// Moves to the event before.
    pub(crate) fn retreat(&mut self) {
        self.entry = self.entry.take().and_then(|entry| entry.prev());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::tests::{internal, put};

    #[test]
    fn an_event_counts_once() {
        let memtable = Memtable::default();
        memtable.insert(&put("a", 1));
        let bytes = memtable.bytes();
        assert!(ENTRY_OVERHEAD < bytes);
        memtable.insert(&Event { payload: Bytes::from_static(b"another"), ..put("a", 1) });
        assert_eq!(memtable.bytes(), bytes);
        assert_eq!(memtable.seek(&[]).stored().payload, put("a", 1).payload, "the first one stays");
        memtable.insert(&put("a", 2));
        assert_eq!(memtable.bytes(), 2 * bytes);
    }

    #[test]
    fn a_cursor_goes_in_the_order_of_internal_keys() {
        let memtable = Memtable::default();
        for event in [put("b", 1), put("a", 1), put("a", 2)] {
            memtable.insert(&event);
        }
        let mut cursor = memtable.seek(&[]);
        for event in [put("a", 2), put("a", 1), put("b", 1)] {
            assert_eq!(cursor.key(), Some(&internal(&event)[..]));
            cursor.advance();
        }
        assert_eq!(cursor.key(), None);
        let past = memtable.seek_past(&internal(&put("a", 1)));
        assert_eq!(past.stored().payload, put("b", 1).payload);
    }
}
