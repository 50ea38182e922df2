//! The change stream of one node: asked for on a stream of its own, which then carries items until it ends.
//!
//! QUIC's flow control of that stream is the back-pressure: a node reads its change log no faster than the
//! consumer takes it.

use crate::codec::{Blob, List, Text, WireStamp};
use crate::wire::{Version, WireError};
use bincode::{BorrowDecode, Encode};

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum ChangesFrom {
    /// At the oldest change that is still there.
    Oldest,
    /// After the newest.
    Now,
    /// At this sequence of this node's change log.
    Sequence(u64),
    /// At the first change whose event is at or after this stamp. Changes are in order of arrival, so later ones
    /// may carry lower stamps.
    Stamp(WireStamp),
}

/// Asks for the local changes of the node.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub struct ChangesRequest {
    /// Only this keyspace; `None`: all.
    pub keyspace: Option<Text>,
    /// Only keys that begin so; empty: all.
    pub prefix: Blob,
    /// Only partitions from the first to the last of these, both included; `None`: all.
    pub partitions: Option<(u32, u32)>,
    /// Where to begin.
    pub from: ChangesFrom,
    /// Stay and send what comes; otherwise end at what is the newest now.
    pub follow: bool,
}

/// How an event came to a replica (GUARANTEES G6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Provenance {
    /// A client's write.
    Write,
    /// A hint that was held while this replica was away.
    Hint,
    /// A read found this replica behind.
    ReadRepair,
    /// Replicas compared what they have.
    AntiEntropy,
    /// The partition moved here.
    Transfer,
    /// Its time to live ended.
    Expiry,
}

/// One event that the node applied.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub struct Change {
    /// Place in this node's change log; grows, never reused. A filter leaves gaps.
    pub sequence: u64,
    /// Keyspace's name; its id in hexadecimal if this node has not learned the name yet.
    pub keyspace: Text,
    /// The key.
    pub key: Blob,
    /// The key's partition.
    pub partition: u32,
    /// The event.
    pub version: Version,
    /// How it came here.
    pub provenance: Provenance,
    /// The stamp of the newest event of the key that this replica had before.
    pub previous: Option<WireStamp>,
}

/// What the stream carries.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum ChangesItem {
    /// Changes in order of sequence; may be empty when a filter dropped all of a stretch.
    Batch {
        /// The changes.
        changes: List<Change>,
        /// Where to go on after these.
        next: u64,
        /// One past the newest change that the node had when it sent this.
        end: u64,
    },
    /// Retention passed the cursor: changes from `from` to before `to` are gone. The stream goes on at `to` (GUARANTEES G8).
    Gap {
        /// The cursor.
        from: u64,
        /// The oldest sequence that is still there.
        to: u64,
    },
    /// Without `follow`: that was all.
    End {
        /// Where to go on another time.
        next: u64,
    },
    /// The stream ends here.
    Error(WireError),
}
