//! A truncated, a flipped and a missing file of every kind that FORMAT.md names: exactly what a start makes of it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::sync::Arc;

use starling_clock::NodeId;
use starling_storage::offline::{RepairOptions, repair};
use starling_storage::{Config, Disk, Error, Progress, SimDisk, Sync, Write};
use support::*;

fn written() -> SimDisk {
    let disk = SimDisk::new(1);
    let mut storage = open(&disk);
    let mut numbers = model::Numbers(3);
    for n in 0..40 {
        let payload: Vec<u8> = (0..90).map(|_| u8::try_from(numbers.below(256)).unwrap()).collect();
        let hint = Write::Hint { target: NodeId(7), event: event(b"hinted", n, &payload) };
        storage.commit(vec![hint], Sync::Now, 1).unwrap();
        fill(&mut storage, n * 5, 5);
        storage.work(1).unwrap();
    }
    let value = Write::Meta { name: "clock".to_owned(), value: vec![1; 20].into() };
    storage.commit(vec![value], Sync::Now, 1).unwrap();
    work_all(&mut storage, 1);
    fill(&mut storage, 200, 180);
    work_all(&mut storage, 1);
    // These are in the logs and not yet in tables.
    fill(&mut storage, 380, 120);
    while storage.upkeep(1).unwrap() == Progress::Did {}
    drop(storage);
    disk
}

/// What a start, and reading all there is, makes of the disk.
fn outcome(disk: &SimDisk) -> String {
    let told = |error: &Error| match error {
        Error::Corrupt { file, .. } => format!("corrupt {file}"),
        Error::Missing { file } => format!("missing {file}"),
        error => error.to_string(),
    };
    let storage = match open_with(disk, config()) {
        Ok(storage) => storage,
        Err(error) => return format!("refused, {}", told(&error)),
    };
    let mut outcome = Vec::new();
    let view = storage.view();
    match view.partition_events(1, None, usize::MAX, usize::MAX) {
        Ok(page) if page.events.len() == 500 => {}
        Ok(page) => outcome.push(format!("{} events", page.events.len())),
        Err(error) => outcome.push(format!("events {}", told(&error))),
    }
    let (first, _) = storage.change_range();
    match view.changes(first, usize::MAX, usize::MAX) {
        Ok(changes) if changes.len() == 500 => {}
        Ok(changes) => outcome.push(format!("{} changes from {first}", changes.len())),
        Err(error) => outcome.push(format!("changes {}", told(&error))),
    }
    let page = storage.hints(NodeId(7), 0, usize::MAX).unwrap();
    if page.hints.len() != 40 {
        outcome.push(format!("{} hints lost of {}", page.lost, page.up_to));
    }
    if storage.meta("clock").is_none() {
        outcome.push("no named value".to_owned());
    }
    for place in storage.damage_log().status().latest {
        outcome.push(format!("told of {}", place.file));
    }
    if outcome.is_empty() { "whole".to_owned() } else { outcome.join(", ") }
}

/// What is done to a file.
enum Do {
    Remove,
    /// Cut to so many percent of its length; 100: by one byte.
    Cut(usize),
    /// Flip a bit at so many percent of its length; 100: in the last byte.
    Flip(usize),
    /// Put this in the place of its contents.
    Fill(&'static [u8]),
}

use Do::{Cut, Fill, Flip, Remove};

/// File; what is done; what a start makes of it. `#` in a name stands for the oldest of its kind, `%` for the newest, `@` for the file itself.
const OUTCOMES: &[(&str, Do, &str)] = &[
    ("lock", Fill(b"anything"), "whole"),
    ("identity", Remove, "refused, missing @"),
    ("identity", Cut(0), "refused, corrupt @"),
    ("identity", Cut(100), "refused, corrupt @"),
    ("identity", Flip(50), "refused, corrupt @"),
    ("identity.new", Fill(b"cut short"), "whole"),
    ("identity.damaged", Fill(b"given up"), "whole"),
    // Named values and consumed hints are in it that nothing else has.
    ("state", Remove, "refused, missing @"),
    ("state", Cut(0), "refused, corrupt @"),
    ("state", Cut(100), "refused, corrupt @"),
    ("state", Flip(50), "refused, corrupt @"),
    ("state.new", Fill(b"cut short"), "whole"),
    ("state.damaged", Fill(b"given up"), "whole"),
    ("wal/#.log", Remove, "refused, corrupt state"),
    ("wal/#.log", Cut(0), "refused, corrupt @"),
    ("wal/#.log", Cut(50), "refused, corrupt @"),
    ("wal/#.log", Flip(0), "refused, corrupt @"),
    ("wal/#.log", Flip(50), "refused, corrupt @"),
    // Later files know of what it had.
    ("wal/%.log", Remove, "refused, corrupt wal"),
    ("wal/%.log", Cut(0), "refused, corrupt @"),
    ("wal/%.log", Cut(10), "refused, corrupt wal"),
    ("wal/%.log", Flip(0), "refused, corrupt @"),
    ("wal/%.log", Flip(10), "refused, corrupt @"),
    // Behind its last record there is nothing.
    ("wal/%.log", Cut(100), "whole"),
    ("wal/%.log", Flip(100), "whole"),
    // Its contents have no meaning, and it need not be there.
    ("wal/spare", Fill(b""), "whole"),
    ("wal/spare", Fill(b"anything"), "whole"),
    ("wal/%.log.damaged", Fill(b"given up"), "whole"),
    // As if retention had passed it: consumers meet a gap.
    ("changes/#.log", Remove, "425 changes from 76"),
    ("changes/#.log", Cut(0), "refused, corrupt @"),
    ("changes/#.log", Cut(100), "refused, corrupt @"),
    ("changes/#.log", Flip(0), "refused, corrupt @"),
    ("changes/#.log", Flip(50), "changes corrupt @"),
    // The write-ahead log has what was in it.
    ("changes/%.log", Remove, "whole"),
    ("changes/%.log", Cut(0), "refused, corrupt @"),
    ("changes/%.log", Cut(50), "whole"),
    ("changes/%.log", Flip(0), "refused, corrupt @"),
    ("changes/%.log", Flip(50), "whole"),
    ("changes/spare", Fill(b"cut short"), "whole"),
    ("changes/%.log.damaged", Fill(b"given up"), "whole"),
    // It is made anew from its segment; a damaged page is noticed by who looks an event up.
    ("changes/#.ids", Remove, "whole"),
    ("changes/#.ids", Cut(0), "whole"),
    ("changes/#.ids", Cut(100), "whole"),
    ("changes/#.ids", Flip(0), "whole"),
    ("changes/#.ids", Flip(50), "whole"),
    ("hints/#.log", Remove, "18 hints lost of 40, told of hints"),
    ("hints/#.log", Cut(0), "18 hints lost of 40, told of @"),
    ("hints/#.log", Cut(50), "12 hints lost of 40, told of @"),
    ("hints/#.log", Flip(0), "18 hints lost of 40, told of @"),
    ("hints/#.log", Flip(50), "3 hints lost of 40, told of @"),
    ("hints/%.log", Remove, "22 hints lost of 40, told of hints/#.log"),
    ("hints/%.log", Cut(0), "22 hints lost of 40, told of @"),
    ("hints/%.log", Cut(50), "12 hints lost of 40, told of @"),
    ("hints/%.log", Flip(0), "22 hints lost of 40, told of @"),
    ("hints/%.log", Flip(50), "2 hints lost of 40, told of @"),
    ("hints/spare", Fill(b"cut short"), "whole"),
    ("hints/%.log.damaged", Fill(b"given up"), "whole"),
    ("tables/#.table", Remove, "refused, missing @"),
    ("tables/#.table", Cut(0), "refused, corrupt @"),
    ("tables/#.table", Cut(50), "refused, corrupt @"),
    ("tables/#.table", Cut(100), "refused, corrupt @"),
    ("tables/#.table", Flip(0), "events corrupt @"),
    ("tables/#.table", Flip(50), "events corrupt @"),
    ("tables/#.table", Flip(100), "refused, corrupt @"),
    ("tables/ffff.table", Fill(b"an orphan"), "whole"),
    ("tables/#.table.damaged", Fill(b"given up"), "whole"),
    ("tables/MANIFEST", Remove, "refused, missing @"),
    ("tables/MANIFEST", Cut(0), "refused, corrupt @"),
    ("tables/MANIFEST", Flip(0), "refused, corrupt @"),
    ("tables/MANIFEST", Flip(50), "refused, corrupt @"),
    // The last edit may be torn, but what that merge has read is gone.
    ("tables/MANIFEST", Cut(100), "refused, missing tables/000000000000000a.table"),
    ("tables/MANIFEST", Flip(100), "refused, missing tables/000000000000000a.table"),
    ("tables/MANIFEST.new", Fill(b"cut short"), "whole"),
    ("tables/MANIFEST.damaged", Fill(b"given up"), "whole"),
];

/// Where the last edit is a flush, only the write-ahead log tells that there was one: what it held is no longer in the log.
#[test]
fn a_manifest_that_lost_a_flush_is_refused_and_its_table_is_saved() {
    let roomy = || Config { memtable_bytes_max: 256 << 10, ..config() };
    let disk = SimDisk::new(1);
    let mut storage = open_with(&disk, roomy()).unwrap();
    fill(&mut storage, 0, 200);
    storage.rotate().unwrap();
    work_all(&mut storage, 1);
    for n in 0..40 {
        let value = vec![1; 1000].into();
        storage.commit(vec![Write::Meta { name: format!("{n}"), value }], Sync::Now, 1).unwrap();
    }
    work_all(&mut storage, 1);
    drop(storage);
    let bytes = disk.contents("tables/MANIFEST").unwrap();
    disk.replace("tables/MANIFEST", &bytes[..bytes.len() - 1]);
    let tables = disk.list("tables").unwrap();
    assert_eq!(tables.len(), 2, "{tables:?}");
    for _ in 0..2 {
        let error = open_with(&disk, roomy()).map(drop).unwrap_err();
        assert!(
            matches!(&error, Error::Corrupt { file, .. } if file == "tables/MANIFEST"),
            "{error}"
        );
        assert_eq!(
            disk.list("tables").unwrap(),
            tables,
            "a start that refuses does not make it worse"
        );
    }
    let options = RepairOptions { write: true, ..RepairOptions::default() };
    let done = repair(&Arc::new(disk.clone()), &options, |_, _| {}).unwrap();
    assert!(done.written && done.losses.is_empty(), "{done:?}");
    let storage = open_with(&disk, roomy()).unwrap();
    let page = storage.view().partition_events(1, None, usize::MAX, usize::MAX).unwrap();
    assert_eq!(page.events.len(), 200);
}

const HINTS: &str = "hints/00000000000000000007";

/// The file of the disk that is meant.
fn resolve(disk: &SimDisk, name: &str) -> String {
    let (dir, name) = name.rsplit_once('/').unwrap_or(("", name));
    let dir = if dir == "hints" { HINTS } else { dir };
    let ending = name.trim_start_matches(['#', '%']).trim_end_matches(".damaged");
    let mut found = disk.list(dir).unwrap();
    found.retain(|found| found.ends_with(ending));
    let stem = |found: Option<&String>| found.unwrap().strip_suffix(ending).unwrap().to_owned();
    let name = match name.as_bytes()[0] {
        b'#' => name.replace('#', &stem(found.first())),
        b'%' => name.replace('%', &stem(found.last())),
        _ => name.to_owned(),
    };
    if dir.is_empty() { name } else { format!("{dir}/{name}") }
}

#[test]
fn every_kind_of_file_in_every_state_has_its_outcome() {
    let disk = written();
    assert_eq!(outcome(&disk.fork()), "whole");
    let mut wrong = Vec::new();
    for (name, action, expected) in OUTCOMES {
        let path = resolve(&disk, name);
        let copy = disk.fork();
        let bytes = disk.contents(&path).unwrap_or_default();
        let at = |percent: usize| bytes.len() * percent / 100 - usize::from(percent == 100);
        let done = match action {
            Remove => {
                copy.remove(&path).unwrap();
                "removed".to_owned()
            }
            Cut(percent) => {
                copy.replace(&path, &bytes[..at(*percent)]);
                format!("cut at {percent} %")
            }
            Flip(percent) => {
                copy.flip_bit(&path, at(*percent) as u64, 0);
                format!("flipped at {percent} %")
            }
            Fill(contents) => {
                if !copy.exists(&path).unwrap() {
                    copy.create(&path).unwrap();
                }
                copy.replace(&path, contents);
                "filled".to_owned()
            }
        };
        let mut named = expected.replace('@', &path);
        if let Some((before, file)) = named.split_once("told of hints") {
            let file = if file.contains('#') {
                resolve(&disk, "hints/#.log")
            } else {
                format!("{HINTS}{}", file.replace(HINTS.trim_start_matches("hints"), ""))
            };
            named = format!("{before}told of {file}");
        }
        let found = outcome(&copy);
        if found != named {
            wrong.push(format!("{name}, {done}: {found}, not {named}"));
        }
        // A start that refuses does not make it worse.
        if found.starts_with("refused") {
            for table in disk.list("tables").unwrap() {
                let path = format!("tables/{table}");
                assert!(
                    copy.exists(&path).unwrap() || *name == path || resolve(&disk, name) == path,
                    "{name}, {done}: {path} is gone"
                );
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
