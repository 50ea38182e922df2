//! The `starling` command line from outside: what each command prints, what it ends with, what it says when something is wrong.
//!
//! Every test runs the built program against a node of its own.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_starling");

/// A node, and commands that reach it. Killed when dropped.
struct Node {
    child: Child,
    address: String,
    dir: TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a command did.
struct Done {
    code: Option<i32>,
    stdout: Vec<u8>,
    stderr: String,
}

impl Done {
    fn of(output: Output) -> Self {
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!stderr.contains("panicked"), "{stderr}");
        Self { code: output.status.code(), stdout: output.stdout, stderr }
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    #[track_caller]
    fn succeeds(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        String::from_utf8(self.stdout).unwrap()
    }

    /// The JSON values on its lines.
    #[track_caller]
    fn values(self) -> Vec<Value> {
        self.succeeds().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The one JSON value that it prints.
    #[track_caller]
    fn value(self) -> Value {
        let mut values = self.values();
        assert_eq!(values.len(), 1);
        values.remove(0)
    }

    #[track_caller]
    fn fails(self, code: i32, texts: &[&str]) {
        assert_eq!(self.code, Some(code), "{}", self.stderr);
        for text in texts {
            assert!(self.stderr.contains(text), "{:?} should say {text:?}", self.stderr);
        }
    }
}

impl Node {
    fn start() -> Self {
        Self::start_with(&[])
    }

    fn start_with(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(PROGRAM);
        command.args(["node", "--listen", "127.0.0.1:0", "--log", "warn", "--id", "1"]).args(flags);
        command.arg("--data-dir").arg(dir.path().join("data"));
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("listening on "), "{line:?}");
        let address = fs::read_to_string(dir.path().join("data/address")).unwrap();
        Self { child, address: address.trim().to_owned(), dir }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(arguments).current_dir(self.dir.path()).env("RUST_BACKTRACE", "1");
        command.env("STARLING_CONNECT", &self.address).env("STARLING_TLS", "data/tls");
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Done {
        Done::of(self.command(arguments).output().unwrap())
    }

    fn json(&self, arguments: &[&str]) -> Done {
        self.run(&[&["--json"], arguments].concat())
    }

    fn run_with(&self, arguments: &[&str], input: &[u8]) -> Done {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // It may end before it has read everything.
        let _ = stdin.write_all(input);
        drop(stdin);
        Done::of(child.wait_with_output().unwrap())
    }

    fn file(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, contents).unwrap();
        path
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn fields(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn a_value_is_written_read_deleted_and_remembered() {
    let node = Node::start();
    let written = node.json(&["put", "greeting", "hello"]).value();
    assert_eq!(fields(&written), ["stamp", "superseded", "acks"]);
    assert_eq!((&written["superseded"], &written["acks"]), (&json!(false), &json!(1)));
    let said = node.run(&["put", "greeting", "hello again"]).succeeds();
    assert!(said.starts_with("ok, stamp ") && said.ends_with(", on 1 replica\n"), "{said}");

    assert_eq!(node.run(&["get", "greeting"]).succeeds(), "hello again\n");
    assert_eq!(node.run(&["get", "greeting", "--raw"]).succeeds(), "hello again");
    let first = written["stamp"].as_str().unwrap();
    assert_eq!(node.run(&["get", "greeting", "--at", first]).succeeds(), "hello\n");
    let read = node.json(&["get", "greeting", "--at", first]).value();
    assert_eq!(fields(&read), ["key", "stamp", "action", "payload", "request"]);
    let shown = (&read["key"], &read["stamp"], &read["action"], &read["payload"]);
    assert_eq!(shown, (&json!("greeting"), &json!(first), &json!("put"), &json!("hello")));

    node.run(&["del", "greeting"]).succeeds();
    node.run(&["get", "greeting"]).fails(10, &["there is no key 'greeting'"]);
    node.json(&["get", "greeting"]).fails(10, &["there is no key"]);
    let events = node.json(&["history", "greeting"]).values();
    let actions: Vec<_> = events.iter().map(|event| &event["action"]).collect();
    assert_eq!(actions, ["put", "put", "delete"]);
    assert_eq!(events[0]["stamp"], json!(first));
    let newest = node.json(&["history", "greeting", "--reverse", "-n", "1"]).value();
    assert_eq!(newest, events[2]);
    let text = node.run(&["history", "greeting"]).succeeds();
    assert_eq!(text.lines().count(), 3);
    assert!(text.lines().next().unwrap().ends_with("Z  put  hello"), "{text}");

    node.run(&["history", "nothing"]).fails(10, &["there is no key 'nothing'"]);
    let far = "4000000000000.0@1";
    node.run(&["history", "greeting", "--from", far])
        .fails(10, &["no event of 'greeting' between"]);
    node.run(&["history", "greeting", "--from", "yesterday"]).fails(2, &["a stamp reads"]);
}

#[test]
fn bytes_of_any_kind_come_back_and_a_terminal_is_spared() {
    let node = Node::start();
    let bytes = b"\xff\x00\x1b[2J\n";
    node.run_with(&["put", "piped"], bytes).succeeds();
    node.run_with(&["put", "dash", "-"], bytes).succeeds();
    node.file("value", bytes);
    node.run(&["put", "filed", "--file", "value"]).succeeds();
    for key in ["piped", "dash", "filed"] {
        assert_eq!(node.run(&["get", key, "--raw"]).stdout, bytes, "{key}");
        assert_eq!(node.run(&["get", key]).succeeds(), "\\xff\\u{0}\\u{1b}[2J\\n\n");
        assert_eq!(node.json(&["get", key]).value()["payload"], json!({ "hex": "ff001b5b324a0a" }));
    }
    node.run(&["put", "empty", ""]).succeeds();
    assert_eq!(node.json(&["get", "empty"]).value()["payload"], json!(""));
    node.run(&["put", "-40", "-12.5"]).succeeds();
    assert_eq!(node.run(&["get", "-40"]).succeeds(), "-12.5\n");

    let value = std::ffi::OsStr::from_bytes(b"\xff");
    let done = Done::of(node.command(&["put", "key"]).arg(value).output().unwrap());
    done.fails(2, &["UTF-8"]);
}

#[test]
fn what_no_node_takes_is_refused_with_what_to_do() {
    let node = Node::start_with(&["--set", "limits.payload_size_max=1000"]);
    let (longest, too_long) = ("k".repeat(4096), "k".repeat(4097));
    node.run(&["put", &longest, "v"]).succeeds();
    for command in [&["put", &too_long, "v"][..], &["get", &too_long], &["del", &too_long]] {
        node.run(command).fails(13, &["4097 bytes", "use a shorter key"]);
    }
    node.run(&["put", "", "v"]).fails(13, &["the key is empty", "1 to 4096 bytes"]);
    node.run(&["ring", ""]).fails(2, &["1 to 4096 bytes"]);
    node.run(&["ring", &too_long]).fails(2, &["this has 4097"]);
    node.run_with(&["put", "k"], &[7; 1001]).fails(13, &["1001 bytes", "split it"]);
    node.run(&["get", "-k", "nowhere", "k"]).fails(13, &["starling keyspace create"]);
    node.run(&["put", "-k", "nowhere", "k", "v"]).fails(13, &["starling keyspace create"]);
    node.run(&["scan", "-k", "nowhere"]).fails(13, &["starling keyspace create"]);
    node.run(&["changes", "-k", "nowhere"]).fails(13, &["starling keyspace create"]);
    node.run(&["put", "k", "v", "--level", "2"]).fails(13, &["lower the level"]);
    node.run(&["get", "k", "--level", "any"]).fails(13, &["read at ONE or more"]);
    node.run(&["put", "k", "v", "--level", "most"]).fails(2, &["one, two, quorum"]);
    node.run(&["put", "k", "v", "--durability", "fsync"]).fails(2, &["sync or interval"]);
    node.run(&["put", "k", "v", "--file", "value"]).fails(2, &["cannot be used with"]);
    node.run(&["put", "k", "--file", "missing"]).fails(1, &["missing", "No such file"]);
    node.run(&["scan", "--limit", "0"]).fails(2, &["--limit"]);
}

#[test]
fn a_cluster_out_of_reach_is_told_as_such() {
    let node = Node::start();
    let quickly = ["--timeout", "300ms"];
    let nobody = ["--connect", "127.0.0.1:1", "get", "k"];
    node.run(&[&quickly[..], &nobody].concat())
        .fails(11, &["no node could be reached", "--connect", "--tls"]);
    for address in ["nonsense", "", "127.0.0.1:port"] {
        node.run(&["--connect", address, "get", "k"]).fails(2, &["HOST:PORT"]);
    }
    node.run(&["--tls", "nowhere", "get", "k"])
        .fails(5, &["cannot read nowhere/ca.pem", "starling cert client"]);
    node.run(&["--timeout", "0s", "get", "k"]).fails(13, &["more than zero"]);
    node.run(&["--timeout", "1000000years", "get", "k"]).fails(10, &["no key"]);

    // A certificate of another authority, and then a node of another authority.
    node.run(&["cert", "ca", "--dir", "ca"]).succeeds();
    node.run(&["cert", "client", "--ca", "ca", "--name", "me", "--dir", "mine"]).succeeds();
    node.run(&["--tls", "mine", "--timeout", "1s", "get", "k"])
        .fails(11, &["authority this client trusts", "--tls"]);
    fs::copy(node.dir.path().join("data/tls/ca.pem"), node.dir.path().join("mine/ca.pem")).unwrap();
    node.run(&["--tls", "mine", "get", "k"])
        .fails(5, &["does not accept this client's certificate", "the authority of its cluster"]);

    // What is wrong without a cluster is told without one.
    let import = ["--connect", "127.0.0.1:1", "import", "--key", "id", "rows"];
    node.run(&import).fails(2, &["--format"]);
    let missing = ["--connect", "127.0.0.1:1", "import", "--key", "id", "rows.csv"];
    node.run(&missing).fails(1, &["rows.csv", "No such file"]);
}

#[test]
fn output_that_nobody_reads_ends_quietly_and_a_full_one_does_not() {
    let node = Node::start();
    for at in 0..50 {
        node.run(&["put", &format!("key {at}"), &"v".repeat(20_000)]).succeeds();
    }
    let mut scan = node.command(&["scan"]);
    let mut child = scan.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let done = Done::of(child.wait_with_output().unwrap());
    assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""));
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let done = Done::of(node.command(&["scan"]).stdout(full).output().unwrap());
    done.fails(1, &["standard output: No space left"]);
}

#[test]
fn scans_list_live_keys() {
    let node = Node::start();
    for key in ["a1", "a2", "b1"] {
        node.run(&["put", key, &format!("value of {key}")]).succeeds();
    }
    node.run(&["put", "a3", "gone"]).succeeds();
    node.run(&["del", "a3"]).succeeds();
    let text = node.run(&["scan", "a"]).succeeds();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["a1\tvalue of a1", "a2\tvalue of a2"]);
    assert_eq!(node.run(&["scan"]).succeeds().lines().count(), 3);
    assert_eq!(node.run(&["scan", "-n", "2"]).succeeds().lines().count(), 2);
    let mut keys = node.json(&["scan", "--keys", "a"]).values();
    keys.sort_by_key(Value::to_string);
    assert_eq!(keys, ["a1", "a2"]);
    let row = node.json(&["scan", "b"]).value();
    assert_eq!(fields(&row), ["key", "stamp", "action", "payload", "request"]);
    assert_eq!(node.run(&["scan", "zebra"]).succeeds(), "", "nothing is no failure");
}

#[test]
fn rows_are_imported_and_exported_as_they_are() {
    let node = Node::start();
    // Numbers that a parser would round or write otherwise, and white space.
    let lines = [
        r#"{"id":"a","n":1.10,"big":12345678901234567890123}"#,
        r#"{"id": "b", "text": "caf\u00e9", "n": 1e2}"#,
        r#"{"id":7,"nested":{"x":[1,2]}}"#,
    ];
    let rows = node.file("rows.jsonl", lines.join("\n"));
    let said = node.json(&["import", "--key", "id", "rows.jsonl"]).value();
    assert_eq!(
        fields(&said),
        ["taken", "superseded", "repeated", "failed", "skipped", "first_skipped", "elapsed_ms"]
    );
    assert_eq!(
        (&said["taken"], &said["failed"], &said["skipped"]),
        (&json!(3), &json!(0), &json!(0))
    );
    assert_eq!(node.run(&["get", "7", "--raw"]).succeeds(), lines[2]);

    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    let printed = node.run(&["export"]).succeeds();
    assert_eq!(sorted(&printed), sorted(&fs::read_to_string(&rows).unwrap()));
    assert_eq!(sorted(&node.run(&["export", "-o", "-"]).succeeds()), sorted(&printed));
    let said = node.run(&["export", "--output", "out.jsonl"]).succeeds();
    assert_eq!(said, "3 rows written to out.jsonl\n");
    let exported = fs::read_to_string(node.dir.path().join("out.jsonl")).unwrap();
    assert_eq!(sorted(&exported), sorted(&printed));

    // And back, into another keyspace, through a pipe.
    node.run(&["keyspace", "create", "copy"]).succeeds();
    let import = ["import", "-k", "copy", "--key", "id", "--format", "jsonl", "-"];
    let said = node.run_with(&import, exported.as_bytes()).succeeds();
    assert!(said.starts_with("3 rows written in "), "{said}");
    assert_eq!(sorted(&node.run(&["export", "-k", "copy"]).succeeds()), sorted(&printed));
    assert_eq!(node.names(), ["data", "out.jsonl", "rows.jsonl"], "nothing is left beside them");
}

#[test]
fn tables_are_imported_and_exported() {
    let node = Node::start();
    node.file("rows.csv", "airport,cost\n\"A, B\",12\nC,\n");
    let import = ["import", "--key", "airport", "rows.csv", "--receipts", "receipts"];
    assert!(node.run(&import).succeeds().starts_with("2 rows written"));
    assert_eq!(node.run(&["get", "A, B", "--raw"]).succeeds(), r#"{"airport":"A, B","cost":"12"}"#);
    let receipts = fs::read_to_string(node.dir.path().join("receipts")).unwrap();
    let receipts: Vec<Value> =
        receipts.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(receipts.len(), 2);
    assert!(receipts.iter().all(|receipt| fields(receipt) == ["row", "key", "stamp"]));

    node.run(&["export", "--output", "out.csv"]).succeeds();
    let text = fs::read_to_string(node.dir.path().join("out.csv")).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.remove(0), "airport,cost");
    lines.sort_unstable();
    assert_eq!(lines, ["\"A, B\",12", "C,"]);

    // A row that the header has no field for is told, and no half of a file is left.
    node.run(&["put", "D", r#"{"airport":"D","cost":"1","gate":"2"}"#]).succeeds();
    let before = node.names();
    node.run(&["export", "--output", "other.csv"]).fails(2, &["--format jsonl"]);
    assert_eq!(node.names(), before);
    assert_eq!(fs::read_to_string(node.dir.path().join("out.csv")).unwrap(), text);
}

#[test]
fn other_values_are_exported_with_their_keys_and_devices_are_left_in_place() {
    let node = Node::start();
    node.run(&["put", "k", "plain"]).succeeds();
    assert_eq!(node.json(&["export"]).value(), json!({ "key": "k", "value": "plain" }));
    let row = node.json(&["export", "--with-keys"]).value();
    assert_eq!(fields(&row), ["key", "stamp", "value"]);
    // A link to a device: were it taken for a file, it would be one afterwards.
    std::os::unix::fs::symlink("/dev/null", node.dir.path().join("link")).unwrap();
    assert_eq!(node.run(&["export", "-o", "link"]).succeeds(), "1 row written to link\n");
    assert!(!fs::metadata(node.dir.path().join("link")).unwrap().is_file());
    node.run(&["export", "-o", "no/such/folder"]).fails(1, &["no/such/folder", "No such file"]);
}

#[test]
fn bad_rows_stop_an_import_or_are_left_out() {
    let node = Node::start();
    let long = format!("{{\"id\":\"{}\"}}", "k".repeat(4097));
    let text = ["{\"id\":1}", "{\"id\":", "{}", "{\"id\":\"\"}", &long, "{\"id\":2}"].join("\n");
    node.file("rows.jsonl", &text);
    let done = node.run(&["import", "--key", "id", "rows.jsonl"]);
    assert!(done.text().starts_with("1 row written in "), "{}", done.text());
    done.fails(13, &["row 2 is not a JSON value", "at byte"]);
    let said = node.json(&["import", "--key", "id", "--skip-bad", "rows.jsonl"]).value();
    assert_eq!((&said["taken"], &said["skipped"]), (&json!(2), &json!(4)));
    assert!(said["first_skipped"].as_str().unwrap().starts_with("row 2 is not"), "{said}");
    let said = node.run(&["import", "--key", "nope", "--skip-bad", "rows.jsonl"]).succeeds();
    assert!(said.contains("0 rows written") && said.contains("no field 'nope'"), "{said}");

    for (name, contents) in [("empty.jsonl", ""), ("empty.csv", ""), ("header.csv", "id,n\n")] {
        node.file(name, contents);
        let said = node.run(&["import", "--key", "id", name]).succeeds();
        assert!(said.starts_with("0 rows written"), "{name}: {said}");
    }
    node.file("short.csv", "id,n\n1,2\n3\n");
    node.run(&["import", "--key", "id", "short.csv"]).fails(13, &["row 2", "1 fields"]);
    node.file("twice.csv", "id,n,n\n1,2,3\n");
    node.run(&["import", "--key", "id", "twice.csv"]).fails(13, &["names 'n' twice"]);
    node.file("latin.csv", b"id,n\n1,caf\xe9\n2,x\n");
    node.run(&["import", "--key", "id", "latin.csv"]).fails(13, &["row 1 is not CSV"]);
    let said = node.json(&["import", "--key", "id", "latin.csv", "--skip-bad"]).value();
    assert_eq!((&said["taken"], &said["skipped"]), (&json!(1), &json!(1)));
    node.run(&["import", "--key", "id", "."]).fails(2, &["--format"]);
    node.run(&["import", "--key", "id", "--format", "csv", "."]).fails(1, &["directory"]);
    let long = ["import", "--key", "id", "rows.jsonl", "--row-size-max", "20", "--skip-bad"];
    node.run(&long).fails(13, &["row 5 is longer than 20 bytes", "--row-size-max"]);
}

#[test]
fn an_import_that_fails_stops_and_says_how_far_it_came() {
    let node = Node::start_with(&["--set", "limits.payload_size_max=100"]);
    let row = |at: u32| format!("{{\"id\":\"k\",\"n\":{at}}}\n");
    let over = format!("{{\"id\":\"k\",\"n\":\"{}\"}}\n", "x".repeat(200));
    node.file("rows.jsonl", [row(1), row(2), over, row(4), row(5)].concat());
    let import = ["import", "--key", "id", "rows.jsonl"];
    let done = node.run(&import);
    assert!(done.text().starts_with("2 rows written in "), "{}", done.text());
    done.fails(13, &["1 of 3 rows were not written", "row 3: ", "limits.payload_size_max"]);
    assert_eq!(node.run(&["get", "k", "--raw"]).succeeds(), row(2).trim());
    let done = node.run(&[&import[..], &["--keep-going"]].concat());
    assert!(done.text().starts_with("4 rows written in "), "{}", done.text());
    done.fails(13, &["1 of 5 rows"]);
    assert_eq!(node.run(&["get", "k", "--raw"]).succeeds(), row(5).trim());

    // The file itself is safe, and so are numbers that make no sense.
    let rows = fs::read(node.dir.path().join("rows.jsonl")).unwrap();
    node.run(&[&import[..], &["--receipts", "rows.jsonl"]].concat()).fails(2, &["name another"]);
    assert_eq!(fs::read(node.dir.path().join("rows.jsonl")).unwrap(), rows);
    for flags in [
        ["--rate", "4294967295"],
        ["--rate", "0"],
        ["--concurrency", "0"],
        ["--row-size-max", "0"],
        ["--row-size-max", "4294967295"],
    ] {
        node.run(&[&import[..], &flags].concat()).fails(2, &[flags[0]]);
    }
    let fastest = ["import", "--key", "n", "rows.jsonl", "--rate", "1000000", "--keep-going"];
    node.run(&fastest).fails(13, &["1 of 5 rows"]);
}

#[test]
fn more_rows_than_queues_hold_are_imported_in_order() {
    let node = Node::start();
    let row = |at: u64| format!("{{\"id\":{},\"n\":{at}}}", at % 5);
    let rows = (0..3000).map(row).collect::<Vec<_>>().join("\n");
    let import = ["--json", "import", "--key", "id", "--format", "jsonl", "-d", "interval", "-"];
    let said = node.run_with(&import, rows.as_bytes()).value();
    assert_eq!(said["taken"], json!(3000));
    let events = node.json(&["history", "3"]).values();
    let numbers: Vec<u64> = events
        .iter()
        .map(|event| {
            let row: Value = serde_json::from_str(event["payload"].as_str().unwrap()).unwrap();
            row["n"].as_u64().unwrap()
        })
        .collect();
    assert_eq!(numbers, (0..600).map(|at| at * 5 + 3).collect::<Vec<u64>>());
}

#[test]
fn changes_are_shown_by_node_and_by_key() {
    let node = Node::start();
    for key in ["a", "b", "a"] {
        node.run(&["put", key, "value"]).succeeds();
    }
    let changes = node.json(&["changes"]).values();
    assert_eq!(
        fields(&changes[0]),
        [
            "node",
            "sequence",
            "keyspace",
            "key",
            "partition",
            "provenance",
            "previous",
            "stamp",
            "action",
            "payload",
            "request"
        ]
    );
    let keys: Vec<_> = changes.iter().map(|change| &change["key"]).collect();
    assert_eq!(keys, ["a", "b", "a"]);
    assert_eq!(changes[0]["previous"], Value::Null);
    assert_eq!(changes[2]["previous"], changes[0]["stamp"]);
    let one = node.run(&["changes", "--node", "1", "--prefix", "b"]).succeeds();
    assert!(
        one.starts_with("node 1 #2 ") && one.ends_with("write  put default/b  value\n"),
        "{one}"
    );
    assert_eq!(node.json(&["changes", "--node", "1", "--from", "3"]).values(), changes[2..]);
    assert_eq!(node.run(&["changes", "-n", "2"]).succeeds().lines().count(), 2);
    assert_eq!(node.run(&["changes", "-f", "-n", "3"]).succeeds().lines().count(), 3);
    assert_eq!(node.run(&["changes", "--new"]).succeeds(), "");
    assert_eq!(node.run(&["changes", "--summary"]).succeeds().trim(), "3 by write");
    assert_eq!(node.json(&["changes", "--summary"]).value(), json!({ "write": 3 }));
    let ids = node.run(&["changes", "--ids"]).succeeds();
    assert!(ids.lines().all(|line| line.split('\t').count() == 3), "{ids}");
    node.run(&["changes", "--node", "9"])
        .fails(13, &["the cluster has no node 9", "starling status"]);
    node.run(&["changes", "--from", "3"]).fails(2, &["--node"]);
}

#[test]
fn the_state_of_the_cluster_is_shown() {
    let node = Node::start();
    let text = node.run(&["status"]).succeeds();
    assert!(text.starts_with("cluster starling, epoch 1, 1024 partitions, 1 member\n"), "{text}");
    assert!(text.contains("node 1 at 127.0.0.1:") && text.contains("sees 1 alive"), "{text}");
    let status = node.json(&["status"]).value();
    assert_eq!(fields(&status), ["topology", "nodes"]);
    assert_eq!(status["topology"]["members"][0]["liveness"], json!("alive"));
    assert_eq!(status["nodes"][0]["storage"]["poisoned"], json!(false));
    assert_eq!(node.json(&["status", "--node", "1"]).value()["nodes"][0]["node"], json!(1));
    node.run(&["status", "--node", "9"]).fails(13, &["the cluster has no node 9"]);
    node.run(&["status", "--wait-alive", "1", "--wait-hints"]).succeeds();
    node.run(&["--timeout", "300ms", "status", "--wait-alive", "2"])
        .fails(11, &["waited 300ms", "0 nodes see 2 alive"]);
    node.run(&["--timeout", "300ms", "status", "--wait-dead", "1"]).fails(11, &["dead yet"]);

    let ring = node.json(&["ring"]).value();
    assert_eq!(ring["shares"], json!([{ "node": 1, "partitions": 1024 }]));
    let text = node.run(&["ring"]).succeeds();
    assert!(text.contains("1024 partitions, 1 replica each\n"), "{text}");
    let placed = node.json(&["ring", "key"]).value();
    assert_eq!(placed["home_replicas"], json!([1]));
    assert!(node.run(&["ring", "key"]).succeeds().ends_with(" on node 1\n"));
}

#[test]
fn keyspaces_are_made_and_shown() {
    let node = Node::start();
    let said = node.run(&["keyspace", "create", "orders", "--history-versions", "1"]).succeeds();
    assert_eq!(said, "keyspace orders of 1 replica is there, 1 node has it on disk\n");
    let again = ["keyspace", "create", "orders", "--history-versions", "1", "-r", "1"];
    let made = node.json(&again).value();
    assert_eq!(fields(&made), ["keyspace", "nodes"]);
    let shown = node.json(&["keyspace", "show", "orders"]).value();
    assert_eq!(shown, made["keyspace"]);
    assert_eq!(
        shown,
        json!({
            "name": "orders", "replication": 1, "write_level": "quorum", "read_level": "quorum",
            "durability": "sync", "history_versions_max": 1, "history_age_ms_max": null,
        })
    );
    let list = node.run(&["keyspace", "list"]).succeeds();
    let expected = "default  1 replica, writes quorum (sync), reads quorum, all history\n\
        orders  1 replica, writes quorum (sync), reads quorum, 1 version\n";
    assert_eq!(list, expected);
    assert_eq!(node.json(&["keyspace", "list"]).values().len(), 2);

    node.run(&["keyspace", "create", "orders"]).fails(13, &["other settings"]);
    node.run(&["keyspace", "create", "No Name"]).fails(13, &["1 to 64 of a-z"]);
    node.run(&["keyspace", "create", "wide", "-r", "3"]).fails(13, &["replication", "members"]);
    node.run(&["keyspace", "create", "wide", "-r", "17"]).fails(2, &["1..=16"]);
    node.run(&["keyspace", "create", "level", "--write-level", "two"]).fails(13, &["level"]);
    node.run(&["keyspace", "show", "nowhere"])
        .fails(10, &["there is no keyspace 'nowhere'", "starling keyspace list"]);
    node.run(&["put", "-k", "orders", "k", "v"]).succeeds();
    assert_eq!(node.run(&["get", "-k", "orders", "k"]).succeeds(), "v\n");
    node.run(&["get", "k"]).fails(10, &["no key"]);
}

fn offline(dir: &Path, arguments: &[&str]) -> Done {
    Done::of(Command::new(PROGRAM).args(arguments).current_dir(dir).output().unwrap())
}

#[test]
fn certificates_are_made_once_and_of_one_authority() {
    let dir = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| offline(dir.path(), &[&["cert"], arguments].concat());
    assert_eq!(run(&["ca", "--dir", "ca"]).succeeds(), "ca/ca.pem\nca/ca.key\n");
    run(&["ca", "--dir", "ca"]).fails(5, &["ca/ca.pem exists", "never overwritten"]);
    run(&["node", "--ca", "ca", "--id", "1", "--dir", "one"]).succeeds();
    run(&["node", "--ca", "ca", "--id", "1", "--dir", "one"]).fails(5, &["one/node.pem exists"]);
    let made = offline(
        dir.path(),
        &["--json", "cert", "client", "--ca", "ca", "--name", "me", "--dir", "one"],
    );
    assert_eq!(made.value(), json!({ "made": ["one/ca.pem", "one/client.pem", "one/client.key"] }));
    run(&["client", "--ca", "ca", "--name", "No Name", "--dir", "two"]).fails(5, &["1 to 63 of"]);
    run(&["client", "--ca", "nowhere", "--name", "me", "--dir", "two"])
        .fails(5, &["nowhere/ca.pem is missing"]);
    assert!(!dir.path().join("two").exists(), "nothing is made in vain");

    // Nothing of another authority comes beside what is there.
    run(&["ca", "--dir", "other", "--cluster", "other"]).succeeds();
    fs::create_dir(dir.path().join("three")).unwrap();
    fs::copy(dir.path().join("ca/ca.pem"), dir.path().join("three/ca.pem")).unwrap();
    run(&["node", "--ca", "other", "--id", "3", "--dir", "three"])
        .fails(5, &["three/ca.pem exists"]);
    assert_eq!(fs::read_dir(dir.path().join("three")).unwrap().count(), 1);
}

#[test]
fn completions_and_help_need_no_cluster() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = offline(dir.path(), &["completions", shell]).succeeds();
        assert!(script.contains("keyspace") && script.contains("history"), "{shell}");
    }
    offline(dir.path(), &["completions", "shell"]).fails(2, &["possible values"]);
    let help = offline(dir.path(), &["--help"]).succeeds();
    assert!(help.contains("Exit codes:") && help.contains("scripts/cluster up"), "{help}");
    offline(dir.path(), &["nonsense"]).fails(2, &["unrecognized subcommand"]);
    let version = offline(dir.path(), &["--version"]).succeeds();
    assert_eq!(version, format!("starling {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
}
