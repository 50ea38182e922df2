//! A memtable beside a sorted map: any events in any order, every way to read.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::Bulk;
use super::*;
use crate::event::EventRef;
use crate::types::Digest;

/// Few distinct parts, so that keys share windows, events repeat and lists are long enough to be searched.
fn any_event() -> impl Strategy<Value = Event> {
    let byte = prop::sample::select(vec![0_u8, 1, b'a', 0xff]);
    let key = prop_oneof![
        prop::collection::vec(byte.clone(), 1..4),
        prop::collection::vec(byte, 1..3)
            .prop_map(|end| [&b"a prefix that is shared"[..], &end].concat()),
    ];
    let partition = prop::sample::select(vec![0_u32, 1, 256, u32::MAX]);
    let keyspace = prop::sample::select(vec![0_u64, 1, 1 << 32, u64::MAX]);
    (partition, keyspace, key, 1_u64..12)
        .prop_map(|(partition, keyspace, key, ms)| event(partition, keyspace, &key, ms))
}

/// Where to begin: an event's internal key, cut or made longer.
fn bound(event: &Event, cut: usize) -> Vec<u8> {
    let mut bound = internal(event);
    match cut {
        0 => bound.push(0),
        cut => bound.truncate(bound.len() + 1 - cut.min(bound.len() + 1)),
    }
    bound
}

fn check_walks(memtable: &Memtable, model: &BTreeMap<Vec<u8>, Event>, bound: &[u8]) {
    let mut cursor = memtable.seek(bound);
    for (key, event) in model.range(bound.to_vec()..) {
        assert_eq!(cursor.key(), Some(&key[..]));
        assert_eq!(
            cursor.entry().unwrap().stored().to_stored().into_event(key).as_ref(),
            Some(event)
        );
        cursor.advance();
    }
    assert_eq!(cursor.key(), None);
    let mut cursor = memtable.seek_before(bound);
    for key in model.range(..bound.to_vec()).rev().map(|(key, _)| key) {
        assert_eq!(cursor.key(), Some(&key[..]));
        cursor.retreat();
    }
    assert_eq!(cursor.key(), None);
    let past = model.range(bound.to_vec()..).map(|(key, _)| key).find(|key| *key != bound);
    assert_eq!(memtable.seek_past(bound).key(), past.map(|key| &key[..]));
}

fn check_points(memtable: &Memtable, model: &BTreeMap<Vec<u8>, Event>, asked: &Event) {
    assert_eq!(memtable.contains(&internal(asked)), model.contains_key(&internal(asked)));
    let versions = model.values().filter(|event| {
        (event.partition, event.keyspace, &event.key)
            == (asked.partition, asked.keyspace, &asked.key)
    });
    let versions: BTreeMap<Stamp, &Event> = versions.map(|event| (event.stamp, event)).collect();
    assert_eq!(newest(memtable, asked), versions.keys().next_back().copied());
    let expected = versions.range(..=asked.stamp).next_back().map(|(_, &event)| event.clone());
    assert_eq!(get(memtable, asked, asked.stamp), expected);
    let mut digest = Digest::default();
    for event in model.values().filter(|event| event.partition == asked.partition) {
        digest.add(event.id().hash());
    }
    assert_eq!(memtable.digest(asked.partition), digest);
}

proptest! {
    #[test]
    fn it_reads_as_a_sorted_map_does(
        events in prop::collection::vec(any_event(), 1..400),
        asked in prop::collection::vec((any_event(), 0..60_usize), 1..12),
    ) {
        let (memtable, mut model) = (Memtable::default(), BTreeMap::new());
        for event in events {
            let inserted = memtable.insert(&event);
            let new = !model.contains_key(&internal(&event));
            prop_assert_eq!(inserted.new, new);
            model.entry(internal(&event)).or_insert(event);
        }
        prop_assert_eq!(memtable.events(), model.len());
        for (asked, cut) in asked {
            check_walks(&memtable, &model, &bound(&asked, cut));
            check_points(&memtable, &model, &asked);
        }
    }

    #[test]
    fn one_filled_in_bulk_reads_as_a_sorted_map_does_and_takes_inserts(
        bulk in prop::collection::vec(any_event(), 0..400),
        events in prop::collection::vec(any_event(), 0..100),
        asked in prop::collection::vec((any_event(), 0..60_usize), 1..8),
    ) {
        let (memtable, mut model) = (Arc::new(Memtable::default()), BTreeMap::new());
        let mut filled = Bulk::new(Arc::clone(&memtable));
        for (place, mut event) in bulk.into_iter().enumerate() {
            // Of two with one identity the first is to stay.
            event.payload = format!("{place}").into();
            filled.add(&reference(&event));
            prop_assert!(memtable.seek(&[]).key().is_none(), "not yet");
            model.entry(internal(&event)).or_insert(event);
        }
        filled.finish();
        for step in 0..2 {
            prop_assert_eq!(memtable.events(), model.len());
            for (asked, cut) in &asked {
                check_walks(&memtable, &model, &bound(asked, *cut));
                check_points(&memtable, &model, asked);
            }
            for event in events.iter().filter(|_| step == 0) {
                let new = !model.contains_key(&internal(event));
                prop_assert_eq!(memtable.insert(event).new, new);
                model.entry(internal(event)).or_insert(event.clone());
            }
        }
    }

    #[test]
    fn the_same_inserts_make_the_same_memtable(events in prop::collection::vec(any_event(), 1..200)) {
        let [left, right] = [Memtable::default(), Memtable::default()];
        for memtable in [&left, &right] {
            for event in &events {
                memtable.insert(event);
            }
        }
        prop_assert_eq!(left.bytes(), right.bytes());
        prop_assert_eq!(left.allocated_bytes(), right.allocated_bytes());
    }
}

fn reference(event: &Event) -> EventRef<'_> {
    EventRef {
        partition: event.partition,
        keyspace: event.keyspace,
        key: &event.key,
        stamp: event.stamp,
        request: event.request,
        action: event.action,
        payload: &event.payload,
    }
}

/// Enough for leaves, and an index, of some size; in an order of their own.
#[test]
fn a_hundred_thousand_keys_in_bulk_are_found_and_in_order() {
    let memtable = Arc::new(Memtable::default());
    let mut bulk = Bulk::new(Arc::clone(&memtable));
    let of = |number: u64| {
        let key = (number * 61_981 % 100_000).to_be_bytes();
        event(u32::from(number.is_multiple_of(3)), 5, &key, 1 + number)
    };
    for number in 0..100_000 {
        bulk.add(&reference(&of(number)));
    }
    let (expected, one_by_one) = (bulk.bytes(), Memtable::default());
    bulk.finish();
    for number in 0..100_000 {
        one_by_one.insert(&of(number));
        assert_eq!(newest(&memtable, &of(number)), Some(of(number).stamp));
        assert_eq!(newest(&memtable, &Event { partition: 2, ..of(number) }), None);
    }
    let (mut left, mut right) = (memtable.seek(&[]), one_by_one.seek(&[]));
    while let Some(key) = left.key() {
        assert_eq!(right.key(), Some(key));
        left.advance();
        right.advance();
    }
    assert_eq!(right.key(), None);
    let bytes = memtable.bytes();
    assert!(bytes.abs_diff(expected) < bytes / 20, "{expected} bytes expected of {bytes}");
    let bytes = one_by_one.bytes();
    assert!(bytes.abs_diff(memtable.bytes()) < bytes / 10, "{} and {bytes}", memtable.bytes());
}

/// Keys whose first differing bit, and those behind it, say little: what is cheap to sort by and to search by leaves most of
/// them equal.
#[test]
fn keys_that_their_windows_do_not_tell_apart_are_found_in_a_bulk() {
    let key = |number: u64| match number % 4 {
        0 => format!("a the same for some {number:06}"),
        1 => format!("z the same for some {number:06}"),
        2 => format!("b{:03}-------{number:06}", number % 32),
        _ => format!("b{:03}", number % 7),
    };
    let of = |number: u64| event(1, 5, key(number * 7_919 % 8_000).as_bytes(), 1 + number % 5_000);
    let (memtable, mut model) = (Arc::new(Memtable::default()), BTreeMap::new());
    let mut bulk = Bulk::new(Arc::clone(&memtable));
    for event in (0..8_000).map(of) {
        bulk.add(&reference(&event));
        model.entry(internal(&event)).or_insert(event);
    }
    bulk.finish();
    check_walks(&memtable, &model, &[]);
    for event in (0..8_000).map(of) {
        let mut cursor = memtable.seek(&internal(&event));
        assert_eq!(cursor.key(), Some(&internal(&event)[..]));
        cursor.retreat();
        let before = model.range(..internal(&event)).next_back();
        assert_eq!(cursor.key(), before.map(|(key, _)| &key[..]));
    }
    for number in (0..8_000).step_by(97) {
        check_points(&memtable, &model, &of(number));
    }
    for number in 0..2_000 {
        let event = event(1, 5, key(number).as_bytes(), 6_000);
        memtable.insert(&event);
        model.insert(internal(&event), event);
    }
    check_walks(&memtable, &model, &[]);
}

/// Many keys, so that the index grows and lists get high, in an order that rises by stretches.
#[test]
fn a_hundred_thousand_keys_are_found_and_in_order() {
    let memtable = Memtable::default();
    let key = |number: u64| (number % 1000 * 100 + number / 1000).to_be_bytes();
    for number in 0..100_000_u64 {
        memtable.insert(&event(u32::from(number.is_multiple_of(2)), 5, &key(number), 1 + number));
    }
    for number in 0..100_000_u64 {
        let of = event(u32::from(number.is_multiple_of(2)), 5, &key(number), 1 + number);
        assert_eq!(newest(&memtable, &of), Some(of.stamp));
        assert_eq!(newest(&memtable, &Event { partition: 2, ..of }), None);
    }
    let (mut cursor, mut last, mut count) = (memtable.seek(&[]), Vec::new(), 0);
    while let Some(key) = cursor.key() {
        assert!(last.as_slice() < key);
        last = key.to_vec();
        count += 1;
        cursor.advance();
    }
    assert_eq!(count, 100_000);
}
