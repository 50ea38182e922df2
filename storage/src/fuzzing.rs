//! What a fuzzer drives: the decoders of everything on disk, each behind a good checksum, which no fuzzer would guess.
//!
//! Invariants:
//!
//! - Any bytes give an answer, never a panic.
//! - What is decoded encodes to the bytes that it came from, where the format has one encoding of a thing.
//!
//! In the program this file is not: the feature `fuzzing` is for `fuzz/` alone.

use bytes::Bytes;

use crate::change_ids::{self, IndexHead};
use crate::event::Event;
use crate::log::{FRAME_HEADER_SIZE, FrameHead, Record, decode_frame, encode_frame, find_proof};
use crate::state::State;
use crate::tree::inspect::{decode_stored, manifest_of_edits};
use crate::tree::inspect::{internal_key_of, internal_key_parts};
use crate::wal::record::{WalRecord, encode_event};
use crate::{SimDisk, identity, packed, small_file, varint};

const SALT: u32 = 7;

/// A record in a good frame, in each of the logs.
pub fn log_record(data: &[u8]) {
    let mut records = Vec::new();
    varint::put_prefixed(&mut records, |out| out.extend_from_slice(data));
    let mut bytes = Vec::new();
    let head = FrameHead { salt: SALT, number: 9, count: 1, durable: 5 };
    encode_frame(head, &records, data.len() % 3 * 200, &mut bytes);
    let bytes = Bytes::from(bytes);
    let (frame, size) = decode_frame(SALT, &bytes).expect("just encoded");
    assert_eq!(size, bytes.len());
    let record = frame.records().next().expect("one").expect("just encoded");
    assert_eq!(record.payload, data);
    wal_record(&record);
    let mut again = Vec::new();
    if let Ok((provenance, previous, event)) = packed::change(&record.payload) {
        packed::put_change(provenance, previous, &event, &mut again);
        assert_eq!(again, data);
    }
    again.clear();
    if let Ok(event) = packed::event(&record.payload) {
        packed::put_event(&event, &mut again);
        assert_eq!(again, data);
    }
}

fn wal_record(record: &Record) {
    if let Ok(WalRecord::Event { sequence, provenance, previous, event, .. }) =
        WalRecord::decode(record)
    {
        let mut again = Vec::new();
        encode_event(record.number, sequence, (provenance, previous, &event), &mut again);
        assert_eq!(again, record.payload);
        event_in_tree(&event);
    }
}

/// An event's key in the tree says what the event does.
fn event_in_tree(event: &Event) {
    let key = internal_key_of(event);
    let (partition, keyspace, user_key, stamp) = internal_key_parts(&key).expect("just encoded");
    assert_eq!((partition, keyspace, stamp), (event.partition, event.keyspace, event.stamp));
    assert_eq!(user_key, event.key);
}

/// Any bytes as frames, with the checksum of the first put right.
pub fn frame(data: &[u8]) {
    let mut bytes = data.to_vec();
    let _ = decode_frame(SALT, &Bytes::copy_from_slice(data));
    let _ = find_proof(1, data, 0);
    if bytes.len() < FRAME_HEADER_SIZE {
        return;
    }
    let length = u32::try_from(bytes.len() - FRAME_HEADER_SIZE).expect("fuzzers give small inputs");
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    let crc = crc32c::crc32c_append(SALT, &bytes[4..]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    let bytes = Bytes::from(bytes);
    if let Ok((frame, size)) = decode_frame(SALT, &bytes) {
        assert_eq!(size, bytes.len());
        assert!(frame.records().count() <= usize::from(frame.count) + 1);
    }
}

/// Bytes at the end of a table, for those who put its checksum right.
pub const TABLE_FOOTER: usize = crate::tree::inspect::TABLE_FOOTER_SIZE;

/// The contents of the state file, and the file itself.
pub fn state(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    let _ = small_file::decode("state", crate::state::MAGIC, &bytes);
    if let Ok(state) = State::decode(&bytes) {
        let again = Bytes::from(state.encode());
        assert_eq!(State::decode(&again), Ok(state), "what is known is kept");
        let file = Bytes::from(small_file::encode(crate::state::MAGIC, &again));
        assert_eq!(small_file::decode("state", crate::state::MAGIC, &file).ok(), Some(again));
    }
}

/// The contents of the identity file, and the file itself.
pub fn identity(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    let _ = small_file::decode("identity", identity::MAGIC, &bytes);
    if let Some(found) = identity::decode(&bytes)
        && found.cluster.len() <= crate::CLUSTER_NAME_SIZE_MAX
    {
        assert_eq!(identity::encode(&found), data);
    }
}

/// A change index whose checksums are put right.
pub fn change_index(data: &[u8]) {
    let mut bytes = data.to_vec();
    change_ids::put_right(&mut bytes);
    let disk = SimDisk::new(1);
    for bytes in [data, &bytes] {
        let path = change_ids::index_path(1);
        disk.replace(&path, bytes);
        let Ok(Some((head, place, marks))) = change_ids::read_head(&disk, &path) else { continue };
        assert!(marks.len() * 16 < bytes.len());
        let head = IndexHead { first: 1, ..head };
        let _ = place.each(&disk, &head, |_, change| assert!(change > 0));
        let _ = place.find(&disk, &head, u64::from(bytes[0]) << 56);
    }
}

/// Edits of a manifest, each a length (two bytes) and its bytes, in records with good checksums.
pub fn manifest(data: &[u8]) {
    manifest_of_edits(data);
}

/// An internal key, and a stored value.
pub fn internal_key(data: &[u8]) {
    let _ = internal_key_parts(data);
    decode_stored(data);
}

/// An event, as peers send it.
pub fn event(data: &[u8]) {
    if let Ok((event, size)) = Event::decode(&Bytes::copy_from_slice(data)) {
        let mut again = Vec::new();
        event.encode(&mut again);
        assert_eq!(again, data[..size]);
        event_in_tree(&event);
    }
}
