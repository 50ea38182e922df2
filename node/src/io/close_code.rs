//! [`CloseCode`]: what the other end of a connection is told when this node closes it.

use quinn::{Connection, VarInt};

/// Longest reason sent along, in bytes.
const REASON_SIZE_MAX: usize = 200;

/// Why a connection was closed. Numbers are sent: never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CloseCode {
    /// Nothing is wrong.
    Done = 0,
    /// The other end does not follow the protocol.
    Protocol = 1,
    /// Its certificate is not one that may do this.
    WrongIdentity = 2,
    /// It is a node of another cluster.
    OtherCluster = 3,
    /// As many clients are connected as may be. Another node may have room.
    TooManyConnections = 4,
    /// The client asks and does not read the answers.
    SlowReader = 5,
    /// A newer connection of the same node takes its place.
    Replaced = 6,
    /// The node is stopping. Another node goes on.
    Stopping = 7,
    /// It makes another ring of the same epoch: its list of members is not this node's.
    OtherRing = 8,
}

impl CloseCode {
    /// Closes a connection.
    pub(super) fn close(self, connection: &Connection) {
        self.close_with(connection, self.reason());
    }

    /// Closes a connection and says what exactly was wrong.
    pub(super) fn close_with(self, connection: &Connection, reason: &str) {
        let end = reason.floor_char_boundary(REASON_SIZE_MAX);
        connection.close(self.number(), &reason.as_bytes()[..end]);
    }

    /// As it is sent.
    pub(super) fn number(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }

    /// In words.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Protocol => "the protocol was not followed",
            Self::WrongIdentity => "the certificate is not one that may do this",
            Self::OtherCluster => "this node is of another cluster",
            Self::TooManyConnections => "too many connections",
            Self::SlowReader => "answers were not read",
            Self::Replaced => "a newer connection takes its place",
            Self::Stopping => "the node is stopping",
            Self::OtherRing => "cluster.members or cluster.partitions are not this node's",
        }
    }
}
