//! The end of a run: faults are over, everything must heal, and what is left is recorded.
//!
//! Invariants:
//!
//! - Healing has a bound of simulated time. What is not equal by then never will be, as far as anybody can wait.
//! - The final reads are operations like any other, asked when all replicas held the same.

use std::collections::BTreeMap;

use starling_clock::NodeId;
use starling_storage::{CrashMode, KeyspaceId, RequestId, SimDisk};

use super::clients::FINAL_CLIENT;
use super::world::World;
use crate::history::{Ask, IncidentKind, Replica};

/// Everything must have healed after this long, in microseconds.
const HEAL_US_MAX: u64 = 60_000_000;
/// Clients' last requests have been answered, or given up, after this long.
const CLIENTS_END_US: u64 = 12_000_000;
/// Keys that are read at the end, at most.
const FINAL_READS_MAX: usize = 200;

/// Count and hash of a set of events.
type SetDigest = (u64, u64);

impl World {
    /// Stops clients and faults, lets everything heal, and reads.
    pub(super) fn end(&mut self) {
        self.clients.stopped = true;
        let until_us = self.now_us + CLIENTS_END_US;
        while !self.clients.idle() && self.now_us < until_us {
            self.run_until(self.now_us + 200_000);
        }
        self.run_until(self.now_us + 500_000);
        for node in 0..self.nodes.len() {
            self.nodes[node].disk.clear_faults();
            if self.nodes[node].damaged {
                self.replace_disk(node);
            }
        }
        self.history.healing_from_us = self.now_us;
        let bound_us = self.now_us + HEAL_US_MAX;
        let mut wait_us = 500_000;
        while self.now_us < bound_us {
            self.run_until(self.now_us + wait_us);
            if self.is_healed() {
                self.history.healed_at_us = Some(self.now_us);
                break;
            }
            wait_us = (wait_us * 3 / 2).min(5_000_000);
        }
        if self.history.healed_at_us.is_some() {
            self.final_reads();
        }
        self.run_until(self.now_us + 1_000_000);
        for node in 0..self.nodes.len() {
            self.capture(node);
        }
        self.history.ended_us = self.now_us;
        for replica in self.history.replicas.values() {
            for event in &replica.events {
                self.trace.mix(&event.stamp.to_bytes());
            }
            for change in &replica.changes {
                self.trace.mix(&change.event.stamp.to_bytes());
            }
        }
    }

    /// An operator puts in an empty disk: what was damaged is not trusted.
    fn replace_disk(&mut self, node: usize) {
        if self.nodes[node].running.is_some() {
            self.nodes[node].crash_mode = CrashMode::LoseUnsynced;
            self.crash(node);
        }
        self.incident(node, IncidentKind::Wiped);
        let seed = self.now_us ^ self.nodes[node].id.0 << 40;
        let target = &mut self.nodes[node];
        target.disk = SimDisk::new(seed);
        target.damaged = false;
        target.cursor = None;
        target.recovery_crash = None;
        self.boot(node);
    }

    fn is_healed(&mut self) -> bool {
        let is_up = |node: &super::node::Node| {
            node.running
                .as_ref()
                .is_some_and(|running| running.core.is_serving() && !running.poisoned)
        };
        if !self.nodes.iter().all(is_up) {
            return false;
        }
        let digests: Option<Vec<_>> =
            (0..self.nodes.len()).map(|node| self.digests(node)).collect();
        let Some(digests) = digests else { return false };
        let none = (0, 0);
        for facts in self.history.keyspaces.values() {
            for (partition, homes) in (0_u32..).zip(&facts.homes) {
                let at = |home: &NodeId| {
                    let held = &digests[self.index_of(*home)];
                    *held.get(&(facts.id, partition)).unwrap_or(&none)
                };
                if homes.iter().any(|home| at(home) != at(&homes[0])) {
                    return false;
                }
            }
        }
        true
    }

    /// What the node holds, by keyspace and partition; `None` if it cannot be read.
    fn digests(&self, node: usize) -> Option<BTreeMap<(KeyspaceId, u32), SetDigest>> {
        let view = self.nodes[node].running.as_ref()?.writer.storage().view();
        let mut digests = BTreeMap::new();
        for partition in 0..self.history.partitions {
            let page = view.partition_events(partition, None, usize::MAX, usize::MAX).ok()?;
            for event in page.events {
                let held: &mut SetDigest = digests.entry((event.keyspace, partition)).or_default();
                held.0 += 1;
                held.1 ^= event.id().hash();
            }
        }
        Some(digests)
    }

    fn final_reads(&mut self) {
        let partitions = self.settings.epoch.partitions();
        let keys: Vec<_> = self.clients.workload.keys().take(FINAL_READS_MAX).collect();
        let keyspaces: Vec<String> = self.history.keyspaces.keys().cloned().collect();
        for (index, key) in keys.into_iter().enumerate() {
            let partition = partitions.partition_of(&key).0;
            for (number, keyspace) in keyspaces.iter().enumerate() {
                let sequence = (index * keyspaces.len() + number) as u64;
                let request = RequestId { client: FINAL_CLIENT + sequence, sequence };
                let ask = if index % 8 == 7 {
                    Ask::Versions { key: key.clone(), partition, limit: 1_000, level: None }
                } else {
                    Ask::Get { key: key.clone(), partition, at: None, level: None }
                };
                let coordinator = (index + number) % self.nodes.len();
                self.ask(None, request, 0, coordinator, keyspace.clone(), ask);
            }
            if index % 16 == 15 {
                self.run_until(self.now_us + 10_000);
            }
        }
        self.run_until(self.now_us + 3_000_000);
    }

    fn capture(&mut self, node: usize) {
        let Some(running) = self.nodes[node].running.as_ref() else { return };
        let view = running.writer.storage().view();
        let mut replica = Replica { change_range: view.change_range(), ..Replica::default() };
        for partition in 0..self.history.partitions {
            match view.partition_events(partition, None, usize::MAX, usize::MAX) {
                Ok(page) => replica.events.extend(page.events),
                Err(error) => replica.unreadable = Some(error.to_string()),
            }
        }
        match view.changes(replica.change_range.0, usize::MAX, usize::MAX) {
            Ok(changes) => replica.changes = changes,
            Err(error) => replica.unreadable = Some(error.to_string()),
        }
        self.history.replicas.insert(self.nodes[node].id, replica);
    }
}
