//! Damage and foreign directories: a typed error or the right answer, never a wrong one, and no panic.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::sync::Arc;

use starling_clock::{NodeId, Stamp};
use starling_storage::{
    Change, CrashMode, DamageStatus, Disk, Error, ErrorKind, Event, Fault, FoundBy, Identity,
    OsDisk, SimDisk, Storage, Sync, Write, offline,
};
use support::*;

/// Events, hints and a named value over several segments of each log, with the process gone.
fn written() -> (SimDisk, Vec<Change>, Vec<(u64, Event)>) {
    let disk = SimDisk::new(1);
    let mut storage = open(&disk);
    for n in 0..40 {
        let hint = Write::Hint { target: NodeId(7), event: event(b"hinted", n, &[3; 60]) };
        storage.commit(vec![hint], Sync::Now, 1).unwrap();
        fill(&mut storage, n * 5, 5);
        storage.work(1).unwrap();
    }
    let value = Write::Meta { name: "clock".to_owned(), value: vec![1; 20].into() };
    storage.commit(vec![value], Sync::Now, 1).unwrap();
    work_all(&mut storage, 1);
    fill(&mut storage, 200, 20);
    work_all(&mut storage, 1);
    let changes = storage.view().changes(1, usize::MAX, usize::MAX).unwrap();
    assert_eq!(changes.len(), 220);
    let hints = storage.hints(NodeId(7), 0, usize::MAX).unwrap().hints;
    drop(storage);
    (disk, changes, hints)
}

fn files(disk: &SimDisk, dir: &str) -> Vec<String> {
    disk.list(dir).unwrap().into_iter().map(|name| format!("{dir}/{name}")).collect()
}

fn is_log(path: &str) -> bool {
    path.strip_suffix(".log").is_some()
}

/// Opens a copy of the disk with one bit of a file flipped.
fn flipped(
    disk: &SimDisk,
    path: &str,
    offset: usize,
) -> (SimDisk, Result<Storage<SimDisk>, Error>) {
    let copy = disk.fork();
    copy.flip_bit(path, offset as u64, u32::try_from(offset % 8).unwrap());
    let storage = open_with(&copy, config());
    (copy, storage)
}

#[test]
fn a_flip_in_the_write_ahead_log_is_reported_unless_it_is_in_the_last_commit() {
    let (disk, changes, _) = written();
    let paths: Vec<_> = files(&disk, "wal").into_iter().filter(|path| is_log(path)).collect();
    let last = paths.last().unwrap();
    // One commit of one event: the frame and what is packed before the key have at most so many bytes.
    let key = 219_u64.to_be_bytes();
    let whole = disk.contents(last).unwrap();
    let last_commit = whole.windows(8).rposition(|bytes| bytes == key).unwrap() - (24 + 2 + 72);
    let mut reported = 0;
    for path in &paths {
        let length = disk.contents(path).unwrap().len();
        for offset in (0..length).step_by(2) {
            let (_, result) = flipped(&disk, path, offset);
            match result {
                // Later files may know more of the log than its own newest segment.
                Err(Error::Corrupt { file, .. }) => {
                    assert!(&file == path || file == "wal", "{file}");
                    reported += 1;
                }
                Err(error) => panic!("{error}"),
                Ok(storage) => {
                    let left = storage.view().changes(1, usize::MAX, usize::MAX).unwrap();
                    // Behind the last record there is nothing that could be damaged.
                    let in_last_commit = path == last && last_commit <= offset;
                    assert!(in_last_commit || left == changes, "{path} {offset}");
                    assert_eq!(left, changes[..left.len()]);
                    assert!(changes.len() - 1 <= left.len());
                }
            }
        }
    }
    assert!(reported > 500, "{reported}");
}

#[test]
fn a_flip_in_the_change_log_is_never_served() {
    let (disk, changes, _) = written();
    let mut reported = 0;
    for path in files(&disk, "changes") {
        let length = disk.contents(&path).unwrap().len();
        for offset in (0..length).step_by(11) {
            let read = flipped(&disk, &path, offset).1.and_then(|storage| {
                assert_eq!(storage.change_range(), (1, 221));
                storage.view().changes(1, usize::MAX, usize::MAX)
            });
            match read {
                Ok(read) => assert_eq!(read, changes),
                Err(Error::Corrupt { file, .. }) => {
                    assert!(is_log(&file) || file == "changes", "{file}");
                    reported += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert!(reported > 100);
}

/// Forty hints in several segments, of which the write-ahead log has none any more.
fn hinted() -> (SimDisk, Vec<(u64, Event)>) {
    let disk = SimDisk::new(1);
    let mut storage = open(&disk);
    let mut numbers = model::Numbers(3);
    for n in 0..40 {
        let payload: Vec<u8> =
            (0..150).map(|_| u8::try_from(numbers.below(256)).unwrap()).collect();
        let hint = Write::Hint { target: NodeId(7), event: event(b"hinted", n, &payload) };
        storage.commit(vec![hint], Sync::Now, 1).unwrap();
        storage.work(1).unwrap();
    }
    fill(&mut storage, 0, 200);
    work_all(&mut storage, 1);
    let hints = storage.hints(NodeId(7), 0, usize::MAX).unwrap();
    assert_eq!((hints.hints.len(), hints.up_to, hints.lost), (40, 40, 0));
    (disk, hints.hints)
}

/// What is left of the hints, all of them taken by their target; and what is told of the rest.
fn hints_left(storage: &mut Storage<SimDisk>) -> (Vec<(u64, Event)>, DamageStatus) {
    let page = storage.hints(NodeId(7), 0, usize::MAX).unwrap();
    assert_eq!(page.up_to, 40, "all are delivered or known to be lost");
    assert_eq!(page.lost, 40 - page.hints.len() as u64);
    let done = Write::HintsDone { target: NodeId(7), up_to: page.up_to };
    let next = Write::Hint { target: NodeId(7), event: event(b"later", 1, &[1]) };
    storage.commit(vec![done, next], Sync::Now, 1).unwrap();
    // What was damaged holds up nothing: it goes with its segment, and numbers go on.
    assert_eq!(storage.hint_targets().iter().map(|held| held.1).collect::<Vec<_>>(), [1]);
    let later = storage.hints(NodeId(7), 0, usize::MAX).unwrap();
    assert_eq!((later.hints[0].0, later.up_to, later.lost), (41, 41, 0));
    let done = Write::HintsDone { target: NodeId(7), up_to: 41 };
    storage.commit(vec![done], Sync::Now, 1).unwrap();
    work_all(storage, 1);
    assert_eq!((storage.status().hints, storage.status().hint_bytes), (0, 0));
    (page.hints, storage.damage_log().status())
}

/// Opens the disk, which has the damage, and checks what it makes of the hints. Tells how many are lost.
fn check_hints(disk: &SimDisk, hints: &[(u64, Event)], path: &str, offset_max: u64) -> usize {
    let report = offline::verify(&disk.fork(), |_, _| {}).unwrap();
    let mut storage = open(disk);
    let first = storage.hints(NodeId(7), 0, usize::MAX).unwrap();
    drop(storage);
    // Once more from what the first start has left, with the same answer.
    storage = open(disk);
    let (left, told) = hints_left(&mut storage);
    assert_eq!(first.hints, left);
    let lost: Vec<u64> =
        hints.iter().filter(|hint| !left.contains(hint)).map(|hint| hint.0).collect();
    assert_eq!(left.len() + lost.len(), 40, "nothing is made up");
    assert!(lost.windows(2).all(|pair| pair[0] + 1 == pair[1]), "one place: {lost:?}");
    assert_eq!(told.places, u64::from(!lost.is_empty()), "{path}: {told:?}");
    if let Some(place) = told.latest.first() {
        assert_eq!((place.file.as_str(), place.found_by), (path, FoundBy::Start));
        assert!(place.offset <= offset_max, "{path}: {place:?}");
        let [damage] = &report.damage[..] else { panic!("{path}: {:?}", report.damage) };
        // If only the state file knows of what is not there, the tools tell of the directory.
        let same = (damage.file.as_str(), damage.offset) == (path, place.offset);
        assert!(
            same || path.starts_with(&damage.file) && place.what == "hints are missing",
            "{damage}"
        );
    } else {
        assert!(report.is_clean(), "{path}: {:?}", report.damage);
    }
    assert!(
        disk.list("hints/00000000000000000007").unwrap().is_empty(),
        "all segments go in the end"
    );
    lost.len()
}

#[test]
fn a_flip_in_the_hints_loses_what_is_in_its_frame_and_holds_up_nothing() {
    let (disk, hints) = hinted();
    let paths = files(&disk, "hints/00000000000000000007");
    assert!(3 <= paths.len(), "sealed segments and a newest one: {paths:?}");
    let mut reported = 0;
    for path in &paths {
        let length = disk.contents(path).unwrap().len();
        for offset in (0..length).step_by(9) {
            let copy = disk.fork();
            copy.flip_bit(path, offset as u64, u32::try_from(offset % 8).unwrap());
            let lost = check_hints(&copy, &hints, path, offset as u64);
            assert!(lost < 15, "{path} {offset}: {lost}, but the other segments are read");
            reported += usize::from(0 < lost);
        }
    }
    assert!(reported > 300, "{reported}");
}

#[test]
fn a_cut_or_missing_segment_of_hints_loses_what_was_in_it() {
    let (disk, hints) = hinted();
    let paths = files(&disk, "hints/00000000000000000007");
    for (index, path) in paths.iter().enumerate() {
        let bytes = disk.contents(path).unwrap();
        for length in (0..bytes.len()).step_by(31) {
            let copy = disk.fork();
            copy.replace(path, &bytes[..length]);
            check_hints(&copy, &hints, path, length as u64);
        }
        let copy = disk.fork();
        copy.remove(path).unwrap();
        let mut storage = open(&copy);
        let (left, told) = hints_left(&mut storage);
        let in_it = |number: u64| {
            let first =
                |path: &String| path[path.len() - 24..path.len() - 4].parse::<u64>().unwrap();
            first(path) <= number && paths.get(index + 1).is_none_or(|next| number < first(next))
        };
        let expected: Vec<_> = hints.iter().filter(|hint| !in_it(hint.0)).cloned().collect();
        assert_eq!(left, expected, "{path}");
        let place = &told.latest[0];
        // It is told of what is there: the segment before it, or the directory.
        let before = index.checked_sub(1).map_or("hints/00000000000000000007", |it| &paths[it]);
        assert_eq!((told.places, place.file.as_str()), (1, before), "{told:?}");
    }
}

#[test]
fn a_start_past_damaged_hints_may_be_cut_short_anywhere() {
    let (disk, hints) = hinted();
    let paths = files(&disk, "hints/00000000000000000007");
    for path in &paths {
        let bytes = disk.contents(path).unwrap();
        let (middle, cut) = (disk.fork(), disk.fork());
        middle.flip_bit(path, bytes.len() as u64 / 2, 3);
        cut.replace(path, &bytes[..bytes.len() * 2 / 3]);
        for damaged in [middle, cut] {
            let whole = damaged.fork();
            drop(open(&whole));
            for call in 0..whole.calls() - damaged.calls() {
                let copy = damaged.fork();
                copy.inject(copy.calls() + call, Fault::Crash);
                let _ = open_with(&copy, config());
                copy.restart(CrashMode::LoseUnsynced);
                assert!(0 < check_hints(&copy, &hints, path, u64::MAX), "{path}, crash at {call}");
            }
        }
    }
}

#[test]
fn hints_that_are_damaged_while_storage_is_open_are_passed_over_too() {
    let (disk, hints) = hinted();
    for path in &files(&disk, "hints/00000000000000000007") {
        let copy = disk.fork();
        let mut storage = open(&copy);
        let offset = copy.contents(path).unwrap().len() as u64 / 2;
        copy.flip_bit(path, offset, 3);
        let (left, told) = hints_left(&mut storage);
        assert!(left.len() < 40 && left.iter().all(|hint| hints.contains(hint)), "{path}");
        let [place] = &told.latest[..] else { panic!("{told:?}") };
        assert_eq!((place.file.as_str(), place.found_by), (path.as_str(), FoundBy::Request));
        assert!(place.offset <= offset);
    }
}

#[test]
fn a_flip_in_a_small_file_is_reported() {
    let (disk, ..) = written();
    for path in ["identity", "state"] {
        for offset in 0..disk.contents(path).unwrap().len() {
            match flipped(&disk, path, offset).1 {
                Err(Error::Corrupt { file, .. } | Error::NewerFormat { file, .. }) => {
                    assert_eq!(file, path);
                }
                Err(error) => panic!("{error}"),
                Ok(_) => panic!("{path} {offset}"),
            }
        }
    }
}

#[test]
fn a_missing_file_is_reported() {
    let (disk, changes, _) = written();
    for dir in ["wal", "changes"] {
        for path in files(&disk, dir).into_iter().filter(|path| is_log(path)) {
            let copy = disk.fork();
            copy.remove(&path).unwrap();
            if path == files(&disk, "changes")[0]
                || path.replace(".log", ".ids") == files(&disk, "changes")[0]
            {
                continue; // Without the oldest segment the log is one that retention has shortened.
            }
            match open_with(&copy, config()) {
                Err(error) => assert_eq!(error.kind(), ErrorKind::Damaged, "{path}: {error}"),
                // As long as the write-ahead log has all that was in it, it is written anew.
                Ok(storage) => {
                    assert_eq!(dir, "changes", "{path}");
                    let again = storage.view().changes(1, usize::MAX, usize::MAX).unwrap();
                    assert_eq!(again, changes, "{path}");
                }
            }
        }
    }
    let copy = disk.fork();
    copy.remove("identity").unwrap();
    let error = open_with(&copy, config()).map(drop).unwrap_err();
    assert!(matches!(&error, Error::Missing { file } if file == "identity"), "{error}");
}

#[test]
fn a_directory_of_somebody_else_is_refused_untouched() {
    let (disk, ..) = written();
    let open_as = |disk: &SimDisk, cluster: &str, node| {
        let identity = Identity { cluster: cluster.to_owned(), node: NodeId(node) };
        Storage::open(Arc::new(disk.clone()), config(), identity).map(drop)
    };
    let error = open_as(&disk, "test", 2).unwrap_err();
    let (found, expected) = (NodeId(1), NodeId(2));
    assert!(
        matches!(error, Error::WrongNode { found: f, expected: e } if (f, e) == (found, expected))
    );
    assert_eq!(error.kind(), ErrorKind::Configuration);
    let error = open_as(&disk, "other", 1).unwrap_err();
    assert!(matches!(&error, Error::WrongCluster { found, .. } if found == "test"), "{error}");
    let held = open(&disk);
    assert!(matches!(open_as(&disk, "test", 1).unwrap_err(), Error::Locked));
    drop(held);
    open_as(&disk, "test", 1).unwrap();
}

#[test]
fn a_newer_format_is_refused() {
    let (disk, ..) = written();
    let newer = |path: &str, crc: Option<std::ops::Range<usize>>| {
        let copy = disk.fork();
        let mut bytes = disk.contents(path).unwrap();
        bytes[8..12].copy_from_slice(&2_u32.to_le_bytes());
        if let Some(covered) = crc {
            let crc = crc32c::crc32c(&bytes[covered.clone()]);
            bytes[covered.end..covered.end + 4].copy_from_slice(&crc.to_le_bytes());
        }
        copy.replace(path, &bytes);
        match open_with(&copy, config()) {
            Err(Error::NewerFormat { file, found: 2, supported: 1 }) => assert_eq!(file, path),
            Err(error) => panic!("{path}: {error}"),
            Ok(_) => panic!("{path}"),
        }
    };
    newer("identity", None);
    newer("state", None);
    for dir in ["wal", "changes"] {
        let newest = files(&disk, dir).into_iter().rfind(|path| is_log(path));
        newer(&newest.unwrap(), Some(0..28));
    }
}

#[test]
fn the_disk_of_the_system_works_as_the_simulated_one() {
    let folder = tempfile::tempdir().unwrap();
    let open = || {
        let disk = Arc::new(OsDisk::new(folder.path().join("data")).unwrap());
        Storage::open(disk, config(), identity())
    };
    let mut storage = open().unwrap();
    assert!(matches!(open().map(drop), Err(Error::Locked)));
    for n in 0..300_u64 {
        let write = apply(&event(&n.to_be_bytes(), n, &[1; 50]));
        storage.commit(vec![write], Sync::Later, n).unwrap();
        storage.work(n).unwrap();
    }
    storage.sync().unwrap();
    drop(storage);
    let storage = open().unwrap();
    assert!(storage.status().tables > 0);
    assert_eq!(storage.change_range(), (1, 301));
    let view = storage.view();
    // Readers on other threads, with what one thread put in.
    std::thread::scope(|scope| {
        for thread in 0..3_u64 {
            let view = view.clone();
            scope.spawn(move || {
                for n in (thread..300).step_by(3) {
                    let found = view.get(1, KEYSPACE, &n.to_be_bytes(), Stamp::MAX).unwrap();
                    assert_eq!(found.unwrap().stamp, stamp(n));
                    assert_eq!(view.changes(n + 1, 1, 1).unwrap()[0].event.stamp, stamp(n));
                }
            });
        }
    });
}
