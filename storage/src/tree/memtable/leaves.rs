//! [`Leaves`]: where in a group an event is, or would be. The events of a group are a list, each linked to the next one;
//! leaves are short arrays of sorted slots over stretches of it, and the leaves of a group are a skiplist: an unrolled
//! skiplist (after the unrolled lists of Shao, Reppy and Appel, 1994). A search reads a few lines of leaves, which are
//! dense, where a skiplist of the events themselves would miss the caches with each event that it meets.
//!
//! Invariants:
//!
//! - The list of events is the truth. It only grows, an event is in it before it is in a slot, and leaves say no more
//!   than where to begin to walk: a reader may meet slots that are being moved, checks the event that they lead to,
//!   and goes from the leaf's first event if it is not before what is looked for. It never waits, and never searches
//!   again.
//! - To the writer leaves are exact: each event has one slot, in the leaf with the last first event that is not after it.
//! - What a leaf begins with never changes; the first leaf of a group begins before all keys. Leaves are never removed.
//! - A slot is one word: 32 bits of the key, behind what all keys that the leaf may ever hold have in common, and
//!   the event's number. Lesser bits are a lesser key; equal bits say nothing.

use std::ops::Range;

use super::arena::{Arena, NodeRef, prefetch, window};
use super::groups::Group;
use super::skiplist::{self, HEIGHT_MAX, List, Path};
use super::stable::Stable;
use super::sync::{AtomicU32, AtomicU64, Ordering};
use super::{Target, bits, rest_of};

/// Slots of a leaf.
pub(super) const SLOTS: usize = if cfg!(all(loom, test)) { 2 } else { 32 };
/// Slots that come near at once.
const SLOTS_PER_LINE: usize = 64 / size_of::<AtomicU64>();
/// Leaves that are at least so high, one in sixteen, are in [`Tall`].
const TALL: usize = 3;
/// Leaves that are allocated together.
const CHUNK: u32 = if cfg!(all(loom, test)) { 2 } else { 16 };

/// See the file's head.
#[repr(C, align(64))]
pub(super) struct Leaf {
    /// The window on the first event's key, once that is set.
    window: [AtomicU64; 2],
    /// The first event, 0 in the first leaf of a group.
    first: AtomicU32,
    /// Bytes behind the head that all keys of the leaf share.
    shared: AtomicU32,
    /// Slots in use.
    count: AtomicU32,
    /// Links to other leaves of the group.
    links: [AtomicU32; HEIGHT_MAX],
    slots: [AtomicU64; SLOTS],
}

#[cfg(not(all(loom, test)))]
const _: () = assert!(std::mem::offset_of!(Leaf, slots) == 64, "one line to step over a leaf");

impl Leaf {
    fn new() -> Self {
        Self {
            window: [AtomicU64::new(0), AtomicU64::new(0)],
            first: AtomicU32::new(0),
            shared: AtomicU32::new(0),
            count: AtomicU32::new(0),
            links: std::array::from_fn(|_| AtomicU32::new(0)),
            slots: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Set before the leaf is linked.
    fn window(&self) -> u128 {
        let [high, low] = &self.window;
        u128::from(high.load(Ordering::Relaxed)) << 64 | u128::from(low.load(Ordering::Relaxed))
    }

    /// Says what it begins with: this event, and the window on its key.
    fn begin(&self, first: u32, window: u128) {
        let [high, low] = [window >> 64, window & u128::from(u64::MAX)];
        for (half, value) in self.window.iter().zip([high, low]) {
            half.store(u64::try_from(value).expect("half of it"), Ordering::Relaxed);
        }
        self.first.store(first, Ordering::Relaxed);
    }

    fn count(&self) -> usize {
        (self.count.load(Ordering::Acquire) as usize).min(SLOTS)
    }

    fn set_count(&self, count: usize) {
        let count = u32::try_from(count).expect("no more than there are slots");
        self.count.store(count, Ordering::Release);
    }

    fn number(&self, index: usize) -> u32 {
        number_in(self.slots[index].load(Ordering::Acquire))
    }

    /// The first slot that is not before the target; slots that are being moved may give any.
    #[inline]
    fn find(&self, arena: &Arena, target: &Target<'_>) -> usize {
        let wanted = target.bits(self.shared.load(Ordering::Relaxed) as usize);
        let (mut low, mut size) = (0, self.count());
        while 0 < size {
            let half = size / 2;
            let slot = self.slots[low + half].load(Ordering::Acquire);
            let is_before = match bits_in(slot).cmp(&wanted) {
                std::cmp::Ordering::Equal => {
                    let at = NodeRef::from_number(number_in(slot));
                    at.is_some_and(|at| target.is_after(arena.node(at)))
                }
                unequal => unequal.is_lt(),
            };
            (low, size) = if is_before { (low + half + 1, size - half - 1) } else { (low, half) };
        }
        low
    }

    /// Puts a slot at `index`. There is room.
    fn insert(&self, index: usize, slot: u64) {
        let count = self.count.load(Ordering::Relaxed) as usize;
        for to in (index + 1..=count).rev() {
            self.slots[to].store(self.slots[to - 1].load(Ordering::Relaxed), Ordering::Release);
        }
        self.slots[index].store(slot, Ordering::Release);
        self.set_count(count + 1);
    }

    /// Says of each slot in use what its bits are if the leaf's keys share so many bytes.
    fn set_shared(&self, arena: &Arena, shared: usize) {
        if self.shared.load(Ordering::Relaxed) as usize == shared {
            return;
        }
        self.shared.store(u32::try_from(shared).expect("a key's length"), Ordering::Relaxed);
        for slot in &self.slots[..self.count()] {
            let number = number_in(slot.load(Ordering::Relaxed));
            let bits = bits_at(arena, number, shared);
            slot.store(slot_of(bits, number), Ordering::Release);
        }
    }
}

fn slot_of(bits: u32, number: u32) -> u64 {
    u64::from(bits) << 32 | u64::from(number)
}

fn number_in(slot: u64) -> u32 {
    u32::try_from(slot & u64::from(u32::MAX)).expect("32 bits")
}

fn bits_in(slot: u64) -> u32 {
    u32::try_from(slot >> 32).expect("32 bits")
}

/// How many bytes all keys between these two begin with.
fn shared_by(low: &[u8], high: &[u8]) -> usize {
    low.iter().zip(high).take_while(|(low, high)| low == high).count()
}

fn bits_at(arena: &Arena, number: u32, shared: usize) -> u32 {
    bits(rest_at(arena, number), shared)
}

fn rest_at(arena: &Arena, number: u32) -> &[u8] {
    let at = NodeRef::from_number(number).expect("a slot in use has an event");
    rest_of(arena.node(at).key())
}

/// The leaves of all groups of a memtable, called by numbers from 1 on.
#[derive(Default)]
pub(super) struct LeafStore {
    chunks: Stable<[Leaf; CHUNK as usize]>,
}

/// What the writer knows about a [`LeafStore`].
#[derive(Default)]
pub(super) struct LeafWriter {
    pub(super) leaves: u32,
    /// Memory allocated, in bytes.
    pub(super) bytes: usize,
}

impl LeafWriter {
    /// Memory of the leaves in use, in bytes.
    pub(super) fn used(&self) -> usize {
        self.leaves as usize * size_of::<Leaf>()
    }
}

impl LeafStore {
    #[inline]
    fn get(&self, number: u32) -> &Leaf {
        &self.chunks.get((number - 1) / CHUNK)[((number - 1) % CHUNK) as usize]
    }

    /// The number of a leaf that was not in use.
    pub(super) fn add(&self, writer: &mut LeafWriter) -> u32 {
        if writer.leaves.is_multiple_of(CHUNK) {
            let chunk = std::array::from_fn(|_| Leaf::new());
            writer.bytes += self.chunks.push(writer.leaves / CHUNK, chunk);
        }
        writer.leaves += 1;
        writer.leaves
    }
}

/// The higher leaves of a group, in the order of their keys. They lie together: a writer's search begins with them, and meets
/// far fewer lines of memory than from the head of the list.
#[derive(Default)]
pub(super) struct Tall {
    windows: Vec<u128>,
    leaves: Vec<u32>,
}

impl Tall {
    /// The last one that is before all keys with this window, 0 if there is none.
    fn before(&self, window: u128) -> u32 {
        let end = self.windows.partition_point(|begin| *begin < window);
        end.checked_sub(1).map_or(0, |last| self.leaves[last])
    }

    fn add(&mut self, window: u128, leaf: u32) {
        let at = self.windows.partition_point(|begin| *begin <= window);
        self.windows.insert(at, window);
        self.leaves.insert(at, leaf);
    }

    /// Memory, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.windows.capacity() * size_of::<u128>() + self.leaves.capacity() * size_of::<u32>()
    }
}

/// The leaves of one group. See the file's head.
pub(super) struct Leaves<'a> {
    pub(super) group: &'a Group,
    pub(super) store: &'a LeafStore,
    pub(super) arena: &'a Arena,
}

impl<'a> List for Leaves<'a> {
    type Node = &'a Leaf;

    #[inline]
    fn node(&self, number: u32) -> &'a Leaf {
        self.store.get(number)
    }

    #[inline]
    fn link(&self, at: Option<&'a Leaf>, level: usize) -> &AtomicU32 {
        match at {
            Some(leaf) => &leaf.links[level],
            None => &self.group.leaves()[level],
        }
    }

    #[inline]
    fn height(&self) -> &AtomicU32 {
        self.group.height()
    }

    #[inline]
    fn prefetch(&self, number: u32) {
        if number != 0 {
            prefetch(self.store.get(number));
        }
    }
}

/// A slot of a leaf, as a reader met it: what is in it may move meanwhile.
#[derive(Clone, Copy)]
pub(super) struct Slot<'a> {
    leaf: &'a Leaf,
    index: usize,
}

impl<'a> Slot<'a> {
    /// Begins to bring near the event of this slot, key and all, and moves to the slot behind it; past the last one it stays.
    #[inline]
    pub(super) fn prefetch_next(&mut self, store: &'a LeafStore, arena: &Arena) {
        if self.leaf.count() <= self.index && !self.enter_next(store) {
            return;
        }
        if let Some(slot) = self.leaf.slots.get(self.index)
            && let Some(at) = NodeRef::from_number(number_in(slot.load(Ordering::Acquire)))
        {
            arena.prefetch_key(at);
        }
        self.index += 1;
    }

    /// Moves to the first slot of the leaf behind, if there is one, and begins to bring near all of the one behind that.
    fn enter_next(&mut self, store: &'a LeafStore) -> bool {
        let next = self.leaf.links[0].load(Ordering::Acquire);
        if next == 0 {
            return false;
        }
        *self = Self { leaf: store.get(next), index: 0 };
        let behind = self.leaf.links[0].load(Ordering::Acquire);
        if behind != 0 {
            let behind = store.get(behind);
            prefetch(behind);
            behind.slots.iter().step_by(SLOTS_PER_LINE).for_each(prefetch);
        }
        true
    }
}

/// Where the writer puts an event.
#[derive(Clone, Copy)]
pub(super) struct Place {
    leaf: u32,
    index: usize,
    /// The event before, 0 if there is none.
    pub(super) before: u32,
}

/// How far the leaves of a group are filled that nothing is inserted into meanwhile.
pub(super) struct Filled {
    /// The last leaf.
    last: u32,
    /// It has its events.
    is_full: bool,
    /// The last leaf of each level, but for the first one of the group.
    path: Path,
    /// Of windows, which bits are known of events that are to come.
    known: Range<u32>,
}

impl Filled {
    /// There is an empty leaf, the first one. Of each event 64 bits of the window on its key will be known, from this one on.
    pub(super) fn new(first: u32, known_from: u32) -> Self {
        let known = known_from..u128::BITS.min(known_from + u64::BITS);
        Self { last: first, is_full: false, path: Path::default(), known }
    }

    /// [`bits`] of a key of which these are known, if they are among them.
    fn bits(&self, known: u64, shared: usize) -> Option<u32> {
        let from = u32::try_from(8 * shared).ok()?;
        let is_known = self.known.start <= from && from + u32::BITS <= self.known.end;
        let upper = |bits: u64| u32::try_from(bits >> 32).expect("32 bits");
        is_known.then(|| upper(known << (from - self.known.start)))
    }

    /// Of events that share so many bytes, with what is known of each: less of that, if it tells them apart without a look at
    /// their keys.
    fn cheaper(&self, shared: usize, events: &[(u32, u64)]) -> usize {
        let bytes = |bits: u32| (bits / u8::BITS) as usize;
        let less = shared.min(bytes(self.known.end - u32::BITS));
        let bits = |(_, known): &(u32, u64)| self.bits(*known, less);
        if events.is_sorted_by(|left, right| bits(left) < bits(right)) { less } else { shared }
    }

    /// The last leaf.
    pub(super) fn leaf(&self) -> u32 {
        self.last
    }
}

impl<'a> Leaves<'a> {
    /// An event before the target from which there are few more to it, 0 if it is to be walked to from the beginning.
    #[inline]
    pub(super) fn start(&self, target: &Target<'_>) -> u32 {
        let (leaf, _) = self.leaf_for(target, &mut Path::default());
        let leaf = self.store.get(leaf);
        if let Some(last) = leaf.find(self.arena, target).checked_sub(1)
            && let Some(at) = NodeRef::from_number(leaf.number(last))
            && target.is_after(self.arena.node(at))
        {
            return at.number();
        }
        leaf.first.load(Ordering::Relaxed)
    }

    /// An event from which there are few more to the last one.
    pub(super) fn near_end(&self) -> u32 {
        let mut path = Path::default();
        skiplist::search(self, |_| true, &mut path);
        let leaf = self.store.get(self.or_first(path[0]));
        let last = leaf.count().checked_sub(1).map_or(0, |last| leaf.number(last));
        if last == 0 { leaf.first.load(Ordering::Relaxed) } else { last }
    }

    /// The slot of the target, or where it would be.
    pub(super) fn slot(&self, target: &Target<'_>) -> Slot<'a> {
        let (leaf, _) = self.leaf_for(target, &mut Path::default());
        let leaf = self.store.get(leaf);
        Slot { leaf, index: leaf.find(self.arena, target) }
    }

    fn or_first(&self, leaf: u32) -> u32 {
        if leaf == 0 { self.group.leaf() } else { leaf }
    }

    /// The leaf that the target belongs to, and the one behind it, 0 if there is none.
    #[inline]
    fn leaf_for(&self, target: &Target<'_>, path: &mut Path) -> (u32, u32) {
        let next = skiplist::search(self, |leaf| self.begins_before(leaf, target), path);
        (self.or_first(path[0]), next)
    }

    #[inline]
    fn begins_before(&self, leaf: &Leaf, target: &Target<'_>) -> bool {
        let window = leaf.window();
        if window != target.window {
            return window < target.window;
        }
        rest_at(self.arena, leaf.first.load(Ordering::Relaxed)) < target.rest
    }

    /// Where the target goes. Only the writer asks, and for what is not here.
    pub(super) fn place(&self, tall: &Tall, target: &Target<'_>) -> Place {
        let number = match tall.before(target.window) {
            0 => self.leaf_for(target, &mut Path::default()).0,
            // No other one of their height is between it and the target.
            from => skiplist::search_from(self, (from, TALL - 1), |leaf| {
                self.begins_before(leaf, target)
            }),
        };
        let leaf = self.store.get(number);
        let index = leaf.find(self.arena, target);
        let before = index.checked_sub(1).map_or(0, |last| leaf.number(last));
        Place { leaf: number, index, before }
    }

    /// The place behind the last event, which is `last` and in `leaf`.
    pub(super) fn place_at_end(&self, leaf: u32, last: u32) -> Place {
        Place { leaf, index: self.store.get(leaf).count(), before: last }
    }

    /// Gives an event that was just linked its slot. If that took a leaf, of a height that is drawn then, behind all others:
    /// its number.
    pub(super) fn insert(
        &self,
        (writer, tall): (&mut LeafWriter, &mut Tall),
        place: Place,
        (target, number): (&Target<'_>, u32),
        height: impl FnOnce() -> usize,
    ) -> Option<u32> {
        let (mut at, mut index, mut last) = (place.leaf, place.index, None);
        if self.store.get(at).count() == SLOTS {
            ((at, index), last) =
                self.split((writer, tall), (at, index), (target, number), height());
        }
        let leaf = self.store.get(at);
        let shared = leaf.shared.load(Ordering::Relaxed) as usize;
        leaf.insert(index, slot_of(target.bits(shared), number));
        last
    }

    /// Gives events behind all others, which are linked and sorted, their slots: as many as fit a leaf, and `next` is the one behind
    /// them, or the last ones. With each comes what is known of its window. A leaf that this takes is as high as is drawn then.
    pub(super) fn fill(
        &self,
        (writer, tall): (&mut LeafWriter, &mut Tall),
        filled: &mut Filled,
        events: &[(u32, u64)],
        next: Option<u32>,
        height: impl FnOnce() -> usize,
    ) {
        let (first, _) = events[0];
        let begin = rest_at(self.arena, first);
        if filled.is_full {
            let added = self.store.add(writer);
            self.store.get(added).begin(first, window(begin));
            let height = height();
            skiplist::link_in(self, added, height, &filled.path);
            filled.path[..height].fill(added);
            if TALL <= height {
                tall.add(window(begin), added);
            }
            filled.last = added;
        }
        let is_first = !std::mem::replace(&mut filled.is_full, true);
        let leaf = self.store.get(filled.last);
        let shared = match next {
            Some(next) if !is_first => shared_by(begin, rest_at(self.arena, next)),
            _ => 0,
        };
        let shared = filled.cheaper(shared, events);
        leaf.shared.store(u32::try_from(shared).expect("a key's length"), Ordering::Relaxed);
        for (slot, &(event, known)) in leaf.slots.iter().zip(events) {
            let bits = filled.bits(known, shared);
            let bits = bits.unwrap_or_else(|| bits_at(self.arena, event, shared));
            slot.store(slot_of(bits, event), Ordering::Release);
        }
        leaf.set_count(events.len());
    }

    /// Makes room in a full leaf by another one behind it: for the upper half, or for what comes behind the last event
    /// alone, so that keys that rise leave full leaves. Where the slot goes now, and the added leaf if it is the last.
    fn split(
        &self,
        (writer, tall): (&mut LeafWriter, &mut Tall),
        (at, index): (u32, usize),
        (target, number): (&Target<'_>, u32),
        height: usize,
    ) -> ((u32, usize), Option<u32>) {
        let leaf = self.store.get(at);
        let mut path = Path::default();
        let (_, behind) = self.leaf_for(target, &mut path);
        let stay = if behind == 0 && index == SLOTS { SLOTS } else { SLOTS / 2 };
        let first = if stay == SLOTS { number } else { leaf.number(stay) };
        let first_rest = rest_at(self.arena, first);

        let added = self.store.add(writer);
        let upper = self.store.get(added);
        let begin = window(first_rest);
        upper.begin(first, begin);
        upper.shared.store(leaf.shared.load(Ordering::Relaxed), Ordering::Relaxed);
        for (to, from) in upper.slots.iter().zip(&leaf.slots[stay..]) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        upper.set_count(SLOTS - stay);
        let behind = (behind != 0).then(|| self.store.get(behind).first.load(Ordering::Relaxed));
        let end = behind.map(|behind| rest_at(self.arena, behind));
        upper.set_shared(self.arena, end.map_or(0, |end| shared_by(first_rest, end)));
        skiplist::link_in(self, added, height, &path);
        if TALL <= height {
            tall.add(begin, added);
        }

        leaf.set_count(stay);
        let begin = leaf.first.load(Ordering::Relaxed);
        let begin = (begin != 0).then(|| rest_at(self.arena, begin));
        leaf.set_shared(self.arena, begin.map_or(0, |begin| shared_by(begin, first_rest)));
        let is_upper = stay < index || stay == SLOTS;
        let place = if is_upper { (added, index - stay) } else { (at, index) };
        (place, end.is_none().then_some(added))
    }
}
