//! A model of one replica, for the tests of the machines: a set of events that answers questions page by page.

use std::collections::BTreeMap;

use bytes::Bytes;
use starling_clock::{HybridTime, NodeId, Stamp};
use starling_storage::{Action, Digest, Event, EventId, KeyspaceDigest, KeyspaceId, RequestId};

use super::ReplicaAnswer;
use crate::core::peer::ReadQuery;

/// Partitions of the model's ring.
pub(crate) const PARTITIONS: u32 = 4;
/// The keyspace of the model's events.
pub(crate) const KEYSPACE: KeyspaceId = KeyspaceId(7);

/// The partition of a key in the model: its last byte decides.
pub(crate) fn partition_of(key: &[u8]) -> u32 {
    u32::from(key.last().copied().unwrap_or(0)) % PARTITIONS
}

/// A stamp at `ms`, by node 1.
pub(crate) fn stamp(ms: u64) -> Stamp {
    Stamp::new(HybridTime::new(ms, 0), NodeId(1))
}

/// An event at `ms` of a request of its own.
pub(crate) fn event(key: &[u8], ms: u64, action: Action, payload: &[u8]) -> Event {
    Event {
        partition: partition_of(key),
        keyspace: KEYSPACE,
        key: Bytes::copy_from_slice(key),
        stamp: stamp(ms),
        request: RequestId { client: 1, sequence: ms },
        action,
        payload: Bytes::copy_from_slice(payload),
    }
}

/// The set of events of one replica. Its pages are short, so that tests meet their ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Model {
    events: BTreeMap<(u32, KeyspaceId, Bytes, std::cmp::Reverse<Stamp>), Event>,
    /// Most events in an answer, whatever was asked for.
    pub(crate) page_max: usize,
    /// It takes nothing that is not above this any more, as below a tombstone floor.
    pub(crate) floor: Stamp,
}

impl Model {
    pub(crate) fn new(page_max: usize) -> Self {
        Self { events: BTreeMap::new(), page_max, floor: Stamp::ZERO }
    }

    /// Takes an event; tells whether it is news.
    pub(crate) fn apply(&mut self, event: &Event) -> bool {
        let order =
            (event.partition, event.keyspace, event.key.clone(), std::cmp::Reverse(event.stamp));
        self.floor < event.stamp && self.events.insert(order, event.clone()).is_none()
    }

    pub(crate) fn remove(&mut self, event: &Event) {
        let order =
            (event.partition, event.keyspace, event.key.clone(), std::cmp::Reverse(event.stamp));
        self.events.remove(&order);
    }

    pub(crate) fn events(&self) -> impl Iterator<Item = &Event> {
        self.events.values()
    }

    /// Events of a key, newest first.
    pub(crate) fn versions(&self, key: &[u8]) -> Vec<Event> {
        self.events().filter(|event| event.key == key).cloned().collect()
    }

    pub(crate) fn answer(&self, query: &ReadQuery) -> ReplicaAnswer {
        match query {
            ReadQuery::Get { key, at, payload_size_max, .. } => {
                let versions = self.versions(key);
                let mut event = versions.into_iter().find(|event| event.stamp <= at.0);
                let long = |event: &Event| event.payload.len() > *payload_size_max as usize;
                let cut = event.as_ref().is_some_and(long);
                if let Some(event) = event.as_mut().filter(|_| cut) {
                    event.payload = Bytes::new();
                }
                ReplicaAnswer::Event { event, cut }
            }
            ReadQuery::Versions { key, from, to, descending, limit, .. } => {
                let mut events = self.versions(key);
                events.retain(|event| (from.0..=to.0).contains(&event.stamp));
                if !descending {
                    events.reverse();
                }
                self.page(events, *limit)
            }
            ReadQuery::Scan { first, last, prefix, after, limit, .. } => {
                let mut events: Vec<Event> = self.events().cloned().collect();
                events.dedup_by(|later, earlier| later.key == earlier.key);
                events.retain(|event| {
                    (first..=last).contains(&&event.partition)
                        && event.key.starts_with(prefix)
                        && (event.partition > *first
                            || after.as_ref().is_none_or(|after| event.key > after.0))
                });
                let ReplicaAnswer::Events { events, more } = self.page(events, *limit) else {
                    unreachable!()
                };
                let covered = events.last().map(|event| (event.partition, event.key.clone()));
                ReplicaAnswer::Scanned { events, covered: covered.filter(|_| more) }
            }
            ReadQuery::Digests { first, last } => {
                let digest = |partition| {
                    let events = self.events().filter(|event| event.partition == partition);
                    let hashes = events.map(|event| {
                        let (keyspace, key, stamp) = super::place_of(event);
                        EventId { keyspace, key: &key, stamp }.hash()
                    });
                    let (count, hash) =
                        hashes.fold((0, 0), |(count, all), hash| (count + 1, all ^ hash));
                    (partition, count, hash)
                };
                let digests = (*first..=*last).map(digest);
                ReplicaAnswer::Digests(digests.filter(|(_, count, _)| *count > 0).collect())
            }
            ReadQuery::KeyspaceDigests { partition, up_to } => {
                let mut digests: BTreeMap<KeyspaceId, KeyspaceDigest> = BTreeMap::new();
                for event in self.events().filter(|event| event.partition == *partition) {
                    let keyspace = event.keyspace;
                    let none = KeyspaceDigest { keyspace, settled: Digest::default(), newer: 0 };
                    let digest = digests.entry(keyspace).or_insert(none);
                    if event.stamp <= up_to.0 {
                        digest.settled.add(event.id().hash());
                    } else {
                        digest.newer += 1;
                    }
                }
                ReplicaAnswer::KeyspaceDigests(digests.into_values().collect())
            }
            ReadQuery::PartitionEvents { partition, after, limit, ids_only } => {
                let after = after.as_ref().map(|(keyspace, key, stamp)| {
                    (*partition, KeyspaceId(*keyspace), key.0.clone(), std::cmp::Reverse(stamp.0))
                });
                let follows = |order| after.as_ref().is_none_or(|after| order > after);
                let events = self
                    .events
                    .iter()
                    .filter(|(order, _)| order.0 == *partition && follows(*order));
                let mut events: Vec<Event> = events.map(|(_, event)| event.clone()).collect();
                if *ids_only {
                    for event in &mut events {
                        event.payload = Bytes::new();
                    }
                }
                self.page(events, *limit)
            }
        }
    }

    fn page(&self, mut events: Vec<Event>, limit: u32) -> ReplicaAnswer {
        let length = (limit as usize).min(self.page_max);
        let more = events.len() > length;
        events.truncate(length);
        ReplicaAnswer::Events { events, more }
    }
}
