//! [`Membership`]: who is there, by gossip and by connection, and which members have to be dialled.
//!
//! Invariants:
//!
//! - A member is reachable if there is a connection to it and gossip does not hold it for dead; this node always is.
//! - Every member of the ring without a connection is being dialled, or will be: waits double up to the longest.
//! - One dial a member at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use starling_client::wire::Liveness;
use starling_clock::NodeId;
use starling_gossip::{Gossip, GossipConfig, GossipError, NodeState, Status};

use super::cluster::Cluster;
use super::types::Instant;

/// A dial that neither succeeds nor fails is taken for lost after this long, in milliseconds.
const DIAL_LOST_AFTER_MS: u64 = 10_000;

#[derive(Debug)]
struct Dial {
    configured: SocketAddr,
    /// Where the last dial went to.
    dialled: Option<SocketAddr>,
    failures: u32,
    at: Instant,
}

/// Who is there.
#[derive(Debug)]
pub struct Membership {
    own: NodeId,
    /// The machine: the driver drains its outputs.
    pub gossip: Gossip,
    connected: BTreeSet<NodeId>,
    /// Of every member that is not connected.
    dials: BTreeMap<NodeId, Dial>,
    /// The earliest of the dials of those that are not connected: it is asked for after every input, and seldom another.
    dial_at: Option<Instant>,
    retry_ms: (u64, u64),
}

/// Gossip's time of the core's.
pub fn gossip_now(now: Instant) -> starling_gossip::Instant {
    starling_gossip::Instant(now.0)
}

impl Membership {
    /// Knows nobody yet; wants to dial all members of `cluster`.
    ///
    /// # Errors
    /// [`GossipError`] if the settings or this node's own state are out of bounds.
    pub fn new(
        cluster: &Cluster,
        config: GossipConfig,
        software: String,
        seed: u64,
        retry_ms: (u64, u64),
        now: Instant,
    ) -> Result<Self, GossipError> {
        let own = cluster.own();
        let member = cluster.epoch().member(own).expect("the cluster has checked it");
        let address = cluster.address(own).expect("the cluster has checked it");
        let state = NodeState {
            zone: member.zone.clone(),
            weight: member.weight,
            software,
            protocol: starling_client::wire::PROTOCOL_VERSION,
            epoch: cluster.epoch().number(),
            ring_digest: cluster.digest(),
            ..NodeState::at(address)
        };
        let gossip = Gossip::new(config, own, state, seed, gossip_now(now))?;
        let dial = |node| {
            let configured = cluster.address(node).expect("the cluster has checked it");
            // One side waits a little, so that two that start together make one connection.
            let at = if own < node { now } else { now.plus_ms(retry_ms.0) };
            (node, Dial { configured, dialled: None, failures: 0, at })
        };
        let dials = cluster.peers().map(dial).collect();
        let connected = BTreeSet::new();
        let mut membership = Self { own, gossip, connected, dials, dial_at: None, retry_ms };
        membership.note_dials();
        Ok(membership)
    }

    /// Whether it makes sense to send to `node` now.
    pub fn is_reachable(&self, node: NodeId) -> bool {
        node == self.own
            || (self.connected.contains(&node)
                && self.gossip.status(node).is_none_or(Status::is_up))
    }

    /// Whether there is a connection.
    pub fn is_connected(&self, node: NodeId) -> bool {
        self.connected.contains(&node)
    }

    /// What clients are told of a member.
    pub fn liveness(&self, node: NodeId) -> Liveness {
        if node == self.own && !self.gossip.has_left() {
            return Liveness::Alive;
        }
        match self.gossip.status(node) {
            Some(Status::Alive) => Liveness::Alive,
            Some(Status::Suspect) => Liveness::Suspect,
            Some(Status::Dead) => Liveness::Dead,
            Some(Status::Left) => Liveness::Left,
            None if self.connected.contains(&node) => Liveness::Alive,
            None => Liveness::Unknown,
        }
    }

    /// Where a node says that it is.
    pub fn address(&self, node: NodeId) -> Option<SocketAddr> {
        self.gossip.member(node).map(|member| member.state.address)
    }

    /// There is a connection to `node`.
    pub fn handle_connected(&mut self, now: Instant, node: NodeId) {
        if node == self.own {
            return;
        }
        if self.connected.insert(node) {
            self.gossip.handle_peer_found(gossip_now(now), node);
        }
        if let Some(dial) = self.dials.get_mut(&node) {
            dial.failures = 0;
            dial.dialled = None;
        }
        self.note_dials();
    }

    /// The last connection to `node` is gone.
    pub fn handle_disconnected(&mut self, now: Instant, node: NodeId) {
        self.connected.remove(&node);
        if let Some(dial) = self.dials.get_mut(&node) {
            dial.at = now.plus_ms(if self.own < node { 0 } else { self.retry_ms.0 });
        }
        self.note_dials();
    }

    /// Nobody answered at `address`.
    pub fn handle_dial_failed(&mut self, now: Instant, address: SocketAddr) {
        let (first, longest) = self.retry_ms;
        for dial in self.dials.values_mut().filter(|dial| dial.dialled == Some(address)) {
            let wait_ms = first.saturating_mul(1 << dial.failures.min(20)).min(longest);
            dial.failures += 1;
            dial.dialled = None;
            dial.at = now.plus_ms(wait_ms);
        }
        self.note_dials();
    }

    /// Whom to dial now, and where.
    pub fn poll_dials(&mut self, now: Instant) -> Vec<(NodeId, SocketAddr)> {
        if self.dial_at.is_none_or(|at| now < at) {
            return Vec::new();
        }
        let Self { connected, dials, gossip, .. } = self;
        let due =
            dials.iter_mut().filter(|(node, dial)| dial.at <= now && !connected.contains(node));
        let due = due.map(|(&node, dial)| {
            // What a node says of itself is newer than the configuration; it may be wrong, so take turns.
            let said = gossip.member(node).map(|member| member.state.address);
            let address = said.filter(|_| dial.failures % 2 == 1).unwrap_or(dial.configured);
            dial.dialled = Some(address);
            dial.at = now.plus_ms(DIAL_LOST_AFTER_MS);
            (node, address)
        });
        let due = due.collect();
        self.note_dials();
        due
    }

    /// When `poll_dials` is next wanted. Gossip says itself when it wants to be woken.
    pub fn poll_dial_timeout(&self) -> Option<Instant> {
        self.dial_at
    }

    /// To be called after any change of dials or connections.
    fn note_dials(&mut self) {
        let dials = self.dials.iter().filter(|(node, _)| !self.connected.contains(node));
        self.dial_at = dials.map(|(_, dial)| dial.at).min();
    }
}

#[cfg(test)]
mod tests {
    use starling_ring::{Epoch, Member, Partitions};

    use super::*;
    use crate::core::error::StartError;

    fn membership(own: u64) -> Membership {
        let member = |node| Member { node: NodeId(node), zone: String::new(), weight: 1 };
        let epoch = Epoch::new(1, Partitions::default(), (1..=3).map(member).collect()).unwrap();
        let address =
            |node: u16| (NodeId(node.into()), SocketAddr::from(([127, 0, 0, 1], 4000 + node)));
        let addresses = (1..=3).map(address).collect();
        let cluster = Cluster::new("test".into(), NodeId(own), epoch, addresses).unwrap();
        let config = GossipConfig::default();
        Membership::new(&cluster, config, "test".into(), 1, (100, 400), Instant(0)).unwrap()
    }

    fn dialled(membership: &mut Membership, now: Instant) -> Vec<u64> {
        membership.poll_dials(now).into_iter().map(|(node, _)| node.0).collect()
    }

    #[test]
    fn members_are_dialled_until_they_are_there() {
        let mut node = membership(2);
        assert_eq!(dialled(&mut node, Instant(0)), [3], "the lower id waits a little");
        assert_eq!(dialled(&mut node, Instant(0).plus_ms(100)), [1]);
        assert_eq!(dialled(&mut node, Instant(0).plus_ms(200)), [0; 0]);
        let address = SocketAddr::from(([127, 0, 0, 1], 4003));
        let mut now = Instant(0).plus_ms(200);
        for wait_ms in [100, 200, 400, 400] {
            node.handle_dial_failed(now, address);
            assert_eq!(dialled(&mut node, Instant(now.plus_ms(wait_ms).0 - 1)), [0; 0]);
            now = now.plus_ms(wait_ms);
            assert_eq!(dialled(&mut node, now), [3]);
        }
        node.handle_connected(now, NodeId(3));
        assert!(node.is_reachable(NodeId(3)) && !node.is_reachable(NodeId(1)));
        assert_eq!(node.liveness(NodeId(3)), Liveness::Alive);
        assert_eq!(node.liveness(NodeId(1)), Liveness::Unknown);
        node.handle_disconnected(now, NodeId(3));
        assert!(!node.is_reachable(NodeId(3)));
        assert_eq!(dialled(&mut node, now), [3]);
        // Node 1 never answered at all: its dial is taken for lost.
        assert_eq!(dialled(&mut node, Instant(0).plus_ms(10_100)), [1]);
    }

    #[test]
    fn only_members_with_addresses_start() {
        let member = Member { node: NodeId(1), zone: String::new(), weight: 1 };
        let epoch = Epoch::new(1, Partitions::default(), vec![member]).unwrap();
        let start = |own| Cluster::new("test".into(), NodeId(own), epoch.clone(), BTreeMap::new());
        assert_eq!(start(2).unwrap_err(), StartError::NotAMember(NodeId(2)));
        assert_eq!(start(1).unwrap_err(), StartError::NoAddress(NodeId(1)));
    }
}
