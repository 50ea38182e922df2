//! Bytes of the protocol, laid by hand: the cursor that reads them, the fields that messages share.
//! `FORMAT.md` documents them; one file here is one kind of message.
//!
//! Invariants:
//!
//! - Decoding never panics, and allocates no more than the bytes that are there justify: a count is checked
//!   against what is left before room is made for it.
//! - A message that decodes, encodes to the same bytes: nothing is skipped, and nothing may follow it.
//! - Decoding borrows; nothing is copied before the whole message was found good.

mod describe;
pub(crate) mod message;
pub(crate) mod push_pull;
pub(crate) mod rumour;
#[cfg(test)]
mod tests;

pub use describe::describe;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use starling_clock::{NodeId, Stamp};

use crate::limits::{
    EXTRA_SIZE_MAX, INCARNATION_MAX, REGISTER_NAME_SIZE_MAX, REGISTER_VALUE_SIZE_MAX,
    SOFTWARE_SIZE_MAX, ZONE_SIZE_MAX,
};
use crate::{NodeState, Register};

/// The version of every message here. A reader refuses any other.
pub(crate) const VERSION: u8 = 1;

/// Why bytes are not a message. Nothing of it was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end before the message does.
    #[error("gossip message is cut short")]
    Short,
    /// More bytes than any message has.
    #[error("gossip message of {size} bytes is over the limit of {limit}")]
    TooLong {
        /// How many.
        size: usize,
        /// The bound.
        limit: usize,
    },
    /// Written by a version of the format that this one does not know.
    #[error("gossip message of format version {0}, this node speaks 1")]
    Version(u8),
    /// The connection's certificate names another node than the message does.
    #[error("gossip message of node {claimed} came over the connection of node {from}")]
    Sender {
        /// Who the certificate names.
        from: NodeId,
        /// Who the message names.
        claimed: NodeId,
    },
    /// The bytes are all there and a field is wrong.
    #[error("gossip message is malformed: {0}")]
    Malformed(&'static str),
}

/// Reads fields off the front of a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8], limit: usize) -> Result<Self, DecodeError> {
        if bytes.len() > limit {
            return Err(DecodeError::TooLong { size: bytes.len(), limit });
        }
        Ok(Self { rest: bytes })
    }

    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(DecodeError::Short)?;
        self.rest = rest;
        Ok(*head)
    }

    pub(crate) fn bytes(&mut self, size: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.rest.split_at_checked(size).ok_or(DecodeError::Short)?;
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn node(&mut self) -> Result<NodeId, DecodeError> {
        self.u64().map(NodeId)
    }

    pub(crate) fn incarnation(&mut self) -> Result<u64, DecodeError> {
        let incarnation = self.u64()?;
        if incarnation > INCARNATION_MAX {
            return Err(DecodeError::Malformed("incarnation"));
        }
        Ok(incarnation)
    }

    pub(crate) fn stamp(&mut self) -> Result<Stamp, DecodeError> {
        Stamp::from_bytes(self.array()?).ok_or(DecodeError::Malformed("stamp"))
    }

    /// A text of at most `limit` bytes behind a length of one byte.
    fn text(&mut self, limit: usize, field: &'static str) -> Result<&'a str, DecodeError> {
        let size = usize::from(self.u8()?);
        if size > limit {
            return Err(DecodeError::Malformed(field));
        }
        std::str::from_utf8(self.bytes(size)?).map_err(|_| DecodeError::Malformed(field))
    }

    /// Bytes, at most `limit`, behind a length of two bytes.
    fn blob(&mut self, limit: usize, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let size = usize::from(self.u16()?);
        if size > limit {
            return Err(DecodeError::Malformed(field));
        }
        self.bytes(size)
    }

    pub(crate) fn register_name(&mut self) -> Result<&'a str, DecodeError> {
        let name = self.text(REGISTER_NAME_SIZE_MAX, "register name")?;
        if name.is_empty() {
            return Err(DecodeError::Malformed("register name"));
        }
        Ok(name)
    }

    fn address(&mut self) -> Result<SocketAddr, DecodeError> {
        let ip = match self.u8()? {
            4 => IpAddr::V4(Ipv4Addr::from(self.array::<4>()?)),
            6 => IpAddr::V6(Ipv6Addr::from(self.array::<16>()?)),
            _ => return Err(DecodeError::Malformed("address family")),
        };
        Ok(SocketAddr::new(ip, self.u16()?))
    }

    /// The message must end here.
    pub(crate) fn end(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Malformed("trailing bytes")) }
    }
}

/// A node state as it lies in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StateView<'a> {
    address: SocketAddr,
    zone: &'a str,
    weight: u32,
    software: &'a str,
    protocol: u16,
    epoch: u64,
    ring_digest: u64,
    load: u32,
    extra: &'a [u8],
}

impl<'a> StateView<'a> {
    pub(crate) fn of(state: &'a NodeState) -> Self {
        Self {
            address: SocketAddr::new(state.address.ip(), state.address.port()),
            zone: &state.zone,
            weight: state.weight,
            software: &state.software,
            protocol: state.protocol,
            epoch: state.epoch,
            ring_digest: state.ring_digest,
            load: state.load,
            extra: &state.extra,
        }
    }

    pub(crate) fn to_state(self) -> NodeState {
        NodeState {
            address: self.address,
            zone: self.zone.into(),
            weight: self.weight,
            software: self.software.into(),
            protocol: self.protocol,
            epoch: self.epoch,
            ring_digest: self.ring_digest,
            load: self.load,
            extra: self.extra.into(),
        }
    }

    pub(crate) fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            address: reader.address()?,
            zone: reader.text(ZONE_SIZE_MAX, "zone")?,
            weight: reader.u32()?,
            software: reader.text(SOFTWARE_SIZE_MAX, "software")?,
            protocol: reader.u16()?,
            epoch: reader.u64()?,
            ring_digest: reader.u64()?,
            load: reader.u32()?,
            extra: reader.blob(EXTRA_SIZE_MAX, "extra")?,
        })
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self.address.ip() {
            IpAddr::V4(ip) => {
                out.push(4);
                out.extend_from_slice(&ip.octets());
            }
            IpAddr::V6(ip) => {
                out.push(6);
                out.extend_from_slice(&ip.octets());
            }
        }
        out.extend_from_slice(&self.address.port().to_le_bytes());
        put_text(self.zone, out);
        out.extend_from_slice(&self.weight.to_le_bytes());
        put_text(self.software, out);
        out.extend_from_slice(&self.protocol.to_le_bytes());
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&self.ring_digest.to_le_bytes());
        out.extend_from_slice(&self.load.to_le_bytes());
        put_blob(self.extra, out);
    }
}

/// A register as it lies in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RegisterView<'a> {
    pub(crate) name: &'a str,
    pub(crate) stamp: Stamp,
    pub(crate) value: &'a [u8],
}

impl<'a> RegisterView<'a> {
    pub(crate) const SIZE_MIN: usize = 1 + 1 + Stamp::SIZE + 2;

    pub(crate) fn of(register: &'a Register) -> Self {
        Self { name: &register.name, stamp: register.stamp, value: &register.value }
    }

    pub(crate) fn to_register(self) -> Register {
        Register { name: self.name.into(), stamp: self.stamp, value: self.value.into() }
    }

    pub(crate) fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            name: reader.register_name()?,
            stamp: reader.stamp()?,
            value: reader.blob(REGISTER_VALUE_SIZE_MAX, "register value")?,
        })
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_text(self.name, out);
        out.extend_from_slice(&self.stamp.to_bytes());
        put_blob(self.value, out);
    }

    pub(crate) fn encoded_size(&self) -> usize {
        1 + self.name.len() + Stamp::SIZE + 2 + self.value.len()
    }
}

pub(crate) fn put_u64(value: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// # Panics
/// If the text is longer than 255 bytes: states and registers are checked when they come in.
pub(crate) fn put_text(text: &str, out: &mut Vec<u8>) {
    let size = u8::try_from(text.len()).expect("checked when it came in");
    out.push(size);
    out.extend_from_slice(text.as_bytes());
}

fn put_blob(bytes: &[u8], out: &mut Vec<u8>) {
    let size = u16::try_from(bytes.len()).expect("checked when it came in");
    out.extend_from_slice(&size.to_le_bytes());
    out.extend_from_slice(bytes);
}
