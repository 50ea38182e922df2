//! [`Losses`]: which home replicas may have lost an event within the contract, and when.
//!
//! - The disk was lost for good (G1: "survives the permanent loss of any W-1 nodes").
//! - Bits or files of the disk were damaged after the event was written. G14 promises that the damage is not served, not that the
//!   record is still there. It is an excuse until the disk is replaced, for this node's copies; for events of after the
//!   damage only if it hit the end of the write-ahead log, and only until the next start: a damaged end cannot be told from a torn one.
//! - `interval` and the power went, or a sync failed, before the interval had passed (G1: "on disk within that time"). A process that
//!   died, or whose sync failed, syncs nothing more until the next start has: the power may also go then.
//!
//! Invariants:
//!
//! - A node that was stopped has lost nothing.
//! - An event that was acked before all home replicas were found to hold the same is with all of them then: what is lost
//!   later counts anew. Not so at ANY, where a hint may be all that there is.

use std::collections::BTreeMap;

use starling_clock::{NodeId, Stamp};

use crate::history::{Equal, History, Incident, IncidentKind};

/// G1: with durability `interval` an event is on disk within the node's interval, in microseconds: the default of the product, and
/// what a sync takes that has to wait for a commit.
pub(crate) const INTERVAL_US: u64 = 100_000 + 50_000;

/// An event, and the time over which it may have been lost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loss {
    /// Its stamp.
    pub(crate) stamp: Stamp,
    /// It was with no replica before.
    pub(crate) from_us: u64,
    /// It was acked at this time: `interval` counts from here.
    pub(crate) acked_us: u64,
    /// Nothing after this matters.
    pub(crate) until_us: u64,
    /// Home replicas that had it then; 0 for ANY.
    pub(crate) required: u8,
    /// Its durability was `interval`.
    pub(crate) interval: bool,
}

/// How many home replicas may have lost an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    /// Between two moments at which all held the same, at most.
    pub(crate) most: usize,
    /// Since the last such moment.
    pub(crate) since: usize,
}

/// What may take an event from a node.
#[derive(Clone, Copy, Debug)]
enum Cause {
    Wiped {
        at_us: u64,
    },
    /// Events that began up to `events_us` may be hit until the disk is replaced.
    Damaged {
        at_us: u64,
        events_us: u64,
        until_us: u64,
    },
    /// What was not on disk at `since_us` was not at `at_us` either.
    Unsynced {
        since_us: u64,
        at_us: u64,
    },
}

/// What may have taken events, by node.
#[derive(Debug)]
pub(crate) struct Losses {
    causes: BTreeMap<NodeId, Vec<Cause>>,
    equal: Vec<Equal>,
}

impl Losses {
    pub(crate) fn new(history: &History) -> Self {
        let mut causes: BTreeMap<NodeId, Vec<Cause>> = BTreeMap::new();
        for incident in &history.incidents {
            let at_us = incident.at_us;
            let after = |wanted: &dyn Fn(&IncidentKind) -> bool| {
                let mut later = history.incidents_of(incident.node).filter(|it| at_us < it.at_us);
                later.find(|it| wanted(&it.what)).map_or(u64::MAX, |it| it.at_us)
            };
            let cause = match incident.what {
                IncidentKind::Wiped => Cause::Wiped { at_us },
                IncidentKind::Damaged { end, .. } => {
                    let events_us =
                        if end { after(&|it| *it == IncidentKind::Started) } else { at_us };
                    let until_us = after(&|it| *it == IncidentKind::Wiped);
                    Cause::Damaged { at_us, events_us, until_us }
                }
                IncidentKind::Crashed { power: true } | IncidentKind::SyncFailed => {
                    Cause::Unsynced { since_us: syncless_since(history, incident), at_us }
                }
                _ => continue,
            };
            causes.entry(incident.node).or_default().push(cause);
        }
        Self { causes, equal: history.equal.clone() }
    }

    /// How many of these nodes may have lost the event.
    pub(crate) fn of(&self, homes: &[NodeId], loss: &Loss) -> Lost {
        let synced_us = if loss.interval { INTERVAL_US } else { 0 };
        let counts = |equal: &&Equal| {
            0 < loss.required
                && loss.acked_us.saturating_add(synced_us) <= equal.at_us
                && equal.at_us <= loss.until_us
                && loss.stamp <= equal.up_to
        };
        let (mut most, mut begin_us) = (0, loss.from_us);
        for equal in self.equal.iter().filter(counts) {
            most = most.max(self.between(homes, loss, begin_us, equal.at_us));
            begin_us = equal.at_us;
        }
        let since = self.between(homes, loss, begin_us, loss.until_us);
        Lost { most: most.max(since), since }
    }

    /// All of these nodes have the event that at least `required` of them had.
    pub(crate) fn none(&self, homes: &[NodeId], loss: &Loss) -> bool {
        let lost = self.of(homes, loss);
        lost.since == 0 && lost.most < usize::from(loss.required.max(1))
    }

    fn between(&self, homes: &[NodeId], loss: &Loss, begin_us: u64, end_us: u64) -> usize {
        let is_hit = |cause: &Cause| match *cause {
            Cause::Wiped { at_us } => begin_us <= at_us && at_us <= end_us,
            Cause::Damaged { at_us, events_us, until_us } => {
                loss.from_us <= events_us && at_us <= end_us && begin_us <= until_us
            }
            Cause::Unsynced { since_us, at_us } => {
                let synced_us = loss.acked_us.saturating_add(INTERVAL_US);
                loss.interval && begin_us <= at_us && since_us <= synced_us && at_us <= end_us
            }
        };
        let is_lossy =
            |home: &&NodeId| self.causes.get(home).is_some_and(|causes| causes.iter().any(is_hit));
        homes.iter().filter(is_lossy).count()
    }
}

/// Since when the node had synced nothing when this befell it: since its process died or its sync failed, if it was not started
/// again in between.
fn syncless_since(history: &History, incident: &Incident) -> u64 {
    let mut since_us = None;
    for it in history.incidents_of(incident.node).take_while(|it| !std::ptr::eq(*it, incident)) {
        match it.what {
            IncidentKind::Crashed { .. } | IncidentKind::SyncFailed => {
                since_us.get_or_insert(it.at_us);
            }
            // A node that was stopped had synced everything.
            IncidentKind::Started | IncidentKind::Stopped => since_us = None,
            _ => {}
        }
    }
    since_us.unwrap_or(incident.at_us)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Builder, stamp};
    use super::*;

    const HOMES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

    fn loss() -> Loss {
        Loss {
            stamp: stamp(100, 1),
            from_us: 1_000,
            acked_us: 2_000,
            until_us: u64::MAX,
            required: 2,
            interval: false,
        }
    }

    fn lost(builder: &Builder, loss: Loss) -> (usize, usize) {
        let lost = Losses::new(&builder.history).of(&HOMES, &loss);
        (lost.most, lost.since)
    }

    fn damaged(end: bool) -> IncidentKind {
        IncidentKind::Damaged { file: "wal/1".to_owned(), end }
    }

    #[test]
    fn damage_is_an_excuse_for_what_was_there_and_until_the_disk_is_replaced() {
        let mut builder = Builder::new();
        builder.incident(1_500, 1, damaged(false));
        assert_eq!(lost(&builder, loss()), (1, 1));
        assert_eq!(lost(&builder, Loss { from_us: 1_501, ..loss() }), (0, 0), "written later");
        assert_eq!(lost(&builder, Loss { until_us: 1_499, ..loss() }), (0, 0), "not yet");
        builder.history.equal.push(Equal { at_us: 5_000, up_to: stamp(200, 0) });
        assert_eq!(lost(&builder, loss()), (1, 1), "the damage is still there");
        builder.incident(4_000, 1, IncidentKind::Wiped);
        assert_eq!(lost(&builder, loss()), (1, 0));
    }

    #[test]
    fn a_damaged_end_is_an_excuse_until_the_next_start() {
        let mut builder = Builder::new();
        builder.incident(500, 1, damaged(true));
        assert_eq!(lost(&builder, loss()), (1, 1));
        builder.incident(900, 1, IncidentKind::Started);
        assert_eq!(lost(&builder, loss()), (0, 0));
    }

    #[test]
    fn the_interval_counts_from_the_answer_and_not_for_a_stop() {
        let crashed = |at_us, what| {
            let mut builder = Builder::new();
            builder.incident(at_us, 1, what);
            lost(&builder, Loss { interval: true, ..loss() }).0
        };
        let power = || IncidentKind::Crashed { power: true };
        assert_eq!(crashed(2_000 + INTERVAL_US, power()), 1);
        assert_eq!(crashed(2_001 + INTERVAL_US, power()), 0);
        assert_eq!(crashed(999, power()), 0);
        assert_eq!(crashed(2_000, IncidentKind::Crashed { power: false }), 0);
        assert_eq!(crashed(2_000, IncidentKind::Stopped), 0);
        assert_eq!(crashed(2_000, IncidentKind::SyncFailed), 1);
    }

    #[test]
    fn who_syncs_nothing_more_may_lose_it_when_the_power_goes_later() {
        let lost_after = |before: &[(u64, IncidentKind)]| {
            let mut builder = Builder::new();
            for (at_us, what) in before {
                builder.incident(*at_us, 1, what.clone());
            }
            let power = IncidentKind::Crashed { power: true };
            builder.incident(9_000_000, 1, power);
            lost(&builder, Loss { interval: true, ..loss() }).0
        };
        let killed = || (3_000, IncidentKind::Crashed { power: false });
        assert_eq!(lost_after(&[]), 0, "it was synced meanwhile");
        assert_eq!(lost_after(&[killed()]), 1);
        assert_eq!(lost_after(&[(900, IncidentKind::SyncFailed)]), 1, "and still served it");
        assert_eq!(lost_after(&[killed(), (4_000, IncidentKind::Started)]), 0, "recovery syncs");
        assert_eq!(lost_after(&[(3_000, IncidentKind::Stopped)]), 0);
        let late = (2_001 + INTERVAL_US, IncidentKind::Crashed { power: false });
        assert_eq!(lost_after(&[late]), 0, "it was on disk by then");
    }

    #[test]
    fn losses_of_before_and_after_are_not_added_once_all_hold_the_same() {
        let mut builder = Builder::new();
        builder.incident(3_000, 1, IncidentKind::Wiped);
        builder.incident(6_000, 2, IncidentKind::Wiped);
        assert_eq!(lost(&builder, loss()), (2, 2));
        builder.history.equal.push(Equal { at_us: 5_000, up_to: stamp(99, 9) });
        assert_eq!(lost(&builder, loss()), (2, 2), "not compared");
        builder.history.equal[0].up_to = stamp(100, 1);
        assert_eq!(lost(&builder, loss()), (1, 1));
        assert_eq!(lost(&builder, Loss { acked_us: 5_001, ..loss() }), (2, 2), "acked later");
        assert_eq!(lost(&builder, Loss { required: 0, ..loss() }), (2, 2), "only a hint has it");
    }
}
