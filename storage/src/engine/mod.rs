//! [`Storage`]: the logs and the tree, put together.
//!
//! Invariants:
//!
//! - An event is in the write-ahead log before it is readable, and on disk there before it is in the change log.
//! - Each event that was applied has one sequence and is in the change log once, after a crash at any instant too:
//!   its sequence is in its record, and recovery appends what the change log misses and nothing else.
//! - A segment of the write-ahead log goes only when its events are in tables, its changes and hints are synced in
//!   logs of their own, and its named values are in the state file.
//! - After a failed sync no commit is answered with success until storage is opened again.
//! - A commit is checked as a whole before anything of it is written.
//!
//! It decides nothing about replicas, and reads no clock.

mod background;
mod commit;
mod job;
mod recovery;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use starling_clock::mutation::{self, Mutation};
use starling_clock::{NodeId, Stamp};

use crate::changes::ChangeLog;
use crate::hints::Hints;
use crate::identity;
use crate::log::write_failed;
use crate::state::State;
use crate::tree::{Addresses, Dropped, Tree};
use crate::types::CLUSTER_NAME_SIZE_MAX;
use crate::wal::Wal;
use crate::{
    Config, DamageLog, Disk, Error, HintPage, HistoryRetention, Identity, KeyspaceId, Lsn, Outcome,
    Retentions, Status, Sync, View, Write,
};
pub use job::Job;
use recovery::{Recovery, check_begin};

const WAL_DIR: &str = "wal";
const TABLES_DIR: &str = "tables";

/// What a write of the commit put into the write-ahead log.
enum Logged {
    Event { index: usize, address: usize, payload: Range<usize> },
    Hint { index: usize, payload: Range<usize> },
}

/// The storage of one node. One thread drives it; any number read through [`View`]s.
pub struct Storage<D: Disk> {
    disk: Arc<D>,
    config: Config,
    tree: Tree<D>,
    wal: Wal<D>,
    changes: ChangeLog<D>,
    hints: Hints<D>,
    metas: BTreeMap<String, Bytes>,
    retentions: Retentions,
    recovered: Stamp,
    logged: Vec<Logged>,
    addresses: Addresses,
    /// Somebody takes jobs: a commit that has no room does not do the work itself.
    helped: bool,
    damage: DamageLog,
    /// Ends with the process or with this value.
    _lock: D::Lock,
}

impl<D: Disk> Storage<D> {
    /// Opens the data directory, or makes it if it is empty, and recovers what the logs have.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::WrongNode`], [`Error::WrongCluster`], [`Error::NewerFormat`]: nothing was touched.
    /// [`Error::Corrupt`], [`Error::Missing`]: data was lost that had been promised. [`Error::Full`], [`Error::Io`],
    /// [`Error::WriteFailed`]: another try may succeed, and loses nothing.
    ///
    /// # Panics
    /// If a setting makes no sense, or the cluster's name is too long.
    #[expect(clippy::needless_pass_by_value, reason = "who opens storage has no more use for it")]
    pub fn open(disk: Arc<D>, config: Config, identity: Identity) -> Result<Self, Error> {
        config.check();
        assert!(identity.cluster.len() <= CLUSTER_NAME_SIZE_MAX);
        let lock = disk.lock("lock").map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => Error::Locked,
            _ => Error::io("lock", "lock")(error),
        })?;
        let known = identity::check(&*disk, &identity)?;
        if !known {
            for dir in [WAL_DIR, "changes", "hints", TABLES_DIR] {
                disk.create_dir(dir).map_err(Error::io("create", dir))?;
            }
        }
        // Names that an earlier process left may be known to the system only.
        for dir in ["", TABLES_DIR] {
            disk.sync_dir(dir).map_err(write_failed("sync", dir))?;
        }
        let state = State::read(&*disk)?;
        check_begin(&*disk, &state)?;
        let damage = DamageLog::default();
        let mut recovery = Recovery {
            tree: Tree::open(Arc::clone(&disk), TABLES_DIR, config.tree.clone())?,
            changes: ChangeLog::open(&disk, &config)?,
            hints: Hints::open(&disk, &config, &state.hints, damage.clone())?,
            state,
            buffer_bytes_max: config.log_buffer_bytes_max,
            memtable_bytes_max: config.memtable_bytes_max,
            bulk: None,
            addresses: Addresses::default(),
            last_change: None,
            greatest: Stamp::ZERO,
        };
        let wal = Wal::open(&disk, WAL_DIR, config.log_salt, !known, |lsn, sealed, record| {
            recovery.take(lsn, sealed, record)
        })?;
        recovery.finish(wal.last())?;
        if !known {
            if wal.last() != Lsn(0) {
                return Err(Error::Missing { file: "identity".to_owned() });
            }
            identity::write(&*disk, &identity)?;
        }
        let Recovery { tree, mut changes, mut hints, state, greatest, .. } = recovery;
        changes.publish();
        hints.publish();
        hints.finish_recovery();
        let mut retentions = Retentions::default();
        for (partition, floor) in tree.floors() {
            retentions.set_tombstone_floor(*partition, *floor);
        }
        let gone = tree.floors().values().max().copied().unwrap_or(Stamp::ZERO);
        Ok(Self {
            disk,
            config,
            recovered: greatest.max(tree.tables_greatest()).max(gone),
            tree,
            wal,
            changes,
            hints,
            metas: state.metas,
            retentions,
            logged: Vec::new(),
            addresses: Addresses::default(),
            helped: false,
            damage,
            _lock: lock,
        })
    }

    /// Makes the writes durable together: one write of the log, and one sync if `sync` or a write asks for it. The
    /// outcomes are in the order of the writes; a later write sees the earlier ones.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::KeyEmpty`], [`Error::HintsFull`], [`Error::Full`], [`Error::Busy`],
    /// [`Error::Poisoned`], or a failed read: nothing of the commit was done. [`Error::WriteFailed`]: any part of it may
    /// come up after a restart.
    pub fn commit(
        &mut self,
        writes: Vec<Write>,
        sync: Sync,
        now_ms: u64,
    ) -> Result<Vec<Outcome>, Error> {
        self.check_poison()?;
        self.validate(&writes)?;
        self.address(&writes);
        self.make_room(now_ms)?;
        for write in &writes {
            if let Write::Hint { target, .. } = write {
                let result = self.hints.prepare(*target);
                self.poison_on(result)?;
            }
        }
        assert!(self.wal.is_empty());
        self.logged.clear();
        let outcomes = self.plan(&writes).inspect_err(|_| self.wal.abandon())?;
        if !self.wal.is_empty() {
            self.wal.write()?;
        }
        let staged = self.changes.staged_bytes() + self.hints.staged_bytes();
        let synced = sync == Sync::Now
            || writes.iter().any(|write| matches!(write, Write::Meta { .. }))
            || staged > self.buffers_max();
        if synced && let Err(error) = self.wal.sync() {
            self.wal.abandon();
            return Err(error);
        }
        self.apply(writes);
        self.wal.abandon();
        if synced || mutation::is(Mutation::ChangesBeforeLog) {
            self.publish();
        }
        Ok(outcomes)
    }

    /// Makes everything that was committed with [`Sync::Later`] durable, and publishes it.
    ///
    /// # Errors
    /// [`Error::WriteFailed`]: what was not synced may be lost. [`Error::Poisoned`]: it was so before.
    pub fn sync(&mut self) -> Result<(), Error> {
        self.check_poison()?;
        self.wal.sync()?;
        self.publish();
        Ok(())
    }

    /// Whether something waits for [`Self::sync`].
    pub fn unsynced(&self) -> bool {
        self.wal.unsynced() > 0
    }

    /// What is readable now, for any thread. It sees later events too as long as it [is current](Self::is_current).
    pub fn view(&self) -> View<D> {
        View::new(self.tree.view(), self.changes.reader())
    }

    /// Whether another view would show nothing that `view` does not: whoever hands views to readers has no need to take one for each
    /// commit. A view ceases to be current when a memtable is full, and when a job [has finished](Self::finish_job).
    pub fn is_current(&self, view: &View<D>) -> bool {
        self.tree.is_current(view.tree())
    }

    /// How much history `keyspace` keeps, from the next merge on. Not kept over a restart.
    pub fn set_retention(&mut self, keyspace: KeyspaceId, retention: HistoryRetention) {
        self.retentions.set_history(keyspace, retention);
    }

    /// Every home replica of `partition` has everything up to `floor`: merges may drop older tombstones, and nothing that
    /// is not above it comes in any more ([`Outcome::BelowFloor`], or [`Outcome::Superseded`] for direct writes). It never
    /// goes back. Over a restart as much of it is kept as tombstones were dropped under.
    pub fn set_tombstone_floor(&mut self, partition: u32, floor: Stamp) {
        self.retentions.set_tombstone_floor(partition, floor);
    }

    /// Forgets all events of `partition`, of all keyspaces, and its tombstone floor: this node is no longer home to it. Durable
    /// when it returns, and done by one small write; the room is free as merges come by. What is applied afterwards is kept,
    /// an event that was here before too, which is then published again. The change log keeps what it has. Reads that are
    /// under way may find the partition in part. `now_ms` is milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Busy`], [`Error::Io`]: nothing was forgotten. [`Error::WriteFailed`]: it was, or not;
    /// a restart tells. [`Error::Poisoned`]: it was so before.
    pub fn drop_partition(&mut self, partition: u32, now_ms: u64) -> Result<(), Error> {
        self.check_poison()?;
        if self.tree.is_active(partition) {
            self.make_place(now_ms)?;
            let result = self.rotate_tree();
            self.poison_on(result)?;
        }
        // The log must not end before what is said to be gone: its numbers would be given to others.
        self.sync()?;
        let dropped = Dropped { up_to: self.wal.last(), changes: self.changes.next() };
        let result = self.tree.drop_partition(partition, dropped);
        self.poison_on(result)?;
        self.retentions.forget_tombstone_floor(partition);
        Ok(())
    }

    /// Merges all tables into one run by and by, so that what may go goes.
    pub fn request_full_merge(&mut self) {
        self.tree.request_full_merge();
    }

    /// The value of [`Write::Meta`] with this name.
    pub fn meta(&self, name: &str) -> Option<Bytes> {
        self.metas.get(name).cloned()
    }

    /// All named values whose names begin with `prefix`, by name.
    pub fn metas(&self, prefix: &str) -> Vec<(String, Bytes)> {
        let from = self.metas.range(prefix.to_owned()..);
        let found = from.take_while(|(name, _)| name.starts_with(prefix));
        found.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// The greatest stamp of all events that there were when storage was opened, so that a clock can go on above it;
    /// [`Stamp::ZERO`] if there were none.
    pub fn recovered_stamp(&self) -> Stamp {
        self.recovered
    }

    /// Nodes with hints held for them: how many, and bytes.
    pub fn hint_targets(&self) -> Vec<(NodeId, u64, u64)> {
        self.hints.targets()
    }

    /// Hints for `target` after the one numbered `after`, oldest first: no further one once they hold `bytes_max`
    /// bytes, one at the least if there is any. What is damaged is noted in [`Self::damage_log`] and passed over.
    ///
    /// # Errors
    /// A failed read.
    pub fn hints(&self, target: NodeId, after: u64, bytes_max: usize) -> Result<HintPage, Error> {
        self.hints.read(target, after, bytes_max)
    }

    /// The first change that is kept, and one past the last that may be read.
    pub fn change_range(&self) -> (u64, u64) {
        self.changes.reader().range()
    }

    /// What was found damaged since storage was opened: what it passed over by itself, and what its users note there.
    pub fn damage_log(&self) -> DamageLog {
        self.damage.clone()
    }

    /// Counts and sizes.
    pub fn status(&self) -> Status {
        let tree = self.tree.status();
        let (wal_segments, wal_bytes) = self.wal.size();
        let (changes_first, changes_end) = self.change_range();
        let targets = self.hints.targets();
        Status {
            memtable_bytes: tree.memtable_bytes,
            tables: tree.tables,
            table_bytes: tree.table_bytes,
            wal_segments,
            wal_bytes,
            wal_next: self.wal.last().0 + 1,
            changes_first,
            changes_end,
            change_bytes: self.changes.bytes(),
            hints: targets.iter().map(|(_, count, _)| count).sum(),
            hint_bytes: targets.iter().map(|(_, _, bytes)| bytes).sum(),
            unsynced_records: self.wal.unsynced(),
            pressure: self.pressure(),
            poisoned: self.wal.is_poisoned(),
        }
    }

    fn check_poison(&self) -> Result<(), Error> {
        if self.wal.is_poisoned() { Err(Error::Poisoned) } else { Ok(()) }
    }

    fn poison_on<T>(&mut self, result: Result<T, Error>) -> Result<T, Error> {
        if matches!(result, Err(Error::WriteFailed { .. } | Error::Poisoned)) {
            self.wal.poison();
        }
        result
    }

    fn publish(&mut self) {
        let early = mutation::is(Mutation::ChangesBeforeLog);
        assert!(self.wal.unsynced() == 0 || early, "only what is on disk is published");
        self.changes.publish();
        self.hints.publish();
    }
}
