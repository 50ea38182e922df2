//! [`MergeCursor`]: many sorted sources read as one, forwards or backwards.
//!
//! Invariants:
//!
//! - Internal keys rise strictly, or fall strictly: an event that is in several sources is met once.
//! - An error of one source ends the read: a damaged table never makes events disappear.
//! - A cursor goes one way until it is told where to begin anew: a merge of sources has to search for the event before
//!   the present one in each of them.
//!
//! The sources that have events left are a binary heap. A step costs two comparisons while events come from one source.

use super::memtable::{Memtable, MemtableCursor};
use super::stored::{Stored, StoredRef};
use super::table::TableCursor;
use crate::disk::DiskFile;
use crate::error::Error;
use crate::event::Action;

/// One sorted source.
pub(crate) enum Source<'a, F> {
    Memtable(&'a Memtable, MemtableCursor<'a>),
    Table(Box<TableCursor<F>>),
}

impl<F: DiskFile> Source<'_, F> {
    fn key(&self) -> Option<&[u8]> {
        match self {
            Self::Memtable(_, cursor) => cursor.key(),
            Self::Table(cursor) => cursor.key(),
        }
    }

    fn step(&mut self, backwards: bool) -> Result<(), Error> {
        match (self, backwards) {
            (Self::Memtable(_, cursor), false) => cursor.advance(),
            (Self::Memtable(_, cursor), true) => cursor.retreat(),
            (Self::Table(cursor), false) => cursor.advance()?,
            (Self::Table(cursor), true) => cursor.retreat()?,
        }
        Ok(())
    }

    fn seek(&mut self, target: &[u8], backwards: bool) -> Result<(), Error> {
        match (self, backwards) {
            (Self::Memtable(memtable, cursor), false) => *cursor = memtable.seek(target),
            (Self::Memtable(memtable, cursor), true) => *cursor = memtable.seek_before(target),
            (Self::Table(cursor), false) => cursor.reseek(target)?,
            (Self::Table(cursor), true) => cursor.seek_before(target)?,
        }
        Ok(())
    }
}

/// Walks the union of its sources.
pub(crate) struct MergeCursor<'a, F> {
    /// The first `live` of them are a heap, the one that comes next on top; the rest have no event left.
    sources: Vec<Source<'a, F>>,
    live: usize,
    backwards: bool,
    /// The event before this one.
    last: Vec<u8>,
}

impl<'a, F: DiskFile> MergeCursor<'a, F> {
    /// A cursor on the least event of all sources, which stand where the walk begins.
    pub(crate) fn new(sources: Vec<Source<'a, F>>) -> Self {
        let mut cursor = Self { sources, live: 0, backwards: false, last: Vec::new() };
        cursor.build();
        cursor
    }

    /// Moves to the first event at or after `target`, and goes forwards from there.
    pub(crate) fn seek(&mut self, target: &[u8]) -> Result<(), Error> {
        self.seek_all(target, false)
    }

    /// Moves on to the first event at or after `target`, as [`Self::seek`] does, from where such a one has led: only the
    /// sources that are before it are searched.
    ///
    /// # Panics
    /// If the cursor goes backwards.
    pub(crate) fn seek_onwards(&mut self, target: &[u8]) -> Result<(), Error> {
        assert!(!self.backwards);
        let live = std::mem::take(&mut self.live);
        for source in &mut self.sources[..live] {
            if source.key().is_some_and(|key| key < target) {
                source.seek(target, false)?;
            }
        }
        self.build();
        Ok(())
    }

    /// Moves to the last event before `target`, and goes backwards from there.
    pub(crate) fn seek_before(&mut self, target: &[u8]) -> Result<(), Error> {
        self.seek_all(target, true)
    }

    /// The internal key of the event, `None` past the last one.
    pub(crate) fn key(&self) -> Option<&[u8]> {
        if self.live == 0 { None } else { self.sources[0].key() }
    }

    /// What there is of the event beside its internal key.
    ///
    /// # Panics
    /// If the cursor is past the last event.
    pub(crate) fn borrowed(&self) -> Result<StoredRef<'_>, Error> {
        assert!(0 < self.live, "the cursor is on an event");
        match &self.sources[0] {
            Source::Memtable(_, cursor) => {
                Ok(cursor.entry().expect("the cursor is on an event").stored())
            }
            Source::Table(cursor) => cursor.borrowed(),
        }
    }

    /// The same with a payload of its own, which shares a table's block.
    ///
    /// # Panics
    /// If the cursor is past the last event.
    pub(crate) fn stored(&self) -> Result<Stored, Error> {
        match self.sources.first() {
            Some(Source::Table(cursor)) if 0 < self.live => cursor.stored(),
            _ => self.borrowed().map(StoredRef::to_stored),
        }
    }

    /// The event's action.
    ///
    /// # Panics
    /// If the cursor is past the last event.
    pub(crate) fn action(&self) -> Result<Action, Error> {
        assert!(0 < self.live, "the cursor is on an event");
        match &self.sources[0] {
            Source::Memtable(_, cursor) => {
                Ok(cursor.entry().expect("the cursor is on an event").action())
            }
            Source::Table(cursor) => cursor.action(),
        }
    }

    /// Moves to the next event in the way that the cursor goes, past every copy of this one.
    pub(crate) fn advance(&mut self) -> Result<(), Error> {
        let Some(key) = self.sources.first().filter(|_| 0 < self.live).and_then(Source::key) else {
            return Ok(());
        };
        if self.live == 1 {
            // No other source has a copy.
            return self.step_first();
        }
        self.last.clear();
        self.last.extend_from_slice(key);
        loop {
            self.step_first()?;
            self.sift_down(0);
            if self.key() != Some(&self.last) {
                return Ok(());
            }
        }
    }

    /// Steps the source on top of the heap, which may not belong there then.
    fn step_first(&mut self) -> Result<(), Error> {
        if let Err(error) = self.sources[0].step(self.backwards) {
            self.live = 0;
            return Err(error);
        }
        if self.sources[0].key().is_none() {
            self.live -= 1;
            self.sources.swap(0, self.live);
        }
        Ok(())
    }

    fn seek_all(&mut self, target: &[u8], backwards: bool) -> Result<(), Error> {
        self.live = 0;
        self.backwards = backwards;
        for source in &mut self.sources {
            source.seek(target, backwards)?;
        }
        self.build();
        Ok(())
    }

    fn build(&mut self) {
        self.live = 0;
        for index in 0..self.sources.len() {
            if self.sources[index].key().is_some() {
                self.sources.swap(index, self.live);
                self.live += 1;
            }
        }
        for index in (0..self.live / 2).rev() {
            self.sift_down(index);
        }
    }

    fn sift_down(&mut self, mut index: usize) {
        loop {
            let mut first = index;
            for child in [2 * index + 1, 2 * index + 2] {
                if child < self.live && self.comes_before(child, first) {
                    first = child;
                }
            }
            if first == index {
                return;
            }
            self.sources.swap(index, first);
            index = first;
        }
    }

    fn comes_before(&self, left: usize, right: usize) -> bool {
        let (left, right) = (self.sources[left].key(), self.sources[right].key());
        if self.backwards { right < left } else { left < right }
    }
}
