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

use std::collections::{BTreeMap, BTreeSet};
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
use crate::tree::{Tree, TreeView};
use crate::types::{
    CLUSTER_NAME_SIZE_MAX, META_COUNT_MAX, META_NAME_SIZE_MAX, META_VALUE_SIZE_MAX,
};
use crate::wal::{CHANGE_PART, WAL_HINT_HEADER_SIZE, Wal, WalRecord, encode_event_header};
use crate::{
    Config, Disk, Error, Event, EventId, HistoryRetention, Identity, KEY_SIZE_MAX, KeyspaceId, Lsn,
    Mode, Outcome, Progress, Provenance, Retentions, Status, Sync, View, Write,
};

const WAL_DIR: &str = "wal";
const TABLES_DIR: &str = "tables";
/// Memtables that may wait for their flush; a commit that would add one flushes first.
const FROZEN_MAX: u64 = 3;
/// Changes and hints may wait in memory for so many times `log_buffer_bytes_max` when they cannot be written.
const BACKLOG_FACTOR: usize = 16;
/// All named values together, names counted, in bytes: the state file is written as a whole.
const META_BYTES_MAX: usize = 64 << 20;

/// A unit of background work, which tells whether there was anything to do.
type Unit<D> = fn(&mut Storage<D>, now_ms: u64) -> Result<bool, Error>;

/// What a write of the commit put into the write-ahead log.
enum Logged {
    Event { index: usize, payload: Range<usize> },
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
        let mut recovery = Recovery {
            tree: Tree::open(Arc::clone(&disk), TABLES_DIR, config.tree.clone())?,
            changes: ChangeLog::open(&disk, &config)?,
            hints: Hints::open(&disk, &config, &state.hints)?,
            state,
            buffer_bytes_max: config.log_buffer_bytes_max,
            last_change: None,
            greatest: Stamp::ZERO,
            scratch: Vec::new(),
        };
        let wal = Wal::open(&disk, WAL_DIR, config.log_salt, !known, |lsn, sealed, record| {
            recovery.take(lsn, sealed, record)
        })?;
        recovery.check(wal.last())?;
        if !known {
            if wal.last() != Lsn(0) {
                return Err(Error::Missing { file: "identity".to_owned() });
            }
            identity::write(&*disk, &identity)?;
        }
        let Recovery { tree, mut changes, mut hints, state, greatest, .. } = recovery;
        changes.publish();
        hints.publish();
        Ok(Self {
            disk,
            config,
            recovered: greatest.max(tree.tables_greatest()),
            tree,
            wal,
            changes,
            hints,
            metas: state.metas,
            retentions: Retentions::default(),
            logged: Vec::new(),
            _lock: lock,
        })
    }

    /// Makes the writes durable together: one write of the log, and one sync if `sync` or a write asks for it. The
    /// outcomes are in the order of the writes; a later write sees the earlier ones.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::KeyEmpty`], [`Error::HintsFull`], [`Error::Full`], [`Error::Poisoned`], or a failed
    /// read: nothing of the commit was done. [`Error::WriteFailed`]: any part of it may come up after a restart.
    pub fn commit(
        &mut self,
        writes: Vec<Write>,
        sync: Sync,
        now_ms: u64,
    ) -> Result<Vec<Outcome>, Error> {
        self.check_poison()?;
        self.validate(&writes)?;
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
            || staged > self.config.log_buffer_bytes_max;
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

    /// Does one bounded unit of background work; `now_ms` is milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Io`]: that unit is tried again the next time. [`Error::Corrupt`], [`Error::Missing`]: a
    /// merge met damage. [`Error::WriteFailed`], [`Error::Poisoned`]: nothing more is done until storage is opened again.
    pub fn work(&mut self, now_ms: u64) -> Result<Progress, Error> {
        self.check_poison()?;
        // What frees room is tried even if what needs room has failed.
        let mut failed = None;
        let units: [Unit<D>; 5] = [
            |storage, now_ms| storage.work_tree(now_ms),
            |storage, _| storage.trim_wal(),
            |storage, now_ms| storage.changes.work(now_ms),
            |storage, _| storage.work_hints(),
            // Last: there is something after each commit, and the tree must not wait for that to end.
            |storage, _| storage.write_logs(),
        ];
        for unit in units {
            let result = unit(self, now_ms);
            match self.poison_on(result) {
                Ok(true) => return Ok(Progress::Did),
                Ok(false) => {}
                Err(error @ (Error::WriteFailed { .. } | Error::Poisoned)) => return Err(error),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(Progress::Idle), Err)
    }

    /// What is readable now, for any thread. Take a new one to see later events for certain.
    pub fn view(&self) -> View<D> {
        View::new(self.tree.view(), self.changes.reader())
    }

    /// How much history `keyspace` keeps, from the next merge on. Not kept over a restart.
    pub fn set_retention(&mut self, keyspace: KeyspaceId, retention: HistoryRetention) {
        self.retentions.set_history(keyspace, retention);
    }

    /// Every home replica of `partition` has everything up to `floor`: merges may drop older tombstones. Not kept over
    /// a restart, never goes back.
    pub fn set_tombstone_floor(&mut self, partition: u32, floor: Stamp) {
        self.retentions.set_tombstone_floor(partition, floor);
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
    /// bytes, one at the least if there is any.
    ///
    /// # Errors
    /// [`Error::Corrupt`] or a failed read.
    pub fn hints(
        &self,
        target: NodeId,
        after: u64,
        bytes_max: usize,
    ) -> Result<Vec<(u64, Event)>, Error> {
        self.hints.read(target, after, bytes_max)
    }

    /// The first change that is kept, and one past the last that may be read.
    pub fn change_range(&self) -> (u64, u64) {
        self.changes.reader().range()
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

    /// Refuses what is over a limit, before anything is written.
    fn validate(&self, writes: &[Write]) -> Result<(), Error> {
        let mut hints: BTreeMap<NodeId, (u64, u64)> = BTreeMap::new();
        for write in writes {
            match write {
                Write::Apply { event, .. } => self.validate_event(event)?,
                Write::Hint { target, event } => {
                    self.validate_event(event)?;
                    let (count, bytes) = hints.entry(*target).or_default();
                    *count += 1;
                    *bytes += event.encoded_len() as u64;
                }
                Write::HintsDone { .. } => {}
                Write::Meta { name, value } => {
                    check_size("name of a value", name.len(), META_NAME_SIZE_MAX)?;
                    check_size("named value", value.len(), META_VALUE_SIZE_MAX)?;
                }
            }
        }
        for (target, (count, bytes)) in hints {
            self.hints.check_room(target, count, bytes)?;
        }
        self.validate_metas(writes)
    }

    fn validate_event(&self, event: &Event) -> Result<(), Error> {
        if event.key.is_empty() {
            return Err(Error::KeyEmpty);
        }
        check_size("key", event.key.len(), KEY_SIZE_MAX)?;
        check_size("payload", event.payload.len(), self.config.payload_size_max)
    }

    fn validate_metas(&self, writes: &[Write]) -> Result<(), Error> {
        let mut new = BTreeMap::new();
        for write in writes {
            if let Write::Meta { name, value } = write {
                new.insert(name, value.len());
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        let kept = self.metas.iter().filter(|(name, _)| !new.contains_key(*name));
        let kept: Vec<usize> = kept.map(|(name, value)| name.len() + value.len()).collect();
        check_size("count of named values", kept.len() + new.len(), META_COUNT_MAX)?;
        let new: usize = new.iter().map(|(name, size)| name.len() + size).sum();
        check_size("total of named values", new + kept.iter().sum::<usize>(), META_BYTES_MAX)
    }

    /// Ends the memtable and the segment of the log if either is as large as it may be, and holds the caller up
    /// while too much waits to be written elsewhere.
    fn make_room(&mut self, now_ms: u64) -> Result<(), Error> {
        let waiting = self.changes.pending_bytes() + self.hints.pending_bytes();
        if waiting > self.config.log_buffer_bytes_max {
            let result = self.write_logs();
            match self.poison_on(result) {
                Err(error) if waiting > BACKLOG_FACTOR * self.config.log_buffer_bytes_max => {
                    return Err(error);
                }
                Err(error @ Error::WriteFailed { .. }) => return Err(error),
                _ => {}
            }
        }
        if self.tree.memtable_bytes() < self.config.memtable_bytes_max
            && self.wal.active_bytes() < self.config.wal_segment_bytes_max
        {
            return Ok(());
        }
        while self.tree.status().frozen >= FROZEN_MAX {
            match self.work_tree(now_ms) {
                // The tree leaves alone what it could not read, and goes on with the rest.
                Ok(_) | Err(Error::Corrupt { .. } | Error::Missing { .. }) => {}
                result => {
                    self.poison_on(result)?;
                }
            }
        }
        self.roll()
    }

    fn roll(&mut self) -> Result<(), Error> {
        if !self.wal.active_has_records() {
            return Ok(());
        }
        self.sync()?;
        self.wal.roll()?;
        self.tree.rotate(self.wal.last());
        Ok(())
    }

    /// Decides the outcome of each write and puts what there is to log into the log's buffer.
    fn plan(&mut self, writes: &[Write]) -> Result<Vec<Outcome>, Error> {
        let view = self.tree.view();
        let mut batch = BTreeSet::new();
        let mut sequence = self.changes.next();
        let mut hints: BTreeMap<NodeId, u64> = BTreeMap::new();
        let mut outcomes = Vec::with_capacity(writes.len());
        for (index, write) in writes.iter().enumerate() {
            outcomes.push(match write {
                Write::Apply { event, provenance, mode } => {
                    let outcome =
                        self.judge(&view, &batch, event, (*mode, *provenance), sequence)?;
                    if let Outcome::Applied { previous, .. } = outcome {
                        let header = encode_event_header(sequence, *provenance, previous);
                        let payload = self.wal.push_event(header, event);
                        self.logged.push(Logged::Event { index, payload });
                        sequence += 1;
                        batch.insert(event.id());
                    }
                    outcome
                }
                Write::Hint { target, event } => {
                    let next = hints.entry(*target).or_insert_with(|| self.hints.next(*target));
                    let payload = self.wal.push_hint(*target, *next, event);
                    self.logged.push(Logged::Hint { index, payload });
                    *next += 1;
                    Outcome::Hinted { sequence: *next - 1 }
                }
                Write::HintsDone { target, up_to } => {
                    self.wal.push_hints_done(*target, *up_to);
                    Outcome::Done
                }
                Write::Meta { name, value } => {
                    self.wal.push_meta(name, value);
                    Outcome::Done
                }
            });
        }
        Ok(outcomes)
    }

    fn judge(
        &self,
        view: &TreeView<D>,
        batch: &BTreeSet<EventId<'_>>,
        event: &Event,
        (mode, provenance): (Mode, Provenance),
        sequence: u64,
    ) -> Result<Outcome, Error> {
        let id = event.id();
        let of_key = EventId { stamp: Stamp::ZERO, ..id }..=EventId { stamp: Stamp::MAX, ..id };
        let in_batch = batch.range(of_key).next_back().map(|id| id.stamp);
        let in_tree = view.newest_stamp(event.partition, event.keyspace, &event.key)?;
        let previous = in_tree.max(in_batch);
        let Some(newest) = previous.filter(|newest| *newest >= event.stamp) else {
            return Ok(Outcome::Applied { sequence, newest: true, previous });
        };
        // Even if it is here, for it may have come as a copy: its coordinator has to learn of the newer one.
        let restamp = !mutation::is(Mutation::NoRestamp);
        if mode == Mode::Direct && newest > event.stamp && restamp {
            return Ok(Outcome::Superseded { newest });
        }
        let known =
            newest == event.stamp || batch.contains(&id) || view.contains(event.partition, id)?;
        // Retention may have dropped it from the tree; it is not to be published again.
        if known || self.changes.find(id)?.is_some() {
            if provenance == Provenance::Hint && mutation::is(Mutation::HintTwice) {
                return Ok(Outcome::Applied { sequence, newest: false, previous });
            }
            return Ok(Outcome::Duplicate);
        }
        assert!(
            mode == Mode::Copy || !restamp,
            "a direct write is superseded, or the newest itself"
        );
        Ok(Outcome::Applied { sequence, newest: false, previous })
    }

    /// The commit is in the log: makes it readable, and hands it to the logs that follow.
    fn apply(&mut self, writes: Vec<Write>) {
        for logged in &self.logged {
            match logged {
                Logged::Event { index, payload } => {
                    if let Write::Apply { event, .. } = &writes[*index] {
                        self.tree.insert(event);
                        let payload = payload.start + CHANGE_PART..payload.end;
                        self.changes.stage(event.id(), self.wal.buffered(payload));
                    }
                }
                Logged::Hint { index, payload } => {
                    if let Write::Hint { target, .. } = &writes[*index] {
                        let payload = payload.start + WAL_HINT_HEADER_SIZE..payload.end;
                        self.hints.stage(*target, self.wal.buffered(payload));
                    }
                }
            }
        }
        for write in writes {
            match write {
                Write::Apply { .. } | Write::Hint { .. } => {}
                Write::HintsDone { target, up_to } => self.hints.consume(target, up_to),
                Write::Meta { name, value } => {
                    self.metas.insert(name, Bytes::copy_from_slice(&value));
                }
            }
        }
    }

    fn write_logs(&mut self) -> Result<bool, Error> {
        let changes = self.changes.write_out();
        let hints = self.hints.write_out();
        Ok(changes? | hints?)
    }

    fn work_tree(&mut self, now_ms: u64) -> Result<bool, Error> {
        Ok(self.tree.work(now_ms, &self.retentions)? == Progress::Did)
    }

    fn work_hints(&mut self) -> Result<bool, Error> {
        // What was consumed has to be known on disk before the hints go.
        if self.wal.unsynced() > 0 { Ok(false) } else { self.hints.work() }
    }

    /// Removes the oldest segment of the write-ahead log, if all that its records say is durable elsewhere.
    fn trim_wal(&mut self) -> Result<bool, Error> {
        let flushed = self.tree.flushed();
        if self.wal.oldest_sealed().is_none_or(|last| flushed < last) {
            return Ok(false);
        }
        self.sync()?;
        self.changes.sync()?;
        self.hints.sync()?;
        let up_to = self.wal.last();
        let state = State {
            up_to,
            changes: self.changes.next(),
            metas: self.metas.clone(),
            hints: self.hints.marks(),
        };
        state.write(&*self.disk)?;
        self.wal.remove_oldest()?;
        Ok(true)
    }
}

fn check_size(what: &'static str, size: usize, limit: usize) -> Result<(), Error> {
    if size > limit { Err(Error::TooLarge { what, size, limit }) } else { Ok(()) }
}

/// What is put together while the write-ahead log is read.
struct Recovery<D: Disk> {
    tree: Tree<D>,
    changes: ChangeLog<D>,
    hints: Hints<D>,
    state: State,
    buffer_bytes_max: usize,
    last_change: Option<u64>,
    /// The greatest stamp in the log's events.
    greatest: Stamp,
    scratch: Vec<u8>,
}

impl<D: Disk> Recovery<D> {
    /// One record of the write-ahead log; `sealed` if it is known to be on disk.
    fn take(&mut self, lsn: Lsn, sealed: bool, record: WalRecord) -> Result<(), Error> {
        match record {
            WalRecord::Event { sequence, provenance, previous, event } => {
                self.greatest = self.greatest.max(event.stamp);
                if self.tree.flushed() < lsn {
                    self.tree.insert(&event);
                }
                if self.changes.next() < sequence {
                    return Err(Error::corrupt("changes", 0, "changes are missing"));
                }
                if self.changes.next() == sequence {
                    self.scratch.clear();
                    let header = encode_event_header(sequence, provenance, previous);
                    self.scratch.extend_from_slice(&header[CHANGE_PART..]);
                    event.encode(&mut self.scratch);
                    self.changes.stage(event.id(), &self.scratch);
                }
                self.last_change = Some(sequence);
            }
            WalRecord::Hint { .. } if mutation::is(Mutation::LoseHints) => {}
            WalRecord::Hint { target, sequence, event } => {
                self.scratch.clear();
                event.encode(&mut self.scratch);
                self.hints.recover(target, sequence, &self.scratch)?;
            }
            WalRecord::HintsDone { target, up_to } => self.hints.consume(target, up_to),
            WalRecord::Meta { name, value } => {
                if self.state.up_to < lsn {
                    self.state.metas.insert(name, Bytes::copy_from_slice(&value));
                }
            }
        }
        let staged = self.changes.staged_bytes() + self.hints.staged_bytes();
        if sealed && staged > self.buffer_bytes_max {
            self.changes.publish();
            self.hints.publish();
            self.changes.write_out()?;
            self.hints.write_out()?;
        }
        Ok(())
    }

    /// Whether the write-ahead log has all that later places prove it had.
    fn check(&self, last: Lsn) -> Result<(), Error> {
        let lost = "the end of the log is missing: later files know of it";
        if last < self.tree.flushed() || last < self.state.up_to {
            return Err(Error::corrupt(WAL_DIR, 0, lost));
        }
        if self.changes.next() < self.state.changes {
            return Err(Error::corrupt("changes", 0, "changes are missing"));
        }
        if self.last_change.is_some_and(|sequence| sequence + 1 != self.changes.next()) {
            return Err(Error::corrupt(WAL_DIR, 0, lost));
        }
        Ok(())
    }
}
