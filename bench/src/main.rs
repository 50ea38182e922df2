//! `starling-bench`: measures a cluster as its clients see it, and the storage engine beside its peers. `bench/README.md` says how to run it and what was measured.

mod engine;
mod load;
mod report;
mod workload;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures a Starling cluster, or its storage engine.
#[derive(Debug, Parser)]
#[command(name = "starling-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Put load on a running cluster and print rates and latencies.
    Load(Box<load::LoadArgs>),
    /// Run workloads on the storage engine and its peers, in directories of their own, and print a table.
    Engine(Box<engine::EngineArgs>),
}

fn main() -> ExitCode {
    let text = match Cli::parse().command {
        Command::Load(args) => load(&args),
        Command::Engine(args) => engine::run(&args).map_err(|error| error.to_string()),
    };
    let written = match text {
        Ok(text) => std::io::stdout().lock().write_all(text.as_bytes()),
        Err(error) => {
            // Nobody is left to tell if standard error is gone.
            let _ = writeln!(std::io::stderr().lock(), "starling-bench: {error}");
            return ExitCode::FAILURE;
        }
    };
    if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn load(args: &load::LoadArgs) -> Result<String, String> {
    // One thread: the generator shares the machine with what it measures, and this costs it the least.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let report = runtime.block_on(load::run(args)).map_err(|error| error.to_string())?;
    Ok(if args.json { format!("{}\n", report.to_json()) } else { report.to_text() })
}
