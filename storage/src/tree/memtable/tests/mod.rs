//! Tests of the memtable as a whole. What they share is here.

#[cfg(not(loom))]
mod basics;
#[cfg(loom)]
mod interleavings;
#[cfg(not(loom))]
mod model;
#[cfg(not(loom))]
mod threads;

use bytes::Bytes;
use starling_clock::{HybridTime, NodeId, Stamp};

use super::{Entry, Memtable};
use crate::event::{Action, Event, KeyspaceId, RequestId};
use crate::tree::internal_key;
use crate::tree::table::key_hash;

fn stamp(ms: u64) -> Stamp {
    Stamp::new(HybridTime::new(ms, 0), NodeId(1))
}

/// An event whose payload says which one it is.
fn event(partition: u32, keyspace: u64, key: &[u8], ms: u64) -> Event {
    Event {
        partition,
        keyspace: KeyspaceId(keyspace),
        key: Bytes::copy_from_slice(key),
        stamp: stamp(ms),
        request: RequestId { client: 7, sequence: ms },
        action: if ms.is_multiple_of(4) { Action::Delete } else { Action::Put },
        payload: format!("{partition}/{keyspace}/{}@{ms}", key.escape_ascii()).into(),
    }
}

fn internal(event: &Event) -> Vec<u8> {
    internal_key::encode(event.partition, event.keyspace, &event.key, event.stamp)
}

/// The event that a point read finds.
fn get(memtable: &Memtable, of: &Event, at: Stamp) -> Option<Event> {
    let prefix = internal_key::prefix(of.partition, of.keyspace, &of.key);
    let entry = memtable.get(&prefix, key_hash(&prefix), at)?;
    entry.stored().to_stored().into_event(entry.key())
}

fn newest(memtable: &Memtable, of: &Event) -> Option<Stamp> {
    let prefix = internal_key::prefix(of.partition, of.keyspace, &of.key);
    memtable.get(&prefix, key_hash(&prefix), Stamp::MAX).map(Entry::stamp)
}
