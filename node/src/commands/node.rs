//! `starling node`: runs a node until it is told to stop.
//!
//! On standard output: one line `listening on <address>` when it takes connections. The log goes to standard error.

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use rustix::process::Signal;
use tokio::signal::unix::{Signal as Unix, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::config::{Config, ConfigError, LogConfig, LogFormat};
use crate::io::{NodeError, run};

const EXIT_CODES: &str = "Exit codes: 0 stopped gracefully (SIGTERM, SIGINT), 2 usage or configuration, 3 data directory (another node's, in use, newer), \
4 address, 5 certificates, 6 storage, 1 anything else.

Settings come from the file, then the environment (STARLING_<SECTION>__<FIELD>, for example STARLING_NODE__LISTEN), then flags; \
--print-config shows all of them.";

/// Exit code of a node that was told twice to stop.
const NOT_WAITED: i32 = 1;

/// A flag for what is most often set; `--set` for all else.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub struct NodeArgs {
    /// Settings in TOML.
    #[arg(long, value_name = "FILE", env = "STARLING_CONFIG")]
    config: Option<PathBuf>,
    /// Directory for everything the node keeps (`node.data_dir`).
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Address to listen on, UDP; port 0 lets the system choose (`node.listen`).
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// Address at which others reach this node (`node.advertise`).
    #[arg(long, value_name = "IP:PORT")]
    advertise: Option<SocketAddr>,
    /// This node's id (`node.id`).
    #[arg(long)]
    id: Option<u64>,
    /// The cluster's name (`cluster.name`).
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// A member of the cluster, this node included; once for each (`cluster.members`).
    #[arg(long = "member", value_name = "ID@IP:PORT[@ZONE[@WEIGHT]]")]
    members: Vec<String>,
    /// Directory of the certificates (`tls.dir`).
    #[arg(long, value_name = "DIR")]
    tls_dir: Option<PathBuf>,
    /// What to log (`log.level`).
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
    /// Form of the log (`log.format`).
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// Any setting.
    #[arg(long = "set", value_name = "SECTION.FIELD=VALUE")]
    settings: Vec<String>,
    /// Print the settings in effect, as a configuration file, and exit.
    #[arg(long)]
    print_config: bool,
}

impl NodeArgs {
    /// Runs the node.
    pub fn run(self) -> ExitCode {
        let config = match self.load() {
            Ok(config) => config,
            Err(error) => return fail(&error.into()),
        };
        if self.print_config {
            return match io::stdout().write_all(config.to_toml().as_bytes()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
                Err(error) => fail(&NodeError::System(error)),
            };
        }
        start_log(&config.log);
        match run(&config, say_ready, stop_signal()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        }
    }

    fn load(&self) -> Result<Config, ConfigError> {
        let environment = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        Config::load(self.config.as_deref(), environment, &self.flags()?)
    }

    fn flags(&self) -> Result<Vec<(String, String)>, ConfigError> {
        let mut flags = Vec::new();
        for setting in &self.settings {
            let parts = setting.split_once('=').filter(|(name, _)| name.contains('.'));
            let (name, value) = parts.ok_or_else(|| ConfigError::Flag(setting.clone()))?;
            flags.push((name.to_owned(), value.to_owned()));
        }
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let address = |address: &Option<SocketAddr>| address.map(|address| address.to_string());
        let members = (!self.members.is_empty()).then(|| self.members.join(","));
        let format = self.log_format.map(|format| match format {
            LogFormat::Text => "text".to_owned(),
            LogFormat::Json => "json".to_owned(),
        });
        let named = [
            ("node.data_dir", path(&self.data_dir)),
            ("node.listen", address(&self.listen)),
            ("node.advertise", address(&self.advertise)),
            ("node.id", self.id.map(|id| id.to_string())),
            ("cluster.name", self.cluster.clone()),
            ("cluster.members", members),
            ("tls.dir", path(&self.tls_dir)),
            ("log.level", self.log.clone()),
            ("log.format", format),
        ];
        let named = named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        flags.extend(named);
        Ok(flags)
    }
}

fn start_log(config: &LogConfig) {
    let filter = EnvFilter::builder().parse_lossy(&config.level);
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    match config.format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}

fn say_ready(address: SocketAddr) {
    let mut out = io::stdout().lock();
    let said = writeln!(out, "listening on {address}").and_then(|()| out.flush());
    if let Err(error) = said {
        tracing::warn!(%error, "nobody reads standard output");
    }
}

/// Ready at the first SIGTERM or SIGINT. The second ends the process at once, as a crash would: what was acknowledged is in the log.
async fn stop_signal() {
    // Without a handler, reaching a limit on the size of files (`ulimit -f`) would end the process; with one, the write fails.
    if let Err(error) = signal(SignalKind::from_raw(Signal::XFSZ.as_raw())) {
        tracing::warn!(%error, "a limit on the size of files would end this node");
    }
    let signals = signal(SignalKind::terminate())
        .and_then(|terminate| Ok((terminate, signal(SignalKind::interrupt())?)));
    match signals {
        Ok((mut terminate, mut interrupt)) => {
            either(&mut terminate, &mut interrupt).await;
            tokio::spawn(async move {
                either(&mut terminate, &mut interrupt).await;
                tracing::warn!("told twice to stop: not waiting for what is in flight");
                std::process::exit(NOT_WAITED);
            });
        }
        Err(error) => {
            tracing::error!(%error, "signals cannot be received: the node can only be killed");
            std::future::pending::<()>().await;
        }
    }
}

async fn either(terminate: &mut Unix, interrupt: &mut Unix) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

fn fail(error: &NodeError) -> ExitCode {
    // A standard error that is closed leaves the exit code.
    let _ = writeln!(io::stderr(), "starling: {error}");
    ExitCode::from(error.exit_code())
}
