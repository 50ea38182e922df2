//! A model of what storage has promised, a script of operations that goes through every part of it, and the check
//! of the one against the other. A fault may come at any call of the disk.
//!
//! The rules of the check: what was promised is there; what was refused is not; what is unknown may be either, but
//! whole; the change log has each event once, in an order that agrees with what readers saw before.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use starling_clock::{NodeId, Stamp};
use starling_storage::{
    Config, Error, ErrorKind, Event, Job, Outcome, PartitionCursor, Progress, SimDisk, Storage,
    Sync, TreeConfig, Write,
};

use super::{KEYSPACE, apply, copy, event, open_with};

type Id = (Bytes, Stamp);

/// What storage has promised, and what it may have besides.
#[derive(Default)]
pub(crate) struct Model {
    /// Everything that may be there.
    attempted: BTreeMap<Id, Event>,
    /// What has to be there.
    promised: BTreeSet<Id>,
    /// Acked and not synced.
    unsynced: BTreeSet<Id>,
    /// What readers of the change log saw.
    published: BTreeMap<u64, Id>,
    /// By target and sequence; those that must be there are `true`.
    hints: BTreeMap<(NodeId, u64), (Event, bool)>,
    hints_attempted: BTreeSet<Id>,
    hints_done: BTreeMap<NodeId, u64>,
    /// The value that was promised last, and those that were tried since.
    metas: BTreeMap<String, (Option<Bytes>, Vec<Bytes>)>,
    /// Flushes and merges are done as jobs; these are out.
    jobs: Option<Vec<Job<SimDisk>>>,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Commit(Vec<Write>, Sync),
    Work,
    Sync,
    Reopen,
}

/// So small that a script of a few dozen commits flushes, merges, rolls and trims.
pub(crate) fn tiny_config(change_bytes_max: u64) -> Config {
    Config {
        memtable_bytes_max: 2 << 10,
        wal_segment_bytes_max: 2 << 10,
        change_segment_bytes_max: 512,
        change_bytes_max,
        hint_segment_bytes_max: 512,
        log_buffer_bytes_max: 600,
        tree: TreeConfig {
            block_bytes: 256,
            merge_width_min: 2,
            merge_width_max: 3,
            work_bytes: 2 << 10,
            block_cache_bytes: 8 << 10,
            ..TreeConfig::default()
        },
        ..super::config()
    }
}

/// Numbers that look random and are the same each time.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        // Vigna's SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

pub(crate) fn script(seed: u64, length: usize) -> Vec<Step> {
    let mut numbers = Numbers(seed);
    let mut steps = Vec::new();
    while steps.len() < length {
        let roll = numbers.below(20);
        let sync = if roll < 5 { Sync::Later } else { Sync::Now };
        let ms = steps.len() as u64;
        steps.push(match roll {
            0..=9 => {
                let count = 1 + numbers.below(4);
                let writes = (0..count).map(|_| any_write(&mut numbers, ms)).collect();
                Step::Commit(writes, sync)
            }
            10..=17 => Step::Work,
            18 => Step::Sync,
            _ => Step::Reopen,
        });
    }
    // In the end what is behind catches up: flushes let the write-ahead log go, and the other logs end and lose segments.
    steps.extend(std::iter::repeat_n(Step::Work, 8));
    steps
}

fn any_write(numbers: &mut Numbers, ms: u64) -> Write {
    let key = [b'a' + u8::try_from(numbers.below(12)).unwrap()];
    let size = if numbers.below(10) == 0 { 700 } else { numbers.below(120) };
    let payload = vec![u8::try_from(numbers.below(256)).unwrap(); usize::try_from(size).unwrap()];
    // Below the present too, so that stamps come out of order.
    let stamp_ms = (ms * 4 + numbers.below(8)).saturating_sub(numbers.below(2) * 40);
    let body = |payload: &[u8]| event(&key, stamp_ms, payload);
    let target = NodeId(7 + numbers.below(2));
    match numbers.below(20) {
        0..=8 => apply(&unique(body(&payload), numbers)),
        9..=13 => copy(&unique(body(&payload), numbers)),
        14..=16 => Write::Hint { target, event: unique(body(&payload), numbers) },
        17..=18 => Write::HintsDone { target, up_to: numbers.below(20) },
        _ => {
            let name = format!("name {}", numbers.below(3));
            Write::Meta { name, value: ms.to_le_bytes().to_vec().into() }
        }
    }
}

/// Sometimes the payload decides the stamp wholly, so that events are met again; otherwise it is a new one.
fn unique(mut event: Event, numbers: &mut Numbers) -> Event {
    if numbers.below(6) == 0 {
        event.stamp = super::stamp(1 << 20);
        event.payload = Bytes::from_static(b"the same");
        event.request.sequence = 1;
    } else {
        event.stamp.node = NodeId(numbers.below(u64::MAX));
    }
    event
}

fn id(event: &Event) -> Id {
    (event.key.clone(), event.stamp)
}

impl Model {
    /// One whose flushes and merges are done as jobs if `by_jobs`.
    pub(crate) fn new(by_jobs: bool) -> Self {
        Self { jobs: by_jobs.then(Vec::new), ..Self::default() }
    }

    /// The same without the jobs that are out, which end with the process.
    pub(crate) fn fork(&self) -> Self {
        Self {
            attempted: self.attempted.clone(),
            promised: self.promised.clone(),
            unsynced: self.unsynced.clone(),
            published: self.published.clone(),
            hints: self.hints.clone(),
            hints_attempted: self.hints_attempted.clone(),
            hints_done: self.hints_done.clone(),
            metas: self.metas.clone(),
            jobs: self.jobs.is_some().then(Vec::new),
        }
    }

    /// Steps each job that is out, and takes back and hands out what there is; the rest besides.
    fn work(&mut self, storage: &mut Storage<SimDisk>, now_ms: u64) {
        let Some(jobs) = &mut self.jobs else { return drop(storage.work(now_ms)) };
        drop(storage.upkeep(now_ms));
        jobs.extend(std::iter::from_fn(|| storage.begin_job(now_ms)));
        for mut job in std::mem::take(jobs) {
            match job.step() {
                Progress::Did => jobs.push(job),
                Progress::Idle => drop(storage.finish_job(job)),
            }
        }
    }

    /// Runs the steps. `None` if the disk failed so that storage has to be opened again.
    pub(crate) fn run(
        &mut self,
        disk: &SimDisk,
        config: &Config,
        steps: &[Step],
    ) -> Option<Storage<SimDisk>> {
        self.jobs.iter_mut().for_each(Vec::clear);
        let mut storage = Self::open(disk, config)?;
        for (index, step) in steps.iter().enumerate() {
            let now_ms = index as u64;
            match step {
                Step::Commit(writes, sync) => self.commit(&mut storage, writes, *sync, now_ms),
                Step::Work => (0..3).for_each(|_| self.work(&mut storage, now_ms)),
                Step::Sync => {
                    if storage.sync().is_ok() {
                        self.promised.append(&mut self.unsynced);
                    }
                }
                Step::Reopen => {
                    drop(storage);
                    self.jobs.iter_mut().for_each(Vec::clear);
                    // The process ends; what was not synced is still with the system.
                    storage = Self::open(disk, config)?;
                }
            }
            self.read_changes(&storage);
            if disk.is_crashed() || storage.status().poisoned {
                return None;
            }
        }
        Some(storage)
    }

    /// Opens; tries again once, as a one-time fault may have come.
    fn open(disk: &SimDisk, config: &Config) -> Option<Storage<SimDisk>> {
        match open_with(disk, config.clone()) {
            Ok(storage) => Some(storage),
            Err(error) => {
                assert!(
                    !matches!(error, Error::Corrupt { .. } | Error::Missing { .. }),
                    "nothing was lost that was promised: {error}"
                );
                if disk.is_crashed() {
                    return None;
                }
                Some(open_with(disk, config.clone()).expect("the fault has passed"))
            }
        }
    }

    fn commit(
        &mut self,
        storage: &mut Storage<SimDisk>,
        writes: &[Write],
        sync: Sync,
        now_ms: u64,
    ) {
        let result = storage.commit(writes.to_vec(), sync, now_ms);
        match &result {
            Ok(outcomes) => self.take(writes, outcomes),
            Err(error) if error.kind() == ErrorKind::Indeterminate => {
                self.take_unknown(writes);
                let again = storage.commit(Vec::new(), Sync::Now, now_ms);
                assert!(matches!(again, Err(Error::Poisoned)), "after {error}");
            }
            // Nothing happened: the check would find what did.
            Err(
                Error::Full { .. } | Error::Io { .. } | Error::Poisoned | Error::Missing { .. },
            ) => {}
            Err(Error::Busy { .. }) => assert!(self.jobs.is_some() && storage.pressure() == 100),
            Err(error) => panic!("{error}"),
        }
        if result.is_ok() && !storage.unsynced() {
            self.promised.append(&mut self.unsynced);
            for hint in self.hints.values_mut() {
                hint.1 = true;
            }
        }
    }

    fn take(&mut self, writes: &[Write], outcomes: &[Outcome]) {
        assert_eq!(writes.len(), outcomes.len());
        for (write, outcome) in writes.iter().zip(outcomes) {
            match (write, outcome) {
                (Write::Apply { event, .. }, Outcome::Applied { newest, previous, .. }) => {
                    assert_eq!(*newest, previous.is_none_or(|previous| previous < event.stamp));
                    assert!(!self.is_known(event), "applied twice: {event:?}");
                    self.attempted.insert(id(event), event.clone());
                    self.unsynced.insert(id(event));
                }
                (Write::Apply { event, .. }, Outcome::Duplicate) => {
                    assert!(self.attempted.contains_key(&id(event)), "never seen: {event:?}");
                    self.unsynced.insert(id(event));
                }
                (Write::Apply { event, .. }, Outcome::Superseded { newest }) => {
                    assert!(event.stamp < *newest);
                    assert!(self.attempted.contains_key(&(event.key.clone(), *newest)));
                }
                (Write::Hint { target, event }, Outcome::Hinted { sequence }) => {
                    self.hints_attempted.insert(id(event));
                    self.hints.insert((*target, *sequence), (event.clone(), false));
                }
                (Write::HintsDone { target, up_to }, Outcome::Done) => {
                    let done = self.hints_done.entry(*target).or_default();
                    *done = (*done).max(*up_to);
                }
                (Write::Meta { name, value }, Outcome::Done) => {
                    self.metas.insert(name.clone(), (Some(value.clone()), Vec::new()));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn is_known(&self, event: &Event) -> bool {
        self.promised.contains(&id(event)) || self.unsynced.contains(&id(event))
    }

    fn take_unknown(&mut self, writes: &[Write]) {
        for write in writes {
            match write {
                Write::Apply { event, .. } => {
                    self.attempted.insert(id(event), event.clone());
                }
                Write::Hint { event, .. } => {
                    self.hints_attempted.insert(id(event));
                }
                Write::HintsDone { target, up_to } => {
                    let done = self.hints_done.entry(*target).or_default();
                    *done = (*done).max(*up_to);
                }
                Write::Meta { name, value } => {
                    self.metas.entry(name.clone()).or_default().1.push(value.clone());
                }
            }
        }
    }

    /// A reader of the change log: what it has seen stays so for ever.
    fn read_changes(&mut self, storage: &Storage<SimDisk>) {
        let view = storage.view();
        let (first, end) = view.change_range();
        let from = self.published.last_key_value().map_or(first, |(last, _)| first.max(last + 1));
        let Ok(changes) = view.changes(from, usize::MAX, usize::MAX) else { return };
        assert_eq!(changes.len() as u64, end.saturating_sub(from));
        for change in changes {
            assert!(
                self.attempted.contains_key(&id(&change.event)),
                "published without an answer: {change:?}"
            );
            self.published.insert(change.sequence, id(&change.event));
        }
    }

    /// Compares storage, which has just been opened, with the model. What is there now is promised from now on.
    pub(crate) fn check(&mut self, storage: &Storage<SimDisk>) {
        let damage = storage.damage_log().status();
        assert_eq!(damage.places, 0, "a crash or a full disk is no damage: {damage:?}");
        let visible = all_events(storage);
        for (event_id, event) in &visible {
            assert_eq!(Some(event), self.attempted.get(event_id), "nobody wrote it so");
        }
        for event_id in &self.promised {
            assert!(visible.contains_key(event_id), "promised and lost: {event_id:?}");
        }
        self.check_changes(storage, &visible);
        Self::check_keys(storage, &visible);
        self.check_hints(storage);
        for (name, (promised, tried)) in &mut self.metas {
            let value = storage.meta(name);
            let known = value == *promised || value.as_ref().is_some_and(|v| tried.contains(v));
            assert!(known, "{name}: {value:?}, promised {promised:?}, tried {tried:?}");
            (*promised, *tried) = (value, Vec::new());
        }
        self.promised = visible.into_keys().collect();
        self.unsynced.clear();
    }

    fn check_changes(&mut self, storage: &Storage<SimDisk>, visible: &BTreeMap<Id, Event>) {
        let view = storage.view();
        let (first, end) = view.change_range();
        let changes = view.changes(first, usize::MAX, usize::MAX).unwrap();
        assert_eq!(changes.len() as u64, end - first);
        let mut seen = BTreeSet::new();
        let mut newest: BTreeMap<Bytes, Stamp> = BTreeMap::new();
        for (index, change) in changes.iter().enumerate() {
            assert_eq!(change.sequence, first + index as u64);
            assert_eq!(
                visible.get(&id(&change.event)),
                Some(&change.event),
                "published, not there"
            );
            assert!(seen.insert(id(&change.event)), "published twice: {change:?}");
            if let Some(before) = self.published.get(&change.sequence) {
                assert_eq!(*before, id(&change.event), "readers saw another change here");
            }
            if first == 1 {
                assert_eq!(change.previous, newest.get(&change.event.key).copied());
            }
            let known = newest.entry(change.event.key.clone()).or_insert(change.event.stamp);
            *known = change.event.stamp.max(*known);
        }
        if first == 1 {
            assert_eq!(seen.len(), visible.len(), "applied and never published");
        }
        if let Some((last, _)) = self.published.last_key_value() {
            assert!(*last < end, "published and lost");
        }
        self.published.extend(changes.iter().map(|change| (change.sequence, id(&change.event))));
    }

    fn check_keys(storage: &Storage<SimDisk>, visible: &BTreeMap<Id, Event>) {
        let view = storage.view();
        for key in b'a'..=b'l' {
            let of_key: Vec<&Event> =
                visible.values().filter(|event| event.key[..] == [key]).collect();
            let newest = view.get(1, KEYSPACE, &[key], Stamp::MAX).unwrap();
            assert_eq!(newest.as_ref(), of_key.last().copied());
            if let [_, .., middle, _] = of_key[..] {
                let found = view.get(1, KEYSPACE, &[key], middle.stamp).unwrap();
                assert_eq!(found.as_ref(), Some(middle));
            }
        }
    }

    fn check_hints(&mut self, storage: &Storage<SimDisk>) {
        for target in [NodeId(7), NodeId(8)] {
            let held = storage.hints(target, 0, usize::MAX).unwrap().hints;
            let done = self.hints_done.get(&target).copied().unwrap_or(0);
            let held: BTreeMap<u64, Event> = held.into_iter().collect();
            for event in held.values() {
                assert!(self.hints_attempted.contains(&id(event)), "nobody hinted it: {event:?}");
            }
            for ((_, sequence), (event, promised)) in
                self.hints.range((target, done + 1)..=(target, u64::MAX))
            {
                if *promised {
                    assert_eq!(held.get(sequence), Some(event), "a hint is lost");
                }
            }
            let from = (target, 0)..=(target, u64::MAX);
            let gone: Vec<_> = self.hints.range(from).map(|(key, _)| *key).collect();
            for key in gone {
                self.hints.remove(&key);
            }
            for (sequence, event) in held {
                self.hints.insert((target, sequence), (event, true));
            }
        }
    }
}

fn all_events(storage: &Storage<SimDisk>) -> BTreeMap<Id, Event> {
    let view = storage.view();
    let (mut all, mut cursor) = (BTreeMap::new(), None::<PartitionCursor>);
    loop {
        let page = view.partition_events(1, cursor.as_ref(), 7, 4000).unwrap();
        if let Some(last) = page.events.last() {
            let (keyspace, key, stamp) = (last.keyspace, last.key.clone(), last.stamp);
            cursor = Some(PartitionCursor { keyspace, key, stamp });
        }
        let more = page.more;
        all.extend(page.events.into_iter().map(|event| (id(&event), event)));
        if !more {
            let digest = view.digest(1).unwrap();
            assert_eq!(digest.events, all.len() as u64);
            return all;
        }
    }
}
