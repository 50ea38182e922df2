//! G5: a node's stamps never go back and are unique, across restarts and jumps of its wall clock too, and no node's clock is dragged
//! further ahead of its wall clock than the skew bound.
//!
//! How far ahead a stamp may be: the skew bound ahead of the furthest that the node's own wall clock has been, and a window of the
//! restart bound more for each restart, since restarts closer together than the window add up (`starling_clock::ClockConfig`).
//! What the wall clocks showed when the true clock of the recorder was at zero is not in a history; it is estimated from below the
//! stamps: a stamp is never behind the wall clock of its node.

use std::collections::BTreeMap;

use starling_clock::{ClockConfig, NodeId, Stamp};
use starling_storage::RequestId;

use super::{Facts, Guarantee, Violation};
use crate::history::{Ask, IncidentKind, Reply};

/// A millisecond for rounding, and what the logical part may carry.
const ROUNDING_MS: i64 = 5;

/// A stamp that a node gave while it did an operation.
#[derive(Clone, Copy, Debug)]
struct Given {
    index: usize,
    from_us: u64,
    to_us: u64,
    stamp: Stamp,
}

pub(super) fn check(facts: &Facts<'_>) -> Vec<Violation> {
    let given = given(facts);
    let mut violations = Vec::new();
    for stamps in given.values() {
        violations.extend(goes_back(facts, stamps));
    }
    violations.extend(twice(facts));
    violations.extend(too_far_ahead(facts, &given));
    violations
}

/// Stamps of first attempts, by coordinator, in the order in which the operations began. A repetition may be answered with a
/// stamp of before.
fn given(facts: &Facts<'_>) -> BTreeMap<NodeId, Vec<Given>> {
    let mut given: BTreeMap<NodeId, Vec<Given>> = BTreeMap::new();
    for (index, operation) in facts.history.operations.iter().enumerate() {
        let (Ask::Write { .. }, Reply::Written { stamp, .. }, Some(to_us)) =
            (&operation.ask, &operation.reply, operation.to_us)
        else {
            continue;
        };
        if operation.attempt == 0 && stamp.node == operation.coordinator {
            let (from_us, stamp) = (operation.from_us, *stamp);
            given.entry(stamp.node).or_default().push(Given { index, from_us, to_us, stamp });
        }
    }
    for stamps in given.values_mut() {
        stamps.sort_by_key(|given| given.from_us);
    }
    given
}

/// A stamp that is not above one of an operation that was over before.
fn goes_back(facts: &Facts<'_>, stamps: &[Given]) -> Option<Violation> {
    let mut by_end = stamps.to_vec();
    by_end.sort_by_key(|given| given.to_us);
    let mut next = 0;
    let mut greatest: Option<Given> = None;
    for later in stamps {
        while let Some(earlier) = by_end.get(next).filter(|it| it.to_us <= later.from_us) {
            if greatest.is_none_or(|greatest| greatest.stamp < earlier.stamp) {
                greatest = Some(*earlier);
            }
            next += 1;
        }
        let Some(before) = greatest.filter(|greatest| later.stamp <= greatest.stamp) else {
            continue;
        };
        let node = later.stamp.node;
        let mut evidence = vec![facts.line(before.index), facts.line(later.index)];
        evidence.extend(facts.incidents(&[node], later.to_us));
        return Some(Violation {
            guarantee: Guarantee::Clock,
            at_us: later.to_us,
            what: format!("node {node} gave {} after it had given {}", later.stamp, before.stamp),
            evidence,
        });
    }
    None
}

/// One stamp for two requests.
fn twice(facts: &Facts<'_>) -> Option<Violation> {
    let mut owners: BTreeMap<Stamp, RequestId> = BTreeMap::new();
    let answered = facts.history.operations.iter().filter_map(|operation| match operation.reply {
        Reply::Written { stamp, .. } => Some((stamp, operation.request)),
        _ => None,
    });
    let events = facts.history.replicas.values().flat_map(|replica| &replica.events);
    let held = events.map(|event| (event.stamp, event.request));
    for (stamp, request) in answered.chain(held) {
        let owner = *owners.entry(stamp).or_insert(request);
        if owner != request {
            let attempts = [owner, request].into_iter().filter_map(|id| facts.requests.get(&id));
            let evidence: Vec<String> = attempts
                .flat_map(|request| request.attempts.iter().map(|&attempt| facts.line(attempt)))
                .collect();
            return Some(Violation {
                guarantee: Guarantee::Clock,
                at_us: facts.requests.get(&request).map_or(0, |request| request.from_us),
                what: format!("{stamp} was given to two requests"),
                evidence,
            });
        }
    }
    None
}

/// What is known of a node's wall clock at a moment, in milliseconds ahead of the true time.
#[derive(Clone, Copy, Debug)]
struct WallClock {
    /// Now.
    ahead_ms: i64,
    /// The furthest that it has shown, compared with the true time of now.
    furthest_ms: i64,
    /// How often the node was started.
    starts: i64,
}

/// Between two incidents a wall clock moves in a straight line ([`IncidentKind::Clock`]).
fn wall_clock(facts: &Facts<'_>, node: NodeId, at_us: u64) -> WallClock {
    let mut starts = 0;
    // What was shown last, when, and the furthest so far as a point in time.
    let (mut ahead_ms, mut since_us, mut furthest) = (0_i64, 0_u64, 0_i64);
    for incident in facts.history.incidents_of(node) {
        if let IncidentKind::Clock { skew_ms } = incident.what {
            if at_us < incident.at_us {
                let (whole, part) = (ms(incident.at_us - since_us).max(1), ms(at_us - since_us));
                ahead_ms += (skew_ms - ahead_ms) * part / whole;
                break;
            }
            (ahead_ms, since_us) = (skew_ms, incident.at_us);
            furthest = furthest.max(ahead_ms + ms(since_us));
        } else if incident.what == IncidentKind::Started && incident.at_us <= at_us {
            starts += 1;
        }
    }
    let furthest_ms = ahead_ms.max(furthest - ms(at_us));
    WallClock { ahead_ms, furthest_ms, starts }
}

fn ms(us: u64) -> i64 {
    i64::try_from(us / 1000).unwrap_or(i64::MAX)
}

fn physical(stamp: Stamp) -> i64 {
    i64::try_from(stamp.time.physical_ms()).unwrap_or(i64::MAX)
}

fn too_far_ahead(facts: &Facts<'_>, given: &BTreeMap<NodeId, Vec<Given>>) -> Option<Violation> {
    // The wall clock at the recorder's zero, or later: what a stamp says is not before what the wall clock said when the
    // operation began, nor when it was answered unless the stamp was given before.
    let zero = given.values().flatten().map(|given| {
        let began = wall_clock(facts, given.stamp.node, given.from_us).ahead_ms;
        let ended = wall_clock(facts, given.stamp.node, given.to_us).ahead_ms;
        physical(given.stamp) - ms(given.from_us) - began.min(ended)
    });
    let zero = zero.min()?;
    let config = ClockConfig::default();
    let (skew, window) = (signed(config.skew_ms_max), signed(config.bound_window_ms));
    let mut worst: Option<(i64, Given)> = None;
    for stamp in given.values().flatten() {
        let clock = wall_clock(facts, stamp.stamp.node, stamp.to_us);
        let began = wall_clock(facts, stamp.stamp.node, stamp.from_us);
        let shown =
            (ms(stamp.to_us) + clock.furthest_ms).max(ms(stamp.from_us) + began.furthest_ms);
        let ahead = physical(stamp.stamp) - zero - shown;
        let over = ahead - skew - window * clock.starts - ROUNDING_MS;
        if over > 0 && worst.is_none_or(|(most, _)| most < over) {
            worst = Some((over, *stamp));
        }
    }
    let (over, stamp) = worst?;
    let node = stamp.stamp.node;
    let mut evidence = vec![facts.line(stamp.index)];
    for incident in facts.history.incidents.iter().filter(|it| it.at_us <= stamp.to_us) {
        if let IncidentKind::Clock { skew_ms } = incident.what
            && (skew_ms > skew || incident.node == node)
        {
            evidence.push(format!(
                "at {} the wall clock of node {} is set {skew_ms} ms ahead",
                super::facts::seconds(incident.at_us),
                incident.node
            ));
        }
    }
    Some(Violation {
        guarantee: Guarantee::Clock,
        at_us: stamp.to_us,
        what: format!(
            "node {node} gave {}, {over} ms further ahead of its wall clock than the bound allows",
            stamp.stamp
        ),
        evidence,
    })
}

fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::testing::Builder;
    use super::*;

    const S: u64 = 1_000_000;

    /// A wall clock jumps.
    fn set(builder: &mut Builder, at_us: u64, node: u64, from_ms: i64, to_ms: i64) {
        builder.incident(at_us, node, IncidentKind::Clock { skew_ms: from_ms });
        builder.incident(at_us, node, IncidentKind::Clock { skew_ms: to_ms });
    }

    #[test]
    fn a_clock_that_drifts_is_followed() {
        let drifted = |ms| {
            let mut builder = Builder::new();
            builder.put("k", 1, 0..1000, 1000);
            builder.incident(10 * S, 2, IncidentKind::Clock { skew_ms: 0 });
            builder.incident(20 * S, 2, IncidentKind::Clock { skew_ms: 2000 });
            builder.put("k", 2, 15 * S..15 * S + 1000, ms);
            builder
        };
        drifted(17_400).passes(check);
        drifted(17_600).fails(check, Guarantee::Clock, "further ahead");
    }

    #[test]
    fn stamps_grow() {
        let mut builder = Builder::new();
        builder.put("k", 1, 0..10, 1000);
        builder.put("l", 1, 20..30, 1001);
        builder.put("k", 2, 20..30, 1000);
        builder.passes(check);
        builder.put("k", 1, 40..50, 999);
        builder.fails(check, Guarantee::Clock, "node 1 gave 999.0@1 after it had given 1001.0@1");
    }

    #[test]
    fn concurrent_requests_have_no_order() {
        let mut builder = Builder::new();
        builder.put("k", 1, 0..30, 1001);
        builder.put("l", 1, 20..40, 1000);
        builder.passes(check);
    }

    #[test]
    fn no_stamp_is_given_twice() {
        let mut builder = Builder::new();
        builder.put("k", 1, 0..30, 1000);
        builder.put("l", 1, 20..40, 1000);
        builder.fails(check, Guarantee::Clock, "1000.0@1 was given to two requests");
    }

    #[test]
    fn a_clock_is_dragged_no_further_than_the_bound() {
        let dragged = |ms| {
            let mut builder = Builder::new();
            builder.put("k", 1, 0..1000, 1000);
            set(&mut builder, S, 2, 0, 10_000);
            builder.put("k", 2, 2 * S..2 * S + 1000, 13_000);
            builder.put("k", 1, 3 * S..3 * S + 1000, ms);
            builder
        };
        dragged(4500).passes(check);
        dragged(13_001).fails(check, Guarantee::Clock, "node 1 gave 13001.0@1");
        // With as many restarts as bring it there nobody is to blame.
        let mut restarted = dragged(4700);
        restarted.fails(check, Guarantee::Clock, "further ahead");
        restarted.incident(2 * S, 1, IncidentKind::Started);
        restarted.passes(check);
    }

    #[test]
    fn a_wall_clock_that_jumps_back_leaves_stamps_where_they_are() {
        let mut builder = Builder::new();
        builder.put("k", 1, 0..1000, 1000);
        set(&mut builder, S, 1, 0, 10_000);
        builder.put("k", 1, 2 * S..2 * S + 1000, 13_000);
        set(&mut builder, 3 * S, 1, 10_000, 0);
        builder.put("k", 1, 4 * S..4 * S + 1000, 13_001);
        builder.passes(check);
    }
}
