//! A small data directory with every kind of file, made once, and copies of it with damage.
//!
//! Invariants:
//!
//! - The same bytes of a fuzzer make the same damage.
//! - Checksums of headers and footers are put right after the damage, where the format document says where they are; those of blocks
//!   and frames are the business of `Mutation::ServeUnchecked`.

use std::sync::Arc;

use bytes::Bytes;
use starling_clock::{HybridTime, NodeId, Stamp};
use starling_storage::{
    Action, Config, Disk, Event, Identity, KeyspaceId, Mode, Order, Progress, Provenance,
    RequestId, SimDisk, Storage, Sync, TreeConfig, Write,
};

const KEYSPACE: KeyspaceId = KeyspaceId(77);

/// Small, so that a few events go through every part.
pub fn config() -> Config {
    Config {
        memtable_bytes_max: 4 << 10,
        wal_segment_bytes_max: 4 << 10,
        change_segment_bytes_max: 2 << 10,
        hint_segment_bytes_max: 1 << 10,
        log_buffer_bytes_max: 1 << 10,
        log_salt: 0x5eed,
        tree: TreeConfig {
            block_bytes: 256,
            work_bytes: 4 << 10,
            block_cache_bytes: 64 << 10,
            ..TreeConfig::default()
        },
        ..Config::default()
    }
}

/// Whose the directory is.
pub fn identity() -> Identity {
    Identity { cluster: "fuzz".to_owned(), node: NodeId(1) }
}

/// A directory and the files in it that take damage.
pub struct Template {
    disk: SimDisk,
    files: Vec<(String, Vec<u8>)>,
}

impl Default for Template {
    fn default() -> Self {
        Self::new()
    }
}

impl Template {
    /// All files.
    pub fn new() -> Self {
        let disk = SimDisk::new(1);
        fill(&disk);
        let mut files = Vec::new();
        for dir in ["", "wal", "changes", "hints/00000000000000000007", "tables"] {
            for name in disk.list(dir).unwrap_or_default() {
                let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
                if let Some(bytes) = disk.contents(&path).filter(|bytes| !bytes.is_empty()) {
                    files.push((path, bytes));
                }
            }
        }
        Self { disk, files }
    }

    /// The tables alone.
    pub fn of_tables() -> Self {
        let mut template = Self::new();
        template.files.retain(|(path, _)| path.ends_with(".table"));
        assert!(!template.files.is_empty());
        template
    }

    /// A copy with damage: file (1 byte), offset (2), length (1), bytes; a length of 255 cuts the file off there.
    pub fn patched(&self, mut patches: &[u8]) -> SimDisk {
        let disk = self.disk.fork();
        let mut files = self.files.clone();
        while let Some((&[file, low, high, length], rest)) = patches.split_first_chunk::<4>() {
            let index = usize::from(file) % files.len();
            let bytes = &mut files[index].1;
            let offset = usize::from(u16::from_le_bytes([low, high])) % (bytes.len() + 1);
            if length == 255 {
                bytes.truncate(offset);
                patches = rest;
                continue;
            }
            let length = usize::from(length).min(rest.len());
            let end = (offset + length).min(bytes.len());
            bytes[offset..end].copy_from_slice(&rest[..end - offset]);
            patches = &rest[length..];
        }
        for ((path, bytes), (_, before)) in files.iter_mut().zip(&self.files) {
            if bytes != before {
                put_right(path, bytes);
                disk.replace(path, bytes);
            }
        }
        disk
    }
}

/// Puts the checksum of a header or a footer right.
fn put_right(path: &str, bytes: &mut [u8]) {
    let seal = |bytes: &mut [u8], at: usize, covered: std::ops::Range<usize>| {
        if covered.end <= bytes.len() && at + 4 <= bytes.len() && covered.start <= covered.end {
            let crc = crc32c::crc32c(&bytes[covered]);
            bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
        }
    };
    if path.ends_with(".log") {
        seal(bytes, 28, 0..28);
    } else if path.ends_with(".table") {
        let size = starling_storage::fuzzing::TABLE_FOOTER;
        if let Some(start) = bytes.len().checked_sub(size) {
            seal(&mut bytes[start..], 0, 4..size);
        }
    } else if path == "tables/MANIFEST" {
        seal(bytes, 12, 0..12);
    } else if (path == "state" || path == "identity") && bytes.len() >= 20 {
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..16]), &bytes[20..]);
        bytes[16..20].copy_from_slice(&crc.to_le_bytes());
    }
}

fn event(n: u64) -> Event {
    let key = format!("key {:03}", n % 60);
    Event {
        partition: u32::try_from(n % 3).expect("below 3"),
        keyspace: KEYSPACE,
        key: Bytes::from(key),
        stamp: Stamp::new(HybridTime::new(1000 + n, 0), NodeId(1)),
        request: RequestId { client: 3, sequence: n },
        action: if n % 7 == 0 { Action::Delete } else { Action::Put },
        payload: Bytes::from(vec![b'p'; usize::try_from(n % 50).expect("below 50")]),
    }
}

fn fill(disk: &SimDisk) {
    let mut storage =
        Storage::open(Arc::new(disk.clone()), config(), identity()).expect("an empty disk");
    let commit = |storage: &mut Storage<SimDisk>, write| {
        storage.commit(vec![write], Sync::Now, 1).expect("nothing fails");
    };
    for n in 0..120 {
        let (provenance, mode) = (Provenance::Write, Mode::Copy);
        commit(&mut storage, Write::Apply { event: event(n), provenance, mode });
        if n % 5 == 0 {
            commit(&mut storage, Write::Hint { target: NodeId(7), event: event(n) });
        }
        let _ = storage.work(1).expect("nothing fails");
    }
    commit(&mut storage, Write::HintsDone { target: NodeId(7), up_to: 3 });
    commit(&mut storage, Write::Meta { name: "clock".to_owned(), value: Bytes::from_static(b"5") });
    while storage.work(1).expect("nothing fails") == Progress::Did {}
}

/// Every way to read.
pub fn read_all(storage: &Storage<SimDisk>) {
    let view = storage.view();
    for partition in 0..3 {
        let _ = view.partition_events(partition, None, 1000, 1 << 20);
        let _ = view.digest(partition);
        let _ = view.scan(partition, KEYSPACE, b"key", None, Stamp::MAX, 1000, 1 << 20);
        for n in (0..60).step_by(7) {
            let key = format!("key {n:03}");
            let _ = view.get(partition, KEYSPACE, key.as_bytes(), Stamp::MAX);
            for order in [Order::Ascending, Order::Descending] {
                let (from, to) = (Stamp::ZERO, Stamp::MAX);
                let _ = view.versions(
                    partition,
                    KEYSPACE,
                    key.as_bytes(),
                    from,
                    to,
                    order,
                    100,
                    1 << 20,
                );
            }
        }
    }
    let (first, _) = storage.change_range();
    let _ = view.changes(first, 1000, 1 << 20);
    let _ = view.changes_at(Stamp::new(HybridTime::new(1050, 0), NodeId(1)));
    let _ = storage.hints(NodeId(7), 0, 1 << 20);
}
