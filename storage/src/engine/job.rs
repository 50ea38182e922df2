//! [`Job`]: a piece of background work, as a value that any thread can carry on with.
//!
//! Invariants:
//!
//! - A job has its inputs and its own place to write to: it needs nothing of the storage that it came from, and changes nothing
//!   of it before [`crate::Storage::finish_job`].
//! - Jobs that are out at the same time are disjoint: one sync and one write of the change log, one flush, merges of different runs.

use crate::log::LogWrite;
use crate::tree::TreeJob;
use crate::wal::WalSync;
use crate::{Disk, Progress};

/// A piece of background work. Step it until it is [`Progress::Idle`], on any thread, then hand it back to
/// [`crate::Storage::finish_job`]. Handed back earlier it is given up: what it wrote is removed, and another job will do
/// the same again. One that is dropped instead blocks its inputs until storage is opened again.
#[must_use = "what it works on is blocked until it is handed back"]
pub struct Job<D: Disk> {
    pub(super) task: Task<D>,
}

/// What a job does.
pub(super) enum Task<D: Disk> {
    /// Syncs the write-ahead log, for the changes and hints that wait for that.
    Sync(WalSync<D::File>),
    /// Compresses and writes changes, and syncs them now and then.
    Changes(LogWrite<D::File>),
    /// Flushes, merges, or removes tables.
    Tree(Box<TreeJob<D>>),
}

impl<D: Disk> std::fmt::Debug for Job<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let task: &dyn std::fmt::Debug = match &self.task {
            Task::Sync(_) => &"sync",
            Task::Changes(_) => &"changes",
            Task::Tree(job) => job,
        };
        f.debug_struct("Job").field("task", task).finish_non_exhaustive()
    }
}

impl<D: Disk> Job<D> {
    /// Whether it writes a memtable to tables.
    pub fn is_flush(&self) -> bool {
        matches!(&self.task, Task::Tree(job) if job.is_flush())
    }

    /// Which of several jobs to step first, the least one: what writers wait for soonest.
    pub fn rank(&self) -> u8 {
        match &self.task {
            Task::Sync(_) => 0,
            Task::Changes(_) => 1,
            Task::Tree(job) if job.is_flush() => 2,
            Task::Tree(_) => 3,
        }
    }

    /// Does a bounded part of the work. [`Progress::Idle`]: it is at its end, by success or failure, which
    /// [`crate::Storage::finish_job`] tells.
    pub fn step(&mut self) -> Progress {
        match &mut self.task {
            Task::Sync(sync) => sync.run(),
            Task::Changes(write) => write.run(),
            Task::Tree(job) => return job.step(),
        }
        Progress::Idle
    }
}
