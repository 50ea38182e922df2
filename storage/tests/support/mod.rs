//! Small settings, so that a few hundred events go through every part; and short names for what tests do all the time.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(dead_code, reason = "each test file uses its own part")]

pub(crate) mod model;

use std::sync::Arc;

use bytes::Bytes;
use starling_clock::{HybridTime, NodeId, Stamp};
use starling_storage::{
    Action, Config, Error, Event, Identity, KeyspaceId, Mode, Progress, Provenance, RequestId,
    SimDisk, Storage, Sync, TreeConfig, Write,
};

pub(crate) const KEYSPACE: KeyspaceId = KeyspaceId(77);

pub(crate) fn config() -> Config {
    Config {
        payload_size_max: 1 << 20,
        memtable_bytes_max: (8 << 10) + 768,
        wal_segment_bytes_max: 8 << 10,
        change_segment_bytes_max: 4 << 10,
        change_bytes_max: 1 << 30,
        change_age_ms_max: u64::MAX / 4,
        hint_bytes_max: 1 << 20,
        hint_segment_bytes_max: 2 << 10,
        log_buffer_bytes_max: 2 << 10,
        log_salt: 0x5eed,
        tree: TreeConfig {
            block_bytes: 512,
            merge_width_min: 2,
            merge_width_max: 4,
            work_bytes: 4 << 10,
            block_cache_bytes: 64 << 10,
            ..TreeConfig::default()
        },
    }
}

pub(crate) fn identity() -> Identity {
    Identity { cluster: "test".to_owned(), node: NodeId(1) }
}

pub(crate) fn open_with(disk: &SimDisk, config: Config) -> Result<Storage<SimDisk>, Error> {
    Storage::open(Arc::new(disk.clone()), config, identity())
}

pub(crate) fn open(disk: &SimDisk) -> Storage<SimDisk> {
    open_with(disk, config()).unwrap()
}

pub(crate) fn stamp(ms: u64) -> Stamp {
    Stamp::new(HybridTime::new(ms, 0), NodeId(1))
}

pub(crate) fn event(key: &[u8], ms: u64, payload: &[u8]) -> Event {
    Event {
        partition: 1,
        keyspace: KEYSPACE,
        key: Bytes::copy_from_slice(key),
        stamp: stamp(ms),
        request: RequestId { client: 3, sequence: ms },
        action: Action::Put,
        payload: Bytes::copy_from_slice(payload),
    }
}

pub(crate) fn apply(event: &Event) -> Write {
    let (provenance, mode) = (Provenance::Write, Mode::Direct);
    Write::Apply { event: event.clone(), provenance, mode }
}

pub(crate) fn copy(event: &Event) -> Write {
    let (provenance, mode) = (Provenance::AntiEntropy, Mode::Copy);
    Write::Apply { event: event.clone(), provenance, mode }
}

/// Applies `count` events of keys of their own.
pub(crate) fn fill(storage: &mut Storage<SimDisk>, from: u64, count: u64) {
    for n in from..from + count {
        let event = event(&n.to_be_bytes(), 1000 + n, &[7; 40]);
        storage.commit(vec![apply(&event)], Sync::Now, 1).unwrap();
    }
}

pub(crate) fn work_all(storage: &mut Storage<SimDisk>, now_ms: u64) {
    for _ in 0..100_000 {
        if storage.work(now_ms).unwrap() == Progress::Idle {
            return;
        }
    }
    panic!("background work never ends");
}
