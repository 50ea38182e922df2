//! Keys and values of the engine workloads. All of it follows from a seed, and is the same for every engine.
//!
//! - A key is 16 bytes: 15 digits and a `0`. Ascending numbers are ascending keys; a hundred share their first 13 bytes.
//! - An absent key ends in `5`: it lies between two that are there, so that no engine can tell by its bounds.
//! - A value is random bytes of which half repeat (as `db_bench` has it), so that compression halves it.

use std::sync::Arc;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Zipf};

/// Bytes of a key.
pub(super) const KEY_SIZE: usize = 16;
/// Keys that share a prefix of [`PREFIX_SIZE`] bytes.
pub(super) const PREFIX_ROWS: u64 = 100;
/// Bytes of a prefix.
pub(super) const PREFIX_SIZE: usize = 13;
/// Bytes that values are cut out of.
const POOL_SIZE: usize = 1 << 20;
/// A piece of the pool: half of it random, and that half twice.
const PIECE_SIZE: usize = 100;
const ZIPF_EXPONENT: f64 = 0.99;

/// Key number `number`.
pub(super) fn key(number: u64) -> [u8; KEY_SIZE] {
    let mut key = [b'0'; KEY_SIZE];
    let mut rest = number;
    for digit in key[..KEY_SIZE - 1].iter_mut().rev() {
        *digit = b'0' + u8::try_from(rest % 10).expect("one digit");
        rest /= 10;
    }
    assert_eq!(rest, 0, "a number of at most 15 digits");
    key
}

/// A key that was never written, right after key number `number`.
pub(super) fn absent_key(number: u64) -> [u8; KEY_SIZE] {
    let mut key = key(number);
    key[KEY_SIZE - 1] = b'5';
    key
}

/// What the hundred keys of group `group` begin with.
pub(super) fn prefix(group: u64) -> [u8; PREFIX_SIZE] {
    let key = key(group * PREFIX_ROWS);
    key[..PREFIX_SIZE].try_into().expect("a key is longer than its prefix")
}

/// A prefix that no key has, right after the keys of group `group`.
pub(super) fn absent_prefix(group: u64) -> [u8; PREFIX_SIZE + 1] {
    let mut absent = [b':'; PREFIX_SIZE + 1];
    absent[..PREFIX_SIZE].copy_from_slice(&prefix(group));
    absent
}

/// Values, cut out of one pool piece by piece. Clones share the pool.
#[derive(Clone)]
pub(super) struct Values {
    pool: Arc<[u8]>,
    size: usize,
    position: usize,
}

impl Values {
    /// Values of `size` bytes.
    ///
    /// # Panics
    /// If they are longer than the pool.
    pub(super) fn new(size: usize, seed: u64) -> Self {
        assert!(0 < size && size <= POOL_SIZE);
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut pool = Vec::with_capacity(POOL_SIZE + PIECE_SIZE);
        while pool.len() < POOL_SIZE {
            let mut half = [0; PIECE_SIZE / 2];
            random.fill(&mut half[..]);
            pool.extend_from_slice(&half);
            pool.extend_from_slice(&half);
        }
        Self { pool: pool.into(), size, position: 0 }
    }

    /// The same values from another place on, so that threads do not all write the same ones.
    pub(super) fn starting_at(&self, piece: usize) -> Self {
        Self { position: piece * PIECE_SIZE % POOL_SIZE, ..self.clone() }
    }

    /// The next one.
    pub(super) fn next(&mut self) -> &[u8] {
        if self.pool.len() < self.position + self.size {
            self.position = 0;
        }
        let value = &self.pool[self.position..self.position + self.size];
        self.position += self.size;
        value
    }
}

/// A permutation of `0..count`: a Feistel network over the next power of four, walked until it falls inside.
#[derive(Clone, Copy, Debug)]
pub(super) struct Permutation {
    count: u64,
    half_bits: u32,
    seed: u64,
}

impl Permutation {
    /// Of `0..count`.
    ///
    /// # Panics
    /// If there is nothing to permute, or more than 2^60.
    pub(super) fn new(count: u64, seed: u64) -> Self {
        assert!(0 < count && count <= 1 << 60);
        let bits = u64::BITS - (count - 1).leading_zeros();
        Self { count, half_bits: bits.div_ceil(2).max(1), seed }
    }

    /// What stands at `index`.
    pub(super) fn get(&self, index: u64) -> u64 {
        assert!(index < self.count);
        let mut number = index;
        loop {
            number = self.round_trip(number);
            if number < self.count {
                return number;
            }
        }
    }

    fn round_trip(&self, number: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (number >> self.half_bits, number & mask);
        for round in 0..4 {
            let mixed = mix(right ^ self.seed.wrapping_add(round)) & mask;
            (left, right) = (right, left ^ mixed);
        }
        left << self.half_bits | right
    }
}

/// The finalizer of `SplitMix64`.
fn mix(number: u64) -> u64 {
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

/// `length` numbers below `count`, each as likely as any other.
pub(super) fn uniform(count: u64, length: u64, seed: u64) -> Vec<u64> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..length).map(|_| random.random_range(0..count)).collect()
}

/// `length` numbers below `count`, skewed (Zipf, exponent 0.99); the frequent ones lie scattered.
pub(super) fn zipfian(count: u64, length: u64, seed: u64) -> Vec<u64> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    #[expect(clippy::cast_precision_loss, reason = "a count of keys, far below 2^52")]
    let zipf = Zipf::new(count as f64, ZIPF_EXPONENT).expect("at least one key");
    let scattered = Permutation::new(count, seed);
    let mut next = || {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rank from 1 to `count`"
        )]
        let rank = zipf.sample(&mut random) as u64;
        scattered.get((rank - 1).min(count - 1))
    };
    (0..length).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn keys_ascend_and_absent_ones_lie_between() {
        for number in [0, 9, 99, 12_345, 999_999_999_998] {
            assert!(key(number) < absent_key(number));
            assert!(absent_key(number) < key(number + 1));
        }
        assert_eq!(&key(123), b"0000000000001230");
    }

    #[test]
    fn a_prefix_has_a_hundred_keys_and_an_absent_one_none() {
        let (prefix, absent) = (prefix(7), absent_prefix(7));
        let with = (0..2000).filter(|number| key(*number).starts_with(&prefix));
        assert_eq!(with.collect::<Vec<_>>(), (700..800).collect::<Vec<_>>());
        assert!(key(799)[..] < absent[..] && absent[..] < key(800)[..]);
    }

    #[test]
    fn a_permutation_has_each_number_once_and_is_not_sorted() {
        for count in [1, 2, 3, 1000, 4096, 4097] {
            let permutation = Permutation::new(count, 5);
            let seen: BTreeSet<u64> = (0..count).map(|index| permutation.get(index)).collect();
            assert_eq!(seen, (0..count).collect());
        }
        let permutation = Permutation::new(10_000, 5);
        let ascents = (1..10_000).filter(|i| permutation.get(i - 1) < permutation.get(*i)).count();
        assert!((4500..5500).contains(&ascents), "{ascents} of 9999");
    }

    #[test]
    fn values_are_the_same_for_a_seed_and_half_of_them_repeats() {
        let (mut a, mut b) = (Values::new(100, 1), Values::new(100, 1));
        for _ in 0..20_000 {
            let value = a.next();
            assert_eq!(value, b.next());
            assert_eq!(value.len(), 100);
        }
        assert_ne!(Values::new(100, 1).next(), Values::new(100, 2).next());
        let mut values = Values::new(PIECE_SIZE, 1);
        let value = values.next();
        assert_eq!(value[..PIECE_SIZE / 2], value[PIECE_SIZE / 2..]);
    }

    #[test]
    fn zipf_has_its_top_key_and_uniform_has_none() {
        let top = |numbers: Vec<u64>| {
            let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
            for number in numbers {
                assert!(number < 100_000);
                *counts.entry(number).or_default() += 1;
            }
            counts.into_values().max().unwrap()
        };
        let skewed = top(zipfian(100_000, 100_000, 3));
        assert!((7000..9000).contains(&skewed), "about 7.8 %, not {skewed} of 100,000");
        assert!(top(uniform(100_000, 100_000, 3)) < 20);
    }
}
