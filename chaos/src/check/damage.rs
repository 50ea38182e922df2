//! G14: what is served is what was written: every version that a client or a consumer sees, and every event that a replica holds, is
//! some client's write, whole and of the right key, and not of the future. And after a failed sync a node takes no write before it
//! was started again.

use std::collections::BTreeMap;

use bytes::Bytes;
use starling_clock::NodeId;
use starling_storage::{Action, RequestId};

use super::facts::seconds;
use super::{Facts, Guarantee, REPORTED_MAX, Violation};
use crate::history::{Ask, IncidentKind, Reply, Seen, Tailed};

pub(super) fn check(facts: &Facts<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    seen(facts, &mut violations);
    held(facts, &mut violations);
    tailed(facts, &mut violations);
    violations.extend(acks_after_failed_sync(facts));
    violations
}

/// Why a version is not what was written; `None` if it is.
fn wrong(
    facts: &Facts<'_>,
    keyspace: &str,
    key: &Bytes,
    (request, action, payload): (RequestId, Action, &Bytes),
    until_us: u64,
) -> Option<&'static str> {
    let Some(written) = facts.requests.get(&request) else { return Some("nobody wrote it") };
    if written.keyspace != keyspace || written.key != key {
        Some("it was written to another key")
    } else if written.action != action || written.payload != payload {
        Some("something else was written")
    } else if until_us < written.from_us {
        Some("it was written only later")
    } else {
        None
    }
}

fn violation(at_us: u64, what: String, evidence: Vec<String>) -> Violation {
    Violation { guarantee: Guarantee::Disk, at_us, what, evidence }
}

/// Versions in answers.
fn seen(facts: &Facts<'_>, violations: &mut Vec<Violation>) {
    for (index, operation) in facts.history.operations.iter().enumerate() {
        let Some(to_us) = operation.to_us else { continue };
        let mut one = |key: &Bytes, seen: &Seen| {
            let content = (seen.request, seen.action, &seen.payload);
            let Some(wrong) = wrong(facts, &operation.keyspace, key, content, to_us) else {
                return;
            };
            let what = format!(
                "a client was shown {} of {}, and {wrong}",
                super::facts::version(seen),
                key.escape_ascii()
            );
            violations.push(violation(to_us, what, vec![facts.line(index)]));
        };
        match (&operation.ask, &operation.reply) {
            (Ask::Get { key, .. }, Reply::Value(Some(seen))) => one(key, seen),
            (Ask::Versions { key, .. }, Reply::Versions { versions, .. }) => {
                for seen in versions {
                    one(key, seen);
                }
            }
            (Ask::Scan { .. }, Reply::Rows { rows, .. }) => {
                for (key, seen) in rows {
                    one(key, seen);
                }
            }
            _ => {}
        }
        if REPORTED_MAX <= violations.len() {
            return;
        }
    }
}

/// Events in tables and change logs at the end.
fn held(facts: &Facts<'_>, violations: &mut Vec<Violation>) {
    let at_us = facts.history.ended_us;
    for (&node, replica) in &facts.history.replicas {
        let logged = replica.changes.iter().map(|change| &change.event);
        for event in replica.events.iter().chain(logged) {
            let name = facts.name(event.keyspace);
            let content = (event.request, event.action, &event.payload);
            let Some(wrong) = wrong(facts, name, &event.key, content, u64::MAX) else { continue };
            let what = format!(
                "node {node} holds {} of {} at the end, and {wrong}",
                event.stamp,
                event.key.escape_ascii()
            );
            violations.push(violation(at_us, what, facts.incidents(&[node], u64::MAX)));
            break;
        }
    }
}

/// Changes that consumers were sent.
fn tailed(facts: &Facts<'_>, violations: &mut Vec<Violation>) {
    let mut payloads: BTreeMap<(&str, &Bytes), Vec<&Bytes>> = BTreeMap::new();
    for request in facts.requests.values() {
        let of_key = payloads.entry((request.keyspace, request.key)).or_default();
        of_key.push(request.payload);
    }
    for of_key in payloads.values_mut() {
        of_key.sort_unstable();
    }
    for item in &facts.history.tails {
        let Tailed::Change { keyspace, key, stamp, payload, .. } = &item.what else { continue };
        let known = payloads
            .get(&(keyspace.as_str(), key))
            .is_some_and(|of_key| of_key.binary_search(&payload).is_ok());
        if !known {
            let what = format!(
                "node {} sent a consumer {stamp} of {} with {payload:?}, and nobody wrote that",
                item.node,
                key.escape_ascii()
            );
            violations.push(violation(item.at_us, what, facts.incidents(&[item.node], item.at_us)));
            return;
        }
    }
}

/// A coordinator whose sync has failed is no replica that takes a write: an ack can count only the others.
fn acks_after_failed_sync(facts: &Facts<'_>) -> Option<Violation> {
    let mut poisoned: BTreeMap<NodeId, Vec<(u64, u64)>> = BTreeMap::new();
    for incident in &facts.history.incidents {
        let spans = poisoned.entry(incident.node).or_default();
        match incident.what {
            IncidentKind::SyncFailed => spans.push((incident.at_us, u64::MAX)),
            IncidentKind::Started => {
                for span in spans.iter_mut().filter(|span| span.1 == u64::MAX) {
                    span.1 = incident.at_us;
                }
            }
            _ => {}
        }
    }
    for ((name, _), of_key) in &facts.keys {
        for acked in &of_key.acked {
            let homes = facts.history.homes(name, acked.partition);
            let of_coordinator = poisoned.get(&acked.coordinator).map_or(&[][..], Vec::as_slice);
            let span = of_coordinator
                .iter()
                .find(|(from, to)| *from < acked.begin_us && acked.to_us < *to);
            let Some((from_us, _)) = span.copied() else { continue };
            let own = homes.contains(&acked.coordinator);
            if own && usize::from(acked.acks) == homes.len() {
                let what = format!(
                    "node {} took {} although its disk had failed to sync",
                    acked.coordinator, acked.stamp
                );
                let failed =
                    format!("at {} a sync of node {} failed", seconds(from_us), acked.coordinator);
                return Some(violation(acked.to_us, what, vec![failed, facts.line(acked.index)]));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Builder, stamp};
    use super::*;

    fn read(change: impl FnOnce(&mut Seen)) -> Builder {
        let mut builder = Builder::new();
        let mut seen = builder.put("k", 1, 0..10, 100);
        change(&mut seen);
        builder.get("k", 2, 20..30, Some(seen));
        builder
    }

    type Lie = fn(&mut Seen);

    #[test]
    fn what_was_written_is_read() {
        read(|_| ()).passes(check);
        let lies: [(Lie, &str); 3] = [
            (|seen| seen.payload = "other".into(), "something else was written"),
            (|seen| seen.request.sequence = 99, "nobody wrote it"),
            (|seen| seen.action = Action::Delete, "something else was written"),
        ];
        for (lie, what) in lies {
            read(lie).fails(check, Guarantee::Disk, what);
        }
    }

    #[test]
    fn nothing_is_read_from_another_key_or_from_the_future() {
        let mut builder = Builder::new();
        let seen = builder.put("k", 1, 0..10, 100);
        builder.get("l", 2, 20..30, Some(seen));
        builder.fails(check, Guarantee::Disk, "another key");
        let mut builder = Builder::new();
        let later = builder.put("k", 1, 100..110, 100);
        builder.get("k", 2, 20..30, Some(later));
        builder.fails(check, Guarantee::Disk, "only later");
    }

    #[test]
    fn replicas_and_consumers_have_what_was_written() {
        let mut builder = read(|_| ());
        builder.tail_change(40, 3, 1, 1);
        builder.passes(check);
        builder.replica(3).events[0].payload = "rotten".into();
        builder.fails(check, Guarantee::Disk, "node 3 holds");
        let mut builder = read(|_| ());
        builder.replica(3).changes[0].event.payload = "rotten".into();
        builder.tail_change(40, 3, 1, 1);
        let found = builder.check(check);
        assert!(found.iter().any(|violation| violation.what.contains("sent a consumer")));
    }

    #[test]
    fn a_failed_sync_ends_the_acks_until_the_restart() {
        let mut builder = Builder::new();
        builder.put("k", 1, 100..110, 100);
        let reply = Reply::Written { stamp: stamp(100, 1), superseded: false, acks: 3 };
        builder.history.operations[0].reply = reply;
        builder.passes(check);
        builder.incident(50, 1, IncidentKind::SyncFailed);
        builder.fails(check, Guarantee::Disk, "node 1 took 100.0@1");
        builder.incident(70, 1, IncidentKind::Started);
        builder.passes(check);
    }
}
