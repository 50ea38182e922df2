//! Every bound of the machine, reached: what is over it is refused or left out, and the machine goes on.

#![expect(clippy::unwrap_used, reason = "a test: what fails, fails it")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use proptest::prelude::*;
use starling_clock::{HybridTime, NodeId, Stamp};
use starling_gossip::limits::{
    DATAGRAM_SIZE_MAX, INCARNATION_MAX, LOCAL_HEALTH_MAX, MEMBERS_MAX, PUSH_PULL_SIZE_MAX,
    REGISTERS_MAX,
};
use starling_gossip::{
    DecodeError, Gossip, GossipConfig, GossipError, Instant, Member, NodeState, Output, Register,
    Status, describe,
};

const NOW: Instant = Instant(0);

fn at(node: u64) -> NodeState {
    NodeState::at(SocketAddr::from(([127, 0, 0, 1], u16::try_from(node).unwrap_or(0))))
}

fn gossip(node: u64) -> Gossip {
    Gossip::new(GossipConfig::default(), NodeId(node), at(node), node, NOW).unwrap()
}

fn member(node: u64, status: Status, state: &Arc<NodeState>) -> Member {
    let state = Arc::clone(state);
    Member { node: NodeId(node), status, incarnation: 1, state_incarnation: 1, state }
}

fn acquainted(node: u64, others: impl IntoIterator<Item = u64>) -> Gossip {
    let mut gossip = gossip(node);
    let state = Arc::new(at(0));
    let others = others.into_iter().map(|other| member(other, Status::Alive, &state));
    gossip.restore_members(NOW, others).unwrap();
    outputs(&mut gossip);
    gossip
}

fn register(name: &str, ms: u64, size: usize) -> Register {
    let stamp = Stamp::new(HybridTime::new(ms, 0), NodeId(1));
    Register { name: name.into(), stamp, value: vec![1; size] }
}

fn outputs(gossip: &mut Gossip) -> Vec<Output> {
    std::iter::from_fn(|| gossip.poll_output()).collect()
}

/// Has `from` ask `to` and gives the request and the answer, after both have taken them.
fn push_pull(from: &mut Gossip, to: &mut Gossip) -> (Vec<u8>, Vec<u8>) {
    from.handle_peer_found(NOW, to.own());
    let asks = |output| match output {
        Output::PushPull { bytes, .. } => Some(bytes),
        _ => None,
    };
    let request = outputs(from).into_iter().find_map(asks).unwrap();
    let answer = to.handle_push_pull(NOW, from.own(), &request).unwrap();
    from.handle_push_pull_answer(NOW, to.own(), &answer).unwrap();
    (request, answer)
}

/// A datagram by FORMAT.md.
fn datagram(kind: u8, sender: u64, incarnation: u64, body: &[u64]) -> Vec<u8> {
    let mut bytes = vec![1, kind, 0];
    bytes.extend(sender.to_le_bytes());
    bytes.extend(incarnation.to_le_bytes());
    if let Some((sequence, target)) = body.split_first() {
        bytes.extend(u32::try_from(*sequence).unwrap().to_le_bytes());
        bytes.extend(target.iter().flat_map(|target| target.to_le_bytes()));
    }
    bytes
}

/// The same, with one doubt about a node.
fn doubt(sender: u64, status: Status, node: u64, incarnation: u64) -> Vec<u8> {
    let mut bytes = datagram(5, sender, 1, &[]);
    bytes[2] = 1;
    bytes.push(status as u8);
    bytes.extend([node, incarnation, sender].iter().flat_map(|word| word.to_le_bytes()));
    bytes
}

#[test]
fn who_speaks_is_who_the_certificate_names() {
    let mut gossip = acquainted(1, [2]);
    let claimed = NodeId(3);
    let bytes = datagram(1, 3, 1, &[7]);
    let refused = gossip.handle_datagram(NOW, NodeId(2), &bytes);
    assert_eq!(refused, Err(DecodeError::Sender { from: NodeId(2), claimed }));
    let bytes = datagram(1, 1, 1, &[7]);
    let refused = gossip.handle_datagram(NOW, NodeId(1), &bytes);
    assert!(matches!(refused, Err(DecodeError::Malformed(_))));
    assert_eq!(outputs(&mut gossip), []);

    let mut other = acquainted(2, [1]);
    let (request, answer) = push_pull(&mut gossip, &mut other);
    let from = NodeId(9);
    let refused = DecodeError::Sender { from, claimed: NodeId(1) };
    assert_eq!(other.handle_push_pull(NOW, from, &request), Err(refused));
    assert!(gossip.handle_push_pull_answer(NOW, from, &answer).is_err());
    assert!(other.handle_push_pull(NOW, NodeId(2), &answer).is_err());
    assert!(gossip.handle_push_pull(NOW, NodeId(2), &answer).is_err(), "an answer is no request");
    assert!(gossip.handle_push_pull_answer(NOW, NodeId(1), &request).is_err());
    assert!(other.handle_push_pull_answer(NOW, NodeId(1), &request).is_err(), "nor the reverse");
}

#[test]
fn members_over_the_bound_are_not_learned_until_one_that_left_makes_room() {
    let mut gossip = acquainted(1, 2..=MEMBERS_MAX as u64);
    assert_eq!(gossip.members().count(), MEMBERS_MAX);
    let late = MEMBERS_MAX as u64 + 1;
    let mut stranger = acquainted(late, []);
    push_pull(&mut stranger, &mut gossip);
    assert_eq!(gossip.status(NodeId(late)), None);
    assert_eq!(stranger.members().count(), MEMBERS_MAX, "it has no room for all either");
    outputs(&mut gossip);

    gossip.remove(NOW, NodeId(2)).unwrap();
    push_pull(&mut stranger, &mut gossip);
    assert_eq!(gossip.status(NodeId(late)), Some(Status::Alive));
    assert_eq!(gossip.status(NodeId(2)), None);
    assert_eq!(gossip.members().count(), MEMBERS_MAX);
}

#[test]
fn registers_over_the_bound_are_refused() {
    let mut gossip = gossip(1);
    for number in 0..REGISTERS_MAX {
        assert!(gossip.set_register(NOW, &register(&number.to_string(), 1, 8)).unwrap());
    }
    let full = GossipError::RegistersFull { limit: REGISTERS_MAX };
    assert_eq!(gossip.set_register(NOW, &register("late", 1, 8)), Err(full));
    assert_eq!(gossip.set_register(NOW, &register("0", 2, 8)), Ok(true), "a known one still works");
    assert_eq!(gossip.set_register(NOW, &register("0", 1, 8)), Ok(false));

    let mut other = acquainted(2, []);
    assert!(other.set_register(NOW, &register("late", 1, 8)).unwrap());
    push_pull(&mut other, &mut gossip);
    assert_eq!(gossip.registers().count(), REGISTERS_MAX);
    assert_eq!(other.registers().count(), REGISTERS_MAX, "the last one has no room");
}

#[test]
fn registers_from_the_future_are_not_taken_nor_asked_for_nor_spread_until_it_is_their_time() {
    let (mut from, mut to) = (acquainted(1, [2]), acquainted(2, [1, 3]));
    for size in [8, 4_000] {
        from.set_register(NOW, &register(&size.to_string(), 1_000, size)).unwrap();
    }
    let rumours = |from: &mut Gossip| {
        from.handle_timeout(from.poll_timeout().unwrap());
        let datagram = |output| match output {
            Output::Datagram { bytes, .. } => Some(bytes),
            _ => None,
        };
        outputs(from).into_iter().filter_map(datagram).collect::<Vec<_>>()
    };
    to.set_register_time_max(HybridTime::new(999, 0));
    let told: Vec<_> = (0..4).flat_map(|_| rumours(&mut from)).collect();
    assert!(!told.is_empty());
    for bytes in &told {
        to.handle_datagram(NOW, NodeId(1), bytes).unwrap();
    }
    push_pull(&mut to, &mut from);
    push_pull(&mut from, &mut to);
    assert_eq!(to.registers().count(), 0);
    let happened = outputs(&mut to);
    let of_registers = |output: &Output| {
        matches!(output, Output::RegisterChanged { .. } | Output::PushPull { .. })
    };
    assert!(!happened.iter().any(of_registers), "{happened:?}");
    to.set_register_time_max(HybridTime::new(1_000, 0));
    push_pull(&mut to, &mut from);
    assert_eq!(to.registers().count(), 2);
}

#[test]
fn push_pulls_stay_within_their_bound_and_bring_everything_in_the_end() {
    let state = NodeState { extra: vec![1; 256], zone: "z".repeat(64), ..at(0) };
    let state = Arc::new(state);
    let mut gossip = gossip(1);
    let members = (3..=12_000).map(|node| member(node, Status::Alive, &state));
    gossip.restore_members(NOW, members).unwrap();
    for number in 0..1_000 {
        gossip.set_register(NOW, &register(&number.to_string(), 1, 4_096)).unwrap();
    }
    outputs(&mut gossip);
    let mut other = acquainted(2, []);
    let mut rounds = 0;
    while other.members().count() < 12_000 || other.registers().count() < 1_000 {
        let (request, answer) = push_pull(&mut other, &mut gossip);
        assert!(request.len() <= PUSH_PULL_SIZE_MAX);
        assert!(answer.len() <= PUSH_PULL_SIZE_MAX);
        assert!(rounds > 0 || answer.len() > PUSH_PULL_SIZE_MAX - 5_000, "{}", answer.len());
        rounds += 1;
        assert!(rounds < 200, "every window begins somewhere else");
    }
    assert!(rounds > 1, "it was more than fits");
}

#[test]
fn relays_are_bounded_and_end() {
    let mut gossip = acquainted(1, [2, 3]);
    for sequence in 0..5_000 {
        let bytes = datagram(3, 2, 1, &[sequence, 3]);
        gossip.handle_datagram(NOW, NodeId(2), &bytes).unwrap();
    }
    assert_eq!(outputs(&mut gossip).len(), 1_024);
    // Each ends in a nack, and then there is room again.
    gossip.handle_timeout(Instant(400_000));
    let is_nack = |output: &Output| match output {
        Output::Datagram { to, bytes } => {
            *to == NodeId(2) && describe(bytes).unwrap().starts_with("nack")
        }
        _ => false,
    };
    let nacks = outputs(&mut gossip).iter().filter(|output| is_nack(output)).count();
    assert_eq!(nacks, 1_024);
    let bytes = datagram(3, 2, 1, &[1, 3]);
    gossip.handle_datagram(Instant(400_000), NodeId(2), &bytes).unwrap();
    assert_eq!(outputs(&mut gossip).len(), 1);
    // Whom we don't know, we don't probe.
    let bytes = datagram(3, 2, 1, &[1, 99]);
    gossip.handle_datagram(Instant(400_000), NodeId(2), &bytes).unwrap();
    assert_eq!(outputs(&mut gossip), []);
}

#[test]
fn strangers_cause_one_push_pull_a_gossip_interval() {
    let mut gossip = gossip(1);
    let interval_us = gossip.config().gossip_interval_us;
    for moment in 0..10 {
        for stranger in 100..200 {
            let now = Instant(moment * interval_us / 5);
            let bytes = datagram(5, stranger, 1, &[]);
            gossip.handle_datagram(now, NodeId(stranger), &bytes).unwrap();
        }
    }
    assert_eq!(outputs(&mut gossip).len(), 2);
    assert_eq!(gossip.members().count(), 1, "a datagram alone makes nobody known");
}

#[test]
fn nobody_can_push_a_node_to_the_last_incarnation() {
    let mut gossip = acquainted(1, [2]);
    let incarnation = |gossip: &Gossip| gossip.member(NodeId(1)).unwrap().incarnation;
    for beyond in [INCARNATION_MAX / 2, INCARNATION_MAX] {
        gossip.handle_datagram(NOW, NodeId(2), &doubt(2, Status::Dead, 1, beyond)).unwrap();
        assert_eq!(incarnation(&gossip), 1);
    }
    let over = doubt(2, Status::Dead, 1, INCARNATION_MAX + 1);
    let refused = gossip.handle_datagram(NOW, NodeId(2), &over);
    assert_eq!(refused, Err(DecodeError::Malformed("incarnation")));
    let last = doubt(2, Status::Dead, 1, INCARNATION_MAX / 2 - 1);
    gossip.handle_datagram(NOW, NodeId(2), &last).unwrap();
    assert_eq!(incarnation(&gossip), INCARNATION_MAX / 2);
    gossip.update_state(NOW, NodeState { load: 1, ..at(1) }).unwrap();
    assert_eq!(incarnation(&gossip), INCARNATION_MAX / 2 + 1, "its own states still spread");
}

#[test]
fn a_restart_goes_above_the_former_life_however_little_they_differ() {
    let mut witness = acquainted(2, []);
    push_pull(&mut gossip(1), &mut witness);
    // The same incarnation with another state: the witness cannot tell which is newer, the node can.
    let state = NodeState { load: 5, ..at(1) };
    let mut again = Gossip::new(GossipConfig::default(), NodeId(1), state, 9, NOW).unwrap();
    push_pull(&mut again, &mut witness);
    assert_eq!(again.member(NodeId(1)).unwrap().incarnation, 2);
    push_pull(&mut again, &mut witness);
    assert_eq!(witness.member(NodeId(1)).unwrap().state.load, 5);
    // One that kept its members is above its former life before it meets anybody.
    let kept: Vec<Member> = again.members().cloned().collect();
    let mut third = gossip(1);
    third.restore_members(NOW, kept).unwrap();
    assert_eq!(third.member(NodeId(1)).unwrap().incarnation, 3);
    assert_eq!(third.status(NodeId(2)), Some(Status::Alive));
}

#[test]
fn push_pulls_are_spread_over_an_interval_that_fits_the_members() {
    // 200 members: four intervals.
    let firsts = (0..20).map(|seed| {
        let mut gossip = Gossip::new(GossipConfig::default(), NodeId(1), at(1), seed, NOW).unwrap();
        let state = Arc::new(at(0));
        let others = (2..=200).map(|other| member(other, Status::Alive, &state));
        gossip.restore_members(NOW, others).unwrap();
        while !outputs(&mut gossip).iter().any(|output| matches!(output, Output::PushPull { .. })) {
            let due = gossip.poll_timeout().unwrap();
            gossip.handle_timeout(due);
        }
        gossip.poll_timeout().unwrap().0
    });
    let firsts: Vec<u64> = firsts.collect();
    let longest = 4 * GossipConfig::default().push_pull_interval_us;
    assert!(firsts.iter().any(|&first| first > longest / 2), "{firsts:?}");
    assert!(firsts.iter().any(|&first| first < longest / 2), "{firsts:?}");
}

#[test]
fn older_claims_change_nothing_whatever_their_order() {
    let mut gossip = acquainted(1, [2, 3]);
    let claims = [(Status::Dead, 5), (Status::Suspect, 5), (Status::Dead, 4), (Status::Suspect, 1)];
    for (status, incarnation) in claims {
        let bytes = doubt(2, status, 3, incarnation);
        gossip.handle_datagram(NOW, NodeId(2), &bytes).unwrap();
        assert_eq!(gossip.status(NodeId(3)), Some(Status::Dead));
    }
    gossip.handle_datagram(NOW, NodeId(2), &doubt(2, Status::Left, 3, 5)).unwrap();
    assert_eq!(gossip.status(NodeId(3)), Some(Status::Left));
}

#[test]
fn local_health_is_bounded_and_stretches_the_probes() {
    let mut gossip = acquainted(1, 2..=200);
    let mut probes = Vec::new();
    while let Some(due) = gossip.poll_timeout()
        && due < Instant(200_000_000)
    {
        gossip.handle_timeout(due);
        for output in outputs(&mut gossip) {
            if let Output::Datagram { bytes, .. } = output
                && describe(&bytes).unwrap().starts_with("probe ")
            {
                probes.push(due);
            }
        }
    }
    assert_eq!(gossip.local_health(), LOCAL_HEALTH_MAX, "nobody answers: it is probably us");
    let pace = probes[probes.len() - 1].since(probes[probes.len() - 2]);
    assert_eq!(pace, 9 * gossip.config().probe_interval_us);
}

#[test]
fn many_members_at_once_are_no_rumours() {
    let mut joiner = gossip(1);
    let mut seed = acquainted(2, 3..=200);
    push_pull(&mut joiner, &mut seed);
    assert_eq!(joiner.members().count(), 200);
    outputs(&mut joiner);
    let mut told = BTreeSet::new();
    while let Some(due) = joiner.poll_timeout()
        && due < Instant(900_000)
    {
        joiner.handle_timeout(due);
        for output in outputs(&mut joiner) {
            if let Output::Datagram { bytes, .. } = output {
                let words = describe(&bytes).unwrap();
                told.extend(words.split('[').skip(1).map(|rumour| rumour.trim().to_owned()));
            }
        }
    }
    assert_eq!(told, BTreeSet::from(["2 alive 1]".to_owned()]));
}

#[test]
fn what_is_too_long_is_refused_and_changes_nothing() {
    let mut gossip = gossip(1);
    let states = [
        NodeState { zone: "z".repeat(65), ..at(1) },
        NodeState { software: "s".repeat(33), ..at(1) },
        NodeState { extra: vec![0; 257], ..at(1) },
    ];
    for state in states {
        let refused = gossip.update_state(NOW, state.clone());
        assert!(matches!(refused, Err(GossipError::TooLong { .. })), "{refused:?}");
        assert!(Gossip::new(GossipConfig::default(), NodeId(1), state, 1, NOW).is_err());
    }
    let long = "n".repeat(129);
    for register in [register(&long, 1, 1), register("n", 1, 4_097)] {
        let refused = gossip.set_register(NOW, &register);
        assert!(matches!(refused, Err(GossipError::TooLong { .. })), "{refused:?}");
    }
    assert_eq!(gossip.set_register(NOW, &register("", 1, 1)), Err(GossipError::EmptyName));
    assert_eq!(gossip.remove(NOW, NodeId(1)), Err(GossipError::UnknownMember));
    assert_eq!(gossip.remove(NOW, NodeId(7)), Err(GossipError::UnknownMember));
    assert_eq!(*gossip.member(NodeId(1)).unwrap().state, at(1));
    gossip.leave(NOW);
    assert!(gossip.is_leave_told(), "there is nobody to tell");
    assert_eq!(gossip.update_state(NOW, at(1)), Err(GossipError::Left));
    assert_eq!(outputs(&mut gossip), []);
}

/// A change that makes good settings bad.
type Change = fn(&mut GossipConfig);

#[test]
fn settings_out_of_range_are_refused_by_name() {
    GossipConfig::default().check().unwrap();
    GossipConfig::scaled(200_000).check().unwrap();
    let changes: [(&str, Change); 12] = [
        ("probe_interval_us", |c| c.probe_interval_us = 0),
        ("probe_interval_us", |c| c.probe_interval_us = u64::MAX),
        ("probe_timeout_us", |c| c.probe_timeout_us = 0),
        ("probe_timeout_us", |c| c.probe_timeout_us = c.probe_interval_us),
        ("indirect_probes", |c| c.indirect_probes = 17),
        ("suspicion_multiplier", |c| c.suspicion_multiplier = 0),
        ("suspicion_factor_max", |c| c.suspicion_factor_max = 0),
        ("gossip_interval_us", |c| c.gossip_interval_us = 999),
        ("gossip_fanout", |c| c.gossip_fanout = 0),
        ("retransmit_multiplier", |c| c.retransmit_multiplier = 0),
        ("push_pull_interval_us", |c| c.push_pull_interval_us = 0),
        ("reconnect_interval_us", |c| c.reconnect_interval_us = 0),
    ];
    for (name, change) in changes {
        let mut config = GossipConfig::default();
        change(&mut config);
        let Err(GossipError::Setting { field, .. }) = config.check() else { panic!("{name}") };
        assert_eq!(field, name);
    }
}

/// Messages of a small cluster with something of every kind to say.
fn messages() -> Vec<Vec<u8>> {
    let mut gossip = acquainted(1, 2..=5);
    gossip.set_register(NOW, &register("small", 1, 9)).unwrap();
    gossip.set_register(NOW, &register("large", 1, 4_000)).unwrap();
    gossip.handle_datagram(NOW, NodeId(2), &doubt(2, Status::Suspect, 3, 1)).unwrap();
    gossip.handle_datagram(NOW, NodeId(2), &doubt(2, Status::Dead, 4, 1)).unwrap();
    let mut messages = vec![datagram(3, 2, 1, &[5, 3])];
    while let Some(due) = gossip.poll_timeout()
        && due < Instant(20_000_000)
    {
        gossip.handle_timeout(due);
        for output in outputs(&mut gossip) {
            match output {
                Output::Datagram { bytes, .. } | Output::PushPull { bytes, .. } => {
                    assert!(bytes.len() <= DATAGRAM_SIZE_MAX || bytes[1] == 16);
                    messages.push(bytes);
                }
                _ => {}
            }
        }
    }
    messages
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever a peer sends, the machine's invariants hold, and it goes on.
    #[test]
    fn a_hostile_peer_breaks_nothing(
        steps in prop::collection::vec(
            (any::<prop::sample::Index>(), prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), 0..4_u8),
            1..40,
        ),
    ) {
        let messages = messages();
        let mut gossip = acquainted(7, 1..=5);
        let mut now = NOW;
        for (pick, mutations, way) in steps {
            let mut bytes = pick.get(&messages).clone();
            for (at, with) in mutations {
                let at = at.index(bytes.len());
                bytes[at] = with;
            }
            // Refusals are fine; a panic is not.
            let from = NodeId(1);
            let _ = match way {
                0 => gossip.handle_push_pull(now, from, &bytes).map(drop),
                1 => {
                    bytes[1] = 17;
                    gossip.handle_push_pull_answer(now, from, &bytes)
                }
                _ => gossip.handle_datagram(now, from, &bytes),
            };
            prop_assert!(outputs(&mut gossip).len() < 100);
            now = now.plus(300_000);
            gossip.handle_timeout(now);
            outputs(&mut gossip);
        }
        prop_assert!(gossip.member(NodeId(7)).unwrap().status == Status::Alive);
    }
}
