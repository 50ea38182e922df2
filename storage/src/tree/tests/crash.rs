//! Crashes, errors and a full disk at every call that a flush and its merges make.

use super::*;
use crate::HistoryRetention;
use crate::disk::{CrashMode, Fault};

const EVENTS: u64 = 90;
const ROTATE_EVERY: u64 = 15;
const MODES: [CrashMode; 4] =
    [CrashMode::LoseUnsynced, CrashMode::KeepPrefix, CrashMode::Torn, CrashMode::KeepAll];

/// What a log would hold: the record at index `n` has position `n + 1`.
fn log() -> Vec<Event> {
    let stamps = (0..EVENTS).map(|n| n * 37 % EVENTS);
    stamps.map(|ms| put(&format!("key-{}", ms % 11), ms)).collect()
}

/// Who does the work.
#[derive(Clone, Copy, Debug)]
enum Hands {
    /// The tree, step by step.
    Own,
    /// Others: all jobs that there are at once, a step of each in turn.
    Jobs,
}

const HANDS: [Hands; 2] = [Hands::Own, Hands::Jobs];

/// Inserts what is not flushed, flushes and merges it, as far as the disk lets it.
fn run(tree: &mut Tree<SimDisk>, retentions: &Retentions, hands: Hands) -> Result<(), Error> {
    replay(tree);
    finish(tree, retentions, hands)
}

fn finish(tree: &mut Tree<SimDisk>, retentions: &Retentions, hands: Hands) -> Result<(), Error> {
    match hands {
        Hands::Own => while tree.work(0, retentions)? == Progress::Did {},
        Hands::Jobs => {
            let mut jobs: VecDeque<TreeJob<SimDisk>> = VecDeque::new();
            tree.install_waiting()?;
            loop {
                jobs.extend(std::iter::from_fn(|| tree.begin_job(0, retentions)));
                let Some(mut job) = jobs.pop_front() else { break };
                match job.step() {
                    Progress::Did => jobs.push_back(job),
                    Progress::Idle => {
                        if let Err(error) = tree.finish_job(job) {
                            // The others are given up, which must do no harm.
                            while let Some(job) = jobs.pop_front() {
                                let _ = tree.finish_job(job);
                            }
                            return Err(error);
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

fn replay(tree: &mut Tree<SimDisk>) {
    let flushed = tree.flushed().0;
    for (index, event) in (1..).zip(&log()) {
        if flushed < index {
            tree.insert(event);
            if index % ROTATE_EVERY == 0 {
                tree.rotate(Lsn(index));
            }
        }
    }
}

fn check(tree: &Tree<SimDisk>) {
    let wanted: BTreeMap<Vec<u8>, Event> =
        log().into_iter().map(|event| (internal(&event), event)).collect();
    assert_eq!(events(tree, 0), wanted);
}

/// Files that the manifest does not name would be a leak.
fn check_files(disk: &SimDisk, tree: &Tree<SimDisk>) {
    let tables = tree.manifest.state().tables.keys();
    let mut wanted: Vec<String> =
        tables.map(|number| table::path("tables", *number)["tables/".len()..].into()).collect();
    wanted.push("MANIFEST".into());
    wanted.sort();
    assert_eq!(disk.list("tables").unwrap(), wanted);
}

fn calls_of_a_run(retentions: &Retentions, hands: Hands) -> u64 {
    let disk = Arc::new(SimDisk::new(1));
    let mut tree = open(&disk);
    run(&mut tree, retentions, hands).expect("the disk is fine");
    let calls = disk.calls();
    check_files(&disk, &tree);
    assert!(1 < tree.space.numbers.next() - tree.status().tables, "there were merges");
    calls
}

/// Opens and runs until the fault, and tells what the tree said was flushed: a log may be gone up to there.
fn run_to_fault(disk: &Arc<SimDisk>, retentions: &Retentions, hands: Hands) -> Lsn {
    let Ok(mut tree) = Tree::open(Arc::clone(disk), "tables", small()) else { return Lsn(0) };
    run(&mut tree, retentions, hands).expect_err("the fault is met");
    tree.flushed()
}

#[test]
fn a_crash_at_any_call_loses_nothing() {
    for hands in HANDS {
        let retentions = Retentions::default();
        let calls = calls_of_a_run(&retentions, hands);
        for mode in MODES {
            for call in 0..calls {
                let disk = Arc::new(SimDisk::new(call));
                disk.inject(call, Fault::Crash);
                let flushed = run_to_fault(&disk, &retentions, hands);
                disk.restart(mode);
                let mut tree = open(&disk);
                assert!(flushed <= tree.flushed());
                check_files(&disk, &tree);
                replay(&mut tree);
                check(&tree);
                finish(&mut tree, &retentions, hands).expect("the disk is fine");
                check(&tree);
                check_files(&disk, &tree);
            }
        }
    }
}

#[test]
fn a_crash_in_recovery_loses_nothing() {
    for hands in HANDS {
        let retentions = Retentions::default();
        let calls = calls_of_a_run(&retentions, hands);
        for mode in MODES {
            for call in (0..calls).step_by(7) {
                for second in 0..12 {
                    let disk = Arc::new(SimDisk::new(call));
                    disk.inject(call, Fault::Crash);
                    let first = run_to_fault(&disk, &retentions, hands);
                    disk.restart(mode);
                    disk.inject(disk.calls() + second, Fault::Crash);
                    let flushed = first.max(run_to_fault(&disk, &retentions, hands));
                    // After a mere end of the process the power may go, too.
                    disk.restart(CrashMode::LoseUnsynced);
                    let mut tree = open(&disk);
                    assert!(flushed <= tree.flushed());
                    replay(&mut tree);
                    check(&tree);
                }
            }
        }
    }
}

/// The process ends, a new one opens what the system kept, then the power goes: what the new one said still holds.
#[test]
fn what_a_new_process_finds_is_made_durable() {
    for hands in HANDS {
        let retentions = Retentions::default();
        for call in 0..calls_of_a_run(&retentions, hands) {
            let disk = Arc::new(SimDisk::new(call));
            disk.inject(call, Fault::Crash);
            run_to_fault(&disk, &retentions, hands);
            disk.restart(CrashMode::KeepAll);
            let found = open(&disk).manifest.state().clone();
            disk.crash();
            disk.restart(CrashMode::LoseUnsynced);
            assert_eq!(open(&disk).manifest.state(), &found, "call {call}");
        }
    }
}

#[test]
fn a_crash_while_history_is_dropped_keeps_the_newest() {
    for hands in HANDS {
        let mut retentions = Retentions::default();
        let keep_two = HistoryRetention { versions_max: Some(2), age_ms_max: None };
        retentions.set_history(KeyspaceId(0), keep_two);
        for call in 0..calls_of_a_run(&retentions, hands) {
            let disk = Arc::new(SimDisk::new(call));
            disk.inject(call, Fault::Crash);
            run_to_fault(&disk, &retentions, hands);
            disk.restart(CrashMode::Torn);
            let mut tree = open(&disk);
            run(&mut tree, &retentions, hands).expect("the disk is fine");
            for key in 0..11_u64 {
                let key_name = format!("key-{key}");
                let newest = (0..EVENTS).rev().filter(|ms| ms % 11 == key).take(2);
                for ms in newest {
                    let at = stamp(ms);
                    let got = tree.view().get(0, KeyspaceId(0), key_name.as_bytes(), at).unwrap();
                    assert_eq!(got, Some(put(&key_name, ms)), "crash at call {call}");
                }
            }
        }
    }
}

#[test]
fn an_error_at_any_call_loses_nothing() {
    for hands in HANDS {
        let retentions = Retentions::default();
        let calls = calls_of_a_run(&retentions, hands);
        for fault in [Fault::Io, Fault::Full] {
            for call in 0..calls {
                let disk = Arc::new(SimDisk::new(call));
                disk.inject(call, fault);
                let Ok(mut tree) = Tree::open(Arc::clone(&disk), "tables", small()) else {
                    disk.restart(CrashMode::LoseUnsynced);
                    run(&mut open(&disk), &retentions, hands).expect("the fault has passed");
                    continue;
                };
                replay(&mut tree);
                let result = finish(&mut tree, &retentions, hands);
                check(&tree);
                match result {
                    Err(Error::WriteFailed { .. }) => {
                        assert!(matches!(tree.work(0, &retentions), Err(Error::Poisoned)));
                        disk.restart(CrashMode::LoseUnsynced);
                        tree = open(&disk);
                        replay(&mut tree);
                    }
                    Err(_) => {}
                    Ok(()) => {
                        assert_eq!(fault, Fault::Full, "which spares calls that need no room");
                    }
                }
                finish(&mut tree, &retentions, hands).expect("the fault has passed");
                check(&tree);
                // A file whose removal failed is removed at the next open.
                drop(tree);
                disk.restart(CrashMode::KeepAll);
                let mut tree = open(&disk);
                check_files(&disk, &tree);
                replay(&mut tree);
                check(&tree);
            }
        }
    }
}

#[test]
fn a_failed_sync_stops_the_tree() {
    for hands in HANDS {
        let retentions = Retentions::default();
        let mut stopped = 0;
        for call in 0..calls_of_a_run(&retentions, hands) {
            let disk = Arc::new(SimDisk::new(call));
            disk.inject(call, Fault::Io);
            let Ok(mut tree) = Tree::open(Arc::clone(&disk), "tables", small()) else { continue };
            let error = run(&mut tree, &retentions, hands).expect_err("the fault is met");
            if let Error::WriteFailed { .. } = error {
                stopped += 1;
                assert!(matches!(tree.work(0, &retentions), Err(Error::Poisoned)));
                check(&tree);
            }
        }
        assert!(10 < stopped, "syncs of tables, the directory and the manifest");
    }
}

#[test]
fn a_full_disk_stops_flushes_until_there_is_room() {
    for hands in HANDS {
        let disk = Arc::new(SimDisk::new(1));
        let mut tree = open(&disk);
        replay(&mut tree);
        let retentions = Retentions::default();
        for room in (0..4000).step_by(97) {
            disk.set_capacity(Some(disk.used() + room));
            for _ in 0..5 {
                if let Err(error) = finish(&mut tree, &retentions, hands) {
                    assert!(matches!(error, Error::Full { .. }), "{error}");
                }
                check(&tree);
            }
        }
        disk.set_capacity(None);
        finish(&mut tree, &retentions, hands).expect("there is room");
        check(&tree);
        check_files(&disk, &tree);
        assert_eq!(tree.flushed(), Lsn(EVENTS));
    }
}
