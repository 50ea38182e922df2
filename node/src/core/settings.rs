//! The value of a keyspace's register: its settings as bytes, for gossip and for disk.
//!
//! | field | offset | size | meaning |
//! |---|---|---|---|
//! | version | 0 | 1 | 1 |
//! | replication | 1 | 1 | N, 1 to 16 |
//! | write level | 2 | 2 | number (1 one, 2 two, 3 quorum, 4 all, 5 count, 6 any), count or 0 |
//! | read level | 4 | 2 | the same; never 6 |
//! | durability | 6 | 1 | 1 sync, 2 interval |
//! | history | 7 | 1 | bit 0: versions are bounded, bit 1: age is bounded |
//! | versions | 8 | 4 | most versions of a key, or 0 |
//! | age | 12 | 8 | longest age of a replaced version in milliseconds, or 0 |
//! | name | 20 | 1 to 64 | to the end |
//!
//! Invariants:
//!
//! - Numbers are little-endian, never reused. What is not written above is refused.
//! - What decodes is valid: see [`check`].

use starling_client::codec::Text;
use starling_client::wire::{Durability, KEYSPACE_NAME_SIZE_MAX, KeyspaceSettings, Level};

use super::error::Refusal;
use crate::limits::REPLICATION_MAX;

const VERSION: u8 = 1;
const HEADER_SIZE: usize = 20;

/// How many replicas of `replication` a level asks for; 0 for [`Level::Any`].
pub fn needed(level: Level, replication: u8) -> u8 {
    match level {
        Level::One => 1,
        Level::Two => 2,
        Level::Quorum => replication / 2 + 1,
        Level::All => replication,
        Level::Count(count) => count,
        Level::Any => 0,
    }
}

/// Whether it is a keyspace's name.
///
/// # Errors
/// [`Refusal::KeyspaceNameInvalid`].
pub fn check_name(name: &str) -> Result<(), Refusal> {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.');
    let fits = (1..=KEYSPACE_NAME_SIZE_MAX).contains(&name.len());
    if fits && name.bytes().all(allowed) { Ok(()) } else { Err(Refusal::KeyspaceNameInvalid) }
}

/// Whether the settings make sense by themselves, whatever the cluster.
///
/// # Errors
/// [`Refusal::KeyspaceNameInvalid`] or [`Refusal::KeyspaceSettingsInvalid`].
pub fn check(settings: &KeyspaceSettings) -> Result<(), Refusal> {
    check_name(&settings.name)?;
    let n = settings.replication;
    let within = |level| (1..=n).contains(&needed(level, n));
    let rules = [
        ((1..=REPLICATION_MAX).contains(&n), "replication is from 1 to 16"),
        (
            settings.write_level == Level::Any || within(settings.write_level),
            "the write level asks for more replicas than there are, or for none",
        ),
        (
            settings.read_level != Level::Any && within(settings.read_level),
            "the read level asks for more replicas than there are, or for none, or is ANY",
        ),
        (
            settings.history_versions_max != Some(0),
            "a history of no versions: the newest always stays",
        ),
    ];
    match rules.into_iter().find(|(holds, _)| !holds) {
        Some((_, rule)) => Err(Refusal::KeyspaceSettingsInvalid(rule)),
        None => Ok(()),
    }
}

/// The settings as bytes.
pub fn encode(settings: &KeyspaceSettings) -> Vec<u8> {
    let level = |level| match level {
        Level::One => [1, 0],
        Level::Two => [2, 0],
        Level::Quorum => [3, 0],
        Level::All => [4, 0],
        Level::Count(count) => [5, count],
        Level::Any => [6, 0],
    };
    let mut out = vec![VERSION, settings.replication];
    out.extend_from_slice(&level(settings.write_level));
    out.extend_from_slice(&level(settings.read_level));
    out.push(match settings.durability {
        Durability::Sync => 1,
        Durability::Interval => 2,
    });
    let versions = settings.history_versions_max;
    let age_ms = settings.history_age_ms_max;
    out.push(u8::from(versions.is_some()) | u8::from(age_ms.is_some()) << 1);
    out.extend_from_slice(&versions.unwrap_or(0).to_le_bytes());
    out.extend_from_slice(&age_ms.unwrap_or(0).to_le_bytes());
    assert_eq!(out.len(), HEADER_SIZE);
    out.extend_from_slice(settings.name.as_bytes());
    out
}

/// The settings from bytes; `None` if they are not exactly valid settings.
pub fn decode(bytes: &[u8]) -> Option<KeyspaceSettings> {
    let (header, name) = bytes.split_first_chunk::<HEADER_SIZE>()?;
    let level = |number, count| {
        Some(match (number, count) {
            (1, 0) => Level::One,
            (2, 0) => Level::Two,
            (3, 0) => Level::Quorum,
            (4, 0) => Level::All,
            (5, count) => Level::Count(count),
            (6, 0) => Level::Any,
            _ => return None,
        })
    };
    let versions = u32::from_le_bytes(*header[8..].first_chunk()?);
    let age_ms = u64::from_le_bytes(*header[12..].first_chunk()?);
    if header[0] != VERSION
        || header[7] > 3
        || (header[7] & 1 == 0 && versions != 0)
        || (header[7] & 2 == 0 && age_ms != 0)
    {
        return None;
    }
    let settings = KeyspaceSettings {
        name: Text(std::str::from_utf8(name).ok()?.to_owned()),
        replication: header[1],
        write_level: level(header[2], header[3])?,
        read_level: level(header[4], header[5])?,
        durability: match header[6] {
            1 => Durability::Sync,
            2 => Durability::Interval,
            _ => return None,
        },
        history_versions_max: (header[7] & 1 != 0).then_some(versions),
        history_age_ms_max: (header[7] & 2 != 0).then_some(age_ms),
    };
    check(&settings).ok()?;
    Some(settings)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_level() -> impl Strategy<Value = Level> {
        prop_oneof![
            Just(Level::One),
            Just(Level::Two),
            Just(Level::Quorum),
            Just(Level::All),
            (0..20_u8).prop_map(Level::Count),
            Just(Level::Any),
        ]
    }

    prop_compose! {
        fn any_settings()(
            name in "[a-z0-9._-]{0,66}",
            replication in 0..20_u8,
            write_level in any_level(),
            read_level in any_level(),
            sync in any::<bool>(),
            history_versions_max in any::<Option<u32>>(),
            history_age_ms_max in any::<Option<u64>>(),
        ) -> KeyspaceSettings {
            let durability = if sync { Durability::Sync } else { Durability::Interval };
            KeyspaceSettings {
                name: Text(name),
                replication,
                write_level,
                read_level,
                durability,
                history_versions_max,
                history_age_ms_max,
            }
        }
    }

    proptest! {
        #[test]
        fn valid_settings_roundtrip_and_others_are_refused(settings in any_settings()) {
            let bytes = encode(&settings);
            let valid = check(&settings).is_ok();
            prop_assert_eq!(decode(&bytes), valid.then_some(settings));
        }

        #[test]
        fn any_bytes_are_refused_or_canonical(bytes in prop::collection::vec(0..8_u8, 0..30)) {
            if let Some(settings) = decode(&bytes) {
                prop_assert_eq!(encode(&settings), bytes);
            }
        }
    }

    #[test]
    fn the_bytes_never_change() {
        let settings = KeyspaceSettings {
            name: "orders".into(),
            replication: 3,
            write_level: Level::Quorum,
            read_level: Level::Count(2),
            durability: Durability::Sync,
            history_versions_max: Some(10),
            history_age_ms_max: None,
        };
        let mut expected = vec![1, 3, 3, 0, 5, 2, 1, 1, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        expected.extend_from_slice(b"orders");
        assert_eq!(encode(&settings), expected);
    }

    #[test]
    fn each_rule_refuses() {
        let good = KeyspaceSettings {
            name: "a".into(),
            replication: 3,
            write_level: Level::Quorum,
            read_level: Level::Quorum,
            durability: Durability::Sync,
            history_versions_max: None,
            history_age_ms_max: None,
        };
        assert_eq!(check(&good), Ok(()));
        for name in ["", "A", "a b", "é", "a/b", &"x".repeat(65)] {
            let settings = KeyspaceSettings { name: name.into(), ..good.clone() };
            assert_eq!(check(&settings), Err(Refusal::KeyspaceNameInvalid), "{name:?}");
        }
        let wrong = [
            KeyspaceSettings { replication: 0, ..good.clone() },
            KeyspaceSettings { replication: 17, ..good.clone() },
            KeyspaceSettings { write_level: Level::Count(4), ..good.clone() },
            KeyspaceSettings { write_level: Level::Count(0), ..good.clone() },
            KeyspaceSettings { read_level: Level::Any, ..good.clone() },
            KeyspaceSettings { replication: 1, read_level: Level::Two, ..good.clone() },
            KeyspaceSettings { history_versions_max: Some(0), ..good.clone() },
        ];
        for settings in wrong {
            let refused = check(&settings);
            assert!(matches!(refused, Err(Refusal::KeyspaceSettingsInvalid(_))), "{settings:?}");
        }
    }
}
