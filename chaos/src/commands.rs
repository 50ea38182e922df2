//! The commands of `starling-chaos`: what is asked on the command line, and what is printed.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is the command line")]

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use starling_chaos::check;
use starling_chaos::sim::plan::Profile;
use starling_chaos::sim::shrink::shrink;
use starling_chaos::sim::{self, Settings};

use crate::tripwire;

/// Failing seeds that are printed.
const FAILURES_SHOWN_MAX: usize = 20;

/// Simulates clusters in which everything fails, and judges what they did.
#[derive(Debug, Parser)]
#[command(version, about)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Simulates one seed or many, and holds what they did against the guarantees.
    Sim {
        #[command(flatten)]
        world: WorldArguments,
        /// The seed.
        #[arg(long, required_unless_present = "seeds")]
        seed: Option<u64>,
        /// Many seeds, the last one included: `1..1000`.
        #[arg(long, value_parser = parse_seeds, conflicts_with_all = ["seed", "trace"])]
        seeds: Option<Range<u64>>,
        /// Threads that simulate.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
        jobs: u64,
        /// Writes everything that happened to this file, a line an event.
        #[arg(long)]
        trace: Option<PathBuf>,
    },
    /// Prints what will go wrong in a run, without running it.
    Plan {
        #[command(flatten)]
        world: WorldArguments,
        /// The seed.
        #[arg(long)]
        seed: u64,
    },
    /// Puts bugs into the code on purpose, one after the other, and tells which seed finds each: a Markdown table.
    #[cfg(feature = "mutations")]
    Mutations {
        /// Seeds that are tried for each.
        #[arg(long, default_value_t = 200)]
        seeds: u64,
        /// Threads that simulate.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
        jobs: u64,
        /// Only the mutations whose names contain this.
        #[arg(long, default_value = "")]
        only: String,
    },
    /// Makes the faults of a failing seed fewer and shorter while it goes on failing.
    Shrink {
        #[command(flatten)]
        world: WorldArguments,
        /// The seed.
        #[arg(long)]
        seed: u64,
        /// Runs at most.
        #[arg(long, default_value_t = 200)]
        runs: usize,
        /// Writes the trace of the smallest run that failed to this file.
        #[arg(long)]
        trace: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct WorldArguments {
    /// Nodes.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=100))]
    nodes: u64,
    /// Simulated time under load and faults.
    #[arg(long, default_value = "20s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// What goes wrong.
    #[arg(long, value_enum, default_value_t = Profile::All)]
    profile: Profile,
    /// Operations a simulated second and node.
    #[arg(long, default_value_t = 200)]
    rate: u64,
}

impl WorldArguments {
    fn settings(&self, seed: u64) -> Settings {
        Settings {
            seed,
            nodes: self.nodes,
            duration_us: u64::try_from(self.duration.as_micros()).unwrap_or(u64::MAX / 4),
            profile: self.profile,
            operations_per_second: self.rate,
            plan: None,
        }
    }

    fn replay(&self, seed: u64) -> String {
        let Self { nodes, duration, profile, rate } = self;
        let duration = humantime::format_duration(*duration).to_string().replace(' ', "");
        format!(
            "starling-chaos sim --seed {seed} --nodes {nodes} --duration {duration} --profile {profile} --rate {rate}"
        )
    }
}

/// What became of one seed.
struct Verdict {
    /// What was broken, as paragraphs; empty if nothing was.
    broken: Vec<String>,
    trace_hash: u64,
    events: u64,
    operations: u64,
    acked: u64,
    simulated_us: u64,
    /// What the simulation took, and what judging it took.
    took: Took,
}

/// Processor time of this thread.
#[derive(Clone, Copy, Default)]
struct Took {
    simulating: Duration,
    judging: Duration,
}

impl Arguments {
    pub(crate) fn run(self) -> ExitCode {
        match self.command {
            Command::Sim { world, seed: Some(seed), trace, .. } => {
                one(&world, seed, trace.as_deref())
            }
            Command::Sim { world, seeds, jobs, .. } => many(&world, seeds.unwrap_or(0..0), jobs),
            Command::Plan { world, seed } => {
                for fault in world.settings(seed).plan().faults {
                    println!("{fault}");
                }
                ExitCode::SUCCESS
            }
            #[cfg(feature = "mutations")]
            Command::Mutations { seeds, jobs, only } => mutations(seeds, jobs, &only),
            Command::Shrink { world, seed, runs, trace } => {
                make_smaller(&world, seed, runs, trace.as_deref())
            }
        }
    }
}

fn parse_seeds(text: &str) -> Result<Range<u64>, String> {
    let wrong = || format!("{text:?} is not `first..last`");
    let (first, last) = text.split_once("..").ok_or_else(wrong)?;
    let first: u64 = first.parse().map_err(|_| wrong())?;
    let last: u64 = last.parse().map_err(|_| wrong())?;
    let end = last.checked_add(1).ok_or_else(wrong)?;
    if end <= first { Err(wrong()) } else { Ok(first..end) }
}

fn open(path: &Path) -> Option<Box<dyn Write + Send>> {
    match File::create(path) {
        Ok(file) => Some(Box::new(BufWriter::new(file))),
        Err(error) => {
            eprintln!("{}: {error}", path.display());
            None
        }
    }
}

/// Simulates and judges.
fn judge(settings: &Settings, trace: Option<Box<dyn Write + Send>>) -> Verdict {
    tripwire::take();
    let started = thread_time();
    let ran = catch_unwind(AssertUnwindSafe(|| sim::run(settings, trace)));
    let mut verdict = Verdict {
        broken: Vec::new(),
        trace_hash: 0,
        events: 0,
        operations: 0,
        acked: 0,
        simulated_us: 0,
        took: Took::default(),
    };
    let simulated = thread_time();
    verdict.took.simulating = simulated.saturating_sub(started);
    let Ok(run) = ran else {
        verdict.broken.push("the simulator panicked: see above".to_owned());
        return verdict;
    };
    if tripwire::take() > 0 {
        verdict.broken.push("the system was asked for time or chance inside the run".to_owned());
    }
    if !run.trace_written {
        verdict.broken.push("the trace could not be written".to_owned());
    }
    verdict.broken.extend(check::check(&run.history).iter().map(ToString::to_string));
    verdict.took.judging = thread_time().saturating_sub(simulated);
    let answered = run.history.operations.iter().filter(|it| {
        !matches!(
            it.reply,
            starling_chaos::history::Reply::None | starling_chaos::history::Reply::Error { .. }
        )
    });
    verdict.acked = answered.count() as u64;
    verdict.operations = run.history.operations.len() as u64;
    (verdict.trace_hash, verdict.events) = (run.trace_hash, run.events);
    verdict.simulated_us = run.simulated_us;
    verdict
}

fn one(world: &WorldArguments, seed: u64, trace: Option<&Path>) -> ExitCode {
    let text = match trace {
        None => None,
        Some(path) => match open(path) {
            Some(text) => Some(text),
            None => return ExitCode::from(2),
        },
    };
    let verdict = judge(&world.settings(seed), text);
    for broken in &verdict.broken {
        println!("{broken}\n");
    }
    println!(
        "seed {seed}: {} operations, {} of them done, {} events, trace {:016x}, {}",
        verdict.operations,
        verdict.acked,
        verdict.events,
        verdict.trace_hash,
        speed(verdict.simulated_us, verdict.took)
    );
    if verdict.broken.is_empty() {
        println!("every guarantee was kept");
        return ExitCode::SUCCESS;
    }
    println!("replay: {}", world.replay(seed));
    ExitCode::FAILURE
}

fn many(world: &WorldArguments, seeds: Range<u64>, jobs: u64) -> ExitCode {
    let bar = ProgressBar::new(seeds.end - seeds.start);
    let style = "{bar:40} {pos}/{len} seeds, {msg}, {elapsed} gone, {eta} left";
    bar.set_style(
        ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    bar.set_message("0 failed");
    let next = AtomicU64::new(seeds.start);
    let operations = AtomicU64::new(0);
    let sum: Mutex<(u64, Took)> = Mutex::default();
    let failures: Mutex<Vec<(u64, Vec<String>)>> = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seeds.end <= seed {
                        return;
                    }
                    let verdict = judge(&world.settings(seed), None);
                    if let Ok(mut sum) = sum.lock() {
                        sum.0 += verdict.simulated_us;
                        sum.1.simulating += verdict.took.simulating;
                        sum.1.judging += verdict.took.judging;
                    }
                    operations.fetch_add(verdict.operations, Ordering::Relaxed);
                    if !verdict.broken.is_empty()
                        && let Ok(mut failures) = failures.lock()
                    {
                        let first = verdict.broken[0].lines().next().unwrap_or_default();
                        bar.suspend(|| println!("seed {seed}: {first}"));
                        failures.push((seed, verdict.broken));
                        bar.set_message(format!("{} failed", failures.len()));
                    }
                    bar.inc(1);
                }
            });
        }
    });
    bar.finish_and_clear();
    let mut failures = failures.into_inner().unwrap_or_default();
    failures.sort();
    for (seed, broken) in failures.iter().take(FAILURES_SHOWN_MAX) {
        println!("seed {seed}: {}", broken.first().map_or("", String::as_str));
        println!("replay: {}\n", world.replay(*seed));
    }
    let (simulated_us, took) = sum.into_inner().unwrap_or_default();
    println!(
        "{} seeds, {} failed; {} operations in {}",
        seeds.end - seeds.start,
        failures.len(),
        operations.into_inner(),
        speed(simulated_us, took)
    );
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn make_smaller(world: &WorldArguments, seed: u64, runs: usize, trace: Option<&Path>) -> ExitCode {
    let settings = world.settings(seed);
    let first = judge(&settings, None);
    let Some(broken) = first.broken.first() else {
        println!("seed {seed} breaks nothing");
        return ExitCode::from(2);
    };
    // Another promise that breaks is another failure.
    let kind = broken.split(':').next().unwrap_or_default().to_owned();
    let bar = ProgressBar::new_spinner();
    let fails = |settings: &Settings| {
        judge(settings, None).broken.iter().any(|broken| broken.starts_with(&kind))
    };
    let small = shrink(&settings, runs, fails, |faults| {
        bar.set_message(format!("{faults} faults left"));
        bar.tick();
    });
    bar.finish_and_clear();
    for broken in judge(&small, trace.and_then(open)).broken {
        println!("{broken}\n");
    }
    let faults = small.plan().faults;
    println!("{} of {} faults are needed:", faults.len(), settings.plan().faults.len());
    for fault in faults {
        println!("{fault}");
    }
    ExitCode::FAILURE
}

/// Every mutation against the checkers.
#[cfg(feature = "mutations")]
fn mutations(seeds: u64, jobs: u64, only: &str) -> ExitCode {
    use check::mutations::{EXPERIMENTS, Found};

    let name = |index: usize| format!("{:?}", EXPERIMENTS[index].mutation);
    let wanted: Vec<usize> =
        (0..EXPERIMENTS.len()).filter(|&index| name(index).contains(only)).collect();
    let bar = ProgressBar::new(wanted.len() as u64);
    let next = AtomicU64::new(0);
    let results: Mutex<Vec<(usize, Option<Found>)>> = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let at = usize::try_from(next.fetch_add(1, Ordering::Relaxed));
                    let Some(&index) = at.ok().and_then(|at| wanted.get(at)) else { return };
                    let found = EXPERIMENTS[index].find(1..=seeds);
                    if let Ok(mut results) = results.lock() {
                        results.push((index, found));
                    }
                    bar.inc(1);
                }
            });
        }
    });
    bar.finish_and_clear();
    let mut results = results.into_inner().unwrap_or_default();
    results.sort_by_key(|(index, _)| *index);
    println!("| mutation | the bug | profile | first seed | found as |");
    println!("|---|---|---|---|---|");
    for (index, found) in &results {
        let (experiment, name) = (&EXPERIMENTS[*index], name(*index));
        let (seed, guarantee) = found.as_ref().map_or_else(
            || (format!("none of {seeds}"), "not found".to_owned()),
            |found| (found.seed.to_string(), format!("{}: {}", found.guarantee, found.what)),
        );
        println!(
            "| `{name}` | {} | {} | {seed} | {guarantee} |",
            experiment.bug, experiment.profile
        );
    }
    let missed = results.iter().any(|(_, found)| found.is_none()) || results.is_empty();
    if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// How fast it went: the simulation by itself, then what its judging took.
fn speed(simulated_us: u64, took: Took) -> String {
    let simulated = seconds(simulated_us);
    let Took { simulating, judging } = took;
    let rate = simulated / simulating.as_secs_f64();
    format!(
        "{simulated:.1} simulated seconds, {rate:.0} in a second of processor time ({:.2} s; judging took {:.2} s)",
        simulating.as_secs_f64(),
        judging.as_secs_f64()
    )
}

/// Processor time of this thread, for the speed in the summary.
fn thread_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}
