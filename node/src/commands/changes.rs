//! `starling changes`: what one node, or every node, applied.

use std::collections::BTreeMap;

use clap::Args;
use serde_json::{Map, json};
use starling_client::{Change, ChangesEvent, ChangesFrom, Client, NodeId, Provenance, Stamp};

use super::Failure;
use super::output::{Out, action_name, bytes_json, printable, utc, version_json};

/// `starling changes`.
#[derive(Debug, Args)]
pub struct ChangesArgs {
    /// The changes of this node only. Without it: of every node, as they come, each event once a node that applied it.
    #[arg(long, value_name = "ID")]
    node: Option<u64>,
    /// Stay and show what comes.
    #[arg(short, long)]
    follow: bool,
    /// Only this keyspace.
    #[arg(short, long, value_name = "NAME")]
    keyspace: Option<String>,
    /// Only keys that begin so.
    #[arg(long, default_value = "")]
    prefix: String,
    /// Begin at this sequence of the node's change log.
    #[arg(long, value_name = "SEQUENCE", requires = "node", conflicts_with_all = ["from_stamp", "new"])]
    from: Option<u64>,
    /// Begin at the first change whose event is at or after this stamp.
    #[arg(long, value_name = "STAMP", conflicts_with = "new")]
    from_stamp: Option<Stamp>,
    /// Begin after the newest change, where otherwise the oldest is the first.
    #[arg(long)]
    new: bool,
    /// At most so many changes.
    #[arg(short = 'n', long, value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Only keyspace, key and stamp of each event, parted by tabs: what identifies it everywhere.
    #[arg(long, conflicts_with_all = ["json", "summary"])]
    ids: bool,
    /// Only how many changes came which way.
    #[arg(long, conflicts_with = "follow")]
    summary: bool,
}

/// Runs the command.
pub(super) async fn run(client: &Client, out: Out, args: ChangesArgs) -> Result<(), Failure> {
    let from = match (args.from, args.from_stamp) {
        (Some(sequence), _) => ChangesFrom::Sequence(sequence),
        (None, Some(stamp)) => ChangesFrom::Stamp(stamp.into()),
        (None, None) if args.new => ChangesFrom::Now,
        (None, None) => ChangesFrom::Oldest,
    };
    let mut wanted = client.changes().from(from).follow(args.follow).prefix(args.prefix.clone());
    if let Some(keyspace) = &args.keyspace {
        wanted = wanted.keyspace(keyspace.as_str());
    }
    let mut printer = Printer {
        out,
        left: args.limit.unwrap_or(u64::MAX),
        args: &args,
        summary: BTreeMap::new(),
        lost: Vec::new(),
    };
    if let Some(node) = args.node {
        let mut changes = wanted.node(NodeId(node));
        while let Some(event) = changes.next().await? {
            if !printer.print(event)? {
                break;
            }
        }
    } else {
        let mut changes = wanted.all_nodes();
        while let Some(event) = changes.next().await? {
            if !printer.print(event)? {
                break;
            }
        }
    }
    printer.finish()
}

struct Printer<'a> {
    out: Out,
    left: u64,
    args: &'a ChangesArgs,
    summary: BTreeMap<&'static str, u64>,
    /// Nodes whose changes are not all there.
    lost: Vec<NodeId>,
}

impl Printer<'_> {
    /// `false`: that was the last one wanted.
    fn print(&mut self, event: ChangesEvent) -> Result<bool, Failure> {
        match event {
            ChangesEvent::Batch { node, changes, .. } => {
                for change in changes {
                    self.change(node, &change)?;
                    self.left -= 1;
                    if self.left == 0 {
                        return Ok(false);
                    }
                }
            }
            ChangesEvent::Gap { node, from, to } => self.notice(
                &json!({ "node": node.0, "gap": { "from": from, "to": to } }),
                &format!(
                    "node {node}: retention has dropped the changes {from} to {}",
                    to.saturating_sub(1)
                ),
            )?,
            ChangesEvent::Lost { node, problem } => {
                let json = json!({ "node": node.0, "lost": problem });
                if self.args.follow {
                    let text = "its changes go on when it is back";
                    self.notice(&json, &format!("node {node} is lost, {text}: {problem}"))?;
                } else {
                    self.notice(&json, &format!("node {node} is lost: {problem}"))?;
                    self.lost.push(node);
                }
            }
            ChangesEvent::End { .. } => {}
        }
        Ok(true)
    }

    fn change(&mut self, node: NodeId, change: &Change) -> Result<(), Failure> {
        if self.args.summary {
            *self.summary.entry(provenance_name(change.provenance)).or_default() += 1;
            return Ok(());
        }
        let (keyspace, key, stamp) =
            (&change.keyspace, printable(&change.key), change.version.stamp);
        if self.args.ids {
            return self.out.raw(format!("{keyspace}\t{key}\t{stamp}\n").as_bytes());
        }
        let mut json = Map::new();
        json.insert("node".to_owned(), node.0.into());
        json.insert("sequence".to_owned(), change.sequence.into());
        json.insert("keyspace".to_owned(), keyspace.as_str().into());
        json.insert("key".to_owned(), bytes_json(&change.key));
        json.insert("partition".to_owned(), change.partition.into());
        json.insert("provenance".to_owned(), provenance_name(change.provenance).into());
        let previous = change.previous.map(|stamp| stamp.to_string());
        json.insert("previous".to_owned(), previous.into());
        if let serde_json::Value::Object(version) = version_json(&change.version) {
            json.extend(version);
        }
        self.out.value(&json.into(), || {
            let time = utc(stamp.time.physical_ms());
            let (way, action) =
                (provenance_name(change.provenance), action_name(change.version.action));
            let payload = printable(&change.version.payload);
            format!(
                "node {node} #{}  {time}  {way}  {action} {keyspace}/{key}  {payload}\n",
                change.sequence
            )
        })
    }

    /// What is no change: among them for programs, beside them for people.
    fn notice(&self, json: &serde_json::Value, text: &str) -> Result<(), Failure> {
        if self.out.is_json() {
            return self.out.value(json, String::new);
        }
        self.out.complain(text);
        Ok(())
    }

    fn finish(self) -> Result<(), Failure> {
        if self.args.summary {
            self.out.value(&json!(self.summary), || {
                let lines =
                    self.summary.iter().map(|(way, count)| format!("   {count:>8} by {way}\n"));
                lines.collect()
            })?;
        }
        if self.lost.is_empty() {
            return Ok(());
        }
        let nodes: Vec<String> = self.lost.iter().map(NodeId::to_string).collect();
        let problem = format!(
            "the changes of node {} are not all here: ask again when it is up, or ask the others by --node",
            nodes.join(" and ")
        );
        Err(Failure::Incomplete(problem))
    }
}

/// What a provenance is called.
pub fn provenance_name(provenance: Provenance) -> &'static str {
    match provenance {
        Provenance::Write => "write",
        Provenance::Hint => "hint",
        Provenance::ReadRepair => "read-repair",
        Provenance::AntiEntropy => "anti-entropy",
        Provenance::Transfer => "transfer",
        Provenance::Expiry => "expiry",
    }
}
