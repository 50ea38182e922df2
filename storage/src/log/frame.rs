//! The frame: a checksummed batch of numbered records of a log. See FORMAT.md, "Frame".
//!
//! Invariants:
//!
//! - Nothing of a frame is believed before its checksum has been checked; its lengths are bounded before they are used.
//! - The checksum starts from the salt of the segment, which no client knows: bytes that a client chose, and bytes
//!   that an earlier use of the file left, are never taken for a frame.
//! - `durable` tells what was on disk when the frame was written. It is how a reader tells a torn tail, which was
//!   never promised to anyone, from damage.
//! - Records are compressed together, if that makes them smaller.
//!
//! This file does no IO.

use bytes::Bytes;
use starling_clock::mutation::{self, Mutation};

use crate::event::{DecodeError, EVENT_SIZE_LIMIT, array, put_array};
use crate::{lz4, varint};

/// Bytes before the payload.
pub(crate) const FRAME_HEADER_SIZE: usize = 24;
/// A frame is ended once its records have so many bytes.
pub(crate) const FRAME_RECORDS_TARGET: usize = 32 << 10;
/// More bytes of records are never written and are damage on read.
pub(crate) const FRAME_RECORDS_SIZE_MAX: usize = 4 * FRAME_RECORDS_TARGET + EVENT_SIZE_LIMIT;
/// Bytes before the compressed records: how long they are without.
const RAW_LENGTH_SIZE: usize = 4;

const _: () = assert!(FRAME_RECORDS_SIZE_MAX < (u32::MAX / 2) as usize);

/// What is done with the records. DO NOT CHANGE or reuse a number: they are on disk.
const COMPRESSION_NONE: u8 = 1;
const COMPRESSION_LZ4: u8 = 2;

/// Field name, offset, size: the same table as FORMAT.md, for the test that compares them.
#[cfg(test)]
pub(crate) const FRAME_LAYOUT: [(&str, usize, usize); 7] = [
    ("crc", 0, 4),
    ("length", 4, 4),
    ("number", 8, 8),
    ("lag", 16, 4),
    ("records", 20, 2),
    ("compression", 22, 1),
    ("zero", 23, 1),
];

/// A batch of records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// The first record's number; they follow each other.
    pub(crate) number: u64,
    /// How many there are, at least one.
    pub(crate) count: u16,
    /// Records below this number were on disk when this frame was written.
    pub(crate) durable: u64,
    /// The records, each with its length before it.
    pub(crate) records: Bytes,
}

/// A [`Frame`] in the buffer that it was read into.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameRef<'a> {
    pub(crate) number: u64,
    pub(crate) count: u16,
    pub(crate) durable: u64,
    pub(crate) records: &'a [u8],
}

/// One record of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) number: u64,
    pub(crate) payload: Bytes,
}

impl Frame {
    /// The number after the last record's.
    pub(crate) fn next(&self) -> u64 {
        self.number + u64::from(self.count)
    }

    /// The records. They share the frame's buffer.
    ///
    /// # Errors
    /// [`DecodeError::Corrupt`] if they are not what the header says: whoever wrote them was wrong.
    pub(crate) fn records(&self) -> impl Iterator<Item = Result<Record, DecodeError>> + '_ {
        let (number, count, durable) = (self.number, self.count, self.durable);
        let frame = FrameRef { number, count, durable, records: &self.records };
        frame.records().map(|record| {
            let (number, payload) = record?;
            Ok(Record { number, payload: self.records.slice_ref(payload) })
        })
    }
}

impl<'a> FrameRef<'a> {
    /// The number after the last record's.
    pub(crate) fn next(&self) -> u64 {
        self.number + u64::from(self.count)
    }

    /// Numbers and payloads of the records. Errors as [`Frame::records`].
    pub(crate) fn records(&self) -> Records<'a> {
        Records { bytes: self.records, offset: 0, number: self.number, next: self.next() }
    }

    /// A copy that lasts.
    pub(crate) fn to_frame(self) -> Frame {
        let records = Bytes::copy_from_slice(self.records);
        Frame { number: self.number, count: self.count, durable: self.durable, records }
    }
}

/// Walks the records of a frame.
pub(crate) struct Records<'a> {
    bytes: &'a [u8],
    offset: usize,
    number: u64,
    next: u64,
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<(u64, &'a [u8]), DecodeError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let ended = self.number == self.next;
        if ended && self.offset == self.bytes.len() {
            return None;
        }
        let span = record_span(self.bytes, self.offset).ok().filter(|_| !ended);
        let Some(payload) = span.and_then(|(start, end)| self.bytes.get(start..end)) else {
            (self.offset, self.number) = (self.bytes.len(), self.next);
            return Some(Err(DecodeError::Corrupt("records of the frame")));
        };
        let number = self.number;
        (self.offset, self.number) = (span.map_or(0, |(_, end)| end), number + 1);
        Some(Ok((number, payload)))
    }
}

/// Where the record whose length stands at `offset` starts and ends.
#[inline]
pub(crate) fn record_span(records: &[u8], offset: usize) -> Result<(usize, usize), DecodeError> {
    let (length, size) = varint::get(records.get(offset..).ok_or(DecodeError::Short)?)?;
    let length = usize::try_from(length).map_err(|_| DecodeError::Corrupt("record length"))?;
    let start = offset + size;
    Ok((start, start.saturating_add(length)))
}

/// Which frames a writer writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameHead {
    pub(crate) salt: u32,
    /// The first record's number.
    pub(crate) number: u64,
    /// How many records.
    pub(crate) count: u64,
    /// Records below this are on disk.
    pub(crate) durable: u64,
}

/// Appends the frame of `records`, each of which has its length before it. They are compressed if they have at least
/// `compress_from` bytes and get smaller.
///
/// # Panics
/// If there are no records or too many: input is checked where it comes in.
pub(crate) fn encode_frame(
    head: FrameHead,
    records: &[u8],
    compress_from: usize,
    out: &mut Vec<u8>,
) {
    assert!(head.durable <= head.number);
    assert!(records.len() <= FRAME_RECORDS_SIZE_MAX);
    let count = u16::try_from(head.count).expect("a frame is ended long before");
    assert!(count > 0);
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_HEADER_SIZE]);
    let payload = start + FRAME_HEADER_SIZE;
    let compressed = compress_from <= records.len() && compress(records, out);
    if !compressed {
        out.truncate(payload);
        out.extend_from_slice(records);
    }
    let length = u32::try_from(out.len() - payload).expect("bounded by FRAME_RECORDS_SIZE_MAX");
    // A lag that does not fit says that nothing is known.
    let lag = u32::try_from(head.number - head.durable).unwrap_or(u32::MAX);
    let header = &mut out[start..payload];
    put_array(header, 4, length.to_le_bytes());
    put_array(header, 8, head.number.to_le_bytes());
    put_array(header, 16, lag.to_le_bytes());
    put_array(header, 20, count.to_le_bytes());
    header[22] = if compressed { COMPRESSION_LZ4 } else { COMPRESSION_NONE };
    let crc = crc32c::crc32c_append(head.salt, &out[start + 4..]);
    put_array(out, start, crc.to_le_bytes());
}

/// Appends the length of `records` and what lz4 makes of them; `false` if that saves less than an eighth.
fn compress(records: &[u8], out: &mut Vec<u8>) -> bool {
    let raw = u32::try_from(records.len()).expect("bounded by FRAME_RECORDS_SIZE_MAX");
    out.extend_from_slice(&raw.to_le_bytes());
    let start = out.len();
    lz4::compress(records, out);
    out.len() - start + records.len() / 8 <= records.len()
}

/// What a header says, before the checksum is checked.
pub(super) struct Header {
    pub(super) length: usize,
    pub(super) number: u64,
    lag: u32,
    count: u16,
    compression: u8,
}

pub(super) fn decode_header(bytes: &[u8]) -> Result<Header, DecodeError> {
    let header = bytes.first_chunk::<FRAME_HEADER_SIZE>().ok_or(DecodeError::Short)?;
    let header = Header {
        length: u32::from_le_bytes(array(header, 4)) as usize,
        number: u64::from_le_bytes(array(header, 8)),
        lag: u32::from_le_bytes(array(header, 16)),
        count: u16::from_le_bytes(array(header, 20)),
        compression: match header[22..] {
            [compression @ (COMPRESSION_NONE | COMPRESSION_LZ4), 0] => compression,
            _ => return Err(DecodeError::Corrupt("frame header")),
        },
    };
    let fits = header.lag == u32::MAX || u64::from(header.lag) <= header.number;
    if header.count == 0 || !fits || header.number.checked_add(u64::from(header.count)).is_none() {
        return Err(DecodeError::Corrupt("frame header"));
    }
    if header.length > FRAME_RECORDS_SIZE_MAX {
        return Err(DecodeError::Corrupt("frame length"));
    }
    Ok(header)
}

/// How many bytes the frame at the start of `bytes` has, header and payload, if its header is to be believed.
///
/// # Errors
/// [`DecodeError::Short`] if the header is not all there, [`DecodeError::Corrupt`] if it cannot be one.
pub(crate) fn frame_size(bytes: &[u8]) -> Result<usize, DecodeError> {
    Ok(FRAME_HEADER_SIZE + decode_header(bytes)?.length)
}

/// Whether the frame at the start of `bytes` is all there, if it is one. Cheaper than [`frame_size`].
pub(super) fn is_whole(bytes: &[u8]) -> bool {
    bytes
        .len()
        .checked_sub(FRAME_HEADER_SIZE)
        .is_some_and(|payload| u32::from_le_bytes(array(bytes, 4)) as usize <= payload)
}

/// Reads the frame at the start of `bytes`, which gets a buffer of its own, and tells how many bytes it took.
///
/// # Errors
/// As [`decode_frame_in`].
pub(crate) fn decode_frame(salt: u32, bytes: &[u8]) -> Result<(Frame, usize), DecodeError> {
    let mut inflated = Vec::new();
    let (frame, size) = decode_frame_in(salt, bytes, &mut inflated)?;
    Ok((frame.to_frame(), size))
}

/// Reads the frame at the start of `bytes` and tells how many bytes it took. Records that are compressed are put into
/// `inflated`.
///
/// # Errors
/// [`DecodeError::Short`] if more bytes might complete it, [`DecodeError::Corrupt`] if no more bytes can.
pub(crate) fn decode_frame_in<'a>(
    salt: u32,
    bytes: &'a [u8],
    inflated: &'a mut Vec<u8>,
) -> Result<(FrameRef<'a>, usize), DecodeError> {
    let header = decode_header(bytes)?;
    let size = FRAME_HEADER_SIZE + header.length;
    let all = bytes.get(..size).ok_or(DecodeError::Short)?;
    if crc32c::crc32c_append(salt, &all[4..]) != u32::from_le_bytes(array(all, 0))
        && !mutation::is(Mutation::ServeUnchecked)
    {
        return Err(DecodeError::Corrupt("frame checksum"));
    }
    let records = match header.compression {
        COMPRESSION_LZ4 => {
            decompress(&all[FRAME_HEADER_SIZE..], inflated)?;
            &inflated[..]
        }
        _ => &all[FRAME_HEADER_SIZE..],
    };
    let durable = if header.lag == u32::MAX { 0 } else { header.number - u64::from(header.lag) };
    Ok((FrameRef { number: header.number, count: header.count, durable, records }, size))
}

fn decompress(payload: &[u8], records: &mut Vec<u8>) -> Result<(), DecodeError> {
    let (raw, compressed) = payload
        .split_first_chunk::<RAW_LENGTH_SIZE>()
        .ok_or(DecodeError::Corrupt("frame length"))?;
    let raw = u32::from_le_bytes(*raw) as usize;
    if raw > FRAME_RECORDS_SIZE_MAX {
        return Err(DecodeError::Corrupt("frame length"));
    }
    records.resize(raw, 0);
    if lz4::decompress(compressed, records) {
        Ok(())
    } else {
        Err(DecodeError::Corrupt("compressed records"))
    }
}

/// Where, in `bytes`, a frame may begin which tells that record `number` was on disk, from `from` on. Cheap: it runs at
/// every byte of a tail, and what it finds is to be checked.
pub(crate) fn find_proof(number: u64, bytes: &[u8], from: usize) -> Option<usize> {
    (from..bytes.len().saturating_sub(FRAME_HEADER_SIZE - 1)).find(|&at| {
        bytes[at + 22] != 0
            && decode_header(&bytes[at..]).is_ok_and(|header| {
                header.lag != u32::MAX && header.number - u64::from(header.lag) > number
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn batch(records: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Vec::new();
        for record in records {
            varint::put(record.len() as u64, &mut out);
            out.extend_from_slice(record);
        }
        out
    }

    fn encoded(
        salt: u32,
        number: u64,
        durable: u64,
        records: &[Vec<u8>],
        compress_from: usize,
    ) -> Vec<u8> {
        let mut out = Vec::new();
        let head = FrameHead { salt, number, count: records.len() as u64, durable };
        encode_frame(head, &batch(records), compress_from, &mut out);
        out
    }

    fn read(frame: &Frame) -> Vec<Vec<u8>> {
        let records: Result<Vec<_>, _> = frame.records().collect();
        let records = records.unwrap();
        for (index, record) in records.iter().enumerate() {
            assert_eq!(record.number, frame.number + index as u64);
        }
        records.into_iter().map(|record| record.payload.to_vec()).collect()
    }

    fn any_records() -> impl Strategy<Value = Vec<Vec<u8>>> {
        // Some of them compress.
        let record = (any::<u8>(), prop::collection::vec(any::<u8>(), 0..40), 0..200_usize);
        let record = record.prop_map(|(byte, head, repeated)| {
            head.into_iter().chain(std::iter::repeat_n(byte, repeated)).collect()
        });
        prop::collection::vec(record, 1..12)
    }

    proptest! {
        #[test]
        fn roundtrips_and_every_cut_is_short(
            salt: u32, number in 0..u64::MAX / 2, compress_from in 0..600_usize, records in any_records(),
        ) {
            let bytes = Bytes::from(encoded(salt, number, number / 2, &records, compress_from));
            let (frame, size) = decode_frame(salt, &bytes).unwrap();
            prop_assert_eq!(size, bytes.len());
            prop_assert_eq!((frame.number, frame.next()), (number, number + records.len() as u64));
            let known = number - number / 2 < u64::from(u32::MAX);
            prop_assert_eq!(frame.durable, if known { number / 2 } else { 0 });
            prop_assert_eq!(read(&frame), records);
            for cut in 0..bytes.len() {
                prop_assert_eq!(decode_frame(salt, &bytes.slice(..cut)), Err(DecodeError::Short));
            }
            prop_assert!(decode_frame(salt ^ 1, &bytes).is_err(), "another salt");
        }

        #[test]
        fn every_flip_is_noticed(records in any_records(), at: prop::sample::Index, bit in 0..8u32) {
            let mut bytes = encoded(5, 9, 3, &records, 100);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(decode_frame(5, &Bytes::from(bytes)).is_err());
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let frame = Frame { number: 7, count: 3, durable: 0, records: Bytes::from(bytes.clone()) };
            prop_assert!(frame.records().count() <= 4, "it ends");
            let mut records = Vec::new();
            prop_assert!(decompress(&bytes, &mut records).is_err() || records.len() < 30_000);
            prop_assert!(decode_frame(0, &bytes).is_err());
        }
    }

    #[test]
    fn what_compresses_is_compressed_and_what_does_not_is_not() {
        let same = vec![vec![7; 1000]; 20];
        assert!(encoded(1, 1, 1, &same, 0).len() < 500);
        assert!(encoded(1, 1, 1, &same, 1 << 20).len() > 20_000);
        let noise: Vec<u8> =
            (0..1000_u32).flat_map(|n| crc32c::crc32c(&n.to_le_bytes()).to_le_bytes()).collect();
        let bytes = encoded(1, 1, 1, std::slice::from_ref(&noise), 0);
        assert_eq!(bytes.len(), FRAME_HEADER_SIZE + 2 + noise.len());
    }

    #[test]
    fn a_frame_whose_records_are_not_what_its_header_says_is_refused() {
        let records = batch(&[vec![1; 3], vec![2; 3]]);
        for (count, cut) in [(1, 8), (3, 8), (2, 7), (2, 5), (2, 4)] {
            let frame = Frame {
                number: 1,
                count,
                durable: 0,
                records: Bytes::copy_from_slice(&records[..cut]),
            };
            assert!(
                frame.records().any(|record| record.is_err()),
                "{count} records in {cut} bytes"
            );
        }
    }

    #[test]
    fn a_later_frame_proves_an_earlier_record_durable() {
        let mut bytes = vec![0xff; 77];
        bytes.extend_from_slice(&encoded(5, 12, 11, &[vec![1; 9]], 100));
        bytes.extend_from_slice(&[0; 90]);
        let bytes = Bytes::from(bytes);
        let proofs = |salt, number| {
            let found = (0..bytes.len()).filter(|&at| find_proof(number, &bytes, at) == Some(at));
            found.filter(|&at| decode_frame(salt, &bytes.slice(at..)).is_ok()).collect::<Vec<_>>()
        };
        assert_eq!(proofs(5, 10), [77]);
        assert_eq!(proofs(5, 11), [0; 0], "11 was not yet durable");
        assert_eq!(proofs(6, 10), [0; 0], "a client cannot guess the salt");
    }
}
