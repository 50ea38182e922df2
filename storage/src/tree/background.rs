//! The tree's background work: which job is next, and what becomes of one that has ended.
//!
//! Invariants:
//!
//! - A flush or merge counts once its edit is in the manifest, and is visible only then.
//! - A flush is of the oldest frozen memtable, and there is one at a time: the tree's position never leaves a gap.
//! - A run is an input of one merge at a time.
//! - [`Tree::work`] does by itself, step by step, what [`Tree::begin_job`] hands out; both may be used side by side.

use std::sync::Arc;

use super::flush::Flush;
use super::job::{Task, TreeJob};
use super::manifest::Edit;
use super::merge::Merge;
use super::pick::{Pick, Picker, Run};
use super::run_writer::{RunWriter, Written};
use super::sieve::Terms;
use super::{Tree, table};
use crate::Retentions;
use crate::disk::Disk;
use crate::error::Error;
use crate::lsn::Lsn;
use crate::types::Progress;

/// So many merges are out at once: while a large one takes its time, small ones go on.
const MERGES_MAX: usize = 2;

/// With nothing to merge, nothing but time can change that: it is looked again after so many milliseconds.
const LOOK_INTERVAL_MS: u64 = 1000;

/// A flush or merge that is written and waits for its edit to be durable.
pub(super) struct Install<D: Disk> {
    /// Tables and runs that go.
    removed: Vec<u64>,
    pick: Pick,
    written: Written<D>,
    /// Set by a flush: the memtable goes.
    flushed: Option<Lsn>,
    /// How many partitions had been dropped when the job was begun.
    drops: u64,
}

impl<D: Disk> Tree<D> {
    /// Does one step of what there is to do; `now_ms` is milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Io`]: the step is done anew the next time. [`Error::Corrupt`], [`Error::Missing`]: a
    /// merge met a damaged table, and leaves its inputs alone from now on. [`Error::WriteFailed`],
    /// [`Error::Poisoned`]: nothing more is made durable until the tree is opened again. Reads go on in all cases.
    pub(crate) fn work(&mut self, now_ms: u64, retentions: &Retentions) -> Result<Progress, Error> {
        self.guarded(|tree| tree.step(now_ms, retentions))
    }

    /// The next job, if there is one that can be begun beside those that are out.
    pub(crate) fn begin_job(&mut self, now_ms: u64, retentions: &Retentions) -> Option<TreeJob<D>> {
        if self.poisoned {
            return None;
        }
        if !self.obsolete.is_empty() {
            let task = Task::Remove(std::mem::take(&mut self.obsolete));
            return Some(TreeJob::new(Arc::clone(&self.space), task, self.drops_count));
        }
        self.begin_flush(now_ms, retentions).or_else(|| self.begin_merge(now_ms, retentions))
    }

    /// Takes a job back. If it was done it counts from now on, and is visible.
    ///
    /// # Errors
    /// As [`Self::work`]. With [`Error::Full`] after a job that was done, it counts by a later [`Self::install`].
    pub(crate) fn finish_job(&mut self, job: TreeJob<D>) -> Result<(), Error> {
        self.guarded(|tree| {
            tree.take_back(job)?;
            tree.install().map(|_| ())
        })
    }

    /// Makes what waits for room in the manifest count; whether there was anything.
    ///
    /// # Errors
    /// As [`Self::work`].
    pub(crate) fn install_waiting(&mut self) -> Result<bool, Error> {
        self.guarded(Self::install)
    }

    pub(super) fn guarded<T>(
        &mut self,
        act: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if self.poisoned {
            return Err(Error::Poisoned);
        }
        let result = act(self);
        self.poisoned = matches!(result, Err(Error::WriteFailed { .. }));
        self.invariants();
        result
    }

    fn step(&mut self, now_ms: u64, retentions: &Retentions) -> Result<Progress, Error> {
        if self.install()? {
            return Ok(Progress::Did);
        }
        if let Some(number) = self.obsolete.pop_front() {
            let path = table::path(&self.space.dir, number);
            self.space.disk.remove(&path).map_err(Error::io("remove", &path))?;
            return Ok(Progress::Did);
        }
        if self.own_merge.is_none() {
            self.own_merge = self.begin_merge(now_ms, retentions);
        }
        if self.own_flush.is_none() {
            self.own_flush = self.begin_flush(now_ms, retentions);
        }
        // Turn by turn, so that neither memtables nor tables pile up while the other is served.
        self.merge_turn = !self.merge_turn;
        let (first, second) = if self.merge_turn {
            (&mut self.own_merge, &mut self.own_flush)
        } else {
            (&mut self.own_flush, &mut self.own_merge)
        };
        let Some(slot) = [first, second].into_iter().find(|slot| slot.is_some()) else {
            return Ok(Progress::Idle);
        };
        let ended = slot.as_mut().is_some_and(|job| job.step() == Progress::Idle);
        if let Some(job) = if ended { slot.take() } else { None } {
            self.take_back(job)?;
        }
        Ok(Progress::Did)
    }

    fn begin_flush(&mut self, now_ms: u64, retentions: &Retentions) -> Option<TreeJob<D>> {
        if self.flushing {
            return None;
        }
        let (memtable, up_to) = self.frozen.front()?;
        self.flushing = true;
        let writer = RunWriter::new(Arc::clone(&self.space));
        let flush = Flush::new(Arc::clone(memtable), *up_to, terms(now_ms, retentions), writer);
        Some(TreeJob::new(Arc::clone(&self.space), Task::Flush(flush), self.drops_count))
    }

    fn begin_merge(&mut self, now_ms: u64, retentions: &Retentions) -> Option<TreeJob<D>> {
        let full = self.merge_all.is_some_and(|up_to| up_to <= self.flushed());
        if self.merges == MERGES_MAX || (full && 0 < self.merges) {
            return None;
        }
        let fresh = |(looked_ms, revision): (u64, u64)| {
            revision == retentions.revision() && now_ms < looked_ms.saturating_add(LOOK_INTERVAL_MS)
        };
        if self.looked.is_some_and(fresh) {
            return None;
        }
        let is_free = |run: &&Run| {
            !self.unmergeable.contains(&run.number) && !self.merging.contains(&run.number)
        };
        let runs: Vec<Run> = self.snapshot.version.runs().iter().filter(is_free).copied().collect();
        let pick = if full {
            self.merge_all = None;
            Picker::whole(&runs, retentions, now_ms)
        } else {
            let alone = self.merges == 0;
            self.picker.pick(&runs, alone, &self.space.config, retentions, now_ms)
        };
        if pick.runs.is_empty() {
            self.looked = Some((now_ms, retentions.revision()));
            return None;
        }
        self.merges += 1;
        self.merging.extend(&pick.runs);
        let writer = RunWriter::new(Arc::clone(&self.space));
        let merge = Merge::new(&self.snapshot, pick, terms(now_ms, retentions), writer);
        Some(TreeJob::new(Arc::clone(&self.space), Task::Merge(merge), self.drops_count))
    }

    /// Takes the job's result over, to be installed, or makes room for another try.
    fn take_back(&mut self, job: TreeJob<D>) -> Result<(), Error> {
        let drops = job.drops;
        let (task, outcome) = job.end();
        match (task, outcome) {
            (Task::Flush(flush), Some(Ok(written))) => {
                let flushed = Some(flush.up_to);
                let (removed, pick) = (Vec::new(), Pick::default());
                self.installs.push_back(Install { removed, pick, written, flushed, drops });
                Ok(())
            }
            (Task::Flush(flush), outcome) => {
                flush.abandon();
                self.flushing = false;
                outcome.map_or(Ok(()), |result| result.map(|_| ()))
            }
            (Task::Merge(merge), Some(Ok(written))) => {
                let Merge { inputs: removed, pick, .. } = merge;
                let flushed = None;
                self.installs.push_back(Install { removed, pick, written, flushed, drops });
                Ok(())
            }
            (Task::Merge(merge), outcome) => {
                if let Some(Err(error)) = &outcome {
                    self.leave_alone(error, &merge.pick.runs);
                }
                self.end_merge(&merge.pick.runs);
                merge.abandon();
                outcome.map_or(Ok(()), |result| result.map(|_| ()))
            }
            (Task::Remove(rest), outcome) => {
                self.obsolete.extend(rest);
                outcome.map_or(Ok(()), |result| result.map(|_| ()))
            }
        }
    }

    fn end_merge(&mut self, runs: &[u64]) {
        self.looked = None;
        self.merges -= 1;
        for run in runs {
            self.merging.remove(run);
        }
    }

    /// Keeps runs that can't be read out of later merges.
    fn leave_alone(&mut self, error: &Error, runs: &[u64]) {
        if matches!(error, Error::Corrupt { .. } | Error::Missing { .. }) {
            self.unmergeable.extend(runs);
        }
    }

    /// Makes finished flushes and merges durable, then visible; whether there was one.
    fn install(&mut self) -> Result<bool, Error> {
        let mut did = false;
        while let Some(install) = self.installs.front() {
            let mut edit = Edit {
                flushed: install.flushed.unwrap_or(self.manifest.state().flushed),
                next_table: self.space.numbers.next(),
                removed: install.removed.clone(),
                added: install.written.entries.clone(),
                floors: install.written.floors.clone(),
                ..Edit::default()
            };
            self.hide_dropped(install.drops, &install.written.tables, &mut edit);
            self.manifest.append(&*self.space.disk, &edit)?;
            let install = self.installs.pop_front().expect("just seen");
            if install.flushed.is_some() {
                self.frozen.pop_front();
                self.flushing = false;
            } else {
                self.end_merge(&install.pick.runs);
                self.learn(&install);
            }
            let version = self.snapshot.version.edited(&install.removed, install.written.tables);
            self.obsolete.extend(install.removed);
            self.looked = None;
            self.publish(Arc::clone(&self.snapshot.active), Arc::new(version));
            did = true;
        }
        self.forget_drops();
        Ok(did)
    }

    /// Tells the picker what its merge made go.
    fn learn(&mut self, install: &Install<D>) {
        let runs = self.snapshot.version.runs().iter();
        let before =
            runs.filter(|run| install.pick.runs.contains(&run.number)).map(|run| run.bytes);
        let entries = &install.written.entries;
        let bytes = entries.iter().map(|entry| entry.size).sum();
        let after = entries.first().map(|entry| (entry.run, bytes));
        self.picker.handle_merged(&install.pick, before.sum(), after);
    }

    fn invariants(&self) {
        assert_eq!(self.snapshot.frozen.len(), self.frozen.len());
        assert_eq!(self.snapshot.version.tables().len(), self.manifest.state().tables.len());
        assert!(!self.flushing || !self.frozen.is_empty());
        assert!(self.merges <= MERGES_MAX && self.merges <= self.merging.len());
    }
}

fn terms(now_ms: u64, retentions: &Retentions) -> Terms {
    Terms { retentions: Arc::new(retentions.clone()), now_ms }
}
