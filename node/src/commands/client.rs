//! The commands that talk to a cluster: how they connect, and what they share.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use starling_client::{Client, ClientConfig, Credentials, Durability, Keyspace, Level, TlsFiles};

use super::output::Out;
use super::{Failure, changes, data, export, import, keyspace, status};

/// How to reach the cluster.
#[derive(Clone, Debug, Args)]
pub struct ConnectArgs {
    /// Addresses of any nodes, parted by commas: one that answers is enough, it tells of the others.
    #[arg(
        long,
        global = true,
        env = "STARLING_CONNECT",
        value_delimiter = ',',
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:7400",
        value_parser = parse_address
    )]
    pub connect: Vec<String>,
    /// Directory of ca.pem, client.pem and client.key. A node that was started without certificates made one
    /// under its data directory.
    #[arg(
        long,
        global = true,
        env = "STARLING_TLS",
        value_name = "DIR",
        default_value = "starling-data/tls"
    )]
    pub tls: PathBuf,
    /// How long to wait for the cluster, all attempts of one request together. A write that is not confirmed within it may have
    /// happened (exit code 12).
    #[arg(long, global = true, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
    /// Print JSON, one value a line, for programs.
    #[arg(long, global = true)]
    pub json: bool,
}

impl ConnectArgs {
    /// Connects.
    ///
    /// # Errors
    /// [`Failure::Credentials`] without certificates, [`Failure::Client`] if no node answers.
    pub async fn connect(&self) -> Result<Client, Failure> {
        let files = TlsFiles::of_client(&self.tls);
        let credentials = Credentials::from_files(&files).map_err(Failure::Credentials)?;
        let mut config = ClientConfig::new(self.connect.iter().cloned(), credentials);
        config.request_timeout = self.timeout;
        if !self.timeout.is_zero() {
            config.connect_timeout = config.connect_timeout.min(self.timeout);
        }
        Ok(Client::connect(config).await?)
    }
}

/// Which keyspace.
#[derive(Clone, Debug, Args)]
pub struct KeyspaceArg {
    /// The keyspace; `default` always exists, `starling keyspace create` makes others.
    #[arg(short, long, default_value = "default", value_name = "NAME")]
    pub keyspace: String,
}

impl KeyspaceArg {
    /// The keyspace of `client`.
    pub fn of(&self, client: &Client) -> Keyspace {
        client.keyspace(self.keyspace.as_str())
    }
}

/// How a read is done.
#[derive(Clone, Debug, Args)]
pub struct ReadArgs {
    /// How many home replicas must answer: one, two, quorum, all, or a number; the keyspace's own unless said. A lower one bears more
    /// lost nodes and may miss the newest event.
    #[arg(short, long, value_parser = parse_level)]
    pub level: Option<Level>,
}

/// How a write is done.
#[derive(Clone, Debug, Args)]
pub struct WriteArgs {
    /// How many home replicas must have it: one, two, quorum, all, a number, or any (a hint counts); the
    /// keyspace's own unless said. A lower one bears more lost nodes, and a read may miss the event for a while.
    #[arg(short, long, value_parser = parse_level)]
    pub level: Option<Level>,
    /// When a replica counts: sync (on disk) or interval (on disk within the node's interval: faster, and a crash of all
    /// replicas at once loses what is younger); the keyspace's own unless said.
    #[arg(short, long, value_parser = parse_durability)]
    pub durability: Option<Durability>,
}

/// Commands that talk to a cluster.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Write a value.
    Put(data::PutArgs),
    /// Read the newest value of a key.
    Get(data::GetArgs),
    /// Delete a key. Its history stays.
    #[command(visible_alias = "delete")]
    Del(data::DelArgs),
    /// Show the events of a key, in stamp order.
    History(data::HistoryArgs),
    /// List live keys and their values, in the order of partitions and keys.
    Scan(data::ScanArgs),
    /// Write the rows of a file, one event a row.
    Import(import::ImportArgs),
    /// Write the live keys of a keyspace to a file.
    Export(export::ExportArgs),
    /// Show what nodes applied, as they apply it: the change stream.
    Changes(changes::ChangesArgs),
    /// Show how the cluster is.
    Status(status::StatusArgs),
    /// Show how keys are placed.
    Ring(status::RingArgs),
    /// Make and show keyspaces.
    Keyspace(keyspace::KeyspaceArgs),
}

/// Connects and runs a command.
///
/// # Errors
/// [`Failure`], with its exit code.
pub async fn run(connect: &ConnectArgs, mut command: ClientCommand) -> Result<(), Failure> {
    let out = Out::new(connect.json);
    // What is wrong without a cluster is told without one, and standard input may take longer than a connection lasts.
    match &mut command {
        ClientCommand::Put(args) => args.read_value(out)?,
        ClientCommand::Import(args) => args.check()?,
        ClientCommand::Ring(args) => args.check()?,
        _ => {}
    }
    let client = match &command {
        ClientCommand::Status(args) if args.waits() => status::connect_patiently(connect).await?,
        _ => connect.connect().await?,
    };
    let done = match command {
        ClientCommand::Put(args) => data::put(&client, out, args).await,
        ClientCommand::Get(args) => data::get(&client, out, args).await,
        ClientCommand::Del(args) => data::del(&client, out, args).await,
        ClientCommand::History(args) => data::history(&client, out, args).await,
        ClientCommand::Scan(args) => data::scan(&client, out, args).await,
        ClientCommand::Import(args) => import::run(&client, out, args).await,
        ClientCommand::Export(args) => export::run(&client, out, args).await,
        ClientCommand::Changes(args) => changes::run(&client, out, args).await,
        ClientCommand::Status(args) => status::status(&client, out, args, connect.timeout).await,
        ClientCommand::Ring(args) => status::ring(&client, out, args).await,
        ClientCommand::Keyspace(args) => keyspace::run(&client, out, args).await,
    };
    client.close().await;
    done
}

/// An address as people write it. Whether there is such a host shows later.
fn parse_address(text: &str) -> Result<String, String> {
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
    match port.map(str::parse::<u16>) {
        Some(Ok(_)) => Ok(text.to_owned()),
        _ => Err("an address is HOST:PORT, for example 127.0.0.1:7400".to_owned()),
    }
}

/// A level as people write it.
///
/// # Errors
/// A text that says what may be written.
pub fn parse_level(text: &str) -> Result<Level, String> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "one" => Level::One,
        "two" => Level::Two,
        "quorum" => Level::Quorum,
        "all" => Level::All,
        "any" => Level::Any,
        number => match number.parse() {
            Ok(count @ 1..) => Level::Count(count),
            _ => return Err("a level is one, two, quorum, all, any, or a number from 1".to_owned()),
        },
    })
}

/// How a level is written.
pub fn level_name(level: Level) -> String {
    match level {
        Level::One => "one".to_owned(),
        Level::Two => "two".to_owned(),
        Level::Quorum => "quorum".to_owned(),
        Level::All => "all".to_owned(),
        Level::Any => "any".to_owned(),
        Level::Count(count) => count.to_string(),
    }
}

/// A durability as people write it.
///
/// # Errors
/// A text that says what may be written.
pub fn parse_durability(text: &str) -> Result<Durability, String> {
    match text.to_ascii_lowercase().as_str() {
        "sync" => Ok(Durability::Sync),
        "interval" => Ok(Durability::Interval),
        _ => Err("a durability is sync or interval".to_owned()),
    }
}

/// How a durability is written.
pub fn durability_name(durability: Durability) -> &'static str {
    match durability {
        Durability::Sync => "sync",
        Durability::Interval => "interval",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for text in ["127.0.0.1:7400", "localhost:1", "[::1]:7400"] {
            assert_eq!(parse_address(text).as_deref(), Ok(text));
        }
        for text in ["", "host", ":7400", "host:", "host:x", "host:70000"] {
            assert!(parse_address(text).unwrap_err().contains("HOST:PORT"), "{text}");
        }
    }

    #[test]
    fn levels_are_read_as_they_are_written() {
        for text in ["one", "two", "quorum", "all", "any", "3"] {
            assert_eq!(level_name(parse_level(text).unwrap()), text);
        }
        assert_eq!(parse_level("QUORUM"), Ok(Level::Quorum));
        for text in ["", "0", "256", "-1", "most"] {
            assert!(parse_level(text).unwrap_err().contains("quorum"), "{text}");
        }
        assert_eq!(parse_durability("sync").map(durability_name), Ok("sync"));
        assert!(parse_durability("fsync").is_err());
    }
}
