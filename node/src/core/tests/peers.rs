//! What peers may ask, and what hostile ones get.

use proptest::prelude::*;
use starling_client::codec::{Blob, List};
use starling_clock::{HybridTime, NodeId, Stamp};
use starling_storage::{Action, Event, KeyspaceId, RequestId};

use super::rig::*;
use crate::core::keyspaces::REGISTER_PREFIX;
use crate::core::peer::{PeerMessage, ReadAnswer, ReadQuery, WriteOutcome};
use crate::core::replica::encode_event;
use crate::core::{Input, settings as codec};
use crate::limits::{Limits, PEER_EVENTS_MAX};

fn event(rig: &Rig, key: &str, ms: u64) -> Event {
    Event {
        partition: rig.core.cluster().partition_of(key.as_bytes()),
        keyspace: KeyspaceId::of("default"),
        key: blob(key).0,
        stamp: Stamp::new(HybridTime::new(START_MS + ms, 0), NodeId(2)),
        request: RequestId { client: 5, sequence: ms },
        action: Action::Put,
        payload: blob("v").0,
    }
}

fn write(epoch: u64, direct: bool, events: Vec<Blob>) -> PeerMessage {
    PeerMessage::Write { op: 77, epoch, direct, provenance: 1, sync: true, events: List(events) }
}

fn outcomes(rig: &mut Rig, message: PeerMessage) -> Vec<WriteOutcome> {
    rig.say(2, message);
    match &rig.messages(2)[..] {
        [PeerMessage::Written { op: 77, outcomes }] => outcomes.0.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_event_of_a_message_is_judged_by_itself() {
    let mut rig = Rig::new(3, Limits { payload_size_max: 10, ..Limits::default() });
    rig.connect(2);
    let good = event(&rig, "good", 1);
    let elsewhere = Event { partition: (good.partition + 1) % 16, ..good.clone() };
    let large = Event { payload: vec![0; 11].into(), ..event(&rig, "large", 2) };
    let ahead = event(&rig, "ahead", 60_000);
    let newest = event(&rig, "good", 3);
    let before = rig.core.clock_last();
    let events = [&newest, &elsewhere, &large, &ahead, &good].map(encode_event);
    let mut events = Vec::from(events);
    events.push(Blob(vec![1, 2, 3].into()));
    let said = outcomes(&mut rig, write(1, true, events));
    let expected = [
        WriteOutcome::Applied,
        WriteOutcome::Invalid,
        WriteOutcome::Invalid,
        WriteOutcome::Skewed,
        WriteOutcome::Superseded(newest.stamp.into()),
        WriteOutcome::Invalid,
    ];
    assert_eq!(said, expected);
    assert!(before < rig.core.clock_last() && rig.core.clock_last() < ahead.stamp.time);
    // A copy is taken whatever its stamp is, and does not move the clock.
    let clock = rig.core.clock_last();
    let said = outcomes(&mut rig, write(1, false, vec![encode_event(&ahead), encode_event(&good)]));
    assert_eq!(said, [WriteOutcome::Applied, WriteOutcome::Applied]);
    let said = outcomes(&mut rig, write(1, false, vec![encode_event(&ahead)]));
    assert_eq!((said, rig.core.clock_last()), (vec![WriteOutcome::Duplicate], clock));
}

#[test]
fn messages_out_of_bounds_are_refused() {
    let mut rig = Rig::new(3, Limits::default());
    rig.connect(2);
    let good = encode_event(&event(&rig, "good", 1));
    let epoch = outcomes(&mut rig, write(2, true, vec![good.clone()]));
    assert_eq!(epoch, [WriteOutcome::NotHome]);
    let many = outcomes(&mut rig, write(1, true, vec![good.clone(); PEER_EVENTS_MAX + 1]));
    assert_eq!(many.len(), PEER_EVENTS_MAX);
    assert!(many.iter().all(|outcome| *outcome == WriteOutcome::Invalid));
    // A node that is no member is told so.
    rig.say(9, write(1, true, vec![good]));
    let messages = rig.messages(9);
    let [PeerMessage::Written { outcomes, .. }] = &messages[..] else { panic!("{messages:?}") };
    assert_eq!(**outcomes, [WriteOutcome::NotHome]);
    for (query, epoch, expected) in [
        (ReadQuery::Digests { first: 0, last: 16 }, 1, ReadAnswer::Invalid),
        (ReadQuery::Digests { first: 1, last: 0 }, 1, ReadAnswer::Invalid),
        (ReadQuery::Digests { first: 0, last: 15 }, 2, ReadAnswer::NotHome),
        (ReadQuery::Digests { first: 0, last: 15 }, 1, ReadAnswer::Digests(List(vec![]))),
    ] {
        rig.say(2, PeerMessage::Read { op: 5, epoch, query });
        assert_eq!(rig.messages(2), [PeerMessage::ReadDone { op: 5, answer: expected }]);
    }
    assert_eq!(rig.core.flights(), 1, "anti-entropy alone stays");
}

#[test]
fn a_peer_is_served_so_many_requests_at_a_time() {
    let mut rig = Rig::new(3, Limits { served_per_peer_max: 1, ..Limits::default() });
    rig.connect(2);
    rig.hold = true;
    let good = encode_event(&event(&rig, "good", 1));
    rig.say(2, write(1, true, vec![good.clone()]));
    assert_eq!(outcomes(&mut rig, write(1, true, vec![good])), [WriteOutcome::Overloaded]);
    rig.hold = false;
    rig.run();
    let done = List(vec![WriteOutcome::Applied]);
    assert_eq!(rig.messages(2), [PeerMessage::Written { op: 77, outcomes: done }]);
}

#[test]
fn a_register_is_answered_once_it_is_on_disk() {
    let mut rig = Rig::new(3, Limits::default());
    rig.connect(2);
    let register = |name: &str, value: Vec<u8>| PeerMessage::Register {
        op: 3,
        name: blob(name),
        stamp: Stamp::new(HybridTime::new(START_MS, 0), NodeId(2)).into(),
        value: value.into(),
    };
    let value = codec::encode(&settings("orders", 3));
    rig.hold = true;
    rig.say(2, register(&format!("{REGISTER_PREFIX}orders"), value.clone()));
    assert_eq!(rig.messages(2), []);
    rig.hold = false;
    rig.run();
    assert_eq!(rig.messages(2), [PeerMessage::Registered { op: 3 }]);
    // One from the future is not taken, nor spread.
    let ahead = Stamp::new(HybridTime::new(START_MS + 60_000, 0), NodeId(2));
    let early_value = Blob(codec::encode(&settings("early", 2)).into());
    let early = || PeerMessage::Register {
        op: 4,
        name: blob("keyspace/early"),
        stamp: ahead.into(),
        value: early_value.clone(),
    };
    rig.say(2, early());
    assert_eq!(rig.messages(2), []);
    assert!(rig.core.keyspaces().get("early").is_none());
    assert!(rig.core.membership.gossip.register("keyspace/early").is_none());
    rig.pass(59_600);
    rig.say(2, early());
    assert!(rig.messages(2).contains(&PeerMessage::Registered { op: 4 }));
    assert!(rig.core.keyspaces().get("orders").is_some());
    // What is no keyspace's is not answered.
    for (name, value) in
        [("keyspace/other", value.clone()), ("other", value), ("keyspace/orders", vec![1])]
    {
        rig.say(2, register(name, value));
        assert_eq!(rig.messages(2), []);
    }
    assert_eq!(rig.core.counters().malformed, 3);
    let rig = rig.restart();
    assert!(rig.core.keyspaces().get("orders").is_some());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever a peer sends, nothing panics, and nothing stays in flight.
    #[test]
    fn hostile_peers_are_survived(
        blobs in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..90), 0..5),
        ops in prop::collection::vec(any::<u64>(), 1..5),
        small in 0..4_u64,
        direct in any::<bool>(),
        provenance in any::<u8>(),
    ) {
        let mut rig = Rig::new(3, Limits::default());
        rig.connect(2);
        let header = rig.header();
        rig.send(header, put("k", "v"));
        let blobs: Vec<Blob> = blobs.into_iter().map(Blob::from).collect();
        for op in ops.into_iter().chain([small << 16, small << 16 | 1, small << 16 | 2]) {
            let events = List(blobs.clone());
            let bytes = blobs.first().cloned().unwrap_or_default();
            let answers = [
                ReadAnswer::Events { events: events.clone(), more: true },
                ReadAnswer::Event { event: Some(bytes.clone()), cut: true },
                ReadAnswer::Digests(List(vec![(u32::MAX, 1, 1)])),
            ];
            let mut messages = vec![
                PeerMessage::Write { op, epoch: 1, direct, provenance, sync: false, events },
                PeerMessage::Written { op, outcomes: List(vec![]) },
                PeerMessage::Registered { op },
                PeerMessage::Register {
                    op,
                    name: bytes.clone(),
                    stamp: Stamp::MAX.into(),
                    value: bytes.clone(),
                },
            ];
            messages.extend(answers.map(|answer| PeerMessage::ReadDone { op, answer }));
            for message in messages {
                rig.say(2, message);
            }
            let bytes = bytes.0;
            let from = NodeId(2);
            rig.input(Input::Gossip { from, bytes: bytes.clone() });
            rig.input(Input::PushPull { from, exchange: op, bytes: bytes.clone() });
            rig.input(Input::PushPullAnswer { from, bytes });
        }
        rig.pass(5000);
        prop_assert_eq!(rig.core.in_flight(), 0);
    }
}
