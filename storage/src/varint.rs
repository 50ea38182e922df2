//! Numbers of variable length in the records of the logs: seven bits a byte, least significant first, the high bit
//! set if more follow (as in Protocol Buffers).
//!
//! Invariants:
//!
//! - A number has one encoding: a last byte of zero is refused, but for the number 0 itself.

use std::ops::Range;

use crate::event::DecodeError;

/// Bytes of the longest number.
pub(crate) const VARINT_SIZE_MAX: usize = 10;

/// Appends a number.
pub(crate) fn put(number: u64, out: &mut Vec<u8>) {
    if number < 0x80 {
        out.push(number.to_le_bytes()[0]);
        return;
    }
    let (bytes, size) = encode_number(number);
    out.extend_from_slice(&bytes[..size]);
}

/// Writes a number to the start of `out`, and tells how many bytes it took.
///
/// # Panics
/// If there is no room for it.
pub(crate) fn put_in(number: u64, out: &mut [u8]) -> usize {
    if number < 0x80 {
        out[0] = number.to_le_bytes()[0];
        return 1;
    }
    let (bytes, size) = encode_number(number);
    out[..size].copy_from_slice(&bytes[..size]);
    size
}

/// Appends what `encode` appends, with its length before it, and tells where it is.
pub(crate) fn put_prefixed(out: &mut Vec<u8>, encode: impl FnOnce(&mut Vec<u8>)) -> Range<usize> {
    /// The usual size of the length: room is left for it.
    const USUAL: usize = 2;
    let start = out.len();
    out.extend_from_slice(&[0; USUAL]);
    encode(out);
    let end = out.len();
    let length = end - start - USUAL;
    let (prefix, size) = encode_number(length as u64);
    if size != USUAL {
        out.resize(out.len().max(start + size + length), 0);
        out.copy_within(start + USUAL..end, start + size);
        out.truncate(start + size + length);
    }
    out[start..start + size].copy_from_slice(&prefix[..size]);
    start + size..start + size + length
}

fn encode_number(mut number: u64) -> ([u8; VARINT_SIZE_MAX], usize) {
    let (mut bytes, mut size) = ([0; VARINT_SIZE_MAX], 0);
    while number >= 0x80 {
        bytes[size] = number.to_le_bytes()[0] | 0x80;
        number >>= 7;
        size += 1;
    }
    bytes[size] = number.to_le_bytes()[0];
    (bytes, size + 1)
}

/// The number at the start of `bytes`, and how many bytes it took.
///
/// # Errors
/// [`DecodeError::Short`] if more bytes might complete it, [`DecodeError::Corrupt`] if no more bytes can.
#[inline]
pub(crate) fn get(bytes: &[u8]) -> Result<(u64, usize), DecodeError> {
    // Most are short: of one byte or two.
    match *bytes {
        [first, ..] if first < 0x80 => Ok((u64::from(first), 1)),
        [first, second, ..] if 0 < second && second < 0x80 => {
            Ok((u64::from(first & 0x7f) | u64::from(second) << 7, 2))
        }
        _ => get_long(bytes),
    }
}

fn get_long(bytes: &[u8]) -> Result<(u64, usize), DecodeError> {
    let mut number = 0;
    for (index, &byte) in bytes.iter().take(VARINT_SIZE_MAX).enumerate() {
        let bits = u64::from(byte & 0x7f);
        if index == VARINT_SIZE_MAX - 1 && bits > 1 {
            return Err(DecodeError::Corrupt("number"));
        }
        number |= bits << (7 * index);
        if byte < 0x80 {
            let padded = byte == 0 && index > 0;
            return if padded {
                Err(DecodeError::Corrupt("number"))
            } else {
                Ok((number, index + 1))
            };
        }
    }
    let short = bytes.len() < VARINT_SIZE_MAX;
    Err(if short { DecodeError::Short } else { DecodeError::Corrupt("number") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn roundtrips_and_every_cut_is_short(bits in 0..=64_u32, any: u64, tail: u8) {
            let number = any.checked_shr(64 - bits).unwrap_or(0);
            let mut bytes = Vec::new();
            put(number, &mut bytes);
            let size = bytes.len();
            prop_assert!(size <= VARINT_SIZE_MAX);
            for cut in 0..size {
                prop_assert_eq!(get(&bytes[..cut]), Err(DecodeError::Short));
            }
            bytes.push(tail);
            prop_assert_eq!(get(&bytes), Ok((number, size)));
        }

        #[test]
        fn what_has_its_length_before_it_is_all_there(before: u8, size in prop_oneof![0..300_usize, 16_300..16_500_usize]) {
            let (mut bytes, body) = (vec![before], vec![7; size]);
            let range = put_prefixed(&mut bytes, |out| out.extend_from_slice(&body));
            prop_assert_eq!(get(&bytes[1..]), Ok((size as u64, range.start - 1)));
            prop_assert_eq!((&bytes[range.clone()], range.end), (&body[..], bytes.len()));
        }

        #[test]
        fn a_number_has_one_encoding(bytes in prop::collection::vec(any::<u8>(), 1..12)) {
            if let Ok((number, size)) = get(&bytes) {
                let mut again = Vec::new();
                put(number, &mut again);
                prop_assert_eq!(&again[..], &bytes[..size]);
            }
        }
    }
}
