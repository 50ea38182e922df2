//! Who is known, and in which order they are probed.
//!
//! Invariants:
//!
//! - The node itself is always a member.
//! - Every other member that is up is in the probe order exactly once, every dead one in the list of the dead
//!   exactly once, and those that left are in neither.
//! - In one pass of the order every member that was there at its start is probed once (SWIM section 4.3), so that a
//!   crash is noticed within two passes.
//! - There are at most [`MEMBERS_MAX`] members.
//!
//! What a member's status means is `machine/merge.rs`'s business.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use starling_clock::NodeId;

use crate::limits::MEMBERS_MAX;
use crate::{Member, NodeState, Status};

/// The members.
#[derive(Clone, Debug)]
pub(crate) struct Roster {
    own: NodeId,
    members: BTreeMap<NodeId, Member>,
    /// The other members that are up. Those before `next` have been probed in this pass.
    order: Vec<NodeId>,
    next: usize,
    dead: Vec<NodeId>,
}

impl Roster {
    pub(crate) fn new(own: Member) -> Self {
        let node = own.node;
        let members = BTreeMap::from([(node, own)]);
        Self { own: node, members, order: Vec::new(), next: 0, dead: Vec::new() }
    }

    pub(crate) fn own(&self) -> &Member {
        self.members.get(&self.own).expect("the node itself is always a member")
    }

    pub(crate) fn get(&self, node: NodeId) -> Option<&Member> {
        self.members.get(&node)
    }

    /// In the order of ids.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// In the order of ids from `start` on, then from the beginning; without the node itself.
    pub(crate) fn iter_from(&self, start: NodeId) -> impl Iterator<Item = &Member> {
        let (before, after) = (self.members.range(..start), self.members.range(start..));
        after.chain(before).map(|(_, member)| member).filter(|member| member.node != self.own)
    }

    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// Members that are up, the node itself included.
    pub(crate) fn up(&self) -> usize {
        self.order.len() + 1
    }

    /// Sets what the node itself says. Its status is its own business and in no list.
    pub(crate) fn set_own(&mut self, status: Status, incarnation: u64, state: Arc<NodeState>) {
        let (node, state_incarnation) = (self.own, incarnation);
        let own = Member { node, status, incarnation, state_incarnation, state };
        self.members.insert(node, own);
        self.invariants();
    }

    /// Adds a member that was not known; of members that left, one makes room if there is none.
    /// `false` if there is no room.
    pub(crate) fn insert(&mut self, member: Member, rng: &mut ChaCha8Rng) -> bool {
        assert!(!self.members.contains_key(&member.node));
        if self.members.len() >= MEMBERS_MAX && !self.evict_left() {
            return false;
        }
        let (node, status) = (member.node, member.status);
        self.members.insert(node, member);
        self.list(node, status, rng);
        self.invariants();
        true
    }

    fn evict_left(&mut self) -> bool {
        let left = |member: &&Member| member.status == Status::Left && member.node != self.own;
        let Some(node) = self.members.values().find(left).map(|member| member.node) else {
            return false;
        };
        self.members.remove(&node).is_some()
    }

    /// Changes what is believed of another member.
    ///
    /// # Panics
    /// If it is not known, or is the node itself.
    pub(crate) fn set_status(
        &mut self,
        node: NodeId,
        status: Status,
        incarnation: u64,
        rng: &mut ChaCha8Rng,
    ) {
        assert!(node != self.own);
        let member = self.members.get_mut(&node).expect("only of known members");
        assert!((member.incarnation, member.status) < (incarnation, status));
        let before = member.status;
        (member.status, member.incarnation) = (status, incarnation);
        if (before.is_up(), before == Status::Dead) != (status.is_up(), status == Status::Dead) {
            self.unlist(node, before);
            self.list(node, status, rng);
        }
        self.invariants();
    }

    /// Changes what another member says of itself.
    ///
    /// # Panics
    /// If it is not known, or is the node itself.
    pub(crate) fn set_state(&mut self, node: NodeId, state: NodeState, state_incarnation: u64) {
        assert!(node != self.own);
        let member = self.members.get_mut(&node).expect("only of known members");
        assert!(member.state_incarnation < state_incarnation);
        (member.state, member.state_incarnation) = (Arc::new(state), state_incarnation);
    }

    fn list(&mut self, node: NodeId, status: Status, rng: &mut ChaCha8Rng) {
        match status {
            Status::Alive | Status::Suspect => {
                // To a random place in the part of the pass that is still to come.
                self.order.push(node);
                let last = self.order.len() - 1;
                let place = rng.random_range(self.next..=last);
                self.order.swap(place, last);
            }
            Status::Dead => self.dead.push(node),
            Status::Left => {}
        }
    }

    fn unlist(&mut self, node: NodeId, status: Status) {
        match status {
            Status::Alive | Status::Suspect => {
                let at = self.order.iter().position(|&other| other == node);
                let at = at.expect("every member that is up is in the order");
                self.order.remove(at);
                if at < self.next {
                    self.next -= 1;
                }
            }
            Status::Dead => self.dead.retain(|&other| other != node),
            Status::Left => {}
        }
    }

    /// The next member to probe; `None` if nobody else is up.
    pub(crate) fn next_probe(&mut self, rng: &mut ChaCha8Rng) -> Option<NodeId> {
        if self.next >= self.order.len() {
            self.order.shuffle(rng);
            self.next = 0;
        }
        let node = *self.order.get(self.next)?;
        self.next += 1;
        Some(node)
    }

    /// Up to `count` distinct others that are up, but for `except`.
    pub(crate) fn sample(
        &self,
        count: usize,
        except: Option<NodeId>,
        rng: &mut ChaCha8Rng,
    ) -> Vec<NodeId> {
        let wanted = count.min(self.order.len());
        let mut picked: Vec<NodeId> = Vec::with_capacity(wanted);
        // Few enough are wanted that a repeated draw is cheaper than a copy of the order.
        for _ in 0..4 * wanted {
            let node = self.order[rng.random_range(0..self.order.len())];
            if Some(node) != except && !picked.contains(&node) {
                picked.push(node);
            }
            if picked.len() == wanted {
                break;
            }
        }
        picked
    }

    /// Some dead member.
    pub(crate) fn sample_dead(&self, rng: &mut ChaCha8Rng) -> Option<NodeId> {
        if self.dead.is_empty() {
            return None;
        }
        Some(self.dead[rng.random_range(0..self.dead.len())])
    }

    /// Some member's id, to begin a window at.
    pub(crate) fn random_start(&self, rng: &mut ChaCha8Rng) -> NodeId {
        match self.order.len() {
            0 => NodeId(0),
            up => self.order[rng.random_range(0..up)],
        }
    }

    fn invariants(&self) {
        assert!(self.members.len() <= MEMBERS_MAX);
        assert!(self.order.len() + self.dead.len() < self.members.len());
        assert!(self.next <= self.order.len());
        // Linear, so only where it is cheap enough to run after each change.
        if cfg!(debug_assertions) && self.members.len() <= 32 {
            let others = || self.members.values().filter(|member| member.node != self.own);
            for member in others() {
                let count = |list: &[NodeId]| list.iter().filter(|&&n| n == member.node).count();
                assert_eq!(count(&self.order), usize::from(member.status.is_up()));
                assert_eq!(count(&self.dead), usize::from(member.status == Status::Dead));
                assert!(member.state_incarnation <= member.incarnation);
            }
            assert!(self.members.contains_key(&self.own));
        }
    }
}
