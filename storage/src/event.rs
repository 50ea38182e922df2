//! [`Event`]: the one thing that is stored, moved and published. Its encoding is used in the write-ahead
//! log, the change log, the hints and the messages between peers. See FORMAT.md, "Event".
//!
//! Invariants:
//!
//! - The identity of an event is (keyspace, key, stamp): two events with one identity are one event.
//! - Nothing of an encoded event is believed unchecked: lengths are bounded before they are used, unknown
//!   actions and non-zero padding are refused. Checksums are the frame's business, not the event's.
//! - Decoding copies nothing: key and payload share the buffer that they came in.

use bytes::Bytes;
use starling_clock::Stamp;

/// The longest key, in bytes. The shortest is one byte.
pub const KEY_SIZE_MAX: usize = 4096;
/// The longest payload that the format can carry, in bytes. The configured maximum is lower.
pub const PAYLOAD_SIZE_LIMIT: usize = 64 << 20;
/// Bytes of an encoded event before its key.
pub const EVENT_HEADER_SIZE: usize = 52;
/// The longest encoded event, in bytes.
pub const EVENT_SIZE_LIMIT: usize = EVENT_HEADER_SIZE + KEY_SIZE_MAX + PAYLOAD_SIZE_LIMIT;

const _: () = assert!(KEY_SIZE_MAX <= u16::MAX as usize);
const _: () = assert!(EVENT_SIZE_LIMIT <= (u32::MAX / 2) as usize);

/// Field name, offset, size of the fixed part: the same table as FORMAT.md, for the test that compares them.
pub const EVENT_LAYOUT: [(&str, usize, usize); 9] = [
    ("partition", 0, 4),
    ("keyspace", 4, 8),
    ("stamp", 12, 16),
    ("client", 28, 8),
    ("sequence", 36, 8),
    ("action", 44, 1),
    ("zero", 45, 1),
    ("key length", 46, 2),
    ("payload length", 48, 4),
];

/// Which keyspace: the xxh3-64 of its name, so that every node has the same number without asking anyone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyspaceId(pub u64);

impl KeyspaceId {
    /// The number of the keyspace called `name`.
    pub fn of(name: &str) -> Self {
        Self(xxhash_rust::xxh3::xxh3_64(name.as_bytes()))
    }
}

/// What the client called the request; the same on a retry, so that a retry can be told from a new write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId {
    /// The client, drawn at random by it.
    pub client: u64,
    /// The client's own count of its requests.
    pub sequence: u64,
}

/// What an event does to its key. DO NOT CHANGE or reuse a number: they are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Action {
    /// The payload is the key's value from the stamp on.
    Put = 1,
    /// The key has no value from the stamp on: a tombstone.
    Delete = 2,
}

impl Action {
    /// The action with this number on disk.
    pub const fn from_u8(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Put),
            2 => Some(Self::Delete),
            _ => None,
        }
    }
}

/// How an event came to this replica. DO NOT CHANGE or reuse a number: they are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Provenance {
    /// A coordinator sent it as the write itself.
    Write = 1,
    /// A hint holder handed it over.
    Hint = 2,
    /// A read found this replica behind.
    ReadRepair = 3,
    /// A comparison of digests found it missing.
    AntiEntropy = 4,
    /// A range moved here.
    Transfer = 5,
    /// Its time to live ran out.
    Expiry = 6,
}

impl Provenance {
    /// The provenance with this number on disk.
    pub const fn from_u8(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Write),
            2 => Some(Self::Hint),
            3 => Some(Self::ReadRepair),
            4 => Some(Self::AntiEntropy),
            5 => Some(Self::Transfer),
            6 => Some(Self::Expiry),
            _ => None,
        }
    }
}

/// What makes an event itself and no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId<'a> {
    /// The keyspace of the key.
    pub keyspace: KeyspaceId,
    /// The key.
    pub key: &'a [u8],
    /// When and where it was made.
    pub stamp: Stamp,
}

impl EventId<'_> {
    /// xxh3-64 of keyspace (8 bytes, little-endian), key, stamp (16 bytes): the same on every node for ever,
    /// so that digests of replicas can be compared.
    pub fn hash(&self) -> u64 {
        let (keyspace, stamp) = (self.keyspace.0.to_le_bytes(), self.stamp.to_bytes());
        // One piece on the stack is hashed several times faster than three pieces one after the other.
        let mut bytes = [0; 128];
        let (head, size) = (keyspace.len(), keyspace.len() + self.key.len());
        if let Some(piece) = bytes.get_mut(..size + stamp.len()) {
            put_array(piece, 0, keyspace);
            piece[head..size].copy_from_slice(self.key);
            put_array(piece, size, stamp);
            return xxhash_rust::xxh3::xxh3_64(piece);
        }
        let mut hasher = xxhash_rust::xxh3::Xxh3Default::new();
        hasher.update(&keyspace);
        hasher.update(self.key);
        hasher.update(&stamp);
        hasher.digest()
    }
}

/// One mutation of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The ring partition of the key; the ring decides it, storage only sorts by it.
    pub partition: u32,
    /// The keyspace of the key.
    pub keyspace: KeyspaceId,
    /// The key, 1 to [`KEY_SIZE_MAX`] bytes.
    pub key: Bytes,
    /// When and where it was made.
    pub stamp: Stamp,
    /// What the client called the request.
    pub request: RequestId,
    /// Put or delete.
    pub action: Action,
    /// The value, at most [`PAYLOAD_SIZE_LIMIT`] bytes; a delete may carry one too (a reason, say).
    pub payload: Bytes,
}

/// An [`Event`] whose key and payload lie somewhere else: in the buffer that it was read into, or where a scan met it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventRef<'a> {
    /// As in [`Event`], as all the others.
    pub partition: u32,
    /// The keyspace of the key.
    pub keyspace: KeyspaceId,
    /// The key.
    pub key: &'a [u8],
    /// When and where it was made.
    pub stamp: Stamp,
    /// What the client called the request.
    pub request: RequestId,
    /// Put or delete.
    pub action: Action,
    /// The value.
    pub payload: &'a [u8],
}

impl<'a> EventRef<'a> {
    /// What makes it itself.
    pub fn id(&self) -> EventId<'a> {
        EventId { keyspace: self.keyspace, key: self.key, stamp: self.stamp }
    }

    /// A copy.
    pub fn to_event(&self) -> Event {
        self.with(Bytes::copy_from_slice(self.key), Bytes::copy_from_slice(self.payload))
    }

    /// The event, with these as key and payload.
    pub(crate) fn with(&self, key: Bytes, payload: Bytes) -> Event {
        let Self { partition, keyspace, stamp, request, action, .. } = *self;
        Event { partition, keyspace, key, stamp, request, action, payload }
    }

    /// The event, which shares `buffer`.
    ///
    /// # Panics
    /// If it is not in that buffer.
    pub(crate) fn shared(&self, buffer: &Bytes) -> Event {
        self.with(buffer.slice_ref(self.key), buffer.slice_ref(self.payload))
    }
}

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end before the thing does.
    #[error("cut short")]
    Short,
    /// The bytes are all there and are wrong.
    #[error("bad {0}")]
    Corrupt(&'static str),
}

impl Event {
    /// The same, borrowed.
    pub fn borrow(&self) -> EventRef<'_> {
        EventRef {
            partition: self.partition,
            keyspace: self.keyspace,
            key: &self.key,
            stamp: self.stamp,
            request: self.request,
            action: self.action,
            payload: &self.payload,
        }
    }

    /// What makes it itself.
    pub fn id(&self) -> EventId<'_> {
        EventId { keyspace: self.keyspace, key: &self.key, stamp: self.stamp }
    }

    /// How many bytes [`Self::encode`] appends.
    pub fn encoded_len(&self) -> usize {
        EVENT_HEADER_SIZE + self.key.len() + self.payload.len()
    }

    /// Appends the encoded event.
    ///
    /// # Panics
    /// If key or payload are over the limits of the format: input is checked where it comes in.
    pub fn encode(&self, out: &mut Vec<u8>) {
        assert!(!self.key.is_empty());
        assert!(self.key.len() <= KEY_SIZE_MAX);
        assert!(self.payload.len() <= PAYLOAD_SIZE_LIMIT);
        let key_length = u16::try_from(self.key.len()).expect("bounded by KEY_SIZE_MAX");
        let payload_length =
            u32::try_from(self.payload.len()).expect("bounded by PAYLOAD_SIZE_LIMIT");

        let start = out.len();
        out.reserve(self.encoded_len());
        out.extend_from_slice(&self.partition.to_le_bytes());
        out.extend_from_slice(&self.keyspace.0.to_le_bytes());
        out.extend_from_slice(&self.stamp.to_bytes());
        out.extend_from_slice(&self.request.client.to_le_bytes());
        out.extend_from_slice(&self.request.sequence.to_le_bytes());
        out.extend_from_slice(&[self.action as u8, 0]);
        out.extend_from_slice(&key_length.to_le_bytes());
        out.extend_from_slice(&payload_length.to_le_bytes());
        assert_eq!(out.len() - start, EVENT_HEADER_SIZE);
        out.extend_from_slice(&self.key);
        out.extend_from_slice(&self.payload);
    }

    /// Reads the event at the start of `bytes` and tells how many bytes it took. Key and payload share the
    /// buffer of `bytes`: whoever keeps them long should copy them.
    ///
    /// # Errors
    /// [`DecodeError::Short`] if more bytes might complete it, [`DecodeError::Corrupt`] if no more bytes can.
    pub fn decode(bytes: &Bytes) -> Result<(Self, usize), DecodeError> {
        let header = bytes.first_chunk::<EVENT_HEADER_SIZE>().ok_or(DecodeError::Short)?.as_slice();
        let action = Action::from_u8(header[44]).ok_or(DecodeError::Corrupt("action"))?;
        if header[45] != 0 {
            return Err(DecodeError::Corrupt("zero"));
        }
        let stamp = Stamp::from_bytes(array(header, 12)).ok_or(DecodeError::Corrupt("stamp"))?;
        let key_length = usize::from(u16::from_le_bytes(array(header, 46)));
        if !(1..=KEY_SIZE_MAX).contains(&key_length) {
            return Err(DecodeError::Corrupt("key length"));
        }
        let payload_length = u32::from_le_bytes(array(header, 48)) as usize;
        if payload_length > PAYLOAD_SIZE_LIMIT {
            return Err(DecodeError::Corrupt("payload length"));
        }
        let key_end = EVENT_HEADER_SIZE + key_length;
        let end = key_end + payload_length;
        if bytes.len() < end {
            return Err(DecodeError::Short);
        }
        let event = Self {
            partition: u32::from_le_bytes(array(header, 0)),
            keyspace: KeyspaceId(u64::from_le_bytes(array(header, 4))),
            key: bytes.slice(EVENT_HEADER_SIZE..key_end),
            stamp,
            request: RequestId {
                client: u64::from_le_bytes(array(header, 28)),
                sequence: u64::from_le_bytes(array(header, 36)),
            },
            action,
            payload: bytes.slice(key_end..end),
        };
        Ok((event, end))
    }
}

/// `N` bytes of `bytes` from `offset` on.
///
/// # Panics
/// If they are not there: the caller has checked the length.
#[inline]
pub(crate) fn array<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    *bytes[offset..].first_chunk().expect("the caller checked the length")
}

/// Writes `N` bytes to `bytes` from `offset` on: moves of a known size, where `copy_from_slice` may be a call.
///
/// # Panics
/// If there is no room for them.
#[inline]
pub(crate) fn put_array<const N: usize>(bytes: &mut [u8], offset: usize, field: [u8; N]) {
    *bytes[offset..].first_chunk_mut().expect("there is room") = field;
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use starling_clock::{HybridTime, NodeId};

    pub(crate) fn any_stamp() -> impl Strategy<Value = Stamp> {
        (0..=HybridTime::MAX.packed(), any::<u64>()).prop_map(|(time, node)| {
            Stamp::new(HybridTime::from_packed(time).unwrap(), NodeId(node))
        })
    }

    pub(crate) fn any_event() -> impl Strategy<Value = Event> {
        let bytes = |range| prop::collection::vec(any::<u8>(), range).prop_map(Bytes::from);
        (any::<u32>(), any::<u64>(), bytes(1..40), any_stamp(), any::<(u64, u64)>(), bytes(0..200))
            .prop_map(|(partition, keyspace, key, stamp, (client, sequence), payload)| Event {
                partition,
                keyspace: KeyspaceId(keyspace),
                key,
                stamp,
                request: RequestId { client, sequence },
                action: if sequence % 4 == 0 { Action::Delete } else { Action::Put },
                payload,
            })
    }

    proptest! {
        #[test]
        fn roundtrips_and_every_cut_is_short(event in any_event(), tail in prop::collection::vec(any::<u8>(), 0..9)) {
            let mut encoded = Vec::new();
            event.encode(&mut encoded);
            prop_assert_eq!(encoded.len(), event.encoded_len());
            let length = encoded.len();
            encoded.extend_from_slice(&tail);
            let encoded = Bytes::from(encoded);
            prop_assert_eq!(Event::decode(&encoded), Ok((event, length)));
            for cut in 0..length {
                prop_assert_eq!(Event::decode(&encoded.slice(..cut)), Err(DecodeError::Short));
            }
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok((event, length)) = Event::decode(&Bytes::from(bytes.clone())) {
                let mut again = Vec::new();
                event.encode(&mut again);
                prop_assert_eq!(&again[..], &bytes[..length]);
            }
        }
    }

    #[test]
    fn the_hash_of_an_identity_never_changes() {
        let id = EventId {
            keyspace: KeyspaceId::of("orders"),
            key: b"key",
            stamp: "1517363399650.3@7".parse().unwrap(),
        };
        assert_eq!(id.keyspace.0, 12_145_308_562_482_623_739);
        assert_eq!(id.hash(), 11_791_893_576_712_910_979);
    }
}
