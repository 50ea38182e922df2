//! Requests over a connection: large ones, those that cannot be, and a disk without room for them.

use std::time::Duration;

use starling_client::codec::{self, Text};
use starling_client::transport::{FrameKind, FrameReader, LargeFrame, LargeFrameBudget};
use starling_client::wire::{
    ChangesFrom, ChangesItem, ChangesRequest, ErrorCode, Request, Response,
};
use starling_client::{Client, ClientConfig, ErrorKind, Level};
use starling_node::io::CloseCode;

use crate::support::{Node, Stream, close_code, code, frame, header, in_time};

#[tokio::test]
async fn large_values_and_changes_go_through() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    let config = ClientConfig::new([node.address.to_string()], node.credentials());
    let client = Client::connect(config).await.unwrap();
    let keyspace = client.keyspace("default");
    let large: Vec<u8> = (0..3_000_000_u32).map(|at| at.to_le_bytes()[0]).collect();
    in_time(keyspace.put("large", large.clone()).send()).await.unwrap();
    in_time(keyspace.put("small", "value").send()).await.unwrap();
    let read = in_time(keyspace.get("large").send()).await.unwrap().unwrap();
    assert_eq!(read.payload[..], large[..]);
    let over = keyspace.put("over", vec![0; (16 << 20) + 1]);
    assert!(in_time(over.send()).await.is_err());

    let connection = node.client().await;
    let _requests = Stream::open(&connection).await;
    let (mut send, receive) = connection.open_bi().await.unwrap();
    let request = ChangesRequest {
        keyspace: None,
        prefix: b"small".to_vec().into(),
        partitions: None,
        from: ChangesFrom::Oldest,
        follow: false,
    };
    send.write_all(&frame(FrameKind::ChangesRequest, 0, &request)).await.unwrap();
    let mut reader = FrameReader::exchange(receive, 32 << 20);
    let mut keys = Vec::new();
    'stream: loop {
        while let Some(frame) = reader.next_frame().unwrap() {
            assert_eq!(frame.kind, FrameKind::ChangesItem);
            match codec::decode(frame.body).unwrap() {
                ChangesItem::Batch { changes, .. } => {
                    keys.extend(changes.0.into_iter().map(|change| change.key.to_vec()));
                }
                ChangesItem::End { .. } => break 'stream,
                other => panic!("{other:?}"),
            }
        }
        assert!(in_time(reader.read()).await.unwrap(), "the end is told");
    }
    assert_eq!(keys, [b"small".to_vec()]);
    assert!(!in_time(reader.read()).await.unwrap(), "the stream is finished after the end");
}

#[tokio::test]
async fn a_question_on_a_stream_of_its_own_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    let connection = node.client().await;
    let mut requests = Stream::open(&connection).await;
    assert!(matches!(requests.ask(1, Request::KeyspaceList).await, Response::Keyspaces(_)));
    let (mut send, receive) = connection.open_bi().await.unwrap();
    send.write_all(&frame(FrameKind::ChangesRequest, 0, &u64::MAX)).await.unwrap();
    let mut reader = FrameReader::exchange(receive, 1 << 20);
    assert!(in_time(reader.read()).await.unwrap());
    match codec::decode(reader.next_frame().unwrap().unwrap().body).unwrap() {
        ChangesItem::Error(error) => assert_eq!(error.code, ErrorCode::Malformed),
        other => panic!("{other:?}"),
    }
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    send.write_all(&frame(FrameKind::PushPull, 0, &0_u8)).await.unwrap();
    let closed = close_code(&connection).await;
    assert!(closed.is_none_or(|closed| closed == code(CloseCode::Protocol)), "{closed:?}");
}

#[tokio::test]
async fn a_large_request_is_answered_on_the_shared_stream() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    let connection = node.client().await;
    let mut requests = Stream::open(&connection).await;
    let key = b"k".to_vec();
    let put = Request::Write {
        keyspace: Text::from("default"),
        key: key.clone().into(),
        action: starling_client::wire::Action::Put,
        payload: vec![1; 200_000].into(),
        level: None,
        durability: None,
    };
    assert!(matches!(requests.ask(1, Request::KeyspaceList).await, Response::Keyspaces(_)));
    let mut alone = connection.open_uni().await.unwrap();
    alone.write_all(&frame(FrameKind::Request, 2, &(header(2), put))).await.unwrap();
    alone.finish().unwrap();
    let (id, response) = requests.answer().await;
    assert_eq!(id, 2);
    assert!(matches!(response, Response::Written { .. }), "{response:?}");

    let get =
        Request::Get { keyspace: Text::from("default"), key: key.into(), at: None, level: None };
    requests.send(&frame(FrameKind::Request, 3, &(header(3), get))).await;
    let mut large = in_time(connection.accept_uni()).await.unwrap();
    let budget = LargeFrameBudget::new(0);
    let large = in_time(LargeFrame::read(&mut large, &budget)).await.unwrap();
    assert_eq!(large.frame().id, 3);
}

async fn refusal(stream: &mut Stream, id: u64, request: Request) -> (ErrorCode, String) {
    match stream.ask(id, request).await {
        Response::Error(error) => (error.code, error.to_string()),
        other => panic!("{other:?} is the answer to request {id}"),
    }
}

#[tokio::test]
async fn what_no_request_may_ask_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &["--set", "limits.payload_size_max=1000"]);
    let connection = node.client().await;
    let mut stream = Stream::open(&connection).await;
    let put = |keyspace: &str, key: usize, payload: usize, level: Option<Level>| Request::Write {
        keyspace: Text::from(keyspace),
        key: vec![b'k'; key].into(),
        action: starling_client::wire::Action::Put,
        payload: vec![7; payload].into(),
        level,
        durability: None,
    };
    let read = |level: Level| Request::Get {
        keyspace: Text::from("default"),
        key: b"k".to_vec().into(),
        at: None,
        level: Some(level),
    };
    let cases = [
        (put("default", 0, 1, None), ErrorCode::KeyEmpty, "1 to 4096 bytes"),
        (put("default", 4097, 1, None), ErrorCode::KeyTooLarge, "use a shorter key"),
        (put("default", 1, 1001, None), ErrorCode::PayloadTooLarge, "limits.payload_size_max"),
        (put("nowhere", 1, 1, None), ErrorCode::KeyspaceUnknown, "starling keyspace create"),
        (put("default", 1, 1, Some(Level::Two)), ErrorCode::LevelTooLarge, "lower the level"),
        (put("default", 1, 1, Some(Level::Count(0))), ErrorCode::LevelTooLarge, "the level"),
        (read(Level::Count(9)), ErrorCode::LevelTooLarge, "lower the level"),
        (read(Level::Any), ErrorCode::LevelNotForReads, "read at ONE or more"),
    ];
    for (id, (request, code, text)) in (1..).zip(cases) {
        let (found, said) = refusal(&mut stream, id, request).await;
        assert_eq!(found, code, "{said}");
        assert!(said.contains(text), "{said:?} should say {text:?}");
    }
    // The limits themselves are fine.
    let largest = put("default", 4096, 1000, Some(Level::One));
    assert!(matches!(stream.ask(99, largest).await, Response::Written { .. }));
}

/// A limit on the size of files stands for a full disk: both end a write in the middle, and neither needs rights that a test has not.
#[tokio::test]
async fn a_full_disk_refuses_writes_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    // Nothing that could be compressed: a linear congruential generator (Knuth's MMIX), its upper bytes.
    let value = |at: u8| -> Vec<u8> {
        let next =
            |state: &u64| Some(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        let states = std::iter::successors(Some(u64::from(at) + 1), next);
        states.skip(8).take(100_000).map(|state| state.to_be_bytes()[0]).collect()
    };
    let read = async |client: &Client, at: u8| {
        let get = client.keyspace("default").get(format!("key {at}"));
        in_time(get.send()).await.unwrap().map(|version| version.payload.to_vec())
    };
    let node = Node::start_with_little_room(dir.path(), 2000);
    let mut config = ClientConfig::new([node.address.to_string()], node.credentials());
    config.request_timeout = Duration::from_secs(2);
    let client = Client::connect(config.clone()).await.unwrap();
    let mut at = 0;
    let mut taken = Vec::new();
    let error = loop {
        assert!(at < 100, "the limit is reached");
        let put = client.keyspace("default").put(format!("key {at}"), value(at));
        match in_time(put.send()).await {
            Ok(_) => taken.push(at),
            // So slow is a busy machine now and then; that write may have happened, or not.
            Err(error) if error.kind() == ErrorKind::Unknown => {}
            Err(error) => break error,
        }
        at += 1;
    };
    let refused = at;
    assert!(!taken.is_empty(), "there is room at first");
    assert_eq!(error.kind(), ErrorKind::NothingHappened, "{error}");
    assert_eq!(error.wire().map(|error| error.code), Some(ErrorCode::DiskFull), "{error}");
    assert!(error.to_string().contains("free some space"), "{error}");
    for &at in &taken {
        assert_eq!(read(&client, at).await, Some(value(at)), "{at} of {taken:?}");
    }
    assert_eq!(read(&client, refused).await, None, "nothing happened");
    // It takes what there is room for.
    in_time(client.keyspace("default").put("small", "value").send()).await.unwrap();
    // Dropping kills it.
    drop(node);

    let mut node = Node::start(dir.path(), &[]);
    config.addresses = vec![node.address.to_string()];
    let client = Client::connect(config).await.unwrap();
    for &at in &taken {
        assert_eq!(read(&client, at).await, Some(value(at)), "{at} of {taken:?}");
    }
    assert_eq!(read(&client, refused).await, None, "nothing happened");
    let again = client.keyspace("default").put(format!("key {refused}"), value(refused));
    in_time(again.send()).await.unwrap();
    assert_eq!(read(&client, refused).await, Some(value(refused)));
    client.close().await;
    assert_eq!(node.terminate(), Some(0));
}
