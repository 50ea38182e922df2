//! The records of the write-ahead log, as bytes. See FORMAT.md, "Write-ahead log".
//!
//! Invariants:
//!
//! - What is decoded is what this file encodes, or it is refused: nothing in a record is believed for its checksum alone.
//! - [`WalRecordRef`] copies nothing: recovery reads millions of them. [`WalRecord`] shares its buffer, for whoever keeps it.
//!
//! It knows nothing of frames, files and syncs; the log itself does.

use bytes::Bytes;
use starling_clock::{NodeId, Stamp};

use crate::event::{DecodeError, EventRef, array};
use crate::log::Record;
use crate::{Event, Provenance, packed, varint};

/// Kinds of records. DO NOT CHANGE or reuse a number: they are on disk.
const KIND_EVENT: u8 = 1;
const KIND_HINT: u8 = 2;
const KIND_HINTS_DONE: u8 = 3;
const KIND_META: u8 = 4;

/// Bytes before the event in a hint record: kind, target, number.
pub(crate) const HINT_HEADER_SIZE: usize = 17;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WalRecord {
    /// This replica applied the event, as the change `sequence`. `change` is all of it, packed.
    Event {
        sequence: u64,
        provenance: Provenance,
        previous: Option<Stamp>,
        event: Event,
        change: Bytes,
    },
    /// Hold the event for `target`, as its hint `sequence`. `hint` is the event, packed.
    Hint { target: NodeId, sequence: u64, event: Event, hint: Bytes },
    /// `target` has its hints up to `up_to` and with it.
    HintsDone { target: NodeId, up_to: u64 },
    /// A named value.
    Meta { name: String, value: Bytes },
}

/// A [`WalRecord`] in the buffer that it was read into.
#[derive(Clone, Copy, Debug)]
pub(crate) enum WalRecordRef<'a> {
    Event {
        sequence: u64,
        provenance: Provenance,
        previous: Option<Stamp>,
        event: EventRef<'a>,
        change: &'a [u8],
    },
    Hint {
        target: NodeId,
        sequence: u64,
        event: EventRef<'a>,
        hint: &'a [u8],
    },
    HintsDone {
        target: NodeId,
        up_to: u64,
    },
    Meta {
        name: &'a str,
        value: &'a [u8],
    },
}

impl WalRecord {
    /// What is in a record.
    ///
    /// # Errors
    /// [`DecodeError`] if nothing is that this code writes.
    pub(crate) fn decode(record: &Record) -> Result<Self, DecodeError> {
        let buffer = &record.payload;
        Ok(match WalRecordRef::decode(record.number, buffer)? {
            WalRecordRef::Event { sequence, provenance, previous, event, change } => Self::Event {
                sequence,
                provenance,
                previous,
                event: event.shared(buffer),
                change: buffer.slice_ref(change),
            },
            WalRecordRef::Hint { target, sequence, event, hint } => Self::Hint {
                target,
                sequence,
                event: event.shared(buffer),
                hint: buffer.slice_ref(hint),
            },
            WalRecordRef::HintsDone { target, up_to } => Self::HintsDone { target, up_to },
            WalRecordRef::Meta { name, value } => {
                Self::Meta { name: name.to_owned(), value: buffer.slice_ref(value) }
            }
        })
    }
}

impl<'a> WalRecordRef<'a> {
    /// What is in the record with this number.
    ///
    /// # Errors
    /// [`DecodeError`] if nothing is that this code writes.
    #[inline]
    pub(crate) fn decode(record: u64, bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let number = |offset: usize| {
            let field = bytes.get(offset..offset + 8).ok_or(DecodeError::Short)?;
            Ok(u64::from_le_bytes(array(field, 0)))
        };
        match *bytes.first().ok_or(DecodeError::Short)? {
            KIND_EVENT => {
                let (behind, size) = varint::get(&bytes[1..])?;
                let sequence = record.wrapping_sub(behind);
                let change = &bytes[1 + size..];
                let (provenance, previous, event) = packed::change_in(change)?;
                Ok(Self::Event { sequence, provenance, previous, event, change })
            }
            KIND_HINT => {
                let (target, sequence) = (NodeId(number(1)?), number(9)?);
                let hint = &bytes[HINT_HEADER_SIZE..];
                Ok(Self::Hint { target, sequence, event: packed::event_in(hint)?, hint })
            }
            KIND_HINTS_DONE if bytes.len() == 17 => {
                Ok(Self::HintsDone { target: NodeId(number(1)?), up_to: number(9)? })
            }
            KIND_META => {
                let (name, value, size) = meta_in(&bytes[1..])?;
                if size + 1 != bytes.len() {
                    return Err(DecodeError::Corrupt("meta length"));
                }
                Ok(Self::Meta { name, value })
            }
            _ => Err(DecodeError::Corrupt("kind of record")),
        }
    }
}

/// Appends the record of an event, which is numbered `number`, as the change `sequence`; tells how long it is before the change.
pub(crate) fn encode_event(
    number: u64,
    sequence: u64,
    (provenance, previous, event): (Provenance, Option<Stamp>, &Event),
    out: &mut Vec<u8>,
) -> usize {
    let start = out.len();
    out.push(KIND_EVENT);
    // Small, because nearly all records are events.
    varint::put(number.wrapping_sub(sequence), out);
    let size = out.len() - start;
    packed::put_change(provenance, previous, event, out);
    size
}

/// Appends the record of a hint.
pub(crate) fn encode_hint(target: NodeId, sequence: u64, event: &Event, out: &mut Vec<u8>) {
    out.push(KIND_HINT);
    out.extend_from_slice(&target.0.to_le_bytes());
    out.extend_from_slice(&sequence.to_le_bytes());
    packed::put_event(event, out);
}

/// Appends the record which says that hints were consumed.
pub(crate) fn encode_hints_done(target: NodeId, up_to: u64, out: &mut Vec<u8>) {
    out.push(KIND_HINTS_DONE);
    out.extend_from_slice(&target.0.to_le_bytes());
    out.extend_from_slice(&up_to.to_le_bytes());
}

/// Appends the record of a named value.
pub(crate) fn encode_named(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.push(KIND_META);
    encode_meta(name, value, out);
}

/// Appends a name and a value: lengths first, two bytes and four.
pub(crate) fn encode_meta(name: &str, value: &[u8], out: &mut Vec<u8>) {
    let name_length = u16::try_from(name.len()).expect("bounded by META_NAME_SIZE_MAX");
    let value_length = u32::try_from(value.len()).expect("bounded by META_VALUE_SIZE_MAX");
    out.extend_from_slice(&name_length.to_le_bytes());
    out.extend_from_slice(&value_length.to_le_bytes());
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(value);
}

/// The reverse of [`encode_meta`], and how many bytes it took.
pub(crate) fn decode_meta(bytes: &Bytes) -> Result<(String, Bytes, usize), DecodeError> {
    let (name, value, size) = meta_in(bytes)?;
    Ok((name.to_owned(), bytes.slice_ref(value), size))
}

fn meta_in(bytes: &[u8]) -> Result<(&str, &[u8], usize), DecodeError> {
    let header: &[u8; 6] = bytes.first_chunk().ok_or(DecodeError::Short)?;
    let name_end = 6 + usize::from(u16::from_le_bytes(array(header, 0)));
    let end = name_end.saturating_add(u32::from_le_bytes(array(header, 2)) as usize);
    if bytes.len() < end {
        return Err(DecodeError::Short);
    }
    let name = std::str::from_utf8(&bytes[6..name_end]);
    let name = name.map_err(|_| DecodeError::Corrupt("meta name"))?;
    Ok((name, &bytes[name_end..end], end))
}
