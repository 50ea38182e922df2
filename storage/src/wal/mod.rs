//! The write-ahead log: the first place that a write comes to, and the only one that it waits for.
//!
//! Invariants:
//!
//! - One commit is one write and at most one sync, however many records it has.
//! - Records are numbered without a gap ([`Lsn`]); a segment's records are all on disk before the next one is made.
//! - After a write or sync whose outcome is not known the log is poisoned: it takes nothing more until it is
//!   opened again, which reads what is really there.
//! - If there is no room the file is as it was before, on disk too, or the log is poisoned.
//! - While small commits are synced one by one, files are of use again: a segment that goes becomes the spare, and the
//!   spare the next segment. A sync of bytes that lie in a file already costs no write of the file system's journal (here
//!   1.3 to 1.5 times as many a second as appends). For the same reason zeros are written ahead then.
//! - While much is written between two syncs the file is made ready for it ([`DiskFile::prepare_writes`]).
//!
//! What is in a record is told by `record.rs`; what becomes of it is decided in `engine`.

pub(crate) mod record;
mod sync;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use starling_clock::{NodeId, Stamp};

use crate::event::DecodeError;
use crate::log::{
    FRAME_RECORDS_TARGET, FrameHead, FrameRef, LogKind, Recovered, Segment, SegmentHead,
    encode_frame, list_segments, recover, remove_durably, spare_path, write_failed,
};
use crate::{Disk, DiskFile, Error, Event, Lsn, Provenance, varint};
use record::{
    HINT_HEADER_SIZE, WalRecordRef, encode_event, encode_hint, encode_hints_done, encode_named,
};
use sync::Gate;

pub(crate) use sync::WalSync;

/// Fewer bytes of records are not compressed: the commit would wait longer for that than for the bytes it saves.
const COMPRESS_FROM: usize = 4 << 10;
/// So many zeros are written ahead at most, and never more than the segment holds already.
const AHEAD_BYTES_MAX: u64 = 256 << 10;
/// Zeros are written ahead if at most so many bytes were synced at once.
const SMALL_SYNC_BYTES: u64 = 32 << 10;
/// The file is made ready for more if at least so many bytes are not synced, or were not before the last sync. For fewer it would
/// have a sync write far more than there is.
const PREPARE_FROM: u64 = 1 << 20;

/// A segment that takes no more records.
#[derive(Debug)]
struct Sealed {
    path: String,
    last: Lsn,
    len: u64,
}

/// The write-ahead log. See the file's head.
pub(crate) struct Wal<D: Disk> {
    disk: Arc<D>,
    dir: &'static str,
    salt: u32,
    sealed: VecDeque<Sealed>,
    active: Segment<D::File>,
    /// There is a file to make the next segment of.
    has_spare: bool,
    /// Number of the next record, those of the commit counted.
    next: u64,
    /// Number of the next record to be written.
    written: u64,
    /// Records below this are on disk.
    durable: u64,
    /// Bytes of the newest segment that are on disk.
    durable_len: u64,
    /// Bytes that the last sync was for.
    synced_bytes: u64,
    /// What was synced last, before a commit was answered, was small.
    write_ahead: bool,
    /// The file is ready for writes up to here, or was not to be made ready before.
    prepared: u64,
    commit: Commit,
    gate: Arc<Gate>,
    /// A [`WalSync`] is out.
    syncing: bool,
    poisoned: bool,
}

/// The commit that is being put together.
#[derive(Debug, Default)]
struct Commit {
    /// Records, each with its length before it.
    records: Vec<u8>,
    /// Where frames end: (offset in `records`, number of the next record).
    ends: Vec<(usize, u64)>,
    /// What is written; kept for its memory.
    frames: Vec<u8>,
}

impl<D: Disk> Wal<D> {
    /// Opens the log, or makes it if `create` is set and no segment is there, and hands each record to `take`, and whether
    /// it is known to be on disk.
    ///
    /// # Errors
    /// [`Error::Missing`] if there is no log, [`Error::Corrupt`] for damage that is not a torn tail, or failed IO.
    pub(crate) fn open(
        disk: &Arc<D>,
        dir: &'static str,
        salt: u32,
        create: bool,
        mut take: impl FnMut(Lsn, bool, &WalRecordRef<'_>) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let kind = LogKind::WriteAhead;
        let firsts = list_segments(&**disk, dir)?;
        let mut sealed = VecDeque::new();
        for pair in firsts.windows(2) {
            let segment = Segment::open(&**disk, dir, kind, pair[0])?;
            let mut frames = segment.all_frames().until(pair[1]);
            loop {
                let offset = frames.offset;
                let Some(frame) = frames.next_frame_in()? else { break };
                take_records(&segment.path, offset, frame, |lsn, record| take(lsn, true, record))?;
            }
            let (last, len) = (Lsn(pair[1] - 1), frames.offset);
            sealed.push_back(Sealed { path: segment.path, last, len });
        }
        let (active, next) = match firsts.last() {
            Some(&first) => {
                let recovered =
                    recover(&**disk, (dir, kind, first), true, |path, offset, frame| {
                        take_records(path, offset, frame, |lsn, record| take(lsn, false, record))
                    })?;
                let Recovered { segment, next, .. } = recovered;
                (segment, next)
            }
            None if create => {
                let head = SegmentHead { salt: segment_salt(salt, 1), first: 1 };
                (Segment::create(&**disk, dir, kind, head, false)?, 1)
            }
            None => return Err(Error::Missing { file: format!("{dir}/*.log") }),
        };
        let spare = spare_path(dir);
        Ok(Self {
            has_spare: disk.exists(&spare).map_err(Error::io("look for", &spare))?,
            disk: Arc::clone(disk),
            dir,
            salt,
            sealed,
            durable_len: active.len,
            active,
            next,
            written: next,
            durable: next,
            synced_bytes: 0,
            write_ahead: false,
            prepared: 0,
            commit: Commit::default(),
            gate: Arc::default(),
            syncing: false,
            poisoned: false,
        })
    }

    /// The last record that was written.
    pub(crate) fn last(&self) -> Lsn {
        Lsn(self.written - 1)
    }

    /// Whether a write or sync has failed.
    pub(crate) fn is_poisoned(&self) -> bool {
        self.poisoned || self.gate.has_failed()
    }

    /// Takes nothing more until it is opened again.
    pub(crate) fn poison(&mut self) {
        self.poisoned = true;
    }

    /// Records that are written and not synced.
    pub(crate) fn unsynced(&self) -> u64 {
        self.written - self.durable
    }

    /// Segments and their bytes.
    pub(crate) fn size(&self) -> (u64, u64) {
        let sealed: u64 = self.sealed.iter().map(|segment| segment.len).sum();
        (self.sealed.len() as u64 + 1, sealed + self.active.len)
    }

    /// Bytes of the newest segment.
    pub(crate) fn active_bytes(&self) -> u64 {
        self.active.len
    }

    /// Whether the newest segment has a record.
    pub(crate) fn active_has_records(&self) -> bool {
        self.active.head.first < self.written
    }

    /// Whether anything waits to be written.
    pub(crate) fn is_empty(&self) -> bool {
        self.commit.records.is_empty()
    }

    /// Bytes of the commit's records.
    pub(crate) fn buffered(&self, range: Range<usize>) -> &[u8] {
        &self.commit.records[range]
    }

    /// Adds an event to the commit, as the change `sequence`, and tells where the packed change is in the buffer.
    pub(crate) fn push_event(
        &mut self,
        sequence: u64,
        provenance: Provenance,
        previous: Option<Stamp>,
        event: &Event,
    ) -> Range<usize> {
        let (number, mut head) = (self.next, 0);
        let record = self.push(|out| {
            head = encode_event(number, sequence, (provenance, previous, event), out);
        });
        record.start + head..record.end
    }

    /// Adds a hint to the commit and tells where the packed event is in the buffer.
    pub(crate) fn push_hint(
        &mut self,
        target: NodeId,
        sequence: u64,
        event: &Event,
    ) -> Range<usize> {
        let record = self.push(|out| encode_hint(target, sequence, event, out));
        record.start + HINT_HEADER_SIZE..record.end
    }

    /// Adds a note that hints were consumed.
    pub(crate) fn push_hints_done(&mut self, target: NodeId, up_to: u64) {
        self.push(|out| encode_hints_done(target, up_to, out));
    }

    /// Adds a named value.
    pub(crate) fn push_meta(&mut self, name: &str, value: &[u8]) {
        self.push(|out| encode_named(name, value, out));
    }

    fn push(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> Range<usize> {
        assert!(!self.poisoned);
        let range = varint::put_prefixed(&mut self.commit.records, encode);
        self.next += 1;
        let from = self.commit.ends.last().map_or(0, |&(end, _)| end);
        if range.end - from >= FRAME_RECORDS_TARGET {
            self.commit.ends.push((range.end, self.next));
        }
        range
    }

    /// Forgets the commit that was being put together.
    pub(crate) fn abandon(&mut self) {
        self.commit.records.clear();
        self.commit.ends.clear();
        self.next = self.written;
    }

    /// Writes the commit, in one call. Its records stay in the buffer until [`Self::abandon`].
    ///
    /// # Errors
    /// [`Error::Full`]: nothing was written, the log goes on. [`Error::WriteFailed`]: the log is poisoned.
    pub(crate) fn write(&mut self) -> Result<(), Error> {
        assert!(!self.poisoned);
        self.encode_commit();
        let size = self.commit.frames.len() as u64;
        let end = self.active.len + size;
        let unsynced = self.active.len - self.durable_len;
        if self.prepared <= self.active.len && PREPARE_FROM <= unsynced.max(self.synced_bytes) {
            self.prepare();
        }
        if self.write_ahead && self.active.file_len < end {
            let ahead = end.min(AHEAD_BYTES_MAX);
            let padded = usize::try_from(size + ahead).expect("it is in memory");
            self.commit.frames.resize(padded, 0);
        }
        let padded = size < self.commit.frames.len() as u64;
        let mut result = self.active.file.write_at(&self.commit.frames, self.active.len);
        if is_full(&result) {
            result = self.undo_write().and(result);
            if padded && is_full(&result) {
                // There may be room for the commit alone.
                self.write_ahead = false;
                self.commit.frames.truncate(usize::try_from(size).expect("it is in memory"));
                result = self.active.file.write_at(&self.commit.frames, self.active.len);
                if is_full(&result) {
                    result = self.undo_write().and(result);
                }
            }
            if is_full(&result) {
                self.abandon();
                return Err(Error::Full { file: self.active.path.clone() });
            }
        }
        if let Err(error) = result {
            self.poisoned = true;
            return Err(write_failed("write", &self.active.path)(error));
        }
        let written = self.active.len + self.commit.frames.len() as u64;
        self.active.file_len = self.active.file_len.max(written);
        self.active.len = end;
        self.written = self.next;
        Ok(())
    }

    fn prepare(&mut self) {
        let Segment { file, len, file_len, .. } = &mut self.active;
        let ready = file.prepare_writes(*len);
        *file_len = ready.max(*file_len);
        // What is not to be had is not asked for at each commit.
        self.prepared = if *len < ready { ready } else { *len + PREPARE_FROM };
    }

    fn encode_commit(&mut self) {
        let Commit { records, ends, frames } = &mut self.commit;
        if ends.last().is_none_or(|&(end, _)| end < records.len()) {
            ends.push((records.len(), self.next));
        }
        frames.clear();
        let (mut start, mut number) = (0, self.written);
        for &(end, next) in &*ends {
            let (salt, durable) = (self.active.head.salt, self.durable);
            let head = FrameHead { salt, number, count: next - number, durable };
            encode_frame(head, &records[start..end], COMPRESS_FROM, frames);
            (start, number) = (end, next);
        }
    }

    /// Takes back a write that was done in part. Synced, or whole records of it could come up after a crash.
    fn undo_write(&mut self) -> io::Result<()> {
        self.active.file.truncate(self.active.len)?;
        self.active.file_len = self.active.len;
        self.prepared = 0;
        self.gate.sync(&*self.active.file, &self.active.path).map_err(io::Error::other)
    }

    /// Makes what was written survive a crash.
    ///
    /// # Errors
    /// [`Error::WriteFailed`]: the log is poisoned.
    pub(crate) fn sync(&mut self) -> Result<(), Error> {
        assert!(!self.poisoned);
        if self.durable == self.written {
            return Ok(());
        }
        let synced = self.gate.sync(&*self.active.file, &self.active.path);
        synced.inspect_err(|_| self.poisoned = true)?;
        self.synced_bytes = self.active.len - self.durable_len;
        self.write_ahead = self.synced_bytes <= SMALL_SYNC_BYTES;
        self.durable_len = self.active.len;
        self.durable = self.written;
        self.prepared = 0;
        Ok(())
    }

    /// A sync of what is written so far, to be run on another thread and given back to [`Self::finish_sync`]; `None` if all of
    /// that is on disk, or one is out.
    pub(crate) fn begin_sync(&mut self) -> Option<WalSync<D::File>> {
        assert!(!self.poisoned);
        if self.syncing || self.unsynced() == 0 {
            return None;
        }
        self.syncing = true;
        let Segment { file, path, len, .. } = &self.active;
        let up_to = (self.written, *len);
        Some(WalSync::new(Arc::clone(&self.gate), Arc::clone(file), path.clone(), up_to))
    }

    /// Takes a sync back; tells whether it was run.
    ///
    /// # Errors
    /// [`Error::WriteFailed`]: the log is poisoned.
    pub(crate) fn finish_sync(&mut self, sync: WalSync<D::File>) -> Result<bool, Error> {
        self.syncing = false;
        let (up_to, len) = (sync.up_to, sync.len);
        let Some(outcome) = sync.end() else { return Ok(false) };
        outcome.inspect_err(|_| self.poisoned = true)?;
        // A sync that was not told to another thread may have done the same meanwhile.
        if self.durable < up_to {
            assert!(self.active.head.first <= up_to, "a segment ends with a sync");
            self.synced_bytes = len - self.durable_len;
            (self.durable, self.durable_len) = (up_to, len);
            self.prepared = 0;
        }
        Ok(true)
    }

    /// Goes on in a new segment. Everything has to be written and synced.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Io`]: the log goes on in the old one. [`Error::WriteFailed`]: it is poisoned.
    pub(crate) fn roll(&mut self) -> Result<(), Error> {
        assert!(!self.poisoned);
        assert!(
            self.durable == self.next,
            "a segment's records are on disk before the next is made"
        );
        let kind = LogKind::WriteAhead;
        let salt = segment_salt(self.salt, self.next);
        let head = SegmentHead { salt, first: self.next };
        let segment = Segment::create(&*self.disk, self.dir, kind, head, self.has_spare);
        let segment = segment.inspect_err(|error| {
            self.poisoned |= matches!(error, Error::WriteFailed { .. });
        })?;
        self.has_spare = false;
        self.durable_len = segment.len;
        self.prepared = 0;
        let old = std::mem::replace(&mut self.active, segment);
        self.sealed.push_back(Sealed { path: old.path, last: self.last(), len: old.len });
        Ok(())
    }

    /// The last record of the oldest segment that takes no more.
    pub(crate) fn oldest_sealed(&self) -> Option<Lsn> {
        self.sealed.front().map(|segment| segment.last)
    }

    /// Removes the oldest segment, or makes it the spare one if that is of use; all that its records say has to be durable elsewhere.
    ///
    /// # Errors
    /// Failed IO: it is the oldest as before, and another try goes on with it, so that no hole comes to be.
    pub(crate) fn remove_oldest(&mut self) -> Result<(), Error> {
        let segment = self.sealed.front().expect("the caller asked for the oldest");
        // With large syncs it would save nothing, and take room.
        if self.has_spare || !self.write_ahead {
            remove_durably(&*self.disk, self.dir, &segment.path)?;
        } else {
            match self.disk.rename(&segment.path, &spare_path(self.dir)) {
                // An earlier try went wrong half-way.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => result.map_err(Error::io("rename", &segment.path))?,
            }
            self.disk.sync_dir(self.dir).map_err(Error::io("sync", self.dir))?;
            self.has_spare = true;
        }
        self.sealed.pop_front();
        Ok(())
    }

    /// Gives back the room that the spare file takes, if there is one; tells whether there was.
    ///
    /// # Errors
    /// Failed IO: another try is safe.
    pub(crate) fn remove_spare(&mut self) -> Result<bool, Error> {
        if !self.has_spare {
            return Ok(false);
        }
        remove_durably(&*self.disk, self.dir, &spare_path(self.dir))?;
        self.has_spare = false;
        Ok(true)
    }
}

fn is_full(result: &io::Result<()>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::StorageFull)
}

/// Each segment has a salt of its own: what an earlier use of its file left is no frame of it.
fn segment_salt(salt: u32, first: u64) -> u32 {
    crc32c::crc32c_append(salt, &first.to_le_bytes())
}

fn take_records(
    path: &str,
    offset: u64,
    frame: FrameRef<'_>,
    mut take: impl FnMut(Lsn, &WalRecordRef<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let bad = |error| match error {
        DecodeError::Short => Error::corrupt(path, offset, "record is cut short"),
        DecodeError::Corrupt(reason) => Error::corrupt(path, offset, reason),
    };
    for record in frame.records() {
        let (number, record) = record.map_err(bad)?;
        // It stays where it is decoded to: moves of it would take as long as that.
        match &WalRecordRef::decode(number, record) {
            Ok(record) => take(Lsn(number), record)?,
            Err(error) => return Err(bad(*error)),
        }
    }
    Ok(())
}
