//! What a reader can see of a writer, in every order that the memory model allows, up to a bound on preemptions (loom).
//!
//! Lists have two levels here, a leaf and a segment of the index two slots. To be run by itself, for these are not the atomics that
//! other tests are made for:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --release -p starling-storage --lib interleavings
//! ```

use std::sync::Arc;

use loom::thread;

use super::*;
use crate::tree::memtable::index::{Found, Index, IndexWriter};
use crate::types::Digest;

fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.max_branches = 100_000;
    builder.check(model);
}

/// What a point read finds is whole, and so is what a cursor finds; what was there before is found.
fn read(memtable: &Memtable, there: &Event, coming: &Event) {
    assert_eq!(get(memtable, there, there.stamp).as_ref(), Some(there));
    if let Some(found) = get(memtable, coming, coming.stamp).filter(|found| found != there) {
        assert_eq!(&found, coming);
    }
    let mut cursor = memtable.seek(&[]);
    let mut met = Vec::new();
    while let Some(entry) = cursor.entry() {
        met.push(entry.stored().to_stored().into_event(entry.key()).expect("whole"));
        cursor.advance();
    }
    assert!(met.contains(there));
    assert!(met.iter().all(|event| event == there || event == coming));
    assert!(met.is_sorted_by_key(internal));
}

fn one_reads_while_one_inserts(there: Event, coming: Event) {
    explore(move || {
        let memtable = Arc::new(Memtable::default());
        memtable.insert(&there);
        let reader = {
            let (memtable, there, coming) = (Arc::clone(&memtable), there.clone(), coming.clone());
            thread::spawn(move || read(&memtable, &there, &coming))
        };
        assert!(memtable.insert(&coming).new);
        assert_eq!(get(&memtable, &coming, coming.stamp).as_ref(), Some(&coming));
        reader.join().unwrap();
    });
}

#[test]
fn a_newer_version_of_a_key() {
    one_reads_while_one_inserts(event(0, 0, b"a", 1), event(0, 0, b"a", 2));
}

#[test]
fn a_key_before_another() {
    one_reads_while_one_inserts(event(0, 0, b"b", 1), event(0, 0, b"a", 1));
}

#[test]
fn a_partition_before_another() {
    one_reads_while_one_inserts(event(2, 0, b"a", 1), event(1, 0, b"b", 1));
}

/// The second insert splits a full leaf: in its midst, and behind its end.
#[test]
fn a_seek_while_a_leaf_is_split() {
    for coming in [b"b", b"d"] {
        explore(move || {
            let memtable = Arc::new(Memtable::default());
            let (there, coming) =
                ([b"a", b"c"].map(|key| event(0, 0, key, 1)), event(0, 0, coming, 1));
            for event in &there {
                memtable.insert(event);
            }
            let reader = {
                let (memtable, there) = (Arc::clone(&memtable), there.clone());
                thread::spawn(move || {
                    let wanted = internal(&there[1]);
                    let mut cursor = memtable.seek(&wanted);
                    assert_eq!(cursor.key(), Some(&wanted[..]));
                    cursor.retreat();
                    assert!(cursor.key().is_some_and(|before| before < &wanted[..]));
                })
            };
            assert!(memtable.insert(&coming).new);
            assert_eq!(memtable.seek(&internal(&coming)).key(), Some(&internal(&coming)[..]));
            reader.join().unwrap();
        });
    }
}

#[test]
fn an_entry_of_the_index_is_found_while_its_segment_is_split() {
    explore(|| {
        let index = Arc::new(Index::default());
        let mut writer = IndexWriter::default();
        let hashes = [0, 3 << 62, 1 << 62, 2 << 62];
        index.add(&mut writer, hashes[0], 1);
        index.add(&mut writer, hashes[1], 2);
        let reader = {
            let index = Arc::clone(&index);
            thread::spawn(move || {
                for (hash, number) in [(hashes[1], 2), (hashes[0], 1)] {
                    let found = index.find(hash, |found| found == number);
                    assert_ne!(found, Found::Absent, "{number}");
                }
            })
        };
        index.add(&mut writer, hashes[2], 3);
        index.add(&mut writer, hashes[3], 4);
        reader.join().unwrap();
        for (hash, number) in hashes.into_iter().zip(1..) {
            assert_eq!(index.find(hash, |found| found == number), Found::Number(number));
        }
    });
}

#[test]
fn a_digest_is_that_of_whole_events() {
    explore(|| {
        let events = [event(0, 0, b"a", 1), event(0, 0, b"b", 1)];
        let memtable = Arc::new(Memtable::default());
        memtable.insert(&events[0]);
        let mut digests = [Digest::default(); 2];
        digests[0].add(events[0].id().hash());
        digests[1] = digests[0];
        digests[1].add(events[1].id().hash());
        let reader = {
            let memtable = Arc::clone(&memtable);
            thread::spawn(move || assert!(digests.contains(&memtable.digest(0))))
        };
        memtable.insert(&events[1]);
        reader.join().unwrap();
        assert_eq!(memtable.digest(0), digests[1]);
    });
}
