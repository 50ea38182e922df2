//! A cluster of real `starling` processes on 127.0.0.1, in a temporary directory of its own.
//!
//! Invariants:
//!
//! - Only processes that were started here are signalled, through their `Child` handle; all are gone when the cluster is dropped.
//! - Nothing is waited for by sleeping alone: a wait polls for what it is about and ends in an error that says what was missing.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use starling_clock::NodeId;
use starling_node::config::Member;
use tempfile::TempDir;

/// How long a wait may take before it is an error. Generous: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_mins(1);
/// Between two looks at what is waited for.
const POLL: Duration = Duration::from_millis(25);

/// The harness could not do what the test asked of it.
#[derive(Debug, thiserror::Error)]
pub enum HarnessError {
    /// The program is not where it should be.
    #[error("{0} is not there: `cargo build --bin starling` first, or set STARLING_BIN")]
    NoBinary(PathBuf),
    /// A file or a process could not be made.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A command failed.
    #[error("`starling {command}` ended with {status}: {stderr}")]
    Command {
        /// Its arguments.
        command: String,
        /// How it ended.
        status: String,
        /// What it said.
        stderr: String,
    },
    /// Something did not happen in time.
    #[error("waited {PATIENCE:?} for {0}")]
    Patience(String),
}

/// One node.
#[derive(Debug)]
pub struct NodeProcess {
    /// Its id.
    pub id: NodeId,
    /// Where it listens.
    pub address: SocketAddr,
    dir: PathBuf,
    child: Option<Child>,
}

impl NodeProcess {
    /// Everything it keeps.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// It was started and not stopped.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }
}

/// A cluster.
#[derive(Debug)]
pub struct ProcessCluster {
    binary: PathBuf,
    dir: TempDir,
    nodes: Vec<NodeProcess>,
}

impl ProcessCluster {
    /// Certificates and configuration for `count` nodes with ids 1 to `count`; nothing runs yet. `settings` is appended to each node's
    /// configuration (TOML sections other than `node`, `cluster` and `tls`).
    ///
    /// # Errors
    /// [`HarnessError`] if the program is not built or a file cannot be written.
    pub fn prepare(count: u16, settings: &str) -> Result<Self, HarnessError> {
        let binary = binary()?;
        let dir =
            TempDir::with_prefix("starling-chaos").map_err(io_error("temporary directory"))?;
        let members = members(count)?;
        let mut cluster = Self { binary, dir, nodes: Vec::new() };
        let tls = cluster.tls_dir();
        cluster.starling(&["cert", "ca", "--dir", &text(&tls)])?;
        let client =
            ["cert", "client", "--ca", &text(&tls), "--name", "chaos", "--dir", &text(&tls)];
        cluster.starling(&client)?;
        for member in &members {
            let node = cluster.prepare_node(member, &members, settings)?;
            cluster.nodes.push(node);
        }
        Ok(cluster)
    }

    fn prepare_node(
        &self,
        member: &Member,
        members: &[Member],
        settings: &str,
    ) -> Result<NodeProcess, HarnessError> {
        let dir = self.dir.path().join(format!("node-{}", member.id));
        let tls = dir.join("tls");
        fs::create_dir_all(&dir).map_err(io_error("node directory"))?;
        let id = member.id.to_string();
        let ca = text(&self.tls_dir());
        self.starling(&["cert", "node", "--ca", &ca, "--id", &id, "--dir", &text(&tls)])?;
        let entry = |member: &Member| {
            format!("  {{ id = {}, address = \"{}\" }},\n", member.id, member.address)
        };
        let list: Vec<String> = members.iter().map(entry).collect();
        let config = format!(
            "[node]\nid = {id}\ndata_dir = \"{data}\"\nlisten = \"{listen}\"\n\n[cluster]\nname = \"chaos\"\nmembers = [\n{list}]\n\n\
             [tls]\ndir = \"{tls}\"\n\n{settings}",
            data = text(&dir.join("data")),
            listen = member.address,
            list = list.concat(),
            tls = text(&tls),
        );
        fs::write(dir.join("config.toml"), config).map_err(io_error("config.toml"))?;
        Ok(NodeProcess { id: NodeId(member.id), address: member.address, dir, child: None })
    }

    /// Where the authority's and the client's certificates are.
    pub fn tls_dir(&self) -> PathBuf {
        self.dir.path().join("tls")
    }

    /// A place for the test's own files, gone with the cluster.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// All nodes, by id.
    pub fn nodes(&self) -> &[NodeProcess] {
        &self.nodes
    }

    /// Addresses of all nodes, for a client.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.address).collect()
    }

    /// Starts every node that does not run.
    ///
    /// # Errors
    /// [`HarnessError::Io`] if a process cannot be started.
    pub fn start_all(&mut self) -> Result<(), HarnessError> {
        (0..self.nodes.len()).try_for_each(|index| self.start(index))
    }

    /// Starts node number `index`, counted from 0, unless it runs. It is not ready yet when this returns.
    ///
    /// # Errors
    /// [`HarnessError::Io`] if the process cannot be started.
    pub fn start(&mut self, index: usize) -> Result<(), HarnessError> {
        let node = &mut self.nodes[index];
        if node.child.is_some() {
            return Ok(());
        }
        let log = File::options().create(true).append(true).open(node.dir.join("log"));
        let log = log.map_err(io_error("node log"))?;
        let errors = log.try_clone().map_err(io_error("node log"))?;
        let child = Command::new(&self.binary)
            .args(["node", "--config"])
            .arg(node.dir.join("config.toml"))
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(io_error("start of a node"))?;
        node.child = Some(child);
        Ok(())
    }

    /// `kill -9`: the process gets no chance to write anything more.
    ///
    /// # Errors
    /// [`HarnessError::Io`] if the process cannot be killed.
    pub fn kill(&mut self, index: usize) -> Result<(), HarnessError> {
        if let Some(mut child) = self.nodes[index].child.take() {
            child.kill().map_err(io_error("kill -9"))?;
            child.wait().map_err(io_error("wait for a killed node"))?;
        }
        Ok(())
    }

    /// SIGTERM, and waits for the process to end by itself.
    ///
    /// # Errors
    /// [`HarnessError::Patience`] if it does not end, [`HarnessError::Command`] if it does not end with 0.
    pub fn stop(&mut self, index: usize) -> Result<(), HarnessError> {
        let Some(mut child) = self.nodes[index].child.take() else { return Ok(()) };
        let status = Command::new("kill").arg(child.id().to_string()).status();
        status.map_err(io_error("kill"))?;
        let ended = wait_for("a node to stop on SIGTERM", || child.try_wait().ok().flatten());
        let Ok(status) = ended else {
            child.kill().map_err(io_error("kill -9"))?;
            child.wait().map_err(io_error("wait for a killed node"))?;
            return Err(HarnessError::Patience("a node to stop on SIGTERM".to_owned()));
        };
        if status.success() {
            return Ok(());
        }
        let stderr = self.nodes[index].log();
        Err(HarnessError::Command {
            command: "node".to_owned(),
            status: status.to_string(),
            stderr,
        })
    }

    /// Runs the program to its end and returns what it wrote to its standard output.
    ///
    /// # Errors
    /// [`HarnessError::Command`] if it does not end with 0.
    pub fn starling(&self, arguments: &[&str]) -> Result<String, HarnessError> {
        let output = Command::new(&self.binary)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .map_err(io_error("start of a command"))?;
        if !output.status.success() {
            return Err(HarnessError::Command {
                command: arguments.join(" "),
                status: output.status.to_string(),
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A command connected to this cluster, for a test that wants to run it in the background.
    pub fn command(&self) -> Command {
        let addresses: Vec<String> = self.addresses().iter().map(ToString::to_string).collect();
        let mut command = Command::new(&self.binary);
        command.args(["--connect", &addresses.join(",")]).arg("--tls").arg(self.tls_dir());
        command.stdin(Stdio::null());
        command
    }
}

impl Drop for ProcessCluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut child) = node.child.take() {
                // It is being thrown away: that it is dead already is as good.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// Asks `probe` again and again until it has an answer.
///
/// # Errors
/// [`HarnessError::Patience`] after [`PATIENCE`].
pub fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> Result<T, HarnessError> {
    let rounds = PATIENCE.as_millis() / POLL.as_millis();
    for _ in 0..rounds {
        if let Some(found) = probe() {
            return Ok(found);
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "another process cannot wake us: polled, with a bound"
        )]
        std::thread::sleep(POLL);
    }
    Err(HarnessError::Patience(what.to_owned()))
}

/// `STARLING_BIN`, or the program that cargo built beside the running test.
fn binary() -> Result<PathBuf, HarnessError> {
    let path = if let Some(path) = std::env::var_os("STARLING_BIN") {
        PathBuf::from(path)
    } else {
        // target/<profile>/deps/<test> -> target/<profile>/starling
        let test = std::env::current_exe().map_err(io_error("path of the test"))?;
        let built = test.ancestors().nth(2).map(|dir| dir.join("starling"));
        built.unwrap_or_else(|| PathBuf::from("starling"))
    };
    if path.is_file() { Ok(path) } else { Err(HarnessError::NoBinary(path)) }
}

/// Ports that are free now: all are bound at once, so that they differ, and read back.
fn members(count: u16) -> Result<Vec<Member>, HarnessError> {
    let sockets: io::Result<Vec<UdpSocket>> =
        (0..count).map(|_| UdpSocket::bind(("127.0.0.1", 0))).collect();
    let sockets = sockets.map_err(io_error("free ports"))?;
    let mut members = Vec::new();
    for (id, socket) in (1..).zip(&sockets) {
        let address = socket.local_addr().map_err(io_error("free ports"))?;
        members.push(Member { id, address, zone: String::new(), weight: 1 });
    }
    Ok(members)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn io_error(what: &str) -> impl FnOnce(io::Error) -> HarnessError {
    move |source| HarnessError::Io { what: what.to_owned(), source }
}
