//! Drives [`AntiEntropy`]: one flight for the node's whole life, whose sessions come and go.
//!
//! Invariants:
//!
//! - There is a routing table for each replication factor in use before a session looks for it.
//! - What a session that ended had asked for is forgotten.

use starling_clock::NodeId;
use starling_ring::{Partition, RoutingTable};
use starling_storage::{KeyspaceId, Provenance};

use super::anti_entropy::{AntiEntropy, AntiEntropyOutput, Placement, Sharing};
use super::asks::AskId;
use super::cluster::Cluster;
use super::driver::{Reply, Work, is_taken};
use super::flights::{About, Questions};
use super::keyspaces::Keyspaces;
use super::peer::WriteOutcome;
use super::{Core, Instant};

/// The ring and the keyspaces, as sessions look at them.
pub(super) struct Shared<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) keyspaces: &'a Keyspaces,
}

fn are_homes(table: &RoutingTable, partition: u32, nodes: [NodeId; 2]) -> bool {
    nodes.iter().all(|&node| table.is_home(node, Partition(partition)))
}

impl Placement for Shared<'_> {
    fn partitions(&self) -> u32 {
        self.cluster.epoch().partitions().count()
    }

    fn is_shared(&self, partition: u32, own: NodeId, peer: NodeId) -> bool {
        self.cluster.tables().any(|table| are_homes(table, partition, [own, peer]))
    }

    fn sharing(&self, keyspace: KeyspaceId, partition: u32, own: NodeId, peer: NodeId) -> Sharing {
        let Some(keyspace) = self.keyspaces.get_id(keyspace) else { return Sharing::Unknown };
        let n = keyspace.settings.replication;
        let mut tables = self.cluster.tables();
        match tables.find(|table| table.replication().get() == n) {
            Some(table) if are_homes(table, partition, [own, peer]) => {
                Sharing::Both(keyspace.retention())
            }
            Some(_) => Sharing::Apart,
            None => Sharing::Unknown,
        }
    }
}

impl Core {
    /// What came back to a session's question, or its time has come (`None`).
    pub(super) fn compare(&mut self, machine: &mut AntiEntropy, reply: Option<(About, Reply)>) {
        let placement = Shared { cluster: &self.cluster, keyspaces: &self.keyspaces };
        match reply {
            None => machine.handle_timeout(self.now, &placement),
            Some((About::Read(ask), Reply::Read(answer))) => {
                machine.handle_answer(self.now, AskId(ask), answer, &placement);
            }
            Some((About::Write(ask), Reply::Outcomes(outcomes))) => {
                let news = || outcomes.iter().filter(|it| matches!(it, WriteOutcome::Applied));
                let applied = is_taken(&outcomes).then(|| news().count() as u64);
                machine.handle_copied(self.now, AskId(ask), applied, &placement);
            }
            Some(_) => self.counters.malformed += 1,
        }
    }

    /// A peer came or went.
    pub(super) fn tell_comparing(&mut self, peer: NodeId) {
        let Some(id) = self.comparing else { return };
        if peer == self.node() || !self.cluster.is_member(peer) {
            return;
        }
        let Some(mut flight) = self.flights.take(id) else { return };
        if let Work::AntiEntropy(machine) = &mut flight.work {
            if self.membership.is_reachable(peer) {
                machine.handle_peer_up(self.now.mono, peer);
            } else {
                machine.handle_peer_down(peer);
            }
        }
        self.drive(id, flight);
    }

    pub(super) fn drive_anti_entropy(
        &mut self,
        id: u64,
        machine: &mut AntiEntropy,
        questions: &mut Questions,
    ) -> (bool, Option<Instant>) {
        while let Some(output) = machine.poll_output() {
            match output {
                AntiEntropyOutput::Ask { ask, to, query } => {
                    self.ask_read(id, questions, to, ask.0, query);
                }
                AntiEntropyOutput::Copy { ask, to, events } => {
                    let provenance = Provenance::AntiEntropy;
                    self.ask_copy(id, questions, to, ask.0, events, provenance);
                }
                AntiEntropyOutput::Ended { pushed, pulled, .. } => {
                    self.counters.anti_entropy_events += pushed;
                    self.counters.anti_entropy_pulled += pulled;
                    questions.forget_all();
                }
            }
        }
        (false, machine.poll_timeout())
    }
}
