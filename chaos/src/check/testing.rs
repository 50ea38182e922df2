//! Histories made by hand: three nodes, one keyspace `ks` of three replicas, QUORUM and `sync`.
//!
//! Every write that is answered as taken is with all replicas at the end, unless a test says otherwise.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use starling_client::wire::{Durability, ErrorCode, Level};
use starling_clock::{HybridTime, NodeId, Stamp};
use starling_storage::{
    Action, Change, Event, HistoryRetention, KeyspaceId, Provenance, RequestId,
};

use crate::history::{
    Ask, History, Incident, IncidentKind, KeyspaceFacts, Operation, Replica, Reply, Seen, TailItem,
    Tailed,
};

use super::{Facts, Guarantee, Violation};

pub(crate) const KEYSPACE: &str = "ks";

/// Puts a history together. Times are microseconds, stamps milliseconds at the coordinator, which is also the client's number.
#[derive(Debug)]
pub(crate) struct Builder {
    pub(crate) history: History,
    sequence: u64,
}

pub(crate) fn stamp(ms: u64, node: u64) -> Stamp {
    Stamp::new(HybridTime::new(ms, 0), NodeId(node))
}

impl Builder {
    pub(crate) fn new() -> Self {
        let nodes = vec![NodeId(1), NodeId(2), NodeId(3)];
        let keyspace = KeyspaceFacts {
            id: KeyspaceId::of(KEYSPACE),
            replication: 3,
            write_level: Level::Quorum,
            read_level: Level::Quorum,
            durability: Durability::Sync,
            retention: HistoryRetention::default(),
            homes: vec![nodes.clone()],
        };
        let history = History {
            replicas: nodes.iter().map(|&node| (node, Replica::default())).collect(),
            nodes,
            partitions: 1,
            keyspaces: BTreeMap::from([(KEYSPACE.to_owned(), keyspace)]),
            healing_from_us: 1_000_000_000,
            healed_at_us: Some(1_000_000_001),
            ended_us: 1_000_000_002,
            ..History::default()
        };
        Self { history, sequence: 0 }
    }

    /// Any operation of a client that asks the node of its own number.
    pub(crate) fn operation(
        &mut self,
        client: u64,
        at: Range<u64>,
        ask: Ask,
        reply: Reply,
    ) -> usize {
        self.sequence += 1;
        let to_us = (reply != Reply::None).then_some(at.end);
        self.history.operations.push(Operation {
            client,
            request: RequestId { client, sequence: self.sequence },
            attempt: 0,
            coordinator: NodeId(client),
            observed: 0,
            keyspace: KEYSPACE.to_owned(),
            ask,
            from_us: at.start,
            to_us,
            reply,
        });
        self.history.operations.len() - 1
    }

    fn ask(&self, key: &str, action: Action) -> Ask {
        let payload = match action {
            Action::Put => Bytes::from(format!("v{}", self.sequence + 1)),
            Action::Delete => Bytes::new(),
        };
        let key = Bytes::copy_from_slice(key.as_bytes());
        Ask::Write { key, partition: 0, action, payload, level: None, durability: None }
    }

    fn write(&mut self, action: Action, key: &str, client: u64, at: Range<u64>, ms: u64) -> Seen {
        let ask = self.ask(key, action);
        let stamp = stamp(ms, client);
        let reply = Reply::Written { stamp, superseded: false, acks: 2 };
        let index = self.operation(client, at, ask, reply);
        let event = self.event(index, stamp);
        for node in [1, 2, 3] {
            self.hold(node, &event);
        }
        let Event { stamp, request, action, payload, .. } = event;
        Seen { stamp, request, action, payload }
    }

    /// A put that is answered with a stamp of its coordinator.
    pub(crate) fn put(&mut self, key: &str, client: u64, at: Range<u64>, ms: u64) -> Seen {
        self.write(Action::Put, key, client, at, ms)
    }

    /// A delete that is answered with a stamp of its coordinator.
    pub(crate) fn delete(&mut self, key: &str, client: u64, at: Range<u64>, ms: u64) -> Seen {
        self.write(Action::Delete, key, client, at, ms)
    }

    /// A put without an answer; nobody has it.
    pub(crate) fn lost_put(&mut self, key: &str, client: u64, at: Range<u64>) -> usize {
        let ask = self.ask(key, Action::Put);
        self.operation(client, at, ask, Reply::None)
    }

    /// A put that is refused; nobody has it.
    pub(crate) fn refused_put(
        &mut self,
        key: &str,
        client: u64,
        at: Range<u64>,
        code: ErrorCode,
    ) -> usize {
        let ask = self.ask(key, Action::Put);
        self.operation(client, at, ask, Reply::Error { code, kind: code.kind() })
    }

    /// The event that an operation made.
    pub(crate) fn event(&self, index: usize, stamp: Stamp) -> Event {
        let operation = &self.history.operations[index];
        let Ask::Write { key, partition, action, payload, .. } = &operation.ask else {
            panic!("not a write")
        };
        Event {
            partition: *partition,
            keyspace: KeyspaceId::of(KEYSPACE),
            key: key.clone(),
            stamp,
            request: operation.request,
            action: *action,
            payload: payload.clone(),
        }
    }

    /// The version that an operation made.
    pub(crate) fn seen(&self, index: usize, stamp: Stamp) -> Seen {
        let Event { stamp, request, action, payload, .. } = self.event(index, stamp);
        Seen { stamp, request, action, payload }
    }

    /// A replica has the event, in its tables and its change log.
    pub(crate) fn hold(&mut self, node: u64, event: &Event) {
        let replica = self.replica(node);
        replica.events.push(event.clone());
        let sequence = replica.changes.len() as u64 + 1;
        let (provenance, event) = (Provenance::Write, event.clone());
        replica.changes.push(Change { sequence, event, provenance, previous: None });
        replica.change_range = (1, sequence + 1);
    }

    /// A replica that a test changes.
    pub(crate) fn replica(&mut self, node: u64) -> &mut Replica {
        self.history.replicas.get_mut(&NodeId(node)).unwrap()
    }

    /// Takes an event from a replica's tables and change log.
    pub(crate) fn lose(&mut self, node: u64, stamp: Stamp) {
        let replica = self.replica(node);
        replica.events.retain(|event| event.stamp != stamp);
        replica.changes.retain(|change| change.event.stamp != stamp);
        for (sequence, change) in (1..).zip(&mut replica.changes) {
            change.sequence = sequence;
        }
        replica.change_range = (1, replica.changes.len() as u64 + 1);
    }

    /// A get of the newest version.
    pub(crate) fn get(&mut self, key: &str, client: u64, at: Range<u64>, seen: Option<Seen>) {
        let key = Bytes::copy_from_slice(key.as_bytes());
        let ask = Ask::Get { key, partition: 0, at: None, level: None };
        self.operation(client, at, ask, Reply::Value(seen));
    }

    /// A read of all versions.
    pub(crate) fn versions(&mut self, key: &str, client: u64, at: Range<u64>, versions: Vec<Seen>) {
        let key = Bytes::copy_from_slice(key.as_bytes());
        let ask = Ask::Versions { key, partition: 0, limit: 100, level: None };
        self.operation(client, at, ask, Reply::Versions { versions, more: false });
    }

    /// A scan of everything.
    pub(crate) fn scan(&mut self, client: u64, at: Range<u64>, rows: Vec<(&str, Seen)>) {
        let ask = Ask::Scan { prefix: Bytes::new(), after: None, limit: 100, level: None };
        let row = |(key, seen): (&str, Seen)| (Bytes::copy_from_slice(key.as_bytes()), seen);
        let rows = rows.into_iter().map(row).collect();
        self.operation(client, at, ask, Reply::Rows { rows, end: None });
    }

    /// Something happens to a node.
    pub(crate) fn incident(&mut self, at_us: u64, node: u64, what: IncidentKind) {
        self.history.incidents.push(Incident { at_us, node: NodeId(node), what });
        self.history.incidents.sort_by_key(|incident| incident.at_us);
    }

    /// A consumer of a node's change log is sent something.
    pub(crate) fn tail(&mut self, at_us: u64, node: u64, subscription: u64, what: Tailed) {
        self.history.tails.push(TailItem { at_us, node: NodeId(node), subscription, what });
    }

    /// A consumer is sent what stands at `sequence` of the node's change log.
    pub(crate) fn tail_change(&mut self, at_us: u64, node: u64, subscription: u64, sequence: u64) {
        let at = usize::try_from(sequence).unwrap() - 1;
        let event = self.replica(node).changes[at].event.clone();
        let Event { key, stamp, payload, .. } = event;
        let keyspace = KEYSPACE.to_owned();
        let what = Tailed::Change { sequence, keyspace, key, stamp, payload };
        self.tail(at_us, node, subscription, what);
    }

    pub(crate) fn finish(&self) -> History {
        self.history.clone()
    }

    /// What a checker says of it.
    pub(crate) fn check(&self, checker: super::Checker) -> Vec<Violation> {
        let history = self.finish();
        checker(&Facts::new(&history))
    }

    /// The checker finds nothing.
    pub(crate) fn passes(&self, checker: super::Checker) {
        let found = self.check(checker);
        assert!(found.is_empty(), "{found:#?}");
    }

    /// The checker finds this, and nothing else.
    pub(crate) fn fails(&self, checker: super::Checker, guarantee: Guarantee, what: &str) {
        let found = self.check(checker);
        assert!(!found.is_empty(), "nothing found");
        for violation in found {
            assert_eq!(violation.guarantee, guarantee, "{violation}");
            assert!(violation.what.contains(what), "{violation}");
        }
    }
}
