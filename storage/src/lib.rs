//! The storage engine of one node: every byte that Starling keeps.
//!
//! Architecture invariants:
//!
//! - It is a library: no thread of its own, no network, no clock. `now_ms` is an argument, and background
//!   work is done by whoever calls `work`.
//! - Every file goes through [`Disk`], so that a simulator can lose, tear, damage and fill it.
//! - Every file kind is described byte by byte in `FORMAT.md`, under test.

mod change_ids;
mod changes;
mod config;
mod damage;
mod disk;
mod engine;
mod error;
mod event;
#[cfg(test)]
mod format;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod hints;
mod identity;
mod log;
mod lsn;
mod lz4;
pub mod offline;
mod packed;
mod scrub;
mod small_file;
mod state;
mod tree;
mod types;
mod varint;
mod view;
mod wal;

pub use config::{Config, HistoryRetention, MEMTABLE_BYTES_LIMIT, Retentions, TreeConfig};
pub use damage::{
    DAMAGED_LATEST_MAX, DAMAGED_PLACES_MAX, DamageLog, DamageStatus, DamagedPlace, FoundBy,
};
pub use disk::{
    CrashMode, Disk, DiskFile, Fault, OsDisk, OsFile, OsLock, SimDisk, SimFile, SimLock,
};
pub use engine::{Job, Storage};
pub use error::{Error, ErrorKind};
pub use event::{
    Action, DecodeError, EVENT_HEADER_SIZE, EVENT_LAYOUT, EVENT_SIZE_LIMIT, Event, EventId,
    EventRef, KEY_SIZE_MAX, KeyspaceId, PAYLOAD_SIZE_LIMIT, Provenance, RequestId,
};
pub use lsn::Lsn;
pub use scrub::{Scrub, ScrubStatus, Scrubbed};
pub use types::{
    CLUSTER_NAME_SIZE_MAX, Change, Digest, Estimate, HintPage, Identity, KeyspaceDigest,
    META_COUNT_MAX, META_NAME_SIZE_MAX, META_VALUE_SIZE_MAX, Mode, Order, Outcome, PartitionCursor,
    Progress, Scan, ScanEnd, ScanPage, Status, Sync, Write,
};
pub use view::{Page, View};
