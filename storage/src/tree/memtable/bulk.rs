//! [`Bulk`]: fills a memtable that nobody reads yet with events in any order, all at once.
//!
//! Invariants:
//!
//! - Who reads the memtable afterwards finds what inserts one by one, in the same order, would have left: of two
//!   events with one identity the first stays.
//! - Nothing that was added can be read before [`Bulk::finish`].
//! - Beside what the memtable takes, an event takes [`Placed`] and its place in the index, until then.
//!
//! An insert looks for its place and waits for memory at each step of that. Events that are sorted go behind each other
//! without a search, and it is known beforehand which memory comes next.

use std::sync::Arc;

use super::arena::{Node, NodeRef, window};
use super::sync::Ordering;
use super::{Finger, Group, Leaves, Memtable, Target, Writer, rest_of};
use crate::event::EventRef;
use crate::tree::stored::StoredRef;
use crate::tree::{Address, internal_key};

/// What an event takes in the index and the leaves, in bytes, about.
const BESIDE_EVENT: usize = 36;
/// So many events ahead memory is asked for.
const AHEAD: usize = 12;

/// An event in the arena whose place in the order is still to be found.
#[derive(Clone, Copy)]
struct Placed {
    /// The window on its key.
    window: u128,
    /// Of its identity.
    id_hash: u64,
    /// Its node. Those of later events are greater.
    node: u32,
    /// The upper half of its key's hash: all that an index looks at.
    key_hash: u32,
}

/// See the file's head.
pub(crate) struct Bulk {
    memtable: Arc<Memtable>,
    writer: Writer,
    /// By group; the group numbered 1 is the first.
    groups: Vec<Vec<Placed>>,
    events: usize,
}

impl Bulk {
    /// To fill `memtable`.
    ///
    /// # Panics
    /// If there is an event in it.
    pub(crate) fn new(memtable: Arc<Memtable>) -> Self {
        assert_eq!(memtable.events.load(Ordering::Relaxed), 0);
        let writer = std::mem::take(&mut *memtable.writer.lock().expect("no insert panicked"));
        Self { memtable, writer, groups: Vec::new(), events: 0 }
    }

    /// [`Self::add_at`] the address of the event.
    #[cfg(test)]
    pub(crate) fn add(&mut self, event: &EventRef<'_>) {
        let mut addresses = crate::tree::Addresses::default();
        self.add_at(addresses.only(event.partition, event.id()), event);
    }

    /// Adds an event, whose address this is.
    ///
    /// # Panics
    /// As [`Memtable::insert_at`].
    pub(crate) fn add_at(&mut self, address: Address<'_>, event: &EventRef<'_>) {
        let writer = &mut self.writer;
        let Address { key, key_hash, id_hash } = address;
        let number = self.memtable.group_for(writer, (event.partition, event.keyspace.0));
        let (action, request, payload) = (event.action, event.request, event.payload);
        let value = (&StoredRef { action, request, payload }.header()[..], payload);
        let (node, taken) = self.memtable.arena.add(&mut writer.bump, key, value);
        writer.arena_used += taken.used;
        writer.arena_allocated += taken.allocated;
        let placed = Placed {
            window: window(rest_of(key)),
            id_hash,
            node: node.number(),
            key_hash: u32::try_from(key_hash >> 32).expect("32 bits"),
        };
        let number = number as usize;
        if self.groups.len() < number {
            self.groups.resize_with(number, Vec::new);
        }
        self.groups[number - 1].push(placed);
        self.events += 1;
    }

    /// What the memtable will take with what was added, in bytes, about.
    pub(crate) fn bytes(&self) -> usize {
        let writer = &self.writer;
        let groups = writer.fingers.len() * (size_of::<Group>() + size_of::<Finger>());
        writer.arena_used + groups + writer.leaves.used() + self.events * BESIDE_EVENT
    }

    /// Lets all that was added be read.
    pub(crate) fn finish(mut self) {
        let mut newest = Vec::with_capacity(self.events);
        let mut events = 0;
        for (number, mut placed) in (1..).zip(std::mem::take(&mut self.groups)) {
            sort(&self.memtable, &mut placed);
            events += self.append(number, &placed, &mut newest);
        }
        // Neighbours in the index meet the same memory.
        newest.sort_unstable();
        let (memtable, writer) = (&self.memtable, &mut self.writer);
        memtable.keys.reserve(&mut writer.keys, newest.len());
        for entry in newest {
            let node = u32::try_from(entry & u64::from(u32::MAX)).expect("32 bits");
            memtable.keys.add(&mut writer.keys, entry, node);
        }
        memtable.set_sizes(writer, events);
        *memtable.writer.lock().expect("no insert panicked") = self.writer;
    }

    /// Puts sorted events behind each other in the group; how many that were, and in `newest` those that are the newest of
    /// their keys, each below the upper half of that one's hash.
    fn append(&mut self, number: u32, placed: &[Placed], newest: &mut Vec<u64>) -> usize {
        let memtable = Arc::clone(&self.memtable);
        let group = memtable.groups.get(number);
        let leaves = Leaves { group, store: &memtable.leaves, arena: &memtable.arena };
        let (mut before, mut events): (Option<&Placed>, _) = (None, 0);
        for (index, at) in placed.iter().enumerate() {
            if let Some(ahead) = placed.get(index + AHEAD).map(|ahead| ahead.node) {
                memtable.arena.prefetch(NodeRef::from_number(ahead).expect("the number of a node"));
            }
            let is_version = before.filter(|before| before.key_hash == at.key_hash).map(|before| {
                let (before, this) = (key(&memtable, before), key(&memtable, at));
                (before == this, internal_key::prefix_of(before) == internal_key::prefix_of(this))
            });
            match is_version {
                Some((true, _)) => continue,
                Some((false, true)) => {}
                _ => newest.push(u64::from(at.key_hash) << 32 | u64::from(at.node)),
            }
            let target = Target::of(node(&memtable, at), at.window);
            let Writer { fingers, leaves: leaf_writer, heights, tall_bytes, .. } = &mut self.writer;
            let finger = &mut fingers[number as usize - 1];
            memtable.link(group, finger.last).store(at.node, Ordering::Release);
            let place = leaves.place_at_end(finger.leaf, finger.last);
            let tall_before = finger.tall.bytes();
            let (places, new) = ((leaf_writer, &mut finger.tall), (&target, at.node));
            let added = leaves.insert(places, place, new, || heights.draw());
            *tall_bytes += finger.tall.bytes() - tall_before;
            finger.leaf = added.unwrap_or(finger.leaf);
            (finger.last, finger.window) = (at.node, at.window);
            group.count(at.id_hash);
            before = Some(at);
            events += 1;
        }
        events
    }
}

/// Puts events in the order of internal keys; one event twice, in that in which it came.
fn sort(memtable: &Memtable, placed: &mut [Placed]) {
    // By what is near, and what that leaves equal by the keys.
    placed.sort_unstable_by_key(|at| at.window);
    for equal in placed.chunk_by_mut(|left, right| left.window == right.window) {
        if 1 < equal.len() {
            equal.sort_unstable_by(|left, right| {
                let keys = key(memtable, left).cmp(key(memtable, right));
                keys.then(left.node.cmp(&right.node))
            });
        }
    }
}

fn key<'a>(memtable: &'a Memtable, placed: &Placed) -> &'a [u8] {
    node(memtable, placed).key()
}

fn node<'a>(memtable: &'a Memtable, placed: &Placed) -> Node<'a> {
    memtable.arena.node(NodeRef::from_number(placed.node).expect("the number of a node"))
}
