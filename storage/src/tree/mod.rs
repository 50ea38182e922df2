//! The versioned log-structured merge tree: memtables in front of sorted tables (O'Neil et al., 1996).
//!
//! Invariants:
//!
//! - An event that was inserted is readable until a merge drops it by the rules of `history.rs`.
//! - [`Tree::flushed`] never passes an event that is not in a durable table: the write-ahead log may drop its
//!   records up to there, and none after.
//! - One thread drives a [`Tree`]; any number read through [`TreeView`]s.
//! - A failed sync, or a write of the manifest whose outcome is unknown, is [`Error::WriteFailed`] once and
//!   [`Error::Poisoned`] ever after: whoever drives the tree takes no more writes then. Reads go on.
//!
//! Architecture invariant: the tree does not know the write-ahead log. It is told positions in it ([`Lsn`]) and
//! hands back how far it got; that the log begins no later than there is checked by the log's owner.
//!
//! [`Tree::work`] does one bounded step: part of a flush, part of a merge, or the removal of one file.

mod cursor;
mod flush;
mod history;
mod internal_key;
mod manifest;
mod memtable;
mod merge;
mod run_writer;
mod stored;
mod table;
#[cfg(test)]
mod tests;
mod version;
mod view;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use starling_clock::Stamp;

use crate::disk::Disk;
use crate::error::Error;
use crate::event::Event;
use crate::lsn::Lsn;
use crate::types::Progress;
use crate::{Retentions, TreeConfig};
use flush::Flush;
use manifest::{Edit, Manifest};
use memtable::Memtable;
use merge::{Merge, MergeStep};
use run_writer::{RunWriter, TableNumbers, Written};
use table::{BlockCache, Table};
use version::Version;

pub use view::Page;
pub(crate) use view::{Limits, TreeView};

/// What is readable at one moment.
pub(crate) struct Snapshot<F> {
    active: Arc<Memtable>,
    /// Newest first.
    frozen: Vec<Arc<Memtable>>,
    version: Arc<Version<F>>,
}

impl<F> Snapshot<F> {
    fn memtables(&self) -> impl Iterator<Item = &Memtable> {
        std::iter::once(&self.active).chain(&self.frozen).map(|memtable| &**memtable)
    }
}

/// Counts and sizes of a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TreeStatus {
    /// Memory of all memtables, in bytes.
    pub(crate) memtable_bytes: u64,
    /// Memtables that wait for their flush.
    pub(crate) frozen: u64,
    /// Tables.
    pub(crate) tables: u64,
    /// Bytes in them.
    pub(crate) table_bytes: u64,
    /// Events in them; an event in two tables counts twice.
    pub(crate) table_events: u64,
    /// Tombstones among those.
    pub(crate) table_deletes: u64,
    /// Memory of indexes and filters, in bytes.
    pub(crate) pinned_bytes: u64,
    /// Memory of cached blocks, in bytes.
    pub(crate) cached_bytes: u64,
}

/// A flush or merge that is written and waits for its edit to be durable.
struct Install<D: Disk> {
    removed: Vec<u64>,
    written: Written<D>,
    /// Set by a flush: the memtable goes.
    flushed: Option<Lsn>,
}

/// The tree of one node.
pub(crate) struct Tree<D: Disk> {
    disk: Arc<D>,
    dir: String,
    config: TreeConfig,
    cache: Arc<BlockCache>,
    manifest: Manifest<D>,
    numbers: TableNumbers,
    snapshot: Arc<Snapshot<D::File>>,
    /// Oldest first, with the position that the tree has reached once it is flushed.
    frozen: VecDeque<(Arc<Memtable>, Lsn)>,
    flush: Option<Flush<D>>,
    merge: Option<Merge<D>>,
    install: Option<Install<D>>,
    /// Tables that no version has any more, to be removed.
    obsolete: VecDeque<u64>,
    /// Runs with a table that could not be read: left alone until they are repaired.
    unmergeable: BTreeSet<u64>,
    merge_all: bool,
    merge_turn: bool,
    poisoned: bool,
}

impl<D: Disk> Tree<D> {
    /// Opens the tree in `dir`, which is made if it is not there, and removes what a crash left behind.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Missing`], [`Error::NewerFormat`], [`Error::Full`], [`Error::Io`], or
    /// [`Error::WriteFailed`] if a sync failed.
    pub(crate) fn open(disk: Arc<D>, dir: &str, config: TreeConfig) -> Result<Self, Error> {
        assert!(2 <= config.merge_width_min && config.merge_width_min <= config.merge_width_max);
        disk.create_dir(dir).map_err(Error::io("create", dir))?;
        // Names that an earlier process left may be known to the system only.
        for dir in [dir.rsplit_once('/').map_or("", |(parent, _)| parent), dir] {
            disk.sync_dir(dir).map_err(sync_failed(dir))?;
        }
        let manifest = Manifest::open(&*disk, dir)?;
        let state = manifest.state();
        let cache = Arc::new(BlockCache::new(config.block_cache_bytes, config.block_bytes));
        for name in disk.list(dir).map_err(Error::io("list", dir))? {
            let number = table::number(&name);
            let orphan = number.is_some_and(|number| !state.tables.contains_key(&number));
            if orphan || manifest::is_leftover(&name) {
                let path = format!("{dir}/{name}");
                disk.remove(&path).map_err(Error::io("remove", &path))?;
            }
        }
        let open = |entry: &manifest::TableEntry| {
            let place = (entry.number, entry.run, entry.size);
            Table::open(&*disk, dir, place, Arc::clone(&cache)).map(Arc::new)
        };
        let tables = state.tables.values().map(open).collect::<Result<_, _>>()?;
        let snapshot = Snapshot {
            active: Arc::default(),
            frozen: Vec::new(),
            version: Arc::new(Version::new(tables)),
        };
        Ok(Self {
            numbers: TableNumbers(state.next_table),
            dir: dir.to_owned(),
            disk,
            config,
            cache,
            manifest,
            snapshot: Arc::new(snapshot),
            frozen: VecDeque::new(),
            flush: None,
            merge: None,
            install: None,
            obsolete: VecDeque::new(),
            unmergeable: BTreeSet::new(),
            merge_all: false,
            merge_turn: false,
            poisoned: false,
        })
    }

    /// Every event of log records up to this is in durable tables.
    pub(crate) fn flushed(&self) -> Lsn {
        self.manifest.state().flushed
    }

    /// Puts an event into the active memtable; one that is in it already changes nothing. The event is readable at
    /// once through every view taken since the last [`Self::rotate`].
    pub(crate) fn insert(&mut self, event: &Event) {
        self.snapshot.active.insert(event);
    }

    /// Memory of the active memtable, in bytes.
    pub(crate) fn memtable_bytes(&self) -> usize {
        self.snapshot.active.bytes()
    }

    /// Freezes the active memtable, to be flushed. The events of log records up to `up_to`, and no others, are in it
    /// or in earlier ones.
    ///
    /// # Panics
    /// If `up_to` is before that of an earlier call.
    pub(crate) fn rotate(&mut self, up_to: Lsn) {
        let before = self.frozen.back().map_or(self.flushed(), |(_, up_to)| *up_to);
        assert!(before <= up_to);
        self.frozen.push_back((Arc::clone(&self.snapshot.active), up_to));
        self.publish(Arc::default(), Arc::clone(&self.snapshot.version));
    }

    /// What is readable now. Take a new view to see what was inserted after a [`Self::rotate`].
    pub(crate) fn view(&self) -> TreeView<D> {
        TreeView::new(Arc::clone(&self.snapshot))
    }

    /// The greatest stamp of an event in tables.
    pub(crate) fn tables_greatest(&self) -> Stamp {
        let first = self.snapshot.version.tables().first();
        first.map_or(Stamp::ZERO, |table| table.bounds().stamp_greatest)
    }

    /// Asks for a merge of all runs, so that everything that may go goes.
    pub(crate) fn request_full_merge(&mut self) {
        self.merge_all = true;
    }

    /// Counts and sizes.
    pub(crate) fn status(&self) -> TreeStatus {
        let memtables = self.snapshot.memtables();
        let mut status = TreeStatus {
            memtable_bytes: memtables.map(|memtable| memtable.bytes() as u64).sum(),
            frozen: self.frozen.len() as u64,
            cached_bytes: self.cache.bytes(),
            ..TreeStatus::default()
        };
        for table in self.snapshot.version.tables() {
            status.tables += 1;
            status.table_bytes += table.size();
            status.table_events += table.bounds().events;
            status.table_deletes += table.bounds().deletes;
            status.pinned_bytes += table.pinned_bytes() as u64;
        }
        status
    }

    /// Does one step of what there is to do; `now_ms` is milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Io`]: the step is done anew the next time. [`Error::Corrupt`], [`Error::Missing`]: a
    /// merge met a damaged table, and leaves its inputs alone from now on. [`Error::WriteFailed`],
    /// [`Error::Poisoned`]: nothing more is made durable until the tree is opened again. Reads go on in all cases.
    pub(crate) fn work(&mut self, now_ms: u64, retentions: &Retentions) -> Result<Progress, Error> {
        if self.poisoned {
            return Err(Error::Poisoned);
        }
        let result = self.step(now_ms, retentions);
        self.poisoned = matches!(result, Err(Error::WriteFailed { .. }));
        self.invariants();
        result
    }

    fn step(&mut self, now_ms: u64, retentions: &Retentions) -> Result<Progress, Error> {
        if self.install.is_some() {
            self.install()?;
            return Ok(Progress::Did);
        }
        if let Some(number) = self.obsolete.pop_front() {
            let path = table::path(&self.dir, number);
            self.disk.remove(&path).map_err(Error::io("remove", &path))?;
            return Ok(Progress::Did);
        }
        if self.merge.is_none() {
            self.begin_merge()?;
        }
        // Turn by turn, so that neither memtables nor tables pile up while the other is served.
        self.merge_turn = !self.merge_turn;
        if self.merge.is_some() && (self.merge_turn || self.frozen.is_empty()) {
            self.merge_step(now_ms, retentions)?;
            return Ok(Progress::Did);
        }
        if !self.frozen.is_empty() {
            self.flush_step()?;
            return Ok(Progress::Did);
        }
        Ok(Progress::Idle)
    }

    fn flush_step(&mut self) -> Result<(), Error> {
        let (memtable, up_to) = self.frozen.front().expect("there is one to flush");
        let up_to = *up_to;
        let mut flush = match self.flush.take() {
            Some(flush) => flush,
            None => Flush::new(Arc::clone(memtable), self.run_writer()),
        };
        match flush.step(self.config.work_bytes, &mut self.numbers, &self.cache) {
            Ok(None) => self.flush = Some(flush),
            Ok(Some(written)) => {
                let flushed = Some(up_to);
                self.install = Some(Install { removed: Vec::new(), written, flushed });
            }
            Err(error) => {
                flush.writer.abandon();
                return Err(error);
            }
        }
        Ok(())
    }

    fn begin_merge(&mut self) -> Result<(), Error> {
        let mut runs = self.snapshot.version.runs();
        runs.retain(|run, _| !self.unmergeable.contains(run));
        let picked = if std::mem::take(&mut self.merge_all) {
            runs.into_keys().collect()
        } else {
            merge::pick(runs.into_iter(), &self.config)
        };
        if picked.is_empty() {
            return Ok(());
        }
        let merge = Merge::new(&self.snapshot.version, picked.clone(), self.run_writer());
        self.merge = Some(merge.inspect_err(|error| self.leave_alone(error, &picked))?);
        Ok(())
    }

    fn merge_step(&mut self, now_ms: u64, retentions: &Retentions) -> Result<(), Error> {
        let mut merge = self.merge.take().expect("there is a merge");
        let step = MergeStep {
            bytes: self.config.work_bytes,
            now_ms,
            retentions,
            snapshot: &self.snapshot,
            cache: &self.cache,
        };
        match merge.step(&step, &mut self.numbers) {
            Ok(None) => self.merge = Some(merge),
            Ok(Some(written)) => {
                self.install = Some(Install { removed: merge.inputs, written, flushed: None });
            }
            Err(error) => {
                self.leave_alone(&error, &merge.runs);
                merge.writer.abandon();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Keeps runs that can't be read out of later merges.
    fn leave_alone(&mut self, error: &Error, runs: &[u64]) {
        if matches!(error, Error::Corrupt { .. } | Error::Missing { .. }) {
            self.unmergeable.extend(runs);
        }
    }

    /// Makes a finished flush or merge durable, then visible.
    fn install(&mut self) -> Result<(), Error> {
        let install = self.install.as_ref().expect("there is something to install");
        let edit = Edit {
            flushed: install.flushed.unwrap_or(self.manifest.state().flushed),
            next_table: self.numbers.0,
            removed: install.removed.clone(),
            added: install.written.entries.clone(),
        };
        self.manifest.append(&*self.disk, &edit)?;
        let install = self.install.take().expect("just seen");
        if install.flushed.is_some() {
            self.frozen.pop_front();
        }
        let version = self.snapshot.version.edited(&install.removed, install.written.tables);
        self.obsolete.extend(install.removed);
        self.publish(Arc::clone(&self.snapshot.active), Arc::new(version));
        Ok(())
    }

    fn publish(&mut self, active: Arc<Memtable>, version: Arc<Version<D::File>>) {
        let frozen = self.frozen.iter().rev().map(|(memtable, _)| Arc::clone(memtable)).collect();
        self.snapshot = Arc::new(Snapshot { active, frozen, version });
    }

    fn run_writer(&self) -> RunWriter<D> {
        RunWriter::new(Arc::clone(&self.disk), &self.dir, &self.config)
    }

    fn invariants(&self) {
        assert_eq!(self.snapshot.frozen.len(), self.frozen.len());
        assert_eq!(self.snapshot.version.tables().len(), self.manifest.state().tables.len());
        assert!(self.flush.is_none() || !self.frozen.is_empty());
    }
}

/// For `map_err` of a sync: what was written since the last one may or may not be there, so that its writer stops.
fn sync_failed(file: &str) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::WriteFailed { operation: "sync", file: file.to_owned(), source }
}
