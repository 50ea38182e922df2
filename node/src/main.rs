//! `starling`: the one binary. Each subcommand is a file in the library's `commands/`.

use std::process::ExitCode;

use clap::Parser;
use starling_node::commands::Cli;

#[cfg(feature = "mutations")]
compile_error!(
    "the program is never built with bugs that were put in on purpose: build starling-chaos alone"
);

/// Requests make and drop many small buffers on three threads; the system's allocator took a tenth of the time of a node under load.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    Cli::parse().run()
}
