//! The outbox and the endpoint's kept keys.

use starling_client::transport::{
    FrameKind, FrameReader, KeptKeys, LargeFrame, LargeFrameBudget, Outbox, PushError,
};
use starling_client::wire::ALPN_CLIENT;

use crate::support::{Authority, dialler, listen, soon};

/// Two ends of a connection, the dialler's first.
async fn pair() -> (quinn::Connection, quinn::Connection, Vec<quinn::Endpoint>) {
    let authority = Authority::new();
    let listener = listen(&authority.node(1), ([127, 0, 0, 1], 0).into(), None);
    let dialling = dialler(&authority.client(), ALPN_CLIENT);
    let address = listener.local_addr().unwrap();
    let dial = dialling.connect(address, "node.starling").unwrap();
    let accept = async { listener.accept().await.unwrap().await };
    let (dialled, accepted) = soon(async { tokio::join!(dial, accept) }).await;
    (dialled.unwrap(), accepted.unwrap(), vec![listener, dialling])
}

#[tokio::test]
async fn a_full_outbox_refuses_and_says_when_there_is_room() {
    const SIZE_MAX: usize = 100 << 10;
    const BODY_SIZE: usize = 1000;
    let (dialled, accepted, _endpoints) = pair().await;
    let (send, _receive) = dialled.open_bi().await.unwrap();
    let outbox = Outbox::spawn(dialled.clone(), send, SIZE_MAX);
    // Nobody reads: the streams' windows fill up, then the outbox.
    let mut pushed = 0_u64;
    let body = [7; BODY_SIZE];
    let fill = |pushed: &mut u64| loop {
        match outbox.try_push(FrameKind::Peer, *pushed, |out| out.extend(&body)) {
            Ok(()) => *pushed += 1,
            Err(error) => return error,
        }
        assert!(outbox.waiting() < SIZE_MAX + 2 * BODY_SIZE, "one frame may go over the bound");
    };
    // The writer is not polled in between: what is refused here waits in the outbox alone.
    assert_eq!(fill(&mut pushed), PushError::Full);
    assert!(pushed * BODY_SIZE as u64 <= SIZE_MAX as u64);

    soon(outbox.room()).await.unwrap();
    assert_eq!(fill(&mut pushed), PushError::Full);
    let total = pushed;
    outbox.close();
    assert_eq!(outbox.try_push(FrameKind::Peer, 0, |_| ()), Err(PushError::Closed));
    assert_eq!(soon(outbox.room()).await, Err(PushError::Closed));

    // What was taken before the end arrives, in order and whole.
    let (_send, receive) = soon(accepted.accept_bi()).await.unwrap();
    let mut reader = FrameReader::shared(receive);
    let mut read = 0;
    while soon(reader.read()).await.unwrap() {
        while let Some(frame) = reader.next_frame().unwrap() {
            assert_eq!((frame.id, frame.body), (read, &body[..]));
            read += 1;
        }
    }
    assert_eq!(read, total);
}

#[tokio::test]
async fn a_lost_connection_closes_the_outbox() {
    let (dialled, accepted, _endpoints) = pair().await;
    let (send, _receive) = dialled.open_bi().await.unwrap();
    let outbox = Outbox::spawn(dialled.clone(), send, 1000);
    outbox.try_push(FrameKind::Peer, 1, |out| out.extend([0; 2000])).unwrap();
    accepted.close(quinn::VarInt::from_u32(0), b"");
    soon(dialled.closed()).await;
    // The writer's task learns of it in its turn.
    while !outbox.is_closed() {
        tokio::task::yield_now().await;
    }
    assert_eq!(outbox.push(FrameKind::Peer, 2, |_| ()).await, Err(PushError::Closed));
}

#[tokio::test]
async fn large_frames_wait_for_the_budget() {
    let (dialled, accepted, _endpoints) = pair().await;
    let (send, _receive) = dialled.open_bi().await.unwrap();
    let outbox = Outbox::spawn(dialled.clone(), send, 256 << 20);
    // The least budget holds one frame of the largest size: two of 40 MiB are over it.
    let budget = LargeFrameBudget::new(0);
    let body = vec![7; 40 << 20];
    for id in 1..=2 {
        outbox.try_push(FrameKind::Peer, id, |out| out.extend(&body)).unwrap();
    }
    let mut first = soon(accepted.accept_uni()).await.unwrap();
    let mut second = soon(accepted.accept_uni()).await.unwrap();
    let held = soon(LargeFrame::read(&mut first, &budget)).await.unwrap();
    let mut reading = Box::pin(LargeFrame::read(&mut second, &budget));
    tokio::select! {
        biased;
        _ = &mut reading => panic!("there is no room for a second frame"),
        () = async { for _ in 0..1000 { tokio::task::yield_now().await } } => {}
    }
    let first_id = held.frame().id;
    drop(held);
    let second = soon(reading).await.unwrap();
    assert_eq!(first_id + second.frame().id, 3);
    assert!(second.frame().body == body);
}

#[test]
fn a_node_that_lost_its_memory_is_noticed_by_its_kept_keys() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let authority = Authority::new();
    let keys = KeptKeys { reset: [5; 64], connection_id: 6 };
    let (ours, theirs) = (runtime(), runtime());
    let endpoint = theirs
        .block_on(async { listen(&authority.node(1), ([127, 0, 0, 1], 0).into(), Some(&keys)) });
    let address = endpoint.local_addr().unwrap();
    let serving = std::thread::spawn(move || {
        let connection = theirs.block_on(async {
            let connection = soon(async { endpoint.accept().await.unwrap().await }).await.unwrap();
            soon(connection.accept_bi()).await.unwrap();
            connection
        });
        // As if killed: no task runs any more that could tell anybody.
        drop(theirs);
        drop((connection, endpoint));
    });
    ours.block_on(async {
        let dialling = dialler(&authority.client(), ALPN_CLIENT);
        let connection =
            soon(async { dialling.connect(address, "node.starling").unwrap().await }).await;
        let connection = connection.unwrap();
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        send.write_all(b"hello").await.unwrap();
        tokio::task::spawn_blocking(|| serving.join().unwrap()).await.unwrap();
        let _restarted = listen(&authority.node(1), address, Some(&keys));
        send.write_all(b"are you there?").await.unwrap();
        assert_eq!(soon(connection.closed()).await, quinn::ConnectionError::Reset);
    });
}
