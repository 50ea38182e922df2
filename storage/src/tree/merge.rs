//! [`Merge`]: makes one run out of several, in steps, and drops what need not be kept.
//!
//! Invariants:
//!
//! - The events of the output are those of the inputs, less what `history.rs` lets go; no two are equal.
//! - Inputs stay until the output is in the manifest.
//! - What may go is settled when the merge begins: the retentions and the time of then, which only let less go than
//!   those of later.
//! - A tombstone that goes has nothing older to hide, neither in the tables outside the merge nor in a memtable of
//!   when it began. For what arrives later the floor stands: nothing at or below it is taken any more.

use std::sync::Arc;

use super::Snapshot;
use super::cursor::{MergeCursor, Source};
use super::history::Candidate;
use super::internal_key;
use super::pick::Pick;
use super::run_writer::{RunWriter, Written};
use super::sieve::{Sieve, Terms};
use super::table::{self, Table, TableCursor};
use crate::disk::{Disk, DiskFile};
use crate::error::Error;

/// A merge under way.
pub(crate) struct Merge<D: Disk> {
    pub(crate) pick: Pick,
    /// Numbers of the tables that go.
    pub(crate) inputs: Vec<u64>,
    tables: Vec<Arc<Table<D::File>>>,
    /// Made by the first step, as that reads.
    cursor: Option<MergeCursor<'static, D::File>>,
    sieve: Sieve,
    /// Where older versions of a key may be; `None` if there is no tombstone that asks.
    elsewhere: Option<Arc<Snapshot<D::File>>>,
    writer: RunWriter<D>,
}

impl<D: Disk> Merge<D> {
    pub(crate) fn new(
        snapshot: &Arc<Snapshot<D::File>>,
        pick: Pick,
        terms: Terms,
        writer: RunWriter<D>,
    ) -> Self {
        let tables = snapshot.version.tables().iter();
        let tables: Vec<_> =
            tables.filter(|table| pick.runs.contains(&table.run())).map(Arc::clone).collect();
        let inputs = tables.iter().map(|table| table.number()).collect();
        let deletes: u64 = tables.iter().map(|table| table.bounds().deletes).sum();
        // It keeps memtables in memory for as long as the merge takes.
        let asks = 0 < deletes && terms.tombstones_may_go();
        let elsewhere = asks.then(|| Arc::clone(snapshot));
        Self { pick, inputs, tables, cursor: None, sieve: Sieve::new(terms), elsewhere, writer }
    }

    /// Reads about `bytes` more; the tables, once all is written.
    pub(crate) fn step(&mut self, bytes: usize) -> Result<Option<Written<D>>, Error> {
        let cursor = match &mut self.cursor {
            Some(cursor) => cursor,
            none => none.insert(walk(&self.tables)?),
        };
        let mut done = 0;
        let (inputs, elsewhere) = (&self.inputs, self.elsewhere.as_ref());
        while let Some(internal) = cursor.key() {
            if bytes <= done {
                return Ok(None);
            }
            let stored = cursor.borrowed()?;
            done += internal.len() + stored.payload.len();
            let has_older = |candidate| {
                elsewhere.is_none_or(|snapshot| has_older(snapshot, inputs, candidate, internal))
            };
            self.sieve.pass(internal, stored, &mut self.writer, has_older)?;
            cursor.advance()?;
        }
        let mut written = self.writer.finish()?;
        written.floors = self.sieve.finish();
        Ok(Some(written))
    }

    /// Removes what was written.
    pub(crate) fn abandon(self) {
        self.writer.abandon();
    }
}

/// All events of the tables in order, past the cache.
fn walk<F: DiskFile>(tables: &[Arc<Table<F>>]) -> Result<MergeCursor<'static, F>, Error> {
    let mut sources = Vec::new();
    for table in tables {
        let cursor = TableCursor::seek(Arc::clone(table), &[], false)?;
        sources.push(Source::Table(Box::new(cursor)));
    }
    Ok(MergeCursor::new(sources))
}

/// Whether there may be a version older than this event outside the merge.
fn has_older<F: DiskFile>(
    snapshot: &Snapshot<F>,
    inputs: &[u64],
    candidate: Candidate,
    internal: &[u8],
) -> bool {
    let prefix = internal_key::prefix_of(internal);
    let hash = table::key_hash(prefix);
    let mut outside =
        snapshot.version.tables().iter().filter(|table| !inputs.contains(&table.number()));
    outside.any(|table| {
        table.bounds().stamp_least < candidate.stamp
            && table.may_contain(internal, hash).unwrap_or(true)
    }) || snapshot.memtables().any(|memtable| {
        memtable.seek_past(internal).key().is_some_and(|key| key.starts_with(prefix))
    })
}
