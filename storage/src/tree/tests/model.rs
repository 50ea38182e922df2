//! Reads against a sorted map, with events in any stamp order and flushes and merges at any moment.

use std::cmp::Reverse;
use std::ops::ControlFlow;

use proptest::prelude::*;

use super::*;
use crate::event::{EventId, EventRef};
use crate::types::{Digest, KeyspaceDigest, Order, PartitionCursor, Scan, ScanPage};

type Identity = (u32, KeyspaceId, Bytes, Reverse<Stamp>);
type Model = BTreeMap<Identity, Event>;

#[derive(Clone, Debug)]
enum Step {
    Insert(Event),
    Rotate,
    Work(usize),
    Reopen,
    Drop(u32),
    /// Live keys, pages of so many, as who takes from a queue reads them.
    Live(u32, usize),
}

/// Few keys and few stamps, so that keys have many versions, and events come twice.
fn any_event() -> impl Strategy<Value = Event> {
    let key = prop::collection::vec(prop::sample::select(vec![0_u8, 1, b'a', 0xff]), 1..4);
    (0..3_u32, key, 0..12_u64, prop::bool::weighted(0.5)).prop_map(
        |(partition, key, ms, is_delete)| {
            let action = if is_delete { Action::Delete } else { Action::Put };
            event(partition, &key, stamp(ms), action)
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        40 => any_event().prop_map(Step::Insert),
        4 => Just(Step::Rotate),
        8 => (1..6_usize).prop_map(Step::Work),
        1 => Just(Step::Reopen),
        1 => (0..3_u32).prop_map(Step::Drop),
        8 => (0..3_u32, 1..5_usize).prop_map(|(partition, limit)| Step::Live(partition, limit)),
    ]
}

fn identity(event: &Event) -> Identity {
    (event.partition, event.keyspace, event.key.clone(), Reverse(event.stamp))
}

/// The tree and what should be in it. `unflushed` is what a log would bring back.
struct Pair {
    disk: Arc<SimDisk>,
    tree: Tree<SimDisk>,
    model: Model,
    log: Vec<Event>,
    /// How much of the log there was when the active memtable was begun.
    rotated: usize,
}

impl Pair {
    fn new() -> Self {
        let disk = Arc::new(SimDisk::new(1));
        let tree = open(&disk);
        Self { disk, tree, model: Model::new(), log: Vec::new(), rotated: 0 }
    }

    fn apply(&mut self, step: Step) {
        match step {
            // The identity decides: what is first there stays. What is here already is not inserted again, but
            // into the memtable that has it.
            Step::Insert(event) => {
                let known = self.model.entry(identity(&event)).or_insert_with(|| event.clone());
                let is_here = self.tree.view().contains(event.partition, event.id()).unwrap();
                if !is_here || self.log[self.rotated..].contains(known) {
                    self.tree.insert(known);
                    self.log.push(known.clone());
                }
            }
            Step::Live(partition, limit) => self.check_live(partition, limit),
            Step::Rotate => {
                self.tree.rotate(Lsn(self.log.len() as u64));
                self.rotated = self.log.len();
            }
            Step::Work(times) => {
                for _ in 0..times {
                    self.tree.work(0, &Retentions::default()).expect("the disk is fine");
                }
            }
            Step::Reopen => {
                self.tree = open(&self.disk);
                let flushed = usize::try_from(self.tree.flushed().0).expect("small");
                self.rotated = flushed;
                let dropped = self.tree.dropped().clone();
                for (event, lsn) in self.log.iter().zip(1..).skip(flushed) {
                    if !is_dropped(&dropped, event.partition, Lsn(lsn)) {
                        self.tree.insert(event);
                    }
                }
            }
            Step::Drop(partition) => {
                if self.tree.is_active(partition) {
                    self.apply(Step::Rotate);
                }
                let dropped = Dropped { up_to: Lsn(self.log.len() as u64), changes: 1 };
                self.tree.drop_partition(partition, dropped).expect("the disk is fine");
                self.model.retain(|id, _| id.0 != partition);
            }
        }
    }

    fn of_key(&self, id: &Identity) -> Vec<Event> {
        let same =
            |event: &&Event| (event.partition, event.keyspace, &event.key) == (id.0, id.1, &id.2);
        self.model.values().filter(same).cloned().collect()
    }

    fn check_key(&self, probe: &Event, limits: Limits) {
        let id = identity(probe);
        let versions = self.of_key(&id);
        let view = self.tree.view();
        let (partition, keyspace, key) = (probe.partition, probe.keyspace, &probe.key);
        let at_most = |at: Stamp| versions.iter().find(|event| event.stamp <= at);

        let got = view.get(partition, keyspace, key, probe.stamp).unwrap();
        assert_eq!(got.as_ref(), at_most(probe.stamp));
        let shown = view.get_with(partition, keyspace, key, probe.stamp, |event| event.to_event());
        assert_eq!(shown.unwrap(), got);
        let newest = view.newest_stamp(partition, keyspace, key).unwrap();
        assert_eq!(newest, versions.first().map(|event| event.stamp));
        let contained = view.contains(partition, probe.id()).unwrap();
        assert_eq!(contained, self.model.contains_key(&id));

        let range = (stamp(3), probe.stamp);
        let mut wanted: Vec<Event> = versions
            .iter()
            .filter(|event| range.0 <= event.stamp && event.stamp <= range.1)
            .cloned()
            .collect();
        for order in [Order::Descending, Order::Ascending] {
            let page = view.versions(partition, keyspace, key, range, order, limits).unwrap();
            check_page(&page, &wanted, limits);
            wanted.reverse();
        }
    }

    fn check_scans(&self, probe: &Event, limits: Limits) {
        let (partition, keyspace) = (probe.partition, probe.keyspace);
        let prefix = &probe.key[..probe.key.len() / 2];
        for (after, order, live_only) in [
            (None, Order::Ascending, false),
            (Some(&probe.key), Order::Ascending, true),
            (None, Order::Descending, true),
            (Some(&probe.key), Order::Descending, false),
        ] {
            let mut newest: BTreeMap<Bytes, Event> = BTreeMap::new();
            for (id, event) in &self.model {
                let is_after = |after: &Bytes| match order {
                    Order::Ascending => *after < id.2,
                    Order::Descending => id.2 < *after,
                };
                let wanted = (id.0, id.1) == (partition, keyspace)
                    && id.2.starts_with(prefix)
                    && after.is_none_or(is_after)
                    && event.stamp <= probe.stamp;
                if wanted {
                    newest.entry(id.2.clone()).or_insert_with(|| event.clone());
                }
            }
            let mut wanted: Vec<Event> = newest.into_values().collect();
            wanted.retain(|event| !live_only || event.action == Action::Put);
            if order == Order::Descending {
                wanted.reverse();
            }
            let scan = Scan {
                after: after.map(|after| &after[..]),
                at: probe.stamp,
                order,
                live_only,
                limit: limits.events,
                bytes_max: limits.bytes,
                ..Scan::new(partition, keyspace, prefix)
            };
            let ScanPage { events, more, .. } = self.tree.view().scan(&scan).unwrap();
            check_page(&Page { events, more }, &wanted, limits);
            for steps_max in [0, 5, usize::MAX] {
                assert_eq!(self.all_pages(Scan { steps_max, ..scan }), wanted);
            }
            self.check_shown(scan, &wanted);
        }
    }

    /// A scan that shows its events one by one shows those of a page, and ends where it is told to.
    fn check_shown(&self, scan: Scan<'_>, wanted: &[Event]) {
        let view = self.tree.view();
        let page = view.scan(&scan).unwrap();
        let mut shown = Vec::new();
        let show = |event: EventRef<'_>| {
            shown.push(event.to_event());
            ControlFlow::Continue(())
        };
        let end = view.scan_each(&scan, show).unwrap();
        assert_eq!((shown, end.more, end.resume), (page.events, page.more, page.resume));

        let scan = Scan { limit: usize::MAX, bytes_max: usize::MAX, ..scan };
        for (index, last) in wanted.iter().enumerate() {
            let mut seen = 0;
            let show = |event: EventRef<'_>| {
                assert_eq!(event, wanted[seen].borrow());
                seen += 1;
                if seen <= index { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            };
            let end = view.scan_each(&scan, show).unwrap();
            assert_eq!((seen, end.more, end.resume), (index + 1, true, Some(last.key.clone())));
        }
    }

    /// A page over several partitions is pages of each, put together.
    fn check_span(&self, probe: &Event, limits: Limits) {
        let prefix = &probe.key[..probe.key.len() / 2];
        let view = self.tree.view();
        for (first, last) in [(0, 2), (1, 2), (probe.partition, probe.partition)] {
            for after in [None, Some(&probe.key[..])] {
                let scan = Scan {
                    after,
                    at: probe.stamp,
                    limit: limits.events,
                    bytes_max: limits.bytes,
                    ..Scan::new(first, probe.keyspace, prefix)
                };
                let all = (first..=last).flat_map(|partition| {
                    let (limit, bytes_max) = (usize::MAX, usize::MAX);
                    let after = after.filter(|_| partition == first);
                    self.all_pages(Scan { partition, after, limit, bytes_max, ..scan })
                });
                let wanted: Vec<Event> = all.collect();
                let page = view.scan_partitions(&scan, first..=last).unwrap();
                check_page(&page, &wanted, limits);
            }
        }
    }

    /// All that is live, by pages that begin where the one before ended.
    fn check_live(&self, partition: u32, limit: usize) {
        let keyspace = KeyspaceId(u64::from(partition % 2));
        let mut newest: BTreeMap<&Bytes, &Event> = BTreeMap::new();
        for (id, event) in self.model.iter().filter(|(id, _)| id.0 == partition) {
            newest.entry(&id.2).or_insert(event);
        }
        let wanted = newest.into_values().filter(|event| event.action == Action::Put);
        let scan = Scan { live_only: true, limit, ..Scan::new(partition, keyspace, b"") };
        let found = self.all_pages(Scan { steps_max: 3 * limit, ..scan });
        assert_eq!(found, wanted.cloned().collect::<Vec<_>>());
    }

    /// What a scan finds, page by page.
    fn all_pages(&self, scan: Scan<'_>) -> Vec<Event> {
        let mut events = Vec::new();
        let mut after = scan.after.map(Bytes::copy_from_slice);
        loop {
            let page = Scan { after: after.as_deref(), ..scan };
            let page = self.tree.view().scan(&page).unwrap();
            events.extend(page.events);
            if !page.more {
                return events;
            }
            assert!(page.resume.is_some() && page.resume != after, "each page gets on");
            after = page.resume;
        }
    }

    fn check_partition(&self, partition: u32, limits: Limits) {
        let view = self.tree.view();
        let wanted: Vec<&Event> =
            self.model.values().filter(|event| event.partition == partition).collect();
        let mut digest = Digest::default();
        for event in &wanted {
            digest.add(event.id().hash());
        }
        assert_eq!(view.digest(partition).unwrap(), digest);
        for up_to in [stamp(0), stamp(5), stamp(11), Stamp::MAX] {
            let mut digests: BTreeMap<KeyspaceId, KeyspaceDigest> = BTreeMap::new();
            for event in &wanted {
                let keyspace = event.keyspace;
                let none = KeyspaceDigest { keyspace, settled: Digest::default(), newer: 0 };
                let digest = digests.entry(keyspace).or_insert(none);
                if event.stamp <= up_to {
                    digest.settled.add(event.id().hash());
                } else {
                    digest.newer += 1;
                }
            }
            let found = view.keyspace_digests(partition, up_to).unwrap();
            assert_eq!(found, digests.into_values().collect::<Vec<_>>());
        }

        let mut visited = Vec::new();
        view.visit_partition(partition, |id, action| {
            visited.push((id.keyspace, Bytes::copy_from_slice(id.key), id.stamp, action));
        })
        .unwrap();
        let visits = wanted.iter().map(|it| (it.keyspace, it.key.clone(), it.stamp, it.action));
        assert!(visited.into_iter().eq(visits));

        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = view.partition_events(partition, after.as_ref(), limits).unwrap();
            assert!(page.events.len() <= limits.events);
            check_identities(&view, partition, after.as_ref(), &page.events);
            after = page.events.last().map(|event| {
                let EventId { keyspace, stamp, .. } = event.id();
                PartitionCursor { keyspace, key: event.key.clone(), stamp }
            });
            found.extend(page.events);
            if !page.more {
                break;
            }
        }
        assert_eq!(found.iter().collect::<Vec<_>>(), wanted);
    }
}

/// A page of identities is the events without their payloads, which count for nothing.
fn check_identities(
    view: &TreeView<SimDisk>,
    partition: u32,
    after: Option<&PartitionCursor>,
    events: &[Event],
) {
    let keys: usize = events.iter().map(|event| event.key.len()).sum();
    let limits = Limits { events: events.len().max(1), bytes: keys.max(1) };
    let page = view.partition_identities(partition, after, limits).unwrap();
    let without = |event: &Event| Event { payload: Bytes::new(), ..event.clone() };
    assert_eq!(page.events, events.iter().map(without).collect::<Vec<_>>());
}

/// A page is as much of what is wanted as the limits let, and says whether that is all.
fn check_page(page: &Page, wanted: &[Event], limits: Limits) {
    assert_eq!(page.events, wanted[..page.events.len()]);
    let bytes = |events: &[Event]| -> usize {
        events.iter().map(|event| event.key.len() + event.payload.len()).sum()
    };
    if let Some((_, before)) = page.events.split_last() {
        assert!(
            before.len() < limits.events && (before.is_empty() || bytes(before) < limits.bytes)
        );
    }
    if page.events.len() < wanted.len() {
        assert!(page.more);
        let full = limits.events <= page.events.len() || limits.bytes <= bytes(&page.events);
        assert!(full, "it ends only at a limit");
    }
    assert!(
        !page.more || limits.events <= page.events.len() || limits.bytes <= bytes(&page.events)
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn reads_are_those_of_a_sorted_map(
        steps in prop::collection::vec(step(), 1..300),
        probes in prop::collection::vec(any_event(), 10),
        few in 1..5_usize, bytes in 1..60_usize,
    ) {
        let mut pair = Pair::new();
        let tight = Limits { events: few, bytes };
        let half = steps.len() / 2;
        for (index, step) in steps.into_iter().enumerate() {
            pair.apply(step);
            if index == half {
                for probe in &probes {
                    pair.check_key(probe, ALL);
                }
            }
        }
        for probe in &probes {
            for limits in [ALL, tight] {
                pair.check_key(probe, limits);
                pair.check_scans(probe, limits);
                pair.check_span(probe, limits);
            }
        }
        for partition in 0..3 {
            pair.check_partition(partition, ALL);
            pair.check_partition(partition, tight);
        }
    }
}

#[test]
fn a_view_is_not_disturbed_by_what_comes_after() {
    let mut pair = Pair::new();
    for ms in 0..200 {
        pair.apply(Step::Insert(put(&format!("k{}", ms % 20), ms)));
        if ms % 40 == 39 {
            pair.apply(Step::Rotate);
        }
    }
    pair.apply(Step::Work(20));
    let view = pair.tree.view();
    let before = view.partition_events(0, None, ALL).unwrap();
    let files = pair.disk.list("tables").unwrap();
    settle(&mut pair.tree, 0, &Retentions::default());
    pair.apply(Step::Rotate);
    for ms in 200..300 {
        pair.apply(Step::Insert(put(&format!("k{}", ms % 20), ms)));
    }
    assert_ne!(pair.disk.list("tables").unwrap(), files, "tables came and went");
    assert_eq!(view.partition_events(0, None, ALL).unwrap(), before);
}

/// Scans on other threads learn where nothing is live, from views new and old, while keys come and go: whoever inserted
/// a key finds it at once, and does not find one that is deleted.
#[test]
fn a_put_is_found_whatever_other_scans_learn() {
    const KEYS: u64 = 60;
    let disk = Arc::new(SimDisk::new(1));
    let mut tree = open(&disk);
    let newest = std::sync::Mutex::new(tree.view());
    let done = std::sync::atomic::AtomicBool::new(false);
    let scan = Scan { live_only: true, ..Scan::new(0, KeyspaceId(0), b"") };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let view = newest.lock().unwrap().clone();
                    for limit in [1, 2, usize::MAX] {
                        view.scan(&Scan { limit, ..scan }).unwrap();
                    }
                }
            });
        }
        let mut live = BTreeSet::new();
        for ms in 0..1000_u64 {
            // Long runs of deletes, with puts here and there.
            let key = format!("{:02}", ms * ms / 7 % KEYS);
            if ms % 5 == 0 {
                tree.insert(&put(&key, ms));
                live.insert(key);
            } else {
                tree.insert(&delete(&key, ms));
                live.remove(&key);
            }
            if ms % 100 == 99 {
                tree.rotate(Lsn(ms));
                settle(&mut tree, 0, &Retentions::default());
            }
            let view = tree.view();
            let found = view.scan(&scan).unwrap().events;
            assert!(found.iter().map(|event| &event.key[..]).eq(live.iter().map(String::as_bytes)));
            *newest.lock().unwrap() = view;
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
