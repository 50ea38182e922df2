//! `PROTOCOL.md` against the code, and the codec and frames against bytes that mean harm.

use proptest::prelude::*;
use starling_client::codec::{self, DecodeError, MESSAGE_SIZE_MAX};
use starling_client::transport::{
    FRAME_SIZE_MAX, FrameDecoder, FrameError, FrameKind, HEADER_SIZE, SHARED_FRAME_SIZE_MAX,
    encode_frame,
};
use starling_client::wire::{
    Action, ChangesItem, ChangesRequest, Cursor, DamageStatus, DamagedPlace, Durability, ErrorCode,
    FoundBy, Header, Level, Request, RequestId, Response, Topology, WireError,
};
use starling_client::{HybridTime, NodeId, Stamp};

const DOCUMENT: &str = include_str!("../../PROTOCOL.md");

/// The cells of the document's rows that have `count` of them.
fn rows(count: usize) -> impl Iterator<Item = Vec<&'static str>> {
    let lines = DOCUMENT.lines().filter(|line| line.starts_with('|'));
    let cells = lines.map(|line| line.trim_matches('|').split('|').map(str::trim).collect());
    cells.filter(move |cells: &Vec<&str>| cells.len() == count)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

#[test]
fn the_table_of_errors_is_the_codes() {
    let table: Vec<(u8, String, String)> = rows(4)
        .filter_map(|cells| Some((cells[0].parse().ok()?, cells[1].into(), cells[2].into())))
        .filter(|(_, name, _): &(u8, String, String)| name.starts_with(char::is_uppercase))
        .collect();
    let codes: Vec<(u8, String, String)> = (0..=250)
        .map_while(|number| {
            let code: ErrorCode = codec::decode(&[number]).ok()?;
            Some((number, format!("{code:?}"), format!("{:?}", code.kind())))
        })
        .collect();
    assert_eq!(table, codes);
    assert!(codes.len() > 20);
}

#[test]
fn the_table_of_kinds_is_the_codes() {
    let table: Vec<(u8, String)> =
        rows(3).filter_map(|cells| Some((cells[0].parse().ok()?, cells[1].into()))).collect();
    let code = FrameKind::ALL.map(|kind| (kind.number(), format!("{kind:?}")));
    assert_eq!(table, code);
    for kind in FrameKind::ALL {
        assert_eq!(FrameKind::from_number(kind.number()), Some(kind));
    }
}

#[test]
fn the_worked_bytes_are_real() {
    let document = DOCUMENT.split_whitespace().collect::<Vec<_>>().join(" ");
    let header = Header {
        request: RequestId { client: 1, sequence: 2 },
        attempt: 0,
        timeout_ms: 5000,
        epoch: 1,
        observed: 0,
    };
    let get = Request::Get {
        keyspace: "default".into(),
        key: b"k".to_vec().into(),
        at: None,
        level: Some(Level::Quorum),
    };
    let stamp = Stamp { time: HybridTime::new(1, 0), node: NodeId(3) };
    let written = Response::Written { stamp: stamp.into(), superseded: false, acks: 2 };
    let error = Response::Error(WireError::new(ErrorCode::KeyEmpty, "no"));

    let mut frames = [const { Vec::new() }; 3];
    encode_frame(FrameKind::Request, 7, &mut frames[0], |body| {
        codec::encode(&header, body);
        codec::encode(&get, body);
    });
    encode_frame(FrameKind::Response, 8, &mut frames[1], |body| codec::encode(&written, body));
    encode_frame(FrameKind::Response, 9, &mut frames[2], |body| codec::encode(&error, body));
    for frame in &frames {
        assert!(document.contains(&hex(frame)), "{}", hex(frame));
    }
    assert_eq!(codec::decode::<(Header, Request)>(&frames[0][HEADER_SIZE..]), Ok((header, get)));
    assert_eq!(codec::decode::<Response>(&frames[1][HEADER_SIZE..]), Ok(written));
    assert_eq!(codec::decode::<Response>(&frames[2][HEADER_SIZE..]), Ok(error));
}

#[test]
fn the_worked_bytes_of_damage_are_real() {
    let document = DOCUMENT.split_whitespace().collect::<Vec<_>>().join(" ");
    let place = DamagedPlace {
        file: "tables/7".into(),
        offset: 4096,
        what: "crc".into(),
        found_by: FoundBy::Request,
    };
    let damage =
        DamageStatus { places: 1, latest: vec![place].into(), scrub_rounds: 2, scrub_damaged: 0 };
    let mut bytes = Vec::new();
    codec::encode(&damage, &mut bytes);
    assert!(document.contains(&hex(&bytes)), "{}", hex(&bytes));
    assert_eq!(codec::decode(&bytes), Ok(damage));
    for (number, found_by) in
        (0..).zip([FoundBy::Start, FoundBy::Request, FoundBy::Work, FoundBy::Scrub])
    {
        assert_eq!(codec::decode(&[number]), Ok(found_by));
    }
}

#[test]
fn a_length_that_lies_is_refused_without_memory() {
    // Response::Value with a payload, and lists, of 2^60 elements: memory for them would end the process.
    let length = [&[0xfd][..], &(1_u64 << 60).to_le_bytes()].concat();
    let value = [&[1, 1][..], &[0; 16], &[0, 0, 0], &length].concat();
    let history = [&[2][..], &length].concat();
    let keyspaces = [&[7][..], &length].concat();
    for bytes in [value, history, keyspaces] {
        let refused = codec::decode::<Response>(&bytes);
        assert!(matches!(refused, Err(DecodeError::Malformed(_))), "{refused:?}");
    }
}

#[test]
fn what_is_too_long_or_left_over_is_refused() {
    let mut bytes = Vec::new();
    codec::encode(&Request::Status, &mut bytes);
    assert_eq!(codec::decode(&bytes), Ok(Request::Status));
    bytes.push(0);
    assert_eq!(codec::decode::<Request>(&bytes), Err(DecodeError::Trailing(1)));
    let huge = vec![0; MESSAGE_SIZE_MAX + 1];
    assert_eq!(codec::decode::<Request>(&huge), Err(DecodeError::TooLong(huge.len())));
}

#[test]
fn the_limit_of_a_stream_is_inclusive() {
    let frame = |size: usize| {
        let mut bytes = Vec::new();
        let body = vec![7; size - HEADER_SIZE];
        let written = encode_frame(FrameKind::Peer, 1, &mut bytes, |out| out.extend(&body));
        assert_eq!(written, size);
        bytes
    };
    let mut decoder = FrameDecoder::new(SHARED_FRAME_SIZE_MAX);
    decoder.push(&frame(SHARED_FRAME_SIZE_MAX));
    let body_size = decoder.next_frame().unwrap().unwrap().body.len();
    assert_eq!(body_size, SHARED_FRAME_SIZE_MAX - HEADER_SIZE);
    // Four bytes suffice to refuse what is longer.
    decoder.push(&frame(SHARED_FRAME_SIZE_MAX + 1)[..4]);
    let refused = decoder.next_frame();
    assert!(matches!(refused, Err(FrameError::TooLong { .. })), "{refused:?}");
    let mut decoder = FrameDecoder::new(FRAME_SIZE_MAX);
    decoder.push(&u32::MAX.to_le_bytes());
    assert!(matches!(decoder.next_frame(), Err(FrameError::TooLong { .. })));
}

fn request() -> impl Strategy<Value = Request> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..40);
    let level = prop_oneof![
        Just(None),
        Just(Some(Level::All)),
        Just(Some(Level::Any)),
        any::<u8>().prop_map(|count| Some(Level::Count(count))),
    ];
    let cursor = prop::option::of((any::<u32>(), prop::option::of(bytes()))).prop_map(|at| {
        at.map(|(partition, after)| Cursor { partition, after: after.map(Into::into) })
    });
    prop_oneof![
        ("[a-z]{0,9}", bytes(), bytes(), level.clone()).prop_map(|(name, key, payload, level)| {
            Request::Write {
                keyspace: name.into(),
                key: key.into(),
                action: Action::Delete,
                payload: payload.into(),
                level,
                durability: Some(Durability::Interval),
            }
        }),
        ("[a-z]{0,9}", bytes(), cursor, any::<u32>(), level).prop_map(
            |(name, prefix, cursor, limit, level)| Request::Scan {
                keyspace: name.into(),
                prefix: prefix.into(),
                cursor,
                limit,
                level
            }
        ),
        Just(Request::Topology),
    ]
}

proptest! {
    #[test]
    fn messages_come_back_as_they_went(request in request()) {
        let mut bytes = Vec::new();
        codec::encode(&request, &mut bytes);
        prop_assert_eq!(codec::decode::<Request>(&bytes), Ok(request));
        for end in 0..bytes.len() {
            prop_assert!(codec::decode::<Request>(&bytes[..end]).is_err(), "cut at {}", end);
        }
    }

    #[test]
    fn no_bytes_make_the_codec_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = codec::decode::<(Header, Request)>(&bytes);
        let _ = codec::decode::<Response>(&bytes);
        let _ = codec::decode::<ChangesRequest>(&bytes);
        let _ = codec::decode::<ChangesItem>(&bytes);
        let _ = codec::decode::<Topology>(&bytes);
    }

    #[test]
    fn no_mutation_makes_the_codec_panic(
        request in request(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let mut bytes = Vec::new();
        codec::encode(&request, &mut bytes);
        for (at, byte) in flips {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(read) = codec::decode::<Request>(&bytes) {
            // What is accepted is a message: it comes back.
            let mut again = Vec::new();
            codec::encode(&read, &mut again);
            prop_assert_eq!(codec::decode::<Request>(&again), Ok(read));
        }
    }

    #[test]
    fn frames_come_out_however_the_bytes_are_cut(
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20),
        cut in 1_usize..300,
    ) {
        let mut bytes = Vec::new();
        for (id, body) in (0..).zip(&bodies) {
            encode_frame(FrameKind::Peer, id, &mut bytes, |out| out.extend(body));
        }
        let mut decoder = FrameDecoder::new(SHARED_FRAME_SIZE_MAX);
        let mut found = Vec::new();
        for part in bytes.chunks(cut) {
            decoder.push(part);
            while let Some(frame) = decoder.next_frame().unwrap() {
                prop_assert_eq!(frame.id, found.len() as u64);
                found.push(frame.body.to_vec());
            }
        }
        prop_assert!(decoder.is_empty());
        prop_assert_eq!(found, bodies);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut decoder = FrameDecoder::new(256);
        decoder.push(&bytes);
        while let Ok(Some(frame)) = decoder.next_frame() {
            prop_assert!(frame.body.len() + HEADER_SIZE <= 256);
        }
    }
}
