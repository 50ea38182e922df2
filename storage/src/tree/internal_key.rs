//! The internal key: the one order in which events lie in the memtable and in tables.
//!
//! Invariants:
//!
//! - Byte order of internal keys is the order (partition, keyspace, key, stamp descending), so that a partition
//!   is one range, a keyspace in it is one range, and the newest version of a key comes first.
//! - The part before the stamp is free of prefixes: no key's versions lie between those of another.
//! - Equal events have equal internal keys, and only those: the internal key is the event's identity.
//!
//! A key's byte 0x00 is written 0x00 0xFF and the key ends in 0x00 0x01 (the ordered encoding of `FoundationDB`'s
//! tuple layer). This file does no IO. See `FORMAT.md`, "Internal key".

use std::borrow::Cow;

use starling_clock::Stamp;

use super::words;
use crate::event::{EventId, KEY_SIZE_MAX, KeyspaceId, put_array};

/// Bytes before the escaped key: partition and keyspace.
pub(crate) const HEAD_SIZE: usize = 4 + 8;
/// The longest internal key: each byte of the key escaped, the end of the key, the stamp.
pub(crate) const INTERNAL_KEY_SIZE_MAX: usize = HEAD_SIZE + 2 * KEY_SIZE_MAX + 2 + Stamp::SIZE;
/// The shortest internal key, that of an empty key.
pub(crate) const INTERNAL_KEY_SIZE_MIN: usize = HEAD_SIZE + 2 + Stamp::SIZE;

/// The longest [`SearchKey`] without memory from the heap.
const SHORT_SIZE: usize = 128;

const ESCAPE: u8 = 0x00;
const ESCAPED_ZERO: u8 = 0xff;
const END: u8 = 0x01;

/// What a well-formed internal key says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Parts<'a> {
    pub(crate) partition: u32,
    pub(crate) keyspace: KeyspaceId,
    /// Borrowed where nothing was escaped.
    pub(crate) key: Cow<'a, [u8]>,
    pub(crate) stamp: Stamp,
}

/// The internal key of the event (`keyspace`, `key`, `stamp`) in `partition`.
pub(crate) fn encode(partition: u32, keyspace: KeyspaceId, key: &[u8], stamp: Stamp) -> Vec<u8> {
    let mut out = prefix(partition, keyspace, key);
    out.extend_from_slice(&inverted(stamp));
    out
}

/// Appends the internal key: [`encode`] without an allocation.
pub(crate) fn append(
    out: &mut Vec<u8>,
    partition: u32,
    keyspace: KeyspaceId,
    key: &[u8],
    stamp: Stamp,
) {
    out.reserve(HEAD_SIZE + key.len() + 2 + Stamp::SIZE);
    append_keys_from(out, partition, keyspace, key);
    out.extend_from_slice(&[ESCAPE, END]);
    out.extend_from_slice(&inverted(stamp));
}

/// An internal key to search for. A short one takes no memory from the heap: a point read asks for little else.
pub(crate) struct SearchKey {
    short: [u8; SHORT_SIZE],
    /// Empty if it is short.
    long: Vec<u8>,
    size: usize,
}

impl SearchKey {
    /// The newest version of the key that all versions begin with `prefix` of.
    pub(crate) fn newest_of(prefix: &[u8]) -> Self {
        let mut short = [0; SHORT_SIZE];
        let size = prefix.len() + Stamp::SIZE;
        let Some(place) = short.get_mut(..size) else {
            return Self { short, size, long: seek_version(prefix, Stamp::MAX) };
        };
        let (before, stamp) = place.split_at_mut(prefix.len());
        before.copy_from_slice(prefix);
        stamp.copy_from_slice(&inverted(Stamp::MAX));
        Self { short, long: Vec::new(), size }
    }

    /// As [`encode`].
    pub(crate) fn new(partition: u32, keyspace: KeyspaceId, key: &[u8], stamp: Stamp) -> Self {
        let mut short = [0; SHORT_SIZE];
        let size = HEAD_SIZE + key.len() + 2 + Stamp::SIZE;
        if SHORT_SIZE < size || has_escape(key) {
            let long = encode(partition, keyspace, key, stamp);
            return Self { short, size: long.len(), long };
        }
        let (head, rest) = short.split_at_mut(HEAD_SIZE);
        head[..4].copy_from_slice(&partition.to_be_bytes());
        head[4..].copy_from_slice(&keyspace.0.to_be_bytes());
        rest[..key.len()].copy_from_slice(key);
        rest[key.len()..][..2].copy_from_slice(&[ESCAPE, END]);
        rest[key.len() + 2..][..Stamp::SIZE].copy_from_slice(&inverted(stamp));
        Self { short, long: Vec::new(), size }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        if self.long.is_empty() { &self.short[..self.size] } else { &self.long }
    }
}

/// What all versions of a key begin with, and no version of another key does.
pub(crate) fn prefix(partition: u32, keyspace: KeyspaceId, key: &[u8]) -> Vec<u8> {
    let mut out = keys_from(partition, keyspace, key);
    out.extend_from_slice(&[ESCAPE, END]);
    out
}

/// What the internal keys of all keys that begin with `key_prefix` begin with.
pub(crate) fn keys_from(partition: u32, keyspace: KeyspaceId, key_prefix: &[u8]) -> Vec<u8> {
    let size = HEAD_SIZE + key_prefix.len() + 2 + Stamp::SIZE;
    let mut out = Vec::with_capacity(size);
    append_keys_from(&mut out, partition, keyspace, key_prefix);
    out
}

fn append_keys_from(out: &mut Vec<u8>, partition: u32, keyspace: KeyspaceId, key_prefix: &[u8]) {
    let mut head = [0; HEAD_SIZE];
    put_array(&mut head, 0, partition.to_be_bytes());
    put_array(&mut head, 4, keyspace.0.to_be_bytes());
    out.extend_from_slice(&head);
    if !has_escape(key_prefix) {
        out.extend_from_slice(key_prefix);
        return;
    }
    for &byte in key_prefix {
        out.push(byte);
        if byte == ESCAPE {
            out.push(ESCAPED_ZERO);
        }
    }
}

/// The first internal key of a key's versions that is not newer than `stamp`.
pub(crate) fn seek_version(prefix: &[u8], stamp: Stamp) -> Vec<u8> {
    let mut out = Vec::with_capacity(prefix.len() + Stamp::SIZE);
    out.extend_from_slice(prefix);
    out.extend_from_slice(&inverted(stamp));
    out
}

/// Above every internal key that begins with `prefix`, and not above any other that is greater than those;
/// `None` if there is no such bound (a prefix of 0xFF only).
pub(crate) fn past(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte != 0xff)?;
    let mut out = prefix[..=last].to_vec();
    out[last] += 1;
    Some(out)
}

/// Just above every version of the key that `prefix` is of.
///
/// # Panics
/// If it is not the part of an internal key before its stamp.
pub(crate) fn past_key(prefix: &[u8]) -> Vec<u8> {
    past(prefix).expect("a prefix of a key ends in 0x01")
}

/// The part before the stamp.
///
/// # Panics
/// If `internal` is shorter than any internal key: what comes from a file is checked with [`decode`] first.
pub(crate) fn prefix_of(internal: &[u8]) -> &[u8] {
    assert!(INTERNAL_KEY_SIZE_MIN <= internal.len());
    &internal[..internal.len() - Stamp::SIZE]
}

/// Whether the key is the one that `prefix`, the part of an internal key before its stamp, is of.
#[inline]
pub(crate) fn is_version(internal: &[u8], prefix: &[u8]) -> bool {
    // No key's versions begin with the prefix of another one.
    internal.len() == prefix.len() + Stamp::SIZE && words::equal(&internal[..prefix.len()], prefix)
}

/// The key that `prefix`, the part of an internal key before its stamp, is of; `None` if it is not that.
pub(crate) fn key_of(prefix: &[u8]) -> Option<Vec<u8>> {
    let escaped = prefix.get(HEAD_SIZE..)?.strip_suffix(&[ESCAPE, END])?;
    unescape(escaped).map(Cow::into_owned)
}

/// The part before the stamp less the partition: what the Bloom filter is asked.
pub(crate) fn filter_part(prefix: &[u8]) -> &[u8] {
    &prefix[size_of::<u32>()..]
}

/// The partition, `None` if `internal` is too short to have one.
pub(crate) fn partition_of(internal: &[u8]) -> Option<u32> {
    internal.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// The stamp; `None` if `internal` is too short to have one, or it is out of range.
#[inline]
pub(crate) fn stamp_of(internal: &[u8]) -> Option<Stamp> {
    Stamp::from_bits(!u128::from_be_bytes(*internal.last_chunk()?))
}

/// [`crate::EventId::hash`] of the event.
///
/// # Panics
/// If `internal` is no internal key.
pub(crate) fn id_hash(internal: &[u8]) -> u64 {
    let parts = decode(internal).expect("an internal key");
    EventId { keyspace: parts.keyspace, key: &parts.key, stamp: parts.stamp }.hash()
}

/// Takes an internal key apart; `None` if it is not one.
#[inline]
pub(crate) fn decode(internal: &[u8]) -> Option<Parts<'_>> {
    if internal.len() < INTERNAL_KEY_SIZE_MIN || INTERNAL_KEY_SIZE_MAX < internal.len() {
        return None;
    }
    let (partition, rest) = internal.split_first_chunk()?;
    let (keyspace, rest) = rest.split_first_chunk()?;
    let (escaped, _) = rest.split_last_chunk::<{ Stamp::SIZE }>()?;
    Some(Parts {
        partition: u32::from_be_bytes(*partition),
        keyspace: KeyspaceId(u64::from_be_bytes(*keyspace)),
        key: unescape(escaped.strip_suffix(&[ESCAPE, END])?)?,
        stamp: stamp_of(internal)?,
    })
}

/// Whether a byte of the key is written as two, or was.
#[inline]
fn has_escape(key: &[u8]) -> bool {
    const { assert!(ESCAPE == 0) };
    words::has_zero(key)
}

fn unescape(escaped: &[u8]) -> Option<Cow<'_, [u8]>> {
    if !has_escape(escaped) {
        return Some(Cow::Borrowed(escaped));
    }
    let mut key = Vec::with_capacity(escaped.len());
    let mut bytes = escaped.iter();
    while let Some(&byte) = bytes.next() {
        key.push(byte);
        if byte == ESCAPE && bytes.next() != Some(&ESCAPED_ZERO) {
            return None;
        }
    }
    Some(Cow::Owned(key))
}

/// A stamp as internal keys end in it: newer ones are lesser.
pub(crate) fn inverted(stamp: Stamp) -> [u8; Stamp::SIZE] {
    (!stamp.to_bits()).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;

    use proptest::prelude::*;
    use starling_clock::{HybridTime, NodeId};

    use super::*;

    type Identity = (u32, u64, Vec<u8>, Reverse<Stamp>);

    /// Few distinct bytes, so that keys share prefixes and have zeros, 0x01 and 0xFF at their edges.
    fn identity() -> impl Strategy<Value = Identity> {
        let byte = prop::sample::select(vec![0_u8, 1, 2, 0xfe, 0xff]);
        let number = prop::sample::select(vec![0_u64, 1, 255, 256, 1 << 40]);
        let stamp = (number.clone(), number.clone()).prop_map(|(time, node)| {
            Stamp::new(HybridTime::from_packed(time).expect("below 2^63"), NodeId(node))
        });
        let key = prop::collection::vec(byte, 0..6);
        (prop::sample::select(vec![0_u32, 1, 255, 256]), number, key, stamp.prop_map(Reverse))
    }

    fn encoded(identity: &Identity) -> Vec<u8> {
        encode(identity.0, KeyspaceId(identity.1), &identity.2, identity.3.0)
    }

    proptest! {
        #[test]
        fn byte_order_is_event_order(left in identity(), right in identity()) {
            prop_assert_eq!(encoded(&left).cmp(&encoded(&right)), left.cmp(&right));
        }

        #[test]
        fn roundtrips(identity in identity()) {
            let bytes = encoded(&identity);
            let parts = decode(&bytes).expect("just encoded");
            let again = (parts.partition, parts.keyspace.0, parts.key.to_vec(), Reverse(parts.stamp));
            prop_assert_eq!(again, identity);
        }

        #[test]
        fn a_search_key_is_the_internal_key(
            identity in identity(), key in prop::collection::vec(any::<u8>(), 0..200), zeros: bool,
        ) {
            let key = key.into_iter().filter(|byte| zeros || *byte != 0).collect();
            for identity in [(identity.0, identity.1, key, identity.3), identity] {
                let (partition, keyspace, key, Reverse(stamp)) = &identity;
                let search = SearchKey::new(*partition, KeyspaceId(*keyspace), key, *stamp);
                prop_assert_eq!(search.as_bytes(), encoded(&identity));
            }
        }

        #[test]
        fn prefixes_enclose_their_keys(left in identity(), right in identity()) {
            let bytes = encoded(&left);
            let prefix = keys_from(right.0, KeyspaceId(right.1), &right.2);
            let inside = (left.0, left.1) == (right.0, right.1) && left.2.starts_with(&right.2);
            prop_assert_eq!(bytes.starts_with(&prefix), inside);
            let past = past(&prefix);
            let between = prefix <= bytes && past.is_none_or(|past| bytes < past);
            prop_assert_eq!(between, inside);
        }

        #[test]
        fn garbage_is_refused_or_decoded(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Some(parts) = decode(&bytes) {
                let again = encode(parts.partition, parts.keyspace, &parts.key, parts.stamp);
                prop_assert_eq!(again, bytes);
            }
        }
    }
}
