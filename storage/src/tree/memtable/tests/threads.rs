//! Readers on threads of their own while one thread inserts.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::types::Digest;

const EVENTS: u64 = if cfg!(miri) { 300 } else { 10_000 };

/// Each event in a place that says nothing of its number, some keys with several versions.
fn numbered(number: u64) -> Event {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    event((mixed % 5) as u32, mixed % 2, &(mixed % (EVENTS / 3)).to_be_bytes(), 1 + number)
}

/// Everything up to `done` has to be found, and what is found is whole.
fn check(memtable: &Memtable, done: u64, probe: u64) {
    let wanted = numbered(probe % done);
    assert!(memtable.contains(&internal(&wanted)));
    assert_eq!(get(memtable, &wanted, wanted.stamp).as_ref(), Some(&wanted));
    assert!(Some(wanted.stamp) <= newest(memtable, &wanted));
    let mut cursor = memtable.seek(&internal(&wanted));
    assert_eq!(cursor.key(), Some(&internal(&wanted)[..]));
    let mut last = Vec::new();
    for _ in 0..20 {
        let Some(entry) = cursor.entry() else { break };
        assert!(last.as_slice() < entry.key());
        last = entry.key().to_vec();
        let event = entry.stored().to_stored().into_event(entry.key()).expect("whole");
        assert_eq!(event, numbered(event.request.sequence - 1));
        cursor.advance();
    }
    if let Some(beyond) = cursor.key() {
        cursor.retreat();
        let before = cursor.key().expect("there is the last one at the least");
        assert!(last.as_slice() <= before && before < beyond);
    }
}

#[test]
fn readers_see_whole_events_and_all_that_was_inserted() {
    let (memtable, done) = (Memtable::default(), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for reader in 1..=2_u64 {
            let (memtable, done) = (&memtable, &done);
            scope.spawn(move || {
                let (mut probe, mut events) = (reader, 0);
                loop {
                    let done = done.load(Ordering::Acquire);
                    if 0 < done {
                        check(memtable, done, probe);
                        probe = probe
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1442 + reader);
                    }
                    let digests = (0..5).map(|partition| memtable.digest(partition).events);
                    let counted = digests.sum();
                    assert!(done <= counted && events <= counted);
                    events = counted;
                    if done == EVENTS {
                        return;
                    }
                }
            });
        }
        for number in 0..EVENTS {
            assert!(memtable.insert(&numbered(number)).new);
            done.store(number + 1, Ordering::Release);
        }
    });
}

#[test]
fn threads_that_insert_wait_for_each_other() {
    let memtable = Memtable::default();
    std::thread::scope(|scope| {
        for writer in 0..2 {
            let memtable = &memtable;
            scope.spawn(move || {
                for number in 0..EVENTS / 2 {
                    memtable.insert(&numbered(2 * number + writer));
                }
            });
        }
    });
    let mut digests = [Digest::default(); 5];
    for number in 0..EVENTS / 2 * 2 {
        let event = numbered(number);
        assert!(memtable.contains(&internal(&event)));
        digests[event.partition as usize].add(event.id().hash());
    }
    for (partition, digest) in (0..).zip(digests) {
        assert_eq!(memtable.digest(partition), digest);
    }
}
