//! [`Facts`]: a history with indexes, and the exemptions that checkers share.
//!
//! Invariants:
//!
//! - All attempts of one request are one write: it begins with the first of them.
//! - An event that is missing is excused by name alone: a [`Loss`] within the contract, retention of its keyspace
//!   ([`Facts::may_be_dropped`]), or a delete below a proved floor ([`Facts::may_be_hidden`]).
//! - Losses of before a moment at which all home replicas held the same ([`Equal`](crate::history::Equal)) are not added to losses of after.
//!
//! It judges nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use bytes::Bytes;
use starling_client::wire::Durability;
use starling_clock::{NodeId, Stamp};
use starling_ring::Partitions;
use starling_storage::{Action, Event, KeyspaceId, RequestId};

use super::losses::{Loss, Losses};
use crate::history::{Ask, History, IncidentKind, KeyspaceFacts, Operation, Reply, Seen};

/// What clocks add to the age of a version, in microseconds, beside how far wall clocks are off: the skew bound and rounding.
const AGE_MARGIN_US: u64 = 1_000_000;

/// What stands for the key in the line of an operation that has none.
static NO_KEY: Bytes = Bytes::new();

/// A key of a keyspace.
pub(crate) type KeyOf<'a> = (&'a str, &'a Bytes);

/// Who holds the events of a key, by stamp.
pub(crate) type Holders<'a> = BTreeMap<Stamp, Vec<(NodeId, &'a Event)>>;

/// All attempts of one request.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    /// Indexes of its operations, in order.
    pub(crate) attempts: Vec<usize>,
    /// When the first began.
    pub(crate) from_us: u64,
    /// Keyspace's name.
    pub(crate) keyspace: &'a str,
    /// Its key.
    pub(crate) key: &'a Bytes,
    /// Put or delete.
    pub(crate) action: Action,
    /// What it wrote.
    pub(crate) payload: &'a Bytes,
}

/// A write that was answered as taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Acked<'a> {
    /// Which operation.
    pub(crate) index: usize,
    /// When the request's first attempt began.
    pub(crate) begin_us: u64,
    /// When this attempt was answered.
    pub(crate) to_us: u64,
    /// The event's stamp.
    pub(crate) stamp: Stamp,
    /// A newer event was known.
    pub(crate) superseded: bool,
    /// Home replicas that have it, by its level; 0 for ANY.
    pub(crate) required: u8,
    /// By the answer.
    pub(crate) acks: u8,
    /// Put or delete.
    pub(crate) action: Action,
    /// Its durability was `interval`.
    pub(crate) interval: bool,
    /// Partition of the key.
    pub(crate) partition: u32,
    /// Of the attempt that was answered.
    pub(crate) coordinator: NodeId,
    /// Keyspace's settings.
    pub(crate) keyspace: &'a KeyspaceFacts,
    /// Who made it.
    pub(crate) request: RequestId,
}

impl Acked<'_> {
    /// What may have taken it from home replicas by then.
    pub(crate) fn loss(&self, until_us: u64) -> Loss {
        Loss {
            stamp: self.stamp,
            from_us: self.begin_us,
            acked_us: self.to_us,
            until_us,
            required: self.required,
            interval: self.interval,
        }
    }
}

/// What one read says of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// The newest event, by its stamp.
    Newest(Stamp, Action),
    /// There is no event of the key.
    Nothing,
    /// A scan did not show it: its newest event is a delete, or there is none.
    NotLive,
}

/// One read of one key, or the part of a scan that is about the key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadOf {
    /// Which operation.
    pub(crate) index: usize,
    /// When it began.
    pub(crate) from_us: u64,
    /// When it was answered.
    pub(crate) to_us: u64,
    /// Replicas that had to answer.
    pub(crate) required: u8,
    /// Only events up to here were asked for.
    pub(crate) at: Option<Stamp>,
    /// The answer.
    pub(crate) told: Told,
}

/// Everything about one key.
#[derive(Debug, Default)]
pub(crate) struct OfKey<'a> {
    /// Writes answered as taken, by the time of the answer.
    pub(crate) acked: Vec<Acked<'a>>,
    /// Reads that were answered, by the time they began.
    pub(crate) reads: Vec<ReadOf>,
    /// Indexes of all its deletes.
    pub(crate) deletes: Vec<usize>,
    /// All its writes, by the time at which they began.
    pub(crate) writes: Vec<RequestId>,
    /// Some of them asked for durability `interval`.
    pub(crate) interval: bool,
    /// Its partition, once some scan was looked at.
    partition: Option<u32>,
}

/// A history with indexes.
#[derive(Debug)]
pub struct Facts<'a> {
    pub(crate) history: &'a History,
    pub(crate) requests: BTreeMap<RequestId, Request<'a>>,
    pub(crate) keys: BTreeMap<KeyOf<'a>, OfKey<'a>>,
    /// Who holds which event at the end: by keyspace and key, then by stamp.
    pub(crate) held: BTreeMap<(KeyspaceId, &'a Bytes), Holders<'a>>,
    names: BTreeMap<KeyspaceId, &'a str>,
    /// The stamps under which each request's events were ever seen: in answers, in tables, in change logs.
    sightings: BTreeMap<RequestId, BTreeSet<Stamp>>,
    pub(super) losses: Losses,
    /// How far wall clocks were ever off, in microseconds.
    skew_us_max: u64,
}

impl<'a> Facts<'a> {
    /// Indexes a history.
    pub fn new(history: &'a History) -> Self {
        let mut facts = Self {
            history,
            requests: BTreeMap::new(),
            keys: BTreeMap::new(),
            held: BTreeMap::new(),
            names: BTreeMap::new(),
            sightings: BTreeMap::new(),
            losses: Losses::new(history),
            skew_us_max: 0,
        };
        for (name, keyspace) in &history.keyspaces {
            facts.names.insert(keyspace.id, name);
        }
        for (index, operation) in history.operations.iter().enumerate() {
            facts.take_request(index, operation);
        }
        for (index, operation) in history.operations.iter().enumerate() {
            facts.take_operation(index, operation);
        }
        facts.take_scans();
        for of_key in facts.keys.values_mut() {
            of_key.acked.sort_by_key(|acked| acked.to_us);
            of_key.reads.sort_by_key(|read| read.from_us);
        }
        for (&node, replica) in &history.replicas {
            for event in &replica.events {
                let of_key = facts.held.entry((event.keyspace, &event.key)).or_default();
                of_key.entry(event.stamp).or_default().push((node, event));
            }
        }
        facts.take_sightings();
        facts.skew_us_max = skew_us_max(history);
        facts
    }

    fn take_sightings(&mut self) {
        let mut sight = |request, stamp| {
            self.sightings.entry(request).or_default().insert(stamp);
        };
        for operation in &self.history.operations {
            match &operation.reply {
                Reply::Written { stamp, .. } => sight(operation.request, *stamp),
                Reply::Value(Some(seen)) => sight(seen.request, seen.stamp),
                Reply::Versions { versions, .. } => {
                    for seen in versions {
                        sight(seen.request, seen.stamp);
                    }
                }
                Reply::Rows { rows, .. } => {
                    for (_, seen) in rows {
                        sight(seen.request, seen.stamp);
                    }
                }
                Reply::None | Reply::Value(None) | Reply::Created { .. } | Reply::Error { .. } => {}
            }
        }
        for replica in self.history.replicas.values() {
            let logged = replica.changes.iter().map(|change| &change.event);
            for event in replica.events.iter().chain(logged) {
                sight(event.request, event.stamp);
            }
        }
    }

    fn take_request(&mut self, index: usize, operation: &'a Operation) {
        let Ask::Write { key, action, payload, .. } = &operation.ask else { return };
        let (keyspace, action) = (operation.keyspace.as_str(), *action);
        let (attempts, from_us) = (Vec::new(), operation.from_us);
        let new = Request { attempts, from_us, keyspace, key, action, payload };
        let request = self.requests.entry(operation.request).or_insert(new);
        request.attempts.push(index);
        request.from_us = request.from_us.min(operation.from_us);
    }

    fn take_operation(&mut self, index: usize, operation: &'a Operation) {
        let Some(keyspace) = self.history.keyspaces.get(&operation.keyspace) else { return };
        let Some(key) = operation.key() else { return };
        let of_key = self.keys.entry((operation.keyspace.as_str(), key)).or_default();
        if let Ask::Write { action, durability, .. } = operation.ask {
            of_key.interval |= durability.unwrap_or(keyspace.durability) == Durability::Interval;
            if action == Action::Delete {
                of_key.deletes.push(index);
            }
            if operation.attempt == 0 {
                of_key.writes.push(operation.request);
            }
        }
        let Some(to_us) = operation.to_us else { return };
        let required = operation.required(keyspace);
        match (&operation.ask, &operation.reply) {
            (
                Ask::Write { partition, action, durability, .. },
                Reply::Written { stamp, superseded, acks },
            ) => {
                let durability = durability.unwrap_or(keyspace.durability);
                let request = operation.request;
                of_key.acked.push(Acked {
                    index,
                    begin_us: self.requests.get(&request).map_or(0, |known| known.from_us),
                    to_us,
                    stamp: *stamp,
                    superseded: *superseded,
                    required,
                    acks: *acks,
                    action: *action,
                    interval: durability == Durability::Interval,
                    partition: *partition,
                    coordinator: operation.coordinator,
                    keyspace,
                    request,
                });
            }
            (Ask::Get { at, .. }, Reply::Value(value)) => {
                let (from_us, at) = (operation.from_us, *at);
                let told = value.as_ref().map_or(Told::Nothing, told);
                of_key.reads.push(ReadOf { index, from_us, to_us, required, at, told });
            }
            (Ask::Versions { .. }, Reply::Versions { versions, more: false }) => {
                let newest = versions.iter().max_by_key(|seen| seen.stamp);
                let (from_us, told) = (operation.from_us, newest.map_or(Told::Nothing, told));
                of_key.reads.push(ReadOf { index, from_us, to_us, required, at: None, told });
            }
            _ => {}
        }
    }

    /// A page of a scan says something of every key with its prefix, from where the page before ended to where it ends.
    fn take_scans(&mut self) {
        let partitions = Partitions::new(self.history.partitions).unwrap_or_default();
        for (index, operation) in self.history.operations.iter().enumerate() {
            let Ask::Scan { prefix, after, .. } = &operation.ask else { continue };
            let (Reply::Rows { rows, end }, Some(to_us)) = (&operation.reply, operation.to_us)
            else {
                continue;
            };
            let Some(keyspace) = self.history.keyspaces.get(&operation.keyspace) else { continue };
            let required = operation.required(keyspace);
            let shown: BTreeMap<&Bytes, &Seen> =
                rows.iter().map(|(key, seen)| (key, seen)).collect();
            let name = operation.keyspace.as_str();
            let with_prefix = self.keys.range_mut((name, prefix)..);
            for ((_, key), of_key) in
                with_prefix.take_while(|((of, key), _)| *of == name && key.starts_with(prefix))
            {
                let partition =
                    *of_key.partition.get_or_insert_with(|| partitions.partition_of(key).0);
                let place = (partition, Some(*key));
                let told = match shown.get(key) {
                    Some(seen) => told(seen),
                    // Between the two ends of the page.
                    None if after.as_ref().is_some_and(|after| place <= after.as_tuple()) => {
                        continue;
                    }
                    None if end.as_ref().is_some_and(|end| end.as_tuple() < place) => continue,
                    None => Told::NotLive,
                };
                let from_us = operation.from_us;
                of_key.reads.push(ReadOf { index, from_us, to_us, required, at: None, told });
            }
        }
    }

    /// The stamps under which a request was ever seen.
    pub(crate) fn sightings(&self, request: RequestId) -> impl Iterator<Item = Stamp> {
        self.sightings.get(&request).into_iter().flatten().copied()
    }

    /// Retention may have dropped this version of a key by then (G11: "within the keyspace's history retention"): as many newer
    /// events as it keeps may be there, or one that is old enough by the wall clock of some node.
    pub(crate) fn may_be_dropped(&self, key: KeyOf<'_>, stamp: Stamp, until_us: u64) -> bool {
        let Some(keyspace) = self.history.keyspaces.get(key.0) else { return true };
        if keyspace.keeps_all() {
            return false;
        }
        let Some(of_key) = self.keys.get(&key) else { return false };
        let newer = of_key.writes.iter().filter_map(|id| self.requests.get(id).zip(Some(*id)));
        let newer = newer.filter(|(request, id)| {
            let mut sightings = self.sightings(*id).peekable();
            request.from_us <= until_us
                && (sightings.peek().is_none() || sightings.any(|sighting| stamp < sighting))
        });
        let age_us = keyspace.retention.age_ms_max.map(|ms| ms.saturating_mul(1000));
        let clocks_us = 2 * self.skew_us_max + AGE_MARGIN_US;
        let (mut events, mut is_old) = (0, false);
        for (request, _) in newer {
            // A request whose coordinator stamps it anew leaves more than one event.
            events += 2 * request.attempts.len();
            let passed_us = (until_us - request.from_us).saturating_add(clocks_us);
            is_old |= age_us.is_some_and(|age_us| age_us < passed_us);
        }
        let most =
            keyspace.retention.versions_max.map(|it| usize::try_from(it).unwrap_or(usize::MAX));
        is_old || most.is_some_and(|most| most <= events)
    }

    /// Tombstones of the partition with this stamp may have gone by then, by a proof (G10).
    pub(crate) fn may_be_gone(&self, partition: u32, stamp: Stamp, until_us: u64) -> bool {
        self.history.floors.iter().any(|floor| {
            floor.partition == partition && floor.at_us <= until_us && stamp < floor.below
        })
    }

    /// A delete at or above this stamp may have gone by then, with what it hides (G10): one that was seen below a floor, or one that
    /// nobody can say the stamp of, in a partition that has a floor.
    pub(crate) fn may_be_hidden(
        &self,
        key: KeyOf<'_>,
        partition: u32,
        stamp: Stamp,
        until_us: u64,
    ) -> bool {
        let Some(of_key) = self.keys.get(&key) else { return false };
        of_key.deletes.iter().any(|&index| {
            let delete = &self.history.operations[index];
            let mut sightings = self.sightings(delete.request).peekable();
            delete.from_us <= until_us
                && delete.may_have_happened()
                && match sightings.peek() {
                    None => self.may_be_gone(partition, stamp, until_us),
                    Some(_) => {
                        sightings.any(|it| stamp <= it && self.may_be_gone(partition, it, until_us))
                    }
                }
        })
    }

    /// The name of a keyspace.
    pub(crate) fn name(&self, keyspace: KeyspaceId) -> &'a str {
        self.names.get(&keyspace).copied().unwrap_or("?")
    }

    /// A node's disk was damaged or lost.
    pub(crate) fn is_damaged(&self, node: NodeId) -> bool {
        self.history.incidents_of(node).any(|incident| {
            matches!(incident.what, IncidentKind::Damaged { .. } | IncidentKind::Wiped)
        })
    }

    /// An operation in one line.
    pub(crate) fn line(&self, index: usize) -> String {
        let operation = &self.history.operations[index];
        let mut line = format!("op {index}: client {}", operation.client);
        let (verb, key) = match &operation.ask {
            Ask::Write { key, action: Action::Put, .. } => ("puts", key),
            Ask::Write { key, action: Action::Delete, .. } => ("deletes", key),
            Ask::Get { key, .. } => ("gets", key),
            Ask::Versions { key, .. } => ("reads the versions of", key),
            Ask::Scan { prefix, .. } => ("scans", prefix),
            Ask::Create { .. } => ("makes", &NO_KEY),
        };
        let _ = write!(line, " {verb} {}/{}", operation.keyspace, key.escape_ascii());
        if operation.attempt > 0 {
            let _ = write!(line, " (attempt {})", operation.attempt);
        }
        if let Some(keyspace) = self.history.keyspaces.get(&operation.keyspace) {
            let (required, n) = (operation.required(keyspace), keyspace.replication);
            let _ = write!(line, " at {required} of {n}");
        }
        let _ = write!(line, " through node {}", operation.coordinator);
        let _ = write!(line, " from {}", seconds(operation.from_us));
        match operation.to_us {
            Some(to_us) => _ = write!(line, " to {}", seconds(to_us)),
            None => line.push_str(", never answered"),
        }
        let _ = match &operation.reply {
            Reply::None => Ok(()),
            Reply::Written { stamp, superseded, acks } => {
                let note = if *superseded { ", superseded" } else { "" };
                write!(line, ": written as {stamp} with {acks} acks{note}")
            }
            Reply::Value(None) => write!(line, ": nothing"),
            Reply::Value(Some(seen)) => write!(line, ": {}", version(seen)),
            Reply::Versions { versions, more } => write!(line, ": {} versions", versions.len())
                .and_then(|()| if *more { write!(line, " and more") } else { Ok(()) }),
            Reply::Rows { rows, end } => {
                let note = if end.is_some() { " and more" } else { "" };
                write!(line, ": {} rows{note}", rows.len())
            }
            Reply::Created { nodes } => write!(line, ": made, {nodes} nodes have it"),
            Reply::Error { code, .. } => write!(line, ": error {code:?}"),
        };
        line
    }

    /// Who holds an event at the end, in one line.
    pub(crate) fn holders(&self, keyspace: KeyspaceId, key: &Bytes, stamp: Stamp) -> String {
        let holders = self.held.get(&(keyspace, key)).and_then(|of_key| of_key.get(&stamp));
        let nodes: Vec<String> = holders
            .map(|holders| holders.iter().map(|(node, _)| node.to_string()).collect())
            .unwrap_or_default();
        format!(
            "{stamp} of {} is held at the end by nodes [{}]",
            key.escape_ascii(),
            nodes.join(", ")
        )
    }

    /// What happened to these nodes, a line each, in order of time.
    pub(crate) fn incidents(&self, nodes: &[NodeId], until_us: u64) -> Vec<String> {
        let of_nodes = self.history.incidents.iter().filter(|incident| {
            nodes.contains(&incident.node)
                && incident.at_us <= until_us
                && !matches!(incident.what, IncidentKind::Clock { .. })
        });
        let lines: Vec<String> = of_nodes
            .map(|incident| {
                format!(
                    "at {} node {}: {:?}",
                    seconds(incident.at_us),
                    incident.node,
                    incident.what
                )
            })
            .collect();
        // The last ones matter most.
        lines[lines.len().saturating_sub(8)..].to_vec()
    }
}

/// How far wall clocks were ever off, in microseconds.
fn skew_us_max(history: &History) -> u64 {
    let skews = history.incidents.iter().filter_map(|incident| match incident.what {
        IncidentKind::Clock { skew_ms } => Some(skew_ms.unsigned_abs().saturating_mul(1000)),
        _ => None,
    });
    skews.max().unwrap_or(0)
}

fn told(seen: &Seen) -> Told {
    Told::Newest(seen.stamp, seen.action)
}

/// A version in a few words.
pub(crate) fn version(seen: &Seen) -> String {
    match seen.action {
        Action::Put => format!("{} {:?}", seen.stamp, seen.payload),
        Action::Delete => format!("{} (deleted)", seen.stamp),
    }
}

/// Microseconds as seconds.
pub(crate) fn seconds(us: u64) -> String {
    format!("{}.{:06} s", us / 1_000_000, us % 1_000_000)
}
