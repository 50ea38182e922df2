//! Placements that never change.
//!
//! A difference between a file in `golden/` and what this release computes is a change of format: nodes of two
//! releases would disagree who is home to a key, and existing clusters would lose their data. Do not
//! renew a file to make a test pass; add files for new cases.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use starling_clock::NodeId;
use starling_ring::{Epoch, Member, Partitions, ReplicationFactor, RoutingTable};

/// Digest, loads and all preference lists of a table, as text.
fn render(epoch: &Epoch, table: &RoutingTable) -> String {
    let mut lines = vec![format!("epoch {} digest {:016x}", table.epoch(), epoch.digest())];
    for member in epoch.members() {
        let Member { node, zone, weight } = member;
        let load = table.partitions_of(*node).len();
        lines.push(format!("node {node} zone {zone:?} weight {weight} load {load}"));
    }
    for partition in table.partitions().all() {
        let homes: Vec<String> =
            table.preference_list(partition).iter().map(ToString::to_string).collect();
        lines.push(format!("{partition}: {}", homes.join(" ")));
    }
    lines.join("\n") + "\n"
}

fn check(golden: &str, partitions: u32, replication: u8, members: &[(u64, &str, u32)]) {
    let member = |&(node, zone, weight): &(u64, &str, u32)| Member {
        node: NodeId(node),
        zone: zone.into(),
        weight,
    };
    let members = members.iter().map(member).collect();
    let epoch = Epoch::new(1, Partitions::new(partitions).unwrap(), members).unwrap();
    let table = RoutingTable::new(&epoch, ReplicationFactor::new(replication).unwrap());
    let actual = render(&epoch, &table);
    assert!(actual == golden, "the placement has changed; it is now:\n{actual}");
}

#[test]
fn three_nodes() {
    let members = [(1, "", 1), (2, "", 1), (3, "", 1)];
    check(include_str!("golden/three_nodes.txt"), 64, 3, &members);
}

#[test]
fn five_nodes_in_three_zones() {
    let members = [(1, "a", 1), (2, "a", 1), (3, "b", 1), (4, "b", 1), (5, "c", 1)];
    check(include_str!("golden/five_nodes_in_three_zones.txt"), 64, 3, &members);
}

#[test]
fn six_nodes_with_weights() {
    let members =
        [(10, "", 1), (20, "", 2), (30, "", 3), (40, "", 4), (50, "", 5), (u64::MAX, "", 9)];
    check(include_str!("golden/six_nodes_with_weights.txt"), 128, 2, &members);
}

/// Few zones, a factor near the number of members: some lists are made by exchange.
#[test]
fn five_replicas_in_two_zones() {
    let members =
        [(1, "a", 1), (2, "a", 8), (3, "a", 2), (4, "b", 1), (5, "b", 1), (6, "b", 3), (7, "b", 1)];
    check(include_str!("golden/five_replicas_in_two_zones.txt"), 128, 5, &members);
}

/// Light members among heavy ones: some walks end before they meet one, and the lists are filled.
#[test]
fn light_members_among_heavy_ones() {
    let members =
        [(1, "a", 1), (2, "a", 300), (3, "a", 200), (4, "b", 1), (5, "b", 100), (6, "b", 1)];
    check(include_str!("golden/light_members_among_heavy_ones.txt"), 128, 4, &members);
}

#[test]
fn twelve_nodes_at_the_default_partitions() {
    let zones = ["y", "z", "w", "x"].iter().cycle();
    let members: Vec<(u64, &str, u32)> =
        (1..=12).zip(zones).map(|(node, zone)| (node * 1000, *zone, 1)).collect();
    check(include_str!("golden/twelve_nodes.txt"), 1024, 3, &members);
}
