//! Placement: which members hold which partition. Runs once an epoch and replication factor.
//!
//! Three passes, each taking the partitions in order:
//!
//! 1. *Walk* the hash ring from the partition's point and take each member that is new to the list, whose zone
//!    has room in it and whose load is below its cap (consistent hashing with bounded loads: Mirrokni,
//!    Thorup, Zadimoghaddam, 2018). A walk ends after [`WALK_STEPS_MAX`] virtual nodes.
//! 2. *Fill* what a walk did not reach, by highest random weight among the members that may be taken.
//! 3. *Exchange*, where no such member is left: members with room are all in the list already, or their zones are.
//!
//! The first two keep movement small, as each partition's order of members depends on no other
//! member; the third makes it always succeed.
//!
//! Invariants, asserted at the end:
//!
//! - Every partition has `replicas` distinct members, at most the zone's limit in one zone.
//! - No member's load is above its cap.
//!
//! Why exchange always succeeds. Lists that obey the zone limits are the independent sets of a matroid. Let `p` be a
//! short list. Loads sum up to less than the caps allow, so some zone has room in total and a member `spare` that
//! is below its cap, and some list `q` has room for that zone. If `spare` is in `q`, swap it for a member of its zone
//! in another list `r`, one that `q` lacks: `r` has more of the zone than `q`, so there is one. Now `q` takes the member;
//! if `q` was short, done; else `q`, being longer than `p`, has a member that `p` may take, and hands it over.
//! Each exchange makes one list longer and none shorter, so it ends.

use std::hash::BuildHasher;

use hashring::HashRing;
use starling_clock::NodeId;

use crate::hash::{StableHash, VirtualNode, partition_point, score};
use crate::shares::Shares;
use crate::{Epoch, Partition};

/// Virtual nodes of a member for each unit of its weight.
///
/// The fewer, the more uneven the ring is, the more replicas the caps turn away, and the more of those move when a
/// member joins: at 16,384 partitions, N = 3, 50 members, 1.20 times the ideal with 64, 1.05 times with 256.
pub const VIRTUAL_NODES_PER_WEIGHT: u32 = 256;

/// A walk gives up after so many virtual nodes. Ordinary walks take a few; a walk that looks for the one light member of a
/// small zone among heavy ones would go round the whole ring, for every partition.
const WALK_STEPS_MAX: usize = 512;

/// The members of each partition, as indices in the epoch, `replicas` for each partition in turn.
pub(crate) fn place(epoch: &Epoch, shares: &Shares) -> Vec<u32> {
    let order = Order::new(epoch);
    let mut lists = Lists::new(epoch, shares);
    for partition in epoch.partitions().all() {
        lists.walk(partition, &order);
    }
    for partition in epoch.partitions().all() {
        lists.fill(partition, epoch);
    }
    for partition in epoch.partitions().all() {
        while lists.is_short(partition) {
            lists.exchange(partition);
        }
    }
    lists.invariants();
    lists.members
}

/// A key for the ring when it does not matter which.
const ANYWHERE: VirtualNode = VirtualNode { node: NodeId(0), index: 0, member: 0 };

/// The virtual nodes in ring order.
struct Order {
    points: Vec<u64>,
    members: Vec<u32>,
}

impl Order {
    fn new(epoch: &Epoch) -> Self {
        let virtual_nodes =
            epoch.members().iter().zip(0..).flat_map(|(member, index_of_member)| {
                (0..member.weight * VIRTUAL_NODES_PER_WEIGHT).map(move |index| VirtualNode {
                    node: member.node,
                    index,
                    member: index_of_member,
                })
            });
        let mut ring = HashRing::with_hasher(StableHash);
        ring.batch_add(virtual_nodes.collect());
        // With a hasher of ours the ring has no iterator. Asked for more than it has, this gives all of it in
        // ring order, from somewhere on; it clones the ring, which is why it is asked once.
        let rotated = ring.get_with_replicas(&ANYWHERE, usize::MAX);
        let mut points: Vec<(u64, u32)> = rotated
            .expect("an epoch has members and a member virtual nodes")
            .into_iter()
            .map(|virtual_node| (StableHash.hash_one(virtual_node), virtual_node.member))
            .collect();
        let lowest = points.windows(2).position(|pair| pair[1].0 < pair[0].0);
        points.rotate_left(lowest.map_or(0, |before| before + 1));
        assert!(points.is_sorted_by_key(|&(point, _)| point));
        let (points, members) = points.into_iter().unzip();
        Self { points, members }
    }

    /// Members from the first virtual node at or after `point` on, round the ring once.
    fn from(&self, point: u64) -> impl Iterator<Item = u32> {
        let start = self.points.partition_point(|&other| other < point);
        self.members[start..].iter().chain(&self.members[..start]).copied()
    }
}

/// Lists in the making.
struct Lists<'a> {
    shares: &'a Shares,
    /// `replicas` places for each partition; the first `lengths[partition]` of them are taken.
    members: Vec<u32>,
    lengths: Vec<u32>,
    /// Partition replicas of each member, and of each zone.
    loads: Vec<u32>,
    zone_loads: Vec<u32>,
    /// Where the last search for a list with room for a zone, or without a member, ended. The next goes on
    /// from there, so that searches go round the partitions a few times in all and not once each.
    zone_cursors: Vec<Partition>,
    member_cursors: Vec<Partition>,
}

impl<'a> Lists<'a> {
    fn new(epoch: &Epoch, shares: &'a Shares) -> Self {
        let partitions = epoch.partitions().count() as usize;
        Self {
            shares,
            members: vec![u32::MAX; partitions * shares.replicas as usize],
            lengths: vec![0; partitions],
            loads: vec![0; shares.cap.len()],
            zone_loads: vec![0; shares.zone_limit.len()],
            zone_cursors: vec![Partition(0); shares.zone_limit.len()],
            member_cursors: vec![Partition(0); shares.cap.len()],
        }
    }

    fn walk(&mut self, partition: Partition, order: &Order) {
        for member in order.from(partition_point(partition)).take(WALK_STEPS_MAX) {
            if self.is_spare(member) && self.admits(partition, member) {
                self.add(partition, member);
                if !self.is_short(partition) {
                    break;
                }
            }
        }
    }

    fn fill(&mut self, partition: Partition, epoch: &Epoch) {
        while self.is_short(partition) {
            let list = self.list(partition);
            let best = (0_u32..)
                .zip(&self.shares.zone_members)
                .filter(|&(zone, _)| self.has_room(list, zone))
                .flat_map(|(_, members)| members)
                .copied()
                .filter(|&member| self.is_spare(member) && !list.contains(&member))
                .max_by_key(|&member| {
                    let node = epoch.members()[member as usize].node;
                    (score(partition, node), node)
                });
            let Some(member) = best else { break };
            self.add(partition, member);
        }
    }

    /// Makes one short list longer by one, where no member may simply be added: see the top of this file.
    fn exchange(&mut self, short: Partition) {
        let (taker, member) = self.find_taker();
        if self.is_short(taker) {
            self.add(taker, member);
            return;
        }
        let handed = self
            .list(taker)
            .iter()
            .copied()
            .find(|&handed| self.admits(short, handed))
            .expect("a longer list has a member that a shorter one may take");
        self.replace(taker, handed, member);
        self.add(short, handed);
    }

    /// A list and a member below its cap that the zones allow there and that it has not got.
    fn find_taker(&mut self) -> (Partition, u32) {
        let spare = self.spare_with_room();
        let zone = self.shares.zone_of(spare);
        let taker = self
            .find(self.zone_cursors[zone as usize], |list| self.has_room(list, zone))
            .expect("a zone below its limit in total is so in some list");
        self.zone_cursors[zone as usize] = taker;
        if !self.list(taker).contains(&spare) {
            return (taker, spare);
        }
        let other = self
            .find(self.member_cursors[spare as usize], |list| !list.contains(&spare))
            .expect("the cap of a member is at most the number of partitions");
        self.member_cursors[spare as usize] = other;
        if self.has_room(self.list(other), zone) {
            return (other, spare);
        }
        let freed = self
            .list(other)
            .iter()
            .copied()
            .find(|freed| self.shares.zone_of(*freed) == zone && !self.list(taker).contains(freed))
            .expect("the other list has more of the zone than the taker's");
        self.replace(other, freed, spare);
        (taker, freed)
    }

    /// A member below its cap in a zone that has room in total.
    fn spare_with_room(&self) -> u32 {
        let partitions = u32::try_from(self.lengths.len()).expect("at most PARTITIONS_MAX");
        (0_u32..)
            .zip(&self.shares.zone_of)
            .find(|&(member, &zone)| {
                let room = self.shares.zone_limit(zone) * partitions;
                self.is_spare(member) && self.zone_loads[zone as usize] < room
            })
            .expect("caps and limits allow more than the loads while a list is short")
            .0
    }

    /// The first partition, from `start` round to `start`, whose list is `wanted`.
    fn find(&self, start: Partition, wanted: impl Fn(&[u32]) -> bool) -> Option<Partition> {
        let partitions = u32::try_from(self.lengths.len()).expect("at most PARTITIONS_MAX");
        (start.0..partitions).chain(0..start.0).map(Partition).find(|&at| wanted(self.list(at)))
    }

    fn list(&self, partition: Partition) -> &[u32] {
        let start = self.start(partition);
        &self.members[start..start + self.lengths[partition.0 as usize] as usize]
    }

    fn start(&self, partition: Partition) -> usize {
        partition.0 as usize * self.shares.replicas as usize
    }

    fn is_short(&self, partition: Partition) -> bool {
        self.lengths[partition.0 as usize] < self.shares.replicas
    }

    fn is_spare(&self, member: u32) -> bool {
        self.loads[member as usize] < self.shares.cap[member as usize]
    }

    /// Whether the list would still obey zones with `member` in it, and has not got it.
    fn admits(&self, partition: Partition, member: u32) -> bool {
        let list = self.list(partition);
        !list.contains(&member) && self.has_room(list, self.shares.zone_of(member))
    }

    fn has_room(&self, list: &[u32], zone: u32) -> bool {
        let held = list.iter().filter(|&&member| self.shares.zone_of(member) == zone).count();
        held < self.shares.zone_limit(zone) as usize
    }

    fn add(&mut self, partition: Partition, member: u32) {
        assert!(self.is_short(partition));
        let at = self.start(partition) + self.lengths[partition.0 as usize] as usize;
        self.members[at] = member;
        self.lengths[partition.0 as usize] += 1;
        self.count_in(member);
    }

    fn replace(&mut self, partition: Partition, old: u32, new: u32) {
        let start = self.start(partition);
        let at = self.list(partition).iter().position(|&member| member == old);
        self.members[start + at.expect("the old member is in the list")] = new;
        self.loads[old as usize] -= 1;
        self.zone_loads[self.shares.zone_of(old) as usize] -= 1;
        self.count_in(new);
    }

    fn count_in(&mut self, member: u32) {
        self.loads[member as usize] += 1;
        self.zone_loads[self.shares.zone_of(member) as usize] += 1;
    }

    fn invariants(&self) {
        for (load, cap) in self.loads.iter().zip(&self.shares.cap) {
            assert!(load <= cap, "a load is above its cap");
        }
        for list in self.members.chunks_exact(self.shares.replicas as usize) {
            for (at, &member) in list.iter().enumerate() {
                let zone = self.shares.zone_of(member);
                assert!(!list[..at].contains(&member), "a list names a member twice");
                assert!(self.has_room(&list[..at], zone), "a zone is over its limit");
            }
        }
    }
}
