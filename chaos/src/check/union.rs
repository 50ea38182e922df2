//! G7, as far as it goes without a merger: the union of the home replicas' change logs has every acked event, and folded by key it
//! gives what the tables give.
//!
//! Judged per key where every home replica's log still has its beginning and could be read; events whose replicas may have lost
//! them within the contract are left out, as in `durability.rs`; so are those that an empty disk is not given any more, because
//! retention may have dropped them everywhere else, or a delete hid them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use starling_clock::{NodeId, Stamp};
use starling_storage::KeyspaceId;

use super::{Facts, Guarantee, REPORTED_MAX, Violation};

/// Stamps of each key that a node's change log has.
type Logged<'a> = BTreeMap<(KeyspaceId, &'a Bytes), BTreeSet<Stamp>>;

pub(super) fn check(facts: &Facts<'_>) -> Vec<Violation> {
    let logs: BTreeMap<NodeId, Logged<'_>> = facts
        .history
        .replicas
        .iter()
        .filter(|(_, replica)| replica.change_range.0 <= 1 && replica.unreadable.is_none())
        .map(|(&node, replica)| {
            let mut logged = Logged::new();
            for change in &replica.changes {
                let key = (change.event.keyspace, &change.event.key);
                logged.entry(key).or_default().insert(change.event.stamp);
            }
            (node, logged)
        })
        .collect();
    let mut violations = Vec::new();
    for ((name, key), of_key) in &facts.keys {
        for acked in &of_key.acked {
            let homes = facts.history.homes(name, acked.partition);
            let whole = homes.iter().all(|home| logs.contains_key(home));
            let loss = acked.loss(u64::MAX);
            let is_kept = facts.losses.none(homes, &loss)
                && (facts.losses.of(homes, &loss).most == 0
                    || !facts.may_be_dropped((name, key), acked.stamp, u64::MAX)
                        && !facts.may_be_hidden(
                            (name, key),
                            acked.partition,
                            acked.stamp,
                            u64::MAX,
                        ));
            if !whole || acked.required == 0 || !is_kept {
                continue;
            }
            let place = (acked.keyspace.id, *key);
            let has =
                |home: &NodeId| logs[home].get(&place).is_some_and(|it| it.contains(&acked.stamp));
            let having: Vec<NodeId> = homes.iter().copied().filter(has).collect();
            if having.len() < usize::from(acked.required) {
                violations.push(Violation {
                    guarantee: Guarantee::MergedChanges,
                    at_us: acked.to_us,
                    what: format!(
                        "{} of {} was acked by {} home replicas and is in the change logs of {}",
                        acked.stamp,
                        key.escape_ascii(),
                        acked.required,
                        having.len()
                    ),
                    evidence: vec![
                        facts.line(acked.index),
                        format!(
                            "home replicas are nodes {homes:?}, it is in the logs of {having:?}"
                        ),
                    ],
                });
            }
            if REPORTED_MAX <= violations.len() {
                return violations;
            }
        }
    }
    violations.extend(fold(facts, &logs));
    violations
}

/// The newest event of each key by the logs is the newest by the tables.
fn fold(facts: &Facts<'_>, logs: &BTreeMap<NodeId, Logged<'_>>) -> Option<Violation> {
    for (&node, logged) in logs {
        let held = facts.held.iter();
        for ((keyspace, key), stamps) in held {
            let newest = stamps.iter().rev();
            let newest = newest.filter(|(_, holders)| holders.iter().any(|(it, _)| *it == node));
            let Some((&in_tables, _)) = newest.max_by_key(|(stamp, _)| **stamp) else { continue };
            let in_log = logged.get(&(*keyspace, *key)).and_then(|stamps| stamps.last().copied());
            if in_log != Some(in_tables) {
                return Some(Violation {
                    guarantee: Guarantee::MergedChanges,
                    at_us: facts.history.ended_us,
                    what: format!(
                        "node {node}'s change log folds {} to {in_log:?}, and its tables have {in_tables}",
                        key.escape_ascii()
                    ),
                    evidence: facts.incidents(&[node], u64::MAX),
                });
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Builder, stamp};
    use super::*;
    use crate::history::IncidentKind;

    fn two() -> Builder {
        let mut builder = Builder::new();
        builder.put("k", 1, 0..10, 100);
        builder.put("k", 1, 20..30, 200);
        builder
    }

    #[test]
    fn the_logs_have_what_was_acked() {
        two().passes(check);
        let mut one_short = two();
        one_short.lose(3, stamp(200, 1));
        one_short.passes(check);
        one_short.lose(2, stamp(200, 1));
        one_short.fails(check, Guarantee::MergedChanges, "acked by 2 home replicas and is in the");
        one_short.incident(50, 2, IncidentKind::Wiped);
        one_short.passes(check);
    }

    #[test]
    fn folded_they_give_the_tables() {
        let mut builder = two();
        builder.replica(3).changes.pop();
        builder.replica(3).change_range = (1, 2);
        builder.fails(check, Guarantee::MergedChanges, "folds k to Some(100.0@1)");
    }
}
