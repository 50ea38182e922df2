//! `starling keyspace`: makes and shows keyspaces.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use starling_client::{Client, Durability, KeyspaceSettings, Level};

use super::Failure;
use super::client::{durability_name, level_name, parse_durability, parse_level};
use super::output::{Out, count};

/// Replicas of a key unless said, where there are so many nodes.
const REPLICATION_DEFAULT: u8 = 3;

/// `starling keyspace`.
#[derive(Debug, Args)]
pub struct KeyspaceArgs {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Debug, Subcommand)]
enum Kind {
    /// Make a keyspace. Making it again with the same settings is fine.
    Create(CreateArgs),
    /// List the keyspaces.
    List,
    /// Show one keyspace.
    Show {
        /// Its name.
        name: String,
    },
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// Its name: 1 to 64 of a-z, 0-9, '-', '_' and '.'.
    name: String,
    /// How many nodes keep each key: 1 to 16, at most as many as the cluster has; 3 unless said, or all of a smaller cluster.
    /// More survive more losses and cost more disk.
    #[arg(short, long, value_parser = clap::value_parser!(u8).range(1..=16))]
    replication: Option<u8>,
    /// Level of writes that name none.
    #[arg(long, default_value = "quorum", value_parser = parse_level)]
    write_level: Level,
    /// Level of reads that name none.
    #[arg(long, default_value = "quorum", value_parser = parse_level)]
    read_level: Level,
    /// Durability of writes that name none: sync or interval.
    #[arg(long, default_value = "sync", value_parser = parse_durability)]
    durability: Durability,
    /// Keep at most so many versions of a key; all unless said. The newest always stays. What is dropped is gone for good.
    #[arg(long, value_name = "VERSIONS", value_parser = clap::value_parser!(u32).range(1..))]
    history_versions: Option<u32>,
    /// Keep a version for so long after a newer one replaced it; for ever unless said. What is dropped is gone for good.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    history_age: Option<Duration>,
}

/// Runs the command.
pub(super) async fn run(client: &Client, out: Out, args: KeyspaceArgs) -> Result<(), Failure> {
    match args.kind {
        Kind::Create(args) => create(client, out, args).await,
        Kind::List => {
            for settings in client.keyspaces().await? {
                out.value(&settings_json(&settings), || line(&settings))?;
            }
            Ok(())
        }
        Kind::Show { name } => {
            let all = client.keyspaces().await?;
            match all.iter().find(|settings| settings.name.as_str() == name) {
                Some(settings) => out.value(&settings_json(settings), || line(settings)),
                None => Err(Failure::NoKeyspace(name)),
            }
        }
    }
}

async fn create(client: &Client, out: Out, args: CreateArgs) -> Result<(), Failure> {
    let replication = if let Some(replication) = args.replication {
        replication
    } else {
        let members = client.topology().await?.members.len();
        u8::try_from(members).unwrap_or(u8::MAX).clamp(1, REPLICATION_DEFAULT)
    };
    let age_ms = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    let settings = KeyspaceSettings {
        name: args.name.into(),
        replication,
        write_level: args.write_level,
        read_level: args.read_level,
        durability: args.durability,
        history_versions_max: args.history_versions,
        history_age_ms_max: args.history_age.map(age_ms),
    };
    let nodes = client.create_keyspace(settings.clone()).await?;
    let json = json!({ "keyspace": settings_json(&settings), "nodes": nodes });
    let name = settings.name.as_str();
    out.value(&json, || {
        let replicas = count(settings.replication.into(), "replica");
        let have = if nodes == 1 { "has" } else { "have" };
        let nodes = count(nodes.into(), "node");
        format!("keyspace {name} of {replicas} is there, {nodes} {have} it on disk\n")
    })
}

fn settings_json(settings: &KeyspaceSettings) -> Value {
    json!({
        "name": settings.name.as_str(),
        "replication": settings.replication,
        "write_level": level_name(settings.write_level),
        "read_level": level_name(settings.read_level),
        "durability": durability_name(settings.durability),
        "history_versions_max": settings.history_versions_max,
        "history_age_ms_max": settings.history_age_ms_max,
    })
}

fn line(settings: &KeyspaceSettings) -> String {
    let history = match (settings.history_versions_max, settings.history_age_ms_max) {
        (None, None) => "all history".to_owned(),
        (Some(versions), None) => count(versions.into(), "version"),
        (None, Some(age)) => format!("history of {}", age_text(age)),
        (Some(versions), Some(age)) => {
            format!("{} of {}", count(versions.into(), "version"), age_text(age))
        }
    };
    format!(
        "{}  {}, writes {} ({}), reads {}, {history}\n",
        settings.name.as_str(),
        count(settings.replication.into(), "replica"),
        level_name(settings.write_level),
        durability_name(settings.durability),
        level_name(settings.read_level),
    )
}

fn age_text(ms: u64) -> String {
    humantime::format_duration(Duration::from_millis(ms)).to_string()
}
