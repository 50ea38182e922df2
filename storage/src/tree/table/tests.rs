//! Tables of many sections against a sorted vector: cursors either way, point reads, filters, summaries; and what a
//! table that was damaged on the disk gives.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use starling_clock::{HybridTime, NodeId, Stamp};

use super::partitions::PartitionSummary;
use super::*;
use crate::TreeConfig;
use crate::disk::{Disk, SimDisk, SimFile};
use crate::error::Error;
use crate::event::{Action, KeyspaceId, RequestId};
use crate::tree::internal_key;
use crate::tree::stored::Stored;

pub(in crate::tree) type Rows = Vec<(Vec<u8>, Stored)>;

/// Blocks of an event or two, sections of a few blocks.
pub(in crate::tree) fn tiny(block_bytes: usize) -> TreeConfig {
    TreeConfig { block_bytes, ..TreeConfig::default() }
}

fn stamp(ms: u64) -> Stamp {
    Stamp::new(HybridTime::new(ms, 0), NodeId(1))
}

/// Few keys with many versions, so that a key's versions lie in several blocks and sections.
fn any_rows() -> impl Strategy<Value = Rows> {
    let key = prop::collection::vec(prop::sample::select(vec![0_u8, 1, b'a', b'b', 0xff]), 1..4);
    let row = ((0..3_u32, key, 0..40_u64), prop::bool::weighted(0.2), 0..60_usize);
    prop::collection::vec(row, 1..200).prop_map(|rows| {
        let rows = rows.into_iter().map(|((partition, key, ms), is_delete, size)| {
            let action = if is_delete { Action::Delete } else { Action::Put };
            let request = RequestId { client: 1, sequence: ms };
            let stored = Stored { action, request, payload: vec![b'x'; size].into() };
            (internal_key::encode(partition, KeyspaceId(5), &key, stamp(ms)), stored)
        });
        rows.collect::<BTreeMap<_, _>>().into_iter().collect()
    })
}

fn write(disk: &SimDisk, rows: &Rows, config: &TreeConfig) -> u64 {
    disk.create_dir("t").unwrap();
    let mut builder = TableBuilder::create(disk, "t", 7, config).unwrap();
    for (key, stored) in rows {
        builder.add(key, stored.borrow()).unwrap();
    }
    builder.finish().unwrap()
}

fn open(disk: &SimDisk, size: u64, cache_bytes: u64) -> Result<Arc<Table<SimFile>>, Error> {
    let cache = Arc::new(BlockCache::new(cache_bytes, 256));
    Table::open(disk, "t", (7, 7, size), cache).map(Arc::new)
}

pub(in crate::tree) fn built(
    rows: &Rows,
    config: &TreeConfig,
    cache_bytes: u64,
) -> Arc<Table<SimFile>> {
    let disk = SimDisk::new(1);
    let size = write(&disk, rows, config);
    open(&disk, size, cache_bytes).unwrap()
}

fn row(cursor: &TableCursor<SimFile>) -> Option<(Vec<u8>, Stored)> {
    cursor.key().map(|key| (key.to_vec(), cursor.stored().unwrap()))
}

/// A place at, just before or just after a row, or anywhere.
fn place(rows: &Rows, at: prop::sample::Index, shift: u8, free: &[u8]) -> Vec<u8> {
    let mut key = at.get(rows).0.clone();
    match shift {
        0 => {}
        1 => key.push(0),
        2 => key.truncate(key.len() - 7),
        3 => *key.last_mut().unwrap() ^= 1,
        _ => key = free.to_vec(),
    }
    key
}

#[derive(Clone, Debug)]
enum Move {
    Seek(prop::sample::Index, u8, Vec<u8>),
    SeekBefore(prop::sample::Index, u8, Vec<u8>),
    Advance(usize),
    Retreat(usize),
}

fn any_move() -> impl Strategy<Value = Move> {
    let place = || (any::<prop::sample::Index>(), 0..5_u8, prop::collection::vec(0..4_u8, 0..9));
    prop_oneof![
        place().prop_map(|(at, shift, free)| Move::Seek(at, shift, free)),
        place().prop_map(|(at, shift, free)| Move::SeekBefore(at, shift, free)),
        (1..90_usize).prop_map(Move::Advance),
        (1..90_usize).prop_map(Move::Retreat),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]
    #[test]
    fn a_cursor_goes_as_in_a_sorted_vector(
        rows in any_rows(), block_bytes in 1..300_usize, keep: bool,
        cache_bytes in prop::sample::select(vec![0_u64, 2000, 1 << 20]),
        moves in prop::collection::vec((any_move(), any::<bool>()), 1..30),
    ) {
        let table = built(&rows, &tiny(block_bytes), cache_bytes);
        let mut cursor = TableCursor::new(Arc::clone(&table), keep);
        let mut at: Option<usize> = None;
        for (step, arrives) in moves {
            match &step {
                Move::Seek(index, shift, free) => {
                    let target = place(&rows, *index, *shift, free);
                    cursor.reseek(&target).unwrap();
                    at = Some(rows.partition_point(|(key, _)| *key < target));
                }
                Move::SeekBefore(index, shift, free) => {
                    let target = place(&rows, *index, *shift, free);
                    cursor.seek_before(&target).unwrap();
                    at = rows.partition_point(|(key, _)| *key < target).checked_sub(1);
                }
                Move::Advance(times) => {
                    (0..*times).try_for_each(|_| cursor.advance()).unwrap();
                    at = at.map(|at| at + times);
                }
                Move::Retreat(times) => {
                    (0..*times).try_for_each(|_| cursor.retreat()).unwrap();
                    at = at.and_then(|at| at.checked_sub(*times));
                }
            }
            at = at.filter(|at| *at < rows.len());
            prop_assert_eq!(cursor.key(), at.map(|at| &rows[at].0[..]), "after {:?}", step);
            if !arrives {
                continue;
            }
            cursor.arrive().unwrap();
            prop_assert_eq!(row(&cursor), at.map(|at| rows[at].clone()), "after {:?}", step);
        }
    }

    #[test]
    fn point_reads_are_those_of_a_sorted_vector(
        rows in any_rows(), block_bytes in 1..300_usize,
        cache_bytes in prop::sample::select(vec![0_u64, 2000, 1 << 20]),
        probes in prop::collection::vec((any::<prop::sample::Index>(), 0..41_u64), 30),
    ) {
        let table = built(&rows, &tiny(block_bytes), cache_bytes);
        for (at, ms) in probes {
            let prefix = internal_key::prefix_of(&at.get(&rows).0);
            let target = internal_key::seek_version(prefix, stamp(ms));
            let wanted = rows.iter().find(|(key, _)| target <= *key && key.starts_with(prefix));
            let hash = key_hash(prefix);
            let got = table.get(&target, hash).unwrap();
            let got = got.map(|found| (found.stamp, found.stored().unwrap()));
            let wanted = wanted.map(|(key, stored)| (internal_key::stamp_of(key).unwrap(), stored.clone()));
            prop_assert!(wanted.is_none() || table.may_contain(&target, hash).unwrap());
            prop_assert_eq!(got, wanted);
        }
        let absent = internal_key::encode(1, KeyspaceId(6), b"absent", Stamp::MAX);
        let hash = key_hash(internal_key::prefix_of(&absent));
        prop_assert!(table.get(&absent, hash).unwrap().is_none());
    }

    #[test]
    fn bounds_and_summaries_are_exact(rows in any_rows(), block_bytes in 1..300_usize) {
        let table = built(&rows, &tiny(block_bytes), 0);
        let mut wanted: BTreeMap<u32, PartitionSummary> = BTreeMap::new();
        let mut keys = std::collections::BTreeSet::new();
        for (key, stored) in &rows {
            let summary = wanted.entry(internal_key::partition_of(key).unwrap()).or_default();
            summary.digest.add(internal_key::id_hash(key));
            summary.deletes += u64::from(stored.action == Action::Delete);
            summary.keys += u64::from(keys.insert(internal_key::prefix_of(key)));
            summary.bytes += (key.len() + stored.payload.len()) as u64;
        }
        let bounds = *table.bounds();
        let sum = |field: fn(&PartitionSummary) -> u64| wanted.values().map(field).sum::<u64>();
        prop_assert_eq!(bounds.events, sum(|summary| summary.digest.events));
        prop_assert_eq!(bounds.deletes, sum(|summary| summary.deletes));
        prop_assert_eq!(bounds.keys, sum(|summary| summary.keys));
        prop_assert_eq!(bounds.bytes, sum(|summary| summary.bytes));
        let stamps = || rows.iter().map(|(key, _)| internal_key::stamp_of(key).unwrap());
        prop_assert_eq!(Some(bounds.stamp_least), stamps().min());
        prop_assert_eq!(Some(bounds.stamp_greatest), stamps().max());
        prop_assert_eq!(Some(&bounds.partition_least), wanted.keys().next());
        prop_assert_eq!(Some(&bounds.partition_greatest), wanted.keys().next_back());
        let (least, upper) = table.key_range();
        prop_assert_eq!(least, &rows[0].0[..]);
        prop_assert_eq!(upper, &[&rows[rows.len() - 1].0[..], &[0]].concat());
        for partition in 0..4 {
            prop_assert_eq!(table.summary(partition).unwrap(), wanted.get(&partition).copied());
        }
        prop_assert_eq!(table.summaries().unwrap(), wanted.into_iter().collect::<Vec<_>>());
        // Offsets rise with keys, and span the data.
        let offsets: Vec<u64> = rows.iter().map(|(key, _)| table.offset_of(key).unwrap()).collect();
        prop_assert!(offsets.is_sorted() && offsets[0] == 0);
        prop_assert!(offsets[offsets.len() - 1] < table.offset_of(upper).unwrap());
    }
}

/// A thousand keys in many sections.
fn thousand() -> Rows {
    let rows = (0..1000_u64).map(|n| {
        let key = internal_key::encode(0, KeyspaceId(1), format!("key{n:06}").as_bytes(), stamp(n));
        let request = RequestId { client: 1, sequence: n };
        let payload = format!("{n:050}").into();
        (key, Stored { action: Action::Put, request, payload })
    });
    rows.collect()
}

#[test]
fn memory_of_an_open_table_is_its_list_of_sections() {
    let table = built(&thousand(), &tiny(128), 1 << 20);
    assert!(10 < table.pinned_bytes() / 80, "there are several sections");
    assert!(table.pinned_bytes() < 13_000);
}

#[test]
fn a_walk_through_a_table_reads_it_in_large_pieces() {
    for keep in [false, true] {
        let disk = SimDisk::new(1);
        let size = write(&disk, &thousand(), &tiny(256));
        let table = open(&disk, size, 1 << 20).unwrap();
        let before = disk.calls();
        let mut cursor = TableCursor::seek(table, &[], keep).unwrap();
        let mut count = 0;
        while cursor.key().is_some() {
            count += 1;
            cursor.advance().unwrap();
        }
        assert_eq!(count, 1000);
        assert!(disk.calls() - before < 80, "{} reads", disk.calls() - before);
    }
}

#[test]
fn what_does_not_lie_in_the_table_is_seen_without_reading_data() {
    let disk = SimDisk::new(1);
    let rows = thousand();
    let size = write(&disk, &rows, &tiny(256));
    let table = open(&disk, size, 0).unwrap();
    let before = disk.calls();
    let past = internal_key::encode(0, KeyspaceId(1), b"kez", Stamp::MAX);
    assert!(TableCursor::seek(Arc::clone(&table), &past, true).unwrap().key().is_none());
    let hash = key_hash(internal_key::prefix_of(&past));
    assert!(table.get(&past, hash).unwrap().is_none());
    assert_eq!(disk.calls(), before);
}

/// Who merges many tables reads those first that come first, and the rest perhaps never.
#[test]
fn a_move_to_either_end_reads_nothing_before_it_has_to() {
    let disk = SimDisk::new(1);
    let rows = thousand();
    let size = write(&disk, &rows, &tiny(256));
    let table = open(&disk, size, 0).unwrap();
    let before = disk.calls();
    let mut cursor = TableCursor::new(table, true);
    cursor.reseek(&rows[0].0).unwrap();
    assert_eq!(cursor.key(), Some(&rows[0].0[..]));
    cursor.seek_before(&[0xff; 40]).unwrap();
    assert_eq!(cursor.key(), Some(&rows[999].0[..]));
    assert_eq!(disk.calls(), before);
    cursor.arrive().unwrap();
    assert_eq!(row(&cursor), Some(rows[999].clone()));
    assert!(before < disk.calls());
}

/// Any flipped bit anywhere is reported by the read that meets it, and a walk or a read meets all of the file.
#[test]
fn a_flipped_bit_is_reported() {
    let disk = SimDisk::new(1);
    let rows: Rows = thousand().into_iter().take(60).collect();
    let size = write(&disk, &rows, &tiny(200));
    for offset in 0..size {
        let disk = disk.fork();
        disk.flip_bit("t/0000000000000007.table", offset, u32::try_from(offset % 8).unwrap());
        let result = open(&disk, size, 0).and_then(|table| {
            let mut found = Vec::new();
            for (key, _) in &rows {
                let hash = key_hash(internal_key::prefix_of(key));
                found.push((key.clone(), table.get(key, hash)?.unwrap().stored().unwrap()));
            }
            table.summaries()?;
            Ok(found)
        });
        match result {
            Err(Error::Corrupt { file, .. }) => assert_eq!(file, "t/0000000000000007.table"),
            other => panic!("{other:?} at {offset}"),
        }
    }
}
