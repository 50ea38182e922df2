//! The storage of a node: the lane that writes, the lane that reads, and what is done in the background.
//!
//! Invariants:
//!
//! - What waits for the writer is one commit, which takes simulated time; its answers come in the order of the requests, news of the
//!   change log after them.
//! - A node flushes and merges either between its commits, or as jobs on a thread of their own: step by step, beside commits and
//!   reads, so that its life can end between any two of them.
//! - A disk call at which the power goes ends the life of the node before anything is told.

use starling_node::core::storage::{StorageAnswer, StorageFailure, StorageRequest};
use starling_node::core::types::{Input, Ticket};
use starling_storage::Progress;

use super::event::Event;
use super::node::guard;
use super::world::World;

/// What costs what, in microseconds.
const COMMIT_US: u64 = 30;
const REQUEST_US: u64 = 3;
const SYNC_US: u64 = 130;
const STEP_US: u64 = 150;
/// The longest pause after a commit when jobs are behind.
const PAUSE_US_MAX: u64 = 20_000;
/// What was written without a sync is synced after this long.
const SYNC_INTERVAL_US: u64 = 100_000;
/// Background work is looked for this often, and so much is done then.
const WORK_INTERVAL_US: u64 = 200_000;
const UNITS_MAX: usize = 4;

impl World {
    /// Notices that a disk call ended the node's life.
    fn power_is_gone(&mut self, node: usize) -> bool {
        let is_crashed = self.nodes[node].disk.is_crashed();
        if is_crashed {
            self.crash(node);
        }
        is_crashed
    }

    pub(super) fn commit(&mut self, node: usize) {
        let wall_ms = self.now(node).wall_ms;
        let factor = self.nodes[node].slow * self.nodes[node].slow_disk;
        let syncs = self.nodes[node].disk.syncs();
        let running = self.running(node);
        let batch = std::mem::take(&mut running.writes);
        let count = batch.len() as u64;
        let answers = match guard(|| running.writer.execute(wall_ms, batch)) {
            Ok(answers) => answers,
            Err(message) => return self.panicked(node, message),
        };
        if self.power_is_gone(node) {
            return;
        }
        let is_poison = |(_, answer): &(Ticket, StorageAnswer)| {
            matches!(answer, StorageAnswer::Failed(StorageFailure::Poisoned))
        };
        if answers.iter().any(is_poison) {
            self.poisoned(node);
        }
        if self.running(node).work_left && !self.work(node) && self.nodes[node].running.is_none() {
            return;
        }
        let running = self.running(node);
        let pressure = u64::from(running.writer.storage().pressure());
        let pause_us = if running.has_helper { PAUSE_US_MAX * pressure / 100 } else { 0 };
        let syncs = self.nodes[node].disk.syncs() - syncs;
        let cost_us = (COMMIT_US + REQUEST_US * count + SYNC_US * syncs) * factor + pause_us;
        self.at_life(cost_us, node, Event::Committed(answers));
    }

    pub(super) fn committed(&mut self, node: usize, answers: Vec<(Ticket, StorageAnswer)>) {
        for (ticket, answer) in answers {
            self.feed(node, Box::new(Input::StorageDone { ticket, answer }));
            if self.nodes[node].running.is_none() {
                return;
            }
        }
        self.carry_out(node);
        if self.nodes[node].running.is_none() {
            return;
        }
        let running = self.running(node);
        running.committing = false;
        let waiting = !running.writes.is_empty();
        running.committing = waiting;
        let sync = running.writer.storage().unsynced() && !running.sync_scheduled;
        running.sync_scheduled |= sync;
        running.work_left = true;
        if sync {
            self.at_life(SYNC_INTERVAL_US, node, Event::Sync);
        }
        if waiting {
            self.at_life(0, node, Event::Commit);
        }
        self.announce(node);
    }

    pub(super) fn sync(&mut self, node: usize) {
        let running = self.running(node);
        if running.committing {
            // One thread does both.
            self.at_life(100, node, Event::Sync);
            return;
        }
        running.sync_scheduled = false;
        let result = guard(|| running.writer.storage_mut().sync().is_err());
        self.after_storage(node, result);
        if self.nodes[node].running.is_some() {
            self.announce(node);
        }
    }

    /// Looks for background work, as is done at intervals.
    pub(super) fn look_for_work(&mut self, node: usize) {
        for _ in 0..UNITS_MAX {
            if !self.work(node) {
                break;
            }
        }
        self.begin_jobs(node);
        if self.nodes[node].running.is_some() {
            self.at_life(WORK_INTERVAL_US, node, Event::Work);
        }
    }

    /// One unit of background work of the writer; tells whether there may be more.
    fn work(&mut self, node: usize) -> bool {
        let wall_ms = self.now(node).wall_ms;
        let running = self.running(node);
        let result = guard(|| {
            let storage = running.writer.storage_mut();
            let progress =
                if running.has_helper { storage.upkeep(wall_ms) } else { storage.work(wall_ms) };
            if matches!(progress, Ok(Progress::Did)) {
                // A commit of nothing takes the view anew: the old one keeps what the work has replaced.
                running.writer.execute(wall_ms, Vec::new());
            }
            running.work_left = matches!(progress, Ok(Progress::Did));
            progress.is_err()
        });
        self.after_storage(node, result);
        self.nodes[node].running.as_ref().is_some_and(|running| running.work_left)
    }

    /// Hands what there is to flush and merge to the thread beside the writer, where there is one.
    fn begin_jobs(&mut self, node: usize) {
        let wall_ms = self.now(node).wall_ms;
        let Some(running) = self.nodes[node].running.as_mut() else { return };
        if !running.has_helper {
            return;
        }
        let begun = guard(|| {
            while let Some(job) = running.writer.storage_mut().begin_job(wall_ms) {
                running.jobs.push_back(job);
            }
        });
        let begin = !running.jobs.is_empty() && !running.stepping;
        running.stepping |= begin;
        self.after_storage(node, begun.map(|()| false));
        if begin && self.nodes[node].running.is_some() {
            self.at_life(STEP_US, node, Event::Step);
        }
    }

    /// The thread beside the writer does a part of a job: by their rank, those of one rank in turn.
    pub(super) fn step_job(&mut self, node: usize) {
        let factor = self.nodes[node].slow * self.nodes[node].slow_disk;
        let syncs = self.nodes[node].disk.syncs();
        let running = self.running(node);
        let next = (0..running.jobs.len()).min_by_key(|&index| running.jobs[index].rank());
        let Some(mut job) = next.and_then(|next| running.jobs.remove(next)) else {
            running.stepping = false;
            return;
        };
        let stepped = guard(|| {
            let progress = job.step();
            (job, progress)
        });
        let ended = match stepped {
            Ok((job, Progress::Did)) => {
                running.jobs.push_back(job);
                false
            }
            Ok((job, Progress::Idle)) => {
                running.jobs_ended.push(job);
                true
            }
            Err(message) => return self.panicked(node, message),
        };
        if self.power_is_gone(node) {
            return;
        }
        let syncs = self.nodes[node].disk.syncs() - syncs;
        let cost_us = (STEP_US + SYNC_US * syncs) * factor;
        if ended {
            self.at_life(cost_us, node, Event::Finish);
        }
        self.at_life(cost_us, node, Event::Step);
    }

    /// The writer makes count what the thread beside it has done.
    pub(super) fn finish_job(&mut self, node: usize) {
        let wall_ms = self.now(node).wall_ms;
        let running = self.running(node);
        if running.committing {
            // One thread does both.
            self.at_life(100, node, Event::Finish);
            return;
        }
        let ended = std::mem::take(&mut running.jobs_ended);
        let finished = guard(|| {
            let mut failed = false;
            for job in ended {
                failed |= running.writer.storage_mut().finish_job(job).is_err();
            }
            // As above: the view is taken anew.
            running.writer.execute(wall_ms, Vec::new());
            failed
        });
        // What failed is begun anew when work is looked for the next time.
        let goes_on = matches!(finished, Ok(false));
        self.after_storage(node, finished);
        if goes_on {
            self.begin_jobs(node);
        }
    }

    fn after_storage(&mut self, node: usize, failed: Result<bool, String>) {
        match failed {
            Err(message) => self.panicked(node, message),
            Ok(failed) => {
                if !self.power_is_gone(node)
                    && failed
                    && self.running(node).writer.storage().status().poisoned
                {
                    self.poisoned(node);
                }
            }
        }
    }

    /// The reading lane answers.
    pub(super) fn read(&mut self, node: usize, ticket: Ticket, request: StorageRequest) {
        let running = self.running(node);
        running.reads_waiting -= 1;
        match guard(|| running.reader.execute(request)) {
            Ok(answer) if !self.power_is_gone(node) => {
                self.input(node, Box::new(Input::StorageDone { ticket, answer }));
            }
            Ok(_) => {}
            Err(message) => self.panicked(node, message),
        }
    }

    /// Tells the core that its change log grew.
    fn announce(&mut self, node: usize) {
        let running = self.running(node);
        let end = running.writer.storage().change_range().1;
        if std::mem::replace(&mut running.changes_end, end) != end {
            self.input(node, Box::new(Input::ChangesGrew { end }));
        }
    }
}
