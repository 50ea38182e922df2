//! Every bound of this crate, with the asserts between them.
//!
//! Invariants:
//!
//! - No message costs more memory to decode than a small multiple of its own size, which is bounded here.
//! - Whatever a valid node state is, it fits a datagram together with a probe or an ack.
//!
//! Timings are settings, not bounds: see `config.rs`.

/// Bytes in a datagram at most: what fits one packet of QUIC on any path that QUIC runs on, before a larger one was found too.
pub const DATAGRAM_SIZE_MAX: usize = 1_150;
/// Bytes in a push-pull request or answer at most. A node that knows more than fits sends a window of it,
/// another one each time.
pub const PUSH_PULL_SIZE_MAX: usize = 4 << 20;
/// Bytes of a push-pull that members may take, so that registers are never starved.
pub const PUSH_PULL_MEMBERS_SIZE_MAX: usize = 3 << 20;

/// Members known at most, the node itself included. Further ones are not learned.
pub const MEMBERS_MAX: usize = 16_384;
/// Registers known at most. Further ones are refused.
pub const REGISTERS_MAX: usize = 4_096;

/// Bytes of [`crate::NodeState::zone`] at most.
pub const ZONE_SIZE_MAX: usize = 64;
/// Bytes of [`crate::NodeState::software`] at most.
pub const SOFTWARE_SIZE_MAX: usize = 32;
/// Bytes of [`crate::NodeState::extra`] at most.
pub const EXTRA_SIZE_MAX: usize = 256;
/// Bytes of [`crate::Register::name`] at most; the least is one.
pub const REGISTER_NAME_SIZE_MAX: usize = 128;
/// Bytes of [`crate::Register::value`] at most.
pub const REGISTER_VALUE_SIZE_MAX: usize = 4_096;

/// The greatest incarnation: a node would need a refutation each microsecond for nine years to come here.
/// Greater ones are refused, so that nobody can push a node to a number it cannot go above.
pub const INCARNATION_MAX: u64 = 1 << 48;
/// The greatest local health, Lifeguard's `S`: timeouts stretch to nine times theirs at most.
pub const LOCAL_HEALTH_MAX: u32 = 8;

/// Probes relayed for others at one time at most. Further requests are dropped, as a lost datagram would be.
pub(crate) const RELAYS_MAX: usize = 1_024;
/// Names in one register pull at most.
pub(crate) const PULL_NAMES_MAX: usize = 64;
/// Rumours in one datagram at most: the count is one byte.
pub(crate) const DATAGRAM_RUMOURS_MAX: usize = 255;
/// A push-pull that teaches more new members than this is old news to most of the cluster: they are not
/// spread as rumours, only its sender is. Later push-pulls carry them on.
pub(crate) const BULK_MEMBERS: usize = 64;

/// Bytes of a UDP payload that every path of QUIC carries (RFC 9000, section 14).
const PACKET_SIZE_MIN: usize = 1_200;
/// What QUIC needs of that: a short header with the longest connection id and packet number, the tag of the cipher, and the
/// type and longest length of the datagram frame (RFC 9000, section 17.3.1; RFC 9221, section 4).
const PACKET_OVERHEAD_MAX: usize = (1 + 20 + 4) + 16 + (1 + 8);

const _: () = assert!(DATAGRAM_SIZE_MAX + PACKET_OVERHEAD_MAX <= PACKET_SIZE_MIN);
const _: () = assert!(PUSH_PULL_MEMBERS_SIZE_MAX + (1 << 19) < PUSH_PULL_SIZE_MAX);
const _: () = assert!(ZONE_SIZE_MAX <= u8::MAX as usize);
const _: () = assert!(SOFTWARE_SIZE_MAX <= u8::MAX as usize);
const _: () = assert!(REGISTER_NAME_SIZE_MAX <= u8::MAX as usize);
const _: () = assert!(EXTRA_SIZE_MAX <= u16::MAX as usize);
const _: () = assert!(REGISTER_VALUE_SIZE_MAX <= u16::MAX as usize);
const _: () =
    assert!(ZONE_SIZE_MAX + SOFTWARE_SIZE_MAX + EXTRA_SIZE_MAX + 128 < DATAGRAM_SIZE_MAX / 2);
const _: () = assert!(
    PULL_NAMES_MAX * (REGISTER_VALUE_SIZE_MAX + REGISTER_NAME_SIZE_MAX) < PUSH_PULL_SIZE_MAX
);
