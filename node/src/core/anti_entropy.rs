//! Anti-entropy: this node and a peer compare digests of the partitions that both are home of, and each gets what it lacks.
//!
//! Invariants:
//!
//! - One session at a time, one partition at a time, one batch of at most [`TRANSFER_EVENTS_MAX`] events in flight: the cost
//!   to the rest of the node does not grow with the difference.
//! - A session ends by itself: done, refused, or after [`AntiEntropyConfig::timeout_ms`] without an answer. Whatever it
//!   moved by then stays moved; the next session goes on with what still differs.
//! - Only events of keyspaces that both nodes are home of, and that merges would keep, are moved, as copies: the clock
//!   does not move. A comparison that found nothing to move is remembered by the two digests, so that partitions which
//!   differ for good (histories merged to different depths, keyspaces with other replicas, tombstones that one side has
//!   let go) are not walked for ever.
//! - A partition is walked only if something that is not young, of a keyspace that both are home of, differs.
//! - Of each pair the node with the lower id begins; after its start a node begins with everybody.
//!
//! It does not know who is home of what ([`Placement`] does), nor how events travel. Drop of tombstones is not decided here.

mod walk;

use std::collections::{BTreeMap, VecDeque};

use starling_client::codec::WireStamp;
use starling_clock::{HybridTime, NodeId, Stamp};
use starling_storage::{Event, HistoryRetention, KeyspaceDigest, KeyspaceId};

use super::asks::AskId;
use super::peer::ReadQuery;
use super::replica::{Place, ReplicaAnswer, is_retained, place_of, place_to_wire};
use super::types::{Instant, Now};
use walk::{Walk, Worth, compare, order};

/// Identities in one page of a comparison.
pub const COMPARE_EVENTS_MAX: u32 = 1024;
/// Events in one batch that is copied.
pub const TRANSFER_EVENTS_MAX: usize = 256;
/// A partition of no more events is looked at by keyspaces before it is walked: storage reads all keys of it for that, and other reads
/// wait meanwhile. Under a load of writes most partitions differ in what is young alone.
pub const KEYSPACE_EVENTS_MAX: u64 = 1 << 16;
/// Partitions whose digests are asked for at once. Storage reads all of a partition for its digest, and other reads wait meanwhile.
pub const DIGEST_PARTITIONS_MAX: u32 = 16;

/// When sessions are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AntiEntropyConfig {
    /// Every peer is compared with about this often, in milliseconds.
    pub interval_ms: u64,
    /// The first sessions begin this long after the start or a peer's return, in milliseconds: hints go first.
    pub first_ms: u64,
    /// A question without an answer for this long ends the session, in milliseconds.
    pub timeout_ms: u64,
    /// Wait after each batch and each round of digests, in milliseconds. Longer leaves more to the requests of clients.
    pub pause_ms: u64,
    /// Events younger than this by their stamp are left alone, in milliseconds: they are most likely on their way.
    pub settle_ms: u64,
}

/// What a session has to know of the ring and the keyspaces.
pub trait Placement {
    /// Partitions of the ring.
    fn partitions(&self) -> u32;
    /// Whether both nodes are home of the partition in any keyspace.
    fn is_shared(&self, partition: u32, own: NodeId, peer: NodeId) -> bool;
    /// Whether both nodes are home of the keyspace's events in the partition, and what they keep of them.
    fn sharing(&self, keyspace: KeyspaceId, partition: u32, own: NodeId, peer: NodeId) -> Sharing;
}

/// What two nodes have to do with each other in a keyspace and a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Both are home, and keep this much.
    Both(HistoryRetention),
    /// One of them is no home.
    Apart,
    /// This node has not learned of the keyspace yet.
    Unknown,
}

/// What the driver must do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AntiEntropyOutput {
    /// Ask a replica.
    Ask {
        /// Hand it back with the answer.
        ask: AskId,
        /// Whom; this node or the peer.
        to: NodeId,
        /// What.
        query: ReadQuery,
    },
    /// Apply these events there, as copies, with the provenance of anti-entropy.
    Copy {
        /// Hand it back with the outcome.
        ask: AskId,
        /// Where; this node or the peer.
        to: NodeId,
        /// What it lacks.
        events: Vec<Event>,
    },
    /// A session is over.
    Ended {
        /// With whom.
        peer: NodeId,
        /// Whether everything was compared.
        complete: bool,
        /// Events copied to the peer.
        pushed: u64,
        /// Events copied from the peer.
        pulled: u64,
    },
}

/// The two nodes of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Own,
    Peer,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Own => Self::Peer,
            Self::Peer => Self::Own,
        }
    }
}

/// Number of events and hash of their identities.
type Digest = (u64, u64);

/// The same of a keyspace's events that are not young, and the number of those that are.
type KeyspaceSum = (u64, u64, u64);

/// What the session waits for.
#[derive(Debug)]
enum Step {
    /// The digests of the partitions from `first` on.
    Digests { first: u32, own: Option<BTreeMap<u32, Digest>>, peer: Option<BTreeMap<u32, Digest>> },
    /// What either side has of each keyspace in the walk's partition.
    Keyspaces { own: Option<Vec<KeyspaceDigest>>, peer: Option<Vec<KeyspaceDigest>> },
    /// One page of either side, or both, of the walk.
    Pages,
    /// The whole events of the walk's run.
    Fetch,
    /// The other side applies what was fetched of the run; `rest`: the run goes on after this place.
    Copy { rest: Option<Place> },
    /// The pause; then the walk goes on.
    Pause,
}

#[derive(Debug)]
struct Session {
    peer: NodeId,
    /// Partitions that differ, with the digests of both sides.
    differing: VecDeque<(u32, Digest, Digest)>,
    /// The first partition whose digests have not been asked for.
    next: u32,
    walk: Option<Walk>,
    step: Step,
    asks: BTreeMap<AskId, Side>,
    deadline: Instant,
    pushed: u64,
    pulled: u64,
}

/// When to compare with whom, and the session under way.
#[derive(Debug)]
pub struct AntiEntropy {
    config: AntiEntropyConfig,
    own: NodeId,
    /// When each reachable peer is due.
    due: BTreeMap<NodeId, Instant>,
    /// Digests of partitions that were compared with nothing to move, by (peer, partition).
    settled: BTreeMap<(NodeId, u32), (Digest, Digest)>,
    session: Option<Session>,
    next_ask: u32,
    started_at: Instant,
    outputs: VecDeque<AntiEntropyOutput>,
}

impl AntiEntropy {
    /// Nobody is reachable yet.
    ///
    /// # Panics
    /// If the interval or the timeout is zero.
    pub fn new(now: Instant, config: AntiEntropyConfig, own: NodeId) -> Self {
        assert!(0 < config.interval_ms);
        assert!(0 < config.timeout_ms);
        Self {
            config,
            own,
            due: BTreeMap::new(),
            settled: BTreeMap::new(),
            session: None,
            next_ask: 0,
            started_at: now,
            outputs: VecDeque::new(),
        }
    }

    /// `peer` is alive and connected.
    pub fn handle_peer_up(&mut self, now: Instant, peer: NodeId) {
        assert_ne!(peer, self.own);
        let just_started = now.since_ms(self.started_at) <= self.config.first_ms;
        if self.own < peer || just_started {
            self.due.entry(peer).or_insert(now.plus_ms(self.config.first_ms));
        }
    }

    /// `peer` is dead or not connected any more.
    pub fn handle_peer_down(&mut self, peer: NodeId) {
        self.due.remove(&peer);
        if self.session.as_ref().is_some_and(|session| session.peer == peer) {
            self.end(false);
        }
        self.invariants();
    }

    /// A side answered a question. Answers that were not waited for change nothing.
    pub fn handle_answer(
        &mut self,
        now: Now,
        ask: AskId,
        answer: ReplicaAnswer,
        placement: &impl Placement,
    ) {
        let Some(session) = &mut self.session else { return };
        let Some(side) = session.asks.remove(&ask) else { return };
        session.deadline = now.mono.plus_ms(self.config.timeout_ms);
        let taken = match (&mut session.step, answer) {
            (Step::Digests { own, peer, .. }, ReplicaAnswer::Digests(digests)) => {
                let of = |(partition, events, hash)| (partition, (events, hash));
                let slot = if side == Side::Own { own } else { peer };
                *slot = Some(digests.into_iter().map(of).collect());
                true
            }
            (Step::Keyspaces { own, peer }, ReplicaAnswer::KeyspaceDigests(digests)) => {
                *(if side == Side::Own { own } else { peer }) = Some(digests);
                true
            }
            (Step::Pages, ReplicaAnswer::Events { events, more }) => {
                session.walk.as_mut().is_some_and(|walk| walk.take_page(side, events, more))
            }
            (Step::Fetch, ReplicaAnswer::Events { events, more }) => {
                self.copy(events, more);
                true
            }
            _ => false,
        };
        if taken {
            self.advance(now, placement);
        } else {
            self.end(false);
        }
        self.invariants();
    }

    /// A side took a copy, and so many of its events were news there; `None`: it did not take it.
    pub fn handle_copied(
        &mut self,
        now: Now,
        ask: AskId,
        applied: Option<u64>,
        placement: &impl Placement,
    ) {
        let Some(session) = &mut self.session else { return };
        let Some(side) = session.asks.remove(&ask) else { return };
        let Step::Copy { rest } = &mut session.step else {
            panic!("a copy is outstanding in this step only");
        };
        let Some(applied) = applied else {
            self.end(false);
            return;
        };
        match side {
            Side::Own => session.pulled += applied,
            Side::Peer => session.pushed += applied,
        }
        let walk = session.walk.as_mut().expect("a copy belongs to a walk");
        walk.unsettled |= 0 < applied;
        match rest.take() {
            Some(rest) => walk.run.as_mut().expect("it is not over").after = Some(rest),
            None => walk.run = None,
        }
        session.step = Step::Pause;
        session.deadline = now.mono.plus_ms(self.config.pause_ms);
        self.handle_timeout(now, placement);
    }

    /// Time has passed. Early calls change nothing.
    pub fn handle_timeout(&mut self, now: Now, placement: &impl Placement) {
        match &mut self.session {
            Some(session) if now.mono >= session.deadline => {
                if matches!(session.step, Step::Pause) {
                    session.deadline = now.mono.plus_ms(self.config.timeout_ms);
                    self.advance(now, placement);
                } else {
                    self.end(false);
                }
            }
            Some(_) => {}
            None => self.begin(now, placement),
        }
        self.invariants();
    }

    /// When [`Self::handle_timeout`] is next wanted.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.session {
            Some(session) => Some(session.deadline),
            None => self.due.values().min().copied(),
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<AntiEntropyOutput> {
        self.outputs.pop_front()
    }

    /// Starts a session with the peer that is due the longest, if one is.
    fn begin(&mut self, now: Now, placement: &impl Placement) {
        let due = self.due.iter().filter(|(_, at)| **at <= now.mono);
        let Some((&peer, _)) = due.min_by_key(|(_, at)| **at) else { return };
        let interval_ms = self.config.interval_ms;
        if self.own < peer {
            self.due.insert(peer, now.mono.plus_ms(interval_ms));
        } else {
            self.due.remove(&peer);
        }
        self.session = Some(Session {
            peer,
            differing: VecDeque::new(),
            next: 0,
            walk: None,
            step: Step::Pause,
            asks: BTreeMap::new(),
            deadline: now.mono.plus_ms(self.config.timeout_ms),
            pushed: 0,
            pulled: 0,
        });
        self.advance(now, placement);
    }

    fn end(&mut self, complete: bool) {
        let session = self.session.take().expect("a session is under way");
        self.outputs.push_back(AntiEntropyOutput::Ended {
            peer: session.peer,
            complete,
            pushed: session.pushed,
            pulled: session.pulled,
        });
    }

    fn session(&mut self) -> &mut Session {
        self.session.as_mut().expect("a session is under way")
    }

    fn ask(&mut self, side: Side, query: ReadQuery) {
        let (ask, to) = self.new_ask(side);
        self.outputs.push_back(AntiEntropyOutput::Ask { ask, to, query });
    }

    fn new_ask(&mut self, side: Side) -> (AskId, NodeId) {
        let ask = AskId(self.next_ask);
        self.next_ask = self.next_ask.wrapping_add(1);
        let own = self.own;
        let session = self.session();
        session.asks.insert(ask, side);
        (ask, if side == Side::Own { own } else { session.peer })
    }

    /// Goes on with whatever is next, unless answers are outstanding.
    fn advance(&mut self, now: Now, placement: &impl Placement) {
        while let Some(session) = &mut self.session {
            if !session.asks.is_empty() {
                return;
            }
            if matches!(session.step, Step::Digests { .. }) {
                let resume_at = now.mono.plus_ms(self.config.pause_ms);
                session.deadline = resume_at;
                self.compare(placement);
                if now.mono < resume_at {
                    return;
                }
            } else if matches!(session.step, Step::Keyspaces { .. }) {
                self.compare_keyspaces(placement);
            } else if session.walk.is_some() {
                self.walk(now, placement);
            } else if let Some((partition, own, peer)) = session.differing.pop_front() {
                session.walk = Some(Walk::new(partition, (own, peer)));
                if own.0.max(peer.0) <= KEYSPACE_EVENTS_MAX {
                    self.ask_keyspaces(now, partition);
                }
            } else if session.next < placement.partitions() {
                session.deadline = now.mono.plus_ms(self.config.timeout_ms);
                self.ask_digests(placement.partitions());
            } else {
                self.end(true);
            }
        }
    }

    fn ask_digests(&mut self, partitions: u32) {
        let session = self.session();
        let first = session.next;
        let last = (partitions - 1).min(first.saturating_add(DIGEST_PARTITIONS_MAX - 1));
        session.next = last + 1;
        session.step = Step::Digests { first, own: None, peer: None };
        self.ask(Side::Own, ReadQuery::Digests { first, last });
        self.ask(Side::Peer, ReadQuery::Digests { first, last });
    }

    /// Both sides' digests are here: notes which partitions differ.
    fn compare(&mut self, placement: &impl Placement) {
        let own_node = self.own;
        let session = self.session.as_mut().expect("a session is under way");
        let step = std::mem::replace(&mut session.step, Step::Pause);
        let Step::Digests { first, own: Some(own), peer: Some(peer) } = step else {
            panic!("both were asked and nothing is outstanding");
        };
        for partition in first..session.next {
            let digest = |digests: &BTreeMap<u32, Digest>| {
                digests.get(&partition).copied().unwrap_or_default()
            };
            let (own, peer) = (digest(&own), digest(&peer));
            let settled = self.settled.get(&(session.peer, partition)) == Some(&(own, peer));
            if own != peer && !settled && placement.is_shared(partition, own_node, session.peer) {
                session.differing.push_back((partition, own, peer));
            }
        }
    }

    fn ask_keyspaces(&mut self, now: Now, partition: u32) {
        let settled_ms = now.wall_ms.saturating_sub(self.config.settle_ms);
        let settled_ms = settled_ms.min(HybridTime::PHYSICAL_MS_MAX);
        let up_to = Stamp::new(HybridTime::new(settled_ms, u16::MAX), NodeId(u64::MAX));
        let query = ReadQuery::KeyspaceDigests { partition, up_to: WireStamp(up_to) };
        self.session().step = Step::Keyspaces { own: None, peer: None };
        self.ask(Side::Own, query.clone());
        self.ask(Side::Peer, query);
    }

    /// What both sides have of each keyspace is here: ends the walk if they have the same of all that they share, but for what is
    /// young.
    fn compare_keyspaces(&mut self, placement: &impl Placement) {
        let own_node = self.own;
        let session = self.session.as_mut().expect("a session is under way");
        let step = std::mem::replace(&mut session.step, Step::Pause);
        let Step::Keyspaces { own: Some(own), peer: Some(peer) } = step else {
            panic!("both were asked and nothing is outstanding");
        };
        let walk = session.walk.as_mut().expect("its keyspaces were asked for");
        let mut sides: BTreeMap<KeyspaceId, [KeyspaceSum; 2]> = BTreeMap::new();
        for (side, digests) in [own, peer].into_iter().enumerate() {
            for KeyspaceDigest { keyspace, settled, newer } in digests {
                sides.entry(keyspace).or_default()[side] = (settled.events, settled.hash, newer);
            }
        }
        let mut differ = false;
        for (keyspace, [own, peer]) in sides {
            match placement.sharing(keyspace, walk.partition, own_node, session.peer) {
                Sharing::Both(_) => {
                    differ |= (own.0, own.1) != (peer.0, peer.1);
                    walk.unsettled |= 0 < own.2 + peer.2;
                }
                Sharing::Apart => {}
                Sharing::Unknown => walk.unsettled = true,
            }
        }
        if !differ {
            self.end_walk();
        }
    }

    /// Nothing is left to be compared of the partition.
    fn end_walk(&mut self) {
        let session = self.session.as_mut().expect("a session is under way");
        let walk = session.walk.take().expect("the caller looked");
        if !walk.unsettled {
            self.settled.insert((session.peer, walk.partition), walk.digests);
        }
    }

    /// Compares on: asks for pages, or moves the run that was found, or ends the walk.
    fn walk(&mut self, now: Now, placement: &impl Placement) {
        let (own, settle_ms) = (self.own, self.config.settle_ms);
        let session = self.session.as_mut().expect("a session is under way");
        let peer = session.peer;
        let walk = session.walk.as_mut().expect("the caller looked");
        let partition = walk.partition;
        let young_from = now.wall_ms.saturating_sub(settle_ms);
        walk.compare(|place, rank, newer| {
            if place.2.time.physical_ms() > young_from {
                return Worth::Later;
            }
            match placement.sharing(place.0, partition, own, peer) {
                Sharing::Both(kept) if is_retained(kept, rank, newer, now.wall_ms) => Worth::Moving,
                Sharing::Both(_) | Sharing::Apart => Worth::Nothing,
                Sharing::Unknown => Worth::Later,
            }
        });
        if let Some(run) = &walk.run {
            let query = ReadQuery::PartitionEvents {
                partition,
                after: run.after.as_ref().map(place_to_wire),
                limit: u32::try_from(run.places.len()).expect("bounded"),
                ids_only: false,
            };
            let from = run.from;
            session.step = Step::Fetch;
            self.ask(from, query);
            return;
        }
        let pages = walk.wanted_pages();
        if pages.is_empty() {
            self.end_walk();
            return;
        }
        session.step = Step::Pages;
        for (side, after) in pages {
            let after = after.as_ref().map(place_to_wire);
            let limit = COMPARE_EVENTS_MAX;
            self.ask(side, ReadQuery::PartitionEvents { partition, after, limit, ids_only: true });
        }
    }

    /// The whole events of the run are here, or some of them: they go to the other side.
    fn copy(&mut self, events: Vec<Event>, more: bool) {
        let session = self.session();
        let walk = session.walk.as_mut().expect("a fetch belongs to a walk");
        let run = walk.run.as_ref().expect("a fetch belongs to a run");
        let to = run.from.other();
        let fetched = events.last().map(place_of);
        let unfinished = |place: &Place| more && compare(place, &run.last).is_lt();
        let progress =
            |place: &Place| run.after.as_ref().is_none_or(|after| compare(after, place).is_lt());
        let rest = fetched.filter(|place| unfinished(place) && progress(place));
        let wanted = |event: &Event| run.places.contains(&order(&place_of(event)));
        let events: Vec<Event> = events.into_iter().filter(wanted).collect();
        if events.is_empty() && rest.is_none() {
            // They are gone there by now: a merge dropped them.
            walk.run = None;
            session.step = Step::Pause;
            return;
        }
        if events.is_empty() {
            walk.run.as_mut().expect("it is there").after = rest;
            session.step = Step::Pause;
            return;
        }
        session.step = Step::Copy { rest };
        let (ask, to) = self.new_ask(to);
        self.outputs.push_back(AntiEntropyOutput::Copy { ask, to, events });
    }

    fn invariants(&self) {
        let Some(session) = &self.session else { return };
        assert!(matches!(session.step, Step::Pause) || !session.asks.is_empty());
        assert!(session.asks.len() <= 2);
        if let Some(walk) = &session.walk {
            assert!(walk.run.as_ref().is_none_or(|run| run.places.len() <= TRANSFER_EVENTS_MAX));
        }
    }
}

#[cfg(test)]
mod tests;
