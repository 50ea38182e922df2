//! The packed event: how an event lies in the three logs, where most of what is written is events. See FORMAT.md,
//! "Packed event" and "Change".
//!
//! Invariants:
//!
//! - Nothing of a packed event is believed unchecked: lengths are bounded before they are used.
//! - An event has one packed form, and decoding copies nothing: key and payload share the buffer that they came in.
//!
//! Messages between peers carry the encoding of `event.rs`, whose fields have fixed places.

use bytes::Bytes;
use starling_clock::{HybridTime, NodeId, Stamp};

use crate::event::{DecodeError, EventRef, array, put_array};
use crate::{
    Action, Event, KEY_SIZE_MAX, KeyspaceId, PAYLOAD_SIZE_LIMIT, Provenance, RequestId, varint,
};

/// Bit of the first byte of a change: the key had an event here before.
const HAS_PREVIOUS: u8 = 0x08;

/// A packed change has at most so many bytes besides key and payload.
pub(crate) const PACKED_OVERHEAD_MAX: usize = 72;

/// What stands before key and payload, put together in one place: it is appended at once.
struct Head {
    bytes: [u8; PACKED_OVERHEAD_MAX],
    size: usize,
}

impl Head {
    fn new() -> Self {
        Self { bytes: [0; PACKED_OVERHEAD_MAX], size: 0 }
    }

    fn put<const N: usize>(&mut self, field: [u8; N]) {
        put_array(&mut self.bytes, self.size, field);
        self.size += N;
    }

    fn put_number(&mut self, number: u64) {
        self.size += varint::put_in(number, &mut self.bytes[self.size..]);
    }

    fn put_stamp(&mut self, stamp: Stamp) {
        self.put(stamp.time.packed().to_le_bytes());
        self.put_number(stamp.node.0);
    }

    /// Appends it and the event. Its payload ends where the record ends.
    fn put_event(mut self, event: &Event, out: &mut Vec<u8>) {
        assert!((1..=KEY_SIZE_MAX).contains(&event.key.len()));
        assert!(event.payload.len() <= PAYLOAD_SIZE_LIMIT);
        self.put([event.action as u8]);
        self.put(event.keyspace.0.to_le_bytes());
        self.put(event.request.client.to_le_bytes());
        self.put_stamp(event.stamp);
        self.put_number(event.request.sequence);
        self.put_number(u64::from(event.partition));
        self.put_number(event.key.len() as u64);
        out.reserve(self.size + event.key.len() + event.payload.len());
        out.extend_from_slice(&self.bytes[..self.size]);
        out.extend_from_slice(&event.key);
        out.extend_from_slice(&event.payload);
    }
}

/// Appends the event. Its payload ends where the record ends.
///
/// # Panics
/// If key or payload are over the limits of the format: input is checked where it comes in.
pub(crate) fn put_event(event: &Event, out: &mut Vec<u8>) {
    Head::new().put_event(event, out);
}

/// Appends what a change has: how the event came, what was newest of its key before, the event.
pub(crate) fn put_change(
    provenance: Provenance,
    previous: Option<Stamp>,
    event: &Event,
    out: &mut Vec<u8>,
) {
    let mut head = Head::new();
    head.put([provenance as u8 | if previous.is_some() { HAS_PREVIOUS } else { 0 }]);
    if let Some(previous) = previous {
        head.put_stamp(previous);
    }
    head.put_event(event, out);
}

/// Bytes of an event whose places do not depend on others: action, keyspace, client, and the time of the stamp.
const FIXED_SIZE: usize = 1 + 8 + 8 + 8;

/// Reads fields one after the other.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    #[inline]
    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (field, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Short)?;
        self.rest = rest;
        Ok(*field)
    }

    #[inline]
    fn number(&mut self) -> Result<u64, DecodeError> {
        let (number, size) = varint::get(self.rest)?;
        self.rest = &self.rest[size..];
        Ok(number)
    }

    /// The rest of a stamp with this time.
    #[inline]
    fn stamp(&mut self, time: [u8; 8]) -> Result<Stamp, DecodeError> {
        let time = HybridTime::from_packed(u64::from_le_bytes(time));
        Ok(Stamp::new(time.ok_or(DecodeError::Corrupt("stamp"))?, NodeId(self.number()?)))
    }

    #[expect(
        clippy::inline_always,
        reason = "what it returns would go through memory, which takes longer"
    )]
    #[inline(always)]
    fn event(mut self) -> Result<EventRef<'a>, DecodeError> {
        let fixed = self.fixed::<FIXED_SIZE>()?;
        let action = Action::from_u8(fixed[0]).ok_or(DecodeError::Corrupt("action"))?;
        let keyspace = KeyspaceId(u64::from_le_bytes(array(&fixed, 1)));
        let client = u64::from_le_bytes(array(&fixed, 9));
        let stamp = self.stamp(array(&fixed, 17))?;
        let sequence = self.number()?;
        let partition =
            u32::try_from(self.number()?).map_err(|_| DecodeError::Corrupt("partition"))?;
        let key_length = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        if !(1..=KEY_SIZE_MAX).contains(&key_length) {
            return Err(DecodeError::Corrupt("key length"));
        }
        let (key, payload) = self.rest.split_at_checked(key_length).ok_or(DecodeError::Short)?;
        if payload.len() > PAYLOAD_SIZE_LIMIT {
            return Err(DecodeError::Corrupt("payload length"));
        }
        let request = RequestId { client, sequence };
        Ok(EventRef { partition, keyspace, key, stamp, request, action, payload })
    }
}

/// The reverse of [`put_event`], of all of `bytes`.
///
/// # Errors
/// [`DecodeError`] if it is not that.
pub(crate) fn event(bytes: &Bytes) -> Result<Event, DecodeError> {
    Ok(event_in(bytes)?.shared(bytes))
}

/// As [`event`], without taking hold of the buffer.
///
/// # Errors
/// [`DecodeError`] if it is not that.
#[inline]
pub(crate) fn event_in(bytes: &[u8]) -> Result<EventRef<'_>, DecodeError> {
    Fields { rest: bytes }.event()
}

/// The reverse of [`put_change`], of all of `bytes`.
///
/// # Errors
/// [`DecodeError`] if it is not that.
pub(crate) fn change(bytes: &Bytes) -> Result<(Provenance, Option<Stamp>, Event), DecodeError> {
    let (provenance, previous, event) = change_in(bytes)?;
    Ok((provenance, previous, event.shared(bytes)))
}

/// As [`change`], without taking hold of the buffer.
///
/// # Errors
/// [`DecodeError`] if it is not that.
#[inline]
pub(crate) fn change_in(
    bytes: &[u8],
) -> Result<(Provenance, Option<Stamp>, EventRef<'_>), DecodeError> {
    let mut fields = Fields { rest: bytes };
    let [first] = fields.fixed()?;
    let provenance = Provenance::from_u8(first & !HAS_PREVIOUS);
    let provenance = provenance.ok_or(DecodeError::Corrupt("provenance"))?;
    let previous = if first & HAS_PREVIOUS == 0 {
        None
    } else {
        let time = fields.fixed()?;
        Some(fields.stamp(time)?)
    };
    Ok((provenance, previous, fields.event()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::tests::{any_event, any_stamp};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn changes_roundtrip(
            provenance in 1..=6u8, previous in prop::option::of(any_stamp()), packed in any_event(),
        ) {
            let provenance = Provenance::from_u8(provenance).unwrap();
            let mut bytes = Vec::new();
            put_change(provenance, previous, &packed, &mut bytes);
            prop_assert!(bytes.len() <= PACKED_OVERHEAD_MAX + packed.key.len() + packed.payload.len());
            let bytes = Bytes::from(bytes);
            let payload = packed.payload.len();
            prop_assert_eq!(change(&bytes), Ok((provenance, previous, packed)));
            for cut in 0..bytes.len() - payload {
                prop_assert!(change(&bytes.slice(..cut)).is_err(), "cut at {}", cut);
            }
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(packed) = event(&Bytes::from(bytes.clone())) {
                let mut again = Vec::new();
                put_event(&packed, &mut again);
                prop_assert_eq!(again, bytes);
            }
        }
    }
}
