//! The write-ahead log: the first place that a write comes to, and the only one that it waits for.
//!
//! Invariants:
//!
//! - One commit is one write and at most one sync, however many records it has.
//! - Records are numbered without a gap ([`Lsn`]); a segment's records are all on disk before the next one is made.
//! - After a write or sync whose outcome is not known the log is poisoned: it takes nothing more until it is
//!   opened again, which reads what is really there.
//! - If there is no room the file is as it was before, on disk too, or the log is poisoned.
//!
//! What is in a record is told to [`WalRecord`]; what becomes of it is decided in `engine.rs`.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use starling_clock::mutation::{self, Mutation};
use starling_clock::{NodeId, Stamp};

use crate::event::{DecodeError, array};
use crate::log::{
    Frame, LogKind, SEGMENT_HEADER_SIZE, Segment, begin_frame, finish_frame, list_segments,
    remove_durably, write_failed,
};
use crate::{Disk, DiskFile, Error, Event, Lsn, Provenance};

/// Kinds of records. DO NOT CHANGE or reuse a number: they are on disk.
const KIND_EVENT: u8 = 1;
const KIND_HINT: u8 = 2;
const KIND_HINTS_DONE: u8 = 3;
const KIND_META: u8 = 4;

/// Bytes before the event in the payload of an event record.
pub(crate) const WAL_EVENT_HEADER_SIZE: usize = 28;
/// Bytes before the event in the payload of a hint record.
pub(crate) const WAL_HINT_HEADER_SIZE: usize = 16;

/// Field name, offset, size in the payload of an event record: the same table as FORMAT.md.
#[cfg(test)]
pub(crate) const WAL_EVENT_LAYOUT: [(&str, usize, usize); 5] = [
    ("change", 0, 8),
    ("provenance", 8, 1),
    ("has previous", 9, 1),
    ("zero", 10, 2),
    ("previous", 12, 16),
];

/// What stands before an event in the change log: the event record without the change's number.
pub(crate) const CHANGE_PART: usize = 8;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WalRecord {
    /// This replica applied the event, as the change `sequence`.
    Event { sequence: u64, provenance: Provenance, previous: Option<Stamp>, event: Event },
    /// Hold the event for `target`, as its hint `sequence`.
    Hint { target: NodeId, sequence: u64, event: Event },
    /// `target` has its hints up to `up_to` and with it.
    HintsDone { target: NodeId, up_to: u64 },
    /// A named value.
    Meta { name: String, value: Bytes },
}

/// The head of an event record: the number of the change, how it came, what was newest before.
pub(crate) fn encode_event_header(
    sequence: u64,
    provenance: Provenance,
    previous: Option<Stamp>,
) -> [u8; WAL_EVENT_HEADER_SIZE] {
    let mut header = [0; WAL_EVENT_HEADER_SIZE];
    header[..8].copy_from_slice(&sequence.to_le_bytes());
    header[8] = provenance as u8;
    header[9] = u8::from(previous.is_some());
    header[12..].copy_from_slice(&previous.unwrap_or(Stamp::ZERO).to_bytes());
    header
}

/// The reverse of [`encode_event_header`] from the provenance on, and the event that follows it.
pub(crate) fn decode_change(
    bytes: &Bytes,
) -> Result<(Provenance, Option<Stamp>, Event), DecodeError> {
    const SIZE: usize = WAL_EVENT_HEADER_SIZE - CHANGE_PART;
    let header = bytes.get(..SIZE).ok_or(DecodeError::Short)?;
    let provenance = Provenance::from_u8(header[0]).ok_or(DecodeError::Corrupt("provenance"))?;
    let stamp = Stamp::from_bytes(array(header, 4)).ok_or(DecodeError::Corrupt("stamp"))?;
    let previous = match (header[1], header[2..4] == [0; 2], stamp) {
        (0, true, Stamp::ZERO) => None,
        (1, true, stamp) => Some(stamp),
        _ => return Err(DecodeError::Corrupt("change header")),
    };
    Ok((provenance, previous, decode_event(&bytes.slice(SIZE..))?))
}

/// An event that is all of `bytes`.
pub(crate) fn decode_event(bytes: &Bytes) -> Result<Event, DecodeError> {
    let (event, size) = Event::decode(bytes)?;
    if size == bytes.len() { Ok(event) } else { Err(DecodeError::Corrupt("length of the event")) }
}

impl WalRecord {
    /// The record in a frame.
    pub(crate) fn decode(frame: &Frame) -> Result<Self, DecodeError> {
        let bytes = &frame.payload;
        let number = |offset: usize| {
            let field = bytes.get(offset..offset + 8).ok_or(DecodeError::Short)?;
            Ok(u64::from_le_bytes(array(field, 0)))
        };
        match frame.kind {
            KIND_EVENT => {
                let sequence = number(0)?;
                let (provenance, previous, event) = decode_change(&bytes.slice(CHANGE_PART..))?;
                Ok(Self::Event { sequence, provenance, previous, event })
            }
            KIND_HINT => {
                let (target, sequence) = (NodeId(number(0)?), number(8)?);
                let event = decode_event(&bytes.slice(WAL_HINT_HEADER_SIZE..))?;
                Ok(Self::Hint { target, sequence, event })
            }
            KIND_HINTS_DONE if bytes.len() == 16 => {
                Ok(Self::HintsDone { target: NodeId(number(0)?), up_to: number(8)? })
            }
            KIND_META => {
                let (name, value) = split_meta(bytes)?;
                Ok(Self::Meta { name, value })
            }
            _ => Err(DecodeError::Corrupt("kind of record")),
        }
    }
}

/// Appends a name and a value: lengths first, two bytes and four.
pub(crate) fn encode_meta(name: &str, value: &[u8], out: &mut Vec<u8>) {
    let name_length = u16::try_from(name.len()).expect("bounded by META_NAME_SIZE_MAX");
    let value_length = u32::try_from(value.len()).expect("bounded by META_VALUE_SIZE_MAX");
    out.extend_from_slice(&name_length.to_le_bytes());
    out.extend_from_slice(&value_length.to_le_bytes());
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(value);
}

fn split_meta(bytes: &Bytes) -> Result<(String, Bytes), DecodeError> {
    let (name, value, size) = decode_meta(bytes)?;
    if size == bytes.len() { Ok((name, value)) } else { Err(DecodeError::Corrupt("meta length")) }
}

/// The reverse of [`encode_meta`], and how many bytes it took.
pub(crate) fn decode_meta(bytes: &Bytes) -> Result<(String, Bytes, usize), DecodeError> {
    let header: &[u8; 6] = bytes.first_chunk().ok_or(DecodeError::Short)?;
    let name_end = 6 + usize::from(u16::from_le_bytes(array(header, 0)));
    let end = name_end.saturating_add(u32::from_le_bytes(array(header, 2)) as usize);
    if bytes.len() < end {
        return Err(DecodeError::Short);
    }
    let name = std::str::from_utf8(&bytes[6..name_end]);
    let name = name.map_err(|_| DecodeError::Corrupt("meta name"))?.to_owned();
    Ok((name, bytes.slice(name_end..end), end))
}

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
    /// Number of the next record, those in `buffer` counted.
    next: u64,
    /// Number of the next record to be written.
    written: u64,
    /// Records below this are on disk.
    durable: u64,
    /// The commit that is being put together.
    buffer: Vec<u8>,
    poisoned: bool,
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
        mut take: impl FnMut(Lsn, bool, WalRecord) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let firsts = list_segments(&**disk, dir, LogKind::WriteAhead)?;
        let mut sealed = VecDeque::new();
        let (newest, older) = match firsts.split_last() {
            Some((newest, older)) => (Some(*newest), older),
            None => (None, &[][..]),
        };
        let mut expected = None;
        for &first in older {
            let segment = Segment::open(&**disk, dir, LogKind::WriteAhead, first)?;
            check_first(expected, &segment)?;
            let mut frames = segment.frames(SEGMENT_HEADER_SIZE as u64, first);
            loop {
                let offset = frames.offset;
                let Some(frame) = frames.next_frame()? else { break };
                take_record(&segment.path, offset, &frame, |lsn, record| take(lsn, true, record))?;
            }
            expected = Some(frames.number);
            let last = Lsn(frames.number - 1);
            sealed.push_back(Sealed { path: segment.path, last, len: segment.len });
        }
        let kind = LogKind::WriteAhead;
        let (active, next) = match newest {
            Some(first) => Segment::recover(&**disk, dir, kind, first, |path, offset, frame| {
                take_record(path, offset, frame, |lsn, record| take(lsn, false, record))
            })?,
            None if create => (Segment::create(&**disk, dir, kind, salt, 1)?, 1),
            None => return Err(Error::Missing { file: format!("{dir}/*.log") }),
        };
        check_first(expected, &active)?;
        Ok(Self {
            disk: Arc::clone(disk),
            dir,
            salt,
            sealed,
            active,
            next,
            written: next,
            durable: next,
            buffer: Vec::new(),
            poisoned: false,
        })
    }

    /// The last record that was written.
    pub(crate) fn last(&self) -> Lsn {
        Lsn(self.written - 1)
    }

    /// Whether a write or sync has failed.
    pub(crate) fn is_poisoned(&self) -> bool {
        self.poisoned
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
        self.active.first < self.written
    }

    /// Whether anything waits to be written.
    pub(crate) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Bytes that wait to be written.
    pub(crate) fn buffered(&self, range: Range<usize>) -> &[u8] {
        &self.buffer[range]
    }

    /// Adds an event to the commit and tells where its payload is in the buffer.
    pub(crate) fn push_event(
        &mut self,
        header: [u8; WAL_EVENT_HEADER_SIZE],
        event: &Event,
    ) -> Range<usize> {
        self.push(KIND_EVENT, |out| {
            out.extend_from_slice(&header);
            event.encode(out);
        })
    }

    /// Adds a hint to the commit and tells where its payload is in the buffer.
    pub(crate) fn push_hint(
        &mut self,
        target: NodeId,
        sequence: u64,
        event: &Event,
    ) -> Range<usize> {
        self.push(KIND_HINT, |out| {
            out.extend_from_slice(&target.0.to_le_bytes());
            out.extend_from_slice(&sequence.to_le_bytes());
            event.encode(out);
        })
    }

    /// Adds a note that hints were consumed.
    pub(crate) fn push_hints_done(&mut self, target: NodeId, up_to: u64) {
        self.push(KIND_HINTS_DONE, |out| {
            out.extend_from_slice(&target.0.to_le_bytes());
            out.extend_from_slice(&up_to.to_le_bytes());
        });
    }

    /// Adds a named value.
    pub(crate) fn push_meta(&mut self, name: &str, value: &[u8]) {
        self.push(KIND_META, |out| encode_meta(name, value, out));
    }

    fn push(&mut self, kind: u8, encode: impl FnOnce(&mut Vec<u8>)) -> Range<usize> {
        assert!(!self.poisoned);
        let start = begin_frame(kind, self.next, self.durable, &mut self.buffer);
        let payload = self.buffer.len();
        encode(&mut self.buffer);
        finish_frame(self.active.salt, start, &mut self.buffer);
        self.next += 1;
        payload..self.buffer.len()
    }

    /// Forgets the commit that was being put together.
    pub(crate) fn abandon(&mut self) {
        self.buffer.clear();
        self.next = self.written;
    }

    /// Writes the commit, in one call. Its bytes stay in the buffer until [`Self::abandon`].
    ///
    /// # Errors
    /// [`Error::Full`]: nothing was written, the log goes on. [`Error::WriteFailed`]: the log is poisoned.
    pub(crate) fn write(&mut self) -> Result<(), Error> {
        assert!(!self.poisoned);
        if let Err(error) = self.active.file.write_at(&self.buffer, self.active.len) {
            if error.kind() == io::ErrorKind::StorageFull && self.undo_write().is_ok() {
                self.abandon();
                return Err(Error::Full { file: self.active.path.clone() });
            }
            self.poisoned = true;
            return Err(write_failed("write", &self.active.path)(error));
        }
        self.active.len += self.buffer.len() as u64;
        self.written = self.next;
        Ok(())
    }

    /// Takes back a write that was done in part. Synced, or whole records of it could come up after a crash.
    fn undo_write(&self) -> io::Result<()> {
        self.active.file.truncate(self.active.len)?;
        self.active.file.sync()
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
        if mutation::is(Mutation::SkipFsync) {
            self.durable = self.written;
            return Ok(());
        }
        if let Err(error) = self.active.file.sync()
            && !mutation::is(Mutation::RetryFsync)
        {
            self.poisoned = true;
            return Err(write_failed("sync", &self.active.path)(error));
        }
        self.durable = self.written;
        Ok(())
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
        let segment = Segment::create(&*self.disk, self.dir, kind, self.salt, self.next);
        let segment = segment.inspect_err(|error| {
            self.poisoned |= matches!(error, Error::WriteFailed { .. });
        })?;
        let old = std::mem::replace(&mut self.active, segment);
        self.sealed.push_back(Sealed { path: old.path, last: self.last(), len: old.len });
        Ok(())
    }

    /// The last record of the oldest segment that takes no more.
    pub(crate) fn oldest_sealed(&self) -> Option<Lsn> {
        self.sealed.front().map(|segment| segment.last)
    }

    /// Removes the oldest segment; all that its records say has to be durable elsewhere.
    ///
    /// # Errors
    /// Failed IO: it is the oldest as before, and another try goes on with it, so that no hole comes to be.
    pub(crate) fn remove_oldest(&mut self) -> Result<(), Error> {
        let segment = self.sealed.front().expect("the caller asked for the oldest");
        remove_durably(&*self.disk, self.dir, &segment.path)?;
        self.sealed.pop_front();
        Ok(())
    }
}

fn check_first<F>(expected: Option<u64>, segment: &Segment<F>) -> Result<(), Error> {
    if expected.is_some_and(|expected| expected != segment.first) {
        return Err(Error::corrupt(&segment.path, 0, "records before it are missing"));
    }
    Ok(())
}

fn take_record(
    path: &str,
    offset: u64,
    frame: &Frame,
    take: impl FnOnce(Lsn, WalRecord) -> Result<(), Error>,
) -> Result<(), Error> {
    let record = WalRecord::decode(frame).map_err(|error| match error {
        DecodeError::Short => Error::corrupt(path, offset, "record is cut short"),
        DecodeError::Corrupt(reason) => Error::corrupt(path, offset, reason),
    })?;
    take(Lsn(frame.number), record)
}
