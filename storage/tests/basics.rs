//! What one storage does when nothing goes wrong, and how it refuses what it must refuse.

mod support;

use bytes::Bytes;
use starling_clock::{NodeId, Stamp};
use starling_storage::{
    Action, Config, Disk as _, Error, ErrorKind, HistoryRetention, Mode, Order, Outcome,
    PAYLOAD_SIZE_LIMIT, Provenance, SimDisk, Sync, Write,
};
use support::*;

#[test]
fn an_event_is_readable_published_and_survives_a_restart() {
    let disk = SimDisk::new(1);
    let mut storage = open(&disk);
    let first = event(b"key", 10, b"one");
    let second = event(b"key", 20, b"two");
    let outcomes =
        storage.commit(vec![apply(&first), apply(&second), apply(&first)], Sync::Now, 1).unwrap();
    let applied = |sequence, previous| Outcome::Applied { sequence, newest: true, previous };
    assert_eq!(
        outcomes,
        [
            applied(1, None),
            applied(2, Some(first.stamp)),
            Outcome::Superseded { newest: second.stamp },
        ],
        "a later write of the batch sees the earlier ones"
    );
    for round in 0..3 {
        let view = storage.view();
        assert_eq!(view.get(1, KEYSPACE, b"key", Stamp::MAX).unwrap().as_ref(), Some(&second));
        assert_eq!(view.get(1, KEYSPACE, b"key", stamp(15)).unwrap().as_ref(), Some(&first));
        assert_eq!(view.get(1, KEYSPACE, b"kez", Stamp::MAX).unwrap(), None);
        assert_eq!(view.newest_stamp(1, KEYSPACE, b"key").unwrap(), Some(second.stamp));
        let page = view
            .versions(1, KEYSPACE, b"key", Stamp::ZERO, Stamp::MAX, Order::Ascending, 9, 999)
            .unwrap();
        assert_eq!(page.events, [first.clone(), second.clone()]);
        assert_eq!(view.change_range(), (1, 3));
        let changes = view.changes(1, 9, 999).unwrap();
        assert_eq!(changes.len(), 2);
        assert_eq!((changes[1].sequence, &changes[1].event), (2, &second));
        assert_eq!(changes[1].previous, Some(first.stamp));
        assert_eq!(changes[1].provenance, Provenance::Write);
        assert_eq!(view.changes_at(stamp(15)).unwrap(), 2);
        assert_eq!(view.digest(1).unwrap().events, 2);
        drop(storage);
        storage = open(&disk);
        if round == 1 {
            work_all(&mut storage, 5);
        }
    }
}

#[test]
fn direct_writes_lose_to_newer_ones_and_copies_do_not() {
    let disk = SimDisk::new(1);
    let mut storage = open(&disk);
    let (old, mid, new) = (event(b"k", 1, b"a"), event(b"k", 2, b"b"), event(b"k", 3, b"c"));
    storage.commit(vec![apply(&new)], Sync::Now, 1).unwrap();
    let outcomes = storage.commit(vec![apply(&old), copy(&mid), copy(&mid)], Sync::Now, 1).unwrap();
    assert_eq!(outcomes[0], Outcome::Superseded { newest: new.stamp });
    let applied = Outcome::Applied { sequence: 2, newest: false, previous: Some(new.stamp) };
    assert_eq!(outcomes[1..], [applied, Outcome::Duplicate]);
    let again = storage.commit(vec![apply(&mid)], Sync::Now, 1).unwrap();
    let superseded = Outcome::Superseded { newest: new.stamp };
    assert_eq!(
        again,
        [superseded],
        "it came as a copy, and its coordinator must learn of the newer one"
    );
    let again = storage.commit(vec![apply(&new)], Sync::Now, 1).unwrap();
    assert_eq!(again, [Outcome::Duplicate], "a retry of what is the newest is no conflict");
    assert_eq!(storage.view().get(1, KEYSPACE, b"k", Stamp::MAX).unwrap(), Some(new));
}

#[test]
fn one_commit_is_one_write_and_one_sync() {
    let disk = SimDisk::new(1);
    let mut storage = open_with(&disk, Config::default()).unwrap();
    let writes: Vec<Write> =
        (0..100_u64).map(|n| apply(&event(&n.to_be_bytes(), n, b"value"))).collect();
    let (calls, syncs) = (disk.calls(), disk.syncs());
    storage.commit(writes, Sync::Now, 1).unwrap();
    assert_eq!((disk.calls() - calls, disk.syncs() - syncs), (2, 1));
    storage.commit(vec![apply(&event(b"later", 1, b""))], Sync::Later, 1).unwrap();
    assert_eq!((disk.calls() - calls, disk.syncs() - syncs), (3, 1));
}

#[test]
fn what_is_not_synced_is_readable_and_not_published() {
    let disk = SimDisk::new(1);
    let mut storage = open(&disk);
    let later = event(b"k", 1, b"v");
    storage.commit(vec![apply(&later)], Sync::Later, 1).unwrap();
    assert!(storage.unsynced());
    assert_eq!(storage.view().get(1, KEYSPACE, b"k", Stamp::MAX).unwrap(), Some(later.clone()));
    assert_eq!(storage.change_range(), (1, 1));
    let outcome = storage.commit(vec![apply(&later)], Sync::Now, 1).unwrap();
    assert_eq!(outcome, [Outcome::Duplicate]);
    assert!(!storage.unsynced(), "the answer was asked for on disk");
    assert_eq!(storage.change_range(), (1, 2));
    storage.commit(vec![apply(&event(b"k", 2, b"v"))], Sync::Later, 1).unwrap();
    storage.sync().unwrap();
    assert_eq!(storage.change_range(), (1, 3));
}

#[test]
fn deletes_scans_and_partitions_are_read() {
    let disk = SimDisk::new(1);
    let mut storage = open(&disk);
    let mut gone = event(b"b", 5, b"");
    gone.action = Action::Delete;
    let mut other = event(b"zz", 1, b"elsewhere");
    other.partition = 2;
    let writes = [event(b"a", 1, b"1"), event(b"b", 2, b"2"), gone.clone(), event(b"c", 3, b"3")];
    storage.commit(writes.iter().chain([&other]).map(copy).collect(), Sync::Now, 1).unwrap();
    let view = storage.view();
    let page = view.scan(1, KEYSPACE, b"", Some(b"a"), Stamp::MAX, 10, 1000).unwrap();
    assert_eq!(page.events, [gone, writes[3].clone()]);
    let page = view.partition_events(1, None, 3, 1000).unwrap();
    assert_eq!((page.events.len(), page.more), (3, true));
    assert_eq!(view.partition_events(2, None, 3, 1000).unwrap().events, [other]);
}

#[test]
fn who_follows_the_change_log_reads_no_file() {
    let disk = SimDisk::new(1);
    let mut storage = open(&disk);
    for sequence in 1..=40 {
        fill(&mut storage, sequence, 1);
        // Half of the time what was published is in its file by now.
        work_all(&mut storage, 1);
        let calls = disk.calls();
        let changes = storage.view().changes(sequence, 9, 9999).unwrap();
        assert_eq!(changes.len(), 1);
        assert_eq!(changes[0].event, event(&sequence.to_be_bytes(), 1000 + sequence, &[7; 40]));
        assert_eq!(disk.calls(), calls, "the change {sequence} is in memory");
    }
    let calls = disk.calls();
    let changes = storage.view().changes(1, 99, 99_999).unwrap();
    assert!(changes.iter().map(|change| change.sequence).eq(1..=40));
    assert!(calls < disk.calls(), "the others are not");
}

#[test]
fn named_values_are_kept_through_restarts_and_trimmed_logs() {
    let disk = SimDisk::new(1);
    let mut storage = open(&disk);
    let meta = |name: &str, value: &'static [u8]| Write::Meta {
        name: name.to_owned(),
        value: Bytes::from_static(value),
    };
    storage.commit(vec![meta("clock", b"1"), meta("cursor/a", b"2")], Sync::Later, 1).unwrap();
    storage.commit(vec![meta("clock", b"3")], Sync::Later, 1).unwrap();
    assert!(!storage.unsynced(), "named values are always synced");
    for round in 0..3_u64 {
        assert_eq!(storage.meta("clock").as_deref(), Some(&b"3"[..]));
        assert_eq!(storage.meta("other"), None);
        assert_eq!(storage.metas("cursor/"), [("cursor/a".to_owned(), Bytes::from_static(b"2"))]);
        fill(&mut storage, round * 100, 100);
        work_all(&mut storage, 1);
        assert!(storage.status().wal_segments <= 2, "{:?}", storage.status());
        drop(storage);
        storage = open(&disk);
    }
}

#[test]
fn hints_wait_are_consumed_and_their_files_go() {
    let disk = SimDisk::new(1);
    let mut storage = open(&disk);
    let (one, two) = (NodeId(7), NodeId(8));
    let hint = |target, n: u64| Write::Hint { target, event: event(b"k", n, &[1; 100]) };
    let outcomes =
        storage.commit(vec![hint(one, 1), hint(two, 2), hint(one, 3)], Sync::Now, 1).unwrap();
    let hinted = |sequence| Outcome::Hinted { sequence };
    assert_eq!(outcomes, [hinted(1), hinted(1), hinted(2)]);
    assert_eq!(storage.change_range(), (1, 1), "a hint is no change of this replica");
    assert_eq!(storage.view().get(1, KEYSPACE, b"k", Stamp::MAX).unwrap(), None);
    for n in 10..100 {
        storage.commit(vec![hint(one, n)], Sync::Now, 1).unwrap();
    }
    for _ in 0..2 {
        fill(&mut storage, 0, 100);
        work_all(&mut storage, 1);
        let held = storage.hints(one, 0, usize::MAX).unwrap().hints;
        assert_eq!(held.iter().map(|(n, _)| *n).collect::<Vec<_>>(), (1..=92).collect::<Vec<_>>());
        assert_eq!(storage.hints(one, 90, 1).unwrap().hints[0].0, 91);
        drop(storage);
        storage = open(&disk);
    }
    let done = Write::HintsDone { target: one, up_to: 92 };
    assert_eq!(storage.commit(vec![done], Sync::Now, 1).unwrap(), [Outcome::Done]);
    work_all(&mut storage, 1);
    assert_eq!(storage.hint_targets().iter().map(|t| (t.0, t.1)).collect::<Vec<_>>(), [(two, 1)]);
    let files = |disk: &SimDisk| {
        use starling_storage::Disk;
        disk.list("hints/00000000000000000007").unwrap()
    };
    assert_eq!(files(&disk), [""; 0]);
    drop(storage);
    let mut storage = open(&disk);
    assert_eq!(storage.hints(one, 0, usize::MAX).unwrap().hints, []);
    let outcomes = storage.commit(vec![hint(one, 5)], Sync::Now, 1).unwrap();
    assert_eq!(outcomes, [hinted(93)], "a consumed number is not given again");
    assert_eq!(storage.hints(one, 92, 1).unwrap().hints.len(), 1);
}

#[test]
fn hints_are_bounded_and_nothing_of_a_refused_commit_happens() {
    let disk = SimDisk::new(1);
    let mut config = config();
    config.hint_bytes_max = 1000;
    let mut storage = open_with(&disk, config).unwrap();
    let hint = |n: u64| Write::Hint { target: NodeId(7), event: event(b"k", n, &[1; 400]) };
    storage.commit(vec![hint(1)], Sync::Now, 1).unwrap();
    let put = event(b"k", 9, b"v");
    let error = storage.commit(vec![apply(&put), hint(2), hint(3)], Sync::Now, 1).unwrap_err();
    assert!(matches!(error, Error::HintsFull { target: NodeId(7), limit: 1000, .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(storage.view().get(1, KEYSPACE, b"k", Stamp::MAX).unwrap(), None);
    let done = Write::HintsDone { target: NodeId(7), up_to: 1 };
    storage.commit(vec![done], Sync::Now, 1).unwrap();
    storage.commit(vec![hint(2)], Sync::Now, 1).unwrap();
}

#[test]
fn what_is_over_a_limit_is_refused_before_anything_is_written() {
    let disk = SimDisk::new(1);
    let mut config = config();
    config.payload_size_max = 100;
    let mut storage = open_with(&disk, config).unwrap();
    let good = event(b"k", 1, b"v");
    let meta = |name: String, value: Vec<u8>| Write::Meta { name, value: value.into() };
    let many = (0..5000).map(|n| meta(format!("{n}"), vec![]));
    let bad = [
        vec![apply(&event(&[7; 4097], 2, b""))],
        vec![apply(&event(b"", 2, b""))],
        vec![apply(&event(b"k", 2, &[0; 101]))],
        vec![Write::Hint { target: NodeId(2), event: event(b"k", 2, &[0; 101]) }],
        vec![meta("n".repeat(256), vec![])],
        vec![meta("n".to_owned(), vec![0; (1 << 20) + 1])],
        many.collect(),
    ];
    for mut writes in bad {
        writes.insert(0, apply(&good));
        let calls = disk.calls();
        let error = storage.commit(writes, Sync::Now, 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert_eq!(disk.calls(), calls, "{error}");
        assert_eq!(storage.view().get(1, KEYSPACE, b"k", Stamp::MAX).unwrap(), None);
    }
    let widest = event(&[7; 4096], 2, &[0; 100]);
    storage.commit(vec![apply(&widest)], Sync::Now, 1).unwrap();
    assert!(config_limit_is_below_the_format());
}

fn config_limit_is_below_the_format() -> bool {
    Config::default().payload_size_max <= PAYLOAD_SIZE_LIMIT
}

#[test]
fn the_change_log_has_its_own_retention_and_tells_of_the_gap() {
    let disk = SimDisk::new(1);
    let mut config = config();
    config.change_bytes_max = 8 << 10;
    config.change_age_ms_max = 1_000_000;
    let mut storage = open_with(&disk, config.clone()).unwrap();
    for round in 0..20 {
        fill(&mut storage, round * 50, 50);
        work_all(&mut storage, 1);
    }
    let (first, end) = storage.change_range();
    assert!(first > 1 && end == 1001, "{first} {end}");
    assert!(storage.status().change_bytes < 24 << 10);
    let files = disk.list("changes").unwrap().into_iter();
    let sizes = files.map(|name| disk.contents(&format!("changes/{name}")).unwrap().len() as u64);
    assert!(sizes.sum::<u64>() <= storage.status().change_bytes, "indexes count too");
    match storage.view().changes(1, 10, 999) {
        Err(Error::Gap { from: 1, first: kept }) => assert_eq!(kept, first),
        other => panic!("{other:?}"),
    }
    drop(storage);
    let mut storage = open_with(&disk, config.clone()).unwrap();
    assert_eq!(storage.change_range(), (first, end));
    let changes = storage.view().changes(first, usize::MAX, usize::MAX).unwrap();
    assert_eq!(changes.len() as u64, end - first);
    assert_eq!(changes.last().map(|change| change.sequence), Some(1000));
    assert_eq!(
        storage
            .view()
            .get(1, KEYSPACE, &0_u64.to_be_bytes(), Stamp::MAX)
            .unwrap()
            .unwrap()
            .payload
            .len(),
        40
    );
    // By age everything goes but what is open, and sequences go on.
    for step in 1..100 {
        work_all(&mut storage, step * 200_000);
    }
    let (first, _) = storage.change_range();
    assert!(first > 800, "{first}");
    drop(storage);
    let mut storage = open_with(&disk, config).unwrap();
    let outcome = storage.commit(vec![apply(&event(b"new", 1, b""))], Sync::Now, 1).unwrap();
    assert!(matches!(outcome[0], Outcome::Applied { sequence: 1001, .. }));
}

#[test]
fn the_greatest_stamp_is_found_again_in_the_log_and_in_tables() {
    let disk = SimDisk::new(1);
    let mut storage = open(&disk);
    assert_eq!(storage.recovered_stamp(), Stamp::ZERO);
    let (new, old) = (event(b"a", 900_000, b"new"), event(b"b", 20, b"old"));
    storage.commit(vec![apply(&new), apply(&old)], Sync::Now, 1).unwrap();
    drop(storage);
    let mut storage = open(&disk);
    assert_eq!(storage.recovered_stamp(), new.stamp);
    // Now in tables, and its segment of the log is gone.
    for round in 0..4 {
        fill(&mut storage, round * 100, 100);
        work_all(&mut storage, 1);
    }
    assert!(storage.status().tables > 0 && storage.status().wal_segments <= 2);
    drop(storage);
    assert_eq!(open(&disk).recovered_stamp(), new.stamp);
}

#[test]
fn an_event_that_retention_dropped_is_not_published_again() {
    let disk = SimDisk::new(1);
    let mut storage = open(&disk);
    let retention = HistoryRetention { versions_max: Some(1), age_ms_max: None };
    storage.set_retention(KEYSPACE, retention);
    let old = event(b"k", 1, &[1; 40]);
    storage.commit(vec![apply(&old), apply(&event(b"k", 2, b"new"))], Sync::Now, 1).unwrap();
    for round in 0..4 {
        fill(&mut storage, round * 100, 100);
        work_all(&mut storage, 1);
    }
    storage.request_full_merge();
    work_all(&mut storage, 1);
    let versions = storage
        .view()
        .versions(1, KEYSPACE, b"k", Stamp::ZERO, Stamp::MAX, Order::Descending, 9, 999)
        .unwrap();
    assert_eq!(versions.events.len(), 1, "the merge dropped the old one");
    for _ in 0..2 {
        let outcome = storage.commit(vec![copy(&old)], Sync::Now, 1).unwrap();
        assert_eq!(outcome, [Outcome::Duplicate]);
        assert_eq!(storage.change_range().1, 403);
        drop(storage);
        storage = open(&disk);
    }
    let other = event(b"k", 0, b"never seen");
    let outcome = storage.commit(vec![copy(&other)], Sync::Now, 1).unwrap();
    assert!(matches!(outcome[0], Outcome::Applied { newest: false, .. }));
}

#[test]
fn a_copy_that_was_never_here_is_published_whatever_retention_keeps() {
    let mut storage = open(&SimDisk::new(1));
    let retention = HistoryRetention { versions_max: Some(1), age_ms_max: Some(1) };
    storage.set_retention(KEYSPACE, retention);
    storage.commit(vec![apply(&event(b"k", 10, b"new"))], Sync::Now, 1).unwrap();
    // A write that lost is acked too, and its event is owed to consumers.
    let lost = storage.commit(vec![copy(&event(b"k", 5, b"lost"))], Sync::Now, 1_000).unwrap();
    assert!(matches!(lost[0], Outcome::Applied { sequence: 2, newest: false, .. }));
}

#[test]
fn superseded_and_duplicate_write_nothing() {
    let disk = SimDisk::new(1);
    let mut storage = open(&disk);
    let new = event(b"k", 9, b"v");
    storage.commit(vec![apply(&new)], Sync::Now, 1).unwrap();
    let calls = disk.calls();
    let write = |stamp| Write::Apply {
        event: event(b"k", stamp, b"v"),
        provenance: Provenance::Write,
        mode: Mode::Direct,
    };
    storage.commit(vec![write(9), write(8)], Sync::Now, 1).unwrap();
    assert_eq!(disk.calls(), calls);
}
