//! What goes into storage and what comes out of it, as data: [`Write`], [`Outcome`], [`Change`], [`Status`].
//!
//! Nothing here is on disk as it stands; the files that own a format say how it is laid.

use bytes::Bytes;
use starling_clock::{NodeId, Stamp};

use crate::{Event, KeyspaceId, Provenance};

/// Whose data directory it is. Kept in the directory; another node's is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's name, at most [`CLUSTER_NAME_SIZE_MAX`] bytes.
    pub cluster: String,
    /// The node.
    pub node: NodeId,
}

/// The longest name of a cluster, in bytes.
pub const CLUSTER_NAME_SIZE_MAX: usize = 255;
/// The longest name of a [`Write::Meta`], in bytes.
pub const META_NAME_SIZE_MAX: usize = 255;
/// The longest value of a [`Write::Meta`], in bytes.
pub const META_VALUE_SIZE_MAX: usize = 1 << 20;
/// The most names of [`Write::Meta`] that are kept.
pub const META_COUNT_MAX: usize = 4096;

/// One thing to be made durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// This replica takes the event. Answered by `Applied`, `Duplicate`, `Superseded` or `BelowFloor`.
    Apply {
        /// What.
        event: Event,
        /// How it came here.
        provenance: Provenance,
        /// Whether a newer event of the key is a reason to refuse it.
        mode: Mode,
    },
    /// Hold the event for `target`, which did not answer. Answered by `Hinted`.
    Hint {
        /// For whom.
        target: NodeId,
        /// What.
        event: Event,
    },
    /// `target` has the hints up to this sequence and with it. Answered by `Done`.
    HintsDone {
        /// Who has them.
        target: NodeId,
        /// The last one it has.
        up_to: u64,
    },
    /// Keep a small named value (clock bound, cursor, register). Always synced. Answered by `Done`.
    Meta {
        /// At most [`META_NAME_SIZE_MAX`] bytes.
        name: String,
        /// At most [`META_VALUE_SIZE_MAX`] bytes.
        value: Bytes,
    },
}

/// What to do with an event whose key has a newer one here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Refuse it as `Superseded`: its coordinator moves its clock past the newer one and stamps anew.
    Direct,
    /// Take it: it is a copy of what another replica has.
    Copy,
}

/// When a commit must be on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// Before the answer.
    Now,
    /// By the next commit with `Now` or call of `sync`. Readable at once, published once it is on disk.
    Later,
}

/// What became of one [`Write`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The event is in the log.
    Applied {
        /// Its number in the change log.
        sequence: u64,
        /// It is the newest of its key.
        newest: bool,
        /// What was the newest of its key before.
        previous: Option<Stamp>,
    },
    /// The event was here already. Nothing was written.
    Duplicate,
    /// The key has a newer event. Nothing was written; the event may have been here already, as a copy.
    Superseded {
        /// The newer event's stamp.
        newest: Stamp,
    },
    /// A copy whose stamp is not above the tombstone floor of its partition, and which is not here: what it was has been
    /// settled on all replicas, and a tombstone that hid it may be gone. Nothing was written.
    BelowFloor {
        /// The floor.
        floor: Stamp,
    },
    /// The hint is in the log.
    Hinted {
        /// Its number among the hints of its target.
        sequence: u64,
    },
    /// Done.
    Done,
}

/// What a step of background work did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There is nothing to do before the next commit, or before time passes.
    Idle,
    /// It did something; there may be more.
    Did,
}

/// One event as this replica applied it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Counts this replica's changes, from 1, without a gap, for ever.
    pub sequence: u64,
    /// The event.
    pub event: Event,
    /// How it came here.
    pub provenance: Provenance,
    /// What was the newest event of the key here before it.
    pub previous: Option<Stamp>,
}

/// A summary of a set of events: equal sets have equal digests, different ones different digests but for chance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    /// How many.
    pub events: u64,
    /// Exclusive or of [`crate::EventId::hash`] of each.
    pub hash: u64,
}

impl Digest {
    /// Takes in one more event.
    pub fn add(&mut self, hash: u64) {
        self.events += 1;
        self.hash ^= hash;
    }

    /// Takes in a set of other events.
    pub fn combine(&mut self, other: Self) {
        self.events += other.events;
        self.hash ^= other.hash;
    }
}

/// A summary of the events of a keyspace in a partition, as of a stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyspaceDigest {
    /// Keyspace.
    pub keyspace: KeyspaceId,
    /// Of the events that are not newer than the stamp.
    pub settled: Digest,
    /// How many are newer.
    pub newer: u64,
}

/// In which order versions or keys are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Oldest version first, least key first.
    Ascending,
    /// Newest version first, greatest key first.
    Descending,
}

/// What [`crate::View::scan_page`] and [`crate::View::scan_each`] are asked: one version of each key of a range.
#[derive(Clone, Copy, Debug)]
pub struct Scan<'a> {
    /// Partition.
    pub partition: u32,
    /// Keyspace.
    pub keyspace: KeyspaceId,
    /// Keys that begin with this.
    pub prefix: &'a [u8],
    /// Only keys that come after this one in the order asked for.
    pub after: Option<&'a [u8]>,
    /// The greatest event at or before this; [`Stamp::MAX`]: the newest.
    pub at: Stamp,
    /// In which order of keys.
    pub order: Order,
    /// Leave out keys whose event is a delete.
    pub live_only: bool,
    /// At most this many events.
    pub limit: usize,
    /// No further event once there are this many bytes of keys and payloads; one at the least.
    pub bytes_max: usize,
    /// No further key once this many events were passed over: what bounds the time of a page where there are many
    /// deletes or many versions.
    pub steps_max: usize,
}

impl<'a> Scan<'a> {
    /// All keys with this prefix in rising order, as of now, deletes too, without a limit.
    pub fn new(partition: u32, keyspace: KeyspaceId, prefix: &'a [u8]) -> Self {
        Self {
            partition,
            keyspace,
            prefix,
            after: None,
            at: Stamp::MAX,
            order: Order::Ascending,
            live_only: false,
            limit: usize::MAX,
            bytes_max: usize::MAX,
            steps_max: usize::MAX,
        }
    }
}

/// What a [`Scan`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanPage {
    /// The events, in the order of their keys.
    pub events: Vec<Event>,
    /// A limit ended the read: there may be more.
    pub more: bool,
    /// The last key that was looked at, if there may be more: where to go on after, whether its event is among the
    /// events or not.
    pub resume: Option<Bytes>,
}

/// Where a [`Scan`] ended whose events were shown one by one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanEnd {
    /// A limit ended the scan, or who looked at the events did: there may be more.
    pub more: bool,
    /// As in [`ScanPage`].
    pub resume: Option<Bytes>,
}

/// About how much there is of a range of keys in tables: what is in memtables only is left out, and what several
/// tables have counts several times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Events.
    pub events: u64,
    /// Deletes among them.
    pub deletes: u64,
    /// Distinct keys.
    pub keys: u64,
    /// Bytes of internal keys and payloads, before compression.
    pub bytes: u64,
}

/// A place among the events of a partition, in internal order: keyspace, key, stamp descending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionCursor {
    /// Keyspace.
    pub keyspace: KeyspaceId,
    /// Key.
    pub key: Bytes,
    /// Stamp.
    pub stamp: Stamp,
}

/// What [`crate::Storage::hints`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HintPage {
    /// Number and event, oldest first.
    pub hints: Vec<(u64, Event)>,
    /// Everything up to this number was looked at; what was asked for if there is nothing more. Who has the hints of the page
    /// has all up to here: [`Write::HintsDone`].
    pub up_to: u64,
    /// How many of them are damaged and were passed over; where is in [`crate::Storage::damage_log`].
    pub lost: u64,
}

/// Counts and sizes, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Bytes of the memtables, and of memory that is kept for the next one.
    pub memtable_bytes: u64,
    /// Sorted tables.
    pub tables: u64,
    /// Bytes in them.
    pub table_bytes: u64,
    /// Segments of the write-ahead log.
    pub wal_segments: u64,
    /// Bytes in them.
    pub wal_bytes: u64,
    /// Number of the next record of the write-ahead log.
    pub wal_next: u64,
    /// Oldest sequence of the change log that is still there.
    pub changes_first: u64,
    /// One past the newest that may be read.
    pub changes_end: u64,
    /// Bytes of change log.
    pub change_bytes: u64,
    /// Hints that are not yet consumed, over all targets.
    pub hints: u64,
    /// Bytes of hints, over all targets.
    pub hint_bytes: u64,
    /// Records of the write-ahead log that are not yet synced.
    pub unsynced_records: u64,
    /// How far background work is behind: 0 not at all, 100 no commit is taken.
    pub pressure: u8,
    /// No write is taken until storage is opened again.
    pub poisoned: bool,
}
