//! Tests of the tree as a whole, one kind a file. What they share is here.

mod crash;
mod damage;
mod format;
mod model;
mod retention;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use starling_clock::{HybridTime, NodeId, Stamp};

use super::manifest::Edit;
use super::*;
use crate::Retentions;
use crate::disk::SimDisk;
use crate::event::{Action, KeyspaceId, RequestId};
use crate::types::Progress;

/// Everything small, so that a few events make several blocks, tables and merges.
pub(super) fn small() -> TreeConfig {
    TreeConfig {
        block_bytes: 256,
        bloom_bits_per_key: 10,
        block_cache_bytes: 4096,
        merge_width_min: 2,
        merge_width_max: 3,
        table_bytes_max: 1500,
        work_bytes: 300,
    }
}

pub(super) fn open(disk: &Arc<SimDisk>) -> Tree<SimDisk> {
    Tree::open(Arc::clone(disk), "tables", small()).expect("a sound tree opens")
}

/// Works until there is nothing to do.
pub(super) fn settle(tree: &mut Tree<SimDisk>, now_ms: u64, retentions: &Retentions) {
    while tree.work(now_ms, retentions).expect("the disk is fine") == Progress::Did {}
}

pub(super) fn stamp(ms: u64) -> Stamp {
    Stamp::new(HybridTime::new(ms, 0), NodeId(1))
}

pub(super) fn event(partition: u32, key: &[u8], stamp: Stamp, action: Action) -> Event {
    let payload = format!("{}@{stamp}", String::from_utf8_lossy(key)).into();
    Event {
        partition,
        keyspace: KeyspaceId(u64::from(partition % 2)),
        key: Bytes::copy_from_slice(key),
        stamp,
        request: RequestId { client: 7, sequence: stamp.time.physical_ms() },
        action,
        payload,
    }
}

pub(super) fn put(key: &str, ms: u64) -> Event {
    event(0, key.as_bytes(), stamp(ms), Action::Put)
}

pub(super) fn delete(key: &str, ms: u64) -> Event {
    event(0, key.as_bytes(), stamp(ms), Action::Delete)
}

pub(super) const ALL: Limits = Limits { events: usize::MAX, bytes: usize::MAX };

/// Every event of a partition, by internal key.
pub(super) fn events(tree: &Tree<SimDisk>, partition: u32) -> BTreeMap<Vec<u8>, Event> {
    let page = tree.view().partition_events(partition, None, ALL).expect("sound");
    page.events.into_iter().map(|event| (internal(&event), event)).collect()
}

pub(super) fn internal(event: &Event) -> Vec<u8> {
    internal_key::encode(event.partition, event.keyspace, &event.key, event.stamp)
}
