//! G9 and G5, as far as clients send what they have seen: a write of a session is ordered after everything that the session has seen
//! before it (monotonic writes, writes follow reads). Reads of a session are held to more than that by G3.
//!
//! Not judged: repetitions. They may find the event of an earlier attempt, with its stamp.

use starling_clock::HybridTime;

use super::{Facts, Guarantee, REPORTED_MAX, Violation};
use crate::history::{Ask, Reply};

pub(super) fn check(facts: &Facts<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (index, operation) in facts.history.operations.iter().enumerate() {
        let (Ask::Write { .. }, Reply::Written { stamp, .. }) = (&operation.ask, &operation.reply)
        else {
            continue;
        };
        if operation.attempt > 0 || stamp.time.packed() > operation.observed {
            continue;
        }
        let observed = HybridTime::from_packed(operation.observed).unwrap_or(HybridTime::MAX);
        let earlier = facts.history.operations[..index].iter().rposition(|before| {
            before.client == operation.client && has_seen(&before.reply, observed)
        });
        let mut evidence: Vec<String> = earlier.map(|at| facts.line(at)).into_iter().collect();
        evidence.push(facts.line(index));
        violations.push(Violation {
            guarantee: Guarantee::Session,
            at_us: operation.to_us.unwrap_or(operation.from_us),
            what: format!(
                "client {} had seen {observed}, and its next write was stamped {stamp}",
                operation.client
            ),
            evidence,
        });
        if REPORTED_MAX <= violations.len() {
            break;
        }
    }
    violations
}

fn has_seen(reply: &Reply, time: HybridTime) -> bool {
    match reply {
        Reply::Written { stamp, .. } => stamp.time == time,
        Reply::Value(Some(seen)) => seen.stamp.time == time,
        Reply::Versions { versions, .. } => versions.iter().any(|seen| seen.stamp.time == time),
        Reply::Rows { rows, .. } => rows.iter().any(|(_, seen)| seen.stamp.time == time),
        Reply::None | Reply::Value(None) | Reply::Created { .. } | Reply::Error { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Builder, stamp};
    use super::*;

    fn session(second_ms: u64) -> Builder {
        let mut builder = Builder::new();
        builder.put("k", 1, 0..10, 1000);
        builder.put("l", 2, 20..30, second_ms);
        let second = &mut builder.history.operations[1];
        second.client = 1;
        second.observed = stamp(1000, 1).time.packed();
        builder
    }

    #[test]
    fn a_write_follows_what_the_session_has_seen() {
        session(1001).passes(check);
        session(999).fails(check, Guarantee::Session, "client 1 had seen 1000.0");
        // Equal times are ordered by the node's number, which says nothing of causes.
        session(1000).fails(check, Guarantee::Session, "stamped 1000.0@2");
    }

    #[test]
    fn a_repetition_may_find_what_it_wrote_before() {
        let mut builder = session(999);
        builder.history.operations[1].attempt = 1;
        builder.passes(check);
    }
}
