//! The end of a run: faults are over, everything must heal, and what is left is recorded.
//!
//! Invariants:
//!
//! - Healing has a bound of simulated time. What is not equal by then never will be, as far as anybody can wait.
//! - The final reads are operations like any other, asked when all replicas held the same.

use starling_clock::Stamp;
use starling_storage::RequestId;

use super::clients::FINAL_CLIENT;
use super::world::World;
use crate::history::{Ask, Equal, Replica};

/// Everything must have healed after this long, in microseconds.
const HEAL_US_MAX: u64 = 60_000_000;
/// Clients' last requests have been answered, or given up, after this long.
const CLIENTS_END_US: u64 = 12_000_000;
/// Keys that are read at the end, at most.
const FINAL_READS_MAX: usize = 200;

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
                self.wipe(node);
                self.start_later(node);
            }
        }
        self.history.healing_from_us = self.now_us;
        let bound_us = self.now_us + HEAL_US_MAX;
        let mut wait_us = 500_000;
        while self.now_us < bound_us {
            self.run_until(self.now_us + wait_us);
            if self.are_equal(Stamp::MAX) && self.know_keyspaces() {
                self.history.healed_at_us = Some(self.now_us);
                self.history.equal.push(Equal { at_us: self.now_us, up_to: Stamp::MAX });
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

    /// Every node knows what some client was told is there.
    fn know_keyspaces(&self) -> bool {
        self.nodes.iter().all(|node| {
            node.running.as_ref().is_some_and(|running| {
                let known = running.core.keyspaces();
                self.clients.keyspaces().iter().all(|name| known.get(name).is_some())
            })
        })
    }

    fn final_reads(&mut self) {
        let partitions = self.settings.epoch.partitions();
        let keys: Vec<_> = self.clients.workload.keys().take(FINAL_READS_MAX).collect();
        let keyspaces: Vec<String> = self.clients.keyspaces().to_vec();
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
        let known = running.core.keyspaces().iter();
        replica.keyspaces = known.map(|it| it.settings.name.0.clone()).collect();
        self.history.replicas.insert(self.nodes[node].id, replica);
    }
}
