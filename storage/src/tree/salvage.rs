//! What is good of a damaged table: how much it is, and a table made of it. For tools.
//!
//! Invariants:
//!
//! - What is counted as kept is what is written: both come from one walk over the blocks.
//! - Events of partitions that were dropped are not written: the table that comes of it hides nothing.
//! - However much is damaged, [`LOST_MAX`] ranges are told; the last one reaches to the end of the damage then.

use std::sync::Arc;

use super::inspect::{TableFacts, facts_of, table_space};
use super::internal_key;
use super::manifest::{State, TableEntry};
use super::run_writer::RunWriter;
use super::table::{Salvaged, salvage};
use crate::{Action, Disk, Error};

/// Ranges of lost events that are told of one table.
const LOST_MAX: usize = 100;

/// Events that lie between two others, or before the first or behind the last one that can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LostRange {
    /// Where in the file.
    pub(crate) offset: u64,
    /// Internal key of the last good event before them.
    pub(crate) after: Option<Vec<u8>>,
    /// Internal key of the first good event behind them.
    pub(crate) before: Option<Vec<u8>>,
}

/// What can be read of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) events: u64,
    /// How many of them are deletes.
    pub(crate) deletes: u64,
    /// What cannot be read, in order.
    pub(crate) lost: Vec<LostRange>,
    /// What the footer says that there was, if it can be read.
    pub(crate) claimed: Option<TableFacts>,
}

/// Reads all that can be read of a damaged table.
///
/// # Errors
/// A file that cannot be opened.
pub(crate) fn count_kept<D: Disk>(disk: &D, dir: &str, entry: TableEntry) -> Result<Kept, Error> {
    let mut kept = Kept::default();
    let mut last: Option<Vec<u8>> = None;
    let footer = salvage(disk, dir, (entry.number, entry.size), &mut |item| {
        match item {
            Salvaged::Event(key, stored) => {
                kept.events += 1;
                kept.deletes += u64::from(stored.action == Action::Delete);
                if let Some(lost) = kept.lost.last_mut().filter(|lost| lost.before.is_none()) {
                    lost.before = Some(key.to_vec());
                }
                let last = last.get_or_insert_default();
                last.clear();
                last.extend_from_slice(key);
            }
            Salvaged::Lost { offset } => kept.lose(offset, last.as_ref()),
        }
        Ok(())
    })?;
    kept.claimed = footer.as_ref().map(facts_of);
    Ok(kept)
}

impl Kept {
    fn lose(&mut self, offset: u64, last: Option<&Vec<u8>>) {
        let full = self.lost.len() == LOST_MAX;
        match self.lost.last_mut() {
            // Blocks that follow each other are one range.
            Some(open) if open.before.is_none() => {}
            Some(open) if full => open.before = None,
            _ => self.lost.push(LostRange { offset, after: last.cloned(), before: None }),
        }
    }
}

/// Writes what can be read of a damaged table to new ones, durably, and adds those to `state` in its place.
///
/// # Errors
/// A failed write; what was written is an orphan then.
pub(crate) fn rewrite_kept<D: Disk>(
    disk: &Arc<D>,
    dir: &str,
    state: &mut State,
    entry: TableEntry,
) -> Result<(), Error> {
    let space = Arc::new(table_space(disk, dir, state.next_table));
    let mut writer = RunWriter::new(Arc::clone(&space));
    let hidden = state.hidden.clone();
    salvage(&**disk, dir, (entry.number, entry.size), &mut |item| match item {
        Salvaged::Event(key, stored) => {
            let partition = internal_key::partition_of(key);
            let dropped = partition.is_some_and(|it| hidden.contains(&(entry.number, it)));
            if dropped { Ok(()) } else { writer.add(key, stored) }
        }
        Salvaged::Lost { .. } => Ok(()),
    })?;
    let written = writer.finish()?;
    state.next_table = space.numbers.next();
    state.tables.extend(written.entries.into_iter().map(|entry| (entry.number, entry)));
    Ok(())
}
