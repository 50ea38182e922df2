//! [`Stored`]: what an event has beside its internal key, in the memtable and as the value of a table's entry.
//! See `FORMAT.md`, "Stored value".
//!
//! Invariants:
//!
//! - Internal key and stored value together are the event, nothing more and nothing less.
//! - Tables have the short form: a block in the cache holds a tenth more events for it. The memtable has the plain one,
//!   and so have tables of old. Whoever reads takes either.

use bytes::Bytes;

use super::internal_key;
use crate::event::{Action, Event, PAYLOAD_SIZE_LIMIT, RequestId, put_array};

/// Bytes before the payload in the plain form; in the short one they are as many at most.
pub(crate) const STORED_HEADER_SIZE: usize = 17;

/// Of the first byte of a short header, which is this or more: the action; that there is no client; and from this bit
/// on how many bytes the sequence takes, and one.
const SHORT: u8 = 1 << LENGTH_SHIFT;
const ACTION: u8 = 0x07;
const NO_CLIENT: u8 = 0x08;
const LENGTH_SHIFT: u32 = 4;

/// Field name, offset, size: the same table as `FORMAT.md`, for the test that compares them.
#[cfg(test)]
pub(crate) const LAYOUT: [(&str, usize, usize); 3] =
    [("action", 0, 1), ("client", 1, 8), ("sequence", 9, 8)];

/// Action, request and payload of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) action: Action,
    pub(crate) request: RequestId,
    pub(crate) payload: Bytes,
}

/// A [`Stored`] whose payload is somewhere else: a flush or a merge copies each once, to where it is going.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoredRef<'a> {
    pub(crate) action: Action,
    pub(crate) request: RequestId,
    pub(crate) payload: &'a [u8],
}

/// A header in the short form.
pub(crate) struct ShortHeader {
    bytes: [u8; STORED_HEADER_SIZE],
    size: usize,
}

impl ShortHeader {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.size]
    }
}

impl<'a> StoredRef<'a> {
    /// From header, in either form, and payload; `None` if they are not that.
    #[inline]
    pub(crate) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (&first, rest) = bytes.split_first()?;
        let (action, request, payload) = if first < SHORT {
            let (client, rest) = rest.split_first_chunk()?;
            let (sequence, payload) = rest.split_first_chunk()?;
            let (client, sequence) = (u64::from_le_bytes(*client), u64::from_le_bytes(*sequence));
            (first, RequestId { client, sequence }, payload)
        } else {
            let (request, payload) = short_request(first, rest)?;
            (first & ACTION, request, payload)
        };
        if PAYLOAD_SIZE_LIMIT < payload.len() {
            return None;
        }
        Some(Self { action: Action::from_u8(action)?, request, payload })
    }

    /// What goes before the payload in the memtable.
    pub(crate) fn header(self) -> [u8; STORED_HEADER_SIZE] {
        let mut header = [0; STORED_HEADER_SIZE];
        header[0] = self.action as u8;
        put_array(&mut header, 1, self.request.client.to_le_bytes());
        put_array(&mut header, 9, self.request.sequence.to_le_bytes());
        header
    }

    /// What goes before the payload in a table.
    pub(crate) fn short_header(self) -> ShortHeader {
        let (mut bytes, mut size) = ([0; STORED_HEADER_SIZE], 1);
        let RequestId { client, sequence } = self.request;
        if client != 0 {
            bytes[size..size + 8].copy_from_slice(&client.to_le_bytes());
            size += 8;
        }
        let length = 8 - sequence.leading_zeros() as usize / 8;
        bytes[size..size + length].copy_from_slice(&sequence.to_le_bytes()[..length]);
        size += length;
        let no_client = if client == 0 { NO_CLIENT } else { 0 };
        let length = u8::try_from(length).expect("at most eight");
        bytes[0] = self.action as u8 | no_client | (length + 1) << LENGTH_SHIFT;
        ShortHeader { bytes, size }
    }

    /// A copy.
    pub(crate) fn to_stored(self) -> Stored {
        let Self { action, request, payload } = self;
        Stored { action, request, payload: Bytes::copy_from_slice(payload) }
    }
}

/// The request of a short header that begins with `first`, and what follows it.
#[inline]
fn short_request(first: u8, rest: &[u8]) -> Option<(RequestId, &[u8])> {
    let (client, rest) = if first & NO_CLIENT == 0 {
        let (client, rest) = rest.split_first_chunk()?;
        (u64::from_le_bytes(*client), rest)
    } else {
        (0, rest)
    };
    let length = usize::from((first >> LENGTH_SHIFT) - 1);
    let (bytes, payload) = rest.split_at_checked(length)?;
    let mut sequence = [0; 8];
    sequence.get_mut(..length)?.copy_from_slice(bytes);
    Some((RequestId { client, sequence: u64::from_le_bytes(sequence) }, payload))
}

impl Stored {
    /// The same, borrowed.
    pub(crate) fn borrow(&self) -> StoredRef<'_> {
        StoredRef { action: self.action, request: self.request, payload: &self.payload }
    }

    /// The event; `None` if `internal` is no internal key.
    pub(crate) fn into_event(self, internal: &[u8]) -> Option<Event> {
        let parts = internal_key::decode(internal)?;
        Some(Event {
            partition: parts.partition,
            keyspace: parts.keyspace,
            key: Bytes::from(parts.key.into_owned()),
            stamp: parts.stamp,
            request: self.request,
            action: self.action,
            payload: self.payload,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::tests::any_event;

    proptest! {
        #[test]
        fn key_and_stored_are_the_event(
            mut event in any_event(), client_bits in 0..=64_u32, sequence_bits in 0..=64_u32,
        ) {
            let RequestId { client, sequence } = &mut event.request;
            *client = client.checked_shr(client_bits).unwrap_or(0);
            *sequence = sequence.checked_shr(sequence_bits).unwrap_or(0);
            let key = internal_key::encode(event.partition, event.keyspace, &event.key, event.stamp);
            let stored = Stored { action: event.action, request: event.request, payload: event.payload.clone() };
            let (plain, short) = (stored.borrow().header(), stored.borrow().short_header());
            prop_assert!(short.as_bytes().len() <= plain.len());
            for header in [&plain[..], short.as_bytes()] {
                let bytes = [header, &event.payload].concat();
                let again = StoredRef::decode(&bytes).expect("just encoded");
                let again = again.to_stored().into_event(&key);
                prop_assert_eq!(again.as_ref(), Some(&event));
                for cut in 0..header.len() {
                    prop_assert_eq!(StoredRef::decode(&bytes[..cut]), None);
                }
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..30)) {
            if let Some(stored) = StoredRef::decode(&bytes) {
                let again = [stored.short_header().as_bytes(), stored.payload].concat();
                prop_assert!(again.len() <= bytes.len());
                prop_assert_eq!(StoredRef::decode(&again), Some(stored));
            }
        }
    }
}
