//! Push-pull: the messages over a stream, in which two nodes compare all they know, or one asks another for
//! single registers.
//!
//! Invariants:
//!
//! - No message is over [`PUSH_PULL_SIZE_MAX`]. What does not fit is left out: a message never claims
//!   to be complete, so leaving out is always harmless.

use starling_clock::NodeId;

use super::message::Header;
use super::{DecodeError, Reader, RegisterView, StateView, VERSION, put_text, put_u64};
use crate::limits::{
    MEMBERS_MAX, PULL_NAMES_MAX, PUSH_PULL_MEMBERS_SIZE_MAX, PUSH_PULL_SIZE_MAX, REGISTERS_MAX,
};
use crate::{Member, Register, Status};

/// What a node sends over a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PushPull<'a> {
    /// All I know: answer with all you know.
    Request(Knowledge<'a>),
    /// The answer to either request.
    Answer(Knowledge<'a>),
    /// Answer with these registers.
    Pull(Vec<&'a str>),
}

/// Members and registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Knowledge<'a> {
    pub(crate) members: Vec<MemberView<'a>>,
    pub(crate) registers: Vec<RegisterView<'a>>,
}

/// A member as it lies in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemberView<'a> {
    pub(crate) node: NodeId,
    pub(crate) status: Status,
    pub(crate) incarnation: u64,
    pub(crate) state_incarnation: u64,
    pub(crate) state: StateView<'a>,
}

const REQUEST: u8 = 16;
const ANSWER: u8 = 17;
const PULL: u8 = 18;

/// Which of the two messages with knowledge to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Direction {
    Request = REQUEST,
    Answer = ANSWER,
}

impl<'a> MemberView<'a> {
    /// A member with an empty state.
    const SIZE_MIN: usize = 8 + 1 + 8 + 8 + (1 + 4 + 2) + 1 + 4 + 1 + 2 + 8 + 8 + 4 + 2;
    /// A member with short texts, to make room at once.
    const SIZE_USUAL: usize = Self::SIZE_MIN + 24;

    pub(crate) fn of(member: &'a Member) -> Self {
        Self {
            node: member.node,
            status: member.status,
            incarnation: member.incarnation,
            state_incarnation: member.state_incarnation,
            state: StateView::of(&member.state),
        }
    }

    /// Whether it tells nothing to who knows this of the same member, not even that somebody agrees.
    pub(crate) fn is_old_to(&self, known: &Member) -> bool {
        let agrees = known.status == Status::Suspect && self.status != Status::Alive;
        (self.incarnation, self.status) <= (known.incarnation, known.status)
            && self.state_incarnation <= known.state_incarnation
            && !agrees
    }

    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let node = reader.node()?;
        let status = Status::from_number(reader.u8()?).ok_or(DecodeError::Malformed("status"))?;
        let incarnation = reader.incarnation()?;
        let state_incarnation = reader.incarnation()?;
        let is_alive = status == Status::Alive;
        if state_incarnation > incarnation || (is_alive && state_incarnation < incarnation) {
            return Err(DecodeError::Malformed("state incarnation"));
        }
        let state = StateView::decode(reader)?;
        Ok(Self { node, status, incarnation, state_incarnation, state })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_u64(self.node.0, out);
        out.push(self.status as u8);
        put_u64(self.incarnation, out);
        put_u64(self.state_incarnation, out);
        self.state.encode(out);
    }
}

/// Writes knowledge, as much as fits in the order given. There are about `count` members.
pub(crate) fn encode_knowledge<'a>(
    direction: Direction,
    header: Header,
    count: usize,
    members: impl Iterator<Item = &'a Member>,
    registers: impl Iterator<Item = &'a Register>,
) -> Vec<u8> {
    let mut out = start(direction as u8, header);
    out.reserve((count * MemberView::SIZE_USUAL).min(PUSH_PULL_MEMBERS_SIZE_MAX));
    let limit = PUSH_PULL_MEMBERS_SIZE_MAX;
    append(&mut out, limit, members, |member, out| MemberView::of(member).encode(out));
    let limit = PUSH_PULL_SIZE_MAX;
    append(&mut out, limit, registers, |register, out| RegisterView::of(register).encode(out));
    out
}

/// Writes a request for single registers, the first [`PULL_NAMES_MAX`] of `names`.
pub(crate) fn encode_pull<'a>(header: Header, names: impl Iterator<Item = &'a str>) -> Vec<u8> {
    let mut out = start(PULL, header);
    append(&mut out, PUSH_PULL_SIZE_MAX, names.take(PULL_NAMES_MAX), put_text);
    out
}

fn start(kind: u8, header: Header) -> Vec<u8> {
    let mut out = vec![VERSION, kind];
    put_u64(header.sender.0, &mut out);
    put_u64(header.incarnation, &mut out);
    out
}

/// Appends a count of four bytes and that many items, as long as `out` stays within `limit`.
fn append<T>(
    out: &mut Vec<u8>,
    limit: usize,
    items: impl Iterator<Item = T>,
    mut encode: impl FnMut(T, &mut Vec<u8>),
) {
    let count_at = out.len();
    let mut count = 0_u32;
    out.extend_from_slice(&count.to_le_bytes());
    for item in items {
        let end = out.len();
        encode(item, out);
        if out.len() > limit {
            out.truncate(end);
            break;
        }
        count += 1;
    }
    out[count_at..count_at + 4].copy_from_slice(&count.to_le_bytes());
}

/// The parts of a message over a stream.
pub(crate) fn decode(bytes: &[u8]) -> Result<(Header, PushPull<'_>), DecodeError> {
    let mut reader = Reader::new(bytes, PUSH_PULL_SIZE_MAX)?;
    let version = reader.u8()?;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let kind = reader.u8()?;
    let header = Header { sender: reader.node()?, incarnation: reader.incarnation()? };
    let message = match kind {
        REQUEST => PushPull::Request(knowledge(&mut reader)?),
        ANSWER => PushPull::Answer(knowledge(&mut reader)?),
        PULL => PushPull::Pull(list(&mut reader, PULL_NAMES_MAX, 2, Reader::register_name)?),
        _ => return Err(DecodeError::Malformed("message kind")),
    };
    reader.end()?;
    Ok((header, message))
}

fn knowledge<'a>(reader: &mut Reader<'a>) -> Result<Knowledge<'a>, DecodeError> {
    let members = list(reader, MEMBERS_MAX, MemberView::SIZE_MIN, MemberView::decode)?;
    let registers = list(reader, REGISTERS_MAX, RegisterView::SIZE_MIN, RegisterView::decode)?;
    Ok(Knowledge { members, registers })
}

/// A count and that many items of at least `size_min` bytes each: room is made only for a count that the
/// bytes left can hold.
fn list<'a, T>(
    reader: &mut Reader<'a>,
    count_max: usize,
    size_min: usize,
    decode: impl Fn(&mut Reader<'a>) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let count = reader.u32()? as usize;
    if count > count_max {
        return Err(DecodeError::Malformed("count"));
    }
    if count * size_min > reader.remaining() {
        return Err(DecodeError::Short);
    }
    let mut items = Vec::with_capacity(count);
    for _ in 0..count {
        items.push(decode(reader)?);
    }
    Ok(items)
}
