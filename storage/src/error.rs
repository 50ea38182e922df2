//! Errors, in two layers. [`Error`] is precise; [`ErrorKind`] says what to do.
//!
//! A variant's doc says what became of the write, because that is the one question a caller has.

use std::io;

use starling_clock::NodeId;

/// Why a storage operation did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The caller's key, payload or other value is over a limit. Nothing was written.
    #[error("{what} of {size} bytes is over the limit of {limit}")]
    TooLarge {
        /// "key", "payload", ...
        what: &'static str,
        /// Size of what was offered.
        size: usize,
        /// The limit it is over.
        limit: usize,
    },
    /// A key has at least one byte. Nothing was written.
    #[error("the key is empty")]
    KeyEmpty,
    /// The disk has no room. Nothing was written; reads go on, and writes too once there is room.
    #[error("no space left on the disk for {file}: free some, or add a node")]
    Full {
        /// File name, relative to the data directory.
        file: String,
    },
    /// Jobs are so far behind that there is no place for the commit. Nothing was written; try again once one ended.
    #[error("{waiting} memtables or buffers wait to be written: write slower")]
    Busy {
        /// Memtables that wait for their flush, and buffers that are being written.
        waiting: usize,
    },
    /// The hints held for a node reached their bound. Nothing was written, not even the rest of the commit.
    #[error("hints for node {target} hold {bytes} bytes, the limit is {limit}")]
    HintsFull {
        /// For whom the hints are.
        target: NodeId,
        /// What they hold now.
        bytes: u64,
        /// [`crate::Config::hint_bytes_max`].
        limit: u64,
    },
    /// Bytes on disk are not what was written. They are not served: read from another replica.
    #[error("{file} is damaged at offset {offset}: {reason}")]
    Corrupt {
        /// File name, relative to the data directory.
        file: String,
        /// Where in the file the bad record or block starts.
        offset: u64,
        /// What was wrong.
        reason: &'static str,
    },
    /// A file that others refer to is not there.
    #[error("{file} is missing from the data directory")]
    Missing {
        /// File name, relative to the data directory.
        file: String,
    },
    /// The file was written by a later release. Nothing was touched.
    #[error(
        "{file} has format {found}, this release reads up to {supported}: run the newer release"
    )]
    NewerFormat {
        /// File name, relative to the data directory.
        file: String,
        /// The version in the file.
        found: u32,
        /// The newest this code knows.
        supported: u32,
    },
    /// The data directory belongs to another node. Nothing was touched.
    #[error(
        "the data directory belongs to node {found}, this is node {expected}: point each node at its own"
    )]
    WrongNode {
        /// Whose it is.
        found: NodeId,
        /// Who asked.
        expected: NodeId,
    },
    /// The data directory belongs to another cluster. Nothing was touched.
    #[error("the data directory belongs to cluster {found:?}, this is {expected:?}")]
    WrongCluster {
        /// Whose it is.
        found: String,
        /// Who asked.
        expected: String,
    },
    /// Another process has the data directory open. Nothing was touched.
    #[error("another process is using the data directory: stop it first")]
    Locked,
    /// Retention passed the sequence asked for. Go on from `first`, after a snapshot.
    #[error("changes from {from} on are asked for, the oldest kept is {first}")]
    Gap {
        /// The sequence asked for.
        from: u64,
        /// The first one that can be read.
        first: u64,
    },
    /// A read or a step in the background failed. No write is affected; it may work another time.
    #[error("{operation} of {file} failed")]
    Io {
        /// "read", "create", ...
        operation: &'static str,
        /// File name, relative to the data directory.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// Writing or syncing a log failed. The writes of this commit MAY be on disk; every later one is refused
    /// with [`Self::Poisoned`].
    #[error("{operation} of {file} failed, storage takes no more writes until it is restarted")]
    WriteFailed {
        /// "write", "sync", ...
        operation: &'static str,
        /// File name, relative to the data directory.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// An earlier write or sync failed, so that none can be trusted. Nothing was written now. Reads go on;
    /// open storage again to recover from the log.
    #[error("storage takes no more writes since a write or sync failed: restart the node")]
    Poisoned,
}

/// What the caller should do. Few and stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Nothing happened. Change the request.
    Invalid,
    /// Nothing happened. Try again, elsewhere or later.
    Unavailable,
    /// It may or may not have happened. Repeating the same event is safe.
    Indeterminate,
    /// Data is damaged here. Read from another replica.
    Damaged,
    /// Nothing happened. An operator has to change how the node is started.
    Configuration,
}

impl Error {
    /// Every variant is listed, with no catch-all: adding one must not compile until it is classed.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::TooLarge { .. } | Self::KeyEmpty | Self::Gap { .. } => ErrorKind::Invalid,
            Self::Full { .. }
            | Self::Busy { .. }
            | Self::HintsFull { .. }
            | Self::Io { .. }
            | Self::Poisoned => ErrorKind::Unavailable,
            Self::WriteFailed { .. } => ErrorKind::Indeterminate,
            Self::Corrupt { .. } | Self::Missing { .. } => ErrorKind::Damaged,
            Self::NewerFormat { .. }
            | Self::WrongNode { .. }
            | Self::WrongCluster { .. }
            | Self::Locked => ErrorKind::Configuration,
        }
    }

    /// For `map_err`: a failed read or background step; no room becomes [`Self::Full`].
    pub(crate) fn io(operation: &'static str, file: &str) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            let file = file.to_owned();
            match source.kind() {
                io::ErrorKind::StorageFull => Self::Full { file },
                io::ErrorKind::NotFound => Self::Missing { file },
                _ => Self::Io { operation, file, source },
            }
        }
    }

    /// A damaged record or block.
    pub(crate) fn corrupt(file: &str, offset: u64, reason: &'static str) -> Self {
        Self::Corrupt { file: file.to_owned(), offset, reason }
    }
}
