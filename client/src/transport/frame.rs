//! Frames: the envelope of every message on a stream, to bytes and back.
//!
//! ```text
//! length u32 LE (bytes after it) | id u64 LE | kind u8 | body
//! ```
//!
//! Invariants:
//!
//! - A length is checked against the stream's limit before anything is done with it; memory grows with the bytes that
//!   arrive, never with the length that is claimed.
//! - On a stream that many share, a frame is at most [`SHARED_FRAME_SIZE_MAX`] long; a longer one travels alone on a
//!   unidirectional stream, and the bytes of all that are being received are bounded by one budget.
//! - A frame is borrowed from the reader's buffer: no allocation a frame.
//!
//! It does not look into bodies, and it does not match answers to questions.

use std::sync::Arc;

use bincode::Encode;
use bytes::Bytes;
use quinn::{ReadError, ReadExactError, RecvStream, SendStream, WriteError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::codec::{self, MESSAGE_SIZE_MAX};

/// Bytes of a frame before its body.
pub const HEADER_SIZE: usize = LENGTH_SIZE + AFTER_LENGTH_SIZE;
/// Most bytes (length field included) of a frame on a stream that many share.
pub const SHARED_FRAME_SIZE_MAX: usize = 64 << 10;
/// Most bytes of any frame.
pub const FRAME_SIZE_MAX: usize = HEADER_SIZE + MESSAGE_SIZE_MAX;

const LENGTH_SIZE: usize = 4;
const AFTER_LENGTH_SIZE: usize = 9;
/// Packets' worth of bytes that a reader takes from the stream at a time.
const READ_CHUNKS: usize = 16;
/// A buffer over this size is given back once it is empty.
const BUFFER_KEPT_MAX: usize = 1 << 20;

const _: () = assert!(FRAME_SIZE_MAX < u32::MAX as usize, "a length fits its field");
const _: () = assert!(SHARED_FRAME_SIZE_MAX <= BUFFER_KEPT_MAX);

/// What a frame's body is. Numbers are sent: never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum FrameKind {
    /// A client's header, then its request.
    Request = 1,
    /// The answer to the request of the same id.
    Response = 2,
    /// A one-way message between nodes.
    Peer = 3,
    /// Opens a subscription to a node's changes.
    ChangesRequest = 4,
    /// One of many items of a subscription.
    ChangesItem = 5,
    /// A node's whole membership, for comparison.
    PushPull = 6,
    /// The other node's.
    PushPullAnswer = 7,
    /// The first frame that a node sends on a connection it dialled: the name of its cluster.
    Hello = 8,
}

impl FrameKind {
    /// Every kind, by number.
    pub const ALL: [Self; 8] = [
        Self::Request,
        Self::Response,
        Self::Peer,
        Self::ChangesRequest,
        Self::ChangesItem,
        Self::PushPull,
        Self::PushPullAnswer,
        Self::Hello,
    ];

    /// The number that is sent.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The kind of this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }
}

/// The peer does not follow the framing, or the stream is gone. The stream is of no further use.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The length is over the stream's limit.
    #[error("frame of {size} bytes is over the limit of {limit}")]
    TooLong {
        /// The whole frame's.
        size: u64,
        /// The stream's.
        limit: usize,
    },
    /// The length leaves no room for id and kind.
    #[error("frame of {0} bytes is shorter than its header")]
    TooShort(u64),
    /// Not a kind.
    #[error("frame of unknown kind {0}")]
    UnknownKind(u8),
    /// The stream ended within a frame.
    #[error("the stream ended within a frame")]
    Truncated,
    /// Bytes follow the one frame of its stream.
    #[error("bytes follow a frame that should be alone")]
    Trailing,
    /// The stream or its connection was lost.
    #[error("cannot read: {0}")]
    Read(#[from] ReadError),
}

/// One frame, borrowed from where it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Pairs an answer with its question; of the asker's choice.
    pub id: u64,
    /// What the body is.
    pub kind: FrameKind,
    /// The message.
    pub body: &'a [u8],
}

/// Appends a frame whose body `write_body` appends, and returns the frame's size.
///
/// # Panics
/// If the body is over [`MESSAGE_SIZE_MAX`]: requests are checked before they are encoded.
pub fn encode_frame(
    kind: FrameKind,
    id: u64,
    out: &mut Vec<u8>,
    write_body: impl FnOnce(&mut Vec<u8>),
) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH_SIZE]);
    out.extend_from_slice(&id.to_le_bytes());
    out.push(kind.number());
    write_body(out);
    let size = out.len() - start;
    assert!(size <= FRAME_SIZE_MAX, "a message of {size} bytes was made");
    let length = u32::try_from(size - LENGTH_SIZE).expect("FRAME_SIZE_MAX fits");
    out[start..start + LENGTH_SIZE].copy_from_slice(&length.to_le_bytes());
    size
}

/// Bytes in, frames out.
#[derive(Debug)]
pub struct FrameDecoder {
    buffer: Vec<u8>,
    /// Up to here the buffer's bytes were handed out.
    taken: usize,
    frame_size_max: usize,
}

impl FrameDecoder {
    /// Takes frames of up to `frame_size_max` bytes, length field included.
    pub fn new(frame_size_max: usize) -> Self {
        Self { buffer: Vec::new(), taken: 0, frame_size_max }
    }

    /// Takes bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.make_room();
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame; `None`: more bytes are needed.
    ///
    /// # Errors
    /// [`FrameError`] if the peer does not follow the framing; it stays so.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        let bytes = &self.buffer[self.taken..];
        let Some((size, id, kind)) = parse_header(bytes, self.frame_size_max)? else {
            return Ok(None);
        };
        if bytes.len() < size {
            return Ok(None);
        }
        let body = self.taken + HEADER_SIZE..self.taken + size;
        self.taken += size;
        Ok(Some(Frame { id, kind, body: &self.buffer[body] }))
    }

    /// Whether all that was pushed was handed out.
    pub fn is_empty(&self) -> bool {
        self.taken == self.buffer.len()
    }

    /// Forgets what was handed out, so that the buffer holds no more than a frame and one read.
    fn make_room(&mut self) {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        if self.buffer.is_empty() && self.buffer.capacity() > BUFFER_KEPT_MAX {
            self.buffer = Vec::new();
        }
    }
}

/// Size, id and kind of the frame that `bytes` begin with; `None`: its header is not there yet.
fn parse_header(
    bytes: &[u8],
    frame_size_max: usize,
) -> Result<Option<(usize, u64, FrameKind)>, FrameError> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_SIZE>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length);
    let size = length as usize + LENGTH_SIZE;
    if size > frame_size_max {
        return Err(FrameError::TooLong { size: size as u64, limit: frame_size_max });
    }
    if size < HEADER_SIZE {
        return Err(FrameError::TooShort(size as u64));
    }
    let Some((id, rest)) = rest.split_first_chunk::<8>() else { return Ok(None) };
    let Some(&kind) = rest.first() else { return Ok(None) };
    let kind = FrameKind::from_number(kind).ok_or(FrameError::UnknownKind(kind))?;
    Ok(Some((size, u64::from_le_bytes(*id), kind)))
}

/// Frames of a stream. First [`FrameReader::read`], then [`FrameReader::next_frame`] until it gives `None`, and again.
#[derive(Debug)]
pub struct FrameReader {
    stream: RecvStream,
    decoder: FrameDecoder,
}

impl FrameReader {
    /// Of a stream that many share: frames of up to [`SHARED_FRAME_SIZE_MAX`].
    pub fn shared(stream: RecvStream) -> Self {
        Self { stream, decoder: FrameDecoder::new(SHARED_FRAME_SIZE_MAX) }
    }

    /// Of a stream that carries one exchange: frames of up to `frame_size_max`, which [`FRAME_SIZE_MAX`] caps.
    pub fn exchange(stream: RecvStream, frame_size_max: usize) -> Self {
        Self { stream, decoder: FrameDecoder::new(frame_size_max.min(FRAME_SIZE_MAX)) }
    }

    /// Waits for bytes and takes what is there; `false`: the stream has ended between two frames. Cancel-safe.
    ///
    /// # Errors
    /// [`FrameError::Read`] if the stream is lost, [`FrameError::Truncated`] if it ended within a frame.
    pub async fn read(&mut self) -> Result<bool, FrameError> {
        self.decoder.make_room();
        let start = self.decoder.buffer.len();
        let mut chunks = [const { Bytes::new() }; READ_CHUNKS];
        let Some(count) = self.stream.read_chunks(&mut chunks).await? else {
            return if start == 0 { Ok(false) } else { Err(FrameError::Truncated) };
        };
        for chunk in &chunks[..count] {
            self.decoder.buffer.extend_from_slice(chunk);
        }
        Ok(true)
    }

    /// The next frame among the bytes taken; `None`: [`FrameReader::read`] first.
    ///
    /// # Errors
    /// [`FrameError`] if the peer does not follow the framing.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        self.decoder.next_frame()
    }

    /// The stream, to stop it.
    pub fn stream_mut(&mut self) -> &mut RecvStream {
        &mut self.stream
    }
}

/// How many bytes of large frames may be in memory at once: one for a process, shared by its connections.
#[derive(Clone, Debug)]
pub struct LargeFrameBudget(Arc<Semaphore>);

/// The budget counts in these: a semaphore's permits are 32 bits a call.
const BUDGET_UNIT: usize = 1 << 10;

impl LargeFrameBudget {
    /// A budget of `bytes`, and at least one frame's worth.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes.max(FRAME_SIZE_MAX).div_ceil(BUDGET_UNIT))))
    }
}

/// A frame that travelled alone. Its share of the budget is free again when it is dropped.
#[derive(Debug)]
pub struct LargeFrame {
    id: u64,
    kind: FrameKind,
    body: Vec<u8>,
    _share: OwnedSemaphorePermit,
}

impl LargeFrame {
    /// Reads the one frame of a unidirectional stream, once the budget has room for it.
    ///
    /// # Errors
    /// [`FrameError`] if the peer does not follow the framing or the stream is lost.
    ///
    /// # Panics
    /// Never: nobody closes the budget.
    pub async fn read(
        stream: &mut RecvStream,
        budget: &LargeFrameBudget,
    ) -> Result<Self, FrameError> {
        let mut header = [0; HEADER_SIZE];
        read_exact(stream, &mut header).await?;
        let parsed = parse_header(&header, FRAME_SIZE_MAX)?;
        let (size, id, kind) = parsed.expect("the header is whole");
        let units = u32::try_from(size.div_ceil(BUDGET_UNIT)).expect("FRAME_SIZE_MAX is less");
        let share = budget.0.clone().acquire_many_owned(units).await.expect("never closed");

        let body_size = size - HEADER_SIZE;
        let mut body = Vec::new();
        while body.len() < body_size {
            let wanted = body_size - body.len();
            let chunk = stream.read_chunk(wanted, true).await?.ok_or(FrameError::Truncated)?;
            body.extend_from_slice(&chunk.bytes);
        }
        if stream.read_chunk(1, true).await?.is_some() {
            return Err(FrameError::Trailing);
        }
        Ok(Self { id, kind, body, _share: share })
    }

    /// The frame.
    pub fn frame(&self) -> Frame<'_> {
        Frame { id: self.id, kind: self.kind, body: &self.body }
    }
}

async fn read_exact(stream: &mut RecvStream, bytes: &mut [u8]) -> Result<(), FrameError> {
    stream.read_exact(bytes).await.map_err(|error| match error {
        ReadExactError::FinishedEarly(_) => FrameError::Truncated,
        ReadExactError::ReadError(error) => FrameError::Read(error),
    })
}

/// Writes one frame to a stream that carries one exchange and waits until QUIC has taken it: its flow control is
/// the back-pressure.
///
/// # Errors
/// What QUIC says when the stream or the connection is lost.
pub async fn write_frame<T: Encode>(
    stream: &mut SendStream,
    kind: FrameKind,
    id: u64,
    message: &T,
) -> Result<(), WriteError> {
    let mut bytes = Vec::new();
    encode_frame(kind, id, &mut bytes, |body| codec::encode(message, body));
    stream.write_chunk(bytes.into()).await
}
