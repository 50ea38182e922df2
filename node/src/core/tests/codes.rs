//! Bad input, and every error code that the core gives.

use starling_client::wire::{
    Action, ChangesFrom, ChangesItem, ChangesRequest, Cursor, ErrorCode, Level, PAGE_ROWS_MAX,
    Request,
};
use starling_clock::HybridTime;

use super::rig::*;
use crate::core::peer::{ReadAnswer, WriteOutcome};
use crate::core::storage::{StorageFailure, StorageRequest};
use crate::core::{Input, Output, SubscriptionId};
use crate::limits::Limits;

fn write(keyspace: &str, key: &[u8], payload: Vec<u8>, level: Option<Level>) -> Request {
    Request::Write {
        keyspace: keyspace.into(),
        key: key.to_vec().into(),
        action: Action::Put,
        payload: payload.into(),
        level,
        durability: None,
    }
}

fn scan(limit: u32, cursor: Option<Cursor>) -> Request {
    let keyspace = "default".into();
    Request::Scan { keyspace, prefix: blob(""), cursor, limit, level: None }
}

#[test]
fn requests_that_never_succeed_say_so() {
    let mut rig = Rig::new(1, Limits { payload_size_max: 100, ..Limits::default() });
    let get_any = Request::Get {
        keyspace: "default".into(),
        key: blob("k"),
        at: None,
        level: Some(Level::Any),
    };
    let cases = [
        (write("default", b"", vec![], None), ErrorCode::KeyEmpty),
        (write("default", &[1; 4097], vec![], None), ErrorCode::KeyTooLarge),
        (write("default", b"k", vec![0; 101], None), ErrorCode::PayloadTooLarge),
        (write("nowhere", b"k", vec![], None), ErrorCode::KeyspaceUnknown),
        (write("default", b"k", vec![], Some(Level::Two)), ErrorCode::LevelTooLarge),
        (write("default", b"k", vec![], Some(Level::Count(0))), ErrorCode::LevelTooLarge),
        (get(""), ErrorCode::KeyEmpty),
        (get_any, ErrorCode::LevelNotForReads),
        (scan(0, None), ErrorCode::OutOfBounds),
        (scan(PAGE_ROWS_MAX + 1, None), ErrorCode::OutOfBounds),
        (scan(1, Some(Cursor { partition: 16, after: None })), ErrorCode::OutOfBounds),
        (
            Request::KeyspaceCreate { settings: settings("Bad Name", 1) },
            ErrorCode::KeyspaceNameInvalid,
        ),
        (
            Request::KeyspaceCreate { settings: settings("big", 2) },
            ErrorCode::KeyspaceSettingsInvalid,
        ),
        (
            Request::KeyspaceCreate {
                settings: starling_client::wire::KeyspaceSettings {
                    write_level: Level::One,
                    ..settings("default", 1)
                },
            },
            ErrorCode::KeyspaceExists,
        ),
    ];
    for (request, code) in cases {
        let header = rig.header();
        assert_eq!(rig.code(header, request.clone()), code, "{request:?}");
    }
    assert_eq!(rig.core.in_flight(), 0);
    // The largest of everything is fine.
    let largest = write("default", &[1; 4096], vec![0; 100], Some(Level::All));
    assert!(matches!(rig.ask(largest), starling_client::wire::Response::Written { .. }));
    let page = rig.ask(scan(PAGE_ROWS_MAX, None));
    assert!(matches!(page, starling_client::wire::Response::Page { .. }), "{page:?}");
}

#[test]
fn headers_are_checked() {
    let mut rig = Rig::new(1, Limits::default());
    let mut header = rig.header();
    header.epoch = 2;
    assert_eq!(rig.code(header, put("k", "v")), ErrorCode::WrongEpoch);
    let mut header = rig.header();
    header.observed = HybridTime::new(START_MS + 10_000, 0).packed();
    let before = rig.core.clock_last();
    assert_eq!(rig.code(header, put("k", "v")), ErrorCode::ClockSkew);
    assert_eq!(rig.core.clock_last(), before);
    header.observed = u64::MAX;
    assert_eq!(rig.code(header, put("k", "v")), ErrorCode::Malformed);
    // A repetition must be of the same key.
    let header = rig.header();
    let id = rig.send(header, put("k", "v"));
    assert!(rig.answer(id).is_some());
    let again = starling_client::wire::Header { attempt: 1, ..header };
    assert_eq!(rig.code(again, put("other", "v")), ErrorCode::Malformed);
}

#[test]
fn not_ready_before_the_clock_is_durable_and_after_a_stop() {
    let mut rig = Rig::starting(1, Limits::default());
    rig.hold = true;
    let header = rig.header();
    assert_eq!(rig.code(header, put("k", "v")), ErrorCode::NotReady);
    rig.hold = false;
    rig.run();
    let header = rig.header();
    let id = rig.send(header, put("k", "v"));
    assert!(matches!(rig.answer(id), Some(starling_client::wire::Response::Written { .. })));
    rig.input(Input::Stop);
    let header = rig.header();
    assert_eq!(rig.code(header, put("k", "v")), ErrorCode::NotReady);
    rig.pass(10_000);
    assert!(rig.core.is_stopped());
    let stopped = rig.outputs.iter().filter(|output| matches!(output, Output::Stopped)).count();
    assert_eq!(stopped, 1);
}

#[test]
fn a_stop_does_not_spin() {
    let mut rig = Rig::new(3, Limits::default());
    rig.hold = true;
    rig.connect(2);
    let header = rig.header();
    rig.send(header, put("k", "v"));
    rig.input(Input::Stop);
    rig.pass(1000);
    // Node 3 was never there: its next dial is long due, and nobody dials it.
    assert!(!rig.core.is_stopped());
    assert!(rig.core.poll_timeout().unwrap() > rig.now.mono);
    rig.pass(5000);
    assert!(rig.core.is_stopped());
    assert_eq!(rig.core.poll_timeout(), None);
}

#[test]
fn a_stop_waits_for_what_is_in_flight() {
    let mut rig = Rig::new(1, Limits::default());
    rig.hold = true;
    let header = rig.header();
    let id = rig.send(header, put("k", "v"));
    rig.input(Input::Stop);
    assert!(!rig.core.is_stopped());
    rig.hold = false;
    rig.run();
    rig.input(Input::Timeout);
    assert!(matches!(rig.answer(id), Some(starling_client::wire::Response::Written { .. })));
    assert!(rig.core.is_stopped());
}

#[test]
fn overload_is_refused_at_once() {
    let mut rig = Rig::new(1, Limits { in_flight_max: 2, ..Limits::default() });
    rig.hold = true;
    let header = rig.header();
    let first = rig.send(header, put("k", "v"));
    let header = rig.header();
    rig.send(header, get("k"));
    for request in [put("k", "v"), get("k"), Request::Status] {
        let header = rig.header();
        assert_eq!(rig.code(header, request), ErrorCode::Overloaded);
    }
    assert_eq!(rig.core.counters().overloaded, 3);
    rig.hold = false;
    rig.run();
    assert!(rig.answer(first).is_some());
    assert_eq!(rig.core.in_flight(), 0);
}

#[test]
fn bytes_in_flight_are_bounded() {
    let mut rig = Rig::new(1, Limits { write_bytes_max: 10, ..Limits::default() });
    rig.hold = true;
    // One is always taken.
    let header = rig.header();
    let first = rig.send(header, put("k", "much too long"));
    let header = rig.header();
    assert_eq!(rig.code(header, put("k", "v")), ErrorCode::Overloaded);
    rig.hold = false;
    rig.run();
    assert!(rig.answer(first).is_some());
    let header = rig.header();
    let next = rig.send(header, put("k", "v"));
    assert!(matches!(rig.answer(next), Some(starling_client::wire::Response::Written { .. })));
}

#[test]
fn too_few_replicas_are_told_before_and_after_dispatch() {
    let mut rig = Rig::new(3, Limits::default());
    for request in [put("k", "v"), get("k")] {
        let header = rig.header();
        assert_eq!(rig.code(header, request), ErrorCode::Unavailable);
    }
    assert_eq!(rig.hints(2) + rig.hints(3), 0, "nothing was dispatched");
    rig.connect(2);
    rig.connect(3);
    let header = rig.header();
    let silent = rig.send(header, put("k", "v"));
    let header = rig.header();
    let read = rig.send(header, get("k"));
    assert_eq!((rig.answer(silent), rig.answer(read)), (None, None));
    rig.pass(2000);
    assert_eq!(code_of(rig.answer(silent).unwrap()), ErrorCode::Timeout);
    assert_eq!(code_of(rig.answer(read).unwrap()), ErrorCode::ReadTimeout);
    assert_eq!((rig.hints(2), rig.hints(3)), (1, 1));
}

#[test]
fn refusals_of_replicas_are_told() {
    let mut rig = Rig::new(3, Limits::default());
    rig.connect(2);
    rig.connect(3);
    let header = rig.header();
    let id = rig.send(header, put_at("k", "v", Some(Level::All)));
    let (op, ..) = rig.write_to(2);
    rig.written(2, op, WriteOutcome::Full);
    assert_eq!(code_of(rig.answer(id).unwrap()), ErrorCode::Failed);
    for (said, code) in [
        (ReadAnswer::Damaged, ErrorCode::Damaged),
        (ReadAnswer::NotHome, ErrorCode::WrongEpoch),
        (ReadAnswer::Overloaded, ErrorCode::Overloaded),
    ] {
        rig.outputs.clear();
        let header = rig.header();
        let request = Request::Get {
            keyspace: "default".into(),
            key: blob("k"),
            at: None,
            level: Some(Level::All),
        };
        let id = rig.send(header, request);
        let (op, _) = rig.read_to(2);
        rig.read_done(2, op, said);
        assert_eq!(code_of(rig.answer(id).unwrap()), code);
    }
}

#[test]
fn a_full_disk_is_told_and_gets_over() {
    let mut rig = Rig::new(1, Limits::default());
    rig.fail = Some((|request| request.is_write_lane(), StorageFailure::Full));
    let header = rig.header();
    assert_eq!(rig.code(header, put("k", "v")), ErrorCode::DiskFull);
    rig.fail = None;
    let header = rig.header();
    let id = rig.send(header, put("k", "v"));
    assert!(matches!(rig.answer(id), Some(starling_client::wire::Response::Written { .. })));
}

#[test]
fn a_failed_sync_ends_writes_and_not_reads() {
    let mut rig = Rig::new(1, Limits::default());
    rig.ask(put("k", "v"));
    let is_apply: Chosen = |request| matches!(request, StorageRequest::Apply { .. });
    rig.fail = Some((is_apply, StorageFailure::Poisoned));
    let header = rig.header();
    // The first may be on disk, so it is unknown; from then on nothing is tried.
    assert_eq!(rig.code(header, put("k", "w")), ErrorCode::Failed);
    let header = rig.header();
    assert_eq!(rig.code(header, put("k", "x")), ErrorCode::StoragePoisoned);
    let value = rig.ask(get("k"));
    assert!(matches!(value, starling_client::wire::Response::Value { version: Some(_) }));
}

#[test]
fn damage_is_told() {
    let mut rig = Rig::new(1, Limits::default());
    rig.ask(put("k", "v"));
    rig.fail = Some((|request| !request.is_write_lane(), StorageFailure::Damaged));
    let header = rig.header();
    assert_eq!(rig.code(header, get("k")), ErrorCode::Damaged);
    rig.fail = Some((|request| matches!(request, StorageRequest::Status), StorageFailure::Damaged));
    let header = rig.header();
    assert_eq!(rig.code(header, Request::Status), ErrorCode::Damaged);
}

#[test]
fn subscriptions_are_checked_and_bounded() {
    let mut rig = Rig::new(1, Limits { subscriptions_max: 1, ..Limits::default() });
    let request = ChangesRequest {
        keyspace: None,
        prefix: blob(""),
        partitions: None,
        from: ChangesFrom::Oldest,
        follow: true,
    };
    let mut next = 0;
    let mut subscribe = |rig: &mut Rig, request: ChangesRequest| {
        next += 1;
        let subscription = SubscriptionId(next);
        rig.input(Input::Subscribe { subscription, request });
        rig.outputs.iter().find_map(|output| match output {
            Output::SubscriptionItem { subscription: of, item } if *of == subscription => {
                match &**item {
                    ChangesItem::Error(error) => Some(error.code),
                    _ => None,
                }
            }
            _ => None,
        })
    };
    let unknown = ChangesRequest { keyspace: Some("nowhere".into()), ..request.clone() };
    assert_eq!(subscribe(&mut rig, unknown), Some(ErrorCode::KeyspaceUnknown));
    for partitions in [(0, 16), (2, 1), (16, u32::MAX)] {
        let wrong = ChangesRequest { partitions: Some(partitions), ..request.clone() };
        assert_eq!(subscribe(&mut rig, wrong), Some(ErrorCode::OutOfBounds));
    }
    let long = ChangesRequest { prefix: vec![0; 4097].into(), ..request.clone() };
    assert_eq!(subscribe(&mut rig, long), Some(ErrorCode::KeyTooLarge));
    let flights = rig.core.flights();
    assert_eq!(subscribe(&mut rig, request.clone()), None);
    assert_eq!(subscribe(&mut rig, request.clone()), Some(ErrorCode::SubscriptionsMax));
    rig.input(Input::Unsubscribe { subscription: SubscriptionId(6) });
    assert_eq!(rig.core.flights(), flights);
    assert_eq!(subscribe(&mut rig, request), None);
}
