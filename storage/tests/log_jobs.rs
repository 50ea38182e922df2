//! Syncs of the write-ahead log and writes of the change log as jobs: what is seen when, and what becomes of it if they fail, are
//! given up, or the power goes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use starling_storage::{CrashMode, Error, Fault, Job, Progress, SimDisk, Storage, Sync};
use support::{apply, config, event, open_with};

/// So small that a memtable has room for several syncs.
const LOG_BUFFER_BYTES: usize = 512;

/// Ranks of jobs, as `Job::rank` says.
const SYNC: u8 = 0;
const CHANGES: u8 = 1;

fn open(disk: &SimDisk) -> Storage<SimDisk> {
    let mut config = config();
    config.log_buffer_bytes_max = LOG_BUFFER_BYTES;
    open_with(disk, config).unwrap()
}

fn put(storage: &mut Storage<SimDisk>, n: u64, sync: Sync) -> Result<(), Error> {
    let event = event(&n.to_be_bytes(), 1000 + n, &[7; 40]);
    storage.commit(vec![apply(&event)], sync, 1).map(drop)
}

/// Puts events from `n` on until there is a job of this rank; the number of the next event.
fn until_job(storage: &mut Storage<SimDisk>, rank: u8, mut n: u64) -> (Job<SimDisk>, u64) {
    loop {
        put(storage, n, Sync::Later).unwrap();
        n += 1;
        while let Some(job) = storage.begin_job(1) {
            if job.rank() == rank {
                return (job, n);
            }
            finish(storage, job);
        }
        assert!(n < 10_000, "it never comes");
    }
}

fn finish(storage: &mut Storage<SimDisk>, mut job: Job<SimDisk>) {
    while job.step() == Progress::Did {}
    storage.finish_job(job).unwrap();
}

/// Changes that are to be seen.
fn seen(storage: &Storage<SimDisk>) -> u64 {
    let changes = storage.view().changes(1, usize::MAX, usize::MAX).unwrap();
    assert!(changes.iter().map(|change| change.sequence).eq(1..=changes.len() as u64));
    assert_eq!(storage.change_range().1, 1 + changes.len() as u64);
    changes.len() as u64
}

#[test]
fn a_sync_shows_what_was_there_when_it_was_begun() {
    let disk = SimDisk::new(1);
    let mut storage = open(&disk);
    let (mut sync, begun) = until_job(&mut storage, SYNC, 0);
    let before = seen(&storage);
    assert!(before < begun);
    for n in begun..begun + 5 {
        put(&mut storage, n, Sync::Later).unwrap();
    }
    assert_eq!(sync.step(), Progress::Idle);
    assert_eq!(seen(&storage), before, "it does not count yet");
    storage.finish_job(sync).unwrap();
    assert_eq!(seen(&storage), begun, "and nothing that came later");
    storage.sync().unwrap();
    assert_eq!(seen(&storage), begun + 5);
}

#[test]
fn a_sync_is_for_many_changes_and_comes_before_a_commit_waits_for_one() {
    let disk = SimDisk::new(1);
    let mut storage = open(&disk);
    let syncs = disk.syncs();
    let (sync, n) = until_job(&mut storage, SYNC, 0);
    let size = storage.status().change_bytes / n;
    let buffer = LOG_BUFFER_BYTES as u64;
    assert!((2 * buffer..3 * buffer).contains(&(n * size)), "{n} events of {size} bytes");
    assert_eq!(disk.syncs(), syncs, "no commit has waited");
    finish(&mut storage, sync);
    assert_eq!(disk.syncs(), syncs + 1);
}

#[test]
fn what_a_sync_has_shown_outlives_the_power() {
    let disk = SimDisk::new(1);
    let mut storage = open(&disk);
    let (mut sync, begun) = until_job(&mut storage, SYNC, 0);
    assert_eq!(sync.step(), Progress::Idle);
    put(&mut storage, begun, Sync::Later).unwrap();
    storage.finish_job(sync).unwrap();
    assert_eq!(seen(&storage), begun);
    disk.crash();
    drop(storage);
    disk.restart(CrashMode::LoseUnsynced);
    let storage = open(&disk);
    assert_eq!(seen(&storage), begun);
    assert_eq!(storage.view().digest(1).unwrap().events, begun);
}

#[test]
fn a_commit_with_a_sync_passes_one_that_is_out() {
    let disk = SimDisk::new(1);
    let mut storage = open(&disk);
    let (sync, n) = until_job(&mut storage, SYNC, 0);
    put(&mut storage, n, Sync::Now).unwrap();
    assert_eq!(seen(&storage), n + 1);
    finish(&mut storage, sync);
    assert_eq!(seen(&storage), n + 1, "nothing is shown twice");
    let (another, n) = until_job(&mut storage, SYNC, n + 1);
    finish(&mut storage, another);
    assert_eq!(seen(&storage), n);
}

#[test]
fn a_sync_that_is_given_up_is_done_by_another() {
    let disk = SimDisk::new(1);
    let mut storage = open(&disk);
    let (sync, n) = until_job(&mut storage, SYNC, 0);
    let before = seen(&storage);
    storage.finish_job(sync).unwrap();
    assert_eq!(seen(&storage), before);
    let (sync, n) = until_job(&mut storage, SYNC, n);
    finish(&mut storage, sync);
    assert_eq!(seen(&storage), n);
}

/// A system tells of a failed sync once: whoever asks next is told that all is well (G14).
#[test]
fn a_failed_sync_is_that_of_every_later_one() {
    let disk = SimDisk::new(1);
    let mut storage = open(&disk);
    let (mut sync, n) = until_job(&mut storage, SYNC, 0);
    let before = seen(&storage);
    disk.inject(disk.calls(), Fault::Io);
    assert_eq!(sync.step(), Progress::Idle);
    disk.clear_faults();
    // It has not been given back.
    assert!(storage.status().poisoned);
    assert!(matches!(put(&mut storage, n, Sync::Now), Err(Error::Poisoned)));
    assert!(matches!(put(&mut storage, n, Sync::Later), Err(Error::Poisoned)));
    assert!(matches!(storage.sync(), Err(Error::Poisoned)));
    assert!(storage.begin_job(1).is_none());
    assert!(matches!(storage.finish_job(sync), Err(Error::WriteFailed { .. })));
    assert_eq!(seen(&storage), before);
    drop(storage);
    disk.restart(CrashMode::LoseUnsynced);
    let storage = open(&disk);
    let kept = seen(&storage);
    assert!(before <= kept && kept <= n, "{before} {kept} {n}");
}

#[test]
fn changes_are_seen_while_they_are_written() {
    let disk = SimDisk::new(1);
    let mut storage = open(&disk);
    let (mut write, n) = until_job(&mut storage, CHANGES, 0);
    storage.sync().unwrap();
    assert_eq!(seen(&storage), n, "from the segment, what is being written, and what came since");
    put(&mut storage, n, Sync::Now).unwrap();
    assert_eq!(write.step(), Progress::Idle);
    assert_eq!(seen(&storage), n + 1);
    storage.finish_job(write).unwrap();
    assert_eq!(seen(&storage), n + 1);
    let (another, n) = until_job(&mut storage, CHANGES, n + 1);
    finish(&mut storage, another);
    storage.sync().unwrap();
    assert_eq!(seen(&storage), n);
    drop(storage);
    assert_eq!(seen(&open(&disk)), n);
}

#[test]
fn changes_whose_write_fails_or_is_given_up_stay_in_memory() {
    let disk = SimDisk::new(1);
    let mut storage = open(&disk);
    let (mut write, n) = until_job(&mut storage, CHANGES, 0);
    storage.sync().unwrap();
    disk.inject(disk.calls(), Fault::Io);
    assert_eq!(write.step(), Progress::Idle);
    assert!(matches!(storage.finish_job(write), Err(Error::Io { .. })));
    assert_eq!(seen(&storage), n);
    let write = storage.begin_job(1).unwrap();
    assert_eq!(write.rank(), CHANGES);
    storage.finish_job(write).unwrap();
    assert_eq!(seen(&storage), n, "it was given up before it was begun");
    let write = storage.begin_job(1).unwrap();
    finish(&mut storage, write);
    assert_eq!(seen(&storage), n);
    drop(storage);
    assert_eq!(seen(&open(&disk)), n);
}

/// Who removes a segment of the write-ahead log syncs the change log with the storage in hand: jobs leave little to that.
#[test]
fn jobs_sync_the_change_log_now_and_then_and_a_failure_stops_the_writer() {
    let disk = SimDisk::new(1);
    let mut storage = open(&disk);
    let mut n = 0;
    loop {
        let (mut write, next) = until_job(&mut storage, CHANGES, n);
        n = next;
        // The call after that of the write.
        disk.inject(disk.calls() + 1, Fault::Io);
        assert_eq!(write.step(), Progress::Idle);
        disk.clear_faults();
        match storage.finish_job(write) {
            Ok(()) => assert!(n < 10_000, "none syncs"),
            Err(Error::WriteFailed { operation: "sync", .. }) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(0 < storage.change_range().1 && storage.status().poisoned);
    assert!(matches!(put(&mut storage, n, Sync::Now), Err(Error::Poisoned)));
    drop(storage);
    disk.restart(CrashMode::LoseUnsynced);
    seen(&open(&disk));
}

/// Nobody carries on with the job: commits that would have to wait for it are refused, and nothing is lost.
#[test]
fn a_backlog_of_changes_is_bounded() {
    let disk = SimDisk::new(1);
    // No flush is due before.
    let large = starling_storage::Config {
        memtable_bytes_max: 1 << 20,
        wal_segment_bytes_max: 1 << 20,
        ..config()
    };
    let mut storage = open_with(&disk, large).unwrap();
    let (write, mut n) = until_job(&mut storage, CHANGES, 0);
    let mut before = 0;
    while put(&mut storage, n, Sync::Now).is_ok() {
        let pressure = storage.pressure();
        assert!(before <= pressure);
        (before, n) = (pressure, n + 1);
        assert!(n < 10_000, "it never ends");
    }
    assert_eq!(storage.pressure(), 100);
    assert!(matches!(put(&mut storage, n, Sync::Now), Err(Error::Busy { waiting: 1 })));
    finish(&mut storage, write);
    while let Some(job) = storage.begin_job(1) {
        finish(&mut storage, job);
    }
    assert_eq!(storage.pressure(), 0);
    put(&mut storage, n, Sync::Now).unwrap();
    assert_eq!(seen(&storage), n + 1);
}

/// The segment that a write of changes begins is made when the job is begun.
#[test]
fn a_failed_sync_of_a_new_segment_stops_the_writer() {
    let mut poisoned = 0;
    for call in 0..12 {
        let disk = SimDisk::new(1);
        let mut storage = open(&disk);
        let (sync, n) = until_job(&mut storage, SYNC, 0);
        finish(&mut storage, sync);
        disk.inject(disk.calls() + call, Fault::Io);
        let job = storage.begin_job(1);
        disk.clear_faults();
        if storage.status().poisoned {
            assert!(job.is_none());
            assert!(matches!(put(&mut storage, n, Sync::Now), Err(Error::Poisoned)));
            poisoned += 1;
        } else if let Some(job) = job {
            finish(&mut storage, job);
        }
    }
    assert!(0 < poisoned);
}
