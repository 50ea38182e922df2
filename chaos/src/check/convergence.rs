//! The end of G1 ("hints, read repair and anti-entropy see to that") and of G4: once faults have stopped, all home replicas hold the
//! same events, within the time that the recorder allows, and every node knows the keyspaces that were answered as made.
//!
//! Not judged: what history retention drops, since replicas merge at different times: where it counts versions, only as many as it
//! keeps are compared, where it goes by age, only the newest; deletes below a proved floor with what they hide, which go from one
//! replica after the other (G10); replicas that could not be read because their disk was damaged (G14: reported, not served).

use std::collections::BTreeSet;

use bytes::Bytes;
use starling_clock::NodeId;
use starling_storage::Event;

use super::{Facts, Guarantee, REPORTED_MAX, Violation};
use crate::history::Reply;

pub(super) fn check(facts: &Facts<'_>) -> Vec<Violation> {
    let mut violations = unreadable(facts);
    violations.extend(differences(facts));
    violations.extend(forgotten_keyspace(facts));
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
        let versions_max = settings.retention.versions_max.map(usize::try_from);
        let versions_max = versions_max.and_then(Result::ok).unwrap_or(usize::MAX);
        let most = if settings.retention.age_ms_max.is_some() { 1 } else { versions_max };
        for (&stamp, holders) in stamps.iter().rev().take(most) {
            let Some((_, event)) = holders.first() else { continue };
            let homes = facts.history.homes(name, event.partition);
            let lacks = |home: &&NodeId| {
                readable.contains(home) && !holders.iter().any(|(node, _)| node == *home)
            };
            let lacking: Vec<NodeId> = homes.iter().filter(lacks).copied().collect();
            let place = (name, *key);
            let (partition, end_us) = (event.partition, u64::MAX);
            if lacking.is_empty() || facts.may_be_hidden(place, partition, stamp, end_us) {
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

/// A keyspace that a client was told is made, and that a node does not know.
fn forgotten_keyspace(facts: &Facts<'_>) -> Option<Violation> {
    for (index, operation) in facts.history.operations.iter().enumerate() {
        let Reply::Created { .. } = operation.reply else { continue };
        let name = &operation.keyspace;
        let lacks = facts.history.replicas.iter().find(|(_, it)| !it.keyspaces.contains(name));
        if let Some((&node, _)) = lacks {
            let what = format!("node {node} does not know the keyspace {name} at the end");
            let mut evidence = vec![facts.line(index)];
            evidence.extend(facts.incidents(&[node], u64::MAX));
            return Some(violation(facts, what, evidence));
        }
    }
    None
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
    use crate::history::{Ask, Floor, IncidentKind};

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
        let retention = &mut one.history.keyspaces.get_mut(KEYSPACE).unwrap().retention;
        retention.versions_max = Some(2);
        one.fails(check, Guarantee::Convergence, "lack 100.0@1 of k");
        one.history.keyspaces.get_mut(KEYSPACE).unwrap().retention.versions_max = Some(1);
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
        builder.incident(50, 3, IncidentKind::Damaged { file: "t".to_owned(), end: false });
        builder.passes(check);
    }

    #[test]
    fn a_delete_may_be_gone_here_and_there() {
        let mut builder = two();
        builder.delete("k", 1, 40..50, 300);
        for ms in [100, 200, 300] {
            builder.lose(2, stamp(ms, 1));
        }
        builder.fails(check, Guarantee::Convergence, "lack");
        builder.history.floors.push(Floor { at_us: 45, partition: 0, below: stamp(301, 0) });
        builder.passes(check);
    }

    #[test]
    fn a_keyspace_that_was_made_is_known_everywhere() {
        let mut builder = two();
        let name = "made".to_owned();
        let settings = starling_client::wire::KeyspaceSettings {
            name: name.as_str().into(),
            replication: 1,
            write_level: starling_client::wire::Level::One,
            read_level: starling_client::wire::Level::One,
            durability: starling_client::wire::Durability::Sync,
            history_versions_max: None,
            history_age_ms_max: None,
        };
        let ask = Ask::Create { settings };
        let index = builder.operation(1, 0..10, ask, Reply::Created { nodes: 3 });
        builder.history.operations[index].keyspace.clone_from(&name);
        for node in [1, 2] {
            builder.replica(node).keyspaces.insert(name.clone());
        }
        builder.fails(check, Guarantee::Convergence, "node 3 does not know the keyspace made");
        builder.replica(3).keyspaces.insert(name);
        builder.passes(check);
    }
}
