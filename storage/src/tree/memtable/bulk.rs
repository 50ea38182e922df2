//! [`Bulk`]: fills a memtable that nobody reads yet with events in any order, all at once.
//!
//! Invariants:
//!
//! - Who reads the memtable afterwards finds what inserts one by one, in the same order, would have left: of two
//!   events with one identity the first stays.
//! - Nothing that was added can be read before [`Bulk::finish`].
//! - Beside what the memtable takes, an event takes 24 bytes until then.
//!
//! An insert looks for its place and waits for memory at each step of that. Events that are sorted go behind each other
//! without a search, and it is known beforehand which memory comes next. They are sorted as numbers of 128 bits, a few times
//! faster than as structures twice as long: see [`Unsorted::sorted`].

use std::sync::Arc;

use super::arena::{Node, NodeRef, window};
use super::leaves::{Filled, SLOTS};
use super::sync::Ordering;
use super::{Finger, Group, Leaves, Memtable, Writer, rest_of};
use crate::event::EventRef;
use crate::tree::stored::StoredRef;
use crate::tree::{Address, internal_key};
use crate::types::Digest;

/// What an event takes in the index and the leaves, in bytes, about.
const BESIDE_EVENT: usize = 36;
/// So many events ahead memory is asked for.
const AHEAD: usize = 16;

/// Events of one group that are in the arena and whose places in the order are still to be found.
#[derive(Default)]
struct Unsorted {
    /// Of each, the window on its key.
    windows: Vec<u128>,
    /// Of each, the lower half of what it is as a [`Sorted`].
    lower: Vec<u64>,
    /// Bits in which windows differ from the first one.
    differing: u128,
    digest: Digest,
}

/// An event in the arena: 64 bits of the window on its key, from the first bit on in which windows differ; its node; and the upper
/// half of its key's hash, which is all that an index looks at. Those of one key that came later have greater nodes.
#[derive(Clone, Copy)]
struct Sorted(u128);

fn low_32(number: u128) -> u32 {
    u32::try_from(number & u128::from(u32::MAX)).expect("32 bits")
}

impl Sorted {
    fn bits(self) -> u64 {
        u64::try_from(self.0 >> 64).expect("64 bits")
    }

    fn number(self) -> u32 {
        low_32(self.0 >> 32)
    }

    fn key_hash(self) -> u32 {
        low_32(self.0)
    }

    fn node_ref(self) -> NodeRef {
        NodeRef::from_number(self.number()).expect("the number of a node")
    }

    fn node(self, memtable: &Memtable) -> Node<'_> {
        memtable.arena.node(self.node_ref())
    }
}

impl Unsorted {
    fn add(&mut self, window: u128, (node, key_hash): (u32, u64), id_hash: u64) {
        let first = *self.windows.first().unwrap_or(&window);
        self.differing |= window ^ first;
        self.windows.push(window);
        self.lower.push(u64::from(node) << 32 | key_hash >> 32);
        self.digest.events += 1;
        self.digest.hash ^= id_hash;
    }

    /// With so many bits all windows begin.
    fn same_bits(&self) -> u32 {
        self.differing.leading_zeros()
    }

    /// The events in the order of internal keys; one event twice, in that in which it came.
    fn sorted(self, memtable: &Memtable) -> Vec<Sorted> {
        let same = self.same_bits();
        let upper = !u128::from(u64::MAX);
        let mut numbers = self.windows;
        for (number, lower) in numbers.iter_mut().zip(self.lower) {
            *number = number.checked_shl(same).unwrap_or(0) & upper | u128::from(lower);
        }
        numbers.sort_unstable();
        let mut sorted: Vec<Sorted> = numbers.into_iter().map(Sorted).collect();
        for equal in sorted.chunk_by_mut(|left, right| left.bits() == right.bits()) {
            if 1 < equal.len() {
                sort_by_keys(memtable, equal);
            }
        }
        sorted
    }
}

/// Sorts what 64 bits leave equal: by all of the window, and what that leaves equal by the keys.
fn sort_by_keys(memtable: &Memtable, equal: &mut [Sorted]) {
    let with_window = |at: &Sorted| (at.node(memtable).window(), *at);
    let mut placed: Vec<(u128, Sorted)> = equal.iter().map(with_window).collect();
    placed.sort_unstable_by_key(|(window, _)| *window);
    for equal in placed.chunk_by_mut(|left, right| left.0 == right.0) {
        equal.sort_unstable_by(|(_, left), (_, right)| {
            let keys = left.node(memtable).key().cmp(right.node(memtable).key());
            keys.then(left.number().cmp(&right.number()))
        });
    }
    for (to, (_, at)) in equal.iter_mut().zip(placed) {
        *to = at;
    }
}

/// See the file's head.
pub(crate) struct Bulk {
    memtable: Arc<Memtable>,
    writer: Writer,
    /// By group; the group numbered 1 is the first.
    groups: Vec<Unsorted>,
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
        let node = self.memtable.arena.add(&mut writer.bump, key, value);
        let number = number as usize;
        if self.groups.len() < number {
            self.groups.resize_with(number, Unsorted::default);
        }
        let place = (node.number(), key_hash);
        self.groups[number - 1].add(window(rest_of(key)), place, id_hash);
        self.events += 1;
    }

    /// What the memtable will take with what was added, in bytes, about.
    pub(crate) fn bytes(&self) -> usize {
        let writer = &self.writer;
        let groups = writer.fingers.len() * (size_of::<Group>() + size_of::<Finger>());
        writer.bump.taken().used + groups + writer.leaves.used() + self.events * BESIDE_EVENT
    }

    /// Lets all that was added be read.
    pub(crate) fn finish(mut self) {
        let memtable = Arc::clone(&self.memtable);
        let (mut newest, mut events) = (Vec::with_capacity(self.events), 0);
        for (number, unsorted) in (1..).zip(std::mem::take(&mut self.groups)) {
            let mut digest = unsorted.digest;
            let same = unsorted.same_bits();
            let sorted = unsorted.sorted(&memtable);
            self.append(number, (&sorted, same), &mut digest, &mut newest);
            memtable.groups.get(number).count(digest);
            events += digest.events;
        }
        let writer = &mut self.writer;
        memtable.keys.fill(&mut writer.keys, &newest);
        let events = usize::try_from(events).expect("they are in memory");
        memtable.set_sizes(writer, events);
        *memtable.writer.lock().expect("no insert panicked") = self.writer;
    }

    /// Puts sorted events behind each other in the group, takes those out of `digest` that are there already, and puts the newest of
    /// their keys in `newest`, each below the upper half of its key's hash.
    fn append(
        &mut self,
        number: u32,
        (sorted, same): (&[Sorted], u32),
        digest: &mut Digest,
        newest: &mut Vec<u64>,
    ) {
        let memtable = Arc::clone(&self.memtable);
        let group = memtable.groups.get(number);
        let leaves = Leaves { group, store: &memtable.leaves, arena: &memtable.arena };
        let Writer { fingers, leaves: leaf_writer, heights, tall_bytes, .. } = &mut self.writer;
        let finger = &mut fingers[number as usize - 1];
        let mut filled = Filled::new(finger.leaf, same);
        let mut events: Vec<(u32, u64)> = Vec::with_capacity(SLOTS);
        let (mut before, mut link): (Option<&Sorted>, _) = (None, group.first());
        for (index, at) in sorted.iter().enumerate() {
            if let Some(ahead) = sorted.get(index + AHEAD) {
                memtable.arena.prefetch(ahead.node_ref());
            }
            let node = at.node(&memtable);
            let is_version = before.filter(|before| before.key_hash() == at.key_hash());
            let is_version = is_version.map(|before| {
                let (before, this) = (before.node(&memtable).key(), node.key());
                (before == this, internal_key::prefix_of(before) == internal_key::prefix_of(this))
            });
            match is_version {
                Some((true, _)) => {
                    digest.events -= 1;
                    digest.hash ^= internal_key::id_hash(node.key());
                    continue;
                }
                Some((false, true)) => {}
                _ => newest.push(u64::from(at.key_hash()) << 32 | u64::from(at.number())),
            }
            link.store(at.number(), Ordering::Release);
            link = node.link();
            if events.len() == SLOTS {
                let places = (&mut *leaf_writer, &mut finger.tall);
                leaves.fill(places, &mut filled, &events, Some(at.number()), || heights.draw());
                events.clear();
            }
            events.push((at.number(), at.bits()));
            before = Some(at);
        }
        if let Some(last) = before {
            let places = (leaf_writer, &mut finger.tall);
            leaves.fill(places, &mut filled, &events, None, || heights.draw());
            (finger.last, finger.window) = (last.number(), last.node(&memtable).window());
            finger.leaf = filled.leaf();
            *tall_bytes += finger.tall.bytes();
        }
    }
}
