//! Fair shares: how many partition replicas a member should hold, may hold, and how zones are kept apart.
//!
//! Every partition has `replicas` distinct members, at most `limit` of them in one zone. The fair share is the
//! most even split by weight that those two rules allow (weighted max-min fairness): all shares grow
//! together, in proportion to weight, a member stops at one replica of every partition, a zone stops at its
//! limit of every partition, and what they cannot take goes to the others.
//!
//! So zones and the load cap never conflict: zones win, in the definition of the share. Where a zone is so
//! small that keeping apart loads its members more than their weight says, that load *is* their fair share.
//!
//! Invariants:
//!
//! - Every member's share is above zero and its cap is at least its share. Putting share / partitions of each
//!   member in each partition obeys all rules in fractions; a network flow with whole capacities that has a
//!   flow in fractions has one in whole numbers; so a placement within all caps always exists.
//! - Integers only: the same on every machine.

use std::collections::BTreeMap;

use crate::Epoch;

/// No member holds more than its fair share times this, rounded up, in percent.
const CAP_PERCENT: u128 = 105;

/// Shares are in units of 2^-40 replicas. Rounding (down, by at most a weight's worth of units, 10^-9) is
/// smaller than the distance of two different shares, so that the cap is that of the exact share.
const UNIT: u128 = 1 << 40;

/// What placement has to obey. Members are indices in the epoch.
#[derive(Clone, Debug)]
pub(crate) struct Shares {
    /// Members of one partition: the replication factor, or fewer if there are fewer members.
    pub(crate) replicas: u32,
    /// The members of each zone, and the zone of each member.
    pub(crate) zone_members: Vec<Vec<u32>>,
    pub(crate) zone_of: Vec<u32>,
    /// The most replicas of one partition that a zone may hold.
    pub(crate) zone_limit: Vec<u32>,
    /// The most partition replicas that a member may hold.
    pub(crate) cap: Vec<u32>,
}

impl Shares {
    pub(crate) fn new(epoch: &Epoch, replication: u32) -> Self {
        let members = u32::try_from(epoch.members().len()).expect("at most MEMBERS_MAX");
        let replicas = replication.min(members);
        let mut by_zone: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
        for (index, member) in (0..).zip(epoch.members()) {
            by_zone.entry(&member.zone).or_default().push(index);
        }
        let zone_members: Vec<Vec<u32>> = by_zone.into_values().collect();
        let mut zone_of = vec![0; epoch.members().len()];
        for (zone, members) in (0..).zip(&zone_members) {
            for &member in members {
                zone_of[member as usize] = zone;
            }
        }
        let weight = |&member: &u32| u128::from(epoch.members()[member as usize].weight);
        let zone_weights: Vec<Vec<u128>> =
            zone_members.iter().map(|members| members.iter().map(weight).collect()).collect();
        let zone_limit = zone_limits(&zone_weights, replicas);

        let partitions = epoch.partitions().count();
        let levels = levels(&zone_weights, &zone_limit, partitions, replicas);
        let full = u128::from(partitions) * UNIT;
        let cap = epoch.members().iter().zip(&zone_of).map(|(member, &zone)| {
            let share = full.min(levels[zone as usize] * u128::from(member.weight));
            let cap = (share * CAP_PERCENT).div_ceil(100 * UNIT);
            u32::try_from(cap).expect("a share is at most 65,536").min(partitions)
        });
        let cap = cap.collect();
        Self { replicas, zone_members, zone_of, zone_limit, cap }
    }

    pub(crate) fn zone_of(&self, member: u32) -> u32 {
        self.zone_of[member as usize]
    }

    pub(crate) fn zone_limit(&self, zone: u32) -> u32 {
        self.zone_limit[zone as usize]
    }
}

/// The least even limit that leaves room for all replicas: 1 if there are enough zones.
fn zone_limits(zone_weights: &[Vec<u128>], replicas: u32) -> Vec<u32> {
    let within = |limit: u32| {
        zone_weights.iter().map(move |weights| {
            limit.min(u32::try_from(weights.len()).expect("at most MEMBERS_MAX"))
        })
    };
    let limit = (1..=replicas).find(|&limit| within(limit).sum::<u32>() >= replicas);
    within(limit.expect("there are at least as many members as replicas")).collect()
}

/// The share of weight 1 in each zone, in [`UNIT`]s.
fn levels(
    zone_weights: &[Vec<u128>],
    zone_limit: &[u32],
    partitions: u32,
    replicas: u32,
) -> Vec<u128> {
    let full = u128::from(partitions) * UNIT;
    let taken = |weights: &[u128], level: u128| -> u128 {
        weights.iter().map(|weight| full.min(level * weight)).sum()
    };
    let room = |zone: usize| full * u128::from(zone_limit[zone]);
    let everywhere = highest(full, |level| {
        let all: u128 = (0..zone_weights.len())
            .map(|zone| taken(&zone_weights[zone], level).min(room(zone)))
            .sum();
        all <= full * u128::from(replicas)
    });
    (0..zone_weights.len())
        .map(|zone| {
            let weights = &zone_weights[zone];
            everywhere.min(highest(full, |level| taken(weights, level) <= room(zone)))
        })
        .collect()
}

/// The greatest number up to `max` that is `good`, where every number below a good one is good, as is zero.
fn highest(max: u128, good: impl Fn(u128) -> bool) -> u128 {
    let (mut low, mut high) = (0, max);
    while low < high {
        let middle = high - (high - low) / 2;
        if good(middle) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use starling_clock::NodeId;

    use super::*;
    use crate::{Member, Partitions};

    fn shares(partitions: u32, replication: u32, members: &[(&str, u32)]) -> Shares {
        let members = members.iter().zip(1..).map(|(&(zone, weight), node)| Member {
            node: NodeId(node),
            zone: zone.into(),
            weight,
        });
        let partitions = Partitions::new(partitions).unwrap();
        Shares::new(&Epoch::new(1, partitions, members.collect()).unwrap(), replication)
    }

    #[test]
    fn equal_members_share_equally() {
        assert_eq!(shares(1024, 3, &[("", 1); 4]).cap, [807; 4]); // 1.05 * 768 = 806.4
        assert_eq!(shares(1024, 3, &[("", 7); 4]).cap, [807; 4]);
        assert_eq!(shares(16, 1, &[("", 1); 16]).cap, [2; 16]); // 1.05, rounded up
        assert_eq!(shares(1024, 1, &[("", 500), ("", 500)]).cap, [538; 2]); // 537.6
    }

    #[test]
    fn a_cap_that_is_whole_is_not_rounded_up() {
        assert_eq!(shares(64, 5, &[("", 1); 16]).cap, [21; 16]); // 1.05 * 20 = 21
    }

    #[test]
    fn what_a_heavy_member_cannot_take_goes_to_the_others() {
        // The first can hold one replica of each partition, 1024; the others share the 1024 left.
        assert_eq!(shares(1024, 2, &[("", 1000), ("", 1), ("", 1)]).cap, [1024, 538, 538]);
    }

    #[test]
    fn fewer_members_than_replicas_hold_everything() {
        let few = shares(1024, 3, &[("", 9), ("", 1)]);
        assert_eq!((few.replicas, few.cap), (2, vec![1024; 2]));
    }

    #[test]
    fn enough_zones_mean_one_replica_a_zone() {
        let zones = shares(1024, 3, &[("a", 1), ("b", 1), ("c", 1), ("c", 1), ("d", 1)]);
        assert_eq!(zones.zone_limit, [1; 4]);
    }

    #[test]
    fn a_small_zone_loads_its_members_more() {
        let small = shares(1024, 3, &[("a", 1), ("b", 1), ("c", 1), ("c", 3)]);
        assert_eq!(small.cap, [1024, 1024, 269, 807]); // 1.05 * 256 = 268.8, 1.05 * 768 = 806.4
    }

    #[test]
    fn too_few_zones_are_filled_evenly() {
        assert_eq!(shares(64, 3, &[("a", 1), ("a", 1), ("b", 1), ("b", 1)]).zone_limit, [2, 2]);
        let uneven = shares(64, 5, &[("a", 1), ("b", 1), ("b", 1), ("b", 1), ("b", 1)]);
        assert_eq!(uneven.zone_limit, [1, 4]);
        assert_eq!(shares(64, 3, &[("", 1); 5]).zone_limit, [3]);
    }

    #[test]
    fn highest_finds_the_edge() {
        for edge in 0..=9 {
            assert_eq!(highest(9, |number| number <= edge), edge);
        }
    }
}
