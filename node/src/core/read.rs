//! One read of one key, from the coordinator's side: ask home replicas, compare, repair what differs, answer once.
//!
//! Invariants:
//!
//! - Exactly one [`ReadOutput::Answer`] is emitted, and nothing after it.
//! - A value is answered only when `needed` distinct home replicas have it, or something newer: what differs is written
//!   back first (GUARANTEES G3), so what one quorum read returned a later one does not un-return. What a replica has let go
//!   by the keyspace's retention is not (`ranking.rs`): it would go again.
//! - No replica is asked for more than it takes: the first sends the payload, the others a long one as its stamp only. A
//!   replica that does not answer in the hedging time is joined, not replaced: the first `needed` answers count.
//! - Within the range that all answers cover, a history is the union of them. Events of one request are one write: of
//!   those on a page the greatest stamp is shown.
//! - The machine ends by itself: [`Read::poll_timeout`] is `Some` until the answer is out.
//!
//! No IO, no clock, no task. Call one `handle_*`, then drain [`Read::poll_output`] until `None`, then the next. It does not
//! know who is alive (the caller orders the candidates) and does not place keys.

mod answer;
mod ranking;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use starling_client::codec::{Blob, WireStamp};
use starling_clock::mutation::{self, Mutation};
use starling_clock::{NodeId, Stamp};
use starling_storage::{Event, HistoryRetention, KeyspaceId};

use super::asks::{AskId, Asks};
use super::peer::ReadQuery;
use super::replica::{ReplicaAnswer, is_retained};
use super::small_map::SmallMap;
use super::types::Instant;
pub use answer::{ReadFailure, ReadValue, Trouble, version_of};
use ranking::Ranked;

/// Longest payload that comes from the replicas beside the first, in bytes: fetching a longer one again when it
/// is needed costs less than sending it R times.
pub const DIGEST_PAYLOAD_SIZE_MAX: u32 = 512;

/// What to read of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// The greatest event at or before `at`.
    Newest {
        /// [`Stamp::MAX`]: now.
        at: Stamp,
    },
    /// Events in stamp order.
    Versions {
        /// First stamp wanted.
        from: Stamp,
        /// Last stamp wanted.
        to: Stamp,
        /// Newest first.
        descending: bool,
        /// Most events: at least 1.
        limit: u32,
    },
}

/// A read that is to be done.
#[derive(Clone, Debug)]
pub struct ReadPlan {
    /// Keyspace.
    pub keyspace: KeyspaceId,
    /// Key.
    pub key: Bytes,
    /// What of it.
    pub question: Question,
    /// The key's home replicas that seem reachable, distinct, those to ask first first.
    pub candidates: Vec<NodeId>,
    /// How many of them must answer.
    pub needed: usize,
    /// When it has failed.
    pub deadline: Instant,
    /// How long to wait before one more replica is asked, in milliseconds.
    pub hedge_ms: u64,
    /// What the keyspace keeps: events beyond it are shown, not repaired.
    pub retention: HistoryRetention,
    /// The wall clock, for `retention`.
    pub wall_ms: u64,
}

/// What the driver must do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadOutput {
    /// Ask a replica; loss is covered by hedging and the deadline.
    Ask {
        /// Hand it back with the answer.
        ask: AskId,
        /// Whom; may be this node.
        to: NodeId,
        /// What.
        query: ReadQuery,
    },
    /// Apply these events there, as copies, with the provenance of a read repair.
    Repair {
        /// Hand it back with the outcome.
        ask: AskId,
        /// Where; may be this node.
        to: NodeId,
        /// What it lacks.
        events: Vec<Event>,
    },
    /// The read is over.
    Answer(Result<ReadValue, ReadFailure>),
}

/// Where a replica stands in this read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Has not answered yet.
    Asked,
    /// What it has is known.
    Answered,
    /// What it has is known, and it is asked for a payload that it left out.
    Fetching,
    /// What it has is known, and it is asked for what it has beyond the version of this stamp, which it lacks.
    Ranking(Stamp),
    /// What it lacks is on the way to it.
    Repairing,
    /// Counts for nothing.
    Failed,
}

/// A replica and what is known of it.
#[derive(Debug)]
struct Replica {
    standing: Standing,
    /// What it has within the question's range.
    events: SmallMap<Stamp, Event>,
    /// Of `events`: those that came without their payload.
    cut: BTreeSet<Stamp>,
    /// The last stamp it looked at, in the question's direction; `None`: all of the range.
    covered: Option<Stamp>,
    /// Of the last version that it was found to lack.
    ranked: Option<Ranked>,
}

impl Replica {
    fn counts(&self) -> bool {
        match self.standing {
            Standing::Answered
            | Standing::Fetching
            | Standing::Ranking(_)
            | Standing::Repairing => true,
            Standing::Asked | Standing::Failed => false,
        }
    }
}

/// The state of one read.
#[derive(Debug)]
pub struct Read {
    plan: ReadPlan,
    /// Those of the candidates that have not been asked.
    waiting: VecDeque<NodeId>,
    replicas: SmallMap<NodeId, Replica>,
    asks: Asks,
    hedge_at: Option<Instant>,
    answered: bool,
    outputs: VecDeque<ReadOutput>,
}

impl Read {
    /// Starts the read.
    ///
    /// # Panics
    /// If fewer candidates than needed are given, or none is needed: the caller answers those itself.
    pub fn new(now: Instant, plan: ReadPlan) -> Self {
        let mut plan = plan;
        if mutation::is(Mutation::ReadBeforeQuorum) {
            plan.needed = 1;
        }
        assert!(0 < plan.needed);
        assert!(plan.needed <= plan.candidates.len());
        let candidates = std::mem::take(&mut plan.candidates);
        let is_new = |at: usize| !candidates[..at].contains(&candidates[at]);
        assert!((0..candidates.len()).all(is_new), "candidates are distinct");
        let mut read = Self {
            waiting: candidates.into(),
            hedge_at: Some(now.plus_ms(plan.hedge_ms)),
            replicas: SmallMap::with_capacity(plan.needed),
            asks: Asks::with_capacity(plan.needed),
            outputs: VecDeque::with_capacity(plan.needed),
            plan,
            answered: false,
        };
        for index in 0..read.plan.needed {
            read.ask_next(if index == 0 { u32::MAX } else { DIGEST_PAYLOAD_SIZE_MAX });
        }
        read.invariants();
        read
    }

    /// A replica answered a question. Answers that were not waited for change nothing.
    pub fn handle_answer(&mut self, ask: AskId, answer: ReplicaAnswer) {
        let Some(node) = self.asks.close(ask) else { return };
        if self.answered {
            return;
        }
        match self.accept(node, answer) {
            Ok(()) => self.evaluate(),
            Err(trouble) => self.fail(node, trouble),
        }
        self.invariants();
    }

    /// A replica took a repair (it is applied there, at the durability asked for), or did not.
    pub fn handle_repaired(&mut self, ask: AskId, taken: bool) {
        let Some(node) = self.asks.close(ask) else { return };
        if self.answered {
            return;
        }
        if taken {
            let replica = self.replicas.get_mut(&node).expect("it was asked");
            replica.standing = Standing::Answered;
            self.evaluate();
        } else {
            self.fail(node, Trouble::NotRepaired);
        }
        self.invariants();
    }

    /// There is no connection to `node` any more: what it was asked for will not come.
    pub fn handle_unreachable(&mut self, node: NodeId) {
        self.waiting.retain(|&waiting| waiting != node);
        if !self.answered && self.asks.forget(node) {
            self.fail(node, Trouble::Unreachable);
        }
        self.invariants();
    }

    /// Time has passed. Early calls change nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.answered {
            return;
        }
        if now >= self.plan.deadline {
            let (answered, needed) = (self.count(), self.plan.needed);
            self.answer(Err(ReadFailure::Timeout { answered, needed }));
        } else if self.hedge_at.is_some_and(|hedge_at| now >= hedge_at) {
            self.hedge_at = self.ask_next(u32::MAX).then(|| now.plus_ms(self.plan.hedge_ms.max(1)));
        }
        self.invariants();
    }

    /// When [`Self::handle_timeout`] is next wanted; `None` once the answer is out.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let deadline = self.plan.deadline;
        (!self.answered).then(|| self.hedge_at.map_or(deadline, |hedge_at| hedge_at.min(deadline)))
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<ReadOutput> {
        self.outputs.pop_front()
    }

    /// Replicas whose answer counts.
    fn count(&self) -> usize {
        self.replicas.values().filter(|replica| replica.counts()).count()
    }

    /// Asks the next candidate, if there is one.
    fn ask_next(&mut self, payload_size_max: u32) -> bool {
        let Some(to) = self.waiting.pop_front() else { return false };
        let asked = Replica {
            standing: Standing::Asked,
            events: SmallMap::default(),
            cut: BTreeSet::new(),
            covered: None,
            ranked: None,
        };
        let before = self.replicas.insert(to, asked);
        assert!(before.is_none(), "a replica is asked once");
        self.ask(to, payload_size_max);
        true
    }

    fn ask(&mut self, to: NodeId, payload_size_max: u32) {
        let keyspace = self.plan.keyspace.0;
        let key = Blob(self.plan.key.clone());
        let query = match self.plan.question {
            Question::Newest { at } => {
                ReadQuery::Get { keyspace, key, at: WireStamp(at), payload_size_max }
            }
            Question::Versions { from, to, descending, limit } => ReadQuery::Versions {
                keyspace,
                key,
                from: WireStamp(from),
                to: WireStamp(to),
                descending,
                limit,
            },
        };
        let ask = self.asks.open(to);
        self.outputs.push_back(ReadOutput::Ask { ask, to, query });
    }

    /// Takes note of what `node` has; an error if that is not an answer to the question.
    fn accept(&mut self, node: NodeId, answer: ReplicaAnswer) -> Result<(), Trouble> {
        if let Standing::Ranking(version) = self.replicas[&node].standing {
            let ranked = self.judge(version, &answer)?;
            let replica = self.replicas.get_mut(&node).expect("it was asked");
            (replica.ranked, replica.standing) = (Some(ranked), Standing::Answered);
            return Ok(());
        }
        let replica = self.replicas.get_mut(&node).expect("it was asked");
        match (&self.plan.question, answer) {
            (_, ReplicaAnswer::Declined(refusal)) => return Err(refusal.into()),
            (Question::Newest { at }, ReplicaAnswer::Event { event, cut }) => {
                if event.as_ref().is_some_and(|event| {
                    event.keyspace != self.plan.keyspace
                        || event.key != self.plan.key
                        || event.stamp > *at
                }) {
                    return Err(Trouble::Malformed);
                }
                replica.events.clear();
                replica.cut.clear();
                if let Some(event) = event {
                    if cut {
                        replica.cut.insert(event.stamp);
                    }
                    replica.events.insert(event.stamp, event);
                }
            }
            (
                Question::Versions { from, to, descending, .. },
                ReplicaAnswer::Events { events, more },
            ) => {
                let strange = events.iter().any(|event| {
                    event.keyspace != self.plan.keyspace
                        || event.key != self.plan.key
                        || !(*from..=*to).contains(&event.stamp)
                });
                let ordered = events.windows(2).all(|pair| {
                    pair[0].stamp != pair[1].stamp && (pair[0].stamp > pair[1].stamp) == *descending
                });
                let covered = events.last().map(|event| event.stamp);
                if strange || !ordered || (more && covered.is_none()) {
                    return Err(Trouble::Malformed);
                }
                replica.covered = covered.filter(|_| more);
                replica.events = events.into_iter().map(|event| (event.stamp, event)).collect();
            }
            _ => return Err(Trouble::Malformed),
        }
        replica.standing = Standing::Answered;
        Ok(())
    }

    /// `node` counts for nothing any more: somebody else is asked, or the read has failed.
    fn fail(&mut self, node: NodeId, reason: Trouble) {
        let replica = self.replicas.get_mut(&node).expect("it was asked");
        replica.standing = Standing::Failed;
        if !self.ask_next(u32::MAX) {
            let standing = self.replicas.values().filter(|r| r.standing != Standing::Failed);
            if standing.count() < self.plan.needed {
                let (answered, needed) = (self.count(), self.plan.needed);
                self.answer(Err(ReadFailure::TooFew { answered, needed, reason }));
                return;
            }
        }
        self.evaluate();
    }

    /// Answers if enough replicas agree; otherwise asks for what is missing to make them.
    fn evaluate(&mut self) {
        if self.answered || self.count() < self.plan.needed {
            return;
        }
        match self.plan.question.clone() {
            Question::Newest { .. } => self.evaluate_newest(),
            Question::Versions { descending, limit, .. } => {
                self.evaluate_versions(descending, limit as usize);
            }
        }
    }

    fn evaluate_newest(&mut self) {
        let known = self.replicas.values().filter(|replica| replica.counts());
        let newest = known.filter_map(|replica| replica.events.last().map(|(&stamp, _)| stamp));
        let newest = if mutation::is(Mutation::TiesByArrival) {
            newest.reduce(|first, next| {
                let later = next.time.physical_ms() > first.time.physical_ms();
                if later { next } else { first }
            })
        } else {
            newest.max()
        };
        let Some(newest) = newest else {
            self.answer(Ok(ReadValue::Newest(None)));
            return;
        };
        let whole = self.replicas.values().find_map(|replica| {
            let event = replica.events.get(&newest)?;
            (replica.counts() && !replica.cut.contains(&newest)).then(|| event.clone())
        });
        let Some(event) = whole else {
            self.fetch(newest);
            return;
        };
        self.rank(newest);
        self.repair(|replica| match replica.events.last() {
            Some((&stamp, _)) if stamp >= newest => Vec::new(),
            _ if replica.has_dropped(newest) => Vec::new(),
            _ => vec![event.clone()],
        });
        if self.complete() >= self.plan.needed {
            self.answer(Ok(ReadValue::Newest(Some(event))));
        }
    }

    /// The newest event is known by its stamp only: one of those that have it is asked for all of it, unless one is already.
    fn fetch(&mut self, newest: Stamp) {
        if self.replicas.values().any(|replica| replica.standing == Standing::Fetching) {
            return;
        }
        let (&holder, replica) = self
            .replicas
            .iter_mut()
            .find(|(_, replica)| replica.counts() && replica.cut.contains(&newest))
            .expect("the stamp came from a replica that counts");
        replica.standing = Standing::Fetching;
        self.ask(holder, u32::MAX);
    }

    fn evaluate_versions(&mut self, descending: bool, limit: usize) {
        let (events, more) = self.union(descending, limit);
        let worthy = self.worth_repairing(&events, descending, more);
        self.repair(|replica| {
            let lacks = |event: &&Event| !replica.events.contains_key(&event.stamp);
            worthy.iter().filter(lacks).cloned().collect()
        });
        if self.complete() >= self.plan.needed {
            let events = collapse(events);
            self.answer(Ok(ReadValue::Versions { events, more }));
        }
    }

    /// What the replicas have between them, in the order asked for, as far as all of them looked.
    fn union(&self, descending: bool, limit: usize) -> (Vec<Event>, bool) {
        let one = mutation::is(Mutation::HistoryOfOne);
        let number = if one { 1 } else { usize::MAX };
        let counting = || self.replicas.values().filter(|replica| replica.counts()).take(number);
        let bounds = counting().filter_map(|replica| replica.covered);
        let bound = if descending { bounds.max() } else { bounds.min() };
        let within = |stamp: Stamp| match bound {
            Some(bound) if descending => stamp >= bound,
            Some(bound) => stamp <= bound,
            None => true,
        };
        let mut union = BTreeMap::new();
        for replica in counting() {
            for (&stamp, event) in replica.events.iter() {
                if within(stamp) {
                    union.entry(stamp).or_insert_with(|| event.clone());
                }
            }
        }
        let more = bound.is_some() || union.len() > limit;
        let mut events: Vec<Event> = if descending {
            union.into_values().rev().collect()
        } else {
            union.into_values().collect()
        };
        events.truncate(limit);
        (events, more)
    }

    /// Of the events shown, those that every replica should have. How many newer ones there are is known only if
    /// the page has the newest; otherwise a keyspace that drops history is left to its merges.
    fn worth_repairing(&self, events: &[Event], descending: bool, more: bool) -> Vec<Event> {
        let retention = self.plan.retention;
        if retention.versions_max.is_none() && retention.age_ms_max.is_none() {
            return events.to_vec();
        }
        let Question::Versions { to, .. } = self.plan.question else { return Vec::new() };
        if to != Stamp::MAX || (!descending && more) {
            return Vec::new();
        }
        let mut newest_first: Vec<&Event> = events.iter().collect();
        newest_first.sort_by_key(|event| std::cmp::Reverse(event.stamp));
        let mut newer = None;
        let mut worthy = Vec::new();
        for (rank, event) in (0..).zip(newest_first) {
            if is_retained(retention, rank, newer, self.plan.wall_ms) {
                worthy.push(event.clone());
            }
            newer = Some(event.stamp);
        }
        worthy
    }

    /// Sends to each replica that answered what it lacks, and takes it for applied: if it is not, the replica fails.
    fn repair(&mut self, lacking: impl Fn(&Replica) -> Vec<Event>) {
        let answered: Vec<NodeId> = self
            .replicas
            .iter()
            .filter(|(_, replica)| replica.standing == Standing::Answered)
            .map(|(&node, _)| node)
            .collect();
        for node in answered {
            let events = lacking(&self.replicas[&node]);
            if events.is_empty() {
                continue;
            }
            let replica = self.replicas.get_mut(&node).expect("listed above");
            replica.standing = Standing::Repairing;
            replica.events.extend(events.iter().map(|event| (event.stamp, event.clone())));
            let ask = self.asks.open(node);
            self.outputs.push_back(ReadOutput::Repair { ask, to: node, events });
        }
    }

    /// Replicas that answered and lack nothing.
    fn complete(&self) -> usize {
        if mutation::is(Mutation::AnswerBeforeRepair) {
            return self.count();
        }
        self.replicas.values().filter(|replica| replica.standing == Standing::Answered).count()
    }

    fn answer(&mut self, result: Result<ReadValue, ReadFailure>) {
        assert!(!self.answered);
        self.answered = true;
        self.outputs.push_back(ReadOutput::Answer(result));
    }

    fn invariants(&self) {
        assert!(self.asks.nodes().all(|node| self.replicas.contains_key(&node)));
        for (&node, replica) in self.replicas.iter() {
            let expected = match replica.standing {
                Standing::Asked
                | Standing::Fetching
                | Standing::Ranking(_)
                | Standing::Repairing => 1,
                Standing::Answered | Standing::Failed => 0,
            };
            assert!(self.answered || self.asks.count(node) == expected, "{node}: {replica:?}");
        }
        assert!(self.answered || !self.asks.is_empty(), "somebody is being waited for");
    }
}

/// A write that was stamped anew is one write: of the events of one request only the greatest stamp stays.
fn collapse(events: Vec<Event>) -> Vec<Event> {
    let mut greatest = BTreeMap::new();
    for event in &events {
        let stamp = greatest.entry(event.request).or_insert(event.stamp);
        *stamp = event.stamp.max(*stamp);
    }
    events.into_iter().filter(|event| greatest[&event.request] == event.stamp).collect()
}

#[cfg(test)]
mod tests;
