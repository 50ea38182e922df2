//! Starts that fail, stops, kills, and coming back.

use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use quinn::ConnectionError;
use starling_client::codec::Text;
use starling_client::transport::{Credentials, FrameKind, TlsFiles};
use starling_client::wire::{Request, Response};
use starling_client::{Client, ClientConfig, Level};
use starling_clock::NodeId;
use starling_node::io::CloseCode;
use starling_node::io::time::Clock;
use starling_node::tls::{self, Authority};

use crate::support::{
    DEADLINE, Node, Stream, close_code, code, command, frame, free_ports, header, write,
};

fn fails(output: &Output, exit_code: i32, text: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit_code), "{said}");
    assert!(said.contains(text), "{said:?} should say {text:?}");
    assert!(output.stdout.is_empty());
}

#[test]
fn each_reason_not_to_start_has_its_text_and_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(&dir.path().join("a"), &["--id", "1"]);
    let address = node.address.to_string();
    let run = |name: &str, flags: &[&str]| command(&dir.path().join(name), flags).output().unwrap();

    fails(&run("b", &["--listen", &address]), 4, "in use by another process");
    fails(&run("b", &["--listen", "192.0.2.1:0"]), 4, "cannot listen on 192.0.2.1:0");
    fails(&run("a", &["--listen", "127.0.0.1:0"]), 3, "in use by another process");
    fails(&run("b", &["--set", "storage.memtable=1"]), 2, "unknown field");
    fails(&run("b", &["--set", "nonsense"]), 2, "--set nonsense");
    fails(&run("b", &["--member", "1@127.0.0.1:1"]), 2, "--id");
    fails(&run("b", &["--listen", "localhost"]), 2, "--listen");
    fails(&run("b", &["--config", "/nowhere.toml"]), 2, "/nowhere.toml");
    let file = dir.path().join("starling.toml");
    fs::write(&file, "[storage]\nmemtable = 1\n").unwrap();
    let file = file.to_str().unwrap();
    fails(&run("b", &["--config", file]), 2, "unknown field");
    fails(&run("b", &["--config", file]), 2, "memtable");
    fails(&run("b", &["--tls-dir", "/nowhere"]), 5, "/nowhere/ca.pem is missing");
    drop(node);

    fails(&run("a", &["--id", "2"]), 3, "belongs to node 1");
    fails(&run("a", &["--cluster", "other"]), 3, "belongs to cluster \"starling\"");
    fails(&run("a", &["--set", "cluster.partitions=64"]), 3, "1024 partitions");
    let tls_dir = dir.path().join("a/tls");
    let other = ["--id", "9", "--tls-dir", tls_dir.to_str().unwrap()];
    fails(&run("c", &other), 5, "not the certificate of node 9");

    // Another node's storage under this node's name, and storage of a newer release.
    let mut moved = Node::start(&dir.path().join("d"), &["--id", "4"]);
    assert_eq!(moved.terminate(), Some(0));
    drop(moved);
    let storage_identity = |name: &str| dir.path().join(name).join("storage/identity");
    let own = fs::read(storage_identity("a")).unwrap();
    fs::copy(storage_identity("d"), storage_identity("a")).unwrap();
    fails(&run("a", &["--listen", "127.0.0.1:0"]), 3, "belongs to node 4");
    fs::write(storage_identity("a"), own).unwrap();

    let identity = dir.path().join("a/identity.toml");
    let text = fs::read_to_string(&identity).unwrap();
    fs::write(&identity, text.replace("format = 1", "format = 2")).unwrap();
    fails(&run("a", &[]), 3, "run the newer release");
    fs::write(&identity, "nonsense").unwrap();
    fails(&run("a", &[]), 3, "is damaged");
}

#[test]
fn settings_are_printed_as_they_are_in_effect() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("starling.toml");
    fs::write(&file, "[log]\nlevel = \"debug\"\n[cluster]\nname = \"file\"\n").unwrap();
    let output = command(dir.path(), &["--print-config", "--cluster", "flag"])
        .arg("--config")
        .arg(&file)
        .env("STARLING_LOG__FORMAT", "json")
        .output()
        .unwrap();
    assert!(output.status.success());
    let printed: toml::Table = String::from_utf8(output.stdout).unwrap().parse().unwrap();
    assert_eq!(printed["log"]["level"].as_str(), Some("debug"));
    assert_eq!(printed["log"]["format"].as_str(), Some("json"));
    assert_eq!(printed["cluster"]["name"].as_str(), Some("flag"));
    assert!(!dir.path().join("identity.toml").exists(), "printing starts nothing");
}

#[tokio::test]
async fn a_graceful_stop_answers_says_goodbye_and_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path(), &[]);
    let connection = node.client().await;
    let mut stream = Stream::open(&connection).await;
    assert!(matches!(stream.ask(1, write("kept")).await, Response::Written { .. }));
    let pid = fs::read_to_string(dir.path().join("pid")).unwrap();
    assert_eq!(pid.trim(), node.child.id().to_string());
    let address = fs::read_to_string(dir.path().join("address")).unwrap();
    assert_eq!(address.trim(), node.address.to_string());

    assert_eq!(node.terminate(), Some(0));
    let closed = close_code(&connection).await;
    assert!(closed.is_none_or(|closed| closed == code(CloseCode::Stopping)), "{closed:?}");
    assert!(!dir.path().join("pid").exists());
    assert!(!dir.path().join("address").exists());

    let node = Node::start(dir.path(), &[]);
    let connection = node.client().await;
    let mut stream = Stream::open(&connection).await;
    let key = b"kept".to_vec().into();
    let get = Request::Get { keyspace: Text::from("default"), key, at: None, level: None };
    match stream.ask(2, get).await {
        Response::Value { version: Some(version) } => assert_eq!(version.payload[..], [7; 10]),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn after_kill_and_restart_old_connections_hear_of_it_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    let address = node.address.to_string();
    let connection = node.client().await;
    let mut stream = Stream::open(&connection).await;
    assert!(matches!(stream.ask(1, write("kept")).await, Response::Written { .. }));
    // Dropping kills it, without a goodbye.
    drop(node);
    let node = Node::start(dir.path(), &["--listen", &address]);
    let question = frame(FrameKind::Request, 2, &(header(2), Request::Topology));
    stream.send(&question).await;
    // The idle timeout of this connection is 10 s.
    let closed = tokio::time::timeout(Duration::from_secs(4), connection.closed()).await;
    assert!(matches!(closed, Ok(ConnectionError::Reset)), "{closed:?}");
    assert!(node.is_well().await);
}

/// A cluster's nodes share an authority, which is on none of them.
fn cluster(dir: &Path, ports: &[u16]) -> Vec<Vec<String>> {
    let authority = Authority::create(&dir.join("ca"), "starling", 1_767_225_600).unwrap();
    let members = |flags: &mut Vec<String>| {
        for (id, port) in (1..).zip(ports) {
            flags.extend(["--member".to_owned(), format!("{id}@127.0.0.1:{port}")]);
        }
    };
    let flags = (1_u64..).zip(ports).map(|(id, port)| {
        let tls_dir = dir.join(format!("tls-{id}"));
        let issued = authority.issue_node(NodeId(id), 1_767_225_600).unwrap();
        tls::write_authority_cert(&tls_dir, &authority).unwrap();
        tls::write_pair(&tls_dir, (tls::NODE_CERT, tls::NODE_KEY), &issued).unwrap();
        let client = authority.issue_client("test", 1_767_225_600).unwrap();
        tls::write_pair(&tls_dir, (tls::CLIENT_CERT, tls::CLIENT_KEY), &client).unwrap();
        let mut flags = vec!["--id".to_owned(), id.to_string()];
        flags.extend(["--listen".to_owned(), format!("127.0.0.1:{port}")]);
        flags.extend(["--tls-dir".to_owned(), tls_dir.display().to_string()]);
        flags.extend(["--set".to_owned(), "gossip.probe_interval_ms=200".to_owned()]);
        flags.extend(["--set".to_owned(), "gossip.probe_timeout_ms=100".to_owned()]);
        members(&mut flags);
        flags
    });
    flags.collect()
}

/// Writes at level ALL until it succeeds.
async fn write_to_all(client: &Client, deadline: Duration) {
    let keyspace = client.keyspace("default");
    let clock = Clock::start();
    let end = clock.now().mono.plus_ms(u64::try_from(deadline.as_millis()).unwrap());
    let mut last = None;
    while !clock.until(end).is_zero() {
        let write = keyspace.put("key", "value").level(Level::All);
        match write.timeout(Duration::from_secs(1)).send().await {
            Ok(_) => return,
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not all nodes took a write in {deadline:?}: {last:?}");
}

#[tokio::test]
async fn peers_find_each_other_again_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let ports = free_ports::<3>();
    let flags = cluster(dir.path(), &ports);
    let start = |at: usize| {
        let flags: Vec<&str> = flags[at].iter().map(String::as_str).collect();
        Node::start(&dir.path().join(at.to_string()), &flags)
    };
    let mut nodes: Vec<Node> = (0..3).map(start).collect();
    let tls_dir = dir.path().join("tls-1");
    let credentials = Credentials::from_files(&TlsFiles::of_client(&tls_dir)).unwrap();
    let client = Client::connect(ClientConfig::new([nodes[0].address.to_string()], credentials));
    let client = client.await.unwrap();
    write_to_all(&client, DEADLINE).await;
    for at in [0, 2] {
        // The old one is killed before the new one starts.
        drop(nodes.remove(at));
        nodes.insert(at, start(at));
        let clock = Clock::start();
        write_to_all(&client, Duration::from_secs(20)).await;
        let took_ms = clock.mono().0 / 1000;
        eprintln!("all nodes took a write {took_ms} ms after node {} was back", at + 1);
    }
    for node in &mut nodes {
        assert_eq!(node.terminate(), Some(0));
    }
}
