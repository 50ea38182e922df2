//! G13: what a node holds is bounded, whatever is asked of it. The bounds are those of `node/src/limits.rs`.

use starling_node::limits::Limits;

use super::facts::seconds;
use super::{Facts, Guarantee, Violation};

/// Flights that are there beside those that the limits count: repair, replays, bounds, subscriptions of every node.
const OWN_FLIGHTS_MAX: usize = 4096;
/// Questions to this node's storage that one flight has open at a time: a read and a repair, or hints for all of a key's homes.
const ASKS_OF_FLIGHT_MAX: usize = 17;

pub(super) fn check(facts: &Facts<'_>) -> Vec<Violation> {
    let limits = Limits::default();
    let served = limits.served_per_peer_max * facts.history.nodes.len();
    let flights_max = limits.in_flight_max + limits.lingering_max + served + OWN_FLIGHTS_MAX;
    let mut violations = Vec::new();
    for sample in &facts.history.samples {
        let waiting_max = ASKS_OF_FLIGHT_MAX * (sample.flights + limits.in_flight_max);
        let bounds = [
            ("requests in flight", sample.in_flight, limits.in_flight_max),
            ("flights", sample.flights, flights_max),
            ("requests that wait for storage", sample.storage_waiting, waiting_max),
        ];
        for (what, count, bound) in bounds {
            if count > bound {
                violations.push(Violation {
                    guarantee: Guarantee::Memory,
                    at_us: sample.at_us,
                    what: format!("node {} holds {count} {what}: {bound} at most", sample.node),
                    evidence: vec![format!("at {}: {sample:?}", seconds(sample.at_us))],
                });
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use starling_clock::NodeId;

    use super::super::testing::Builder;
    use super::*;
    use crate::history::Sample;

    fn sampled(in_flight: usize, flights: usize, storage_waiting: usize) -> Builder {
        let mut builder = Builder::new();
        let node = NodeId(1);
        builder.history.samples.push(Sample {
            at_us: 1,
            node,
            in_flight,
            flights,
            storage_waiting,
        });
        builder
    }

    #[test]
    fn bounds_hold_up_to_and_with_themselves() {
        sampled(8192, 9000, 10_000).passes(check);
        sampled(8193, 9000, 10_000).fails(check, Guarantee::Memory, "8193 requests in flight");
        sampled(0, 1_000_000, 0).fails(check, Guarantee::Memory, "1000000 flights");
        sampled(0, 0, 200_000).fails(check, Guarantee::Memory, "wait for storage");
    }
}
