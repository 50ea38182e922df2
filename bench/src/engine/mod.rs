//! `starling-bench engine`: the storage engine beside its peers, on the same workloads with the same settings.
//!
//! - Each stage of a group of workloads runs in a process of its own, so that its peak memory is its own and a kill is a kill.
//! - Engines take turns within a group, and groups within a repeat, so that what else the machine does meets all of them.

mod api;
mod data;
#[cfg(feature = "fjall")]
mod fjall;
mod group_commit;
mod measure;
#[cfg(feature = "redb")]
mod redb;
#[cfg(feature = "rocksdb")]
mod rocksdb;
#[cfg(feature = "sled")]
mod sled;
mod starling;
mod table;
mod workloads;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::{Args, ValueEnum as _};
use serde::{Deserialize, Serialize};

use api::{EngineError, Kind};
use table::{Results, Run};
use workloads::{Group, Sizes, StageReport};

/// What `--quick` multiplies the sizes by.
const QUICK: f64 = 0.1;

/// `starling-bench engine`.
#[derive(Clone, Debug, Args)]
pub(crate) struct EngineArgs {
    /// Engines to measure, parted by commas; peers are there if they were built in (cargo features).
    #[arg(long = "engine", value_enum, value_delimiter = ',')]
    engines: Vec<Kind>,
    /// Groups of workloads, parted by commas; without it all of them.
    #[arg(long, value_enum, value_delimiter = ',')]
    workloads: Vec<Group>,
    /// Times the sizes: 1 is 2,000,000 keys in the large fills.
    #[arg(long, default_value_t = 1.0, value_parser = parse_scale)]
    scale: f64,
    /// A tenth of the sizes, whatever the scale is.
    #[arg(long)]
    quick: bool,
    /// Runs of everything; the table has the median.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Where the engines' directories are made, and removed; without it the system's temporary directory.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// All measurements to this file, for programs.
    #[arg(long)]
    json: Option<PathBuf>,
    /// One stage of one engine, in this process. What the runs above start.
    #[arg(long, hide = true)]
    stage: Option<String>,
}

/// What a child process is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct StageSpec {
    kind: Kind,
    group: Group,
    stage: usize,
    dir: PathBuf,
    sizes: Sizes,
}

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// An engine failed, or answered wrongly.
    #[error("{0}")]
    Engine(#[from] EngineError),
    /// The system said no.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Its answer.
        source: std::io::Error,
    },
    /// A child process ended without a report.
    #[error("stage {stage} of {group:?} with {engine} ended without a report")]
    NoReport {
        /// Of which engine.
        engine: &'static str,
        /// Of which workloads.
        group: Group,
        /// Which stage.
        stage: usize,
    },
    /// What parent and child tell each other could not be read.
    #[error("a report that cannot be read: {0}")]
    Report(#[from] serde_json::Error),
}

fn system(what: &'static str) -> impl Fn(std::io::Error) -> RunError {
    move |source| RunError::System { what, source }
}

fn parse_scale(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(scale) if 0.0 < scale && scale <= 1000.0 => Ok(scale),
        _ => Err("a number above 0, up to 1000".to_owned()),
    }
}

/// Runs the workloads and gives the tables as text.
///
/// # Errors
/// The first engine that failed.
pub(crate) fn run(args: &EngineArgs) -> Result<String, RunError> {
    if let Some(spec) = &args.stage {
        return run_stage(&serde_json::from_str(spec)?).map(|()| String::new());
    }
    let or_all =
        |kinds: &[Kind]| if kinds.is_empty() { Kind::value_variants() } else { kinds }.to_vec();
    let engines = or_all(&args.engines);
    let groups =
        if args.workloads.is_empty() { Group::ALL.to_vec() } else { args.workloads.clone() };
    let sizes = Sizes::scaled(if args.quick { QUICK } else { args.scale });
    let root = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let mut results = Results::default();
    for repeat in 0..args.repeat {
        for group in &groups {
            let can_run = |kind: &&Kind| kind.outlives_process() || *group != Group::Reopen;
            for kind in engines.iter().filter(can_run) {
                let name = format!("starling-bench-{}-{}", std::process::id(), kind.name());
                let dir = root.join(name);
                let ran = run_group(*kind, *group, sizes, &dir);
                std::fs::remove_dir_all(&dir).map_err(system("remove a directory"))?;
                for (stage, report) in ran?.into_iter().enumerate() {
                    results.add(Run { kind: *kind, group: *group, stage, repeat, report });
                }
                if let Some(path) = &args.json {
                    let text = format!("{}\n", results.to_json());
                    std::fs::write(path, text).map_err(system("write the measurements"))?;
                }
            }
        }
    }
    Ok(format!("{}\n{}", results.to_markdown(), results.details_to_markdown()))
}

fn run_group(
    kind: Kind,
    group: Group,
    sizes: Sizes,
    dir: &Path,
) -> Result<Vec<StageReport>, RunError> {
    std::fs::create_dir_all(dir).map_err(system("make a directory"))?;
    let mut reports = Vec::new();
    for stage in 0..group.stage_count() {
        tell(&format!("{} {group:?} {stage}", kind.name()));
        let spec = StageSpec { kind, group, stage, dir: dir.to_owned(), sizes };
        reports.push(run_child(&spec)?);
    }
    Ok(reports)
}

/// Starts a process for the stage, and waits for its report, which it writes while the engine is still open.
fn run_child(spec: &StageSpec) -> Result<StageReport, RunError> {
    let program = std::env::current_exe().map_err(system("find this program"))?;
    let mut child = Command::new(program)
        .args(["engine", "--stage", &serde_json::to_string(spec)?])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(system("start a process"))?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).map_err(system("read a report"))?;
    }
    if spec.group.is_killed(spec.stage) {
        child.kill().map_err(system("kill a process"))?;
    }
    let status = child.wait().map_err(system("wait for a process"))?;
    if line.is_empty() || !(status.success() || spec.group.is_killed(spec.stage)) {
        let (engine, group, stage) = (spec.kind.name(), spec.group, spec.stage);
        return Err(RunError::NoReport { engine, group, stage });
    }
    Ok(serde_json::from_str(&line)?)
}

/// One stage, in this process.
fn run_stage(spec: &StageSpec) -> Result<(), RunError> {
    let killed = spec.group.is_killed(spec.stage);
    spec.group.run(spec.stage, spec.kind, &spec.dir, spec.sizes, |report| {
        let report = serde_json::to_string(&report)?;
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{report}").and_then(|()| stdout.flush()).map_err(system("report"))?;
        if killed {
            // The engine stays open until the kill comes; a wake-up for nothing is no reason to end.
            loop {
                std::thread::park();
            }
        }
        Ok(())
    })?
}

/// Progress, for who waits.
fn tell(text: &str) {
    // Nobody is left to tell if standard error is gone.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
