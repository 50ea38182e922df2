//! `FORMAT.md` is what the code does: its tables of fields are the code's, its worked bytes are encoded anew.
//! The tree's sections are held in `tree/tests/format.rs`.

use bytes::Bytes;
use starling_clock::{NodeId, Stamp};

use crate::change_ids::{self, IndexHead, StampBounds};
use crate::log::{
    FRAME_LAYOUT, FrameHead, LogKind, Mark, SEGMENT_LAYOUT, SegmentHead, encode_frame,
    encode_segment_header,
};
use crate::small_file::{self, SMALL_FILE_LAYOUT};
use crate::state::{HintMark, State};
use crate::wal::record::encode_event;
use crate::{
    Action, EVENT_LAYOUT, Event, Identity, KeyspaceId, Lsn, Provenance, RequestId, identity,
    packed, varint,
};

const DOCUMENT: &str = include_str!("../FORMAT.md");

fn section(heading: &str) -> &'static str {
    let (_, rest) = DOCUMENT.split_once(&format!("# {heading}\n")).expect(heading);
    rest.split("\n# ").next().unwrap_or(rest)
}

/// Rows of the section's table whose size is a number: (field, offset, size).
fn rows(heading: &str) -> Vec<(String, usize, usize)> {
    let lines = section(heading).lines().filter(|line| line.starts_with('|'));
    lines
        .filter_map(|line| {
            let cell: Vec<&str> = line.split('|').map(str::trim).collect();
            Some((cell[3].to_owned(), cell[1].parse().ok()?, cell[2].parse().ok()?))
        })
        .collect()
}

fn check_table(heading: &str, layout: &[(&str, usize, usize)]) {
    let code: Vec<_> =
        layout.iter().map(|&(n, offset, size)| (n.to_owned(), offset, size)).collect();
    assert_eq!(rows(heading), code, "{heading}");
    for pair in layout.windows(2) {
        assert_eq!(pair[0].1 + pair[0].2, pair[1].1, "{heading}: no gap, no overlap");
    }
}

fn check_example(heading: &str, bytes: &[u8]) {
    let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let lines = section(heading).lines().filter(|line| line.starts_with("    "));
    let example: Vec<&str> = lines.flat_map(str::split_whitespace).collect();
    let lines: Vec<String> = hex.chunks(32).map(|line| format!("    {}", line.join(" "))).collect();
    assert_eq!(example, hex, "{heading} should have\n{}", lines.join("\n"));
}

fn event() -> Event {
    Event {
        partition: 3,
        keyspace: KeyspaceId(0x0102),
        key: Bytes::from_static(b"key"),
        stamp: stamp("1000.2@7"),
        request: RequestId { client: 9, sequence: 2 },
        action: Action::Put,
        payload: Bytes::from_static(b"hi"),
    }
}

fn stamp(text: &str) -> Stamp {
    text.parse().unwrap()
}

#[test]
fn the_tables_are_the_codes() {
    check_table("Event", &EVENT_LAYOUT);
    check_table("Frame", &FRAME_LAYOUT);
    check_table("Segment", &SEGMENT_LAYOUT);
    check_table("Change index", &change_ids::INDEX_LAYOUT);
    check_table("Small file", &SMALL_FILE_LAYOUT);
}

#[test]
fn the_example_of_an_event_is_real() {
    let mut bytes = Vec::new();
    event().encode(&mut bytes);
    check_example("Event", &bytes);
}

#[test]
fn the_examples_of_packed_events_are_real() {
    let mut bytes = Vec::new();
    packed::put_event(&event(), &mut bytes);
    check_example("Packed event", &bytes);
    assert_eq!(packed::event(&Bytes::from(bytes)), Ok(event()));

    let mut bytes = Vec::new();
    packed::put_change(Provenance::ReadRepair, Some(stamp("999.0@1")), &event(), &mut bytes);
    check_example("Change", &bytes);
}

#[test]
fn the_examples_of_the_logs_are_real() {
    let head = FrameHead { salt: 5, number: 7, count: 1, durable: 6 };
    let mut bytes = Vec::new();
    encode_frame(head, b"\x02hi", usize::MAX, &mut bytes);
    check_example("Frame", &bytes);

    let segment = SegmentHead { salt: 5, first: 7 };
    let mut bytes = encode_segment_header(LogKind::WriteAhead, segment).to_vec();
    check_example("Segment", &bytes);

    let mut records = Vec::new();
    varint::put_prefixed(&mut records, |out| {
        encode_event(7, 4, (Provenance::ReadRepair, Some(stamp("999.0@1")), &event()), out);
    });
    encode_frame(head, &records, usize::MAX, &mut bytes);
    check_example("Write-ahead log", &bytes);
}

#[test]
fn the_example_of_a_change_index_is_real() {
    let bounds = StampBounds { least: stamp("1000.0@1"), greatest: stamp("2000.0@1") };
    let head = IndexHead { first: 4, next: 6, bytes: 150, sealed_ms: 5000, bounds };
    let marks = [Mark { number: 4, offset: 32 }];
    let bytes = change_ids::encode_index(&head, &marks, &[0x0a0b << 32, 0x0a0c << 32 | 1]);
    check_example("Change index", &bytes);
}

#[test]
fn the_examples_of_the_small_files_are_real() {
    let owner = Identity { cluster: "demo".to_owned(), node: NodeId(7) };
    check_example("Identity", &small_file::encode(identity::MAGIC, &identity::encode(&owner)));

    let mut state = State { up_to: Lsn(12), changes: 8, ..State::default() };
    state.metas.insert("clock".to_owned(), Bytes::from_static(b"5"));
    state.hints.insert(NodeId(9), HintMark { done: 3, next: 6 });
    check_example("State", &small_file::encode(crate::state::MAGIC, &state.encode()));
}
