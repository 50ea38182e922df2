//! G4: all replicas pick the greatest stamp, and with W>N/2 no write loses silently to one that was acked before it began.
//!
//! Not judged: writes of which a home replica may have lost its copy within the contract before the later one was answered
//! (`losses.rs`): the later write's quorum need not meet it then.

use super::facts::{Acked, KeyOf, OfKey};
use super::{Facts, Guarantee, REPORTED_MAX, Violation};

pub(super) fn check(facts: &Facts<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (key, of_key) in &facts.keys {
        silent_losses(facts, *key, of_key, &mut violations);
        if REPORTED_MAX <= violations.len() {
            break;
        }
    }
    violations
}

fn silent_losses(
    facts: &Facts<'_>,
    (name, key): KeyOf<'_>,
    of_key: &OfKey<'_>,
    violations: &mut Vec<Violation>,
) {
    let majority = |acked: &&Acked<'_>| 2 * acked.required > acked.keyspace.replication;
    let by_end: Vec<&Acked<'_>> = of_key.acked.iter().filter(majority).collect();
    let mut by_begin = by_end.clone();
    by_begin.sort_by_key(|acked| acked.begin_us);
    let mut next = 0;
    let mut greatest = None;
    for later in by_begin {
        while let Some(earlier) = by_end.get(next).filter(|it| it.to_us <= later.begin_us) {
            greatest = greatest.max(Some(earlier.stamp));
            next += 1;
        }
        if later.superseded || greatest.is_none_or(|greatest| greatest <= later.stamp) {
            continue;
        }
        let homes = facts.history.homes(name, later.partition);
        let winner = by_end[..next].iter().rev().find(|earlier| {
            earlier.stamp > later.stamp
                && earlier.request != later.request
                && facts.losses.none(homes, &earlier.loss(later.to_us))
        });
        let Some(winner) = winner else { continue };
        violations.push(Violation {
            guarantee: Guarantee::Conflict,
            at_us: later.to_us,
            what: format!(
                "a write of {} lost to one that was acked before it began, and was not told so",
                key.escape_ascii()
            ),
            evidence: vec![facts.line(winner.index), facts.line(later.index)],
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Builder, stamp};
    use super::*;
    use crate::history::{IncidentKind, Reply};

    fn loses() -> Builder {
        let mut builder = Builder::new();
        builder.put("k", 1, 0..10, 200);
        builder.put("k", 2, 20..30, 100);
        builder
    }

    #[test]
    fn a_later_write_wins() {
        let mut builder = Builder::new();
        builder.put("k", 1, 0..10, 100);
        builder.put("k", 2, 20..30, 200);
        // Concurrent ones may end either way.
        builder.put("k", 3, 25..50, 150);
        builder.passes(check);
    }

    #[test]
    fn or_is_told_that_it_lost() {
        loses().fails(check, Guarantee::Conflict, "lost to one that was acked before");
        let mut told = loses();
        let reply = &mut told.history.operations[1].reply;
        *reply = Reply::Written { stamp: stamp(100, 2), superseded: true, acks: 2 };
        told.passes(check);
    }

    #[test]
    fn a_repetition_begins_with_its_first_attempt() {
        let mut builder = Builder::new();
        let lost = builder.lost_put("k", 2, 0..10);
        builder.put("k", 1, 20..30, 200);
        builder.put("k", 2, 40..50, 100);
        builder.fails(check, Guarantee::Conflict, "lost");
        let request = builder.history.operations[lost].request;
        let repeated = builder.history.operations.last_mut().unwrap();
        repeated.request = request;
        repeated.attempt = 1;
        builder.passes(check);
    }

    #[test]
    fn a_lost_disk_excuses() {
        let mut builder = loses();
        builder.incident(15, 3, IncidentKind::Wiped);
        builder.passes(check);
    }
}
