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
//! Flushes, merges and the removal of files are jobs: `background.rs` says which is next, `job.rs` what one is.

mod address;
mod background;
mod cursor;
mod digests;
mod drop_partition;
mod flush;
mod gaps;
mod hidden;
mod history;
pub(crate) mod inspect;
mod internal_key;
mod job;
mod manifest;
mod memtable;
mod merge;
mod page;
mod pick;
mod run_writer;
mod salvage;
mod scan;
mod sieve;
mod span;
mod stored;
mod table;
#[cfg(test)]
mod tests;
mod version;
mod view;
mod words;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use starling_clock::Stamp;

use crate::TreeConfig;
use crate::disk::Disk;
use crate::error::Error;
use crate::event::{Action, Event};
use crate::lsn::Lsn;
use background::Install;
use gaps::Gaps;
use manifest::Manifest;
use memtable::Memtable;
use pick::Picker;
use run_writer::{TableNumbers, TableSpace};
use table::{BlockCache, Table};
use version::Version;

pub(crate) use address::{Address, Addresses};
pub(crate) use drop_partition::is_dropped;
pub(crate) use job::TreeJob;
pub(crate) use manifest::Dropped;
pub(crate) use memtable::Bulk;
pub use view::Page;
pub(crate) use view::{Limits, TreeView};

/// What is readable at one moment.
pub(crate) struct Snapshot<F> {
    active: Arc<Memtable>,
    /// Newest first.
    frozen: Vec<Arc<Memtable>>,
    version: Arc<Version<F>>,
    gaps: Arc<Gaps>,
}

impl<F> Snapshot<F> {
    fn memtables(&self) -> impl Iterator<Item = &Memtable> {
        std::iter::once(&self.active).chain(&self.frozen).map(|memtable| &**memtable)
    }

    /// Those that may have events of `partition`.
    fn memtables_of(&self, partition: u32) -> impl Iterator<Item = &Memtable> {
        self.memtables().filter(move |memtable| !memtable.hidden().has(partition))
    }
}

/// Counts and sizes of a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TreeStatus {
    /// Memory of all memtables, and what is kept for the next one, in bytes.
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

/// The tree of one node.
pub(crate) struct Tree<D: Disk> {
    space: Arc<TableSpace<D>>,
    manifest: Manifest<D>,
    snapshot: Arc<Snapshot<D::File>>,
    /// Oldest first, with the position that the tree has reached once it is flushed.
    frozen: VecDeque<(Arc<Memtable>, Lsn)>,
    /// The oldest of those is with a job, or waits to be installed.
    flushing: bool,
    /// Merges that are with a job or wait to be installed, and the runs that they take.
    merges: usize,
    merging: BTreeSet<u64>,
    /// Jobs of [`Tree::work`].
    own_flush: Option<TreeJob<D>>,
    own_merge: Option<TreeJob<D>>,
    merge_turn: bool,
    installs: VecDeque<Install<D>>,
    /// Tables that no version has any more, to be removed.
    obsolete: VecDeque<u64>,
    /// Runs with a table that could not be read: left alone until they are repaired.
    unmergeable: BTreeSet<u64>,
    picker: Picker,
    /// When nothing was found to merge, and by which revision of the retentions.
    looked: Option<(u64, u64)>,
    /// Partitions that were dropped while jobs are out that were begun before, each with its number among all drops.
    drops: Vec<(u64, u32)>,
    drops_count: u64,
    /// Everything is to be merged once this is flushed.
    merge_all: Option<Lsn>,
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
        let open = |entry: &manifest::TableEntry| {
            let place = (entry.number, entry.run, entry.size);
            Table::open(&*disk, dir, place, Arc::clone(&cache)).map(Arc::new)
        };
        let tables: Vec<_> = state.tables.values().map(open).collect::<Result<_, _>>()?;
        // Not before: if tables are missing the manifest lacks an edit, maybe, and what it does not name is what is left.
        for name in disk.list(dir).map_err(Error::io("list", dir))? {
            let number = table::number(&name);
            let orphan = number.is_some_and(|number| !state.tables.contains_key(&number));
            if orphan || manifest::is_leftover(&name) {
                let path = format!("{dir}/{name}");
                disk.remove(&path).map_err(Error::io("remove", &path))?;
            }
        }
        for table in &tables {
            let hidden = state.hidden.range((table.number(), 0)..=(table.number(), u32::MAX));
            hidden.for_each(|(_, partition)| table.hide(*partition));
        }
        let snapshot = Snapshot {
            active: Arc::default(),
            frozen: Vec::new(),
            version: Arc::new(Version::new(tables)),
            gaps: Arc::default(),
        };
        snapshot.gaps.set_active(&snapshot.active);
        let numbers = TableNumbers::new(state.next_table);
        let space = TableSpace { disk, dir: dir.to_owned(), config, cache, numbers };
        Ok(Self {
            space: Arc::new(space),
            manifest,
            snapshot: Arc::new(snapshot),
            frozen: VecDeque::new(),
            flushing: false,
            merges: 0,
            merging: BTreeSet::new(),
            own_flush: None,
            own_merge: None,
            merge_turn: false,
            installs: VecDeque::new(),
            obsolete: VecDeque::new(),
            unmergeable: BTreeSet::new(),
            picker: Picker::default(),
            looked: None,
            drops: Vec::new(),
            drops_count: 0,
            merge_all: None,
            poisoned: false,
        })
    }

    /// Every event of log records up to this is in durable tables.
    pub(crate) fn flushed(&self) -> Lsn {
        self.manifest.state().flushed
    }

    /// Below what tombstones may be gone, by partition.
    pub(crate) fn floors(&self) -> &BTreeMap<u32, Stamp> {
        &self.manifest.state().floors
    }

    /// The write-ahead log had records up to this.
    pub(crate) fn log_end(&self) -> Lsn {
        self.manifest.state().log_end()
    }

    /// Puts an event into the active memtable; one that is in it already changes nothing. The event is readable at
    /// once through every view taken since the last [`Self::rotate`].
    pub(crate) fn insert_at(&mut self, address: Address<'_>, event: &Event) {
        let inserted = self.snapshot.active.insert_at(address, event);
        if inserted.new && event.action == Action::Put {
            self.snapshot.gaps.cut(event);
        }
    }

    /// [`Self::insert_at`] the address of the event.
    #[cfg(test)]
    pub(crate) fn insert(&mut self, event: &Event) {
        self.insert_at(Addresses::default().only(event.partition, event.id()), event);
    }

    /// To fill the active memtable, in which nothing is yet, faster than [`Self::insert_at`] does; no scan has learned anything
    /// by then.
    pub(crate) fn bulk(&self) -> Bulk {
        Bulk::new(Arc::clone(&self.snapshot.active))
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
        let next = Arc::new(self.snapshot.active.successor());
        self.publish(next, Arc::clone(&self.snapshot.version));
    }

    /// What is readable now. Take a new view to see what was inserted after a [`Self::rotate`].
    pub(crate) fn view(&self) -> TreeView<D> {
        TreeView::new(Arc::clone(&self.snapshot))
    }

    /// Whether `view` is of what is readable now.
    pub(crate) fn is_current(&self, view: &TreeView<D>) -> bool {
        Arc::ptr_eq(&self.snapshot, &view.snapshot)
    }

    /// Memtables that wait for their flush.
    pub(crate) fn frozen(&self) -> usize {
        self.frozen.len()
    }

    /// Sorted runs of tables.
    pub(crate) fn runs(&self) -> usize {
        self.snapshot.version.runs().len()
    }

    /// The greatest stamp of an event in tables.
    pub(crate) fn tables_greatest(&self) -> Stamp {
        let first = self.snapshot.version.tables().first();
        first.map_or(Stamp::ZERO, |table| table.bounds().stamp_greatest)
    }

    /// Asks for a merge of all runs, those of the frozen memtables too, so that everything that may go goes.
    pub(crate) fn request_full_merge(&mut self) {
        self.looked = None;
        self.merge_all = Some(self.frozen.back().map_or(self.flushed(), |(_, up_to)| *up_to));
    }

    /// Counts and sizes.
    pub(crate) fn status(&self) -> TreeStatus {
        let memtables = self.snapshot.memtables().map(Memtable::allocated_bytes);
        let memtable_bytes = memtables.sum::<usize>() + self.snapshot.active.spare_bytes();
        let mut status = TreeStatus {
            memtable_bytes: memtable_bytes as u64,
            frozen: self.frozen.len() as u64,
            cached_bytes: self.space.cache.bytes(),
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

    fn publish(&mut self, active: Arc<Memtable>, version: Arc<Version<D::File>>) {
        let frozen = self.frozen.iter().rev().map(|(memtable, _)| Arc::clone(memtable)).collect();
        let gaps = Arc::clone(&self.snapshot.gaps);
        gaps.set_active(&active);
        self.snapshot = Arc::new(Snapshot { active, frozen, version, gaps });
    }
}

/// For `map_err` of a sync: what was written since the last one may or may not be there, so that its writer stops.
fn sync_failed(file: &str) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::WriteFailed { operation: "sync", file: file.to_owned(), source }
}
