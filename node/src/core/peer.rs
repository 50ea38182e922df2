//! What nodes say to each other on the peer stream, besides gossip. One-way messages; `op` pairs an answer with its question.
//!
//! Invariants:
//!
//! - Losing, repeating or delaying any message is harmless: applying an event twice is a no-op, and deadlines cover loss.
//! - Events travel in the engine's own encoding (`storage/FORMAT.md`), as opaque bytes here; the receiver decodes and
//!   checks them: the partition must be the key's.

use starling_client::codec::bincode::{BorrowDecode, Encode};
use starling_client::codec::{Blob, List, Text, WireStamp};

/// What the dialling node says first: nodes that would place keys differently do not talk.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
#[bincode(crate = "starling_client::codec::bincode")]
pub struct Hello {
    /// Name of its cluster.
    pub cluster: Text,
    /// Number of its ring epoch.
    pub epoch: u64,
    /// Digest of that epoch.
    pub epoch_digest: u64,
}

/// Why a node is turned away.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stranger {
    /// Its cluster has another name.
    #[error("the node is of cluster {0:?}")]
    OtherCluster(String),
    /// Its ring epoch has the same number and is not the same.
    #[error(
        "the node makes another ring of epoch {0}: give all nodes the same cluster.members (ids, zones, weights) and cluster.partitions"
    )]
    OtherRing(u64),
}

impl Hello {
    /// Whether a node that says `other` is of this one's cluster. Another epoch's number is fine: messages carry theirs.
    ///
    /// # Errors
    /// [`Stranger`] if it is not.
    pub fn check(&self, other: &Self) -> Result<(), Stranger> {
        if self.cluster != other.cluster {
            return Err(Stranger::OtherCluster(other.cluster.0.clone()));
        }
        if self.epoch == other.epoch && self.epoch_digest != other.epoch_digest {
            return Err(Stranger::OtherRing(other.epoch));
        }
        Ok(())
    }
}

/// A message between two nodes.
#[derive(Clone, Debug, PartialEq, Encode, BorrowDecode)]
#[bincode(crate = "starling_client::codec::bincode")]
pub enum PeerMessage {
    /// Apply these events.
    Write {
        /// Pairs the answer.
        op: u64,
        /// The sender's ring epoch.
        epoch: u64,
        /// Refuse what is superseded (a direct write), or apply it whatever is newer (a copy).
        direct: bool,
        /// How they come: the number of `starling_storage::Provenance`.
        provenance: u8,
        /// Answer only when they are on disk.
        sync: bool,
        /// Encoded events.
        events: List<Blob>,
    },
    /// The answer to `Write`.
    Written {
        /// Of the `Write`.
        op: u64,
        /// One an event.
        outcomes: List<WriteOutcome>,
    },
    /// Read from the receiver's own replica.
    Read {
        /// Pairs the answer.
        op: u64,
        /// The sender's ring epoch.
        epoch: u64,
        /// What.
        query: ReadQuery,
    },
    /// The answer to `Read`.
    ReadDone {
        /// Of the `Read`.
        op: u64,
        /// What.
        answer: ReadAnswer,
    },
    /// Take note of this register now, without waiting for gossip.
    Register {
        /// Pairs the answer.
        op: u64,
        /// Name.
        name: Blob,
        /// Stamp.
        stamp: WireStamp,
        /// Value.
        value: Blob,
    },
    /// The register is on the receiver's disk.
    Registered {
        /// Of the `Register`.
        op: u64,
    },
}

/// What became of one event at a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
#[bincode(crate = "starling_client::codec::bincode")]
pub enum WriteOutcome {
    /// It is in the replica's log, at the durability asked for.
    Applied,
    /// It was there already.
    Duplicate,
    /// Refused: the key has this newer stamp. Not applied.
    Superseded(WireStamp),
    /// Refused: the event's stamp is too far ahead of the replica's wall clock. Not applied.
    Skewed,
    /// Refused: not a home replica of the key, or another epoch. Not applied.
    NotHome,
    /// Refused: queues are full. Not applied.
    Overloaded,
    /// Refused: malformed event, or over a limit. Not applied.
    Invalid,
    /// The disk is full. Not applied.
    Full,
    /// A sync failed: it may or may not be on disk there.
    Poisoned,
}

/// What to read.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
#[bincode(crate = "starling_client::codec::bincode")]
pub enum ReadQuery {
    /// See `StorageRequest::Get`.
    Get {
        /// Keyspace id.
        keyspace: u64,
        /// Key.
        key: Blob,
        /// Greatest stamp wanted.
        at: WireStamp,
        /// Longest payload wanted: a longer one is left out.
        payload_size_max: u32,
    },
    /// See `StorageRequest::Versions`.
    Versions {
        /// Keyspace id.
        keyspace: u64,
        /// Key.
        key: Blob,
        /// First stamp wanted.
        from: WireStamp,
        /// Last stamp wanted.
        to: WireStamp,
        /// Newest first.
        descending: bool,
        /// Most events.
        limit: u32,
    },
    /// See `StorageRequest::Scan`.
    Scan {
        /// First partition.
        first: u32,
        /// Last partition.
        last: u32,
        /// Keyspace id.
        keyspace: u64,
        /// Keys that begin so.
        prefix: Blob,
        /// In the first partition, after this key.
        after: Option<Blob>,
        /// Most keys.
        limit: u32,
    },
    /// See `StorageRequest::Digests`.
    Digests {
        /// First partition.
        first: u32,
        /// Last partition.
        last: u32,
    },
    /// See `StorageRequest::PartitionEvents`.
    PartitionEvents {
        /// Partition.
        partition: u32,
        /// After this (keyspace, key, stamp).
        after: Option<(u64, Blob, WireStamp)>,
        /// Most events.
        limit: u32,
        /// Without payloads.
        ids_only: bool,
    },
    /// See `StorageRequest::KeyspaceDigests`.
    KeyspaceDigests {
        /// Partition.
        partition: u32,
        /// The greatest stamp that counts.
        up_to: WireStamp,
    },
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
#[bincode(crate = "starling_client::codec::bincode")]
pub enum ReadAnswer {
    /// To `Get`: the encoded event.
    Event {
        /// What was found.
        event: Option<Blob>,
        /// The payload was left out.
        cut: bool,
    },
    /// To `Versions` and `PartitionEvents`: encoded events.
    Events {
        /// What was found.
        events: List<Blob>,
        /// There may be more.
        more: bool,
    },
    /// To `Scan`.
    Scanned {
        /// Newest event of each key, encoded.
        events: List<Blob>,
        /// Everything up to and with this place was looked at; `None`: all that was asked for.
        covered: Option<(u32, Blob)>,
    },
    /// To `Digests`: (partition, events, hash), those without events left out.
    Digests(List<(u32, u64, u64)>),
    /// Refused: not a home replica, or another epoch.
    NotHome,
    /// Refused: queues are full.
    Overloaded,
    /// What was asked for is damaged there, or storage failed.
    Damaged,
    /// The query is out of bounds.
    Invalid,
    /// To `KeyspaceDigests`: (keyspace, events, hash, newer events), those without events left out.
    KeyspaceDigests(List<(u64, u64, u64, u64)>),
}
