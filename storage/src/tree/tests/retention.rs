//! What merges drop, against the rules told for whole histories.

use std::cmp::Reverse;

use proptest::prelude::*;

use super::*;
use crate::HistoryRetention;
use crate::types::Order;

/// All versions of each key, newest first.
type Histories = BTreeMap<Bytes, BTreeMap<Reverse<Stamp>, Event>>;

#[derive(Clone, Debug)]
enum Step {
    Insert { key: u8, ms: u64, is_delete: bool },
    Rotate,
    Work(usize),
    MergeAll,
}

fn step(keys: u8, ms: std::ops::Range<u64>) -> impl Strategy<Value = Step> {
    let insert = (0..keys, ms, prop::bool::weighted(0.4));
    prop_oneof![
        20 => insert.prop_map(|(key, ms, is_delete)| Step::Insert { key, ms, is_delete }),
        3 => Just(Step::Rotate),
        6 => (1..6_usize).prop_map(Step::Work),
        1 => Just(Step::MergeAll),
    ]
}

fn history_retention() -> impl Strategy<Value = HistoryRetention> {
    let versions_max = prop::option::of(0..4_u32);
    let age_ms_max = prop::option::of(0..30_u64);
    (versions_max, age_ms_max)
        .prop_map(|(versions_max, age_ms_max)| HistoryRetention { versions_max, age_ms_max })
}

struct Run {
    tree: Tree<SimDisk>,
    histories: Histories,
    retention: HistoryRetention,
    retentions: Retentions,
    floor: Stamp,
    now_ms: u64,
    rotations: u64,
}

impl Run {
    fn new(retention: HistoryRetention) -> Self {
        let mut retentions = Retentions::default();
        retentions.set_history(KeyspaceId(0), retention);
        Self {
            tree: open(&Arc::new(SimDisk::new(1))),
            histories: Histories::new(),
            retention,
            retentions,
            floor: Stamp::ZERO,
            now_ms: 0,
            rotations: 0,
        }
    }

    fn raise_floor(&mut self, floor: Stamp) {
        self.floor = floor;
        self.retentions.set_tombstone_floor(0, floor);
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Insert { key, ms, is_delete } => {
                let key = format!("k{key}");
                let event = if is_delete { delete(&key, ms) } else { put(&key, ms) };
                let versions = self.histories.entry(event.key.clone()).or_default();
                let event = versions.entry(Reverse(event.stamp)).or_insert(event).clone();
                self.tree.insert(&event);
            }
            Step::Rotate => {
                self.rotations += 1;
                self.tree.rotate(Lsn(self.rotations));
            }
            Step::Work(times) => {
                for _ in 0..times {
                    self.tree.work(self.now_ms, &self.retentions).expect("the disk is fine");
                }
            }
            Step::MergeAll => self.tree.request_full_merge(),
        }
        self.check_bounds();
    }

    /// What the history retention keeps of a key, newest first.
    fn kept<'a>(&self, versions: &'a BTreeMap<Reverse<Stamp>, Event>) -> Vec<&'a Event> {
        let mut kept: Vec<&Event> = Vec::new();
        for event in versions.values() {
            let by_count =
                self.retention.versions_max.is_none_or(|max| kept.len() < max.max(1) as usize);
            let by_age = kept.last().is_none_or(|newer| {
                let replaced_ms = newer.stamp.time.physical_ms();
                self.retention.age_ms_max.is_none_or(|age| self.now_ms <= replaced_ms + age)
            });
            if !by_count || !by_age {
                break;
            }
            kept.push(event);
        }
        kept
    }

    /// Less the oldest ones, if they are tombstones below the floor: with nothing older to hide they may go.
    fn must_keep<'a>(&self, versions: &'a BTreeMap<Reverse<Stamp>, Event>) -> Vec<&'a Event> {
        let mut kept = self.kept(versions);
        let may_go = |event: &Event| event.action == Action::Delete && event.stamp < self.floor;
        while kept.last().is_some_and(|event| may_go(event)) {
            kept.pop();
        }
        kept
    }

    fn found(&self, key: &[u8]) -> Vec<Event> {
        let all = (Stamp::ZERO, Stamp::MAX);
        let view = self.tree.view();
        let page = view.versions(0, KeyspaceId(0), key, all, Order::Descending, ALL);
        page.expect("the disk is fine").events
    }

    /// Whatever was merged so far: nothing is missing that must be there, nothing is there that never was, and the
    /// value of a key is that of its newest event.
    fn check_bounds(&self) {
        for (key, versions) in &self.histories {
            let found = self.found(key);
            assert!(found.iter().all(|event| versions.get(&Reverse(event.stamp)) == Some(event)));
            for event in self.must_keep(versions) {
                assert!(found.contains(event), "{event:?} must be kept");
            }
            let value =
                |event: Option<&Event>| event.filter(|event| event.action == Action::Put).cloned();
            assert_eq!(value(found.first()), value(versions.values().next()), "the value of a key");
        }
    }

    /// After everything was merged into one run: nothing is there that may go by age or count, nor a lone tombstone.
    fn check_exact(&mut self) {
        self.apply(&Step::Rotate);
        settle(&mut self.tree, self.now_ms, &self.retentions);
        self.tree.request_full_merge();
        settle(&mut self.tree, self.now_ms, &self.retentions);
        for (key, versions) in &self.histories {
            let kept: Vec<Event> = self.kept(versions).into_iter().cloned().collect();
            let found = self.found(key);
            assert!(kept.starts_with(&found), "{found:?} of {kept:?}");
            let must = self.must_keep(versions).len();
            let lone = kept.len() == 1;
            assert!(
                if lone { found.len() == must } else { must <= found.len() },
                "{found:?} of {kept:?}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]
    #[test]
    fn merges_keep_what_retention_keeps(
        retention in history_retention(),
        before in prop::collection::vec(step(6, 0..40), 1..120),
        after in prop::collection::vec(step(3, 20..60), 1..120),
    ) {
        let mut run = Run::new(retention);
        run.now_ms = 40;
        for step in &before {
            run.apply(step);
        }
        // From here on nothing below the floor arrives, which is what the floor says.
        run.raise_floor(stamp(20));
        run.now_ms = 60;
        for step in &after {
            run.apply(step);
        }
        run.check_exact();
        run.now_ms = 200;
        run.check_exact();
    }
}

fn work_through(run: &mut Run, events: &[Event]) {
    for event in events {
        let versions = run.histories.entry(event.key.clone()).or_default();
        versions.insert(Reverse(event.stamp), event.clone());
        run.tree.insert(event);
    }
    run.apply(&Step::Rotate);
    while run.tree.status().frozen > 0 {
        run.apply(&Step::Work(1));
    }
}

fn keep_one() -> HistoryRetention {
    HistoryRetention { versions_max: Some(1), age_ms_max: None }
}

#[test]
fn without_settings_everything_is_kept() {
    let mut run = Run::new(HistoryRetention::default());
    run.now_ms = u64::MAX / 2;
    work_through(&mut run, &[put("a", 1), delete("a", 2)]);
    work_through(&mut run, &[put("a", 3), delete("b", 1)]);
    run.check_exact();
    assert_eq!(run.found(b"a").len(), 3);
    assert_eq!(run.found(b"b").len(), 1);
}

#[test]
fn a_tombstone_stays_while_an_older_version_is_in_another_table() {
    let mut run = Run::new(keep_one());
    run.raise_floor(stamp(100));
    // A large run, which the two small ones are not merged with.
    for n in 0..600 {
        run.tree.insert(&Event { payload: noise(n).into(), ..put(&format!("noise-{n}"), 1) });
    }
    work_through(&mut run, &[put("a", 1)]);
    settle(&mut run.tree, 0, &run.retentions.clone());
    work_through(&mut run, &[delete("a", 2)]);
    work_through(&mut run, &[put("b", 2)]);
    settle(&mut run.tree, 0, &run.retentions.clone());
    assert_eq!(run.tree.snapshot.version.runs().len(), 2, "the small ones are one run now");
    run.check_bounds();
    assert_eq!(run.found(b"a")[0], delete("a", 2));
    run.check_exact();
    assert_eq!(run.found(b"a"), []);
}

#[test]
fn a_tombstone_stays_while_an_older_version_is_in_a_memtable() {
    let mut run = Run::new(keep_one());
    run.raise_floor(stamp(100));
    work_through(&mut run, &[delete("a", 2)]);
    run.tree.insert(&put("a", 1));
    run.tree.request_full_merge();
    settle(&mut run.tree, 0, &run.retentions.clone());
    assert_eq!(run.found(b"a")[0], delete("a", 2));
}

#[test]
fn a_tombstone_stays_while_an_older_version_is_kept() {
    for versions_max in [None, Some(2)] {
        let mut run = Run::new(HistoryRetention { versions_max, age_ms_max: None });
        run.raise_floor(stamp(100));
        work_through(&mut run, &[put("a", 1), delete("a", 2)]);
        run.check_exact();
        assert_eq!(run.found(b"a"), [delete("a", 2), put("a", 1)]);
    }
}

#[test]
fn a_tombstone_at_the_floor_stays() {
    let mut run = Run::new(keep_one());
    run.raise_floor(stamp(2));
    work_through(&mut run, &[delete("a", 2), delete("b", 1)]);
    run.tree.request_full_merge();
    settle(&mut run.tree, 0, &run.retentions.clone());
    assert_eq!(run.found(b"a"), [delete("a", 2)]);
    assert_eq!(run.found(b"b"), []);
}

/// Bytes that don't compress.
fn noise(seed: u64) -> Vec<u8> {
    (0..512_u64)
        .flat_map(|n| xxhash_rust::xxh3::xxh3_64_with_seed(&n.to_le_bytes(), seed).to_le_bytes())
        .collect()
}
