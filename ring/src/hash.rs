//! The hash of the ring: xxh3-64 over bytes that are laid by hand.
//!
//! Invariants:
//!
//! - A hash never changes: `tests/golden/` and the test below pin it. The default hasher of `hashring`
//!   and the `Hash` of std types are not formats and stay out.
//! - Points of virtual nodes are over 12 bytes, points of partitions over 4, scores over 13: a point of one kind
//!   is never a point of another by construction of the input.

use std::hash::{BuildHasher, Hash, Hasher};

use starling_clock::NodeId;
use xxhash_rust::xxh3::xxh3_64;

use crate::Partition;

/// Gives [`StableHasher`]s to `HashRing`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StableHash;

impl BuildHasher for StableHash {
    type Hasher = StableHasher;

    fn build_hasher(&self) -> StableHasher {
        StableHasher(None)
    }
}

/// xxh3-64 of the one slice it is given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StableHasher(Option<u64>);

impl Hasher for StableHasher {
    /// # Panics
    /// On a second slice: then the value does not lay its bytes by hand, and how they are split is no format.
    fn write(&mut self, bytes: &[u8]) {
        assert!(self.0.is_none(), "a hashed value is one slice of canonical bytes");
        self.0 = Some(xxh3_64(bytes));
    }

    fn finish(&self) -> u64 {
        self.0.expect("a hashed value writes its canonical bytes")
    }
}

/// One of the points that a member has on the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VirtualNode {
    /// Whose point it is.
    pub(crate) node: NodeId,
    /// Counts the points of one member from zero.
    pub(crate) index: u32,
    /// The member's index in its epoch. Not hashed: it changes when others join.
    pub(crate) member: u32,
}

impl Hash for VirtualNode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&self.node.0.to_le_bytes());
        bytes[8..].copy_from_slice(&self.index.to_le_bytes());
        state.write(&bytes);
    }
}

/// Where on the ring the walk of a partition begins. Scattered, so that neighbours do not fill one node together.
pub(crate) fn partition_point(partition: Partition) -> u64 {
    xxh3_64(&partition.0.to_le_bytes())
}

/// How much `partition` wants `node` beyond the walk: highest random weight (Thaler and Ravishankar, 1998).
pub(crate) fn score(partition: Partition, node: NodeId) -> u64 {
    let mut bytes = [0; 13];
    bytes[..4].copy_from_slice(&partition.0.to_le_bytes());
    bytes[4..12].copy_from_slice(&node.0.to_le_bytes());
    xxh3_64(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A change here is a change of format: existing clusters would lose their data.
    #[test]
    fn hashes_never_change() {
        let virtual_node = VirtualNode { node: NodeId(7), index: 3, member: 9 };
        assert_eq!(StableHash.hash_one(virtual_node), 0x6e88_25a8_8043_2387);
        assert_eq!(partition_point(Partition(5)), 0xbb30_6458_108c_a26e);
        assert_eq!(score(Partition(5), NodeId(7)), 0xf84a_7c31_262e_ef8a);
    }

    #[test]
    fn place_among_members_is_not_hashed() {
        let first = VirtualNode { node: NodeId(7), index: 3, member: 0 };
        let later = VirtualNode { member: 8, ..first };
        assert_eq!(StableHash.hash_one(first), StableHash.hash_one(later));
    }

    #[test]
    #[should_panic(expected = "one slice of canonical bytes")]
    fn values_of_two_writes_are_refused() {
        StableHash.hash_one((1_u32, 2_u32));
    }
}
