//! Files of earlier releases are read for ever: a copy of each is opened, and holds what it was written with.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use starling_clock::NodeId;
use starling_storage::offline::{DumpFilter, DumpKind, dump, verify};
use starling_storage::{Config, Error, Identity, OsDisk, Progress, Storage};

#[path = "support/contents.rs"]
mod contents;

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), &to).unwrap();
        }
    }
}

fn open(disk: &Arc<OsDisk>) -> Storage<OsDisk> {
    let identity = Identity { cluster: "testdata".to_owned(), node: NodeId(42) };
    Storage::open(Arc::clone(disk), Config::default(), identity).unwrap()
}

fn check(version: &str) {
    let release = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(version);
    let expected = fs::read_to_string(release.join("expected.jsonl")).unwrap();
    let expected: Vec<&str> = expected.lines().collect();
    assert!(expected.len() > 300);
    let folder = tempfile::tempdir().unwrap();
    copy(&release.join("data"), folder.path());
    let disk = Arc::new(OsDisk::new(folder.path()).unwrap());

    let report = verify(&*disk, |_, _| {}).unwrap();
    assert_eq!(report.damage, []);
    assert!(1 < report.tables && 1 < report.wal.segments && 1 < report.changes.segments);
    let mut dumped = 0;
    for kind in [
        DumpKind::Identity,
        DumpKind::State,
        DumpKind::Manifest,
        DumpKind::Tables,
        DumpKind::Wal,
        DumpKind::Changes,
        DumpKind::Hints,
    ] {
        let before = dumped;
        dump::<_, Error>(&*disk, kind, &DumpFilter::default(), |_| {
            dumped += 1;
            Ok(())
        })
        .unwrap();
        assert!(before < dumped, "{kind:?} has records");
    }

    let mut storage = open(&disk);
    assert_eq!(contents::lines(&storage).unwrap(), expected, "as it was written");
    assert_eq!(storage.recovered_stamp().to_string(), "1700000000259.1@3");
    // What today's code makes of it holds the same.
    storage.request_full_merge();
    while storage.work(1_700_000_001_000).unwrap() == Progress::Did {}
    drop(storage);
    assert_eq!(verify(&*disk, |_, _| {}).unwrap().damage, []);
    let again = contents::lines(&open(&disk)).unwrap();
    assert_eq!(again, expected, "after merges");
}

#[test]
fn files_of_version_1_are_read() {
    check("v1");
}

#[test]
fn version_1_has_every_kind_of_file() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/v1/data");
    let names = |dir: &str| -> Vec<String> {
        let entries = fs::read_dir(data.join(dir)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    };
    let has = |dir: &str, ending: &str| names(dir).iter().any(|name| name.ends_with(ending));
    assert!(has("", "identity") && has("", "state"));
    assert!(has("wal", ".log") && has("changes", ".log") && has("changes", ".ids"));
    assert!(has("tables", "MANIFEST") && has("tables", ".table"));
    for target in contents::TARGETS {
        assert!(has(&format!("hints/{:020}", target.0), ".log"));
    }
}
