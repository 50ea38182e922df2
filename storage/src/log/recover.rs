//! Opening the newest segment of a log to go on writing it.
//!
//! Invariants:
//!
//! - Only the newest segment of a log may have a torn tail. It is cut off; what stays and is not known to be on disk
//!   is written again, because the system may show bytes that a failed sync has lost (ext4).
//! - A record that was known to be on disk is never cut off: that is damage and is reported.
//! - Memory is bounded by the largest frame.

use std::collections::VecDeque;

use super::frame::{FRAME_HEADER_SIZE, FrameRef, decode_frame, find_proof, frame_size};
use super::segment::{LogKind, Segment, write_failed};
use crate::{Disk, DiskFile, Error};

/// Read or written again at once.
const PIECE_SIZE: u64 = 1 << 20;

/// The newest segment as it was found.
pub(crate) struct Recovered<F> {
    pub(crate) segment: Segment<F>,
    /// Number of the next record.
    pub(crate) next: u64,
    /// Records below this are known to be on disk; the rest is in the file.
    pub(crate) durable: u64,
}

/// Opens the newest segment: hands each good frame with its offset to `take`, cuts off a torn tail, and writes anew what
/// is not known to be on disk. It is synced if `sync` is set or there was a tail.
///
/// # Errors
/// [`Error::Corrupt`] if a record is bad that was known to be on disk; whatever `take` answers; failed IO.
pub(crate) fn recover<D: Disk>(
    disk: &D,
    (dir, kind, first): (&str, LogKind, u64),
    sync: bool,
    mut take: impl FnMut(&str, u64, FrameRef<'_>) -> Result<(), Error>,
) -> Result<Recovered<D::File>, Error> {
    let mut segment = Segment::open(disk, dir, kind, first)?;
    let mut frames = segment.all_frames();
    // Frames that no later one proves to be on disk: (next record, offset).
    let mut unproved = VecDeque::new();
    let mut durable = first;
    let torn = loop {
        let offset = frames.offset;
        match frames.next_frame_in() {
            Ok(Some(frame)) => {
                durable = durable.max(frame.durable);
                while unproved.front().is_some_and(|&(next, _)| next <= durable) {
                    unproved.pop_front();
                }
                unproved.push_back((frame.next(), offset));
                take(&segment.path, offset, frame)?;
            }
            Ok(None) => break None,
            Err(error @ Error::Corrupt { .. }) => break Some(error),
            Err(error) => return Err(error),
        }
    };
    let (end, next) = (frames.offset, frames.number);
    if let Some(error) = torn
        && proves_durable(&segment, end, next)?
    {
        return Err(error);
    }
    let from = unproved.front().map_or(end, |&(_, offset)| offset);
    let cut = end < segment.len;
    segment.keep(from, end)?;
    if sync || cut {
        segment.file.sync().map_err(write_failed("sync", &segment.path))?;
        durable = next;
    }
    Ok(Recovered { segment, next, durable: durable.min(next) })
}

/// Whether, anywhere from `from` on, there is a whole frame which tells that record `number` was on disk.
fn proves_durable<F: DiskFile>(
    segment: &Segment<F>,
    from: u64,
    number: u64,
) -> Result<bool, Error> {
    let mut start = from;
    while start < segment.len {
        let overlap = FRAME_HEADER_SIZE as u64 - 1;
        let piece = segment.read_bytes(start, segment.len.min(start + PIECE_SIZE + overlap))?;
        let mut at = 0;
        while let Some(found) = find_proof(number, &piece, at) {
            let offset = start + found as u64;
            let size = frame_size(&piece[found..]).unwrap_or(0) as u64;
            if offset + size <= segment.len {
                let frame = segment.read_bytes(offset, offset + size)?;
                if decode_frame(segment.head.salt, &frame).is_ok() {
                    return Ok(true);
                }
            }
            at = found + 1;
        }
        start += PIECE_SIZE;
    }
    Ok(false)
}

impl<F: DiskFile> Segment<F> {
    /// Ends the segment at `end` and writes anew the bytes from `from` on.
    fn keep(&mut self, from: u64, end: u64) -> Result<(), Error> {
        if end < self.len {
            self.file.truncate(end).map_err(write_failed("truncate", &self.path))?;
        }
        let mut start = from;
        while start < end {
            let bytes = self.read_bytes(start, end.min(start + PIECE_SIZE))?;
            self.file.write_at(&bytes, start).map_err(write_failed("write", &self.path))?;
            start += PIECE_SIZE;
        }
        self.len = end;
        self.file_len = end;
        Ok(())
    }
}
