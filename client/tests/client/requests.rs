//! Requests: answers out of order, repetition under one id, routing, pages.

use std::time::Duration;

use starling_client::codec::{Blob, List};
use starling_client::wire::{Cursor, Request, Response, Row, WireError};
use starling_client::{ClientError, ErrorCode, ErrorKind, Level, NodeId, RequestId};

use crate::support::{Cluster, LONG, soon, stamp, value, version, written};

#[tokio::test]
async fn answers_find_their_questions_in_any_order() {
    let mut cluster = Cluster::start(1, 1);
    let keyspace = cluster.connect().await.keyspace("k");
    let reads: Vec<_> =
        (0..50_u8).map(|key| tokio::spawn(keyspace.get(vec![key]).send())).collect();
    let mut asked = Vec::new();
    for _ in 0..reads.len() {
        asked.push(cluster.asked().await);
    }
    for question in asked.iter().rev() {
        question.answer(&value(1, question.key()));
    }
    for (key, read) in (0..50_u8).zip(reads) {
        let found = soon(read).await.unwrap().unwrap().unwrap();
        assert_eq!(found.payload, vec![key]);
    }
}

#[tokio::test]
async fn a_write_of_unknown_fate_is_repeated_under_its_id_elsewhere() {
    let mut cluster = Cluster::start(3, 3);
    let keyspace = cluster.connect().await.keyspace("k");
    let write = tokio::spawn(keyspace.put("key", "payload").send());
    let first = cluster.asked().await;
    assert_eq!(first.header.attempt, 0);
    first.hang_up();
    let second = cluster.asked().await;
    assert_ne!(second.node, first.node);
    assert_eq!(second.header.request, first.header.request);
    assert_eq!(second.header.attempt, 1);
    assert_eq!(second.request, first.request);
    second.answer(&written(7));
    let written = soon(write).await.unwrap().unwrap();
    assert_eq!((written.stamp, written.attempts), (stamp(7), 2));
    assert_eq!(written.request, first.header.request);
}

#[tokio::test]
async fn a_node_that_says_timeout_leaves_the_fate_unknown() {
    let mut cluster = Cluster::start(2, 2);
    let keyspace = cluster.connect().await.keyspace("k");
    let write = tokio::spawn(keyspace.delete("key").send());
    let first = cluster.asked().await;
    first.answer(&Response::Error(WireError::new(ErrorCode::Timeout, "one of two")));
    let second = cluster.asked().await;
    assert_eq!((second.header.request, second.header.attempt), (first.header.request, 1));
    // The second node's refusal says nothing of what the first has done.
    second.answer(&Response::Error(WireError::new(ErrorCode::KeyspaceUnknown, "not here")));
    let error = soon(write).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unknown);
    assert_eq!(error.wire().unwrap().code, ErrorCode::KeyspaceUnknown);
}

#[tokio::test]
async fn what_did_not_happen_is_tried_elsewhere_as_new() {
    for code in [ErrorCode::Overloaded, ErrorCode::NotReady, ErrorCode::DiskFull] {
        let mut cluster = Cluster::start(3, 3);
        let keyspace = cluster.connect().await.keyspace("k");
        let write = tokio::spawn(keyspace.put("key", "payload").send());
        let mut nodes = Vec::new();
        for _ in 0..3 {
            let asked = cluster.asked().await;
            assert_eq!(asked.header.attempt, 0, "nothing happened so far");
            nodes.push(asked.node);
            if nodes.len() < 3 {
                asked.answer(&Response::Error(WireError::new(code, "try elsewhere")));
            } else {
                asked.answer(&written(1));
            }
        }
        nodes.sort_unstable();
        assert_eq!(nodes, [1, 2, 3], "each is asked before one is asked again");
        assert_eq!(soon(write).await.unwrap().unwrap().attempts, 3);
    }
}

#[tokio::test]
async fn what_will_never_succeed_is_not_repeated() {
    let mut cluster = Cluster::start(2, 2);
    let keyspace = cluster.connect().await.keyspace("k");
    let write = tokio::spawn(keyspace.put("key", "payload").level(Level::Count(9)).send());
    let error = WireError::new(ErrorCode::LevelTooLarge, "nine of two");
    cluster.asked().await.answer(&Response::Error(error.clone()));
    match soon(write).await.unwrap() {
        Err(ClientError::Refused(refused)) => assert_eq!(refused, error),
        other => panic!("{other:?}"),
    }
    assert!(cluster.nobody_asked());
}

#[tokio::test]
async fn nonsense_is_refused_without_a_node() {
    let mut cluster = Cluster::start(1, 1);
    let keyspace = cluster.connect().await.keyspace("k");
    let code = |error: ClientError| error.wire().unwrap().code;
    assert_eq!(code(keyspace.put("", "p").await.unwrap_err()), ErrorCode::KeyEmpty);
    let long = vec![0; 4097];
    assert_eq!(code(keyspace.get(long).await.unwrap_err()), ErrorCode::KeyTooLarge);
    let huge = vec![0; (64 << 20) + 1];
    assert_eq!(code(keyspace.put("k", huge).await.unwrap_err()), ErrorCode::PayloadTooLarge);
    for size in [0, 10_001] {
        let scan = keyspace.scan("").page_size(size).collect();
        assert_eq!(code(scan.await.unwrap_err()), ErrorCode::OutOfBounds);
    }
    assert!(cluster.nobody_asked());
}

#[tokio::test]
async fn when_time_is_up_the_error_says_what_is_known() {
    let mut cluster = Cluster::start(1, 1);
    let keyspace = cluster.connect().await.keyspace("k");
    let timeout = Duration::from_millis(50);
    match keyspace.put("key", "payload").timeout(timeout).await {
        Err(ClientError::Unknown { request, .. }) => {
            let asked = cluster.asked().await;
            assert_eq!(request, asked.header.request);
            assert!(asked.header.timeout_ms <= 50, "the node may stop waiting as well");
        }
        other => panic!("{other:?}"),
    }
    let error = keyspace.get("key").timeout(timeout).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NothingHappened, "{error}");
}

#[tokio::test]
async fn a_write_that_surely_did_not_happen_is_not_made_unknown_at_the_end() {
    let mut cluster = Cluster::start(1, 1);
    let keyspace = cluster.connect().await.keyspace("k");
    let put = keyspace.put("key", "payload").timeout(Duration::from_millis(1500));
    let mut write = tokio::spawn(put.send());
    let full = WireError::new(ErrorCode::DiskFull, "the disk is full");
    let ended = loop {
        tokio::select! {
            ended = &mut write => break ended.unwrap(),
            asked = cluster.asked() => {
                tokio::time::sleep(Duration::from_millis(200)).await;
                asked.answer(&Response::Error(full.clone()));
            }
        }
    };
    let error = ended.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NothingHappened, "{error}");
    assert_eq!(error.wire(), Some(&full));
}

#[tokio::test]
async fn a_call_that_waits_for_its_turn_has_done_nothing() {
    let mut cluster = Cluster::start(1, 1);
    let mut config = cluster.config();
    config.in_flight_max = 1;
    let client = soon(starling_client::Client::connect(config)).await.unwrap();
    let keyspace = client.keyspace("k");
    let first = tokio::spawn(keyspace.get("first").send());
    let asked = cluster.asked().await;
    let second = keyspace.put("second", "").timeout(Duration::from_millis(20)).await;
    assert_eq!(second.unwrap_err().kind(), ErrorKind::NothingHappened);
    assert!(cluster.nobody_asked());
    asked.answer(&value(1, b"first"));
    assert!(soon(first).await.unwrap().unwrap().is_some());
}

#[tokio::test]
async fn a_silent_node_is_left_for_another() {
    let mut cluster = Cluster::start(2, 2);
    let mut config = cluster.config();
    config.silence_timeout = Duration::from_millis(50);
    let client = soon(starling_client::Client::connect(config)).await.unwrap();
    let write = tokio::spawn(client.keyspace("k").put("key", "payload").send());
    let silent = cluster.asked().await;
    let second = cluster.asked().await;
    assert_ne!(second.node, silent.node);
    assert_eq!((second.header.request, second.header.attempt), (silent.header.request, 1));
    second.answer(&written(1));
    soon(write).await.unwrap().unwrap();
    // The late answer finds nobody and harms nobody.
    silent.answer(&written(2));
    let read =
        tokio::spawn(client.keyspace("k").get("key").coordinator(NodeId(silent.node)).send());
    cluster.asked().await.answer(&value(1, b"payload"));
    soon(read).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_caller_may_repeat_by_itself() {
    let mut cluster = Cluster::start(1, 1);
    let keyspace = cluster.connect().await.keyspace("k");
    let earlier = RequestId { client: 5, sequence: 6 };
    let write = tokio::spawn(keyspace.put("key", "payload").repeating(earlier).send());
    let asked = cluster.asked().await;
    assert_eq!((asked.header.request, asked.header.attempt), (earlier, 1));
    asked.answer(&written(1));
    soon(write).await.unwrap().unwrap();
}

#[tokio::test]
async fn requests_go_to_home_replicas() {
    let mut cluster = Cluster::start(5, 2);
    let keyspace = cluster.connect().await.keyspace("k");
    for key in 0..40_u8 {
        let read = tokio::spawn(keyspace.get(vec![key]).send());
        let asked = cluster.asked().await;
        assert!(cluster.home_of(&[key], 2).contains(&NodeId(asked.node)));
        assert_eq!(asked.header.epoch, 5);
        asked.answer(&Response::Value { version: None });
        assert_eq!(soon(read).await.unwrap().unwrap(), None);
    }
}

#[tokio::test]
async fn what_was_seen_goes_with_what_is_asked() {
    let mut cluster = Cluster::start(1, 1);
    let client = cluster.connect().await;
    let keyspace = client.keyspace("k");
    let mut ask = async |answer: Response| {
        let read = tokio::spawn(keyspace.get("key").send());
        let asked = cluster.asked().await;
        asked.answer(&answer);
        soon(read).await.unwrap().unwrap();
        asked.header.observed
    };
    assert_eq!(ask(value(70, b"new")).await, 0);
    assert_eq!(ask(value(30, b"old")).await, stamp(70).time.packed());
    assert_eq!(ask(value(30, b"old")).await, stamp(70).time.packed());
    assert_eq!(client.observed(), stamp(70).time);
}

#[tokio::test]
async fn deletes_are_nothing_unless_they_are_asked_for() {
    let mut cluster = Cluster::start(1, 1);
    let keyspace = cluster.connect().await.keyspace("k");
    let mut deleted = version(3, b"");
    deleted.action = starling_client::Action::Delete;
    for (read, found) in [(keyspace.get("key"), false), (keyspace.get("key").with_deletes(), true)]
    {
        let read = tokio::spawn(read.send());
        cluster.asked().await.answer(&Response::Value { version: Some(deleted.clone()) });
        assert_eq!(soon(read).await.unwrap().unwrap().is_some(), found);
    }
}

#[tokio::test]
async fn large_values_travel_both_ways() {
    let mut cluster = Cluster::start(1, 1);
    let keyspace = cluster.connect().await.keyspace("k");
    // Around the size from which a frame is alone on its stream, and far beyond.
    for size in [65_400, 65_450, 65_500, 65_536, 70_000, 9 << 20] {
        let payload: Vec<u8> = (0..size).map(|at: u32| at.to_le_bytes()[at as usize % 2]).collect();
        let write = tokio::spawn(keyspace.put("key", payload.clone()).send());
        let asked = cluster.asked().await;
        match &asked.request {
            Request::Write { payload: arrived, .. } => assert!(payload == arrived[..]),
            other => panic!("{other:?}"),
        }
        asked.answer(&written(1));
        soon(write).await.unwrap().unwrap();

        let read = tokio::spawn(keyspace.get("key").send());
        cluster.asked().await.answer(&value(1, &payload));
        assert!(soon(read).await.unwrap().unwrap().unwrap().payload == payload);
    }
}

fn row(key: &str) -> Row {
    Row { key: Blob::from(key.as_bytes().to_vec()), version: version(1, key.as_bytes()) }
}

#[tokio::test]
async fn scans_go_on_at_the_cursor() {
    let mut cluster = Cluster::start(1, 1);
    let keyspace = cluster.connect().await.keyspace("k");
    let all = tokio::spawn(keyspace.scan("").page_size(2).collect());
    let at = |partition, key: &str| Cursor {
        partition,
        after: Some(Blob::from(key.as_bytes().to_vec())),
    };
    let pages = [
        (None, vec![row("a"), row("b")], Some(at(1, "b"))),
        (Some(at(1, "b")), vec![], Some(at(7, "c"))),
        (Some(at(7, "c")), vec![row("d")], None),
    ];
    for (from, rows, cursor) in pages {
        let asked = cluster.asked().await;
        match &asked.request {
            Request::Scan { cursor, limit, .. } => assert_eq!((cursor, limit), (&from, &2)),
            other => panic!("{other:?}"),
        }
        asked.answer(&Response::Page { rows: List(rows), cursor });
    }
    let keys: Vec<_> = soon(all).await.unwrap().unwrap().into_iter().map(|row| row.key).collect();
    assert_eq!(keys, ["a", "b", "d"]);

    // A node that sends us back would keep us for ever.
    let all = tokio::spawn(keyspace.scan("").collect());
    cluster.asked().await.answer(&Response::Page { rows: List(vec![]), cursor: Some(at(3, "a")) });
    cluster.asked().await.answer(&Response::Page { rows: List(vec![]), cursor: Some(at(3, "a")) });
    assert!(matches!(soon(all).await.unwrap(), Err(ClientError::Protocol { .. })));
}

#[tokio::test]
async fn histories_go_on_after_the_last_stamp() {
    let mut cluster = Cluster::start(1, 1);
    let keyspace = cluster.connect().await.keyspace("k");
    for newest_first in [false, true] {
        let history = keyspace.history("key").from(stamp(1)).to(stamp(9)).page_size(2);
        let history = if newest_first { history.newest_first() } else { history };
        let all = tokio::spawn(history.collect());
        let order = if newest_first { [8, 5, 2] } else { [2, 5, 8] };
        let mut from_to = Vec::new();
        for (page, more) in [(&order[..2], true), (&order[2..], false)] {
            let asked = cluster.asked().await;
            match &asked.request {
                Request::History { from, to, .. } => from_to.push((from.0, to.0)),
                other => panic!("{other:?}"),
            }
            let versions = page.iter().map(|&at| version(at, b"v")).collect();
            asked.answer(&Response::History { versions, more });
        }
        let (from, to) = from_to[1];
        if newest_first {
            assert!(from == stamp(1) && stamp(2) < to && to < stamp(5), "{to}");
        } else {
            assert!(stamp(5) < from && from < stamp(8) && to == stamp(9), "{from}");
        }
        let versions = soon(all).await.unwrap().unwrap();
        let stamps: Vec<_> = versions.into_iter().map(|version| version.stamp).collect();
        assert_eq!(stamps, order.map(stamp));
    }
}

#[tokio::test]
async fn an_answer_of_another_kind_is_a_breach_of_protocol() {
    let mut cluster = Cluster::start(1, 1);
    let keyspace = cluster.connect().await.keyspace("k");
    let write = tokio::spawn(keyspace.put("key", "payload").timeout(LONG).send());
    cluster.asked().await.answer(&Response::Value { version: None });
    let error = soon(write).await.unwrap().unwrap_err();
    assert!(matches!(error, ClientError::Protocol { node: NodeId(1), .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Unknown);
}
