//! What a commit does: checks, decides each write's outcome, makes room, and makes readable what was logged.
//!
//! Invariants:
//!
//! - Nothing is written before every write of the commit was checked and judged.
//! - A later write of a commit is judged as if the earlier ones were applied.
//! - What is not above the tombstone floor of its partition and is not here is never taken: a tombstone that hid it
//!   may be gone.
//! - A commit never waits for a flush that another thread does: it is refused instead, as a whole.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use starling_clock::mutation::{self, Mutation};
use starling_clock::{NodeId, Stamp};

use super::{Logged, Storage};
use crate::tree::TreeView;
use crate::types::{META_COUNT_MAX, META_NAME_SIZE_MAX, META_VALUE_SIZE_MAX};
use crate::{Disk, Error, Event, EventId, KEY_SIZE_MAX, Mode, Outcome, Provenance, Write};

/// Memtables that may wait for their flush.
pub(super) const FROZEN_MAX: usize = 3;
/// Changes and hints may wait in memory for so many times `log_buffer_bytes_max` when they cannot be written.
const BACKLOG_FACTOR: usize = 16;
/// And for so many times that if jobs are to write them.
const HELPED_FACTOR: usize = 4;
/// All named values together, names counted, in bytes: the state file is written as a whole.
const META_BYTES_MAX: usize = 64 << 20;

impl<D: Disk> Storage<D> {
    /// Refuses what is over a limit, before anything is written.
    pub(super) fn validate(&self, writes: &[Write]) -> Result<(), Error> {
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
        if !writes.iter().any(|write| matches!(write, Write::Meta { .. })) {
            return Ok(());
        }
        let mut new = BTreeMap::new();
        for write in writes {
            if let Write::Meta { name, value } = write {
                new.insert(name, value.len());
            }
        }
        let kept = self.metas.iter().filter(|(name, _)| !new.contains_key(*name));
        let kept: Vec<usize> = kept.map(|(name, value)| name.len() + value.len()).collect();
        check_size("count of named values", kept.len() + new.len(), META_COUNT_MAX)?;
        let new: usize = new.iter().map(|(name, size)| name.len() + size).sum();
        check_size("total of named values", new + kept.iter().sum::<usize>(), META_BYTES_MAX)
    }

    /// Ends the memtable and the segment of the log if either is as large as it may be. While too much waits to be
    /// written elsewhere it is done here, or the caller is sent away if somebody else has it in hand.
    pub(super) fn make_room(&mut self, now_ms: u64) -> Result<(), Error> {
        let waiting = self.changes.pending_bytes() + self.hints.pending_bytes();
        if waiting > self.buffers_max() {
            let result = self.write_logs();
            match self.poison_on(result) {
                Ok(_) if self.changes.is_writing() && waiting > self.backlog_max() => {
                    return Err(Error::Busy { waiting: 1 + self.tree.frozen() });
                }
                Err(error) if waiting > self.backlog_max() => {
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
        self.make_place(now_ms)?;
        self.roll()
    }

    /// How many bytes of changes and hints may wait, for a sync and to be written each, before a commit sees to that itself:
    /// more if jobs are to do it.
    pub(super) fn buffers_max(&self) -> usize {
        let factor = if self.helped { HELPED_FACTOR } else { 1 };
        factor * self.config.log_buffer_bytes_max
    }

    /// How many bytes of changes and hints may wait to be written at all.
    pub(super) fn backlog_max(&self) -> usize {
        BACKLOG_FACTOR * self.config.log_buffer_bytes_max
    }

    /// Makes sure that another memtable may wait for its flush.
    pub(super) fn make_place(&mut self, now_ms: u64) -> Result<(), Error> {
        while self.tree.frozen() >= FROZEN_MAX {
            if self.helped {
                return Err(Error::Busy { waiting: self.tree.frozen() });
            }
            match self.work_tree(now_ms) {
                // The tree leaves alone what it could not read, and goes on with the rest.
                Ok(_) | Err(Error::Corrupt { .. } | Error::Missing { .. }) => {}
                result => {
                    self.poison_on(result)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn roll(&mut self) -> Result<(), Error> {
        if !self.wal.active_has_records() {
            return Ok(());
        }
        self.rotate_tree()
    }

    /// Ends the memtable, and the segment of the log if it has records.
    pub(super) fn rotate_tree(&mut self) -> Result<(), Error> {
        self.sync()?;
        if self.wal.active_has_records() {
            self.wal.roll()?;
        }
        self.tree.rotate(self.wal.last());
        Ok(())
    }

    /// Works out where the events of the commit belong, one address for each write that applies one, and begins to bring near
    /// what judging them looks at: it waits for memory once for all of them, not once for each.
    pub(super) fn address(&mut self, writes: &[Write]) {
        let view = self.tree.view();
        self.addresses.clear();
        for write in writes {
            if let Write::Apply { event, .. } = write {
                let address = self.addresses.push(event.partition, event.id());
                view.prefetch(event.partition, self.addresses.get(address));
            }
        }
    }

    /// Decides the outcome of each write, whose [addresses](Self::address) are known, and puts what there is to log into the
    /// log's buffer.
    pub(super) fn plan(&mut self, writes: &[Write]) -> Result<Vec<Outcome>, Error> {
        let view = self.tree.view();
        let mut addresses = 0..;
        let mut batch = BTreeSet::new();
        let mut sequence = self.changes.next();
        let mut hints: BTreeMap<NodeId, u64> = BTreeMap::new();
        let mut outcomes = Vec::with_capacity(writes.len());
        for (index, write) in writes.iter().enumerate() {
            outcomes.push(match write {
                Write::Apply { event, provenance, mode } => {
                    let address = addresses.next().expect("there is no end of them");
                    let how = (*mode, *provenance);
                    let outcome = self.judge(&view, &batch, (address, event), how, sequence)?;
                    if let Outcome::Applied { previous, .. } = outcome {
                        let payload = self.wal.push_event(sequence, *provenance, previous, event);
                        self.logged.push(Logged::Event { index, address, payload });
                        sequence += 1;
                        // Of a lone write nobody asks what came before it.
                        if 1 < writes.len() {
                            batch.insert(event.id());
                        }
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
        (address, event): (usize, &Event),
        (mode, provenance): (Mode, Provenance),
        sequence: u64,
    ) -> Result<Outcome, Error> {
        let id = event.id();
        let of_key = EventId { stamp: Stamp::ZERO, ..id }..=EventId { stamp: Stamp::MAX, ..id };
        let in_batch = batch.range(of_key).next_back().map(|id| id.stamp);
        let in_tree = view.newest_stamp_at(event.partition, self.addresses.get(address))?;
        let previous = in_tree.max(in_batch);
        let restamp = !mutation::is(Mutation::NoRestamp);
        // A tombstone that hid it may be gone.
        let floor = self.retentions.tombstone_floor(event.partition);
        let below = event.stamp <= floor && (mode == Mode::Copy || restamp);
        let Some(newest) = previous.filter(|newest| *newest >= event.stamp) else {
            if !below {
                return Ok(Outcome::Applied { sequence, newest: true, previous });
            }
            return Ok(match (self.published(event)?, mode) {
                (Some(_), _) => Outcome::Duplicate,
                (None, Mode::Direct) => Outcome::Superseded { newest: floor },
                (None, Mode::Copy) => Outcome::BelowFloor { floor },
            });
        };
        // Even if it is here, for it may have come as a copy: its coordinator has to learn of the newer one.
        if mode == Mode::Direct && newest > event.stamp && restamp {
            return Ok(Outcome::Superseded { newest });
        }
        let known =
            newest == event.stamp || batch.contains(&id) || view.contains(event.partition, id)?;
        // Retention may have dropped it from the tree; it is not to be published again.
        if known || self.published(event)?.is_some() {
            if provenance == Provenance::Hint && mutation::is(Mutation::HintTwice) {
                return Ok(Outcome::Applied { sequence, newest: false, previous });
            }
            return Ok(Outcome::Duplicate);
        }
        if below {
            return Ok(Outcome::BelowFloor { floor });
        }
        assert!(
            mode == Mode::Copy || !restamp,
            "a direct write is superseded, or the newest itself"
        );
        Ok(Outcome::Applied { sequence, newest: false, previous })
    }

    /// The change that this event was, if retention has not passed it and its partition was not dropped since.
    fn published(&self, event: &Event) -> Result<Option<u64>, Error> {
        let dropped = self.tree.dropped().get(&event.partition);
        let first = dropped.map_or(0, |dropped| dropped.changes);
        Ok(self.changes.find(event.id())?.filter(|sequence| first <= *sequence))
    }

    /// The commit is in the log: makes it readable, and hands it to the logs that follow.
    pub(super) fn apply(&mut self, writes: Vec<Write>) {
        for logged in &self.logged {
            match logged {
                Logged::Event { index, address, payload } => {
                    if let Write::Apply { event, .. } = &writes[*index] {
                        let address = self.addresses.get(*address);
                        self.tree.insert_at(address, event);
                        let change = self.wal.buffered(payload.clone());
                        self.changes.stage((address.id_hash, event.stamp), change);
                    }
                }
                Logged::Hint { index, payload } => {
                    if let Write::Hint { target, .. } = &writes[*index] {
                        self.hints.stage(*target, self.wal.buffered(payload.clone()));
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
}

fn check_size(what: &'static str, size: usize, limit: usize) -> Result<(), Error> {
    if size > limit { Err(Error::TooLarge { what, size, limit }) } else { Ok(()) }
}
