//! G10: a deleted key never comes back, neither in a read nor in what replicas hold at the end, and a tombstone is there until
//! there is a proof that lets it go.
//!
//! A delete at level ANY counts for no replica in reads, and at the end like any other. The exemptions are those of `reads.rs` and
//! `durability.rs`.

use starling_storage::Action;

use super::durability::{is_held, is_owed};
use super::reads::{stale_reads, violation};
use super::{Facts, Guarantee, REPORTED_MAX, Violation};

pub(super) fn check(facts: &Facts<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (key, of_key) in &facts.keys {
        if of_key.deletes.is_empty() {
            continue;
        }
        for stale in stale_reads(facts, *key, of_key) {
            if stale.before.action == Action::Delete {
                violations.push(violation(facts, Guarantee::Delete, *key, &stale));
            }
        }
        at_the_end(facts, *key, &mut violations);
        without_proof(facts, *key, &mut violations);
        if REPORTED_MAX <= violations.len() {
            break;
        }
    }
    violations
}

/// No home replica's newest event is a put older than an acked delete.
fn at_the_end(facts: &Facts<'_>, key: (&str, &bytes::Bytes), violations: &mut Vec<Violation>) {
    let Some(of_key) = facts.keys.get(&key) else { return };
    let deletes = of_key.acked.iter().filter(|acked| acked.action == Action::Delete);
    let Some(delete) = deletes.max_by_key(|acked| acked.stamp) else { return };
    let homes = facts.history.homes(key.0, delete.partition);
    if !is_owed(facts, key.0, delete) {
        return;
    }
    let Some(held) = facts.held.get(&(delete.keyspace.id, key.1)) else { return };
    for &home in homes {
        let newest = held.values().rev().flatten().find(|(node, _)| *node == home);
        let Some((_, newest)) = newest else { continue };
        if newest.action == Action::Put && newest.stamp < delete.stamp {
            let key = key.1;
            let what = format!(
                "{} was deleted as {}, and node {home} holds the older {} as its newest event at the end",
                key.escape_ascii(),
                delete.stamp,
                newest.stamp,
            );
            let evidence = vec![
                facts.line(delete.index),
                facts.holders(delete.keyspace.id, key, delete.stamp),
                facts.holders(delete.keyspace.id, key, newest.stamp),
            ];
            let at_us = facts.history.ended_us;
            violations.push(Violation { guarantee: Guarantee::Delete, at_us, what, evidence });
        }
    }
}

/// An acked delete is with none of its home replicas, and nothing lets it go.
fn without_proof(facts: &Facts<'_>, key: (&str, &bytes::Bytes), violations: &mut Vec<Violation>) {
    let Some(of_key) = facts.keys.get(&key) else { return };
    let gone = of_key.acked.iter().find(|acked| {
        acked.action == Action::Delete
            && is_owed(facts, key.0, acked)
            && !is_held(facts, key.0, key.1, acked)
    });
    let Some(gone) = gone else { return };
    let homes = facts.history.homes(key.0, gone.partition);
    let what = format!(
        "{} was deleted as {}, and the tombstone is gone without a proof that everybody had it",
        key.1.escape_ascii(),
        gone.stamp
    );
    let mut evidence = vec![facts.line(gone.index), format!("home replicas are nodes {homes:?}")];
    evidence.extend(facts.incidents(homes, u64::MAX));
    violations.push(Violation { guarantee: Guarantee::Delete, at_us: gone.to_us, what, evidence });
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Builder, stamp};
    use super::*;
    use crate::history::{Floor, IncidentKind};

    /// The checker finds this among others.
    fn told(builder: &Builder, what: &str) {
        let found = builder.check(check);
        assert!(found.iter().any(|violation| violation.what.contains(what)), "{found:#?}");
    }

    #[test]
    fn a_deleted_key_stays_away() {
        let mut builder = Builder::new();
        builder.put("k", 1, 0..10, 100);
        let deleted = builder.delete("k", 1, 20..30, 200);
        builder.get("k", 2, 40..50, Some(deleted));
        // Dropped with proof, together with what it hides.
        for node in [1, 2, 3] {
            builder.lose(node, stamp(100, 1));
            builder.lose(node, stamp(200, 1));
        }
        told(&builder, "without a proof");
        builder.get("k", 2, 60..70, None);
        let below = stamp(201, 0);
        builder.history.floors.push(Floor { at_us: 55, partition: 0, below });
        builder.passes(check);
        builder.history.floors[0].below = stamp(200, 1);
        told(&builder, "shows nothing");
        told(&builder, "without a proof");
        builder.history.floors[0].below = below;
        let again = builder.put("k", 1, 80..90, 300);
        builder.get("k", 2, 100..110, Some(again));
        builder.passes(check);
    }

    #[test]
    fn it_must_not_be_read_again() {
        let mut builder = Builder::new();
        let old = builder.put("k", 1, 0..10, 100);
        builder.delete("k", 1, 20..30, 200);
        builder.get("k", 2, 40..50, Some(old));
        builder.fails(check, Guarantee::Delete, "shows 100.0@1");
    }

    #[test]
    fn it_must_not_be_held_again() {
        let mut builder = Builder::new();
        builder.put("k", 1, 0..10, 100);
        builder.delete("k", 1, 20..30, 200);
        builder.lose(3, stamp(200, 1));
        builder.fails(check, Guarantee::Delete, "node 3 holds the older 100.0@1");
        builder.incident(50, 3, IncidentKind::Wiped);
        builder.fails(check, Guarantee::Delete, "node 3 holds");
        builder.incident(60, 2, IncidentKind::Wiped);
        builder.passes(check);
    }
}
