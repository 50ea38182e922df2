//! Errors on the wire: a precise code for us, and one of four kinds that says what the caller should do.

use crate::codec::Text;
use bincode::{BorrowDecode, Encode};

/// What the caller should do. Few, stable, part of the protocol (GUARANTEES G2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Nothing happened. Try again, later.
    NothingHappened,
    /// It may or may not have happened, or may yet happen. Repeat it with the same request id: that is safe.
    Unknown,
    /// Nothing happened. Change the request: as it is it will never succeed.
    ChangeRequest,
    /// Nothing happened here. Ask another node.
    TryElsewhere,
}

/// Why a request did not succeed. Numbers are the variants' order: add at the end, never reuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum ErrorCode {
    /// The key is empty.
    KeyEmpty,
    /// The key is over 4,096 bytes.
    KeyTooLarge,
    /// The payload is over the node's limit.
    PayloadTooLarge,
    /// No keyspace has this name.
    KeyspaceUnknown,
    /// A keyspace of this name has other settings.
    KeyspaceExists,
    /// Not a name: 1 to 64 of `a-z 0-9 - _ .`.
    KeyspaceNameInvalid,
    /// A setting of the keyspace is out of range.
    KeyspaceSettingsInvalid,
    /// The level asks for more replicas than the keyspace has, or for none.
    LevelTooLarge,
    /// The level is for writes only.
    LevelNotForReads,
    /// The message does not follow the protocol.
    Malformed,
    /// A limit or a range is out of bounds.
    OutOfBounds,
    /// The stamp that the client has seen is too far ahead of this node's clock.
    ClockSkew,
    /// The request's epoch is not this node's.
    WrongEpoch,
    /// The node is starting or stopping.
    NotReady,
    /// A queue is full. Nothing was dispatched.
    Overloaded,
    /// Fewer replicas are reachable than the level asks for. Nothing was dispatched.
    Unavailable,
    /// Fewer replicas answered in time than the level asks for.
    Timeout,
    /// A read was not answered by enough replicas in time. Reads change nothing.
    ReadTimeout,
    /// Enough replicas failed that the level cannot be met any more, after dispatch.
    Failed,
    /// The disk is full. Nothing was written.
    DiskFull,
    /// Storage stopped after a failed sync; the node must be restarted.
    StoragePoisoned,
    /// Data on this node's disk is damaged and was not served.
    Damaged,
    /// The change log no longer has the sequence asked for.
    Gap,
    /// Too many subscriptions on this node.
    SubscriptionsMax,
}

impl ErrorCode {
    /// Every code is listed, with no catch-all: a new one does not compile until it is classed.
    pub fn kind(self) -> ErrorKind {
        match self {
            Self::KeyEmpty
            | Self::KeyTooLarge
            | Self::PayloadTooLarge
            | Self::KeyspaceUnknown
            | Self::KeyspaceExists
            | Self::KeyspaceNameInvalid
            | Self::KeyspaceSettingsInvalid
            | Self::LevelTooLarge
            | Self::LevelNotForReads
            | Self::Malformed
            | Self::OutOfBounds
            | Self::Gap => ErrorKind::ChangeRequest,
            Self::Overloaded | Self::Unavailable | Self::ReadTimeout => ErrorKind::NothingHappened,
            Self::ClockSkew
            | Self::WrongEpoch
            | Self::NotReady
            | Self::DiskFull
            | Self::StoragePoisoned
            | Self::Damaged
            | Self::SubscriptionsMax => ErrorKind::TryElsewhere,
            Self::Timeout | Self::Failed => ErrorKind::Unknown,
        }
    }
}

/// An error as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode, thiserror::Error)]
#[error("{}", message.as_str())]
pub struct WireError {
    /// What it is.
    pub code: ErrorCode,
    /// What happened and what to do about it, for people.
    pub message: Text,
}

impl WireError {
    /// An error with its text.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: Text(message.into()) }
    }

    /// What the caller should do.
    pub fn kind(&self) -> ErrorKind {
        self.code.kind()
    }
}
