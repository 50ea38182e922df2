//! `starling-bench`: measures a cluster as its clients see it. `bench/README.md` says how to run it and what was measured.

mod load;
mod report;
mod workload;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures a Starling cluster.
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
}

fn main() -> ExitCode {
    let Command::Load(args) = Cli::parse().command;
    // One thread: the generator shares the machine with what it measures, and this costs it the least.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let report = match runtime {
        Ok(runtime) => runtime.block_on(load::run(&args)).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let mut stdout = std::io::stdout().lock();
    let text = match report {
        Ok(report) if args.json => format!("{}\n", report.to_json()),
        Ok(report) => report.to_text(),
        Err(error) => {
            // Nobody is left to tell if standard error is gone.
            let _ = writeln!(std::io::stderr().lock(), "starling-bench: {error}");
            return ExitCode::FAILURE;
        }
    };
    match stdout.write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
