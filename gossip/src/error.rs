//! [`GossipError`]: what a caller of this crate can get wrong. Hostile bytes are [`crate::DecodeError`].

/// The call was refused, and nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GossipError {
    /// A setting is out of its range.
    #[error("gossip setting `{field}` must be {must}")]
    Setting {
        /// Which field of [`crate::GossipConfig`].
        field: &'static str,
        /// What it must be.
        must: &'static str,
    },
    /// A field of a state or a register is over its bound.
    #[error("{field} of {size} bytes is over the limit of {limit}")]
    TooLong {
        /// Which.
        field: &'static str,
        /// Its size in bytes.
        size: usize,
        /// The bound in bytes.
        limit: usize,
    },
    /// A register needs a name.
    #[error("the name of a register is empty")]
    EmptyName,
    /// There are as many registers as may be: [`crate::limits::REGISTERS_MAX`].
    #[error("{limit} registers exist already")]
    RegistersFull {
        /// The bound.
        limit: usize,
    },
    /// This node has left and publishes nothing any more.
    #[error("this node has left the cluster")]
    Left,
    /// No such member, or the node itself: a node leaves by [`crate::Gossip::leave`].
    #[error("no other member has this id")]
    UnknownMember,
}
