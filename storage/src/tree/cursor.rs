//! [`MergeCursor`]: many sorted sources read as one.
//!
//! Invariants:
//!
//! - Internal keys rise strictly: an event that is in several sources is met once.
//! - An error of one source ends the read: a damaged table never makes events disappear.
//!
//! It picks the least of its sources by looking at all of them, which is right for the ten or twenty there are.

use super::memtable::MemtableCursor;
use super::stored::Stored;
use super::table::TableCursor;
use crate::disk::DiskFile;
use crate::error::Error;

/// One sorted source.
pub(crate) enum Source<'a, F> {
    Memtable(MemtableCursor<'a>),
    Table(Box<TableCursor<F>>),
}

impl<F: DiskFile> Source<'_, F> {
    fn key(&self) -> Option<&[u8]> {
        match self {
            Self::Memtable(cursor) => cursor.key(),
            Self::Table(cursor) => cursor.key(),
        }
    }

    fn advance(&mut self) -> Result<(), Error> {
        match self {
            Self::Memtable(cursor) => {
                cursor.advance();
                Ok(())
            }
            Self::Table(cursor) => cursor.advance(),
        }
    }
}

/// Walks the union of its sources.
pub(crate) struct MergeCursor<'a, F> {
    sources: Vec<Source<'a, F>>,
    least: Option<usize>,
}

impl<'a, F: DiskFile> MergeCursor<'a, F> {
    /// A cursor on the least event of all sources, which stand where the walk begins.
    pub(crate) fn new(mut sources: Vec<Source<'a, F>>) -> Self {
        sources.retain(|source| source.key().is_some());
        let mut cursor = Self { sources, least: None };
        cursor.settle();
        cursor
    }

    /// The internal key of the event, `None` past the last one.
    pub(crate) fn key(&self) -> Option<&[u8]> {
        self.least.and_then(|index| self.sources[index].key())
    }

    /// # Panics
    /// If the cursor is past the last event.
    pub(crate) fn stored(&self) -> Result<Stored, Error> {
        match &self.sources[self.least.expect("the cursor is on an event")] {
            Source::Memtable(cursor) => Ok(cursor.stored().clone()),
            Source::Table(cursor) => cursor.stored(),
        }
    }

    /// Moves to the next event, past every copy of this one.
    pub(crate) fn advance(&mut self) -> Result<(), Error> {
        let Some(least) = self.least.take() else { return Ok(()) };
        let (before, rest) = self.sources.split_at_mut(least);
        let (current, after) = rest.split_first_mut().expect("the least is one of them");
        for source in before.iter_mut().chain(after) {
            if source.key() == current.key() {
                source.advance()?;
            }
        }
        current.advance()?;
        self.settle();
        Ok(())
    }

    fn settle(&mut self) {
        let keyed = self.sources.iter().enumerate();
        let keyed = keyed.filter_map(|(index, source)| Some((source.key()?, index)));
        self.least = keyed.min().map(|(_, index)| index);
    }
}
