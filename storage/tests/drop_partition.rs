//! A partition is dropped as a whole, whatever is going on and whenever the power goes, and can come back.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use starling_clock::Stamp;
use starling_storage::offline::verify;
use starling_storage::{
    Action, Change, CrashMode, Digest, Event, Fault, HistoryRetention, Job, Mode, Order, Outcome,
    Progress, Provenance, Scan, SimDisk, Storage, Sync, Write,
};
use support::*;

const GONE: u32 = 1;
const STAYS: u32 = 2;

fn in_partition(partition: u32, n: u64) -> Event {
    Event { partition, ..event(&n.to_be_bytes(), 1000 + n, &[7; 60]) }
}

fn transfer(event: &Event) -> Write {
    Write::Apply { event: event.clone(), provenance: Provenance::Transfer, mode: Mode::Copy }
}

fn put(storage: &mut Storage<SimDisk>, event: &Event) {
    let outcome = storage.commit(vec![transfer(event)], Sync::Now, 1).unwrap()[0];
    assert!(matches!(outcome, Outcome::Applied { .. }), "{outcome:?}");
}

fn fill_both(storage: &mut Storage<SimDisk>, from: u64, count: u64) {
    for n in from..from + count {
        put(storage, &in_partition(GONE, n));
        put(storage, &in_partition(STAYS, n));
    }
}

/// What every way to read finds of a partition.
fn events(storage: &Storage<SimDisk>, partition: u32) -> Vec<Event> {
    let view = storage.view();
    let page = view.partition_events(partition, None, usize::MAX, usize::MAX).unwrap();
    let mut digest = Digest::default();
    page.events.iter().for_each(|event| digest.add(event.id().hash()));
    assert_eq!(view.digest(partition).unwrap(), digest);
    let scan = view.scan_page(&Scan::new(partition, KEYSPACE, b"")).unwrap();
    assert_eq!(scan.events, page.events, "one version each");
    for n in 0..200_u64 {
        let key = n.to_be_bytes();
        let wanted = page.events.iter().find(|event| event.key == key.as_slice());
        let found = view.get(partition, KEYSPACE, &key, Stamp::MAX).unwrap();
        assert_eq!(found.as_ref(), wanted);
        let (from, to, order) = (Stamp::ZERO, Stamp::MAX, Order::Descending);
        let versions = view.versions(partition, KEYSPACE, &key, from, to, order, 9, 9999).unwrap();
        assert_eq!(versions.events.first(), wanted);
    }
    page.events
}

fn expected(partition: u32, numbers: impl IntoIterator<Item = u64>) -> Vec<Event> {
    numbers.into_iter().map(|n| in_partition(partition, n)).collect()
}

/// Events of both partitions in tables, in frozen memtables and in the active one.
fn everywhere(disk: &SimDisk) -> Storage<SimDisk> {
    let mut storage = open(disk);
    fill_both(&mut storage, 0, 80);
    work_all(&mut storage, 1);
    fill_both(&mut storage, 80, 20);
    storage.rotate().unwrap();
    fill_both(&mut storage, 100, 5);
    assert!(0 < storage.status().tables);
    assert_eq!(events(&storage, GONE), expected(GONE, 0..105));
    storage
}

#[test]
fn nothing_of_it_is_left_and_all_of_the_others_is() {
    for mode in [CrashMode::LoseUnsynced, CrashMode::Torn, CrashMode::KeepAll] {
        let disk = SimDisk::new(1);
        let mut storage = everywhere(&disk);
        storage.drop_partition(GONE, 1).unwrap();
        for restart in [false, true, true] {
            if restart {
                drop(storage);
                disk.restart(mode);
                storage = open(&disk);
            }
            assert_eq!(events(&storage, GONE), []);
            assert_eq!(storage.view().estimate(GONE, KEYSPACE, b"").unwrap().events, 0);
            assert_eq!(events(&storage, STAYS), expected(STAYS, 0..105));
        }
        work_all(&mut storage, 1);
        assert_eq!(events(&storage, GONE), []);
        assert_eq!(events(&storage, STAYS), expected(STAYS, 0..105));
        drop(storage);
        assert_eq!(verify(&disk, |_, _| {}).unwrap().damage, []);
    }
}

#[test]
fn what_comes_afterwards_stays() {
    let disk = SimDisk::new(1);
    let mut storage = everywhere(&disk);
    storage.drop_partition(GONE, 1).unwrap();
    // Some of them once more, at the same stamps.
    for n in (40..60).chain(150..160) {
        put(&mut storage, &in_partition(GONE, n));
    }
    for step in 0..4 {
        match step {
            1 => work_all(&mut storage, 1),
            2 => {
                storage.rotate().unwrap();
                storage.request_full_merge();
                work_all(&mut storage, 1);
            }
            3 => {
                drop(storage);
                disk.restart(CrashMode::LoseUnsynced);
                storage = open(&disk);
            }
            _ => {}
        }
        assert_eq!(events(&storage, GONE), expected(GONE, (40..60).chain(150..160)));
        assert_eq!(events(&storage, STAYS), expected(STAYS, 0..105));
    }
    storage.drop_partition(GONE, 1).unwrap();
    assert_eq!(events(&storage, GONE), []);
}

#[test]
fn an_event_that_comes_again_is_applied_and_published_again_once() {
    let disk = SimDisk::new(1);
    let mut storage = everywhere(&disk);
    let again = in_partition(GONE, 3);
    let known = storage.commit(vec![transfer(&again)], Sync::Now, 1).unwrap();
    assert_eq!(known, [Outcome::Duplicate]);
    storage.drop_partition(GONE, 1).unwrap();
    put(&mut storage, &again);
    let known = storage.commit(vec![transfer(&again)], Sync::Now, 1).unwrap();
    assert_eq!(known, [Outcome::Duplicate]);
    let changes = storage.view().changes(1, usize::MAX, usize::MAX).unwrap();
    let of_it: Vec<&Change> = changes.iter().filter(|change| change.event == again).collect();
    assert_eq!(of_it.len(), 2, "before and after");
}

#[test]
fn its_tombstone_floor_goes_with_it() {
    let disk = SimDisk::new(1);
    let mut storage = open(&disk);
    storage.set_retention(KEYSPACE, HistoryRetention { versions_max: Some(1), age_ms_max: None });
    put(&mut storage, &event(b"gone", 5, b"v"));
    put(&mut storage, &Event { action: Action::Delete, ..event(b"gone", 7, b"") });
    storage.set_tombstone_floor(GONE, stamp(10));
    storage.rotate().unwrap();
    storage.request_full_merge();
    work_all(&mut storage, 1);
    let late = event(b"other", 6, b"v");
    let refused = storage.commit(vec![transfer(&late)], Sync::Now, 1).unwrap();
    assert_eq!(refused, [Outcome::BelowFloor { floor: stamp(10) }]);
    storage.drop_partition(GONE, 1).unwrap();
    drop(storage);
    disk.restart(CrashMode::LoseUnsynced);
    let mut storage = open(&disk);
    put(&mut storage, &late);
}

/// Jobs that were begun before write what they read before.
#[test]
fn jobs_that_are_out_bring_nothing_back() {
    for steps in 0..12 {
        let disk = SimDisk::new(1);
        let mut storage = everywhere(&disk);
        storage.request_full_merge();
        let mut jobs: Vec<_> = std::iter::from_fn(|| storage.begin_job(1)).collect();
        assert!(jobs.iter().any(Job::is_flush));
        for job in &mut jobs {
            for _ in 0..steps {
                job.step();
            }
        }
        storage.drop_partition(GONE, 1).unwrap();
        for n in 50..55 {
            put(&mut storage, &in_partition(GONE, n));
        }
        for mut job in jobs {
            while job.step() == Progress::Did {}
            storage.finish_job(job).unwrap();
            assert_eq!(events(&storage, GONE), expected(GONE, 50..55));
            assert_eq!(events(&storage, STAYS), expected(STAYS, 0..105));
        }
        while let Some(mut job) = storage.begin_job(1) {
            while job.step() == Progress::Did {}
            storage.finish_job(job).unwrap();
        }
        drop(storage);
        disk.restart(CrashMode::LoseUnsynced);
        let storage = open(&disk);
        assert_eq!(events(&storage, GONE), expected(GONE, 50..55));
        assert_eq!(events(&storage, STAYS), expected(STAYS, 0..105));
    }
}

#[test]
fn its_room_is_free_after_merges() {
    let disk = SimDisk::new(1);
    let mut storage = open(&disk);
    fill_both(&mut storage, 0, 400);
    storage.rotate().unwrap();
    storage.request_full_merge();
    work_all(&mut storage, 1);
    let before = storage.status().table_bytes;
    storage.drop_partition(GONE, 1).unwrap();
    work_all(&mut storage, 1);
    let after = storage.status().table_bytes;
    assert!(after * 10 < before * 6, "{before} bytes of tables, then {after}");
    assert_eq!(events(&storage, GONE), []);
}

/// Whenever the power goes, or the disk fails or is full, the partition is there as a whole or gone as a whole, and the others are there.
#[test]
fn a_fault_at_any_call_drops_all_of_it_or_nothing() {
    let calls = {
        let disk = SimDisk::new(1);
        run(&disk);
        disk.calls()
    };
    let (mut dropped, mut kept) = (0, 0);
    let crashes = [CrashMode::LoseUnsynced, CrashMode::Torn, CrashMode::KeepAll];
    let faults = [Fault::Io, Fault::Full].map(|fault| (fault, CrashMode::LoseUnsynced));
    for (fault, mode) in crashes.map(|mode| (Fault::Crash, mode)).into_iter().chain(faults) {
        for call in 0..calls {
            let disk = SimDisk::new(call);
            disk.inject(call, fault);
            let promised = run(&disk);
            for _ in 0..2 {
                disk.restart(mode);
                let storage = open(&disk);
                let view = storage.view();
                let found = |partition| {
                    let page = view.partition_events(partition, None, usize::MAX, usize::MAX);
                    page.unwrap().events.len() as u64
                };
                let (gone, stays) = (found(GONE), found(STAYS));
                assert!(promised.stays <= stays, "{promised:?}: {stays} at call {call}");
                if promised.dropped {
                    let since = promised.gone..=promised.gone + 1;
                    assert!(since.contains(&gone), "{promised:?}: {gone} at call {call}");
                    dropped += 1;
                } else {
                    let whole = promised.gone..=promised.gone + 1;
                    let was_dropped = promised.asked && gone == 0;
                    assert!(was_dropped || whole.contains(&gone), "{promised:?}: {gone}");
                    kept += 1;
                }
            }
        }
    }
    assert!(20 < dropped && 20 < kept, "{dropped}, {kept}");
}

/// What has to be there.
#[derive(Clone, Copy, Debug, Default)]
struct Promised {
    gone: u64,
    stays: u64,
    asked: bool,
    dropped: bool,
}

/// Fills, drops the partition in between, and goes on, as far as the disk lets it.
fn run(disk: &SimDisk) -> Promised {
    let mut promised = Promised::default();
    let Ok(mut storage) = open_with(disk, config()) else { return promised };
    for n in 0..60 {
        if n == 40 {
            promised.asked = true;
            if storage.drop_partition(GONE, 1).is_err() {
                return promised;
            }
            (promised.dropped, promised.gone) = (true, 0);
        }
        for partition in [GONE, STAYS] {
            let write = transfer(&in_partition(partition, n));
            if storage.commit(vec![write], Sync::Now, 1).is_err() {
                return promised;
            }
            match partition {
                GONE => promised.gone += 1,
                _ => promised.stays += 1,
            }
        }
        if n % 20 < 18 && storage.work(1).is_err() {
            return promised;
        }
    }
    while let Ok(Progress::Did) = storage.work(1) {}
    promised
}
