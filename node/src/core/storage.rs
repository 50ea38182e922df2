//! What the core asks of storage, as data. [`Writer`] and [`Reader`] carry it out on the real engine.
//!
//! Invariants:
//!
//! - Writes and reads are two lanes: writes are committed in order, as many as there are in one group commit; a read sees all
//!   writes that were answered before it was asked.
//! - Which lane a request takes is [`StorageRequest::is_write_lane`]. `io` runs each lane on a thread, the simulator both inline.

use bytes::Bytes;
use starling_clock::{NodeId, Stamp};
use starling_storage::{
    Change, Event, HistoryRetention, KeyspaceDigest, KeyspaceId, Mode, Outcome, Provenance,
};

pub use super::executor::{Reader, Writer};

/// One request to storage.
#[derive(Clone, Debug)]
pub enum StorageRequest {
    /// Write lane: apply events. Answer: [`StorageAnswer::Applied`], one outcome an event.
    Apply {
        /// The events.
        events: Vec<Event>,
        /// How they came here.
        provenance: Provenance,
        /// Refuse what is superseded, or not.
        mode: Mode,
        /// Answer only when they are on disk.
        sync: bool,
    },
    /// Write lane: hold an event for a peer that is away. Answer: `Done`.
    Hint {
        /// Whom for.
        targets: Vec<NodeId>,
        /// What.
        event: Event,
        /// Answer only when it is on disk.
        sync: bool,
    },
    /// Write lane: hints up to and with this sequence have been delivered. Answer: `Done`.
    HintsDelivered {
        /// To whom.
        target: NodeId,
        /// Last sequence delivered.
        up_to: u64,
    },
    /// Write lane: keep a small named value (clock bound, gossip register), on disk before the answer. Answer: `Done`.
    Meta {
        /// Its name.
        name: String,
        /// Its value.
        value: Bytes,
    },
    /// Write lane: how much history a keyspace keeps. Answer: `Done`.
    Retention {
        /// Keyspace.
        keyspace: KeyspaceId,
        /// What stays.
        retention: HistoryRetention,
    },
    /// Read lane: the greatest event of a key at or before a stamp. Answer: `Event`. If the payload is longer than `payload_size_max` the
    /// event comes without it and `cut` is set (a digest read).
    Get {
        /// Partition of the key.
        partition: u32,
        /// Keyspace.
        keyspace: KeyspaceId,
        /// Key.
        key: Bytes,
        /// [`Stamp::MAX`]: the newest.
        at: Stamp,
        /// Longest payload wanted.
        payload_size_max: usize,
    },
    /// Read lane: events of a key in stamp order. Answer: `Events`.
    Versions {
        /// Partition of the key.
        partition: u32,
        /// Keyspace.
        keyspace: KeyspaceId,
        /// Key.
        key: Bytes,
        /// First stamp wanted.
        from: Stamp,
        /// Last stamp wanted.
        to: Stamp,
        /// Newest first.
        descending: bool,
        /// Most events.
        limit: usize,
        /// Bytes after which it ends, one event at the least.
        bytes_max: usize,
    },
    /// Read lane: newest event of each key (deletes too) of the partitions `first..=last`, in the order (partition, key). Answer: `Scanned`.
    Scan {
        /// First partition.
        first: u32,
        /// Last partition.
        last: u32,
        /// Keyspace.
        keyspace: KeyspaceId,
        /// Keys that begin so.
        prefix: Bytes,
        /// In the first partition, after this key.
        after: Option<Bytes>,
        /// Most keys.
        limit: usize,
        /// Bytes after which it ends, one key at the least.
        bytes_max: usize,
    },
    /// Read lane: the change log from a sequence on. Answer: `Changes` or `ChangesGap`.
    Changes {
        /// First sequence.
        from: u64,
        /// Most changes.
        limit: usize,
        /// Bytes after which it ends, one change at the least.
        bytes_max: usize,
    },
    /// Read lane: the first sequence whose event is at or after a stamp. Answer: `Sequence`.
    ChangesAt {
        /// The stamp.
        stamp: Stamp,
    },
    /// Write lane, because hints are the writer's own: hints held for a peer. Answer: `Hints`.
    Hints {
        /// Whom for.
        target: NodeId,
        /// After this sequence.
        after: u64,
        /// Bytes after which it ends, one hint at the least.
        bytes_max: usize,
    },
    /// Read lane: digests of the partitions `first..=last`. Answer: `Digests`.
    Digests {
        /// First partition.
        first: u32,
        /// Last partition.
        last: u32,
    },
    /// Read lane: digests of the keyspaces that have events in a partition, of what is not newer than a stamp. Answer:
    /// `KeyspaceDigests`.
    KeyspaceDigests {
        /// Partition.
        partition: u32,
        /// The greatest stamp that counts.
        up_to: Stamp,
    },
    /// Read lane: events of one partition in internal order, for anti-entropy and transfers. Answer: `PartitionEvents`.
    PartitionEvents {
        /// Partition.
        partition: u32,
        /// After this (keyspace, key, stamp).
        after: Option<(KeyspaceId, Bytes, Stamp)>,
        /// Most events.
        limit: usize,
        /// Bytes after which it ends, one event at the least.
        bytes_max: usize,
        /// Without payloads, to compare.
        ids_only: bool,
    },
    /// Write lane, for the same reason: counts and sizes. Answer: `Status`.
    Status,
}

impl StorageRequest {
    /// Which lane: the [`Writer`]'s, in order with the writes, or the [`Reader`]'s. Hints and counts are the writer's own.
    pub fn is_write_lane(&self) -> bool {
        match self {
            Self::Apply { .. }
            | Self::Hint { .. }
            | Self::HintsDelivered { .. }
            | Self::Meta { .. }
            | Self::Retention { .. }
            | Self::Hints { .. }
            | Self::Status => true,
            Self::Get { .. }
            | Self::Versions { .. }
            | Self::Scan { .. }
            | Self::Changes { .. }
            | Self::ChangesAt { .. }
            | Self::Digests { .. }
            | Self::KeyspaceDigests { .. }
            | Self::PartitionEvents { .. } => false,
        }
    }
}

/// What storage answers.
#[derive(Clone, Debug)]
pub enum StorageAnswer {
    /// To `Apply`: one outcome an event.
    Applied(Vec<Outcome>),
    /// Done.
    Done,
    /// To `Get`.
    Event {
        /// What was found.
        event: Option<Event>,
        /// The payload was longer than wanted and is not here.
        cut: bool,
    },
    /// To `Versions`.
    Events {
        /// What was found.
        events: Vec<Event>,
        /// There may be more.
        more: bool,
    },
    /// To `Scan`.
    Scanned {
        /// Newest event of each key.
        events: Vec<Event>,
        /// Everything up to and with this place was looked at; `None`: all that was asked for.
        covered: Option<(u32, Bytes)>,
    },
    /// To `Changes`.
    Changes {
        /// In order of sequence.
        changes: Vec<Change>,
        /// One past the newest that may be read.
        end: u64,
    },
    /// To `Changes`: retention passed the sequence.
    ChangesGap {
        /// Oldest sequence that is still there.
        first: u64,
        /// One past the newest.
        end: u64,
    },
    /// To `ChangesAt`.
    Sequence(u64),
    /// To `Hints`.
    Hints {
        /// Number and event, in order.
        hints: Vec<(u64, Event)>,
        /// These are all up to this number: what is between is damaged and lost. What was asked for, if there are no more.
        up_to: u64,
    },
    /// To `Digests`: (partition, events, hash), those without events left out.
    Digests(Vec<(u32, u64, u64)>),
    /// To `KeyspaceDigests`.
    KeyspaceDigests(Vec<KeyspaceDigest>),
    /// To `PartitionEvents`.
    PartitionEvents {
        /// In internal order.
        events: Vec<Event>,
        /// There may be more.
        more: bool,
    },
    /// To `Status`.
    Status(Box<StorageReport>),
    /// It did not succeed.
    Failed(StorageFailure),
}

/// What `Status` tells.
#[derive(Clone, Debug, Default)]
pub struct StorageReport {
    /// For the wire.
    pub storage: starling_client::wire::StorageStatus,
    /// Hints held: (target, pending, bytes).
    pub hints: Vec<(NodeId, u64, u64)>,
    /// What was found damaged, for the wire.
    pub damage: starling_client::wire::DamageStatus,
}

/// Why storage did not do it, as far as the core cares; io logged the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageFailure {
    /// No room on the disk, or a hint queue is full. Nothing was written.
    Full,
    /// Flushes are too far behind. Nothing was written.
    Busy,
    /// A sync failed; no write is taken until the node has been restarted. This write MAY be on disk.
    Poisoned,
    /// What was asked for is damaged and was not served.
    Damaged,
    /// The request is over a limit of the engine. Nothing was written.
    Invalid,
}
