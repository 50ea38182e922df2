//! The segment: a file of frames that follow each other without a gap. See FORMAT.md, "Segment".
//!
//! Invariants:
//!
//! - A segment's header is on disk, and its name too, before a frame is written to it.
//! - Only the newest segment of a log may have a torn tail. It is cut off when the log is opened; what stays is
//!   written again and synced, because the system may show bytes that a failed sync has lost (ext4).
//! - A record that was known to be on disk is never cut off: that is damage and is reported.
//!
//! Knows nothing of what the records mean.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use starling_clock::mutation::{self, Mutation};

use super::frame::{FRAME_HEADER_SIZE, Frame, decode_frame, frame_size, proves_durable};
use crate::event::{DecodeError, array};
use crate::{Disk, DiskFile, Error};

/// Bytes before the first frame.
pub(crate) const SEGMENT_HEADER_SIZE: usize = 32;
/// The version that this code writes, and the newest that it reads.
pub(crate) const SEGMENT_VERSION: u32 = 1;
/// Read at once when frames are read in order.
const CHUNK_SIZE: usize = 256 << 10;

/// Field name, offset, size: the same table as FORMAT.md, for the test that compares them.
#[cfg(test)]
pub(crate) const SEGMENT_LAYOUT: [(&str, usize, usize); 6] = [
    ("magic", 0, 8),
    ("version", 8, 4),
    ("salt", 12, 4),
    ("first", 16, 8),
    ("zero", 24, 4),
    ("crc", 28, 4),
];

/// Which log a segment belongs to. DO NOT CHANGE a magic: they are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogKind {
    /// The write-ahead log.
    WriteAhead,
    /// The change log.
    Changes,
    /// Hints for one node.
    Hints,
}

impl LogKind {
    /// The first eight bytes of a segment.
    pub(crate) const fn magic(self) -> [u8; 8] {
        match self {
            Self::WriteAhead => *b"STARWAL\0",
            Self::Changes => *b"STARCHG\0",
            Self::Hints => *b"STARHNT\0",
        }
    }
}

/// An open segment.
#[derive(Debug)]
pub(crate) struct Segment<F> {
    /// The file.
    pub(crate) file: Arc<F>,
    /// Its name, relative to the data directory.
    pub(crate) path: String,
    /// Number of its first record.
    pub(crate) first: u64,
    /// Where the checksums of its frames start from.
    pub(crate) salt: u32,
    /// Bytes that are good, header included.
    pub(crate) len: u64,
}

impl<F> Clone for Segment<F> {
    fn clone(&self) -> Self {
        Self { file: Arc::clone(&self.file), path: self.path.clone(), ..*self }
    }
}

/// The name of the segment whose first record is `first`.
pub(crate) fn segment_path(dir: &str, first: u64) -> String {
    format!("{dir}/{first:020}.log")
}

/// The first record's number, from a segment's name.
pub(crate) fn parse_segment_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log")?;
    (digits.len() == 20).then(|| digits.parse().ok())?
}

/// The header of a segment.
pub(crate) fn encode_segment_header(
    kind: LogKind,
    salt: u32,
    first: u64,
) -> [u8; SEGMENT_HEADER_SIZE] {
    let mut header = [0; SEGMENT_HEADER_SIZE];
    header[..8].copy_from_slice(&kind.magic());
    header[8..12].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&salt.to_le_bytes());
    header[16..24].copy_from_slice(&first.to_le_bytes());
    let crc = crc32c::crc32c(&header[..28]);
    header[28..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// The salt in a header, or what is wrong with it.
fn decode_segment_header(
    kind: LogKind,
    first: u64,
    path: &str,
    header: &[u8],
) -> Result<u32, Error> {
    if header.len() < SEGMENT_HEADER_SIZE {
        return Err(Error::corrupt(path, 0, "segment header is cut short"));
    }
    if header[..8] != kind.magic() {
        return Err(Error::corrupt(path, 0, "segment magic"));
    }
    if crc32c::crc32c(&header[..28]) != u32::from_le_bytes(array(header, 28)) {
        return Err(Error::corrupt(path, 0, "segment header checksum"));
    }
    let found = u32::from_le_bytes(array(header, 8));
    if found > SEGMENT_VERSION {
        return Err(Error::NewerFormat {
            file: path.to_owned(),
            found,
            supported: SEGMENT_VERSION,
        });
    }
    if found == 0 || u64::from_le_bytes(array(header, 16)) != first || header[24..28] != [0; 4] {
        return Err(Error::corrupt(path, 0, "segment header"));
    }
    Ok(u32::from_le_bytes(array(header, 12)))
}

/// Removes a file for good; one that is not there is none to remove.
///
/// # Errors
/// Failed IO: it may be there or not, and another try is safe.
pub(crate) fn remove_durably<D: Disk>(disk: &D, dir: &str, path: &str) -> Result<(), Error> {
    match disk.remove(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => result.map_err(Error::io("remove", path))?,
    }
    disk.sync_dir(dir).map_err(Error::io("sync", dir))
}

/// A failed write or sync after which nothing is known about the file.
pub(crate) fn write_failed(operation: &'static str, path: &str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::WriteFailed { operation, file: path.to_owned(), source }
}

impl<F: DiskFile> Segment<F> {
    /// Makes the segment whose first record will be `first`, durably.
    ///
    /// # Errors
    /// [`Error::Full`] or [`Error::Io`]: there is no such segment, another try may succeed.
    /// [`Error::WriteFailed`]: a sync failed, so that the directory cannot be trusted.
    pub(crate) fn create<D: Disk<File = F>>(
        disk: &D,
        dir: &str,
        kind: LogKind,
        salt: u32,
        first: u64,
    ) -> Result<Self, Error> {
        let path = segment_path(dir, first);
        let file = match disk.create(&path) {
            // An earlier try went wrong half-way. It holds no record: their numbers are still to be given.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                disk.remove(&path).map_err(Error::io("remove", &path))?;
                disk.create(&path)
            }
            result => result,
        };
        let file = file.map_err(Error::io("create", &path))?;
        let header = encode_segment_header(kind, salt, first);
        if let Err(error) = file.write_at(&header, 0) {
            // The log goes on in the segment before: this one must not come up between them after a crash.
            disk.remove(&path).map_err(write_failed("remove", &path))?;
            disk.sync_dir(dir).map_err(write_failed("sync", dir))?;
            return Err(Error::io("write", &path)(error));
        }
        file.sync().map_err(write_failed("sync", &path))?;
        if !mutation::is(Mutation::SkipDirectorySync) {
            disk.sync_dir(dir).map_err(write_failed("sync", dir))?;
        }
        Ok(Self { file: Arc::new(file), path, first, salt, len: SEGMENT_HEADER_SIZE as u64 })
    }

    /// Opens a segment to read it; everything in it is taken to be good until it is read.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::NewerFormat`] or a failed read.
    pub(crate) fn open<D: Disk<File = F>>(
        disk: &D,
        dir: &str,
        kind: LogKind,
        first: u64,
    ) -> Result<Self, Error> {
        let path = segment_path(dir, first);
        let file = disk.open(&path).map_err(Error::io("open", &path))?;
        let mut header = [0; SEGMENT_HEADER_SIZE];
        let read = file.read_full_at(&mut header, 0).map_err(Error::io("read", &path))?;
        let salt = decode_segment_header(kind, first, &path, &header[..read])?;
        let len = file.len().map_err(Error::io("read", &path))?;
        Ok(Self { file: Arc::new(file), path, first, salt, len })
    }

    /// The frames from `offset` on, where record `number` starts.
    pub(crate) fn frames(&self, offset: u64, number: u64) -> Frames<'_, F> {
        Frames { segment: self, buffer: Bytes::new(), offset, number, chunk_size: CHUNK_SIZE }
    }
}

/// The segments of a log, by their first records. One that a crash left half-made is removed: it holds nothing.
///
/// # Errors
/// Failed IO.
pub(crate) fn list_segments<D: Disk>(
    disk: &D,
    dir: &str,
    kind: LogKind,
) -> Result<Vec<u64>, Error> {
    let names = disk.list(dir).map_err(Error::io("list", dir))?;
    let mut firsts: Vec<u64> = names.iter().filter_map(|name| parse_segment_name(name)).collect();
    // A process that died may have left names that only the system knows of.
    disk.sync_dir(dir).map_err(write_failed("sync", dir))?;
    let Some(&first) = firsts.last() else { return Ok(firsts) };
    let path = segment_path(dir, first);
    let length = disk.open(&path).and_then(|file| file.len()).map_err(Error::io("open", &path))?;
    if length <= SEGMENT_HEADER_SIZE as u64
        && let Err(Error::Corrupt { .. }) = Segment::open(disk, dir, kind, first)
    {
        disk.remove(&path).map_err(Error::io("remove", &path))?;
        disk.sync_dir(dir).map_err(write_failed("sync", dir))?;
        firsts.pop();
    }
    Ok(firsts)
}

impl<F: DiskFile> Segment<F> {
    /// Opens the newest segment of a log to go on writing it: hands each good record with its offset to `take`,
    /// cuts off a torn tail, makes the rest durable. Also tells the number of the next record.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a record is bad that was known to be on disk; whatever `take` answers; failed IO.
    pub(crate) fn recover<D: Disk<File = F>>(
        disk: &D,
        dir: &str,
        kind: LogKind,
        first: u64,
        mut take: impl FnMut(&str, u64, &Frame) -> Result<(), Error>,
    ) -> Result<(Self, u64), Error> {
        let mut segment = Self::open(disk, dir, kind, first)?;
        let mut frames = segment.frames(SEGMENT_HEADER_SIZE as u64, first);
        // Records that no later one proves to be on disk, with their offsets.
        let mut unproved = VecDeque::new();
        let torn = loop {
            let offset = frames.offset;
            match frames.next_frame() {
                Ok(Some(frame)) => {
                    while unproved.front().is_some_and(|&(number, _)| number < frame.durable) {
                        unproved.pop_front();
                    }
                    unproved.push_back((frame.number, offset));
                    take(&segment.path, offset, &frame)?;
                }
                Ok(None) => break None,
                Err(error @ Error::Corrupt { .. }) => break Some(error),
                Err(error) => return Err(error),
            }
        };
        let (end, next) = (frames.offset, frames.number);
        if let Some(error) = torn {
            let tail = segment.read_bytes(end, segment.len)?;
            if proves_durable(segment.salt, next, &tail) {
                return Err(error);
            }
        }
        let from = unproved.front().map_or(end, |&(_, offset)| offset);
        segment.keep(kind, from, end)?;
        Ok((segment, next))
    }

    fn read_bytes(&self, from: u64, to: u64) -> Result<Bytes, Error> {
        let length = usize::try_from(to - from).expect("a segment fits in memory");
        let mut bytes = vec![0; length];
        let read = self.file.read_full_at(&mut bytes, from);
        let read = read.map_err(Error::io("read", &self.path))?;
        bytes.truncate(read);
        Ok(Bytes::from(bytes))
    }

    /// Ends the segment at `end` and makes sure that the bytes from `from` on are on disk.
    fn keep(&mut self, kind: LogKind, from: u64, end: u64) -> Result<(), Error> {
        if end < self.len {
            self.file.truncate(end).map_err(write_failed("truncate", &self.path))?;
        }
        // The header as well: its sync may be the one that failed.
        let header = encode_segment_header(kind, self.salt, self.first);
        self.file.write_at(&header, 0).map_err(write_failed("write", &self.path))?;
        if from < end {
            let bytes = self.read_bytes(from, end)?;
            self.file.write_at(&bytes, from).map_err(write_failed("write", &self.path))?;
        }
        self.file.sync().map_err(write_failed("sync", &self.path))?;
        self.len = end;
        Ok(())
    }
}

/// Reads the frames of a segment one after the other.
pub(crate) struct Frames<'a, F> {
    segment: &'a Segment<F>,
    buffer: Bytes,
    /// Where in the file the next frame starts.
    pub(crate) offset: u64,
    /// Its number.
    pub(crate) number: u64,
    chunk_size: usize,
}

impl<F: DiskFile> Frames<'_, F> {
    /// Reads about so many bytes at once.
    #[must_use]
    pub(crate) fn chunked(mut self, chunk_size: usize) -> Self {
        self.chunk_size = chunk_size.clamp(4 << 10, CHUNK_SIZE);
        self
    }

    /// The next frame; `None` at the end of the good part of the segment.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with the place of the bad frame, or a failed read. Another call answers the same.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame>, Error> {
        if self.offset == self.segment.len {
            return Ok(None);
        }
        let (frame, size) = match decode_frame(self.segment.salt, &self.buffer) {
            Err(DecodeError::Short) => {
                self.fill()?;
                decode_frame(self.segment.salt, &self.buffer).map_err(|error| self.bad(error))?
            }
            result => result.map_err(|error| self.bad(error))?,
        };
        if frame.number != self.number {
            return Err(self.bad(DecodeError::Corrupt("frame number")));
        }
        self.buffer = self.buffer.slice(size..);
        self.offset += size as u64;
        self.number += 1;
        Ok(Some(frame))
    }

    /// Reads a chunk from `offset` on, and at least the frame that starts there.
    fn fill(&mut self) -> Result<(), Error> {
        let segment = self.segment;
        let left = segment.len - self.offset;
        let wanted = |size: usize| left.min(size as u64);
        let mut size = wanted(self.chunk_size);
        let mut bytes = segment.read_bytes(self.offset, self.offset + size)?;
        if let Ok(frame) = frame_size(&bytes)
            && wanted(frame) > size
        {
            size = wanted(frame);
            bytes = segment.read_bytes(self.offset, self.offset + size)?;
        }
        self.buffer = bytes;
        Ok(())
    }

    fn bad(&self, error: DecodeError) -> Error {
        let reason = match error {
            DecodeError::Short => "frame is cut short",
            DecodeError::Corrupt(reason) => reason,
        };
        Error::corrupt(&self.segment.path, self.offset, reason)
    }
}

const _: () = assert!(FRAME_HEADER_SIZE < CHUNK_SIZE);
