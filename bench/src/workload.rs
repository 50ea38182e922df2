//! What the load generator asks: which keys, which values, reads or writes. All of it follows from a seed.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Zipf};

/// How keys are chosen.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
pub(crate) enum KeyChoice {
    /// Every key as likely as any other.
    Uniform,
    /// Zipf with exponent 0.99, the skew of YCSB: of 100,000 keys the top one takes 7.8 %.
    Zipf,
    /// One after the other, each once a round.
    Sequential,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Mix {
    /// Writes only.
    Put,
    /// Reads only; the keys are written first.
    Get,
    /// Half reads, half writes.
    Mixed,
}

/// One operation.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Write this value.
    Put {
        /// Key.
        key: Vec<u8>,
        /// Value.
        value: Vec<u8>,
    },
    /// Read.
    Get {
        /// Key.
        key: Vec<u8>,
    },
}

/// A source of operations for one client.
#[derive(Debug)]
pub(crate) struct Workload {
    random: ChaCha8Rng,
    choice: KeyChoice,
    zipf: Zipf<f64>,
    mix: Mix,
    keys: u64,
    key_size: usize,
    value_size: usize,
    next: u64,
    stride: u64,
}

/// What all clients of a run share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkloadConfig {
    pub(crate) choice: KeyChoice,
    pub(crate) mix: Mix,
    pub(crate) keys: u64,
    pub(crate) key_size: usize,
    pub(crate) value_size: usize,
    pub(crate) clients: u64,
    pub(crate) seed: u64,
}

impl Workload {
    /// The operations of client number `client`.
    ///
    /// # Panics
    /// If there are no keys or no clients; the command line checks both.
    pub(crate) fn new(config: &WorkloadConfig, client: u64) -> Self {
        assert!(0 < config.keys && 0 < config.clients);
        #[expect(clippy::cast_precision_loss, reason = "a count of keys, far below 2^52")]
        let zipf = Zipf::new(config.keys as f64, 0.99).expect("at least one key");
        Self {
            random: ChaCha8Rng::seed_from_u64(config.seed ^ client.wrapping_mul(0x9e37_79b9)),
            choice: config.choice,
            zipf,
            mix: config.mix,
            keys: config.keys,
            key_size: config.key_size,
            value_size: config.value_size,
            next: client,
            stride: config.clients,
        }
    }

    /// The next operation. There is always one.
    pub(crate) fn next(&mut self) -> Operation {
        let number = self.next_key();
        let read = match self.mix {
            Mix::Put => false,
            Mix::Get => true,
            Mix::Mixed => self.random.random(),
        };
        let key = key_bytes(number, self.key_size);
        if read {
            return Operation::Get { key };
        }
        let mut value = vec![0; self.value_size];
        self.random.fill(&mut value[..]);
        Operation::Put { key, value }
    }

    fn next_key(&mut self) -> u64 {
        match self.choice {
            KeyChoice::Uniform => self.random.random_range(0..self.keys),
            KeyChoice::Sequential => {
                let number = self.next % self.keys;
                self.next += self.stride;
                number
            }
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a rank from 1 to `keys`"
            )]
            KeyChoice::Zipf => (self.zipf.sample(&mut self.random) as u64 - 1).min(self.keys - 1),
        }
    }
}

/// Key number `number` in `size` bytes: digits, so that it can be read in a terminal, padded on the left.
pub(crate) fn key_bytes(number: u64, size: usize) -> Vec<u8> {
    let digits = number.to_string();
    let mut key = vec![b'0'; size.saturating_sub(digits.len())];
    key.extend_from_slice(digits.as_bytes());
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(choice: KeyChoice, mix: Mix) -> WorkloadConfig {
        WorkloadConfig { choice, mix, keys: 100, key_size: 16, value_size: 8, clients: 2, seed: 7 }
    }

    #[test]
    fn sequential_clients_share_the_keys_without_overlap() {
        let config = config(KeyChoice::Sequential, Mix::Get);
        let mut seen = std::collections::BTreeSet::new();
        for client in 0..2 {
            let mut workload = Workload::new(&config, client);
            for _ in 0..50 {
                let Operation::Get { key } = workload.next() else { panic!("reads only") };
                assert!(seen.insert(key));
            }
        }
        assert_eq!(seen.len(), 100);
    }

    #[test]
    fn the_same_seed_gives_the_same_operations_and_zipf_is_skewed() {
        let config = config(KeyChoice::Zipf, Mix::Put);
        let (mut a, mut b) = (Workload::new(&config, 1), Workload::new(&config, 1));
        let mut top = 0;
        for _ in 0..2000 {
            let operation = a.next();
            assert_eq!(operation, b.next());
            let Operation::Put { key, value } = operation else { panic!("writes only") };
            assert_eq!((key.len(), value.len()), (16, 8));
            top += usize::from(key == key_bytes(0, 16));
        }
        assert!(top > 2000 / 10, "the top key of 100 takes about a fifth, not {top} of 2000");
    }
}
