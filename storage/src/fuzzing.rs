//! What a fuzzer drives: the decoders of everything on disk, each behind a good checksum, which no fuzzer would guess.
//!
//! Invariants:
//!
//! - Any bytes give an answer, never a panic.
//! - What is decoded encodes to the bytes that it came from, where the format has one encoding of a thing.
//!
//! In the program this file is not: the feature `fuzzing` is for `fuzz/` alone.

use bytes::Bytes;

use crate::changes;
use crate::event::Event;
use crate::log::{Frame, begin_frame, decode_frame, finish_frame, proves_durable};
use crate::state::State;
use crate::tree::inspect::{decode_stored, manifest_of_edits};
use crate::tree::inspect::{internal_key_of, internal_key_parts};
use crate::wal::{WalRecord, decode_change, decode_event, encode_event_header};
use crate::{identity, small_file};

const SALT: u32 = 7;

/// A payload in a good frame of any kind, in each of the logs.
pub fn log_record(data: &[u8]) {
    let Some((&kind, payload)) = data.split_first() else { return };
    let mut bytes = Vec::new();
    let start = begin_frame(kind.max(1), 9, 5, &mut bytes);
    bytes.extend_from_slice(payload);
    finish_frame(SALT, start, &mut bytes);
    let bytes = Bytes::from(bytes);
    let (frame, size) = decode_frame(SALT, &bytes).expect("just encoded");
    assert_eq!(size, bytes.len());
    wal_record(&frame);
    if let Ok((provenance, previous, event)) = decode_change(&frame.payload) {
        let mut again = encode_event_header(0, provenance, previous)[8..].to_vec();
        event.encode(&mut again);
        assert_eq!(again, payload);
    }
    if let Ok(event) = decode_event(&frame.payload) {
        let mut again = Vec::new();
        event.encode(&mut again);
        assert_eq!(again, payload);
    }
}

fn wal_record(frame: &Frame) {
    if let Ok(WalRecord::Event { sequence, provenance, previous, event }) = WalRecord::decode(frame)
    {
        let mut again = encode_event_header(sequence, provenance, previous).to_vec();
        event.encode(&mut again);
        assert_eq!(again, frame.payload);
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
    let _ = proves_durable(SALT, 1, &Bytes::copy_from_slice(data));
    if bytes.len() < 28 {
        return;
    }
    let length = u32::try_from(bytes.len() - 28).expect("fuzzers give small inputs");
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    let crc = crc32c::crc32c_append(SALT, &bytes[4..]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    let bytes = Bytes::from(bytes);
    if let Ok((frame, size)) = decode_frame(SALT, &bytes) {
        assert_eq!(size, bytes.len());
        let mut again = Vec::new();
        let start = begin_frame(frame.kind, frame.number, frame.durable, &mut again);
        again.extend_from_slice(&frame.payload);
        finish_frame(SALT, start, &mut again);
        assert_eq!(again, bytes);
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
    let _ = changes::decode_index_head(data);
    if data.len() < changes::INDEX_HEADER_SIZE {
        return;
    }
    let mut bytes = data.to_vec();
    bytes[..8].copy_from_slice(&changes::INDEX_MAGIC);
    bytes[8..12].copy_from_slice(&changes::INDEX_VERSION.to_le_bytes());
    let places = u32::from_le_bytes(crate::event::array(&bytes, 80)) as usize;
    let ids_start = changes::INDEX_HEADER_SIZE.saturating_add(places.saturating_mul(16));
    if let Some(covered) = bytes.get(16..ids_start) {
        let crc = crc32c::crc32c(covered);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    }
    if let Some((_, marks, found)) = changes::decode_index_head(&bytes) {
        assert_eq!((marks.len(), found), (places, ids_start));
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
