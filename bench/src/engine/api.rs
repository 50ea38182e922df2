//! [`Engine`]: what the workloads ask of a storage engine, ours or a peer's.
//!
//! Same settings for all ([`Settings`]): 64 MiB of memtable and of cache, 10 bits of Bloom filter a key, lz4 in all tables, and
//! the same durability; whatever else there is to set stays as its makers set it.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// What failed, in the engine's words.
#[derive(Debug, thiserror::Error)]
#[error("{engine}: {message}")]
pub(crate) struct EngineError {
    engine: &'static str,
    message: String,
}

impl EngineError {
    pub(super) fn new(engine: &'static str, message: impl std::fmt::Display) -> Self {
        Self { engine, message: message.to_string() }
    }
}

/// Settings that all engines share. What an engine has no such thing for it leaves out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    /// A memtable this large is flushed, in bytes.
    pub(super) memtable_bytes: usize,
    /// Cache of blocks or pages, in bytes.
    pub(super) cache_bytes: usize,
    /// Bits of Bloom filter a key.
    pub(super) bloom_bits_per_key: usize,
    /// Whether versions that were replaced are kept, where an engine can. No peer can.
    pub(super) history: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            memtable_bytes: 64 << 20,
            cache_bytes: 64 << 20,
            bloom_bits_per_key: 10,
            history: true,
        }
    }
}

/// One change of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change<'a> {
    /// The key has this value.
    Put(&'a [u8], &'a [u8]),
    /// The key has none.
    Delete(&'a [u8]),
}

/// What survives what, once a write was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    /// The death of the process: it was handed to the system.
    Process,
    /// The loss of power: it is on disk.
    Disk,
}

/// Where a scan begins and ends.
#[derive(Clone, Copy, Debug)]
pub(super) enum Range<'a> {
    /// Everything.
    All,
    /// From this key on, it included.
    From(&'a [u8]),
    /// Keys that begin so.
    Prefix(&'a [u8]),
}

/// What a scan calls with each row, key and value.
pub(super) type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]);

/// An open engine. Dropping it closes it.
pub(super) trait Engine: Sync {
    /// Makes the changes, all or none; any number of threads may ask at once.
    fn write(&self, changes: &[Change<'_>], durability: Durability) -> Result<(), EngineError>;

    /// A reader for one thread. It sees all writes that were answered before it is asked.
    fn reader(&self) -> Box<dyn Reader + '_>;

    /// Moves everything into tables and waits until nothing is left to do in the background.
    fn settle(&self) -> Result<(), EngineError>;

    /// Merges everything, so that nothing deleted or replaced is left.
    fn compact(&self) -> Result<(), EngineError>;

    /// Bytes of a log of changes that is kept for others to read, as a store of events does; 0 for peers.
    fn change_log_bytes(&self) -> u64 {
        0
    }

    /// Bytes that were written through memory shared with a file, which the system does not count as written; none if not told.
    fn copied_bytes(&self) -> u64 {
        0
    }
}

/// Reads of one thread.
pub(super) trait Reader {
    /// How long the value of the key is; `None` if it has none.
    fn get(&mut self, key: &[u8]) -> Result<Option<usize>, EngineError>;

    /// Calls `visit` with the rows of `range` in order, `limit` at most.
    fn scan(&mut self, range: Range<'_>, limit: usize, visit: Visit<'_>)
    -> Result<(), EngineError>;
}

/// Which engine.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// Ours.
    Starling,
    /// RocksDB, through the crate `rocksdb`.
    #[cfg(feature = "rocksdb")]
    #[value(name = "rocksdb")]
    RocksDb,
    /// The crate `fjall`.
    #[cfg(feature = "fjall")]
    Fjall,
    /// The crate `redb`: a B+tree, without log or filters.
    #[cfg(feature = "redb")]
    Redb,
    /// The crate `sled`.
    #[cfg(feature = "sled")]
    Sled,
}

impl Kind {
    /// Whether a write that does not ask for the disk outlives a kill of the process. The others hand it to the system later, and have
    /// nothing to replay.
    pub(super) fn outlives_process(self) -> bool {
        match self {
            Self::Starling => true,
            #[cfg(feature = "rocksdb")]
            Self::RocksDb => true,
            #[cfg(feature = "fjall")]
            Self::Fjall => true,
            #[cfg(feature = "redb")]
            Self::Redb => false,
            #[cfg(feature = "sled")]
            Self::Sled => false,
        }
    }

    /// For people, and for the table.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Starling => "Starling",
            #[cfg(feature = "rocksdb")]
            Self::RocksDb => "RocksDB",
            #[cfg(feature = "fjall")]
            Self::Fjall => "fjall",
            #[cfg(feature = "redb")]
            Self::Redb => "redb",
            #[cfg(feature = "sled")]
            Self::Sled => "sled",
        }
    }

    /// Whether the goals are against this one: the log-structured peers.
    pub(super) fn is_goal(self) -> bool {
        match self {
            #[cfg(feature = "rocksdb")]
            Self::RocksDb => true,
            #[cfg(feature = "fjall")]
            Self::Fjall => true,
            _ => false,
        }
    }

    /// Opens or makes what is in `dir`.
    pub(super) fn open(
        self,
        dir: &Path,
        settings: Settings,
    ) -> Result<Box<dyn Engine>, EngineError> {
        match self {
            Self::Starling => super::starling::open(dir, settings),
            #[cfg(feature = "rocksdb")]
            Self::RocksDb => super::rocksdb::open(dir, settings),
            #[cfg(feature = "fjall")]
            Self::Fjall => super::fjall::open(dir, settings),
            #[cfg(feature = "redb")]
            Self::Redb => super::redb::open(dir, settings),
            #[cfg(feature = "sled")]
            Self::Sled => super::sled::open(dir, settings),
        }
    }
}
