//! [`Addresses`]: where in the tree the events of a commit belong, worked out once for the look before the write and the insert
//! after it.
//!
//! Invariant: an address says nothing that its event does not say; whoever has the event can make it again.

use super::internal_key;
use super::table::key_hash;
use crate::event::EventId;

/// Where one event belongs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address<'a> {
    /// The internal key.
    pub(super) key: &'a [u8],
    /// [`key_hash`] of the part of it before the stamp.
    pub(super) key_hash: u64,
    /// The hash of the event's identity.
    pub(crate) id_hash: u64,
}

/// Addresses one after the other, in memory that is used again.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    keys: Vec<u8>,
    /// Of each address: where its key ends, and the hashes.
    entries: Vec<(usize, u64, u64)>,
}

impl Addresses {
    /// Adds the address of an event in `partition` and tells which it is.
    pub(crate) fn push(&mut self, partition: u32, id: EventId<'_>) -> usize {
        let start = self.keys.len();
        internal_key::append(&mut self.keys, partition, id.keyspace, id.key, id.stamp);
        let prefix = internal_key::prefix_of(&self.keys[start..]);
        self.entries.push((self.keys.len(), key_hash(prefix), id.hash()));
        self.entries.len() - 1
    }

    /// The address with this number.
    ///
    /// # Panics
    /// If there is none.
    pub(crate) fn get(&self, number: usize) -> Address<'_> {
        let start = number.checked_sub(1).map_or(0, |before| self.entries[before].0);
        let (end, key_hash, id_hash) = self.entries[number];
        Address { key: &self.keys[start..end], key_hash, id_hash }
    }

    /// The address of one event, in place of all others.
    pub(crate) fn only(&mut self, partition: u32, id: EventId<'_>) -> Address<'_> {
        self.clear();
        internal_key::append(&mut self.keys, partition, id.keyspace, id.key, id.stamp);
        let key_hash = key_hash(internal_key::prefix_of(&self.keys));
        Address { key: &self.keys, key_hash, id_hash: id.hash() }
    }

    /// Takes all of them back.
    pub(crate) fn clear(&mut self) {
        self.keys.clear();
        self.entries.clear();
    }
}
