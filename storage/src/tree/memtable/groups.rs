//! [`Groups`]: the lists of a memtable, one for each partition and keyspace that has events in it.
//!
//! A memtable is a skiplist of skiplists: a search among the few hundred events of a group touches half as much
//! memory as one among all events, and keys that rise within a partition are appended whatever comes in between.
//!
//! Invariants:
//!
//! - Groups are in the order of (partition, keyspace), which is that of the internal keys' heads.
//! - A group's digest is that of the events linked in it, at every moment that a reader can see.
//! - A group is never removed; it may be met before its first event.

use super::skiplist::{self, HEIGHT_MAX, List, Path};
use super::stable::Stable;
use super::sync::{AtomicU32, AtomicU64, Ordering, spin_loop};
use crate::tree::internal_key::HEAD_SIZE;
use crate::types::Digest;

/// Partition and keyspace.
pub(super) type Head = (u32, u64);

/// The events of one partition and keyspace.
pub(super) struct Group {
    head: Head,
    /// Links to other groups.
    links: [AtomicU32; HEIGHT_MAX],
    /// The first event.
    first: AtomicU32,
    /// The first leaf.
    leaf: u32,
    /// Links to the leaves behind the first.
    leaves: [AtomicU32; HEIGHT_MAX],
    height: AtomicU32,
    /// Twice the events, odd while an event is being counted.
    counted: AtomicU64,
    hash: AtomicU64,
}

impl Group {
    fn new(head: Head, leaf: u32) -> Self {
        Self {
            head,
            links: std::array::from_fn(|_| AtomicU32::new(0)),
            first: AtomicU32::new(0),
            leaf,
            leaves: std::array::from_fn(|_| AtomicU32::new(0)),
            height: AtomicU32::new(0),
            counted: AtomicU64::new(0),
            hash: AtomicU64::new(0),
        }
    }

    pub(super) fn head(&self) -> Head {
        self.head
    }

    /// The link to the first event.
    pub(super) fn first(&self) -> &AtomicU32 {
        &self.first
    }

    /// The first leaf, which is no other group's.
    pub(super) fn leaf(&self) -> u32 {
        self.leaf
    }

    /// Links to the leaves behind the first.
    pub(super) fn leaves(&self) -> &[AtomicU32; HEIGHT_MAX] {
        &self.leaves
    }

    /// Levels of those in use.
    pub(super) fn height(&self) -> &AtomicU32 {
        &self.height
    }

    /// Takes events into the digest. Only the writer does this.
    pub(super) fn count(&self, added: Digest) {
        let counted = self.counted.load(Ordering::Relaxed);
        self.counted.store(counted + 1, Ordering::Relaxed);
        let hash = self.hash.load(Ordering::Relaxed) ^ added.hash;
        // Whoever reads this hash sees that it is being changed, or has been.
        self.hash.store(hash, Ordering::Release);
        self.counted.store(counted + 2 * added.events, Ordering::Release);
    }

    /// The digest of all events counted so far.
    pub(super) fn digest(&self) -> Digest {
        loop {
            let counted = self.counted.load(Ordering::Acquire);
            let hash = self.hash.load(Ordering::Acquire);
            if counted.is_multiple_of(2) && self.counted.load(Ordering::Relaxed) == counted {
                return Digest { events: counted / 2, hash };
            }
            spin_loop();
        }
    }
}

/// See the file's head. Groups are called by numbers from 1 on.
#[derive(Default)]
pub(super) struct Groups {
    all: Stable<Group>,
    first: [AtomicU32; HEIGHT_MAX],
    height: AtomicU32,
}

impl List for Groups {
    type Node = u32;

    fn node(&self, number: u32) -> u32 {
        number
    }

    fn link(&self, at: Option<u32>, level: usize) -> &AtomicU32 {
        match at {
            Some(number) => &self.get(number).links[level],
            None => &self.first[level],
        }
    }

    fn height(&self) -> &AtomicU32 {
        &self.height
    }

    /// There are few of them, and they stay near.
    fn prefetch(&self, _: u32) {}
}

impl Groups {
    #[inline]
    pub(super) fn get(&self, number: u32) -> &Group {
        self.all.get(number - 1)
    }

    /// The first group at or after `head`, 0 if there is none, and the last one before it, 0 if there is none.
    pub(super) fn around(&self, head: Head) -> (u32, u32) {
        let mut path = Path::default();
        let next = skiplist::search(self, |number| self.get(number).head < head, &mut path);
        (path[0], next)
    }

    /// The group after this one, 0 if it is the last.
    pub(super) fn after(&self, number: u32) -> u32 {
        self.get(number).links[0].load(Ordering::Acquire)
    }

    /// Adds the group with this number, the count of those before plus one, and this first leaf; how many bytes it takes.
    /// Only the writer does this, for a head that has no group.
    pub(super) fn add(&self, number: u32, (head, leaf): (Head, u32), height: usize) -> usize {
        let mut path = Path::default();
        let next = skiplist::search(self, |number| self.get(number).head < head, &mut path);
        assert!(next == 0 || self.get(next).head != head);
        let bytes = self.all.push(number - 1, Group::new(head, leaf));
        skiplist::link_in(self, number, height, &path);
        bytes
    }
}

/// The first [`HEAD_SIZE`] bytes of an internal key, or of what a search is for, filled up with zeros: no head that is
/// not before the one is before the other.
#[inline]
pub(super) fn head_of(target: &[u8]) -> Head {
    let mut bytes = [0; HEAD_SIZE];
    let length = target.len().min(HEAD_SIZE);
    bytes[..length].copy_from_slice(&target[..length]);
    let (partition, keyspace) = bytes.split_at(size_of::<u32>());
    (
        u32::from_be_bytes(*partition.first_chunk().expect("four bytes")),
        u64::from_be_bytes(*keyspace.first_chunk().expect("eight bytes")),
    )
}
