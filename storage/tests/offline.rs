//! The offline tools against every kind of damage: what is wrong is told, what can be saved is saved, nothing is made up.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use starling_clock::{NodeId, Stamp};
use starling_storage::offline::{
    DAMAGED_SUFFIX, DumpFilter, DumpKind, DumpRecord, Loss, Repair, RepairOptions, Report, Step,
    dump, repair, verify,
};
use starling_storage::{
    Change, Disk, DiskFile, Error, Event, KeyspaceId, SimDisk, SimFile, Storage, Sync, Write,
};
use support::*;

/// Several segments of each log, several tables, hints, named values; the process is gone.
fn written() -> SimDisk {
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
    storage.commit(vec![Write::HintsDone { target: NodeId(7), up_to: 3 }], Sync::Now, 1).unwrap();
    work_all(&mut storage, 1);
    fill(&mut storage, 200, 20);
    work_all(&mut storage, 1);
    drop(storage);
    disk
}

/// What a node with the directory can tell.
#[derive(Debug, PartialEq)]
struct Contents {
    events: Vec<Event>,
    changes: Vec<Change>,
    hints: Vec<(u64, Event)>,
    metas: Vec<(String, bytes::Bytes)>,
}

fn contents(disk: &SimDisk) -> Result<Contents, Error> {
    let storage = open_with(&disk.fork(), config())?;
    let view = storage.view();
    let (first, _) = storage.change_range();
    Ok(Contents {
        events: view.partition_events(1, None, usize::MAX, usize::MAX)?.events,
        changes: view.changes(first, usize::MAX, usize::MAX)?,
        hints: storage.hints(NodeId(7), 0, usize::MAX)?.hints,
        metas: storage.metas(""),
    })
}

/// All files, least directory first.
fn files(disk: &SimDisk) -> Vec<String> {
    let mut files = Vec::new();
    for dir in ["", "wal", "changes", "hints/00000000000000000007", "tables"] {
        let names = disk.list(dir).unwrap().into_iter();
        files.extend(names.map(|name| if dir.is_empty() { name } else { format!("{dir}/{name}") }));
    }
    files.retain(|file| disk.contents(file).is_some_and(|bytes| !bytes.is_empty()));
    // What is in a spare file is of no meaning, and nobody looks at it.
    files.retain(|file| !file.ends_with("/spare"));
    files
}

fn look(disk: &SimDisk) -> Report {
    verify(disk, |_, _| {}).unwrap()
}

fn mend(disk: &SimDisk, options: &RepairOptions) -> Repair {
    repair(&Arc::new(disk.clone()), options, |_, _| {}).unwrap()
}

/// Everything is allowed.
fn anything() -> RepairOptions {
    RepairOptions {
        write: true,
        cut_log: true,
        drop_state: true,
        identity: Some(identity()),
        log_salt: 9,
    }
}

fn dumped<D: Disk>(disk: &D, kind: DumpKind, filter: &DumpFilter) -> Vec<DumpRecord> {
    let mut records = Vec::new();
    dump::<_, Error>(disk, kind, filter, |record| {
        records.push(record);
        Ok(())
    })
    .unwrap();
    records
}

#[test]
fn a_good_directory_is_clean_and_told_in_numbers() {
    let disk = written();
    let before = files(&disk).iter().map(|file| disk.contents(file)).collect::<Vec<_>>();
    let report = look(&disk);
    assert_eq!(report.damage, []);
    assert_eq!(report.identity, Some(identity()));
    assert_eq!((report.changes.first, report.changes.end), (1, 221));
    assert_eq!(report.hints.len(), 1);
    assert!(report.tables > 0 && report.table_events > 100 && report.wal.segments > 0);
    let all: u64 = files(&disk).iter().map(|file| disk.contents(file).unwrap().len() as u64).sum();
    assert_eq!(report.bytes, all, "every byte is read");
    let repaired = mend(&disk, &anything());
    assert_eq!(repaired, Repair::default(), "nothing to repair");
    let after = files(&disk).iter().map(|file| disk.contents(file)).collect::<Vec<_>>();
    assert!(before == after, "looking changes nothing");
}

/// A disk of which files can be read, and nothing else: what a user without leave to write has, the superuser included.
struct ReadOnly(SimDisk);

struct ReadOnlyFile(SimFile);

fn denied<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl Disk for ReadOnly {
    type File = ReadOnlyFile;
    type Lock = ();

    fn create(&self, _: &str) -> io::Result<ReadOnlyFile> {
        denied()
    }

    fn open(&self, _: &str) -> io::Result<ReadOnlyFile> {
        denied()
    }

    fn open_read(&self, path: &str) -> io::Result<ReadOnlyFile> {
        self.0.open_read(path).map(ReadOnlyFile)
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.0.list(dir)
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        denied()
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        denied()
    }

    fn create_dir(&self, _: &str) -> io::Result<()> {
        denied()
    }

    fn sync_dir(&self, _: &str) -> io::Result<()> {
        denied()
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        self.0.exists(path)
    }

    fn lock(&self, _: &str) -> io::Result<()> {
        denied()
    }
}

impl DiskFile for ReadOnlyFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        denied()
    }

    fn sync(&self) -> io::Result<()> {
        denied()
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn truncate(&self, _: u64) -> io::Result<()> {
        denied()
    }
}

#[test]
fn looking_needs_no_leave_to_write() {
    let disk = written();
    let tables = files(&disk).into_iter().filter(|file| file.strip_suffix(".table").is_some());
    for damaged in [None, Some("state".to_owned()), tables.max()] {
        let disk = disk.fork();
        if let Some(file) = damaged {
            disk.flip_bit(&file, 30, 1);
        }
        let read_only = ReadOnly(disk.clone());
        assert_eq!(verify(&read_only, |_, _| {}).unwrap(), look(&disk));
        let kinds = [
            DumpKind::Identity,
            DumpKind::State,
            DumpKind::Manifest,
            DumpKind::Tables,
            DumpKind::Wal,
            DumpKind::Changes,
            DumpKind::Hints,
        ];
        for kind in kinds {
            let all = DumpFilter::default();
            assert_eq!(dumped(&read_only, kind, &all), dumped(&disk, kind, &all), "{kind:?}");
        }
        // So does a dry run of a repair.
        let dry = RepairOptions { write: false, ..anything() };
        assert_eq!(repair(&Arc::new(read_only), &dry, |_, _| {}).unwrap(), mend(&disk, &dry));
    }
}

#[test]
fn an_empty_directory_is_none_of_ours() {
    let report = look(&SimDisk::new(1));
    assert_eq!(report.damage[0].file, "identity");
}

#[test]
fn what_is_dumped_is_what_is_read() {
    let disk = written();
    let all = DumpFilter::default();
    let whole = contents(&disk).unwrap();
    let changes: Vec<DumpRecord> = whole.changes.iter().cloned().map(DumpRecord::Change).collect();
    assert_eq!(dumped(&disk, DumpKind::Changes, &all), changes);
    let filter = DumpFilter { from: Some(5), to: Some(9), ..all.clone() };
    assert_eq!(dumped(&disk, DumpKind::Changes, &filter), changes[4..9]);
    let prefix = 7_u64.to_be_bytes().to_vec();
    let filter = DumpFilter { key_prefix: Some(prefix.into()), ..all.clone() };
    assert_eq!(dumped(&disk, DumpKind::Changes, &filter), changes[7..8]);
    for filter in [
        DumpFilter { keyspace: Some(KeyspaceId(1)), ..all.clone() },
        DumpFilter { partition: Some(2), ..all.clone() },
    ] {
        assert_eq!(dumped(&disk, DumpKind::Wal, &filter), []);
        assert_eq!(dumped(&disk, DumpKind::Tables, &filter), []);
    }
    let hints = dumped(&disk, DumpKind::Hints, &all);
    let read = whole.hints.iter().map(|(number, event)| DumpRecord::Hint {
        target: NodeId(7),
        number: *number,
        event: event.clone(),
    });
    assert_eq!(hints[hints.len() - whole.hints.len()..], read.collect::<Vec<_>>());
    assert_eq!(dumped(&disk, DumpKind::Identity, &all), [DumpRecord::Identity(identity())]);

    // What is in tables and in the write-ahead log is all there is.
    let mut events = BTreeSet::new();
    for record in
        dumped(&disk, DumpKind::Tables, &all).into_iter().chain(dumped(&disk, DumpKind::Wal, &all))
    {
        match record {
            DumpRecord::TableEvent { event, .. } => drop(events.insert(event.key)),
            DumpRecord::WalEvent { change, .. } => drop(events.insert(change.event.key)),
            _ => {}
        }
    }
    assert_eq!(events, whole.events.iter().map(|event| event.key.clone()).collect());
    let manifest = dumped(&disk, DumpKind::Manifest, &all);
    assert_eq!(manifest.len() as u64, 1 + look(&disk).tables);
    let state = dumped(&disk, DumpKind::State, &all);
    assert!(matches!(state[0], DumpRecord::State { .. }));
}

#[test]
fn a_sink_that_says_stop_ends_the_dump() {
    let disk = written();
    for kind in [DumpKind::Tables, DumpKind::Wal, DumpKind::Changes, DumpKind::Hints] {
        let mut given = 0;
        let result = dump(&disk, kind, &DumpFilter::default(), |_| {
            given += 1;
            if given == 3 { Err(Error::KeyEmpty) } else { Ok(()) }
        });
        assert!(matches!(result, Err(Error::KeyEmpty)), "{kind:?}");
        assert_eq!(given, 3);
    }
}

/// Whether what is left is part of what was, and what is not there is covered by a loss that was told.
fn check_left(was: &Contents, left: &Contents, losses: &[Loss], context: &str) {
    let known: BTreeMap<(&[u8], Stamp), &Event> =
        was.events.iter().map(|event| ((&event.key[..], event.stamp), event)).collect();
    for event in &left.events {
        assert_eq!(known.get(&(&event.key[..], event.stamp)), Some(&event), "{context}: made up");
    }
    let said = |what: &str| losses.iter().any(|loss| loss.what.contains(what));
    if left.events.len() < was.events.len() {
        assert!(said("table") || said("write-ahead log"), "{context}: lost events silently");
    }
    let known: BTreeMap<u64, &Change> =
        was.changes.iter().map(|change| (change.sequence, change)).collect();
    for change in &left.changes {
        assert_eq!(known.get(&change.sequence), Some(&change), "{context}: another change");
    }
    if left.changes.len() < was.changes.len() {
        assert!(said("change"), "{context}: lost changes silently: {losses:?}");
    }
    for hint in &left.hints {
        assert!(was.hints.contains(hint) || hint.0 <= 3, "{context}: another hint");
    }
    if left.hints.len() < was.hints.len() {
        assert!(said("hints"), "{context}: lost hints silently: {losses:?}");
    }
    if left.metas != was.metas {
        assert!(said("named values") || said("write-ahead log"), "{context}: {:?}", left.metas);
    }
}

/// Verifies, repairs and reads a damaged copy.
fn check(was: &Contents, disk: &SimDisk, context: &str) {
    let report = look(disk);
    let dry = mend(disk, &RepairOptions { write: false, ..anything() });
    match contents(disk) {
        Ok(left) if left == *was => {
            // No read has met it; every byte of a table is held to something all the same.
            assert!(!report.is_clean() || !context.contains(".table"), "{context}");
        }
        // The end of a log may be torn, which is never damage; else damage is told.
        result => {
            let torn = report
                .notes
                .iter()
                .any(|note| note.what.contains("never promised") || note.what.contains("are torn"));
            assert!(!report.is_clean() || torn, "{context}: {:?}", result.map(drop));
        }
    }
    if report.is_clean() {
        assert_eq!(dry, Repair::default(), "{context}");
        return;
    }
    assert!(!dry.steps.is_empty(), "{context}: {:?}", report.damage);
    let done = mend(disk, &anything());
    assert!(done.written, "{context}: {:?}", done.refused);
    assert_eq!(
        (&done.steps, &done.losses),
        (&dry.steps, &dry.losses),
        "{context}: a dry run tells the same"
    );
    let after = look(disk);
    assert_eq!(after.damage, [], "{context}: {done:?}");
    let left = contents(disk).unwrap_or_else(|error| panic!("{context}: {error}: {done:?}"));
    check_left(was, &left, &done.losses, context);
    // Replicas are compared by it: an event that lies in two places would be a difference until a merge.
    let digest = open_with(&disk.fork(), config()).unwrap().view().digest(1).unwrap();
    assert_eq!(digest.events, left.events.len() as u64, "{context}: each event is in one place");
}

#[test]
fn any_flip_is_told_and_repaired() {
    let disk = written();
    let was = contents(&disk).unwrap();
    for file in files(&disk) {
        let length = disk.contents(&file).unwrap().len();
        let step = if length < 400 { 1 } else { 1 + length / 60 };
        for offset in (0..length).step_by(step) {
            let copy = disk.fork();
            copy.flip_bit(&file, offset as u64, u32::try_from(offset % 8).unwrap());
            if let Err(Error::NewerFormat { .. }) = verify(&copy, |_, _| {}) {
                continue; // The version of a small file is not under its checksum alone.
            }
            check(&was, &copy, &format!("{file} flipped at {offset}"));
        }
    }
}

#[test]
fn any_cut_is_told_and_repaired() {
    let disk = written();
    let was = contents(&disk).unwrap();
    for file in files(&disk) {
        let bytes = disk.contents(&file).unwrap();
        let step = 1 + bytes.len() / 20;
        for length in (0..bytes.len()).step_by(step) {
            let copy = disk.fork();
            copy.replace(&file, &bytes[..length]);
            check(&was, &copy, &format!("{file} cut at {length}"));
        }
    }
}

#[test]
fn any_missing_file_is_told_and_repaired() {
    let disk = written();
    let was = contents(&disk).unwrap();
    let files = files(&disk);
    for file in &files {
        let oldest_change = files.iter().find(|file| file.starts_with("changes/")).unwrap();
        if file.strip_suffix(".ids").is_some() || file.replace(".log", ".ids") == *oldest_change {
            continue; // An index is made anew; a log that lacks its oldest segment is one that retention has shortened.
        }
        if file.starts_with("hints/") {
            continue; // The same, for consumed hints.
        }
        let copy = disk.fork();
        copy.remove(file).unwrap();
        assert!(!look(&copy).is_clean(), "{file} is not there");
        check(&was, &copy, &format!("{file} missing"));
    }
}

#[test]
fn a_table_that_is_lost_comes_back_as_far_as_the_log_has_it() {
    let disk = written();
    let table =
        files(&disk).into_iter().find(|file| file.strip_suffix(".table").is_some()).unwrap();
    disk.flip_bit(&table, 40, 1);
    let told = mend(&disk, &RepairOptions::default());
    assert!(!told.written);
    assert_eq!(told.refused, [] as [&str; 0], "no promise is broken by it: no option is needed");
    let [loss] = &told.losses[..] else { panic!("{:?}", told.losses) };
    assert_eq!(loss.partitions, Some((1, 1)));
    assert!(loss.events > Some(0) && loss.stamps.is_some());
    assert!(disk.contents(&table).is_some(), "a dry run changes nothing");
    let done = mend(&disk, &RepairOptions { write: true, ..RepairOptions::default() });
    assert!(done.steps.contains(&Step::Quarantine { file: table.clone() }));
    assert!(disk.contents(&format!("{table}{DAMAGED_SUFFIX}")).is_some());
    // The node writes on, and its log is one.
    let mut storage = open(&disk);
    fill(&mut storage, 1000, 50);
    work_all(&mut storage, 1);
    drop(storage);
    assert!(look(&disk).is_clean());
}

#[test]
fn a_damaged_log_is_cut_only_on_demand() {
    let disk = written();
    let was = contents(&disk).unwrap();
    let log = files(&disk).into_iter().find(|file| file.starts_with("wal/")).unwrap();
    disk.flip_bit(&log, 100, 1);
    let told = mend(&disk, &RepairOptions { cut_log: false, ..anything() });
    assert!(!told.written);
    assert!(told.refused[0].contains("--cut-log"), "{:?}", told.refused);
    assert!(contents(&disk).is_err());
    let done = mend(&disk, &anything());
    assert!(done.written);
    let lost = done.losses.iter().find(|loss| loss.what.contains("records")).unwrap();
    let (from, to) = lost.records.unwrap();
    assert_eq!(from, to, "one record is lost");
    let left = contents(&disk).unwrap();
    assert!(was.events.len() - 1 <= left.events.len(), "all others are saved");
    let storage = open(&disk);
    assert!(storage.change_range().0 > 221 || storage.change_range() == (1, 221));
}

#[test]
fn a_lost_identity_is_named_by_hand() {
    let disk = written();
    disk.flip_bit("identity", 30, 1);
    let told = mend(&disk, &RepairOptions { identity: None, ..anything() });
    assert!(told.refused[0].contains("--node"), "{:?}", told.refused);
    assert!(mend(&disk, &anything()).written);
    open(&disk);
}

#[test]
fn a_repair_that_is_cut_short_is_begun_anew() {
    use starling_storage::{CrashMode, Fault};
    let disk = written();
    let was = contents(&disk).unwrap();
    for file in files(&disk) {
        let damaged = disk.fork();
        damaged.flip_bit(&file, damaged.contents(&file).unwrap().len() as u64 / 2, 3);
        if look(&damaged).is_clean() {
            continue;
        }
        let whole = damaged.fork();
        mend(&whole, &anything());
        let calls = whole.calls() - damaged.calls();
        for call in (0..calls).rev().take(60) {
            let copy = damaged.fork();
            copy.inject(copy.calls() + call, Fault::Crash);
            let _ = repair(&Arc::new(copy.clone()), &anything(), |_, _| {});
            copy.restart(CrashMode::LoseUnsynced);
            let context = format!("{file}, crash at {call} of {calls}");
            let again = mend(&copy, &anything());
            assert!(look(&copy).is_clean(), "{context}: {again:?}: {:?}", look(&copy).damage);
            let left = contents(&copy).unwrap_or_else(|error| panic!("{context}: {error}"));
            for event in &left.events {
                assert!(was.events.contains(event), "{context}");
            }
        }
    }
}

#[test]
fn hostile_bytes_in_any_file_are_no_panic() {
    let disk = written();
    let mut numbers = model::Numbers(5);
    for file in files(&disk) {
        for _ in 0..40 {
            let copy = disk.fork();
            let length = usize::try_from(numbers.below(300)).unwrap();
            let bytes: Vec<u8> =
                (0..length).map(|_| u8::try_from(numbers.below(256)).unwrap()).collect();
            copy.replace(&file, &bytes);
            let _ = verify(&copy, |_, _| {});
            let _ = repair(&Arc::new(copy.clone()), &anything(), |_, _| {});
            let _ = Storage::open(Arc::new(copy), config(), identity());
        }
    }
}
