//! Our engine, driven as a node drives it: one writer at a time, group commit, views for readers, background work on a thread of
//! its own.
//!
//! Invariants:
//!
//! - Writes that wait while a commit is under way are the next commit (`group_commit.rs`). A writer that is alone commits at once,
//!   on its own thread.
//! - A write is answered after its commit, and after a view that shows it was published.
//! - While every place for a memtable is taken, writers wait for a flush to end.
//!
//! All keys are in one partition of one keyspace, so that a scan is in the order of keys, as the peers' are. The change log is
//! kept, the peers have none.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, TryLockError};
use std::thread::JoinHandle;
use std::time::Duration;

use starling_clock::{HybridTime, NodeId, Stamp};
use starling_storage::{
    Action, Config, Event, EventRef, HistoryRetention, Identity, Job, KeyspaceId, Mode, OsDisk,
    Progress, Provenance, RequestId, Scan, Storage, Sync, View, Write,
};

use super::api::{Change, Durability, Engine, EngineError, Range, Reader, Settings, Visit};
use super::group_commit::{GroupCommit, Takes};

const NAME: &str = "starling";
const NODE: NodeId = NodeId(1);
const PARTITION: u32 = 0;
const KEYSPACE: KeyspaceId = KeyspaceId(1);
/// The packed time of the first event: 2026. Time is a counter here, which no system clock can put back.
const BEGINNING: u64 = HybridTime::new(NOW_MS, 0).packed();
const NOW_MS: u64 = 1_767_225_600_000;
/// After so many bytes of commits the background looks for work.
const WAKE_BYTES: usize = 1 << 20;
/// And after so long.
const WAKE_INTERVAL: Duration = Duration::from_millis(20);

struct Starling {
    shared: Arc<Shared>,
    background: Option<JoinHandle<()>>,
}

/// What writers, readers and the background share.
struct Shared {
    disk: Arc<OsDisk>,
    storage: Mutex<Driven>,
    /// Told when a job ended, for writers that wait for room.
    room: Condvar,
    writes: GroupCommit<Write>,
    /// The packed time of the newest event.
    newest: AtomicU64,
    view: Mutex<View<OsDisk>>,
    /// Counts published views.
    published: AtomicU64,
    background: Mutex<Background>,
    /// Told when there may be work, or nothing is left of it.
    work: Condvar,
}

/// The storage, in the hands of one thread at a time.
struct Driven {
    storage: Storage<OsDisk>,
    /// What was published last.
    view: View<OsDisk>,
    /// Bytes that were committed since the background was told of any.
    bytes: usize,
}

#[derive(Default)]
struct Background {
    stop: bool,
    awake: bool,
    /// Counts requests to be told when nothing is left to do, and those that were answered.
    asked: u64,
    settled: u64,
    failed: Option<String>,
}

fn failed(error: impl std::fmt::Display) -> EngineError {
    EngineError::new(NAME, error)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics with this lock")
}

/// Opens or makes what is in `dir`.
pub(super) fn open(dir: &Path, settings: Settings) -> Result<Box<dyn Engine>, EngineError> {
    let mut config = Config { memtable_bytes_max: settings.memtable_bytes, ..Config::default() };
    config.wal_segment_bytes_max =
        config.wal_segment_bytes_max.max(4 * settings.memtable_bytes as u64);
    config.tree.block_cache_bytes = settings.cache_bytes as u64;
    config.tree.bloom_bits_per_key = settings.bloom_bits_per_key;
    let identity = Identity { cluster: "bench".to_owned(), node: NODE };
    let disk = Arc::new(OsDisk::new(dir).map_err(failed)?);
    let mut storage = Storage::open(Arc::clone(&disk), config, identity).map_err(failed)?;
    if !settings.history {
        let only_the_newest = HistoryRetention { versions_max: Some(1), age_ms_max: None };
        storage.set_retention(KEYSPACE, only_the_newest);
    }
    let newest = storage.recovered_stamp().time.packed().max(BEGINNING);
    let view = storage.view();
    let shared = Arc::new(Shared {
        disk,
        view: Mutex::new(view.clone()),
        storage: Mutex::new(Driven { storage, view, bytes: 0 }),
        room: Condvar::new(),
        writes: GroupCommit::default(),
        newest: AtomicU64::new(newest),
        published: AtomicU64::new(0),
        background: Mutex::default(),
        work: Condvar::new(),
    });
    let worker = Arc::clone(&shared);
    let background = std::thread::Builder::new()
        .name("background".to_owned())
        .spawn(move || worker.run_background())
        .map_err(failed)?;
    Ok(Box::new(Starling { shared, background: Some(background) }))
}

impl Drop for Starling {
    fn drop(&mut self) {
        lock(&self.shared.background).stop = true;
        self.shared.work.notify_all();
        let ended = self.background.take().map(JoinHandle::join);
        assert!(ended.is_none_or(|ended| ended.is_ok()), "the background does not panic");
        // What fails here was never answered as being on disk.
        let _ = lock(&self.shared.storage).storage.sync();
    }
}

impl Engine for Starling {
    fn write(&self, changes: &[Change<'_>], durability: Durability) -> Result<(), EngineError> {
        self.shared.write(changes, durability == Durability::Disk)
    }

    fn reader(&self) -> Box<dyn Reader + '_> {
        let published = self.shared.published.load(Ordering::Acquire);
        let view = lock(&self.shared.view).clone();
        Box::new(StarlingReader { shared: &self.shared, view, published })
    }

    fn settle(&self) -> Result<(), EngineError> {
        lock(&self.shared.storage).storage.rotate().map_err(failed)?;
        self.shared.wait_settled()
    }

    fn compact(&self) -> Result<(), EngineError> {
        self.settle()?;
        {
            let storage = &mut lock(&self.shared.storage).storage;
            // Every replica there is has all of it.
            let newest = stamp(self.shared.newest.load(Ordering::Relaxed));
            storage.set_tombstone_floor(PARTITION, newest);
            storage.request_full_merge();
        }
        self.shared.wait_settled()
    }

    fn change_log_bytes(&self) -> u64 {
        lock(&self.shared.storage).storage.status().change_bytes
    }

    fn copied_bytes(&self) -> u64 {
        self.shared.disk.copied_bytes()
    }
}

fn stamp(packed: u64) -> Stamp {
    let time = HybridTime::from_packed(packed).expect("a counter that began in this century");
    Stamp::new(time, NODE)
}

fn event(change: &Change<'_>, packed: u64) -> Event {
    let (key, action, payload) = match *change {
        Change::Put(key, value) => (key, Action::Put, value),
        Change::Delete(key) => (key, Action::Delete, [].as_slice()),
    };
    Event {
        partition: PARTITION,
        keyspace: KEYSPACE,
        key: key.to_vec().into(),
        stamp: stamp(packed),
        request: RequestId::default(),
        action,
        payload: payload.to_vec().into(),
    }
}

fn size_of_event(write: &Write) -> usize {
    match write {
        Write::Apply { event, .. } => event.encoded_len(),
        _ => 0,
    }
}

impl Shared {
    fn write(&self, changes: &[Change<'_>], sync: bool) -> Result<(), EngineError> {
        let count = changes.len() as u64;
        let before = self.newest.fetch_add(count, Ordering::Relaxed);
        let write = |(change, packed)| {
            let (provenance, mode) = (Provenance::Write, Mode::Direct);
            Write::Apply { event: event(change, packed), provenance, mode }
        };
        let writes = changes.iter().zip(before + 1..).map(write);
        let takes = if sync { Takes::Long } else { Takes::Short };
        let commit = |writes, takes| self.commit(writes, takes);
        let written = match changes {
            [change] => self.writes.submit([write((change, before + 1))], takes, commit),
            _ => self.writes.submit(writes.collect::<Vec<_>>(), takes, commit),
        };
        written.map_err(failed)
    }

    fn commit(&self, writes: Vec<Write>, takes: Takes) -> Result<(), starling_storage::Error> {
        let sync = if takes == Takes::Long { Sync::Now } else { Sync::Later };
        let bytes: usize = writes.iter().map(size_of_event).sum();
        let mut driven = lock(&self.storage);
        while driven.storage.pressure() >= 100 {
            self.wake_background();
            let waited = self.room.wait_timeout(driven, WAKE_INTERVAL);
            driven = waited.expect("nobody panics with this lock").0;
        }
        driven.storage.commit(writes, sync, NOW_MS)?;
        self.publish(&mut driven);
        driven.bytes += bytes;
        if WAKE_BYTES <= driven.bytes {
            driven.bytes = 0;
            drop(driven);
            self.wake_background();
        }
        Ok(())
    }

    fn publish(&self, driven: &mut Driven) {
        if !driven.storage.is_current(&driven.view) {
            driven.view = driven.storage.view();
            *lock(&self.view) = driven.view.clone();
            self.published.fetch_add(1, Ordering::Release);
        }
    }

    fn wake_background(&self) {
        lock(&self.background).awake = true;
        self.work.notify_all();
    }

    /// Waits until nothing is left to do in the background.
    fn wait_settled(&self) -> Result<(), EngineError> {
        let mut background = lock(&self.background);
        background.asked += 1;
        let asked = background.asked;
        self.work.notify_all();
        let settled = |state: &mut Background| state.settled < asked && state.failed.is_none();
        let state =
            self.work.wait_while(background, settled).expect("nobody panics with this lock");
        state.failed.as_ref().map_or(Ok(()), |error| Err(failed(error)))
    }

    fn run_background(&self) {
        let mut jobs: Vec<Job<OsDisk>> = Vec::new();
        loop {
            let (stop, asked) = {
                let mut background = lock(&self.background);
                let idle = |state: &mut Background| {
                    !state.stop && !state.awake && state.asked == state.settled
                };
                if jobs.is_empty() {
                    let waited = self.work.wait_timeout_while(background, WAKE_INTERVAL, idle);
                    background = waited.expect("nobody panics with this lock").0;
                }
                background.awake = false;
                (background.stop, background.asked)
            };
            match self.step_background(&mut jobs, stop) {
                Ok(_) if stop => return,
                Ok(Progress::Did) => {}
                Ok(Progress::Idle) => {
                    lock(&self.background).settled = asked;
                    self.work.notify_all();
                }
                Err(error) => {
                    lock(&self.background).failed = Some(error.to_string());
                    self.work.notify_all();
                    return;
                }
            }
        }
    }

    /// One step of the job that is out and comes first; takes new ones in, and back those that are done. While there are jobs it
    /// does not wait for a writer to look for others: a node's thread for jobs does not either.
    fn step_background(
        &self,
        jobs: &mut Vec<Job<OsDisk>>,
        stop: bool,
    ) -> Result<Progress, starling_storage::Error> {
        let driven = match self.storage.try_lock() {
            _ if stop => None,
            Err(TryLockError::WouldBlock) if !jobs.is_empty() => None,
            Err(_) => Some(lock(&self.storage)),
            Ok(driven) => Some(driven),
        };
        if let Some(mut driven) = driven {
            let storage = &mut driven.storage;
            jobs.extend(std::iter::from_fn(|| storage.begin_job(NOW_MS)));
        }
        let first = (0..jobs.len()).min_by_key(|&index| jobs[index].rank()).unwrap_or(0);
        if let Some(job) = jobs.get_mut(first)
            && !stop
            && job.step() == Progress::Did
        {
            return Ok(Progress::Did);
        }
        let mut driven = lock(&self.storage);
        let ended = if stop { jobs.len() } else { jobs.len().min(1) };
        for _ in 0..ended {
            let job = jobs.remove(if stop { 0 } else { first });
            driven.storage.finish_job(job)?;
            self.publish(&mut driven);
            self.room.notify_all();
        }
        if !stop {
            // What has become work for a job is begun as one: upkeep would do it here, while writers wait.
            jobs.extend(std::iter::from_fn(|| driven.storage.begin_job(NOW_MS)));
        }
        let upkeep = driven.storage.upkeep(NOW_MS)?;
        Ok(if ended > 0 || !jobs.is_empty() { Progress::Did } else { upkeep })
    }
}

struct StarlingReader<'a> {
    shared: &'a Shared,
    view: View<OsDisk>,
    published: u64,
}

impl StarlingReader<'_> {
    fn view(&mut self) -> &View<OsDisk> {
        let published = self.shared.published.load(Ordering::Acquire);
        if published != self.published {
            self.view = lock(&self.shared.view).clone();
            self.published = published;
        }
        &self.view
    }
}

impl Reader for StarlingReader<'_> {
    fn get(&mut self, key: &[u8]) -> Result<Option<usize>, EngineError> {
        let length = |event: EventRef<'_>| {
            let live = event.action == Action::Put;
            live.then_some(event.payload.len())
        };
        let found = self.view().get_with(PARTITION, KEYSPACE, key, Stamp::MAX, length);
        Ok(found.map_err(failed)?.flatten())
    }

    fn scan(
        &mut self,
        range: Range<'_>,
        limit: usize,
        visit: Visit<'_>,
    ) -> Result<(), EngineError> {
        let (prefix, after): (&[u8], Option<Vec<u8>>) = match range {
            Range::All => (&[], None),
            Range::From(key) => (&[], just_before(key)),
            Range::Prefix(prefix) => (prefix, None),
        };
        let scan = Scan {
            after: after.as_deref(),
            live_only: true,
            limit,
            ..Scan::new(PARTITION, KEYSPACE, prefix)
        };
        let show = |event: EventRef<'_>| {
            visit(event.key, event.payload);
            ControlFlow::Continue(())
        };
        self.view().scan_each(&scan, show).map(drop).map_err(failed)
    }
}

/// A place after every smaller key of this length and before `key`; `None`: there is none smaller.
fn just_before(key: &[u8]) -> Option<Vec<u8>> {
    let (last, rest) = key.split_last()?;
    let below = last.checked_sub(1)?;
    let mut place = rest.to_vec();
    place.extend_from_slice(&[below, 0xff]);
    Some(place)
}
