//! Subscriptions to what nodes apply: of one node ([`NodeChanges`]) or of all ([`AllChanges`]).
//!
//! Invariants:
//!
//! - A node's changes come in order of its sequence; after a loss the subscription goes on where it was, and nothing of
//!   what was delivered comes twice or is left out silently.
//! - The consumer sets the pace: what it does not take stays with the node (QUIC's flow control), and here in a bounded queue.
//!
//! It does not merge: N replicas apply an event, so a subscription to all nodes delivers it N times, each with its
//! node named, in no order across nodes. Who wants each event once drops what has a (key, stamp) that it has seen.
//! A subscription `from` [`ChangesFrom::Now`] begins when the node is reached, not when it is asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use starling_clock::NodeId;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout_at};

use crate::client::Client;
use crate::codec;
use crate::connection::NodeConnection;
use crate::error::ClientError;
use crate::event::ChangesEvent;
use crate::time::Deadline;
use crate::transport::{FRAME_SIZE_MAX, FrameKind, FrameReader, write_frame};
use crate::wire::{ChangesFrom, ChangesItem, ChangesRequest, ErrorKind};

/// Batches of all nodes that wait for the consumer.
const QUEUE_MAX: usize = 16;
/// Between two attempts to reach a node.
const PAUSE_FIRST: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// Says which changes are wanted; ends in [`Changes::node`] or [`Changes::all_nodes`].
#[derive(Clone, Debug)]
#[must_use = "nothing is subscribed to until a node is named"]
pub struct Changes {
    client: Client,
    request: ChangesRequest,
    patience: Duration,
    resume: BTreeMap<NodeId, u64>,
}

impl Changes {
    pub(crate) fn new(client: Client) -> Self {
        let request = ChangesRequest {
            keyspace: None,
            prefix: Bytes::new().into(),
            partitions: None,
            from: ChangesFrom::Now,
            follow: true,
        };
        let patience = client.inner.config.request_timeout;
        Self { client, request, patience, resume: BTreeMap::new() }
    }

    /// Only this keyspace; all unless it is told.
    pub fn keyspace(mut self, name: impl Into<String>) -> Self {
        self.request.keyspace = Some(name.into().into());
        self
    }

    /// Only keys that begin so.
    pub fn prefix(mut self, prefix: impl Into<Bytes>) -> Self {
        self.request.prefix = prefix.into().into();
        self
    }

    /// Only these partitions.
    pub fn partitions(mut self, partitions: RangeInclusive<u32>) -> Self {
        self.request.partitions = Some(partitions.into_inner());
        self
    }

    /// Where to begin; [`ChangesFrom::Now`] unless it is told.
    pub fn from(mut self, from: ChangesFrom) -> Self {
        self.request.from = from;
        self
    }

    /// Goes on at these sequences on these nodes ([`AllChanges::positions`]); on others `from` holds.
    pub fn resume(mut self, positions: BTreeMap<NodeId, u64>) -> Self {
        self.resume = positions;
        self
    }

    /// Whether to stay and wait for what comes (it does unless it is told), or to end at what is the newest now.
    pub fn follow(mut self, follow: bool) -> Self {
        self.request.follow = follow;
        self
    }

    /// How long a lost node is sought before it is told; the client's `request_timeout` unless it is told.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The changes of one node.
    pub fn node(self, node: NodeId) -> NodeChanges {
        let next = self.resume.get(&node).copied();
        NodeChanges {
            client: self.client,
            node,
            request: self.request,
            patience: self.patience,
            next,
            stream: None,
            ended: false,
        }
    }

    /// The changes of every node; nodes that join are taken in from their oldest change on.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn all_nodes(self) -> AllChanges {
        let (sender, events) = mpsc::channel(QUEUE_MAX);
        let positions = self.resume.clone();
        tokio::spawn(follow_members(self, sender));
        AllChanges { events, positions }
    }
}

/// A subscription to one node. Reconnects by itself.
#[derive(Debug)]
pub struct NodeChanges {
    client: Client,
    node: NodeId,
    request: ChangesRequest,
    patience: Duration,
    /// Where to go on; `None`: as the request says.
    next: Option<u64>,
    stream: Option<OpenStream>,
    ended: bool,
}

#[derive(Debug)]
struct OpenStream {
    reader: FrameReader,
    /// The connection ends when nobody holds it.
    _connection: Arc<NodeConnection>,
}

impl NodeChanges {
    /// What comes next; `None` after the end. Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError::SubscriptionLost`] if the node was not there for `patience`; another call tries again.
    /// [`ClientError::Refused`], [`ClientError::UnknownNode`] and [`ClientError::Protocol`] end the subscription.
    pub async fn next(&mut self) -> Result<Option<ChangesEvent>, ClientError> {
        let mut pause = PAUSE_FIRST;
        let mut sought_until = None;
        loop {
            if self.ended {
                return Ok(None);
            }
            let problem = if self.stream.is_some() {
                match self.read_item().await {
                    Ok(item) => match self.take(item)? {
                        Ok(event) => return Ok(Some(event)),
                        Err(problem) => problem,
                    },
                    Err(problem) => problem,
                }
            } else {
                let until = *sought_until.get_or_insert_with(|| Deadline::after(self.patience));
                match self.open(until).await {
                    Ok(()) => continue,
                    Err(error @ ClientError::UnknownNode(_)) => return Err(self.end(error)),
                    Err(error) => error.to_string(),
                }
            };
            let lost = self.stream.take().is_some();
            let until = *sought_until.get_or_insert_with(|| Deadline::after(self.patience));
            tracing::debug!(node = %self.node, %problem, lost, "subscription is interrupted");
            if until.remaining() <= pause {
                let (node, next) = (self.node, self.next);
                return Err(ClientError::SubscriptionLost { node, next, problem });
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Whose changes these are.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Where to go on another time; `None`: nothing came yet.
    pub fn position(&self) -> Option<u64> {
        self.next
    }

    fn end(&mut self, error: ClientError) -> ClientError {
        self.stream = None;
        self.ended = true;
        error
    }

    async fn open(&mut self, until: Deadline) -> Result<(), ClientError> {
        let node = self.node;
        let lost = |problem: String| ClientError::Unreachable { node, problem };
        let connection = self.client.inner.nodes.connect(node, until).await?;
        let opened = timeout_at(until.at(), connection.open_exchange()).await;
        let opened = opened.map_err(|_| lost("too many streams are open".to_owned()))?;
        let (mut send, receive) = opened.map_err(|error| lost(error.to_string()))?;
        let from = self.next.map_or(self.request.from, ChangesFrom::Sequence);
        let request = ChangesRequest { from, ..self.request.clone() };
        write_frame(&mut send, FrameKind::ChangesRequest, 0, &request)
            .await
            .map_err(|error| lost(error.to_string()))?;
        // It is finished already if the node has stopped it: reading will tell.
        let _ = send.finish();
        let reader = FrameReader::exchange(receive, FRAME_SIZE_MAX);
        self.stream = Some(OpenStream { reader, _connection: connection });
        Ok(())
    }

    /// The next item; `Err` with the reason why the stream gives none.
    async fn read_item(&mut self) -> Result<Result<ChangesItem, String>, String> {
        let stream = self.stream.as_mut().expect("the caller looked");
        loop {
            match stream.reader.next_frame() {
                Ok(Some(frame)) if frame.kind == FrameKind::ChangesItem => {
                    return Ok(codec::decode(frame.body).map_err(|error| error.to_string()));
                }
                Ok(Some(frame)) => {
                    return Ok(Err(format!("a {:?} frame came where changes come", frame.kind)));
                }
                Ok(None) => {}
                Err(error) => return Ok(Err(error.to_string())),
            }
            match stream.reader.read().await {
                Ok(true) => {}
                Ok(false) => return Err("the node ended the stream".to_owned()),
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// What an item means: an event, a reason to seek the node anew, or the end with an error.
    fn take(
        &mut self,
        item: Result<ChangesItem, String>,
    ) -> Result<Result<ChangesEvent, String>, ClientError> {
        let node = self.node;
        let item = match item {
            Ok(item) => item,
            Err(problem) => return Err(self.end(ClientError::Protocol { node, problem })),
        };
        Ok(Ok(match item {
            ChangesItem::Batch { changes, next, end } => {
                self.next = Some(next);
                let stamps = changes.iter().map(|change| change.version.stamp.0);
                self.client.inner.observe_newest(stamps);
                let changes = changes.0.into_iter().map(Into::into).collect();
                ChangesEvent::Batch { node, changes, next, end }
            }
            ChangesItem::Gap { from, to } => {
                self.next = Some(to);
                ChangesEvent::Gap { node, from, to }
            }
            ChangesItem::End { next } => {
                self.next = Some(next);
                self.stream = None;
                self.ended = true;
                ChangesEvent::End { node, next }
            }
            ChangesItem::Error(error) if error.kind() == ErrorKind::ChangeRequest => {
                return Err(self.end(ClientError::Refused(error)));
            }
            ChangesItem::Error(error) => return Ok(Err(error.to_string())),
        }))
    }
}

/// A subscription to all nodes.
#[derive(Debug)]
pub struct AllChanges {
    events: mpsc::Receiver<Result<ChangesEvent, ClientError>>,
    positions: BTreeMap<NodeId, u64>,
}

impl AllChanges {
    /// What comes next, of any node; `None`, without `follow`, after the last node's end. Cancel-safe.
    ///
    /// # Errors
    /// What ended the subscription to one node; the others' go on.
    pub async fn next(&mut self) -> Result<Option<ChangesEvent>, ClientError> {
        let event = self.events.recv().await.transpose()?;
        match &event {
            Some(
                ChangesEvent::Batch { node, next, .. }
                | ChangesEvent::Gap { node, to: next, .. }
                | ChangesEvent::End { node, next },
            ) => {
                self.positions.insert(*node, *next);
            }
            Some(ChangesEvent::Lost { .. }) | None => {}
        }
        Ok(event)
    }

    /// Where to go on another time, by node, after all that [`AllChanges::next`] gave: for [`Changes::resume`].
    pub fn positions(&self) -> &BTreeMap<NodeId, u64> {
        &self.positions
    }
}

type Events = mpsc::Sender<Result<ChangesEvent, ClientError>>;

/// The task that starts one task a member, those that join later included. Ends with the subscription.
async fn follow_members(changes: Changes, events: Events) {
    let mut known = BTreeSet::new();
    let every = changes.client.inner.config.topology_refresh;
    let mut newcomers = changes.clone();
    if newcomers.request.from == ChangesFrom::Now {
        newcomers.request.from = ChangesFrom::Oldest;
    }
    let mut first_round = true;
    loop {
        for node in changes.client.nodes() {
            if known.insert(node) {
                let changes = if first_round { changes.clone() } else { newcomers.clone() };
                tokio::spawn(follow_node(changes.node(node), events.clone()));
            }
        }
        first_round = false;
        if !changes.request.follow {
            return;
        }
        tokio::select! {
            () = events.closed() => return,
            () = sleep(every) => {}
        }
    }
}

/// The task of one member.
async fn follow_node(mut changes: NodeChanges, events: Events) {
    let node = changes.node;
    let mut told_lost = false;
    loop {
        let event = tokio::select! {
            biased;
            () = events.closed() => return,
            event = changes.next() => event,
        };
        let told = match event {
            Ok(Some(event)) => {
                told_lost = false;
                events.send(Ok(event)).await
            }
            Ok(None) => return,
            Err(ClientError::SubscriptionLost { problem, .. }) => {
                let told = if told_lost {
                    Ok(())
                } else {
                    events.send(Ok(ChangesEvent::Lost { node, problem })).await
                };
                if !changes.request.follow {
                    return;
                }
                told_lost = true;
                told
            }
            Err(error) => events.send(Err(error)).await,
        };
        if told.is_err() {
            return;
        }
    }
}
