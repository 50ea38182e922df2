//! [`RoutingTable`]: the placement of one epoch at one replication factor, laid flat.
//!
//! Invariants:
//!
//! - A preference list names min(replication factor, members) distinct nodes.
//! - The table is a function of the epoch and the replication factor alone.
//! - Lookups allocate nothing.
//!
//! Lists of different replication factors are no prefixes of each other: the load cap bends each its own
//! way. A keyspace that changes its factor moves data.

use std::ops::Range;

use starling_clock::NodeId;

use crate::placement::place;
use crate::shares::Shares;
use crate::{Epoch, Partition, Partitions};

/// The largest replication factor.
pub const REPLICATION_MAX: u8 = 16;

/// The number asked for is zero or over [`REPLICATION_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("replication factor {0} is not from 1 to {REPLICATION_MAX}")]
pub struct ReplicationError(pub u8);

/// On how many distinct nodes a keyspace wants its data: N, from 1 to [`REPLICATION_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReplicationFactor(u8);

impl Default for ReplicationFactor {
    /// Three: a quorum survives the loss of one node.
    fn default() -> Self {
        Self(3)
    }
}

impl ReplicationFactor {
    /// A replication factor of `count`.
    ///
    /// # Errors
    /// [`ReplicationError`] if `count` is not from 1 to [`REPLICATION_MAX`].
    pub const fn new(count: u8) -> Result<Self, ReplicationError> {
        if 0 < count && count <= REPLICATION_MAX {
            Ok(Self(count))
        } else {
            Err(ReplicationError(count))
        }
    }

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// Who holds what, in one epoch at one replication factor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutingTable {
    epoch: u64,
    partitions: Partitions,
    replication: ReplicationFactor,
    /// Nodes of one list: the replication factor, or fewer if there are fewer members.
    list_length: usize,
    /// The preference lists, one after the other.
    homes: Vec<NodeId>,
    /// The members, sorted.
    nodes: Vec<NodeId>,
    /// Partitions of `nodes[i]`, ascending: `held[held_starts[i]..held_starts[i + 1]]`.
    held: Vec<Partition>,
    held_starts: Vec<usize>,
}

impl RoutingTable {
    /// Places all partitions of `epoch`. Costs O(virtual nodes x log) for the ring and some steps for each
    /// replica: milliseconds for tens of nodes, a second for thousands of nodes at the most partitions.
    pub fn new(epoch: &Epoch, replication: ReplicationFactor) -> Self {
        let shares = Shares::new(epoch, replication.get().into());
        let list_length = shares.replicas as usize;
        let members = place(epoch, &shares);
        let nodes: Vec<NodeId> = epoch.members().iter().map(|member| member.node).collect();

        let mut held_starts = vec![0; nodes.len() + 1];
        for &member in &members {
            held_starts[member as usize + 1] += 1;
        }
        for at in 1..held_starts.len() {
            held_starts[at] += held_starts[at - 1];
        }
        let mut held = vec![Partition(0); members.len()];
        let mut next = held_starts.clone();
        for (list, partition) in members.chunks_exact(list_length).zip(epoch.partitions().all()) {
            for &member in list {
                held[next[member as usize]] = partition;
                next[member as usize] += 1;
            }
        }
        let homes = members.iter().map(|&member| nodes[member as usize]).collect();
        let partitions = epoch.partitions();
        let epoch = epoch.number();
        Self { epoch, partitions, replication, list_length, homes, nodes, held, held_starts }
    }

    /// The number of the epoch that was placed.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// How the key space is cut.
    pub fn partitions(&self) -> Partitions {
        self.partitions
    }

    /// The replication factor asked for; lists are shorter if there are fewer members.
    pub fn replication(&self) -> ReplicationFactor {
        self.replication
    }

    /// The members of the epoch, ascending.
    pub fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    /// The home replicas of `partition`: distinct nodes, the preferred one first.
    ///
    /// # Panics
    /// If there is no such partition: numbers from outside are checked with [`Partitions::contains`].
    pub fn preference_list(&self, partition: Partition) -> &[NodeId] {
        assert!(self.partitions.contains(partition), "no partition {partition}");
        let start = partition.0 as usize * self.list_length;
        &self.homes[start..start + self.list_length]
    }

    /// The partition of `key` and its home replicas.
    pub fn route(&self, key: &[u8]) -> (Partition, &[NodeId]) {
        let partition = self.partitions.partition_of(key);
        (partition, self.preference_list(partition))
    }

    /// Whether `node` is a home replica of `partition`. Nodes that are no members are home to nothing.
    ///
    /// # Panics
    /// If there is no such partition.
    pub fn is_home(&self, node: NodeId, partition: Partition) -> bool {
        self.preference_list(partition).contains(&node)
    }

    /// The partitions that `node` is a home replica of, ascending; none if it is no member.
    pub fn partitions_of(
        &self,
        node: NodeId,
    ) -> impl ExactSizeIterator<Item = Partition> + DoubleEndedIterator {
        let held = self.nodes.binary_search(&node).map_or(0..0, |at| self.held_range(at));
        self.held[held].iter().copied()
    }

    /// How many partitions each member is a home replica of, ascending by node.
    pub fn loads(&self) -> impl ExactSizeIterator<Item = (NodeId, usize)> {
        self.nodes.iter().enumerate().map(|(at, &node)| (node, self.held_range(at).len()))
    }

    fn held_range(&self, at: usize) -> Range<usize> {
        self.held_starts[at]..self.held_starts[at + 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Member;

    fn table(nodes: u64, replication: u8) -> RoutingTable {
        let member = |node| Member { node: NodeId(node), zone: String::new(), weight: 1 };
        let members = (1..=nodes).map(member).collect();
        let epoch = Epoch::new(4, Partitions::default(), members).unwrap();
        RoutingTable::new(&epoch, ReplicationFactor::new(replication).unwrap())
    }

    #[test]
    fn replication_is_bounded() {
        for count in [0, REPLICATION_MAX + 1, u8::MAX] {
            assert_eq!(ReplicationFactor::new(count), Err(ReplicationError(count)));
        }
        for count in 1..=REPLICATION_MAX {
            assert_eq!(ReplicationFactor::new(count).map(ReplicationFactor::get), Ok(count));
        }
    }

    #[test]
    fn routing_agrees_with_itself() {
        let table = table(5, 3);
        assert_eq!((table.epoch(), table.replication().get()), (4, 3));
        for key in 0..1000_u32 {
            let key = key.to_le_bytes();
            let (partition, homes) = table.route(&key);
            assert_eq!(partition, table.partitions().partition_of(&key));
            assert_eq!(homes, table.preference_list(partition));
        }
        for &node in table.nodes() {
            let held: Vec<_> = table.partitions_of(node).collect();
            let scanned: Vec<_> =
                table.partitions().all().filter(|&all| table.is_home(node, all)).collect();
            assert_eq!(held, scanned);
        }
        let loads: usize = table.loads().map(|(_, load)| load).sum();
        assert_eq!(loads, 3 * 1024);
    }

    #[test]
    fn strangers_are_home_to_nothing() {
        let table = table(3, 2);
        assert_eq!(table.partitions_of(NodeId(9)).len(), 0);
        assert!(table.partitions().all().all(|partition| !table.is_home(NodeId(9), partition)));
    }

    #[test]
    fn fewer_members_make_shorter_lists() {
        let table = table(2, 3);
        assert_eq!(table.preference_list(Partition(0)).len(), 2);
        assert_eq!(table.replication().get(), 3);
    }

    #[test]
    #[should_panic(expected = "no partition 1024")]
    fn partitions_out_of_range_are_a_programmer_error() {
        table(3, 3).preference_list(Partition(1024));
    }
}
