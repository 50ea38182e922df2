//! G8: a consumer is told of what retention took, and never skips anything in silence.
//!
//! Holds for each subscription by itself: places go up by one, or a [`Tailed::Gap`] from the very place says how far.

use std::collections::BTreeMap;

use starling_clock::NodeId;

use super::facts::seconds;
use super::{Facts, Guarantee, Violation};
use crate::history::{IncidentKind, TailItem, Tailed};

pub(super) fn check(facts: &Facts<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    // Where each subscription is to go on.
    let mut expected: BTreeMap<(NodeId, u64), u64> = BTreeMap::new();
    for item in &facts.history.tails {
        let next = expected.get(&(item.node, item.subscription)).copied();
        match item.what {
            Tailed::Change { sequence, .. } => {
                if next.is_some_and(|next| next != sequence) {
                    violations.push(jump(item, next, sequence));
                }
                expected.insert((item.node, item.subscription), sequence + 1);
            }
            Tailed::Next(sequence) => {
                if next.is_some_and(|next| next != sequence) {
                    violations.push(jump(item, next, sequence));
                }
                expected.insert((item.node, item.subscription), sequence);
            }
            Tailed::Gap { from, to } => {
                if to <= from || next.is_some_and(|next| next != from) {
                    violations.push(jump(item, next, from));
                }
                violations.extend(false_alarm(facts, item, to));
                expected.insert((item.node, item.subscription), to);
            }
        }
    }
    violations
}

fn jump(item: &TailItem, next: Option<u64>, sequence: u64) -> Violation {
    let what = match next {
        Some(next) => format!(
            "a consumer of node {} was at place {next} and was sent {sequence} without a word",
            item.node
        ),
        None => format!("a consumer of node {} was told of a gap that is none", item.node),
    };
    Violation {
        guarantee: Guarantee::Gap,
        at_us: item.at_us,
        what,
        evidence: vec![format!(
            "at {}, subscription {}: {:?}",
            seconds(item.at_us),
            item.subscription,
            item.what
        )],
    }
}

/// What a gap says is gone must be gone for ever. A log that began anew on an empty disk is another one.
fn false_alarm(facts: &Facts<'_>, item: &TailItem, to: u64) -> Option<Violation> {
    let replica = facts.history.replicas.get(&item.node)?;
    let anew = facts
        .history
        .incidents_of(item.node)
        .any(|incident| incident.what == IncidentKind::Wiped && item.at_us <= incident.at_us);
    let (first, _) = replica.change_range;
    (!anew && first < to).then(|| Violation {
        guarantee: Guarantee::Gap,
        at_us: item.at_us,
        what: format!(
            "node {} said that everything before {to} is gone, and has it from {first} on at the end",
            item.node
        ),
        evidence: vec![format!("at {}: {:?}", seconds(item.at_us), item.what)],
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::Builder;
    use super::*;

    fn tailed(items: &[(u64, Tailed)]) -> Builder {
        let mut builder = Builder::new();
        builder.replica(1).change_range = (10, 20);
        for (at_us, what) in items {
            builder.tail(*at_us, 1, 7, what.clone());
        }
        builder
    }

    fn change(sequence: u64) -> Tailed {
        let stamp = super::super::testing::stamp(sequence, 1);
        let (keyspace, key, payload) = ("ks".to_owned(), "k".into(), "v".into());
        Tailed::Change { sequence, keyspace, key, stamp, payload }
    }

    #[test]
    fn one_after_the_other() {
        tailed(&[(1, change(3)), (2, change(4)), (3, Tailed::Next(5)), (4, change(5))])
            .passes(check);
    }

    #[test]
    fn a_jump_is_announced() {
        let gap = Tailed::Gap { from: 5, to: 10 };
        tailed(&[(1, change(4)), (2, gap.clone()), (3, change(10))]).passes(check);
        tailed(&[(1, change(4)), (3, change(10))]).fails(check, Guarantee::Gap, "at place 5");
        tailed(&[(1, change(4)), (3, Tailed::Next(6))]).fails(check, Guarantee::Gap, "place 5");
        tailed(&[(1, change(3)), (2, gap)]).fails(check, Guarantee::Gap, "place 4");
        tailed(&[(1, change(4)), (3, change(4))]).fails(check, Guarantee::Gap, "sent 4");
    }

    #[test]
    fn a_gap_is_one() {
        tailed(&[(1, Tailed::Gap { from: 5, to: 12 })]).fails(check, Guarantee::Gap, "from 10 on");
        tailed(&[(1, Tailed::Gap { from: 5, to: 5 })]).fails(check, Guarantee::Gap, "that is none");
    }
}
