//! Reads a table: point reads, and a cursor over a range of it.
//!
//! Invariants:
//!
//! - Index and filter are in memory while the table is open; data blocks come through the cache.
//! - Nothing read is believed before its checksum was checked and its lengths were bounded by the file's.
//! - Damage is an [`Error::Corrupt`] that names file and offset, never a panic and never a wrong event.

use std::sync::Arc;

use bytes::Bytes;

use super::block::{self, Kind};
use super::bloom::Bloom;
use super::cache::BlockCache;
use super::entries::{Entries, EntriesCursor};
use super::footer::{Bounds, FOOTER_SIZE, Footer, FooterError, Handle, VERSION};
use crate::disk::{Disk, DiskFile};
use crate::error::Error;
use crate::tree::internal_key::{self, INTERNAL_KEY_SIZE_MAX, INTERNAL_KEY_SIZE_MIN};
use crate::tree::stored::Stored;

/// An open table.
pub(crate) struct Table<F> {
    number: u64,
    /// Which sorted run it is part of.
    run: u64,
    size: u64,
    path: String,
    file: F,
    bounds: Bounds,
    index: Entries,
    filter: Bloom,
    cache: Arc<BlockCache>,
}

impl<F: DiskFile> Table<F> {
    /// Opens table `number`, which the manifest says is `size` bytes long.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Corrupt`], [`Error::NewerFormat`], or [`Error::Io`].
    pub(crate) fn open<D: Disk<File = F>>(
        disk: &D,
        dir: &str,
        (number, run, size): (u64, u64, u64),
        cache: Arc<BlockCache>,
    ) -> Result<Self, Error> {
        let path = super::path(dir, number);
        let file = disk.open(&path).map_err(Error::io("open", &path))?;
        let found = file.len().map_err(Error::io("measure", &path))?;
        if found != size {
            return Err(Error::corrupt(&path, found.min(size), "the table's length"));
        }
        let footer = read_footer(&file, &path, size)?;
        if footer.table != number {
            return Err(Error::corrupt(&path, size, "the table's number"));
        }
        let index = read_block(&file, &path, size, footer.index, Kind::Index)?;
        let damaged = |_| Error::corrupt(&path, footer.index.offset, "the table's index");
        let index = Entries::new(index).map_err(damaged)?;
        let filter = read_block(&file, &path, size, footer.filter, Kind::Filter)?;
        let filter = Bloom::from_bytes(filter);
        Ok(Self { number, run, size, path, file, bounds: footer.bounds, index, filter, cache })
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn run(&self) -> u64 {
        self.run
    }

    /// Length of the file, in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// Memory held while it is open, in bytes.
    pub(crate) fn pinned_bytes(&self) -> usize {
        self.index.size() + self.filter.bytes().len()
    }

    /// Whether it has events of this partition, or may.
    pub(crate) fn spans(&self, partition: u32) -> bool {
        self.bounds.partition_least <= partition && partition <= self.bounds.partition_greatest
    }

    /// Whether it may have a version of the key with this [`super::key_hash`].
    pub(crate) fn may_contain(&self, partition: u32, hash: u64) -> bool {
        self.spans(partition) && self.filter.may_contain(hash)
    }

    /// The block at `handle`; merges pass `keep` as false, so that they don't drive out what readers need.
    fn block(&self, handle: Handle, keep: bool) -> Result<Entries, Error> {
        if let Some(block) = self.cache.get(self.number, handle.offset) {
            return Ok(block);
        }
        let bytes = read_block(&self.file, &self.path, self.size, handle, Kind::Data)?;
        let block = Entries::new(bytes).map_err(|_| self.damaged(handle))?;
        if keep {
            self.cache.insert(self.number, handle.offset, block.clone());
        }
        Ok(block)
    }

    fn damaged(&self, handle: Handle) -> Error {
        Error::corrupt(&self.path, handle.offset, "a table block")
    }

    fn index_damaged(&self) -> Error {
        Error::corrupt(&self.path, 0, "the table's index")
    }
}

fn read_footer<F: DiskFile>(file: &F, path: &str, size: u64) -> Result<Footer, Error> {
    let offset = size
        .checked_sub(FOOTER_SIZE as u64)
        .ok_or_else(|| Error::corrupt(path, 0, "a table without footer"))?;
    let mut bytes = [0; FOOTER_SIZE];
    let read = file.read_full_at(&mut bytes, offset).map_err(Error::io("read", path))?;
    if read != FOOTER_SIZE {
        return Err(Error::corrupt(path, offset, "the table's footer"));
    }
    Footer::decode(&bytes).map_err(|error| match error {
        FooterError::Damaged => Error::corrupt(path, offset, "the table's footer"),
        FooterError::Newer { version } => {
            Error::NewerFormat { file: path.to_owned(), found: version, supported: VERSION }
        }
    })
}

fn read_block<F: DiskFile>(
    file: &F,
    path: &str,
    size: u64,
    handle: Handle,
    kind: Kind,
) -> Result<Bytes, Error> {
    let damaged = || Error::corrupt(path, handle.offset, "a table block");
    let end = handle.offset.checked_add(u64::from(handle.length)).ok_or_else(damaged)?;
    if size < end {
        return Err(damaged());
    }
    let mut bytes = vec![0; handle.length as usize];
    let read = file.read_full_at(&mut bytes, handle.offset).map_err(Error::io("read", path))?;
    if read != bytes.len() {
        return Err(damaged());
    }
    block::decode(kind, &bytes.into()).map_err(|_| damaged())
}

/// Walks a table in the order of internal keys.
pub(crate) struct TableCursor<F> {
    table: Arc<Table<F>>,
    keep: bool,
    index: EntriesCursor,
    block: Option<EntriesCursor>,
    handle: Handle,
}

impl<F: DiskFile> TableCursor<F> {
    /// A cursor on the first event at or after `from`. `keep`: whether blocks read stay in the cache.
    pub(crate) fn seek(table: Arc<Table<F>>, from: &[u8], keep: bool) -> Result<Self, Error> {
        let index = EntriesCursor::new(table.index.clone());
        let mut cursor = Self { table, keep, index, block: None, handle: Handle::default() };
        cursor.reseek(from)?;
        Ok(cursor)
    }

    /// Moves to the first event at or after `from`, forward or back.
    pub(crate) fn reseek(&mut self, from: &[u8]) -> Result<(), Error> {
        self.block = None;
        self.index.seek(from).map_err(|_| self.table.index_damaged())?;
        self.enter_block()?;
        let Some(block) = &mut self.block else { return Ok(()) };
        block.seek(from).map_err(|_| self.table.damaged(self.handle))?;
        self.settle()
    }

    /// The internal key of the event, `None` past the last one.
    pub(crate) fn key(&self) -> Option<&[u8]> {
        self.block.as_ref().map(EntriesCursor::key)
    }

    /// # Errors
    /// [`Error::Corrupt`] if it is not what was written.
    ///
    /// # Panics
    /// If the cursor is past the last event.
    pub(crate) fn stored(&self) -> Result<Stored, Error> {
        let block = self.block.as_ref().expect("the cursor is on an event");
        Stored::decode(&block.value()).ok_or_else(|| self.table.damaged(self.handle))
    }

    /// Moves to the next event.
    pub(crate) fn advance(&mut self) -> Result<(), Error> {
        let Some(block) = &mut self.block else { return Ok(()) };
        block.advance().map_err(|_| self.table.damaged(self.handle))?;
        self.settle()
    }

    /// Opens the block that the index is on, and stays before its first entry.
    fn enter_block(&mut self) -> Result<(), Error> {
        if !self.index.valid() {
            return Ok(());
        }
        let handle = Handle::from_bytes(&self.index.value());
        self.handle = handle.ok_or_else(|| self.table.index_damaged())?;
        self.block = Some(EntriesCursor::new(self.table.block(self.handle, self.keep)?));
        Ok(())
    }

    /// Goes on to the next block while this one is at its end; then checks that what it is on is an internal key.
    fn settle(&mut self) -> Result<(), Error> {
        while let Some(block) = &self.block {
            if block.valid() {
                let size = block.key().len();
                let sound = (INTERNAL_KEY_SIZE_MIN..=INTERNAL_KEY_SIZE_MAX).contains(&size)
                    && internal_key::stamp_of(block.key()).is_some();
                return if sound { Ok(()) } else { Err(self.table.damaged(self.handle)) };
            }
            self.block = None;
            self.index.advance().map_err(|_| self.table.index_damaged())?;
            self.enter_block()?;
            if let Some(block) = &mut self.block {
                block.first().map_err(|_| self.table.damaged(self.handle))?;
            }
        }
        Ok(())
    }
}
