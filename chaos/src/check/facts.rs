//! [`Facts`]: a history with indexes, and the exemptions that checkers share.
//!
//! Invariants:
//!
//! - All attempts of one request are one write: it begins with the first of them.
//! - An exemption is a [`Loss`]: what may have taken an acked event from a home replica within the contract. Nothing else excuses
//!   a missing event.
//!
//! It judges nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use bytes::Bytes;
use starling_client::wire::Durability;
use starling_clock::{NodeId, Stamp};
use starling_storage::{Action, Event, KeyspaceId, RequestId};

use crate::history::{Ask, History, IncidentKind, KeyspaceFacts, Operation, Reply, Seen};

/// G1: with durability `interval` an event is on disk within the node's interval. Nodes of every harness sync at least this often,
/// in microseconds; a disk that is slow by order adds to it.
pub(crate) const INTERVAL_US: u64 = 1_000_000;

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
}

/// The home of an event, at most so long ago that it cannot be blamed for losing it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loss {
    /// The event was with its replicas from here on at the latest.
    pub(crate) from_us: u64,
    /// Acknowledged at this time: `interval` counts from here.
    pub(crate) acked_us: u64,
    /// Nothing after this matters.
    pub(crate) until_us: u64,
    /// Its durability was `interval`.
    pub(crate) interval: bool,
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
        facts
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
        if let Ask::Write { action: Action::Delete, .. } = operation.ask {
            of_key.deletes.push(index);
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

    /// A scan says something of every key with its prefix.
    fn take_scans(&mut self) {
        for (index, operation) in self.history.operations.iter().enumerate() {
            let Ask::Scan { prefix, .. } = &operation.ask else { continue };
            let (Reply::Rows { rows, more }, Some(to_us)) = (&operation.reply, operation.to_us)
            else {
                continue;
            };
            let Some(keyspace) = self.history.keyspaces.get(&operation.keyspace) else { continue };
            let required = operation.required(keyspace);
            let shown: BTreeMap<&Bytes, &Seen> =
                rows.iter().map(|(key, seen)| (key, seen)).collect();
            let name = operation.keyspace.as_str();
            for ((of, key), of_key) in &mut self.keys {
                if *of != name || !key.starts_with(prefix) {
                    continue;
                }
                let told = match shown.get(key) {
                    Some(seen) => told(seen),
                    None if *more => continue,
                    None => Told::NotLive,
                };
                let from_us = operation.from_us;
                of_key.reads.push(ReadOf { index, from_us, to_us, required, at: None, told });
            }
        }
    }

    /// The name of a keyspace.
    pub(crate) fn name(&self, keyspace: KeyspaceId) -> &'a str {
        self.names.get(&keyspace).copied().unwrap_or("?")
    }

    /// Home replicas that may have lost an event within the contract.
    ///
    /// - The disk was lost for good (G1: "survives the permanent loss of any W-1 nodes").
    /// - Bits or files of the disk were damaged. G14 promises that the damage is not served, not that the record is still there: a
    ///   damaged end of the log cannot be told from a torn one.
    /// - `interval` and the power went, or a sync failed, before the interval had passed (G1: "on disk within that time").
    pub(crate) fn losses(&self, homes: &[NodeId], loss: &Loss) -> usize {
        homes.iter().filter(|&&home| self.is_lossy(home, loss)).count()
    }

    fn is_lossy(&self, node: NodeId, loss: &Loss) -> bool {
        let Loss { from_us, acked_us, until_us, interval } = *loss;
        self.history.incidents_of(node).any(|incident| {
            let at = incident.at_us;
            match incident.what {
                IncidentKind::Wiped => from_us <= at && at <= until_us,
                IncidentKind::Damaged { .. } => at <= until_us,
                IncidentKind::Crashed { power: true } | IncidentKind::SyncFailed => {
                    interval
                        && from_us.saturating_sub(INTERVAL_US) <= at
                        && at <= acked_us.saturating_add(INTERVAL_US).min(until_us)
                }
                _ => false,
            }
        })
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
            Reply::Rows { rows, more } => {
                let note = if *more { " and more" } else { "" };
                write!(line, ": {} rows{note}", rows.len())
            }
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
