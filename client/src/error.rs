//! [`ClientError`]: what went wrong, precisely. [`ErrorKind`]: what to do about it.

use std::time::Duration;

use starling_clock::NodeId;

use crate::transport::TlsError;
use crate::wire::{ErrorKind, RequestId, WireError};

/// Why a call did not succeed. Each variant says what became of the request.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The settings cannot work. Nothing was sent.
    #[error("the client's settings are wrong: {0}")]
    Config(String),
    /// Credentials cannot be used. Nothing was sent.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No local socket. Nothing was sent.
    #[error("cannot open a local socket: {0}")]
    Socket(std::io::Error),
    /// None of the addresses led to a node that answers. Nothing was sent.
    #[error("no node could be reached; the last problem was: {0}")]
    NoNode(String),
    /// The node cannot be reached. Nothing was sent.
    #[error("node {node} cannot be reached: {problem}")]
    Unreachable {
        /// Which.
        node: NodeId,
        /// Why.
        problem: String,
    },
    /// The cluster has no such member. Nothing was sent.
    #[error("the cluster has no node {0}")]
    UnknownNode(NodeId),
    /// A node, or the client before it sends, says that the request cannot succeed as it is. Nothing happened.
    #[error("the request is refused: {0}")]
    Refused(WireError),
    /// Time is up, and no attempt was dispatched: nothing happened.
    #[error("nothing happened within {timeout:?}; the last problem was: {problem}")]
    NothingHappened {
        /// How long was tried.
        timeout: Duration,
        /// What came in the way last.
        problem: String,
        /// What a node said last, if one answered.
        last: Option<WireError>,
    },
    /// Time is up, and an attempt may have succeeded or may yet: repeat it with `request`, which is safe.
    #[error(
        "not confirmed within {timeout:?}, it may have happened; the last problem was: {problem}"
    )]
    Unknown {
        /// What to repeat it with (`repeating` of the builders).
        request: RequestId,
        /// How long was tried.
        timeout: Duration,
        /// What came in the way last.
        problem: String,
        /// What a node said last, if one answered.
        last: Option<WireError>,
    },
    /// The node broke the protocol. A write may have happened.
    #[error("node {node} does not follow the protocol: {problem}")]
    Protocol {
        /// Which.
        node: NodeId,
        /// How.
        problem: String,
    },
    /// The subscription's node was lost and did not come back in time. What was delivered stands; go on at `next`.
    #[error("the subscription to node {node} is lost: {problem}")]
    SubscriptionLost {
        /// Which.
        node: NodeId,
        /// Sequence to go on at; `None`: nothing was delivered.
        next: Option<u64>,
        /// Why.
        problem: String,
    },
    /// The client was closed. Nothing was sent.
    #[error("the client is closed")]
    Closed,
}

impl ClientError {
    /// What the caller should do. Every variant is listed: a new one does not compile until it is classed.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Config(_) | Self::Tls(_) | Self::UnknownNode(_) | Self::Closed => {
                ErrorKind::ChangeRequest
            }
            Self::Refused(error) => error.kind(),
            Self::Socket(_) | Self::NoNode(_) | Self::NothingHappened { .. } => {
                ErrorKind::NothingHappened
            }
            Self::Unreachable { .. } | Self::SubscriptionLost { .. } => ErrorKind::TryElsewhere,
            Self::Unknown { .. } | Self::Protocol { .. } => ErrorKind::Unknown,
        }
    }

    /// What a node said, if one did.
    pub fn wire(&self) -> Option<&WireError> {
        match self {
            Self::Refused(error) => Some(error),
            Self::NothingHappened { last, .. } | Self::Unknown { last, .. } => last.as_ref(),
            Self::Config(_)
            | Self::Tls(_)
            | Self::Socket(_)
            | Self::NoNode(_)
            | Self::Unreachable { .. }
            | Self::UnknownNode(_)
            | Self::Protocol { .. }
            | Self::SubscriptionLost { .. }
            | Self::Closed => None,
        }
    }
}
