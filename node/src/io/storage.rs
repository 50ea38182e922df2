//! The storage threads: one writes, one reads, and both hand back whole batches; a third flushes and merges, a
//! fourth reads the disk again to find damage.
//!
//! Invariants:
//!
//! - All writes that wait are one group commit; while one commit syncs, the next one gathers.
//! - Answers of one lane come in the order of its requests; the news that the change log grew comes after the answers of the commit that grew it.
//! - A write of durability `interval` is synced at most the interval after its commit.
//! - Flushes and merges run on a thread of their own, step by step and flushes first; the writer begins them, and makes them count.
//! - What is left of background work is done when nothing waits, and beside each commit in proportion to what it wrote, so that load cannot
//!   put it off for ever.
//! - The further flushes are behind, the longer the writer pauses after a commit; what it is asked for while there is no place is refused.
//! - A thread that ends otherwise than by [`StorageThreads::stop`] is told as [`StorageEvent::ThreadLost`]: nobody waits for its answers.
//!
//! The threads decide nothing: what a request means is [`Writer`]'s and [`Reader`]'s business.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use starling_storage::{DamageLog, ErrorKind, FoundBy, Job, OsDisk, Progress, Scrub};
use tokio::sync::Notify;

use super::lane::{Mailbox, Taken};
use super::time::{Clock, wall_ms};
use crate::core::storage::{Reader, StorageAnswer, StorageRequest, Writer};
use crate::core::types::{Instant, Ticket};

/// Without requests the writer looks for background work (retention by age) this often.
const WORK_INTERVAL: Duration = Duration::from_millis(200);
/// While there is background work, a commit of so many bytes is followed by one more step of it. A step handles about 1 MiB, and
/// what is written is flushed once and merged a few times.
const COMMIT_BYTES_PER_STEP: usize = 256 << 10;
/// The longest pause after a commit, when flushes are so far behind that there is almost no place. It ends early if a job does.
const PAUSE_MAX: Duration = Duration::from_millis(20);
/// The disk is read again in steps of this length.
const SCRUB_STEP: Duration = Duration::from_millis(250);
/// From the end of a round of reading to the next.
const SCRUB_PAUSE: Duration = Duration::from_hours(1);
/// After background work failed it is not tried again for so long.
const WORK_RETRY: Duration = Duration::from_secs(5);

/// What the storage threads tell.
#[derive(Debug)]
pub(super) enum StorageEvent {
    /// An answer.
    Done(Ticket, StorageAnswer),
    /// One past the newest change that may be read.
    ChangesGrew(u64),
    /// A thread panicked. The node cannot go on.
    ThreadLost,
}

/// A request and its ticket.
pub(super) type Ticketed = (Ticket, StorageRequest);

/// The threads and the ways to them.
#[derive(Debug)]
pub(super) struct StorageThreads {
    writes: Arc<Mailbox<Ticketed>>,
    reads: Arc<Mailbox<Ticketed>>,
    jobs: Arc<Jobs>,
    /// Nothing is ever sent: it is closed to end the thread.
    scrub: Arc<Mailbox<()>>,
    events: Arc<Events>,
    threads: Vec<JoinHandle<()>>,
}

/// The way back.
#[derive(Debug)]
pub(super) struct Events {
    mailbox: Mailbox<StorageEvent>,
    wake: Notify,
}

impl Events {
    fn send(&self, events: &mut Vec<StorageEvent>) {
        if !events.is_empty() {
            self.mailbox.send(events);
            self.wake.notify_one();
        }
    }

    /// Waits until there is something, and moves all of it to `events`.
    pub(super) async fn take(&self, events: &mut Vec<StorageEvent>) {
        while self.mailbox.take(events, Some(Duration::ZERO)) != Taken::Items {
            self.wake.notified().await;
        }
    }
}

impl StorageThreads {
    /// Starts the threads. `scrub`: what reads the disk again, and how many bytes of it a second.
    ///
    /// # Errors
    /// What the system says if it has no threads left.
    pub(super) fn start(
        writer: Writer<OsDisk>,
        reader: Reader<OsDisk>,
        clock: Clock,
        sync_interval: Duration,
        scrub: Option<(Scrub<OsDisk>, u64)>,
    ) -> std::io::Result<Self> {
        let (writes, reads) = (Arc::new(Mailbox::new()), Arc::new(Mailbox::new()));
        let events = Arc::new(Events { mailbox: Mailbox::new(), wake: Notify::new() });
        let jobs = Arc::new(Jobs { begun: Mailbox::new(), ended: Mailbox::new() });
        let damage = writer.storage().damage_log();
        let lane = WriteLane {
            writer,
            clock,
            sync_interval,
            sync_due: None,
            work_due: clock.mono(),
            changes_end: None,
            jobs: jobs.clone(),
            events: events.clone(),
        };
        let (lane_jobs, mailbox, guard) = (jobs.clone(), writes.clone(), LostGuard(events.clone()));
        let work =
            std::thread::Builder::new().name("storage-jobs".to_owned()).spawn(move || {
                work_lane(&lane_jobs, &mailbox);
                std::mem::forget(guard);
            })?;
        let (mailbox, guard) = (writes.clone(), LostGuard(events.clone()));
        let write =
            std::thread::Builder::new().name("storage-write".to_owned()).spawn(move || {
                lane.run(&mailbox);
                std::mem::forget(guard);
            })?;
        let (mailbox, guard) = (reads.clone(), LostGuard(events.clone()));
        let back = events.clone();
        let read =
            std::thread::Builder::new().name("storage-read".to_owned()).spawn(move || {
                read_lane(&reader, &mailbox, &back);
                std::mem::forget(guard);
            })?;
        let mut threads = vec![write, read, work];
        let end = Arc::new(Mailbox::new());
        if let Some((scrub, bytes_per_second)) = scrub {
            let (end, guard) = (end.clone(), LostGuard(events.clone()));
            threads.push(std::thread::Builder::new().name("storage-scrub".to_owned()).spawn(
                move || {
                    scrub_lane(scrub, bytes_per_second, &damage, &end);
                    std::mem::forget(guard);
                },
            )?);
        }
        Ok(Self { writes, reads, jobs, scrub: end, events, threads })
    }

    /// Hands over writes, in order.
    pub(super) fn write(&self, requests: &mut Vec<Ticketed>) {
        self.writes.send(requests);
    }

    /// Hands over reads, in order.
    pub(super) fn read(&self, requests: &mut Vec<Ticketed>) {
        self.reads.send(requests);
    }

    /// The way back.
    pub(super) fn events(&self) -> Arc<Events> {
        self.events.clone()
    }

    /// Carries out what waits, syncs, and ends the threads. Blocks.
    pub(super) fn stop(self) {
        self.writes.close();
        self.reads.close();
        // What is not done is begun anew by the next start.
        self.jobs.begun.close();
        self.scrub.close();
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a storage thread panicked");
            }
        }
    }
}

/// Between the writing thread and the one that flushes and merges.
#[derive(Debug)]
struct Jobs {
    begun: Mailbox<Job<OsDisk>>,
    ended: Mailbox<Job<OsDisk>>,
}

/// Tells of the end of a thread, unless it is forgotten.
struct LostGuard(Arc<Events>);

impl Drop for LostGuard {
    fn drop(&mut self) {
        self.0.send(&mut vec![StorageEvent::ThreadLost]);
    }
}

/// The writing thread.
struct WriteLane {
    writer: Writer<OsDisk>,
    clock: Clock,
    sync_interval: Duration,
    /// When what was written without a sync must be on disk.
    sync_due: Option<Instant>,
    /// When background work is looked for.
    work_due: Instant,
    changes_end: Option<u64>,
    jobs: Arc<Jobs>,
    events: Arc<Events>,
}

impl WriteLane {
    fn run(mut self, mailbox: &Mailbox<Ticketed>) {
        let mut requests = Vec::new();
        let mut events = Vec::new();
        loop {
            let due = self.sync_due.map_or(self.work_due, |sync| sync.min(self.work_due));
            let taken = mailbox.take(&mut requests, Some(self.clock.until(due)));
            let mut steps = 1;
            self.exchange_jobs(Duration::ZERO);
            if taken == Taken::Items {
                let batch = std::mem::take(&mut requests);
                steps +=
                    batch.iter().map(|(_, it)| weight(it)).sum::<usize>() / COMMIT_BYTES_PER_STEP;
                let answers = self.writer.execute(wall_ms(), batch);
                events.extend(answers.into_iter().map(|(t, answer)| StorageEvent::Done(t, answer)));
                self.tell_changes(&mut events);
                self.events.send(&mut events);
            }
            self.sync_if_due(taken == Taken::Closed);
            self.tell_changes(&mut events);
            self.events.send(&mut events);
            if taken == Taken::Closed {
                return;
            }
            while 0 < steps && self.work_due <= self.clock.mono() {
                self.work();
                steps -= 1;
            }
            let pressure = u32::from(self.writer.storage().pressure());
            if taken == Taken::Items && 0 < pressure {
                self.exchange_jobs(PAUSE_MAX * pressure / 100);
            }
        }
    }

    /// Makes the jobs that ended count, of which the first may take up to `wait`, and begins what there is.
    fn exchange_jobs(&mut self, wait: Duration) {
        let mut ended = Vec::new();
        self.jobs.ended.take(&mut ended, Some(wait));
        let view_is_old = !ended.is_empty();
        for job in ended {
            if let Err(error) = self.writer.storage_mut().finish_job(job) {
                self.put_off_work(&error);
            }
        }
        if view_is_old {
            // A commit of nothing takes the view anew: the old one keeps what the job has replaced.
            self.writer.execute(wall_ms(), Vec::new());
        }
        if self.work_due <= self.clock.mono() || view_is_old {
            let storage = self.writer.storage_mut();
            let mut begun = std::iter::from_fn(|| storage.begin_job(wall_ms())).collect();
            self.jobs.begun.send(&mut begun);
        }
    }

    fn sync_if_due(&mut self, at_once: bool) {
        if !self.writer.storage().unsynced() {
            self.sync_due = None;
            return;
        }
        let now = self.clock.mono();
        let interval_us = u64::try_from(self.sync_interval.as_micros()).unwrap_or(u64::MAX);
        let due = *self.sync_due.get_or_insert(Instant(now.0.saturating_add(interval_us)));
        if at_once || due <= now {
            self.sync_due = None;
            if let Err(error) = self.writer.storage_mut().sync() {
                tracing::error!(%error, "storage could not sync: no write is taken until the node is restarted");
            }
        }
    }

    fn work(&mut self) {
        match self.writer.storage_mut().upkeep(wall_ms()) {
            Ok(Progress::Did) => self.work_due = self.clock.mono(),
            Ok(Progress::Idle) => self.work_due = later(self.clock.mono(), WORK_INTERVAL),
            Err(error) => self.put_off_work(&error),
        }
    }

    fn put_off_work(&mut self, error: &starling_storage::Error) {
        // What work cannot create or write is no damage of what there is.
        if error.kind() == ErrorKind::Damaged {
            self.writer.storage().damage_log().note_error(FoundBy::Work, error);
        }
        tracing::error!(%error, "background work of storage failed");
        self.work_due = later(self.clock.mono(), WORK_RETRY);
    }

    fn tell_changes(&mut self, events: &mut Vec<StorageEvent>) {
        let (_, end) = self.writer.storage().change_range();
        if self.changes_end != Some(end) {
            self.changes_end = Some(end);
            events.push(StorageEvent::ChangesGrew(end));
        }
    }
}

fn later(now: Instant, pause: Duration) -> Instant {
    now.plus_ms(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX))
}

/// Reads the disk again and again, slowly, and says what is damaged, each place once a round.
fn scrub_lane(mut scrub: Scrub<OsDisk>, bytes_per_second: u64, log: &DamageLog, end: &Mailbox<()>) {
    let steps_per_second = u64::try_from(1000 / SCRUB_STEP.as_millis()).expect("a few");
    let bytes = usize::try_from(bytes_per_second / steps_per_second).unwrap_or(usize::MAX);
    let mut pause = SCRUB_STEP;
    while end.take(&mut Vec::new(), Some(pause)) != Taken::Closed {
        let scrubbed = scrub.step(bytes);
        for damage in &scrubbed.damage {
            log.note_scrubbed(damage);
            tracing::error!(
                file = damage.file,
                offset = damage.offset,
                what = damage.what,
                "the disk is damaged: it is not served; stop the node and look with `starling storage verify`"
            );
        }
        pause = if scrubbed.round_ended { SCRUB_PAUSE } else { SCRUB_STEP };
        if scrubbed.round_ended {
            let status = scrub.status();
            log.set_scrub(status);
            tracing::debug!(
                rounds = status.rounds,
                bytes = status.bytes,
                damaged = status.damaged,
                "the disk was read"
            );
        }
    }
}

/// Carries on with the jobs, by their rank and those of one rank in turn, and nudges the writer when one ends.
fn work_lane(jobs: &Jobs, writer: &Mailbox<Ticketed>) {
    let mut out = Vec::new();
    loop {
        let wait = if out.is_empty() { None } else { Some(Duration::ZERO) };
        if jobs.begun.take(&mut out, wait) == Taken::Closed {
            return;
        }
        let Some(next) = (0..out.len()).min_by_key(|&index| out[index].rank()) else { continue };
        let mut job: Job<OsDisk> = out.remove(next);
        match job.step() {
            Progress::Did => out.push(job),
            Progress::Idle => {
                jobs.ended.send(&mut vec![job]);
                writer.nudge();
            }
        }
    }
}

fn read_lane(reader: &Reader<OsDisk>, mailbox: &Mailbox<Ticketed>, back: &Events) {
    let mut requests = Vec::new();
    let mut events = Vec::new();
    while mailbox.take(&mut requests, None) == Taken::Items {
        for (ticket, request) in requests.drain(..) {
            events.push(StorageEvent::Done(ticket, reader.execute(request)));
        }
        back.send(&mut events);
    }
}

/// About how many bytes a request and its answer keep in memory until it is answered: reads may bring more, rarely all of them at once.
pub(super) fn weight(request: &StorageRequest) -> usize {
    const BASE: usize = 256;
    const VALUE: usize = 4 << 10;
    const PAGE: usize = 64 << 10;
    match request {
        StorageRequest::Apply { events, .. } => {
            events.iter().map(|event| BASE + event.encoded_len()).sum()
        }
        StorageRequest::Hint { event, .. } => BASE + event.encoded_len(),
        StorageRequest::Meta { value, .. } => BASE + value.len(),
        StorageRequest::Get { .. } => VALUE,
        StorageRequest::Versions { .. }
        | StorageRequest::Scan { .. }
        | StorageRequest::Changes { .. }
        | StorageRequest::Hints { .. }
        | StorageRequest::Digests { .. }
        | StorageRequest::KeyspaceDigests { .. }
        | StorageRequest::PartitionEvents { .. } => PAGE,
        StorageRequest::HintsDelivered { .. }
        | StorageRequest::Retention { .. }
        | StorageRequest::ChangesAt { .. }
        | StorageRequest::Status => BASE,
    }
}
