//! One replica asked one question: the question as a storage request, the answer in decoded form, and back to the wire.
//!
//! Invariants:
//!
//! - What comes from a peer is checked here, once: every event decodes to its last byte and lies in the partition of its key.
//!   What does not is [`Declined::Malformed`], as if the peer had not answered.
//! - The replica, not the asker, bounds how many bytes an answer has.
//!
//! It does not decide who is asked, nor what to do with the answer.

use bytes::Bytes;
use starling_client::codec::{Blob, List, WireStamp};
use starling_client::wire::KEY_SIZE_MAX;
use starling_clock::Stamp;
use starling_storage::{Digest, Event, HistoryRetention, KeyspaceDigest, KeyspaceId};

use crate::limits::{PEER_READ_BYTES_MAX, PEER_READ_EVENTS_MAX};

use super::peer::{ReadAnswer, ReadQuery};
use super::storage::{StorageAnswer, StorageFailure, StorageRequest};

/// Bytes of events after which the answer to a page of identities, or of events to copy, ends.
pub const COPY_BYTES_MAX: usize = 256 << 10;

const _: () = assert!(COPY_BYTES_MAX <= PEER_READ_BYTES_MAX);

/// What one replica said, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaAnswer {
    /// To `Get`.
    Event {
        /// What was found.
        event: Option<Event>,
        /// Its payload was left out.
        cut: bool,
    },
    /// To `Versions` and `PartitionEvents`.
    Events {
        /// What was found.
        events: Vec<Event>,
        /// There may be more.
        more: bool,
    },
    /// To `Scan`.
    Scanned {
        /// Newest event of each key.
        events: Vec<Event>,
        /// Everything up to and with this place was looked at; `None`: all that was asked for.
        covered: Option<(u32, Bytes)>,
    },
    /// To `Digests`: (partition, events, hash), those without events left out.
    Digests(Vec<(u32, u64, u64)>),
    /// To `KeyspaceDigests`.
    KeyspaceDigests(Vec<KeyspaceDigest>),
    /// It did not answer the question.
    Declined(Declined),
}

/// Why a replica did not answer a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Declined {
    /// Not a home replica, or another epoch.
    NotHome,
    /// Its queues are full.
    Overloaded,
    /// What was asked for is damaged there, or its storage failed.
    Damaged,
    /// The question, or the answer, does not follow the protocol.
    Malformed,
}

/// The storage request that answers `query`; `None` if the query is out of bounds. `partition_of` places a key.
pub fn storage_request(
    query: &ReadQuery,
    partition_of: impl Fn(&[u8]) -> u32,
) -> Option<StorageRequest> {
    let key_fits = |key: &[u8]| (1..=KEY_SIZE_MAX).contains(&key.len());
    let limit_fits = |limit: u32| (1..=PEER_READ_EVENTS_MAX).contains(&limit);
    match query {
        ReadQuery::Get { keyspace, key, at, payload_size_max } => {
            key_fits(key).then(|| StorageRequest::Get {
                partition: partition_of(key),
                keyspace: KeyspaceId(*keyspace),
                key: key.0.clone(),
                at: at.0,
                payload_size_max: *payload_size_max as usize,
            })
        }
        ReadQuery::Versions { keyspace, key, from, to, descending, limit } => {
            (key_fits(key) && limit_fits(*limit)).then(|| StorageRequest::Versions {
                partition: partition_of(key),
                keyspace: KeyspaceId(*keyspace),
                key: key.0.clone(),
                from: from.0,
                to: to.0,
                descending: *descending,
                limit: *limit as usize,
                bytes_max: PEER_READ_BYTES_MAX,
            })
        }
        ReadQuery::Scan { first, last, keyspace, prefix, after, limit } => {
            let fits = first <= last
                && limit_fits(*limit)
                && prefix.len() <= KEY_SIZE_MAX
                && after.as_ref().is_none_or(|key| key.len() <= KEY_SIZE_MAX);
            fits.then(|| StorageRequest::Scan {
                first: *first,
                last: *last,
                keyspace: KeyspaceId(*keyspace),
                prefix: prefix.0.clone(),
                after: after.clone().map(|key| key.0),
                limit: *limit as usize,
                bytes_max: PEER_READ_BYTES_MAX,
            })
        }
        ReadQuery::Digests { first, last } => {
            (first <= last).then_some(StorageRequest::Digests { first: *first, last: *last })
        }
        ReadQuery::KeyspaceDigests { partition, up_to } => {
            let (partition, up_to) = (*partition, up_to.0);
            Some(StorageRequest::KeyspaceDigests { partition, up_to })
        }
        ReadQuery::PartitionEvents { partition, after, limit, ids_only } => {
            let fits = limit_fits(*limit) && after.as_ref().is_none_or(|(_, key, _)| key_fits(key));
            fits.then(|| StorageRequest::PartitionEvents {
                partition: *partition,
                after: after
                    .clone()
                    .map(|(keyspace, key, stamp)| (KeyspaceId(keyspace), key.0, stamp.0)),
                limit: *limit as usize,
                bytes_max: COPY_BYTES_MAX,
                ids_only: *ids_only,
            })
        }
    }
}

impl From<StorageAnswer> for ReplicaAnswer {
    /// What our own storage said. An answer of the write lane is none to a question: it comes out as refused.
    fn from(answer: StorageAnswer) -> Self {
        match answer {
            StorageAnswer::Event { event, cut } => Self::Event { event, cut },
            StorageAnswer::Events { events, more }
            | StorageAnswer::PartitionEvents { events, more } => Self::Events { events, more },
            StorageAnswer::Scanned { events, covered } => Self::Scanned { events, covered },
            StorageAnswer::Digests(digests) => Self::Digests(digests),
            StorageAnswer::KeyspaceDigests(digests) => Self::KeyspaceDigests(digests),
            StorageAnswer::Failed(StorageFailure::Damaged | StorageFailure::Poisoned) => {
                Self::Declined(Declined::Damaged)
            }
            StorageAnswer::Failed(StorageFailure::Full | StorageFailure::Busy) => {
                Self::Declined(Declined::Overloaded)
            }
            StorageAnswer::Failed(StorageFailure::Invalid)
            | StorageAnswer::Applied(_)
            | StorageAnswer::Done
            | StorageAnswer::Changes { .. }
            | StorageAnswer::ChangesGap { .. }
            | StorageAnswer::Sequence(_)
            | StorageAnswer::Hints { .. }
            | StorageAnswer::Status(_) => Self::Declined(Declined::Malformed),
        }
    }
}

impl ReplicaAnswer {
    /// What a peer said, checked. `partition_of` places a key.
    pub fn from_wire(answer: ReadAnswer, partition_of: impl Fn(&[u8]) -> u32) -> Self {
        let decode = |events: &[Blob]| {
            events.iter().map(|event| decode_event(event, &partition_of)).collect::<Option<_>>()
        };
        let decoded = match answer {
            ReadAnswer::Event { event: None, .. } => Some(Self::Event { event: None, cut: false }),
            ReadAnswer::Event { event: Some(event), cut } => decode_event(&event, &partition_of)
                .map(|event| Self::Event { event: Some(event), cut }),
            ReadAnswer::Events { events, more } => {
                decode(&events).map(|events| Self::Events { events, more })
            }
            ReadAnswer::Scanned { events, covered } => {
                decode(&events).map(|events| Self::Scanned {
                    events,
                    covered: covered.map(|(partition, key)| (partition, key.0)),
                })
            }
            ReadAnswer::Digests(digests) => Some(Self::Digests(digests.0)),
            ReadAnswer::KeyspaceDigests(digests) => {
                let digest = |(keyspace, events, hash, newer)| KeyspaceDigest {
                    keyspace: KeyspaceId(keyspace),
                    settled: Digest { events, hash },
                    newer,
                };
                Some(Self::KeyspaceDigests(digests.0.into_iter().map(digest).collect()))
            }
            ReadAnswer::NotHome => Some(Self::Declined(Declined::NotHome)),
            ReadAnswer::Overloaded => Some(Self::Declined(Declined::Overloaded)),
            ReadAnswer::Damaged => Some(Self::Declined(Declined::Damaged)),
            ReadAnswer::Invalid => Some(Self::Declined(Declined::Malformed)),
        };
        decoded.unwrap_or(Self::Declined(Declined::Malformed))
    }

    /// As a peer is told.
    pub fn into_wire(self) -> ReadAnswer {
        match self {
            Self::Event { event, cut } => {
                ReadAnswer::Event { event: event.as_ref().map(encode_event), cut }
            }
            Self::Events { events, more } => {
                ReadAnswer::Events { events: encode_events(&events), more }
            }
            Self::Scanned { events, covered } => ReadAnswer::Scanned {
                events: encode_events(&events),
                covered: covered.map(|(partition, key)| (partition, Blob(key))),
            },
            Self::Digests(digests) => ReadAnswer::Digests(List(digests)),
            Self::KeyspaceDigests(digests) => {
                let digest = |it: KeyspaceDigest| {
                    (it.keyspace.0, it.settled.events, it.settled.hash, it.newer)
                };
                ReadAnswer::KeyspaceDigests(digests.into_iter().map(digest).collect())
            }
            Self::Declined(Declined::NotHome) => ReadAnswer::NotHome,
            Self::Declined(Declined::Overloaded) => ReadAnswer::Overloaded,
            Self::Declined(Declined::Damaged) => ReadAnswer::Damaged,
            Self::Declined(Declined::Malformed) => ReadAnswer::Invalid,
        }
    }
}

/// An event as it travels between peers.
pub fn encode_event(event: &Event) -> Blob {
    let mut bytes = Vec::with_capacity(event.encoded_len());
    event.encode(&mut bytes);
    Blob(bytes.into())
}

/// Events as they travel between peers. They share one buffer.
pub fn encode_events(events: &[Event]) -> List<Blob> {
    let mut bytes = Vec::with_capacity(events.iter().map(Event::encoded_len).sum());
    let mut ends = Vec::with_capacity(events.len());
    for event in events {
        event.encode(&mut bytes);
        ends.push(bytes.len());
    }
    let bytes = Bytes::from(bytes);
    let mut start = 0;
    let one = |end| Blob(bytes.slice(std::mem::replace(&mut start, end)..end));
    ends.into_iter().map(one).collect()
}

/// An event from a peer; `None` unless the bytes are exactly one event and it lies in the partition of its key.
pub fn decode_event(bytes: &Blob, partition_of: impl Fn(&[u8]) -> u32) -> Option<Event> {
    let (event, used) = Event::decode(&bytes.0).ok()?;
    (used == bytes.len() && event.partition == partition_of(&event.key)).then_some(event)
}

/// Where an event stands in the internal order of its partition: (keyspace, key, newest first).
pub type Place = (KeyspaceId, Bytes, Stamp);

/// The place of `event`.
pub fn place_of(event: &Event) -> Place {
    (event.keyspace, event.key.clone(), event.stamp)
}

/// A place as it travels between peers.
pub fn place_to_wire(place: &Place) -> (u64, Blob, WireStamp) {
    (place.0.0, Blob(place.1.clone()), WireStamp(place.2))
}

/// Whether a replica that has merged everything still keeps an event of a key. `rank` counts the newer events of the key,
/// `newer` is the stamp of the next newer one. Copying what retention drops would bring it back, over and over.
pub fn is_retained(
    retention: HistoryRetention,
    rank: u64,
    newer: Option<Stamp>,
    wall_ms: u64,
) -> bool {
    let Some(newer) = newer else { return true };
    let in_number = retention.versions_max.is_none_or(|versions| rank < u64::from(versions));
    let replaced_ms = wall_ms.saturating_sub(newer.time.physical_ms());
    let in_time = retention.age_ms_max.is_none_or(|age_ms| replaced_ms <= age_ms);
    in_number && in_time
}

#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;
