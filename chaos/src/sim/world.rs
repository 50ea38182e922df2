//! [`World`]: the queue of what happens next, and whom it happens to.
//!
//! Invariants:
//!
//! - Things happen in the order of (time, number); nothing has another order, and all chance is drawn from the seed's streams.
//! - A node's state changes at once; what follows from it, storage work, messages and clients take simulated time.
//! - An event of an earlier life of a node is dropped, and events of a node that pauses wait until it goes on.
//!
//! What a core says is carried out in `outputs.rs`, what storage is asked for in `lanes.rs`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use starling_node::core::types::{Input, Instant, Now};
use starling_storage::SimDisk;

use super::clients::Clients;
use super::event::{Event, describe};
use super::network::Network;
use super::node::{Node, Running, Settings};
use super::plan::Plan;
use super::trace::Trace;
use crate::history::{History, Sample};

/// The wall clock when a world begins, in milliseconds since the Unix epoch.
pub(super) const WALL_MS: u64 = 1_700_000_000_000;
/// The true time when a world begins: faults' times count from here.
pub(super) const BEGIN_US: u64 = 1_000_000;
const SAMPLE_INTERVAL_US: u64 = 500_000;
/// An event that happens within this is soon.
const SOON_US: u64 = 10_000;

/// By time, then by number, in one piece that is compared at once, with the slot of each event.
type Queue = BinaryHeap<Reverse<(u128, usize)>>;

fn time_of(order: u128) -> u64 {
    u64::try_from(order >> 64).expect("it was made of one")
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
    /// What happens soon, and what happens later: most events are soon over, and their heap stays small beside the other.
    soon: Queue,
    later: Queue,
    slots: Vec<Option<Scheduled>>,
    free: Vec<usize>,
    next_event: u64,
    deferred: Vec<(usize, Scheduled)>,
    /// Sent so far between nodes.
    pub(super) messages: u64,
    /// Who asked in a push-pull, by its name.
    pub(super) exchanges: BTreeMap<u64, (usize, u64)>,
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
            soon: Queue::new(),
            later: Queue::new(),
            slots: Vec::new(),
            free: Vec::new(),
            next_event: 0,
            deferred: Vec::new(),
            messages: 0,
            exchanges: BTreeMap::new(),
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
        let number = self.next_number();
        let queue = if after_us < SOON_US { &mut self.soon } else { &mut self.later };
        let order = u128::from(self.now_us + after_us) << 64 | u128::from(number);
        queue.push(Reverse((order, slot)));
    }

    /// A number that nothing else in the world has.
    pub(super) fn next_number(&mut self) -> u64 {
        self.next_event += 1;
        self.next_event - 1
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
        let (soon, later) = (self.soon.peek().copied(), self.later.peek().copied());
        // The greater is the earlier one here.
        let (queue, first) =
            if soon < later { (&mut self.later, later) } else { (&mut self.soon, soon) };
        let event_at = first.map(|Reverse((order, _))| time_of(order));
        if let Some((at, index)) = timer
            && event_at.is_none_or(|event_at| at < event_at)
        {
            if at > until_us {
                return false;
            }
            self.now_us = self.now_us.max(at);
            self.trace.note(self.now_us, index as u64, 17, 0, || "timeout".to_owned());
            self.input(index, Box::new(Input::Timeout));
            return true;
        }
        if event_at.is_none_or(|at| at > until_us) {
            return false;
        }
        let Some(Reverse((order, slot))) = queue.pop() else { return false };
        let at = time_of(order);
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
            Event::ClientAlarm(client) => self.client_alarm(client),
            Event::Answered { operation, response } => {
                self.client_is_answered(operation, *response);
            }
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
                    self.input(node, Box::new(Input::PeerDisconnected { peer }));
                }
            }
            Event::Commit => self.commit(node),
            Event::Committed(answers) => self.committed(node, answers),
            Event::Read(ticket, request) => self.read(node, ticket, *request),
            Event::Sync => self.sync(node),
            Event::Work => self.look_for_work(node),
            Event::Step => self.step_job(node),
            Event::Finish => self.finish_job(node),
            Event::Dial(peer) => self.dial(node, peer),
            Event::Restart => self.crash(node),
            _ => unreachable!("events of the world have no node"),
        }
    }

    pub(super) fn running(&mut self, node: usize) -> &mut Running {
        self.nodes[node].running.as_mut().expect("the node runs")
    }
}
