//! What a read comes to, and how clients are told of it.

use bytes::Bytes;
use starling_client::codec::{Blob, WireStamp};
use starling_client::wire::{self, ErrorCode, Response, WireError};
use starling_storage::{Action, Event};

#[cfg(doc)]
use super::Question;
use crate::core::replica::Declined;

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadValue {
    /// To [`Question::Newest`]; a delete is returned as such.
    Newest(Option<Event>),
    /// To [`Question::Versions`].
    Versions {
        /// In the order asked for.
        events: Vec<Event>,
        /// There may be more beyond the last one.
        more: bool,
    },
    /// A page of a scan: live keys only.
    Page {
        /// The newest event of each key, a put, in the order (partition, key).
        rows: Vec<Event>,
        /// Where to go on: (partition, after this key).
        cursor: Option<(u32, Option<Bytes>)>,
    },
}

/// Why a read was not answered. Reads change nothing that clients see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadFailure {
    /// Too few replicas answered, or took a repair, before the deadline.
    #[error(
        "{answered} of {needed} replicas answered in time: try again, or read at a lower level"
    )]
    Timeout {
        /// Replicas that answered.
        answered: usize,
        /// The level asked for.
        needed: usize,
    },
    /// So many replicas failed that the level cannot be met any more.
    #[error("{answered} of {needed} replicas answered and no other can: {reason}")]
    TooFew {
        /// Replicas that answered.
        answered: usize,
        /// The level asked for.
        needed: usize,
        /// Why the last one failed.
        reason: Trouble,
    },
}

/// Why a replica does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// There is no connection to it.
    #[error("a replica became unreachable, try again")]
    Unreachable,
    /// It did not take a repair.
    #[error("a replica did not take a repair, try again")]
    NotRepaired,
    /// It has another ring epoch, or is no home replica there.
    #[error("a replica has another ring epoch, refresh the topology")]
    NotHome,
    /// Its queues are full.
    #[error("a replica is overloaded, try again later")]
    Overloaded,
    /// Its data is damaged, or its storage failed.
    #[error("data on a replica is damaged, try another coordinator or a lower level")]
    Damaged,
    /// Its answer does not follow the protocol.
    #[error("a replica sent what does not follow the protocol, check the versions of the nodes")]
    Malformed,
}

impl From<Declined> for Trouble {
    fn from(refusal: Declined) -> Self {
        match refusal {
            Declined::NotHome => Self::NotHome,
            Declined::Overloaded => Self::Overloaded,
            Declined::Damaged => Self::Damaged,
            Declined::Malformed => Self::Malformed,
        }
    }
}

impl ReadFailure {
    /// As clients are told.
    pub fn code(self) -> ErrorCode {
        match self {
            Self::Timeout { .. } => ErrorCode::ReadTimeout,
            Self::TooFew { reason, .. } => match reason {
                Trouble::Unreachable | Trouble::NotRepaired | Trouble::Malformed => {
                    ErrorCode::Unavailable
                }
                Trouble::NotHome => ErrorCode::WrongEpoch,
                Trouble::Overloaded => ErrorCode::Overloaded,
                Trouble::Damaged => ErrorCode::Damaged,
            },
        }
    }
}

impl From<ReadFailure> for WireError {
    fn from(failure: ReadFailure) -> Self {
        Self::new(failure.code(), failure.to_string())
    }
}

impl From<ReadValue> for Response {
    fn from(value: ReadValue) -> Self {
        match value {
            ReadValue::Newest(event) => Self::Value { version: event.as_ref().map(version_of) },
            ReadValue::Versions { events, more } => {
                Self::History { versions: events.iter().map(version_of).collect(), more }
            }
            ReadValue::Page { rows, cursor } => {
                let row = |event: &Event| wire::Row {
                    key: Blob(event.key.clone()),
                    version: version_of(event),
                };
                Self::Page {
                    rows: rows.iter().map(row).collect(),
                    cursor: cursor.map(|(partition, after)| wire::Cursor {
                        partition,
                        after: after.map(Blob),
                    }),
                }
            }
        }
    }
}

/// An event as clients see it.
pub fn version_of(event: &Event) -> wire::Version {
    wire::Version {
        stamp: WireStamp(event.stamp),
        request: wire::RequestId { client: event.request.client, sequence: event.request.sequence },
        action: match event.action {
            Action::Put => wire::Action::Put,
            Action::Delete => wire::Action::Delete,
        },
        payload: Blob(event.payload.clone()),
    }
}
