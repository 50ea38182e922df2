//! G1: what was acked at W is with W home replicas, and survives.
//!
//! At the end at least one home replica has to hold the event: that is what the permanent loss of W-1 nodes leaves. `convergence.rs`
//! holds that all of them do. Not judged:
//!
//! - Events of which W home replicas, or for ANY one of them or the coordinator with its hint, may have lost their copy within the
//!   contract (`losses.rs`).
//! - Events that history retention may have dropped ([`Facts::may_be_dropped`], G11), or that a delete below a proved floor hid (G10).
//! - Deletes: those that are missing are told of by `resurrection.rs`.

use starling_clock::NodeId;
use starling_storage::Action;

use super::facts::Acked;
use super::{Facts, Guarantee, REPORTED_MAX, Violation};

pub(super) fn check(facts: &Facts<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for ((name, key), of_key) in &facts.keys {
        for acked in &of_key.acked {
            if acked.acks < acked.required {
                violations.push(Violation {
                    guarantee: Guarantee::Ack,
                    at_us: acked.to_us,
                    what: format!(
                        "a write that asks for {} home replicas was acked with {}",
                        acked.required, acked.acks
                    ),
                    evidence: vec![facts.line(acked.index)],
                });
            }
            if acked.action == Action::Put
                && is_owed(facts, name, acked)
                && !is_held(facts, name, key, acked)
            {
                violations.push(missing(facts, name, key, acked));
            }
        }
        if REPORTED_MAX <= violations.len() {
            break;
        }
    }
    violations
}

/// The contract says that somebody still has it, unless it was dropped.
pub(super) fn is_owed(facts: &Facts<'_>, name: &str, acked: &Acked<'_>) -> bool {
    let homes = facts.history.homes(name, acked.partition);
    let lost = |nodes: &[NodeId]| facts.losses.of(nodes, &acked.loss(u64::MAX)).most;
    let absent = homes.iter().filter(|home| !facts.history.replicas.contains_key(home)).count();
    if acked.required == 0 {
        return absent + lost(homes) + lost(&[acked.coordinator]) == 0;
    }
    absent + lost(homes) < usize::from(acked.required)
}

pub(super) fn is_held(
    facts: &Facts<'_>,
    name: &str,
    key: &bytes::Bytes,
    acked: &Acked<'_>,
) -> bool {
    let homes = facts.history.homes(name, acked.partition);
    let unreadable =
        |home| facts.history.replicas.get(home).is_some_and(|replica| replica.unreadable.is_some());
    if homes.iter().any(unreadable) {
        return true;
    }
    let holders = facts.held.get(&(acked.keyspace.id, key)).and_then(|it| it.get(&acked.stamp));
    holders.is_some_and(|holders| holders.iter().any(|(node, _)| homes.contains(node)))
        || facts.may_be_dropped((name, key), acked.stamp, u64::MAX)
        || facts.may_be_hidden((name, key), acked.partition, acked.stamp, u64::MAX)
}

fn missing(facts: &Facts<'_>, name: &str, key: &bytes::Bytes, acked: &Acked<'_>) -> Violation {
    let homes = facts.history.homes(name, acked.partition);
    let mut evidence = vec![
        facts.line(acked.index),
        format!("home replicas are nodes {homes:?}"),
        facts.holders(acked.keyspace.id, key, acked.stamp),
    ];
    evidence.extend(facts.incidents(homes, u64::MAX));
    let what =
        format!("an acked write of {} is with none of its home replicas", key.escape_ascii());
    Violation { guarantee: Guarantee::Ack, at_us: acked.to_us, what, evidence }
}

#[cfg(test)]
mod tests {
    use starling_client::wire::{Durability, Level};

    use super::super::testing::{Builder, KEYSPACE, stamp};
    use super::*;
    use crate::history::{Ask, IncidentKind, Reply};

    fn lost() -> Builder {
        let mut builder = Builder::new();
        builder.put("k", 1, 0..10, 100);
        for node in [1, 2, 3] {
            builder.lose(node, stamp(100, 1));
        }
        builder
    }

    #[test]
    fn one_home_replica_is_enough_here() {
        let mut builder = Builder::new();
        builder.put("k", 1, 0..10, 100);
        builder.lose(1, stamp(100, 1));
        builder.lose(3, stamp(100, 1));
        builder.passes(check);
    }

    #[test]
    fn an_acked_write_must_not_be_lost() {
        lost().fails(check, Guarantee::Ack, "with none of its home replicas");
    }

    #[test]
    fn fewer_acks_than_asked_for_are_no_ack() {
        let mut builder = Builder::new();
        builder.put("k", 1, 0..10, 100);
        let reply = &mut builder.history.operations[0].reply;
        *reply = Reply::Written { stamp: stamp(100, 1), superseded: false, acks: 1 };
        builder.fails(check, Guarantee::Ack, "asks for 2 home replicas was acked with 1");
    }

    #[test]
    fn as_many_losses_as_acks_excuse_and_fewer_do_not() {
        let mut builder = lost();
        builder.incident(20, 1, IncidentKind::Wiped);
        builder.fails(check, Guarantee::Ack, "with none");
        builder.incident(30, 2, IncidentKind::Wiped);
        builder.passes(check);
    }

    #[test]
    fn a_crash_excuses_interval_only_and_only_within_it() {
        let crash = |at| {
            let mut builder = lost();
            for node in [1, 2, 3] {
                builder.incident(at, node, IncidentKind::Crashed { power: true });
            }
            builder
        };
        crash(15).fails(check, Guarantee::Ack, "with none");
        let interval = |mut builder: Builder| {
            let keyspace = builder.history.keyspaces.get_mut(KEYSPACE).unwrap();
            keyspace.durability = Durability::Interval;
            builder
        };
        interval(crash(15)).passes(check);
        interval(crash(15_000_000)).fails(check, Guarantee::Ack, "with none");
    }

    #[test]
    fn any_means_that_a_hint_brings_it_in_the_end() {
        let mut builder = lost();
        if let Ask::Write { level, .. } = &mut builder.history.operations[0].ask {
            *level = Some(Level::Any);
        }
        builder.fails(check, Guarantee::Ack, "with none");
        builder.incident(20, 1, IncidentKind::Wiped);
        builder.passes(check);
    }
}
