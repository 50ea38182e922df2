//! [`LogReader`]: reads a [`super::RecordLog`] from any thread.
//!
//! Invariants:
//!
//! - A reader sees published records and nothing else, and never waits for a write or a sync.
//! - Memory is bounded by what was asked for, and the largest frame.

use std::sync::{Arc, RwLock};

use bytes::Bytes;

use super::frame::{Frame, Record, record_span};
use super::record_log::{MARK_DISTANCE, Mark, State, in_memory, read_lock};
use super::segment::Segment;
use crate::{DiskFile, Error};

/// See the file's head.
#[derive(Debug)]
pub(crate) struct LogReader<F> {
    shared: Arc<RwLock<State<F>>>,
}

impl<F> Clone for LogReader<F> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

/// What is read, and how much more there may be of it.
struct Page<T, D> {
    out: Vec<T>,
    limit: usize,
    bytes_left: usize,
    /// The next record to be read.
    number: u64,
    decode: D,
}

impl<T, D: FnMut(&str, u64, Record) -> Result<T, Error>> Page<T, D> {
    fn is_full(&self) -> bool {
        self.out.len() == self.limit || (self.bytes_left == 0 && !self.out.is_empty())
    }

    fn take(&mut self, path: &str, payload: Bytes, offset: u64) -> Result<(), Error> {
        self.bytes_left = self.bytes_left.saturating_sub(payload.len());
        let record = Record { number: self.number, payload };
        self.out.push((self.decode)(path, offset, record)?);
        self.number += 1;
        Ok(())
    }

    /// The records of a frame that are wanted.
    fn take_frame(&mut self, path: &str, frame: &Frame, offset: u64) -> Result<(), Error> {
        for record in frame.records() {
            let record =
                record.map_err(|_| Error::corrupt(path, offset, "records of the frame"))?;
            if self.is_full() {
                break;
            }
            if record.number == self.number {
                self.take(path, record.payload, offset)?;
            }
        }
        Ok(())
    }
}

/// Where to go on reading.
enum Place<F> {
    /// Nothing is there to be read yet.
    End,
    /// Records in memory, with their lengths, from the one wanted on.
    Memory(Bytes),
    /// A segment, and a place in it at or before the record that is wanted.
    Segment(Segment<F>, Mark),
}

impl<F: DiskFile> LogReader<F> {
    pub(super) fn new(shared: Arc<RwLock<State<F>>>) -> Self {
        Self { shared }
    }

    /// The first record that is kept, and one past the last that may be read.
    pub(crate) fn range(&self) -> (u64, u64) {
        let state = read_lock(&self.shared);
        (state.first(), state.next)
    }

    /// Records from `from` on: at most `limit`, and no more once they hold `bytes_max` bytes. Empty at the end. `decode`
    /// is told the file and the place that each came from, to report what is wrong inside it.
    ///
    /// # Errors
    /// [`Error::Gap`] if `from` is not kept any more, [`Error::Corrupt`] with the place, or a failed read.
    pub(crate) fn read<T>(
        &self,
        from: u64,
        limit: usize,
        bytes_max: usize,
        decode: impl FnMut(&str, u64, Record) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let mut page = Page { out: Vec::new(), limit, bytes_left: bytes_max, number: from, decode };
        while !page.is_full() {
            let records_max = page.limit - page.out.len();
            match self.place(page.number, records_max, page.bytes_left)? {
                Place::End => break,
                Place::Memory(records) => {
                    let mut offset = 0;
                    while offset < records.len() && !page.is_full() {
                        let (start, end) = record_span(&records, offset).expect("we encoded it");
                        page.take("memory", records.slice(start..end), 0)?;
                        offset = end;
                    }
                }
                Place::Segment(segment, mark) => {
                    let chunk = page.bytes_left.saturating_add(in_memory(MARK_DISTANCE));
                    let mut frames = segment.frames(mark.offset, mark.number).chunked(chunk);
                    let mut offset = frames.offset;
                    while !page.is_full()
                        && let Some(frame) = frames.next_frame()?
                    {
                        if page.number < frame.next() {
                            page.take_frame(&segment.path, &frame, offset)?;
                        }
                        offset = frames.offset;
                    }
                }
            }
        }
        Ok(page.out)
    }

    fn place(&self, number: u64, records_max: usize, bytes_max: usize) -> Result<Place<F>, Error> {
        let state = read_lock(&self.shared);
        let first = state.first();
        if number < first {
            return Err(Error::Gap { from: number, first });
        }
        Ok(if number >= state.next {
            Place::End
        } else if number >= state.pending_first {
            let (records, marks) = (&state.pending, &state.pending_marks);
            Place::Memory(records_from(records, marks, number, records_max, bytes_max))
        } else if number >= state.recent_first {
            let (records, marks) = (&state.recent, &state.recent_marks);
            Place::Memory(records_from(records, marks, number, records_max, bytes_max))
        } else {
            let (segment, mark) = state.written(number);
            Place::Segment(segment, mark)
        })
    }
}

impl<F> State<F> {
    fn first(&self) -> u64 {
        self.segments.front().map_or(self.pending_first, |entry| entry.segment.head.first)
    }

    /// The segment of a written record, and a place in it at or before the record.
    fn written(&self, number: u64) -> (Segment<F>, Mark) {
        let index = self.segments.partition_point(|entry| entry.segment.head.first <= number) - 1;
        let entry = &self.segments[index];
        assert!(number < entry.next);
        let mark = entry.marks.partition_point(|mark| mark.number <= number) - 1;
        (entry.segment.clone(), entry.marks[mark])
    }
}

/// A copy of some of `records`, which are in memory, from `number` on: whole ones, with their lengths, at most
/// `records_max`, about `bytes_max` bytes.
fn records_from(
    records: &[u8],
    marks: &[Mark],
    number: u64,
    records_max: usize,
    bytes_max: usize,
) -> Bytes {
    let span = |offset| record_span(records, offset).expect("we encoded it");
    let mark = marks.partition_point(|mark| mark.number <= number) - 1;
    let Mark { number: mut at, offset } = marks[mark];
    let mut start = in_memory(offset);
    while at < number {
        start = span(start).1;
        at += 1;
    }
    let (mut end, mut count) = (start, 0);
    while end < records.len() && count < records_max && (count == 0 || end - start < bytes_max) {
        end = span(end).1;
        count += 1;
    }
    Bytes::copy_from_slice(&records[start..end])
}
