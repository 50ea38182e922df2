//! Hints: events held for nodes that did not answer. See FORMAT.md, "Hints".
//!
//! Invariants:
//!
//! - A hint that was promised is here or in the write-ahead log until its target has it.
//! - Numbers grow by one for each target, and none below a consumed one is given again.
//! - Bytes held for a target are bounded; what goes over is refused before anything is written.
//! - What is damaged is noted and passed over, and holds up nothing: its target gets it by comparison.
//!
//! Delivering a hint twice does no harm, so a crash may bring back some that were consumed.

use std::collections::BTreeMap;
use std::sync::Arc;

use starling_clock::NodeId;

use crate::log::{FRAME_HEADER_SIZE, LogKind, LogOptions, PastDamage, RecordLog};
use crate::state::HintMark;
use crate::{
    Config, DamageLog, Disk, Error, FoundBy, HintPage, changes::WRITES_PER_BUFFER,
    log::write_failed, packed,
};

const DIR: &str = "hints";

/// Hints for one node.
struct Target<D: Disk> {
    log: RecordLog<D>,
    /// It has the hints up to this and with it.
    done: u64,
}

/// Hints for all nodes. See the file's head.
pub(crate) struct Hints<D: Disk> {
    disk: Arc<D>,
    targets: BTreeMap<NodeId, Target<D>>,
    salt: u32,
    segment_bytes_max: u64,
    /// Fewer bytes for one target wait for more, so that they are compressed together.
    write_bytes_min: usize,
    bytes_max: u64,
    damage: DamageLog,
}

fn target_dir(target: NodeId) -> String {
    format!("{DIR}/{:020}", target.0)
}

impl<D: Disk> Hints<D> {
    /// Opens the hints; their directory has to be there. `marks` is what the state file says of them; what is damaged is noted
    /// in `damage`.
    ///
    /// # Errors
    /// [`Error::NewerFormat`] or failed IO.
    pub(crate) fn open(
        disk: &Arc<D>,
        config: &Config,
        marks: &BTreeMap<NodeId, HintMark>,
        damage: DamageLog,
    ) -> Result<Self, Error> {
        let mut hints = Self {
            disk: Arc::clone(disk),
            targets: BTreeMap::new(),
            salt: config.log_salt,
            segment_bytes_max: config.hint_segment_bytes_max,
            write_bytes_min: config.log_buffer_bytes_max / WRITES_PER_BUFFER,
            bytes_max: config.hint_bytes_max,
            damage,
        };
        let names = disk.list(DIR).map_err(Error::io("list", DIR))?;
        let named = names.iter().filter_map(|name| name.parse().ok().map(NodeId));
        let targets: Vec<NodeId> = named.chain(marks.keys().copied()).collect();
        for target in targets {
            if !hints.targets.contains_key(&target) {
                let mark = marks.get(&target).copied().unwrap_or_default();
                let opened = hints.open_target(target, mark)?;
                hints.targets.insert(target, opened);
            }
        }
        Ok(hints)
    }

    fn open_target(&self, target: NodeId, mark: HintMark) -> Result<Target<D>, Error> {
        let dir = target_dir(target);
        // The directory may have been lost with all that was in it, if that was never promised.
        self.disk.create_dir(&dir).map_err(Error::io("create", &dir))?;
        self.disk.sync_dir(DIR).map_err(write_failed("sync", DIR))?;
        let start = mark.next.max(mark.done + 1);
        let options = LogOptions {
            dir: dir.clone(),
            kind: LogKind::Hints,
            salt: self.salt,
            segment_bytes_max: self.segment_bytes_max,
            start,
        };
        let log = RecordLog::open_past_damage(&self.disk, options, &self.damage)?;
        let mut target = Target { log, done: mark.done };
        if target.log.next() < start {
            if mark.done + 1 < mark.next {
                target.pass_over(&dir, start, &self.damage)?;
            } else {
                target.log.restart(start)?;
            }
        }
        Ok(target)
    }

    /// Makes room to hold hints for `target`. Nothing is promised yet.
    ///
    /// # Errors
    /// Failed IO; nothing happened.
    pub(crate) fn prepare(&mut self, target: NodeId) -> Result<(), Error> {
        if !self.targets.contains_key(&target) {
            let opened = self.open_target(target, HintMark::default())?;
            self.targets.insert(target, opened);
        }
        Ok(())
    }

    /// Whether so many bytes of encoded events, in so many hints, may be held for `target` besides what is.
    ///
    /// # Errors
    /// [`Error::HintsFull`].
    pub(crate) fn check_room(&self, target: NodeId, count: u64, bytes: u64) -> Result<(), Error> {
        let held = self.targets.get(&target).map_or(0, Target::bytes);
        let more = bytes + count * FRAME_HEADER_SIZE as u64;
        if held.saturating_add(more) > self.bytes_max {
            return Err(Error::HintsFull { target, bytes: held, limit: self.bytes_max });
        }
        Ok(())
    }

    /// The number that the next hint for `target` gets.
    pub(crate) fn next(&self, target: NodeId) -> u64 {
        self.targets.get(&target).map_or(1, |target| target.log.next())
    }

    /// Takes an encoded event for `target`, which was prepared. It is not to be seen yet.
    pub(crate) fn stage(&mut self, target: NodeId, payload: &[u8]) {
        let target = self.targets.get_mut(&target).expect("it was prepared");
        target.log.stage(&[payload]);
    }

    /// Takes a hint that the write-ahead log has, if it is not here already.
    ///
    /// # Errors
    /// Failed IO.
    pub(crate) fn recover(
        &mut self,
        target: NodeId,
        sequence: u64,
        payload: &[u8],
    ) -> Result<(), Error> {
        self.prepare(target)?;
        let next = self.next(target);
        if next < sequence {
            let held = self.targets.get_mut(&target).expect("it was prepared");
            held.pass_over(&target_dir(target), sequence, &self.damage)?;
        }
        if next <= sequence {
            self.stage(target, payload);
        }
        Ok(())
    }

    /// All that the write-ahead log has is here: notes what is not there although its target did not have it.
    pub(crate) fn finish_recovery(&mut self) {
        for (target, held) in &self.targets {
            let (first, _) = held.log.reader().range();
            if held.done + 1 < first {
                let error = Error::corrupt(&target_dir(*target), 0, "hints are missing");
                self.damage.note_error(FoundBy::Start, &error);
            }
        }
    }

    /// `target` has its hints up to `up_to` and with it.
    pub(crate) fn consume(&mut self, target: NodeId, up_to: u64) {
        if let Some(target) = self.targets.get_mut(&target) {
            target.done = target.done.max(up_to.min(target.log.next() - 1));
        }
    }

    /// Bytes that wait for the sync of the write-ahead log.
    pub(crate) fn staged_bytes(&self) -> usize {
        self.targets.values().map(|target| target.log.staged_bytes()).sum()
    }

    /// Bytes that wait to be written.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.targets.values().map(|target| target.log.pending_bytes()).sum()
    }

    /// A sync of the write-ahead log is under way: what was taken so far is what it is for.
    pub(crate) fn set_aside(&mut self) {
        self.targets.values_mut().for_each(|target| target.log.set_aside());
    }

    /// That sync has ended: lets readers see what it was for.
    pub(crate) fn publish_aside(&mut self) {
        self.targets.values_mut().for_each(|target| target.log.publish_aside());
    }

    /// The write-ahead log is synced: lets readers see what was taken.
    pub(crate) fn publish(&mut self) {
        for target in self.targets.values_mut() {
            target.log.publish();
        }
    }

    /// Writes what is published, of targets where it is enough to be worth it, or of all if all wait for too much;
    /// tells whether it did.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Io`]: nothing is lost. [`Error::WriteFailed`]: nothing is to be trusted.
    pub(crate) fn write_out(&mut self) -> Result<bool, Error> {
        let mut did = false;
        let many = self.pending_bytes() > WRITES_PER_BUFFER * self.write_bytes_min;
        for target in self.targets.values_mut() {
            if many || target.log.pending_bytes() >= self.write_bytes_min {
                did |= target.log.write_out()?;
            }
        }
        Ok(did)
    }

    /// Makes what is published durable here too.
    ///
    /// # Errors
    /// As [`Self::write_out`].
    pub(crate) fn sync(&mut self) -> Result<(), Error> {
        self.targets.values_mut().try_for_each(|target| target.log.sync())
    }

    /// Removes one segment that was consumed; tells whether there was any. What was consumed has to be durable.
    ///
    /// # Errors
    /// As [`Self::write_out`].
    pub(crate) fn work(&mut self) -> Result<bool, Error> {
        for target in self.targets.values_mut() {
            let (log, done) = (&mut target.log, target.done);
            if log.is_segment_full() || (log.has_open_segment() && log.next() == done + 1) {
                log.seal()?;
                return Ok(true);
            }
            if log.oldest_sealed().is_some_and(|(_, next)| next <= done + 1) {
                log.remove_oldest()?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Hints for `target` after the one numbered `after`, oldest first, at least one if there is any that can be read.
    ///
    /// # Errors
    /// A failed read.
    pub(crate) fn read(
        &self,
        target: NodeId,
        after: u64,
        bytes_max: usize,
    ) -> Result<HintPage, Error> {
        let nothing = HintPage { hints: Vec::new(), up_to: after, lost: 0 };
        let Some(target) = self.targets.get(&target) else { return Ok(nothing) };
        let reader = target.log.reader();
        let wanted = after.max(target.done).saturating_add(1);
        let from = wanted.max(reader.range().0);
        let read = reader.read_past_damage(from, bytes_max, &self.damage, |record| {
            packed::event(&record.payload).ok().map(|event| (record.number, event))
        })?;
        let PastDamage { records: hints, next, lost } = read;
        if next == wanted {
            return Ok(nothing);
        }
        Ok(HintPage { hints, up_to: next - 1, lost: lost + (from - wanted) })
    }

    /// Nodes with hints held for them: how many, and bytes.
    pub(crate) fn targets(&self) -> Vec<(NodeId, u64, u64)> {
        let held = self.targets.iter().filter(|(_, target)| target.count() > 0);
        held.map(|(node, target)| (*node, target.count(), target.bytes())).collect()
    }

    /// What the state file has to know.
    pub(crate) fn marks(&self) -> BTreeMap<NodeId, HintMark> {
        let mark = |target: &Target<D>| HintMark { done: target.done, next: target.log.next() };
        self.targets.iter().map(|(node, target)| (*node, mark(target))).collect()
    }
}

impl<D: Disk> Target<D> {
    /// Goes on with hint `start`: those before it that are not there are lost.
    fn pass_over(&mut self, dir: &str, start: u64, damage: &DamageLog) -> Result<(), Error> {
        let (file, offset) = self.log.end().unwrap_or_else(|| (dir.to_owned(), 0));
        damage.note_error(FoundBy::Start, &Error::corrupt(&file, offset, "hints are missing"));
        self.log.publish();
        self.log.write_out()?;
        self.log.skip_to(start)
    }

    fn count(&self) -> u64 {
        self.log.next() - 1 - self.done
    }

    fn bytes(&self) -> u64 {
        if self.count() == 0 { 0 } else { self.log.bytes() }
    }
}
