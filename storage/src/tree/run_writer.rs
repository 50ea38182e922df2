//! [`RunWriter`]: writes a sorted run, that is one table or several whose ranges of keys don't overlap.
//!
//! Invariants:
//!
//! - What [`RunWriter::finish`] names is durable: files, their contents and their directory entries.
//! - What was begun and is not wanted is removed by [`RunWriter::abandon`], or at the next open.

use std::sync::Arc;

use super::manifest::TableEntry;
use super::stored::Stored;
use super::sync_failed;
use super::table::{self, BlockCache, Table, TableBuilder};
use crate::TreeConfig;
use crate::disk::Disk;
use crate::error::Error;

/// What is written is synced each time this many bytes have come together, so that no sync takes long.
const SYNC_SIZE: usize = 4 << 20;

/// Gives out table numbers, each once.
pub(crate) struct TableNumbers(pub(crate) u64);

impl TableNumbers {
    fn take(&mut self) -> u64 {
        self.0 += 1;
        self.0 - 1
    }
}

/// Tables that are durable and not yet in the manifest.
pub(crate) struct Written<D: Disk> {
    pub(crate) entries: Vec<TableEntry>,
    pub(crate) tables: Vec<Arc<Table<D::File>>>,
}

/// A run in the making.
pub(crate) struct RunWriter<D: Disk> {
    disk: Arc<D>,
    dir: String,
    config: TreeConfig,
    builder: Option<TableBuilder<D>>,
    finished: Vec<TableEntry>,
    run: Option<u64>,
    unsynced: usize,
}

impl<D: Disk> RunWriter<D> {
    pub(crate) fn new(disk: Arc<D>, dir: &str, config: &TreeConfig) -> Self {
        Self {
            disk,
            dir: dir.to_owned(),
            config: config.clone(),
            builder: None,
            finished: Vec::new(),
            run: None,
            unsynced: 0,
        }
    }

    /// Appends an event. Internal keys rise.
    pub(crate) fn add(
        &mut self,
        numbers: &mut TableNumbers,
        internal: &[u8],
        stored: &Stored,
    ) -> Result<(), Error> {
        if self.builder.as_ref().is_some_and(TableBuilder::is_full) {
            self.end_table()?;
        }
        if self.builder.is_none() {
            let number = numbers.take();
            self.run.get_or_insert(number);
            let builder = TableBuilder::create(&*self.disk, &self.dir, number, &self.config)?;
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
    pub(crate) fn finish(&mut self, cache: &Arc<BlockCache>) -> Result<Written<D>, Error> {
        self.end_table()?;
        if !self.finished.is_empty() {
            self.disk.sync_dir(&self.dir).map_err(sync_failed(&self.dir))?;
        }
        let open = |entry: &TableEntry| {
            let place = (entry.number, entry.run, entry.size);
            Table::open(&*self.disk, &self.dir, place, Arc::clone(cache)).map(Arc::new)
        };
        let tables = self.finished.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Written { entries: self.finished.clone(), tables })
    }

    /// Removes what was written, as far as the disk lets it.
    pub(crate) fn abandon(self) {
        let finished = self.finished.iter().map(|entry| entry.number);
        for number in finished.chain(self.builder.as_ref().map(TableBuilder::number)) {
            // What stays is an orphan: the next open removes it.
            let _ = self.disk.remove(&table::path(&self.dir, number));
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
