//! The tombstone floor: below it tombstones go, and nothing comes back.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use starling_clock::Stamp;
use starling_storage::{
    Action, CrashMode, Event, Fault, HistoryRetention, Mode, Outcome, Progress, Provenance,
    SimDisk, Storage, Sync, Write,
};
use support::*;

fn delete(key: &[u8], ms: u64) -> Event {
    Event { action: Action::Delete, ..event(key, ms, b"") }
}

fn commit(storage: &mut Storage<SimDisk>, write: Write) -> Outcome {
    storage.commit(vec![write], Sync::Now, 1).unwrap()[0]
}

/// A key that was written and deleted, and then forgotten altogether.
fn forgotten(disk: &SimDisk) -> Storage<SimDisk> {
    let mut storage = open(disk);
    let one = HistoryRetention { versions_max: Some(1), age_ms_max: None };
    storage.set_retention(KEYSPACE, one);
    for event in [event(b"kept", 4, b"v"), event(b"gone", 5, b"v"), delete(b"gone", 7)] {
        assert!(matches!(commit(&mut storage, apply(&event)), Outcome::Applied { .. }));
    }
    storage.set_tombstone_floor(1, stamp(10));
    storage.rotate().unwrap();
    storage.request_full_merge();
    work_all(&mut storage, 1);
    let view = storage.view();
    assert_eq!(view.newest_stamp(1, KEYSPACE, b"gone").unwrap(), None, "the tombstone went");
    storage
}

fn check_refused(storage: &mut Storage<SimDisk>) {
    let late = event(b"gone", 6, b"late");
    let end = storage.change_range().1;
    assert_eq!(commit(storage, copy(&late)), Outcome::BelowFloor { floor: stamp(10) });
    assert_eq!(commit(storage, apply(&late)), Outcome::Superseded { newest: stamp(10) });
    let at = event(b"new", 10, b"at the floor");
    assert_eq!(commit(storage, copy(&at)), Outcome::BelowFloor { floor: stamp(10) });
    assert_eq!(storage.change_range().1, end, "nothing was published");
    let view = storage.view();
    assert_eq!(view.get(1, KEYSPACE, b"gone", Stamp::MAX).unwrap(), None);
    assert_eq!(view.get(1, KEYSPACE, b"kept", Stamp::MAX).unwrap(), Some(event(b"kept", 4, b"v")));
}

#[test]
fn what_is_not_above_the_floor_stays_away_and_over_restarts_too() {
    let disk = SimDisk::new(1);
    let mut storage = forgotten(&disk);
    check_refused(&mut storage);
    drop(storage);
    for mode in [CrashMode::KeepAll, CrashMode::LoseUnsynced, CrashMode::Torn] {
        disk.restart(mode);
        check_refused(&mut open(&disk));
    }
    let above = Event { stamp: stamp(11), ..event(b"gone", 11, b"again") };
    let applied = commit(&mut open(&disk), apply(&above));
    assert!(matches!(applied, Outcome::Applied { newest: true, .. }), "{applied:?}");
}

#[test]
fn what_is_here_or_was_is_a_duplicate_below_the_floor_too() {
    let disk = SimDisk::new(1);
    let mut storage = forgotten(&disk);
    for known in [event(b"kept", 4, b"v"), event(b"gone", 5, b"v"), delete(b"gone", 7)] {
        assert_eq!(commit(&mut storage, copy(&known)), Outcome::Duplicate, "{known:?}");
        assert_eq!(commit(&mut storage, apply(&known)), Outcome::Duplicate, "{known:?}");
    }
}

#[test]
fn an_older_version_of_a_key_with_a_newer_one_stays_away() {
    let disk = SimDisk::new(1);
    let mut storage = forgotten(&disk);
    let newer = event(b"gone", 20, b"newer");
    commit(&mut storage, apply(&newer));
    let late = event(b"gone", 6, b"late");
    assert_eq!(commit(&mut storage, copy(&late)), Outcome::BelowFloor { floor: stamp(10) });
    assert_eq!(commit(&mut storage, apply(&late)), Outcome::Superseded { newest: stamp(20) });
}

#[test]
fn other_partitions_have_floors_of_their_own() {
    let disk = SimDisk::new(1);
    let mut storage = forgotten(&disk);
    let other = Event { partition: 2, ..event(b"gone", 6, b"elsewhere") };
    let (provenance, mode) = (Provenance::Transfer, Mode::Copy);
    let applied = commit(&mut storage, Write::Apply { event: other, provenance, mode });
    assert!(matches!(applied, Outcome::Applied { .. }), "{applied:?}");
}

/// Whenever the power goes: as soon as a tombstone is gone, what it hid is refused.
#[test]
fn a_crash_at_any_call_lets_nothing_come_back() {
    for by_jobs in [false, true] {
        let calls = {
            let disk = SimDisk::new(1);
            run(&disk, by_jobs);
            disk.calls()
        };
        let mut gone = 0;
        for mode in [CrashMode::LoseUnsynced, CrashMode::Torn, CrashMode::KeepAll] {
            for call in 0..calls {
                let disk = SimDisk::new(call);
                disk.inject(call, Fault::Crash);
                run(&disk, by_jobs);
                disk.restart(mode);
                let mut storage = open(&disk);
                let newest = storage.view().newest_stamp(1, KEYSPACE, b"gone").unwrap();
                if newest.is_some() || storage.change_range().1 < 4 {
                    continue;
                }
                gone += 1;
                check_refused(&mut storage);
            }
        }
        assert!(gone > 3, "{gone}");
    }
}

/// Writes, deletes, raises the floor and merges, as far as the disk lets it.
fn run(disk: &SimDisk, by_jobs: bool) {
    let Ok(mut storage) = open_with(disk, config()) else { return };
    storage.set_retention(KEYSPACE, HistoryRetention { versions_max: Some(1), age_ms_max: None });
    for event in [event(b"kept", 4, b"v"), event(b"gone", 5, b"v"), delete(b"gone", 7)] {
        if storage.commit(vec![apply(&event)], Sync::Now, 1).is_err() {
            return;
        }
    }
    storage.set_tombstone_floor(1, stamp(10));
    if storage.rotate().is_err() {
        return;
    }
    storage.request_full_merge();
    if by_jobs {
        while let Some(mut job) = storage.begin_job(1) {
            while job.step() == Progress::Did {}
            if storage.finish_job(job).is_err() {
                return;
            }
        }
    }
    while let Ok(Progress::Did) = storage.work(1) {}
}
