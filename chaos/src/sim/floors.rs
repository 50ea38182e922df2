//! Proofs that let tombstones go, made by somebody who sees all nodes at once: what the nodes will prove among themselves.
//!
//! Invariants:
//!
//! - A floor is told only when every home replica has every event up to it that there is or ever will be: all of them hold the same,
//!   no hint waits, and no clock is behind it, so that nothing that is on its way or still to be stamped is below.
//! - It is told to all nodes at once, and stands in the history before any of them can act on it.
//! - It only rises, though a node with a new disk may know of no time yet.

use starling_clock::{HybridTime, NodeId, Stamp};

use super::plan::FaultKind;
use super::world::{BEGIN_US, World};
use crate::history::Floor;

/// Tombstones are looked at so often, in samples.
const SAMPLES: usize = 4;
/// A request and its messages are over after this long by any clock that neither pauses nor jumps, in milliseconds.
const SETTLED_MS: u64 = 4_000;

impl World {
    /// Tells all nodes a floor, if there is a proof of one.
    pub(super) fn consider_floors(&mut self) {
        self.samples += 1;
        if !self.floors || !self.samples.is_multiple_of(SAMPLES) || !self.is_steady() {
            return;
        }
        let Some(below) = self.floor() else { return };
        let told = self.history.floors.last().map_or(Stamp::ZERO, |floor| floor.below);
        if below <= told || !self.are_equal(below) {
            return;
        }
        for partition in 0..self.history.partitions {
            self.history.floors.push(Floor { at_us: self.now_us, partition, below });
        }
        self.trace.note(self.now_us, 0, 22, 0, || format!("floor {below}"));
        for running in self.nodes.iter_mut().filter_map(|node| node.running.as_mut()) {
            for partition in 0..self.history.partitions {
                running.writer.storage_mut().set_tombstone_floor(partition, below);
            }
        }
    }

    /// No node pauses or is slow, and no clock jumps, nor did lately: what is on its way is young by every clock.
    fn is_steady(&self) -> bool {
        let settled_us = SETTLED_MS * 1000;
        self.plan.faults.iter().all(|fault| {
            let (from_us, to_us) = (BEGIN_US + fault.from_us, BEGIN_US + fault.to_us);
            let disturbs = matches!(
                fault.kind,
                FaultKind::Pause(_)
                    | FaultKind::Slow { .. }
                    | FaultKind::SlowDisk { .. }
                    | FaultKind::Skew { .. }
                    | FaultKind::Drift { .. }
            );
            !disturbs || self.now_us < from_us || to_us + settled_us < self.now_us
        })
    }

    /// A stamp that every clock has long passed, if every node is there to be asked and holds no hint.
    fn floor(&self) -> Option<Stamp> {
        let passed = self.nodes.iter().map(|node| {
            let running = node.running.as_ref()?;
            let has_hints = running.writer.storage().status().hints > 0;
            (!has_hints).then(|| running.core.clock_last().physical_ms())
        });
        let least = passed.collect::<Option<Vec<u64>>>()?.into_iter().min()?;
        Some(Stamp::new(HybridTime::new(least.saturating_sub(SETTLED_MS), 0), NodeId(0)))
    }
}
