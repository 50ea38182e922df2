//! Reads all there is and holds the files to each other. See [`super::verify`].
//!
//! Invariants, of what is checked between the files:
//!
//! - The write-ahead log begins no later than what is flushed and what the state file says end, and ends no earlier.
//! - The change log has every change up to the first of the write-ahead log, and none that the write-ahead log does not know.
//! - Hints go on where the state file says that they do.
//! - Each table of the manifest is there, as long as it says; the tables of a run do not overlap.

use std::collections::BTreeMap;

use starling_clock::NodeId;

use super::{Report, logs, tables};
use crate::log::{LogExtent, reason};
use crate::state::State;
use crate::tree::inspect::{ManifestState, ManifestTable, TableFacts};
use crate::{Disk, DiskFile, Error, Identity, identity};

/// Told each file before it is read, and the bytes read so far.
pub(super) type OnFile<'a> = &'a mut dyn FnMut(&str, u64);

/// What a repair has to know besides what the report tells.
#[derive(Default)]
pub(super) struct Facts {
    pub(super) identity: Option<Identity>,
    /// `None` if it cannot be read, or lacks what the write-ahead log no longer has.
    pub(super) state: Option<State>,
    /// `None` if it cannot be read or is not there.
    pub(super) manifest: Option<ManifestState>,
    /// Whether a table or a manifest was ever made.
    pub(super) tables_seen: bool,
    pub(super) wal: LogFacts,
    /// The write-ahead log ends before other files say that it does.
    pub(super) wal_short: bool,
    /// Number of the first and the last change in the write-ahead log.
    pub(super) wal_changes: Option<(u64, u64)>,
    /// The last hint of each target in the write-ahead log.
    pub(super) wal_hints: BTreeMap<NodeId, u64>,
    pub(super) changes: LogFacts,
    /// Indexes of the change log that are not to be used.
    pub(super) bad_indexes: Vec<String>,
    pub(super) hints: BTreeMap<NodeId, LogFacts>,
    /// The greatest number of a table's file, 0 if there is none.
    pub(super) table_greatest: u64,
    /// Tables that are whole, named by the manifest or not.
    pub(super) sound: BTreeMap<u64, (ManifestTable, TableFacts)>,
    /// Tables that are not: number, what the manifest says, and what the footer does if that is readable.
    pub(super) unsound: BTreeMap<u64, UnsoundTable>,
}

/// A table that cannot be read as a whole.
#[derive(Clone, Debug)]
pub(super) struct UnsoundTable {
    /// The manifest names it.
    pub(super) named: Option<ManifestTable>,
    pub(super) there: bool,
    pub(super) claimed: Option<TableFacts>,
}

/// A log and whether all of it is good.
#[derive(Clone, Debug, Default)]
pub(super) struct LogFacts {
    pub(super) extent: Option<LogExtent>,
    pub(super) damaged: bool,
    /// Good records.
    pub(super) records: u64,
    /// Its segments, oldest first, and whether the log is good from there to its end.
    pub(super) segments: Vec<(String, bool)>,
}

impl LogFacts {
    /// The log is not good up to and with this segment.
    pub(super) fn spoil(&mut self, path: &str) {
        self.damaged = true;
        if self.segments.last().is_none_or(|(last, _)| last != path) {
            self.segments.push((path.to_owned(), true));
        }
        self.segments.iter_mut().for_each(|(_, good)| *good = false);
    }

    /// One past the last good record; `otherwise` if there is no segment.
    pub(super) fn next(&self, otherwise: u64) -> u64 {
        self.extent.map_or(otherwise, |extent| extent.next)
    }
}

pub(super) fn examine<D: Disk>(disk: &D, progress: OnFile<'_>) -> Result<(Report, Facts), Error> {
    let mut report = Report::default();
    let mut facts = Facts::default();
    let root = disk.list("").map_err(Error::io("list", "the data directory"))?;
    small_files(disk, &root, &mut report, &mut facts, progress)?;
    logs::examine_wal(disk, &mut report, &mut facts, progress)?;
    tables::examine(disk, &mut report, &mut facts, progress)?;
    logs::examine_changes(disk, &mut report, &mut facts, progress)?;
    logs::examine_hints(disk, &mut report, &mut facts, progress)?;
    between(&mut report, &mut facts);
    Ok((report, facts))
}

fn small_files<D: Disk>(
    disk: &D,
    root: &[String],
    report: &mut Report,
    facts: &mut Facts,
    progress: OnFile<'_>,
) -> Result<(), Error> {
    for name in root.iter().filter(|name| ["identity.new", "state.new"].contains(&name.as_str())) {
        report.note(name, "left by a replacement that was cut short; not used");
    }
    let size = |name: &str| disk.open_read(name).and_then(|file| file.len()).unwrap_or(0);
    progress("identity", report.bytes);
    match identity::read(disk) {
        Ok(Some(found)) => {
            report.read(size("identity"));
            report.identity = Some(found.clone());
            facts.identity = Some(found);
        }
        Ok(None) => report.damaged(
            "identity",
            0,
            "the file is not there",
            "whose directory it is cannot be told: the node refuses it, or takes it for a new one",
        ),
        Err(error @ Error::NewerFormat { .. }) => return Err(error),
        Err(error) => report.damaged("identity", 0, reason(&error), "the node does not start"),
    }
    progress("state", report.bytes);
    match State::read(disk) {
        Ok(state) => {
            if root.iter().any(|name| name == "state") {
                report.read(size("state"));
            }
            facts.state = Some(state);
        }
        Err(error @ Error::NewerFormat { .. }) => return Err(error),
        Err(error) => report.damaged("state", 0, reason(&error), "the node does not start"),
    }
    Ok(())
}

/// What the files say of each other.
fn between(report: &mut Report, facts: &mut Facts) {
    let manifest = facts.manifest.as_ref().map_or(0, |manifest| manifest.log_end().0);
    let state = facts.state.clone().unwrap_or_default();
    if let Some(wal) = facts.wal.extent {
        let last = wal.next - 1;
        for (file, number) in [(tables::MANIFEST, manifest), ("state", state.up_to.0)] {
            if last < number && !facts.wal.damaged {
                let what = format!("it ends at record {last}, {file} knows of record {number}");
                report.damaged(logs::WAL_DIR, 0, what, "the node does not start");
                facts.wal_short = true;
            }
        }
        if facts.state.is_some() && state.up_to.0.saturating_add(1) < wal.first {
            let what = format!("the log begins at {}, the state at {}", wal.first, state.up_to.0);
            report.damaged("state", 0, what, "named values and consumed hints are lost");
            facts.state = None;
        }
    }
    between_changes(report, facts, state.changes);
    for (target, mark) in &state.hints {
        let log = facts.hints.get(target).cloned().unwrap_or_default();
        let dir = logs::hints_dir(*target);
        if !log.damaged
            && log.next(mark.done.saturating_add(1)) < mark.next
            && mark.done.saturating_add(1) < mark.next
        {
            let what = format!("the state file knows of hints up to {}", mark.next - 1);
            let consequence = "hints are lost: the target is repaired by comparison";
            report.damaged(&dir, 0, what, consequence);
        }
    }
}

fn between_changes(report: &mut Report, facts: &mut Facts, promised: u64) {
    if facts.changes.damaged {
        return;
    }
    let next = facts.changes.next(1);
    if next < promised {
        let what = format!("changes {next} to {} are not there", promised - 1);
        report.damaged("changes", 0, what, "the node does not start");
    }
    let Some((first, last)) = facts.wal_changes else { return };
    if next < first {
        let what = format!("changes {next} to {} are not there", first - 1);
        report.damaged("changes", 0, what, "the node does not start");
    }
    if !facts.wal.damaged && last.saturating_add(1) < next {
        let what = format!("the log ends at change {last}, the change log knows of {}", next - 1);
        report.damaged(logs::WAL_DIR, 0, what, "the node does not start");
        facts.wal_short = true;
    }
}
