//! A world in memory: nodes, a network that loses and delays, and virtual time.
//!
//! Invariants:
//!
//! - One thread, one generator: the same seed gives the same [`World::trace`].
//! - A stream between nodes that reach each other delivers; a datagram may be lost.
//!
//! It judges nothing: tests do.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by several tests and the example, and what fails fails them"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use starling_clock::NodeId;
use starling_gossip::limits::{DATAGRAM_SIZE_MAX, PUSH_PULL_SIZE_MAX};
use starling_gossip::{Gossip, GossipConfig, Instant, Member, NodeState, Output, Status, describe};

/// How the network treats messages.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    /// Lost datagrams in a thousand.
    pub loss_per_mille: u32,
    /// Delay in microseconds, drawn from this range.
    pub delay_us: (u64, u64),
}

#[derive(Clone, Debug)]
enum Event {
    Wake { node: NodeId },
    Datagram { from: NodeId, to: NodeId, bytes: Vec<u8> },
    Request { from: NodeId, to: NodeId, bytes: Vec<u8> },
    Answer { from: NodeId, to: NodeId, bytes: Vec<u8> },
}

pub struct World {
    pub config: GossipConfig,
    pub network: Network,
    pub now: Instant,
    /// Those that run. A crashed one is not here.
    pub nodes: BTreeMap<NodeId, Gossip>,
    /// Pairs that don't reach each other, the smaller id first.
    pub cuts: BTreeSet<(NodeId, NodeId)>,
    /// What happened, in words, if wanted.
    pub log: Option<String>,
    /// Every change of status that a node told of: when, who told, of whom, to what.
    pub changes: Vec<(Instant, NodeId, NodeId, Status)>,
    pub datagrams: u64,
    pub bytes: u64,
    pub datagram_size_max: usize,
    rng: ChaCha8Rng,
    queue: BTreeMap<(Instant, u64), Event>,
    next_event: u64,
    /// When each node is to be woken, by id.
    wakes: Vec<Option<Instant>>,
    trace: u64,
}

pub fn address(node: NodeId) -> SocketAddr {
    let [low, high, ..] = node.0.to_le_bytes();
    SocketAddr::from(([10, 0, high, low], 7_000))
}

impl World {
    pub fn new(config: GossipConfig, network: Network, seed: u64) -> Self {
        Self {
            config,
            network,
            now: Instant(0),
            nodes: BTreeMap::new(),
            cuts: BTreeSet::new(),
            log: None,
            changes: Vec::new(),
            datagrams: 0,
            bytes: 0,
            datagram_size_max: 0,
            rng: ChaCha8Rng::seed_from_u64(seed),
            queue: BTreeMap::new(),
            next_event: 0,
            wakes: Vec::new(),
            trace: 0xcbf2_9ce4_8422_2325,
        }
    }

    /// A digest of everything that was delivered and when.
    pub fn trace(&self) -> u64 {
        self.trace
    }

    /// Starts a node, in its first life or a later one.
    pub fn start(&mut self, node: NodeId) {
        let state = NodeState::at(address(node));
        let seed = self.rng.random();
        let gossip = Gossip::new(self.config.clone(), node, state, seed, self.now).unwrap();
        self.nodes.insert(node, gossip);
        self.drain(node);
    }

    /// Starts `count` nodes that know one another already.
    pub fn start_acquainted(&mut self, count: u64) {
        let mut members: Vec<Member> = (1..=count)
            .map(|id| Member {
                node: NodeId(id),
                status: Status::Alive,
                incarnation: 1,
                state_incarnation: 1,
                state: Arc::new(NodeState::at(address(NodeId(id)))),
            })
            .collect();
        // Learned in no order, as in life; in order, the maps would be half empty, and memory is the limit here.
        members.shuffle(&mut self.rng);
        for id in 1..=count {
            let state = NodeState::at(address(NodeId(id)));
            let seed = self.rng.random();
            let mut gossip =
                Gossip::new(self.config.clone(), NodeId(id), state, seed, self.now).unwrap();
            let others = members.iter().filter(|member| member.node.0 != id).cloned();
            gossip.restore_members(self.now, others).unwrap();
            while gossip.poll_output().is_some() {}
            self.nodes.insert(NodeId(id), gossip);
            self.drain(NodeId(id));
        }
    }

    /// Starts `count` nodes that join by the first one.
    pub fn start_joining(&mut self, count: u64) {
        for id in 1..=count {
            self.start(NodeId(id));
            if id > 1 {
                self.act(NodeId(id), |gossip, now| gossip.handle_peer_found(now, NodeId(1)));
            }
        }
    }

    pub fn crash(&mut self, node: NodeId) {
        self.suspend(node);
    }

    /// Stops a node; what is sent to it meanwhile is lost.
    pub fn suspend(&mut self, node: NodeId) -> Gossip {
        *self.wake(node) = None;
        self.nodes.remove(&node).expect("it runs")
    }

    /// The node goes on where it was.
    pub fn resume(&mut self, gossip: Gossip) {
        let node = gossip.own();
        self.nodes.insert(node, gossip);
        self.act(node, Gossip::handle_timeout);
    }

    /// Does something to a node and carries out what follows.
    pub fn act<T>(&mut self, node: NodeId, act: impl FnOnce(&mut Gossip, Instant) -> T) -> T {
        let result = act(self.nodes.get_mut(&node).expect("it runs"), self.now);
        self.drain(node);
        result
    }

    pub fn run_ms(&mut self, ms: u64) {
        let end = self.now.plus(ms * 1_000);
        while self.step(end) {}
    }

    /// Runs until `is_done`, checked every 10 ms, or for `ms` at most. Answers the time it took in ms.
    pub fn run_until(&mut self, ms: u64, is_done: impl Fn(&Self) -> bool) -> Option<u64> {
        for passed in 0..=ms / 10 {
            if is_done(self) {
                return Some(passed * 10);
            }
            self.run_ms(10);
        }
        None
    }

    fn step(&mut self, end: Instant) -> bool {
        let Some((&(at, number), _)) = self.queue.first_key_value() else {
            self.now = end;
            return false;
        };
        if at > end {
            self.now = end;
            return false;
        }
        let event = self.queue.remove(&(at, number)).unwrap();
        self.now = at;
        self.happen(event);
        true
    }

    fn happen(&mut self, event: Event) {
        let (now, at) = (self.now, self.now);
        match event {
            Event::Wake { node } => {
                let wake = self.wake(node);
                if *wake == Some(at) {
                    *wake = None;
                    self.act(node, Gossip::handle_timeout);
                }
            }
            Event::Datagram { from, to, bytes } => {
                if let Some(gossip) = self.nodes.get_mut(&to) {
                    gossip.handle_datagram(now, from, &bytes).unwrap();
                    self.note(1, from, to, &bytes);
                    self.drain(to);
                }
            }
            Event::Request { from, to, bytes } => {
                let Some(gossip) = self.nodes.get_mut(&to) else { return };
                let answer = gossip.handle_push_pull(now, from, &bytes).unwrap();
                assert!(answer.len() <= PUSH_PULL_SIZE_MAX);
                self.note(2, from, to, &bytes);
                self.say(to, from, &answer, "");
                self.drain(to);
                if self.reaches(to, from) {
                    self.send(Event::Answer { from: to, to: from, bytes: answer });
                }
            }
            Event::Answer { from, to, bytes } => {
                if let Some(gossip) = self.nodes.get_mut(&to) {
                    gossip.handle_push_pull_answer(now, from, &bytes).unwrap();
                    self.note(3, from, to, &bytes);
                    self.drain(to);
                }
            }
        }
    }

    pub fn reaches(&self, from: NodeId, to: NodeId) -> bool {
        !self.cuts.contains(&(from.min(to), from.max(to)))
    }

    fn wake(&mut self, node: NodeId) -> &mut Option<Instant> {
        let at = usize::try_from(node.0).unwrap();
        if self.wakes.len() <= at {
            self.wakes.resize(at + 1, None);
        }
        &mut self.wakes[at]
    }

    fn drain(&mut self, node: NodeId) {
        loop {
            let gossip = self.nodes.get_mut(&node).unwrap();
            let Some(output) = gossip.poll_output() else {
                let due = gossip.poll_timeout();
                self.wake_at(node, due);
                return;
            };
            match output {
                Output::Datagram { to, bytes } => self.send_datagram(node, to, bytes),
                Output::PushPull { to, bytes } => {
                    assert!(bytes.len() <= PUSH_PULL_SIZE_MAX);
                    let fate = if self.reaches(node, to) { "" } else { " (lost)" };
                    self.say(node, to, &bytes, fate);
                    if self.reaches(node, to) {
                        self.send(Event::Request { from: node, to, bytes });
                    }
                }
                Output::MemberChanged { node: of, from, to } => {
                    let from = from.map_or("unknown".to_owned(), |from| from.to_string());
                    self.tell(&format!("{node}: {of} was {from}, is {to}"));
                    self.changes.push((self.now, node, of, to));
                }
                Output::StateChanged { node: of } => {
                    self.tell(&format!("{node}: {of} has a new state"));
                }
                Output::RegisterChanged { name } => {
                    self.tell(&format!("{node}: register {name} changed"));
                }
            }
        }
    }

    fn wake_at(&mut self, node: NodeId, due: Option<Instant>) {
        let wake = self.wake(node);
        if let Some(due) = due
            && wake.is_none_or(|wake| due < wake)
        {
            *wake = Some(due);
            self.enqueue(due, Event::Wake { node });
        }
    }

    fn send_datagram(&mut self, from: NodeId, to: NodeId, bytes: Vec<u8>) {
        assert!(bytes.len() <= DATAGRAM_SIZE_MAX);
        self.datagrams += 1;
        self.bytes += bytes.len() as u64;
        self.datagram_size_max = self.datagram_size_max.max(bytes.len());
        let is_lost = self.network.loss_per_mille > 0
            && self.rng.random_range(0..1_000) < self.network.loss_per_mille;
        let is_lost = is_lost || !self.reaches(from, to);
        self.say(from, to, &bytes, if is_lost { " (lost)" } else { "" });
        if !is_lost {
            self.send(Event::Datagram { from, to, bytes });
        }
    }

    fn send(&mut self, event: Event) {
        let (least, greatest) = self.network.delay_us;
        let at = self.now.plus(self.rng.random_range(least..=greatest));
        self.enqueue(at, event);
    }

    fn enqueue(&mut self, at: Instant, event: Event) {
        self.queue.insert((at, self.next_event), event);
        self.next_event += 1;
    }

    fn note(&mut self, kind: u64, from: NodeId, to: NodeId, bytes: &[u8]) {
        let words = [self.now.0, kind, from.0, to.0, bytes.len() as u64];
        let (chunks, rest) = bytes.as_chunks::<8>();
        let chunks = chunks.iter().map(|&chunk| u64::from_le_bytes(chunk));
        for word in words.into_iter().chain(chunks).chain(rest.iter().copied().map(u64::from)) {
            let mixed = (self.trace ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            self.trace = mixed ^ mixed >> 29;
        }
    }

    fn say(&mut self, from: NodeId, to: NodeId, bytes: &[u8], fate: &str) {
        if self.log.is_some() {
            let words = describe(bytes).unwrap();
            self.tell(&format!("{from} -> {to} {words}{fate}"));
        }
    }

    pub fn tell(&mut self, words: &str) {
        let ms = self.now.0 / 1_000;
        if let Some(log) = &mut self.log {
            writeln!(log, "{:>3}.{:03} {words}", ms / 1_000, ms % 1_000).unwrap();
        }
    }

    /// Whether every running node holds exactly the running ones to be alive.
    pub fn agrees(&self) -> bool {
        self.nodes.values().all(|gossip| {
            let alive = |member: &&Member| member.status == Status::Alive;
            gossip.members().filter(alive).map(|member| member.node).eq(self.nodes.keys().copied())
        })
    }

    /// Whether every running node but `of` itself holds `of` to be `status`.
    pub fn all_hold(&self, of: NodeId, status: Status) -> bool {
        let others = self.nodes.values().filter(|gossip| gossip.own() != of);
        others.into_iter().all(|gossip| gossip.status(of) == Some(status))
    }
}
