//! `starling storage` from outside: what it finds in the data directory of a node, and what it makes of damage.
//!
//! Every test runs the built program.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]
#![expect(clippy::disallowed_methods, reason = "real processes take real time")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
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

fn start(dir: &Path) -> Running {
    start_with(dir, &[])
}

/// Starts a node with these settings.
fn start_with(dir: &Path, settings: &[&str]) -> Running {
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
    command.args(settings.iter().flat_map(|setting| ["--set", setting]));
    let mut child = command.current_dir(dir).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let node = Running(child);
    assert!(line.starts_with("listening on "), "{line:?}");
    node
}

/// A node, which ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn kill(node: Running) {
    drop(node);
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

/// What the node of the directory says of its disk.
fn damage(dir: &Path) -> Value {
    let (code, text, stderr) = run(dir, &["--json", "status"]);
    assert_eq!(code, 0, "{stderr}");
    let status: Value = serde_json::from_str(&text).unwrap();
    status["nodes"][0]["damage"].clone()
}

#[test]
fn a_running_node_tells_what_is_damaged_on_its_disk() {
    let dir = tempfile::tempdir().unwrap();
    let small = ["storage.changes_bytes_max=600000", "storage.scrub_mib_per_second=0"];
    let node = start_with(dir.path(), &small);
    let nothing = json!({ "places": 0, "latest": [], "scrub_rounds": 0, "scrub_damaged": 0 });
    assert_eq!(damage(dir.path()), nothing);
    // Two segments of the change log, of what cannot be compressed.
    let name = "changes/00000000000000000001.log";
    let path = dir.path().join("data/storage").join(name);
    let mut state = 1_u64;
    for file in [path.with_extension("ids"), path.with_file_name("00000000000000000003.log")] {
        for key in ["one", "two"] {
            let draw = |_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                char::from(b'!' + u8::try_from((state >> 33) % 90).unwrap())
            };
            let value: String = (0..90_000).map(draw).collect();
            let (code, _, stderr) = run(dir.path(), &["put", key, "--", &value]);
            assert_eq!(code, 0, "{stderr}");
        }
        let patience = std::time::Instant::now();
        while !file.exists() {
            assert!(patience.elapsed().as_secs() < 20, "{} comes to be", file.display());
            std::thread::yield_now();
        }
    }
    kill(node);
    let mut bytes = fs::read(&path).unwrap();
    bytes[5000] ^= 1;
    fs::write(&path, &bytes).unwrap();

    let node = start_with(dir.path(), &small);
    assert_eq!(damage(dir.path()), nothing, "nobody has looked yet");
    let (code, _, stderr) = run(dir.path(), &["--timeout", "1s", "changes", "--node", "1"]);
    assert_ne!(code, 0, "{stderr}");
    let told = |found_by: &str, scrub_rounds: u64| {
        let place =
            json!({ "file": name, "offset": 32, "what": "frame checksum", "found_by": found_by });
        json!({
            "places": 1, "latest": [place], "scrub_rounds": scrub_rounds, "scrub_damaged": scrub_rounds
        })
    };
    assert_eq!(damage(dir.path()), told("request", 0));
    let (_, text, _) = run(dir.path(), &["status"]);
    let words = format!("DAMAGED in 1 place, the latest {name} at 32 (frame checksum): ");
    assert!(text.contains(&words), "{text}");
    kill(node);

    // The disk is read again soon after the start.
    let node = start_with(dir.path(), &["storage.changes_bytes_max=600000"]);
    let patience = std::time::Instant::now();
    while damage(dir.path())["scrub_rounds"] == json!(0) {
        assert!(patience.elapsed().as_secs() < 20, "a small disk is read in a second");
    }
    assert_eq!(damage(dir.path()), told("scrub", 1));
    kill(node);
}
