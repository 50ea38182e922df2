//! [`Node`]: one simulated machine: a disk, a wall clock, and, while it runs, the real core on the real storage.
//!
//! Invariants:
//!
//! - A life ends with its core and writer; what outlives it is the disk, and the clock's error.
//! - A panic of the node's code ends the node and nothing else.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use starling_clock::{ClockConfig, NodeId};
use starling_gossip::GossipConfig;
use starling_node::core::storage::{Reader, StorageRequest, Writer};
use starling_node::core::types::{Now, Ticket};
use starling_node::core::{Core, CoreConfig};
use starling_node::limits::Limits;
use starling_ring::Epoch;
use starling_storage::{Config, CrashMode, Error, Identity, Job, SimDisk, Storage, TreeConfig};

/// Name of the simulated cluster.
const CLUSTER: &str = "simulated";

/// What all nodes of a run are made with.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) epoch: Epoch,
    pub(super) addresses: BTreeMap<NodeId, SocketAddr>,
    pub(super) limits: Limits,
    pub(super) storage: Config,
}

/// Where a node is.
pub(super) fn address_of(index: usize) -> SocketAddr {
    let port = u16::try_from(7001 + index).expect("nodes are few");
    SocketAddr::from(([10, 0, 0, 1], port))
}

/// Short waits, so that a run of virtual seconds sees every timer.
pub(super) fn limits() -> Limits {
    Limits {
        hint_after_ms: 200,
        hint_batch_timeout_ms: 500,
        retry_ms: (50, 400),
        anti_entropy_interval_ms: 5_000,
        anti_entropy_timeout_ms: 1_000,
        anti_entropy_first_ms: 1_000,
        ..Limits::default()
    }
}

/// How long consumers of change logs are busy with what they were sent, in microseconds: some follow closely, some are far behind.
const CONSUMER_US: [u64; 5] = [500, 2_000, 10_000, 50_000, 400_000];

/// Small bounds, so that a run of virtual seconds sees flushes, merges and ends of segments.
pub(super) fn storage_config(random: &mut ChaCha8Rng) -> Config {
    let scale = random.random_range(0..4_u32);
    Config {
        payload_size_max: 1 << 20,
        memtable_bytes_max: (64 << 10) << scale,
        wal_segment_bytes_max: (96 << 10) << scale,
        change_segment_bytes_max: (32 << 10) << scale,
        change_bytes_max: if random.random_range(0..5) == 0 { 256 << 10 } else { 1 << 30 },
        hint_bytes_max: if random.random_range(0..10) == 0 { 20_000 } else { 1 << 30 },
        hint_segment_bytes_max: (8 << 10) << scale,
        log_buffer_bytes_max: (4 << 10) << random.random_range(0..6_u32),
        tree: TreeConfig {
            block_bytes: 1 << 10,
            block_cache_bytes: (32 << 10) << (2 * scale),
            table_bytes_max: (256 << 10) << scale,
            work_bytes: 32 << 10,
            ..TreeConfig::default()
        },
        ..Config::default()
    }
}

/// A machine.
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) disk: SimDisk,
    pub(super) life: u64,
    pub(super) running: Option<Running>,
    /// What is left of unsynced work at the next crash.
    pub(super) crash_mode: CrashMode,
    /// Disk calls of the next recovery until the power goes again.
    pub(super) recovery_crash: Option<u64>,
    /// It is not started before this.
    pub(super) down_until_us: u64,
    /// Its start is scheduled.
    pub(super) booting: bool,
    /// Data on its disk was destroyed.
    pub(super) damaged: bool,
    /// Its disk was replaced by an empty one, and what it had may not be back.
    pub(super) renewed: bool,
    /// The furthest that its clock has been in lives that are over, in milliseconds.
    pub(super) clock_ms: u64,
    /// Where its clock had been when its disk was given up, in milliseconds.
    pub(super) given_up_ms: u64,
    /// Something fails on its disk now, or did since the last start.
    pub(super) disk_faulty: bool,
    pub(super) paused: bool,
    pub(super) slow: u64,
    pub(super) slow_disk: u64,
    /// Where its change log's consumer goes on.
    pub(super) cursor: Option<u64>,
}

/// A life of a node.
pub(super) struct Running {
    pub(super) core: Core,
    pub(super) writer: Writer<SimDisk>,
    pub(super) reader: Reader<SimDisk>,
    /// What waits for the next commit.
    pub(super) writes: Vec<(Ticket, StorageRequest)>,
    /// A commit is going on, or is about to begin.
    pub(super) committing: bool,
    /// The read lane is busy until then.
    pub(super) reads_until_us: u64,
    pub(super) reads_waiting: usize,
    pub(super) sync_scheduled: bool,
    pub(super) work_left: bool,
    /// A thread of its own flushes and merges.
    pub(super) has_helper: bool,
    /// What that has to do, and what it has done.
    pub(super) jobs: VecDeque<Job<SimDisk>>,
    pub(super) jobs_ended: Vec<Job<SimDisk>>,
    /// It is at work.
    pub(super) stepping: bool,
    /// The core's thread is busy until then.
    pub(super) core_until_us: u64,
    pub(super) changes_end: u64,
    pub(super) timer_us: Option<u64>,
    pub(super) poisoned: bool,
    pub(super) subscribed: bool,
    /// How long the consumer of its change log is busy with what it was sent.
    pub(super) consumer_us: u64,
}

/// Why a node did not start.
#[derive(Debug)]
pub(super) enum BootError {
    /// The power went.
    Crashed,
    /// Another try may succeed.
    Again(String),
    /// Data that had been promised is not there.
    Lost(String),
    Panicked(String),
}

impl Node {
    pub(super) fn new(id: NodeId, disk: SimDisk) -> Self {
        Self {
            id,
            disk,
            life: 0,
            running: None,
            crash_mode: CrashMode::LoseUnsynced,
            recovery_crash: None,
            down_until_us: 0,
            booting: false,
            damaged: false,
            renewed: false,
            clock_ms: 0,
            given_up_ms: 0,
            disk_faulty: false,
            paused: false,
            slow: 1,
            slow_disk: 1,
            cursor: None,
        }
    }

    /// Starts from what the disk holds.
    pub(super) fn boot(
        &mut self,
        settings: &Settings,
        seed: u64,
        now: Now,
    ) -> Result<(), BootError> {
        assert!(self.running.is_none());
        self.life += 1;
        if let Some(calls) = self.recovery_crash.take() {
            let at = self.disk.calls() + calls;
            self.disk.inject(at, starling_storage::Fault::Crash);
        }
        let opened = guard(|| self.open(settings, seed, now));
        match opened {
            Ok(Ok(running)) => {
                self.running = Some(running);
                Ok(())
            }
            _ if self.disk.is_crashed() => Err(BootError::Crashed),
            Ok(Err(error)) => Err(error),
            Err(message) => Err(BootError::Panicked(message)),
        }
    }

    fn open(&self, settings: &Settings, seed: u64, now: Now) -> Result<Running, BootError> {
        let identity = Identity { cluster: CLUSTER.to_owned(), node: self.id };
        let log_salt = u32::try_from(seed >> 32).expect("half of it");
        let config = Config { log_salt, ..settings.storage.clone() };
        let storage = Storage::open(Arc::new(self.disk.clone()), config, identity);
        let storage = storage.map_err(|error| match error {
            Error::Full { .. } | Error::Io { .. } | Error::WriteFailed { .. } => {
                BootError::Again(error.to_string())
            }
            _ => BootError::Lost(error.to_string()),
        })?;
        let config = CoreConfig {
            cluster: CLUSTER.to_owned(),
            node: self.id,
            software: "0.0.0".to_owned(),
            epoch: settings.epoch.clone(),
            addresses: settings.addresses.clone(),
            gossip: GossipConfig::scaled(200_000),
            clock: ClockConfig::default(),
            limits: settings.limits.clone(),
        };
        let core = Core::new(config, &storage.metas(""), seed, now);
        let core = core.map_err(|error| BootError::Lost(error.to_string()))?;
        let changes_end = storage.change_range().1;
        let writer = Writer::new(storage);
        let reader = writer.reader();
        Ok(Running {
            core,
            writer,
            reader,
            writes: Vec::new(),
            committing: false,
            reads_until_us: 0,
            reads_waiting: 0,
            sync_scheduled: false,
            work_left: false,
            has_helper: seed & 1 == 1,
            jobs: VecDeque::new(),
            jobs_ended: Vec::new(),
            stepping: false,
            core_until_us: 0,
            changes_end,
            timer_us: None,
            poisoned: false,
            subscribed: false,
            consumer_us: CONSUMER_US
                [usize::try_from(seed >> 1 & 0xff).expect("a byte") % CONSUMER_US.len()],
        })
    }
}

/// Runs the node's code; a panic is told as its message.
pub(super) fn guard<T>(body: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(body)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "it panicked".to_owned())
    })
}
