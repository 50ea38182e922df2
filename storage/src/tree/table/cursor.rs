//! [`TableCursor`]: walks a table in the order of internal keys, forwards and backwards.
//!
//! Invariants:
//!
//! - A cursor is on an event whose internal key is one, or on none, past either end.
//! - A move to the first or the last event of the table reads nothing yet where the table itself says what that is: who
//!   needs more of the event than its key calls [`TableCursor::arrive`] first.
//! - Damage is an error of the move that met it: the cursor is on no event then.
//! - Memory is one index, one data block, and the window of `readahead.rs`.

use std::sync::Arc;

use super::block::Damaged;
use super::entries::{Entries, EntriesBlock, EntriesCursor};
use super::footer::Handle;
use super::readahead::Readahead;
use super::reader::{FoundEvent, Table};
use super::section::Section;
use crate::disk::DiskFile;
use crate::error::Error;
use crate::tree::internal_key::{self, INTERNAL_KEY_SIZE_MAX, INTERNAL_KEY_SIZE_MIN};
use crate::tree::stored::{Stored, StoredRef};

/// Whether it is an internal key, as far as walks depend on it.
#[inline]
fn is_sound(key: &[u8]) -> bool {
    (INTERNAL_KEY_SIZE_MIN..=INTERNAL_KEY_SIZE_MAX).contains(&key.len())
        && internal_key::stamp_of(key).is_some()
}

/// The place of a section's last block.
fn last_of(section: &Section) -> usize {
    section.index.len() - 1
}

/// Walks a table.
pub(crate) struct TableCursor<F> {
    table: Arc<Table<F>>,
    /// Whether it uses the cache.
    keep: bool,
    /// The section at hand and its number.
    section: Option<(usize, Arc<Section>)>,
    /// Which of its blocks is at hand.
    place: usize,
    /// On the event, or on none.
    block: EntriesCursor,
    handle: Handle,
    readahead: Readahead,
    /// At this end of the table, and nothing was read there yet.
    ahead: Option<End>,
}

/// An end of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    First,
    Last,
}

impl<F: DiskFile> TableCursor<F> {
    /// A cursor on no event: call one of the methods that move it. With `keep` what it reads comes from the cache and
    /// stays there, until it has read so much in one go that it reads ahead; without, which is for merges, it reads ahead
    /// at once and leaves the cache alone.
    pub(crate) fn new(table: Arc<Table<F>>, keep: bool) -> Self {
        Self {
            table,
            keep,
            section: None,
            place: 0,
            block: EntriesCursor::unloaded(),
            handle: Handle::default(),
            readahead: Readahead::new(!keep),
            ahead: None,
        }
    }

    /// A cursor on the first event at or after `from`. `keep` as in [`Self::new`].
    pub(crate) fn seek(table: Arc<Table<F>>, from: &[u8], keep: bool) -> Result<Self, Error> {
        let mut cursor = Self::new(table, keep);
        cursor.reseek(from)?;
        cursor.arrive()?;
        Ok(cursor)
    }

    /// Moves to the first event at or after `from`.
    pub(crate) fn reseek(&mut self, from: &[u8]) -> Result<(), Error> {
        self.move_to(from)?;
        self.pass_hidden()
    }

    /// Whether the event at an end of the table can wait. A merge looks at each at once: its partition may be dropped.
    fn puts_off(&mut self, end: End) -> bool {
        let waits = self.keep && self.key_at(end).is_some_and(is_sound);
        if waits {
            self.leave();
            self.ahead = Some(end);
        }
        waits
    }

    /// Reads the event that the cursor is on, if that was put off.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is another one than the table says, or as any move.
    #[inline]
    pub(crate) fn arrive(&mut self) -> Result<(), Error> {
        match self.ahead.take() {
            None => Ok(()),
            Some(end) => self.arrive_at(end),
        }
    }

    #[cold]
    fn arrive_at(&mut self, end: End) -> Result<(), Error> {
        let number = if end == End::First { 0 } else { self.table.sections() - 1 };
        self.enter_section(number)?;
        match end {
            End::First => {
                self.enter_block(|_| 0)?;
                self.on_block(EntriesCursor::first)?;
            }
            End::Last => {
                self.enter_block(last_of)?;
                self.on_block(EntriesCursor::last)?;
            }
        }
        if self.block.valid() && Some(self.block.key()) == self.key_at(end) {
            return Ok(());
        }
        self.leave();
        Err(self.table.damaged(self.handle))
    }

    /// What the table says of the event at this end.
    fn key_at(&self, end: End) -> Option<&[u8]> {
        match end {
            End::First => Some(self.table.first_key()),
            End::Last => self.table.last_key(),
        }
    }

    fn move_to(&mut self, from: &[u8]) -> Result<(), Error> {
        if from <= self.table.first_key() && self.puts_off(End::First) {
            return Ok(());
        }
        self.ahead = None;
        let Some(number) = self.table.section_of(from) else {
            self.leave();
            return Ok(());
        };
        self.enter_section(number)?;
        self.enter_block(|section| section.index.floor(from))?;
        self.on_block(|block| block.seek(from))?;
        self.settle()
    }

    /// Moves to the last event before `end`.
    pub(crate) fn seek_before(&mut self, end: &[u8]) -> Result<(), Error> {
        if self.table.last_key().is_some_and(|last| last < end) && self.puts_off(End::Last) {
            return Ok(());
        }
        self.ahead = None;
        if let Some(number) = self.table.section_of(end) {
            self.enter_section(number)?;
            self.enter_block(|section| section.index.floor(end))?;
            self.on_block(|block| block.seek_before(end))?;
        } else {
            self.enter_section(self.table.sections() - 1)?;
            self.enter_block(last_of)?;
            self.on_block(EntriesCursor::last)?;
        }
        self.settle_backwards()
    }

    /// The internal key of the event, `None` past the last or the first one.
    #[inline]
    pub(crate) fn key(&self) -> Option<&[u8]> {
        match self.ahead {
            None => self.block.valid().then(|| self.block.key()),
            Some(end) => self.key_at(end),
        }
    }

    /// What there is of the event beside its internal key.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is not what was written.
    ///
    /// # Panics
    /// If the cursor is on no event.
    pub(crate) fn borrowed(&self) -> Result<StoredRef<'_>, Error> {
        let decoded = StoredRef::decode(self.block.value());
        decoded.ok_or_else(|| self.table.damaged(self.handle))
    }

    /// The same with a payload of its own.
    ///
    /// # Errors
    /// As [`Self::borrowed`].
    ///
    /// # Panics
    /// As [`Self::borrowed`].
    pub(crate) fn stored(&self) -> Result<Stored, Error> {
        let StoredRef { action, request, payload } = self.borrowed()?;
        let header = self.block.value().len() - payload.len();
        Ok(Stored { action, request, payload: self.block.value_from(header) })
    }

    /// The internal key of the event and what there is beside it; `None` past the last or the first one.
    pub(super) fn into_found(self) -> Option<(Vec<u8>, FoundEvent)> {
        let key = self.key()?.to_vec();
        let stamp = internal_key::stamp_of(&key).expect("the cursor has checked it");
        let (block, value) = self.block.into_value();
        Some((key, FoundEvent { stamp, block, value }))
    }

    /// Moves to the next event.
    #[inline]
    pub(crate) fn advance(&mut self) -> Result<(), Error> {
        self.arrive()?;
        if !self.block.valid() {
            return Ok(());
        }
        self.on_block(EntriesCursor::advance)?;
        if self.keep && self.block.valid() { self.check() } else { self.settle_forwards() }
    }

    /// Moves to the event before.
    pub(crate) fn retreat(&mut self) -> Result<(), Error> {
        self.arrive()?;
        if !self.block.valid() {
            return Ok(());
        }
        self.on_block(EntriesCursor::retreat)?;
        self.settle_backwards()
    }

    fn leave(&mut self) {
        self.block.unload();
    }

    fn settle_forwards(&mut self) -> Result<(), Error> {
        self.settle()?;
        self.pass_hidden()
    }

    /// Passes over partitions that were dropped, for a merge; who reads one partition does not come here for such a one.
    fn pass_hidden(&mut self) -> Result<(), Error> {
        while !self.keep
            && let Some(partition) = self.key().and_then(internal_key::partition_of)
        {
            if !self.table.hidden().has(partition) {
                break;
            }
            match partition.checked_add(1) {
                Some(next) => self.move_to(&next.to_be_bytes())?,
                None => self.leave(),
            }
        }
        Ok(())
    }

    /// Goes on to the next block while this one is at its end; then checks what it is on.
    fn settle(&mut self) -> Result<(), Error> {
        while !self.block.valid() {
            let Some((number, section)) = &self.section else { return Ok(()) };
            let (number, place) = (*number, self.place + 1);
            if place < section.index.len() {
                self.enter_block(|_| place)?;
            } else if number + 1 < self.table.sections() {
                self.enter_section(number + 1)?;
                self.enter_block(|_| 0)?;
            } else {
                return Ok(());
            }
            self.on_block(EntriesCursor::first)?;
        }
        self.check()
    }

    /// Goes back to the block before while this one is at its front; then checks what it is on.
    fn settle_backwards(&mut self) -> Result<(), Error> {
        while !self.block.valid() {
            let Some((number, _)) = &self.section else { return Ok(()) };
            if let Some(before) = self.place.checked_sub(1) {
                self.enter_block(|_| before)?;
            } else if let Some(before) = number.checked_sub(1) {
                self.enter_section(before)?;
                self.enter_block(last_of)?;
            } else {
                return Ok(());
            }
            self.on_block(EntriesCursor::last)?;
        }
        self.check()
    }

    /// What a good checksum leaves open: whether what the cursor is on is an internal key.
    #[inline]
    fn check(&mut self) -> Result<(), Error> {
        if is_sound(self.block.key()) {
            return Ok(());
        }
        self.leave();
        Err(self.table.damaged(self.handle))
    }

    /// Makes the section of this number the one at hand.
    fn enter_section(&mut self, number: usize) -> Result<(), Error> {
        if self.section.as_ref().is_some_and(|(current, _)| *current == number) {
            return Ok(());
        }
        self.leave();
        self.section = None;
        self.section = Some((number, self.table.section(number, self.keep)?));
        Ok(())
    }

    /// Opens a block of the section at hand.
    fn enter_block(&mut self, place: impl FnOnce(&Section) -> usize) -> Result<(), Error> {
        let (number, section) = self.section.take().expect("a section was entered");
        self.place = place(&section);
        let handle = *section.index.value(self.place);
        let entered = if self.handle != handle || !self.block.is_loaded() {
            self.leave();
            self.handle = handle;
            self.read_block(&section).map(|entries| self.block.reset(entries))
        } else {
            Ok(())
        };
        self.section = Some((number, section));
        entered
    }

    fn read_block(&mut self, section: &Section) -> Result<Entries, Error> {
        let (table, handle, place) = (&self.table, self.handle, self.place);
        if self.keep
            && let Some(entries) = table.cached_data(section, place)?
        {
            self.readahead.skip(handle);
            return Ok(entries);
        }
        match self.readahead.read(table, handle)? {
            Some(contents) => EntriesBlock::open(contents).map_err(|_| table.damaged(handle)),
            None => table.read_data(section, place, self.keep),
        }
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
