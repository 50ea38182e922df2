//! The `starling` program's command line. A subcommand is a variant, its arguments, and a function in a file of its own.
//!
//! Invariants:
//!
//! - Every command ends in an exit code ([`exit`]; those of `node` are in its help), and an error in a text that says what to do.
//! - A command that talks to a cluster is a client like any other: it uses `starling-client`. Only `node` runs a node, only
//!   `cert` makes keys,
//!   only `storage` touches a data directory otherwise.

pub mod cert;
pub mod changes;
pub mod client;
pub mod data;
pub mod export;
pub mod import;
pub mod keyspace;
pub mod node;
pub mod output;
pub mod rows;
pub mod status;
pub mod storage;

mod failure;

use std::io;
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

pub use failure::{Failure, exit};

use crate::io::time;
use output::Out;

const ABOUT: &str = "\
Starling: a leaderless event database.

Every write is an event: `get` reads the newest event of a key, `history` all of them, `changes` what the nodes apply, as they
apply it. Start with a node of your own, or with a cluster on this machine (scripts/cluster up):

  starling node --data-dir starling-data      in one terminal
  starling put greeting hello                 in another, in the same folder
  starling get greeting
  starling history greeting
  starling changes --follow";

const EXIT_CODES: &str = "\
Exit codes: 0 done, 2 usage, 5 certificates, 10 no such key or keyspace, 11 nothing happened (try again), 12 unknown (it may have happened:
read, or repeat it), 13 nothing happened (change the request), 14 nothing happened (another node may take it), 1 anything else.
An import's code is that of the rows which it names; what it reports as written is written.
`starling node --help` has those of a node.";

/// The whole command line.
#[derive(Debug, clap::Parser)]
#[command(name = "starling", version, about = "Starling: a leaderless event database", long_about = ABOUT, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    #[command(flatten, next_help_heading = "Connection")]
    connect: client::ConnectArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Run a node.
    Node(Box<node::NodeArgs>),
    #[command(flatten)]
    Client(client::ClientCommand),
    /// Make certificates.
    Cert(cert::CertArgs),
    /// Check, show or repair the data directory of a node that is stopped.
    Storage(storage::StorageArgs),
    /// Print completions for a shell: `starling completions bash > /etc/bash_completion.d/starling`.
    Completions {
        /// Which shell.
        shell: Shell,
    },
}

impl Cli {
    /// Carries out the command.
    pub fn run(self) -> ExitCode {
        let out = Out::new(self.connect.json);
        let done = match self.command {
            Command::Node(arguments) => return arguments.run(),
            Command::Cert(arguments) => cert::run(&arguments, out, time::wall_s()),
            Command::Storage(arguments) => storage::run(arguments, out),
            Command::Completions { shell } => completions(shell, out),
            Command::Client(command) => run_client(&self.connect, command),
        };
        let Err(failure) = done else { return ExitCode::SUCCESS };
        if !failure.is_quiet() {
            out.complain(&failure.to_string());
        }
        ExitCode::from(failure.exit_code())
    }
}

fn run_client(
    connect: &client::ConnectArgs,
    command: client::ClientCommand,
) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source: io::Error| Failure::System { what: "start", source })?;
    runtime.block_on(client::run(connect, command))
}

fn completions(shell: Shell, out: Out) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "starling", &mut script);
    out.raw(&script)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn completions_are_made_for_every_shell() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "starling", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("history") && script.contains("keyspace"), "{shell}");
        }
    }
}
