//! What a coordinator does with its replicas: quorums, re-stamps, repetitions, hints, keyspaces, across a restart too.

use starling_client::codec::{List, WireStamp};
use starling_client::wire::{Header, Level, Request, Response, Version};
use starling_clock::{HybridTime, NodeId, Stamp};

use super::rig::*;
use crate::core::peer::{PeerMessage, ReadAnswer, WriteOutcome};
use crate::core::replica::encode_event;
use crate::limits::{Limits, PEER_EVENTS_MAX, RESENDS_MAX};

fn written(response: Option<Response>) -> (Stamp, bool, u8) {
    match response {
        Some(Response::Written { stamp, superseded, acks }) => (stamp.0, superseded, acks),
        other => panic!("{other:?}"),
    }
}

fn value(response: Response) -> Option<Version> {
    match response {
        Response::Value { version } => version,
        other => panic!("{other:?}"),
    }
}

fn three() -> Rig {
    let mut rig = Rig::new(3, Limits::default());
    rig.connect(2);
    rig.connect(3);
    rig
}

#[test]
fn one_node_keeps_what_it_took_over_a_restart() {
    let mut rig = Rig::new(1, Limits::default());
    let (first, ..) = written(Some(rig.ask(put("k", "v"))));
    let created = rig.ask(Request::KeyspaceCreate { settings: settings("orders", 1) });
    assert_eq!(created, Response::KeyspaceCreated { nodes: 1 });
    let mut rig = rig.restart();
    assert!(rig.core.clock_last() > first.time, "the clock starts above all it gave");
    let found = value(rig.ask(get("k"))).unwrap();
    assert_eq!((found.stamp.0, found.payload), (first, blob("v")));
    let Response::Keyspaces(keyspaces) = rig.ask(Request::KeyspaceList) else { panic!() };
    let names: Vec<_> = keyspaces.iter().map(|keyspace| keyspace.name.as_str()).collect();
    assert_eq!(names, ["default", "orders"]);
    // The wall clock jumps back: stamps do not.
    rig.now.wall_ms -= 3_600_000;
    let (second, ..) = written(Some(rig.ask(put("k", "w"))));
    assert!(first < second);
}

#[test]
fn a_keyspace_is_made_after_an_idle_time_too() {
    let mut rig = Rig::new(1, Limits::default());
    rig.pass(60_000);
    let created = rig.ask(Request::KeyspaceCreate { settings: settings("orders", 1) });
    assert_eq!(created, Response::KeyspaceCreated { nodes: 1 });
    let again = rig.ask(Request::KeyspaceCreate { settings: settings("orders", 1) });
    assert_eq!(again, Response::KeyspaceCreated { nodes: 1 });
}

#[test]
fn a_quorum_is_enough_and_the_silent_gets_a_hint() {
    let mut rig = three();
    let header = rig.header();
    let id = rig.send(header, put("k", "v"));
    let (op, direct, event) = rig.write_to(2);
    assert!(direct);
    assert_eq!(rig.answer(id), None, "one of three has it");
    // Neither a stranger's answer nor another node's counts.
    rig.written(3, op, WriteOutcome::Applied);
    rig.written(9, op, WriteOutcome::Applied);
    assert_eq!(rig.answer(id), None);
    rig.written(2, op, WriteOutcome::Applied);
    assert_eq!(written(rig.answer(id)), (event.stamp, false, 2));
    assert_eq!(rig.hints(3), 0);
    rig.pass(1000);
    assert_eq!(rig.hints(3), 1, "it had a second");
}

#[test]
fn hints_are_delivered_once_their_target_is_back() {
    let mut rig = three();
    rig.input(crate::core::Input::PeerDisconnected { peer: NodeId(3) });
    let header = rig.header();
    let id = rig.send(header, put("k", "v"));
    let (op, _, event) = rig.write_to(2);
    rig.written(2, op, WriteOutcome::Applied);
    written(rig.answer(id));
    assert_eq!(rig.hints(3), 1);
    assert_eq!(rig.messages(3), []);
    rig.connect(3);
    let messages = rig.messages(3);
    let [PeerMessage::Write { op, direct: false, sync: true, provenance: 2, events, .. }] =
        &messages[..]
    else {
        panic!("{messages:?}")
    };
    assert_eq!(**events, [encode_event(&event)]);
    // Not taken: again later. Taken: done.
    rig.written(3, *op, WriteOutcome::Overloaded);
    assert_eq!(rig.hints(3), 1);
    rig.pass(100);
    let (op, ..) = rig.write_to(3);
    rig.written(3, op, WriteOutcome::Applied);
    assert_eq!(rig.hints(3), 0);
    assert_eq!(rig.core.counters().hints_delivered, 1);
}

#[test]
fn a_batch_of_the_smallest_hints_is_no_larger_than_a_peer_takes() {
    let mut rig = three();
    rig.input(crate::core::Input::PeerDisconnected { peer: NodeId(3) });
    let count = 6000;
    for _ in 0..count {
        let header = rig.header();
        rig.send(header, put("k", ""));
        let (op, ..) = rig.write_to(2);
        rig.written(2, op, WriteOutcome::Applied);
    }
    assert_eq!(rig.hints(3), count);
    rig.connect(3);
    let mut delivered = 0;
    while rig.hints(3) > 0 {
        let messages = rig.messages(3);
        let [PeerMessage::Write { op, events, .. }] = &messages[..] else { panic!("no batch") };
        assert!((1..=PEER_EVENTS_MAX).contains(&events.len()), "{} events", events.len());
        delivered += events.len() as u64;
        let outcomes = vec![WriteOutcome::Applied; events.len()].into();
        rig.say(3, PeerMessage::Written { op: *op, outcomes });
    }
    assert_eq!(delivered, count);
}

#[test]
fn reads_of_one_key_go_to_all_its_replicas() {
    for every in 1..5 {
        let mut rig = three();
        let mut asked = [0, 0];
        for number in 0..100 {
            let header = rig.header();
            rig.send(header, get("hot"));
            let by_node = [2, 3].map(|node| rig.messages(node).len());
            assert_eq!(by_node.iter().sum::<usize>(), 1, "one besides this node");
            if number % every == 0 {
                asked = [asked[0] + by_node[0], asked[1] + by_node[1]];
            }
        }
        let reads: usize = asked.iter().sum();
        assert!(asked.iter().all(|&count| count * 10 >= reads * 3), "every {every}: {asked:?}");
    }
}

#[test]
fn a_write_on_its_way_when_a_connection_broke_is_sent_again() {
    let mut rig = three();
    let header = rig.header();
    let id = rig.send(header, put_at("k", "v", Some(Level::All)));
    let (lost, _, event) = rig.write_to(2);
    let (op, ..) = rig.write_to(3);
    rig.written(3, op, WriteOutcome::Applied);
    // Another connection takes the place of the broken one.
    rig.connect(2);
    let (op, direct, again) = rig.write_to(2);
    assert!(direct && again == event && op != lost);
    rig.written(2, op, WriteOutcome::Duplicate);
    assert_eq!(written(rig.answer(id)), (event.stamp, false, 3));
    // However often it breaks, a write is sent a bounded number of times.
    let header = rig.header();
    rig.send(header, put_at("other", "v", Some(Level::All)));
    let sent: usize = (0..100)
        .map(|_| {
            rig.connect(2);
            let is_write =
                |message: &&PeerMessage| matches!(message, PeerMessage::Write { direct: true, .. });
            rig.messages(2).iter().filter(is_write).count()
        })
        .sum();
    assert_eq!(sent, 1 + RESENDS_MAX as usize);
}

#[test]
fn a_newer_stamp_is_passed() {
    let mut rig = three();
    let header = rig.header();
    let id = rig.send(header, put("k", "v"));
    let (op, _, first) = rig.write_to(2);
    let newest = Stamp::new(first.stamp.time.plus_ms(100), NodeId(2));
    rig.messages(3);
    rig.written(2, op, WriteOutcome::Superseded(newest.into()));
    let (op, direct, second) = rig.write_to(2);
    assert!(direct && newest < second.stamp && second.request == first.request);
    rig.written(2, op, WriteOutcome::Applied);
    assert_eq!(written(rig.answer(id)), (second.stamp, false, 2));
    assert_eq!(rig.core.counters().restamps, 1);
}

#[test]
fn a_stamp_too_far_ahead_is_not_followed() {
    let mut rig = three();
    let header = rig.header();
    let id = rig.send(header, put("k", "v"));
    let (op, _, first) = rig.write_to(2);
    let newest = Stamp::new(HybridTime::new(START_MS + 100_000, 0), NodeId(2));
    rig.written(2, op, WriteOutcome::Superseded(newest.into()));
    assert!(rig.core.clock_last() < newest.time);
    let (op, direct, second) = rig.write_to(2);
    assert!(!direct);
    rig.written(2, op, WriteOutcome::Applied);
    assert_eq!((second.stamp, written(rig.answer(id))), (first.stamp, (first.stamp, true, 2)));
}

#[test]
fn a_repetition_joins_or_gets_the_outcome() {
    let mut rig = three();
    let header = rig.header();
    let first = rig.send(header, put("k", "v"));
    let again = Header { attempt: 1, ..header };
    let second = rig.send(again, put("k", "v"));
    let (op, ..) = rig.write_to(2);
    rig.written(2, op, WriteOutcome::Applied);
    let outcome = written(rig.answer(first));
    assert_eq!(written(rig.answer(second)), outcome);
    let third = rig.send(again, put("k", "v"));
    assert_eq!(written(rig.answer(third)), outcome);
    assert_eq!(rig.core.counters().writes, 1);
    assert_eq!(rig.core.in_flight(), 0);
}

#[test]
fn a_repetition_elsewhere_finds_the_event() {
    let mut rig = three();
    // Another coordinator's attempt reached node 2 only.
    let header = Header { attempt: 1, ..rig.header() };
    let id = rig.send(header, put("k", "v"));
    let mut earlier = None;
    for node in [2, 3] {
        for message in rig.messages(node) {
            let PeerMessage::Read { op, .. } = message else { panic!("{message:?}") };
            earlier = Some((node, op));
        }
    }
    let (node, op) = earlier.expect("a quorum needs one more than this node");
    let stamp = Stamp::new(HybridTime::new(START_MS - 50, 0), NodeId(3));
    let event = starling_storage::Event {
        partition: rig.core.cluster().partition_of(b"k"),
        keyspace: starling_storage::KeyspaceId::of("default"),
        key: blob("k").0,
        stamp,
        request: starling_storage::RequestId {
            client: header.request.client,
            sequence: header.request.sequence,
        },
        action: starling_storage::Action::Put,
        payload: blob("v").0,
    };
    let events = List(vec![encode_event(&event)]);
    rig.read_done(node, op, ReadAnswer::Events { events, more: false });
    // This node lacked it and was repaired; now the same event is written everywhere.
    let (op, direct, copy) = rig.write_to(2);
    assert!(!direct);
    assert_eq!(copy, event);
    rig.written(2, op, WriteOutcome::Duplicate);
    assert_eq!(written(rig.answer(id)), (stamp, false, 2));
}

#[test]
fn any_is_taken_while_all_replicas_are_away() {
    let mut rig = Rig::new(5, Limits::default());
    let own = NodeId(1);
    // A key that this node is no home of.
    let is_away = |rig: &mut Rig, key: &str| {
        let partition = rig.core.cluster().partition_of(key.as_bytes());
        !rig.core.cluster.homes(3, partition).contains(&own)
    };
    let keys: Vec<String> = (0..100).map(|number| format!("key-{number}")).collect();
    let key = keys.iter().find(|key| is_away(&mut rig, key)).unwrap();
    let header = rig.header();
    let id = rig.send(header, put_at(key, "v", Some(Level::Any)));
    let (_, superseded, acks) = written(rig.answer(id));
    assert!(!superseded && acks == 0);
    let hints: u64 = (2..=5).map(|node| rig.hints(node)).sum();
    assert_eq!(hints, 3);
}

#[test]
fn a_read_repairs_before_it_answers() {
    let mut rig = three();
    let header = rig.header();
    let id = rig.send(header, put("k", "v"));
    let (op, _, event) = rig.write_to(2);
    rig.written(2, op, WriteOutcome::Applied);
    written(rig.answer(id));
    rig.outputs.clear();
    let header = rig.header();
    let id = rig.send(header, get("k"));
    let asked: Vec<_> = [2, 3]
        .into_iter()
        .flat_map(|node| rig.messages(node).into_iter().map(move |message| (node, message)))
        .collect();
    let [(node, PeerMessage::Read { op, .. })] = asked[..] else { panic!("{asked:?}") };
    rig.read_done(node, op, ReadAnswer::Event { event: None, cut: false });
    assert_eq!(rig.answer(id), None);
    let (op, direct, repair) = rig.write_to(node);
    assert!(!direct && repair == event);
    rig.written(node, op, WriteOutcome::Applied);
    let found = value(rig.answer(id).unwrap()).unwrap();
    assert_eq!(found.stamp, WireStamp(event.stamp));
    assert_eq!(rig.core.counters().read_repairs, 1);
}

#[test]
fn a_keyspace_needs_a_majority_on_disk() {
    let mut rig = Rig::new(3, Limits::default());
    rig.connect(2);
    let header = rig.header();
    let create = Request::KeyspaceCreate { settings: settings("orders", 3) };
    let id = rig.send(header, create);
    assert_eq!(rig.answer(id), None, "this node has it, a majority not");
    let messages = rig.messages(2);
    let [PeerMessage::Register { op, .. }] = &messages[..] else { panic!("{messages:?}") };
    rig.say(2, PeerMessage::Registered { op: *op });
    assert_eq!(rig.answer(id), Some(Response::KeyspaceCreated { nodes: 2 }));
    // Without an answer it is unknown.
    let header = rig.header();
    let id = rig.send(header, Request::KeyspaceCreate { settings: settings("other", 3) });
    rig.pass(2000);
    assert_eq!(code_of(rig.answer(id).unwrap()), starling_client::wire::ErrorCode::Timeout);
    assert_eq!(rig.core.in_flight(), 0);
}
