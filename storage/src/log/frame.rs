//! The frame: one numbered, checksummed record of a log. See FORMAT.md, "Frame".
//!
//! Invariants:
//!
//! - Nothing of a frame is believed before its checksum has been checked; its length is bounded before it is used.
//! - The checksum starts from the salt of the segment, which no client knows: bytes that a client chose are
//!   never taken for a frame, wherever in a segment a reader starts.
//! - `durable` tells what was on disk when the frame was written. It is how a reader tells a torn tail, which was
//!   never promised to anyone, from damage.
//!
//! This file does no IO.

use bytes::Bytes;
use starling_clock::mutation::{self, Mutation};

use crate::event::{DecodeError, EVENT_SIZE_LIMIT, array};

/// Bytes before the payload.
pub(crate) const FRAME_HEADER_SIZE: usize = 28;
/// Larger payloads are never written and are damage on read.
pub(crate) const FRAME_PAYLOAD_SIZE_MAX: usize = EVENT_SIZE_LIMIT + 64;

const _: () = assert!(FRAME_PAYLOAD_SIZE_MAX <= u32::MAX as usize);

/// Field name, offset, size: the same table as FORMAT.md, for the test that compares them.
#[cfg(test)]
pub(crate) const FRAME_LAYOUT: [(&str, usize, usize); 6] = [
    ("crc", 0, 4),
    ("length", 4, 4),
    ("kind", 8, 1),
    ("zero", 9, 3),
    ("number", 12, 8),
    ("durable", 20, 8),
];

/// One record of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// What the payload is; each log has kinds of its own. Never 0.
    pub(crate) kind: u8,
    /// Counts the records of the log.
    pub(crate) number: u64,
    /// Records below this number were on disk when this one was written.
    pub(crate) durable: u64,
    /// The record.
    pub(crate) payload: Bytes,
}

/// Begins a frame at the end of `out` and tells where; the payload is appended next, then [`finish_frame`].
pub(crate) fn begin_frame(kind: u8, number: u64, durable: u64, out: &mut Vec<u8>) -> usize {
    assert!(kind != 0, "zeroed space must never look like a frame");
    assert!(durable <= number);
    let start = out.len();
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&[kind, 0, 0, 0]);
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&durable.to_le_bytes());
    assert_eq!(out.len() - start, FRAME_HEADER_SIZE);
    start
}

/// Ends the frame that began at `start`: everything after its header is its payload.
///
/// # Panics
/// If the payload is over [`FRAME_PAYLOAD_SIZE_MAX`]: input is checked where it comes in.
pub(crate) fn finish_frame(salt: u32, start: usize, out: &mut [u8]) {
    let length = out.len() - start - FRAME_HEADER_SIZE;
    assert!(length <= FRAME_PAYLOAD_SIZE_MAX);
    let length = u32::try_from(length).expect("bounded by FRAME_PAYLOAD_SIZE_MAX");
    out[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
    let crc = crc32c::crc32c_append(salt, &out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
}

/// How many bytes the frame at the start of `bytes` has, header and payload, if its header is to be believed.
///
/// # Errors
/// [`DecodeError::Short`] if the header is not all there, [`DecodeError::Corrupt`] if it cannot be one.
pub(crate) fn frame_size(bytes: &[u8]) -> Result<usize, DecodeError> {
    let header = bytes.first_chunk::<FRAME_HEADER_SIZE>().ok_or(DecodeError::Short)?;
    let length = u32::from_le_bytes(array(header, 4)) as usize;
    if length > FRAME_PAYLOAD_SIZE_MAX {
        return Err(DecodeError::Corrupt("frame length"));
    }
    Ok(FRAME_HEADER_SIZE + length)
}

/// Reads the frame at the start of `bytes` and tells how many bytes it took. The payload shares the buffer.
///
/// # Errors
/// [`DecodeError::Short`] if more bytes might complete it, [`DecodeError::Corrupt`] if no more bytes can.
pub(crate) fn decode_frame(salt: u32, bytes: &Bytes) -> Result<(Frame, usize), DecodeError> {
    let size = frame_size(bytes)?;
    let all = bytes.get(..size).ok_or(DecodeError::Short)?;
    if crc32c::crc32c_append(salt, &all[4..]) != u32::from_le_bytes(array(all, 0))
        && !mutation::is(Mutation::ServeUnchecked)
    {
        return Err(DecodeError::Corrupt("frame checksum"));
    }
    let (kind, number, durable) =
        (all[8], u64::from_le_bytes(array(all, 12)), u64::from_le_bytes(array(all, 20)));
    if kind == 0 || all[9..12] != [0; 3] || durable > number {
        return Err(DecodeError::Corrupt("frame header"));
    }
    Ok((Frame { kind, number, durable, payload: bytes.slice(FRAME_HEADER_SIZE..size) }, size))
}

/// Whether, anywhere in `bytes`, there is a whole frame which tells that record `number` was on disk.
pub(crate) fn proves_durable(salt: u32, number: u64, bytes: &Bytes) -> bool {
    (0..bytes.len().saturating_sub(FRAME_HEADER_SIZE)).any(|at| {
        let header = &bytes[at..at + FRAME_HEADER_SIZE];
        // Cheap tests first: this runs at every byte of a torn tail.
        header[8] != 0
            && header[9..12] == [0; 3]
            && u64::from_le_bytes(array(header, 20)) > number
            && u64::from_le_bytes(array(header, 12)) > number
            && decode_frame(salt, &bytes.slice(at..)).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(salt: u32, kind: u8, number: u64, durable: u64, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let start = begin_frame(kind, number, durable, &mut out);
        out.extend_from_slice(payload);
        finish_frame(salt, start, &mut out);
        out
    }

    proptest! {
        #[test]
        fn roundtrips_and_every_cut_is_short(
            salt: u32, kind in 1..=255u8, number: u64, payload in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let bytes = Bytes::from(encoded(salt, kind, number, number / 2, &payload));
            let (frame, size) = decode_frame(salt, &bytes).unwrap();
            prop_assert_eq!(size, bytes.len());
            prop_assert_eq!((frame.kind, frame.number, frame.durable), (kind, number, number / 2));
            prop_assert_eq!(&frame.payload[..], &payload[..]);
            for cut in 0..bytes.len() {
                prop_assert_eq!(decode_frame(salt, &bytes.slice(..cut)), Err(DecodeError::Short));
            }
            prop_assert!(decode_frame(salt ^ 1, &bytes).is_err(), "another salt");
        }

        #[test]
        fn every_flip_is_noticed(payload in prop::collection::vec(any::<u8>(), 0..64), at: prop::sample::Index, bit in 0..8u32) {
            let mut bytes = encoded(5, 1, 9, 3, &payload);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(decode_frame(5, &Bytes::from(bytes)).is_err());
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let bytes = Bytes::from(bytes);
            prop_assert!(decode_frame(0, &bytes).is_err());
            prop_assert!(!proves_durable(0, 0, &bytes));
        }
    }

    #[test]
    fn a_later_frame_proves_an_earlier_record_durable() {
        let mut bytes = vec![0xff; 77];
        bytes.extend_from_slice(&encoded(5, 1, 12, 11, b"payload"));
        bytes.extend_from_slice(&[0; 9]);
        let bytes = Bytes::from(bytes);
        assert!(proves_durable(5, 10, &bytes));
        assert!(!proves_durable(5, 11, &bytes), "11 was not yet durable");
        assert!(!proves_durable(6, 10, &bytes), "a client cannot guess the salt");
    }
}
