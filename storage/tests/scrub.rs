//! The scrub beside a storage in use: it finds every damage of what no longer changes, and nothing in a good directory.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use starling_clock::NodeId;
use starling_storage::{Disk, Scrub, SimDisk, Storage, Sync, Write};
use support::*;

fn filled() -> (SimDisk, Storage<SimDisk>) {
    let disk = SimDisk::new(1);
    let mut storage = open(&disk);
    for n in 0..40 {
        let hint = Write::Hint { target: NodeId(7), event: event(b"hinted", n, &[3; 60]) };
        storage.commit(vec![hint], Sync::Now, 1).unwrap();
        fill(&mut storage, n * 5, 5);
        storage.work(1).unwrap();
    }
    work_all(&mut storage, 1);
    fill(&mut storage, 200, 60);
    (disk, storage)
}

/// Files in which a round finds damage.
fn round(scrub: &mut Scrub<SimDisk>, bytes: usize) -> BTreeSet<String> {
    let mut files = BTreeSet::new();
    for _ in 0..100_000 {
        let scrubbed = scrub.step(bytes);
        files.extend(scrubbed.damage.into_iter().map(|damage| damage.file));
        if scrubbed.round_ended {
            return files;
        }
    }
    panic!("a round ends");
}

#[test]
fn a_good_disk_is_read_in_small_steps_and_nothing_is_found() {
    let (disk, mut storage) = filled();
    let mut scrub = Scrub::new(Arc::new(disk.clone()));
    let calls = disk.calls();
    let mut steps = 0;
    while !scrub.step(300).round_ended {
        steps += 1;
        // The storage goes on: what it replaces meanwhile is no damage.
        fill(&mut storage, 1000 + steps, 1);
        storage.work(1).unwrap();
        assert!(steps < 10_000);
    }
    assert!(20 < steps && calls < disk.calls());
    assert_eq!((scrub.status().rounds, scrub.status().damaged), (1, 0));
    work_all(&mut storage, 1);
    assert_eq!(round(&mut scrub, 1 << 20), BTreeSet::new());
    assert_eq!(scrub.status().rounds, 2);
}

#[test]
fn every_damage_of_what_no_longer_changes_is_found() {
    let (disk, storage) = filled();
    drop(storage);
    let newest = |dir: &str| {
        disk.list(dir).unwrap().into_iter().rfind(|name| name.strip_suffix(".log").is_some())
    };
    let mut looked_at = BTreeSet::new();
    for dir in ["", "wal", "changes", "hints/00000000000000000007", "tables"] {
        for name in disk.list(dir).unwrap() {
            let path = if dir.is_empty() { name.clone() } else { format!("{dir}/{name}") };
            let kind = name.rsplit_once('.').map_or(name.as_str(), |(_, ending)| ending);
            let changes = Some(&name) == newest(dir).as_ref() || kind == "lock" || kind == "ids";
            let Some(bytes) = disk.contents(&path).filter(|bytes| !changes && !bytes.is_empty())
            else {
                continue;
            };
            looked_at.insert(format!("{dir} {kind}"));
            for offset in (0..bytes.len()).step_by(1 + bytes.len() / 25) {
                if kind == "MANIFEST" && bytes.len() * 3 / 4 < offset {
                    continue; // The last edit may be torn.
                }
                if path.starts_with("wal") {
                    continue; // Its files are used again: what lies behind the last record is of no meaning.
                }
                let copy = disk.fork();
                copy.flip_bit(&path, offset as u64, 2);
                let found = round(&mut Scrub::new(Arc::new(copy)), 1 << 10);
                assert_eq!(found, BTreeSet::from([path.clone()]), "{path} at {offset}");
            }
        }
    }
    assert!(5 <= looked_at.len(), "{looked_at:?}");
}
