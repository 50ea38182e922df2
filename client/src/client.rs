//! [`Client`]: a cluster as one thing.
//!
//! Invariants:
//!
//! - One socket, one connection a node, however many clones of the client there are.
//! - The greatest hybrid time that any answer showed goes with every later request (GUARANTEES G5).
//! - When the last clone is dropped, connections and tasks end.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock, Weak};
use std::time::Duration;

use rand::TryRng;
use rand::rngs::SysRng;
use starling_clock::{HybridTime, NodeId, Stamp};
use tokio::sync::{Notify, Semaphore};

use crate::call::{Call, Target};
use crate::changes::Changes;
use crate::config::ClientConfig;
use crate::error::ClientError;
use crate::keyspace::Keyspace;
use crate::nodes::Nodes;
use crate::routing::Routing;
use crate::time::Deadline;
use crate::wire::{KeyspaceSettings, NodeStatus, Request, RequestId, Response, Topology};

/// Between two looks at who is in the cluster.
const REFRESH_PAUSE: Duration = Duration::from_millis(100);
/// Between two rounds over the addresses at the start.
const CONNECT_PAUSE: Duration = Duration::from_millis(100);

/// A connection to a cluster. Clones are cheap and share everything; all methods may be used at once.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: ClientConfig,
    pub(crate) nodes: Nodes,
    pub(crate) in_flight: Semaphore,
    routing: RwLock<Arc<Routing>>,
    /// Who is in the cluster may have changed.
    stale: Arc<Notify>,
    id: u64,
    sequence: AtomicU64,
    observed: AtomicU64,
    turn: AtomicUsize,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stale.notify_one();
        self.nodes.close();
    }
}

impl Client {
    /// Finds the cluster through any of the addresses. Tries for `request_timeout`.
    ///
    /// # Errors
    /// [`ClientError::Config`], [`ClientError::Tls`], [`ClientError::Socket`] at once; [`ClientError::NoNode`] if
    /// no address led to a node that answers.
    ///
    /// # Panics
    /// Outside a tokio runtime with time and I/O.
    pub async fn connect(config: ClientConfig) -> Result<Self, ClientError> {
        config.check()?;
        let nodes = Nodes::open(&config).await?;
        let id = SysRng.try_next_u64().map_err(|error| {
            ClientError::Config(format!("the system has no random numbers: {error}"))
        })?;
        let stale = Arc::new(Notify::new());
        let unknown = Topology {
            cluster: "".into(),
            node: NodeId(0).into(),
            epoch: 0,
            epoch_digest: 0,
            partitions: 0,
            members: Vec::new().into(),
        };
        let inner = Arc::new(Inner {
            nodes,
            in_flight: Semaphore::new(config.in_flight_max),
            routing: RwLock::new(Arc::new(Routing::new(unknown, &[], None))),
            stale: stale.clone(),
            id,
            sequence: AtomicU64::new(1),
            observed: AtomicU64::new(0),
            turn: AtomicUsize::new(usize::try_from(id >> 40).expect("24 bits")),
            config,
        });
        inner.find_cluster().await?;
        tokio::spawn(keep_fresh(Arc::downgrade(&inner), stale));
        Ok(Self { inner })
    }

    /// The keyspace `name`, whether it exists or not. `default` always does.
    pub fn keyspace(&self, name: impl Into<String>) -> Keyspace {
        Keyspace::new(self.clone(), name.into())
    }

    /// What the nodes apply, as it happens.
    pub fn changes(&self) -> Changes {
        Changes::new(self.clone())
    }

    /// How `node` is, by its own account.
    ///
    /// # Errors
    /// [`ClientError::UnknownNode`]; otherwise as of a read.
    pub async fn status(&self, node: NodeId) -> Result<NodeStatus, ClientError> {
        let mut call = self.inner.call(&Request::Status, Target::Node(node));
        match call.run().await? {
            Response::Status(status) => Ok(*status),
            other => Err(call.misfit(&other)),
        }
    }

    /// Who is in the cluster, asked now.
    ///
    /// # Errors
    /// As of a read.
    pub async fn topology(&self) -> Result<Topology, ClientError> {
        self.inner.refresh().await?;
        Ok(self.inner.routing().topology().clone())
    }

    /// Who is in the cluster, as `node` sees it now.
    ///
    /// # Errors
    /// [`ClientError::UnknownNode`]; otherwise as of a read.
    pub async fn topology_of(&self, node: NodeId) -> Result<Topology, ClientError> {
        self.inner.topology_from(Target::Node(node)).await
    }

    /// The members' ids, as last heard.
    pub fn nodes(&self) -> Vec<NodeId> {
        self.inner.routing().members().collect()
    }

    /// Makes a keyspace and says how many nodes have it on disk. The same settings again are fine.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `KeyspaceExists` if it exists with other settings, or with what is wrong with these.
    pub async fn create_keyspace(&self, settings: KeyspaceSettings) -> Result<u32, ClientError> {
        let request = Request::KeyspaceCreate { settings };
        let mut call = self.inner.call(&request, Target::Any).changes_something();
        match call.run().await? {
            Response::KeyspaceCreated { nodes } => {
                self.inner.look_again();
                Ok(nodes)
            }
            other => Err(call.misfit(&other)),
        }
    }

    /// All keyspaces, by name.
    ///
    /// # Errors
    /// As of a read.
    pub async fn keyspaces(&self) -> Result<Vec<KeyspaceSettings>, ClientError> {
        self.inner.keyspaces_from(Target::Any).await
    }

    /// The greatest hybrid time that this client has seen.
    pub fn observed(&self) -> HybridTime {
        HybridTime::from_packed(self.inner.observed()).unwrap_or(HybridTime::MAX)
    }

    /// Moves the client past `time`: what it does from now on is ordered after it. For what was seen by another client.
    pub fn observe(&self, time: HybridTime) {
        self.inner.observe(time);
    }

    /// Ends the client and all its clones: calls under way fail, later ones get [`ClientError::Closed`]. Waits until
    /// the nodes were told.
    pub async fn close(&self) {
        self.inner.in_flight.close();
        self.inner.nodes.close();
        self.inner.nodes.closed().await;
    }
}

impl Inner {
    pub(crate) fn routing(&self) -> Arc<Routing> {
        self.routing.read().expect("nothing panics while it holds this lock").clone()
    }

    pub(crate) fn call<'a>(&'a self, request: &'a Request, target: Target<'a>) -> Call<'a> {
        Call::new(self, request, target)
    }

    pub(crate) fn next_request(&self) -> RequestId {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        RequestId { client: self.id, sequence }
    }

    pub(crate) fn next_turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn observed(&self) -> u64 {
        self.observed.load(Ordering::Relaxed)
    }

    pub(crate) fn observe(&self, time: HybridTime) {
        self.observed.fetch_max(time.packed(), Ordering::Relaxed);
    }

    pub(crate) fn observe_newest(&self, stamps: impl Iterator<Item = Stamp>) {
        if let Some(newest) = stamps.max() {
            self.observe(newest.time);
        }
    }

    /// Has the cluster asked soon who is in it.
    pub(crate) fn look_again(&self) {
        self.stale.notify_one();
    }

    /// Goes round the addresses until one leads to a node that tells of the cluster.
    async fn find_cluster(&self) -> Result<(), ClientError> {
        let deadline = Deadline::after(self.config.request_timeout);
        loop {
            let (mut problem, mut refused) = (String::new(), None);
            for address in &self.config.addresses {
                match self.nodes.connect_address(address).await {
                    Ok(connection) => {
                        match self.refresh_from(Target::Node(connection.node())).await {
                            Ok(()) => return Ok(()),
                            Err(error @ ClientError::Tls(_)) => refused = Some(error),
                            Err(error) => problem = format!("{address}: {error}"),
                        }
                    }
                    Err(text) => problem = format!("{address}: {text}"),
                }
            }
            if let Some(error) = refused {
                return Err(error);
            }
            if deadline.remaining() <= CONNECT_PAUSE {
                return Err(ClientError::NoNode(problem));
            }
            tokio::time::sleep(CONNECT_PAUSE).await;
        }
    }

    /// Asks whoever answers who is in the cluster and which keyspaces there are.
    pub(crate) async fn refresh(&self) -> Result<(), ClientError> {
        self.refresh_from(Target::Any).await
    }

    async fn refresh_from(&self, target: Target<'_>) -> Result<(), ClientError> {
        let topology = self.topology_from(target).await?;
        let keyspaces = self.keyspaces_from(target).await?;
        self.nodes.learn(&topology);
        let routing = Routing::new(topology, &keyspaces, Some(&self.routing()));
        *self.routing.write().expect("nothing panics while it holds this lock") = Arc::new(routing);
        Ok(())
    }

    async fn topology_from(&self, target: Target<'_>) -> Result<Topology, ClientError> {
        let mut call = self.call(&Request::Topology, target);
        match call.run().await? {
            Response::Topology(topology) => Ok(topology),
            other => Err(call.misfit(&other)),
        }
    }

    async fn keyspaces_from(
        &self,
        target: Target<'_>,
    ) -> Result<Vec<KeyspaceSettings>, ClientError> {
        let mut call = self.call(&Request::KeyspaceList, target);
        match call.run().await? {
            Response::Keyspaces(keyspaces) => Ok(keyspaces.0),
            other => Err(call.misfit(&other)),
        }
    }
}

/// The task that keeps the routing fresh; ends with the client.
async fn keep_fresh(client: Weak<Inner>, stale: Arc<Notify>) {
    loop {
        let Some(every) = client.upgrade().map(|inner| inner.config.topology_refresh) else {
            return;
        };
        tokio::select! {
            () = stale.notified() => {}
            () = tokio::time::sleep(every) => {}
        }
        let Some(inner) = client.upgrade() else { return };
        if inner.in_flight.is_closed() {
            return;
        }
        if let Err(error) = inner.refresh().await {
            tracing::debug!(%error, "no member tells of the cluster; going back to the addresses given");
            if let Err(error) = inner.find_cluster().await {
                tracing::warn!(%error, "the cluster is out of reach");
            }
        }
        drop(inner);
        tokio::time::sleep(REFRESH_PAUSE).await;
    }
}
