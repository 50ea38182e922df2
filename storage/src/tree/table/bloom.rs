//! The Bloom filter of a section of a table: which keys it may hold (Bloom, 1970; double hashing after Kirsch and Mitzenmacher, 2006).
//!
//! Invariants:
//!
//! - No false negatives: a key that was added is always found.
//! - At 10 bits a key about 1 % of the absent keys are found (`false_positives_are_about_one_percent` measures it).
//! - The hash is xxh3-64, part of the format: it never changes within a format version.
//!
//! The filter answers for a key, not for a version of it: all versions of a key are one entry.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use crate::tree::internal_key;

/// Bits set for each key, whatever the size of the filter: right for 10 bits a key (x ln 2, rounded).
pub(crate) const PROBES: u32 = 7;

/// The hash of a key, from the part of its internal key before the stamp.
pub(crate) fn key_hash(prefix: &[u8]) -> u64 {
    xxh3_64(internal_key::filter_part(prefix))
}

/// A filter as it is on disk: its bits, nothing else.
#[derive(Clone, Debug)]
pub(crate) struct Bloom {
    bits: Bytes,
}

impl Bloom {
    /// The filter that holds the keys of these hashes, in `bits_per_key` bits for each.
    pub(crate) fn build(hashes: &[u64], bits_per_key: usize) -> Self {
        let mut bits = vec![0_u8; (hashes.len() * bits_per_key).div_ceil(8)];
        let count = bits.len() as u64 * 8;
        for &hash in hashes.iter().filter(|_| 0 < count) {
            for bit in probes(hash, count) {
                bits[bit / 8] |= 1 << (bit % 8);
            }
        }
        Self { bits: bits.into() }
    }

    /// From the bytes of [`Self::bytes`]. Any bytes are a filter; no bytes are one that rules nothing out.
    pub(crate) fn from_bytes(bits: Bytes) -> Self {
        Self { bits }
    }

    /// What goes to disk.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bits
    }

    /// Whether the key of this hash may have been added.
    #[inline]
    pub(crate) fn may_contain(&self, hash: u64) -> bool {
        let bits = &self.bits[..];
        let count = bits.len() as u64 * 8;
        if count == 0 {
            return true;
        }
        // All bits are looked at, whatever the first ones are: one wait for memory in place of two on the average,
        // and one branch that mostly goes the same way.
        let all = probes(hash, count).fold(u8::MAX, |all, bit| all & bits[bit / 8] >> (bit % 8));
        all & 1 != 0
    }
}

/// The bits of a key in a filter of `count` bits. The high half of the product maps a hash onto the range evenly.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the high half of the product is below `count`, a size in memory"
)]
fn probes(hash: u64, count: u64) -> impl Iterator<Item = usize> {
    let delta = hash.rotate_left(32) | 1;
    (0..u64::from(PROBES)).map(move |probe| {
        let hash = hash.wrapping_add(delta.wrapping_mul(probe));
        ((u128::from(hash) * u128::from(count)) >> 64) as usize
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::KeyspaceId;

    fn hashes(keyspace: u64, count: u32) -> Vec<u64> {
        let prefix =
            |n: u32| internal_key::prefix(n % 7, KeyspaceId(keyspace), format!("k{n}").as_bytes());
        (0..count).map(|n| key_hash(&prefix(n))).collect()
    }

    #[test]
    fn no_key_is_missed() {
        for count in [1, 2, 7, 100, 10_000] {
            let hashes = hashes(1, count);
            let bloom =
                Bloom::from_bytes(Bytes::copy_from_slice(Bloom::build(&hashes, 10).bytes()));
            assert!(hashes.iter().all(|&hash| bloom.may_contain(hash)), "{count} keys");
        }
    }

    #[test]
    fn false_positives_are_about_one_percent() {
        let bloom = Bloom::build(&hashes(1, 100_000), 10);
        let absent = hashes(2, 100_000);
        let found = absent.iter().filter(|&&hash| bloom.may_contain(hash)).count();
        assert!((500..1_300).contains(&found), "{found} of 100,000");
    }

    #[test]
    fn no_bits_rule_nothing_out() {
        assert!(Bloom::build(&hashes(1, 3), 0).may_contain(7));
        assert!(Bloom::build(&[], 10).may_contain(7));
    }
}
