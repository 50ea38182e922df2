//! Writes a table: events in, in the order of internal keys; data blocks, index, filter and footer out.
//!
//! Invariants:
//!
//! - Memory held is one block, one write buffer, the index, and 8 bytes for each distinct key.
//! - A table counts only after [`TableBuilder::finish`] synced it: a file without footer is an orphan.

use starling_clock::Stamp;

use super::block::{self, Kind};
use super::bloom::{self, Bloom};
use super::entries::EntriesBuilder;
use super::footer::{Bounds, Footer, Handle};
use crate::TreeConfig;
use crate::disk::{Disk, DiskFile};
use crate::error::Error;
use crate::event::Action;
use crate::tree::internal_key;
use crate::tree::stored::Stored;
use crate::tree::sync_failed;

/// Bytes gathered before they are written.
const WRITE_SIZE: usize = 256 << 10;
/// A table whose index grew to this is full, whatever its size: the index is held in memory.
const INDEX_SIZE_MAX: usize = 64 << 20;

/// A table in the making.
pub(crate) struct TableBuilder<D: Disk> {
    number: u64,
    path: String,
    file: D::File,
    config: TreeConfig,
    /// Bytes written to the file.
    written: u64,
    /// Bytes that follow those.
    buffer: Vec<u8>,
    block: EntriesBuilder,
    index: EntriesBuilder,
    hashes: Vec<u64>,
    /// The key whose versions are being added.
    prefix: Vec<u8>,
    bounds: Bounds,
}

impl<D: Disk> TableBuilder<D> {
    /// Creates the file.
    pub(crate) fn create(
        disk: &D,
        dir: &str,
        number: u64,
        config: &TreeConfig,
    ) -> Result<Self, Error> {
        let path = super::path(dir, number);
        let file = disk.create(&path).map_err(Error::io("create", &path))?;
        Ok(Self {
            number,
            path,
            file,
            config: config.clone(),
            written: 0,
            buffer: Vec::new(),
            block: EntriesBuilder::default(),
            index: EntriesBuilder::default(),
            hashes: Vec::new(),
            prefix: Vec::new(),
            bounds: Bounds {
                partition_least: u32::MAX,
                partition_greatest: 0,
                stamp_least: Stamp::MAX,
                stamp_greatest: Stamp::ZERO,
                events: 0,
                deletes: 0,
                keys: 0,
            },
        })
    }

    /// The number that the table will have.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Whether it is time to begin another table.
    pub(crate) fn is_full(&self) -> bool {
        let bytes = self.written + self.buffer.len() as u64;
        self.config.table_bytes_max <= bytes || INDEX_SIZE_MAX <= self.index.size()
    }

    /// Appends an event.
    ///
    /// # Panics
    /// If `internal` is not above the internal key added before, or none at all.
    pub(crate) fn add(&mut self, internal: &[u8], stored: &Stored) -> Result<(), Error> {
        let partition = internal_key::partition_of(internal).expect("an internal key");
        let stamp = internal_key::stamp_of(internal).expect("an internal key");
        let prefix = internal_key::prefix_of(internal);
        if self.bounds.keys == 0 || self.prefix != prefix {
            self.prefix.clear();
            self.prefix.extend_from_slice(prefix);
            self.hashes.push(bloom::key_hash(prefix));
            self.bounds.keys += 1;
        }
        self.bounds.partition_least = self.bounds.partition_least.min(partition);
        self.bounds.partition_greatest = self.bounds.partition_greatest.max(partition);
        self.bounds.stamp_least = self.bounds.stamp_least.min(stamp);
        self.bounds.stamp_greatest = self.bounds.stamp_greatest.max(stamp);
        self.bounds.events += 1;
        self.bounds.deletes += u64::from(stored.action == Action::Delete);

        let entry = internal.len() + stored.payload.len();
        if !self.block.is_empty() && self.config.block_bytes < self.block.size() + entry {
            self.end_block()?;
        }
        self.block.add(internal, &[&stored.header(), &stored.payload]);
        Ok(())
    }

    /// Makes durable what was written so far, so that [`Self::finish`] has less to wait for.
    pub(crate) fn sync(&mut self) -> Result<(), Error> {
        self.write_buffer()?;
        self.file.sync().map_err(sync_failed(&self.path))
    }

    /// Writes the rest, syncs, and tells how long the file is.
    ///
    /// # Panics
    /// If no event was added since it was created.
    pub(crate) fn finish(&mut self) -> Result<u64, Error> {
        assert!(0 < self.bounds.events);
        self.end_block()?;
        let mut index = std::mem::take(&mut self.index);
        let index = self.end(Kind::Index, index.finish(), true);
        let filter = Bloom::build(&self.hashes, self.config.bloom_bits_per_key);
        let filter = self.end(Kind::Filter, filter.bytes(), false);
        let footer = Footer { table: self.number, index, filter, bounds: self.bounds };
        self.buffer.extend_from_slice(&footer.encode());
        self.sync()?;
        Ok(self.written)
    }

    fn end_block(&mut self) -> Result<(), Error> {
        let mut block = std::mem::take(&mut self.block);
        let handle = self.end(Kind::Data, block.finish(), true);
        self.index.add(block.last_key(), &[&handle.to_bytes()]);
        block.clear();
        self.block = block;
        if WRITE_SIZE <= self.buffer.len() { self.write_buffer() } else { Ok(()) }
    }

    fn end(&mut self, kind: Kind, contents: &[u8], compress: bool) -> Handle {
        let start = self.buffer.len();
        block::encode(kind, contents, compress, &mut self.buffer);
        let length = u32::try_from(self.buffer.len() - start).expect("bounded by BLOCK_SIZE_MAX");
        Handle { offset: self.written + start as u64, length }
    }

    fn write_buffer(&mut self) -> Result<(), Error> {
        self.file.write_at(&self.buffer, self.written).map_err(Error::io("write", &self.path))?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}
