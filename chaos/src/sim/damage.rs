//! Data that is destroyed: bits and files of a disk, and whole disks that an operator gives up.
//!
//! Invariants:
//!
//! - One node's data is destroyed at a time. Another's follows only when all home replicas were found to hold the same again: the
//!   contract speaks of the loss of W-1 nodes.
//! - A node with an empty disk starts when its wall clock is past every stamp that it has given: what an operator waits for, since
//!   the bound that survives a restart went with the disk.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use starling_clock::{HybridTime, NodeId, Stamp};
use starling_storage::{Action, CrashMode, Disk, EventId, HistoryRetention, KeyspaceId, SimDisk};

use super::event;
use super::plan::FaultKind;
use super::world::{BEGIN_US, NOBODY, WALL_MS, World};
use crate::history::{Equal, IncidentKind};

/// Whether a node may be destroyed is looked at this often.
const LOOK_US: u64 = 1_000_000;
/// Events this young, in milliseconds, are most likely on their way, and are not compared.
const YOUNG_MS: u64 = 3_000;
/// How far the wall clock of a node may be off when histories are compared, in milliseconds.
const CLOCKS_APART_MS: u64 = 60_000;

/// Count and hash of a set of events.
type SetDigest = (u64, u64);

impl World {
    /// Destroys data, now or as soon as it may be done before the fault's end.
    pub(super) fn destroy(&mut self, index: usize) {
        let fault = self.plan.faults[index].clone();
        let (FaultKind::FlipBits { node, .. }
        | FaultKind::LoseFile { node, .. }
        | FaultKind::Replace { node }) = fault.kind
        else {
            return;
        };
        let node = self.index_of(node);
        if !self.may_destroy(node) {
            if self.now_us + LOOK_US < BEGIN_US + fault.to_us {
                self.at(LOOK_US, NOBODY, event::Event::FaultBegins(index));
            }
            return;
        }
        match fault.kind {
            FaultKind::FlipBits { seed, .. } => self.damage(node, seed, false),
            FaultKind::LoseFile { seed, .. } => self.damage(node, seed, true),
            _ => {
                self.wipe(node);
                self.start_later(node);
            }
        }
    }

    /// No other node has lost anything that is not back everywhere.
    fn may_destroy(&mut self, node: usize) -> bool {
        let others = || (0..self.nodes.len()).filter(|&other| other != node);
        if others().any(|other| self.nodes[other].damaged) {
            return false;
        }
        if others().any(|other| self.nodes[other].renewed) {
            if !self.look_for_equality() {
                return false;
            }
            for node in &mut self.nodes {
                node.renewed = false;
            }
        }
        true
    }

    /// All nodes are up, and all home replicas hold the same, but for what is on its way.
    fn look_for_equality(&mut self) -> bool {
        let now_ms = WALL_MS + self.now_us / 1000;
        let up_to = Stamp::new(HybridTime::new(now_ms - YOUNG_MS, 0), NodeId(0));
        let is_equal = self.are_equal(up_to);
        if is_equal {
            self.history.equal.push(Equal { at_us: self.now_us, up_to });
        }
        is_equal
    }

    /// All nodes are up, and all home replicas hold the same up to a stamp, as far as retention keeps it.
    pub(super) fn are_equal(&self, up_to: Stamp) -> bool {
        let is_up = |node: &super::node::Node| {
            node.running
                .as_ref()
                .is_some_and(|running| running.core.is_serving() && !running.poisoned)
        };
        if !self.nodes.iter().all(is_up) {
            return false;
        }
        // Most of the time something is on its way somewhere, and the first partitions tell.
        (0..self.history.partitions).all(|partition| self.is_equal(partition, up_to))
    }

    fn is_equal(&self, partition: u32, up_to: Stamp) -> bool {
        let digests: Option<Vec<_>> =
            (0..self.nodes.len()).map(|node| self.digests(node, partition, up_to)).collect();
        let Some(digests) = digests else { return false };
        let at = usize::try_from(partition).expect("partitions are few");
        self.history.keyspaces.values().all(|facts| {
            let homes = &facts.homes[at];
            let held = |home: &NodeId| digests[self.index_of(*home)].get(&facts.id);
            homes.iter().all(|home| held(home) == held(&homes[0]))
        })
    }

    /// What the node holds of a partition, by keyspace; `None` if it cannot be read.
    fn digests(
        &self,
        node: usize,
        partition: u32,
        up_to: Stamp,
    ) -> Option<BTreeMap<KeyspaceId, SetDigest>> {
        let view = self.nodes[node].running.as_ref()?.writer.storage().view();
        let now_ms = WALL_MS + self.now_us / 1000;
        let below = self.history.floors.last().map_or(Stamp::ZERO, |floor| floor.below);
        let mut digests: BTreeMap<KeyspaceId, SetDigest> = BTreeMap::new();
        let mut kept = Kept::default();
        let take = |id: EventId<'_>, action| {
            if up_to < id.stamp {
                return;
            }
            let retention = || {
                let known = self.history.keyspaces.values().find(|it| it.id == id.keyspace);
                known.map_or_else(HistoryRetention::default, |it| it.retention)
            };
            if kept.next((id, action), retention, now_ms, below) {
                let held = digests.entry(id.keyspace).or_default();
                held.0 += 1;
                held.1 ^= id.hash();
            }
        };
        view.visit_partition(partition, take).ok()?;
        Some(digests)
    }

    /// Destroys data at rest.
    fn damage(&mut self, node: usize, seed: u64, lose: bool) {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let disk = self.nodes[node].disk.clone();
        if disk.is_crashed() || self.nodes[node].running.is_none() {
            return;
        }
        let mut files = Vec::new();
        for dir in ["tables", "changes", "wal"] {
            let Ok(mut names) = disk.list(dir) else { return };
            // Files that are being written are not lost, but their bits may rot.
            if lose && dir != "tables" {
                names.pop();
            }
            files.extend(names.into_iter().map(|name| format!("{dir}/{name}")));
        }
        if disk.is_crashed() || files.is_empty() {
            return;
        }
        let end = files.last().filter(|file| !lose && file.starts_with("wal/")).cloned();
        let file = files.swap_remove(random.random_range(0..files.len()));
        let length = disk.contents(&file).map_or(0, |bytes| bytes.len() as u64);
        if length == 0 {
            return;
        }
        self.nodes[node].damaged = true;
        if lose {
            let dir = file.split('/').next().unwrap_or_default();
            if disk.remove(&file).is_err() || disk.sync_dir(dir).is_err() {
                // The power went at this very call.
                return;
            }
        } else {
            for _ in 0..random.random_range(1..8) {
                let offset = random.random_range(0..length);
                disk.flip_bit(&file, offset, random.random_range(0..8));
            }
        }
        let end = end.is_some_and(|end| end == file);
        self.incident(node, IncidentKind::Damaged { file, end });
    }

    /// An operator puts in an empty disk: what was damaged is not trusted. The node does not run then.
    pub(super) fn wipe(&mut self, node: usize) {
        if self.nodes[node].running.is_some() {
            self.nodes[node].crash_mode = CrashMode::LoseUnsynced;
            self.crash(node);
        }
        self.incident(node, IncidentKind::Wiped);
        let seed = self.now_us ^ self.nodes[node].id.0 << 40;
        let target = &mut self.nodes[node];
        target.disk = SimDisk::new(seed);
        target.damaged = false;
        target.renewed = true;
        target.disk_faulty = false;
        target.cursor = None;
        target.recovery_crash = None;
        target.given_up_ms = target.clock_ms;
    }
}

/// Tells of the events of a partition, in internal order, which every replica keeps for good: not those that retention may drop, nor
/// a delete below the floor with what it hides.
#[derive(Debug, Default)]
struct Kept {
    key: Option<(KeyspaceId, Vec<u8>)>,
    /// What its keyspace keeps.
    retention: HistoryRetention,
    /// Versions of the key that came before, and the last of them.
    rank: u32,
    newer: Option<Stamp>,
    /// A delete below the floor came before.
    hidden: bool,
}

impl Kept {
    fn next(
        &mut self,
        (id, action): (EventId<'_>, Action),
        retention: impl FnOnce() -> HistoryRetention,
        now_ms: u64,
        floor: Stamp,
    ) -> bool {
        let is_same = self
            .key
            .as_ref()
            .is_some_and(|(keyspace, key)| *keyspace == id.keyspace && *key == id.key);
        if !is_same {
            let mut key = self.key.take().map_or_else(Vec::new, |(_, key)| key);
            key.clear();
            key.extend_from_slice(id.key);
            let (key, retention) = (Some((id.keyspace, key)), retention());
            *self = Self { key, retention, ..Self::default() };
        }
        let (rank, newer) = (self.rank, self.newer.replace(id.stamp));
        self.rank += 1;
        self.hidden |= action == Action::Delete && id.stamp < floor;
        if self.hidden {
            return false;
        }
        let Some(newer) = newer else { return true };
        let replaced_ms = newer.time.physical_ms();
        let HistoryRetention { versions_max, age_ms_max } = self.retention;
        versions_max.is_none_or(|most| rank < most)
            && age_ms_max.is_none_or(|age| now_ms + CLOCKS_APART_MS <= replaced_ms + age)
    }
}
