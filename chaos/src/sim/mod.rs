//! The deterministic simulator: the real core, gossip and storage of every node, in one thread, on simulated disks, networks and
//! clocks, under faults drawn from a seed.
//!
//! Invariants:
//!
//! - One seed and one setting give one run, byte for byte: [`Run::trace_hash`] tells.
//! - Nothing asks the system for time or chance while a run goes on; the program's tripwire watches over it.
//! - A run has a safety phase with faults and load, and a liveness phase in which both have ended and everything must heal.
//!
//! It judges nothing: [`crate::check`] does. The models are `TigerBeetle`'s VOPR and `FoundationDB`'s simulation.

mod clients;
mod damage;
mod ending;
mod event;
mod faults;
mod floors;
mod keyspaces;
mod lanes;
mod network;
mod node;
mod outputs;
pub mod plan;
pub mod shrink;
mod trace;
mod world;

use std::cell::Cell;
use std::io::Write;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use starling_clock::NodeId;
use starling_ring::{Epoch, Member, Partitions};

use crate::history::History;
use crate::workload::{Mix, Workload};
use clients::Clients;
use plan::{Plan, Profile};
use trace::Trace;
use world::World;

/// Partitions of the simulated ring.
const PARTITIONS: u32 = 16;
/// The cluster has found itself after this long, in microseconds; load begins.
const SETTLE_US: u64 = 1_500_000;
/// Room is made for so many operations at the most before they come.
const OPERATIONS_MAX: usize = 1 << 20;
/// Clients a node.
const CLIENTS_PER_NODE: u64 = 6;

/// What to simulate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Everything is drawn from it.
    pub seed: u64,
    /// How many nodes.
    pub nodes: u64,
    /// How long there are load and faults, in microseconds of simulated time.
    pub duration_us: u64,
    /// Which faults.
    pub profile: Profile,
    /// Operations a simulated second and node.
    pub operations_per_second: u64,
    /// The faults; `None`: drawn from the seed.
    pub plan: Option<Plan>,
}

impl Settings {
    /// A run with this seed: 5 nodes for 20 seconds with everything going wrong.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            nodes: 5,
            duration_us: 20_000_000,
            profile: Profile::All,
            operations_per_second: 200,
            plan: None,
        }
    }

    /// The faults that the run has.
    pub fn plan(&self) -> Plan {
        self.plan.clone().unwrap_or_else(|| {
            let (begin_us, end_us) = (SETTLE_US, SETTLE_US + self.duration_us);
            Plan::draw(self.seed ^ 0x706c_616e, self.profile, self.nodes, begin_us, end_us)
        })
    }
}

/// What a simulation gave.
#[derive(Debug)]
pub struct Run {
    /// Everything that checkers look at.
    pub history: History,
    /// Equal for equal runs.
    pub trace_hash: u64,
    /// How many events were carried out.
    pub events: u64,
    /// The trace's text was written as far as it goes.
    pub trace_written: bool,
    /// Simulated time, in microseconds.
    pub simulated_us: u64,
}

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is simulating: nothing may ask the system for time or chance then.
pub fn is_inside() -> bool {
    INSIDE.get()
}

/// Simulates. `trace`, if there is one, gets a line an event.
///
/// # Panics
/// If there are no nodes or more than 1,000.
pub fn run(settings: &Settings, trace: Option<Box<dyn Write + Send>>) -> Run {
    let _inside = Inside::enter();
    simulate(settings, trace)
}

/// Marks the thread for as long as it lives.
struct Inside;

impl Inside {
    fn enter() -> Self {
        INSIDE.set(true);
        Self
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(false);
    }
}

fn simulate(settings: &Settings, trace: Option<Box<dyn Write + Send>>) -> Run {
    assert!((1..=1_000).contains(&settings.nodes));
    let mut random = ChaCha8Rng::seed_from_u64(settings.seed);
    let partitions = Partitions::new(PARTITIONS).expect("a power of two");
    let member = |id| Member { node: NodeId(id), zone: String::new(), weight: 1 };
    let epoch = Epoch::new(1, partitions, (1..=settings.nodes).map(member).collect())
        .expect("members are distinct");
    let keyspaces = keyspaces::draw(&mut random, usize::try_from(settings.nodes).expect("few"));
    // Room for what there will be, about: a record takes some hundred bytes, and is not moved again and again.
    let per_second = settings.operations_per_second.saturating_mul(settings.nodes);
    let operations = per_second.saturating_mul(settings.duration_us) / 1_000_000;
    let operations =
        usize::try_from(operations).map_or(OPERATIONS_MAX, |it| it.min(OPERATIONS_MAX));
    let history = History {
        operations: Vec::with_capacity(operations),
        tails: Vec::with_capacity(2 * operations),
        nodes: epoch.members().iter().map(|member| member.node).collect(),
        partitions: PARTITIONS,
        keyspaces: keyspaces::facts(&epoch, &keyspaces),
        ..History::default()
    };
    let node_settings = node::Settings {
        addresses: (0_usize..)
            .map(node::address_of)
            .zip(&history.nodes)
            .map(|(a, n)| (*n, a))
            .collect(),
        epoch,
        limits: node::limits(),
        storage: node::storage_config(&mut random),
    };
    let mix = Mix::draw(&mut random);
    let workload = Workload::new(random.next_u64(), partitions, mix);
    let clients = Clients::new(
        random.next_u64(),
        workload,
        keyspaces,
        (
            history.nodes.len(),
            usize::try_from(settings.nodes * CLIENTS_PER_NODE).expect("nodes are few"),
            settings.operations_per_second * settings.nodes,
        ),
        SETTLE_US + settings.duration_us * 2 / 3,
    );
    let seed = random.next_u64();
    let mut world =
        World::new(seed, node_settings, settings.plan(), clients, history, Trace::new(trace));
    let start_us = world.now_us;
    world.begin();
    world.run_until(start_us + SETTLE_US);
    world.start_clients();
    world.run_until(start_us + SETTLE_US + settings.duration_us);
    world.end();
    let trace_written = world.trace.finish();
    Run {
        trace_hash: world.trace.hash(),
        events: world.trace.events(),
        trace_written,
        simulated_us: world.now_us - start_us,
        history: world.history,
    }
}
