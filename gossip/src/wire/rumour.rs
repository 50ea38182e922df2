//! A rumour: one fact about one member or register, as it lies in a datagram.
//!
//! Invariants:
//!
//! - Kinds 1 to 4 are the numbers of [`Status`].
//! - The longest rumour about a member fits a datagram beside the longest header.

use starling_clock::{NodeId, Stamp};

use super::{DecodeError, Reader, RegisterView, StateView, put_text, put_u64};
use crate::Status;
use crate::limits::{
    DATAGRAM_SIZE_MAX, EXTRA_SIZE_MAX, REGISTER_NAME_SIZE_MAX, SOFTWARE_SIZE_MAX, ZONE_SIZE_MAX,
};

/// One fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rumour<'a> {
    /// The node lives, and says this of itself.
    Alive { node: NodeId, incarnation: u64, state: StateView<'a> },
    /// `by` thinks this of the node. Never [`Status::Alive`].
    Doubt { node: NodeId, status: Status, incarnation: u64, by: NodeId },
    /// A register that fits.
    Register(RegisterView<'a>),
    /// A register that is too large for a datagram: who lacks it pulls it over a stream.
    Notice { name: &'a str, stamp: Stamp },
}

const REGISTER: u8 = 5;
const NOTICE: u8 = 6;

/// Bytes of the shortest rumour: a notice of a name of one byte.
pub(crate) const RUMOUR_SIZE_MIN: usize = 1 + 2 + Stamp::SIZE;
const STATE_SIZE_MAX: usize = (1 + 16 + 2)
    + (1 + ZONE_SIZE_MAX)
    + 4
    + (1 + SOFTWARE_SIZE_MAX)
    + 2
    + 8
    + 8
    + 4
    + 2
    + EXTRA_SIZE_MAX;
const ALIVE_SIZE_MAX: usize = 1 + 8 + 8 + STATE_SIZE_MAX;

const _: () = assert!(super::message::SIZE_MAX + ALIVE_SIZE_MAX <= DATAGRAM_SIZE_MAX);
const _: () = assert!(
    super::message::SIZE_MAX + RUMOUR_SIZE_MIN + REGISTER_NAME_SIZE_MAX <= DATAGRAM_SIZE_MAX
);

/// The longest register that is sent in a datagram; longer ones are noticed and pulled. Half of a
/// datagram, so that one register does not crowd out the news of members.
pub(crate) const REGISTER_INLINE_SIZE_MAX: usize = DATAGRAM_SIZE_MAX / 2;

impl<'a> Rumour<'a> {
    pub(crate) fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let kind = reader.u8()?;
        match kind {
            REGISTER => return Ok(Self::Register(RegisterView::decode(reader)?)),
            NOTICE => {
                let name = reader.register_name()?;
                return Ok(Self::Notice { name, stamp: reader.stamp()? });
            }
            _ => {}
        }
        let status = Status::from_number(kind).ok_or(DecodeError::Malformed("rumour kind"))?;
        let node = reader.node()?;
        let incarnation = reader.incarnation()?;
        if status == Status::Alive {
            let state = StateView::decode(reader)?;
            return Ok(Self::Alive { node, incarnation, state });
        }
        Ok(Self::Doubt { node, status, incarnation, by: reader.node()? })
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Alive { node, incarnation, state } => {
                out.push(Status::Alive as u8);
                put_u64(node.0, out);
                put_u64(incarnation, out);
                state.encode(out);
            }
            Self::Doubt { node, status, incarnation, by } => {
                assert!(status != Status::Alive);
                out.push(status as u8);
                put_u64(node.0, out);
                put_u64(incarnation, out);
                put_u64(by.0, out);
            }
            Self::Register(register) => {
                out.push(REGISTER);
                register.encode(out);
            }
            Self::Notice { name, stamp } => {
                out.push(NOTICE);
                put_text(name, out);
                out.extend_from_slice(&stamp.to_bytes());
            }
        }
    }
}
