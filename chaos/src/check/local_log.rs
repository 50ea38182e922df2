//! G6: every event that a replica applies is in its change log exactly once, in one place for ever, also after a crash at any instant.
//!
//! Not judged: a place that a consumer saw before the disk was lost for good (the log begins anew then), and logs that could not be
//! read to their end. Nor an event that comes a second time to a node that has dropped it by both its retentions: no place of the
//! log has it any more (G6: "in that node's change log exactly once"), and nothing is left to know it by (G11).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use starling_clock::{NodeId, Stamp};
use starling_storage::{Change, KeyspaceId};

use super::facts::seconds;
use super::{Facts, Guarantee, Violation};
use crate::history::{IncidentKind, Replica, TailItem, Tailed};

/// What makes an event.
type Id<'a> = (KeyspaceId, &'a Bytes, Stamp);

pub(super) fn check(facts: &Facts<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (&node, replica) in &facts.history.replicas {
        if replica.unreadable.is_none() {
            let found = numbering(facts, node, replica);
            violations.extend(found.or_else(|| completeness(facts, node, replica)));
        }
    }
    violations.extend(tails(facts));
    violations
}

fn id_of(change: &Change) -> Id<'_> {
    (change.event.keyspace, &change.event.key, change.event.stamp)
}

fn violation(at_us: u64, what: String, evidence: Vec<String>) -> Violation {
    Violation { guarantee: Guarantee::LocalChanges, at_us, what, evidence }
}

/// Sequences count up without a gap, and no event has two.
fn numbering(facts: &Facts<'_>, node: NodeId, replica: &Replica) -> Option<Violation> {
    let (first, end) = replica.change_range;
    let mut places: BTreeMap<Id<'_>, &Change> = BTreeMap::new();
    let mut expected = first;
    let at_us = facts.history.ended_us;
    for change in &replica.changes {
        if change.sequence != expected {
            let what = format!(
                "place {} of node {node}'s change log follows {}",
                change.sequence,
                expected - 1
            );
            return Some(violation(at_us, what, facts.incidents(&[node], u64::MAX)));
        }
        expected += 1;
        if let Some(other) = places.insert(id_of(change), change) {
            let what = format!(
                "{} of {} is twice in node {node}'s change log",
                change.event.stamp,
                change.event.key.escape_ascii()
            );
            let place = |it: &Change| format!("place {}, as {:?}", it.sequence, it.provenance);
            return Some(violation(at_us, what, vec![place(other), place(change)]));
        }
    }
    (!replica.changes.is_empty() && expected != end).then(|| {
        let what = format!("node {node}'s change log ends before {expected}, and says {end}");
        violation(at_us, what, facts.incidents(&[node], u64::MAX))
    })
}

/// What is in the tables is in the log, if the log still has its beginning; and the other way round, unless retention may have
/// dropped it (G11), or a delete below a proved floor hid it (G10).
fn completeness(facts: &Facts<'_>, node: NodeId, replica: &Replica) -> Option<Violation> {
    if replica.change_range.0 > 1 {
        return None;
    }
    let at_us = facts.history.ended_us;
    let logged: BTreeSet<Id<'_>> = replica.changes.iter().map(id_of).collect();
    let missing = replica
        .events
        .iter()
        .find(|event| !logged.contains(&(event.keyspace, &event.key, event.stamp)));
    if let Some(event) = missing {
        let what = format!(
            "node {node} holds {} of {}, and its change log never had it",
            event.stamp,
            event.key.escape_ascii()
        );
        return Some(violation(at_us, what, facts.incidents(&[node], u64::MAX)));
    }
    let held: BTreeSet<Id<'_>> =
        replica.events.iter().map(|event| (event.keyspace, &event.key, event.stamp)).collect();
    let lost = replica.changes.iter().find(|change| {
        let event = &change.event;
        let (place, stamp) = ((facts.name(event.keyspace), &event.key), event.stamp);
        !held.contains(&id_of(change))
            && !facts.may_be_dropped(place, stamp, u64::MAX)
            && !facts.may_be_hidden(place, event.partition, stamp, u64::MAX)
    })?;
    let what = format!(
        "node {node}'s change log has {} of {} at place {}, and its tables do not",
        lost.event.stamp,
        lost.event.key.escape_ascii(),
        lost.sequence
    );
    Some(violation(at_us, what, facts.incidents(&[node], u64::MAX)))
}

/// A consumer sees one event once, and one event at one place, for ever.
fn tails(facts: &Facts<'_>) -> Option<Violation> {
    let mut seen: BTreeMap<(NodeId, u64), &TailItem> = BTreeMap::new();
    let mut events: BTreeMap<(NodeId, u64, &str, &Bytes, Stamp), u64> = BTreeMap::new();
    let mut wiped = BTreeMap::new();
    for incident in &facts.history.incidents {
        if incident.what == IncidentKind::Wiped {
            wiped.insert(incident.node, incident.at_us);
        }
    }
    for item in &facts.history.tails {
        let Tailed::Change { sequence, keyspace, key, stamp, .. } = &item.what else { continue };
        // The log of before the loss of the disk is another one.
        if wiped.get(&item.node).is_some_and(|&at| item.at_us <= at) {
            continue;
        }
        let id = (item.node, item.subscription, keyspace.as_str(), key, *stamp);
        let known = events.insert(id, *sequence);
        let is_kept = |&before: &u64| {
            let replica = facts.history.replicas.get(&item.node);
            replica.is_none_or(|replica| replica.change_range.0 <= before)
                || !facts.may_be_dropped((keyspace.as_str(), key), *stamp, item.at_us)
        };
        if let Some(before) = known.filter(is_kept) {
            let what = format!(
                "a consumer of node {} was sent {stamp} of {} twice",
                item.node,
                key.escape_ascii()
            );
            let line = format!("at {}: places {before} and {sequence}", seconds(item.at_us));
            return Some(violation(item.at_us, what, vec![line]));
        }
        let earlier = *seen.entry((item.node, *sequence)).or_insert(item);
        if !is_same(earlier, item) {
            let what = format!("place {sequence} of node {}'s change log has changed", item.node);
            let mut evidence = vec![line(earlier), line(item)];
            evidence.extend(facts.incidents(&[item.node], item.at_us));
            return Some(violation(item.at_us, what, evidence));
        }
    }
    seen.values().find_map(|item| at_the_end(facts, item))
}

fn is_same(one: &TailItem, other: &TailItem) -> bool {
    match (&one.what, &other.what) {
        (
            Tailed::Change { keyspace, key, stamp, .. },
            Tailed::Change { keyspace: other_keyspace, key: other_key, stamp: other_stamp, .. },
        ) => keyspace == other_keyspace && key == other_key && stamp == other_stamp,
        _ => false,
    }
}

fn line(item: &TailItem) -> String {
    match &item.what {
        Tailed::Change { sequence, key, stamp, .. } => format!(
            "at {} node {} sent {stamp} of {} as {sequence}",
            seconds(item.at_us),
            item.node,
            key.escape_ascii()
        ),
        other => format!("at {} node {} sent {other:?}", seconds(item.at_us), item.node),
    }
}

/// What a consumer was sent is at the same place at the end, unless retention passed it.
fn at_the_end(facts: &Facts<'_>, item: &TailItem) -> Option<Violation> {
    let Tailed::Change { sequence, keyspace, key, stamp, .. } = &item.what else { return None };
    let replica = facts.history.replicas.get(&item.node)?;
    let (first, end) = replica.change_range;
    if replica.unreadable.is_some() || *sequence < first {
        return None;
    }
    let at = usize::try_from(sequence - first).ok()?;
    let what = match replica.changes.get(at) {
        Some(change)
            if facts.name(change.event.keyspace) == keyspace
                && change.event.key == *key
                && change.event.stamp == *stamp =>
        {
            return None;
        }
        Some(change) => format!(
            "place {sequence} of node {}'s change log is {} of {} at the end",
            item.node,
            change.event.stamp,
            change.event.key.escape_ascii()
        ),
        None => format!(
            "place {sequence} of node {}'s change log was sent, and the log ends before {end}",
            item.node
        ),
    };
    let mut evidence = vec![line(item)];
    evidence.extend(facts.incidents(&[item.node], u64::MAX));
    Some(violation(item.at_us, what, evidence))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Builder, KEYSPACE, stamp};
    use super::*;

    fn three() -> Builder {
        let mut builder = Builder::new();
        for (number, key) in (1..).zip(["a", "b", "c"]) {
            builder.put(key, 1, number * 100..number * 100 + 10, 1000 + number);
        }
        for sequence in 1..=3 {
            builder.tail_change(500 + sequence, 2, 7, sequence);
        }
        builder
    }

    #[test]
    fn each_event_is_there_once() {
        three().passes(check);
        let mut twice = three();
        let change = twice.replica(1).changes[0].clone();
        twice.replica(1).changes.push(Change { sequence: 4, ..change });
        twice.replica(1).change_range = (1, 5);
        twice.fails(check, Guarantee::LocalChanges, "1001.0@1 of a is twice in node 1's");
    }

    #[test]
    fn none_is_missing_and_none_too_many() {
        let mut missing = three();
        missing.replica(1).changes.pop();
        missing.replica(1).change_range = (1, 3);
        missing.fails(check, Guarantee::LocalChanges, "never had it");
        let mut lost = three();
        lost.replica(1).events.pop();
        lost.fails(check, Guarantee::LocalChanges, "its tables do not");
        let mut holes = three();
        holes.replica(1).changes.remove(1);
        holes.fails(check, Guarantee::LocalChanges, "place 3 of node 1's change log follows 1");
    }

    #[test]
    fn places_never_change() {
        let mut moved = three();
        let changes = &mut moved.replica(2).changes;
        let (first, second) = (changes[0].event.clone(), changes[1].event.clone());
        (changes[0].event, changes[1].event) = (second, first);
        moved.fails(check, Guarantee::LocalChanges, "place 1 of node 2's change log is 1002.0@1");
        let mut again = moved.clone_tail(900, 2, 8, 1);
        again.replica(2).change_range = (1, 4);
        again.fails(check, Guarantee::LocalChanges, "place 1 of node 2's change log has changed");
    }

    #[test]
    fn what_was_sent_is_not_taken_back() {
        let mut lost = three();
        lost.lose(2, stamp(1003, 1));
        lost.fails(check, Guarantee::LocalChanges, "the log ends before 3");
        lost.incident(600, 2, IncidentKind::Wiped);
        lost.passes(check);
    }

    #[test]
    fn a_consumer_gets_an_event_once() {
        let mut builder = three();
        builder.tail_change(900, 2, 7, 2);
        builder.fails(check, Guarantee::LocalChanges, "twice");
    }

    #[test]
    fn what_both_retentions_dropped_may_come_again() {
        let mut builder = Builder::new();
        builder.put("k", 1, 0..10, 1000);
        builder.put("k", 1, 20..30, 1001);
        let old = builder.replica(2).changes[0].clone();
        builder.replica(2).changes.push(Change { sequence: 3, ..old });
        builder.replica(2).change_range = (1, 4);
        builder.tail_change(40, 2, 7, 1);
        builder.tail_change(50, 2, 7, 3);
        let retention = |builder: &mut Builder, most| {
            let keyspace = builder.history.keyspaces.get_mut(KEYSPACE).unwrap();
            keyspace.retention.versions_max = most;
        };
        retention(&mut builder, Some(1));
        builder.fails(check, Guarantee::LocalChanges, "twice");
        builder.replica(2).changes.remove(0);
        builder.replica(2).change_range = (2, 4);
        builder.passes(check);
        retention(&mut builder, None);
        builder.fails(check, Guarantee::LocalChanges, "twice");
    }

    impl Builder {
        fn clone_tail(&self, at_us: u64, node: u64, subscription: u64, sequence: u64) -> Self {
            let mut builder = Self::new();
            builder.history = self.finish();
            builder.tail_change(at_us, node, subscription, sequence);
            builder
        }
    }
}
