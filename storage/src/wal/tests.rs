//! What the log keeps, whatever fails and whenever the power goes.

use super::*;
use crate::{CrashMode, Fault, SimDisk};

const DIR: &str = "wal";

fn open(disk: &SimDisk, create: bool) -> (Wal<SimDisk>, Vec<(u64, String)>) {
    let mut found = Vec::new();
    let wal = Wal::open(&Arc::new(disk.clone()), DIR, 5, create, |lsn, _, record| {
        if let WalRecordRef::Meta { name, .. } = *record {
            found.push((lsn.0, name.to_owned()));
        }
        Ok(())
    });
    (wal.unwrap(), found)
}

fn new() -> (SimDisk, Wal<SimDisk>) {
    let disk = SimDisk::new(1);
    disk.create_dir(DIR).unwrap();
    disk.sync_dir("").unwrap();
    let (wal, _) = open(&disk, true);
    (disk, wal)
}

/// A value that does not compress.
fn noise(size: usize) -> Vec<u8> {
    let words = (0_u64..).flat_map(|n| xxhash_rust::xxh3::xxh3_64(&n.to_le_bytes()).to_le_bytes());
    words.take(size).collect()
}

/// Commits records with these names, and values of this size.
fn commit(wal: &mut Wal<SimDisk>, names: &[&str], size: usize) -> Result<(), Error> {
    for name in names {
        wal.push_meta(name, &noise(size));
    }
    wal.write()?;
    wal.sync()?;
    wal.abandon();
    Ok(())
}

fn named(from: u64, names: &[&str]) -> Vec<(u64, String)> {
    (from..).zip(names.iter().map(|&name| name.to_owned())).collect()
}

#[test]
fn a_segment_that_goes_is_used_again_and_nothing_of_it_comes_up() {
    let (disk, mut wal) = new();
    commit(&mut wal, &["a", "b", "c", "d"], 50).unwrap();
    wal.roll().unwrap();
    assert_eq!(wal.oldest_sealed(), Some(Lsn(4)));
    wal.remove_oldest().unwrap();
    let old = disk.contents("wal/spare").unwrap();
    commit(&mut wal, &["e"], 50).unwrap();
    wal.roll().unwrap();
    assert!(!disk.exists("wal/spare").unwrap(), "it is a segment again");
    let path = "wal/00000000000000000006.log";
    let (reused, header) = (disk.contents(path).unwrap(), 32);
    assert_eq!(reused[header..], old[header..], "with what was in it");
    let calls = disk.calls();
    // A frame that is as long as one before ends where another one begins.
    commit(&mut wal, &["f"], 50).unwrap();
    assert_eq!(disk.calls() - calls, 2, "one write, one sync");
    assert_eq!(disk.contents(path).unwrap().len(), old.len());
    for mode in [CrashMode::LoseUnsynced, CrashMode::Torn, CrashMode::KeepAll] {
        let copy = disk.fork();
        copy.restart(mode);
        let (mut wal, found) = open(&copy, false);
        assert_eq!(found, named(5, &["e", "f"]));
        commit(&mut wal, &["g"], 50).unwrap();
        assert_eq!(open(&copy, false).1, named(5, &["e", "f", "g"]));
    }
}

#[test]
fn zeros_are_written_ahead_of_small_syncs_only() {
    let (disk, mut wal) = new();
    let path = "wal/00000000000000000001.log";
    let len = |disk: &SimDisk| disk.contents(path).unwrap().len() as u64;
    commit(&mut wal, &["a"], 50).unwrap();
    assert_eq!(len(&disk), wal.active.len, "nobody knows yet");
    let calls = disk.calls();
    let mut longer = 0;
    for _ in 0..60 {
        let before = len(&disk);
        commit(&mut wal, &["b"], 50).unwrap();
        longer += u32::from(before < len(&disk));
    }
    assert_eq!(disk.calls() - calls, 120, "one write, one sync each");
    assert!(longer <= 8, "{longer} of 60 changed the length of the file");
    assert!(len(&disk) <= 2 * wal.active.len);
    for _ in 0..3 {
        commit(&mut wal, &["c"], 60_000).unwrap();
    }
    assert_eq!(len(&disk), wal.active.len, "large commits are appended");
    commit(&mut wal, &["d"], 50).unwrap();
    commit(&mut wal, &["e"], 50).unwrap();
    assert!(wal.active.len < len(&disk));
    let (wal, found) = open(&disk, false);
    assert_eq!((found.len(), wal.last()), (66, Lsn(66)));
    assert_eq!(len(&disk), wal.active.len, "what was ahead is cut off");
}

#[test]
fn a_commit_that_fits_is_taken_even_if_zeros_ahead_of_it_do_not() {
    let (disk, mut wal) = new();
    commit(&mut wal, &["a"], 500).unwrap();
    disk.set_capacity(Some(disk.used() + 600));
    commit(&mut wal, &["b"], 500).unwrap();
    assert!(matches!(commit(&mut wal, &["c"], 500), Err(Error::Full { .. })));
    disk.set_capacity(None);
    commit(&mut wal, &["d"], 500).unwrap();
    disk.restart(CrashMode::LoseUnsynced);
    assert_eq!(open(&disk, false).1, named(1, &["a", "b", "d"]));
}

#[test]
fn files_are_not_kept_for_large_syncs() {
    let (disk, mut wal) = new();
    commit(&mut wal, &["a"], 60_000).unwrap();
    wal.roll().unwrap();
    wal.remove_oldest().unwrap();
    assert!(!disk.exists("wal/spare").unwrap());
}

/// Commits without a sync until the file is made ready for more, then with one, and more of both; tells the names of what was
/// synced.
fn commit_much(wal: &mut Wal<SimDisk>, named: &[String]) -> Result<usize, Error> {
    let mut synced = 0;
    for (number, name) in named.iter().enumerate() {
        wal.push_meta(name, &noise(60_000));
        wal.write()?;
        wal.abandon();
        if [22, 25].contains(&number) {
            wal.sync()?;
            synced = number + 1;
        }
    }
    Ok(synced)
}

#[test]
fn the_file_is_made_ready_while_much_is_not_synced_and_nothing_is_lost_whatever_fails_then() {
    let names: Vec<String> = (0..28).map(|number| format!("{number:02}")).collect();
    let all = named(1, &names.iter().map(String::as_str).collect::<Vec<_>>());
    let (disk, mut wal) = new();
    let path = "wal/00000000000000000001.log";
    let first = disk.calls();
    for name in &names[..17] {
        wal.push_meta(name, &noise(60_000));
        wal.write().unwrap();
        wal.abandon();
    }
    assert_eq!(disk.calls() - first, 17, "one call each");
    assert_eq!(disk.contents(path).unwrap().len() as u64, wal.active.len);
    let (disk, mut wal) = new();
    assert_eq!(commit_much(&mut wal, &names[..19]).unwrap(), 0);
    assert!(wal.active.len < disk.contents(path).unwrap().len() as u64, "zeros at its end");
    let (disk, mut wal) = new();
    assert_eq!(commit_much(&mut wal, &names).unwrap(), 26);
    let calls = disk.calls();
    assert!(first + 28 + 2 + 3 < calls, "made ready again and again");
    for (mode, kept) in [(CrashMode::LoseUnsynced, 26), (CrashMode::KeepAll, 28)] {
        let copy = disk.fork();
        copy.restart(mode);
        assert_eq!(open(&copy, false).1, all[..kept]);
    }
    // From the first time that it is made ready on.
    for (at, fault) in (first + 17..calls)
        .flat_map(|at| [Fault::Crash, Fault::Io, Fault::Full].map(|fault| (at, fault)))
    {
        let (disk, mut wal) = new();
        disk.inject(at, fault);
        let synced = match commit_much(&mut wal, &names) {
            Ok(synced) => synced,
            Err(_) if 23 < wal.durable => 23,
            Err(_) => 0,
        };
        for mode in [CrashMode::LoseUnsynced, CrashMode::KeepPrefix, CrashMode::Torn] {
            let copy = disk.fork();
            copy.restart(mode);
            let (mut wal, found) = open(&copy, false);
            assert!(synced <= found.len(), "call {at}, {fault:?}: {} are left", found.len());
            assert_eq!(found, all[..found.len()], "call {at}, {fault:?}");
            commit(&mut wal, &["x"], 50).unwrap();
        }
    }
}

#[test]
fn the_spare_file_gives_its_room_back() {
    let (disk, mut wal) = new();
    commit(&mut wal, &["a"], 500).unwrap();
    wal.roll().unwrap();
    wal.remove_oldest().unwrap();
    assert_eq!(wal.remove_spare().map_err(drop), Ok(true));
    assert_eq!(wal.remove_spare().map_err(drop), Ok(false));
    assert_eq!(disk.list(DIR).unwrap(), ["00000000000000000002.log"]);
    commit(&mut wal, &["b"], 500).unwrap();
    wal.roll().unwrap();
    assert_eq!(open(&disk, false).1, named(2, &["b"]));
}
