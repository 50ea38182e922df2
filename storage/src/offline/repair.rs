//! Saves what can be saved of a damaged data directory. See [`repair`].
//!
//! Invariants:
//!
//! - Nothing is removed: what is damaged gets a name that ends in `.damaged`, and can be looked at.
//! - What may break a promise of the node is done only if it is asked for by name: [`RepairOptions`].
//! - A repair that a crash cut short is begun anew: each step leaves a directory that the next repair can read.
//! - What is given up is told in [`Repair::losses`], in a dry run too.
//!
//! A directory that was repaired opens; what was lost comes back from the other replicas by comparison.

mod tables;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use starling_clock::{NodeId, Stamp};

use super::DAMAGED_SUFFIX;
use super::examine::{Facts, LogFacts, examine};
use super::logs::{CHANGES_DIR, HINTS_DIR, WAL_DIR, hints_dir};
use super::tables::DIR as TABLES_DIR;
use crate::log::{LogItem, LogKind, Segment, SegmentHead, walk_log};
use crate::state::{HintMark, State};
use crate::tree::inspect::{
    ManifestState, ManifestTable, has_event, internal_key_of, open_table, replace_manifest,
    rewrite_kept, table_path, write_run,
};
use crate::tree::is_dropped;
use crate::wal::record::WalRecord;
use crate::{Disk, Error, Event, Identity, KeyspaceId, Lsn, identity};

/// Events of a damaged write-ahead log that are held in memory before they are written to a table, in bytes.
const SALVAGE_BYTES_MAX: usize = 64 << 20;

/// What a repair may do.
#[derive(Clone, Debug, Default)]
pub struct RepairOptions {
    /// Do it; otherwise only tell what would be done.
    pub write: bool,
    /// Give up what cannot be read of the write-ahead log: writes that this node acknowledged.
    pub cut_log: bool,
    /// Give up the named values of a state file that cannot be read: what this node promised others besides events.
    pub drop_state: bool,
    /// Whose directory it is, if that cannot be read.
    pub identity: Option<Identity>,
    /// Where checksums of new segments begin; a secret of the node.
    pub log_salt: u32,
}

/// One thing that a repair does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Appends `.damaged` to the name of a file: nothing looks at it then.
    Quarantine {
        /// Which, relative to the data directory.
        file: String,
    },
    /// Writes what can be read of a damaged table to new ones.
    SalvageTable {
        /// Which, relative to the data directory.
        file: String,
        /// How many events of it can be read.
        events: u64,
    },
    /// Writes events of the write-ahead log to tables, unless one has them.
    SalvageLog {
        /// How many at most.
        events: u64,
    },
    /// Makes a manifest of the tables that are whole, and of those that are made.
    RebuildManifest {
        /// How many are whole.
        tables: u64,
    },
    /// Makes a state file of what is known.
    RewriteState,
    /// Begins a log anew.
    RestartLog {
        /// Its directory.
        dir: String,
        /// Number of the first record that it will have.
        first: u64,
    },
    /// Says whose directory it is.
    WriteIdentity,
}

/// Something that is given up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// What it is.
    pub what: String,
    /// From the file that is given up.
    pub file: String,
    /// Partitions that it may touch, the last one too; `None` if that cannot be told: any.
    pub partitions: Option<(u32, u32)>,
    /// No event of it has a stamp outside of these; `None` if that cannot be told.
    pub stamps: Option<(Stamp, Stamp)>,
    /// Numbers of the records, the last one too.
    pub records: Option<(u64, u64)>,
    /// How many events at most; with several losses of one file, of all of them together.
    pub events: Option<u64>,
    /// How many of those are deletes, at most. A delete that is lost may bring back what it hid: 0 is good news.
    pub deletes: Option<u64>,
    /// Of a part of a table: the events lie between these two, whose keys they may be of too. `None` inside: from the table's begin,
    /// or to its end.
    pub between: Option<(Option<KeyPlace>, Option<KeyPlace>)>,
}

/// A key, wherever it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyPlace {
    /// Its partition.
    pub partition: u32,
    /// Its keyspace.
    pub keyspace: KeyspaceId,
    /// The key.
    pub key: Bytes,
}

/// What a repair does or has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repair {
    /// In order. Empty: there is nothing to repair.
    pub steps: Vec<Step>,
    /// What is given up by them.
    pub losses: Vec<Loss>,
    /// What is damaged and stays so until it is asked for: each says how.
    pub refused: Vec<String>,
    /// The steps were done.
    pub written: bool,
}

/// Tells how the directory can be made to open again, and does it if `options` say so.
///
/// # Errors
/// [`Error::NewerFormat`]; with `write` also a failed write: then another repair goes on from there.
pub fn repair<D: Disk>(
    disk: &Arc<D>,
    options: &RepairOptions,
    mut progress: impl FnMut(&str, u64),
) -> Result<Repair, Error> {
    let (report, facts) = examine(&**disk, &mut progress)?;
    let mut plan =
        Plan { repair: Repair::default(), facts, options: options.clone(), ..Plan::default() };
    if !report.is_clean() {
        plan.make(&**disk)?;
    }
    if options.write && plan.repair.refused.is_empty() && !plan.repair.steps.is_empty() {
        plan.carry_out(disk)?;
        plan.repair.written = true;
    }
    Ok(plan.repair)
}

#[derive(Default)]
struct Plan {
    facts: Facts,
    options: RepairOptions,
    repair: Repair,
    /// The manifest to be written.
    manifest: Option<ManifestState>,
    /// The state to be written.
    state: Option<State>,
    /// Logs that begin anew: directory, kind, number of the first record.
    restarts: Vec<(String, LogKind, u64)>,
    /// Events of the write-ahead log after the first and up to the second record are written to tables, unless one has them.
    salvage: Option<(u64, u64)>,
    /// The write-ahead log begins anew.
    wal_goes: bool,
    /// Damaged tables of which something is saved.
    salvaged: Vec<ManifestTable>,
    identity: Option<Identity>,
}

impl Plan {
    fn make<D: Disk>(&mut self, disk: &D) -> Result<(), Error> {
        self.plan_identity();
        let mut state = self.facts.state.clone().unwrap_or_default();
        let state_lost = self.facts.state.is_none();
        if state_lost && !self.options.drop_state {
            self.refuse("the state file cannot be read: --drop-state gives up the named values that are not in the \
                 write-ahead log, among them what this node promised the others; an empty directory is safer if the \
                 other replicas have its data");
        }
        if state_lost {
            self.quarantine("state");
            self.lose("named values and consumed hints of the state file", "state", |_| {});
            self.guess_hints(&mut state);
        }
        let wal_broken = self.wal_broken();
        if wal_broken && !self.options.cut_log {
            self.refuse("the write-ahead log is damaged: --cut-log gives up the records that cannot be read, which this \
                 node may have acknowledged");
        }
        let tables_changed = self.plan_tables(disk)?;
        let (after, mut flushed) = self.flushed(tables_changed);
        if wal_broken {
            flushed = self.plan_wal(disk, &mut state, after)?;
        } else if after < flushed {
            self.plan_salvage_log(disk, after, flushed)?;
        }
        self.plan_changes(disk, &mut state, wal_broken)?;
        self.plan_hints(disk, &mut state)?;
        if tables_changed || wal_broken {
            self.plan_manifest(flushed);
        }
        for entry in self.salvaged.clone() {
            self.quarantine(&table_path(TABLES_DIR, entry.number));
        }
        for index in std::mem::take(&mut self.facts.bad_indexes) {
            self.quarantine(&index);
        }
        if state_lost || wal_broken || self.facts.state.as_ref() != Some(&state) {
            if state_lost && !wal_broken {
                state.up_to = Lsn(self.facts.wal.extent.map_or(0, |wal| wal.first - 1));
            }
            self.repair.steps.push(Step::RewriteState);
            self.state = Some(state);
        }
        for (dir, _, first) in self.restarts.clone() {
            self.repair.steps.push(Step::RestartLog { dir, first });
        }
        if self.identity.is_some() {
            self.repair.steps.push(Step::WriteIdentity);
        }
        Ok(())
    }

    fn refuse(&mut self, why: &str) {
        self.repair.refused.push(why.to_owned());
    }

    fn quarantine(&mut self, file: &str) {
        self.repair.steps.push(Step::Quarantine { file: file.to_owned() });
    }

    fn lose(&mut self, what: &str, file: &str, more: impl FnOnce(&mut Loss)) {
        let mut loss = Loss { what: what.to_owned(), file: file.to_owned(), ..Loss::default() };
        more(&mut loss);
        self.repair.losses.push(loss);
    }

    fn plan_identity(&mut self) {
        if self.facts.identity.is_some() {
            return;
        }
        match self.options.identity.clone() {
            Some(identity) => self.identity = Some(identity),
            None => self.refuse("whose directory it is cannot be read: name the cluster and the node with --cluster and --node"),
        }
    }

    /// Whether the write-ahead log cannot be opened, or lacks what other files prove it had.
    fn wal_broken(&self) -> bool {
        let wal = &self.facts.wal;
        wal.damaged || wal.extent.is_none() || self.facts.wal_short
    }

    /// Up to which record events are in the tables that are left, and up to which they are meant to be: where some are gone the
    /// write-ahead log gives back what it still has.
    fn flushed(&self, tables_changed: bool) -> (u64, u64) {
        let (begin, last) =
            self.facts.wal.extent.map_or((0, 0), |wal| (wal.first - 1, wal.next - 1));
        let flushed = match &self.facts.manifest {
            Some(manifest) => manifest.flushed.0.max(begin),
            // Nobody knows: some tables may have what is in the log.
            None if tables_changed => last,
            None => begin,
        };
        (if tables_changed { begin } else { flushed }, flushed)
    }

    fn tables_lost(&self) -> bool {
        self.facts.manifest.is_some()
            && self.facts.unsound.values().any(|table| table.named.is_some())
    }

    /// Without marks hints are delivered again, which does no harm.
    fn guess_hints(&self, state: &mut State) {
        for (target, log) in &self.facts.hints {
            if let Some(extent) = log.extent {
                let mark = HintMark { done: extent.first - 1, next: extent.next };
                state.hints.insert(*target, mark);
            }
        }
        state.changes = self.facts.changes.next(1);
    }

    /// The log stays as it is, but a start does not look at what it has up to where the tables end.
    fn plan_salvage_log<D: Disk>(&mut self, disk: &D, after: u64, until: u64) -> Result<(), Error> {
        let mut events = 0;
        walk_wal(disk, |found| {
            if let Found::Record(number, WalRecord::Event { .. }) = found {
                events += u64::from(after < number && number <= until);
            }
        })?;
        if 0 < events {
            self.repair.steps.push(Step::SalvageLog { events });
            self.salvage = Some((after, until));
        }
        Ok(())
    }

    /// Saves the records that can be read, and begins the log anew behind all numbers that were ever given. Tells up to which record
    /// events are in tables then.
    fn plan_wal<D: Disk>(
        &mut self,
        disk: &D,
        state: &mut State,
        flushed: u64,
    ) -> Result<u64, Error> {
        let after = flushed;
        let mut events = 0;
        let mut lost = Vec::new();
        walk_wal(disk, |found| match found {
            Found::Record(number, record) => {
                take_record(state, number, &record);
                events += u64::from(after < number && matches!(record, WalRecord::Event { .. }));
            }
            Found::Lost { path, from, to } => lost.push((path, from, to)),
        })?;
        for (path, from, to) in lost {
            self.lose("records of the write-ahead log", &path, |loss| {
                loss.records = Some((from, to.max(from)));
            });
        }
        if 0 < events {
            self.repair.steps.push(Step::SalvageLog { events });
        }
        self.salvage = Some((after, u64::MAX));
        self.wal_goes = true;
        let (next, bound) = self.facts.wal.extent.map_or((1, 1), |wal| (wal.next, wal.bound));
        let manifest = self.facts.manifest.as_ref().map_or(0, |manifest| manifest.log_end().0);
        let known = manifest.max(state.up_to.0);
        if bound <= known {
            self.lose("the end of the write-ahead log", WAL_DIR, |loss| {
                loss.records = Some((next, known));
            });
        }
        let last = (bound - 1).max(known);
        for (path, _) in self.facts.wal.segments.clone() {
            self.quarantine(&path);
        }
        state.up_to = Lsn(last);
        self.restarts.push((WAL_DIR.to_owned(), LogKind::WriteAhead, last.saturating_add(1)));
        Ok(last)
    }

    /// Keeps the change log from its last damage on; begins it anew where nothing joins on.
    fn plan_changes<D: Disk>(
        &mut self,
        disk: &D,
        state: &mut State,
        wal_broken: bool,
    ) -> Result<(), Error> {
        let log = self.facts.changes.clone();
        let (bound, next) = log.extent.map_or((1, 1), |extent| (extent.bound, extent.next));
        let first = log.extent.map_or(1, |extent| extent.first);
        let wal = self.facts.wal_changes;
        let in_wal = wal.map_or(0, |(_, last)| last.saturating_add(1));
        let known = bound.max(state.changes).max(in_wal);
        // Each record that was lost may have been a change.
        let lost = self.facts.wal.extent.map_or(0, |wal| wal.bound - wal.first);
        let lost = lost.saturating_sub(self.facts.wal.records);
        let hole = next < state.changes || wal.is_some_and(|(first, _)| next < first);
        let newest_good = log.segments.last().is_none_or(|(_, good)| *good) && !hole;
        let complete = !wal_broken || (lost == 0 && next == known);
        if newest_good && complete {
            self.give_up_segments(disk, &log, CHANGES_DIR, "changes")?;
            return Ok(());
        }
        let anew = match wal {
            _ if wal_broken => known.saturating_add(lost),
            // What the write-ahead log gives back has to join on.
            Some((_, last)) => last.saturating_add(1),
            None => known,
        };
        for (path, _) in &log.segments {
            self.quarantine_segment(disk, path)?;
        }
        self.lose("the change log: its consumers meet a gap", CHANGES_DIR, |loss| {
            loss.records = Some((first, anew.saturating_sub(1).max(first)));
        });
        state.changes = anew;
        self.restarts.push((CHANGES_DIR.to_owned(), LogKind::Changes, anew));
        Ok(())
    }

    fn plan_hints<D: Disk>(&mut self, disk: &D, state: &mut State) -> Result<(), Error> {
        let in_wal = self.facts.wal_hints.clone();
        let wal_goes = self.wal_goes;
        let targets = self.facts.hints.keys().chain(state.hints.keys()).chain(in_wal.keys());
        let targets: Vec<NodeId> =
            targets.copied().collect::<std::collections::BTreeSet<_>>().into_iter().collect();
        for target in targets {
            let log = self.facts.hints.get(&target).cloned().unwrap_or_default();
            let mark = state.hints.get(&target).copied().unwrap_or_default();
            let (bound, next) = log.extent.map_or((1, 1), |extent| (extent.bound, extent.next));
            let in_wal = in_wal.get(&target).map_or(0, |last| last.saturating_add(1));
            let newest_good = log.segments.last().is_none_or(|(_, good)| *good);
            let missing = next < mark.next && mark.done.saturating_add(1) < mark.next;
            let dir = hints_dir(target);
            if newest_good && !missing && (!wal_goes || in_wal <= next) {
                self.give_up_segments(disk, &log, &dir, "hints")?;
                continue;
            }
            for (path, _) in &log.segments {
                self.quarantine_segment(disk, path)?;
            }
            let anew = bound.max(mark.next).max(in_wal).max(mark.done.saturating_add(1));
            let lost = mark.done.saturating_add(1);
            if lost < anew {
                let what = format!("hints for node {target}: they come to it by comparison");
                self.lose(&what, &dir, |loss| loss.records = Some((lost, anew - 1)));
            }
            state.hints.insert(target, HintMark { done: anew - 1, next: anew });
        }
        Ok(())
    }

    /// Gives up the segments before the last damage; the rest of the log is good.
    fn give_up_segments<D: Disk>(
        &mut self,
        disk: &D,
        log: &LogFacts,
        dir: &str,
        what: &str,
    ) -> Result<(), Error> {
        let bad: Vec<&String> =
            log.segments.iter().filter(|(_, good)| !good).map(|(path, _)| path).collect();
        let first = log.extent.map_or(0, |extent| extent.first);
        let kept = log.segments.iter().find(|(_, good)| *good);
        if let (false, Some((kept, _))) = (bad.is_empty(), kept) {
            let what = format!("{what} before {kept}");
            let to = number_of(kept).saturating_sub(1);
            self.lose(&what, dir, |loss| loss.records = Some((first, to.max(first))));
        }
        for path in bad {
            self.quarantine_segment(disk, path)?;
        }
        Ok(())
    }

    /// A segment, and its index if it has one.
    fn quarantine_segment<D: Disk>(&mut self, disk: &D, path: &str) -> Result<(), Error> {
        self.quarantine(path);
        let index = path.replace(".log", ".ids");
        if disk.exists(&index).map_err(Error::io("look for", &index))? {
            self.quarantine(&index);
        }
        Ok(())
    }
}

/// The number in a segment's name.
fn number_of(path: &str) -> u64 {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.trim_end_matches(".log").parse().unwrap_or(0)
}

/// What a walk over the write-ahead log finds.
enum Found {
    Record(u64, WalRecord),
    Lost { path: String, from: u64, to: u64 },
}

fn walk_wal<D: Disk>(disk: &D, mut visit: impl FnMut(Found)) -> Result<(), Error> {
    let walked = walk_log(disk, WAL_DIR, LogKind::WriteAhead, |item| {
        match item {
            LogItem::Record { path, record, .. } => visit(match WalRecord::decode(record) {
                Ok(decoded) => Found::Record(record.number, decoded),
                Err(_) => {
                    Found::Lost { path: path.to_owned(), from: record.number, to: record.number }
                }
            }),
            LogItem::Damaged { path, number, lost, .. } => {
                let to = number.saturating_add(lost).saturating_sub(1);
                visit(Found::Lost { path: path.to_owned(), from: number, to });
            }
            LogItem::Hole { path, from, to } => {
                visit(Found::Lost { path: path.to_owned(), from, to: to - 1 });
            }
            LogItem::Segment { .. } | LogItem::Torn { .. } => {}
        }
        Ok(())
    });
    match walked {
        Ok(_) | Err(Error::Missing { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// What a record says besides its event.
fn take_record(state: &mut State, number: u64, record: &WalRecord) {
    match record {
        WalRecord::Meta { name, value } if state.up_to.0 < number => {
            state.metas.insert(name.clone(), value.clone());
        }
        WalRecord::HintsDone { target, up_to } => {
            let mark = state.hints.entry(*target).or_default();
            mark.done = mark.done.max(*up_to);
        }
        WalRecord::Meta { .. } | WalRecord::Event { .. } | WalRecord::Hint { .. } => {}
    }
}

impl Plan {
    fn carry_out<D: Disk>(&self, disk: &Arc<D>) -> Result<(), Error> {
        for dir in [WAL_DIR, CHANGES_DIR, HINTS_DIR, TABLES_DIR] {
            disk.create_dir(dir).map_err(Error::io("create", dir))?;
        }
        disk.sync_dir("").map_err(Error::io("sync", "the data directory"))?;
        let mut manifest = self.manifest.clone();
        if let Some(manifest) = &mut manifest {
            // The manifest that was has what is hidden of them.
            let hidden = self.facts.manifest.as_ref().map(|was| was.hidden.clone());
            let kept = std::mem::replace(&mut manifest.hidden, hidden.unwrap_or_default());
            for entry in &self.salvaged {
                rewrite_kept(disk, TABLES_DIR, manifest, *entry)?;
            }
            manifest.hidden = kept;
            if let Some(range) = self.salvage {
                salvage(disk, range, manifest)?;
            }
        }
        let files = self.repair.steps.iter().filter_map(|step| match step {
            Step::Quarantine { file } => Some(file),
            _ => None,
        });
        let (tables, logs): (Vec<_>, Vec<_>) = files.partition(|file| file.starts_with(TABLES_DIR));
        let salvaged = |entry: &ManifestTable| table_path(TABLES_DIR, entry.number);
        let salvaged: Vec<String> = self.salvaged.iter().map(salvaged).collect();
        let (saved, tables): (Vec<_>, Vec<_>) =
            tables.into_iter().partition(|file| salvaged.contains(file));
        for file in tables {
            quarantine(&**disk, file)?;
        }
        // Before the log goes: its events are in tables by then.
        if let Some(manifest) = manifest {
            replace_manifest(&**disk, TABLES_DIR, &manifest)?;
        }
        // Not before what is good of them is named: a repair that begins anew needs them.
        for file in saved {
            quarantine(&**disk, file)?;
        }
        for file in logs {
            quarantine(&**disk, file)?;
        }
        if let Some(state) = &self.state {
            state.write(&**disk)?;
        }
        for (dir, kind, first) in &self.restarts {
            let head = SegmentHead { salt: self.options.log_salt, first: *first };
            Segment::create(&**disk, dir, *kind, head, false)?;
        }
        match &self.identity {
            Some(identity) => identity::write(&**disk, identity),
            None => Ok(()),
        }
    }
}

/// Writes the events of records after `after` and up to `until` of the write-ahead log to tables, but for those that a table of
/// `manifest` has already, and adds the tables to it.
fn salvage<D: Disk>(
    disk: &Arc<D>,
    (after, until): (u64, u64),
    manifest: &mut ManifestState,
) -> Result<(), Error> {
    let mut events: BTreeMap<Vec<u8>, Event> = BTreeMap::new();
    let (mut bytes, mut failed) = (0, None);
    let dropped = manifest.dropped.clone();
    let open = |entry: &ManifestTable| open_table(&**disk, TABLES_DIR, *entry);
    let tables = manifest.tables.values().map(open).collect::<Result<Vec<_>, _>>()?;
    let mut flush = |events: &mut BTreeMap<Vec<u8>, Event>| {
        if !events.is_empty() {
            write_run(disk, TABLES_DIR, manifest, events)?;
            events.clear();
        }
        Ok::<(), Error>(())
    };
    walk_wal(&**disk, |found| {
        let Found::Record(number, WalRecord::Event { event, .. }) = found else { return };
        let gone = is_dropped(&dropped, event.partition, Lsn(number));
        if !(after < number && number <= until) || gone || failed.is_some() {
            return;
        }
        let key = internal_key_of(&event);
        // An event has one place: the digests that replicas are compared by count it once for each.
        let mut found = tables.iter().map(|table| has_event(table, &key));
        match found.find(|found| !matches!(found, Ok(false))) {
            Some(Ok(_)) => return,
            Some(Err(error)) => return failed = Some(error),
            None => {}
        }
        bytes += event.encoded_len();
        events.insert(key, event);
        if SALVAGE_BYTES_MAX <= bytes {
            bytes = 0;
            failed = flush(&mut events).err();
        }
    })?;
    match failed {
        Some(error) => Err(error),
        None => flush(&mut events),
    }
}

/// Gives a file a name that no start looks at, and no other file has.
fn quarantine<D: Disk>(disk: &D, file: &str) -> Result<(), Error> {
    if !disk.exists(file).map_err(Error::io("look for", file))? {
        return Ok(());
    }
    let mut name = format!("{file}{DAMAGED_SUFFIX}");
    let mut copies = 1;
    while disk.exists(&name).map_err(Error::io("look for", &name))? {
        copies += 1;
        name = format!("{file}{DAMAGED_SUFFIX}.{copies}");
    }
    disk.rename(file, &name).map_err(Error::io("rename", file))?;
    let parent = file.rsplit_once('/').map_or("", |(parent, _)| parent);
    disk.sync_dir(parent).map_err(Error::io("sync", file))
}
