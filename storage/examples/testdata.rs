//! Makes the files of this release that later ones have to read: `cargo run -p starling-storage --example testdata -- storage/testdata/v1`.
//!
//! Run once for a release, into a directory that is not there yet; what is under `testdata/` is never made anew. `tests/testdata.rs`
//! reads it.

#![expect(clippy::unwrap_used, reason = "run by hand; what fails is seen")]
#![expect(clippy::print_stdout, reason = "says what it has done")]

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use starling_clock::{HybridTime, NodeId, Stamp};
use starling_storage::{
    Action, Config, Event, Identity, KeyspaceId, Mode, OsDisk, Provenance, RequestId, Storage,
    Sync, TreeConfig, Write,
};

#[path = "../tests/support/contents.rs"]
mod contents;

fn event(n: u64, key: &[u8], action: Action, payload: &[u8]) -> Event {
    Event {
        partition: u32::try_from(n % u64::from(contents::PARTITIONS)).unwrap(),
        keyspace: KeyspaceId(if n.is_multiple_of(5) { 1 } else { 0x0102_0304_0506_0708 }),
        key: Bytes::copy_from_slice(key),
        stamp: Stamp::new(
            HybridTime::new(1_700_000_000_000 + n, u16::try_from(n % 3).unwrap()),
            NodeId(n % 4),
        ),
        request: RequestId { client: 0xdead_beef, sequence: n },
        action,
        payload: Bytes::copy_from_slice(payload),
    }
}

/// All kinds of keys: short, long, with zeros and the highest byte; of some many versions.
fn nth(n: u64) -> Event {
    let key = match n % 8 {
        0 => b"one key".to_vec(),
        1 => vec![0; usize::try_from(1 + n % 5).unwrap()],
        2 => vec![0xff, 0, 0xff, u8::try_from(n % 250).unwrap()],
        3 => vec![b'k'; usize::try_from(1 + n * 7 % 300).unwrap()],
        _ => format!("user/{:05}/profile", n * 37 % 1000).into_bytes(),
    };
    let payload: Vec<u8> = match n % 6 {
        0 => Vec::new(),
        1 => format!("{{\"name\":\"user {n}\",\"visits\":{}}}", n * n).into_bytes(),
        2 => vec![7; 1500],
        _ => (0..n % 90).map(|byte| u8::try_from(byte * 31 % 256).unwrap()).collect(),
    };
    event(n, &key, if n % 11 == 3 { Action::Delete } else { Action::Put }, &payload)
}

fn main() {
    let out = PathBuf::from(std::env::args().nth(1).expect("the directory to make"));
    assert!(!out.exists(), "files of a release are never made anew");
    let config = Config {
        memtable_bytes_max: 12 << 10,
        wal_segment_bytes_max: 12 << 10,
        change_segment_bytes_max: 12 << 10,
        hint_segment_bytes_max: 3 << 10,
        log_buffer_bytes_max: 2 << 10,
        log_salt: 0x5a17_5a17,
        tree: TreeConfig {
            block_bytes: 512,
            merge_width_min: 3,
            merge_width_max: 4,
            table_bytes_max: 12 << 10,
            ..TreeConfig::default()
        },
        ..Config::default()
    };
    let identity = Identity { cluster: "testdata".to_owned(), node: NodeId(42) };
    let disk = Arc::new(OsDisk::new(out.join("data")).unwrap());
    let mut storage = Storage::open(disk, config, identity).unwrap();
    let provenances = [
        Provenance::Write,
        Provenance::Hint,
        Provenance::ReadRepair,
        Provenance::AntiEntropy,
        Provenance::Transfer,
        Provenance::Expiry,
    ];
    for n in 0..260 {
        let provenance = provenances[usize::try_from(n % 6).unwrap()];
        let mut writes = vec![Write::Apply { event: nth(n), provenance, mode: Mode::Copy }];
        if n % 6 == 0 {
            let target = contents::TARGETS[usize::try_from(n / 6 % 2).unwrap()];
            writes.push(Write::Hint { target, event: nth(n) });
        }
        if n % 50 == 0 {
            let value = n.to_le_bytes().to_vec().into();
            writes.push(Write::Meta { name: format!("value {}", n % 3), value });
        }
        storage.commit(writes, Sync::Now, 1_700_000_000_000 + n).unwrap();
        if n % 3 == 0 && n < 240 {
            let _ = storage.work(1_700_000_000_000 + n).unwrap();
        }
    }
    storage
        .commit(vec![Write::HintsDone { target: contents::TARGETS[0], up_to: 12 }], Sync::Now, 1)
        .unwrap();
    let lines = contents::lines(&storage).unwrap();
    println!("{:?}", storage.status());
    drop(storage);
    std::fs::write(out.join("expected.jsonl"), lines.join("\n") + "\n").unwrap();
    println!("{} lines", lines.len());
}
