//! `starling`: the one binary. Each subcommand is a file in the library's `commands/`.

use std::process::ExitCode;

use clap::Parser;
use starling_node::commands::Cli;

fn main() -> ExitCode {
    Cli::parse().run()
}
