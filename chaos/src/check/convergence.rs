//! The end of G1 ("hints, read repair and anti-entropy see to that") and of G4: once faults have stopped, all home replicas hold the
//! same events, within the time that the recorder allows.
//!
//! Not judged: what history retention drops, since replicas merge at different times (only the newest events are compared then);
//! replicas that could not be read because their disk was damaged (G14: reported, not served).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use starling_clock::{NodeId, Stamp};
use starling_storage::Event;

use super::{Facts, Guarantee, REPORTED_MAX, Violation};

pub(super) fn check(facts: &Facts<'_>) -> Vec<Violation> {
    let mut violations = unreadable(facts);
    violations.extend(differences(facts));
    if facts.history.healed_at_us.is_none() && violations.is_empty() {
        violations.push(violation(
            facts,
            "the cluster did not heal in time".to_owned(),
            facts.incidents(&facts.history.nodes, u64::MAX),
        ));
    }
    violations
}

fn violation(facts: &Facts<'_>, what: String, evidence: Vec<String>) -> Violation {
    let (guarantee, at_us) = (Guarantee::Convergence, facts.history.ended_us);
    Violation { guarantee, at_us, what, evidence }
}

/// Nodes that are away at the end, or cannot be read though nobody damaged them.
fn unreadable(facts: &Facts<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for &node in &facts.history.nodes {
        let what = match facts.history.replicas.get(&node) {
            None => format!("node {node} is not there at the end"),
            Some(replica) => match &replica.unreadable {
                Some(error) if !facts.is_damaged(node) => {
                    format!(
                        "node {node} cannot be read at the end, though nobody damaged it: {error}"
                    )
                }
                _ => continue,
            },
        };
        violations.push(violation(facts, what, facts.incidents(&[node], u64::MAX)));
    }
    violations
}

/// Events that some home replicas hold and others do not.
fn differences(facts: &Facts<'_>) -> Vec<Violation> {
    let readable: BTreeSet<NodeId> = facts
        .history
        .replicas
        .iter()
        .filter(|(_, replica)| replica.unreadable.is_none())
        .map(|(&node, _)| node)
        .collect();
    let mut violations = Vec::new();
    for ((keyspace, key), stamps) in &facts.held {
        let name = facts.name(*keyspace);
        let Some(settings) = facts.history.keyspaces.get(name) else { continue };
        let newest = stamps.keys().next_back().copied();
        for (&stamp, holders) in stamps {
            if settings.retention && newest != Some(stamp) {
                continue;
            }
            let Some((_, event)) = holders.first() else { continue };
            let homes = facts.history.homes(name, event.partition);
            let lacks = |home: &&NodeId| {
                readable.contains(home) && !holders.iter().any(|(node, _)| node == *home)
            };
            let lacking: Vec<NodeId> = homes.iter().filter(lacks).copied().collect();
            if lacking.is_empty() || is_dropped(stamps, event) {
                continue;
            }
            violations.push(lacks_event(facts, key, event, &lacking));
            if REPORTED_MAX <= violations.len() {
                return violations;
            }
        }
    }
    violations
}

/// A delete, and what it hides, go from one replica after the other: what is left is right as long as the delete is the newest of
/// what it hides wherever that is still held, which `resurrection.rs` holds.
fn is_dropped(stamps: &BTreeMap<Stamp, Vec<(NodeId, &Event)>>, event: &Event) -> bool {
    let newest = stamps.values().next_back().and_then(|holders| holders.first());
    newest.is_some_and(|(_, newest)| {
        newest.action == starling_storage::Action::Delete && event.stamp <= newest.stamp
    })
}

fn lacks_event(facts: &Facts<'_>, key: &Bytes, event: &Event, lacking: &[NodeId]) -> Violation {
    let what = format!(
        "home replicas {lacking:?} lack {} of {} after everything has healed",
        event.stamp,
        key.escape_ascii()
    );
    let mut evidence = vec![facts.holders(event.keyspace, key, event.stamp)];
    if let Some(request) = facts.requests.get(&event.request) {
        evidence.extend(request.attempts.iter().map(|&attempt| facts.line(attempt)));
    }
    evidence.extend(facts.incidents(lacking, u64::MAX));
    violation(facts, what, evidence)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Builder, KEYSPACE, stamp};
    use super::*;
    use crate::history::IncidentKind;

    fn two() -> Builder {
        let mut builder = Builder::new();
        builder.put("k", 1, 0..10, 100);
        builder.put("k", 1, 20..30, 200);
        builder
    }

    #[test]
    fn everybody_has_everything() {
        two().passes(check);
        let mut one = two();
        one.lose(2, stamp(100, 1));
        one.fails(check, Guarantee::Convergence, "[NodeId(2)] lack 100.0@1 of k");
        one.history.keyspaces.get_mut(KEYSPACE).unwrap().retention = true;
        one.passes(check);
        one.lose(2, stamp(200, 1));
        one.fails(check, Guarantee::Convergence, "lack 200.0@1 of k");
    }

    #[test]
    fn healing_has_its_time() {
        let mut builder = two();
        builder.history.healed_at_us = None;
        builder.fails(check, Guarantee::Convergence, "did not heal");
    }

    #[test]
    fn everybody_is_back() {
        let mut builder = two();
        builder.history.replicas.remove(&NodeId(3));
        builder.fails(check, Guarantee::Convergence, "node 3 is not there");
        let mut builder = two();
        builder.replica(3).unreadable = Some("damaged".to_owned());
        builder.fails(check, Guarantee::Convergence, "though nobody damaged it");
        builder.incident(50, 3, IncidentKind::Damaged { file: "t".to_owned() });
        builder.passes(check);
    }

    #[test]
    fn a_delete_may_be_gone_here_and_there() {
        let mut builder = two();
        builder.delete("k", 1, 40..50, 300);
        for ms in [100, 200, 300] {
            builder.lose(2, stamp(ms, 1));
        }
        builder.passes(check);
    }
}
