//! `starling storage` from outside: what it finds in the data directory of a node, and what it makes of damage.
//!
//! Every test runs the built program.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_starling");

/// Exit code and standard output and error of a command in `dir`.
fn run(dir: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).current_dir(dir).stdin(Stdio::null());
    if let Ok(address) = fs::read_to_string(dir.join("data/address")) {
        command.env("STARLING_CONNECT", address.trim()).env("STARLING_TLS", "data/tls");
    }
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    assert!(!stderr.contains("panicked"), "{stderr}");
    (output.status.code().unwrap(), stdout, stderr)
}

fn start(dir: &Path) -> Child {
    let mut command = Command::new(PROGRAM);
    command.args([
        "node",
        "--listen",
        "127.0.0.1:0",
        "--log",
        "warn",
        "--id",
        "1",
        "--data-dir",
        "data",
    ]);
    let mut child = command.current_dir(dir).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("listening on "), "{line:?}");
    child
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The directory of a node that was killed, with three keys in it.
fn killed() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path());
    for key in ["one", "two", "three"] {
        let (code, _, stderr) = run(dir.path(), &["put", key, &format!("value of {key}")]);
        assert_eq!(code, 0, "{stderr}");
    }
    let (code, _, stderr) = run(dir.path(), &["storage", "verify", "--data-dir", "data"]);
    assert_eq!(code, 2, "it is refused while the node runs");
    assert!(stderr.contains("another process is using"), "{stderr}");
    kill(node);
    dir
}

fn only_log(dir: &Path) -> PathBuf {
    let entries = fs::read_dir(dir.join("data/storage/wal")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "log"));
    assert_eq!(paths.len(), 1, "{paths:?}");
    paths.remove(0)
}

#[test]
fn a_good_directory_is_clean_and_its_records_are_shown() {
    let dir = killed();
    let (code, text, stderr) = run(dir.path(), &["storage", "verify", "--data-dir", "data"]);
    assert_eq!((code, stderr.as_str()), (0, ""), "{text}");
    assert!(text.contains("nothing is damaged") && text.contains("node 1 of cluster"), "{text}");
    let (code, text, _) = run(dir.path(), &["--json", "storage", "verify", "--data", "data"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &report["clean"], &report["node"]), (0, &true.into(), &1.into()));

    let (code, text, _) =
        run(dir.path(), &["storage", "dump", "wal", "--data-dir", "data", "--prefix", "t"]);
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(code, 0);
    let keys: Vec<&str> = lines.iter().filter_map(|line| line["key"].as_str()).collect();
    assert_eq!(keys, ["two", "three"], "{text}");
    assert_eq!(lines[0]["payload"], "value of two");
    for what in ["identity", "state", "manifest", "tables", "changes", "hints"] {
        let (code, _, stderr) = run(dir.path(), &["storage", "dump", what, "--data-dir", "data"]);
        assert_eq!(code, 0, "{what}: {stderr}");
    }
    let (code, text, _) = run(dir.path(), &["storage", "repair", "--data-dir", "data"]);
    assert_eq!((code, text.as_str()), (0, "nothing is damaged\n"));
}

#[test]
fn damage_is_told_and_repaired_on_demand() {
    let dir = killed();
    let (log, run) = (only_log(dir.path()), |arguments: &[&str]| run(dir.path(), arguments));
    let mut bytes = fs::read(&log).unwrap();
    bytes[3] ^= 1;
    fs::write(&log, &bytes).unwrap();

    let (code, text, stderr) = run(&["storage", "verify", "--data-dir", "data"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("damaged: wal/") && text.contains(" at 0: "), "{text}");
    assert!(stderr.contains("damaged"), "{stderr}");
    let (code, text, _) = run(&["storage", "repair", "--data-dir", "data", "--write"]);
    assert_eq!(code, 1, "acknowledged writes are given up only if that is said");
    assert!(text.contains("refused: ") && text.contains("--cut-log"), "{text}");
    let (code, text, stderr) = run(&["storage", "repair", "--data-dir", "data", "--cut-log"]);
    assert_eq!(code, 1, "a dry run");
    assert!(text.contains("lost: ") && stderr.contains("--write"), "{text}{stderr}");
    assert_eq!(fs::read(&log).unwrap(), bytes, "and nothing was changed");
    let (code, text, stderr) =
        run(&["--json", "storage", "repair", "--data-dir", "data", "--cut-log", "--write"]);
    let repair: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &repair["written"]), (0, &true.into()), "{text}{stderr}");

    let (code, text, _) = run(&["storage", "verify", "--data-dir", "data"]);
    assert_eq!(code, 0, "{text}");
    let node = start(dir.path());
    let (code, _, stderr) = run(&["put", "four", "again"]);
    assert_eq!(code, 0, "{stderr}");
    kill(node);
}

#[test]
fn what_is_no_data_directory_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (code, _, stderr) = run(dir.path(), &["storage", "verify", "--data-dir", "nowhere"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("nowhere is no data directory"), "{stderr}");
    assert!(!dir.path().join("nowhere").exists());
}
