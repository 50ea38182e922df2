//! The segment: a file of frames that follow each other without a gap. See FORMAT.md, "Segment".
//!
//! Invariants:
//!
//! - A segment has its name only once its header is on disk, and takes no frame before its name is.
//! - A file that was a segment before may become one again: it has another salt then, and a reader who knows how many
//!   records there are does not look behind them.
//!
//! Knows nothing of what the records mean. What becomes of a torn tail is decided in `recover.rs`.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use starling_clock::mutation::{self, Mutation};

use super::frame::{FRAME_HEADER_SIZE, Frame, FrameRef, decode_frame_in, frame_size, is_whole};
use crate::event::{DecodeError, array};
use crate::{Disk, DiskFile, Error};

/// Bytes before the first frame.
pub(crate) const SEGMENT_HEADER_SIZE: usize = 32;
/// The version that this code writes, and the newest that it reads.
pub(crate) const SEGMENT_VERSION: u32 = 1;
/// Read at once when frames are read in order.
const CHUNK_SIZE: usize = 1 << 20;
/// The name, in its directory, of a file that is no segment yet or none any more.
pub(crate) const SPARE: &str = "spare";

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

/// What the header of a segment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHead {
    /// Where the checksums of its frames start from.
    pub(crate) salt: u32,
    /// Number of its first record.
    pub(crate) first: u64,
}

/// An open segment.
#[derive(Debug)]
pub(crate) struct Segment<F> {
    /// The file.
    pub(crate) file: Arc<F>,
    /// Its name, relative to the data directory.
    pub(crate) path: String,
    /// Its header.
    pub(crate) head: SegmentHead,
    /// Bytes that are good, header included.
    pub(crate) len: u64,
    /// Bytes of the file; what is behind `len` is of no meaning.
    pub(crate) file_len: u64,
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

/// The name of the file that is no segment.
pub(crate) fn spare_path(dir: &str) -> String {
    format!("{dir}/{SPARE}")
}

/// The first record's number, from a segment's name.
pub(crate) fn parse_segment_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log")?;
    (digits.len() == 20).then(|| digits.parse().ok())?
}

/// The header of a segment.
pub(crate) fn encode_segment_header(kind: LogKind, head: SegmentHead) -> [u8; SEGMENT_HEADER_SIZE] {
    let mut header = [0; SEGMENT_HEADER_SIZE];
    header[..8].copy_from_slice(&kind.magic());
    header[8..12].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&head.salt.to_le_bytes());
    header[16..24].copy_from_slice(&head.first.to_le_bytes());
    let crc = crc32c::crc32c(&header[..28]);
    header[28..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// What is in a header, or what is wrong with it.
fn decode_segment_header(
    kind: LogKind,
    first: u64,
    path: &str,
    header: &[u8],
) -> Result<SegmentHead, Error> {
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
    let head = SegmentHead {
        salt: u32::from_le_bytes(array(header, 12)),
        first: u64::from_le_bytes(array(header, 16)),
    };
    if found == 0 || head.first != first || header[24..28] != [0; 4] {
        return Err(Error::corrupt(path, 0, "segment header"));
    }
    Ok(head)
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
    /// Makes a segment, durably, from the spare file if `reuse` is set and there is one.
    ///
    /// # Errors
    /// [`Error::Full`] or [`Error::Io`]: there is no such segment, another try may succeed.
    /// [`Error::WriteFailed`]: a sync failed, so that the directory cannot be trusted.
    pub(crate) fn create<D: Disk<File = F>>(
        disk: &D,
        dir: &str,
        kind: LogKind,
        head: SegmentHead,
        reuse: bool,
    ) -> Result<Self, Error> {
        let spare = spare_path(dir);
        let file = if reuse && disk.exists(&spare).map_err(Error::io("look for", &spare))? {
            disk.open(&spare).map_err(Error::io("open", &spare))?
        } else {
            match disk.create(&spare) {
                // An earlier try went wrong half-way.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    disk.remove(&spare).map_err(Error::io("remove", &spare))?;
                    disk.create(&spare)
                }
                result => result,
            }
            .map_err(Error::io("create", &spare))?
        };
        let header = encode_segment_header(kind, head);
        file.write_at(&header, 0).map_err(Error::io("write", &spare))?;
        file.sync().map_err(write_failed("sync", &spare))?;
        let file_len = file.len().map_err(Error::io("read", &spare))?;
        let path = segment_path(dir, head.first);
        disk.rename(&spare, &path).map_err(Error::io("rename", &spare))?;
        if !mutation::is(Mutation::SkipDirectorySync) {
            disk.sync_dir(dir).map_err(write_failed("sync", dir))?;
        }
        let len = SEGMENT_HEADER_SIZE as u64;
        Ok(Self { file: Arc::new(file), path, head, len, file_len })
    }

    /// Opens a segment; everything in it is taken to be good until it is read.
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
        Self::of_file(file, path, kind, first)
    }

    /// As [`Self::open`], where nothing is to be written.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn open_read<D: Disk<File = F>>(
        disk: &D,
        dir: &str,
        kind: LogKind,
        first: u64,
    ) -> Result<Self, Error> {
        let path = segment_path(dir, first);
        let file = disk.open_read(&path).map_err(Error::io("open", &path))?;
        Self::of_file(file, path, kind, first)
    }

    fn of_file(file: F, path: String, kind: LogKind, first: u64) -> Result<Self, Error> {
        let mut header = [0; SEGMENT_HEADER_SIZE];
        let read = file.read_full_at(&mut header, 0).map_err(Error::io("read", &path))?;
        let head = decode_segment_header(kind, first, &path, &header[..read])?;
        let len = file.len().map_err(Error::io("read", &path))?;
        Ok(Self { file: Arc::new(file), path, head, len, file_len: len })
    }

    /// The frames from `offset` on, where record `number` starts, to the end of what is good.
    pub(crate) fn frames(&self, offset: u64, number: u64) -> Frames<'_, F> {
        Frames {
            segment: self,
            buffer: Vec::new(),
            start: 0,
            inflated: Vec::new(),
            offset,
            number,
            until: u64::MAX,
            chunk_size: CHUNK_SIZE,
        }
    }

    /// All frames.
    pub(crate) fn all_frames(&self) -> Frames<'_, F> {
        self.frames(SEGMENT_HEADER_SIZE as u64, self.head.first)
    }

    /// Bytes of the file; less if it ends before.
    pub(super) fn read_bytes(&self, from: u64, to: u64) -> Result<Bytes, Error> {
        let mut bytes = Vec::new();
        self.read_into(&mut bytes, from, to)?;
        Ok(Bytes::from(bytes))
    }

    /// As [`Self::read_bytes`], in place of what is in `bytes`.
    fn read_into(&self, bytes: &mut Vec<u8>, from: u64, to: u64) -> Result<(), Error> {
        let length = usize::try_from(to - from).expect("a segment fits in memory");
        bytes.resize(length, 0);
        let read = self.file.read_full_at(bytes, from);
        let read = read.map_err(Error::io("read", &self.path))?;
        bytes.truncate(read);
        Ok(())
    }
}

/// The segments of a log, by their first records.
///
/// # Errors
/// Failed IO.
pub(crate) fn list_segments<D: Disk>(disk: &D, dir: &str) -> Result<Vec<u64>, Error> {
    let names = disk.list(dir).map_err(Error::io("list", dir))?;
    // A process that died may have left names that only the system knows of.
    disk.sync_dir(dir).map_err(write_failed("sync", dir))?;
    Ok(names.iter().filter_map(|name| parse_segment_name(name)).collect())
}

/// Reads the frames of a segment one after the other.
pub(crate) struct Frames<'a, F> {
    segment: &'a Segment<F>,
    buffer: Vec<u8>,
    /// Where in the buffer the next frame starts.
    start: usize,
    /// Records that were compressed.
    inflated: Vec<u8>,
    /// Where in the file the next frame starts.
    pub(crate) offset: u64,
    /// The number of its first record.
    pub(crate) number: u64,
    until: u64,
    chunk_size: usize,
}

impl<F: DiskFile> Frames<'_, F> {
    /// Reads about so many bytes at once.
    #[must_use]
    pub(crate) fn chunked(mut self, chunk_size: usize) -> Self {
        self.chunk_size = chunk_size.clamp(4 << 10, CHUNK_SIZE);
        self
    }

    /// Ends before record `until`, and takes it for damage if there are not so many.
    #[must_use]
    pub(crate) fn until(mut self, until: u64) -> Self {
        self.until = until;
        self
    }

    /// The next frame; `None` at the end of the good part of the segment.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with the place of the bad frame, or a failed read. Another call answers the same.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame>, Error> {
        Ok(self.next_frame_in()?.map(FrameRef::to_frame))
    }

    /// As [`Self::next_frame`], in the buffer that the next one will be read into.
    ///
    /// # Errors
    /// As [`Self::next_frame`].
    pub(crate) fn next_frame_in(&mut self) -> Result<Option<FrameRef<'_>>, Error> {
        let open_end = self.until == u64::MAX;
        if self.number == self.until || (open_end && self.offset == self.segment.len) {
            return Ok(None);
        }
        if !is_whole(&self.buffer[self.start..]) {
            self.fill()?;
        }
        let (segment, offset) = (self.segment, self.offset);
        let bad = |error| bad_frame(&segment.path, offset, error);
        let rest = &self.buffer[self.start..];
        let read = decode_frame_in(segment.head.salt, rest, &mut self.inflated);
        let (frame, size) = read.map_err(bad)?;
        if frame.number != self.number || self.until < frame.next() {
            return Err(bad(DecodeError::Corrupt("frame number")));
        }
        self.start += size;
        self.offset += size as u64;
        self.number = frame.next();
        Ok(Some(frame))
    }

    /// Reads a chunk from `offset` on, and at least the frame that starts there.
    fn fill(&mut self) -> Result<(), Error> {
        let segment = self.segment;
        let left = segment.len.saturating_sub(self.offset);
        let wanted = |size: usize| left.min(size as u64);
        let mut size = wanted(self.chunk_size);
        self.start = 0;
        segment.read_into(&mut self.buffer, self.offset, self.offset + size)?;
        if let Ok(frame) = frame_size(&self.buffer)
            && wanted(frame) > size
        {
            size = wanted(frame);
            segment.read_into(&mut self.buffer, self.offset, self.offset + size)?;
        }
        Ok(())
    }
}

fn bad_frame(path: &str, offset: u64, error: DecodeError) -> Error {
    let reason = match error {
        DecodeError::Short => "frame is cut short",
        DecodeError::Corrupt(reason) => reason,
    };
    Error::corrupt(path, offset, reason)
}

const _: () = assert!(FRAME_HEADER_SIZE < CHUNK_SIZE);
