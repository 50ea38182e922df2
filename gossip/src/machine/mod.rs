//! [`Gossip`]: one node's membership machine; its parts, its getters and its commands.
//!
//! Invariants:
//!
//! - A member is suspect if and only if a suspicion of it runs, with a timer.
//! - An alive member's state is of the incarnation that it is alive in.
//! - Nothing but this node raises its own incarnation, and never lowers it.
//! - Between two calls of `handle_*` the memory is bounded by what `limits.rs` lets be known.
//!
//! The parts: `probe.rs` finds out who answers, `merge.rs` weighs what is heard, `spread.rs` tells it.
//! What becomes of the outputs is the caller's business.

mod merge;
mod probe;
mod spread;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use starling_clock::{HybridTime, NodeId, Stamp};

use crate::limits::{LOCAL_HEALTH_MAX, REGISTERS_MAX, RELAYS_MAX};
use crate::logarithm::push_pull_scale;
use crate::roster::Roster;
use crate::rumours::{Rumours, Subject};
use crate::wire::RegisterView;
use crate::{GossipConfig, GossipError, Instant, Member, NodeState, Register, Status};
use merge::{Heard, Suspicion};
use probe::{Probe, Relay};

/// What the caller must do or may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send this unreliably, at most [`crate::limits::DATAGRAM_SIZE_MAX`] bytes. Loss is fine.
    Datagram {
        /// To whom; its address is in its state.
        to: NodeId,
        /// What, for [`Gossip::handle_datagram`] over there.
        bytes: Vec<u8>,
    },
    /// Send this over a stream, for [`Gossip::handle_push_pull`] over there, and bring the answer to
    /// [`Gossip::handle_push_pull_answer`]. Failing is fine, and need not be told.
    PushPull {
        /// To whom. It may be a dead member: it is called on in case it is back.
        to: NodeId,
        /// The request.
        bytes: Vec<u8>,
    },
    /// Another node is believed to be in another status than before.
    MemberChanged {
        /// Who.
        node: NodeId,
        /// What was believed before; `None` if it was not known.
        from: Option<Status>,
        /// What is believed now.
        to: Status,
    },
    /// A known other node says something new of itself. Not for a node that becomes known.
    StateChanged {
        /// Who.
        node: NodeId,
    },
    /// A register has a new value: persist it, so that the cluster's registers survive a restart of all its nodes.
    RegisterChanged {
        /// Which.
        name: String,
    },
}

/// Room for outputs that is kept while there are none.
const OUTPUTS_KEPT_MAX: usize = 64;

/// What a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// Judge the probe that is out, and send the next.
    Probe,
    /// The probe of this sequence got no answer in time.
    ProbeTimeout(u32),
    /// The relayed probe of this sequence got no answer in time.
    Relay(u32),
    /// The suspect had its time.
    Suspicion(NodeId),
    Gossip,
    PushPull,
    Reconnect,
}

/// The membership machine of one node.
///
/// How to drive it: call one `handle_*` or command, then drain [`Self::poll_output`] until `None` and do what
/// it says in that order, then ask [`Self::poll_timeout`] when to call [`Self::handle_timeout`] at the latest.
/// `now` must not go back; if it does, the latest one seen is taken.
///
/// To join: dial a seed address, learn from the certificate who is there, and call
/// [`Self::handle_peer_found`]. A machine that knows nobody does nothing; keep dialling seeds
/// while [`Self::up_count`] is 1.
#[derive(Clone, Debug)]
pub struct Gossip {
    config: GossipConfig,
    own: NodeId,
    rng: ChaCha8Rng,
    now: Instant,
    roster: Roster,
    registers: BTreeMap<String, Register>,
    rumours: Rumours,
    /// Lifeguard's local health: 0 is good.
    local_health: u32,
    timers: BTreeSet<(Instant, Timer)>,
    is_gossip_due: bool,
    next_sequence: u32,
    probe: Option<Probe>,
    relays: BTreeMap<u32, Relay>,
    suspicions: BTreeMap<NodeId, Suspicion>,
    /// Registers that were asked for, so that many notices of one cause one pull.
    pulls: BTreeMap<String, Stamp>,
    /// Registers of others stamped later than this are not taken.
    register_time_max: HybridTime,
    /// A stranger's datagram causes no push-pull before this.
    greeting_at: Instant,
    outputs: VecDeque<Output>,
}

impl Gossip {
    /// A machine that knows nobody but itself. `seed` must differ from node to node and from life to life.
    ///
    /// # Errors
    /// [`GossipError`] if the settings or the state are out of their bounds.
    pub fn new(
        config: GossipConfig,
        own: NodeId,
        state: NodeState,
        seed: u64,
        now: Instant,
    ) -> Result<Self, GossipError> {
        config.check()?;
        state.check()?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let state = Arc::new(state);
        // The first incarnation is 1, so that 0 can mean "nothing heard".
        let member = Member {
            node: own,
            status: Status::Alive,
            incarnation: 1,
            state_incarnation: 1,
            state,
        };
        // Each node begins at a moment of its own, or those started together would speak together for ever.
        let intervals = [
            (Timer::Probe, config.probe_interval_us),
            (Timer::PushPull, config.push_pull_interval_us),
            (Timer::Reconnect, config.reconnect_interval_us),
        ];
        let timers = intervals
            .map(|(timer, interval_us)| (now.plus(rng.random_range(1..=interval_us)), timer))
            .into();
        let next_sequence = rng.next_u32();
        Ok(Self {
            config,
            own,
            rng,
            now,
            roster: Roster::new(member),
            registers: BTreeMap::new(),
            rumours: Rumours::default(),
            local_health: 0,
            timers,
            is_gossip_due: false,
            next_sequence,
            probe: None,
            relays: BTreeMap::new(),
            suspicions: BTreeMap::new(),
            pulls: BTreeMap::new(),
            register_time_max: HybridTime::MAX,
            greeting_at: now,
            outputs: VecDeque::new(),
        })
    }

    /// Who this is.
    pub fn own(&self) -> NodeId {
        self.own
    }

    /// The settings it runs by.
    pub fn config(&self) -> &GossipConfig {
        &self.config
    }

    /// A member, the node itself included; dead ones and those that left stay known.
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.roster.get(node)
    }

    /// Every member in the order of ids, the node itself included.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.roster.iter()
    }

    /// What is believed of a node.
    pub fn status(&self, node: NodeId) -> Option<Status> {
        self.roster.get(node).map(|member| member.status)
    }

    /// How many members are alive or suspect, the node itself included.
    pub fn up_count(&self) -> usize {
        self.roster.up()
    }

    /// A register by its name.
    pub fn register(&self, name: &str) -> Option<&Register> {
        self.registers.get(name)
    }

    /// Every register in the order of names.
    pub fn registers(&self) -> impl Iterator<Item = &Register> {
        self.registers.values()
    }

    /// Lifeguard's local health, 0 (good) to [`LOCAL_HEALTH_MAX`]: how often this node itself was at fault lately.
    pub fn local_health(&self) -> u32 {
        self.local_health
    }

    /// Whether this node has left by [`Self::leave`].
    pub fn has_left(&self) -> bool {
        self.roster.own().status == Status::Left
    }

    /// Whether the goodbye has been told often enough, or there is nobody to tell: the process may stop.
    pub fn is_leave_told(&self) -> bool {
        let told = !self.rumours.contains(&Subject::Member(self.own));
        self.has_left() && (told || self.roster.up() == 1)
    }

    /// Publishes what this node says of itself. The same state again changes nothing.
    ///
    /// # Errors
    /// [`GossipError`] if the state is out of its bounds or the node has left.
    pub fn update_state(&mut self, now: Instant, state: NodeState) -> Result<(), GossipError> {
        state.check()?;
        if self.has_left() {
            return Err(GossipError::Left);
        }
        self.advance(now);
        let own = self.roster.own();
        if *own.state != state {
            let incarnation = own.incarnation + 1;
            self.publish_own(Status::Alive, incarnation, Arc::new(state));
        }
        self.invariants();
        Ok(())
    }

    /// Sets a register, unless a value with a greater stamp is known. Answers whether it was set. Also for giving
    /// back what was persisted, after a restart.
    ///
    /// # Errors
    /// [`GossipError`] if the register is out of its bounds or there are too many.
    pub fn set_register(&mut self, now: Instant, register: &Register) -> Result<bool, GossipError> {
        register.check()?;
        if self.registers.len() >= REGISTERS_MAX && !self.registers.contains_key(&register.name) {
            return Err(GossipError::RegistersFull { limit: REGISTERS_MAX });
        }
        self.advance(now);
        let is_set = self.merge_register(RegisterView::of(register), true);
        self.invariants();
        Ok(is_set)
    }

    /// From now on registers of others that are stamped later than `time` are neither taken nor asked for nor spread,
    /// until a later call lets them in: whoever has the wall clock knows what is too far ahead of it. Push-pulls bring
    /// them again. At first nothing is too late. What [`Self::set_register`] is given is not judged.
    pub fn set_register_time_max(&mut self, time: HybridTime) {
        self.register_time_max = time;
    }

    /// Takes over members from elsewhere, for example those that a former life persisted, without spreading them,
    /// and compares everything with one of them within a push-pull interval. A member that is known already stays
    /// as it is. Of the node itself only the incarnation is taken: this life goes above it.
    ///
    /// # Errors
    /// [`GossipError`] if a state is out of its bounds; the members before it were taken over.
    pub fn restore_members(
        &mut self,
        now: Instant,
        members: impl IntoIterator<Item = Member>,
    ) -> Result<(), GossipError> {
        self.advance(now);
        for member in members {
            member.state.check()?;
            self.restore(member);
        }
        self.rearm_push_pull();
        self.invariants();
        Ok(())
    }

    /// Says goodbye: tells some members at once, and goes on telling while it is driven. It probes nobody any more;
    /// it still answers. Drive it until [`Self::is_leave_told`].
    pub fn leave(&mut self, now: Instant) {
        if self.has_left() {
            return;
        }
        self.advance(now);
        let own = self.roster.own();
        let (incarnation, state) = (own.incarnation, own.state.clone());
        self.publish_own(Status::Left, incarnation, state);
        self.probe = None;
        self.tell_some();
        self.invariants();
    }

    /// Declares another member gone for good: it counts as having left, and is not called on any more. If it does
    /// live, it will refute.
    ///
    /// # Errors
    /// [`GossipError::UnknownMember`], for the node itself too.
    pub fn remove(&mut self, now: Instant, node: NodeId) -> Result<(), GossipError> {
        if node == self.own {
            return Err(GossipError::UnknownMember);
        }
        let incarnation = self.roster.get(node).ok_or(GossipError::UnknownMember)?.incarnation;
        self.advance(now);
        let heard = Heard { node, status: Status::Left, incarnation, by: self.own, state: None };
        self.hear(&heard, true);
        self.invariants();
        Ok(())
    }

    /// When [`Self::handle_timeout`] is next wanted.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|&(due, _)| due)
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        let output = self.outputs.pop_front();
        if self.outputs.is_empty() && self.outputs.capacity() > OUTPUTS_KEPT_MAX {
            // A join says much at once, and never again.
            self.outputs = VecDeque::new();
        }
        output
    }

    /// Time has passed. Early calls change nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.advance(now);
        // Every timer that is set while handling one is later than `now`, so this ends.
        while let Some(&(due, timer)) = self.timers.first() {
            if due > self.now {
                break;
            }
            self.timers.pop_first();
            match timer {
                Timer::Probe => self.on_probe(due),
                Timer::ProbeTimeout(sequence) => self.on_probe_timeout(sequence),
                Timer::Relay(sequence) => self.on_relay(sequence),
                Timer::Suspicion(node) => self.on_suspicion(node, due),
                Timer::Gossip => self.on_gossip(),
                Timer::PushPull => self.on_push_pull(),
                Timer::Reconnect => self.on_reconnect(),
            }
        }
        self.invariants();
    }

    fn advance(&mut self, now: Instant) {
        self.now = self.now.max(now);
    }

    /// # Panics
    /// If `after_us` is 0: a timer that is due at once would never let [`Self::handle_timeout`] end.
    fn arm(&mut self, timer: Timer, after_us: u64) -> Instant {
        assert!(0 < after_us);
        let due = self.now.plus(after_us);
        self.timers.insert((due, timer));
        due
    }

    /// The first push-pull comes at a random moment of an interval that fits the members known by now: all nodes of a
    /// large cluster may have been started together.
    fn rearm_push_pull(&mut self) {
        self.timers.retain(|&(_, timer)| timer != Timer::PushPull);
        let interval_us = self.push_pull_interval_us();
        let after_us = self.rng.random_range(1..=interval_us);
        self.arm(Timer::PushPull, after_us);
    }

    /// How far apart push-pulls are with the members known by now.
    fn push_pull_interval_us(&self) -> u64 {
        self.config.push_pull_interval_us * push_pull_scale(self.roster.up())
    }

    fn publish_own(&mut self, status: Status, incarnation: u64, state: Arc<NodeState>) {
        assert!(self.roster.own().incarnation <= incarnation);
        self.roster.set_own(status, incarnation, state);
        self.spread(Subject::Member(self.own));
    }

    fn worsen_health(&mut self, by: u32) {
        self.local_health = (self.local_health + by).min(LOCAL_HEALTH_MAX);
    }

    /// `interval_us`, stretched by bad local health.
    fn stretched(&self, interval_us: u64) -> u64 {
        interval_us * u64::from(self.local_health + 1)
    }

    fn invariants(&self) {
        assert!(self.local_health <= LOCAL_HEALTH_MAX);
        assert!(self.registers.len() <= REGISTERS_MAX);
        assert!(self.pulls.len() <= REGISTERS_MAX);
        assert!(self.relays.len() <= RELAYS_MAX);
        assert!(self.suspicions.len() < self.roster.len());
        assert!(self.rumours.is_empty() || self.is_gossip_due, "rumours wait for nobody");
        // Linear, so only where it is cheap enough to run after each call.
        if cfg!(debug_assertions) && self.roster.len() <= 32 {
            for member in self.roster.iter() {
                let suspicion = self.suspicions.get(&member.node);
                assert_eq!(member.status == Status::Suspect, suspicion.is_some());
                if let Some(suspicion) = suspicion {
                    assert_eq!(suspicion.incarnation, member.incarnation);
                    let timer = (suspicion.deadline, Timer::Suspicion(member.node));
                    assert!(self.timers.contains(&timer));
                }
                if member.status == Status::Alive {
                    assert_eq!(member.incarnation, member.state_incarnation);
                }
            }
        }
    }
}
