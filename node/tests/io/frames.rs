//! What comes over a connection that is no message, or that nobody reads.

use std::time::Duration;

use starling_client::codec::{self, List};
use starling_client::transport::{FrameKind, encode_frame};
use starling_client::wire::{ALPN_CLIENT, ErrorCode, Request, Response};
use starling_node::io::CloseCode;

use crate::support::{Node, Stream, TRIES, close_code, code, code_after, frame, header};

#[tokio::test]
async fn a_bad_message_gets_an_error_and_the_connection_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    let before = node.resident_bytes();
    let connection = node.client().await;
    let mut stream = Stream::open(&connection).await;
    // A whole header, then a write whose keyspace's name claims 2^60 bytes.
    let mut huge = Vec::new();
    codec::encode(&header(1), &mut huge);
    huge.extend_from_slice(&[0, 253]);
    huge.extend_from_slice(&(1_u64 << 60).to_le_bytes());
    let mut trailing = Vec::new();
    codec::encode(&(header(1), Request::Topology), &mut trailing);
    trailing.push(0);
    for (id, body) in [(1, vec![]), (2, vec![255; 40]), (3, huge), (4, trailing)] {
        let mut bytes = Vec::new();
        encode_frame(FrameKind::Request, id, &mut bytes, |out| out.extend_from_slice(&body));
        stream.send(&bytes).await;
        let (answered, response) = stream.answer().await;
        assert_eq!(answered, id);
        match response {
            Response::Error(error) => assert_eq!(error.code, ErrorCode::Malformed, "{error}"),
            other => panic!("{other:?} is the answer to message {id}"),
        }
    }
    assert!(matches!(stream.ask(9, Request::Topology).await, Response::Topology(_)));
    assert!(node.resident_bytes() < before + (64 << 20));
}

#[tokio::test]
async fn what_is_no_frame_ends_the_connection_alone() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    let before = node.resident_bytes();
    let good = frame(FrameKind::Request, 1, &(header(1), Request::Topology));
    let mut unknown_kind = good.clone();
    unknown_kind[12] = 99;
    let cases: [(&str, Vec<u8>); 6] = [
        ("a length of 4 GiB", [&u32::MAX.to_le_bytes()[..], &[1; 100]].concat()),
        ("a length over a shared frame's", (65_u32 << 10).to_le_bytes().to_vec()),
        ("a length shorter than a header", [&8_u32.to_le_bytes()[..], &[0; 8]].concat()),
        ("an unknown kind", unknown_kind),
        ("an answer", frame(FrameKind::Response, 1, &Response::Keyspaces(List::default()))),
        ("half a frame", good[..good.len() - 1].to_vec()),
    ];
    for (name, bytes) in cases {
        let closed = code_after(&node, &node.credentials(), ALPN_CLIENT, &bytes).await;
        assert_eq!(closed, code(CloseCode::Protocol), "{name}");
    }
    // Large frames travel alone, and claim as much as they like.
    let mut huge = frame(FrameKind::Request, 1, &(header(1), Request::Topology));
    huge[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut trailing = good.clone();
    trailing.push(0);
    for (name, bytes) in [("4 GiB alone", huge), ("bytes after a frame alone", trailing)] {
        let mut closed = None;
        for _ in 0..TRIES {
            let connection = node.client().await;
            let mut stream = Stream::open(&connection).await;
            assert!(matches!(stream.ask(1, Request::Topology).await, Response::Topology(_)));
            let mut alone = connection.open_uni().await.unwrap();
            // The node may close before all is written.
            let _ = alone.write_all(&bytes).await;
            let _ = alone.finish();
            closed = close_code(&connection).await;
            if closed.is_some() {
                break;
            }
        }
        assert_eq!(closed, Some(code(CloseCode::Protocol)), "{name}");
    }
    assert!(node.is_well().await);
    assert!(node.resident_bytes() < before + (64 << 20));
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &["--set", "limits.client_queue_bytes=65536"]);
    let before = node.resident_bytes();
    let connection = node.client().await;
    let (mut send, _unread) = connection.open_bi().await.unwrap();
    let question = frame(FrameKind::Request, 1, &(header(1), Request::Topology));
    let many = question.repeat(1000);
    // At some point the node takes no more.
    let mut taken = 0;
    while let Ok(written) =
        tokio::time::timeout(Duration::from_millis(500), send.write_all(&many)).await
    {
        written.unwrap();
        taken += 1000;
        assert!(taken < 1_000_000, "the node reads on from one who does not read");
        assert!(node.is_well().await);
    }
    assert!(node.is_well().await);
    assert!(node.resident_bytes() < before + (128 << 20));
}
