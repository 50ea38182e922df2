//! Reading on behind damage: for a log of which each record counts by itself, which is the hints.
//!
//! Invariants:
//!
//! - What is damaged is noted with its file and offset, and passed over; what lies behind it is read.
//! - Numbers stay what they are: a lost record is a gap in what is read, and none in what can be consumed and removed.
//! - Nothing is cut off but a torn tail: what is damaged goes when its segment does.
//! - A newest segment with damage takes no more records: what is good in it is written anew, and the log goes on in another.
//!
//! A read that fails is no damage: it may work another time, and is an error here as elsewhere.

use std::sync::Arc;

use super::frame::Record;
use super::inspect::find_frame;
use super::reader::{LogReader, Page};
use super::record_log::{LogOptions, LogSegment, Mark, RecordLog, mark, read_lock};
use super::segment::{
    SEGMENT_HEADER_SIZE, Segment, SegmentHead, list_segments, segment_path, write_failed,
};
use crate::{DamageLog, Disk, DiskFile, Error, FoundBy};

/// Written anew at once.
const PIECE_SIZE: u64 = 1 << 20;

/// What was read past damage.
pub(crate) struct PastDamage<T> {
    pub(crate) records: Vec<T>,
    /// One past the last number that was looked at.
    pub(crate) next: u64,
    /// Numbers that were passed over.
    pub(crate) lost: u64,
}

impl<D: Disk> RecordLog<D> {
    /// Opens the log in a directory that is there. No segment and no record has to be good.
    ///
    /// # Errors
    /// [`Error::NewerFormat`] or failed IO.
    pub(crate) fn open_past_damage(
        disk: &Arc<D>,
        options: LogOptions,
        damage: &DamageLog,
    ) -> Result<Self, Error> {
        let firsts = list_segments(&**disk, &options.dir)?;
        let start = options.start;
        let mut log = Self::unopened(disk, options, firsts.first().copied().unwrap_or(start));
        log.synced = log.next;
        for (index, &first) in firsts.iter().enumerate() {
            let until = firsts.get(index + 1).copied();
            if until.is_none() {
                match log.open_newest(first, |_| Ok(())) {
                    Ok(()) => break,
                    Err(Error::Corrupt { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            let entry = log.open_damaged(first, until, start, damage)?;
            log.take_segment(entry)?;
            log.synced = log.next;
        }
        log.begin_after(log.next);
        Ok(log)
    }

    /// A segment that takes no more records, from `first` to the one before `until`; `None`: it was the newest.
    fn open_damaged(
        &self,
        first: u64,
        until: Option<u64>,
        start: u64,
        damage: &DamageLog,
    ) -> Result<LogSegment<D::File>, Error> {
        let segment = match Segment::open(&*self.disk, &self.dir, self.kind, first) {
            Ok(segment) => segment,
            Err(error @ Error::Corrupt { .. }) => {
                damage.note_error(FoundBy::Start, &error);
                let segment = unreadable(&*self.disk, &self.dir, first)?;
                let next = until.unwrap_or(start.max(first + 1));
                return Ok(LogSegment { segment, next, marks: Vec::new() });
            }
            Err(error) => return Err(error),
        };
        let (marks, next) = scan_past_damage(&segment, until, damage)?;
        if until.is_none() {
            rewrite(&segment)?;
        }
        // Another segment must not come to have its name.
        let next = until.unwrap_or(next.max(first + 1));
        Ok(LogSegment { segment, next, marks })
    }

    /// Goes on with number `start`: what is between is lost.
    ///
    /// # Errors
    /// As [`Self::seal`].
    ///
    /// # Panics
    /// If there are records that are not written, or one with that number.
    pub(crate) fn skip_to(&mut self, start: u64) -> Result<(), Error> {
        assert!(self.staged_bytes() == 0 && self.pending_bytes() == 0);
        assert!(self.next <= start);
        self.seal()?;
        if let Some(newest) = self.write_state().segments.back_mut() {
            newest.next = start;
        }
        self.next = start;
        self.synced = start;
        self.begin_after(start);
        Ok(())
    }

    /// Where the log ends in what is written: the newest segment's file and the offset behind its last frame.
    pub(crate) fn end(&self) -> Option<(String, u64)> {
        let state = read_lock(&self.shared);
        state.segments.back().map(|entry| (entry.segment.path.clone(), entry.segment.len))
    }
}

/// A segment whose header is damaged: nothing in it can be checked.
fn unreadable<D: Disk>(disk: &D, dir: &str, first: u64) -> Result<Segment<D::File>, Error> {
    let path = segment_path(dir, first);
    let file = disk.open_read(&path).map_err(Error::io("open", &path))?;
    let head = SegmentHead { salt: 0, first };
    let file_len = file.len().map_err(Error::io("read", &path))?;
    Ok(Segment { file: Arc::new(file), path, head, len: 0, file_len })
}

/// Where good frames are, and one past the last record of them.
fn scan_past_damage<F: DiskFile>(
    segment: &Segment<F>,
    until: Option<u64>,
    damage: &DamageLog,
) -> Result<(Vec<Mark>, u64), Error> {
    let (mut marks, mut next) = (Vec::new(), segment.head.first);
    let (mut offset, mut number) = (SEGMENT_HEADER_SIZE as u64, segment.head.first);
    loop {
        let mut frames = segment.frames(offset, number).until(until.unwrap_or(u64::MAX));
        let error = loop {
            let offset = frames.offset;
            match frames.next_frame_in() {
                Ok(Some(frame)) => {
                    mark(&mut marks, frame.number, offset);
                    next = frame.next();
                }
                Ok(None) => return Ok((marks, next)),
                Err(error @ Error::Corrupt { .. }) => break error,
                Err(error) => return Err(error),
            }
        };
        let found = next_good(segment, frames.offset, frames.number, until.unwrap_or(u64::MAX));
        // What is behind all that is good in the newest segment is a torn tail.
        if found.is_some() || until.is_some() {
            damage.note_error(FoundBy::Start, &error);
        }
        match found {
            Some(place) => (offset, number) = place,
            None => return Ok((marks, next)),
        }
    }
}

/// Offset and number of the next good frame behind a bad one at `offset`, which should begin with record `number`.
fn next_good<F: DiskFile>(
    segment: &Segment<F>,
    offset: u64,
    number: u64,
    until: u64,
) -> Option<(u64, u64)> {
    find_frame(segment, offset + 1, |frame| number < frame.number && frame.next() <= until)
}

/// Writes the file anew as it is and syncs it: after a failed sync a system may show what it has lost.
fn rewrite<F: DiskFile>(segment: &Segment<F>) -> Result<(), Error> {
    let mut start = 0;
    while start < segment.len {
        let bytes = segment.read_bytes(start, segment.len.min(start + PIECE_SIZE))?;
        segment.file.write_at(&bytes, start).map_err(write_failed("write", &segment.path))?;
        start += PIECE_SIZE;
    }
    segment.file.sync().map_err(write_failed("sync", &segment.path))
}

impl<F: DiskFile> LogReader<F> {
    /// As [`Self::read`], but passes over what is damaged. A record of which `decode` makes nothing is passed over too.
    ///
    /// # Errors
    /// [`Error::Gap`] if `from` is not kept any more, or a failed read.
    pub(crate) fn read_past_damage<T>(
        &self,
        from: u64,
        bytes_max: usize,
        damage: &DamageLog,
        mut decode: impl FnMut(Record) -> Option<T>,
    ) -> Result<PastDamage<T>, Error> {
        let mut records = Vec::new();
        let mut lost = 0;
        let decode = |path: &str, offset, record| {
            if let Some(record) = decode(record) {
                records.push(record);
            } else {
                lost += 1;
                let error = Error::corrupt(path, offset, "a record that is none");
                damage.note_error(FoundBy::Request, &error);
            }
            Ok(())
        };
        let mut page = Page::new(from, usize::MAX, bytes_max, decode);
        let passed = self.fill_past_damage(&mut page, damage)?;
        let next = page.number();
        Ok(PastDamage { records, next, lost: lost + passed })
    }

    /// Fills the page, and tells how many numbers it passed over.
    fn fill_past_damage<T>(
        &self,
        page: &mut Page<T, impl FnMut(&str, u64, Record) -> Result<T, Error>>,
        damage: &DamageLog,
    ) -> Result<u64, Error> {
        let mut passed = 0;
        while !page.is_full() {
            if let Some((segment, marks, next)) = self.written_segment(page.number()) {
                let behind = marks.partition_point(|mark| mark.number <= page.number());
                // Where there is no mark at or before the record, what is before the first one is damaged.
                let place = marks.get(behind.saturating_sub(1)).copied();
                if let Some(mark) = place {
                    passed += page.skip_to(mark.number);
                    passed += fill_from_segment(page, &segment, mark, next, damage)?;
                }
                if !page.is_full() {
                    passed += page.skip_to(next);
                }
            } else if !self.fill_from_memory(page)? {
                break;
            }
        }
        Ok(passed)
    }

    /// The segment that has a written record: where its good frames are, and one past its last record.
    fn written_segment(&self, number: u64) -> Option<(Segment<F>, Vec<Mark>, u64)> {
        let state = read_lock(&self.shared);
        let index = state.segments.partition_point(|entry| entry.segment.head.first <= number);
        let entry = state.segments.get(index.checked_sub(1)?)?;
        (number < entry.next).then(|| (entry.segment.clone(), entry.marks.clone(), entry.next))
    }
}

/// Fills the page from one segment, and tells how many numbers it passed over.
fn fill_from_segment<F: DiskFile, T>(
    page: &mut Page<T, impl FnMut(&str, u64, Record) -> Result<T, Error>>,
    segment: &Segment<F>,
    mark: Mark,
    next: u64,
    damage: &DamageLog,
) -> Result<u64, Error> {
    let (mut offset, mut number, mut passed) = (mark.offset, mark.number, 0);
    loop {
        let mut frames = segment.frames(offset, number).chunked(page.chunk());
        let error = loop {
            if page.is_full() {
                return Ok(passed);
            }
            let offset = frames.offset;
            match frames.next_frame() {
                Ok(Some(frame)) if frame.next() <= page.number() => {}
                Ok(Some(frame)) => {
                    if let Err(error) = page.take_frame(&segment.path, &frame, offset) {
                        damage.note_error(FoundBy::Request, &error);
                        passed += page.skip_to(frame.next());
                    }
                }
                Ok(None) => return Ok(passed),
                Err(error @ Error::Corrupt { .. }) => break error,
                Err(error) => return Err(error),
            }
        };
        // What is behind the last record is of no meaning.
        if next <= frames.number {
            return Ok(passed);
        }
        damage.note_error(FoundBy::Request, &error);
        match next_good(segment, frames.offset, frames.number, next) {
            Some(place) => (offset, number) = place,
            None => return Ok(passed),
        }
        passed += page.skip_to(number);
    }
}
