//! G11: all events of a key within the history retention are read in stamp order.
//!
//! A read of versions at R+W>N has every event that was acked before it began: itself, or a later stamp of the same request, since
//! the events of one request are one write. Beyond a page's end nothing is said. Not judged: what retention may have dropped
//! ([`Facts::may_be_dropped`]), what home replicas may have lost within the contract (`losses.rs`), and deletes below a proved floor
//! with what they hid ([`Facts::may_be_hidden`]).

use std::collections::BTreeMap;

use starling_clock::Stamp;
use starling_storage::RequestId;

use super::facts::Acked;
use super::{Facts, Guarantee, REPORTED_MAX, Violation};
use crate::history::{Ask, Operation, Reply, Seen};

pub(super) fn check(facts: &Facts<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (index, operation) in facts.history.operations.iter().enumerate() {
        let (Ask::Versions { .. }, Reply::Versions { versions, more }) =
            (&operation.ask, &operation.reply)
        else {
            continue;
        };
        violations.extend(order(facts, index, operation, versions));
        violations.extend(hole(facts, index, operation, versions, *more));
        if REPORTED_MAX <= violations.len() {
            break;
        }
    }
    violations
}

fn violation(operation: &Operation, what: String, evidence: Vec<String>) -> Violation {
    let at_us = operation.to_us.unwrap_or(operation.from_us);
    Violation { guarantee: Guarantee::History, at_us, what, evidence }
}

fn order(
    facts: &Facts<'_>,
    index: usize,
    operation: &Operation,
    versions: &[Seen],
) -> Option<Violation> {
    let pair = versions.windows(2).find(|pair| pair[1].stamp <= pair[0].stamp)?;
    let what = format!("a history shows {} before {}", pair[0].stamp, pair[1].stamp);
    Some(violation(operation, what, vec![facts.line(index)]))
}

fn hole(
    facts: &Facts<'_>,
    index: usize,
    operation: &Operation,
    versions: &[Seen],
    more: bool,
) -> Option<Violation> {
    let keyspace = facts.history.keyspaces.get(&operation.keyspace)?;
    let (key, to_us) = (operation.key()?, operation.to_us?);
    let place = (operation.keyspace.as_str(), key);
    let of_key = facts.keys.get(&place)?;
    let end = if more { versions.last()?.stamp } else { Stamp::MAX };
    let required = operation.required(keyspace);
    let mut shown: BTreeMap<RequestId, Stamp> = BTreeMap::new();
    for seen in versions {
        let greatest = shown.entry(seen.request).or_insert(seen.stamp);
        *greatest = seen.stamp.max(*greatest);
    }
    let is_missing = |acked: &&Acked<'_>| {
        acked.to_us <= operation.from_us
            && acked.required + required > keyspace.replication
            && acked.stamp <= end
            && shown.get(&acked.request).is_none_or(|&stamp| stamp < acked.stamp)
            && !facts.may_be_dropped(place, acked.stamp, to_us)
            && !facts.may_be_hidden(place, acked.partition, acked.stamp, to_us)
            && facts.losses.none(facts.history.homes(place.0, acked.partition), &acked.loss(to_us))
    };
    let missing = of_key.acked.iter().take_while(|it| it.to_us <= operation.from_us);
    let missing = missing.into_iter().find(is_missing)?;
    let what = format!(
        "a history of {} lacks {}, which was acked before it was asked for",
        key.escape_ascii(),
        missing.stamp
    );
    Some(violation(operation, what, vec![facts.line(missing.index), facts.line(index)]))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Builder, KEYSPACE, stamp};
    use super::*;
    use crate::history::{Floor, IncidentKind};

    fn three() -> (Builder, Vec<Seen>) {
        let mut builder = Builder::new();
        let versions = (1..=3_u64)
            .map(|number| builder.put("k", 1, number * 100..number * 100 + 10, number * 100))
            .collect();
        (builder, versions)
    }

    #[test]
    fn all_events_in_order() {
        let (mut builder, versions) = three();
        builder.versions("k", 2, 500..510, versions.clone());
        builder.passes(check);
        let backwards = versions.into_iter().rev().collect();
        builder.versions("k", 2, 520..530, backwards);
        builder.fails(check, Guarantee::History, "shows 300.0@1 before 200.0@1");
    }

    #[test]
    fn none_is_missing() {
        let (mut builder, versions) = three();
        builder.versions("k", 2, 500..510, vec![versions[0].clone(), versions[2].clone()]);
        builder.fails(check, Guarantee::History, "lacks 200.0@1");
        let mut lossy = Builder::new();
        lossy.history = builder.finish();
        lossy.incident(400, 3, IncidentKind::Wiped);
        lossy.passes(check);
        let retention = &mut builder.history.keyspaces.get_mut(KEYSPACE).unwrap().retention;
        retention.versions_max = Some(3);
        builder.fails(check, Guarantee::History, "lacks 200.0@1");
        builder.history.keyspaces.get_mut(KEYSPACE).unwrap().retention.versions_max = Some(2);
        builder.passes(check);
    }

    #[test]
    fn a_page_speaks_for_itself() {
        let (mut builder, versions) = three();
        builder.versions("k", 2, 500..510, versions[..2].to_vec());
        builder.fails(check, Guarantee::History, "lacks 300.0@1");
        if let Reply::Versions { more, .. } =
            &mut builder.history.operations.last_mut().unwrap().reply
        {
            *more = true;
        }
        builder.passes(check);
    }

    #[test]
    fn stamps_of_one_request_are_one_write() {
        let (mut builder, mut versions) = three();
        versions[1].stamp = stamp(250, 1);
        builder.versions("k", 2, 500..510, versions);
        builder.passes(check);
    }

    #[test]
    fn a_delete_may_go_with_what_it_hid() {
        let (mut builder, _) = three();
        builder.delete("k", 1, 400..410, 400);
        builder.versions("k", 2, 500..510, Vec::new());
        builder.fails(check, Guarantee::History, "lacks 100.0@1");
        builder.history.floors.push(Floor { at_us: 450, partition: 0, below: stamp(400, 2) });
        builder.passes(check);
    }
}
