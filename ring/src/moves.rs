//! [`moves`]: the ranges that change hands between two epochs.
//!
//! Invariants:
//!
//! - A partition is named if and only if its set of home replicas differs; order in the list is no difference.
//! - What is gained comes from the sources where there are any: they are home before and after.
//!
//! It does not plan the transfers: who sends to whom, when and how fast.

use starling_clock::NodeId;

use crate::{Partition, RoutingTable};

/// What becomes of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Which one.
    pub partition: Partition,
    /// Nodes that become home replicas and have to be sent the range, in order of preference.
    pub gained: Vec<NodeId>,
    /// Nodes that cease to be, and may drop the range once the epoch before is closed. They hold it until then.
    pub lost: Vec<NodeId>,
    /// Nodes that are home replicas in both. Empty if all are replaced: then the lost ones have to send.
    pub sources: Vec<NodeId>,
}

/// The partitions whose home replicas differ between two tables, ascending. The replication factors may differ too.
///
/// # Panics
/// If the tables cut the key space differently: a cluster's number of partitions never changes.
pub fn moves(from: &RoutingTable, to: &RoutingTable) -> Vec<Move> {
    assert_eq!(from.partitions(), to.partitions(), "tables of two clusters");
    let without = |list: &[NodeId], other: &[NodeId]| -> Vec<NodeId> {
        list.iter().copied().filter(|node| !other.contains(node)).collect()
    };
    from.partitions()
        .all()
        .filter_map(|partition| {
            let (before, after) = (from.preference_list(partition), to.preference_list(partition));
            let (gained, lost) = (without(after, before), without(before, after));
            if gained.is_empty() && lost.is_empty() {
                return None;
            }
            let sources = without(after, &gained);
            Some(Move { partition, gained, lost, sources })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Epoch, Member, Partitions, ReplicationFactor};

    fn table(nodes: &[u64], partitions: u32, replication: u8) -> RoutingTable {
        let member = |&node| Member { node: NodeId(node), zone: String::new(), weight: 1 };
        let members = nodes.iter().map(member).collect();
        let epoch = Epoch::new(1, Partitions::new(partitions).unwrap(), members).unwrap();
        RoutingTable::new(&epoch, ReplicationFactor::new(replication).unwrap())
    }

    #[test]
    fn nothing_moves_between_equal_tables() {
        assert_eq!(moves(&table(&[1, 2, 3], 64, 2), &table(&[3, 2, 1], 64, 2)), []);
    }

    #[test]
    fn the_first_join_moves_everything_to_the_newcomer() {
        let all = moves(&table(&[1], 4, 3), &table(&[1, 2], 4, 3));
        let partitions: Vec<u32> = all.iter().map(|each| each.partition.0).collect();
        assert_eq!(partitions, [0, 1, 2, 3]);
        for each in all {
            assert_eq!(each.gained, [NodeId(2)]);
            assert_eq!(each.lost, []);
            assert_eq!(each.sources, [NodeId(1)]);
        }
    }

    #[test]
    fn a_full_replacement_has_no_sources() {
        let all = moves(&table(&[1], 1, 1), &table(&[2], 1, 1));
        let (gained, lost) = (vec![NodeId(2)], vec![NodeId(1)]);
        assert_eq!(all, [Move { partition: Partition(0), gained, lost, sources: vec![] }]);
    }

    #[test]
    fn a_higher_replication_factor_only_gains() {
        for each in moves(&table(&[1, 2, 3], 64, 1), &table(&[1, 2, 3], 64, 3)) {
            assert_eq!((each.gained.len(), each.lost.len(), each.sources.len()), (2, 0, 1));
        }
    }

    #[test]
    #[should_panic(expected = "tables of two clusters")]
    fn tables_of_two_clusters_are_a_programmer_error() {
        moves(&table(&[1], 4, 1), &table(&[1], 8, 1));
    }
}
