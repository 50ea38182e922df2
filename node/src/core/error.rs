//! Why the core refuses a request. [`Refusal`] is precise; [`WireError`] is what the client gets of it.
//!
//! Invariants:
//!
//! - Every variant's doc says what became of the write, because that is the one question a caller has.
//! - The text says what to do about it.

use starling_client::wire::{ErrorCode, WireError};
use starling_clock::SkewError;

use super::peer::WriteOutcome;
use crate::limits::{ERROR_TEXT_MAX, JOINED_MAX};

/// Why a request did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nothing happened.
    #[error("the key is empty: a key has 1 to 4096 bytes")]
    KeyEmpty,
    /// Nothing happened.
    #[error("the key has {size} bytes, the limit is {limit}: use a shorter key, or its hash")]
    KeyTooLarge {
        /// Bytes offered.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Nothing happened.
    #[error(
        "the payload has {size} bytes, this node takes {limit}: split it, or raise limits.payload_size_max"
    )]
    PayloadTooLarge {
        /// Bytes offered.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Nothing happened.
    #[error("there is no keyspace {name:?}: create it first (starling keyspace create)")]
    KeyspaceUnknown {
        /// As asked for, cut.
        name: String,
    },
    /// Nothing happened.
    #[error("keyspace {name:?} exists with other settings: choose another name")]
    KeyspaceExists {
        /// Its name.
        name: String,
    },
    /// Nothing happened.
    #[error("a keyspace's name has 1 to 64 of a-z 0-9 - _ .")]
    KeyspaceNameInvalid,
    /// Nothing happened.
    #[error("keyspace settings: {0}")]
    KeyspaceSettingsInvalid(&'static str),
    /// Nothing happened.
    #[error("this cluster holds as many keyspaces as it can")]
    KeyspacesFull,
    /// Nothing happened.
    #[error(
        "the level asks for {needed} replicas, a key of this keyspace has {replicas}: lower the level"
    )]
    LevelTooLarge {
        /// What the level asks for.
        needed: u8,
        /// N, or the number of members if that is less.
        replicas: usize,
    },
    /// Nothing happened.
    #[error("level ANY is for writes: read at ONE or more")]
    LevelNotForReads,
    /// Nothing happened.
    #[error("{0}")]
    OutOfBounds(&'static str),
    /// Nothing happened.
    #[error("{0}")]
    Malformed(&'static str),
    /// Nothing happened.
    #[error("the time that the client has seen is ahead of this node's clock: {0}")]
    ClockSkew(SkewError),
    /// Nothing happened: peers would refuse the stamp that the write would get.
    #[error(
        "this node's wall clock was set back, and has not caught up with its stamps: the next {0}"
    )]
    ClockAhead(SkewError),
    /// Nothing happened.
    #[error(
        "the request was routed by ring epoch {theirs}, this node is at {ours}: fetch the topology again"
    )]
    WrongEpoch {
        /// In the request.
        theirs: u64,
        /// This node's.
        ours: u64,
    },
    /// Nothing happened.
    #[error("the node is starting: try again")]
    Starting,
    /// Nothing happened.
    #[error("the node is stopping: ask another")]
    Stopping,
    /// Nothing happened.
    #[error("{in_flight} requests are in flight on this node: slow down")]
    Overloaded {
        /// How many there are.
        in_flight: usize,
    },
    /// Nothing happened for this repetition; the first attempt is in flight.
    #[error("{JOINED_MAX} repetitions wait for this request already")]
    TooManyRepetitions,
    /// Nothing happened: no stamp could be given in time.
    #[error("the clock's bound did not reach the disk in time: the disk is slow")]
    NoStamp,
    /// Nothing was dispatched.
    #[error("{reachable} of {replicas} replicas are reachable, the level needs {needed}")]
    Unavailable {
        /// That are there.
        reachable: usize,
        /// That the level needs.
        needed: usize,
        /// Of the key.
        replicas: usize,
    },
    /// The write MAY become visible later.
    #[error("{acks} of {needed} replicas answered in time: repeat it with the same request id")]
    Timeout {
        /// Replicas that took it.
        acks: usize,
        /// That the level needs.
        needed: usize,
    },
    /// The write MAY become visible later: replicas refused it, hints may bring it yet.
    #[error(
        "{acks} of {needed} replicas took it, others refused ({}): repeat it with the same request id",
        reason(outcome)
    )]
    Failed {
        /// Replicas that took it.
        acks: usize,
        /// That the level needs.
        needed: usize,
        /// What one of them said.
        outcome: WriteOutcome,
    },
    /// The write MAY become visible later: connections were lost after it was sent.
    #[error(
        "{acks} of {needed} replicas took it, the connections to others were lost: repeat it with the same request id"
    )]
    Lost {
        /// Replicas that took it.
        acks: usize,
        /// That the level needs.
        needed: usize,
    },
    /// Every replica refused it, nothing is kept anywhere.
    #[error("every replica refused the write: {}", reason(outcome))]
    Refused {
        /// What the last of them said.
        outcome: WriteOutcome,
    },
    /// Nothing happened.
    #[error(
        "storage of this node stopped after a failed sync: ask another node, and restart this one"
    )]
    StoragePoisoned,
    /// Nothing was written.
    #[error("the disk of this node is full: free some, or ask another node")]
    DiskFull,
    /// Nothing happened.
    #[error("data on this node's disk is damaged and was not served: ask another node")]
    Damaged,
    /// The keyspace MAY appear later.
    #[error(
        "{nodes} of {needed} nodes have the keyspace on disk: create it again with the same settings"
    )]
    KeyspaceTimeout {
        /// That have it.
        nodes: usize,
        /// That must.
        needed: usize,
    },
    /// Nothing happened.
    #[error("{0} change subscriptions are open on this node, which is its limit: ask another node")]
    SubscriptionsMax(usize),
}

impl Refusal {
    /// What the client is told. Every variant is listed: a new one does not compile until it is classed.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::KeyEmpty => ErrorCode::KeyEmpty,
            Self::KeyTooLarge { .. } => ErrorCode::KeyTooLarge,
            Self::PayloadTooLarge { .. } => ErrorCode::PayloadTooLarge,
            Self::KeyspaceUnknown { .. } => ErrorCode::KeyspaceUnknown,
            Self::KeyspaceExists { .. } => ErrorCode::KeyspaceExists,
            Self::KeyspaceNameInvalid => ErrorCode::KeyspaceNameInvalid,
            Self::KeyspaceSettingsInvalid(_) => ErrorCode::KeyspaceSettingsInvalid,
            Self::LevelTooLarge { .. } => ErrorCode::LevelTooLarge,
            Self::LevelNotForReads => ErrorCode::LevelNotForReads,
            Self::OutOfBounds(_) | Self::KeyspacesFull => ErrorCode::OutOfBounds,
            Self::Malformed(_) => ErrorCode::Malformed,
            Self::ClockSkew(_) | Self::ClockAhead(_) => ErrorCode::ClockSkew,
            Self::WrongEpoch { .. } => ErrorCode::WrongEpoch,
            Self::Starting | Self::Stopping => ErrorCode::NotReady,
            Self::Overloaded { .. } | Self::TooManyRepetitions | Self::NoStamp => {
                ErrorCode::Overloaded
            }
            Self::Unavailable { .. } => ErrorCode::Unavailable,
            Self::Timeout { .. } | Self::KeyspaceTimeout { .. } => ErrorCode::Timeout,
            Self::Failed { .. } | Self::Lost { .. } => ErrorCode::Failed,
            Self::Refused { outcome } => match outcome {
                WriteOutcome::Full => ErrorCode::DiskFull,
                WriteOutcome::Skewed => ErrorCode::ClockSkew,
                WriteOutcome::NotHome => ErrorCode::WrongEpoch,
                WriteOutcome::Invalid => ErrorCode::PayloadTooLarge,
                WriteOutcome::Overloaded => ErrorCode::Overloaded,
                WriteOutcome::Applied
                | WriteOutcome::Duplicate
                | WriteOutcome::Superseded(_)
                | WriteOutcome::Poisoned => ErrorCode::Failed,
            },
            Self::StoragePoisoned => ErrorCode::StoragePoisoned,
            Self::DiskFull => ErrorCode::DiskFull,
            Self::Damaged => ErrorCode::Damaged,
            Self::SubscriptionsMax(_) => ErrorCode::SubscriptionsMax,
        }
    }
}

/// Why a replica did not take a write, and what to do about it.
fn reason(outcome: &WriteOutcome) -> &'static str {
    match outcome {
        WriteOutcome::Full => "the disk is full, free some space or add a node",
        WriteOutcome::Poisoned => "storage stopped after a failed sync, restart the node",
        WriteOutcome::Overloaded => "it is busy, slow down",
        WriteOutcome::Skewed => "the stamp is ahead of its clock, set the nodes' clocks",
        WriteOutcome::NotHome => "it is not home to the key, the nodes' members differ",
        WriteOutcome::Invalid => "the event is over a limit of it, give all nodes the same limits",
        WriteOutcome::Applied | WriteOutcome::Duplicate | WriteOutcome::Superseded(_) => {
            "there is a newer event"
        }
    }
}

impl From<Refusal> for WireError {
    fn from(refusal: Refusal) -> Self {
        let mut text = refusal.to_string();
        text.truncate(text.floor_char_boundary(ERROR_TEXT_MAX));
        Self::new(refusal.code(), text)
    }
}

/// What the core cannot be started with. Nothing was touched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The node is not one of the configured members.
    #[error("node {0} is not in cluster.members: add it there, or correct node.id")]
    NotAMember(starling_clock::NodeId),
    /// A member has no address.
    #[error("member {0} has no address in cluster.members")]
    NoAddress(starling_clock::NodeId),
    /// Gossip's settings or this node's own state are out of bounds.
    #[error(transparent)]
    Gossip(#[from] starling_gossip::GossipError),
    /// What an earlier life of the node left cannot be read.
    #[error("the value {name:?} in storage cannot be read: it was written by another release")]
    BadMeta {
        /// Its name.
        name: String,
    },
}
