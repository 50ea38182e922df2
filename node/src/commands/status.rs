//! `starling status` and `starling ring`: how the cluster is, and where keys are.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use starling_client::wire::{
    DAMAGED_PLACES_MAX, DamageStatus, DamagedPlace, FoundBy, KEY_SIZE_MAX, MemberInfo,
};
use starling_client::{
    Client, ClientError, ErrorKind, HybridTime, Liveness, NodeId, NodeStatus, Topology, epoch_of,
};
use starling_ring::{ReplicationFactor, RoutingTable};

use super::client::ConnectArgs;
use super::output::{Out, count, printable, size, utc};
use super::{Failure, exit};
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
        if self.waits() && statuses.is_empty() {
            return Err("no node says how it is".to_owned());
        }
        let members = |status: &NodeStatus, wanted: Liveness| {
            status.members.iter().filter(|member| member.liveness == wanted).count()
        };
        if let Some(wanted) = self.wait_alive {
            let ready =
                statuses.iter().filter(|status| members(status, Liveness::Alive) >= wanted).count();
            if ready < wanted {
                return Err(format!("{ready} nodes see {wanted} alive"));
            }
        }
        if let Some(wanted) = self.wait_dead
            && let Some(status) =
                statuses.iter().find(|status| members(status, Liveness::Dead) < wanted)
        {
            return Err(format!("node {} does not see {wanted} dead yet", status.node.0));
        }
        match statuses.iter().map(pending_hints).fold(0, u64::saturating_add) {
            pending @ 1.. if self.wait_hints => {
                Err(format!("{pending} hints are not delivered yet"))
            }
            _ => Ok(()),
        }
    }
}

/// What a node holds for others.
fn pending_hints(status: &NodeStatus) -> u64 {
    status.hints.iter().map(|hints| hints.pending).fold(0, u64::saturating_add)
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
            Err(error) if matches!(error.exit_code(), exit::TLS | exit::CHANGE_REQUEST) => {
                return Err(error);
            }
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
        let looked = look(client, &args).await;
        let met = match &looked {
            Err(Failure::Client(error))
                if args.waits() && error.kind() != ErrorKind::ChangeRequest =>
            {
                Err(error.to_string())
            }
            Err(_) => Ok(()),
            Ok((_, statuses)) => args.is_met(statuses),
        };
        match met {
            Ok(()) => {
                let (topology, statuses) = looked?;
                return print(out, &topology, &statuses);
            }
            Err(missing) if Duration::from_micros(clock.mono().0) >= timeout => {
                let timeout = humantime::format_duration(timeout);
                return Err(Failure::Waited(format!("waited {timeout}, and {missing}")));
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// The cluster, its members cut to the one asked for, and how those are that answer.
async fn look(client: &Client, args: &StatusArgs) -> Result<(Topology, Vec<NodeStatus>), Failure> {
    let mut topology = client.topology().await?;
    if let Some(only) = args.node.map(NodeId) {
        topology.members.0.retain(|member| member.node.0 == only);
        if topology.members.is_empty() {
            return Err(ClientError::UnknownNode(only).into());
        }
    }
    let statuses = ask_all(client, &topology).await;
    Ok((topology, statuses))
}

/// Those that answer, by id.
async fn ask_all(client: &Client, topology: &Topology) -> Vec<NodeStatus> {
    let mut asked = Vec::new();
    for member in topology.members.iter() {
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
        "cluster {}, epoch {}, {} partitions, {}\n",
        printable(topology.cluster.as_bytes()),
        topology.epoch,
        topology.partitions,
        count(topology.members.len() as u64, "member"),
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
    let bytes = storage.table_bytes.saturating_add(storage.wal_bytes);
    let mut text = format!(
        "{head}up {}, sees {alive} alive, {}, {} on disk",
        humantime::format_duration(Duration::from_secs(status.uptime_ms / 1000)),
        count(storage.changes_end.saturating_sub(storage.changes_first), "change"),
        size(bytes.saturating_add(storage.change_bytes)),
    );
    let hints = pending_hints(status);
    if hints > 0 {
        text += &format!(", holds {}", count(hints, "hint"));
    }
    if storage.poisoned {
        text += ", TAKES NO WRITES after a failed sync: restart it, and look at its disk";
    }
    text + &damage_text(&status.damage) + "\n"
}

/// What is damaged on a node's disk; nothing if nothing is known.
fn damage_text(damage: &DamageStatus) -> String {
    let more = if damage.places < DAMAGED_PLACES_MAX { "" } else { " or more" };
    let mut text = match damage.places {
        0 => return String::new(),
        places => format!(", DAMAGED in {}{more}", count(places, "place")),
    };
    if let Some(place) = damage.latest.first() {
        let (file, what) = (printable(place.file.as_bytes()), printable(place.what.as_bytes()));
        text += &format!(", the latest {file} at {} ({what})", place.offset);
    }
    text + ": it is not served; stop the node and run `starling storage verify`"
}

fn finder_name(found_by: FoundBy) -> &'static str {
    match found_by {
        FoundBy::Start => "start",
        FoundBy::Request => "request",
        FoundBy::Work => "work",
        FoundBy::Scrub => "scrub",
    }
}

fn damage_json(damage: &DamageStatus) -> Value {
    let place = |place: &DamagedPlace| {
        json!({
            "file": place.file.as_str(),
            "offset": place.offset,
            "what": place.what.as_str(),
            "found_by": finder_name(place.found_by),
        })
    };
    json!({
        "places": damage.places,
        "latest": damage.latest.iter().map(place).collect::<Vec<_>>(),
        "scrub_rounds": damage.scrub_rounds,
        "scrub_damaged": damage.scrub_damaged,
    })
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
        "damage": damage_json(&status.damage),
    })
}

/// `starling ring`.
#[derive(Debug, Args)]
pub struct RingArgs {
    /// Show the home replicas of this key; otherwise the share of every node.
    #[arg(allow_negative_numbers = true)]
    key: Option<String>,
    /// For keyspaces with so many replicas.
    #[arg(short, long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=16))]
    replication: u8,
}

impl RingArgs {
    /// Refuses what is no key.
    pub(super) fn check(&self) -> Result<(), Failure> {
        match self.key.as_ref().map(String::len) {
            None | Some(1..=KEY_SIZE_MAX) => Ok(()),
            Some(bytes) => Err(Failure::Usage(format!(
                "a key has 1 to {KEY_SIZE_MAX} bytes, this has {bytes}"
            ))),
        }
    }
}

/// Runs `ring`.
pub(super) async fn ring(client: &Client, out: Out, args: RingArgs) -> Result<(), Failure> {
    let topology = client.topology().await?;
    let table = routing_table(&topology, args.replication)?;
    // A cluster of fewer nodes keeps a key on each of them.
    let replicas = topology.members.len().min(args.replication.into());
    if let Some(key) = &args.key {
        let (partition, homes) = table.route(key.as_bytes());
        let homes: Vec<u64> = homes.iter().map(|node| node.0).collect();
        let json = json!({ "key": key, "partition": partition.0, "home_replicas": homes });
        return out.value(&json, || {
            let key = printable(key.as_bytes());
            let homes: Vec<String> = homes.iter().map(u64::to_string).collect();
            let nodes = if homes.len() == 1 { "node" } else { "nodes" };
            format!("{key} is in partition {} on {nodes} {}\n", partition.0, homes.join(", "))
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
            "epoch {} ({:016x}), {} partitions, {} each\n",
            topology.epoch,
            topology.epoch_digest,
            topology.partitions,
            count(replicas as u64, "replica"),
        );
        for (node, partitions) in table.loads() {
            text += &format!("  node {node}: {}\n", count(partitions as u64, "partition"));
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
