//! `starling status` and `starling ring`: how the cluster is, and where keys are.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use starling_client::wire::MemberInfo;
use starling_client::{Client, HybridTime, Liveness, NodeId, NodeStatus, Topology, epoch_of};
use starling_ring::{ReplicationFactor, RoutingTable};

use super::Failure;
use super::client::ConnectArgs;
use super::output::{Out, printable, size, utc};
use crate::io::time::Clock;

/// Between two looks at what is waited for.
const POLL: Duration = Duration::from_millis(100);
/// How long one node may take to say how it is.
const NODE_PATIENCE: Duration = Duration::from_secs(2);

/// `starling status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Only this node.
    #[arg(long, value_name = "ID")]
    node: Option<u64>,
    /// Wait until so many nodes answer and take each other for alive; at most for `--timeout`.
    #[arg(long, value_name = "NODES")]
    wait_alive: Option<usize>,
    /// Wait until every node that answers takes so many for dead; at most for `--timeout`.
    #[arg(long, value_name = "NODES")]
    wait_dead: Option<usize>,
    /// Wait until no node that answers holds hints for another; at most for `--timeout`.
    #[arg(long)]
    wait_hints: bool,
}

impl StatusArgs {
    /// It waits for something, a first node that answers included.
    pub fn waits(&self) -> bool {
        self.wait_alive.is_some() || self.wait_dead.is_some() || self.wait_hints
    }

    fn is_met(&self, statuses: &[NodeStatus]) -> Result<(), String> {
        let count = |status: &NodeStatus, wanted: Liveness| {
            status.members.iter().filter(|member| member.liveness == wanted).count()
        };
        if let Some(wanted) = self.wait_alive {
            let ready =
                statuses.iter().filter(|status| count(status, Liveness::Alive) >= wanted).count();
            if ready < wanted {
                return Err(format!("{ready} nodes see {wanted} alive"));
            }
        }
        if let Some(wanted) = self.wait_dead
            && let Some(status) =
                statuses.iter().find(|status| count(status, Liveness::Dead) < wanted)
        {
            return Err(format!("node {} does not see {wanted} dead yet", status.node.0));
        }
        let hints =
            statuses.iter().flat_map(|status| status.hints.iter()).map(|hints| hints.pending);
        match hints.sum::<u64>() {
            pending @ 1.. if self.wait_hints => {
                Err(format!("{pending} hints are not delivered yet"))
            }
            _ => Ok(()),
        }
    }
}

/// Connects, and goes on trying while no node answers, for at most the timeout.
///
/// # Errors
/// What the last try ended in.
pub(super) async fn connect_patiently(connect: &ConnectArgs) -> Result<Client, Failure> {
    let clock = Clock::start();
    loop {
        match connect.connect().await {
            Ok(client) => return Ok(client),
            Err(error @ Failure::Credentials(_)) => return Err(error),
            Err(error) if Duration::from_micros(clock.mono().0) >= connect.timeout => {
                return Err(error);
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// Runs `status`.
pub(super) async fn status(
    client: &Client,
    out: Out,
    args: StatusArgs,
    timeout: Duration,
) -> Result<(), Failure> {
    let clock = Clock::start();
    loop {
        let topology = client.topology().await?;
        let statuses = ask_all(client, &topology, args.node).await;
        match args.is_met(&statuses) {
            Ok(()) => return print(out, &topology, &statuses),
            Err(missing) if Duration::from_micros(clock.mono().0) >= timeout => {
                let timeout = humantime::format_duration(timeout);
                return Err(Failure::Waited(format!("waited {timeout}, and {missing}")));
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// Those that answer, by id.
async fn ask_all(client: &Client, topology: &Topology, only: Option<u64>) -> Vec<NodeStatus> {
    let wanted = |member: &&MemberInfo| only.is_none_or(|only| member.node.0 == NodeId(only));
    let mut asked = Vec::new();
    for member in topology.members.iter().filter(wanted) {
        let (client, node) = (client.clone(), member.node.0);
        asked.push(tokio::spawn(async move {
            tokio::time::timeout(NODE_PATIENCE, client.status(node)).await
        }));
    }
    let mut statuses = Vec::new();
    for answer in asked {
        if let Ok(Ok(Ok(status))) = answer.await {
            statuses.push(status);
        }
    }
    statuses
}

fn print(out: Out, topology: &Topology, statuses: &[NodeStatus]) -> Result<(), Failure> {
    if out.is_json() {
        let nodes: Vec<Value> = statuses.iter().map(status_json).collect();
        let json = json!({ "topology": topology_json(topology), "nodes": nodes });
        return out.value(&json, String::new);
    }
    let mut text = format!(
        "cluster {}, epoch {}, {} partitions, {} members\n",
        printable(topology.cluster.as_bytes()),
        topology.epoch,
        topology.partitions,
        topology.members.len(),
    );
    for member in topology.members.iter() {
        let status = statuses.iter().find(|status| status.node == member.node);
        text += &member_line(member, status);
    }
    out.raw(text.as_bytes())
}

fn member_line(member: &MemberInfo, status: Option<&NodeStatus>) -> String {
    let address = printable(member.address.as_bytes());
    let zone = match member.zone.as_str() {
        "" => String::new(),
        zone => format!(", zone {}", printable(zone.as_bytes())),
    };
    let head = format!("  node {} at {address}{zone}: ", member.node.0);
    let Some(status) = status else {
        return format!("{head}does not answer ({})\n", liveness_name(member.liveness));
    };
    let alive = status.members.iter().filter(|member| member.liveness == Liveness::Alive).count();
    let storage = &status.storage;
    let hints: u64 = status.hints.iter().map(|hints| hints.pending).sum();
    let mut text = format!(
        "{head}up {}, sees {alive} alive, {} changes, {} on disk",
        humantime::format_duration(Duration::from_secs(status.uptime_ms / 1000)),
        storage.changes_end.saturating_sub(storage.changes_first),
        size(storage.table_bytes + storage.wal_bytes + storage.change_bytes),
    );
    if hints > 0 {
        text += &format!(", holds {hints} hints");
    }
    if storage.poisoned {
        text += ", TAKES NO WRITES after a failed sync: restart it, and look at its disk";
    }
    text + "\n"
}

fn liveness_name(liveness: Liveness) -> &'static str {
    match liveness {
        Liveness::Alive => "alive",
        Liveness::Suspect => "suspect",
        Liveness::Dead => "dead",
        Liveness::Left => "left",
        Liveness::Unknown => "unknown",
    }
}

fn member_json(member: &MemberInfo) -> Value {
    json!({
        "node": member.node.0.0,
        "address": member.address.as_str(),
        "zone": member.zone.as_str(),
        "weight": member.weight,
        "liveness": liveness_name(member.liveness),
    })
}

fn topology_json(topology: &Topology) -> Value {
    let members: Vec<Value> = topology.members.iter().map(member_json).collect();
    json!({
        "cluster": topology.cluster.as_str(),
        "epoch": topology.epoch,
        "epoch_digest": format!("{:016x}", topology.epoch_digest),
        "partitions": topology.partitions,
        "members": members,
    })
}

fn status_json(status: &NodeStatus) -> Value {
    let storage = &status.storage;
    let hint = |hints: &starling_client::wire::PeerHints| json!({ "target": hints.target.0.0, "pending": hints.pending, "bytes": hints.bytes });
    json!({
        "node": status.node.0.0,
        "version": status.version.as_str(),
        "uptime_ms": status.uptime_ms,
        "clock": HybridTime::from_packed(status.clock).map(|time| time.to_string()),
        "wall": utc(status.wall_ms),
        "members": status.members.iter().map(member_json).collect::<Vec<_>>(),
        "storage": {
            "memtable_bytes": storage.memtable_bytes,
            "tables": storage.tables,
            "table_bytes": storage.table_bytes,
            "wal_bytes": storage.wal_bytes,
            "changes_first": storage.changes_first,
            "changes_end": storage.changes_end,
            "change_bytes": storage.change_bytes,
            "poisoned": storage.poisoned,
        },
        "hints": status.hints.iter().map(hint).collect::<Vec<_>>(),
        "writes": status.writes,
        "reads": status.reads,
        "read_repairs": status.read_repairs,
        "hints_delivered": status.hints_delivered,
        "anti_entropy_events": status.anti_entropy_events,
        "overloaded": status.overloaded,
        "in_flight": status.in_flight,
        "subscriptions": status.subscriptions,
    })
}

/// `starling ring`.
#[derive(Debug, Args)]
pub struct RingArgs {
    /// Show the home replicas of this key; otherwise the share of every node.
    key: Option<String>,
    /// For keyspaces with so many replicas.
    #[arg(short, long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=16))]
    replication: u8,
}

/// Runs `ring`.
pub(super) async fn ring(client: &Client, out: Out, args: RingArgs) -> Result<(), Failure> {
    let topology = client.topology().await?;
    let table = routing_table(&topology, args.replication)?;
    if let Some(key) = &args.key {
        let (partition, homes) = table.route(key.as_bytes());
        let homes: Vec<u64> = homes.iter().map(|node| node.0).collect();
        let json = json!({ "key": key, "partition": partition.0, "home_replicas": homes });
        return out.value(&json, || {
            let key = printable(key.as_bytes());
            format!("{key} is in partition {} on the nodes {homes:?}\n", partition.0)
        });
    }
    let shares: Vec<Value> = table
        .loads()
        .map(|(node, partitions)| json!({ "node": node.0, "partitions": partitions }))
        .collect();
    let json =
        json!({ "epoch": topology.epoch, "partitions": topology.partitions, "shares": shares });
    out.value(&json, || {
        let mut text = format!(
            "epoch {} ({:016x}), {} partitions, {} replicas each\n",
            topology.epoch, topology.epoch_digest, topology.partitions, args.replication
        );
        for (node, partitions) in table.loads() {
            text += &format!("  node {node}: {partitions} partitions\n");
        }
        text
    })
}

/// Placement as the nodes compute it.
fn routing_table(topology: &Topology, replication: u8) -> Result<RoutingTable, Failure> {
    let factor = ReplicationFactor::new(replication);
    let factor = factor.map_err(|error| Failure::Usage(error.to_string()))?;
    let Some(epoch) = epoch_of(topology) else {
        let problem =
            "this program places keys differently from the nodes: use the nodes' own version";
        return Err(Failure::Usage(problem.to_owned()));
    };
    Ok(RoutingTable::new(&epoch, factor))
}
