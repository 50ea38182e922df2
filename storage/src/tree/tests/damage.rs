//! Damaged, truncated, exchanged and missing files: a typed error, never a wrong event.

use proptest::prelude::*;

use super::*;
use crate::disk::{CrashMode, Fault};

/// A tree of two tables, closed.
fn built() -> (Arc<SimDisk>, Vec<String>) {
    let disk = Arc::new(SimDisk::new(1));
    let mut tree = open(&disk);
    for (index, key) in (1..).zip(["a", "b"]) {
        for ms in 0..4 {
            tree.insert(&put(key, ms));
        }
        tree.rotate(Lsn(index));
        while tree.status().frozen > 0 {
            tree.work(0, &Retentions::default()).expect("the disk is fine");
        }
    }
    let files: Vec<String> = (1..=2).map(|number| table::path("tables", number)).collect();
    assert!(files.iter().all(|file| disk.contents(file).is_some()));
    (disk, files)
}

/// Opens the tree and reads all of it.
fn read(disk: &Arc<SimDisk>) -> Result<Vec<Event>, Error> {
    let tree = Tree::open(Arc::clone(disk), "tables", small())?;
    let mut all = Vec::new();
    for key in ["a", "b"] {
        for ms in 0..4 {
            all.extend(tree.view().get(0, KeyspaceId(0), key.as_bytes(), stamp(ms))?);
        }
    }
    let page = tree.view().partition_events(0, None, ALL)?;
    assert_eq!(page.events.len(), all.len());
    tree.view().digest(0)?;
    Ok(all)
}

fn assert_corrupt(result: Result<Vec<Event>, Error>, damaged: &str) {
    match result {
        Err(Error::Corrupt { file, .. }) => assert_eq!(file, damaged),
        other => panic!("{other:?} of {damaged}"),
    }
}

#[test]
fn a_flipped_bit_in_a_table_is_reported() {
    let (disk, files) = built();
    for file in files {
        let size = disk.contents(&file).unwrap().len() as u64;
        for offset in 0..size {
            let disk = Arc::new(disk.fork());
            disk.flip_bit(&file, offset, u32::try_from(offset % 8).unwrap());
            assert_corrupt(read(&disk), &file);
        }
    }
}

#[test]
fn a_table_of_another_length_is_reported() {
    let (disk, files) = built();
    let whole = disk.contents(&files[0]).unwrap();
    for length in 0..whole.len() {
        let disk = Arc::new(disk.fork());
        disk.replace(&files[0], &whole[..length]);
        assert_corrupt(read(&disk), &files[0]);
    }
    disk.replace(&files[0], &[&whole[..], &[0]].concat());
    assert_corrupt(read(&disk), &files[0]);
}

#[test]
fn a_table_in_the_place_of_another_is_reported() {
    let (disk, files) = built();
    let other = disk.contents(&files[1]).unwrap();
    assert_eq!(disk.contents(&files[0]).unwrap().len(), other.len(), "else the length tells");
    disk.replace(&files[0], &other);
    assert_corrupt(read(&disk), &files[0]);
}

#[test]
fn a_missing_file_is_named() {
    let (disk, files) = built();
    for file in [&files[0], "tables/MANIFEST"] {
        let disk = Arc::new(disk.fork());
        disk.remove(file).unwrap();
        match read(&disk) {
            Err(Error::Missing { file: missing }) => assert_eq!(missing, *file),
            other => panic!("{other:?} of {file}"),
        }
    }
}

/// Where the last record of the manifest begins, and the manifest.
fn last_record(disk: &SimDisk) -> (usize, Vec<u8>) {
    let bytes = disk.contents("tables/MANIFEST").unwrap();
    let (mut at, mut last) = (manifest::HEADER_SIZE, 0);
    while at < bytes.len() {
        last = at;
        let length = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap());
        at += manifest::RECORD_HEADER_SIZE + length as usize;
    }
    assert_eq!(at, bytes.len());
    (last, bytes)
}

#[test]
fn a_flipped_bit_in_the_manifest_is_reported_or_loses_the_last_edit_alone() {
    let (disk, _) = built();
    let all = read(&disk).unwrap();
    let (last, bytes) = last_record(&disk);
    for bit in 0..bytes.len() * 8 {
        let disk = Arc::new(disk.fork());
        disk.flip_bit("tables/MANIFEST", (bit / 8) as u64, u32::try_from(bit % 8).unwrap());
        let result = read(&disk);
        if bit / 8 < last {
            assert_corrupt(result, "tables/MANIFEST");
        } else {
            // Like a torn write: the log's owner sees that the log begins after this.
            assert_eq!(open(&disk).flushed(), Lsn(1));
            assert_eq!(result.unwrap(), all[..4]);
        }
    }
}

#[test]
fn a_torn_last_edit_is_cut_off() {
    let (disk, _) = built();
    let (last, bytes) = last_record(&disk);
    for length in last..bytes.len() {
        for zeros in [0, bytes.len() - length] {
            let torn = [&bytes[..length], &vec![0; zeros]].concat();
            if torn == bytes {
                continue;
            }
            let disk = Arc::new(disk.fork());
            disk.replace("tables/MANIFEST", &torn);
            let tree = open(&disk);
            assert_eq!(tree.flushed(), Lsn(1));
            assert_eq!(disk.contents("tables/MANIFEST").unwrap(), bytes[..last]);
        }
    }
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let (disk, files) = built();
    let mut newer = disk.contents("tables/MANIFEST").unwrap();
    newer[8] = 2;
    let crc = crc32c::crc32c(&newer[..12]).to_le_bytes();
    newer[12..16].copy_from_slice(&crc);
    disk.replace("tables/MANIFEST", &newer);
    match read(&disk) {
        Err(Error::NewerFormat { file, found: 2, supported: 1 }) => {
            assert_eq!(file, "tables/MANIFEST");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(disk.contents("tables/MANIFEST").unwrap(), newer);
    assert!(files.iter().all(|file| disk.contents(file).is_some()));
}

#[test]
fn a_damaged_table_is_left_out_of_merges_and_the_rest_goes_on() {
    let (disk, files) = built();
    disk.flip_bit(&files[0], 20, 0);
    let mut tree = open(&disk);
    let retentions = Retentions::default();
    let error = loop {
        match tree.work(0, &retentions) {
            Ok(Progress::Did) => {}
            Ok(Progress::Idle) => panic!("the damage is met"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Corrupt { ref file, .. } if *file == files[0]), "{error}");
    tree.insert(&put("c", 1));
    tree.rotate(Lsn(3));
    settle(&mut tree, 0, &retentions);
    let view = tree.view();
    assert!(view.get(0, KeyspaceId(0), b"a", Stamp::MAX).is_err());
    assert_eq!(view.get(0, KeyspaceId(0), b"b", Stamp::MAX).unwrap(), Some(put("b", 3)));
    assert_eq!(view.get(0, KeyspaceId(0), b"c", Stamp::MAX).unwrap(), Some(put("c", 1)));
}

#[test]
fn a_read_that_fails_is_an_error_and_may_succeed_later() {
    let (disk, files) = built();
    let tree = open(&disk);
    disk.inject(disk.calls(), Fault::Io);
    let get = || tree.view().get(0, KeyspaceId(0), b"a", Stamp::MAX);
    match get() {
        Err(Error::Io { file, .. }) => assert_eq!(file, files[0]),
        other => panic!("{other:?}"),
    }
    assert_eq!(get().unwrap(), Some(put("a", 3)));
}

#[test]
fn the_manifest_is_rewritten_before_it_grows_long() {
    let disk = Arc::new(SimDisk::new(1));
    let mut tree = open(&disk);
    for n in 0..3000 {
        tree.rotate(Lsn(n));
        settle(&mut tree, 0, &Retentions::default());
        let size = disk.contents("tables/MANIFEST").unwrap().len();
        assert!(size < 80 << 10, "{size} bytes after {n} edits");
    }
    drop(tree);
    assert_eq!(open(&disk).flushed(), Lsn(2999));
    assert_eq!(disk.list("tables").unwrap(), ["MANIFEST"]);
}

#[test]
fn an_edit_that_counts_survives_a_crash_before_and_after_a_rewrite() {
    let disk = Arc::new(SimDisk::new(1));
    disk.create_dir("tables").unwrap();
    disk.sync_dir("").unwrap();
    let mut manifest = Manifest::open(&*disk, "tables").unwrap();
    let (mut rewrites, mut before) = (0, 0);
    for n in 1..4000 {
        let edit = Edit { flushed: Lsn(n), next_table: 1, ..Edit::default() };
        manifest.append(&*disk, &edit).unwrap();
        let size = disk.contents("tables/MANIFEST").unwrap().len();
        rewrites += usize::from(size < before);
        if size < before || n % 100 == 0 {
            let disk = disk.fork();
            disk.restart(CrashMode::LoseUnsynced);
            let found = Manifest::open(&disk, "tables").unwrap();
            assert_eq!(found.state(), manifest.state());
        }
        before = size;
    }
    assert!(1 < rewrites);
}

proptest! {
    #[test]
    fn any_bytes_are_opened_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400), which: bool) {
        let (disk, files) = built();
        let file = if which { &files[0] } else { "tables/MANIFEST" };
        disk.replace(file, &bytes);
        prop_assert!(read(&disk).is_err());
    }
}
