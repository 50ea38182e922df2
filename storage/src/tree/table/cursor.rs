//! [`TableCursor`]: walks a table in the order of internal keys, forwards and backwards.
//!
//! Invariants:
//!
//! - A cursor is on an event whose internal key is one, or on none, past either end.
//! - Damage is an error of the move that met it: the cursor is on no event then.
//! - Memory is one index, one data block, and the window of `readahead.rs`.

use std::sync::Arc;

use super::block::{Damaged, Kind};
use super::cache::CachedBlock;
use super::entries::{Entries, EntriesCursor};
use super::footer::Handle;
use super::readahead::Readahead;
use super::reader::{FoundEvent, Table};
use crate::disk::DiskFile;
use crate::error::Error;
use crate::event::Action;
use crate::tree::internal_key::{self, INTERNAL_KEY_SIZE_MAX, INTERNAL_KEY_SIZE_MIN};
use crate::tree::stored::Stored;

/// Walks a table.
pub(crate) struct TableCursor<F> {
    table: Arc<Table<F>>,
    /// Whether it uses the cache.
    keep: bool,
    /// Whose index this is.
    section: usize,
    index: EntriesCursor,
    /// On the event, or on none.
    block: EntriesCursor,
    handle: Handle,
    readahead: Readahead,
}

impl<F: DiskFile> TableCursor<F> {
    /// A cursor on no event: call one of the methods that move it. With `keep` what it reads comes from the cache and
    /// stays there, until it has read so much in one go that it reads ahead; without, which is for merges, it reads ahead
    /// at once and leaves the cache alone.
    pub(crate) fn new(table: Arc<Table<F>>, keep: bool) -> Self {
        Self {
            table,
            keep,
            section: usize::MAX,
            index: EntriesCursor::new(Entries::default()),
            block: EntriesCursor::new(Entries::default()),
            handle: Handle::default(),
            readahead: Readahead::new(!keep),
        }
    }

    /// A cursor on the first event at or after `from`. `keep` as in [`Self::new`].
    pub(crate) fn seek(table: Arc<Table<F>>, from: &[u8], keep: bool) -> Result<Self, Error> {
        let mut cursor = Self::new(table, keep);
        cursor.reseek(from)?;
        Ok(cursor)
    }

    /// Moves to the first event at or after `from`.
    pub(crate) fn reseek(&mut self, from: &[u8]) -> Result<(), Error> {
        let Some(section) = self.table.section_of(from) else {
            self.leave();
            return Ok(());
        };
        self.enter_section(section)?;
        self.on_index(|index| index.seek_floor(from))?;
        self.enter_block()?;
        self.on_block(|block| block.seek(from))?;
        self.settle_forwards()
    }

    /// Moves to the last event before `end`.
    pub(crate) fn seek_before(&mut self, end: &[u8]) -> Result<(), Error> {
        match self.table.section_of(end) {
            Some(section) => {
                self.enter_section(section)?;
                self.on_index(|index| index.seek_floor(end))?;
                self.enter_block()?;
                self.on_block(|block| block.seek_before(end))?;
            }
            None => {
                self.enter_section(self.table.sections.len() - 1)?;
                self.on_index(EntriesCursor::last)?;
                self.enter_block()?;
                self.on_block(EntriesCursor::last)?;
            }
        }
        self.settle_backwards()
    }

    /// The internal key of the event, `None` past the last or the first one.
    pub(crate) fn key(&self) -> Option<&[u8]> {
        self.block.valid().then(|| self.block.key())
    }

    /// # Errors
    /// [`Error::Corrupt`] if it is not what was written.
    ///
    /// # Panics
    /// If the cursor is on no event.
    pub(crate) fn stored(&self) -> Result<Stored, Error> {
        let decoded = Stored::decode_header(self.block.value());
        let (action, request, header) = decoded.ok_or_else(|| self.table.damaged(self.handle))?;
        Ok(Stored { action, request, payload: self.block.value_from(header) })
    }

    /// The event's action.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is not what was written.
    ///
    /// # Panics
    /// If the cursor is on no event.
    pub(crate) fn action(&self) -> Result<Action, Error> {
        let decoded = Stored::decode_header(self.block.value());
        decoded.map(|(action, ..)| action).ok_or_else(|| self.table.damaged(self.handle))
    }

    /// The internal key of the event and what there is beside it; `None` past the last or the first one.
    pub(super) fn into_found(self) -> Option<(Vec<u8>, FoundEvent)> {
        let key = self.key()?.to_vec();
        let stamp = internal_key::stamp_of(&key).expect("the cursor has checked it");
        let (block, value) = self.block.into_value();
        Some((key, FoundEvent { stamp, block, value }))
    }

    /// Moves to the next event.
    pub(crate) fn advance(&mut self) -> Result<(), Error> {
        if !self.block.valid() {
            return Ok(());
        }
        self.on_block(EntriesCursor::advance)?;
        self.settle_forwards()
    }

    /// Moves to the event before.
    pub(crate) fn retreat(&mut self) -> Result<(), Error> {
        if !self.block.valid() {
            return Ok(());
        }
        self.on_block(EntriesCursor::retreat)?;
        self.settle_backwards()
    }

    fn leave(&mut self) {
        self.block.reset(Entries::default());
    }

    /// Goes on to the next block while this one is at its end; then checks what it is on.
    fn settle_forwards(&mut self) -> Result<(), Error> {
        while !self.block.valid() {
            self.on_index(EntriesCursor::advance)?;
            if !self.index.valid() {
                if self.section + 1 == self.table.sections.len() {
                    return Ok(());
                }
                self.enter_section(self.section + 1)?;
                self.on_index(EntriesCursor::first)?;
            }
            self.enter_block()?;
            self.on_block(EntriesCursor::first)?;
        }
        self.check()
    }

    /// Goes back to the block before while this one is at its front; then checks what it is on.
    fn settle_backwards(&mut self) -> Result<(), Error> {
        while !self.block.valid() {
            self.on_index(EntriesCursor::retreat)?;
            if !self.index.valid() {
                if self.section == 0 {
                    return Ok(());
                }
                self.enter_section(self.section - 1)?;
                self.on_index(EntriesCursor::last)?;
            }
            self.enter_block()?;
            self.on_block(EntriesCursor::last)?;
        }
        self.check()
    }

    /// What a good checksum leaves open: whether what the cursor is on is an internal key.
    fn check(&mut self) -> Result<(), Error> {
        let key = self.block.key();
        let sound = (INTERNAL_KEY_SIZE_MIN..=INTERNAL_KEY_SIZE_MAX).contains(&key.len())
            && internal_key::stamp_of(key).is_some();
        if sound {
            return Ok(());
        }
        self.leave();
        Err(self.table.damaged(self.handle))
    }

    /// Makes the section's index the one at hand.
    fn enter_section(&mut self, section: usize) -> Result<(), Error> {
        if self.section != section {
            self.leave();
            self.section = usize::MAX;
            let index = self.table.index(&self.table.sections[section], self.keep)?;
            self.index.reset(index);
            self.section = section;
        }
        Ok(())
    }

    /// Opens the block that the index is on. The index of a section is never empty.
    fn enter_block(&mut self) -> Result<(), Error> {
        let index = self.table.sections[self.section].index;
        if !self.index.valid() {
            self.leave();
            return Err(self.table.damaged(index));
        }
        let handle = Handle::from_bytes(self.index.value());
        let handle = handle.ok_or_else(|| self.table.damaged(index))?;
        if self.handle != handle || !self.block.is_loaded() {
            self.leave();
            self.handle = handle;
            let entries = self.read_block()?;
            self.block.reset(entries);
        }
        Ok(())
    }

    fn read_block(&mut self) -> Result<Entries, Error> {
        let (table, handle) = (&self.table, self.handle);
        if self.keep
            && let Some(CachedBlock::Entries(entries)) = table.cached(handle)
        {
            self.readahead.skip(handle);
            return Ok(entries);
        }
        let contents = match self.readahead.read(table, handle)? {
            Some(contents) => contents,
            None if self.keep => return table.entries(handle, Kind::Data, true),
            None => table.read(handle, Kind::Data)?,
        };
        Entries::new(contents).map_err(|_| table.damaged(handle))
    }

    fn on_index(
        &mut self,
        step: impl FnOnce(&mut EntriesCursor) -> Result<(), Damaged>,
    ) -> Result<(), Error> {
        step(&mut self.index).map_err(|_| {
            let handle = self.table.sections[self.section].index;
            self.leave();
            self.table.damaged(handle)
        })
    }

    fn on_block(
        &mut self,
        step: impl FnOnce(&mut EntriesCursor) -> Result<(), Damaged>,
    ) -> Result<(), Error> {
        step(&mut self.block).map_err(|_| {
            self.leave();
            self.table.damaged(self.handle)
        })
    }
}
