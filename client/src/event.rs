//! What the client hands out: events of keys, in types without the wire's wrappers.

use bytes::Bytes;
use starling_clock::{NodeId, Stamp};

use crate::wire::{self, Action, Provenance, RequestId};

/// One event of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Its stamp: with the key, its identity.
    pub stamp: Stamp,
    /// The request that made it.
    pub request: RequestId,
    /// Put or delete.
    pub action: Action,
    /// May be empty.
    pub payload: Bytes,
}

impl From<wire::Version> for Version {
    fn from(version: wire::Version) -> Self {
        let wire::Version { stamp, request, action, payload } = version;
        Self { stamp: stamp.0, request, action, payload: payload.0 }
    }
}

/// One live key of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The key.
    pub key: Bytes,
    /// Its newest version, a put.
    pub version: Version,
}

impl From<wire::Row> for Row {
    fn from(row: wire::Row) -> Self {
        Self { key: row.key.0, version: row.version.into() }
    }
}

/// A write that was taken at its level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The event's stamp.
    pub stamp: Stamp,
    /// A newer event of the key exists: this one is history already (GUARANTEES G4).
    pub superseded: bool,
    /// Home replicas that had it when the answer was made.
    pub acks: u8,
    /// The request's id.
    pub request: RequestId,
    /// How often the client sent it.
    pub attempts: u32,
}

/// One event that a node applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Place in the node's change log; grows, never reused. A filter leaves gaps.
    pub sequence: u64,
    /// Keyspace's name; its id in hexadecimal if the node has not learned the name yet.
    pub keyspace: String,
    /// The key.
    pub key: Bytes,
    /// The key's partition.
    pub partition: u32,
    /// The event.
    pub version: Version,
    /// How it came to the node.
    pub provenance: Provenance,
    /// The stamp of the newest event of the key that the node had before.
    pub previous: Option<Stamp>,
}

impl From<wire::Change> for Change {
    fn from(change: wire::Change) -> Self {
        Self {
            sequence: change.sequence,
            keyspace: change.keyspace.0,
            key: change.key.0,
            partition: change.partition,
            version: change.version.into(),
            provenance: change.provenance,
            previous: change.previous.map(|stamp| stamp.0),
        }
    }
}

/// What a subscription gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangesEvent {
    /// Changes in order of the node's sequence; none when a filter dropped all of a stretch.
    Batch {
        /// Whose change log.
        node: NodeId,
        /// The changes.
        changes: Vec<Change>,
        /// Where to go on after these.
        next: u64,
        /// One past the newest change that the node had when it sent this.
        end: u64,
    },
    /// Retention passed the cursor: the node's changes from `from` to before `to` are gone. The subscription goes on
    /// at `to` (GUARANTEES G8).
    Gap {
        /// Whose change log.
        node: NodeId,
        /// The cursor.
        from: u64,
        /// The oldest sequence that is still there.
        to: u64,
    },
    /// Without `follow`: that was all of this node.
    End {
        /// Whose change log.
        node: NodeId,
        /// Where to go on another time.
        next: u64,
    },
    /// The node was lost; the subscription goes on at its sequence when it is back. Of a subscription to all nodes.
    Lost {
        /// Which.
        node: NodeId,
        /// Why, for people.
        problem: String,
    },
}
