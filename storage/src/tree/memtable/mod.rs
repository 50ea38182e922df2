//! The memtable: events that are in the write-ahead log and not yet in a table, in the order of internal keys.
//!
//! Invariants:
//!
//! - Many threads read while one inserts, and none of them waits; a reader sees an event whole or not at all. Threads
//!   that insert wait for each other.
//! - An event that is there already changes nothing: identity decides, not the payload.
//! - Nothing is ever removed: a memtable is frozen, flushed and dropped as a whole.
//! - Key and payload are copies: a memtable keeps no buffer of a log or of a network alive.
//! - After an insert returns, every way to read finds the event. While it runs, a point read may already find what a
//!   cursor does not yet, or the other way round.
//! - The same inserts in the same order make the same memtable, its size included.
//!
//! An unrolled skiplist over nodes in an arena, one a partition and keyspace, with a hash index from keys to their newest events beside
//! it: a point read is one probe, a miss does not look at the lists at all. It does not know what a log or a table is.

mod arena;
mod bulk;
mod cursor;
mod groups;
mod index;
mod leaves;
mod skiplist;
mod stable;
mod sync;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use starling_clock::Stamp;

use super::Address;
use super::hidden::Hidden;
use super::internal_key;
use super::stored::StoredRef;
use super::table::key_hash;
use crate::event::Event;
use crate::types::Digest;
use arena::{Arena, Bump, Node, NodeRef, window};
use groups::{Group, Groups, Head, head_of};
use index::{Found, Index, IndexWriter};
use leaves::{LeafStore, LeafWriter, Leaves, Tall};
use skiplist::Heights;
use sync::{AtomicU32, AtomicUsize, Ordering};

pub(super) use arena::prefetch;
pub(crate) use bulk::Bulk;
pub(crate) use cursor::{Entry, MemtableCursor};

/// Versions of a key that a point read steps over before it searches.
const STEPS_BEFORE_SEARCH: usize = 8;
/// A hash index counts as no more than this many bytes an entry: what is nearly empty must not fill a small memtable.
const INDEX_CHARGE_MAX: usize = 32;

/// Events in memory, sorted.
#[derive(Default)]
pub(crate) struct Memtable {
    arena: Arena,
    groups: Groups,
    leaves: LeafStore,
    /// From a head to its group.
    heads: Index,
    /// From a key to its newest event.
    keys: Index,
    used: AtomicUsize,
    allocated: AtomicUsize,
    events: AtomicUsize,
    writer: Mutex<Writer>,
    hidden: Hidden,
}

/// What became of an insert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Inserted {
    /// The event was not here before.
    pub(crate) new: bool,
    /// The newest event of the key here before, itself if it was.
    pub(crate) previous: Option<Stamp>,
}

/// What only inserting needs.
#[derive(Default)]
struct Writer {
    bump: Bump,
    heights: Heights,
    leaves: LeafWriter,
    keys: IndexWriter,
    heads: IndexWriter,
    /// Of each group, where it ends. The group numbered 1 is the first.
    fingers: Vec<Finger>,
    /// The group of the last insert.
    group: u32,
    groups_bytes: usize,
    /// Memory of [`Tall`] in all fingers.
    tall_bytes: usize,
}

/// Where a group ends, for rising keys, which need no search, and where to begin one for others.
struct Finger {
    /// The last event, 0 if there is none.
    last: u32,
    /// The last leaf.
    leaf: u32,
    /// The window on its key.
    window: u128,
    /// Where a search begins.
    tall: Tall,
}

impl Memtable {
    /// The empty memtable that comes after this one: it uses the memory that those before it have given back.
    pub(crate) fn successor(&self) -> Self {
        Self { arena: Arena::with_spare(Arc::clone(self.arena.spare())), ..Self::default() }
    }

    /// Memory that memtables before this one and its successors have given back and none has taken again, in bytes.
    pub(crate) fn spare_bytes(&self) -> usize {
        self.arena.spare().bytes()
    }

    /// [`Self::insert_at`] the address of the event.
    #[cfg(test)]
    pub(crate) fn insert(&self, event: &Event) -> Inserted {
        self.insert_at(super::Addresses::default().only(event.partition, event.id()), event)
    }

    /// Adds an event, whose address this is.
    ///
    /// # Panics
    /// If the key is longer than a key may be, or there are 32 GiB of events.
    pub(crate) fn insert_at(&self, address: Address<'_>, event: &Event) -> Inserted {
        let mut writer = self.writer.lock().expect("no insert panicked");
        let writer = &mut *writer;
        let Address { key, key_hash: hash, id_hash } = address;
        let prefix = internal_key::prefix_of(key);
        let newest = self.newest_node(prefix, hash);
        let previous = newest.map(|(_, node)| stamp_of(node));
        let number = self.group_for(writer, (event.partition, event.keyspace.0));
        let group = self.groups.get(number);
        let leaves = Leaves { group, store: &self.leaves, arena: &self.arena };
        let finger = &mut writer.fingers[number as usize - 1];
        let target = Target::new(key);
        let place = if finger.window < target.window {
            leaves.place_at_end(finger.leaf, finger.last)
        } else {
            let place = leaves.place(&finger.tall, &target);
            // What is newer than all of its key is not here.
            if Some(event.stamp) <= previous && self.after(group, place.before) == Some(key) {
                return Inserted { new: false, previous };
            }
            place
        };
        if let Some(before) = NodeRef::from_number(place.before) {
            self.arena.prefetch(before);
        }
        let (action, request, payload) = (event.action, event.request, &*event.payload);
        let value = (&StoredRef { action, request, payload }.header()[..], payload);
        let node = self.arena.add(&mut writer.bump, key, value);
        let link = self.link(group, place.before);
        let next = link.load(Ordering::Relaxed);
        self.arena.node(node).link().store(next, Ordering::Relaxed);
        link.store(node.number(), Ordering::Release);
        let heights = &mut writer.heights;
        let new = (&target, node.number());
        let before = finger.tall.bytes();
        let places = (&mut writer.leaves, &mut finger.tall);
        let added = leaves.insert(places, place, new, || heights.draw());
        writer.tall_bytes += finger.tall.bytes() - before;
        finger.leaf = added.unwrap_or(finger.leaf);
        if next == 0 {
            (finger.last, finger.window) = (node.number(), target.window);
        }
        group.count(Digest { events: 1, hash: id_hash });
        match newest {
            None => self.keys.add(&mut writer.keys, hash, node.number()),
            Some((before, _)) if previous < Some(event.stamp) => {
                self.keys.replace(hash, before.number(), node.number());
            }
            Some(_) => {}
        }
        self.set_sizes(writer, self.events.load(Ordering::Relaxed) + 1);
        Inserted { new: true, previous }
    }

    /// The number of the group with this head, which is made if there is none.
    fn group_for(&self, writer: &mut Writer, head: Head) -> u32 {
        if writer.group != 0 && self.groups.get(writer.group).head() == head {
            return writer.group;
        }
        writer.group = self.group_of(head).unwrap_or_else(|| {
            let number = u32::try_from(writer.fingers.len() + 1).expect("no more than events");
            let leaf = self.leaves.add(&mut writer.leaves);
            writer.groups_bytes += self.groups.add(number, (head, leaf), writer.heights.draw());
            self.heads.add(&mut writer.heads, hash_of(head), number);
            writer.fingers.push(Finger { last: 0, leaf, window: 0, tall: Tall::default() });
            number
        });
        writer.group
    }

    /// Tells how many events there are, and what they take.
    fn set_sizes(&self, writer: &Writer, events: usize) {
        self.events.store(events, Ordering::Relaxed);
        let fingers = writer.fingers.capacity() * size_of::<Finger>();
        let index = writer.keys.bytes() + writer.heads.bytes();
        let groups = writer.fingers.len() * (size_of::<Group>() + size_of::<Finger>());
        let groups = groups + writer.leaves.used();
        let used = writer.bump.taken().used + groups + index.min(events * INDEX_CHARGE_MAX);
        self.used.store(used, Ordering::Relaxed);
        let allocated = writer.bump.taken().allocated + writer.groups_bytes + fingers + index;
        let allocated = allocated + writer.leaves.bytes + writer.tall_bytes;
        self.allocated.store(allocated, Ordering::Relaxed);
    }

    /// Memory that the events take, in bytes: nodes, their share of the index, and the lists. What is allocated ahead
    /// of them is in [`Self::allocated_bytes`] only.
    pub(crate) fn bytes(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Memory allocated, in bytes, all of it but this value itself.
    pub(crate) fn allocated_bytes(&self) -> usize {
        self.allocated.load(Ordering::Relaxed)
    }

    /// How many events there are.
    #[cfg(test)]
    pub(crate) fn events(&self) -> usize {
        self.events.load(Ordering::Relaxed)
    }

    /// Partitions that were dropped. Reads do not see to that, flushes and who chooses where to read do.
    pub(crate) fn hidden(&self) -> &Hidden {
        &self.hidden
    }

    /// Count and digest of the partition's events that are here: what a walk over them would give.
    pub(crate) fn digest(&self, partition: u32) -> Digest {
        let mut digest = Digest::default();
        let (_, mut number) = self.groups.around((partition, 0));
        while number != 0 && self.groups.get(number).head().0 == partition {
            let group = self.groups.get(number).digest();
            digest.events += group.events;
            digest.hash ^= group.hash;
            number = self.groups.after(number);
        }
        digest
    }

    /// The key's newest event that is not newer than `at`. `hash` is [`key_hash`] of `prefix`, which all the key's
    /// internal keys begin with. One probe of the index if it is the newest, or there is none.
    pub(crate) fn get(&self, prefix: &[u8], hash: u64, at: Stamp) -> Option<Entry<'_>> {
        let (_, mut node) = self.newest_node(prefix, hash)?;
        for _ in 0..STEPS_BEFORE_SEARCH {
            if stamp_of(node) <= at {
                return Some(Entry::new(node));
            }
            let next = NodeRef::from_number(node.link().load(Ordering::Acquire))?;
            node = self.arena.node(next);
            if !is_version(node, prefix) {
                return None;
            }
        }
        let node = self.first_node(&internal_key::seek_version(prefix, at))?;
        is_version(node, prefix).then(|| Entry::new(node))
    }

    /// Begins to bring near what [`Self::get`] and [`Self::insert_at`] look at first, for the key with this [`key_hash`].
    #[inline]
    pub(crate) fn prefetch(&self, hash: u64) {
        self.keys.prefetch(hash);
    }

    /// Whether the event with this internal key is here.
    pub(crate) fn contains(&self, internal: &[u8]) -> bool {
        let prefix = internal_key::prefix_of(internal);
        let Some((_, node)) = self.newest_node(prefix, key_hash(prefix)) else { return false };
        // Newer versions have lesser internal keys.
        match node.key().cmp(internal) {
            std::cmp::Ordering::Equal => true,
            std::cmp::Ordering::Greater => false,
            std::cmp::Ordering::Less => {
                self.first_node(internal).is_some_and(|node| node.key() == internal)
            }
        }
    }

    /// A cursor on no event.
    pub(crate) fn none(&self) -> MemtableCursor<'_> {
        MemtableCursor::new(self, 0, None)
    }

    /// A cursor on the first event at or after `from`.
    pub(crate) fn seek(&self, from: &[u8]) -> MemtableCursor<'_> {
        let head = head_of(from);
        let (_, number) = self.groups.around(head);
        if number == 0 {
            return self.none();
        }
        // A list behind the one of that head is there from its beginning.
        let within = self.groups.get(number).head() == head;
        let node = if within { self.search(number, from).1 } else { self.first_of(number) };
        MemtableCursor::new(self, number, node).or_later()
    }

    /// A cursor on the first event after `after`.
    pub(crate) fn seek_past(&self, after: &[u8]) -> MemtableCursor<'_> {
        let mut cursor = self.seek(after);
        if cursor.key() == Some(after) {
            cursor.advance();
        }
        cursor
    }

    /// A cursor on the last event before `end`.
    pub(crate) fn seek_before(&self, end: &[u8]) -> MemtableCursor<'_> {
        let head = head_of(end);
        let (before, number) = self.groups.around(head);
        if number != 0 && self.groups.get(number).head() == head {
            let (node, _) = self.search(number, end);
            return MemtableCursor::new(self, number, node).or_earlier();
        }
        MemtableCursor::new(self, before, self.last_of(before)).or_earlier()
    }

    /// The newest event of the key, by the index.
    fn newest_node(&self, prefix: &[u8], hash: u64) -> Option<(NodeRef, Node<'_>)> {
        let node = |number| {
            let at = NodeRef::from_number(number).expect("an entry is not 0");
            (at, self.arena.node(at))
        };
        match self.keys.find(hash, |number| is_version(node(number).1, prefix)) {
            Found::Number(number) => Some(node(number)),
            Found::Absent => None,
            Found::Unsure => {
                let target = internal_key::seek_version(prefix, Stamp::MAX);
                let number = self.group_of(head_of(prefix))?;
                let at = NodeRef::from_number(self.search_number(number, &target).1)?;
                let node = self.arena.node(at);
                is_version(node, prefix).then_some((at, node))
            }
        }
    }

    fn group_of(&self, head: Head) -> Option<u32> {
        match self.heads.find(hash_of(head), |number| self.groups.get(number).head() == head) {
            Found::Number(number) => Some(number),
            Found::Absent => None,
            Found::Unsure => {
                let (_, number) = self.groups.around(head);
                (number != 0 && self.groups.get(number).head() == head).then_some(number)
            }
        }
    }

    /// The first event of the group of `target`'s head at or after it.
    fn first_node(&self, target: &[u8]) -> Option<Node<'_>> {
        let number = self.group_of(head_of(target))?;
        self.search(number, target).1
    }

    /// In a group, the last event before `target` and the first one that is not.
    fn search(&self, group: u32, target: &[u8]) -> (Option<Node<'_>>, Option<Node<'_>>) {
        let (before, next) = self.search_number(group, target);
        let node = |number| NodeRef::from_number(number).map(|at| self.arena.node(at));
        (node(before), node(next))
    }

    fn search_number(&self, number: u32, target: &[u8]) -> (u32, u32) {
        let target = Target::new(target);
        let leaves = self.leaves_of(number);
        self.walk(leaves.group, leaves.start(&target), |node| target.is_after(node))
    }

    /// From an event that is `before`, or 0 for the beginning, the last event that is and the one after it.
    fn walk(&self, group: &Group, from: u32, before: impl Fn(Node<'_>) -> bool) -> (u32, u32) {
        let mut at = from;
        loop {
            let next = self.link(group, at).load(Ordering::Acquire);
            if !NodeRef::from_number(next).is_some_and(|next| before(self.arena.node(next))) {
                return (at, next);
            }
            at = next;
        }
    }

    /// The internal key of what comes behind an event of the group, or first for 0.
    fn after<'a>(&'a self, group: &'a Group, at: u32) -> Option<&'a [u8]> {
        let next = NodeRef::from_number(self.link(group, at).load(Ordering::Acquire));
        next.map(|next| self.arena.node(next).key())
    }

    /// The link behind an event of the group, or to the first for 0.
    fn link<'a>(&'a self, group: &'a Group, at: u32) -> &'a AtomicU32 {
        NodeRef::from_number(at).map_or(group.first(), |at| self.arena.node(at).link())
    }

    fn leaves_of(&self, number: u32) -> Leaves<'_> {
        Leaves { group: self.groups.get(number), store: &self.leaves, arena: &self.arena }
    }

    fn first_of(&self, group: u32) -> Option<Node<'_>> {
        let first = self.groups.get(group).first().load(Ordering::Acquire);
        NodeRef::from_number(first).map(|at| self.arena.node(at))
    }

    /// The last event of a group; `None` for the group 0, which is none.
    fn last_of(&self, group: u32) -> Option<Node<'_>> {
        if group == 0 {
            return None;
        }
        let leaves = self.leaves_of(group);
        let (last, _) = self.walk(leaves.group, leaves.near_end(), |_| true);
        NodeRef::from_number(last).map(|at| self.arena.node(at))
    }
}

/// What a search in a group is for, less the head, which is the group's.
struct Target<'a> {
    window: u128,
    rest: &'a [u8],
}

impl<'a> Target<'a> {
    /// `target` may be shorter than a head: then it is before all keys of the group, or the group is not searched.
    fn new(target: &'a [u8]) -> Self {
        let rest = rest_of(target);
        Self { window: window(rest), rest }
    }

    /// Four bytes behind the first `shared` ones, as a number; what is shorter is filled up with zeros.
    #[inline]
    fn bits(&self, shared: usize) -> u32 {
        match (size_of::<u128>() - size_of::<u32>()).checked_sub(shared) {
            Some(behind) => {
                let bits = (self.window >> (8 * behind)) & u128::from(u32::MAX);
                u32::try_from(bits).expect("32 bits")
            }
            None => bits(self.rest, shared),
        }
    }

    /// Whether `node` is before the target.
    #[inline]
    fn is_after(&self, node: Node<'_>) -> bool {
        let window = node.window();
        if window != self.window {
            return window < self.window;
        }
        rest_of(node.key()) < self.rest
    }
}

/// Four bytes behind the first `shared` ones, as a number; what is shorter is filled up with zeros.
#[inline]
fn bits(rest: &[u8], shared: usize) -> u32 {
    let rest = rest.get(shared..).unwrap_or_default();
    if let Some(first) = rest.first_chunk() {
        return u32::from_be_bytes(*first);
    }
    let mut filled = [0; size_of::<u32>()];
    filled[..rest.len()].copy_from_slice(rest);
    u32::from_be_bytes(filled)
}

/// An internal key, or what a search is for, less its head.
fn rest_of(key: &[u8]) -> &[u8] {
    key.get(internal_key::HEAD_SIZE..).unwrap_or_default()
}

fn stamp_of(node: Node<'_>) -> Stamp {
    internal_key::stamp_of(node.key()).expect("it was encoded from a stamp")
}

#[inline]
fn is_version(node: Node<'_>, prefix: &[u8]) -> bool {
    internal_key::prefix_of(node.key()) == prefix
}

fn hash_of(head: Head) -> u64 {
    let mut bytes = [0; internal_key::HEAD_SIZE];
    let (partition, keyspace) = bytes.split_at_mut(size_of::<u32>());
    partition.copy_from_slice(&head.0.to_le_bytes());
    keyspace.copy_from_slice(&head.1.to_le_bytes());
    xxhash_rust::xxh3::xxh3_64(&bytes)
}
