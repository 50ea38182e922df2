//! Flushes and merges as jobs: beside commits, on other threads, given up half-way; and what writers are told when
//! jobs are behind.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use starling_storage::{
    Config, Error, ErrorKind, HistoryRetention, Job, OsDisk, Progress, SimDisk, Storage, Sync,
};
use support::*;

/// Applies event `n`; whether there was room.
fn put<D: starling_storage::Disk>(storage: &mut Storage<D>, n: u64) -> bool {
    let event = event(&n.to_be_bytes(), 1000 + n, &[7; 40]);
    match storage.commit(vec![apply(&event)], Sync::Later, 1) {
        Ok(_) => true,
        Err(Error::Busy { waiting }) => {
            assert!(0 < waiting);
            false
        }
        Err(error) => panic!("{error}"),
    }
}

fn count<D: starling_storage::Disk>(storage: &Storage<D>) -> u64 {
    storage.view().digest(1).unwrap().events
}

fn finish(storage: &mut Storage<SimDisk>, mut job: Job<SimDisk>) {
    while job.step() == Progress::Did {}
    storage.finish_job(job).unwrap();
}

#[test]
fn writers_are_slowed_by_degrees_and_refused_only_at_the_end() {
    let mut storage = open(&SimDisk::new(1));
    assert!(storage.begin_job(1).is_none(), "there is nothing to do yet");
    let (mut grades, mut before, mut n) = (0, 0, 0);
    while put(&mut storage, n) {
        let pressure = storage.pressure();
        assert!(before <= pressure, "nothing was flushed meanwhile");
        grades += u64::from(before < pressure);
        (before, n) = (pressure, n + 1);
        assert!(n < 10_000, "it never ends");
    }
    assert!(grades > 20, "{grades} degrees");
    assert_eq!(storage.pressure(), 100);
    assert_eq!(storage.status().pressure, 100);
    assert_eq!(count(&storage), n, "what was refused is not there");
    let refused = storage.commit(vec![apply(&event(b"x", 1, b""))], Sync::Now, 1).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    // Reads, syncs and the rest of background work go on.
    storage.sync().unwrap();
    while storage.upkeep(1).unwrap() == Progress::Did {}
    let job = storage.begin_job(1).unwrap();
    assert!(job.is_flush());
    assert!(!put(&mut storage, n), "the job is not done");
    finish(&mut storage, job);
    assert!(storage.pressure() < 100);
    assert!(put(&mut storage, n));
    assert_eq!(count(&storage), n + 1);
}

#[test]
fn without_a_helper_a_commit_makes_room_itself() {
    let mut storage = open(&SimDisk::new(1));
    for n in 0..2000 {
        assert!(put(&mut storage, n));
    }
    assert_eq!(count(&storage), 2000);
    assert!(0 < storage.status().tables);
}

#[test]
fn a_job_that_is_given_up_leaves_nothing_behind() {
    let disk = SimDisk::new(1);
    let mut storage = open(&disk);
    for n in 0..50 {
        assert!(put(&mut storage, n));
    }
    storage.rotate().unwrap();
    let files = disk_tables(&disk);
    let mut job = storage.begin_job(1).unwrap();
    assert_eq!(job.step(), Progress::Did, "it takes several steps");
    assert!(files < disk_tables(&disk));
    storage.finish_job(job).unwrap();
    assert_eq!(files, disk_tables(&disk));
    while let Some(job) = storage.begin_job(1) {
        finish(&mut storage, job);
    }
    assert_eq!(count(&storage), 50);
    assert!(files < disk_tables(&disk));
}

fn disk_tables(disk: &SimDisk) -> usize {
    starling_storage::Disk::list(disk, "tables").unwrap().len()
}

#[test]
fn a_flush_goes_on_beside_merges() {
    let mut storage = open(&SimDisk::new(1));
    let mut n = 0;
    // Runs to merge, made one by one.
    for _ in 0..2 {
        for _ in 0..50 {
            put(&mut storage, n);
            n += 1;
        }
        storage.rotate().unwrap();
        let flush = storage.begin_job(1).unwrap();
        finish(&mut storage, flush);
    }
    let mut merge = storage.begin_job(1).unwrap();
    assert!(!merge.is_flush());
    assert_eq!(merge.step(), Progress::Did);
    put(&mut storage, n);
    storage.rotate().unwrap();
    let flush = storage.begin_job(1).unwrap();
    assert!(flush.is_flush());
    while let Some(job) = storage.begin_job(1) {
        assert!(job.rank() < flush.rank(), "one flush at a time, and no run twice");
        finish(&mut storage, job);
    }
    finish(&mut storage, flush);
    finish(&mut storage, merge);
    assert_eq!(count(&storage), n + 1);
}

#[test]
fn jobs_run_on_another_thread_while_commits_go_on() {
    const EVENTS: u64 = 4000;
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let disk = Arc::new(OsDisk::new(dir.path()).unwrap());
        Storage::open(disk, Config { log_salt: 1, ..config() }, identity()).unwrap()
    };
    let mut storage = open();
    let (begun, todo) = sync_channel::<Job<OsDisk>>(8);
    let (ended, done) = sync_channel::<Job<OsDisk>>(8);
    let (mut refused, mut jobs) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for mut job in todo {
                while job.step() == Progress::Did {}
                ended.send(job).unwrap();
            }
        });
        let mut n = 0;
        while n < EVENTS {
            for job in std::iter::from_fn(|| storage.begin_job(1)) {
                begun.send(job).unwrap();
            }
            if put(&mut storage, n) {
                n += 1;
            } else {
                refused += 1;
                storage.finish_job(done.recv().unwrap()).unwrap();
                jobs += 1;
            }
            for job in done.try_iter() {
                storage.finish_job(job).unwrap();
                jobs += 1;
            }
            storage.upkeep(1).unwrap();
        }
        drop(begun);
        for job in done {
            storage.finish_job(job).unwrap();
        }
    });
    assert!(jobs > 10, "{jobs} jobs, {refused} refused");
    assert_eq!(count(&storage), EVENTS);
    storage.sync().unwrap();
    drop(storage);
    let storage = open();
    assert_eq!(count(&storage), EVENTS);
    let changes = storage.view().changes(1, usize::MAX, usize::MAX).unwrap();
    assert_eq!(changes.len() as u64, EVENTS);
}

#[test]
fn what_a_restart_reads_from_the_log_goes_to_memtables_of_their_size() {
    let disk = SimDisk::new(1);
    let large = Config { memtable_bytes_max: 1 << 20, wal_segment_bytes_max: 1 << 20, ..config() };
    let mut storage = open_with(&disk, large).unwrap();
    for n in 0..600 {
        assert!(put(&mut storage, n));
    }
    storage.sync().unwrap();
    drop(storage);
    let mut storage = open(&disk);
    assert_eq!(storage.pressure(), 100, "several memtables wait for their flush");
    assert_eq!(count(&storage), 600);
    let mut flushes = 0;
    while let Some(job) = storage.begin_job(1) {
        flushes += u64::from(job.is_flush());
        finish(&mut storage, job);
    }
    assert!(3 < flushes, "{flushes}");
    assert_eq!(count(&storage), 600);
    drop(storage);
    assert_eq!(count(&open(&disk)), 600);
}

/// No write has to come for it, but time.
#[test]
fn versions_go_when_their_time_has_come() {
    let mut storage = open(&SimDisk::new(1));
    let hour = HistoryRetention { versions_max: None, age_ms_max: Some(3_600_000) };
    storage.set_retention(KEYSPACE, hour);
    for n in 0..100 {
        let event = event(&[u8::try_from(n % 10).unwrap()], 1000 + n, &[7; 40]);
        storage.commit(vec![apply(&event)], Sync::Now, 2000).unwrap();
    }
    storage.rotate().unwrap();
    work_all(&mut storage, 2000);
    assert_eq!(count(&storage), 100);
    work_all(&mut storage, 3_601_000);
    assert_eq!(count(&storage), 100, "the last ones were replaced an hour ago at most");
    work_all(&mut storage, 3_610_000);
    assert_eq!(count(&storage), 10, "the newest of each key");
}
