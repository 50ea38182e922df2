//! The machine in numbers: 10 and 100 nodes in virtual time, with loss, crashes, returns and partitions.

mod support;

use starling_clock::{HybridTime, NodeId, Stamp};
use starling_gossip::limits::DATAGRAM_SIZE_MAX;
use starling_gossip::{GossipConfig, NodeState, Register, Status};
use support::{Network, World, address};

const LOSSLESS: Network = Network { loss_per_mille: 0, delay_us: (200, 2_000) };
const LOSSY: Network = Network { loss_per_mille: 50, delay_us: (200, 20_000) };

/// `count` nodes that have all joined and have nothing to tell any more.
fn settled(count: u64, network: Network, seed: u64) -> World {
    let mut world = World::new(GossipConfig::default(), network, seed);
    world.start_joining(count);
    world.run_until(60_000, World::agrees).expect("all find one another within a minute");
    world.run_ms(30_000);
    assert!(world.agrees());
    world.changes.clear();
    world
}

/// How long the failure of one of `count` may go unnoticed, in milliseconds: a probe of it within two passes
/// of the order by somebody (in practice much sooner), the suspicion, and the spreading.
fn crash_bound_ms(count: u64) -> u64 {
    if count <= 10 { 35_000 } else { 60_000 }
}

#[test]
fn ten_nodes_notice_a_crash_and_the_return() {
    for seed in 0..5 {
        crash_and_return(10, seed);
    }
}

#[test]
fn a_hundred_nodes_notice_a_crash_and_the_return() {
    crash_and_return(100, 1);
}

fn crash_and_return(count: u64, seed: u64) {
    let mut world = settled(count, LOSSLESS, seed);
    let crashed = NodeId(count / 2);
    world.crash(crashed);
    let noticed = world.run_until(crash_bound_ms(count), |w| w.all_hold(crashed, Status::Dead));
    assert!(noticed.is_some(), "seed {seed}: {count} nodes have not noticed");
    assert!(world.changes.iter().all(|&(.., of, _)| of == crashed), "and nobody else was doubted");
    // It restarts and dials nobody: the others call on it.
    world.start(crashed);
    let returned = world.run_until(60_000, World::agrees);
    assert!(returned.is_some(), "seed {seed}: {count} nodes have not noticed the return");
}

#[test]
fn nobody_dies_of_lost_datagrams() {
    for (count, minutes) in [(10, 10), (100, 3)] {
        let mut world = settled(count, LOSSY, 7);
        world.run_ms(minutes * 60_000);
        let died: Vec<_> = world.changes.iter().filter(|(.., to)| *to == Status::Dead).collect();
        assert!(died.is_empty(), "{count} nodes: {died:?}");
        let suspected = world.changes.iter().filter(|(.., to)| *to == Status::Suspect).count();
        // A probe fails that is lost one way or the other, and by three helpers on one of four ways each:
        // 0.0975 x 0.185^3, six in ten thousand. Each suspicion is told of by every node.
        let probes = count * minutes * 60;
        let bound = usize::try_from(count * (5 + probes * 12 / 10_000)).unwrap();
        assert!(suspected <= bound, "{count} nodes: {suspected} suspicions");
    }
}

#[test]
fn a_partition_heals_by_itself() {
    for (count, seed) in [(10, 3), (100, 4)] {
        let mut world = settled(count, LOSSLESS, seed);
        for left in 1..=count / 2 {
            for right in count / 2 + 1..=count {
                world.cuts.insert((NodeId(left), NodeId(right)));
            }
        }
        let apart = |world: &World| {
            world.nodes.values().all(|gossip| gossip.up_count() as u64 == count / 2)
        };
        let noticed = world.run_until(300_000, apart);
        assert!(noticed.is_some(), "{count} nodes: both halves hold the other dead");
        world.cuts.clear();
        let healed = world.run_until(180_000, World::agrees);
        assert!(healed.is_some(), "{count} nodes have not found back together");
    }
}

#[test]
fn a_sleeping_node_neither_accuses_nor_stays_dead() {
    let mut world = settled(10, LOSSLESS, 5);
    let sleeper = NodeId(3);
    let gossip = world.suspend(sleeper);
    world.run_until(60_000, |world| world.all_hold(sleeper, Status::Dead)).expect("noticed");
    world.changes.clear();
    world.resume(gossip);
    world.run_until(60_000, World::agrees).expect("it is back");
    let accused = |&(_, by, _, to): &(_, NodeId, _, Status)| by == sleeper && to != Status::Alive;
    assert!(!world.changes.iter().any(accused), "{:?}", world.changes);
}

#[test]
fn a_leave_is_told_to_all_and_then_the_process_may_stop() {
    let mut world = settled(100, LOSSLESS, 6);
    let leaver = NodeId(42);
    world.act(leaver, starling_gossip::Gossip::leave);
    let told = world.run_until(10_000, |world| world.nodes[&leaver].is_leave_told());
    assert!(told.is_some());
    world.crash(leaver);
    world.run_until(5_000, |world| world.all_hold(leaver, Status::Left)).expect("all know");
    world.run_ms(60_000);
    assert!(world.all_hold(leaver, Status::Left), "and it is not dead besides");
}

#[test]
fn states_and_registers_reach_all() {
    let mut world = settled(100, LOSSY, 8);
    let state = NodeState { load: 9, extra: vec![1; 256], ..NodeState::at(address(NodeId(1))) };
    world.act(NodeId(1), |gossip, now| gossip.update_state(now, state.clone()).unwrap());
    for (name, size) in [("small", 300), ("large", 4_096)] {
        let stamp = Stamp::new(HybridTime::new(1, 0), NodeId(2));
        let register = Register { name: name.into(), stamp, value: vec![1; size] };
        world.act(NodeId(2), |gossip, now| gossip.set_register(now, &register).unwrap());
    }
    let spread = world.run_until(10_000, |world| {
        world.nodes.values().all(|gossip| {
            *gossip.member(NodeId(1)).unwrap().state == state && gossip.registers().count() == 2
        })
    });
    assert!(spread.is_some(), "by rumours, long before push-pull brings it to all");
}

#[test]
fn concurrent_registers_end_the_same_everywhere() {
    let mut world = settled(10, LOSSY, 9);
    for id in 1..=10 {
        let stamp = Stamp::new(HybridTime::new(5, 0), NodeId(id));
        let register =
            Register { name: "settings".into(), stamp, value: id.to_le_bytes().to_vec() };
        world.act(NodeId(id), |gossip, now| gossip.set_register(now, &register).unwrap());
    }
    world.run_ms(10_000);
    for gossip in world.nodes.values() {
        assert_eq!(gossip.register("settings").unwrap().value, 10_u64.to_le_bytes());
    }
}

#[test]
fn one_seed_gives_one_trace() {
    let trace = |seed| {
        let mut world = settled(20, LOSSY, seed);
        world.crash(NodeId(7));
        world.run_ms(30_000);
        world.start(NodeId(7));
        world.run_ms(30_000);
        (world.trace(), world.datagrams, world.bytes)
    };
    assert_eq!(trace(1), trace(1));
    assert_ne!(trace(1), trace(2));
}

#[test]
fn a_quiet_cluster_costs_a_probe_a_second_each() {
    let mut world = settled(100, LOSSLESS, 10);
    // What is left of the joining: push-pulls bring no news, so nothing but probes remains.
    (world.datagrams, world.bytes, world.datagram_size_max) = (0, 0, 0);
    world.run_ms(60_000);
    let a_node_a_second = world.datagrams / 100 / 60;
    assert!((1..=2).contains(&a_node_a_second), "{} datagrams", world.datagrams);
    assert!(world.datagram_size_max <= 64, "{}", world.datagram_size_max);
}

#[test]
fn a_storm_of_rumours_fills_datagrams_to_the_bound_and_not_over_it() {
    let mut world = settled(50, LOSSLESS, 11);
    for id in 1..=50 {
        let state = NodeState {
            extra: vec![7; 256],
            zone: "z".repeat(64),
            software: "s".repeat(32),
            ..NodeState::at(address(NodeId(id)))
        };
        world.act(NodeId(id), |gossip, now| gossip.update_state(now, state).unwrap());
    }
    world.run_ms(30_000);
    assert!(world.datagram_size_max > DATAGRAM_SIZE_MAX - 420, "{}", world.datagram_size_max);
    for gossip in world.nodes.values() {
        assert!(gossip.members().all(|member| member.state.extra.len() == 256));
    }
}
