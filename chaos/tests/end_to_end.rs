//! Real processes over real QUIC: import, `kill -9` in the middle, nothing acked is lost, everybody ends with the same events.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;
use starling_chaos::processes::{PATIENCE, ProcessCluster, wait_for};
use starling_client::{
    Action, Change, ChangesEvent, ChangesFrom, Client, ClientConfig, Credentials, Level, NodeId,
    Provenance, Stamp, TlsFiles,
};

/// Failures are noticed soon, and replicas compare what they hold every two seconds.
const SETTINGS: &str = "\
[gossip]
probe_interval_ms = 200
probe_timeout_ms = 100
push_pull_interval_ms = 1000
reconnect_interval_ms = 500

[limits]
anti_entropy_interval_ms = 2000
";
/// Rows of `earthquakes.jsonl`.
const ROWS: usize = 1707;
/// Changes on node 1 after which node 2 is killed: well inside the two imports.
const CHANGES_BEFORE_THE_KILL: u64 = 1000;

/// What identifies an event everywhere.
type EventId = (String, Vec<u8>, Stamp);

async fn client(cluster: &ProcessCluster) -> Client {
    let credentials = Credentials::from_files(&TlsFiles::of_client(&cluster.tls_dir())).unwrap();
    let mut config =
        ClientConfig::new(cluster.addresses().iter().map(ToString::to_string), credentials);
    config.request_timeout = Duration::from_secs(30);
    Client::connect(config).await.unwrap()
}

fn status(cluster: &ProcessCluster, wanted: &[&str]) {
    let output =
        cluster.command().args(["status", "--timeout", "60s"]).args(wanted).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn data() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../scripts/data/earthquakes.jsonl")
}

fn start_import(cluster: &ProcessCluster, keyspace: &str, key: &str) -> Child {
    let receipts = cluster.path().join(format!("{keyspace}.receipts"));
    let mut command = cluster.command();
    command.args([
        "--timeout",
        "60s",
        "import",
        "--keyspace",
        keyspace,
        "--key",
        key,
        "--level",
        "quorum",
    ]);
    // Slow enough that the kill is in the middle on any machine.
    command.args(["--rate", "600", "--receipts"]).arg(receipts).arg(data());
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What the cluster said it took: by key the stamps, in the order of the file.
fn receipts(cluster: &ProcessCluster, keyspace: &str) -> BTreeMap<String, Vec<(u64, Stamp)>> {
    let path = cluster.path().join(format!("{keyspace}.receipts"));
    let mut taken: BTreeMap<String, Vec<(u64, Stamp)>> = BTreeMap::new();
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let stamp = line["stamp"].as_str().unwrap().parse().unwrap();
        let of_key = taken.entry(line["key"].as_str().unwrap().to_owned()).or_default();
        of_key.push((line["row"].as_u64().unwrap(), stamp));
    }
    for rows in taken.values_mut() {
        rows.sort_unstable();
    }
    taken
}

async fn changes_of(client: &Client, node: u64) -> Vec<Change> {
    let mut stream = client
        .changes()
        .from(ChangesFrom::Oldest)
        .follow(false)
        .patience(PATIENCE)
        .node(NodeId(node));
    let mut all = Vec::new();
    while let Some(event) = stream.next().await.unwrap() {
        match event {
            ChangesEvent::Batch { changes, .. } => all.extend(changes),
            ChangesEvent::End { .. } => {}
            ChangesEvent::Gap { .. } | ChangesEvent::Lost { .. } => panic!("{event:?}"),
        }
    }
    all
}

/// The events of a node's change log; each is there exactly once, and sequences only grow.
fn exactly_once(node: u64, changes: &[Change]) -> BTreeSet<EventId> {
    let mut ids = BTreeSet::new();
    let mut last = None;
    for change in changes {
        assert!(last < Some(change.sequence), "node {node}: sequence {} again", change.sequence);
        last = Some(change.sequence);
        let id = (change.keyspace.clone(), change.key.to_vec(), change.version.stamp);
        assert!(ids.insert(id), "node {node} has {change:?} twice");
    }
    ids
}

fn wait_for_import(mut import: Child) {
    let status = wait_for("the import to end", || import.try_wait().unwrap()).unwrap();
    let output = import.wait_with_output().unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn nothing_acked_is_lost_when_a_node_is_killed_in_the_middle_of_an_import() {
    let mut cluster = ProcessCluster::prepare(3, SETTINGS).unwrap();
    cluster.start_all().unwrap();
    status(&cluster, &["--wait-alive", "3"]);
    for keyspace in ["by-id", "by-net"] {
        let made = cluster.command().args(["keyspace", "create", keyspace]).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    let client = client(&cluster).await;

    // Two imports at the same time; node 2 dies in the middle of both.
    let by_id = start_import(&cluster, "by-id", "id");
    let by_net = start_import(&cluster, "by-net", "net");
    let mut watched =
        client.changes().from(ChangesFrom::Oldest).follow(true).patience(PATIENCE).node(NodeId(1));
    while watched.position().unwrap_or(0) < CHANGES_BEFORE_THE_KILL {
        assert!(watched.next().await.unwrap().is_some());
    }
    cluster.kill(1).unwrap();
    drop(watched);
    wait_for_import(by_id);
    wait_for_import(by_net);

    // No acked event is lost: all rows were acked, and all can be read from the two nodes that live.
    let (ids, nets) = (receipts(&cluster, "by-id"), receipts(&cluster, "by-net"));
    assert_eq!((ids.len(), nets.len()), (ROWS, 12));
    check_reads(&client, &ids, &nets).await;

    // Each event that a live node applied is in its change log exactly once, and each acked event is in one at least.
    let mut live = BTreeSet::new();
    for node in [1, 3] {
        live.extend(exactly_once(node, &changes_of(&client, node).await));
    }
    let acked: BTreeSet<EventId> = acked(&ids, "by-id").chain(acked(&nets, "by-net")).collect();
    assert_eq!(acked.len(), 2 * ROWS);
    assert!(acked.is_subset(&live));

    // It comes back, gets what it missed, and all three hold the same events.
    cluster.start(1).unwrap();
    status(&cluster, &["--wait-alive", "3", "--wait-hints"]);
    let returned = until_equal(&client).await;
    let hints = returned.iter().filter(|change| change.provenance == Provenance::Hint).count();
    assert!(hints > 0, "what node 2 missed came as hints");
    check_reads(&client, &ids, &nets).await;
    let every: BTreeSet<EventId> = exactly_once(2, &returned);
    assert!(acked.is_subset(&every));

    client.close().await;
    for index in 0..3 {
        cluster.stop(index).unwrap();
    }
}

fn acked<'a>(
    receipts: &'a BTreeMap<String, Vec<(u64, Stamp)>>,
    keyspace: &'a str,
) -> impl Iterator<Item = EventId> + 'a {
    receipts.iter().flat_map(move |(key, rows)| {
        rows.iter().map(move |(_, stamp)| (keyspace.to_owned(), key.clone().into_bytes(), *stamp))
    })
}

/// Every earthquake has its row, and the history of every network is its rows, in stamp order and in the file's.
async fn check_reads(
    client: &Client,
    ids: &BTreeMap<String, Vec<(u64, Stamp)>>,
    nets: &BTreeMap<String, Vec<(u64, Stamp)>>,
) {
    let text = std::fs::read_to_string(data()).unwrap();
    let rows: Vec<&str> = text.lines().collect();
    let row = |number: u64| rows[usize::try_from(number).unwrap() - 1].as_bytes();
    let by_id = client.keyspace("by-id");
    for (key, taken) in ids {
        let [(number, stamp)] = taken[..] else { panic!("{key} is in the file once") };
        let version = by_id.get(key.clone()).level(Level::Quorum).await.unwrap().unwrap();
        assert_eq!((version.stamp, &version.payload[..]), (stamp, row(number)), "{key}");
    }
    let by_net = client.keyspace("by-net");
    for (key, taken) in nets {
        let history = by_net
            .history(key.clone())
            .level(Level::Quorum)
            .page_size(100)
            .collect()
            .await
            .unwrap();
        assert!(history.is_sorted_by(|a, b| a.stamp < b.stamp), "{key}");
        let read: Vec<(Stamp, &[u8])> =
            history.iter().map(|version| (version.stamp, &version.payload[..])).collect();
        let wanted: Vec<(Stamp, &[u8])> =
            taken.iter().map(|(number, stamp)| (*stamp, row(*number))).collect();
        assert_eq!(read, wanted, "{key}");
        assert!(history.iter().all(|version| version.action == Action::Put));
    }
}

/// Waits until the three nodes hold the same events, and gives node 2's changes.
async fn until_equal(client: &Client) -> Vec<Change> {
    let mut differ = String::new();
    for _ in 0..PATIENCE.as_millis() / 500 {
        let returned = changes_of(client, 2).await;
        let two = exactly_once(2, &returned);
        let one = exactly_once(1, &changes_of(client, 1).await);
        let three = exactly_once(3, &changes_of(client, 3).await);
        if one == two && two == three {
            return returned;
        }
        differ = format!("{} {} {} events", one.len(), two.len(), three.len());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    panic!("the nodes still differ after {PATIENCE:?}: {differ}");
}
