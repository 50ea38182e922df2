//! [`RecordLog`]: the log below the change log and the hints. It follows the write-ahead log, which holds its
//! records durably before they come here, so that nothing here ever waits for the disk on the way of a write.
//!
//! A record is *staged* (not to be seen), *published* (readable, in memory), *written* (many in a frame), *synced*.
//!
//! Invariants:
//!
//! - Numbers follow each other without a gap, in memory and on disk.
//! - A reader sees published records and nothing else, from any thread, and never waits for a write or a sync.
//! - A failed write changes nothing: the records stay in memory and the same place is written again. What it may have
//!   left is cut off before the segment takes no more records.
//! - Only the oldest segments are removed, one at a time, so that a crash leaves no hole.
//!
//! What the records mean is not known here.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::frame::{FRAME_RECORDS_TARGET, FrameHead, FrameRef, encode_frame};
use super::reader::LogReader;
use super::recover::{Recovered, recover};
use super::segment::{LogKind, Segment, SegmentHead, list_segments, remove_durably, write_failed};
use crate::{Disk, DiskFile, Error, varint};

/// A place in the log is remembered every so many bytes, so that a read starts at most this far before its record.
/// A frame holds about as many bytes of records.
pub(super) const MARK_DISTANCE: u64 = FRAME_RECORDS_TARGET as u64;
/// Fewer bytes of records are not compressed: it saves next to nothing.
const COMPRESS_FROM: usize = 512;

/// Where a record starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) number: u64,
    pub(crate) offset: u64,
}

/// One segment and what is known of its inside.
#[derive(Debug)]
pub(crate) struct LogSegment<F> {
    pub(crate) segment: Segment<F>,
    /// One past its last record.
    pub(crate) next: u64,
    /// In order; the first is the first record's.
    pub(crate) marks: Vec<Mark>,
}

#[derive(Debug)]
pub(super) struct State<F> {
    pub(super) segments: VecDeque<LogSegment<F>>,
    /// The last segment takes more records.
    pub(super) active: bool,
    /// Published and not yet written: records, each with its length before it.
    pub(super) pending: Vec<u8>,
    pub(super) pending_first: u64,
    /// Offsets in `pending`, where frames will begin.
    pub(super) pending_marks: Vec<Mark>,
    /// What was written last, in the same form: those who follow the log are rarely further behind, and need not read, check and
    /// inflate a frame for each record of it.
    pub(super) recent: Vec<u8>,
    pub(super) recent_first: u64,
    pub(super) recent_marks: Vec<Mark>,
    /// One past the last published record.
    pub(super) next: u64,
}

/// See the file's head.
pub(crate) struct RecordLog<D: Disk> {
    disk: Arc<D>,
    dir: String,
    kind: LogKind,
    /// Of new segments.
    salt: u32,
    segment_bytes_max: u64,
    shared: Arc<RwLock<State<D::File>>>,
    staged: Vec<u8>,
    staged_marks: Vec<Mark>,
    /// Those of `pending`, to ask for without the lock: only this value changes it.
    pending_bytes: usize,
    /// Frames that are being written; kept for its memory.
    frames: Vec<u8>,
    /// One past the last staged record.
    next: u64,
    /// Records below this are on disk.
    synced: u64,
}

/// What opening needs to know.
pub(crate) struct LogOptions {
    pub(crate) dir: String,
    pub(crate) kind: LogKind,
    /// Of new segments.
    pub(crate) salt: u32,
    pub(crate) segment_bytes_max: u64,
    /// Number of the first record, if no segment is there.
    pub(crate) start: u64,
}

impl<D: Disk> RecordLog<D> {
    /// Opens the log in a directory that is there. `known` may tell the inside of a segment that is not the newest
    /// from elsewhere; the other segments are read, and each of their records is handed to `visit`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for damage that is not a torn tail, a hole between segments, or failed IO.
    pub(crate) fn open(
        disk: &Arc<D>,
        options: LogOptions,
        mut known: impl FnMut(&Segment<D::File>) -> Result<Option<LogSegment<D::File>>, Error>,
        mut visit: impl FnMut(u64, FrameRef<'_>) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let LogOptions { dir, kind, salt, segment_bytes_max, start } = options;
        let firsts = list_segments(&**disk, &dir)?;
        let mut log = Self {
            disk: Arc::clone(disk),
            dir,
            kind,
            salt,
            segment_bytes_max,
            shared: Arc::new(RwLock::new(State {
                segments: VecDeque::new(),
                active: false,
                pending: Vec::new(),
                pending_first: 0,
                pending_marks: Vec::new(),
                recent: Vec::new(),
                recent_first: 0,
                recent_marks: Vec::new(),
                next: 0,
            })),
            staged: Vec::new(),
            staged_marks: Vec::new(),
            pending_bytes: 0,
            frames: Vec::new(),
            next: firsts.first().copied().unwrap_or(start),
            synced: 0,
        };
        for pair in firsts.windows(2) {
            let segment = Segment::open(&**disk, &log.dir, kind, pair[0])?;
            let entry = match known(&segment)? {
                Some(entry) => entry,
                None => scan(segment, |frame| visit(pair[0], frame))?,
            };
            log.take_segment(entry)?;
        }
        log.synced = log.next;
        if let Some(&first) = firsts.last() {
            log.open_newest(first, |frame| visit(first, frame))?;
        }
        let mut state = log.write_state();
        state.pending_first = log.next;
        state.recent_first = log.next;
        state.next = log.next;
        drop(state);
        Ok(log)
    }

    fn open_newest(
        &mut self,
        first: u64,
        mut visit: impl FnMut(FrameRef<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut marks = Vec::new();
        let disk = Arc::clone(&self.disk);
        let place = (self.dir.as_str(), self.kind, first);
        // No sync: what it would be for is in the write-ahead log until this log is synced.
        let recovered = recover(&*disk, place, false, |_, offset, frame| {
            mark(&mut marks, frame.number, offset);
            visit(frame)
        })?;
        let Recovered { segment, next, durable } = recovered;
        self.take_segment(LogSegment { segment, next, marks })?;
        self.synced = durable;
        self.write_state().active = true;
        Ok(())
    }

    fn take_segment(&mut self, entry: LogSegment<D::File>) -> Result<(), Error> {
        if entry.segment.head.first != self.next {
            return Err(Error::corrupt(&entry.segment.path, 0, "records before it are missing"));
        }
        self.next = entry.next;
        self.write_state().segments.push_back(entry);
        Ok(())
    }

    /// One past the last staged record: the number that the next one gets.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Bytes of staged records.
    pub(crate) fn staged_bytes(&self) -> usize {
        self.staged.len()
    }

    /// Bytes of published records that are not yet written.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// Bytes of segments and of what waits in memory.
    pub(crate) fn bytes(&self) -> u64 {
        let state = self.read_state();
        let written: u64 = state.segments.iter().map(|entry| entry.segment.len).sum();
        written + (state.pending.len() + self.staged.len()) as u64
    }

    /// The records to read, for any thread.
    pub(crate) fn reader(&self) -> LogReader<D::File> {
        LogReader::new(Arc::clone(&self.shared))
    }

    /// Takes one record, which is `parts` one after the other. It is not to be seen yet.
    pub(crate) fn stage(&mut self, parts: &[&[u8]]) {
        mark(&mut self.staged_marks, self.next, self.staged.len() as u64);
        let length: usize = parts.iter().map(|part| part.len()).sum();
        varint::put(length as u64, &mut self.staged);
        for part in parts {
            self.staged.extend_from_slice(part);
        }
        self.next += 1;
    }

    /// Lets readers see what is staged.
    pub(crate) fn publish(&mut self) {
        if self.staged.is_empty() {
            return;
        }
        let mut state = write_lock(&self.shared);
        let base = state.pending.len() as u64;
        if base == 0 {
            std::mem::swap(&mut state.pending, &mut self.staged);
        } else {
            state.pending.extend_from_slice(&self.staged);
        }
        for &Mark { number, offset } in &self.staged_marks {
            mark(&mut state.pending_marks, number, base + offset);
        }
        state.next = self.next;
        self.pending_bytes = state.pending.len();
        drop(state);
        self.staged.clear();
        self.staged_marks.clear();
    }

    /// Writes what is published and tells whether there was anything.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Io`]: nothing changed. [`Error::WriteFailed`]: a sync of a new segment failed.
    pub(crate) fn write_out(&mut self) -> Result<bool, Error> {
        if self.pending_bytes() == 0 {
            return Ok(false);
        }
        if !self.read_state().active {
            let first = self.read_state().pending_first;
            let head = SegmentHead { salt: self.salt, first };
            let segment = Segment::create(&*self.disk, &self.dir, self.kind, head, false)?;
            let mut state = self.write_state();
            state.segments.push_back(LogSegment { segment, next: first, marks: Vec::new() });
            state.active = true;
        }
        let mut marks = Vec::new();
        let written = {
            // Readers share this lock; the only one who takes it alone is this thread.
            let state = read_lock(&self.shared);
            let segment = &state.segments.back().expect("one is active").segment;
            state.encode_pending(self.synced, &mut self.frames, &mut marks);
            let written = segment.file.write_at(&self.frames, segment.len);
            written.map_err(Error::io("write", &segment.path))
        };
        let mut guard = self.write_state();
        let state = &mut *guard;
        let entry = state.segments.back_mut().expect("one is active");
        if let Err(error) = written {
            // The next try may need less room: what this one has left is cut off in the end.
            entry.segment.file_len = u64::MAX;
            return Err(error);
        }
        for Mark { number, offset } in marks {
            mark(&mut entry.marks, number, entry.segment.len + offset);
        }
        entry.segment.len += self.frames.len() as u64;
        entry.segment.file_len = entry.segment.file_len.max(entry.segment.len);
        entry.next = state.next;
        std::mem::swap(&mut state.recent, &mut state.pending);
        std::mem::swap(&mut state.recent_marks, &mut state.pending_marks);
        state.recent_first = state.pending_first;
        state.pending.clear();
        state.pending_marks.clear();
        state.pending_first = state.next;
        drop(guard);
        self.pending_bytes = 0;
        Ok(true)
    }

    /// Writes and syncs what is published.
    ///
    /// # Errors
    /// As [`Self::write_out`]; [`Error::WriteFailed`] if the sync fails: nothing is to be trusted then.
    pub(crate) fn sync(&mut self) -> Result<(), Error> {
        self.write_out()?;
        let (published, active) = {
            let state = self.read_state();
            let segment = state.segments.back().map(|entry| entry.segment.clone());
            (state.next, segment.filter(|_| state.active))
        };
        if self.synced < published {
            let segment = active.expect("what is not synced is in the active segment");
            segment.file.sync().map_err(write_failed("sync", &segment.path))?;
            self.synced = published;
        }
        Ok(())
    }

    /// Whether the newest segment is as large as it may be.
    pub(crate) fn is_segment_full(&self) -> bool {
        let state = self.read_state();
        let newest = state.segments.back().filter(|_| state.active);
        newest.is_some_and(|entry| entry.segment.len >= self.segment_bytes_max)
    }

    /// Whether the newest segment takes records and has some.
    pub(crate) fn has_open_segment(&self) -> bool {
        let state = self.read_state();
        state.active && state.segments.back().is_some_and(|entry| !entry.marks.is_empty())
    }

    /// Ends the newest segment, after it is synced; the next record goes into a new one. Tells which it was.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub(crate) fn seal(&mut self) -> Result<Option<u64>, Error> {
        self.write_out()?;
        let newest = self.read_state().segments.back().map(|entry| entry.segment.clone());
        if let Some(segment) = newest.filter(|segment| segment.len < segment.file_len) {
            segment.file.truncate(segment.len).map_err(Error::io("truncate", &segment.path))?;
            segment.file.sync().map_err(write_failed("sync", &segment.path))?;
            let mut state = self.write_state();
            let entry = state.segments.back_mut().expect("there is one");
            entry.segment.file_len = segment.len;
        }
        self.sync()?;
        let mut state = self.write_state();
        if !state.active {
            return Ok(None);
        }
        state.active = false;
        Ok(state.segments.back().map(|entry| entry.segment.head.first))
    }

    /// How many segments there are.
    pub(crate) fn segments(&self) -> usize {
        self.read_state().segments.len()
    }

    /// The first record of the segment that takes more.
    pub(crate) fn active_first(&self) -> Option<u64> {
        let state = self.read_state();
        state.segments.back().filter(|_| state.active).map(|entry| entry.segment.head.first)
    }

    /// Forgets all records and goes on with number `start`.
    ///
    /// # Errors
    /// As [`Self::seal`] and [`Self::remove_oldest`].
    ///
    /// # Panics
    /// If there are records that are not written, or one with that number.
    pub(crate) fn restart(&mut self, start: u64) -> Result<(), Error> {
        assert!(self.staged.is_empty() && self.pending_bytes() == 0);
        assert!(self.next <= start);
        self.seal()?;
        while self.oldest_sealed().is_some() {
            self.remove_oldest()?;
        }
        self.next = start;
        self.synced = start;
        let mut state = self.write_state();
        state.recent.clear();
        state.recent_marks.clear();
        state.recent_first = start;
        state.pending_first = start;
        state.next = start;
        Ok(())
    }

    /// The oldest segment, if it takes no more records: (first record, one past the last).
    pub(crate) fn oldest_sealed(&self) -> Option<(u64, u64)> {
        let state = self.read_state();
        let sealed = state.segments.len() - usize::from(state.active);
        let oldest = state.segments.front().filter(|_| sealed > 0)?;
        Some((oldest.segment.head.first, oldest.next))
    }

    /// Removes the oldest segment; it has to take no more records.
    ///
    /// # Errors
    /// Failed IO: it is the oldest as before, and another try goes on with it, so that no hole comes to be.
    pub(crate) fn remove_oldest(&mut self) -> Result<(), Error> {
        assert!(self.oldest_sealed().is_some());
        let path = self.read_state().segments.front().map(|entry| entry.segment.path.clone());
        remove_durably(&*self.disk, &self.dir, &path.expect("asserted above"))?;
        self.write_state().segments.pop_front();
        Ok(())
    }

    /// Looks at one segment.
    pub(crate) fn with_segment<T>(
        &self,
        first: u64,
        look: impl FnOnce(&LogSegment<D::File>) -> T,
    ) -> Option<T> {
        let state = self.read_state();
        state.segments.iter().find(|entry| entry.segment.head.first == first).map(look)
    }

    fn read_state(&self) -> RwLockReadGuard<'_, State<D::File>> {
        read_lock(&self.shared)
    }

    fn write_state(&self) -> RwLockWriteGuard<'_, State<D::File>> {
        write_lock(&self.shared)
    }
}

impl<F> State<F> {
    /// The frames of what is pending, and where each begins.
    fn encode_pending(&self, durable: u64, frames: &mut Vec<u8>, marks: &mut Vec<Mark>) {
        frames.clear();
        let salt = self.segments.back().map_or(0, |entry| entry.segment.head.salt);
        let end = Mark { number: self.next, offset: self.pending.len() as u64 };
        let nexts = self.pending_marks.iter().skip(1).chain([&end]);
        for (from, to) in self.pending_marks.iter().zip(nexts) {
            marks.push(Mark { number: from.number, offset: frames.len() as u64 });
            let head =
                FrameHead { salt, number: from.number, count: to.number - from.number, durable };
            let records = &self.pending[in_memory(from.offset)..in_memory(to.offset)];
            encode_frame(head, records, COMPRESS_FROM, frames);
        }
    }
}

pub(super) fn in_memory(offset: u64) -> usize {
    usize::try_from(offset).expect("it is in memory")
}

// The state is whole whenever the lock is free, so a panic elsewhere is no reason to refuse it.
pub(super) fn read_lock<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write_lock<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

fn mark(marks: &mut Vec<Mark>, number: u64, offset: u64) {
    if marks.last().is_none_or(|last| last.offset + MARK_DISTANCE <= offset) {
        marks.push(Mark { number, offset });
    }
}

/// Reads a whole segment that takes no more records.
pub(crate) fn scan<F: DiskFile>(
    segment: Segment<F>,
    mut visit: impl FnMut(FrameRef<'_>) -> Result<(), Error>,
) -> Result<LogSegment<F>, Error> {
    let mut marks = Vec::new();
    let mut frames = segment.all_frames();
    let mut offset = frames.offset;
    while let Some(frame) = frames.next_frame_in()? {
        mark(&mut marks, frame.number, offset);
        visit(frame)?;
        offset = frames.offset;
    }
    let next = frames.number;
    Ok(LogSegment { segment, next, marks })
}
