//! One page of a scan, from the coordinator's side: ask enough home replicas of a range of partitions, merge, repair what
//! differs, answer once.
//!
//! Invariants:
//!
//! - Exactly one [`ReadOutput::Answer`] is emitted, and nothing after it.
//! - A page is answered only when every partition of its range has been told of by `needed` home replicas, and each of
//!   them has, for every key of the page, the newest event that any of them had.
//! - A page ends where the least of the answers ends: what one replica has not looked at yet is not guessed.
//! - What a node says of a partition that it is no home of does not count.
//! - Deletes are merged and repaired like everything else, and not shown.
//! - The machine ends by itself: [`Scan::poll_timeout`] is `Some` until the answer is out.
//!
//! Which range a page looks at: as many partitions from the cursor on as [`SCAN_NODES_MAX`] nodes are home of, so that a page
//! of a small cluster may span all its partitions, and one of a large cluster does not ask everybody. A page may be empty
//! and still have a cursor.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use starling_client::codec::Blob;
use starling_client::wire::PAGE_BYTES_MAX;
use starling_clock::NodeId;
use starling_storage::{Action, Event, KeyspaceId};

use super::asks::{AskId, Asks};
use super::peer::ReadQuery;
use super::read::{ReadFailure, ReadOutput, ReadValue, Trouble};
use super::replica::ReplicaAnswer;
use super::small_map::SmallMap;
use super::types::Instant;

/// Home nodes that the range of one page has at most, unless a single partition has more.
pub const SCAN_NODES_MAX: usize = 8;

/// A page that is to be read.
#[derive(Clone, Debug)]
pub struct ScanPlan {
    /// Keyspace.
    pub keyspace: KeyspaceId,
    /// Keys that begin so.
    pub prefix: Bytes,
    /// First partition.
    pub first: u32,
    /// In the first partition, after this key.
    pub after: Option<Bytes>,
    /// Most rows: at least 1.
    pub limit: u32,
    /// From `first` on, the home nodes of each partition to the last one of the page; see [`range_homes`].
    pub homes: Vec<Vec<NodeId>>,
    /// Number of partitions of the ring.
    pub partitions: u32,
    /// The nodes that seem reachable, distinct, those to ask first first.
    pub candidates: Vec<NodeId>,
    /// How many home replicas of each partition must answer.
    pub needed: usize,
    /// When it has failed.
    pub deadline: Instant,
    /// How long to wait before more nodes are asked, in milliseconds.
    pub hedge_ms: u64,
}

/// The home nodes of the partitions that one page looks at: `first` and those after it, as long as few nodes are home of them.
pub fn range_homes<'a>(
    first: u32,
    partitions: u32,
    homes: impl Fn(u32) -> &'a [NodeId],
) -> Vec<Vec<NodeId>> {
    assert!(first < partitions);
    let mut nodes = BTreeSet::new();
    let mut range = Vec::new();
    for partition in first..partitions {
        let homes = homes(partition);
        nodes.extend(homes.iter().copied());
        if nodes.len() > SCAN_NODES_MAX && !range.is_empty() {
            break;
        }
        range.push(homes.to_vec());
    }
    range
}

/// Where a node stands in this scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Has not answered yet.
    Asked,
    /// Has not answered for so long that others are asked beside it.
    Slow,
    /// What it has is known.
    Answered,
    /// What it lacks is on the way to it.
    Repairing,
    /// Counts for nothing.
    Failed,
}

/// A node and what is known of it.
#[derive(Debug)]
struct Replica {
    standing: Standing,
    /// The newest event that it has of each key, in the order (partition, key); only of partitions that it is a home of.
    events: Vec<Event>,
    /// The last place it looked at; `None`: all of the range.
    covered: Option<(u32, Bytes)>,
}

impl Replica {
    fn counts(&self) -> bool {
        match self.standing {
            Standing::Answered | Standing::Repairing => true,
            Standing::Asked | Standing::Slow | Standing::Failed => false,
        }
    }
}

/// Where an event stands in the order of a scan.
fn place(event: &Event) -> (u32, &Bytes) {
    (event.partition, &event.key)
}

/// What all that answered have between them, as far as the page goes.
struct Merged {
    /// The newest event of each key, deletes too, in order.
    newest: Vec<Event>,
    /// The last place of the page; `None`: all of the range.
    bound: Option<(u32, Bytes)>,
}

/// The state of one page.
#[derive(Debug)]
pub struct Scan {
    plan: ScanPlan,
    /// Those of the candidates that have not been asked and are home of something.
    waiting: VecDeque<NodeId>,
    replicas: SmallMap<NodeId, Replica>,
    asks: Asks,
    hedge_at: Instant,
    answered: bool,
    outputs: VecDeque<ReadOutput>,
}

impl Scan {
    /// Starts the scan. If the candidates cannot meet the level for some partition it answers so at once.
    ///
    /// # Panics
    /// If the range is empty or ends beyond the ring, or nobody is needed.
    pub fn new(now: Instant, plan: ScanPlan) -> Self {
        assert!(0 < plan.needed);
        assert!(0 < plan.limit);
        assert!(!plan.homes.is_empty());
        assert!(plan.first as usize + plan.homes.len() <= plan.partitions as usize);
        let useful = |node: &NodeId| plan.homes.iter().any(|homes| homes.contains(node));
        let mut scan = Self {
            waiting: plan.candidates.iter().copied().filter(useful).collect(),
            replicas: SmallMap::default(),
            asks: Asks::default(),
            hedge_at: now.plus_ms(plan.hedge_ms),
            answered: false,
            outputs: VecDeque::new(),
            plan,
        };
        scan.ask_enough(Trouble::Unreachable);
        scan.invariants();
        scan
    }

    /// A node answered a question. Answers that were not waited for change nothing.
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

    /// A node took a repair (it is applied there, at the durability asked for), or did not.
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
            let (answered, needed) = (self.least(Replica::counts), self.plan.needed);
            self.answer(Err(ReadFailure::Timeout { answered, needed }));
        } else if now >= self.hedge_at {
            for replica in self.replicas.values_mut() {
                if replica.standing == Standing::Asked {
                    replica.standing = Standing::Slow;
                }
            }
            self.hedge_at = now.plus_ms(self.plan.hedge_ms.max(1));
            self.ask_enough(Trouble::Unreachable);
        }
        self.invariants();
    }

    /// When [`Self::handle_timeout`] is next wanted; `None` once the answer is out.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let deadline = self.plan.deadline;
        let hedge_at = if self.waiting.is_empty() { deadline } else { self.hedge_at };
        (!self.answered).then(|| hedge_at.min(deadline))
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<ReadOutput> {
        self.outputs.pop_front()
    }

    /// The last partition of the page.
    fn last(&self) -> u32 {
        let length = u32::try_from(self.plan.homes.len()).expect("bounded by the partitions");
        self.plan.first + (length - 1)
    }

    fn is_home(&self, node: NodeId, partition: u32) -> bool {
        let index = partition.checked_sub(self.plan.first).map(|index| index as usize);
        index
            .and_then(|index| self.plan.homes.get(index))
            .is_some_and(|homes| homes.contains(&node))
    }

    /// How many home replicas for which `counts` holds the partition with the fewest has.
    fn least(&self, counts: impl Fn(&Replica) -> bool) -> usize {
        let counting = |homes: &Vec<NodeId>| {
            let replicas = homes.iter().filter_map(|node| self.replicas.get(node));
            replicas.filter(|replica| counts(replica)).count()
        };
        self.plan.homes.iter().map(counting).min().expect("the range is not empty")
    }

    /// Asks candidates, in their order, until every partition has `needed` homes that answered or may soon. If the level
    /// cannot be met any more, says so, with `reason`.
    fn ask_enough(&mut self, reason: Trouble) {
        let promising = |replica: &Replica| replica.counts() || replica.standing == Standing::Asked;
        let mut counts: Vec<usize> = self
            .plan
            .homes
            .iter()
            .map(|homes| {
                let replicas = homes.iter().filter_map(|node| self.replicas.get(node));
                replicas.filter(|replica| promising(replica)).count()
            })
            .collect();
        for node in std::mem::take(&mut self.waiting) {
            let lacking = (counts.iter().zip(&self.plan.homes))
                .any(|(&count, homes)| count < self.plan.needed && homes.contains(&node));
            if !lacking {
                self.waiting.push_back(node);
                continue;
            }
            for (count, homes) in counts.iter_mut().zip(&self.plan.homes) {
                *count += usize::from(homes.contains(&node));
            }
            self.ask(node);
        }
        if self.least(|replica| replica.standing != Standing::Failed) < self.plan.needed {
            let (answered, needed) = (self.least(Replica::counts), self.plan.needed);
            self.answer(Err(ReadFailure::TooFew { answered, needed, reason }));
        }
    }

    fn ask(&mut self, to: NodeId) {
        let asked = Replica { standing: Standing::Asked, events: Vec::new(), covered: None };
        let before = self.replicas.insert(to, asked);
        assert!(before.is_none(), "a node is asked once");
        let query = ReadQuery::Scan {
            first: self.plan.first,
            last: self.last(),
            keyspace: self.plan.keyspace.0,
            prefix: Blob(self.plan.prefix.clone()),
            after: self.plan.after.clone().map(Blob),
            limit: self.plan.limit,
        };
        let ask = self.asks.open(to);
        self.outputs.push_back(ReadOutput::Ask { ask, to, query });
    }

    /// Takes note of what `node` has; an error if that is not an answer to the question.
    fn accept(&mut self, node: NodeId, answer: ReplicaAnswer) -> Result<(), Trouble> {
        let (events, covered) = match answer {
            ReplicaAnswer::Scanned { events, covered } => (events, covered),
            ReplicaAnswer::Declined(declined) => return Err(declined.into()),
            _ => return Err(Trouble::Malformed),
        };
        let after = self.plan.after.as_ref();
        let begins = |partition: u32, key: &Bytes| {
            partition > self.plan.first || after.is_none_or(|after| key > after)
        };
        let range = self.plan.first..=self.last();
        let strange = events.iter().any(|event| {
            event.keyspace != self.plan.keyspace
                || !event.key.starts_with(&self.plan.prefix)
                || !range.contains(&event.partition)
                || !begins(event.partition, &event.key)
        });
        let ordered = events.is_sorted_by(|one, next| place(one) < place(next));
        let covers = covered.as_ref().is_none_or(|covered| {
            range.contains(&covered.0)
                && begins(covered.0, &covered.1)
                && events.last().is_none_or(|event| place(event) <= (covered.0, &covered.1))
        });
        if strange || !ordered || !covers {
            return Err(Trouble::Malformed);
        }
        let mut events = events;
        events.retain(|event| self.is_home(node, event.partition));
        let replica = self.replicas.get_mut(&node).expect("it was asked");
        replica.events = events;
        replica.covered = covered;
        replica.standing = Standing::Answered;
        Ok(())
    }

    /// `node` counts for nothing any more: others are asked, or the scan has failed.
    fn fail(&mut self, node: NodeId, reason: Trouble) {
        let replica = self.replicas.get_mut(&node).expect("it was asked");
        replica.standing = Standing::Failed;
        self.ask_enough(reason);
        self.evaluate();
    }

    /// Answers if every partition has enough replicas that agree; otherwise sends them what they lack.
    fn evaluate(&mut self) {
        if self.answered || self.least(Replica::counts) < self.plan.needed {
            return;
        }
        let merged = self.merge();
        self.repair(&merged);
        if self.least(|replica| replica.standing == Standing::Answered) >= self.plan.needed {
            let cursor = match merged.bound {
                Some((partition, key)) => Some((partition, Some(key))),
                None => {
                    Some((self.last() + 1, None)).filter(|(next, _)| *next < self.plan.partitions)
                }
            };
            let rows = merged.newest.into_iter();
            let rows = rows.filter(|event| event.action == Action::Put).collect();
            self.answer(Ok(ReadValue::Page { rows, cursor }));
        }
    }

    /// The newest event of each key, as far as all that answered have looked, and as far as a page goes.
    fn merge(&self) -> Merged {
        let counting = || self.replicas.values().filter(|replica| replica.counts());
        let mut bound = counting().filter_map(|replica| replica.covered.clone()).min();
        let mut rest: Vec<&[Event]> = counting().map(|replica| &replica.events[..]).collect();
        let mut newest: Vec<Event> = Vec::new();
        let (mut rows, mut bytes) = (0, 0);
        while let Some(next) = rest.iter().filter_map(|events| events.first()).map(place).min()
            && bound.as_ref().is_none_or(|bound| next <= (bound.0, &bound.1))
        {
            let mut found: Option<&Event> = None;
            for events in &mut rest {
                if let Some((event, behind)) = events.split_first()
                    && place(event) == next
                {
                    found = found.filter(|found| found.stamp >= event.stamp).or(Some(event));
                    *events = behind;
                }
            }
            let found = found.expect("one of them is there");
            rows += u32::from(found.action == Action::Put);
            bytes += found.key.len() + found.payload.len();
            newest.push(found.clone());
            if rows >= self.plan.limit || bytes >= PAGE_BYTES_MAX {
                bound = Some((found.partition, found.key.clone()));
                break;
            }
        }
        Merged { newest, bound }
    }

    /// Sends to each home that answered what it lacks, and takes it for applied: if it is not, the node fails.
    fn repair(&mut self, merged: &Merged) {
        let answered: Vec<NodeId> = self
            .replicas
            .iter()
            .filter(|(_, replica)| replica.standing == Standing::Answered)
            .map(|(&node, _)| node)
            .collect();
        for node in answered {
            let held = &self.replicas[&node].events;
            let has = |event: &Event| held.binary_search_by(|it| place(it).cmp(&place(event)));
            let lacks = |event: &&Event| {
                self.is_home(node, event.partition)
                    && has(event).map_or(true, |at| held[at].stamp < event.stamp)
            };
            let lacking: Vec<Event> = merged.newest.iter().filter(lacks).cloned().collect();
            if lacking.is_empty() {
                continue;
            }
            let replica = self.replicas.get_mut(&node).expect("listed above");
            replica.standing = Standing::Repairing;
            for event in &lacking {
                match replica.events.binary_search_by(|it| place(it).cmp(&place(event))) {
                    Ok(at) => replica.events[at] = event.clone(),
                    Err(at) => replica.events.insert(at, event.clone()),
                }
            }
            let ask = self.asks.open(node);
            self.outputs.push_back(ReadOutput::Repair { ask, to: node, events: lacking });
        }
    }

    fn answer(&mut self, result: Result<ReadValue, ReadFailure>) {
        assert!(!self.answered);
        self.answered = true;
        self.outputs.push_back(ReadOutput::Answer(result));
    }

    fn invariants(&self) {
        for (&node, replica) in self.replicas.iter() {
            let expected = match replica.standing {
                Standing::Asked | Standing::Slow | Standing::Repairing => 1,
                Standing::Answered | Standing::Failed => 0,
            };
            assert!(self.answered || self.asks.count(node) == expected, "{node}: {replica:?}");
        }
        assert!(self.answered || !self.asks.is_empty(), "somebody is being waited for");
    }
}

#[cfg(test)]
mod tests;
