//! The load generator: clients that write and read, closed loop (each waits for its answer) or open loop (a rate that does not
//! wait, so that a slow answer cannot hide the requests that would have come behind it).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use starling_client::{
    Client, ClientConfig, ClientError, Credentials, Durability, ErrorCode, Keyspace,
    KeyspaceSettings, Level, TlsFiles,
};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::report::{Measured, Report};
use crate::workload::{KeyChoice, Mix, Operation, Workload, WorkloadConfig, key_bytes};

/// Requests that an open loop lets wait before it counts one as an error: the servers cannot keep the rate.
const OPEN_LOOP_WAITING_MAX: usize = 20_000;

/// `starling-bench load`.
#[derive(Clone, Debug, Args)]
pub(crate) struct LoadArgs {
    /// Addresses of nodes, parted by commas.
    #[arg(long, value_delimiter = ',', env = "STARLING_CONNECT")]
    connect: Vec<String>,
    /// Directory of ca.pem, client.pem and client.key.
    #[arg(long, env = "STARLING_TLS")]
    tls: PathBuf,
    /// What is asked.
    #[arg(long, value_enum, default_value = "put")]
    workload: Mix,
    /// Which keys.
    #[arg(long, value_enum, default_value = "uniform")]
    keys: KeyChoice,
    /// How many different keys.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    key_count: u64,
    /// Bytes a key.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=4096))]
    key_size: u16,
    /// Bytes a value.
    #[arg(long, default_value_t = 256)]
    value_size: u32,
    /// Requests in flight (closed loop), each client one.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    clients: u16,
    /// Connections to each node that the clients share.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// Requests a second (open loop); without it a closed loop.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Level of writes and reads: one, quorum or all.
    #[arg(long, default_value = "quorum", value_parser = parse_level)]
    level: Level,
    /// sync or interval.
    #[arg(long, default_value = "sync", value_parser = parse_durability)]
    durability: Durability,
    /// How long to measure, in seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// How long to run before measuring, in seconds.
    #[arg(long, default_value_t = 2)]
    warm_up: u64,
    /// Seed of keys and values.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Server processes whose processor time is to be told, parted by commas.
    #[arg(long, value_delimiter = ',')]
    pid: Vec<u32>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

fn parse_level(text: &str) -> Result<Level, String> {
    match text {
        "one" => Ok(Level::One),
        "quorum" => Ok(Level::Quorum),
        "all" => Ok(Level::All),
        _ => Err("a level is one, quorum or all".to_owned()),
    }
}

fn parse_durability(text: &str) -> Result<Durability, String> {
    match text {
        "sync" => Ok(Durability::Sync),
        "interval" => Ok(Durability::Interval),
        _ => Err("a durability is sync or interval".to_owned()),
    }
}

/// Why there is no measurement.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] starling_client::TlsError),
    /// The cluster.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Runs the load and measures it.
pub(crate) async fn run(args: &LoadArgs) -> Result<Report, LoadError> {
    let mut clients = Vec::new();
    for _ in 0..args.connections {
        let credentials = Credentials::from_files(&TlsFiles::of_client(&args.tls))?;
        let mut config = ClientConfig::new(args.connect.iter().cloned(), credentials);
        config.in_flight_max = OPEN_LOOP_WAITING_MAX;
        clients.push(Client::connect(config).await?);
    }
    let name = format!("bench-{}", durability_name(args.durability));
    make_keyspace(&clients[0], &name, args.durability).await?;
    let keyspaces: Vec<Keyspace> =
        clients.iter().map(|client| client.keyspace(name.as_str())).collect();
    let load = Arc::new(Load { args: args.clone(), keyspaces });
    if args.workload != Mix::Put {
        load.fill().await?;
    }
    load.run(Duration::from_secs(args.warm_up)).await;
    let before = cpu_us(&args.pid);
    let own_before = cpu_us(&[std::process::id()]);
    let began = now();
    let (puts, gets) = load.run(Duration::from_secs(args.seconds)).await;
    let elapsed = began.elapsed();
    let server = cpu_us(&args.pid).saturating_sub(before);
    let report = Report {
        title: load.title(),
        elapsed,
        puts,
        gets,
        server_cpu_us: (!args.pid.is_empty()).then_some(server),
        own_cpu_us: cpu_us(&[std::process::id()]).saturating_sub(own_before),
    };
    for client in clients {
        client.close().await;
    }
    Ok(report)
}

async fn make_keyspace(
    client: &Client,
    name: &str,
    durability: Durability,
) -> Result<(), LoadError> {
    let members = client.nodes().len();
    let settings = KeyspaceSettings {
        name: name.into(),
        replication: u8::try_from(members.min(3)).unwrap_or(3),
        write_level: Level::Quorum,
        read_level: Level::Quorum,
        durability,
        history_versions_max: Some(1),
        history_age_ms_max: None,
    };
    match client.create_keyspace(settings).await {
        Err(ClientError::Refused(error)) if error.code == ErrorCode::KeyspaceExists => Ok(()),
        other => other.map(drop).map_err(LoadError::from),
    }
}

fn durability_name(durability: Durability) -> &'static str {
    match durability {
        Durability::Sync => "sync",
        Durability::Interval => "interval",
    }
}

struct Load {
    args: LoadArgs,
    keyspaces: Vec<Keyspace>,
}

type Both = (Measured, Measured);

impl Load {
    fn title(&self) -> String {
        let args = &self.args;
        let shape = match args.rate {
            Some(rate) => format!("open loop at {rate}/s"),
            None => format!("{} clients", args.clients),
        };
        format!(
            "{:?} {:?}, {shape}, {} connections a node, level {:?}, durability {:?}, {} keys of {} B, values of {} B",
            args.workload,
            args.keys,
            args.connections,
            args.level,
            args.durability,
            args.key_count,
            args.key_size,
            args.value_size
        )
    }

    fn workload(&self, client: u64) -> Workload {
        let args = &self.args;
        let config = WorkloadConfig {
            choice: args.keys,
            mix: args.workload,
            keys: args.key_count,
            key_size: usize::from(args.key_size),
            value_size: args.value_size as usize,
            clients: u64::from(args.clients),
            seed: args.seed,
        };
        Workload::new(&config, client)
    }

    fn keyspace(&self, client: u64) -> &Keyspace {
        let count = self.keyspaces.len() as u64;
        &self.keyspaces[usize::try_from(client % count).unwrap_or(0)]
    }

    /// Writes every key once, at interval durability: reads find something.
    async fn fill(self: &Arc<Self>) -> Result<(), LoadError> {
        let mut tasks = JoinSet::new();
        let clients = u64::from(self.args.clients.max(64));
        for client in 0..clients {
            let load = Arc::clone(self);
            tasks.spawn(async move {
                let mut number = client;
                while number < load.args.key_count {
                    let key = key_bytes(number, usize::from(load.args.key_size));
                    let value = vec![b'v'; load.args.value_size as usize];
                    load.keyspace(client).put(key, value).durability(Durability::Interval).await?;
                    number += clients;
                }
                Ok::<(), ClientError>(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("a filling task does not panic")?;
        }
        Ok(())
    }

    async fn run(self: &Arc<Self>, time: Duration) -> Both {
        match self.args.rate {
            None => self.closed_loop(time).await,
            Some(rate) => self.open_loop(time, rate).await,
        }
    }

    async fn closed_loop(self: &Arc<Self>, time: Duration) -> Both {
        let end = now() + time;
        let mut tasks = JoinSet::new();
        for client in 0..u64::from(self.args.clients) {
            let load = Arc::clone(self);
            tasks.spawn(async move {
                let mut workload = load.workload(client);
                let (mut puts, mut gets) = (Measured::new(), Measured::new());
                while now() < end {
                    let operation = workload.next();
                    load.one(client, operation, now(), &mut puts, &mut gets).await;
                }
                (puts, gets)
            });
        }
        sum(tasks).await
    }

    async fn open_loop(self: &Arc<Self>, time: Duration, rate: u32) -> Both {
        let began = now();
        let room = Arc::new(Semaphore::new(OPEN_LOOP_WAITING_MAX));
        let mut tasks = JoinSet::new();
        let mut workload = self.workload(0);
        let (mut puts, mut gets) = (Measured::new(), Measured::new());
        let total = time.as_secs() * u64::from(rate);
        for number in 0..total {
            let due = began + Duration::from_secs_f64(to_f64(number) / f64::from(rate));
            tokio::time::sleep_until(due.into()).await;
            let operation = workload.next();
            let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                puts.record_error("the servers cannot keep the rate".to_owned());
                continue;
            };
            let load = Arc::clone(self);
            tasks.spawn(async move {
                let (mut puts, mut gets) = (Measured::new(), Measured::new());
                // From when it was due, not from when it was sent: what waited here waited for the servers.
                load.one(number, operation, due, &mut puts, &mut gets).await;
                drop(permit);
                (puts, gets)
            });
            while let Some(done) = tasks.try_join_next() {
                let (more_puts, more_gets) = done.expect("a request task does not panic");
                puts.add(&more_puts);
                gets.add(&more_gets);
            }
        }
        let (more_puts, more_gets) = sum(tasks).await;
        puts.add(&more_puts);
        gets.add(&more_gets);
        (puts, gets)
    }

    async fn one(
        &self,
        client: u64,
        operation: Operation,
        began: Instant,
        puts: &mut Measured,
        gets: &mut Measured,
    ) {
        let keyspace = self.keyspace(client);
        let (measured, result) = match operation {
            Operation::Put { key, value } => {
                let write = keyspace.put(key, value).level(self.args.level);
                (puts, write.durability(self.args.durability).send().await.map(drop))
            }
            Operation::Get { key } => {
                (gets, keyspace.get(key).level(self.args.level).send().await.map(drop))
            }
        };
        match result {
            Ok(()) => measured.record(began.elapsed()),
            Err(error) => measured.record_error(error.to_string()),
        }
    }
}

async fn sum(mut tasks: JoinSet<Both>) -> Both {
    let (mut puts, mut gets) = (Measured::new(), Measured::new());
    while let Some(done) = tasks.join_next().await {
        let (more_puts, more_gets) = done.expect("a request task does not panic");
        puts.add(&more_puts);
        gets.add(&more_gets);
    }
    (puts, gets)
}

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::cast_precision_loss, reason = "a count of requests, far below 2^52")]
fn to_f64(number: u64) -> f64 {
    number as f64
}

/// Processor time that these processes have used, in microseconds; those that are gone count nothing.
pub(crate) fn cpu_us(pids: &[u32]) -> u64 {
    // `man 5 proc`: fields 14 and 15 are user and system time in ticks; a tick is 10 ms on every Linux that we run on.
    const TICK_US: u64 = 10_000;
    let ticks: BTreeMap<u32, u64> = pids
        .iter()
        .filter_map(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let (_, fields) = stat.rsplit_once(')')?;
            let mut fields = fields.split_ascii_whitespace().skip(11);
            let user: u64 = fields.next()?.parse().ok()?;
            let system: u64 = fields.next()?.parse().ok()?;
            Some((*pid, user + system))
        })
        .collect();
    ticks.values().sum::<u64>() * TICK_US
}
