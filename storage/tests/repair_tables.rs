//! A table of which a block is damaged: a repair keeps all other blocks, and tells what was in that one as closely as can be known.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use starling_clock::Stamp;
use starling_storage::offline::{
    DAMAGED_SUFFIX, KeyPlace, Loss, Repair, RepairOptions, Step, repair, verify,
};
use starling_storage::{
    Action, Config, CrashMode, Disk, Event, Fault, Progress, SimDisk, Storage, Sync, Write,
};
use support::*;

/// Where an event is.
type Place = (u32, Bytes, Stamp);

fn roomy() -> Config {
    Config { memtable_bytes_max: 256 << 10, ..config() }
}

/// One table with several sections, of which the write-ahead log has nothing any more: two partitions, every fifth event a delete.
fn filled() -> (SimDisk, String, BTreeMap<Place, Event>) {
    let disk = SimDisk::new(1);
    let mut storage = open_with(&disk, roomy()).unwrap();
    let mut numbers = model::Numbers(7);
    let mut events = BTreeMap::new();
    for n in 0..600_u64 {
        let payload: Vec<u8> = (0..30).map(|_| u8::try_from(numbers.below(256)).unwrap()).collect();
        let action = if n % 5 == 4 { Action::Delete } else { Action::Put };
        let payload = if action == Action::Delete { Vec::new() } else { payload };
        let partition = 1 + u32::try_from(n % 2).unwrap();
        let event = Event { partition, action, ..event(&n.to_be_bytes(), 1000 + n, &payload) };
        storage.commit(vec![apply(&event)], Sync::Later, 1).unwrap();
        events.insert((partition, event.key.clone(), event.stamp), event);
    }
    storage.rotate().unwrap();
    work_all(&mut storage, 1);
    for n in 0..40 {
        let value = vec![1; 1000].into();
        storage.commit(vec![Write::Meta { name: format!("{n}"), value }], Sync::Now, 1).unwrap();
    }
    work_all(&mut storage, 1);
    drop(storage);
    let report = verify(&disk, |_, _| {}).unwrap();
    assert_eq!((report.tables, report.table_events, report.is_clean()), (1, 600, true));
    assert!(report.flushed < report.wal.first, "{report:?}");
    (disk.clone(), table(&disk), events)
}

/// The table that there is.
fn table(disk: &SimDisk) -> String {
    let mut names = disk.list("tables").unwrap();
    names.retain(|name| name.strip_suffix(".table").is_some());
    assert_eq!(names.len(), 1, "{names:?}");
    format!("tables/{}", names[0])
}

fn mend(disk: &SimDisk) -> Repair {
    let options = RepairOptions { log_salt: 9, ..RepairOptions::default() };
    let told = repair(&Arc::new(disk.clone()), &options, |_, _| {}).unwrap();
    let options = RepairOptions { write: true, ..options };
    let done = repair(&Arc::new(disk.clone()), &options, |_, _| {}).unwrap();
    assert_eq!(
        (&told.steps, &told.losses),
        (&done.steps, &done.losses),
        "a dry run tells the same"
    );
    assert!(done.written && done.refused.is_empty(), "{done:?}");
    let after = verify(disk, |_, _| {}).unwrap();
    assert_eq!(after.damage, []);
    done
}

fn events(storage: &Storage<SimDisk>) -> BTreeMap<Place, Event> {
    let view = storage.view();
    let read = |partition| {
        let page = view.partition_events(partition, None, usize::MAX, usize::MAX).unwrap();
        page.events
            .into_iter()
            .map(|event| ((event.partition, event.key.clone(), event.stamp), event))
    };
    [1, 2].into_iter().flat_map(read).collect()
}

/// What is left on the disk, and that it is as it was; and what is not.
fn left(disk: &SimDisk, was: &BTreeMap<Place, Event>) -> (usize, Vec<Event>) {
    let storage = open_with(disk, roomy()).unwrap();
    let left = events(&storage);
    for (place, event) in &left {
        assert_eq!(was.get(place), Some(event), "nothing is made up");
    }
    let lost = was.iter().filter(|(place, _)| !left.contains_key(*place));
    (left.len(), lost.map(|(_, event)| event.clone()).collect())
}

/// Whether a loss tells of the event.
fn covers(loss: &Loss, event: &Event) -> bool {
    let (after, before) = loss.between.as_ref().unwrap();
    let (partition, keyspace, key) = (event.partition, event.keyspace, event.key.clone());
    let place = KeyPlace { partition, keyspace, key };
    let within = after.as_ref().is_none_or(|after| *after <= place)
        && before.as_ref().is_none_or(|before| place <= *before);
    let partitions = loss
        .partitions
        .is_none_or(|(least, greatest)| (least..=greatest).contains(&event.partition));
    let stamps =
        loss.stamps.is_none_or(|(least, greatest)| (least..=greatest).contains(&event.stamp));
    within && partitions && stamps
}

#[test]
fn a_flip_anywhere_loses_one_block_at_most() {
    let (disk, table, was) = filled();
    let bytes = disk.contents(&table).unwrap();
    let (mut blocks, mut nothing) = (0, 0);
    for offset in (0..bytes.len()).step_by(257).chain((bytes.len() - 400..bytes.len()).step_by(7)) {
        let copy = disk.fork();
        copy.flip_bit(&table, offset as u64, u32::try_from(offset % 8).unwrap());
        if verify(&copy, |_, _| {}).is_err() {
            continue; // The version of the format.
        }
        let done = mend(&copy);
        let (kept, lost) = left(&copy, &was);
        let context = format!("flipped at {offset}: {:?}", done.losses);
        let salvage = Step::SalvageTable { file: table.clone(), events: kept as u64 };
        assert!(done.steps.contains(&salvage), "{context}: {:?}", done.steps);
        assert!(copy.contents(&format!("{table}{DAMAGED_SUFFIX}")).is_some());
        match &done.losses[..] {
            [] => {
                assert_eq!(lost, [], "{context}");
                nothing += 1;
            }
            [loss] => {
                assert!(!lost.is_empty() && lost.len() < 12, "{context}: {}", lost.len());
                assert!(lost.iter().all(|event| covers(loss, event)), "{context}");
                assert_eq!(loss.events, Some(lost.len() as u64), "{context}");
                let deletes = lost.iter().filter(|event| event.action == Action::Delete).count();
                assert_eq!(loss.deletes, Some(deletes as u64), "{context}");
                // No other event lies strictly between the two that are named.
                let between = was.values().filter(|event| covers(loss, event)).count();
                assert!(between <= lost.len() + 2, "{context}");
                blocks += 1;
            }
            more => panic!("{context}: {more:?}"),
        }
    }
    assert!(80 < blocks && 50 < nothing, "{blocks} {nothing}");
}

#[test]
fn a_cut_loses_what_was_behind_it() {
    let (disk, table, was) = filled();
    let bytes = disk.contents(&table).unwrap();
    let mut before = 0;
    for length in (0..bytes.len()).step_by(1511) {
        let copy = disk.fork();
        copy.replace(&table, &bytes[..length]);
        let done = mend(&copy);
        let (kept, lost) = left(&copy, &was);
        let [loss] = &done.losses[..] else { panic!("cut at {length}: {:?}", done.losses) };
        assert_eq!((loss.events, loss.deletes, loss.stamps), (None, None, None), "nobody knows");
        if kept == 0 {
            assert_eq!(loss.what, "the events of a table");
        } else {
            assert!(lost.iter().all(|event| covers(loss, event)), "cut at {length}");
            assert!(loss.between.as_ref().unwrap().1.is_none());
        }
        assert!(before <= kept, "more is left of a longer file");
        before = kept;
    }
    assert!(300 < before);
    // What is behind the footer is no part of it.
    let copy = disk.fork();
    copy.replace(&table, &[&bytes[..], &[7; 100]].concat());
    assert_eq!(mend(&copy).losses, []);
    assert_eq!(left(&copy, &was).1, []);
}

#[test]
fn two_damaged_blocks_are_two_losses() {
    let (disk, table, was) = filled();
    let middle = disk.contents(&table).unwrap().len() as u64 / 2;
    disk.flip_bit(&table, 100, 1);
    disk.flip_bit(&table, middle, 1);
    let done = mend(&disk);
    let (_, lost) = left(&disk, &was);
    let [first, second] = &done.losses[..] else { panic!("{:?}", done.losses) };
    assert_eq!(first.between.as_ref().unwrap().0, None, "from the table's begin");
    assert!(lost.iter().all(|event| covers(first, event) != covers(second, event)));
    assert_eq!((first.events, second.events), (Some(lost.len() as u64), first.events));
}

#[test]
fn what_was_dropped_does_not_come_back() {
    let (disk, table, was) = filled();
    let mut storage = open_with(&disk, roomy()).unwrap();
    storage.drop_partition(2, 1).unwrap();
    drop(storage);
    disk.flip_bit(&table, 100, 1);
    mend(&disk);
    let (kept, lost) = left(&disk, &was);
    assert!(
        280 < kept && lost.iter().filter(|event| event.partition == 2).count() == 300,
        "{kept}"
    );
}

/// The write-ahead log may still have what lies in tables that are whole, or in what is saved of one that is not.
#[test]
fn what_the_log_still_has_is_not_there_twice() {
    let roomy = || {
        let mut config = roomy();
        config.wal_segment_bytes_max = 1 << 20;
        config.tree.merge_width_min = 4;
        config
    };
    let disk = SimDisk::new(1);
    let mut storage = open_with(&disk, roomy()).unwrap();
    for round in 0..2_u64 {
        for n in round * 200..(round + 1) * 200 {
            let event = event(&n.to_be_bytes(), 1000 + n, &[7; 40]);
            storage.commit(vec![apply(&event)], Sync::Later, 1).unwrap();
        }
        storage.rotate().unwrap();
        // The log is not trimmed yet: that is not a job.
        while let Some(mut job) = storage.begin_job(1) {
            while job.step() == Progress::Did {}
            storage.finish_job(job).unwrap();
        }
    }
    storage.commit(vec![apply(&event(b"later", 5000, b"x"))], Sync::Now, 1).unwrap();
    assert_eq!(storage.status().tables, 2);
    drop(storage);
    let tables: Vec<String> =
        disk.list("tables").unwrap().into_iter().filter(|name| name.len() == 22).collect();
    for (damage, saved) in [("block", true), ("whole", false), ("manifest", true)] {
        let copy = disk.fork();
        let path = format!("tables/{}", tables[0]);
        match damage {
            "block" => copy.flip_bit(&path, 100, 1),
            "whole" => copy.replace(&path, b"nothing of it"),
            _ => copy.flip_bit("tables/MANIFEST", 3, 1),
        }
        let done = mend(&copy);
        let salvages = done.steps.iter().any(|step| matches!(step, Step::SalvageTable { .. }));
        assert_eq!(salvages, saved && damage == "block", "{done:?}");
        let mut storage = open_with(&copy, roomy()).unwrap();
        for _ in 0..2 {
            let view = storage.view();
            let page = view.partition_events(1, None, usize::MAX, usize::MAX).unwrap();
            assert_eq!(page.events.len(), 401, "{damage}: the log has what was lost");
            assert_eq!(view.digest(1).unwrap().events, 401, "{damage}: each event is in one place");
            storage.rotate().unwrap();
            work_all(&mut storage, 1);
        }
    }
}

#[test]
fn a_repair_that_is_cut_short_loses_nothing_more() {
    let (disk, table, was) = filled();
    disk.flip_bit(&table, 100, 1);
    let whole = disk.fork();
    let options = RepairOptions { write: true, log_salt: 9, ..RepairOptions::default() };
    repair(&Arc::new(whole.clone()), &options, |_, _| {}).unwrap();
    let expected = left(&whole, &was).0;
    let calls = whole.calls() - disk.calls();
    // Before the first write it only looks, as a dry run does.
    let looks = disk.fork();
    let dry = RepairOptions { write: false, ..options.clone() };
    repair(&Arc::new(looks.clone()), &dry, |_, _| {}).unwrap();
    for call in looks.calls() - disk.calls()..calls {
        for mode in [CrashMode::LoseUnsynced, CrashMode::KeepAll] {
            let copy = disk.fork();
            copy.inject(copy.calls() + call, Fault::Crash);
            let _ = repair(&Arc::new(copy.clone()), &options, |_, _| {});
            copy.restart(mode);
            repair(&Arc::new(copy.clone()), &options, |_, _| {}).unwrap();
            assert!(verify(&copy, |_, _| {}).unwrap().is_clean());
            assert_eq!(left(&copy, &was).0, expected, "crash at {call} of {calls}");
        }
    }
    // The node goes on from there.
    let mut storage = open_with(&whole, roomy()).unwrap();
    storage.commit(vec![apply(&event(b"more", 1 << 20, b"x"))], Sync::Now, 1).unwrap();
    storage.request_full_merge();
    work_all(&mut storage, 1);
    assert_eq!(events(&storage).len(), expected + 1);
}
