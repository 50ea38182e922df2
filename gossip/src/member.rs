//! What one node knows of another: [`NodeState`], [`Status`], [`Member`].
//!
//! Invariants:
//!
//! - A state that [`NodeState::check`] accepts can be encoded, and decoding gives the same state.
//! - What is known only grows: (incarnation, status) in the order of both, and the state by the incarnation
//!   that it was published with. So knowledge merges in any order to the same value.
//!
//! Bytes are `wire.rs`'s business; when a status changes is `machine/merge.rs`'s.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use starling_clock::NodeId;

use crate::GossipError;
use crate::limits::{EXTRA_SIZE_MAX, SOFTWARE_SIZE_MAX, ZONE_SIZE_MAX};

/// What a node says of itself. It spreads with its liveness, so it should change seldom: each change is
/// a rumour to the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeState {
    /// Where peers reach the node. Scope and flow label of an IPv6 address don't travel.
    pub address: SocketAddr,
    /// The failure domain, for placement; at most 64 bytes.
    pub zone: String,
    /// Share of the data, relative to other nodes; 0 holds none.
    pub weight: u32,
    /// Version of the software, for people; at most 32 bytes.
    pub software: String,
    /// The newest peer protocol that the node speaks.
    pub protocol: u16,
    /// The newest ring epoch that the node knows.
    pub epoch: u64,
    /// Digest of that epoch's ring: nodes that differ in it at one epoch disagree.
    pub ring_digest: u64,
    /// How busy the node is, in units of the node's choice. Publish coarse steps of it.
    pub load: u32,
    /// Opaque to this crate; at most 256 bytes.
    pub extra: Vec<u8>,
}

impl NodeState {
    /// A state with nothing but an address: weight 1, all else empty or zero.
    pub fn at(address: SocketAddr) -> Self {
        Self {
            address,
            zone: String::new(),
            weight: 1,
            software: String::new(),
            protocol: 0,
            epoch: 0,
            ring_digest: 0,
            load: 0,
            extra: Vec::new(),
        }
    }

    /// Whether the state is within the bounds.
    ///
    /// # Errors
    /// [`GossipError::TooLong`] with the field that is not.
    pub fn check(&self) -> Result<(), GossipError> {
        let fields = [
            ("zone", self.zone.len(), ZONE_SIZE_MAX),
            ("software", self.software.len(), SOFTWARE_SIZE_MAX),
            ("extra", self.extra.len(), EXTRA_SIZE_MAX),
        ];
        for (field, size, limit) in fields {
            if size > limit {
                return Err(GossipError::TooLong { field, size, limit });
            }
        }
        Ok(())
    }
}

/// What is believed of a node. The order matters: of one incarnation, the greater status wins.
/// DO NOT CHANGE or reuse a number: they are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Status {
    /// Answers, as far as anybody knows.
    Alive = 1,
    /// Did not answer somebody; dead soon unless it refutes. Treat it as alive, but as slow.
    Suspect = 2,
    /// Did not refute in time. It stays known, and is still called on at a slow pace.
    Dead = 3,
    /// Said goodbye, or was removed by an operator. Not called on any more.
    Left = 4,
}

impl Status {
    pub(crate) fn from_number(number: u8) -> Option<Self> {
        [Self::Alive, Self::Suspect, Self::Dead, Self::Left]
            .into_iter()
            .find(|status| *status as u8 == number)
    }

    /// Whether the node takes part: alive, or only suspected.
    pub fn is_up(self) -> bool {
        matches!(self, Self::Alive | Self::Suspect)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
            Self::Left => "left",
        })
    }
}

/// One node as another one knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub node: NodeId,
    /// What is believed of it.
    pub status: Status,
    /// The life that `status` is about. Only the node itself raises it: to refute, and to publish a state.
    pub incarnation: u64,
    /// The incarnation that `state` was published with, at most `incarnation`.
    pub state_incarnation: u64,
    /// What it said of itself last. Shared, so that a copy of a member is cheap.
    pub state: Arc<NodeState>,
}
