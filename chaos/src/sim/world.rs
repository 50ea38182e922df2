//! [`World`]: the queue of what happens next, and the carrying out of what nodes say.
//!
//! Invariants:
//!
//! - Things happen in the order of (time, number); nothing has another order, and all chance is drawn from the seed's streams.
//! - What a node does between two of its events is at once; storage work, messages and clients take simulated time.
//! - An event of an earlier life of a node is dropped, and events of a node that pauses wait until it goes on.
//! - Answers of one storage lane come in the order of its requests, news of the change log after them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use starling_client::codec;
use starling_client::wire::{ChangesFrom, ChangesItem, ChangesRequest, Response};
use starling_node::core::peer::PeerMessage;
use starling_node::core::storage::{StorageAnswer, StorageFailure, StorageRequest};
use starling_node::core::types::{Input, Instant, Now, Output, SubscriptionId, Ticket};
use starling_storage::{KeyspaceId, Progress, SimDisk};

use super::clients::Clients;
use super::network::Network;
use super::node::{Node, Running, Settings, guard};
use super::plan::Plan;
use super::trace::Trace;
use crate::history::{History, IncidentKind, KeyspaceFacts, Sample, TailItem, Tailed};

/// The wall clock when a world begins, in milliseconds since the Unix epoch.
pub(super) const WALL_MS: u64 = 1_700_000_000_000;
/// The true time when a world begins: faults' times count from here.
pub(super) const BEGIN_US: u64 = 1_000_000;
/// What costs what, in microseconds.
const COMMIT_US: u64 = 30;
const REQUEST_US: u64 = 3;
const SYNC_US: u64 = 130;
const READ_US: u64 = 15;
/// What was written without a sync is synced after this long.
const SYNC_INTERVAL_US: u64 = 100_000;
/// Background work is looked for this often.
const WORK_INTERVAL_US: u64 = 200_000;
const SAMPLE_INTERVAL_US: u64 = 500_000;
/// One message of so many goes through the codec.
const CODEC_EVERY: u64 = 8;

/// What happens.
pub(super) enum Event {
    Input(Input),
    /// Over the connection with this number.
    Arrival {
        from: usize,
        connection: u64,
        input: Input,
    },
    PeerGone(usize),
    Commit,
    Committed(Vec<(Ticket, StorageAnswer)>),
    Read(Ticket, StorageRequest),
    Sync,
    Work,
    Dial(usize),
    Boot,
    /// An operator ends the process and starts it again.
    Restart,
    FaultBegins(usize),
    FaultEnds(usize),
    LinkDies {
        a: usize,
        b: usize,
        connection: u64,
    },
    ClientActs(usize),
    ClientGivesUp {
        client: usize,
        operation: usize,
    },
    Answered {
        operation: usize,
        response: Response,
    },
    Sample,
}

impl Event {
    fn kind(&self) -> u8 {
        match self {
            Self::Input(_) => 0,
            Self::Arrival { .. } => 1,
            Self::PeerGone(_) => 2,
            Self::Commit => 3,
            Self::Committed(_) => 4,
            Self::Read(..) => 5,
            Self::Sync => 6,
            Self::Work => 7,
            Self::Dial(_) => 8,
            Self::Boot => 9,
            Self::FaultBegins(_) => 10,
            Self::FaultEnds(_) => 11,
            Self::LinkDies { .. } => 12,
            Self::ClientActs(_) => 13,
            Self::ClientGivesUp { .. } => 14,
            Self::Answered { .. } => 15,
            Self::Sample => 16,
            Self::Restart => 18,
        }
    }

    /// A number that tells its content, cheaply.
    fn mark(&self) -> u64 {
        match self {
            Self::Arrival { from, connection, input } => {
                let content = match input {
                    Input::Gossip { bytes, .. } | Input::PushPull { bytes, .. } => {
                        xxhash_rust::xxh3::xxh3_64(bytes)
                    }
                    Input::Peer { message, .. } => message_mark(message),
                    _ => 0,
                };
                content ^ (*from as u64) << 48 ^ connection << 32
            }
            Self::PeerGone(index) | Self::Dial(index) | Self::ClientActs(index) => *index as u64,
            Self::Committed(answers) => {
                answers.iter().fold(0, |sum, (ticket, _)| ticket.0.wrapping_add(sum))
            }
            Self::Read(ticket, _) => ticket.0,
            Self::FaultBegins(fault) | Self::FaultEnds(fault) => *fault as u64,
            Self::Answered { operation, response } => {
                let content = match response {
                    Response::Written { stamp, .. } => stamp.0.time.packed() ^ stamp.0.node.0 << 56,
                    Response::Value { version: Some(version) } => version.stamp.0.time.packed(),
                    Response::Error(error) => error.code as u64,
                    _ => 0,
                };
                content ^ (*operation as u64) << 20
            }
            Self::ClientGivesUp { operation, .. } => *operation as u64,
            _ => 0,
        }
    }
}

fn message_mark(message: &PeerMessage) -> u64 {
    match message {
        PeerMessage::Write { op, events, .. } => op ^ (events.0.len() as u64) << 40,
        PeerMessage::Written { op, outcomes } => op ^ (outcomes.0.len() as u64) << 41,
        PeerMessage::Read { op, .. } => op ^ 1 << 60,
        PeerMessage::ReadDone { op, .. } => op ^ 1 << 61,
        PeerMessage::Register { op, .. } | PeerMessage::Registered { op } => op ^ 1 << 62,
    }
}

struct Scheduled {
    node: usize,
    /// The life of the node that it is for; `None`: whichever.
    life: Option<u64>,
    event: Event,
}

/// What stands for "no node" in events of the world itself.
pub(super) const NOBODY: usize = usize::MAX;

/// A cluster, its clients, and what befalls them.
pub(super) struct World {
    pub(super) now_us: u64,
    /// For what has no stream of its own.
    pub(super) random: ChaCha8Rng,
    pub(super) settings: Settings,
    pub(super) plan: Plan,
    /// Indexes of faults that go on.
    pub(super) active: Vec<usize>,
    pub(super) nodes: Vec<Node>,
    pub(super) network: Network,
    pub(super) clients: Clients,
    pub(super) history: History,
    pub(super) trace: Trace,
    heap: BinaryHeap<Reverse<(u64, u64, usize)>>,
    slots: Vec<Option<Scheduled>>,
    free: Vec<usize>,
    next_event: u64,
    deferred: Vec<(usize, Scheduled)>,
    messages: u64,
    /// Who asked in a push-pull, by its name.
    exchanges: BTreeMap<u64, (usize, u64)>,
    outputs: Vec<Output>,
    /// Tombstones may go in this run.
    pub(super) floors: bool,
    pub(super) samples: usize,
}

impl World {
    /// A world in which nothing runs yet.
    pub(super) fn new(
        seed: u64,
        settings: Settings,
        plan: Plan,
        clients: Clients,
        history: History,
        trace: Trace,
    ) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let network =
            Network::new(history.nodes.len(), ChaCha8Rng::seed_from_u64(random.next_u64()));
        let node = |&id| Node::new(id, SimDisk::new(random.next_u64()));
        let nodes = history.nodes.iter().map(node).collect();
        Self {
            now_us: BEGIN_US,
            random,
            settings,
            plan,
            active: Vec::new(),
            nodes,
            network,
            clients,
            history,
            trace,
            heap: BinaryHeap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            next_event: 0,
            deferred: Vec::new(),
            messages: 0,
            exchanges: BTreeMap::new(),
            outputs: Vec::new(),
            floors: seed.is_multiple_of(2),
            samples: 0,
        }
    }

    /// Lets an event happen, to whichever life of the node there is then.
    pub(super) fn at(&mut self, after_us: u64, node: usize, event: Event) {
        self.schedule(after_us, Scheduled { node, life: None, event });
    }

    /// Lets an event happen to this life of the node.
    pub(super) fn at_life(&mut self, after_us: u64, node: usize, event: Event) {
        let life = Some(self.nodes[node].life);
        self.schedule(after_us, Scheduled { node, life, event });
    }

    fn schedule(&mut self, after_us: u64, scheduled: Scheduled) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(scheduled);
        self.heap.push(Reverse((self.now_us + after_us, self.next_event, slot)));
        self.next_event += 1;
    }

    /// Starts all nodes and what happens at intervals.
    pub(super) fn begin(&mut self) {
        for node in 0..self.nodes.len() {
            self.nodes[node].booting = true;
            self.at(0, node, Event::Boot);
        }
        for index in 0..self.plan.faults.len() {
            let (from_us, to_us) = (self.plan.faults[index].from_us, self.plan.faults[index].to_us);
            self.at(from_us, NOBODY, Event::FaultBegins(index));
            self.at(to_us, NOBODY, Event::FaultEnds(index));
        }
        self.at(SAMPLE_INTERVAL_US, NOBODY, Event::Sample);
    }

    /// Lets virtual time pass until `until_us`.
    pub(super) fn run_until(&mut self, until_us: u64) {
        while self.step(until_us) {}
        self.now_us = self.now_us.max(until_us);
    }

    fn step(&mut self, until_us: u64) -> bool {
        let mut timer: Option<(u64, usize)> = None;
        for (index, node) in self.nodes.iter().enumerate() {
            if let Some(running) = &node.running
                && !node.paused
                && let Some(at) = running.timer_us
                && timer.is_none_or(|(first, _)| at < first)
            {
                timer = Some((at, index));
            }
        }
        let event_at = self.heap.peek().map(|Reverse((at, ..))| *at);
        if let Some((at, index)) = timer
            && event_at.is_none_or(|event_at| at < event_at)
        {
            if at > until_us {
                return false;
            }
            self.now_us = self.now_us.max(at);
            self.trace.note(self.now_us, index as u64, 17, 0, || "timeout".to_owned());
            self.input(index, Input::Timeout);
            return true;
        }
        if event_at.is_none_or(|at| at > until_us) {
            return false;
        }
        let Some(Reverse((at, _, slot))) = self.heap.pop() else { return false };
        let scheduled = self.slots[slot].take().expect("a scheduled event is there");
        self.free.push(slot);
        self.now_us = self.now_us.max(at);
        self.dispatch(scheduled);
        true
    }

    fn dispatch(&mut self, scheduled: Scheduled) {
        let Scheduled { node, life, event } = scheduled;
        if node == NOBODY {
            self.note(node, &event);
            self.happen_to_world(event);
            return;
        }
        if life.is_some_and(|life| life != self.nodes[node].life) {
            return;
        }
        if self.nodes[node].paused && !matches!(event, Event::Boot) {
            self.deferred.push((node, Scheduled { node, life, event }));
            return;
        }
        self.note(node, &event);
        if matches!(event, Event::Boot) {
            self.boot(node);
        } else if self.nodes[node].running.is_some() {
            self.happen(node, event);
        }
    }

    fn note(&mut self, node: usize, event: &Event) {
        let (kind, mark) = (event.kind(), event.mark());
        let id = if node == NOBODY { 0 } else { node as u64 + 1 };
        self.trace.note(self.now_us, id, kind, mark, || describe(event));
    }

    /// A node goes on: what waited happens now.
    pub(super) fn resume(&mut self, node: usize) {
        let deferred = std::mem::take(&mut self.deferred);
        let (now, later) = deferred.into_iter().partition(|(of, _)| *of == node);
        self.deferred = later;
        let now: Vec<(usize, Scheduled)> = now;
        for (_, scheduled) in now {
            self.schedule(0, scheduled);
        }
    }

    pub(super) fn now(&self, node: usize) -> Now {
        let skew_us = self.skew_us(node);
        let wall_us = (WALL_MS * 1000 + self.now_us).saturating_add_signed(skew_us);
        Now { mono: Instant(self.now_us), wall_ms: wall_us / 1000 }
    }

    fn happen_to_world(&mut self, event: Event) {
        match event {
            Event::FaultBegins(index) => self.fault_begins(index),
            Event::FaultEnds(index) => self.fault_ends(index),
            Event::LinkDies { a, b, connection } => {
                let same = self.network.connection(a, b) == Some(connection);
                if same && self.network.is_broken(a, b) {
                    self.disconnect(a, b, 50_000);
                }
            }
            Event::ClientActs(client) => self.client_acts(client),
            Event::ClientGivesUp { client, operation } => self.client_gives_up(client, operation),
            Event::Answered { operation, response } => self.client_is_answered(operation, response),
            Event::Sample => {
                self.sample();
                self.consider_floors();
                self.at(SAMPLE_INTERVAL_US, NOBODY, Event::Sample);
            }
            _ => unreachable!("events of nodes have a node"),
        }
    }

    fn sample(&mut self) {
        for node in &self.nodes {
            if let Some(running) = &node.running {
                self.history.samples.push(Sample {
                    at_us: self.now_us,
                    node: node.id,
                    in_flight: running.core.in_flight(),
                    flights: running.core.flights(),
                    storage_waiting: running.writes.len() + running.reads_waiting,
                });
            }
        }
    }

    fn happen(&mut self, node: usize, event: Event) {
        match event {
            Event::Input(input) => self.input(node, input),
            Event::Arrival { from, connection, input } => {
                if self.network.connection(from, node) == Some(connection) {
                    self.input(node, input);
                }
            }
            Event::PeerGone(peer) => {
                // Both have a new connection by now: the last one is not gone.
                if self.network.connection(node, peer).is_none() {
                    let peer = self.nodes[peer].id;
                    self.input(node, Input::PeerDisconnected { peer });
                }
            }
            Event::Commit => self.commit(node),
            Event::Committed(answers) => self.committed(node, answers),
            Event::Read(ticket, request) => {
                let running = self.running(node);
                running.reads_waiting -= 1;
                let reader = running.reader.clone();
                match guard(|| reader.execute(request)) {
                    Ok(answer) if !self.power_is_gone(node) => {
                        self.input(node, Input::StorageDone { ticket, answer });
                    }
                    Ok(_) => {}
                    Err(message) => self.panicked(node, message),
                }
            }
            Event::Sync => self.sync(node),
            Event::Work => {
                for _ in 0..4 {
                    if !self.work(node) {
                        break;
                    }
                }
                if self.nodes[node].running.is_some() {
                    self.at_life(WORK_INTERVAL_US, node, Event::Work);
                }
            }
            Event::Dial(peer) => self.dial(node, peer),
            Event::Restart => self.crash(node),
            _ => unreachable!("events of the world have no node"),
        }
    }

    pub(super) fn running(&mut self, node: usize) -> &mut Running {
        self.nodes[node].running.as_mut().expect("the node runs")
    }

    /// Notices that a disk call ended the node's life.
    fn power_is_gone(&mut self, node: usize) -> bool {
        let is_crashed = self.nodes[node].disk.is_crashed();
        if is_crashed {
            self.crash(node);
        }
        is_crashed
    }

    fn commit(&mut self, node: usize) {
        let wall_ms = self.now(node).wall_ms;
        let factor = self.nodes[node].slow * self.nodes[node].slow_disk;
        let syncs = self.nodes[node].disk.syncs();
        let running = self.running(node);
        let batch = std::mem::take(&mut running.writes);
        let count = batch.len() as u64;
        let answers = match guard(|| running.writer.execute(wall_ms, batch)) {
            Ok(answers) => answers,
            Err(message) => return self.panicked(node, message),
        };
        if self.power_is_gone(node) {
            return;
        }
        let is_poison = |(_, answer): &(Ticket, StorageAnswer)| {
            matches!(answer, StorageAnswer::Failed(StorageFailure::Poisoned))
        };
        if answers.iter().any(is_poison) {
            self.poisoned(node);
        }
        let work_left = self.running(node).work_left;
        if work_left && !self.work(node) && self.nodes[node].running.is_none() {
            return;
        }
        let syncs = self.nodes[node].disk.syncs() - syncs;
        let cost_us = (COMMIT_US + REQUEST_US * count + SYNC_US * syncs) * factor;
        self.at_life(cost_us, node, Event::Committed(answers));
    }

    fn committed(&mut self, node: usize, answers: Vec<(Ticket, StorageAnswer)>) {
        for (ticket, answer) in answers {
            self.feed(node, Input::StorageDone { ticket, answer });
            if self.nodes[node].running.is_none() {
                return;
            }
        }
        self.carry_out(node);
        if self.nodes[node].running.is_none() {
            return;
        }
        let running = self.running(node);
        running.committing = false;
        let waiting = !running.writes.is_empty();
        running.committing = waiting;
        let sync = running.writer.storage().unsynced() && !running.sync_scheduled;
        running.sync_scheduled |= sync;
        running.work_left = true;
        if sync {
            self.at_life(SYNC_INTERVAL_US, node, Event::Sync);
        }
        if waiting {
            self.at_life(0, node, Event::Commit);
        }
        self.announce(node);
    }

    fn sync(&mut self, node: usize) {
        let running = self.running(node);
        if running.committing {
            // One thread does both.
            self.at_life(100, node, Event::Sync);
            return;
        }
        running.sync_scheduled = false;
        let result = guard(|| running.writer.storage_mut().sync().is_err());
        self.after_storage(node, result);
        if self.nodes[node].running.is_some() {
            self.announce(node);
        }
    }

    /// One step of background work; tells whether there may be more.
    fn work(&mut self, node: usize) -> bool {
        let wall_ms = self.now(node).wall_ms;
        let running = self.running(node);
        let result = guard(|| {
            let progress = running.writer.storage_mut().work(wall_ms);
            if matches!(progress, Ok(Progress::Did)) {
                // A commit of nothing takes the view anew: the old one keeps what the work has replaced.
                running.writer.execute(wall_ms, Vec::new());
            }
            running.work_left = matches!(progress, Ok(Progress::Did));
            progress.is_err()
        });
        self.after_storage(node, result);
        self.nodes[node].running.as_ref().is_some_and(|running| running.work_left)
    }

    fn after_storage(&mut self, node: usize, failed: Result<bool, String>) {
        match failed {
            Err(message) => self.panicked(node, message),
            Ok(failed) => {
                if !self.power_is_gone(node)
                    && failed
                    && self.running(node).writer.storage().status().poisoned
                {
                    self.poisoned(node);
                }
            }
        }
    }

    /// Tells the core that its change log grew.
    fn announce(&mut self, node: usize) {
        let running = self.running(node);
        let end = running.writer.storage().change_range().1;
        if std::mem::replace(&mut running.changes_end, end) != end {
            self.input(node, Input::ChangesGrew { end });
        }
    }

    /// Gives the core an input and carries out what follows.
    pub(super) fn input(&mut self, node: usize, input: Input) {
        self.feed(node, input);
        self.carry_out(node);
    }

    /// Gives the core an input.
    fn feed(&mut self, node: usize, input: Input) {
        let now = self.now(node);
        let Some(running) = self.nodes[node].running.as_mut() else { return };
        let outputs = &mut self.outputs;
        let fed = guard(|| {
            running.core.handle(now, input);
            while let Some(output) = running.core.poll_output() {
                outputs.push(output);
            }
        });
        if let Err(message) = fed {
            self.outputs.clear();
            self.panicked(node, message);
        }
    }

    /// Does what the core said.
    pub(super) fn carry_out(&mut self, node: usize) {
        let mut outputs = std::mem::take(&mut self.outputs);
        for output in outputs.drain(..) {
            self.do_output(node, output);
        }
        self.outputs = outputs;
        let now_us = self.now_us;
        let Some(running) = self.nodes[node].running.as_mut() else { return };
        running.timer_us = running.core.poll_timeout().map(|at| at.0.max(now_us));
        if !running.subscribed && running.core.is_serving() {
            running.subscribed = true;
            self.subscribe(node);
        }
    }

    fn do_output(&mut self, node: usize, output: Output) {
        if self.nodes[node].running.is_none() {
            return;
        }
        match output {
            Output::Storage { ticket, request } if request.is_write_lane() => {
                let running = self.running(node);
                running.writes.push((ticket, request));
                if !running.committing {
                    running.committing = true;
                    self.at_life(5, node, Event::Commit);
                }
            }
            Output::Storage { ticket, request } => {
                let now_us = self.now_us;
                let cost_us = READ_US * self.nodes[node].slow * self.nodes[node].slow_disk;
                let running = self.running(node);
                running.reads_until_us = running.reads_until_us.max(now_us) + cost_us;
                running.reads_waiting += 1;
                let after_us = running.reads_until_us - now_us;
                self.at_life(after_us, node, Event::Read(ticket, request));
            }
            Output::Peer { to, mut message } => {
                self.messages += 1;
                if self.messages.is_multiple_of(CODEC_EVERY) {
                    let mut bytes = Vec::new();
                    codec::encode(&message, &mut bytes);
                    message = codec::decode(&bytes).expect("what was encoded decodes");
                    self.trace.mix(&bytes);
                }
                let from = self.nodes[node].id;
                self.send(node, to, &Input::Peer { from, message });
            }
            Output::Gossip { to, bytes } => {
                let from = self.nodes[node].id;
                self.send(node, to, &Input::Gossip { from, bytes });
            }
            Output::PushPull { to, bytes } => {
                let exchange = self.next_event;
                self.next_event += 1;
                let (from, life) = (self.nodes[node].id, self.nodes[node].life);
                self.exchanges.insert(exchange, (node, life));
                self.send(node, to, &Input::PushPull { from, exchange, bytes });
            }
            Output::PushPullAnswer { exchange, bytes } => {
                if let Some((asker, life)) = self.exchanges.remove(&exchange)
                    && self.nodes[asker].life == life
                {
                    let (from, to) = (self.nodes[node].id, self.nodes[asker].id);
                    self.send(node, to, &Input::PushPullAnswer { from, bytes });
                }
            }
            Output::Answer { id, response, .. } => {
                let operation = usize::try_from(id).expect("it is an index");
                let after_us = self.network.way(0) * self.nodes[node].slow;
                self.at(after_us, NOBODY, Event::Answered { operation, response });
            }
            Output::SubscriptionItem { subscription, item } => {
                self.tail(node, subscription, &item);
                let ready = Input::SubscriptionReady { subscription };
                self.at_life(2_000, node, Event::Input(ready));
            }
            Output::Dial { peer, .. } => {
                let peer = peer.expect("members have ids");
                let peer = self.index_of(peer);
                self.at_life(500, node, Event::Dial(peer));
            }
            Output::Stopped => self.stopped(node),
        }
    }

    #[expect(clippy::unused_self, reason = "nodes are this world's")]
    pub(super) fn index_of(&self, node: starling_clock::NodeId) -> usize {
        usize::try_from(node.0 - 1).expect("nodes are few")
    }

    fn send(&mut self, node: usize, to: starling_clock::NodeId, input: &Input) {
        let to = self.index_of(to);
        let Some(connection) = self.network.connection(node, to) else { return };
        let slow = self.nodes[node].slow.max(self.nodes[to].slow);
        for way in self.network.ways(node, to).into_iter().flatten() {
            let input = input.clone();
            self.at(way * slow, to, Event::Arrival { from: node, connection, input });
        }
    }

    fn dial(&mut self, node: usize, peer: usize) {
        let address = super::node::address_of(peer);
        let up = self.nodes[peer].running.is_some() && !self.nodes[peer].paused;
        if !up || self.network.is_broken(node, peer) {
            self.at_life(20_000, node, Event::Input(Input::DialFailed { address }));
        } else if self.network.connect(node, peer) {
            let (own, other) = (self.nodes[node].id, self.nodes[peer].id);
            let dialled = Input::PeerConnected { peer: other, address: Some(address) };
            self.at_life(100, node, Event::Input(dialled));
            let accepted = Input::PeerConnected { peer: own, address: None };
            self.at_life(100, peer, Event::Input(accepted));
        }
    }

    /// Ends a pair's connection; both are told within so many microseconds.
    pub(super) fn disconnect(&mut self, a: usize, b: usize, within_us: u64) {
        if self.network.disconnect(a, b) {
            for (node, peer) in [(a, b), (b, a)] {
                let after_us = self.random.random_range(500..within_us);
                self.at_life(after_us, node, Event::PeerGone(peer));
            }
        }
    }

    fn subscribe(&mut self, node: usize) {
        let from = self.nodes[node].cursor.map_or(ChangesFrom::Oldest, ChangesFrom::Sequence);
        // Its own in the whole history.
        let subscription = SubscriptionId(self.nodes[node].life << 16 | self.nodes[node].id.0);
        let request = ChangesRequest {
            keyspace: None,
            prefix: codec::Blob::default(),
            partitions: None,
            from,
            follow: true,
        };
        self.at_life(0, node, Event::Input(Input::Subscribe { subscription, request }));
        self.at_life(0, node, Event::Work);
        let what = IncidentKind::Started;
        self.incident(node, what);
    }

    fn tail(&mut self, node: usize, subscription: SubscriptionId, item: &ChangesItem) {
        let (at_us, id) = (self.now_us, self.nodes[node].id);
        let (tails, keyspaces) = (&mut self.history.tails, &self.history.keyspaces);
        let mut push = |what| {
            tails.push(TailItem { at_us, node: id, subscription: subscription.0, what });
        };
        match item {
            ChangesItem::Batch { changes, next, .. } => {
                for change in &changes.0 {
                    push(Tailed::Change {
                        sequence: change.sequence,
                        keyspace: named(keyspaces, &change.keyspace.0),
                        key: change.key.0.clone(),
                        stamp: change.version.stamp.0,
                        payload: change.version.payload.0.clone(),
                    });
                }
                push(Tailed::Next(*next));
                self.nodes[node].cursor = Some(*next);
            }
            ChangesItem::Gap { from, to } => {
                push(Tailed::Gap { from: *from, to: *to });
                self.nodes[node].cursor = Some(*to);
            }
            ChangesItem::End { next } => self.nodes[node].cursor = Some(*next),
            ChangesItem::Error(_) => {}
        }
    }
}

/// A keyspace's name: a node that has not learned it yet tells the id in hexadecimal.
fn named(keyspaces: &BTreeMap<String, KeyspaceFacts>, told: &str) -> String {
    if keyspaces.contains_key(told) {
        return told.to_owned();
    }
    let id = u64::from_str_radix(told, 16).ok().map(KeyspaceId);
    let known = keyspaces.iter().find(|(_, facts)| Some(facts.id) == id);
    known.map_or(told, |(name, _)| name).to_owned()
}

fn describe(event: &Event) -> String {
    match event {
        Event::Input(input) => format!("{input:?}"),
        Event::Arrival { from, input, .. } => format!("from n{}: {input:?}", from + 1),
        Event::PeerGone(peer) => format!("n{} is gone", peer + 1),
        Event::Commit => "commit".to_owned(),
        Event::Committed(answers) => format!("committed {answers:?}"),
        Event::Read(ticket, request) => format!("read {ticket:?} {request:?}"),
        Event::Sync => "sync".to_owned(),
        Event::Work => "work".to_owned(),
        Event::Dial(peer) => format!("dials n{}", peer + 1),
        Event::Boot => "starts".to_owned(),
        Event::Restart => "is restarted".to_owned(),
        Event::FaultBegins(fault) => format!("fault {fault} begins"),
        Event::FaultEnds(fault) => format!("fault {fault} ends"),
        Event::LinkDies { a, b, .. } => format!("n{} and n{} give up", a + 1, b + 1),
        Event::ClientActs(client) => format!("client {client} acts"),
        Event::ClientGivesUp { client, operation } => {
            format!("client {client} gives up operation {operation}")
        }
        Event::Answered { operation, response } => format!("operation {operation}: {response:?}"),
        Event::Sample => "sample".to_owned(),
    }
}
