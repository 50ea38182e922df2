//! Faults at every call of the disk, recovery included: what was promised is there, nothing is made up, nothing
//! is published twice. See `support/model.rs` for the rules.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use starling_clock::Stamp;
use starling_storage::{
    Config, CrashMode, Disk, Error, ErrorKind, Fault, SimDisk, Status, Storage, Sync,
};
use support::model::{Model, Numbers, Step, script, tiny_config};
use support::*;

const MODES: [CrashMode; 3] = [CrashMode::LoseUnsynced, CrashMode::Torn, CrashMode::KeepAll];

/// A script without faults, to know how many calls it makes and that it goes through what it should.
fn rehearse(seed: u64, config: &Config, steps: &[Step], by_jobs: bool) -> u64 {
    let disk = SimDisk::new(seed);
    let mut model = Model::new(by_jobs);
    let storage = model.run(&disk, config, steps).unwrap();
    let status = storage.status();
    drop(storage);
    let calls = disk.calls();
    goes_through_all(&disk, &status, config.change_bytes_max < 1 << 20);
    model.check(&open_with(&disk, config.clone()).unwrap());
    calls
}

/// Whether there were flushes, merges, named values, and in each log segments that were ended and removed.
fn goes_through_all(disk: &SimDisk, status: &Status, changes_go: bool) {
    let firsts = |dir: &str| {
        let names = disk.list(dir).unwrap();
        let numbers = names.iter().filter_map(|name| name.strip_suffix(".log")?.parse().ok());
        numbers.collect::<Vec<u64>>()
    };
    assert!(1 < firsts("wal")[0], "the write-ahead log was trimmed: {status:?}");
    assert!(disk.exists("state").unwrap(), "named values outlived it");
    assert!(status.tables > 0 && status.wal_next > 20, "{status:?}");
    let tables = disk.list("tables").unwrap().into_iter();
    let newest =
        tables.filter_map(|name| u64::from_str_radix(name.strip_suffix(".table")?, 16).ok());
    assert!(status.tables < newest.max().unwrap(), "tables were merged: {status:?}");
    let index =
        disk.list("changes").unwrap().into_iter().find(|name| name.strip_suffix(".ids").is_some());
    assert!(index.is_some() || changes_go, "changes were sealed: {status:?}");
    assert!(1 < status.changes_first || !changes_go, "changes went: {status:?}");
    let hints: Vec<_> =
        ["07", "08"].iter().map(|target| firsts(&format!("hints/{target:0>20}"))).collect();
    assert!(hints.iter().any(|held| held.first() != Some(&1)), "hints went: {hints:?}");
}

/// Opens, checks, goes on for a while, loses power again, checks again.
fn recover_and_check(disk: &SimDisk, config: &Config, model: &mut Model) {
    let storage = open_with(disk, config.clone()).unwrap();
    model.check(&storage);
    drop(storage);
    // What was there after the recovery is there for good, whatever the system had only in memory.
    disk.restart(CrashMode::LoseUnsynced);
    let mut storage = open_with(disk, config.clone()).unwrap();
    model.check(&storage);
    go_on(&mut storage);
}

fn go_on(storage: &mut Storage<SimDisk>) {
    let (_, end) = storage.change_range();
    let new = event(b"zzz", 1 << 30, b"after");
    storage.commit(vec![apply(&new)], Sync::Now, 1000).unwrap();
    assert_eq!(storage.change_range().1, end + 1);
    work_all(storage, 1000);
    assert_eq!(storage.view().changes(end, 9, 999).unwrap()[0].event, new);
}

#[test]
fn a_crash_at_every_call_loses_nothing_promised() {
    for (seed, change_bytes_max, by_jobs) in
        [(1, 1 << 30, false), (2, 1 << 10, false), (1, 1 << 30, true), (2, 1 << 10, true)]
    {
        let config = tiny_config(change_bytes_max);
        let steps = script(seed, 55);
        let calls = rehearse(seed, &config, &steps, by_jobs);
        assert!(calls > 150, "{calls}");
        for mode in MODES {
            for call in 0..calls {
                let disk = SimDisk::new(call);
                disk.inject(call, Fault::Crash);
                let mut model = Model::new(by_jobs);
                model.run(&disk, &config, &steps);
                disk.restart(mode);
                recover_and_check(&disk, &config, &mut model);
            }
        }
    }
}

#[test]
fn a_crash_at_every_call_of_a_recovery_loses_nothing_promised() {
    a_fault_at_every_call_of_a_recovery(Fault::Crash, CrashMode::Torn);
}

#[test]
fn a_failing_or_full_disk_at_every_call_of_a_recovery_loses_nothing_promised() {
    for fault in [Fault::Io, Fault::Full] {
        a_fault_at_every_call_of_a_recovery(fault, CrashMode::LoseUnsynced);
    }
}

/// Crashes somewhere, opens what `mode` leaves with a fault at each call of that, and opens it again.
fn a_fault_at_every_call_of_a_recovery(fault: Fault, mode: CrashMode) {
    let config = tiny_config(1 << 10);
    let steps = script(3, 70);
    let calls = rehearse(3, &config, &steps, false);
    for first in (7..calls).step_by(29) {
        let crashed = SimDisk::new(first * 1000);
        crashed.inject(first, Fault::Crash);
        let mut model = Model::default();
        model.run(&crashed, &config, &steps);
        crashed.restart(mode);
        let whole = crashed.fork();
        drop(open_with(&whole, config.clone()).unwrap());
        for second in 0..whole.calls() - crashed.calls() {
            let disk = crashed.fork();
            disk.inject(disk.calls() + second, fault);
            match open_with(&disk, config.clone()) {
                // A full disk spares calls that need no room.
                Ok(storage) => assert!(fault == Fault::Full && !storage.status().poisoned),
                Err(error) => {
                    assert_ne!(error.kind(), ErrorKind::Damaged, "{error}");
                    assert_ne!(error.kind(), ErrorKind::Configuration, "{error}");
                }
            }
            disk.restart(mode);
            recover_and_check(&disk, &config, &mut model.fork());
        }
    }
}

#[test]
fn a_failing_or_full_disk_at_every_call_never_makes_storage_lie() {
    for by_jobs in [false, true] {
        let config = tiny_config(1 << 10);
        let steps = script(2, 55);
        let calls = rehearse(2, &config, &steps, by_jobs);
        for fault in [Fault::Io, Fault::Full] {
            for mode in [CrashMode::LoseUnsynced, CrashMode::KeepAll] {
                for call in 0..calls {
                    let disk = SimDisk::new(call);
                    disk.inject(call, fault);
                    let mut model = Model::new(by_jobs);
                    drop(model.run(&disk, &config, &steps));
                    disk.restart(mode);
                    recover_and_check(&disk, &config, &mut model);
                }
            }
        }
    }
}

#[test]
fn random_scripts_with_random_crashes_agree_with_the_model() {
    for seed in 0..30 {
        let mut numbers = Numbers(seed);
        let config = tiny_config(if seed % 2 == 0 { 1 << 30 } else { 2 << 10 });
        let disk = SimDisk::new(seed);
        let mut model = Model::new(seed % 3 == 0);
        for life in 0..6 {
            let steps = script(seed * 100 + life, 40);
            disk.inject(disk.calls() + numbers.below(400), Fault::Crash);
            drop(model.run(&disk, &config, &steps));
            disk.restart(MODES[usize::try_from(numbers.below(3)).unwrap()]);
            model.check(&open_with(&disk, config.clone()).unwrap());
        }
    }
}

#[test]
fn a_failed_sync_poisons_writes_and_leaves_reads() {
    let disk = SimDisk::new(1);
    let mut storage = open_with(&disk, Config::default()).unwrap();
    let (kept, lost) = (event(b"kept", 1, b"v"), event(b"lost", 2, b"v"));
    storage.commit(vec![apply(&kept)], Sync::Now, 1).unwrap();
    // The write is one call, the sync the next.
    disk.inject(disk.calls() + 1, Fault::Io);
    let error = storage.commit(vec![apply(&lost)], Sync::Now, 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Indeterminate, "{error}");
    for _ in 0..2 {
        let error = storage.commit(vec![apply(&lost)], Sync::Later, 1).unwrap_err();
        assert!(matches!(error, Error::Poisoned));
        assert!(matches!(storage.sync(), Err(Error::Poisoned)));
        assert!(matches!(storage.work(1), Err(Error::Poisoned)));
    }
    assert!(storage.status().poisoned);
    let view = storage.view();
    assert_eq!(view.get(1, KEYSPACE, b"kept", Stamp::MAX).unwrap(), Some(kept));
    assert_eq!(view.get(1, KEYSPACE, b"lost", Stamp::MAX).unwrap(), None);
    assert_eq!(view.change_range(), (1, 2));
    drop(storage);
    // The system still shows what the sync lost: a restart must make it durable before it believes it.
    disk.restart(CrashMode::KeepAll);
    let shown = open_with(&disk, Config::default()).unwrap().change_range();
    disk.restart(CrashMode::LoseUnsynced);
    assert_eq!(open_with(&disk, Config::default()).unwrap().change_range(), shown);
}

#[test]
fn a_disk_that_stays_full_refuses_writes_until_there_is_room() {
    let config = tiny_config(1 << 30);
    for capacity in (4000..20_000).step_by(531) {
        let disk = SimDisk::new(capacity);
        let mut storage = open_with(&disk, config.clone()).unwrap();
        disk.set_capacity(Some(capacity));
        let (mut applied, mut refused) = (Vec::new(), 0);
        for n in 0..400_u64 {
            let new = event(&n.to_be_bytes(), n, &[5; 60]);
            match storage.commit(vec![apply(&new)], Sync::Now, n) {
                Ok(_) => applied.push(new),
                Err(Error::Full { .. }) => refused += 1,
                Err(error) => panic!("{error}"),
            }
            if let Err(error) = storage.work(n) {
                assert!(matches!(error, Error::Full { .. }), "{error}");
            }
        }
        assert!(refused > 0, "{capacity}");
        disk.set_capacity(None);
        let new = event(b"room", 1000, b"again");
        storage.commit(vec![apply(&new)], Sync::Now, 1000).unwrap();
        applied.push(new);
        work_all(&mut storage, 1000);
        drop(storage);
        disk.restart(CrashMode::LoseUnsynced);
        let storage = open_with(&disk, config.clone()).unwrap();
        let changes = storage.view().changes(1, usize::MAX, usize::MAX).unwrap();
        let changed: Vec<_> = changes.into_iter().map(|change| change.event).collect();
        assert_eq!(changed, applied, "what was refused is not there, the rest is");
    }
}
