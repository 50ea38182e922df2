//! [`RunWriter`]: writes a sorted run, that is one table or several whose ranges of keys don't overlap.
//!
//! Invariants:
//!
//! - What [`RunWriter::finish`] names is durable: files, their contents and their directory entries.
//! - What was begun and is not wanted is removed by [`RunWriter::abandon`], or at the next open.
//! - Several writers may work at once: table numbers are given out each once, and files are apart.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use starling_clock::Stamp;

use super::internal_key;
use super::manifest::TableEntry;
use super::stored::StoredRef;
use super::sync_failed;
use super::table::{self, BlockCache, Table, TableBuilder};
use crate::TreeConfig;
use crate::disk::Disk;
use crate::error::Error;

/// What is written is synced each time this many bytes have come together, so that no sync takes long.
const SYNC_SIZE: usize = 4 << 20;

/// Gives out table numbers, each once.
pub(crate) struct TableNumbers(AtomicU64);

impl TableNumbers {
    pub(crate) fn new(next: u64) -> Self {
        Self(AtomicU64::new(next))
    }

    fn take(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    /// Numbers from this on were never given out.
    pub(crate) fn next(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Where tables are made: what all those who write them share.
pub(crate) struct TableSpace<D> {
    pub(crate) disk: Arc<D>,
    pub(crate) dir: String,
    pub(crate) config: TreeConfig,
    pub(crate) cache: Arc<BlockCache>,
    pub(crate) numbers: TableNumbers,
}

/// Tables that are durable and not yet in the manifest.
pub(crate) struct Written<D: Disk> {
    pub(crate) entries: Vec<TableEntry>,
    pub(crate) tables: Vec<Arc<Table<D::File>>>,
    /// Tombstones below these went, by partition: nothing at or below may come in again.
    pub(crate) floors: BTreeMap<u32, Stamp>,
}

impl<D: Disk> Default for Written<D> {
    fn default() -> Self {
        Self { entries: Vec::new(), tables: Vec::new(), floors: BTreeMap::new() }
    }
}

/// A run in the making.
pub(crate) struct RunWriter<D: Disk> {
    space: Arc<TableSpace<D>>,
    builder: Option<TableBuilder<D>>,
    finished: Vec<TableEntry>,
    run: Option<u64>,
    /// Of the last event.
    partition: Option<u32>,
    unsynced: usize,
}

impl<D: Disk> RunWriter<D> {
    pub(crate) fn new(space: Arc<TableSpace<D>>) -> Self {
        Self { space, builder: None, finished: Vec::new(), run: None, partition: None, unsynced: 0 }
    }

    /// Appends an event. Internal keys rise.
    pub(crate) fn add(&mut self, internal: &[u8], stored: StoredRef<'_>) -> Result<(), Error> {
        let partition = internal_key::partition_of(internal);
        let partition_ends = std::mem::replace(&mut self.partition, partition) != partition;
        if self.builder.as_ref().is_some_and(|builder| builder.is_full(partition_ends)) {
            self.end_table()?;
        }
        if self.builder.is_none() {
            let space = &self.space;
            let number = space.numbers.take();
            self.run.get_or_insert(number);
            let builder = TableBuilder::create(&*space.disk, &space.dir, number, &space.config)?;
            self.builder = Some(builder);
        }
        let builder = self.builder.as_mut().expect("just made");
        builder.add(internal, stored)?;
        self.unsynced += internal.len() + stored.payload.len();
        if SYNC_SIZE <= self.unsynced {
            self.unsynced = 0;
            builder.sync()?;
        }
        Ok(())
    }

    /// Ends the last table and makes all durable. Without any event there are no tables.
    pub(crate) fn finish(&mut self) -> Result<Written<D>, Error> {
        self.end_table()?;
        let TableSpace { disk, dir, cache, .. } = &*self.space;
        if !self.finished.is_empty() {
            disk.sync_dir(dir).map_err(sync_failed(dir))?;
        }
        let open = |entry: &TableEntry| {
            let place = (entry.number, entry.run, entry.size);
            Table::open(&**disk, dir, place, Arc::clone(cache)).map(Arc::new)
        };
        let tables = self.finished.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Written { entries: self.finished.clone(), tables, ..Written::default() })
    }

    /// Removes what was written, as far as the disk lets it.
    pub(crate) fn abandon(self) {
        let finished = self.finished.iter().map(|entry| entry.number);
        for number in finished.chain(self.builder.as_ref().map(TableBuilder::number)) {
            // What stays is an orphan: the next open removes it.
            let _ = self.space.disk.remove(&table::path(&self.space.dir, number));
        }
    }

    fn end_table(&mut self) -> Result<(), Error> {
        let Some(builder) = &mut self.builder else { return Ok(()) };
        let size = builder.finish()?;
        let number = builder.number();
        let run = self.run.expect("a table was begun");
        self.finished.push(TableEntry { number, run, size });
        self.builder = None;
        Ok(())
    }
}
