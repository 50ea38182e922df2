//! [`Stored`]: what an event has beside its internal key, in the memtable and as the value of a table's entry.
//! See `FORMAT.md`, "Stored value".
//!
//! Invariant: internal key and stored value together are the event, nothing more and nothing less.

use bytes::Bytes;

use super::internal_key;
use crate::event::{Action, Event, PAYLOAD_SIZE_LIMIT, RequestId};

/// Bytes before the payload.
pub(crate) const STORED_HEADER_SIZE: usize = 17;

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

impl<'a> StoredRef<'a> {
    /// From header and payload; `None` if they are not that.
    pub(crate) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (action, request, header) = Stored::decode_header(bytes)?;
        Some(Self { action, request, payload: &bytes[header..] })
    }

    /// What goes before the payload.
    pub(crate) fn header(self) -> [u8; STORED_HEADER_SIZE] {
        let mut header = [0; STORED_HEADER_SIZE];
        header[0] = self.action as u8;
        header[1..9].copy_from_slice(&self.request.client.to_le_bytes());
        header[9..].copy_from_slice(&self.request.sequence.to_le_bytes());
        header
    }

    /// A copy.
    pub(crate) fn to_stored(self) -> Stored {
        let Self { action, request, payload } = self;
        Stored { action, request, payload: Bytes::copy_from_slice(payload) }
    }
}

impl Stored {
    /// Action, request and the size of the header, from header and payload; `None` if they are not that.
    pub(crate) fn decode_header(bytes: &[u8]) -> Option<(Action, RequestId, usize)> {
        let (header, payload) = bytes.split_first_chunk::<STORED_HEADER_SIZE>()?;
        if PAYLOAD_SIZE_LIMIT < payload.len() {
            return None;
        }
        let (action, request) = header.split_first()?;
        let (client, sequence) = request.split_first_chunk()?;
        let request = RequestId {
            client: u64::from_le_bytes(*client),
            sequence: u64::from_le_bytes(*sequence.first_chunk()?),
        };
        Some((Action::from_u8(*action)?, request, STORED_HEADER_SIZE))
    }

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
        fn key_and_stored_are_the_event(event in any_event()) {
            let key = internal_key::encode(event.partition, event.keyspace, &event.key, event.stamp);
            let stored = Stored { action: event.action, request: event.request, payload: event.payload.clone() };
            let bytes = [&stored.borrow().header()[..], &event.payload].concat();
            let again = StoredRef::decode(&bytes).expect("just encoded");
            prop_assert_eq!(again.to_stored().into_event(&key), Some(event));
            for cut in 0..STORED_HEADER_SIZE {
                prop_assert_eq!(StoredRef::decode(&bytes[..cut]), None);
            }
        }
    }
}
