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
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use starling_clock::Stamp;

use crate::event::{DecodeError, EventId, array};
use crate::log::{Frame, LogKind, LogOptions, LogReader, LogSegment, Mark, RecordLog, Segment};
use crate::wal::decode_change;
use crate::{Change, Config, Disk, DiskFile, Error};

const DIR: &str = "changes";
/// The one kind of record. DO NOT CHANGE: it is on disk.
const KIND_CHANGE: u8 = 1;
pub(crate) const INDEX_MAGIC: [u8; 8] = *b"STARIDX\0";
/// The version that this code writes, and the newest that it reads.
pub(crate) const INDEX_VERSION: u32 = 1;
/// Bytes of an index before its places.
pub(crate) const INDEX_HEADER_SIZE: usize = 88;
const ENTRY_SIZE: usize = 16;

/// Field name, offset, size: the same table as FORMAT.md, for the test that compares them.
#[cfg(test)]
pub(crate) const INDEX_LAYOUT: [(&str, usize, usize); 11] = [
    ("magic", 0, 8),
    ("version", 8, 4),
    ("head crc", 12, 4),
    ("first", 16, 8),
    ("next", 24, 8),
    ("bytes", 32, 8),
    ("sealed", 40, 8),
    ("least", 48, 16),
    ("greatest", 64, 16),
    ("places", 80, 4),
    ("ids crc", 84, 4),
];

/// The id of a change's event, and the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct IdEntry {
    pub(crate) hash: u64,
    pub(crate) sequence: u64,
}

/// Inclusive bounds of stamps; wider than need be does no harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StampBounds {
    pub(crate) least: Stamp,
    pub(crate) greatest: Stamp,
}

impl StampBounds {
    const NONE: Self = Self { least: Stamp::MAX, greatest: Stamp::ZERO };

    fn take(&mut self, stamp: Stamp) {
        self.least = self.least.min(stamp);
        self.greatest = self.greatest.max(stamp);
    }

    fn contains(self, stamp: Stamp) -> bool {
        self.least <= stamp && stamp <= self.greatest
    }
}

/// What is known of the events of a segment.
#[derive(Clone, Debug)]
struct Ids {
    entries: Vec<IdEntry>,
    bounds: StampBounds,
}

impl Default for Ids {
    fn default() -> Self {
        Self { entries: Vec::new(), bounds: StampBounds::NONE }
    }
}

impl Ids {
    fn take(&mut self, id: EventId<'_>, sequence: u64) {
        self.entries.push(IdEntry { hash: id.hash(), sequence });
        self.bounds.take(id.stamp);
    }
}

/// The head of an index, kept in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IndexHead {
    pub(crate) first: u64,
    pub(crate) next: u64,
    pub(crate) bytes: u64,
    pub(crate) sealed_ms: u64,
    pub(crate) bounds: StampBounds,
}

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
    sealed: BTreeMap<u64, IndexHead>,
    unindexed: Option<Unindexed>,
    /// Of the changes after the sealed segments.
    open: Ids,
    /// When the newest segment was first seen with a change in it.
    opened_ms: Option<u64>,
    /// For readers that look for a stamp: the greatest one of each sealed segment.
    stamps: Arc<RwLock<BTreeMap<u64, Stamp>>>,
    bytes_max: u64,
    age_ms_max: u64,
}

fn index_path(first: u64) -> String {
    format!("{DIR}/{first:020}.ids")
}

/// The whole index file. Sorts `ids`.
pub(crate) fn encode_index(head: &IndexHead, marks: &[Mark], ids: &mut [IdEntry]) -> Vec<u8> {
    ids.sort_unstable();
    let mut out = Vec::with_capacity(INDEX_HEADER_SIZE + (marks.len() + ids.len()) * ENTRY_SIZE);
    out.extend_from_slice(&INDEX_MAGIC);
    out.extend_from_slice(&INDEX_VERSION.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    for number in [head.first, head.next, head.bytes, head.sealed_ms] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&head.bounds.least.to_bytes());
    out.extend_from_slice(&head.bounds.greatest.to_bytes());
    let places = u32::try_from(marks.len()).expect("a segment has few places");
    out.extend_from_slice(&places.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    for mark in marks {
        out.extend_from_slice(&mark.number.to_le_bytes());
        out.extend_from_slice(&mark.offset.to_le_bytes());
    }
    let ids_start = out.len();
    for entry in ids {
        out.extend_from_slice(&entry.hash.to_le_bytes());
        out.extend_from_slice(&entry.sequence.to_le_bytes());
    }
    let ids_crc = crc32c::crc32c(&out[ids_start..]);
    out[84..88].copy_from_slice(&ids_crc.to_le_bytes());
    let head_crc = crc32c::crc32c(&out[16..ids_start]);
    out[12..16].copy_from_slice(&head_crc.to_le_bytes());
    out
}

/// The head and the places of an index, and where its ids are. `None` if it is not a good one.
pub(crate) fn decode_index_head(bytes: &[u8]) -> Option<(IndexHead, Vec<Mark>, usize)> {
    let header = bytes.get(..INDEX_HEADER_SIZE)?;
    let number = |offset: usize| u64::from_le_bytes(array(header, offset));
    let word = |offset: usize| u32::from_le_bytes(array(header, offset));
    if header[..8] != INDEX_MAGIC || word(8) != INDEX_VERSION {
        return None;
    }
    let ids_start = INDEX_HEADER_SIZE.checked_add((word(80) as usize).checked_mul(ENTRY_SIZE)?)?;
    if crc32c::crc32c(bytes.get(16..ids_start)?) != word(12) {
        return None;
    }
    let marks = bytes[INDEX_HEADER_SIZE..ids_start].chunks_exact(ENTRY_SIZE).map(|entry| Mark {
        number: u64::from_le_bytes(array(entry, 0)),
        offset: u64::from_le_bytes(array(entry, 8)),
    });
    let head = IndexHead {
        first: number(16),
        next: number(24),
        bytes: number(32),
        sealed_ms: number(40),
        bounds: StampBounds {
            least: Stamp::from_bytes(array(header, 48))?,
            greatest: Stamp::from_bytes(array(header, 64))?,
        },
    };
    Some((head, marks.collect(), ids_start))
}

/// The changes whose event may be the one with this hash. `None` if the index is not a good one.
fn find_in_index(bytes: &[u8], hash: u64) -> Option<Vec<u64>> {
    let (_, _, ids_start) = decode_index_head(bytes)?;
    let (ids, rest) = bytes[ids_start..].as_chunks::<ENTRY_SIZE>();
    if !rest.is_empty()
        || crc32c::crc32c(&bytes[ids_start..]) != u32::from_le_bytes(array(bytes, 84))
    {
        return None;
    }
    let hash_at = |entry: &[u8; ENTRY_SIZE]| u64::from_le_bytes(array(entry, 0));
    let from = ids.partition_point(|entry| hash_at(entry) < hash);
    let found = ids[from..].iter().take_while(|entry| hash_at(entry) == hash);
    Some(found.map(|entry| u64::from_le_bytes(array(entry, 8))).collect())
}

fn read_file<D: Disk>(disk: &D, path: &str) -> Result<Option<Vec<u8>>, Error> {
    if !disk.exists(path).map_err(Error::io("look for", path))? {
        return Ok(None);
    }
    let file = disk.open(path).map_err(Error::io("open", path))?;
    let size = file.len().map_err(Error::io("read", path))?;
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
    let read = file.read_full_at(&mut bytes, 0).map_err(Error::io("read", path))?;
    bytes.truncate(read);
    Ok(Some(bytes))
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
            let entry = read_index(&**disk, segment)?;
            Ok(entry.map(|(head, entry)| {
                sealed.insert(head.first, head);
                entry
            }))
        };
        let visit = |first: u64, frame: &Frame| {
            let change = decode(frame.number, &frame.payload);
            let change = change.map_err(|_| Error::corrupt(DIR, 0, "record of the change log"))?;
            collected.entry(first).or_default().take(change.event.id(), change.sequence);
            Ok(())
        };
        let log = RecordLog::open(disk, options, known, visit)?;
        let mut changes = Self {
            disk: Arc::clone(disk),
            log,
            sealed,
            unindexed: None,
            open: Ids::default(),
            opened_ms: None,
            stamps: Arc::default(),
            bytes_max: config.change_bytes_max,
            age_ms_max: config.change_age_ms_max,
        };
        if let Some(active) = changes.log.active_first() {
            changes.open = collected.remove(&active).unwrap_or_default();
        }
        for (first, ids) in collected {
            let head = changes.head(first, 0, ids.bounds);
            changes.unindexed = Some(Unindexed { head, ids });
            changes.write_index()?;
        }
        changes.remove_orphans()?;
        let stamps = changes.sealed.iter().map(|(first, head)| (*first, head.bounds.greatest));
        *write(&changes.stamps) = stamps.collect();
        Ok(changes)
    }

    fn head(&self, first: u64, sealed_ms: u64, bounds: StampBounds) -> IndexHead {
        let size = self.log.with_segment(first, |entry| (entry.next, entry.segment.len));
        let (next, bytes) = size.expect("the segment is there");
        IndexHead { first, next, bytes, sealed_ms, bounds }
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
        self.log.bytes()
    }

    /// Bytes that wait for the sync of the write-ahead log.
    pub(crate) fn staged_bytes(&self) -> usize {
        self.log.staged_bytes()
    }

    /// Bytes that wait to be written.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.log.pending_bytes()
    }

    /// Takes the next change, as the write-ahead log encoded it. It is not to be seen yet.
    pub(crate) fn stage(&mut self, id: EventId<'_>, payload: &[u8]) {
        self.open.take(id, self.log.next());
        self.log.stage(KIND_CHANGE, &[payload]);
    }

    /// The write-ahead log is synced: lets readers see what was taken.
    pub(crate) fn publish(&mut self) {
        self.log.publish();
    }

    /// Writes what is published; tells whether there was anything.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Io`]: nothing changed. [`Error::WriteFailed`]: nothing is to be trusted.
    pub(crate) fn write_out(&mut self) -> Result<bool, Error> {
        self.log.write_out()
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

    /// The change that this event was, if it was applied here and retention has not passed it. Costs a read of
    /// each index whose bounds of stamps have it.
    ///
    /// # Errors
    /// [`Error::Corrupt`] or a failed read.
    pub(crate) fn find(&self, id: EventId<'_>) -> Result<Option<u64>, Error> {
        let hash = id.hash();
        let open = [Some(&self.open), self.unindexed.as_ref().map(|unindexed| &unindexed.ids)];
        for ids in open.into_iter().flatten().filter(|ids| ids.bounds.contains(id.stamp)) {
            let candidates = ids.entries.iter().filter(|entry| entry.hash == hash);
            // What is not published yet cannot be read; equal hashes have to do.
            if let Some(entry) = candidates.into_iter().next() {
                return Ok(Some(entry.sequence));
            }
        }
        let reader = self.reader();
        for head in self.sealed.values().filter(|head| head.bounds.contains(id.stamp)) {
            let path = index_path(head.first);
            let bytes = read_file(&*self.disk, &path)?.unwrap_or_default();
            let candidates = find_in_index(&bytes, hash);
            for sequence in candidates.ok_or_else(|| Error::corrupt(&path, 0, "index"))? {
                let change = reader.read(sequence, 1, 1)?.pop();
                if change.is_some_and(|change| change.event.id() == id) {
                    return Ok(Some(sequence));
                }
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
        if self.log.has_open_segment() {
            let opened_ms = *self.opened_ms.get_or_insert(now_ms);
            // Eight segments at the least within the age, so that retention is not too coarse.
            let aged = opened_ms.saturating_add(self.age_ms_max / 8) < now_ms;
            if aged || self.log.is_segment_full() {
                self.seal(now_ms)?;
                return Ok(true);
            }
        }
        self.retain(now_ms)
    }

    fn seal(&mut self, now_ms: u64) -> Result<(), Error> {
        let Some(first) = self.log.seal()? else { return Ok(()) };
        let head = self.head(first, now_ms, self.open.bounds);
        let mut ids = std::mem::take(&mut self.open);
        // What is taken and not yet published goes into the next segment.
        let split = ids.entries.partition_point(|entry| entry.sequence < head.next);
        self.open = Ids { entries: ids.entries.split_off(split), bounds: ids.bounds };
        if self.open.entries.is_empty() {
            self.open.bounds = StampBounds::NONE;
        }
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
        let bytes = encode_index(&unindexed.head, &marks, &mut unindexed.ids.entries);
        let path = index_path(first);
        if self.disk.exists(&path).map_err(Error::io("look for", &path))? {
            self.disk.remove(&path).map_err(Error::io("remove", &path))?;
        }
        let file = self.disk.create(&path).map_err(Error::io("create", &path))?;
        file.write_at(&bytes, 0).map_err(Error::io("write", &path))?;
        // An index that a crash damages is made again, so a failed sync says nothing about the log.
        file.sync().map_err(Error::io("sync", &path))?;
        if let Some(Unindexed { head, .. }) = self.unindexed.take() {
            self.sealed.insert(first, head);
        }
        Ok(())
    }

    /// Removes the oldest segment if retention passed it.
    fn retain(&mut self, now_ms: u64) -> Result<bool, Error> {
        let Some((first, head)) = self.sealed.first_key_value() else { return Ok(false) };
        // The newest segment stays: it knows the sequence to go on with.
        let newest = self.log.segments() < 2;
        let old = head.sealed_ms.saturating_add(self.age_ms_max) < now_ms;
        if newest || !(old || self.bytes_max < self.log.bytes()) {
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

/// A segment with its index, as far as it is kept in memory.
type Indexed<F> = (IndexHead, LogSegment<F>);

fn read_index<D: Disk>(
    disk: &D,
    segment: &Segment<D::File>,
) -> Result<Option<Indexed<D::File>>, Error> {
    let Some(bytes) = read_file(disk, &index_path(segment.first))? else { return Ok(None) };
    let Some((head, marks, _)) = decode_index_head(&bytes) else { return Ok(None) };
    let fits = head.first == segment.first && head.bytes == segment.len && !marks.is_empty();
    let entry = LogSegment { segment: segment.clone(), next: head.next, marks };
    Ok(fits.then_some((head, entry)))
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

fn decode(sequence: u64, payload: &Bytes) -> Result<Change, DecodeError> {
    let (provenance, previous, event) = decode_change(payload)?;
    Ok(Change { sequence, event, provenance, previous })
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
        self.log.read(from, limit, bytes_max, |file, record| {
            decode(record.number, &record.payload)
                .map_err(|_| Error::corrupt(file, record.offset, "record of the change log"))
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
