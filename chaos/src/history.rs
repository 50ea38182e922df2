//! [`History`]: everything that clients asked and were answered, everything that went wrong, and what every replica held at the end.
//!
//! Invariants:
//!
//! - All times are microseconds of the one true clock of whoever recorded (`at_us`, `from_us`, `to_us`): no node's clock is in them.
//!   Only [`IncidentKind::Clock`] speaks of a node's wall clock.
//! - Operations are in the order in which they began; their index is their name. Payloads of puts are unique over a history, so
//!   that what a read returned tells which write it saw.
//! - A node is told by its id; events and changes are as storage gave them, never interpreted.
//!
//! It judges nothing: checkers are pure functions of it, so that the simulator and the real processes are judged by the same ones.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use starling_client::wire::{Durability, ErrorCode, ErrorKind, KeyspaceSettings, Level};
use starling_clock::{NodeId, Stamp};
use starling_storage::{Action, Change, Event, HistoryRetention, KeyspaceId, RequestId};

/// One run, from the start of the cluster until it has healed.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The members of the ring, ascending.
    pub nodes: Vec<NodeId>,
    /// How many partitions the ring has.
    pub partitions: u32,
    /// Keyspaces by name, those too that clients make only during the run.
    pub keyspaces: BTreeMap<String, KeyspaceFacts>,
    /// What clients asked, in the order in which they began.
    pub operations: Vec<Operation>,
    /// What went wrong, in order of time.
    pub incidents: Vec<Incident>,
    /// When all home replicas were found to hold the same, while clients and faults went on, in order of time.
    pub equal: Vec<Equal>,
    /// Proofs that let tombstones go, in order of time.
    pub floors: Vec<Floor>,
    /// What consumers of local change logs were sent, in order of time.
    pub tails: Vec<TailItem>,
    /// Sizes of queues, sampled while it ran.
    pub samples: Vec<Sample>,
    /// When faults stopped and everything began to heal; clients had stopped before.
    pub healing_from_us: u64,
    /// When all replicas held the same; `None`: they did not within the time that was allowed.
    pub healed_at_us: Option<u64>,
    /// When it ended.
    pub ended_us: u64,
    /// What each replica held at the end. A node that could not be started is not in it.
    pub replicas: BTreeMap<NodeId, Replica>,
}

/// A keyspace as the workload used it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyspaceFacts {
    /// Its id in events.
    pub id: KeyspaceId,
    /// N.
    pub replication: u8,
    /// Level of writes that name none.
    pub write_level: Level,
    /// Level of reads that name none.
    pub read_level: Level,
    /// Durability of writes that name none.
    pub durability: Durability,
    /// How much history of a key it keeps.
    pub retention: HistoryRetention,
    /// Home replicas of each partition, by its number.
    pub homes: Vec<Vec<NodeId>>,
}

impl KeyspaceFacts {
    /// No event but tombstones and what they hide ever goes.
    pub fn keeps_all(&self) -> bool {
        self.retention == HistoryRetention::default()
    }
}

/// A moment at which all home replicas of all partitions held the same events up to a stamp: what was acked before and is stamped
/// no later was with all of them, so that losses of before need not be added to losses of after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Equal {
    /// When.
    pub at_us: u64,
    /// Events up to this were compared.
    pub up_to: Stamp,
}

/// The nodes were told, with proof, that every home replica of a partition has every event that there is below a stamp (G10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Floor {
    /// When.
    pub at_us: u64,
    /// Which partition.
    pub partition: u32,
    /// Tombstones below this may go, with what they hide.
    pub below: Stamp,
}

/// One attempt of a client to have something done. A repetition with the same request id is an operation of its own with
/// `attempt` above 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Which client (its session): operations of one client follow one another unless it gave one up.
    pub client: u64,
    /// What it called the request.
    pub request: RequestId,
    /// 0 the first time.
    pub attempt: u8,
    /// Whom it asked.
    pub coordinator: NodeId,
    /// The greatest hybrid time (packed) that the client sent as seen; 0 if it sent none.
    pub observed: u64,
    /// Keyspace's name.
    pub keyspace: String,
    /// What it asked.
    pub ask: Ask,
    /// When it asked.
    pub from_us: u64,
    /// When it had its answer; `None`: it never got one (it vanished, or the node did).
    pub to_us: Option<u64>,
    /// The answer; [`Reply::None`] without one: for a write that is "unknown".
    pub reply: Reply,
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Put or delete.
    Write {
        /// The key.
        key: Bytes,
        /// Its partition.
        partition: u32,
        /// Put or delete.
        action: Action,
        /// Unique for a put.
        payload: Bytes,
        /// `None`: the keyspace's.
        level: Option<Level>,
        /// `None`: the keyspace's.
        durability: Option<Durability>,
    },
    /// The newest version, or the newest at or before a stamp.
    Get {
        /// The key.
        key: Bytes,
        /// Its partition.
        partition: u32,
        /// `None`: now.
        at: Option<Stamp>,
        /// `None`: the keyspace's.
        level: Option<Level>,
    },
    /// All versions in stamp order, oldest first.
    Versions {
        /// The key.
        key: Bytes,
        /// Its partition.
        partition: u32,
        /// Most versions wanted.
        limit: u32,
        /// `None`: the keyspace's.
        level: Option<Level>,
    },
    /// One page of the live keys with a prefix, in the order (partition, key).
    Scan {
        /// Keys that begin so.
        prefix: Bytes,
        /// Where the page before ended; `None`: from the beginning.
        after: Option<Place>,
        /// Most rows wanted.
        limit: u32,
        /// `None`: the keyspace's.
        level: Option<Level>,
    },
    /// A keyspace, of the operation's name.
    Create {
        /// What to make.
        settings: KeyspaceSettings,
    },
}

/// A place in a scan: before all of a partition, or after one of its keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The partition.
    pub partition: u32,
    /// After this key; `None`: at its beginning.
    pub key: Option<Bytes>,
}

impl Place {
    /// To be compared with a place that has no key of its own.
    pub fn as_tuple(&self) -> (u32, Option<&Bytes>) {
        (self.partition, self.key.as_ref())
    }
}

/// What it was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Nothing, or not before the client gave up.
    None,
    /// The write is taken.
    Written {
        /// The event's stamp.
        stamp: Stamp,
        /// A newer event of the key is known.
        superseded: bool,
        /// Home replicas that had it when the answer was made.
        acks: u8,
    },
    /// To a get.
    Value(Option<Seen>),
    /// To `Versions`.
    Versions {
        /// In the order of the answer.
        versions: Vec<Seen>,
        /// There may be more.
        more: bool,
    },
    /// To a scan.
    Rows {
        /// In the order of the answer.
        rows: Vec<(Bytes, Seen)>,
        /// Where the page ends; `None`: that was all.
        end: Option<Place>,
    },
    /// The keyspace exists.
    Created {
        /// Nodes that have it on disk.
        nodes: u32,
    },
    /// An error.
    Error {
        /// Which.
        code: ErrorCode,
        /// What it means for the write.
        kind: ErrorKind,
    },
}

/// A version that a client saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its stamp.
    pub stamp: Stamp,
    /// The request that made it.
    pub request: RequestId,
    /// Put or delete.
    pub action: Action,
    /// Its payload.
    pub payload: Bytes,
}

/// Something that went wrong, or was set right, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incident {
    /// When.
    pub at_us: u64,
    /// Which node.
    pub node: NodeId,
    /// What.
    pub what: IncidentKind,
}

/// Kinds of [`Incident`]: those that a promise depends on. Partitions and slow things change no promise and are in the trace alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IncidentKind {
    /// The node took requests of a new life from here on.
    Started,
    /// The node ended. Everything that it had synced stays.
    Crashed {
        /// The power went: what was not synced may be lost. Otherwise only the process died.
        power: bool,
    },
    /// The node was told to stop, and did: what it had taken is on disk, whatever becomes of the machine.
    Stopped,
    /// The node's wall clock is this far from the true time, in milliseconds. Between two of these it moves in a straight line:
    /// a jump is two of them at one time. Before the first it is right.
    Clock {
        /// Ahead is positive.
        skew_ms: i64,
    },
    /// A sync failed: the node may answer no further write as taken until it was started again.
    SyncFailed,
    /// Bits on the disk were flipped, or a file was lost: the node may refuse to serve, and must not serve what is wrong.
    Damaged {
        /// Which file.
        file: String,
        /// It was the end of the write-ahead log: a damaged end cannot be told from one that was torn and never promised.
        end: bool,
    },
    /// Storage refused to open for damage, or an operator gave the disk up: everything on it is lost for good. Counts as the
    /// permanent loss of the node, which begins again with an empty disk.
    Wiped,
    /// Storage refused to open and the error is not one of damage that was done here: always a bug.
    Unopenable {
        /// What it said.
        error: String,
    },
    /// The node panicked: always a bug.
    Panicked {
        /// What it said.
        message: String,
    },
}

/// What one consumer of one node's change log was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TailItem {
    /// When.
    pub at_us: u64,
    /// Whose change log.
    pub node: NodeId,
    /// Which subscription: sequences within one only grow.
    pub subscription: u64,
    /// What.
    pub what: Tailed,
}

/// Content of a [`TailItem`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tailed {
    /// One change.
    Change {
        /// Place in the node's change log.
        sequence: u64,
        /// Keyspace's name.
        keyspace: String,
        /// The key.
        key: Bytes,
        /// The event's stamp.
        stamp: Stamp,
        /// The event's payload.
        payload: Bytes,
    },
    /// The cursor that a batch ended with: everything before was sent, unless a filter left it out (these consumers have none).
    Next(u64),
    /// Changes from `from` to before `to` are gone.
    Gap {
        /// The cursor.
        from: u64,
        /// The oldest that is still there.
        to: u64,
    },
}

/// Sizes of a node's queues at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// When.
    pub at_us: u64,
    /// Which node.
    pub node: NodeId,
    /// Clients' requests without an answer, by the core's own count.
    pub in_flight: usize,
    /// Machines in flight, repair and the service of peers included.
    pub flights: usize,
    /// Requests that wait for storage.
    pub storage_waiting: usize,
}

/// What a replica held at the end.
#[derive(Clone, Debug, Default)]
pub struct Replica {
    /// All events of its tables, in internal order: partition, keyspace, key, newest first.
    pub events: Vec<Event>,
    /// All that its change log still had.
    pub changes: Vec<Change>,
    /// First sequence of the change log that was kept, and one past the last.
    pub change_range: (u64, u64),
    /// Events or changes could not be read: what is here is not all.
    pub unreadable: Option<String>,
    /// The keyspaces that the node knew, by name.
    pub keyspaces: BTreeSet<String>,
}

impl History {
    /// Home replicas of a partition of a keyspace; empty if the history does not know the keyspace.
    pub fn homes(&self, keyspace: &str, partition: u32) -> &[NodeId] {
        let homes = self.keyspaces.get(keyspace).and_then(|facts| {
            let index = usize::try_from(partition).ok()?;
            facts.homes.get(index)
        });
        homes.map_or(&[], Vec::as_slice)
    }

    /// How many home replicas a level asks for in a keyspace of `replication` replicas; 0 for [`Level::Any`].
    pub fn required(level: Level, replication: u8) -> u8 {
        match level {
            Level::One => 1,
            Level::Two => 2,
            Level::Quorum => replication / 2 + 1,
            Level::All => replication,
            Level::Count(count) => count,
            Level::Any => 0,
        }
    }

    /// Incidents of a node, in order of time.
    pub fn incidents_of(&self, node: NodeId) -> impl Iterator<Item = &Incident> {
        self.incidents.iter().filter(move |incident| incident.node == node)
    }
}

impl Operation {
    /// Home replicas that had to answer.
    pub fn required(&self, facts: &KeyspaceFacts) -> u8 {
        let level = match &self.ask {
            Ask::Write { level, .. } => level.unwrap_or(facts.write_level),
            Ask::Get { level, .. } | Ask::Versions { level, .. } | Ask::Scan { level, .. } => {
                level.unwrap_or(facts.read_level)
            }
            Ask::Create { .. } => Level::Quorum,
        };
        History::required(level, facts.replication)
    }

    /// The key that it is about; a scan and the making of a keyspace are about none.
    pub fn key(&self) -> Option<&Bytes> {
        match &self.ask {
            Ask::Write { key, .. } | Ask::Get { key, .. } | Ask::Versions { key, .. } => Some(key),
            Ask::Scan { .. } | Ask::Create { .. } => None,
        }
    }

    /// It may have had an effect, or may have one yet.
    pub fn may_have_happened(&self) -> bool {
        match &self.reply {
            Reply::None | Reply::Written { .. } | Reply::Created { .. } => true,
            Reply::Error { kind, .. } => *kind == ErrorKind::Unknown,
            Reply::Value(_) | Reply::Versions { .. } | Reply::Rows { .. } => false,
        }
    }
}
