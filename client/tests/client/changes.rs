//! Subscriptions: order, coming back at the sequence, gaps, all nodes, and back-pressure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use starling_client::transport::{FrameKind, write_frame};
use starling_client::wire::{Change, ChangesItem, Provenance, WireError};
use starling_client::{ChangesEvent, ChangesFrom, Client, ClientError, ErrorCode, NodeId};

use crate::support::{Cluster, Subscribed, soon, value, version};

fn change(sequence: u64, payload: &[u8]) -> Change {
    Change {
        sequence,
        keyspace: "k".into(),
        key: b"key".to_vec().into(),
        partition: 1,
        version: version(sequence, payload),
        provenance: Provenance::Write,
        previous: None,
    }
}

fn batch(sequences: std::ops::Range<u64>) -> ChangesItem {
    let next = sequences.end;
    let changes = sequences.map(|sequence| change(sequence, b"payload")).collect();
    ChangesItem::Batch { changes, next, end: next }
}

async fn send(subscribed: &mut Subscribed, item: &ChangesItem) {
    write_frame(&mut subscribed.send, FrameKind::ChangesItem, 0, item).await.unwrap();
}

fn sequences(event: &ChangesEvent) -> Vec<u64> {
    match event {
        ChangesEvent::Batch { changes, .. } => {
            changes.iter().map(|change| change.sequence).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_subscription_goes_on_where_it_was() {
    let mut cluster = Cluster::start(2, 2);
    let client = cluster.connect().await;
    let mut changes = client.changes().keyspace("k").from(ChangesFrom::Oldest).node(NodeId(2));
    let first = tokio::spawn(async move { (changes.next().await, changes) });
    let mut subscribed = cluster.subscribed().await;
    assert_eq!(subscribed.node, 2);
    assert_eq!(subscribed.request.from, ChangesFrom::Oldest);
    assert_eq!(subscribed.request.keyspace, Some("k".into()));
    send(&mut subscribed, &batch(0..3)).await;
    let (event, mut changes) = soon(first).await.unwrap();
    assert_eq!(sequences(&event.unwrap().unwrap()), [0, 1, 2]);
    assert_eq!(client.observed(), crate::support::stamp(2).time);

    let second = tokio::spawn(async move { (changes.next().await, changes) });
    subscribed.connection.close(quinn::VarInt::from_u32(0), b"test");
    let mut subscribed = cluster.subscribed().await;
    assert_eq!(subscribed.request.from, ChangesFrom::Sequence(3));
    send(&mut subscribed, &ChangesItem::Gap { from: 3, to: 9 }).await;
    send(&mut subscribed, &ChangesItem::End { next: 9 }).await;
    let (event, mut changes) = soon(second).await.unwrap();
    let gap = ChangesEvent::Gap { node: NodeId(2), from: 3, to: 9 };
    assert_eq!(event.unwrap(), Some(gap));
    let end = ChangesEvent::End { node: NodeId(2), next: 9 };
    assert_eq!(soon(changes.next()).await.unwrap(), Some(end));
    assert_eq!(soon(changes.next()).await.unwrap(), None);
    assert_eq!(changes.position(), Some(9));
}

#[tokio::test]
async fn a_passing_error_is_waited_out_and_a_lasting_one_told() {
    let mut cluster = Cluster::start(1, 1);
    let client = cluster.connect().await;
    let mut changes = client.changes().node(NodeId(1));
    let next = tokio::spawn(async move { (changes.next().await, changes) });
    let passing = ChangesItem::Error(WireError::new(ErrorCode::SubscriptionsMax, "full"));
    send(&mut cluster.subscribed().await, &passing).await;
    let lasting = ChangesItem::Error(WireError::new(ErrorCode::KeyspaceUnknown, "no"));
    send(&mut cluster.subscribed().await, &lasting).await;
    let (event, mut changes) = soon(next).await.unwrap();
    assert!(matches!(event, Err(ClientError::Refused(_))), "{event:?}");
    assert_eq!(soon(changes.next()).await.unwrap(), None, "it has ended");
}

#[tokio::test]
async fn a_node_that_stays_away_is_told_and_sought_again() {
    let mut cluster = Cluster::start(2, 2);
    let client = cluster.connect().await;
    cluster.stop(2).await;
    let patience = Duration::from_millis(50);
    let mut changes = client
        .changes()
        .patience(patience)
        .resume(BTreeMap::from([(NodeId(2), 77)]))
        .node(NodeId(2));
    match soon(changes.next()).await {
        Err(ClientError::SubscriptionLost { node: NodeId(2), next: Some(77), .. }) => {}
        other => panic!("{other:?}"),
    }
    soon(cluster.restart(2)).await;
    let next = tokio::spawn(async move {
        loop {
            match changes.next().await {
                Err(ClientError::SubscriptionLost { .. }) => {}
                other => return other,
            }
        }
    });
    let mut subscribed = cluster.subscribed().await;
    assert_eq!(subscribed.request.from, ChangesFrom::Sequence(77));
    send(&mut subscribed, &batch(77..78)).await;
    assert_eq!(sequences(&soon(next).await.unwrap().unwrap().unwrap()), [77]);
}

#[tokio::test]
async fn all_nodes_are_followed_with_those_that_come() {
    let mut cluster = Cluster::start(2, 2);
    let mut config = cluster.config();
    config.topology_refresh = Duration::from_millis(20);
    let client = soon(Client::connect(config)).await.unwrap();
    let mut changes = client.changes().patience(Duration::from_millis(50)).all_nodes();
    let mut streams = BTreeMap::new();
    for _ in 0..2 {
        let subscribed = cluster.subscribed().await;
        assert_eq!(subscribed.request.from, ChangesFrom::Now);
        streams.insert(subscribed.node, subscribed);
    }
    for (&node, subscribed) in &mut streams {
        send(subscribed, &batch(node * 10..node * 10 + 1)).await;
    }
    for _ in 0..2 {
        let event = soon(changes.next()).await.unwrap().unwrap();
        let ChangesEvent::Batch { node, .. } = event else { panic!("{event:?}") };
        assert_eq!(sequences(&event), [node.0 * 10]);
    }
    assert_eq!(changes.positions(), &BTreeMap::from([(NodeId(1), 11), (NodeId(2), 21)]));

    soon(cluster.stop(2)).await;
    let event = soon(changes.next()).await.unwrap().unwrap();
    assert!(matches!(event, ChangesEvent::Lost { node: NodeId(2), .. }), "{event:?}");
    // The stream holds on to the old socket.
    streams.remove(&2);
    soon(cluster.restart(2)).await;
    let mut again = cluster.subscribed().await;
    assert_eq!((again.node, again.request.from), (2, ChangesFrom::Sequence(21)));
    send(&mut again, &batch(21..23)).await;
    assert_eq!(sequences(&soon(changes.next()).await.unwrap().unwrap()), [21, 22]);

    cluster.add(3);
    let mut newcomer = cluster.subscribed().await;
    assert_eq!((newcomer.node, newcomer.request.from), (3, ChangesFrom::Oldest));
    send(&mut newcomer, &batch(0..1)).await;
    assert_eq!(sequences(&soon(changes.next()).await.unwrap().unwrap()), [0]);
}

#[tokio::test]
async fn without_follow_all_nodes_end() {
    let mut cluster = Cluster::start(3, 3);
    let client = cluster.connect().await;
    let mut changes = client.changes().from(ChangesFrom::Oldest).follow(false).all_nodes();
    for _ in 0..3 {
        let mut subscribed = cluster.subscribed().await;
        assert!(!subscribed.request.follow);
        let end = ChangesItem::End { next: subscribed.node };
        send(&mut subscribed, &end).await;
        subscribed.send.finish().unwrap();
    }
    let mut ended = Vec::new();
    while let Some(event) = soon(changes.next()).await.unwrap() {
        match event {
            ChangesEvent::End { node, next } if next == node.0 => ended.push(next),
            other => panic!("{other:?}"),
        }
    }
    ended.sort_unstable();
    assert_eq!(ended, [1, 2, 3]);
}

#[tokio::test]
async fn a_slow_consumer_holds_the_node_back_and_nobody_else() {
    const ITEMS: usize = 600;
    const ITEM_SIZE: usize = 100 << 10;
    /// A stream's window, the sender's buffer, an item under way.
    const HELD_MAX: usize = (1 << 20) + (16 << 20) + 2 * ITEM_SIZE;
    const { assert!(ITEMS * ITEM_SIZE > 3 * HELD_MAX) };

    let mut cluster = Cluster::start(1, 1);
    let client = cluster.connect().await;
    let mut changes = client.changes().from(ChangesFrom::Oldest).node(NodeId(1));
    let first = tokio::spawn(async move { (changes.next().await, changes) });
    let mut subscribed = cluster.subscribed().await;
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    let sending = tokio::spawn(async move {
        let payload = vec![7; ITEM_SIZE];
        for at in 0..ITEMS as u64 {
            let changes = vec![change(at, &payload)].into();
            send(&mut subscribed, &ChangesItem::Batch { changes, next: at + 1, end: 0 }).await;
            counted.fetch_add(ITEM_SIZE, Ordering::Relaxed);
        }
        send(&mut subscribed, &ChangesItem::End { next: ITEMS as u64 }).await;
        subscribed.send.finish().unwrap();
        subscribed
    });
    let (event, mut changes) = soon(first).await.unwrap();
    assert_eq!(sequences(&event.unwrap().unwrap()), [0]);

    // Requests on the same connection pass the stream that nobody reads, however long that lasts.
    let mut before = 0;
    let mut quiet = 0;
    while quiet < 50 {
        let read = tokio::spawn(client.keyspace("k").get("key").send());
        cluster.asked().await.answer(&value(1, b"payload"));
        soon(read).await.unwrap().unwrap();
        let now = sent.load(Ordering::Relaxed);
        assert!(now <= HELD_MAX, "{now} bytes are on their way");
        quiet = if now == before { quiet + 1 } else { 0 };
        before = now;
    }

    for at in 1..ITEMS as u64 {
        assert_eq!(sequences(&soon(changes.next()).await.unwrap().unwrap()), [at]);
    }
    assert!(matches!(soon(changes.next()).await, Ok(Some(ChangesEvent::End { .. }))));
    soon(sending).await.unwrap();
}
