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
    pub(super) shared: Arc<RwLock<State<F>>>,
}

impl<F> Clone for LogReader<F> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

/// What is read, and how much more there may be of it.
pub(super) struct Page<T, D> {
    out: Vec<T>,
    limit: usize,
    bytes_left: usize,
    /// The next record to be read.
    number: u64,
    decode: D,
}

impl<T, D: FnMut(&str, u64, Record) -> Result<T, Error>> Page<T, D> {
    /// Records from `number` on; see [`LogReader::read`].
    pub(super) fn new(number: u64, limit: usize, bytes_max: usize, decode: D) -> Self {
        Self { out: Vec::new(), limit, bytes_left: bytes_max, number, decode }
    }

    /// The next record to be read.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// How many bytes of a segment are read at once.
    pub(super) fn chunk(&self) -> usize {
        self.bytes_left.saturating_add(in_memory(MARK_DISTANCE))
    }

    /// Goes on with record `number`, if that is further on; tells how many are passed over.
    pub(super) fn skip_to(&mut self, number: u64) -> u64 {
        let passed = number.saturating_sub(self.number);
        self.number += passed;
        passed
    }

    pub(super) fn is_full(&self) -> bool {
        self.out.len() == self.limit || (self.bytes_left == 0 && !self.out.is_empty())
    }

    fn take(&mut self, path: &str, payload: Bytes, offset: u64) -> Result<(), Error> {
        self.bytes_left = self.bytes_left.saturating_sub(payload.len());
        let record = Record { number: self.number, payload };
        self.out.push((self.decode)(path, offset, record)?);
        self.number += 1;
        Ok(())
    }

    /// The records in memory that are wanted.
    fn take_memory(&mut self, records: &Bytes) -> Result<(), Error> {
        let mut offset = 0;
        while offset < records.len() && !self.is_full() {
            let (start, end) = record_span(records, offset).expect("we encoded it");
            self.take("memory", records.slice(start..end), 0)?;
            offset = end;
        }
        Ok(())
    }

    /// The records of a frame that are wanted.
    pub(super) fn take_frame(
        &mut self,
        path: &str,
        frame: &Frame,
        offset: u64,
    ) -> Result<(), Error> {
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
        (state.first(), state.pending.next)
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
        let mut page = Page::new(from, limit, bytes_max, decode);
        while !page.is_full() {
            let records_max = page.limit - page.out.len();
            match self.place(page.number, records_max, page.bytes_left)? {
                Place::End => break,
                Place::Memory(records) => page.take_memory(&records)?,
                Place::Segment(segment, mark) => {
                    let mut frames = segment.frames(mark.offset, mark.number);
                    frames = frames.chunked(page.chunk());
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

    /// Fills the page from what is not yet written; tells whether there was anything, or it is written by now.
    ///
    /// # Errors
    /// [`Error::Gap`], or what the page's decoder answers.
    pub(super) fn fill_from_memory<T>(
        &self,
        page: &mut Page<T, impl FnMut(&str, u64, Record) -> Result<T, Error>>,
    ) -> Result<bool, Error> {
        match self.place(page.number, page.limit - page.out.len(), page.bytes_left)? {
            Place::End => return Ok(false),
            Place::Memory(records) => page.take_memory(&records)?,
            Place::Segment(..) => {}
        }
        Ok(true)
    }

    fn place(&self, number: u64, records_max: usize, bytes_max: usize) -> Result<Place<F>, Error> {
        let state = read_lock(&self.shared);
        let first = state.first();
        if number < first {
            return Err(Error::Gap { from: number, first });
        }
        let batches = [state.writing.as_deref(), state.recent.as_deref()];
        Ok(if number >= state.pending.next {
            Place::End
        } else if number >= state.pending.first() {
            Place::Memory(state.pending.from(number, records_max, bytes_max))
        } else if let Some(batch) = batches.into_iter().flatten().find(|batch| batch.has(number)) {
            Place::Memory(batch.from(number, records_max, bytes_max))
        } else {
            let (segment, mark) = state.written(number);
            Place::Segment(segment, mark)
        })
    }
}

impl<F> State<F> {
    fn first(&self) -> u64 {
        self.segments.front().map_or(self.pending.first(), |entry| entry.segment.head.first)
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
