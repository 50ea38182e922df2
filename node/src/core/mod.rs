//! The node's core: coordination of requests, replication, membership, hints, repair, as one state machine.
//!
//! Invariants:
//!
//! - Same configuration, seed and inputs, same outputs: nothing here has an order, a time or a chance of its own.
//! - Exactly one [`Output::Answer`] for each [`Input::Request`].
//! - Durable before visible: see [`types`].
//! - Everything in flight is bounded by [`crate::limits`] and ends by a deadline.
//!
//! Each kind of work is a small machine in a file of its own (`put`, `read`, `scan`, `hints`, `keyspaces`, `changes`,
//! `anti_entropy`); [`Core`] owns the clock, the ring, gossip and what is in flight, and carries questions and answers between the machines,
//! this node's storage and the peers. How to drive it: one [`Core::handle`], then [`Core::poll_output`] until `None` doing
//! what it says in that order, then ask [`Core::poll_timeout`] when [`Input::Timeout`] is wanted at the latest.

pub mod anti_entropy;
mod asks;
pub mod changes;
pub mod cluster;
mod comparing;
mod driver;
pub mod error;
mod executor;
mod flights;
pub mod hints;
pub mod keyspaces;
pub mod membership;
pub mod peer;
mod peers;
pub mod put;
pub mod read;
mod reads;
mod registers;
mod remembered;
pub mod replica;
mod requests;
pub mod scan;
pub mod settings;
mod small_map;
mod stamps;
mod status;
pub mod storage;
mod subscriptions;
pub mod types;
mod writes;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use bytes::Bytes;
use starling_client::wire::{ErrorCode, WireError};
use starling_clock::mutation::{self, Mutation};
use starling_clock::{Clock, ClockConfig, HybridTime, NodeId};
use starling_gossip::GossipConfig;
use starling_ring::Epoch;

use anti_entropy::{AntiEntropy, AntiEntropyConfig};
pub use cluster::Cluster;
pub use error::{Refusal, StartError};
use flights::Flights;
pub use keyspaces::{DEFAULT_KEYSPACE, Keyspace, Keyspaces, REGISTER_PREFIX};
use membership::Membership;
use remembered::Remembered;
pub use types::{ConnectionId, Input, Instant, Now, Output, SubscriptionId, Ticket};

use crate::limits::Limits;

/// The name of the clock's bound in storage: 8 bytes, the packed time, little-endian.
pub const META_CLOCK_BOUND: &str = "clock/bound";
/// Registers are kept in storage under this and their name: the stamp (16 bytes, big-endian), then the value.
pub const META_REGISTER_PREFIX: &str = "register/";

/// What a node's core runs by.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// The cluster's name.
    pub cluster: String,
    /// This node: one of the epoch's members.
    pub node: NodeId,
    /// Version of the software, for people; at most 32 bytes.
    pub software: String,
    /// Who is in the ring. Every node of the cluster must have the same.
    pub epoch: Epoch,
    /// Where each member is, this node included.
    pub addresses: BTreeMap<NodeId, SocketAddr>,
    /// Timings of failure detection.
    pub gossip: GossipConfig,
    /// Skew bound and restart bound.
    pub clock: ClockConfig,
    /// Bounds and waits.
    pub limits: Limits,
}

/// Counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Writes coordinated.
    pub writes: u64,
    /// Writes that got another stamp because the key had a newer one.
    pub restamps: u64,
    /// Reads coordinated.
    pub reads: u64,
    /// Replicas repaired by reads.
    pub read_repairs: u64,
    /// Hints written.
    pub hints: u64,
    /// Hints that storage had no room for.
    pub hints_lost: u64,
    /// Hints that their target took.
    pub hints_delivered: u64,
    /// Events that anti-entropy brought to others.
    pub anti_entropy_events: u64,
    /// Events that anti-entropy brought here from others.
    pub anti_entropy_pulled: u64,
    /// Requests refused for overload.
    pub overloaded: u64,
    /// Messages of peers that do not follow the protocol.
    pub malformed: u64,
}

/// Whether requests are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The wall clock has not caught up with the clock, or the clock's first bound is not on disk yet.
    Starting,
    Serving,
    /// Finishes what is in flight, until then at the latest.
    Stopping {
        until: Instant,
    },
    Stopped,
}

/// The node's core. See the module's documentation for how to drive it.
#[derive(Debug)]
pub struct Core {
    limits: Limits,
    software: String,
    phase: Phase,
    now: Now,
    started: Instant,
    clock: Clock,
    cluster: Cluster,
    keyspaces: Keyspaces,
    membership: Membership,
    flights: Flights<driver::Work>,
    remembered: Remembered,
    counters: Counters,
    /// Clients' requests that have no answer yet.
    in_flight: usize,
    /// Bytes of keys and payloads of writes that are not finished.
    write_bytes: usize,
    /// Writes that are answered and wait for slow replicas.
    lingering: BTreeSet<u64>,
    /// Writes that wait for a stamp until the clock's bound is on disk.
    waiting_for_bound: BTreeSet<u64>,
    /// The flight that makes a bound durable.
    bound_flight: Option<u64>,
    /// When the wall clock has caught up with the clock, so that requests may be taken.
    catch_up_at: Option<Instant>,
    /// When to try again after the bound could not be written.
    bound_retry_at: Option<Instant>,
    /// Requests of peers that are served now.
    served: BTreeMap<NodeId, usize>,
    /// Whose hints are being delivered, and by which flight.
    replays: BTreeMap<NodeId, u64>,
    /// For whom there may be hints.
    hinted: BTreeSet<NodeId>,
    /// Open change subscriptions, and their flights.
    subscriptions: BTreeMap<SubscriptionId, u64>,
    /// The flight of anti-entropy.
    comparing: Option<u64>,
    /// A sync of this node's storage failed.
    poisoned: bool,
    outputs: VecDeque<Output>,
}

impl Core {
    /// A core that starts from what an earlier life of the node kept: `metas`, all small values of storage. `seed` must differ
    /// from node to node and from life to life.
    ///
    /// # Errors
    /// [`StartError`] if the configuration or what was kept makes no sense.
    ///
    /// # Panics
    /// If a limit makes no sense.
    pub fn new(
        config: CoreConfig,
        metas: &[(String, Bytes)],
        seed: u64,
        now: Now,
    ) -> Result<Self, StartError> {
        config.limits.check();
        let CoreConfig { cluster, node, software, epoch, addresses, gossip, clock, limits } =
            config;
        let keyspaces = Keyspaces::new(epoch.members().len());
        let cluster = Cluster::new(cluster, node, epoch, addresses)?;
        let retry_ms = limits.retry_ms;
        let membership =
            Membership::new(&cluster, gossip, software.clone(), seed, retry_ms, now.mono)?;
        let hinted = cluster.epoch().members().iter().map(|member| member.node).collect();
        let mut core = Self {
            limits,
            software,
            phase: Phase::Starting,
            now,
            started: now.mono,
            clock: Clock::new(node, clock, recovered_bound(metas)?),
            cluster,
            keyspaces,
            membership,
            flights: Flights::new(seed),
            remembered: Remembered::default(),
            counters: Counters::default(),
            in_flight: 0,
            write_bytes: 0,
            lingering: BTreeSet::new(),
            waiting_for_bound: BTreeSet::new(),
            bound_flight: None,
            catch_up_at: None,
            bound_retry_at: None,
            served: BTreeMap::new(),
            replays: BTreeMap::new(),
            hinted,
            subscriptions: BTreeMap::new(),
            comparing: None,
            poisoned: false,
            outputs: VecDeque::new(),
        };
        for keyspace in core.keyspaces.iter() {
            core.cluster.table(keyspace.settings.replication);
        }
        core.restore_registers(metas)?;
        core.start_comparing();
        core.begin_serving();
        core.settle();
        Ok(core)
    }

    /// Takes one input. `now` is when it came; its monotonic part does not go back.
    pub fn handle(&mut self, now: Now, input: Input) {
        self.now = Now { mono: now.mono.max(self.now.mono), wall_ms: now.wall_ms };
        self.bound_registers();
        match input {
            Input::Request { connection, id, header, request } => {
                self.handle_request(requests::Client { connection, id }, header, request);
            }
            // Requests in flight run to their end; io drops answers to nobody.
            Input::ConnectionClosed { .. } => {}
            Input::Peer { from, message } => self.handle_peer(from, message),
            Input::PeerConnected { peer, address: _ } => self.handle_peer_connected(peer),
            Input::PeerDisconnected { peer } => self.handle_peer_disconnected(peer),
            Input::DialFailed { address } => {
                self.membership.handle_dial_failed(self.now.mono, address);
            }
            Input::StorageDone { ticket, answer } => self.handle_storage(ticket, answer),
            Input::ChangesGrew { end } => self.handle_changes_grew(end),
            Input::Gossip { from, bytes } => self.handle_gossip(from, &bytes),
            Input::PushPull { from, exchange, bytes } => {
                self.handle_push_pull(from, exchange, &bytes);
            }
            Input::PushPullAnswer { from, bytes } => self.handle_push_pull_answer(from, &bytes),
            Input::Subscribe { subscription, request } => {
                self.handle_subscribe(subscription, request);
            }
            Input::SubscriptionReady { subscription } => {
                self.handle_subscription_ready(subscription);
            }
            Input::Unsubscribe { subscription } => self.handle_unsubscribe(subscription),
            Input::Timeout => self.handle_timeout(),
            Input::Stop => self.handle_stop(),
        }
        self.settle();
        self.invariants();
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Timeout`] is next wanted, at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        // Whoever stops dials nobody any more.
        let (dial, stop) = match self.phase {
            Phase::Stopping { until } => (None, Some(until)),
            Phase::Starting | Phase::Serving => (self.membership.poll_dial_timeout(), None),
            Phase::Stopped => return None,
        };
        let gossip = self.membership.gossip.poll_timeout().map(|at| Instant(at.0));
        // Asked after every input: a loop over a list of options costs several times as much.
        let first = earlier(self.flights.poll_timeout(), gossip);
        let first = earlier(earlier(first, dial), stop);
        earlier(earlier(first, self.catch_up_at), self.bound_retry_at)
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.cluster.own()
    }

    /// Requests are taken.
    pub fn is_serving(&self) -> bool {
        self.phase == Phase::Serving
    }

    /// [`Output::Stopped`] was emitted.
    pub fn is_stopped(&self) -> bool {
        self.phase == Phase::Stopped
    }

    /// What was counted since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The clock: the greatest time given or observed.
    pub fn clock_last(&self) -> HybridTime {
        self.clock.last()
    }

    /// The keyspaces that this node knows.
    pub fn keyspaces(&self) -> &Keyspaces {
        &self.keyspaces
    }

    /// The ring.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Whether a node seems to be there.
    pub fn is_reachable(&self, node: NodeId) -> bool {
        self.membership.is_reachable(node)
    }

    /// Clients' requests that have no answer yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Everything in flight, the service of peers and repair included.
    pub fn flights(&self) -> usize {
        self.flights.len()
    }

    fn start_comparing(&mut self) {
        if mutation::is(Mutation::NoConvergence) {
            return;
        }
        let config = AntiEntropyConfig {
            interval_ms: self.limits.anti_entropy_interval_ms,
            first_ms: self.limits.anti_entropy_first_ms,
            timeout_ms: self.limits.anti_entropy_timeout_ms,
            pause_ms: self.limits.anti_entropy_pause_ms,
            settle_ms: self.limits.anti_entropy_settle_ms,
        };
        let machine = AntiEntropy::new(self.now.mono, config, self.node());
        let id = self.flights.next_id();
        self.comparing = Some(id);
        self.launch(id, driver::Work::AntiEntropy(machine));
    }

    fn handle_timeout(&mut self) {
        if self.phase == Phase::Stopped {
            return;
        }
        let now = self.now.mono;
        self.membership.gossip.handle_timeout(membership::gossip_now(now));
        if self.catch_up_at.is_some_and(|at| at <= now) {
            self.catch_up_at = None;
            self.begin_serving();
        }
        if self.bound_retry_at.is_some_and(|at| at <= now) {
            self.bound_retry_at = None;
            self.renew_bound();
        }
        // A machine that is woken wants to be woken later than now, or never, so this ends.
        while let Some(id) = self.flights.next_due(now) {
            self.wake(id);
        }
    }

    fn handle_stop(&mut self) {
        if matches!(self.phase, Phase::Stopping { .. } | Phase::Stopped) {
            return;
        }
        let until = self.now.mono.plus_ms(self.limits.stop_timeout_ms);
        self.phase = Phase::Stopping { until };
        self.membership.gossip.leave(membership::gossip_now(self.now.mono));
    }

    /// What follows from any input: gossip's outputs, dials, replays, the clock's bound, the end.
    fn settle(&mut self) {
        if self.phase == Phase::Stopped {
            return;
        }
        self.drain_gossip();
        if !matches!(self.phase, Phase::Stopping { .. }) {
            for (peer, address) in self.membership.poll_dials(self.now.mono) {
                self.outputs.push_back(Output::Dial { peer: Some(peer), address });
            }
            if !mutation::is(Mutation::NoConvergence) {
                self.start_replays();
            }
        }
        if let Phase::Stopping { until } = self.phase {
            // Answered writes go on until their replicas answered or have hints.
            let idle = self.in_flight == 0 && self.lingering.is_empty() && self.served.is_empty();
            let told = self.membership.gossip.is_leave_told();
            if until <= self.now.mono || (idle && told) {
                self.phase = Phase::Stopped;
                self.outputs.push_back(Output::Stopped);
            }
        }
    }

    /// Answers a client.
    fn refuse(&mut self, client: requests::Client, refusal: Refusal) {
        let error = WireError::from(refusal);
        if error.code == ErrorCode::Overloaded {
            self.counters.overloaded += 1;
        }
        self.answer(client, starling_client::wire::Response::Error(error));
    }

    fn answer(&mut self, client: requests::Client, response: starling_client::wire::Response) {
        let requests::Client { connection, id } = client;
        let response = Box::new(response);
        self.outputs.push_back(Output::Answer { connection, id, response });
    }

    fn invariants(&self) {
        assert!(self.in_flight <= self.limits.in_flight_max);
        assert!(self.waiting_for_bound.len() <= self.in_flight, "each has a client");
        assert!(self.lingering.len() <= self.flights.len());
        assert!(self.served.values().all(|&count| 0 < count));
        assert!(self.served.values().all(|&count| count <= self.limits.served_per_peer_max));
        assert!(self.replays.len() <= self.cluster.epoch().members().len());
    }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        _ => one.or(other),
    }
}

fn recovered_bound(metas: &[(String, Bytes)]) -> Result<HybridTime, StartError> {
    if mutation::is(Mutation::ForgetRestartBound) {
        return Ok(HybridTime::ZERO);
    }
    let Some((name, value)) = metas.iter().find(|(name, _)| name == META_CLOCK_BOUND) else {
        return Ok(HybridTime::ZERO);
    };
    let packed = value[..].try_into().map(u64::from_le_bytes).ok();
    let bound = packed.and_then(HybridTime::from_packed);
    bound.ok_or_else(|| StartError::BadMeta { name: name.clone() })
}

#[cfg(test)]
mod tests;
