//! [`Merge`]: makes one run out of several, in steps, and drops what need not be kept. Size-tiered: runs of about
//! one size are merged, so that each event is rewritten about once for each factor that the data grows by
//! (`Cassandra`'s size-tiered compaction).
//!
//! Invariants:
//!
//! - The events of the output are those of the inputs, less what `history.rs` lets go; no two are equal.
//! - Inputs stay until the output is in the manifest.
//! - A tombstone that goes has nothing older to hide, neither in the tables outside the merge nor in a memtable.
//!   For what arrives later the floor stands: whoever raised it has proved that nothing older is to come.

use std::sync::Arc;

use super::Snapshot;
use super::cursor::{MergeCursor, Source};
use super::history::{Candidate, History, Verdict};
use super::internal_key;
use super::run_writer::{RunWriter, TableNumbers, Written};
use super::stored::Stored;
use super::table::{self, BlockCache, TableCursor};
use super::version::Version;
use crate::disk::{Disk, DiskFile};
use crate::error::Error;
use crate::event::Action;
use crate::{Retentions, TreeConfig};

/// Runs below this are of one size, in bytes: none is too small to be merged with another small one.
const SMALL_RUN: u64 = 1 << 20;

/// Which runs to merge next: the smallest ones of about one size, if there are enough of them.
pub(crate) fn pick(runs: impl Iterator<Item = (u64, u64)>, config: &TreeConfig) -> Vec<u64> {
    let mut sized: Vec<(u64, u64)> = runs.map(|(run, bytes)| (bytes, run)).collect();
    sized.sort_unstable();
    for start in 0..sized.len() {
        let (mut bytes, mut end) = (0_u64, start);
        while end < sized.len() && end - start < config.merge_width_max {
            let average = bytes / ((end - start).max(1) as u64);
            if start < end && SMALL_RUN.max(average * 2) < sized[end].0 {
                break;
            }
            bytes += sized[end].0;
            end += 1;
        }
        if config.merge_width_min <= end - start {
            return sized[start..end].iter().map(|&(_, run)| run).collect();
        }
    }
    Vec::new()
}

/// A merge under way.
pub(crate) struct Merge<D: Disk> {
    pub(crate) runs: Vec<u64>,
    pub(crate) inputs: Vec<u64>,
    cursor: MergeCursor<'static, D::File>,
    history: History,
    /// The key whose versions are being judged.
    prefix: Vec<u8>,
    /// A tombstone that goes unless an older version of its key is kept.
    held: Option<(Vec<u8>, Stored)>,
    pub(crate) writer: RunWriter<D>,
}

/// What a step of a merge needs to know.
pub(crate) struct MergeStep<'a, F> {
    pub(crate) bytes: usize,
    pub(crate) now_ms: u64,
    pub(crate) retentions: &'a Retentions,
    pub(crate) snapshot: &'a Snapshot<F>,
    pub(crate) cache: &'a Arc<BlockCache>,
}

impl<D: Disk> Merge<D> {
    pub(crate) fn new(
        version: &Version<D::File>,
        runs: Vec<u64>,
        writer: RunWriter<D>,
    ) -> Result<Self, Error> {
        let tables = version.tables().iter().filter(|table| runs.contains(&table.run()));
        let (mut inputs, mut sources) = (Vec::new(), Vec::new());
        for table in tables {
            inputs.push(table.number());
            let cursor = TableCursor::seek(Arc::clone(table), &[], false)?;
            sources.push(Source::Table(Box::new(cursor)));
        }
        let cursor = MergeCursor::new(sources);
        let (history, prefix) = (History::default(), Vec::new());
        Ok(Self { runs, inputs, cursor, history, prefix, held: None, writer })
    }

    /// Reads about `bytes` more; the tables, once all is written.
    pub(crate) fn step(
        &mut self,
        step: &MergeStep<'_, D::File>,
        numbers: &mut TableNumbers,
    ) -> Result<Option<Written<D>>, Error> {
        let mut done = 0;
        while let Some(internal) = self.cursor.key() {
            if step.bytes <= done {
                return Ok(None);
            }
            let internal = internal.to_vec();
            let stored = self.cursor.stored()?;
            done += internal.len() + stored.payload.len();
            match self.judge(&internal, &stored, step)? {
                Verdict::Keep => {
                    if let Some((key, tombstone)) = self.held.take() {
                        self.writer.add(numbers, &key, &tombstone)?;
                    }
                    self.writer.add(numbers, &internal, &stored)?;
                }
                Verdict::Hold => self.held = Some((internal, stored)),
                Verdict::Drop => {}
            }
            self.cursor.advance()?;
        }
        self.writer.finish(step.cache).map(Some)
    }

    fn judge(
        &mut self,
        internal: &[u8],
        stored: &Stored,
        step: &MergeStep<'_, D::File>,
    ) -> Result<Verdict, Error> {
        let parts = internal_key::decode(internal).ok_or_else(|| {
            Error::corrupt("a table in a merge", 0, "an internal key that is none")
        })?;
        let prefix = internal_key::prefix_of(internal);
        if self.prefix != prefix {
            self.prefix = prefix.to_vec();
            self.history.next_key();
            // Nothing older of its key was kept: the tombstone has nothing to hide.
            self.held = None;
        }
        let candidate = Candidate {
            partition: parts.partition,
            stamp: parts.stamp,
            is_delete: stored.action == Action::Delete,
            retention: step.retentions.history(parts.keyspace),
        };
        let inputs = &self.inputs;
        let elsewhere = || has_older(step.snapshot, inputs, candidate, internal);
        Ok(self.history.judge(candidate, step.retentions, step.now_ms, elsewhere))
    }
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
        table.bounds().stamp_least < candidate.stamp && table.may_contain(candidate.partition, hash)
    }) || snapshot.memtables().any(|memtable| {
        memtable.seek_past(internal).key().is_some_and(|key| key.starts_with(prefix))
    })
}
