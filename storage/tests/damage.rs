//! Damage and foreign directories: a typed error or the right answer, never a wrong one, and no panic.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::sync::Arc;

use starling_clock::{NodeId, Stamp};
use starling_storage::{
    Change, Disk, Error, ErrorKind, Event, Identity, OsDisk, SimDisk, Storage, Sync, Write,
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
    let hints = storage.hints(NodeId(7), 0, usize::MAX).unwrap();
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

#[test]
fn a_flip_in_the_hints_is_never_served_and_loses_none_silently() {
    let (disk, _, hints) = written();
    let mut reported = 0;
    for path in files(&disk, "hints/00000000000000000007") {
        let length = disk.contents(&path).unwrap().len();
        for offset in (0..length).step_by(5) {
            let read = flipped(&disk, &path, offset)
                .1
                .and_then(|storage| storage.hints(NodeId(7), 0, usize::MAX));
            match read {
                Ok(read) => assert_eq!(read, hints),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
                    reported += 1;
                }
            }
        }
    }
    assert!(reported > 100);
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
