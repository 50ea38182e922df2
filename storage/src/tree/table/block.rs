//! The envelope of every block of a table: length, kind, compression and checksum. See `FORMAT.md`, "Table block".
//!
//! Invariants:
//!
//! - Nothing of a block is believed before its checksum has been checked.
//! - Memory is bounded before it is taken: no block is larger than [`BLOCK_SIZE_MAX`], compressed or not.
//! - Compressed only where it saves an eighth: what doesn't compress is read back without a copy.
//!
//! This file does no IO and does not know what is in a block: `entries.rs` does.

use std::sync::Arc;

use bytes::Bytes;
use starling_clock::mutation::{self, Mutation};

use super::buffers::Buffers;
use crate::event::{KEY_SIZE_MAX, PAYLOAD_SIZE_LIMIT};
use crate::lz4;

/// Bytes before the contents.
pub(crate) const HEADER_SIZE: usize = 16;
/// The largest contents: one event of the largest size, or any other block up to this.
pub(crate) const BLOCK_SIZE_MAX: usize = 1 << 30;

const _: () = assert!(PAYLOAD_SIZE_LIMIT + 4 * KEY_SIZE_MAX < BLOCK_SIZE_MAX);

/// What a block holds. DO NOT CHANGE or reuse a number: they are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Events.
    Data = 1,
    /// Where each data block of a section begins and lies.
    Index = 2,
    /// The Bloom filter of a section.
    Filter = 3,
    /// Where each section begins, and where its index and filter lie.
    Sections = 4,
    /// Counts and digest of each partition.
    Partitions = 5,
}

/// How the contents are stored. DO NOT CHANGE or reuse a number: they are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Compression {
    None = 0,
    Lz4 = 1,
}

/// Field name, offset, size: the same table as `FORMAT.md`, for the test that compares them.
#[cfg(test)]
pub(crate) const LAYOUT: [(&str, usize, usize); 6] = [
    ("crc", 0, 4),
    ("stored", 4, 4),
    ("raw", 8, 4),
    ("kind", 12, 1),
    ("compression", 13, 1),
    ("zero", 14, 2),
];

/// Bytes that are not a block of the kind wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Damaged;

/// Appends a block with these contents to `out`.
///
/// # Panics
/// If the contents are over [`BLOCK_SIZE_MAX`].
pub(crate) fn encode(kind: Kind, contents: &[u8], compress: bool, out: &mut Vec<u8>) {
    assert!(contents.len() <= BLOCK_SIZE_MAX);
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_SIZE]);
    let stored = out.len();
    let mut compression = Compression::None;
    if compress {
        lz4::compress(contents, out);
        if out.len() - stored + contents.len() / 8 <= contents.len() {
            compression = Compression::Lz4;
        } else {
            out.truncate(stored);
        }
    }
    if compression == Compression::None {
        out.extend_from_slice(contents);
    }
    let stored = length(&out[stored..]);
    let header = &mut out[start..start + HEADER_SIZE];
    header[4..8].copy_from_slice(&stored.to_le_bytes());
    header[8..12].copy_from_slice(&length(contents).to_le_bytes());
    (header[12], header[13]) = (kind as u8, compression as u8);
    let crc = crc32c::crc32c(&out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
}

/// The contents of the block that `bytes` is, all of it. What is not compressed shares the buffer if it is large.
///
/// # Errors
/// [`Damaged`] if the bytes are not a block of this kind, whole and as it was written.
pub(crate) fn decode(kind: Kind, bytes: &Bytes, buffers: &Arc<Buffers>) -> Result<Bytes, Damaged> {
    match open(kind, bytes)? {
        (stored, None) if buffers.is_large(stored.len()) => Ok(bytes.slice_ref(stored)),
        (stored, None) => copy(stored, buffers),
        (stored, Some(raw)) => decompress(stored, raw, buffers),
    }
}

/// As [`decode`], from a buffer that is used again: the contents are a copy.
///
/// # Errors
/// As [`decode`].
pub(crate) fn decode_copy(
    kind: Kind,
    bytes: &[u8],
    buffers: &Arc<Buffers>,
) -> Result<Bytes, Damaged> {
    match open(kind, bytes)? {
        (stored, None) => copy(stored, buffers),
        (stored, Some(raw)) => decompress(stored, raw, buffers),
    }
}

/// What follows the envelope, and, if it is compressed, how large it was.
fn open(kind: Kind, bytes: &[u8]) -> Result<(&[u8], Option<usize>), Damaged> {
    let (header, stored) = bytes.split_first_chunk::<HEADER_SIZE>().ok_or(Damaged)?;
    if crc32c::crc32c(&bytes[4..]) != le_u32(header, 0) && !mutation::is(Mutation::ServeUnchecked) {
        return Err(Damaged);
    }
    let raw = le_u32(header, 8) as usize;
    let sound = le_u32(header, 4) as usize == stored.len()
        && raw <= BLOCK_SIZE_MAX
        && header[12] == kind as u8
        && header[14..] == [0, 0];
    if !sound {
        return Err(Damaged);
    }
    match header[13] {
        compression if compression == Compression::None as u8 && raw == stored.len() => {
            Ok((stored, None))
        }
        compression if compression == Compression::Lz4 as u8 => Ok((stored, Some(raw))),
        _ => Err(Damaged),
    }
}

fn copy(stored: &[u8], buffers: &Arc<Buffers>) -> Result<Bytes, Damaged> {
    buffers.filled(stored.len(), |contents| {
        contents.copy_from_slice(stored);
        Ok(())
    })
}

fn decompress(stored: &[u8], raw: usize, buffers: &Arc<Buffers>) -> Result<Bytes, Damaged> {
    // No byte of lz4 stands for more than 255: what claims more is refused before memory is taken for it.
    if stored.len().saturating_mul(255) < raw {
        return Err(Damaged);
    }
    buffers.filled(
        raw,
        |contents| {
            if lz4::decompress(stored, contents) { Ok(()) } else { Err(Damaged) }
        },
    )
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("bounded by BLOCK_SIZE_MAX")
}

fn le_u32(header: &[u8; HEADER_SIZE], offset: usize) -> u32 {
    let bytes = header[offset..].first_chunk().expect("the field lies in the header");
    u32::from_le_bytes(*bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn buffers() -> Arc<Buffers> {
        Arc::new(Buffers::new(512))
    }

    #[test]
    fn compresses_what_compresses() {
        let (mut zeros, mut noise) = (Vec::new(), Vec::new());
        encode(Kind::Data, &[0; 8192], true, &mut zeros);
        let random: Vec<u8> = (0..1024_u64)
            .flat_map(|n| xxhash_rust::xxh3::xxh3_64(&n.to_le_bytes()).to_le_bytes())
            .collect();
        encode(Kind::Data, &random, true, &mut noise);
        assert!(zeros.len() < 200);
        assert_eq!(noise.len(), HEADER_SIZE + 8192);
        assert_eq!(decode(Kind::Data, &zeros.into(), &buffers()), Ok(vec![0; 8192].into()));
        assert_eq!(decode(Kind::Data, &noise.into(), &buffers()), Ok(random.into()));
    }

    proptest! {
        #[test]
        fn roundtrips(contents in prop::collection::vec(0..4_u8, 0..2000), compress: bool) {
            let mut bytes = Vec::new();
            encode(Kind::Index, &contents, compress, &mut bytes);
            let bytes = Bytes::from(bytes);
            prop_assert_eq!(decode_copy(Kind::Index, &bytes, &buffers()), Ok(contents.clone().into()));
            prop_assert_eq!(decode(Kind::Index, &bytes, &buffers()), Ok(contents.into()));
            prop_assert_eq!(decode(Kind::Data, &bytes, &buffers()), Err(Damaged));
            for cut in 0..bytes.len() {
                prop_assert_eq!(decode(Kind::Index, &bytes.slice(..cut), &buffers()), Err(Damaged));
            }
        }

        #[test]
        fn a_flipped_bit_is_noticed(
            contents in prop::collection::vec(0..4_u8, 0..500), compress: bool,
            at in any::<prop::sample::Index>(), bit in 0..8_u32,
        ) {
            let mut bytes = Vec::new();
            encode(Kind::Data, &contents, compress, &mut bytes);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(decode(Kind::Data, &bytes.into(), &buffers()), Err(Damaged));
        }
    }
}
