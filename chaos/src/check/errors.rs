//! G2: an error that says "nothing happened" is true: no event of such a request is ever seen.
//!
//! A request counts as one with all its attempts: it did not happen only if every attempt was answered so.

use std::collections::BTreeSet;

use starling_client::wire::ErrorKind;
use starling_storage::RequestId;

use super::facts::Request;
use super::{Facts, Guarantee, REPORTED_MAX, Violation};
use crate::history::Reply;

pub(super) fn check(facts: &Facts<'_>) -> Vec<Violation> {
    let denied: BTreeSet<RequestId> = facts
        .requests
        .iter()
        .filter(|(_, request)| is_denied(facts, request))
        .map(|(id, _)| *id)
        .collect();
    let mut violations = Vec::new();
    for (&node, replica) in &facts.history.replicas {
        for event in &replica.events {
            if !denied.contains(&event.request) {
                continue;
            }
            let attempts = &facts.requests[&event.request].attempts;
            let mut evidence: Vec<String> =
                attempts.iter().map(|&attempt| facts.line(attempt)).collect();
            evidence.push(facts.holders(event.keyspace, &event.key, event.stamp));
            violations.push(Violation {
                guarantee: Guarantee::Error,
                at_us: facts.requests[&event.request].from_us,
                what: format!(
                    "a write of {} was answered with \"nothing happened\", and node {node} has it",
                    event.key.escape_ascii()
                ),
                evidence,
            });
            if REPORTED_MAX <= violations.len() {
                return violations;
            }
        }
    }
    violations
}

/// Every attempt was answered with an error that says that nothing happened.
fn is_denied(facts: &Facts<'_>, request: &Request<'_>) -> bool {
    request.attempts.iter().all(|&attempt| {
        let reply = &facts.history.operations[attempt].reply;
        matches!(reply, Reply::Error { kind, .. } if *kind != ErrorKind::Unknown)
    })
}

#[cfg(test)]
mod tests {
    use starling_client::wire::ErrorCode;

    use super::super::testing::{Builder, stamp};
    use super::*;

    #[test]
    fn what_did_not_happen_is_not_there() {
        let mut builder = Builder::new();
        let refused = builder.refused_put("k", 1, 0..10, ErrorCode::Unavailable);
        builder.passes(check);
        let event = builder.event(refused, stamp(100, 1));
        builder.hold(2, &event);
        builder.fails(check, Guarantee::Error, "node 2 has it");
    }

    #[test]
    fn the_unknown_may_be_there() {
        let mut builder = Builder::new();
        let unknown = builder.refused_put("k", 1, 0..10, ErrorCode::Timeout);
        let event = builder.event(unknown, stamp(100, 1));
        builder.hold(2, &event);
        builder.passes(check);
        // So may a repetition that did nothing by itself.
        let first = builder.lost_put("l", 1, 20..30);
        let second = builder.refused_put("l", 1, 40..50, ErrorCode::Overloaded);
        let event = builder.event(first, stamp(200, 1));
        builder.hold(2, &event);
        let request = builder.history.operations[first].request;
        builder.history.operations[second].request = request;
        builder.passes(check);
    }
}
