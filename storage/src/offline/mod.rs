//! Tools for a data directory that no node uses: [`verify`] looks, [`dump()`] shows, [`repair()`] saves what can be saved.
//!
//! Architecture invariants:
//!
//! - Looking changes nothing. Only [`repair()`] writes, and only if it is told to; it removes nothing: what is damaged is renamed.
//! - Files are hostile: any bytes give a report, never a panic, in bounded memory.
//! - Nothing is lost silently: what a repair gives up is told by partition, key and stamp, as closely as it can be known.
//!
//! Who calls holds the directory's lock (`Disk::lock("lock")`): these functions do not take it.

mod dump;
mod examine;
mod logs;
mod repair;
mod tables;

use std::fmt;

use starling_clock::{NodeId, Stamp};

pub use dump::{DumpBounds, DumpFilter, DumpKind, DumpRecord, DumpTable, dump};
pub use repair::{KeyPlace, Loss, Repair, RepairOptions, Step, repair};

use crate::{Disk, Error, Identity};

/// Findings that a report holds; further ones are counted.
pub const FINDINGS_MAX: usize = 1000;

/// What a repair appends to the names of files that it gives up.
pub const DAMAGED_SUFFIX: &str = ".damaged";

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// File name, relative to the data directory.
    pub file: String,
    /// Where in the file the bad record or block starts.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
    /// What it means for the node.
    pub consequence: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, offset, what, consequence } = self;
        write!(f, "{file} at {offset}: {what}: {consequence}")
    }
}

/// Something that a crash leaves behind and the next start clears up by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// File name, relative to the data directory.
    pub file: String,
    /// What it is.
    pub what: String,
}

/// Records of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Files.
    pub segments: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Number of the oldest record.
    pub first: u64,
    /// One past the newest.
    pub end: u64,
}

/// What a data directory holds, and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Whose it is; `None` if that cannot be read.
    pub identity: Option<Identity>,
    /// Files that were read.
    pub files: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// The write-ahead log.
    pub wal: Extent,
    /// Events of its records up to this are in tables.
    pub flushed: u64,
    /// The change log.
    pub changes: Extent,
    /// Hints, by target.
    pub hints: Vec<(NodeId, Extent)>,
    /// Tables that are whole.
    pub tables: u64,
    /// Events in them.
    pub table_events: u64,
    /// The greatest stamp in them; [`Stamp::ZERO`] if there is none.
    pub table_stamp_greatest: Stamp,
    /// At most [`FINDINGS_MAX`].
    pub damage: Vec<Damage>,
    /// How many more there are.
    pub damage_more: u64,
    /// At most [`FINDINGS_MAX`].
    pub notes: Vec<Note>,
}

impl Report {
    /// Nothing is damaged.
    pub fn is_clean(&self) -> bool {
        self.damage.is_empty()
    }

    fn damaged(
        &mut self,
        file: &str,
        offset: u64,
        what: impl Into<String>,
        consequence: impl Into<String>,
    ) {
        if FINDINGS_MAX <= self.damage.len() {
            self.damage_more += 1;
            return;
        }
        let (what, consequence) = (what.into(), consequence.into());
        self.damage.push(Damage { file: file.to_owned(), offset, what, consequence });
    }

    fn note(&mut self, file: &str, what: impl Into<String>) {
        if self.notes.len() < FINDINGS_MAX {
            self.notes.push(Note { file: file.to_owned(), what: what.into() });
        }
    }

    fn read(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }
}

/// Reads every byte of the data directory and checks every checksum, and what the files say of each other. `progress` is told each
/// file before it is read, with the bytes read so far.
///
/// # Errors
/// [`Error::NewerFormat`], or a directory that cannot be listed: nothing can be said. What is damaged is in the report.
pub fn verify<D: Disk>(disk: &D, mut progress: impl FnMut(&str, u64)) -> Result<Report, Error> {
    examine::examine(disk, &mut progress).map(|(report, _)| report)
}
