//! [`MemtableCursor`] and [`Entry`]: what a memtable shows of itself.
//!
//! Invariants:
//!
//! - An [`Entry`] borrows from the memtable, not from the cursor that found it.
//! - A cursor meets every event that was inserted before it was made, in order; those inserted since it meets or not.

use starling_clock::Stamp;

use super::arena::{Node, NodeRef};
use super::leaves::Slot;
use super::sync::Ordering;
use super::{Memtable, Target, stamp_of};
use crate::tree::stored::StoredRef;

/// An event in a memtable.
#[derive(Clone, Copy)]
pub(crate) struct Entry<'a> {
    node: Node<'a>,
}

impl<'a> Entry<'a> {
    #[inline]
    pub(super) fn new(node: Node<'a>) -> Self {
        Self { node }
    }

    /// The internal key.
    #[inline]
    pub(crate) fn key(self) -> &'a [u8] {
        self.node.key()
    }

    /// The event's stamp.
    pub(crate) fn stamp(self) -> Stamp {
        stamp_of(self.node)
    }

    /// What there is of the event beside its internal key.
    #[inline]
    pub(crate) fn stored(self) -> StoredRef<'a> {
        StoredRef::decode(self.node.value()).expect("it was encoded")
    }
}

/// Steps of a walk before it is long enough that it pays to look ahead.
const STEPS_BEFORE_SCOUT: u32 = if cfg!(all(test, not(loom))) { 2 } else { 16 };
/// Steps after which the place ahead is looked for anew: inserts put it nearer or farther.
const STEPS_PER_SCOUT: u32 = if cfg!(all(test, not(loom))) { 5 } else { 1024 };
/// How many events it is ahead.
const LEAD: usize = 8;

/// Walks a memtable in order, either way.
pub(crate) struct MemtableCursor<'a> {
    memtable: &'a Memtable,
    /// The group of the event, 0 if there is none.
    group: u32,
    node: Option<Node<'a>>,
    /// The slot of an event of the group that is some steps ahead, about.
    ahead: Option<Slot<'a>>,
    /// Steps until that is looked for.
    until_scout: u32,
}

impl<'a> MemtableCursor<'a> {
    pub(super) fn new(memtable: &'a Memtable, group: u32, node: Option<Node<'a>>) -> Self {
        Self { memtable, group, node, ahead: None, until_scout: STEPS_BEFORE_SCOUT }
    }

    /// As it is if there is an event, otherwise on the first event of a later group.
    pub(super) fn or_later(mut self) -> Self {
        self.skip_to_later();
        self
    }

    /// As it is if there is an event, otherwise on the last event of an earlier group.
    pub(super) fn or_earlier(mut self) -> Self {
        self.skip_to_earlier();
        self
    }

    /// The event, `None` past the last one.
    #[inline]
    pub(crate) fn entry(&self) -> Option<Entry<'a>> {
        self.node.map(Entry::new)
    }

    /// The internal key of the event, `None` past the last one.
    #[inline]
    pub(crate) fn key(&self) -> Option<&'a [u8]> {
        self.entry().map(Entry::key)
    }

    /// Moves to the next event.
    #[inline]
    pub(crate) fn advance(&mut self) {
        let Some(node) = self.node else { return };
        let next = NodeRef::from_number(node.link().load(Ordering::Acquire));
        self.node = next.map(|at| self.memtable.arena.node(at));
        self.scout();
        self.skip_to_later();
    }

    /// Moves to the event before, by a search: nodes have no links backwards.
    pub(crate) fn retreat(&mut self) {
        let Some(node) = self.node else { return };
        self.node = self.memtable.search(self.group, node.key()).0;
        self.skip_to_earlier();
    }

    /// Brings near what comes next. Events lie anywhere in memory, and the link to the one after the next is not known before
    /// that one is there: leaves know.
    #[inline]
    fn scout(&mut self) {
        if let Some(ahead) = &mut self.ahead {
            ahead.prefetch_next(&self.memtable.leaves, &self.memtable.arena);
        }
        self.until_scout -= 1;
        if self.until_scout == 0 {
            self.send_scout();
        }
    }

    #[cold]
    fn send_scout(&mut self) {
        self.until_scout = STEPS_PER_SCOUT;
        let Some(node) = self.node else { return };
        let leaves = self.memtable.leaves_of(self.group);
        let mut ahead = leaves.slot(&Target::new(node.key()));
        for _ in 0..LEAD {
            ahead.prefetch_next(leaves.store, leaves.arena);
        }
        self.ahead = Some(ahead);
    }

    #[inline]
    fn skip_to_later(&mut self) {
        if self.node.is_none() {
            self.enter_later();
        }
    }

    #[cold]
    fn enter_later(&mut self) {
        while self.node.is_none() && self.group != 0 {
            self.group = self.memtable.groups.after(self.group);
            if self.group != 0 {
                self.node = self.memtable.first_of(self.group);
                (self.ahead, self.until_scout) = (None, STEPS_BEFORE_SCOUT);
            }
        }
    }

    fn skip_to_earlier(&mut self) {
        while self.node.is_none() && self.group != 0 {
            let head = self.memtable.groups.get(self.group).head();
            self.group = self.memtable.groups.around(head).0;
            self.node = self.memtable.last_of(self.group);
        }
    }
}
