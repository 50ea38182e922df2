//! The change log: what this replica applied, in order, for others to read. See FORMAT.md, "Change log".
//!
//! Invariants:
//!
//! - A change is here only if its record in the write-ahead log is on disk: after a crash the write-ahead log has
//!   what is missing here, and never the other way round.
//! - Sequences grow by one, for ever; the newest segment is never removed, so that they go on after a restart.
//! - A segment that takes no more changes has an index beside it: its places, the bounds of its stamps, the ids of
//!   its events. An index that is missing or bad is made again from its segment.
//!
//! Retention is the change log's own and removes whole segments.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use starling_clock::Stamp;

use crate::change_ids::{Ids, IndexHead, IndexPlace, encode_index, index_path, read_index};
use crate::event::{DecodeError, EventId};
use crate::log::{
    FrameRef, LogKind, LogOptions, LogReader, LogSegment, LogWrite, Record, RecordLog, Segment,
};
use crate::{Change, Config, Disk, DiskFile, Error, packed};

pub(crate) const DIR: &str = "changes";
/// A segment is ended when it has so many changes, however small they are: their ids are in memory, 8 bytes each.
const SEGMENT_CHANGES_MAX: usize = 1 << 18;
/// The buffer of `log_buffer_bytes_max` is written in about so many writes.
pub(crate) const WRITES_PER_BUFFER: usize = 8;

/// So many times the buffer is written before a job that writes it syncs too: whoever removes what the write-ahead log has, and
/// commits with it, does not wait for more than that.
const BUFFERS_PER_SYNC: u64 = 4;

/// A segment that takes no more changes and whose index is still to be written.
#[derive(Debug)]
struct Unindexed {
    head: IndexHead,
    ids: Ids,
}

/// See the file's head.
pub(crate) struct ChangeLog<D: Disk> {
    disk: Arc<D>,
    log: RecordLog<D>,
    /// By first sequence.
    sealed: BTreeMap<u64, (IndexHead, IndexPlace)>,
    unindexed: Option<Unindexed>,
    /// Of the changes after the sealed segments. Looking for one puts them in order.
    open: Mutex<Ids>,
    /// When the newest segment was first seen with a change in it.
    opened_ms: Option<u64>,
    /// For readers that look for a stamp: the greatest one of each sealed segment.
    stamps: Arc<RwLock<BTreeMap<u64, Stamp>>>,
    /// Fewer bytes wait for more, so that they are compressed together.
    write_bytes_min: usize,
    /// A job syncs once so many bytes are not.
    sync_bytes: u64,
    bytes_max: u64,
    age_ms_max: u64,
}

impl<D: Disk> ChangeLog<D> {
    /// Opens the change log; its directory has to be there.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::NewerFormat`] or failed IO.
    pub(crate) fn open(disk: &Arc<D>, config: &Config) -> Result<Self, Error> {
        let options = LogOptions {
            dir: DIR.to_owned(),
            kind: LogKind::Changes,
            salt: config.log_salt,
            segment_bytes_max: config.change_segment_bytes_max,
            start: 1,
        };
        let mut sealed = BTreeMap::new();
        let mut collected: BTreeMap<u64, Ids> = BTreeMap::new();
        let known = |segment: &Segment<D::File>| {
            let Some((head, place, marks)) = read_index(&**disk, segment)? else { return Ok(None) };
            let entry = LogSegment { segment: segment.clone(), next: head.next, marks };
            sealed.insert(head.first, (head, place));
            Ok(Some(entry))
        };
        let visit = |first: u64, frame: FrameRef<'_>| {
            let ids = collected.entry(first).or_insert_with(|| Ids::new(first));
            for record in frame.records() {
                let change = record.and_then(|(sequence, change)| {
                    let event = packed::change_in(change)?.2;
                    Ok((sequence, event.id().hash(), event.stamp))
                });
                let (sequence, hash, stamp) = change.map_err(|_| bad_record(DIR, 0))?;
                ids.take((hash, stamp), sequence);
            }
            Ok(())
        };
        let log = RecordLog::open(disk, options, known, visit)?;
        let mut changes = Self {
            disk: Arc::clone(disk),
            log,
            sealed,
            unindexed: None,
            open: Mutex::default(),
            opened_ms: None,
            stamps: Arc::default(),
            write_bytes_min: config.log_buffer_bytes_max / WRITES_PER_BUFFER,
            sync_bytes: config.log_buffer_bytes_max as u64 * BUFFERS_PER_SYNC,
            bytes_max: config.change_bytes_max,
            age_ms_max: config.change_age_ms_max,
        };
        let active = changes.log.active_first();
        let open = active.and_then(|first| collected.remove(&first));
        changes.open = Mutex::new(open.unwrap_or_else(|| Ids::new(changes.log.next())));
        for (first, ids) in collected {
            let head = changes.head(first, 0, &ids);
            changes.unindexed = Some(Unindexed { head, ids });
            changes.write_index()?;
        }
        changes.remove_orphans()?;
        let stamps = changes.sealed.iter().map(|(first, (head, _))| (*first, head.bounds.greatest));
        *write(&changes.stamps) = stamps.collect();
        Ok(changes)
    }

    fn head(&self, first: u64, sealed_ms: u64, ids: &Ids) -> IndexHead {
        let size = self.log.with_segment(first, |entry| (entry.next, entry.segment.len));
        let (next, bytes) = size.expect("the segment is there");
        IndexHead { first, next, bytes, sealed_ms, bounds: ids.bounds }
    }

    /// Removes indexes whose segments are gone.
    fn remove_orphans(&mut self) -> Result<(), Error> {
        for name in self.disk.list(DIR).map_err(Error::io("list", DIR))? {
            let Some(digits) = name.strip_suffix(".ids") else { continue };
            let first: Option<u64> = digits.parse().ok();
            if first.is_none_or(|first| !self.sealed.contains_key(&first)) {
                let path = format!("{DIR}/{name}");
                self.disk.remove(&path).map_err(Error::io("remove", &path))?;
            }
        }
        Ok(())
    }

    /// The sequence that the next change gets.
    pub(crate) fn next(&self) -> u64 {
        self.log.next()
    }

    /// Bytes on disk and in memory.
    pub(crate) fn bytes(&self) -> u64 {
        let indexes: u64 = self.sealed.values().map(|(_, place)| place.end()).sum();
        self.log.bytes() + indexes
    }

    /// Bytes that wait for the sync of the write-ahead log.
    pub(crate) fn staged_bytes(&self) -> usize {
        self.log.staged_bytes()
    }

    /// Bytes that wait to be written.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.log.pending_bytes()
    }

    /// Takes the next change, as the write-ahead log encoded it: of the event with this hash of its identity and this stamp. It
    /// is not to be seen yet.
    pub(crate) fn stage(&mut self, id: (u64, Stamp), change: &[u8]) {
        unlocked(&mut self.open).take(id, self.log.next());
        self.log.stage(&[change]);
    }

    /// A sync of the write-ahead log is under way: what was taken so far is what it is for.
    pub(crate) fn set_aside(&mut self) {
        self.log.set_aside();
    }

    /// That sync has ended: lets readers see what it was for.
    pub(crate) fn publish_aside(&mut self) {
        self.log.publish_aside();
    }

    /// The write-ahead log is synced: lets readers see what was taken.
    pub(crate) fn publish(&mut self) {
        self.log.publish();
    }

    /// Writes what is published, if it is enough to be worth it; tells whether it did. Until then it is in memory, and
    /// in the write-ahead log.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Io`]: nothing changed. [`Error::WriteFailed`]: nothing is to be trusted.
    pub(crate) fn write_out(&mut self) -> Result<bool, Error> {
        if self.log.pending_bytes() < self.write_bytes_min {
            return Ok(false);
        }
        self.log.write_out()
    }

    /// Whether a [`LogWrite`] is out.
    pub(crate) fn is_writing(&self) -> bool {
        self.log.is_writing()
    }

    /// A write of what is published, if it is enough to be worth it and none is out; with a sync, if much is not on disk.
    ///
    /// # Errors
    /// As [`Self::write_out`].
    pub(crate) fn begin_write(&mut self) -> Result<Option<LogWrite<D::File>>, Error> {
        if self.log.is_writing() || self.log.pending_bytes() < self.write_bytes_min {
            return Ok(None);
        }
        let mut write = self.log.begin_write()?;
        if let Some(write) = &mut write
            && self.sync_bytes <= self.log.unsynced_bytes()
        {
            write.with_sync();
        }
        Ok(write)
    }

    /// Takes a write back.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Io`]: nothing changed. [`Error::WriteFailed`]: nothing is to be trusted.
    pub(crate) fn finish_write(&mut self, write: LogWrite<D::File>) -> Result<(), Error> {
        self.log.finish_write(write).map(|_| ())
    }

    /// Makes what is published durable here too.
    ///
    /// # Errors
    /// As [`Self::write_out`].
    pub(crate) fn sync(&mut self) -> Result<(), Error> {
        self.log.sync()
    }

    /// For readers on any thread.
    pub(crate) fn reader(&self) -> ChangeReader<D::File> {
        ChangeReader { log: self.log.reader(), stamps: Arc::clone(&self.stamps) }
    }

    /// The latest change that this event was, if it was applied here and retention has not passed it. Costs a few small reads for
    /// each segment whose bounds of stamps have it.
    ///
    /// # Errors
    /// [`Error::Corrupt`] or a failed read.
    pub(crate) fn find(&self, id: EventId<'_>) -> Result<Option<u64>, Error> {
        let hash = id.hash();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let mut candidates = open.find(id.stamp, hash);
        drop(open);
        if let Some(unindexed) = &self.unindexed {
            candidates.extend(unindexed.ids.clone().find(id.stamp, hash));
        }
        for (head, place) in self.sealed.values().filter(|(head, _)| head.bounds.contains(id.stamp))
        {
            candidates.extend(place.find(&*self.disk, head, hash)?);
        }
        let reader = self.reader();
        let (_, end) = reader.range();
        // The latest: it may have been applied again after its partition was dropped.
        candidates.sort_unstable();
        for sequence in candidates.into_iter().rev() {
            // What is not published yet cannot be read; equal hashes have to do.
            if sequence >= end || reader.read(sequence, 1, 1)?.iter().any(|c| c.event.id() == id) {
                return Ok(Some(sequence));
            }
        }
        Ok(None)
    }

    /// One step of what there is to do besides writing; tells whether there was anything.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Io`]: the step is done another time. [`Error::WriteFailed`]: nothing is to be trusted.
    pub(crate) fn work(&mut self, now_ms: u64) -> Result<bool, Error> {
        if self.unindexed.is_some() {
            self.write_index()?;
            return Ok(true);
        }
        if self.log.has_open_segment() && !self.log.is_writing() {
            let opened_ms = *self.opened_ms.get_or_insert(now_ms);
            // Eight segments at the least within the age, so that retention is not too coarse.
            let aged = opened_ms.saturating_add(self.age_ms_max / 8) < now_ms;
            let many = unlocked(&mut self.open).len() >= SEGMENT_CHANGES_MAX;
            if aged || many || self.log.is_segment_full() {
                self.seal(now_ms)?;
                return Ok(true);
            }
        }
        self.retain(now_ms)
    }

    fn seal(&mut self, now_ms: u64) -> Result<(), Error> {
        let Some(first) = self.log.seal()? else { return Ok(()) };
        let next = self.log.with_segment(first, |entry| entry.next).expect("just sealed");
        // What is taken and not yet published goes into the next segment.
        let rest = unlocked(&mut self.open).split_off(next);
        let ids = std::mem::replace(unlocked(&mut self.open), rest);
        let head = self.head(first, now_ms, &ids);
        write(&self.stamps).insert(first, head.bounds.greatest);
        self.unindexed = Some(Unindexed { head, ids });
        self.opened_ms = None;
        Ok(())
    }

    fn write_index(&mut self) -> Result<(), Error> {
        let Some(unindexed) = &mut self.unindexed else { return Ok(()) };
        let first = unindexed.head.first;
        let marks = self.log.with_segment(first, |entry| entry.marks.clone());
        let marks = marks.expect("only indexed segments are removed");
        let bytes = encode_index(&unindexed.head, &marks, unindexed.ids.sorted());
        let path = index_path(first);
        if self.disk.exists(&path).map_err(Error::io("look for", &path))? {
            self.disk.remove(&path).map_err(Error::io("remove", &path))?;
        }
        let file = self.disk.create(&path).map_err(Error::io("create", &path))?;
        file.write_at(&bytes, 0).map_err(Error::io("write", &path))?;
        // An index that a crash damages is made again, so a failed sync says nothing about the log.
        file.sync().map_err(Error::io("sync", &path))?;
        if let Some(Unindexed { head, .. }) = self.unindexed.take() {
            let place = IndexPlace::new(&head, marks.len());
            self.sealed.insert(first, (head, place));
        }
        Ok(())
    }

    /// Removes the oldest segment if retention passed it.
    fn retain(&mut self, now_ms: u64) -> Result<bool, Error> {
        let Some((first, (head, _))) = self.sealed.first_key_value() else { return Ok(false) };
        // The newest segment stays: it knows the sequence to go on with.
        let newest = self.log.segments() < 2;
        let old = head.sealed_ms.saturating_add(self.age_ms_max) < now_ms;
        if newest || !(old || self.bytes_max < self.bytes()) {
            return Ok(false);
        }
        let first = *first;
        self.log.remove_oldest()?;
        self.sealed.remove(&first);
        write(&self.stamps).remove(&first);
        // If this fails the next start removes it.
        let path = index_path(first);
        self.disk.remove(&path).map_err(Error::io("remove", &path))?;
        Ok(true)
    }
}

fn unlocked<T>(mutex: &mut Mutex<T>) -> &mut T {
    mutex.get_mut().unwrap_or_else(PoisonError::into_inner)
}

fn bad_record(file: &str, offset: u64) -> Error {
    Error::corrupt(file, offset, "record of the change log")
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// The change in a record of the change log.
pub(crate) fn decode(record: &Record) -> Result<Change, DecodeError> {
    let (provenance, previous, event) = packed::change(&record.payload)?;
    Ok(Change { sequence: record.number, event, provenance, previous })
}

/// Reads the change log from any thread.
pub(crate) struct ChangeReader<F> {
    log: LogReader<F>,
    stamps: Arc<RwLock<BTreeMap<u64, Stamp>>>,
}

impl<F> Clone for ChangeReader<F> {
    fn clone(&self) -> Self {
        Self { log: self.log.clone(), stamps: Arc::clone(&self.stamps) }
    }
}

impl<F: DiskFile> ChangeReader<F> {
    /// The first change that is kept, and one past the last.
    pub(crate) fn range(&self) -> (u64, u64) {
        self.log.range()
    }

    /// Changes from a sequence on. See `LogReader::read`.
    pub(crate) fn read(
        &self,
        from: u64,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<Change>, Error> {
        self.log.read(from, limit, bytes_max, |file, offset, record| {
            decode(&record).map_err(|_| bad_record(file, offset))
        })
    }

    /// The first change that is kept and whose event's stamp is at or after `stamp`; the end if there is none.
    pub(crate) fn seek(&self, stamp: Stamp) -> Result<u64, Error> {
        const PAGE: usize = 1024;
        let (first, _) = self.log.range();
        let stamps = self.stamps.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut from = first;
        while from < self.log.range().1 {
            // A sealed segment whose stamps are all earlier is passed over.
            let segment = stamps.range(..=from).next_back();
            if segment.is_some_and(|(_, greatest)| *greatest < stamp)
                && let Some((next, _)) = stamps.range(from + 1..).next()
            {
                from = *next;
                continue;
            }
            let changes = self.read(from, PAGE, 1 << 20)?;
            if let Some(change) = changes.iter().find(|change| change.event.stamp >= stamp) {
                return Ok(change.sequence);
            }
            from += changes.len() as u64;
        }
        Ok(from)
    }
}
