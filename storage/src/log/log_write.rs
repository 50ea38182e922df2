//! [`LogWrite`]: compresses and writes published records of a [`super::RecordLog`], on whatever thread, while the log goes on.
//!
//! Invariants:
//!
//! - Until it is given back readers find its records in memory, and nothing else is written to the log's file.
//! - If it fails, or is given up, its records are in memory as before, and the same place is written again.
//! - A sync that it was asked for comes after the write. If that fails nothing is to be trusted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::frame::{FrameHead, encode_frame, record_span};
use super::record_log::{COMPRESS_FROM, Mark, in_memory};
use super::segment::write_failed;
use crate::{DiskFile, Error};

/// Published records that are not yet written, each with its length before it. Records come behind others and nowhere else.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(super) records: Vec<u8>,
    /// Offsets in `records`, where frames will begin; the first is 0.
    pub(super) marks: Vec<Mark>,
    /// One past the last record.
    pub(super) next: u64,
    read_to: ReadTo,
}

/// Where the last read of a batch ended: whoever follows the log goes on there, and need not pass all records since the last mark.
/// How many records of the batch are before it, and their bytes below, 32 bits each. At first before all of them.
#[derive(Debug, Default)]
struct ReadTo(AtomicU64);

impl ReadTo {
    fn get(&self) -> (u64, usize) {
        let place = self.0.load(Ordering::Relaxed);
        (place >> 32, usize::try_from(place & u64::from(u32::MAX)).expect("32 bits"))
    }

    /// What is too large to be remembered is not.
    fn set(&self, records: u64, bytes: usize) {
        if let (Ok(records), Ok(bytes)) = (u32::try_from(records), u32::try_from(bytes)) {
            self.0.store(u64::from(records) << 32 | u64::from(bytes), Ordering::Relaxed);
        }
    }
}

impl Batch {
    /// Without records; the first one gets this number.
    pub(super) fn after(next: u64) -> Self {
        Self { next, ..Self::default() }
    }

    /// The first record; `next` if there is none.
    pub(super) fn first(&self) -> u64 {
        self.marks.first().map_or(self.next, |mark| mark.number)
    }

    pub(super) fn has(&self, number: u64) -> bool {
        (self.first()..self.next).contains(&number)
    }

    /// Appends the frames of all records, and where each begins. Records below `durable` are on disk.
    pub(super) fn encode(
        &self,
        salt: u32,
        durable: u64,
        frames: &mut Vec<u8>,
        marks: &mut Vec<Mark>,
    ) {
        let end = Mark { number: self.next, offset: self.records.len() as u64 };
        let nexts = self.marks.iter().skip(1).chain([&end]);
        for (from, to) in self.marks.iter().zip(nexts) {
            marks.push(Mark { number: from.number, offset: frames.len() as u64 });
            let count = to.number - from.number;
            let head = FrameHead { salt, number: from.number, count, durable };
            let records = &self.records[in_memory(from.offset)..in_memory(to.offset)];
            encode_frame(head, records, COMPRESS_FROM, frames);
        }
    }

    /// A copy of records from `number` on: whole ones, with their lengths, at most `records_max`, about `bytes_max` bytes.
    pub(super) fn from(&self, number: u64, records_max: usize, bytes_max: usize) -> Bytes {
        let span = |offset| record_span(&self.records, offset).expect("we encoded it");
        let mark = self.marks.partition_point(|mark| mark.number <= number) - 1;
        let Mark { number: mut at, offset } = self.marks[mark];
        let mut start = in_memory(offset);
        let (passed, read_to) = self.read_to.get();
        let passed = self.first() + passed;
        if at < passed && passed <= number {
            (at, start) = (passed, read_to);
        }
        while at < number {
            start = span(start).1;
            at += 1;
        }
        let (mut end, mut records) = (start, 0);
        while end < self.records.len()
            && records < records_max
            && (records == 0 || end - start < bytes_max)
        {
            end = span(end).1;
            records += 1;
        }
        self.read_to.set(number + records as u64 - self.first(), end);
        Bytes::copy_from_slice(&self.records[start..end])
    }
}

/// Where the frames of a batch go.
#[derive(Debug)]
pub(super) struct Target<F> {
    pub(super) file: Arc<F>,
    pub(super) path: String,
    pub(super) offset: u64,
    pub(super) salt: u32,
    /// Records below this are on disk.
    pub(super) durable: u64,
}

/// See the file's head.
#[derive(Debug)]
pub(crate) struct LogWrite<F> {
    pub(super) batch: Arc<Batch>,
    target: Target<F>,
    syncs: bool,
    outcome: Option<Result<Written, Error>>,
}

/// What was written: bytes, and where frames begin in them.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) bytes: u64,
    pub(super) marks: Vec<Mark>,
    /// That, and all that was written to the file before, is on disk.
    pub(super) is_synced: bool,
}

impl<F: DiskFile> LogWrite<F> {
    pub(super) fn new(batch: Arc<Batch>, target: Target<F>) -> Self {
        Self { batch, target, syncs: false, outcome: None }
    }

    /// Has it sync the file after the write.
    pub(crate) fn with_sync(&mut self) {
        self.syncs = true;
    }

    /// Does it; another call does nothing.
    pub(crate) fn run(&mut self) {
        let Self { batch, target, syncs, outcome } = self;
        outcome.get_or_insert_with(|| {
            let Target { file, path, offset, salt, durable } = target;
            let (mut frames, mut marks) = (Vec::new(), Vec::new());
            batch.encode(*salt, *durable, &mut frames, &mut marks);
            file.write_at(&frames, *offset).map_err(Error::io("write", path))?;
            if *syncs {
                file.sync().map_err(write_failed("sync", path))?;
            }
            Ok(Written { bytes: frames.len() as u64, marks, is_synced: *syncs })
        });
    }

    /// What it wrote; `None` if it was not run.
    pub(super) fn end(self) -> (Arc<Batch>, Option<Result<Written, Error>>) {
        (self.batch, self.outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::super::record_log::mark;
    use super::*;
    use crate::varint;

    #[test]
    fn a_read_finds_its_records_wherever_the_last_one_ended() {
        let first = 1_000;
        let mut batch = Batch::after(first);
        let payload = |number: u64| {
            vec![number.to_le_bytes()[0]; usize::try_from(number * 37 % 700).unwrap()]
        };
        for round in 0..60 {
            for _ in 0..round % 7 {
                mark(&mut batch.marks, batch.next, batch.records.len() as u64);
                let payload = payload(batch.next);
                varint::put(payload.len() as u64, &mut batch.records);
                batch.records.extend_from_slice(&payload);
                batch.next += 1;
            }
            // Followers at the end, at the beginning, and between, one after the other.
            for number in [batch.next - 1, first, first + round, batch.next - 1, first + round / 2]
            {
                if !batch.has(number) {
                    continue;
                }
                let records_max = usize::try_from(round % 3 + 1).unwrap();
                let bytes = batch.from(number, records_max, 1 << 20);
                let (mut at, mut expected) = (0, number);
                while at < bytes.len() {
                    let (start, end) = record_span(&bytes, at).unwrap();
                    assert_eq!(bytes[start..end], payload(expected), "{expected} of {number}");
                    (at, expected) = (end, expected + 1);
                }
                assert_eq!(expected, (number + records_max as u64).min(batch.next));
            }
        }
        assert!(batch.marks.len() > 1);
    }
}
