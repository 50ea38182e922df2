//! The one place that knows bincode: bytes of a message in, a value out, and back.
//!
//! Invariants:
//!
//! - Decoding allocates no more than the bytes at hand can account for, whatever a length prefix claims:
//!   byte strings are borrowed before they are copied, lists grow as their elements arrive.
//! - A message is all of its bytes: what is left over is an error.
//! - Messages are flat: no type of the protocol contains itself, so decoding cannot overflow the stack.
//!
//! The encoding is bincode 2 "standard": little-endian, variable-length integers (see `PROTOCOL.md`). It is never on disk.

use std::ops::Deref;

/// For `#[bincode(crate = "...")]` in crates that declare messages of their own.
pub use bincode;
use bincode::de::{BorrowDecoder, read::BorrowReader};
use bincode::enc::Encoder;
use bincode::error::{DecodeError as BincodeDecodeError, EncodeError};
use bincode::{BorrowDecode, Encode};
use bytes::Bytes;
use starling_clock::{NodeId, Stamp};

/// No message is longer than this: the largest payload (64 MiB) and its surroundings.
pub const MESSAGE_SIZE_MAX: usize = (64 << 20) + (64 << 10);

/// Elements for which a list may reserve memory before it has seen them.
const LIST_RESERVE_MAX: usize = 64;

/// Bytes that are not a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Longer than [`MESSAGE_SIZE_MAX`].
    #[error("message of {0} bytes is over the limit of {MESSAGE_SIZE_MAX}")]
    TooLong(usize),
    /// The bytes do not follow the protocol.
    #[error("malformed message: {0}")]
    Malformed(String),
    /// The message ended before its bytes did.
    #[error("{0} bytes after the end of the message")]
    Trailing(usize),
}

/// Appends the encoding of `message` to `out`.
///
/// # Panics
/// Never on messages of this crate: writing to a `Vec` does not fail.
pub fn encode<T: Encode>(message: &T, out: &mut Vec<u8>) {
    let config = bincode::config::standard();
    bincode::encode_into_std_write(message, out, config).expect("encoding into memory");
}

/// Reads one message from all of `bytes`.
///
/// # Errors
/// [`DecodeError`] if the bytes are not exactly one message.
pub fn decode<T: for<'de> BorrowDecode<'de, ()>>(bytes: &[u8]) -> Result<T, DecodeError> {
    if bytes.len() > MESSAGE_SIZE_MAX {
        return Err(DecodeError::TooLong(bytes.len()));
    }
    let config = bincode::config::standard().with_limit::<MESSAGE_SIZE_MAX>();
    let (message, used) = bincode::borrow_decode_from_slice(bytes, config)
        .map_err(|error| DecodeError::Malformed(error.to_string()))?;
    if used != bytes.len() {
        return Err(DecodeError::Trailing(bytes.len() - used));
    }
    Ok(message)
}

/// Bytes of any length: a key, a payload.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blob(pub Bytes);

impl Deref for Blob {
    type Target = Bytes;
    fn deref(&self) -> &Bytes {
        &self.0
    }
}

impl From<Bytes> for Blob {
    fn from(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl Encode for Blob {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.0[..].encode(encoder)
    }
}

impl<'de, C> BorrowDecode<'de, C> for Blob {
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(
        decoder: &mut D,
    ) -> Result<Self, BincodeDecodeError> {
        Ok(Self(Bytes::copy_from_slice(take_bytes(decoder)?)))
    }
}

/// A name or a text for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text(pub String);

impl Deref for Text {
    type Target = String;
    fn deref(&self) -> &String {
        &self.0
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl Encode for Text {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.0.as_bytes().encode(encoder)
    }
}

impl<'de, C> BorrowDecode<'de, C> for Text {
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(
        decoder: &mut D,
    ) -> Result<Self, BincodeDecodeError> {
        let bytes = take_bytes(decoder)?;
        let text =
            std::str::from_utf8(bytes).map_err(|inner| BincodeDecodeError::Utf8 { inner })?;
        Ok(Self(text.to_owned()))
    }
}

/// A list that takes memory as its elements arrive, not as its length promises.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List<T>(pub Vec<T>);

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Deref for List<T> {
    type Target = Vec<T>;
    fn deref(&self) -> &Vec<T> {
        &self.0
    }
}

impl<T> From<Vec<T>> for List<T> {
    fn from(items: Vec<T>) -> Self {
        Self(items)
    }
}

impl<T> FromIterator<T> for List<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        Self(items.into_iter().collect())
    }
}

impl<T: Encode> Encode for List<T> {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        (self.0.len() as u64).encode(encoder)?;
        self.0.iter().try_for_each(|item| item.encode(encoder))
    }
}

impl<'de, C, T: BorrowDecode<'de, C>> BorrowDecode<'de, C> for List<T> {
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(
        decoder: &mut D,
    ) -> Result<Self, BincodeDecodeError> {
        const { assert!(size_of::<T>() > 0, "an element of no size costs no bytes to claim") };
        let length = usize::try_from(u64::borrow_decode(decoder)?)
            .map_err(|_| BincodeDecodeError::LimitExceeded)?;
        let mut items = Vec::with_capacity(length.min(LIST_RESERVE_MAX));
        for _ in 0..length {
            items.push(T::borrow_decode(decoder)?);
        }
        Ok(Self(items))
    }
}

/// A stamp on the wire: its 16 big-endian bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct WireStamp(pub Stamp);

impl From<Stamp> for WireStamp {
    fn from(stamp: Stamp) -> Self {
        Self(stamp)
    }
}

impl Encode for WireStamp {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.0.to_bytes().encode(encoder)
    }
}

impl<'de, C> BorrowDecode<'de, C> for WireStamp {
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(
        decoder: &mut D,
    ) -> Result<Self, BincodeDecodeError> {
        let bytes = <[u8; Stamp::SIZE]>::borrow_decode(decoder)?;
        let stamp = Stamp::from_bytes(bytes);
        stamp.map(Self).ok_or(BincodeDecodeError::Other("stamp beyond the end of time"))
    }
}

/// A node on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WireNode(pub NodeId);

impl From<NodeId> for WireNode {
    fn from(node: NodeId) -> Self {
        Self(node)
    }
}

impl Encode for WireNode {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.0.0.encode(encoder)
    }
}

impl<'de, C> BorrowDecode<'de, C> for WireNode {
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(
        decoder: &mut D,
    ) -> Result<Self, BincodeDecodeError> {
        Ok(Self(NodeId(u64::borrow_decode(decoder)?)))
    }
}

/// A length prefix and as many bytes, borrowed from the input: nothing is allocated for a length that lies.
fn take_bytes<'de, D: BorrowDecoder<'de>>(
    decoder: &mut D,
) -> Result<&'de [u8], BincodeDecodeError> {
    let length = usize::try_from(u64::borrow_decode(decoder)?)
        .map_err(|_| BincodeDecodeError::LimitExceeded)?;
    decoder.claim_bytes_read(length)?;
    decoder.borrow_reader().take_bytes(length)
}
