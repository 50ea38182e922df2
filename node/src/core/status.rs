//! What a node tells of itself and of the cluster.

use starling_client::wire::{MemberInfo, NodeStatus, PeerHints, Response, Topology};

use super::Core;
use super::driver::Work;
use super::error::Refusal;
use super::requests::Client;
use super::storage::StorageAnswer;

impl Core {
    pub(super) fn topology(&self) -> Topology {
        Topology {
            cluster: self.cluster.name().into(),
            node: self.node().into(),
            epoch: self.cluster.epoch().number(),
            epoch_digest: self.cluster.digest(),
            partitions: self.cluster.epoch().partitions().count(),
            members: self.members().into(),
        }
    }

    /// Storage is asked first.
    pub(super) fn handle_status(&mut self, client: Client) -> Result<(), Refusal> {
        self.admit()?;
        self.in_flight += 1;
        let id = self.flights.next_id();
        self.launch(id, Work::Status(client));
        Ok(())
    }

    pub(super) fn answer_status(&mut self, client: Client, answer: StorageAnswer) {
        self.in_flight -= 1;
        let StorageAnswer::Status(report) = answer else {
            self.refuse(client, Refusal::Damaged);
            return;
        };
        let hints = report.hints.iter().map(|&(target, pending, bytes)| {
            let target = target.into();
            PeerHints { target, pending, bytes }
        });
        let status = NodeStatus {
            node: self.node().into(),
            version: self.software.as_str().into(),
            cluster: self.cluster.name().into(),
            uptime_ms: self.now.mono.since_ms(self.started),
            clock: self.clock.last().packed(),
            wall_ms: self.now.wall_ms,
            members: self.members().into(),
            storage: report.storage,
            hints: hints.collect(),
            writes: self.counters.writes,
            reads: self.counters.reads,
            read_repairs: self.counters.read_repairs,
            hints_delivered: self.counters.hints_delivered,
            anti_entropy_events: self.counters.anti_entropy_events,
            overloaded: self.counters.overloaded,
            in_flight: self.in_flight as u64,
            subscriptions: self.subscriptions.len() as u64,
            damage: report.damage,
        };
        self.answer(client, Response::Status(Box::new(status)));
    }

    fn members(&self) -> Vec<MemberInfo> {
        let info = |member: &starling_ring::Member| {
            let configured = self.cluster.address(member.node);
            let address = self.membership.address(member.node).or(configured);
            MemberInfo {
                node: member.node.into(),
                address: address.map(|address| address.to_string()).unwrap_or_default().into(),
                zone: member.zone.as_str().into(),
                weight: member.weight,
                liveness: self.membership.liveness(member.node),
            }
        };
        self.cluster.epoch().members().iter().map(info).collect()
    }
}
