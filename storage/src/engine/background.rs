//! Background work: what [`Storage::work`] does step by step, and what is handed out as jobs.
//!
//! Invariants:
//!
//! - Whatever frees room is tried even if what needs room has failed.
//! - What a job does is neither visible nor counted before [`Storage::finish_job`].

use super::Storage;
use super::commit::FROZEN_MAX;
use super::job::Task;
use crate::state::State;
use crate::{Disk, Error, Job, Progress};

/// With so many runs of tables reads begin to suffer, and writers to be slowed down.
const RUNS_EASY_MAX: usize = 24;
/// With so many runs writers are slowed down as far as they are at all.
const RUNS_HARD_MAX: usize = 64;

/// A unit of background work, which tells whether there was anything to do.
type Unit<D> = fn(&mut Storage<D>, now_ms: u64) -> Result<bool, Error>;

impl<D: Disk> Storage<D> {
    /// Does one bounded unit of background work; `now_ms` is milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Io`]: that unit is tried again the next time. [`Error::Corrupt`], [`Error::Missing`]: a
    /// merge met damage. [`Error::WriteFailed`], [`Error::Poisoned`]: nothing more is done until storage is opened again.
    pub fn work(&mut self, now_ms: u64) -> Result<Progress, Error> {
        let tree = self.run_units(&[|storage, now_ms| storage.work_tree(now_ms)], now_ms);
        match tree {
            Ok(Progress::Did) | Err(Error::WriteFailed { .. } | Error::Poisoned) => tree,
            Ok(Progress::Idle) => self.upkeep(now_ms),
            // What frees room is tried even if what needs room has failed.
            Err(_) => match self.upkeep(now_ms) {
                Ok(Progress::Idle) => tree,
                result => result,
            },
        }
    }

    /// As [`Self::work`], without flushes and merges: for whoever does those as jobs.
    ///
    /// # Errors
    /// As [`Self::work`].
    pub fn upkeep(&mut self, now_ms: u64) -> Result<Progress, Error> {
        let units: [Unit<D>; 5] = [
            |storage, _| storage.tree.install_waiting(),
            |storage, _| storage.trim_wal(),
            |storage, now_ms| storage.changes.work(now_ms),
            |storage, _| storage.work_hints(),
            // Last: there is something after each commit, and the rest must not wait for that to end.
            |storage, _| storage.write_logs(),
        ];
        self.run_units(&units, now_ms)
    }

    /// The next piece of work that can be done beside those that are out, as a value for another
    /// thread; `None` if there is none, or storage is poisoned. Several may be out at once. From the first call on a
    /// commit that has no room is refused with [`Error::Busy`] instead of doing the work itself.
    pub fn begin_job(&mut self, now_ms: u64) -> Option<Job<D>> {
        self.helped = true;
        if self.wal.is_poisoned() {
            return None;
        }
        if let Some(job) = self.tree.begin_job(now_ms, &self.retentions) {
            return Some(Job { task: Task::Tree(Box::new(job)) });
        }
        let staged = self.changes.staged_bytes() + self.hints.staged_bytes();
        // The fewer syncs, the less they hold up: commits, and a flush that keeps a memtable in memory. Far enough below what a
        // commit waits for that it hardly ever comes to that.
        if self.buffers_max() / 2 <= staged
            && let Some(sync) = self.wal.begin_sync()
        {
            self.changes.set_aside();
            self.hints.set_aside();
            return Some(Job { task: Task::Sync(sync) });
        }
        // If it cannot even be begun, upkeep tries and tells.
        let write = self.changes.begin_write();
        let write = self.poison_on(write).ok().flatten()?;
        Some(Job { task: Task::Changes(write) })
    }

    /// Takes a job back: one small write and sync make it count, if it was done.
    ///
    /// # Errors
    /// As [`Self::work`]; what failed is begun anew by a later job.
    pub fn finish_job(&mut self, job: Job<D>) -> Result<(), Error> {
        match job.task {
            Task::Sync(sync) => {
                if self.wal.finish_sync(sync)? {
                    self.changes.publish_aside();
                    self.hints.publish_aside();
                }
                Ok(())
            }
            Task::Changes(write) => {
                let result = self.changes.finish_write(write);
                self.poison_on(result)
            }
            Task::Tree(job) => {
                self.check_poison()?;
                let result = self.tree.finish_job(*job);
                self.poison_on(result)
            }
        }
    }

    /// How far background work is behind, from 0 (not at all) to 100 (the next memtable would have no place, and a
    /// commit is refused with [`Error::Busy`] or held up). Whoever writes should write the slower the higher it is.
    pub fn pressure(&self) -> u8 {
        let full = self.config.memtable_bytes_max;
        let active = self.tree.memtable_bytes().min(full) * 100 / full;
        // One memtable is being flushed while the next one fills: that is how it should be.
        let memtables = (self.tree.frozen() * 100 + active).saturating_sub(150);
        let memtables = memtables * 100 / (FROZEN_MAX * 100 - 50);
        let runs = self.tree.runs().saturating_sub(RUNS_EASY_MAX);
        let runs = (runs * 90 / (RUNS_HARD_MAX - RUNS_EASY_MAX)).min(90);
        let (waiting, easy) = (self.changes.pending_bytes(), self.buffers_max());
        let logs = waiting.saturating_sub(easy) * 100 / (self.backlog_max() - easy);
        u8::try_from(memtables.max(runs).max(logs).min(100)).expect("at most 100")
    }

    /// Ends the memtable, whatever its size, so that jobs or [`Self::work`] write it to tables: before a copy of the
    /// directory is taken, say. Syncs what was committed.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub fn rotate(&mut self) -> Result<(), Error> {
        self.check_poison()?;
        let result = self.roll();
        self.poison_on(result)
    }

    fn run_units(&mut self, units: &[Unit<D>], now_ms: u64) -> Result<Progress, Error> {
        self.check_poison()?;
        let mut failed = None;
        for unit in units {
            let result = unit(self, now_ms);
            match self.poison_on(result) {
                Ok(true) => return Ok(Progress::Did),
                Ok(false) => {}
                Err(error @ (Error::WriteFailed { .. } | Error::Poisoned)) => return Err(error),
                // What the log keeps to use again is of more use to whoever has no room.
                Err(Error::Full { .. }) if self.wal.remove_spare()? => return Ok(Progress::Did),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(Progress::Idle), Err)
    }

    /// Writes changes and hints, if it is worth it; changes only if that is no job's work, or no job comes to it.
    pub(super) fn write_logs(&mut self) -> Result<bool, Error> {
        let waiting = self.changes.pending_bytes();
        let is_left = !self.helped || self.config.log_buffer_bytes_max < waiting;
        let changes = if is_left && !self.changes.is_writing() {
            self.changes.write_out()
        } else {
            Ok(false)
        };
        let hints = self.hints.write_out();
        Ok(changes? | hints?)
    }

    pub(super) fn work_tree(&mut self, now_ms: u64) -> Result<bool, Error> {
        Ok(self.tree.work(now_ms, &self.retentions)? == Progress::Did)
    }

    fn work_hints(&mut self) -> Result<bool, Error> {
        // What was consumed has to be known on disk before the hints go.
        if self.wal.unsynced() > 0 { Ok(false) } else { self.hints.work() }
    }

    /// Removes the oldest segment of the write-ahead log, if all that its records say is durable elsewhere.
    fn trim_wal(&mut self) -> Result<bool, Error> {
        let flushed = self.tree.flushed();
        if self.wal.oldest_sealed().is_none_or(|last| flushed < last) || self.changes.is_writing() {
            return Ok(false);
        }
        self.sync()?;
        self.changes.sync()?;
        self.hints.sync()?;
        let up_to = self.wal.last();
        let state = State {
            up_to,
            changes: self.changes.next(),
            metas: self.metas.clone(),
            hints: self.hints.marks(),
        };
        state.write(&*self.disk)?;
        self.wal.remove_oldest()?;
        Ok(true)
    }
}
