//! A datagram: who speaks, what it is about, and the rumours that ride along.
//!
//! Invariants:
//!
//! - The header is written first and the rumours are appended: [`push_rumour`] counts them.
//! - The rumours of a datagram are checked one and all before any of them is applied.

use starling_clock::NodeId;

use super::rumour::{RUMOUR_SIZE_MIN, Rumour};
use super::{DecodeError, Reader, VERSION, put_u64};
use crate::limits::{DATAGRAM_RUMOURS_MAX, DATAGRAM_SIZE_MAX};

/// What a datagram is for. The sequence is the prober's, and comes back as it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// Answer this, to say that you live.
    Probe { sequence: u32 },
    /// The answer; also for another node that was probed on the prober's behalf.
    Ack { sequence: u32 },
    /// Probe `target` for me.
    ProbeFor { sequence: u32, target: NodeId },
    /// I did probe it for you, and it has not answered yet: I am well, at least (Lifeguard).
    Nack { sequence: u32 },
    /// Nothing but rumours.
    Gossip,
}

/// Who speaks, and in which of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) sender: NodeId,
    pub(crate) incarnation: u64,
}

const PROBE: u8 = 1;
const ACK: u8 = 2;
const PROBE_FOR: u8 = 3;
const NACK: u8 = 4;
const GOSSIP: u8 = 5;

/// Offset of the count of rumours.
const COUNT_AT: usize = 2;
/// Bytes of header and message without rumours at most.
pub(crate) const SIZE_MAX: usize = 3 + 8 + 8 + 4 + 8;

/// Starts a datagram that carries no rumour yet.
pub(crate) fn encode(header: Header, message: Message) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    let (kind, sequence, target) = match message {
        Message::Probe { sequence } => (PROBE, Some(sequence), None),
        Message::Ack { sequence } => (ACK, Some(sequence), None),
        Message::ProbeFor { sequence, target } => (PROBE_FOR, Some(sequence), Some(target)),
        Message::Nack { sequence } => (NACK, Some(sequence), None),
        Message::Gossip => (GOSSIP, None, None),
    };
    out.extend_from_slice(&[VERSION, kind, 0]);
    put_u64(header.sender.0, &mut out);
    put_u64(header.incarnation, &mut out);
    if let Some(sequence) = sequence {
        out.extend_from_slice(&sequence.to_le_bytes());
    }
    if let Some(target) = target {
        put_u64(target.0, &mut out);
    }
    assert!(out.len() <= SIZE_MAX);
    out
}

/// Appends a rumour, if it fits.
pub(crate) fn push_rumour(datagram: &mut Vec<u8>, rumour: &Rumour<'_>) -> bool {
    let end = datagram.len();
    if rumour_count(datagram) == DATAGRAM_RUMOURS_MAX {
        return false;
    }
    rumour.encode(datagram);
    if datagram.len() > DATAGRAM_SIZE_MAX {
        datagram.truncate(end);
        return false;
    }
    datagram[COUNT_AT] += 1;
    true
}

/// How many rumours were appended.
pub(crate) fn rumour_count(datagram: &[u8]) -> usize {
    usize::from(datagram[COUNT_AT])
}

/// Whether even the shortest rumour would not fit any more.
pub(crate) fn is_full(datagram: &[u8]) -> bool {
    datagram.len() + RUMOUR_SIZE_MIN > DATAGRAM_SIZE_MAX
        || rumour_count(datagram) == DATAGRAM_RUMOURS_MAX
}

/// The parts of a datagram. The rumours are at most [`DATAGRAM_RUMOURS_MAX`].
pub(crate) fn decode(bytes: &[u8]) -> Result<(Header, Message, Vec<Rumour<'_>>), DecodeError> {
    let mut reader = Reader::new(bytes, DATAGRAM_SIZE_MAX)?;
    let version = reader.u8()?;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let kind = reader.u8()?;
    let count = usize::from(reader.u8()?);
    let header = Header { sender: reader.node()?, incarnation: reader.incarnation()? };
    let message = match kind {
        PROBE => Message::Probe { sequence: reader.u32()? },
        ACK => Message::Ack { sequence: reader.u32()? },
        PROBE_FOR => Message::ProbeFor { sequence: reader.u32()?, target: reader.node()? },
        NACK => Message::Nack { sequence: reader.u32()? },
        GOSSIP => Message::Gossip,
        _ => return Err(DecodeError::Malformed("message kind")),
    };
    if count * RUMOUR_SIZE_MIN > reader.remaining() {
        return Err(DecodeError::Short);
    }
    let mut rumours = Vec::with_capacity(count);
    for _ in 0..count {
        rumours.push(Rumour::decode(&mut reader)?);
    }
    reader.end()?;
    Ok((header, message, rumours))
}
