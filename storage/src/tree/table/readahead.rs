//! [`Readahead`]: reads many blocks in one go for who goes through a table from block to block.
//!
//! Invariants:
//!
//! - A read of few blocks costs no more than those blocks; what goes on is read in windows that double.
//! - Memory is one window, [`WINDOW_MAX`] or the largest block, taken when the first window is read.
//! - Each block out of a window is checked as any other.

use bytes::Bytes;

use super::block::{self, Kind};
use super::footer::Handle;
use super::reader::Table;
use crate::disk::DiskFile;
use crate::error::Error;

/// The first window, in blocks, and in bytes at the least and the most.
const WINDOW_BLOCKS_MIN: usize = 8;
const WINDOW_MIN: usize = 4 << 10;
const WINDOW_FIRST_MAX: usize = 16 << 10;
/// The largest one.
const WINDOW_MAX: usize = 256 << 10;
/// Blocks that follow each other on the disk before a window is read.
const IN_SEQUENCE_MIN: u32 = 2;
/// Blocks that are this near follow each other: an index and a filter may lie between.
const GAP_MAX: u64 = 64 << 10;

/// See the file's head.
pub(super) struct Readahead {
    /// Bytes of the file from `start` on.
    window: Vec<u8>,
    start: u64,
    /// The block asked for last.
    last: Handle,
    /// How many blocks followed each other up to that one.
    in_sequence: u32,
    backwards: bool,
    /// `None`: the first one.
    next_window: Option<usize>,
    /// Whether much will be read where two blocks follow each other.
    eager: bool,
}

impl Readahead {
    /// `eager`: read the largest window as soon as a block follows another, or is the first of the table.
    pub(super) fn new(eager: bool) -> Self {
        Self {
            window: Vec::new(),
            start: 0,
            last: Handle::default(),
            in_sequence: 0,
            backwards: false,
            next_window: eager.then_some(WINDOW_MAX),
            eager,
        }
    }

    /// The block at `handle` is had from elsewhere.
    pub(super) fn skip(&mut self, handle: Handle) {
        let last = std::mem::replace(&mut self.last, handle);
        let gap = |from: u64, to: u64| to.checked_sub(from).is_some_and(|gap| gap <= GAP_MAX);
        let forwards = gap(last.offset + u64::from(last.length), handle.offset);
        let backwards = gap(handle.offset + u64::from(handle.length), last.offset);
        if forwards || backwards {
            let turned = backwards != self.backwards;
            self.in_sequence = if turned { 1 } else { self.in_sequence + 1 };
            self.backwards = backwards;
        } else {
            self.in_sequence = 0;
        }
        if self.in_sequence == 0 && !self.eager {
            self.next_window = None;
        }
    }

    /// The contents of the data block at `handle`, if it is time to read a window or it is in the one at hand.
    pub(super) fn read<F: DiskFile>(
        &mut self,
        table: &Table<F>,
        handle: Handle,
    ) -> Result<Option<Bytes>, Error> {
        self.skip(handle);
        if !self.has(handle) {
            let in_sequence_min = if self.eager { 1 } else { IN_SEQUENCE_MIN };
            if self.in_sequence < in_sequence_min {
                return Ok(None);
            }
            self.fill(table, handle)?;
        }
        if !self.has(handle) {
            return Err(table.damaged(handle));
        }
        let at = usize::try_from(handle.offset - self.start).expect("within the window");
        let bytes = &self.window[at..at + handle.length as usize];
        let contents = block::decode_copy(Kind::Data, bytes, table.buffers());
        contents.map(Some).map_err(|_| table.damaged(handle))
    }

    fn has(&self, handle: Handle) -> bool {
        let end = handle.offset.checked_add(u64::from(handle.length));
        let have = self.start + self.window.len() as u64;
        self.start <= handle.offset && end.is_some_and(|end| end <= have)
    }

    fn fill<F: DiskFile>(&mut self, table: &Table<F>, handle: Handle) -> Result<(), Error> {
        let data_end = table.sections_at.offset;
        let end = handle.offset.checked_add(u64::from(handle.length));
        let end = end.filter(|end| *end <= data_end).ok_or_else(|| table.damaged(handle))?;
        let block = handle.length as usize;
        let first = block.saturating_mul(WINDOW_BLOCKS_MIN).clamp(WINDOW_MIN, WINDOW_FIRST_MAX);
        let size = self.next_window.unwrap_or(first).max(block);
        self.next_window = Some(size.saturating_mul(2).min(WINDOW_MAX));
        let (start, size) = if self.backwards {
            let start = end.saturating_sub(size as u64);
            (start, end - start)
        } else {
            (handle.offset, (size as u64).min(data_end - handle.offset))
        };
        self.start = start;
        let size = usize::try_from(size).expect("a window");
        self.window.resize(size, 0);
        let read = table.file.read_full_at(&mut self.window, start);
        let read = read.map_err(Error::io("read", table.path()));
        self.window.truncate(*read.as_ref().unwrap_or(&0));
        read.map(|_| ())
    }
}
