//! [`Driver`]: feeds the core what happened and carries out what it says, in order. It decides nothing.
//!
//! Invariants:
//!
//! - After each batch of inputs the core is drained to the end, and only then do the storage threads get their requests: one
//!   wake-up a batch.
//! - The core is never entered twice: inputs that carrying out an output gives rise to are queued and fed by the same call.
//! - What waits in memory is bounded: a client's unanswered requests and unread answers, a peer's unsent messages, storage's
//!   unanswered requests. Where a bound is met, nothing is read from clients and peers (or, for a peer's messages, they are dropped and counted).
//!
//! Everything here runs on one thread; no borrow of the driver is held over an `await`.

use std::cell::RefCell;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use starling_client::codec;
use starling_client::transport::{FrameKind, LargeFrameBudget, Outbox, PushError};
use starling_client::wire::{ChangesItem, Response};
use starling_clock::NodeId;
use tokio::sync::{Notify, mpsc, oneshot};

use super::close_code::CloseCode;
use super::peer;
use super::peer::Links;
use super::storage::{StorageEvent, StorageThreads, Ticketed, weight};
use super::time::Clock;
use crate::core::Core;
use crate::core::peer::Hello;
use crate::core::types::{ConnectionId, Input, Instant, Output, SubscriptionId, Ticket};

/// Requests of one client that are not answered; with more, nothing is read from it.
const REQUESTS_PER_CLIENT_MAX: usize = 4096;
/// Bytes of answers to one client beyond its queue; with more, it is taken for one that does not read and is closed.
const CLIENT_BACKLOG_BYTES_MAX: usize = 256 << 20;
/// Requests that storage has not answered; with more, nothing is read from clients and peers.
const STORAGE_REQUESTS_MAX: usize = 32 << 10;
/// Their bytes.
const STORAGE_BYTES_MAX: usize = 256 << 20;

/// What the driver is made with.
pub(super) struct DriverConfig {
    /// Told to peers.
    pub(super) hello: Hello,
    /// This node.
    pub(super) node: NodeId,
    /// For dialling peers.
    pub(super) endpoint: quinn::Endpoint,
    /// For dialling peers.
    pub(super) peer_config: quinn::ClientConfig,
    /// Bytes that may wait for a peer.
    pub(super) peer_queue_bytes: usize,
    /// Bytes that may wait for a client.
    pub(super) client_queue_bytes: usize,
    /// Clients at a time.
    pub(super) connections_max: usize,
    /// Large frames of clients.
    pub(super) client_budget: LargeFrameBudget,
    /// Large frames of peers: clients cannot use it up.
    pub(super) peer_budget: LargeFrameBudget,
}

/// A client's connection.
struct ClientLink {
    connection: quinn::Connection,
    outbox: Outbox,
    /// Requests that were read and whose answers the outbox has not taken.
    in_flight: usize,
    /// Bytes of answers that wait for room in the outbox.
    backlog_bytes: usize,
    room: Rc<Notify>,
}

/// The state behind [`Driver`].
struct State {
    core: Core,
    storage: StorageThreads,
    clients: BTreeMap<ConnectionId, ClientLink>,
    peers: BTreeMap<NodeId, Links>,
    subscriptions: BTreeMap<SubscriptionId, mpsc::Sender<Arc<ChangesItem>>>,
    exchanges: BTreeMap<u64, oneshot::Sender<Bytes>>,
    dialling: BTreeSet<SocketAddr>,
    /// Names are never used twice.
    names: u64,
    inputs: VecDeque<Input>,
    draining: bool,
    writes: Vec<Ticketed>,
    reads: Vec<Ticketed>,
    /// Weights of unanswered requests of storage, by ticket. The ticket of requests whose answer nobody waits for is
    /// given many times: its answers come in the order of its requests.
    storage_weights: BTreeMap<Ticket, VecDeque<usize>>,
    storage_requests: usize,
    storage_bytes: usize,
    armed_for: Option<Instant>,
    peer_messages_dropped: u64,
    /// Clients' connections, those without a stream too.
    client_connections: usize,
    /// The core takes requests.
    serving: bool,
    /// The core is not fed any more.
    finished: bool,
}

impl State {
    /// What an answered request kept in memory is free again.
    fn storage_answered(&mut self, ticket: Ticket) {
        let Entry::Occupied(mut weights) = self.storage_weights.entry(ticket) else {
            unreachable!("storage answers what it was asked");
        };
        let bytes = weights.get_mut().pop_front().expect("an entry has one at least");
        if weights.get().is_empty() {
            weights.remove();
        }
        self.storage_bytes -= bytes;
        self.storage_requests -= 1;
    }
}

/// The core and all that is connected to it. Clones share it.
#[derive(Clone)]
pub(super) struct Driver {
    state: Rc<RefCell<State>>,
    config: Rc<DriverConfig>,
    clock: Clock,
    /// The timer has to be set anew.
    rearm: Rc<Notify>,
    /// Storage has answered enough that more may be asked.
    storage_room: Rc<Notify>,
    serving: Rc<Notify>,
    stopped: Rc<Notify>,
}

impl Driver {
    /// Nothing is connected yet. Must be made inside a `LocalSet`.
    pub(super) fn new(
        core: Core,
        storage: StorageThreads,
        clock: Clock,
        config: DriverConfig,
    ) -> Self {
        let state = State {
            core,
            storage,
            clients: BTreeMap::new(),
            peers: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            exchanges: BTreeMap::new(),
            dialling: BTreeSet::new(),
            names: 0,
            inputs: VecDeque::new(),
            draining: false,
            writes: Vec::new(),
            reads: Vec::new(),
            storage_weights: BTreeMap::new(),
            storage_requests: 0,
            storage_bytes: 0,
            armed_for: None,
            peer_messages_dropped: 0,
            client_connections: 0,
            serving: false,
            finished: false,
        };
        let notify = || Rc::new(Notify::new());
        Self {
            state: Rc::new(RefCell::new(state)),
            config: Rc::new(config),
            clock,
            rearm: notify(),
            storage_room: notify(),
            serving: notify(),
            stopped: notify(),
        }
    }

    /// What the driver was made with.
    pub(super) fn config(&self) -> &DriverConfig {
        &self.config
    }

    /// A name that was not used before in this life of the node.
    pub(super) fn name(&self) -> u64 {
        let mut state = self.state.borrow_mut();
        state.names += 1;
        state.names
    }

    /// One input, then everything that follows from it.
    pub(super) fn feed(&self, input: Input) {
        self.feed_all([input]);
    }

    /// Inputs that came together, then everything that follows from them.
    pub(super) fn feed_all(&self, inputs: impl IntoIterator<Item = Input>) {
        let draining = {
            let mut state = self.state.borrow_mut();
            if state.finished {
                return;
            }
            state.inputs.extend(inputs);
            std::mem::replace(&mut state.draining, true)
        };
        if draining {
            // The call that drains feeds them.
            return;
        }
        let now = self.clock.now();
        loop {
            let output = {
                let mut state = self.state.borrow_mut();
                let State { core, inputs, .. } = &mut *state;
                for input in inputs.drain(..) {
                    core.handle(now, input);
                }
                core.poll_output()
            };
            match output {
                Some(output) => self.carry_out(output),
                None if self.state.borrow().inputs.is_empty() => break,
                None => {}
            }
        }
        let mut state = self.state.borrow_mut();
        state.draining = false;
        let State { storage, writes, reads, .. } = &mut *state;
        storage.write(writes);
        storage.read(reads);
        if !state.serving && state.core.is_serving() {
            state.serving = true;
            self.serving.notify_one();
        }
        let timeout = state.core.poll_timeout();
        if timeout.is_some() && (state.armed_for.is_none() || timeout < state.armed_for) {
            self.rearm.notify_one();
        }
    }

    fn carry_out(&self, output: Output) {
        match output {
            Output::Storage { ticket, request } => {
                let mut state = self.state.borrow_mut();
                let bytes = weight(&request);
                state.storage_bytes += bytes;
                state.storage_requests += 1;
                state.storage_weights.entry(ticket).or_default().push_back(bytes);
                let lane =
                    if request.is_write_lane() { &mut state.writes } else { &mut state.reads };
                lane.push((ticket, request));
            }
            Output::Peer { to, message } => self.send_to_peer(to, |outbox| {
                outbox.try_push(FrameKind::Peer, 0, |out| codec::encode(&message, out))
            }),
            Output::Answer { connection, id, response } => self.answer(connection, id, &response),
            Output::Gossip { to, bytes } => {
                let state = self.state.borrow();
                if let Some(connection) = state.peers.get(&to).and_then(Links::connection)
                    && let Err(error) = connection.send_datagram(bytes)
                {
                    tracing::debug!(peer = %to, %error, "gossip was not sent");
                }
            }
            Output::PushPull { to, bytes } => {
                let connection = self.state.borrow().peers.get(&to).and_then(Links::connection);
                if let Some(connection) = connection {
                    let driver = self.clone();
                    tokio::task::spawn_local(async move {
                        peer::push_pull(driver, to, connection, bytes).await;
                    });
                }
            }
            Output::PushPullAnswer { exchange, bytes } => {
                let exchange = self.state.borrow_mut().exchanges.remove(&exchange);
                if let Some(exchange) = exchange {
                    // The asker may be gone: then nobody wants it.
                    let _ = exchange.send(bytes);
                }
            }
            Output::SubscriptionItem { subscription, item } => {
                let state = self.state.borrow();
                if let Some(items) = state.subscriptions.get(&subscription) {
                    let sent = items.try_send(item);
                    assert!(
                        !matches!(sent, Err(mpsc::error::TrySendError::Full(_))),
                        "one item of a subscription is in flight at a time"
                    );
                }
            }
            Output::Dial { peer, address } => self.dial(peer, address),
            Output::Stopped => self.stopped.notify_one(),
        }
    }

    /// Until the core takes requests.
    pub(super) async fn serving(&self) {
        self.serving.notified().await;
    }

    /// Until the core says that everything is finished.
    pub(super) async fn stopped(&self) {
        self.stopped.notified().await;
    }

    /// Gives the core its timeouts, for ever.
    pub(super) async fn run_timer(self) {
        loop {
            let timeout = {
                let mut state = self.state.borrow_mut();
                state.armed_for = state.core.poll_timeout();
                state.armed_for
            };
            match timeout {
                None => self.rearm.notified().await,
                Some(when) => {
                    let wait = self.clock.until(when);
                    if wait.is_zero() {
                        // Whatever else there is to do comes in between two timeouts.
                        tokio::task::yield_now().await;
                        self.feed(Input::Timeout);
                        continue;
                    }
                    tokio::select! {
                        biased;
                        () = self.rearm.notified() => {}
                        () = tokio::time::sleep(wait) => {}
                    }
                }
            }
        }
    }

    /// Gives the core storage's answers; returns if a storage thread is lost.
    pub(super) async fn run_storage_answers(self) {
        let arrived = self.state.borrow().storage.events();
        let mut events = Vec::new();
        loop {
            arrived.take(&mut events).await;
            let mut inputs = Vec::with_capacity(events.len());
            let had_room = self.storage_has_room();
            for event in events.drain(..) {
                inputs.push(match event {
                    StorageEvent::Done(ticket, answer) => {
                        self.state.borrow_mut().storage_answered(ticket);
                        Input::StorageDone { ticket, answer }
                    }
                    StorageEvent::ChangesGrew(end) => Input::ChangesGrew { end },
                    StorageEvent::ThreadLost => return,
                });
            }
            self.feed_all(inputs);
            if !had_room && self.storage_has_room() {
                self.storage_room.notify_waiters();
            }
        }
    }

    fn storage_has_room(&self) -> bool {
        let state = self.state.borrow();
        state.storage_requests < STORAGE_REQUESTS_MAX && state.storage_bytes < STORAGE_BYTES_MAX
    }

    /// Waits until storage may be asked more.
    pub(super) async fn storage_room(&self) {
        while !self.storage_has_room() {
            self.storage_room.notified().await;
        }
    }

    /// The core is not fed any more: what still ends, ends without it.
    pub(super) fn finish(&self) {
        self.state.borrow_mut().finished = true;
    }

    /// Ends the storage threads, everything written and synced. Blocks. All tasks must have ended.
    pub(super) fn stop_storage(self) {
        let state = Rc::try_unwrap(self.state);
        assert!(state.is_ok(), "all tasks have ended");
        if let Ok(state) = state {
            state.into_inner().storage.stop();
        }
    }
}

/// Clients.
impl Driver {
    /// Counts a client's connection; `false` if there are as many as may be.
    pub(super) fn client_begins(&self) -> bool {
        let mut state = self.state.borrow_mut();
        let fits = state.client_connections < self.config.connections_max;
        state.client_connections += usize::from(fits);
        fits
    }

    /// A connection that was counted has ended.
    pub(super) fn client_ends(&self) {
        self.state.borrow_mut().client_connections -= 1;
    }

    /// A client's stream is open.
    pub(super) fn add_client(
        &self,
        id: ConnectionId,
        connection: quinn::Connection,
        outbox: Outbox,
    ) {
        let room = Rc::new(Notify::new());
        let link = ClientLink { connection, outbox, in_flight: 0, backlog_bytes: 0, room };
        let before = self.state.borrow_mut().clients.insert(id, link);
        assert!(before.is_none(), "names are used once");
    }

    /// A client is gone.
    pub(super) fn remove_client(&self, id: ConnectionId) {
        let link = self.state.borrow_mut().clients.remove(&id);
        if let Some(link) = link {
            link.room.notify_waiters();
            self.feed(Input::ConnectionClosed { connection: id });
        }
    }

    /// Counts requests that were read.
    pub(super) fn requests_begin(&self, id: ConnectionId, count: usize) {
        if let Some(link) = self.state.borrow_mut().clients.get_mut(&id) {
            link.in_flight += count;
        }
    }

    /// Waits until more may be read from a client; `false` if it is gone.
    pub(super) async fn client_room(&self, id: ConnectionId) -> bool {
        loop {
            self.storage_room().await;
            let (outbox, busy) = {
                let state = self.state.borrow();
                let Some(link) = state.clients.get(&id) else { return false };
                let busy = REQUESTS_PER_CLIENT_MAX <= link.in_flight || 0 < link.backlog_bytes;
                (link.outbox.clone(), busy.then(|| link.room.clone()))
            };
            match busy {
                Some(room) => room.notified().await,
                None if outbox.room().await.is_err() => return false,
                None if self.storage_has_room() => return true,
                None => {}
            }
        }
    }

    /// Answers a client.
    pub(super) fn answer(&self, id: ConnectionId, request: u64, response: &Response) {
        let mut state = self.state.borrow_mut();
        let Some(link) = state.clients.get_mut(&id) else { return };
        let encode = |out: &mut Vec<u8>| codec::encode(response, out);
        if link.backlog_bytes == 0
            && link.outbox.try_push(FrameKind::Response, request, encode) != Err(PushError::Full)
        {
            link.answered();
            return;
        }
        // The client does not read as fast as it asks: nothing is read from it until this has left.
        let mut body = Vec::new();
        codec::encode(response, &mut body);
        link.backlog_bytes += body.len().max(1);
        if CLIENT_BACKLOG_BYTES_MAX < link.backlog_bytes {
            CloseCode::SlowReader.close(&link.connection);
            return;
        }
        let (driver, outbox) = (self.clone(), link.outbox.clone());
        tokio::task::spawn_local(async move {
            let encode = |out: &mut Vec<u8>| out.extend_from_slice(&body);
            // If it is closed, the client's task sees that as well.
            let _ = outbox.push(FrameKind::Response, request, encode).await;
            if let Some(link) = driver.state.borrow_mut().clients.get_mut(&id) {
                link.backlog_bytes -= body.len().max(1);
                link.answered();
            }
        });
    }

    /// A subscription's stream is open; items come by the receiver.
    pub(super) fn add_subscription(&self, id: SubscriptionId) -> mpsc::Receiver<Arc<ChangesItem>> {
        let (sender, receiver) = mpsc::channel(1);
        let before = self.state.borrow_mut().subscriptions.insert(id, sender);
        assert!(before.is_none(), "names are used once");
        receiver
    }

    /// A subscription's stream is finished or lost; `false` if that was known.
    pub(super) fn remove_subscription(&self, id: SubscriptionId) -> bool {
        self.state.borrow_mut().subscriptions.remove(&id).is_some()
    }
}

impl ClientLink {
    fn answered(&mut self) {
        self.in_flight -= 1;
        if self.in_flight < REQUESTS_PER_CLIENT_MAX && self.backlog_bytes == 0 {
            self.room.notify_waiters();
        }
    }
}

/// Peers.
impl Driver {
    fn send_to_peer(&self, to: NodeId, push: impl FnOnce(&Outbox) -> Result<(), PushError>) {
        let mut state = self.state.borrow_mut();
        let sent = state.peers.get(&to).and_then(Links::outbox).map(push);
        if sent != Some(Ok(())) {
            state.peer_messages_dropped += 1;
            let dropped = state.peer_messages_dropped;
            // Once for each power of two: a peer that is away must not fill the log.
            if dropped.is_power_of_two() {
                tracing::warn!(peer = %to, dropped, "messages to peers were dropped so far");
            }
        }
    }

    fn dial(&self, peer: Option<NodeId>, address: SocketAddr) {
        let mut state = self.state.borrow_mut();
        if peer.is_some_and(|peer| state.peers.contains_key(&peer)) {
            return;
        }
        if state.dialling.insert(address) {
            tokio::task::spawn_local(peer::dial(self.clone(), peer, address));
        }
    }

    /// A dial has ended, one way or the other.
    pub(super) fn dial_ended(&self, address: SocketAddr) {
        self.state.borrow_mut().dialling.remove(&address);
    }

    /// A peer's stream is open. `dialled`: where to, if this node dialled.
    pub(super) fn add_peer(&self, peer: NodeId, dialled: Option<SocketAddr>, link: peer::Link) {
        {
            let mut state = self.state.borrow_mut();
            let preferred_is_ours = self.config.node < peer;
            let links = state.peers.entry(peer).or_insert_with(|| Links::new(preferred_is_ours));
            links.add(dialled.is_some(), link);
        }
        self.feed(Input::PeerConnected { peer, address: dialled });
    }

    /// A peer's connection is gone.
    pub(super) fn remove_peer(&self, peer: NodeId, link: u64) {
        let (last, was_in_use) = {
            let mut state = self.state.borrow_mut();
            let Some(links) = state.peers.get_mut(&peer) else { return };
            let was_in_use = links.is_in_use(link);
            links.remove(link);
            let last = links.is_empty();
            if last {
                state.peers.remove(&peer);
            }
            (last, was_in_use)
        };
        if last {
            self.feed(Input::PeerDisconnected { peer });
        } else if was_in_use {
            // Messages go by the other connection from now on; those on their way are lost.
            self.feed(Input::PeerConnected { peer, address: None });
        }
    }

    /// A push-pull that the core will answer.
    pub(super) fn add_exchange(&self) -> (u64, oneshot::Receiver<Bytes>) {
        let name = self.name();
        let (sender, receiver) = oneshot::channel();
        self.state.borrow_mut().exchanges.insert(name, sender);
        (name, receiver)
    }

    /// Nobody waits for its answer any more.
    pub(super) fn remove_exchange(&self, name: u64) {
        self.state.borrow_mut().exchanges.remove(&name);
    }

    /// Finishes all streams and waits until the other ends, having read to the end, have closed their connections.
    pub(super) async fn flush(&self) {
        let (outboxes, connections) = {
            let state = self.state.borrow();
            let clients = state.clients.values();
            let client_outboxes = clients.clone().map(|link| link.outbox.clone());
            let links = || state.peers.values().flat_map(Links::all);
            let outboxes: Vec<Outbox> =
                client_outboxes.chain(links().map(|link| link.outbox.clone())).collect();
            let connections: Vec<quinn::Connection> = clients
                .map(|link| link.connection.clone())
                .chain(links().map(|link| link.connection.clone()))
                .collect();
            (outboxes, connections)
        };
        for outbox in &outboxes {
            outbox.close();
        }
        for connection in connections {
            connection.closed().await;
        }
    }
}
