//! [`Table`]: an open table, and point reads of it. `cursor.rs` walks one.
//!
//! Invariants:
//!
//! - In memory while the table is open are its footer and its list of sections only; all other blocks, indexes and filters
//!   too, come through the cache and count against its bound.
//! - Nothing read is believed before its checksum was checked and its lengths were bounded by the file's.
//! - Damage is an [`Error::Corrupt`] that names file and offset, never a panic and never a wrong event.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use starling_clock::Stamp;

use super::block::{self, Damaged, Kind};
use super::buffers::Buffers;
use super::cache::{BlockCache, CachedBlock};
use super::cursor::TableCursor;
use super::entries::{Entries, EntriesBlock, Found};
use super::footer::{Bounds, FOOTER_SIZE, Footer, FooterError, Handle, VERSION};
use super::index::Index;
use super::partitions::{self, PartitionSummary};
use super::section::{Section, SectionHandle};
use super::slot::Slot;
use crate::disk::{Disk, DiskFile};
use crate::error::Error;
use crate::tree::digests::KnownDigests;
use crate::tree::hidden::Hidden;
use crate::tree::internal_key;
use crate::tree::stored::{Stored, StoredRef};

/// An event that a point read found, not yet read.
pub(crate) struct FoundEvent {
    pub(crate) stamp: Stamp,
    pub(super) block: Entries,
    pub(super) value: Range<usize>,
}

impl FoundEvent {
    /// The rest of the event, where it lies; `None` if that is not what was written.
    pub(crate) fn borrowed(&self) -> Option<StoredRef<'_>> {
        StoredRef::decode(self.block.slice(self.value.clone()))
    }

    /// The same with a payload of its own.
    pub(crate) fn stored(&self) -> Option<Stored> {
        let StoredRef { action, request, payload } = self.borrowed()?;
        let payload = self.block.value(self.value.end - payload.len()..self.value.end);
        Some(Stored { action, request, payload })
    }
}

/// An open table.
pub(crate) struct Table<F> {
    number: u64,
    /// Which sorted run it is part of.
    run: u64,
    size: u64,
    path: String,
    pub(super) file: F,
    bounds: Bounds,
    sections: Index<SectionHandle>,
    /// Each of the sections.
    slots: Box<[Slot<Section>]>,
    /// The least key above all keys.
    upper: Box<[u8]>,
    /// Where the list of sections begins: data ends before.
    pub(super) sections_at: Handle,
    partitions: Handle,
    cache: Arc<BlockCache>,
    hidden: Hidden,
    digests: KnownDigests,
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
        let file = disk.open_read(&path).map_err(Error::io("open", &path))?;
        let found = file.len().map_err(Error::io("measure", &path))?;
        if found != size {
            return Err(Error::corrupt(&path, found.min(size), "the table's length"));
        }
        let footer = read_footer(&file, &path, size)?;
        if footer.table != number {
            return Err(Error::corrupt(&path, size, "the table's number"));
        }
        let damaged = |_| Error::corrupt(&path, footer.sections.offset, "a table block");
        let contents =
            read_block(&file, (&path, size), footer.sections, Kind::Sections, cache.buffers())?;
        let (sections, upper) = sections(contents).map_err(damaged)?;
        Ok(Self {
            number,
            run,
            size,
            path,
            file,
            bounds: footer.bounds,
            slots: Slot::list(sections.len()),
            sections,
            upper,
            sections_at: footer.sections,
            partitions: footer.partitions,
            cache,
            hidden: Hidden::default(),
            digests: KnownDigests::default(),
        })
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

    /// The first key, and the least key above the last one.
    #[cfg(test)]
    pub(crate) fn key_range(&self) -> (&[u8], &[u8]) {
        (self.sections.key(0), &self.upper)
    }

    /// Memory held while it is open, in bytes.
    pub(crate) fn pinned_bytes(&self) -> usize {
        self.sections.size()
            + size_of_val(&*self.slots)
            + self.upper.len()
            + self.path.len()
            + size_of::<Self>()
    }

    /// Whether it has events of this partition, or may; none that were dropped count.
    pub(crate) fn spans(&self, partition: u32) -> bool {
        self.bounds.partition_least <= partition
            && partition <= self.bounds.partition_greatest
            && !self.hidden.has(partition)
    }

    /// Partitions whose events in it were dropped.
    pub(crate) fn hidden(&self) -> &Hidden {
        &self.hidden
    }

    /// What was found out of the keyspaces in it.
    pub(in crate::tree) fn known_digests(&self) -> &KnownDigests {
        &self.digests
    }

    /// Hides what it has of a partition, which was dropped.
    pub(crate) fn hide(&self, partition: u32) {
        // If that can't be read it is merged the later for it.
        let events = self.summary(partition).ok().flatten().map_or(0, |found| found.digest.events);
        self.hidden.hide(partition, events);
    }

    /// Whether it may have an event of a key at or after `from`, which is an internal key of that key. `hash` is the key's
    /// [`super::key_hash`].
    ///
    /// # Errors
    /// [`Error::Corrupt`] or [`Error::Io`] if the filter can't be read: nobody knows then.
    pub(crate) fn may_contain(&self, from: &[u8], hash: u64) -> Result<bool, Error> {
        let Some(section) = self.section_of(from) else { return Ok(false) };
        if self.section(section, true)?.filter.may_contain(hash) {
            return Ok(true);
        }
        // The versions of a key may go on in the next section.
        let prefix = internal_key::prefix_of(from);
        Ok(self.lower_of(section + 1).starts_with(prefix))
    }

    /// The first event at or after `target`, an internal key, if it is of the same key. `hash` is the key's
    /// [`super::key_hash`].
    ///
    /// # Errors
    /// [`Error::Corrupt`] or [`Error::Io`] if what may have it can't be read.
    pub(crate) fn get(
        self: &Arc<Self>,
        target: &[u8],
        hash: u64,
    ) -> Result<Option<FoundEvent>, Error> {
        let Some(number) = self.section_of(target) else { return Ok(None) };
        let section = self.section(number, true)?;
        let prefix = internal_key::prefix_of(target);
        // The versions of a key may go on in the next section, and in the next block.
        let after = || self.lower_of(number + 1).starts_with(prefix);
        if !section.filter.may_contain(hash) && !after() {
            return Ok(None);
        }
        let place = section.index.floor(target);
        let handle = *section.index.value(place);
        let block = match self.cached_data(&section, place)? {
            Some(block) => block,
            None => self.read_data(&section, place, true)?,
        };
        if let Some(found) = block.find(target).map_err(|_| self.damaged(handle))? {
            if !block.begins_with(&found, target, prefix.len()) {
                return Ok(None);
            }
            let stamp = stamp_of(&block, &found, target).ok_or_else(|| self.damaged(handle))?;
            return Ok(Some(FoundEvent { stamp, block, value: found.value }));
        }
        let goes_on = if place + 1 < section.index.len() {
            section.index.key(place + 1).starts_with(prefix)
        } else {
            after()
        };
        if !goes_on {
            return Ok(None);
        }
        let cursor = TableCursor::seek(Arc::clone(self), target, true)?;
        Ok(cursor.into_found().filter(|(key, _)| key.starts_with(prefix)).map(|(_, found)| found))
    }

    /// What it has of `partition`; `None` if nothing.
    ///
    /// # Errors
    /// [`Error::Corrupt`] or [`Error::Io`] if that can't be read.
    pub(crate) fn summary(&self, partition: u32) -> Result<Option<PartitionSummary>, Error> {
        if !self.spans(partition) {
            return Ok(None);
        }
        let entries = self.entries(self.partitions, Kind::Partitions)?;
        partitions::find(&entries, partition).map_err(|_| self.damaged(self.partitions))
    }

    /// The partitions that it has events of, and what it has of them.
    ///
    /// # Errors
    /// [`Error::Corrupt`] or [`Error::Io`] if that can't be read.
    pub(crate) fn summaries(&self) -> Result<Vec<(u32, PartitionSummary)>, Error> {
        let entries = self.entries(self.partitions, Kind::Partitions)?;
        partitions::list(entries).map_err(|_| self.damaged(self.partitions))
    }

    /// About how many bytes of the file lie before `key`, to within a block.
    ///
    /// # Errors
    /// [`Error::Corrupt`] or [`Error::Io`] if an index can't be read.
    pub(crate) fn offset_of(&self, key: &[u8]) -> Result<u64, Error> {
        let Some(section) = self.section_of(key) else { return Ok(self.sections_at.offset) };
        let section = self.section(section, true)?;
        Ok(section.index.value(section.index.floor(key)).offset)
    }

    /// The section that has the first event at or after `target`, or else the one before that; `None` past the end.
    pub(super) fn section_of(&self, target: &[u8]) -> Option<usize> {
        if *self.upper <= *target {
            return None;
        }
        Some(self.sections.floor(target))
    }

    /// The first event's internal key, if the table is sound.
    pub(super) fn first_key(&self) -> &[u8] {
        self.sections.key(0)
    }

    /// The last event's internal key, if the table is sound.
    pub(super) fn last_key(&self) -> Option<&[u8]> {
        self.upper.strip_suffix(&[0])
    }

    /// How many sections there are.
    pub(super) fn sections(&self) -> usize {
        self.sections.len()
    }

    /// What the section of this number begins with, or what ends the last one.
    fn lower_of(&self, section: usize) -> &[u8] {
        if section < self.sections.len() { self.sections.key(section) } else { &self.upper }
    }

    /// The section of this number; `keep`: whether it stays in the cache.
    pub(super) fn section(&self, number: usize, keep: bool) -> Result<Arc<Section>, Error> {
        let slot = &self.slots[number];
        if let Some(section) = slot.get() {
            return Ok(section);
        }
        let at = *self.sections.value(number);
        match self.cache.get(self.number, at.filter.offset) {
            Some(CachedBlock::Section(section)) => {
                slot.found(&section);
                return Ok(section);
            }
            Some(CachedBlock::Entries(_)) => return Err(self.damaged(at.filter)),
            None => {}
        }
        let whole = at.whole().ok_or_else(|| self.damaged(at.filter))?;
        let buffers = self.buffers();
        let whole = read_bytes(&self.file, (&self.path, self.size), whole, buffers)?;
        // The filter is a copy, or it would keep the bytes of the index too.
        let (filter, index) =
            (whole.slice(..at.filter.length as usize), whole.slice(at.filter.length as usize..));
        let filter = block::decode_copy(Kind::Filter, &filter, buffers);
        let filter = filter.map_err(|_| self.damaged(at.filter))?;
        let index = block::decode(Kind::Index, &index, buffers);
        let index = index.map_err(|_| self.damaged(at.index))?;
        let section = Section::new(filter, index).map_err(|_| self.damaged(at.index))?;
        let section = Arc::new(section);
        if keep {
            let cached = CachedBlock::Section(Arc::clone(&section));
            self.cache.insert(self.number, at.filter.offset, cached);
            slot.read(&section);
        }
        Ok(section)
    }

    /// The data block at `place` of the section, if it is in the cache.
    pub(super) fn cached_data(
        &self,
        section: &Section,
        place: usize,
    ) -> Result<Option<Entries>, Error> {
        let slot = &section.slots[place];
        if let Some(entries) = slot.get() {
            return Ok(Some(entries));
        }
        let cached = self.cached(*section.index.value(place))?;
        if let Some(entries) = &cached {
            slot.found(entries);
        }
        Ok(cached)
    }

    /// The data block at `place` of the section, from the file; `keep`: whether it stays in the cache.
    pub(super) fn read_data(
        &self,
        section: &Section,
        place: usize,
        keep: bool,
    ) -> Result<Entries, Error> {
        let entries = self.read(*section.index.value(place), Kind::Data, keep)?;
        if keep {
            section.slots[place].read(&entries);
        }
        Ok(entries)
    }

    fn cached(&self, handle: Handle) -> Result<Option<Entries>, Error> {
        match self.cache.get(self.number, handle.offset) {
            Some(CachedBlock::Entries(entries)) => Ok(Some(entries)),
            Some(CachedBlock::Section(_)) => Err(self.damaged(handle)),
            None => Ok(None),
        }
    }

    /// The block at `handle`, from the cache or the file.
    fn entries(&self, handle: Handle, kind: Kind) -> Result<Entries, Error> {
        match self.cached(handle)? {
            Some(entries) => Ok(entries),
            None => self.read(handle, kind, true),
        }
    }

    fn read(&self, handle: Handle, kind: Kind, keep: bool) -> Result<Entries, Error> {
        let contents =
            read_block(&self.file, (&self.path, self.size), handle, kind, self.buffers())?;
        let entries = EntriesBlock::open(contents).map_err(|_| self.damaged(handle))?;
        if keep {
            self.cache.insert(self.number, handle.offset, CachedBlock::Entries(entries.clone()));
        }
        Ok(entries)
    }

    /// What its blocks are read into.
    pub(super) fn buffers(&self) -> &Arc<Buffers> {
        self.cache.buffers()
    }

    /// The file, in the data directory.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn damaged(&self, handle: Handle) -> Error {
        Error::corrupt(&self.path, handle.offset, "a table block")
    }
}

/// The sections, one at the least, and the key that ends the last one.
pub(super) fn sections(contents: Bytes) -> Result<(Index<SectionHandle>, Box<[u8]>), Damaged> {
    // The last entry has no value; nor has any other.
    let decode = |value: &[u8]| match value {
        [] => Some(None),
        _ => SectionHandle::from_bytes(value).map(Some),
    };
    let mut index = Index::new(contents, decode)?;
    let Some((upper, None)) = index.pop() else { return Err(Damaged) };
    Ok((index.unwrap_all().ok_or(Damaged)?, upper))
}

/// The contents of the block at `handle`, from the file.
pub(super) fn read_block<F: DiskFile>(
    file: &F,
    (path, size): (&str, u64),
    handle: Handle,
    kind: Kind,
    buffers: &Arc<Buffers>,
) -> Result<Bytes, Error> {
    let bytes = read_bytes(file, (path, size), handle, buffers)?;
    let damaged = |_| Error::corrupt(path, handle.offset, "a table block");
    block::decode(kind, &bytes, buffers).map_err(damaged)
}

/// What lies at `handle`, from the file.
pub(super) fn read_bytes<F: DiskFile>(
    file: &F,
    (path, size): (&str, u64),
    handle: Handle,
    buffers: &Arc<Buffers>,
) -> Result<Bytes, Error> {
    let damaged = || Error::corrupt(path, handle.offset, "a table block");
    let end = handle.offset.checked_add(u64::from(handle.length));
    if end.is_none_or(|end| size < end) {
        return Err(damaged());
    }
    buffers.filled(handle.length as usize, |bytes| {
        let read = file.read_full_at(bytes, handle.offset).map_err(Error::io("read", path))?;
        if read == bytes.len() { Ok(()) } else { Err(damaged()) }
    })
}

/// The stamp of what a search for `target` found, which is of the same key; `None` if it is no event.
fn stamp_of(block: &Entries, found: &Found, target: &[u8]) -> Option<Stamp> {
    let suffix = block.slice(found.suffix.clone());
    if found.shared + suffix.len() != target.len() {
        return None;
    }
    // The first bytes may be those of the target's stamp.
    let mut stamp = *target.last_chunk::<{ Stamp::SIZE }>()?;
    let own = suffix.len().min(Stamp::SIZE);
    stamp[Stamp::SIZE - own..].copy_from_slice(&suffix[suffix.len() - own..]);
    internal_key::stamp_of(&stamp)
}

pub(super) fn read_footer<F: DiskFile>(file: &F, path: &str, size: u64) -> Result<Footer, Error> {
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
