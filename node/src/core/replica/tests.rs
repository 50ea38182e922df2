//! What peers send is decoded or refused, and goes round unchanged.

use proptest::prelude::*;
use starling_client::codec::{Blob, WireStamp};
use starling_client::wire::KEY_SIZE_MAX;
use starling_clock::Stamp;
use starling_storage::{Action, HistoryRetention};

use super::testing::{KEYSPACE, event, partition_of, stamp};
use super::*;

#[test]
fn an_answer_goes_round() {
    let event = event(b"key", 5, Action::Put, b"payload");
    let answers = [
        ReplicaAnswer::Event { event: None, cut: false },
        ReplicaAnswer::Event { event: Some(event.clone()), cut: true },
        ReplicaAnswer::Events { events: vec![event.clone()], more: true },
        ReplicaAnswer::Scanned {
            events: vec![event.clone()],
            covered: Some((event.partition, event.key.clone())),
        },
        ReplicaAnswer::Digests(vec![(1, 2, 3)]),
        ReplicaAnswer::Declined(Declined::NotHome),
        ReplicaAnswer::Declined(Declined::Overloaded),
        ReplicaAnswer::Declined(Declined::Damaged),
        ReplicaAnswer::Declined(Declined::Malformed),
    ];
    for answer in answers {
        let wire = answer.clone().into_wire();
        assert_eq!(ReplicaAnswer::from_wire(wire, partition_of), answer);
    }
}

#[test]
fn an_event_in_the_wrong_partition_or_with_a_tail_is_refused() {
    let mut wrong = event(b"key", 5, Action::Put, b"payload");
    let mut tail = encode_event(&wrong).to_vec();
    tail.push(0);
    assert_eq!(decode_event(&Blob(tail.into()), partition_of), None);
    wrong.partition += 1;
    let answer = ReadAnswer::Events { events: vec![encode_event(&wrong)].into(), more: false };
    assert_eq!(
        ReplicaAnswer::from_wire(answer, partition_of),
        ReplicaAnswer::Declined(Declined::Malformed)
    );
}

#[test]
fn a_query_out_of_bounds_is_none() {
    let place = |query: &ReadQuery| storage_request(query, partition_of);
    let get = |key: Vec<u8>| ReadQuery::Get {
        keyspace: KEYSPACE.0,
        key: key.into(),
        at: WireStamp(Stamp::MAX),
        payload_size_max: 1,
    };
    assert!(place(&get(vec![1; KEY_SIZE_MAX])).is_some());
    assert!(place(&get(vec![1; KEY_SIZE_MAX + 1])).is_none());
    assert!(place(&get(Vec::new())).is_none());
    let events =
        |limit| ReadQuery::PartitionEvents { partition: 0, after: None, limit, ids_only: true };
    assert!(place(&events(0)).is_none());
    assert!(place(&events(1)).is_some());
    assert!(place(&events(u32::MAX)).is_none());
    assert!(place(&ReadQuery::Digests { first: 2, last: 1 }).is_none());
}

#[test]
fn retention_counts_versions_and_the_time_since_they_were_replaced() {
    let keeps = |versions_max, age_ms_max, rank, newer| {
        is_retained(HistoryRetention { versions_max, age_ms_max }, rank, newer, 1000)
    };
    assert!(keeps(Some(1), Some(0), 0, None), "the newest always stays");
    assert!(!keeps(Some(1), None, 1, Some(stamp(900))));
    assert!(keeps(Some(2), None, 1, Some(stamp(900))));
    assert!(keeps(None, Some(100), 9, Some(stamp(900))));
    assert!(!keeps(None, Some(99), 9, Some(stamp(900))));
}

proptest! {
    #[test]
    fn any_bytes_are_an_event_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
        if let Some(event) = decode_event(&Blob(bytes.clone().into()), partition_of) {
            prop_assert_eq!(encode_event(&event).to_vec(), bytes);
        }
    }
}
