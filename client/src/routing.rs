//! [`Routing`]: who is in the cluster and whom to send a request to.
//!
//! Invariants:
//!
//! - Placement comes from `starling-ring` alone. A ring that does not have the digest that the nodes told is not used:
//!   then any node is as good as another, for every node coordinates every request.
//! - A routing is a value: a newer one replaces it whole.
//!
//! It does not know who is connected; the caller tells how a node stands.

use std::collections::BTreeMap;
use std::sync::Arc;

use starling_clock::NodeId;
use starling_ring::{Epoch, Member, Partitions, ReplicationFactor, RoutingTable};

use crate::wire::{KeyspaceSettings, Liveness, Topology};

/// How much a node promises to answer, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// Nothing is known against it.
    Good,
    /// Suspected, or not heard of.
    Doubtful,
    /// Told to be dead, or it failed us just now.
    Bad,
}

impl Standing {
    fn of(liveness: Liveness) -> Self {
        match liveness {
            Liveness::Alive => Self::Good,
            Liveness::Suspect | Liveness::Unknown => Self::Doubtful,
            Liveness::Dead | Liveness::Left => Self::Bad,
        }
    }
}

/// What a node told of the cluster, ready for use.
#[derive(Debug)]
pub(crate) struct Routing {
    topology: Topology,
    standing: BTreeMap<NodeId, Standing>,
    /// Tables by replication factor, and by keyspace; empty if the ring is not known.
    by_replication: BTreeMap<u8, Arc<RoutingTable>>,
    by_keyspace: BTreeMap<String, Arc<RoutingTable>>,
}

impl Routing {
    /// From what a node told. `before` lends its tables if the ring is the same.
    pub(crate) fn new(
        topology: Topology,
        keyspaces: &[KeyspaceSettings],
        before: Option<&Self>,
    ) -> Self {
        let members = topology.members.iter();
        let standing =
            members.map(|member| (member.node.0, Standing::of(member.liveness))).collect();
        let mut by_replication = match before {
            Some(before) if before.topology.epoch_digest == topology.epoch_digest => {
                before.by_replication.clone()
            }
            _ => BTreeMap::new(),
        };
        let mut by_keyspace = BTreeMap::new();
        if let Some(epoch) = epoch_of(&topology) {
            for settings in keyspaces {
                let Ok(factor) = ReplicationFactor::new(settings.replication) else { continue };
                let table = by_replication
                    .entry(factor.get())
                    .or_insert_with(|| Arc::new(RoutingTable::new(&epoch, factor)));
                by_keyspace.insert(settings.name.0.clone(), table.clone());
            }
        }
        Self { topology, standing, by_replication, by_keyspace }
    }

    pub(crate) fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The epoch that requests are routed by; 0 if by none.
    pub(crate) fn epoch(&self) -> u64 {
        if self.by_keyspace.is_empty() { 0 } else { self.topology.epoch }
    }

    pub(crate) fn members(&self) -> impl Iterator<Item = NodeId> {
        self.standing.keys().copied()
    }

    /// The home replicas of a key; none if the keyspace or the ring is not known.
    fn homes(&self, keyspace: &str, key: &[u8]) -> &[NodeId] {
        self.by_keyspace.get(keyspace).map_or(&[], |table| table.route(key).1)
    }

    /// The best node that is not among `tried`: one that stands better, then a home replica of `key`, then the next in
    /// turn. `failed` says of whom something is known against it.
    pub(crate) fn pick(
        &self,
        key: Option<(&str, &[u8])>,
        turn: usize,
        tried: &[NodeId],
        failed: impl Fn(NodeId) -> bool,
    ) -> Option<(NodeId, Standing)> {
        let standing = |node: NodeId| {
            let told = self.standing.get(&node).copied().unwrap_or(Standing::Doubtful);
            if failed(node) { Standing::Bad } else { told }
        };
        let homes = key.map_or(&[][..], |(keyspace, key)| self.homes(keyspace, key));
        let mut best: Option<(NodeId, Standing)> = None;
        let others = in_turn(self.standing.len(), turn)
            .filter_map(|at| self.topology.members.get(at).map(|member| member.node.0));
        for node in in_turn(homes.len(), turn).map(|at| homes[at]).chain(others) {
            if tried.contains(&node) {
                continue;
            }
            match standing(node) {
                Standing::Good => return Some((node, Standing::Good)),
                found if best.is_none_or(|(_, least)| found < least) => best = Some((node, found)),
                _ => {}
            }
        }
        best
    }
}

/// All of `0..count`, beginning at `turn`.
fn in_turn(count: usize, turn: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |step| (turn % count + step) % count)
}

/// The ring, if what was told makes one and it is the nodes' own.
pub fn epoch_of(topology: &Topology) -> Option<Epoch> {
    let members = topology.members.iter().map(|member| Member {
        node: member.node.0,
        zone: member.zone.0.clone(),
        weight: member.weight,
    });
    let partitions = Partitions::new(topology.partitions).ok()?;
    let epoch = Epoch::new(topology.epoch, partitions, members.collect()).ok()?;
    let same = epoch.digest() == topology.epoch_digest;
    if !same {
        tracing::warn!(
            epoch = topology.epoch,
            "the ring's digest is not the nodes': keys are not routed"
        );
    }
    same.then_some(epoch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Durability, Level, MemberInfo};

    fn topology(livenesses: &[Liveness]) -> Topology {
        let members: Vec<_> = (1..)
            .zip(livenesses)
            .map(|(node, &liveness)| MemberInfo {
                node: NodeId(node).into(),
                address: format!("127.0.0.1:{node}").into(),
                zone: "".into(),
                weight: 1,
                liveness,
            })
            .collect();
        let ring = members.iter().map(|member| Member {
            node: member.node.0,
            zone: String::new(),
            weight: 1,
        });
        let epoch = Epoch::new(1, Partitions::default(), ring.collect()).unwrap();
        Topology {
            cluster: "test".into(),
            node: NodeId(1).into(),
            epoch: 1,
            epoch_digest: epoch.digest(),
            partitions: epoch.partitions().count(),
            members: members.into(),
        }
    }

    fn keyspace(replication: u8) -> KeyspaceSettings {
        KeyspaceSettings {
            name: "k".into(),
            replication,
            write_level: Level::Quorum,
            read_level: Level::Quorum,
            durability: Durability::Sync,
            history_versions_max: None,
            history_age_ms_max: None,
        }
    }

    fn pick_all(routing: &Routing, key: &[u8], turn: usize) -> Vec<NodeId> {
        let mut tried = Vec::new();
        while let Some((node, _)) = routing.pick(Some(("k", key)), turn, &tried, |_| false) {
            tried.push(node);
        }
        tried
    }

    #[test]
    fn home_replicas_come_first_and_take_turns() {
        let routing = Routing::new(topology(&[Liveness::Alive; 5]), &[keyspace(3)], None);
        let homes = routing.homes("k", b"key").to_vec();
        assert_eq!(homes.len(), 3);
        let mut firsts = Vec::new();
        for turn in 0..3 {
            let order = pick_all(&routing, b"key", turn);
            assert_eq!(order.len(), 5, "every node is tried before none is left");
            assert!(order[..3].iter().all(|node| homes.contains(node)));
            firsts.push(order[0]);
        }
        firsts.sort_unstable();
        let mut sorted = homes;
        sorted.sort_unstable();
        assert_eq!(firsts, sorted);
    }

    #[test]
    fn standing_goes_before_home() {
        use Liveness::{Alive, Dead, Suspect};
        let routing = Routing::new(topology(&[Dead, Suspect, Alive]), &[keyspace(1)], None);
        for key in 0..50_u8 {
            let order = pick_all(&routing, &[key], key.into());
            assert_eq!(order, [NodeId(3), NodeId(2), NodeId(1)]);
        }
        let failed = routing.pick(Some(("k", b"key")), 0, &[NodeId(2)], |node| node == NodeId(3));
        assert_eq!(failed.unwrap().1, Standing::Bad);
    }

    #[test]
    fn a_ring_of_another_digest_is_not_used() {
        let mut other = topology(&[Liveness::Alive; 3]);
        other.epoch_digest ^= 1;
        let routing = Routing::new(other, &[keyspace(1)], None);
        assert_eq!(routing.epoch(), 0);
        assert_eq!(routing.homes("k", b"key"), []);
        assert_eq!(pick_all(&routing, b"key", 7).len(), 3);
    }

    #[test]
    fn hostile_topologies_are_no_ring() {
        let base = topology(&[Liveness::Alive; 2]);
        let mut partitions = base.clone();
        partitions.partitions = 3;
        let mut nobody = base.clone();
        nobody.members = Vec::new().into();
        let mut twice = base;
        let again = twice.members[0].clone();
        twice.members.0.push(again);
        for topology in [partitions, nobody, twice] {
            let routing = Routing::new(topology, &[keyspace(1)], None);
            assert_eq!(routing.epoch(), 0);
            pick_all(&routing, b"key", usize::MAX);
        }
    }

    #[test]
    fn tables_are_lent_while_the_ring_stays() {
        let first = Routing::new(topology(&[Liveness::Alive; 3]), &[keyspace(2)], None);
        let second = Routing::new(topology(&[Liveness::Dead; 3]), &[keyspace(2)], Some(&first));
        assert!(Arc::ptr_eq(&first.by_keyspace["k"], &second.by_keyspace["k"]));
    }
}
