//! [`Nodes`]: one connection a node, dialled when it is needed and kept.
//!
//! Invariants:
//!
//! - At most one dial to a node at a time; whoever needs the connection waits for that one.
//! - A node that failed us is left alone for a while that doubles with each failure, so that its callers turn to others.
//! - A connection is a node's because its certificate says so.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Duration;

use starling_clock::NodeId;
use tokio::time::{Instant, timeout, timeout_at};

use crate::config::ClientConfig;
use crate::connection::NodeConnection;
use crate::error::ClientError;
use crate::time::{self, Deadline};
use crate::transport::tls::{NODE_NAME, node_name};
use crate::transport::{self, LargeFrameBudget, PeerIdentity};
use crate::wire::{ALPN_CLIENT, Topology};

/// How long a node is left alone after its first failure.
const COOLING_FIRST: Duration = Duration::from_millis(100);
/// And at the most.
const COOLING_MAX: Duration = Duration::from_secs(3);

/// All nodes that are known, and the socket to reach them.
#[derive(Debug)]
pub(crate) struct Nodes {
    endpoint: quinn::Endpoint,
    dialling: quinn::ClientConfig,
    connect_timeout: Duration,
    budget: LargeFrameBudget,
    entries: RwLock<BTreeMap<NodeId, Arc<Entry>>>,
}

#[derive(Debug)]
struct Entry {
    node: NodeId,
    dial: tokio::sync::Mutex<()>,
    state: Mutex<EntryState>,
}

#[derive(Debug, Default)]
struct EntryState {
    /// `host:port`, tried in order: as the cluster tells it, and as the client was told.
    told: Option<String>,
    given: Option<String>,
    connection: Option<Arc<NodeConnection>>,
    failures: u32,
    cooling_until: Option<Instant>,
}

impl EntryState {
    fn live(&self) -> Option<Arc<NodeConnection>> {
        self.connection.as_ref().filter(|connection| !connection.is_lost()).cloned()
    }

    fn is_cooling(&self) -> bool {
        self.cooling_until.is_some_and(|until| time::now() < until)
    }

    fn fail(&mut self) {
        let pause = COOLING_FIRST * 2_u32.pow(self.failures.min(10));
        self.failures = self.failures.saturating_add(1);
        self.cooling_until = Some(time::now() + pause.min(COOLING_MAX));
    }

    fn succeed(&mut self, connection: Arc<NodeConnection>) {
        self.failures = 0;
        self.cooling_until = None;
        self.connection = Some(connection);
    }
}

impl Entry {
    fn new(node: NodeId) -> Self {
        Self { node, dial: tokio::sync::Mutex::default(), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, EntryState> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }
}

impl Nodes {
    /// Opens the socket.
    pub(crate) async fn open(config: &ClientConfig) -> Result<Self, ClientError> {
        let bind = match config.bind {
            Some(address) => address,
            None => any_address_towards(&config.addresses).await?,
        };
        let crypto = config.credentials.client_crypto(ALPN_CLIENT)?;
        let endpoint = transport::bind(bind, None, None).map_err(ClientError::Socket)?;
        Ok(Self {
            endpoint,
            dialling: transport::client_config(crypto, config.transport),
            connect_timeout: config.connect_timeout,
            budget: LargeFrameBudget::new(config.large_bytes_max),
            entries: RwLock::default(),
        })
    }

    fn entry(&self, node: NodeId) -> Option<Arc<Entry>> {
        let entries = self.entries.read().expect("nothing panics while it holds this lock");
        entries.get(&node).cloned()
    }

    fn entry_or_new(&self, node: NodeId) -> Arc<Entry> {
        let mut entries = self.entries.write().expect("nothing panics while it holds this lock");
        entries.entry(node).or_insert_with(|| Arc::new(Entry::new(node))).clone()
    }

    /// Knows the members of `topology` from now on, and nobody else.
    pub(crate) fn learn(&self, topology: &Topology) {
        for member in topology.members.iter() {
            let entry = self.entry_or_new(member.node.0);
            entry.state().told = Some(member.address.0.clone());
        }
        let is_member =
            |node: &NodeId| topology.members.iter().any(|member| member.node.0 == *node);
        let mut entries = self.entries.write().expect("nothing panics while it holds this lock");
        if entries.len() > topology.members.len() {
            entries.retain(|node, _| is_member(node));
        }
    }

    /// Whether the node failed just now.
    pub(crate) fn is_cooling(&self, node: NodeId) -> bool {
        self.entry(node).is_some_and(|entry| entry.state().is_cooling())
    }

    /// The node failed us: others are asked for a while. Its connection stays.
    pub(crate) fn cool(&self, node: NodeId) {
        if let Some(entry) = self.entry(node) {
            let mut state = entry.state();
            if !state.is_cooling() {
                state.fail();
            }
        }
    }

    /// The connection to `node`, dialled if there is none.
    pub(crate) async fn connect(
        &self,
        node: NodeId,
        deadline: Deadline,
    ) -> Result<Arc<NodeConnection>, ClientError> {
        let entry = self.entry(node).ok_or(ClientError::UnknownNode(node))?;
        if let Some(connection) = entry.state().live() {
            return Ok(connection);
        }
        let unreachable =
            |problem: &str| ClientError::Unreachable { node, problem: problem.to_owned() };
        let _dialling = timeout_at(deadline.at(), entry.dial.lock())
            .await
            .map_err(|_| unreachable("still dialling"))?;
        let addresses = {
            let state = entry.state();
            if let Some(connection) = state.live() {
                return Ok(connection);
            }
            if state.is_cooling() {
                return Err(unreachable("it failed a moment ago"));
            }
            let mut addresses: Vec<_> = state.told.iter().chain(&state.given).cloned().collect();
            addresses.dedup();
            addresses
        };
        let mut problem = "no address of it is known".to_owned();
        for address in addresses {
            let dialled = timeout_at(deadline.at(), self.dial(&address, &node_name(node))).await;
            match dialled.unwrap_or_else(|_| Err("time is up".to_owned())) {
                Ok((found, connection)) if found == entry.node => {
                    let connection = Arc::new(connection);
                    entry.state().succeed(connection.clone());
                    return Ok(connection);
                }
                Ok((found, _)) => problem = format!("{address} is node {found}"),
                Err(text) => problem = format!("{address}: {text}"),
            }
        }
        entry.state().fail();
        Err(ClientError::Unreachable { node, problem })
    }

    /// Dials an address whose node is not known yet, and knows it from now on.
    pub(crate) async fn connect_address(
        &self,
        address: &str,
    ) -> Result<Arc<NodeConnection>, String> {
        let (node, connection) = self.dial(address, NODE_NAME).await?;
        let entry = self.entry_or_new(node);
        let mut state = entry.state();
        state.given = Some(address.to_owned());
        // A dial of another caller may have won; then this one is superfluous.
        if let Some(connection) = state.live() {
            return Ok(connection);
        }
        let connection = Arc::new(connection);
        state.succeed(connection.clone());
        Ok(connection)
    }

    async fn dial(&self, address: &str, name: &str) -> Result<(NodeId, NodeConnection), String> {
        let connected = timeout(self.connect_timeout, async {
            let resolved = self.resolve(address).await?;
            let connecting = self
                .endpoint
                .connect_with(self.dialling.clone(), resolved, name)
                .map_err(|error| error.to_string())?;
            connecting.await.map_err(|error| match error {
                quinn::ConnectionError::TransportError(error) => format!(
                    "{error}: is it a node of the cluster whose authority this client trusts?"
                ),
                error => error.to_string(),
            })
        });
        let connection = connected
            .await
            .map_err(|_| format!("no answer within {:?}", self.connect_timeout))??;
        let identity =
            PeerIdentity::of_connection(&connection).map_err(|error| error.to_string())?;
        let PeerIdentity::Node(node) = identity else {
            return Err("the certificate there is a client's".to_owned());
        };
        let connection = NodeConnection::start(node, connection, self.budget.clone())
            .await
            .map_err(|error| error.to_string())?;
        Ok((node, connection))
    }

    async fn resolve(&self, address: &str) -> Result<SocketAddr, String> {
        let dual = self.endpoint.local_addr().is_ok_and(|local| local.is_ipv6());
        let mut found =
            tokio::net::lookup_host(address).await.map_err(|error| error.to_string())?;
        found
            .find(|resolved| dual || resolved.is_ipv4())
            .ok_or_else(|| "no address that the local socket reaches".to_owned())
    }

    /// Ends all connections.
    pub(crate) fn close(&self) {
        self.endpoint.close(quinn::VarInt::from_u32(0), b"done");
    }

    /// Waits until the nodes were told of the end.
    pub(crate) async fn closed(&self) {
        self.endpoint.wait_idle().await;
    }
}

/// The unspecified address of the family of the first address that can be resolved.
async fn any_address_towards(addresses: &[String]) -> Result<SocketAddr, ClientError> {
    let mut problem = String::new();
    for address in addresses {
        match tokio::net::lookup_host(address).await.map(|mut found| found.next()) {
            Ok(Some(SocketAddr::V4(_))) => return Ok(([0, 0, 0, 0], 0).into()),
            Ok(Some(SocketAddr::V6(_))) => return Ok(([0_u16; 8], 0).into()),
            Ok(None) => problem = format!("{address}: no such host"),
            Err(error) => problem = format!("{address}: {error}"),
        }
    }
    Err(ClientError::NoNode(problem))
}
