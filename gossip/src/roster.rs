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
use std::collections::btree_map::Range;
use std::iter::Peekable;
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
    /// The node itself. It is asked for all the time, so it is not among the others.
    own: Member,
    others: BTreeMap<NodeId, Member>,
    /// The other members that are up. Those before `next` have been probed in this pass.
    order: Vec<NodeId>,
    next: usize,
    dead: Vec<NodeId>,
}

impl Roster {
    pub(crate) fn new(own: Member) -> Self {
        Self { own, others: BTreeMap::new(), order: Vec::new(), next: 0, dead: Vec::new() }
    }

    pub(crate) fn own(&self) -> &Member {
        &self.own
    }

    pub(crate) fn get(&self, node: NodeId) -> Option<&Member> {
        if node == self.own.node { Some(&self.own) } else { self.others.get(&node) }
    }

    /// For many questions in the order of ids.
    pub(crate) fn reader(&self) -> RosterReader<'_> {
        RosterReader { roster: self, next: self.others.range(NodeId(0)..).peekable() }
    }

    /// In the order of ids.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Member> {
        let own = self.own.node;
        let (before, after) = (self.others.range(..own), self.others.range(own..));
        let members = |(_, member)| member;
        before.map(members).chain(std::iter::once(&self.own)).chain(after.map(members))
    }

    /// In the order of ids from `start` on, then from the beginning; without the node itself.
    pub(crate) fn iter_from(&self, start: NodeId) -> impl Iterator<Item = &Member> {
        let (before, after) = (self.others.range(..start), self.others.range(start..));
        after.chain(before).map(|(_, member)| member)
    }

    pub(crate) fn len(&self) -> usize {
        self.others.len() + 1
    }

    /// Members that are up, the node itself included.
    pub(crate) fn up(&self) -> usize {
        self.order.len() + 1
    }

    /// Sets what the node itself says. Its status is its own business and in no list.
    pub(crate) fn set_own(&mut self, status: Status, incarnation: u64, state: Arc<NodeState>) {
        let (node, state_incarnation) = (self.own.node, incarnation);
        self.own = Member { node, status, incarnation, state_incarnation, state };
        self.invariants();
    }

    /// Adds a member that was not known; of members that left, one makes room if there is none.
    /// `false` if there is no room.
    pub(crate) fn insert(&mut self, member: Member, rng: &mut ChaCha8Rng) -> bool {
        assert!(member.node != self.own.node);
        if self.len() >= MEMBERS_MAX && !self.evict_left() {
            return false;
        }
        let (node, status) = (member.node, member.status);
        let known = self.others.insert(node, member);
        assert!(known.is_none());
        self.list(node, status, rng);
        self.invariants();
        true
    }

    fn evict_left(&mut self) -> bool {
        let left = |member: &&Member| member.status == Status::Left;
        let Some(node) = self.others.values().find(left).map(|member| member.node) else {
            return false;
        };
        self.others.remove(&node).is_some()
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
        assert!(node != self.own.node);
        let member = self.others.get_mut(&node).expect("only of known members");
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
        assert!(node != self.own.node);
        let member = self.others.get_mut(&node).expect("only of known members");
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

    /// Some dead member, or none: so often that all who are up together pick each dead one about once (Serf).
    pub(crate) fn sample_dead(&self, rng: &mut ChaCha8Rng) -> Option<NodeId> {
        let (dead, up) = (self.dead.len(), self.up());
        if dead == 0 || (dead < up && dead <= rng.random_range(0..up)) {
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
        assert!(self.len() <= MEMBERS_MAX);
        assert!(self.order.len() + self.dead.len() <= self.others.len());
        assert!(self.next <= self.order.len());
        // Linear, so only where it is cheap enough to run after each change.
        if cfg!(debug_assertions) && self.len() <= 32 {
            for member in self.others.values() {
                let count = |list: &[NodeId]| list.iter().filter(|&&n| n == member.node).count();
                assert_eq!(count(&self.order), usize::from(member.status.is_up()));
                assert_eq!(count(&self.dead), usize::from(member.status == Status::Dead));
                assert!(member.state_incarnation <= member.incarnation);
            }
            assert!(!self.others.contains_key(&self.own.node));
        }
    }
}

/// Answers as [`Roster::get`] does, and cheaply if it is asked for ids that follow each other as the members do.
#[derive(Debug)]
pub(crate) struct RosterReader<'a> {
    roster: &'a Roster,
    next: Peekable<Range<'a, NodeId, Member>>,
}

impl<'a> RosterReader<'a> {
    pub(crate) fn get(&mut self, node: NodeId) -> Option<&'a Member> {
        if node == self.roster.own.node {
            return Some(&self.roster.own);
        }
        if self.next.peek().is_none_or(|(next, _)| **next != node) {
            self.next = self.roster.others.range(node..).peekable();
        }
        self.next.next_if(|(next, _)| **next == node).map(|(_, member)| member)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use rand::SeedableRng;

    use super::*;

    fn member(node: u64, status: Status) -> Member {
        let state = Arc::new(NodeState::at(SocketAddr::from(([10, 0, 0, 1], 7_000))));
        Member { node: NodeId(node), status, incarnation: 1, state_incarnation: 1, state }
    }

    /// Node 50 knows nodes of even ids up to 100; the first `dead` are dead.
    fn roster(dead: u64, rng: &mut ChaCha8Rng) -> Roster {
        let mut roster = Roster::new(member(50, Status::Alive));
        for (index, node) in (2..=100).step_by(2).filter(|&node| node != 50).enumerate() {
            let status = if (index as u64) < dead { Status::Dead } else { Status::Alive };
            assert!(roster.insert(member(node, status), rng));
        }
        roster
    }

    #[test]
    fn the_node_itself_has_its_place_among_the_others() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let roster = roster(0, &mut rng);
        assert_eq!(roster.len(), 50);
        let ids: Vec<u64> = roster.iter().map(|member| member.node.0).collect();
        assert!(ids.iter().copied().eq((2..=100).step_by(2)));
        assert!(roster.iter_from(NodeId(50)).all(|member| member.node.0 != 50));
        assert_eq!(roster.iter_from(NodeId(49)).next().map(|member| member.node.0), Some(52));
        assert_eq!(roster.get(NodeId(50)), Some(roster.own()));
    }

    #[test]
    fn a_reader_answers_as_the_roster_does_in_any_order() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let roster = roster(3, &mut rng);
        let mut reader = roster.reader();
        let ascending = 0..=101;
        let rotated = (60..=101).chain(0..60);
        let chaotic = (0..300).map(|_| rng.random_range(0..=101)).collect::<Vec<_>>();
        for node in ascending.chain(rotated).chain(chaotic).map(NodeId) {
            assert_eq!(reader.get(node), roster.get(node), "{node}");
        }
    }

    #[test]
    fn each_dead_member_is_picked_about_once_by_all_who_are_up() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for dead in [0, 1, 5, 24] {
            let roster = roster(dead, &mut rng);
            let rounds = 1_000;
            let asked = rounds * roster.up();
            let picked = (0..asked).filter_map(|_| roster.sample_dead(&mut rng)).count() as u64;
            let expected = dead * rounds as u64;
            assert!(picked.abs_diff(expected) <= expected / 5, "{picked} of {expected}");
        }
        // Who knows more dead than living calls on one each time: most of the cluster may be behind a partition.
        let mostly_dead = roster(40, &mut rng);
        assert!((0..100).all(|_| mostly_dead.sample_dead(&mut rng).is_some()));
    }
}
