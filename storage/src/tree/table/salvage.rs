//! Reads what is good of a damaged table, block by block. For tools.
//!
//! Invariants:
//!
//! - An event is given only from a block whose checksum is good, and only in rising order of internal keys.
//! - Blocks are found by what is good of the table itself: its index, and where that is not, from one good block to the next by
//!   their lengths. Nothing is guessed from bytes that happen to look like a block: what a client wrote could be made to.
//! - What is not given is told with its place. Memory is one block, one index, and the list of sections.

use std::sync::Arc;

use bytes::Bytes;

use super::block::{HEADER_SIZE, Kind};
use super::buffers::Buffers;
use super::entries::{EntriesBlock, EntriesCursor};
use super::footer::{Bounds, Handle};
use super::index::Index;
use super::reader::{read_block, read_bytes, read_footer, sections};
use super::section::SectionHandle;
use crate::disk::{Disk, DiskFile};
use crate::error::Error;
use crate::tree::internal_key;
use crate::tree::stored::StoredRef;

/// Blocks have about so many bytes. Others take a little longer.
const BLOCK_BYTES: usize = 4 << 10;

/// What lies in the table, in the order of the file.
pub(crate) enum Salvaged<'a> {
    /// A good event: internal key and the rest.
    Event(&'a [u8], StoredRef<'a>),
    /// Bytes from this offset on that held events, maybe, and cannot be read.
    Lost { offset: u64 },
}

type Visit<'a> = &'a mut dyn FnMut(Salvaged<'_>) -> Result<(), Error>;

/// Hands what can be read of table `number`, which should be `size` bytes long, to `visit`. Tells what its footer says, if that can
/// be read.
///
/// # Errors
/// A file that cannot be opened, or whatever `visit` answers.
pub(crate) fn salvage<D: Disk>(
    disk: &D,
    dir: &str,
    (number, size): (u64, u64),
    visit: &mut dyn FnMut(Salvaged<'_>) -> Result<(), Error>,
) -> Result<Option<Bounds>, Error> {
    let path = super::path(dir, number);
    let file = disk.open_read(&path).map_err(Error::io("open", &path))?;
    let length = file.len().map_err(Error::io("measure", &path))?;
    // What was appended to a table is no part of it; what was cut off has taken the footer along.
    let size = size.min(length);
    let footer = read_footer(&file, &path, size).ok().filter(|footer| footer.table == number);
    let buffers = Arc::new(Buffers::new(BLOCK_BYTES));
    let mut walk = Salvage { file, path, size, buffers, last: Vec::new() };
    let Some(footer) = footer else {
        walk.chain(0, size, visit)?;
        return Ok(None);
    };
    let end = footer.sections.offset;
    match walk.sections(footer.sections) {
        Some(sections) => {
            let mut start = 0;
            for at in 0..sections.len() {
                let SectionHandle { index, filter } = *sections.value(at);
                if filter.offset < start || end < filter.offset {
                    visit(Salvaged::Lost { offset: start })?;
                    continue;
                }
                walk.section(start, index, filter.offset, visit)?;
                start = index.offset.saturating_add(u64::from(index.length));
            }
        }
        None => walk.chain(0, end, visit)?,
    }
    Ok(Some(footer.bounds))
}

struct Salvage<F> {
    file: F,
    path: String,
    size: u64,
    buffers: Arc<Buffers>,
    /// Internal key of the last event that was given.
    last: Vec<u8>,
}

impl<F: DiskFile> Salvage<F> {
    /// The contents of a good block.
    fn read(&self, at: Handle, kind: Kind) -> Option<Bytes> {
        read_block(&self.file, (&self.path, self.size), at, kind, &self.buffers).ok()
    }

    /// Where the sections lie.
    fn sections(&self, at: Handle) -> Option<Index<SectionHandle>> {
        let contents = self.read(at, Kind::Sections)?;
        sections(contents).ok().map(|(sections, _)| sections)
    }

    /// The data blocks of one section, which lie from `start` to `end`.
    fn section(&mut self, start: u64, at: Handle, end: u64, visit: Visit<'_>) -> Result<(), Error> {
        let contents = self.read(at, Kind::Index);
        let index = contents.and_then(|contents| Index::new(contents, Handle::from_bytes).ok());
        let Some(index) = index else { return self.chain(start, end, visit) };
        for place in 0..index.len() {
            let handle = *index.value(place);
            let block = self.read(handle, Kind::Data);
            self.data(handle.offset, block, visit)?;
        }
        Ok(())
    }

    /// Blocks that follow each other from `start` to `end`, as far as each is good: a bad one does not tell where the next begins.
    fn chain(&mut self, start: u64, end: u64, visit: Visit<'_>) -> Result<(), Error> {
        let mut offset = start;
        while offset < end {
            match self.block_at(offset, end) {
                // Where the list of sections begins there is no more data.
                Some((Kind::Sections | Kind::Partitions, ..)) => return Ok(()),
                Some((Kind::Data, length, contents)) => {
                    self.data(offset, Some(contents), visit)?;
                    offset += length;
                }
                Some((Kind::Index | Kind::Filter, length, _)) => offset += length,
                None => return visit(Salvaged::Lost { offset }),
            }
        }
        Ok(())
    }

    /// The good block at `offset`: its kind, its length with the envelope, and its contents.
    fn block_at(&self, offset: u64, end: u64) -> Option<(Kind, u64, Bytes)> {
        let envelope_size = u32::try_from(HEADER_SIZE).expect("a few bytes");
        let envelope = Handle { offset, length: envelope_size };
        let header =
            read_bytes(&self.file, (&self.path, self.size), envelope, &self.buffers).ok()?;
        let stored = u32::from_le_bytes(*header[4..].first_chunk()?);
        let length = stored.checked_add(envelope_size)?;
        if end < offset.checked_add(u64::from(length))? {
            return None;
        }
        let kinds = [Kind::Data, Kind::Index, Kind::Filter, Kind::Sections, Kind::Partitions];
        let kind = kinds.into_iter().find(|kind| *kind as u8 == header[12])?;
        let contents = self.read(Handle { offset, length }, kind)?;
        Some((kind, u64::from(length), contents))
    }

    /// The events of a data block; `None` if it is damaged.
    fn data(
        &mut self,
        offset: u64,
        contents: Option<Bytes>,
        visit: Visit<'_>,
    ) -> Result<(), Error> {
        let Some(events) = contents.and_then(|contents| self.events(contents)) else {
            return visit(Salvaged::Lost { offset });
        };
        for (key, value) in events {
            let stored = StoredRef::decode(&value).expect("it was decoded when it was taken");
            visit(Salvaged::Event(&key, stored))?;
            self.last = key;
        }
        Ok(())
    }

    /// All events of a data block, if they are events and come in order.
    fn events(&self, contents: Bytes) -> Option<Vec<(Vec<u8>, Bytes)>> {
        let mut events: Vec<(Vec<u8>, Bytes)> = Vec::new();
        let mut cursor = EntriesCursor::new(EntriesBlock::open(contents).ok()?);
        cursor.first().ok()?;
        while cursor.valid() {
            let (key, value) = (cursor.key(), cursor.value_from(0));
            let last = events.last().map_or(&self.last, |(last, _)| last);
            internal_key::decode(key)?;
            StoredRef::decode(&value)?;
            if key <= last.as_slice() {
                return None;
            }
            events.push((key.to_vec(), value));
            cursor.advance().ok()?;
        }
        Some(events)
    }
}
