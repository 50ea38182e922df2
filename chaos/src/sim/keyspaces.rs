//! The keyspaces of a run: drawn from the seed, some there from the beginning, some made by clients while everything goes on.
//!
//! Invariants:
//!
//! - `default` is the first, and always there. A name has one setting over a run: clients that make it again ask for the same.
//! - What clients may ever make is in the history from the beginning: checkers know its settings.

use std::collections::BTreeMap;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use starling_client::wire::{Durability, KeyspaceSettings, Level};
use starling_clock::NodeId;
use starling_node::core::keyspaces::{DEFAULT_KEYSPACE, Keyspaces};
use starling_ring::{Epoch, Partition, ReplicationFactor, RoutingTable};
use starling_storage::{HistoryRetention, KeyspaceId};

use crate::history::KeyspaceFacts;

/// Keyspaces beside `default`, at most.
const DRAWN_MAX: usize = 3;

/// `default`, and what clients make.
pub(super) fn draw(random: &mut ChaCha8Rng, nodes: usize) -> Vec<KeyspaceSettings> {
    let known = Keyspaces::new(nodes);
    let mut drawn: Vec<KeyspaceSettings> = known.iter().map(|it| it.settings.clone()).collect();
    for number in 0..random.random_range(0..=DRAWN_MAX) {
        drawn.push(draw_one(random, nodes, format!("made-{number}")));
    }
    drawn
}

fn draw_one(random: &mut ChaCha8Rng, nodes: usize, name: String) -> KeyspaceSettings {
    let possible: Vec<u8> =
        [1, 1, 2, 3, 3, 5].into_iter().filter(|&n| usize::from(n) <= nodes).collect();
    let replication = possible[random.random_range(0..possible.len())];
    let write_level = match random.random_range(0..8) {
        0..3 => Level::Any,
        3 => Level::One,
        4 => Level::All,
        _ => Level::Quorum,
    };
    let read_level = match random.random_range(0..6) {
        0 => Level::One,
        1 => Level::All,
        _ => Level::Quorum,
    };
    let durability =
        if random.random_range(0..3) == 0 { Durability::Interval } else { Durability::Sync };
    let (versions, age_ms) = match random.random_range(0..6) {
        0 => (Some(1 << random.random_range(0..4)), None),
        1 => (None, Some(random.random_range(200..8_000))),
        2 => (Some(1 << random.random_range(0..6)), Some(random.random_range(200..8_000))),
        _ => (None, None),
    };
    KeyspaceSettings {
        name: name.into(),
        replication,
        write_level,
        read_level,
        durability,
        history_versions_max: versions,
        history_age_ms_max: age_ms,
    }
}

/// What checkers know of them.
pub(super) fn facts(epoch: &Epoch, all: &[KeyspaceSettings]) -> BTreeMap<String, KeyspaceFacts> {
    all.iter().map(|settings| (settings.name.0.clone(), facts_of(epoch, settings))).collect()
}

fn facts_of(epoch: &Epoch, settings: &KeyspaceSettings) -> KeyspaceFacts {
    let factor = ReplicationFactor::new(settings.replication).expect("1 to 5");
    let table = RoutingTable::new(epoch, factor);
    let partitions = 0..epoch.partitions().count();
    let homes: Vec<Vec<NodeId>> =
        partitions.map(|it| table.preference_list(Partition(it)).to_vec()).collect();
    KeyspaceFacts {
        id: KeyspaceId::of(&settings.name),
        replication: settings.replication,
        write_level: settings.write_level,
        read_level: settings.read_level,
        durability: settings.durability,
        retention: HistoryRetention {
            versions_max: settings.history_versions_max,
            age_ms_max: settings.history_age_ms_max,
        },
        homes,
    }
}

/// It is there without anybody's making it.
pub(super) fn is_built_in(settings: &KeyspaceSettings) -> bool {
    settings.name.as_str() == DEFAULT_KEYSPACE
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn what_is_drawn_can_be_made() {
        for seed in 0..200 {
            for nodes in [1, 2, 3, 5, 7] {
                let all = draw(&mut ChaCha8Rng::seed_from_u64(seed), nodes);
                assert!(is_built_in(&all[0]));
                let known = Keyspaces::new(nodes);
                for settings in &all[1..] {
                    assert!(!is_built_in(settings));
                    assert_eq!(known.check_new(settings, nodes), Ok(None), "{settings:?}");
                }
            }
        }
    }
}
