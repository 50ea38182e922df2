//! The cluster and its nodes as they are told to clients.

use crate::codec::{List, Text, WireNode};
use bincode::{BorrowDecode, Encode};

/// What the answering node believes of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Liveness {
    /// Answers.
    Alive,
    /// Has not answered; may refute it.
    Suspect,
    /// Taken for dead. Stays in the ring until it is replaced.
    Dead,
    /// Said goodbye.
    Left,
    /// Never heard of since this node started.
    Unknown,
}

/// A member of the ring.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub struct MemberInfo {
    /// Its id.
    pub node: WireNode,
    /// Where clients and peers reach it: `ip:port`.
    pub address: Text,
    /// Its zone; may be empty.
    pub zone: Text,
    /// Its share of the keys, relative to the others'.
    pub weight: u32,
    /// Whether it is there.
    pub liveness: Liveness,
}

/// All that is needed to place keys as the nodes do.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub struct Topology {
    /// Cluster's name.
    pub cluster: Text,
    /// Who answered.
    pub node: WireNode,
    /// Number of the ring epoch.
    pub epoch: u64,
    /// Digest of the ring epoch; two nodes that disagree about it are set up differently.
    pub epoch_digest: u64,
    /// P.
    pub partitions: u32,
    /// Members, by id.
    pub members: List<MemberInfo>,
}

/// Hints that wait for a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub struct PeerHints {
    /// Who they are for.
    pub target: WireNode,
    /// How many.
    pub pending: u64,
    /// Their size on disk, in bytes.
    pub bytes: u64,
}

/// What the node's disk holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, BorrowDecode)]
pub struct StorageStatus {
    /// Bytes in the memtables.
    pub memtable_bytes: u64,
    /// Number of sorted tables.
    pub tables: u64,
    /// Bytes in them.
    pub table_bytes: u64,
    /// Bytes of write-ahead log.
    pub wal_bytes: u64,
    /// Oldest sequence of the change log that is still there.
    pub changes_first: u64,
    /// One past the newest.
    pub changes_end: u64,
    /// Bytes of change log.
    pub change_bytes: u64,
    /// Storage stopped after a failed sync.
    pub poisoned: bool,
}

/// How damage of the disk was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum FoundBy {
    /// When the node started.
    Start,
    /// By a request.
    Request,
    /// By a flush, a merge or other background work.
    Work,
    /// When the disk was read again.
    Scrub,
}

/// Something on a node's disk that is not as it was written. It is not served.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub struct DamagedPlace {
    /// File name, relative to the node's storage directory.
    pub file: Text,
    /// Where in the file the bad record or block starts; 0 if the file is not there or the place is not known.
    pub offset: u64,
    /// What is wrong.
    pub what: Text,
    /// How it was met first.
    pub found_by: FoundBy,
}

/// Damage of a node's disk that was found since the node started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, BorrowDecode)]
pub struct DamageStatus {
    /// Damaged places; [`DAMAGED_PLACES_MAX`]: so many or more.
    pub places: u64,
    /// The last of them that were found, the latest one first.
    pub latest: List<DamagedPlace>,
    /// How often all of the disk has been read again.
    pub scrub_rounds: u64,
    /// Places that the last whole round found damaged.
    pub scrub_damaged: u64,
}

/// Damaged places that a node tells apart.
pub const DAMAGED_PLACES_MAX: u64 = 1000;

/// How a node is.
#[derive(Clone, Debug, PartialEq, Encode, BorrowDecode)]
pub struct NodeStatus {
    /// Its id.
    pub node: WireNode,
    /// Version of the software.
    pub version: Text,
    /// Cluster's name.
    pub cluster: Text,
    /// Milliseconds since the node started.
    pub uptime_ms: u64,
    /// The node's clock: packed hybrid time.
    pub clock: u64,
    /// Its wall clock: milliseconds since the Unix epoch.
    pub wall_ms: u64,
    /// Members as this node sees them.
    pub members: List<MemberInfo>,
    /// Disk.
    pub storage: StorageStatus,
    /// Hints held for others.
    pub hints: List<PeerHints>,
    /// Writes coordinated since the start.
    pub writes: u64,
    /// Reads coordinated since the start.
    pub reads: u64,
    /// Replicas repaired by reads since the start.
    pub read_repairs: u64,
    /// Hints delivered since the start.
    pub hints_delivered: u64,
    /// Events that anti-entropy brought to others since the start.
    pub anti_entropy_events: u64,
    /// Requests refused for overload since the start.
    pub overloaded: u64,
    /// Requests in flight.
    pub in_flight: u64,
    /// Change subscriptions open.
    pub subscriptions: u64,
    /// What was found damaged on the disk.
    pub damage: DamageStatus,
}
