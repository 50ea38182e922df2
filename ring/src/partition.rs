//! [`Partition`] and [`Partitions`]: the fixed cut of the key space.
//!
//! Invariants:
//!
//! - The number of partitions is a power of two, set when the cluster is made, and never changes.
//! - The partition of a key is the top bits of xxh3-64 over its bytes, for ever.

use std::fmt;

use xxhash_rust::xxh3::xxh3_64;

/// The most partitions that a cluster may have.
pub const PARTITIONS_MAX: u32 = 1 << 16;

const _: () = assert!(PARTITIONS_MAX.is_power_of_two());

/// A range of key hashes: the unit of placement, transfer, digests and order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition(pub u32);

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The number asked for is not a power of two, zero, or over [`PARTITIONS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} partitions: the number must be a power of two from 1 to {PARTITIONS_MAX}")]
pub struct PartitionsError(pub u32);

/// How many partitions the cluster has: a power of two from 1 to [`PARTITIONS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partitions(u32);

impl Default for Partitions {
    /// 1024: good for some fifty nodes. Beyond, a node holds so few that a cap is a few replicas more or less, and a
    /// join moves twice or three times what it has to (measured at 100 nodes, N = 3; 16,384 partitions: 1.14 times).
    fn default() -> Self {
        Self(1024)
    }
}

impl Partitions {
    /// A cut into `count` partitions.
    ///
    /// # Errors
    /// [`PartitionsError`] if `count` is not a power of two from 1 to [`PARTITIONS_MAX`].
    pub const fn new(count: u32) -> Result<Self, PartitionsError> {
        if count.is_power_of_two() && count <= PARTITIONS_MAX {
            Ok(Self(count))
        } else {
            Err(PartitionsError(count))
        }
    }

    /// How many there are.
    pub const fn count(self) -> u32 {
        self.0
    }

    /// Every partition, in order.
    pub fn all(self) -> impl ExactSizeIterator<Item = Partition> + DoubleEndedIterator {
        (0..self.0).map(Partition)
    }

    /// Whether there is such a partition.
    pub const fn contains(self, partition: Partition) -> bool {
        partition.0 < self.0
    }

    /// The partition of `key`: the top bits of xxh3-64 over its bytes.
    pub fn partition_of(self, key: &[u8]) -> Partition {
        let bits = self.0.trailing_zeros();
        let top = xxh3_64(key).checked_shr(u64::BITS - bits).unwrap_or(0);
        Partition(u32::try_from(top).expect("at most 16 bits are left"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_powers_of_two_within_the_bound() {
        for count in [1, 2, 1024, PARTITIONS_MAX] {
            assert_eq!(Partitions::new(count).map(Partitions::count), Ok(count));
        }
        for count in [0, 3, 1000, PARTITIONS_MAX + 1, PARTITIONS_MAX * 2, u32::MAX] {
            assert_eq!(Partitions::new(count), Err(PartitionsError(count)));
        }
        assert_eq!(
            PartitionsError(3).to_string(),
            "3 partitions: the number must be a power of two from 1 to 65536"
        );
    }

    /// A change here is a change of format: existing clusters would lose their data.
    #[test]
    fn partition_of_a_key_never_changes() {
        // xxh3-64 of no bytes is 2d06800538d394c2, from the specification of xxHash.
        let all = [(1, 0), (2, 0), (16, 2), (256, 0x2d), (65_536, 0x2d06)];
        for (count, partition) in all {
            let partitions = Partitions::new(count).unwrap();
            assert_eq!(partitions.partition_of(b""), Partition(partition), "of {count}");
        }
        assert_eq!(Partitions::default().partition_of(b"us7000kufc"), Partition(116));
    }

    #[test]
    fn half_as_many_partitions_halve_the_number() {
        for key in 0..1000_u32 {
            let fine = Partitions::new(4096).unwrap().partition_of(&key.to_le_bytes());
            let coarse = Partitions::new(2048).unwrap().partition_of(&key.to_le_bytes());
            assert_eq!(fine.0 / 2, coarse.0);
        }
    }
}
