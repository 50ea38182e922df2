//! Writes a table: events in, in the order of internal keys; blocks and footer out.
//!
//! Invariants:
//!
//! - Memory held is one data block, one write buffer, index and filter of one section, and some bytes for each section
//!   and each partition: it does not grow with the events.
//! - A table counts only after [`TableBuilder::finish`] synced it: a file without footer is an orphan.

use std::mem;

use starling_clock::Stamp;

use super::block::{self, Kind};
use super::bloom::{self, Bloom};
use super::entries::{EntriesBuilder, RESTART_INTERVAL, SEARCHED_RESTART_INTERVAL};
use super::footer::{Bounds, Footer, Handle};
use super::partitions::{PartitionSummary, PartitionsBuilder};
use super::section::SectionHandle;
use crate::TreeConfig;
use crate::disk::{Disk, DiskFile};
use crate::error::Error;
use crate::event::Action;
use crate::tree::internal_key;
use crate::tree::stored::StoredRef;
use crate::tree::sync_failed;
use crate::tree::words::common_prefix;

/// Bytes gathered before they are written.
const WRITE_SIZE: usize = 256 << 10;
/// A table whose list of sections grew to this is full, whatever its size: the list is held in memory.
const SECTIONS_SIZE_MAX: usize = 16 << 20;
/// A section whose index is as large as so many data blocks is full.
const SECTION_BLOCKS: usize = 2;
/// A section with so many keys is full, whatever its size, so that no filter is large.
const SECTION_KEYS_MAX: usize = 1 << 16;

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
    /// What the block being filled begins with: above all keys before it, not above any in it.
    block_lower: Vec<u8>,
    index: EntriesBuilder,
    /// The same for the section being filled.
    section_lower: Vec<u8>,
    /// Of the keys in that section.
    hashes: Vec<u64>,
    sections: EntriesBuilder,
    partitions: PartitionsBuilder,
    /// The partition whose events are being added, and what is known of them.
    partition: Option<(u32, PartitionSummary)>,
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
            block: EntriesBuilder::new(RESTART_INTERVAL),
            block_lower: Vec::new(),
            index: EntriesBuilder::new(SEARCHED_RESTART_INTERVAL),
            section_lower: Vec::new(),
            hashes: Vec::new(),
            sections: EntriesBuilder::new(RESTART_INTERVAL),
            partitions: PartitionsBuilder::new(),
            partition: None,
            prefix: Vec::new(),
            bounds: Bounds {
                partition_least: u32::MAX,
                partition_greatest: 0,
                stamp_least: Stamp::MAX,
                stamp_greatest: Stamp::ZERO,
                events: 0,
                deletes: 0,
                keys: 0,
                bytes: 0,
            },
        })
    }

    /// The number that the table will have.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Whether it is time to begin another table; sooner where a partition ends, so that tables tend to end there too.
    pub(crate) fn is_full(&self, partition_ends: bool) -> bool {
        let bytes = self.written + self.buffer.len() as u64;
        let bytes_max = self.config.table_bytes_max / if partition_ends { 2 } else { 1 };
        bytes_max <= bytes || SECTIONS_SIZE_MAX <= self.sections.size()
    }

    /// Appends an event.
    ///
    /// # Panics
    /// If `internal` is not above the internal key added before, or none at all.
    pub(crate) fn add(&mut self, internal: &[u8], stored: StoredRef<'_>) -> Result<(), Error> {
        let header = stored.short_header();
        let header = header.as_bytes();
        let entry = internal.len() + header.len() + stored.payload.len();
        if !self.block.is_empty() && self.config.block_bytes < self.block.size() + entry {
            self.end_block()?;
        }
        if self.block.is_empty() {
            self.begin_block(internal);
        }
        self.note(internal, stored);
        self.block.add(internal, &[header, stored.payload]);
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
        self.end_section();
        self.end_partition();
        // The least that is above the last key ends the last section.
        let upper = [self.block.last_key(), &[0]].concat();
        self.sections.add(&upper, &[]);
        let mut sections = mem::replace(&mut self.sections, EntriesBuilder::new(1));
        let sections = self.end(Kind::Sections, sections.finish(), true);
        let mut partitions = mem::replace(&mut self.partitions, PartitionsBuilder::new());
        let partitions = self.end(Kind::Partitions, partitions.finish(), true);
        let footer = Footer { table: self.number, sections, partitions, bounds: self.bounds };
        self.buffer.extend_from_slice(&footer.encode());
        self.sync()?;
        Ok(self.written)
    }

    /// Takes the event into what is told of the table, the section and the partition as a whole.
    fn note(&mut self, internal: &[u8], stored: StoredRef<'_>) {
        let partition = internal_key::partition_of(internal).expect("an internal key");
        let stamp = internal_key::stamp_of(internal).expect("an internal key");
        if self.partition.as_ref().is_none_or(|(current, _)| *current != partition) {
            self.end_partition();
            self.partition = Some((partition, PartitionSummary::default()));
        }
        let (_, summary) = self.partition.as_mut().expect("just set");
        let prefix = internal_key::prefix_of(internal);
        let is_new = self.bounds.events == 0 || self.prefix != prefix;
        if is_new {
            self.prefix.clear();
            self.prefix.extend_from_slice(prefix);
            self.bounds.keys += 1;
            summary.keys += 1;
        }
        // The filter of each section that has versions of a key has the key.
        if is_new || self.hashes.is_empty() {
            self.hashes.push(bloom::key_hash(prefix));
        }
        let bytes = (internal.len() + stored.payload.len()) as u64;
        let deletes = u64::from(stored.action == Action::Delete);
        summary.digest.add(internal_key::id_hash(internal));
        summary.deletes += deletes;
        summary.bytes += bytes;
        let bounds = &mut self.bounds;
        bounds.partition_least = bounds.partition_least.min(partition);
        bounds.partition_greatest = bounds.partition_greatest.max(partition);
        bounds.stamp_least = bounds.stamp_least.min(stamp);
        bounds.stamp_greatest = bounds.stamp_greatest.max(stamp);
        bounds.events += 1;
        bounds.deletes += deletes;
        bounds.bytes += bytes;
    }

    /// The block to come begins with the shortest part of its first key that is above the key before, but in the first
    /// block of the table, where the whole key tells what lies before the table.
    fn begin_block(&mut self, first: &[u8]) {
        let before = self.block.last_key();
        let lower = match self.bounds.events {
            0 => first,
            _ => &first[..=common_prefix(before, first)],
        };
        self.block_lower.clear();
        self.block_lower.extend_from_slice(lower);
        if self.index.is_empty() {
            self.section_lower.clear();
            self.section_lower.extend_from_slice(lower);
        }
    }

    fn end_block(&mut self) -> Result<(), Error> {
        let mut block = mem::replace(&mut self.block, EntriesBuilder::new(RESTART_INTERVAL));
        let handle = self.end(Kind::Data, block.finish(), true);
        block.clear();
        self.block = block;
        self.index.add(&self.block_lower, &[&handle.to_bytes()]);
        if SECTION_BLOCKS * self.config.block_bytes <= self.index.size()
            || SECTION_KEYS_MAX <= self.hashes.len()
        {
            self.end_section();
        }
        if WRITE_SIZE <= self.buffer.len() { self.write_buffer() } else { Ok(()) }
    }

    fn end_section(&mut self) {
        if self.index.is_empty() {
            return;
        }
        let filter = Bloom::build(&self.hashes, self.config.bloom_bits_per_key);
        self.hashes.clear();
        let filter = self.end(Kind::Filter, filter.bytes(), false);
        let fresh = EntriesBuilder::new(SEARCHED_RESTART_INTERVAL);
        let mut index = mem::replace(&mut self.index, fresh);
        let handle = self.end(Kind::Index, index.finish(), true);
        index.clear();
        self.index = index;
        let handle = SectionHandle { index: handle, filter };
        self.sections.add(&self.section_lower, &[handle.to_bytes().as_flattened()]);
    }

    fn end_partition(&mut self) {
        if let Some((partition, summary)) = self.partition.take() {
            self.partitions.add(partition, &summary);
        }
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
