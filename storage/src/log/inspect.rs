//! Reads the segments of a log from end to end and changes nothing: what tools need that must not touch what they look at.
//!
//! Invariants:
//!
//! - Nothing is written, cut off, removed or synced.
//! - Every byte of every segment is read. What is bad is told with its place, and the walk goes on behind it.
//! - Memory is bounded by one chunk and one frame, whatever the files claim.
//!
//! What is only torn and what is damaged is told apart by the same rule as when a log is opened: see FORMAT.md, "Frame".

use bytes::Bytes;

use super::frame::{FRAME_HEADER_SIZE, Frame, Record, decode_frame, decode_header};
use super::segment::{LogKind, SEGMENT_HEADER_SIZE, Segment, parse_segment_name, segment_path};
use crate::{Disk, DiskFile, Error};

/// Read at once when a good frame is looked for behind a bad one.
const SEARCH_CHUNK: usize = 256 << 10;
/// Bytes of frames that may be checked in one search, besides eight times the segment: a hostile file can make every byte look like
/// the start of a long frame.
const SEARCH_BUDGET: u64 = 256 << 20;

/// No log comes to such numbers: with them sums cannot overflow.
const NUMBER_MAX: u64 = 1 << 62;

/// What a walk meets, in the order of the log.
#[derive(Debug)]
pub(crate) enum LogItem<'a> {
    /// A segment begins.
    Segment { path: &'a str, bytes: u64 },
    /// A good record.
    Record { path: &'a str, offset: u64, record: &'a Record },
    /// Bytes that are not what was written. `lost` records at the least are gone, from `number` on.
    Damaged { path: &'a str, offset: u64, reason: String, number: u64, lost: u64 },
    /// Records between two segments are not there.
    Hole { path: &'a str, from: u64, to: u64 },
    /// The newest segment ends in bytes that were never promised.
    Torn { path: &'a str, offset: u64, bytes: u64 },
}

/// What is known of a log after a walk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogExtent {
    /// Segments that could be opened.
    pub(crate) segments: u64,
    /// Number of the first record of the oldest segment.
    pub(crate) first: u64,
    /// One past the last good record; the first record's number if there is none.
    pub(crate) next: u64,
    /// One past the greatest number that a record may have had, damaged ones counted.
    pub(crate) bound: u64,
}

/// Walks the log in `dir`. `None` if there is no segment.
///
/// # Errors
/// [`Error::NewerFormat`], a directory that cannot be listed, or whatever `visit` answers. Reads that fail are told as damage.
pub(crate) fn walk_log<D: Disk>(
    disk: &D,
    dir: &str,
    kind: LogKind,
    mut visit: impl FnMut(LogItem<'_>) -> Result<(), Error>,
) -> Result<Option<LogExtent>, Error> {
    let names = disk.list(dir).map_err(Error::io("list", dir))?;
    let firsts = names.iter().filter_map(|name| parse_segment_name(name));
    // Others were never given: what has such a name is none of ours.
    let firsts: Vec<u64> = firsts.filter(|first| (1..=NUMBER_MAX).contains(first)).collect();
    let mut extent: Option<LogExtent> = None;
    for (index, &first) in firsts.iter().enumerate() {
        // As many records as the next segment's name says: what is behind them is of no meaning.
        let until = firsts.get(index + 1).copied();
        let path = segment_path(dir, first);
        let segment = match Segment::open_read(disk, dir, kind, first) {
            Ok(segment) => segment,
            Err(error @ Error::NewerFormat { .. }) => return Err(error),
            Err(error) => {
                let lost = until.map_or(1, |until| until.saturating_sub(first));
                let reason = reason(&error);
                visit(LogItem::Damaged { path: &path, offset: 0, reason, number: first, lost })?;
                let known =
                    extent.get_or_insert(LogExtent { first, next: first, ..LogExtent::default() });
                known.bound = known.bound.max(first.saturating_add(lost));
                continue;
            }
        };
        visit(LogItem::Segment { path: &path, bytes: segment.len })?;
        let known =
            extent.get_or_insert(LogExtent { first, next: first, bound: first, segments: 0 });
        if known.bound < first {
            visit(LogItem::Hole { path: &path, from: known.bound, to: first })?;
        }
        let (next, bound) = walk_segment(&segment, until, &mut visit)?;
        known.segments += 1;
        known.next = next.max(known.next);
        known.bound = bound.max(known.bound);
    }
    Ok(extent)
}

/// Walks the records of a segment. Tells one past the last good one, and one past the last that there may have been.
fn walk_segment<F: DiskFile>(
    segment: &Segment<F>,
    until: Option<u64>,
    visit: &mut impl FnMut(LogItem<'_>) -> Result<(), Error>,
) -> Result<(u64, u64), Error> {
    let path = segment.path.as_str();
    let (mut offset, mut number) = (SEGMENT_HEADER_SIZE as u64, segment.head.first);
    let (mut next, mut bound) = (number, number);
    loop {
        let mut frames = segment.frames(offset, number).until(until.unwrap_or(u64::MAX));
        let error = loop {
            let offset = frames.offset;
            match frames.next_frame() {
                Ok(Some(frame)) => {
                    walk_frame(path, offset, &frame, visit)?;
                    next = frame.next();
                    bound = bound.max(next);
                }
                Ok(None) => return Ok((next, bound)),
                Err(error) => break error,
            }
        };
        (offset, number) = (frames.offset, frames.number);
        if until.is_none() && find_frame(segment, offset, |frame| frame.durable > number).is_none()
        {
            if !is_zero(segment, offset) {
                visit(LogItem::Torn { path, offset, bytes: segment.len - offset })?;
            }
            return Ok((next, bound));
        }
        let end = until.unwrap_or(u64::MAX);
        let found =
            find_frame(segment, offset + 1, |frame| number < frame.number && frame.next() <= end);
        // A record has a byte at the least: so many may have been where nothing can be read.
        let most = number.saturating_add(segment.len.saturating_sub(offset));
        let to = found.map_or(until.unwrap_or(most), |(_, number)| number);
        let lost = if found.is_some() || until.is_some() { to - number } else { 1 };
        visit(LogItem::Damaged { path, offset, reason: reason(&error), number, lost })?;
        bound = bound.max(to);
        match found {
            Some(place) => (offset, number) = place,
            None => return Ok((next, bound)),
        }
    }
}

/// Tells the records of a frame; those that cannot be told apart as damage.
fn walk_frame(
    path: &str,
    offset: u64,
    frame: &Frame,
    visit: &mut impl FnMut(LogItem<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut number = frame.number;
    for record in frame.records() {
        match record {
            Ok(record) => {
                visit(LogItem::Record { path, offset, record: &record })?;
                number = record.number + 1;
            }
            Err(error) => {
                let (reason, lost) = (error.to_string(), frame.next().saturating_sub(number));
                visit(LogItem::Damaged { path, offset, reason, number, lost })?;
            }
        }
    }
    Ok(())
}

/// Whether the file has nothing but zeros from `offset` on: written ahead, and not yet used.
fn is_zero<F: DiskFile>(segment: &Segment<F>, offset: u64) -> bool {
    let starts = (offset..segment.len).step_by(SEARCH_CHUNK);
    starts.into_iter().all(|start| {
        let chunk = read(segment, start, SEARCH_CHUNK);
        !chunk.is_empty() && chunk.iter().all(|&byte| byte == 0)
    })
}

/// Offset and number of the first whole frame at or behind `from` that is `wanted`.
pub(super) fn find_frame<F: DiskFile>(
    segment: &Segment<F>,
    from: u64,
    wanted: impl Fn(&Frame) -> bool,
) -> Option<(u64, u64)> {
    let mut budget = SEARCH_BUDGET.saturating_add(segment.len.saturating_mul(8));
    let mut at = from;
    while at + FRAME_HEADER_SIZE as u64 <= segment.len {
        // A part that cannot be read has no frame that can.
        let chunk = read(segment, at, SEARCH_CHUNK + FRAME_HEADER_SIZE - 1);
        let starts = chunk.len().saturating_sub(FRAME_HEADER_SIZE - 1);
        for start in 0..starts {
            let header = &chunk[start..start + FRAME_HEADER_SIZE];
            let offset = at + start as u64;
            let Some(size) = plausible_size(segment, offset, header) else { continue };
            budget = budget.saturating_sub(size as u64);
            if budget == 0 {
                return None;
            }
            let bytes = match chunk.get(start..start + size) {
                Some(_) => chunk.slice(start..start + size),
                None => read(segment, offset, size),
            };
            if let Ok((frame, _)) = decode_frame(segment.head.salt, &bytes)
                && wanted(&frame)
            {
                return Some((offset, frame.number));
            }
        }
        at += SEARCH_CHUNK as u64;
    }
    None
}

/// How many bytes a frame with this header has, if it can be one. Cheap: this runs at every byte of a damaged stretch.
fn plausible_size<F>(segment: &Segment<F>, offset: u64, header: &[u8]) -> Option<usize> {
    let head = decode_header(header).ok()?;
    let size = FRAME_HEADER_SIZE + head.length;
    let fits = segment.head.first <= head.number && size as u64 <= segment.len - offset;
    // A record has a byte of length at the least.
    let possible = head.number.saturating_sub(segment.head.first) <= NUMBER_MAX;
    (fits && possible).then_some(size)
}

/// Up to `size` bytes; fewer at the end, and where they cannot be read.
fn read<F: DiskFile>(segment: &Segment<F>, offset: u64, size: usize) -> Bytes {
    let left = usize::try_from(segment.len.saturating_sub(offset)).unwrap_or(usize::MAX);
    let mut bytes = vec![0; size.min(left)];
    let read = segment.file.read_full_at(&mut bytes, offset).unwrap_or(0);
    bytes.truncate(read);
    bytes.into()
}

/// What is wrong, without the place.
pub(crate) fn reason(error: &Error) -> String {
    match error {
        Error::Corrupt { reason, .. } => (*reason).to_owned(),
        Error::Io { operation, source, .. } => format!("{operation} failed: {source}"),
        Error::Missing { .. } => "the file is not there".to_owned(),
        other => other.to_string(),
    }
}
