//! [`Workload`]: what clients ask next, drawn from a seed.
//!
//! Invariants:
//!
//! - The same seed gives the same asks in the same order.
//! - Payloads of puts are unique: they begin with the number of the ask.
//! - Keyspaces are numbers here: 0 gets half of the asks, the others share the rest.
//! - Keys are skewed: the first keys get most of the asks, and a hot key gets as much as [`Workload::set_hot`] says.
//!
//! It knows nothing of nodes or time, so that the simulator and the real processes put the same load on.

use bytes::Bytes;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use starling_client::wire::{Durability, Level};
use starling_ring::Partitions;
use starling_storage::Action;

use crate::history::Ask;

/// Longest payload that is ever put, in bytes.
const PAYLOAD_SIZE_MAX: usize = 20_000;

/// What is asked how often.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// Keys in all.
    pub keys: u64,
    /// Asks of a thousand that put.
    pub puts: u32,
    /// Asks of a thousand that delete.
    pub deletes: u32,
    /// Asks of a thousand that read versions.
    pub versions: u32,
    /// Asks of a thousand that scan; the rest are gets.
    pub scans: u32,
    /// Asks of a thousand that name a level of their own.
    pub levels: u32,
}

impl Mix {
    /// Draws a mix.
    pub fn draw(random: &mut ChaCha8Rng) -> Self {
        Self {
            keys: random.random_range(40..2_000),
            puts: random.random_range(250..550),
            deletes: random.random_range(10..120),
            versions: random.random_range(10..50),
            scans: random.random_range(1..10),
            levels: random.random_range(50..500),
        }
    }
}

/// Draws asks. See the file's head.
#[derive(Clone, Debug)]
pub struct Workload {
    random: ChaCha8Rng,
    partitions: Partitions,
    mix: Mix,
    /// The hot key, and the asks of a thousand that go to it.
    hot: Option<(u64, u32)>,
    next: u64,
}

impl Workload {
    /// A workload over a ring of `partitions`.
    pub fn new(seed: u64, partitions: Partitions, mix: Mix) -> Self {
        Self { random: ChaCha8Rng::seed_from_u64(seed), partitions, mix, hot: None, next: 0 }
    }

    /// So many asks of a thousand go to the key with this number, until it is set otherwise.
    pub fn set_hot(&mut self, hot: Option<(u64, u32)>) {
        self.hot = hot;
    }

    /// All keys that asks are about.
    pub fn keys(&self) -> impl Iterator<Item = Bytes> {
        (0..self.mix.keys).map(key_of)
    }

    /// What to ask next, of which of `keyspaces` keyspaces.
    ///
    /// # Panics
    /// If there are none.
    pub fn draw(&mut self, keyspaces: usize) -> (usize, Ask) {
        self.next += 1;
        let keyspace = if self.random.random_range(0..2) == 0 {
            self.random.random_range(0..keyspaces)
        } else {
            0
        };
        let key = self.draw_key();
        let partition = self.partitions.partition_of(&key).0;
        let named = self.random.random_range(0..1000) < self.mix.levels;
        let kind = self.random.random_range(0..1000);
        let Mix { puts, deletes, versions, scans, .. } = self.mix;
        let ask = if kind < puts + deletes {
            let action = if kind < puts { Action::Put } else { Action::Delete };
            let payload = if kind < puts { self.draw_payload() } else { Bytes::new() };
            let level = named.then(|| self.draw_write_level());
            let durability = self.draw_durability();
            Ask::Write { key, partition, action, payload, level, durability }
        } else {
            let level = named.then(|| self.draw_read_level());
            if kind < puts + deletes + versions {
                let limit = self.random.random_range(1..30);
                Ask::Versions { key, partition, limit, level }
            } else if kind < puts + deletes + versions + scans {
                let prefix = self.draw_prefix();
                let limit = self.random.random_range(1..40);
                Ask::Scan { prefix, after: None, limit, level }
            } else {
                Ask::Get { key, partition, at: None, level }
            }
        };
        (keyspace, ask)
    }

    fn draw_key(&mut self) -> Bytes {
        if let Some((hot, per_mille)) = self.hot
            && self.random.random_range(0..1000) < per_mille
        {
            return key_of(hot % self.mix.keys);
        }
        // The cube of an even chance: a tenth of the keys gets nearly half of the asks. In whole numbers, for every machine.
        let chance = u128::from(self.random.random_range(0..1_u64 << 20));
        let place = (chance * chance * chance * u128::from(self.mix.keys)) >> 60;
        key_of(u64::try_from(place).expect("below the count of keys"))
    }

    fn draw_prefix(&mut self) -> Bytes {
        match self.random.random_range(0..4) {
            0 => Bytes::new(),
            1 => Bytes::from_static(b"k"),
            2 => Bytes::from(format!("k{}", self.random.random_range(1..10))),
            _ => Bytes::from(format!("k{}", self.random.random_range(1..100))),
        }
    }

    fn draw_payload(&mut self) -> Bytes {
        let mut payload = format!("v{}.", self.next).into_bytes();
        let size = match self.random.random_range(0..1000) {
            0..950 => self.random.random_range(0..100),
            950..998 => self.random.random_range(100..1_500),
            _ => self.random.random_range(1_500..PAYLOAD_SIZE_MAX),
        };
        let mut filling = vec![0; size];
        self.random.fill_bytes(&mut filling);
        payload.extend_from_slice(&filling);
        payload.into()
    }

    fn draw_write_level(&mut self) -> Level {
        match self.random.random_range(0..10) {
            0..2 => Level::One,
            2 => Level::Two,
            3..5 => Level::Quorum,
            5..7 => Level::All,
            7 => Level::Count(1),
            _ => Level::Any,
        }
    }

    fn draw_read_level(&mut self) -> Level {
        match self.random.random_range(0..8) {
            0..3 => Level::One,
            3 => Level::Two,
            4..6 => Level::Quorum,
            6 => Level::All,
            _ => Level::Count(1),
        }
    }

    fn draw_durability(&mut self) -> Option<Durability> {
        match self.random.random_range(0..20) {
            0 => Some(Durability::Interval),
            1 => Some(Durability::Sync),
            _ => None,
        }
    }
}

/// The key with this number.
pub fn key_of(number: u64) -> Bytes {
    Bytes::from(format!("k{number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_the_same_asks_and_payloads_are_unique() {
        let partitions = Partitions::new(16).unwrap();
        let mix = Mix { keys: 50, puts: 500, deletes: 50, versions: 50, scans: 10, levels: 300 };
        let draw = |seed| {
            let mut workload = Workload::new(seed, partitions, mix);
            (0..2_000).map(|_| workload.draw(2)).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        let asks = draw(3);
        let payloads = asks.iter().filter_map(|(_, ask)| match ask {
            Ask::Write { payload, action: Action::Put, .. } => Some(payload.clone()),
            _ => None,
        });
        let payloads: Vec<Bytes> = payloads.collect();
        let unique: std::collections::BTreeSet<_> = payloads.iter().collect();
        assert_eq!(unique.len(), payloads.len());
        assert!(asks.iter().all(|(_, ask)| match ask {
            Ask::Write { key, partition, .. } | Ask::Get { key, partition, .. } => {
                partitions.partition_of(key).0 == *partition
            }
            _ => true,
        }));
    }

    #[test]
    fn a_hot_key_gets_its_share() {
        let partitions = Partitions::new(16).unwrap();
        let mix = Mix { keys: 500, puts: 500, deletes: 0, versions: 0, scans: 0, levels: 0 };
        let mut workload = Workload::new(1, partitions, mix);
        workload.set_hot(Some((7, 800)));
        let hot = (0..1_000).filter(|_| match workload.draw(1).1 {
            Ask::Write { key, .. } | Ask::Get { key, .. } => key == key_of(7),
            _ => false,
        });
        assert!((750..900).contains(&hot.count()));
    }
}
