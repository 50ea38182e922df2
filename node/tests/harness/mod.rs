//! A cluster in one thread: real cores on real storage on simulated disks, joined by a network of messages in virtual time.
//!
//! Invariants:
//!
//! - The same seed and the same calls give the same run, byte for byte: [`World::trace`] tells.
//! - What a node sent to storage and had no answer for when it crashed may or may not have been done; what was not
//!   synced is lost.
//! - Messages between nodes go through the codec, and may be delayed, lost, repeated and reordered as [`Network`] says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use starling_client::codec::{self, Blob, List};
use starling_client::wire::{
    Action, ChangesItem, ChangesRequest, Cursor, Header, Level, Request, RequestId, Response, Row,
    Version, WireError,
};
use starling_clock::{ClockConfig, NodeId, Stamp};
use starling_gossip::GossipConfig;
use starling_node::core::storage::StorageRequest;
use starling_node::core::storage::Writer;
use starling_node::core::types::{
    ConnectionId, Input, Instant, Now, Output, SubscriptionId, Ticket,
};
use starling_node::core::{Core, CoreConfig};
use starling_node::limits::Limits;
use starling_ring::{Epoch, Member, Partitions};
use starling_storage::{Change, Config, CrashMode, Event, Identity, SimDisk, Storage};

/// The wall clock when a world begins, in milliseconds since the Unix epoch.
const WALL_MS: u64 = 1_700_000_000_000;
/// Partitions of the ring.
pub(crate) const PARTITIONS: u32 = 16;

/// What the network does to messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Network {
    /// Shortest and longest way of a message, in microseconds.
    pub(crate) delay_us: (u64, u64),
    /// Messages of a thousand that are lost.
    pub(crate) lost_per_mille: u32,
    /// Messages of a thousand that come twice.
    pub(crate) repeated_per_mille: u32,
}

/// Everything arrives, in half a millisecond or so.
pub(crate) const CALM: Network =
    Network { delay_us: (200, 800), lost_per_mille: 0, repeated_per_mille: 0 };
/// Some is lost, repeated, and overtaken.
pub(crate) const ROUGH: Network =
    Network { delay_us: (200, 9_000), lost_per_mille: 15, repeated_per_mille: 15 };

/// Short waits, so that a run of virtual seconds sees every timer.
pub(crate) fn limits() -> Limits {
    Limits {
        hint_after_ms: 200,
        hint_batch_timeout_ms: 500,
        retry_ms: (50, 400),
        anti_entropy_interval_ms: 3_000,
        anti_entropy_timeout_ms: 1_000,
        ..Limits::default()
    }
}

enum Happening {
    Input(Input),
    Commit,
    Read(Ticket, StorageRequest),
    Dial(NodeId),
    Sync,
}

struct Node {
    disk: SimDisk,
    life: u64,
    running: Option<Running>,
    skew_ms: i64,
}

struct Running {
    core: Core,
    writer: Writer<SimDisk>,
    writes: Vec<(Ticket, StorageRequest)>,
    changes_end: u64,
}

/// A cluster and its clients.
pub(crate) struct World {
    now_us: u64,
    random: ChaCha8Rng,
    limits: Limits,
    epoch: Epoch,
    network: Network,
    nodes: BTreeMap<NodeId, Node>,
    /// Both directions of a pair that cannot hear each other.
    cut: BTreeSet<(NodeId, NodeId)>,
    connected: BTreeSet<(NodeId, NodeId)>,
    queue: BTreeMap<(u64, u64), (NodeId, u64, Happening)>,
    next_event: u64,
    next_request: u64,
    exchanges: BTreeMap<u64, NodeId>,
    /// Answers by the number of the request, with the time they came.
    pub(crate) answers: BTreeMap<u64, (u64, Response)>,
    /// What subscriptions were sent.
    pub(crate) items: BTreeMap<u64, Vec<Arc<ChangesItem>>>,
    trace: u64,
}

/// A client's request in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pending(pub u64);

fn address_of(node: NodeId) -> SocketAddr {
    let port = u16::try_from(7000 + node.0).expect("nodes are few");
    SocketAddr::from(([10, 0, 0, 1], port))
}

fn pair(a: NodeId, b: NodeId) -> (NodeId, NodeId) {
    (a.min(b), a.max(b))
}

impl World {
    /// A cluster of `nodes` that has found itself, with the keyspace `default`.
    pub(crate) fn new(seed: u64, nodes: u64, network: Network) -> Self {
        Self::with_limits(seed, nodes, network, limits())
    }

    /// As [`Self::new`], with other bounds.
    pub(crate) fn with_limits(seed: u64, nodes: u64, network: Network, limits: Limits) -> Self {
        let member = |id| Member { node: NodeId(id), zone: String::new(), weight: 1 };
        let partitions = Partitions::new(PARTITIONS).expect("a power of two");
        let epoch = Epoch::new(1, partitions, (1..=nodes).map(member).collect())
            .expect("members are distinct");
        let mut world = Self {
            now_us: 1_000_000,
            random: ChaCha8Rng::seed_from_u64(seed),
            limits,
            epoch,
            network: CALM,
            nodes: BTreeMap::new(),
            cut: BTreeSet::new(),
            connected: BTreeSet::new(),
            queue: BTreeMap::new(),
            next_event: 0,
            next_request: 1,
            exchanges: BTreeMap::new(),
            answers: BTreeMap::new(),
            items: BTreeMap::new(),
            trace: 0,
        };
        for id in 1..=nodes {
            let disk = SimDisk::new(seed ^ id << 32);
            let node = Node { disk, life: 0, running: None, skew_ms: 0 };
            world.nodes.insert(NodeId(id), node);
        }
        for id in 1..=nodes {
            world.start(id);
        }
        world.run_ms(500);
        assert!((1..=nodes).all(|id| world.core(id).is_serving()));
        world.network = network;
        world
    }

    /// A hash of everything that happened.
    pub(crate) fn trace(&self) -> u64 {
        self.trace
    }

    pub(crate) fn now_us(&self) -> u64 {
        self.now_us
    }

    pub(crate) fn random(&mut self) -> &mut ChaCha8Rng {
        &mut self.random
    }

    pub(crate) fn node_ids(&self) -> Vec<u64> {
        self.nodes.keys().map(|node| node.0).collect()
    }

    pub(crate) fn is_running(&self, id: u64) -> bool {
        self.nodes[&NodeId(id)].running.is_some()
    }

    pub(crate) fn core(&self, id: u64) -> &Core {
        &self.nodes[&NodeId(id)].running.as_ref().expect("the node runs").core
    }

    pub(crate) fn storage(&self, id: u64) -> &Storage<SimDisk> {
        self.nodes[&NodeId(id)].running.as_ref().expect("the node runs").writer.storage()
    }

    /// Sets how far a node's wall clock is ahead, in milliseconds.
    pub(crate) fn skew(&mut self, id: u64, skew_ms: i64) {
        self.nodes.get_mut(&NodeId(id)).expect("the node is of this world").skew_ms = skew_ms;
    }

    pub(crate) fn set_network(&mut self, network: Network) {
        self.network = network;
    }

    // Lives.

    /// Starts a node from what its disk holds.
    pub(crate) fn start(&mut self, id: u64) {
        let own = NodeId(id);
        let seed = self.random.next_u64();
        let now = self.now(own);
        let config = CoreConfig {
            cluster: "test".to_owned(),
            node: own,
            software: "0.0.0".to_owned(),
            epoch: self.epoch.clone(),
            addresses: self.nodes.keys().map(|&node| (node, address_of(node))).collect(),
            gossip: GossipConfig::scaled(200_000),
            clock: ClockConfig::default(),
            limits: self.limits.clone(),
        };
        let node = self.nodes.get_mut(&own).expect("the node is of this world");
        assert!(node.running.is_none());
        let identity = Identity { cluster: "test".to_owned(), node: own };
        let storage = Storage::open(Arc::new(node.disk.clone()), Config::default(), identity)
            .expect("what a crash leaves is recovered");
        let mut core =
            Core::new(config, &storage.metas(""), seed, now).expect("the configuration is sound");
        core.observe_recovered(storage.recovered_stamp());
        let changes_end = storage.change_range().1;
        let writer = Writer::new(storage);
        node.life += 1;
        node.running = Some(Running { core, writer, writes: Vec::new(), changes_end });
        self.drain(own);
    }

    /// The power of a node goes: what it had not synced is lost. Its peers notice a little later.
    pub(crate) fn crash(&mut self, id: u64) {
        let own = NodeId(id);
        let node = self.nodes.get_mut(&own).expect("the node is of this world");
        node.disk.crash();
        drop(node.running.take().expect("the node runs"));
        node.disk.restart(CrashMode::LoseUnsynced);
        for peer in self.peers(own) {
            self.disconnect(own, peer);
        }
    }

    /// Nothing passes between two nodes any more.
    pub(crate) fn cut(&mut self, a: u64, b: u64) {
        let (a, b) = (NodeId(a), NodeId(b));
        self.cut.insert(pair(a, b));
        self.disconnect(a, b);
    }

    /// Cuts a node off from all others.
    pub(crate) fn isolate(&mut self, id: u64) {
        for peer in self.peers(NodeId(id)) {
            self.cut(id, peer.0);
        }
    }

    /// All cuts are undone.
    pub(crate) fn heal(&mut self) {
        self.cut.clear();
    }

    fn peers(&self, of: NodeId) -> Vec<NodeId> {
        self.nodes.keys().copied().filter(|&node| node != of).collect()
    }

    fn disconnect(&mut self, a: NodeId, b: NodeId) {
        if self.connected.remove(&pair(a, b)) {
            for (node, peer) in [(a, b), (b, a)] {
                let after_us = self.random.random_range(1_000..100_000);
                self.at(after_us, node, Happening::Input(Input::PeerDisconnected { peer }));
            }
        }
    }

    fn connect(&mut self, dialler: NodeId, peer: NodeId) {
        let address = address_of(peer);
        let up = self.is_running(dialler.0) && self.is_running(peer.0);
        if !up || self.cut.contains(&pair(dialler, peer)) {
            self.at(1_000, dialler, Happening::Input(Input::DialFailed { address }));
        } else if self.connected.insert(pair(dialler, peer)) {
            let dialled = Input::PeerConnected { peer, address: Some(address) };
            self.at(100, dialler, Happening::Input(dialled));
            self.at(
                100,
                peer,
                Happening::Input(Input::PeerConnected { peer: dialler, address: None }),
            );
        }
    }

    // Time.

    /// Lets virtual time pass.
    pub(crate) fn run_ms(&mut self, ms: u64) {
        let until = self.now_us + ms * 1000;
        while self.step(until) {}
        self.now_us = until;
    }

    /// Lets virtual time pass until the request is answered; its deadline sees to that.
    pub(crate) fn wait(&mut self, pending: Pending) -> Response {
        let until = self.now_us + 60_000_000;
        while !self.answers.contains_key(&pending.0) {
            assert!(self.step(until), "request {pending:?} is never answered");
        }
        self.answers[&pending.0].1.clone()
    }

    /// Does the next thing, if it is before `until`.
    fn step(&mut self, until: u64) -> bool {
        let timer = self.nodes.iter().filter_map(|(&node, state)| {
            let running = state.running.as_ref()?;
            Some((running.core.poll_timeout()?.0.max(self.now_us), node))
        });
        let timer = timer.min();
        let event = self.queue.keys().next().copied();
        if let Some((at, node)) = timer
            && event.is_none_or(|(event_at, _)| at < event_at)
        {
            if at > until {
                return false;
            }
            self.now_us = at;
            self.input(node, Input::Timeout);
            return true;
        }
        let Some(key) = event.filter(|(at, _)| *at <= until) else { return false };
        let (node, life, event) = self.queue.remove(&key).expect("it is the first");
        self.now_us = key.0;
        if self.nodes[&node].life == life && self.is_running(node.0) {
            self.happen(node, event);
        }
        true
    }

    fn at(&mut self, after_us: u64, node: NodeId, event: Happening) {
        let life = self.nodes[&node].life;
        let key = (self.now_us + after_us, self.next_event);
        self.next_event += 1;
        self.queue.insert(key, (node, life, event));
    }

    fn now(&self, node: NodeId) -> Now {
        let wall_ms = WALL_MS + self.now_us / 1000;
        let wall_ms = wall_ms.saturating_add_signed(self.nodes[&node].skew_ms);
        Now { mono: Instant(self.now_us), wall_ms }
    }

    fn happen(&mut self, node: NodeId, event: Happening) {
        match event {
            // Both have a new connection by now: the last one is not gone.
            Happening::Input(Input::PeerDisconnected { peer })
                if self.connected.contains(&pair(node, peer)) => {}
            Happening::Input(input) => self.input(node, input),
            Happening::Dial(peer) => self.connect(node, peer),
            Happening::Read(ticket, request) => {
                let answer = self.running(node).writer.reader().execute(request);
                self.input(node, Input::StorageDone { ticket, answer });
            }
            Happening::Commit => {
                let wall_ms = self.now(node).wall_ms;
                let running = self.running(node);
                let batch = std::mem::take(&mut running.writes);
                let answers = running.writer.execute(wall_ms, batch);
                running.writer.storage_mut().work(wall_ms).expect("the disk is well");
                let unsynced = running.writer.storage().unsynced();
                for (ticket, answer) in answers {
                    self.input(node, Input::StorageDone { ticket, answer });
                }
                if unsynced {
                    self.at(10_000, node, Happening::Sync);
                }
                self.announce(node);
            }
            Happening::Sync => {
                self.running(node).writer.storage_mut().sync().expect("the disk is well");
                self.announce(node);
            }
        }
    }

    /// Tells the core that its change log grew.
    fn announce(&mut self, node: NodeId) {
        let running = self.running(node);
        let end = running.writer.storage().change_range().1;
        if std::mem::replace(&mut running.changes_end, end) != end {
            self.input(node, Input::ChangesGrew { end });
        }
    }

    fn running(&mut self, node: NodeId) -> &mut Running {
        self.nodes
            .get_mut(&node)
            .expect("the node is of this world")
            .running
            .as_mut()
            .expect("the node runs")
    }

    fn input(&mut self, node: NodeId, input: Input) {
        self.note(node, &input);
        let now = self.now(node);
        self.running(node).core.handle(now, input);
        self.drain(node);
    }

    fn note(&mut self, node: NodeId, what: &dyn std::fmt::Debug) {
        let line = format!("{} {} {node} {what:?}", self.trace, self.now_us);
        self.trace = xxhash_rust::xxh3::xxh3_64(line.as_bytes());
    }

    fn drain(&mut self, node: NodeId) {
        while let Some(output) = self.running(node).core.poll_output() {
            self.note(node, &output);
            self.carry_out(node, output);
        }
    }

    fn carry_out(&mut self, node: NodeId, output: Output) {
        match output {
            Output::Storage { ticket, request } if request.is_write_lane() => {
                let running = self.running(node);
                running.writes.push((ticket, request));
                if running.writes.len() == 1 {
                    self.at(150, node, Happening::Commit);
                }
            }
            Output::Storage { ticket, request } => {
                self.at(20, node, Happening::Read(ticket, request));
            }
            Output::Peer { to, message } => {
                let mut bytes = Vec::new();
                codec::encode(&message, &mut bytes);
                let message = codec::decode(&bytes).expect("what was encoded decodes");
                self.send(node, to, &Input::Peer { from: node, message });
            }
            Output::Gossip { to, bytes } => {
                self.send(node, to, &Input::Gossip { from: node, bytes });
            }
            Output::PushPull { to, bytes } => {
                let exchange = self.next_event;
                self.exchanges.insert(exchange, node);
                self.send(node, to, &Input::PushPull { from: node, exchange, bytes });
            }
            Output::PushPullAnswer { exchange, bytes } => {
                if let Some(&asker) = self.exchanges.get(&exchange) {
                    self.send(node, asker, &Input::PushPullAnswer { from: node, bytes });
                }
            }
            Output::Answer { id, response, .. } => {
                let before = self.answers.insert(id, (self.now_us, *response));
                assert!(before.is_none(), "request {id} is answered twice");
            }
            Output::SubscriptionItem { subscription, item } => {
                self.items.entry(subscription.0).or_default().push(item);
                let ready = Input::SubscriptionReady { subscription };
                self.at(500, node, Happening::Input(ready));
            }
            Output::Dial { peer, .. } => {
                let peer = peer.expect("members have ids");
                self.at(500, node, Happening::Dial(peer));
            }
            Output::Stopped => {}
        }
    }

    fn send(&mut self, from: NodeId, to: NodeId, input: &Input) {
        let Network { delay_us: (shortest, longest), lost_per_mille, repeated_per_mille } =
            self.network;
        if !self.connected.contains(&pair(from, to)) {
            return;
        }
        if self.random.random_range(0..1000) < lost_per_mille {
            return;
        }
        let twice = self.random.random_range(0..1000) < repeated_per_mille;
        for _ in 0..=u32::from(twice) {
            let after_us = self.random.random_range(shortest..=longest);
            self.at(after_us, to, Happening::Input(input.clone()));
        }
    }

    // Clients.

    /// Sends a request to a node; `timeout_ms` from now it is answered at the latest.
    pub(crate) fn request(&mut self, id: u64, header: Header, request: Request) -> Pending {
        let number = self.next_request;
        self.next_request += 1;
        let connection = ConnectionId(1);
        self.input(NodeId(id), Input::Request { connection, id: number, header, request });
        Pending(number)
    }

    /// A header for a request that was never made before.
    pub(crate) fn header(&self, timeout_ms: u32) -> Header {
        let request = RequestId { client: 99, sequence: self.next_request };
        Header { request, attempt: 0, timeout_ms, epoch: 1, observed: 0 }
    }

    pub(crate) fn begin_write(
        &mut self,
        id: u64,
        key: &[u8],
        payload: Option<&[u8]>,
        level: Level,
    ) -> Pending {
        let header = self.header(2_000);
        self.request(id, header, write("default", key, payload, level))
    }

    pub(crate) fn put(&mut self, id: u64, key: &[u8], payload: &[u8], level: Level) -> Response {
        let pending = self.begin_write(id, key, Some(payload), level);
        self.wait(pending)
    }

    pub(crate) fn delete(&mut self, id: u64, key: &[u8], level: Level) -> Response {
        let pending = self.begin_write(id, key, None, level);
        self.wait(pending)
    }

    pub(crate) fn begin_get(&mut self, id: u64, key: &[u8], level: Level) -> Pending {
        let header = self.header(2_000);
        let request = Request::Get {
            keyspace: "default".into(),
            key: Blob(Bytes::copy_from_slice(key)),
            at: None,
            level: Some(level),
        };
        self.request(id, header, request)
    }

    pub(crate) fn get(
        &mut self,
        id: u64,
        key: &[u8],
        level: Level,
    ) -> Result<Option<Version>, WireError> {
        let pending = self.begin_get(id, key, level);
        match self.wait(pending) {
            Response::Value { version } => Ok(version),
            Response::Error(error) => Err(error),
            other => panic!("{other:?} to a get"),
        }
    }

    pub(crate) fn history(
        &mut self,
        id: u64,
        key: &[u8],
        level: Level,
    ) -> Result<List<Version>, WireError> {
        let header = self.header(2_000);
        let request = Request::History {
            keyspace: "default".into(),
            key: Blob(Bytes::copy_from_slice(key)),
            from: Stamp::ZERO.into(),
            to: Stamp::MAX.into(),
            descending: false,
            limit: 1000,
            level: Some(level),
        };
        let pending = self.request(id, header, request);
        match self.wait(pending) {
            Response::History { versions, more: false } => Ok(versions),
            Response::Error(error) => Err(error),
            other => panic!("{other:?} to a history"),
        }
    }

    /// All pages of a scan.
    pub(crate) fn scan(
        &mut self,
        id: u64,
        limit: u32,
        level: Level,
    ) -> Result<Vec<Row>, WireError> {
        let mut rows = Vec::new();
        let mut cursor: Option<Cursor> = None;
        loop {
            let header = self.header(2_000);
            let request = Request::Scan {
                keyspace: "default".into(),
                prefix: Blob::default(),
                cursor,
                limit,
                level: Some(level),
            };
            let pending = self.request(id, header, request);
            match self.wait(pending) {
                Response::Page { rows: page, cursor: next } => {
                    rows.extend(page.0);
                    cursor = next;
                }
                Response::Error(error) => return Err(error),
                other => panic!("{other:?} to a scan"),
            }
            if cursor.is_none() {
                return Ok(rows);
            }
        }
    }

    pub(crate) fn subscribe(&mut self, id: u64, subscription: u64, request: ChangesRequest) {
        let subscription = SubscriptionId(subscription);
        self.input(NodeId(id), Input::Subscribe { subscription, request });
    }

    // What replicas hold.

    /// All events of a node's tables.
    pub(crate) fn events(&self, id: u64) -> Vec<Event> {
        let view = self.storage(id).view();
        let page = |partition| {
            view.partition_events(partition, None, 1_000_000, 1 << 30)
                .expect("nothing is damaged")
                .events
        };
        (0..PARTITIONS).flat_map(page).collect()
    }

    /// All of a node's change log.
    pub(crate) fn changes(&self, id: u64) -> Vec<Change> {
        let view = self.storage(id).view();
        view.changes(view.change_range().0, 1_000_000, 1 << 30).expect("nothing is damaged")
    }

    /// Asserts that every event of a node is in its change log exactly once, and nothing else is.
    pub(crate) fn check_changes(&self, id: u64) {
        let changes = self.changes(id);
        let sequences = changes.iter().map(|change| change.sequence);
        assert!(sequences.eq(1..=changes.len() as u64), "node {id}: sequences without a gap");
        let place = |event: &Event| (event.keyspace, event.key.clone(), event.stamp);
        let mut logged: Vec<_> = changes.iter().map(|change| place(&change.event)).collect();
        logged.sort();
        let mut held: Vec<_> = self.events(id).iter().map(place).collect();
        held.sort();
        assert_eq!(logged, held, "node {id}: the log and the tables");
    }
}

/// A write to a keyspace; without payload a delete.
pub(crate) fn write(keyspace: &str, key: &[u8], payload: Option<&[u8]>, level: Level) -> Request {
    Request::Write {
        keyspace: keyspace.into(),
        key: Blob(Bytes::copy_from_slice(key)),
        action: if payload.is_some() { Action::Put } else { Action::Delete },
        payload: Blob(Bytes::copy_from_slice(payload.unwrap_or_default())),
        level: Some(level),
        durability: None,
    }
}
