//! Requests and their answers.

use crate::codec::{Blob, List, Text, WireStamp};
use crate::wire::{NodeStatus, Topology, WireError};
use bincode::{BorrowDecode, Encode};

/// What the client calls a request: unique for ever, and the same on every repetition of it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, BorrowDecode,
)]
pub struct RequestId {
    /// Drawn at random when the client starts.
    pub client: u64,
    /// Counts the client's requests.
    pub sequence: u64,
}

/// What goes with every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub struct Header {
    /// The client's name for the request.
    pub request: RequestId,
    /// 0 the first time; more when the client does not know what became of an earlier attempt. The coordinator then
    /// looks for the event of that attempt before it makes a new one (GUARANTEES G2).
    pub attempt: u8,
    /// How long the client will wait from now on, in milliseconds; the node caps it.
    pub timeout_ms: u32,
    /// The ring epoch the client routed by; 0 if it does not know one.
    pub epoch: u64,
    /// The greatest hybrid time (packed) that this client has seen: the coordinator's clock moves past it, so
    /// that what the client does is ordered after what it saw (GUARANTEES G5).
    pub observed: u64,
}

/// How many distinct home replicas must answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Level {
    /// One home replica.
    One,
    /// Two.
    Two,
    /// More than half.
    Quorum,
    /// All of them.
    All,
    /// As many as this, at least 1 and at most N.
    Count(u8),
    /// Writes only: a hint on the coordinator counts, so the write is taken while every home replica is down.
    Any,
}

/// When a write counts as taken by a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Durability {
    /// It is on disk (`fdatasync`).
    Sync,
    /// It is in the write-ahead log's file, and on disk within the node's interval.
    Interval,
}

/// What an event does to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Action {
    /// Gives it the payload.
    Put,
    /// Removes it; the payload, if there is one, says why.
    Delete,
}

/// A keyspace and what holds for all its keys.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub struct KeyspaceSettings {
    /// Its name.
    pub name: Text,
    /// N, the number of home replicas of a key: 1 to 16.
    pub replication: u8,
    /// Level of writes that name none.
    pub write_level: Level,
    /// Level of reads that name none.
    pub read_level: Level,
    /// Durability of writes that name none.
    pub durability: Durability,
    /// How many versions of a key stay at the least and at the most; `None`: all. The newest always stays.
    pub history_versions_max: Option<u32>,
    /// How long a version stays after a newer one replaced it, in milliseconds; `None`: for ever.
    pub history_age_ms_max: Option<u64>,
}

/// Where a scan goes on.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub struct Cursor {
    /// Partition to go on in.
    pub partition: u32,
    /// After this key; `None`: from the partition's beginning.
    pub after: Option<Blob>,
}

/// What a client may ask on the request stream.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Request {
    /// Write an event of one key.
    Write {
        /// Keyspace's name.
        keyspace: Text,
        /// 1 to [`super::KEY_SIZE_MAX`] bytes.
        key: Blob,
        /// Put or delete.
        action: Action,
        /// May be empty.
        payload: Blob,
        /// `None`: the keyspace's.
        level: Option<Level>,
        /// `None`: the keyspace's.
        durability: Option<Durability>,
    },
    /// Read the newest event of one key, or the newest at or before a stamp.
    Get {
        /// Keyspace's name.
        keyspace: Text,
        /// The key.
        key: Blob,
        /// `None`: now.
        at: Option<WireStamp>,
        /// `None`: the keyspace's.
        level: Option<Level>,
    },
    /// Read the events of one key in stamp order.
    History {
        /// Keyspace's name.
        keyspace: Text,
        /// The key.
        key: Blob,
        /// First stamp wanted.
        from: WireStamp,
        /// Last stamp wanted.
        to: WireStamp,
        /// Newest first.
        descending: bool,
        /// Most versions wanted: 1 to [`super::PAGE_ROWS_MAX`].
        limit: u32,
        /// `None`: the keyspace's.
        level: Option<Level>,
    },
    /// Read the live keys of a keyspace that begin with a prefix, a page at a time, in the order (partition, key).
    Scan {
        /// Keyspace's name.
        keyspace: Text,
        /// Empty: all keys.
        prefix: Blob,
        /// `None`: from the beginning.
        cursor: Option<Cursor>,
        /// Most rows wanted: 1 to [`super::PAGE_ROWS_MAX`].
        limit: u32,
        /// `None`: the keyspace's.
        level: Option<Level>,
    },
    /// Who is in the cluster and how keys are placed.
    Topology,
    /// How this node is.
    Status,
    /// Make a keyspace. The same settings again are fine; other settings are an error.
    KeyspaceCreate {
        /// What to make.
        settings: KeyspaceSettings,
    },
    /// All keyspaces.
    KeyspaceList,
}

/// One event of a key.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub struct Version {
    /// Its stamp.
    pub stamp: WireStamp,
    /// The request that made it.
    pub request: RequestId,
    /// Put or delete.
    pub action: Action,
    /// May be empty.
    pub payload: Blob,
}

/// One live key of a scan.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub struct Row {
    /// The key.
    pub key: Blob,
    /// Its newest version, a put.
    pub version: Version,
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Encode, BorrowDecode)]
pub enum Response {
    /// The write is taken at the level asked for.
    Written {
        /// The event's stamp.
        stamp: WireStamp,
        /// A newer event of the key exists: this one is history already (GUARANTEES G4).
        superseded: bool,
        /// Home replicas that had it when the answer was made.
        acks: u8,
    },
    /// The newest version; `None`: the key never existed. A delete is returned as such, so that its stamp is known.
    Value {
        /// What was found.
        version: Option<Version>,
    },
    /// The versions, in the order asked for.
    History {
        /// What was found.
        versions: List<Version>,
        /// There may be more beyond the last one.
        more: bool,
    },
    /// A page of rows.
    Page {
        /// What was found.
        rows: List<Row>,
        /// Where to go on; `None`: that was all.
        cursor: Option<Cursor>,
    },
    /// The cluster.
    Topology(Topology),
    /// This node.
    Status(Box<NodeStatus>),
    /// The keyspace exists now; `nodes` know it.
    KeyspaceCreated {
        /// How many nodes have it on disk.
        nodes: u32,
    },
    /// All keyspaces, by name.
    Keyspaces(List<KeyspaceSettings>),
    /// It did not succeed.
    Error(WireError),
}
