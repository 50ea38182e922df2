//! What one memtable does with a few events, and what it costs.

use super::*;
use crate::tree::memtable::Inserted;
use crate::tree::memtable::arena::{APART_SIZE_MIN, BLOCK_SIZE};

#[test]
fn an_event_counts_once() {
    let memtable = Memtable::default();
    assert_eq!((memtable.bytes(), memtable.allocated_bytes()), (0, 0));
    let first = event(1, 2, b"a", 1);
    assert_eq!(memtable.insert(&first), Inserted { new: true, previous: None });
    let before = (memtable.bytes(), memtable.digest(1));
    let another = Event { payload: Bytes::from_static(b"another"), ..first.clone() };
    assert_eq!(memtable.insert(&another), Inserted { new: false, previous: Some(stamp(1)) });
    assert_eq!((memtable.bytes(), memtable.digest(1)), before);
    assert_eq!(get(&memtable, &first, Stamp::MAX), Some(first), "the first one stays");
}

#[test]
fn an_insert_tells_what_was_the_newest() {
    let memtable = Memtable::default();
    for (ms, new, previous) in [
        (5, true, None),
        (3, true, Some(5)),
        (9, true, Some(5)),
        (3, false, Some(9)),
        (9, false, Some(9)),
    ] {
        let inserted = memtable.insert(&event(0, 0, b"key", ms));
        assert_eq!(inserted, Inserted { new, previous: previous.map(stamp) });
    }
    assert_eq!(memtable.events(), 3);
}

#[test]
fn a_cursor_goes_in_the_order_of_internal_keys_over_partitions_and_keyspaces() {
    let memtable = Memtable::default();
    let ordered = [
        event(0, 1, b"b", 1),
        event(0, 7, b"a", 2),
        event(0, 7, b"a", 1),
        event(0, 7, b"b", 1),
        event(3, 0, b"", 1),
        event(256, 0, b"a", 1),
    ];
    for index in [3, 0, 5, 2, 4, 1] {
        memtable.insert(&ordered[index]);
    }
    let mut cursor = memtable.seek(&[]);
    for event in &ordered {
        assert_eq!(cursor.key(), Some(&internal(event)[..]));
        assert_eq!(cursor.entry().unwrap().stored().payload, event.payload);
        let entry = cursor.entry().expect("on an event");
        assert_eq!((entry.stamp(), entry.stored().action), (event.stamp, event.action));
        cursor.advance();
    }
    assert_eq!(cursor.key(), None);
    let mut cursor = memtable.seek_before(&[0xff; 40]);
    for event in ordered.iter().rev() {
        assert_eq!(cursor.key(), Some(&internal(event)[..]));
        cursor.retreat();
    }
    assert_eq!(cursor.key(), None);
    let past = memtable.seek_past(&internal(&ordered[3]));
    assert_eq!(past.key(), Some(&internal(&ordered[4])[..]));
}

#[test]
fn values_of_any_length_come_back() {
    let memtable = Memtable::default();
    let sizes =
        [0, 1, 7, 8, APART_SIZE_MIN - 18, APART_SIZE_MIN - 17, APART_SIZE_MIN, 3 * BLOCK_SIZE];
    let events = sizes.map(|size| Event {
        payload: vec![size.to_le_bytes()[0] ^ 0x5a; size].into(),
        ..event(0, 0, &size.to_le_bytes(), 1)
    });
    for event in &events {
        memtable.insert(event);
    }
    for event in &events {
        assert_eq!(get(&memtable, event, Stamp::MAX).as_ref(), Some(event));
    }
    assert!(sizes.iter().sum::<usize>() < memtable.bytes());
}

#[test]
fn the_longest_keys_fit() {
    let memtable = Memtable::default();
    for byte in [0, 0xff] {
        let event = event(0, 0, &[byte; crate::KEY_SIZE_MAX], 1);
        memtable.insert(&event);
        assert_eq!(get(&memtable, &event, stamp(1)), Some(event));
    }
}

#[test]
fn versions_before_and_after_every_stamp_are_found() {
    let memtable = Memtable::default();
    // More than are stepped over, in an order that is none.
    for step in 0..100 {
        memtable.insert(&event(0, 0, b"key", 2 * (step * 37 % 100) + 2));
        memtable.insert(&event(0, 0, b"kez", 1));
    }
    let of = event(0, 0, b"key", 0);
    assert_eq!(newest(&memtable, &of), Some(stamp(200)));
    for ms in 0..=300 {
        let expected = (ms / 2 * 2).min(200);
        let found = get(&memtable, &of, stamp(ms)).map(|event| event.stamp);
        assert_eq!(found, (0 < expected).then(|| stamp(expected)));
    }
}

/// Leaves are split at their ends and in their midst, and know more and more of what their keys share.
#[test]
fn keys_in_any_order_are_where_they_belong() {
    let shared = "a prefix that is longer than a window/";
    let orders: [fn(u64) -> u64; 5] = [
        |n| n,
        |n| 999 - n,
        |n| n * 377 % 1000,
        |n| if n % 2 == 0 { n / 2 } else { 999 - n / 2 },
        |n| if n < 500 { 2 * n } else { 2 * (n - 500) + 1 },
    ];
    for order in orders {
        let memtable = Memtable::default();
        for number in (0..1000).map(order) {
            for prefix in ["", shared] {
                let event = event(0, 0, format!("{prefix}{number:08}").as_bytes(), 1 + number);
                assert!(memtable.insert(&event).new);
                assert!(!memtable.insert(&event).new);
            }
        }
        let mut cursor = memtable.seek(&[]);
        for prefix in ["", shared] {
            for number in 0..1000 {
                let event = event(0, 0, format!("{prefix}{number:08}").as_bytes(), 1 + number);
                assert_eq!(cursor.key(), Some(&internal(&event)[..]));
                assert_eq!(memtable.seek(&internal(&event)).key(), cursor.key());
                cursor.advance();
            }
        }
        assert_eq!(cursor.key(), None);
    }
}

#[test]
fn memory_is_counted_to_the_byte_and_little_of_it_is_overhead() {
    let memtable = Memtable::default();
    let mut content = 0;
    for number in 0..50_000_u64 {
        let event = Event {
            payload: Bytes::from_static(&[7; 100]),
            ..event(0, 0, &number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes(), 1)
        };
        content += internal(&event).len() + 17 + event.payload.len();
        memtable.insert(&event);
    }
    let (used, allocated) = (memtable.bytes(), memtable.allocated_bytes());
    assert!(used <= allocated && allocated <= used + BLOCK_SIZE, "{used} of {allocated}");
    let overhead = (used - content) / 50_000;
    assert!((16..48).contains(&overhead), "{overhead} bytes an event");
}

#[test]
fn a_memtable_uses_the_memory_of_those_before_it() {
    let put =
        |n: u64| Event { payload: vec![7; 10_000].into(), ..event(1, 1, &n.to_be_bytes(), 1) };
    let fill = |memtable: &Memtable, first: u64, count: u64| {
        (first..first + count).for_each(|n| {
            memtable.insert(&put(n));
        });
    };
    let is_there = |memtable: &Memtable, n: u64| get(memtable, &put(n), Stamp::MAX) == Some(put(n));
    let first = Memtable::default();
    fill(&first, 0, 2000);
    let second = first.successor();
    assert_eq!(second.spare_bytes(), 0, "the first one has it all");
    drop(first);
    let kept = second.spare_bytes();
    if kept == 0 {
        return; // The system gives no blocks of that kind.
    }
    fill(&second, 5000, 1000);
    let left = second.spare_bytes();
    assert!(left < kept, "{left} of {kept}");
    let third = second.successor();
    fill(&third, 9000, 100);
    assert!(
        (5000..6000).all(|n| is_there(&second, n)) && (9000..9100).all(|n| is_there(&third, n))
    );
    assert!(!is_there(&second, 10) && !is_there(&third, 10));
    // No more is kept than one memtable had.
    drop(second);
    assert!(third.spare_bytes() <= kept);
    let last = third.successor();
    drop(third);
    assert!(last.spare_bytes() <= kept);
}

#[test]
fn a_few_events_fill_no_block() {
    let memtable = Memtable::default();
    memtable.insert(&event(0, 0, b"key", 1));
    assert!(memtable.bytes() < 640, "{}", memtable.bytes());
    assert!(memtable.allocated_bytes() < 16 << 10, "{}", memtable.allocated_bytes());
}

/// All that a search looks at first is equal, in every leaf.
#[test]
fn keys_that_begin_alike_are_in_order() {
    const KEYS: u64 = 20_000;
    let memtable = Memtable::default();
    let of = |number: u64| {
        let key = format!("all of them begin alike {:05}", number * 12_347 % KEYS);
        event(0, 0, key.as_bytes(), 1 + number)
    };
    for number in 0..KEYS {
        assert!(memtable.insert(&of(number)).new);
    }
    let mut events: Vec<_> = (0..KEYS).map(|number| internal(&of(number))).collect();
    events.sort();
    let mut cursor = memtable.seek(&[]);
    for event in events {
        assert_eq!(cursor.key(), Some(&event[..]));
        cursor.advance();
    }
    assert_eq!(cursor.key(), None);
}
