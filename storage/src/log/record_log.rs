//! [`RecordLog`]: the log below the change log and the hints. It follows the write-ahead log, which holds its
//! records durably before they come here, so that nothing here ever waits for the disk on the way of a write.
//!
//! A record is *staged* (not to be seen), perhaps *set aside* while a sync that is for it is under way, *published* (readable, in
//! memory), *written* (many in a frame), *synced*.
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

use super::frame::{FRAME_RECORDS_TARGET, FrameRef};
use super::log_write::{Batch, LogWrite, Target, Written};
use super::reader::LogReader;
use super::recover::{Recovered, recover};
use super::segment::{LogKind, Segment, SegmentHead, list_segments, remove_durably, write_failed};
use crate::{Disk, DiskFile, Error, varint};

/// A place in the log is remembered every so many bytes, so that a read starts at most this far before its record.
/// A frame holds about as many bytes of records.
pub(super) const MARK_DISTANCE: u64 = FRAME_RECORDS_TARGET as u64;
/// Fewer bytes of records are not compressed: it saves next to nothing.
pub(super) const COMPRESS_FROM: usize = 512;

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
    /// What was written last: those who follow the log are rarely further behind, and need not read, check and inflate a frame for
    /// each record of it.
    pub(super) recent: Option<Arc<Batch>>,
    /// Published and not yet written, those before `pending`: a [`LogWrite`] has them.
    pub(super) writing: Option<Arc<Batch>>,
    /// Published and not yet written. Its `next` is one past the last published record.
    pub(super) pending: Batch,
}

/// See the file's head.
pub(crate) struct RecordLog<D: Disk> {
    pub(super) disk: Arc<D>,
    pub(super) dir: String,
    pub(super) kind: LogKind,
    /// Of new segments.
    salt: u32,
    segment_bytes_max: u64,
    pub(super) shared: Arc<RwLock<State<D::File>>>,
    staged: Vec<u8>,
    staged_marks: Vec<Mark>,
    /// Records before the staged ones, to be published first.
    aside: Vec<u8>,
    aside_marks: Vec<Mark>,
    /// One past the last of those.
    aside_next: u64,
    /// Those of records that are published and not yet written, to ask for without the lock.
    pending_bytes: usize,
    /// A [`LogWrite`] is out.
    writing: bool,
    /// One past the last staged record.
    pub(super) next: u64,
    /// Records below this are on disk.
    pub(super) synced: u64,
    /// Bytes that were written since.
    unsynced_bytes: u64,
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
        let firsts = list_segments(&**disk, &options.dir)?;
        let first = firsts.first().copied().unwrap_or(options.start);
        let mut log = Self::unopened(disk, options, first);
        for pair in firsts.windows(2) {
            let segment = Segment::open(&**disk, &log.dir, log.kind, pair[0])?;
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
        log.begin_after(log.next);
        Ok(log)
    }

    /// A log without segments, whose first record will be `next`.
    pub(super) fn unopened(disk: &Arc<D>, options: LogOptions, next: u64) -> Self {
        let LogOptions { dir, kind, salt, segment_bytes_max, .. } = options;
        Self {
            disk: Arc::clone(disk),
            dir,
            kind,
            salt,
            segment_bytes_max,
            shared: Arc::new(RwLock::new(State {
                segments: VecDeque::new(),
                active: false,
                recent: None,
                writing: None,
                pending: Batch::default(),
            })),
            staged: Vec::new(),
            staged_marks: Vec::new(),
            aside: Vec::new(),
            aside_marks: Vec::new(),
            aside_next: 0,
            pending_bytes: 0,
            writing: false,
            next,
            synced: 0,
            unsynced_bytes: 0,
        }
    }

    /// Nothing is published, and the next record is `next`.
    pub(super) fn begin_after(&self, next: u64) {
        self.write_state().pending.next = next;
    }

    pub(super) fn open_newest(
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

    pub(super) fn take_segment(&mut self, entry: LogSegment<D::File>) -> Result<(), Error> {
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

    /// Bytes of records that are not published.
    pub(crate) fn staged_bytes(&self) -> usize {
        self.aside.len() + self.staged.len()
    }

    /// Bytes of published records that are not yet written.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// Bytes of segments and of what waits in memory.
    pub(crate) fn bytes(&self) -> u64 {
        let state = self.read_state();
        let written: u64 = state.segments.iter().map(|entry| entry.segment.len).sum();
        written + (self.pending_bytes + self.staged_bytes()) as u64
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

    /// Sets aside what is staged: to be published when what comes now is not yet to be seen.
    pub(crate) fn set_aside(&mut self) {
        append(
            (&mut self.aside, &mut self.aside_marks),
            (&mut self.staged, &mut self.staged_marks),
        );
        self.aside_next = self.next;
    }

    /// Lets readers see what was set aside.
    pub(crate) fn publish_aside(&mut self) {
        if self.aside.is_empty() {
            return;
        }
        let mut state = write_lock(&self.shared);
        let before = state.pending.records.len();
        let Batch { records, marks, next, .. } = &mut state.pending;
        append((records, marks), (&mut self.aside, &mut self.aside_marks));
        *next = self.aside_next;
        self.pending_bytes += records.len() - before;
    }

    /// Lets readers see all that there is.
    pub(crate) fn publish(&mut self) {
        self.set_aside();
        self.publish_aside();
    }

    /// Writes what is published and tells whether there was anything.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Io`]: nothing changed. [`Error::WriteFailed`]: a sync of a new segment failed.
    pub(crate) fn write_out(&mut self) -> Result<bool, Error> {
        let Some(mut write) = self.begin_write()? else { return Ok(false) };
        write.run();
        self.finish_write(write)
    }

    /// Bytes that were written and not synced since the log was opened.
    pub(crate) fn unsynced_bytes(&self) -> u64 {
        self.unsynced_bytes
    }

    /// Whether a [`LogWrite`] is out: nothing else is written to the log until it is back.
    pub(crate) fn is_writing(&self) -> bool {
        self.writing
    }

    /// A write of what is published, to be run on any thread and given back to [`Self::finish_write`]; `None` if nothing is to
    /// be written.
    ///
    /// # Errors
    /// As [`Self::write_out`].
    ///
    /// # Panics
    /// If one is out.
    pub(crate) fn begin_write(&mut self) -> Result<Option<LogWrite<D::File>>, Error> {
        assert!(!self.writing, "one write of a log at a time");
        if self.pending_bytes == 0 {
            return Ok(None);
        }
        if !self.read_state().active {
            let first = self.read_state().memory_first();
            let head = SegmentHead { salt: self.salt, first };
            let segment = Segment::create(&*self.disk, &self.dir, self.kind, head, false)?;
            let mut state = self.write_state();
            state.segments.push_back(LogSegment { segment, next: first, marks: Vec::new() });
            state.active = true;
        }
        let mut state = write_lock(&self.shared);
        let next = state.pending.next;
        let pending = Batch::after(next);
        let batch = Arc::new(std::mem::replace(&mut state.pending, pending));
        state.writing = Some(Arc::clone(&batch));
        self.writing = true;
        let segment = &state.segments.back().expect("one is active").segment;
        let target = Target {
            file: Arc::clone(&segment.file),
            path: segment.path.clone(),
            offset: segment.len,
            salt: segment.head.salt,
            durable: self.synced,
        };
        Ok(Some(LogWrite::new(batch, target)))
    }

    /// Takes a write back, and tells whether it was run.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Io`]: nothing changed. [`Error::WriteFailed`] if its sync failed: nothing is to be trusted.
    pub(crate) fn finish_write(&mut self, write: LogWrite<D::File>) -> Result<bool, Error> {
        let mut guard = write_lock(&self.shared);
        let state = &mut *guard;
        let entry = state.segments.back_mut().expect("one is active");
        let (batch, outcome) = write.end();
        state.writing = None;
        self.writing = false;
        if let Some(Ok(Written { bytes, marks, is_synced })) = outcome {
            for Mark { number, offset } in marks {
                mark(&mut entry.marks, number, entry.segment.len + offset);
            }
            entry.segment.len += bytes;
            entry.segment.file_len = entry.segment.file_len.max(entry.segment.len);
            entry.next = batch.next;
            self.unsynced_bytes += bytes;
            if is_synced {
                (self.synced, self.unsynced_bytes) = (batch.next, 0);
            }
            state.recent = Some(batch);
            self.pending_bytes = state.pending.records.len();
            return Ok(true);
        }
        let mut before = Arc::into_inner(batch).expect("readers copy what they want of it");
        let Batch { records, marks, next, .. } = &mut state.pending;
        append((&mut before.records, &mut before.marks), (records, marks));
        before.next = *next;
        state.pending = before;
        let Some(Err(error)) = outcome else { return Ok(false) };
        // The next try may need less room: what this one has left is cut off in the end.
        entry.segment.file_len = u64::MAX;
        Err(error)
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
            (state.pending.next, segment.filter(|_| state.active))
        };
        if self.synced < published {
            let segment = active.expect("what is not synced is in the active segment");
            segment.file.sync().map_err(write_failed("sync", &segment.path))?;
            (self.synced, self.unsynced_bytes) = (published, 0);
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
        assert!(self.staged_bytes() == 0 && self.pending_bytes() == 0);
        assert!(self.next <= start);
        self.seal()?;
        while self.oldest_sealed().is_some() {
            self.remove_oldest()?;
        }
        self.next = start;
        self.synced = start;
        self.write_state().recent = None;
        self.begin_after(start);
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

    pub(super) fn write_state(&self) -> RwLockWriteGuard<'_, State<D::File>> {
        write_lock(&self.shared)
    }
}

impl<F> State<F> {
    /// The first published record that is not written; one past the last if all are.
    pub(super) fn memory_first(&self) -> u64 {
        self.writing.as_ref().map_or(self.pending.first(), |batch| batch.first())
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

/// Moves records, each with its length, and marks of places among them, behind others.
fn append(
    (to, to_marks): (&mut Vec<u8>, &mut Vec<Mark>),
    (from, from_marks): (&mut Vec<u8>, &mut Vec<Mark>),
) {
    if to.is_empty() {
        std::mem::swap(to, from);
        std::mem::swap(to_marks, from_marks);
        return;
    }
    let base = to.len() as u64;
    to.extend_from_slice(from);
    for Mark { number, offset } in from_marks.drain(..) {
        mark(to_marks, number, base + offset);
    }
    from.clear();
}

pub(super) fn mark(marks: &mut Vec<Mark>, number: u64, offset: u64) {
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
