//! [`TreeJob`]: a flush, a merge or the removal of files, as a value that any thread can carry on with.
//!
//! Invariants:
//!
//! - A job has its inputs and its own files: it needs nothing of the tree that it came from, and changes nothing of it.
//!   Until `Tree::finish_job` took it, what it wrote is an orphan.
//! - One [`TreeJob::step`] is bounded by `work_bytes`.
//! - Jobs that are out at the same time are disjoint: one flush at most, and merges of different runs.

use std::collections::VecDeque;
use std::sync::Arc;

use super::flush::Flush;
use super::merge::Merge;
use super::run_writer::{TableSpace, Written};
use super::table;
use crate::disk::Disk;
use crate::error::Error;
use crate::types::Progress;

/// Background work of the tree; see [`crate::Job`].
#[must_use = "what it works on is blocked until it is handed back"]
pub(crate) struct TreeJob<D: Disk> {
    space: Arc<TableSpace<D>>,
    task: Task<D>,
    /// How many partitions had been dropped when it was begun.
    pub(super) drops: u64,
    outcome: Option<Result<Written<D>, Error>>,
}

/// What a job does.
pub(super) enum Task<D: Disk> {
    Flush(Flush<D>),
    Merge(Merge<D>),
    /// Tables that no version has any more.
    Remove(VecDeque<u64>),
}

impl<D: Disk> std::fmt::Debug for TreeJob<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let task = match self.task {
            Task::Flush(_) => "flush",
            Task::Merge(_) => "merge",
            Task::Remove(_) => "remove",
        };
        f.debug_struct("TreeJob").field("task", &task).finish_non_exhaustive()
    }
}

impl<D: Disk> TreeJob<D> {
    pub(super) fn new(space: Arc<TableSpace<D>>, task: Task<D>, drops: u64) -> Self {
        Self { space, task, drops, outcome: None }
    }

    /// Whether it writes a memtable to tables: writers wait for that sooner than for anything else.
    pub(crate) fn is_flush(&self) -> bool {
        matches!(self.task, Task::Flush(_))
    }

    /// Does a bounded part of the work. [`Progress::Idle`]: it is at its end, by success or failure, which
    /// [`crate::Storage::finish_job`] tells.
    pub(crate) fn step(&mut self) -> Progress {
        if self.outcome.is_some() {
            return Progress::Idle;
        }
        let bytes = self.space.config.work_bytes;
        let result = match &mut self.task {
            Task::Flush(flush) => flush.step(bytes),
            Task::Merge(merge) => merge.step(bytes),
            Task::Remove(numbers) => remove(&self.space, numbers),
        };
        self.outcome = result.transpose();
        if self.outcome.is_some() { Progress::Idle } else { Progress::Did }
    }

    /// What it did, and how that ended; `None` if it was handed back before.
    pub(super) fn end(self) -> (Task<D>, Option<Result<Written<D>, Error>>) {
        (self.task, self.outcome)
    }
}

/// Removes one file.
fn remove<D: Disk>(
    space: &TableSpace<D>,
    numbers: &mut VecDeque<u64>,
) -> Result<Option<Written<D>>, Error> {
    if let Some(number) = numbers.pop_front() {
        let path = table::path(&space.dir, number);
        space.disk.remove(&path).map_err(Error::io("remove", &path))?;
    }
    Ok(numbers.is_empty().then(Written::default))
}
