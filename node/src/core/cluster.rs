//! [`Cluster`]: the ring epoch this node runs by, and the routing table of each replication factor in use.
//!
//! Invariants:
//!
//! - All tables are of the one epoch; each is made once, when it is first asked for.
//! - Every member has an address.
//!
//! It does not know who is alive, and epochs do not change while the node runs.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use starling_clock::NodeId;
use starling_ring::{Epoch, Partition, ReplicationFactor, RoutingTable};

use super::error::StartError;

/// Who is in the ring and where keys go.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    own: NodeId,
    epoch: Epoch,
    digest: u64,
    addresses: BTreeMap<NodeId, SocketAddr>,
    tables: BTreeMap<u8, RoutingTable>,
}

impl Cluster {
    /// The cluster `name` in `epoch`, from the side of `own`.
    ///
    /// # Errors
    /// [`StartError`] if `own` is no member or a member has no address.
    pub fn new(
        name: String,
        own: NodeId,
        epoch: Epoch,
        addresses: BTreeMap<NodeId, SocketAddr>,
    ) -> Result<Self, StartError> {
        if epoch.member(own).is_none() {
            return Err(StartError::NotAMember(own));
        }
        for member in epoch.members() {
            if !addresses.contains_key(&member.node) {
                return Err(StartError::NoAddress(member.node));
            }
        }
        let digest = epoch.digest();
        Ok(Self { name, own, epoch, digest, addresses, tables: BTreeMap::new() })
    }

    /// What the cluster is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// This node.
    pub fn own(&self) -> NodeId {
        self.own
    }

    /// The epoch.
    pub fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// Digest of the epoch.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Where a member was configured to be.
    pub fn address(&self, node: NodeId) -> Option<SocketAddr> {
        self.addresses.get(&node).copied()
    }

    /// Every member but this node.
    pub fn peers(&self) -> impl Iterator<Item = NodeId> {
        let own = self.own;
        self.epoch.members().iter().map(|member| member.node).filter(move |&node| node != own)
    }

    /// Whether the node is a member of the epoch.
    pub fn is_member(&self, node: NodeId) -> bool {
        self.epoch.member(node).is_some()
    }

    /// The partition of a key.
    pub fn partition_of(&self, key: &[u8]) -> u32 {
        self.epoch.partitions().partition_of(key).0
    }

    /// The table for a replication factor, made when it is first asked for.
    ///
    /// # Panics
    /// If the factor is not from 1 to 16: settings are checked where they come in.
    pub fn table(&mut self, replication: u8) -> &RoutingTable {
        let Self { epoch, tables, .. } = self;
        tables.entry(replication).or_insert_with(|| {
            let factor = ReplicationFactor::new(replication).expect("settings are checked");
            RoutingTable::new(epoch, factor)
        })
    }

    /// The tables of all replication factors that are in use.
    pub fn tables(&self) -> impl Iterator<Item = &RoutingTable> {
        self.tables.values()
    }

    /// The home replicas of a partition.
    ///
    /// # Panics
    /// If there is no such partition or the factor is not from 1 to 16.
    pub fn homes(&mut self, replication: u8, partition: u32) -> &[NodeId] {
        self.table(replication).preference_list(Partition(partition))
    }
}
