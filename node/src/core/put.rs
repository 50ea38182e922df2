//! One client write, from the coordinator's side: stamp, send to all home replicas, count, re-stamp what lost, hint, answer once.
//!
//! Invariants:
//!
//! - Exactly one [`PutOutput::Answer`] is emitted, and never after it a change of mind.
//! - `Ok` is answered only after as many distinct home replicas as the level asks for said that they took the event with
//!   the stamp of the answer; at level ANY a durable hint counts too.
//! - When the machine is done, every home replica took the event of the last stamp or got a hint for it, or nothing happened anywhere:
//!   all of them refused it cleanly, or it was never stamped.
//! - At most [`RESTAMPS_MAX`] re-stamps; none after the answer.
//! - What was on its way to a replica when its connection broke is sent again when there is another one, if the client
//!   still waits, at most [`RESENDS_MAX`] times a write. A write whose level cannot be met without a replica that is lost does not wait
//!   for it: the client knows sooner, and repeats it with the same request id.
//! - The machine ends by itself: `poll_timeout` is `Some` until it is done.
//!
//! No IO, no clock. Call one `handle_*`, then drain `poll_output` until `None`, then the next `handle_*`. It does not give
//! stamps: [`PutOutput::Stamp`] asks for one.

use std::collections::VecDeque;

use starling_clock::mutation::{self, Mutation};
use starling_clock::{NodeId, Stamp};
use starling_storage::{Event, Mode};

use super::error::Refusal;
use super::peer::WriteOutcome;
use super::types::Instant;
use crate::limits::{RESENDS_MAX, RESTAMPS_MAX};

/// How much a write asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needed {
    /// As many distinct home replicas, at least one.
    Replicas(usize),
    /// One home replica or one durable hint.
    Any,
}

/// What a write is made of.
#[derive(Clone, Debug)]
pub struct PutPlan {
    /// What to write. Its stamp counts only with [`Start::Found`].
    pub event: Event,
    /// The home replicas of the key, and whether each is reachable now.
    pub replicas: Vec<(NodeId, bool)>,
    /// How many must have it.
    pub needed: Needed,
    /// The client waits until then.
    pub deadline: Instant,
    /// From then on a silent replica gets a hint as soon as the client has its answer. At level ANY the hint is the answer.
    pub hint_at: Instant,
}

/// How a write begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// It gets a stamp first.
    Fresh,
    /// An earlier attempt of the request made this very event: write it again as it is.
    Found {
        /// The key has a newer event.
        superseded: bool,
    },
}

/// What a write came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Of the event.
    pub stamp: Stamp,
    /// A newer event of the key exists.
    pub superseded: bool,
    /// Home replicas that have it.
    pub acks: u8,
}

/// What the driver must do, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum PutOutput {
    /// Give a stamp, greater than `above` if there is one: [`Put::handle_stamp`] or [`Put::handle_skewed`].
    Stamp {
        /// The key has this one already.
        above: Option<Stamp>,
    },
    /// Ask `to` to apply the event: [`Put::handle_outcome`] with the same `attempt`. Loss is fine: the deadline covers it.
    Send {
        /// The replica.
        to: NodeId,
        /// What to apply.
        event: Event,
        /// Whether to refuse it if the key has a newer one there.
        mode: Mode,
        /// Tells answers to this from answers to what was sent with an earlier stamp.
        attempt: u32,
    },
    /// Hold the event for a replica.
    Hint {
        /// Whom for.
        to: NodeId,
        /// What.
        event: Event,
        /// The answer waits for it: on disk, then [`Put::handle_hinted`].
        wait: bool,
    },
    /// Tell the client. Emitted exactly once.
    Answer(Result<Written, Refusal>),
}

/// What is known of one home replica, about the event of the last stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Asked; no answer yet. `copy`: it was sent as a copy.
    Asked { copy: bool },
    /// Has it.
    Acked,
    /// Does not have it, and needs a hint if the write happens at all.
    Refused(WriteOutcome),
    /// Connection lost after it was asked: may have it.
    Lost,
    /// There is a hint for it.
    Hinted,
    /// No hint could be kept for it: anti-entropy has to bring it.
    Unhinted,
}

/// One home replica.
#[derive(Clone, Copy, Debug)]
struct Replica {
    node: NodeId,
    reachable: bool,
    state: State,
}

/// The state of one write.
#[derive(Debug)]
pub struct Put {
    event: Event,
    replicas: Vec<Replica>,
    needed: Needed,
    deadline: Instant,
    hint_at: Instant,
    /// Counts dispatches; 0: nothing was sent yet.
    attempt: u32,
    restamps: u32,
    resends: u32,
    mode: Mode,
    superseded: bool,
    /// A stamp was asked for and has not come.
    stamping: bool,
    answered: bool,
    outputs: VecDeque<PutOutput>,
}

impl Put {
    /// Starts the write.
    ///
    /// # Panics
    /// If the level asks for no replica or more than there are: the caller checks that.
    pub fn new(plan: PutPlan, start: Start) -> Self {
        if let Needed::Replicas(needed) = plan.needed {
            assert!(0 < needed);
            assert!(needed <= plan.replicas.len());
        }
        assert!(!plan.replicas.is_empty());
        let replicas = plan.replicas.into_iter().map(|(node, reachable)| {
            let state = State::Refused(WriteOutcome::Overloaded);
            Replica { node, reachable, state }
        });
        let mut put = Self {
            event: plan.event,
            replicas: replicas.collect(),
            needed: plan.needed,
            deadline: plan.deadline,
            hint_at: plan.hint_at.min(plan.deadline),
            attempt: 0,
            restamps: 0,
            resends: 0,
            mode: Mode::Direct,
            superseded: false,
            stamping: false,
            answered: false,
            outputs: VecDeque::new(),
        };
        match start {
            Start::Fresh => put.ask_for_stamp(None),
            Start::Found { superseded } => {
                put.mode = Mode::Copy;
                put.superseded = superseded;
                put.dispatch();
            }
        }
        put.invariants();
        put
    }

    /// The event as it is sent now.
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// The client has its answer.
    pub fn is_answered(&self) -> bool {
        self.answered
    }

    /// Nothing is outstanding any more.
    pub fn is_done(&self) -> bool {
        self.answered && !self.stamping && self.replicas.iter().all(Replica::is_settled)
    }

    /// Waits for a stamp.
    pub fn is_stamping(&self) -> bool {
        self.stamping
    }

    /// The stamp that was asked for.
    ///
    /// # Panics
    /// If none was asked for.
    pub fn handle_stamp(&mut self, stamp: Stamp) {
        assert!(self.stamping);
        self.stamping = false;
        self.event.stamp = stamp;
        self.dispatch();
        self.invariants();
    }

    /// The key's newer stamp is too far ahead of the clock to get past it: the event goes into history as it is.
    ///
    /// # Panics
    /// If no stamp was asked for.
    pub fn handle_skewed(&mut self) {
        assert!(self.stamping);
        assert!(0 < self.attempt);
        self.stamping = false;
        self.superseded = true;
        self.mode = Mode::Copy;
        self.dispatch();
        self.invariants();
    }

    /// No stamp can be given. Before the first one nothing was sent, so `refusal` is the answer; later the event stays as it is.
    ///
    /// # Panics
    /// If no stamp was asked for.
    pub fn handle_no_stamp(&mut self, refusal: Refusal) {
        assert!(self.stamping);
        if 0 < self.attempt {
            return self.handle_skewed();
        }
        self.stamping = false;
        self.replicas.clear();
        self.answer(Err(refusal));
        self.invariants();
    }

    /// What `from` made of the dispatch `attempt`. Strangers, repeats and earlier attempts change nothing.
    pub fn handle_outcome(&mut self, from: NodeId, attempt: u32, outcome: WriteOutcome) {
        if attempt != self.attempt || self.stamping {
            return;
        }
        let Some(at) = self.replicas.iter().position(|replica| replica.node == from) else {
            return;
        };
        match (outcome, self.replicas[at].state) {
            (_, State::Acked) => return,
            (WriteOutcome::Applied | WriteOutcome::Duplicate, _) => {
                self.replicas[at].state = State::Acked;
            }
            (WriteOutcome::Superseded(newest), State::Asked { copy: false }) => {
                self.handle_superseded(at, newest.0);
            }
            // A copy is never superseded: the replica does not follow the protocol.
            (WriteOutcome::Superseded(_), State::Asked { copy: true }) => {
                self.replicas[at].state = State::Refused(WriteOutcome::Invalid);
            }
            (refusal, State::Asked { .. }) => self.replicas[at].state = State::Refused(refusal),
            (_, State::Refused(_) | State::Lost | State::Hinted | State::Unhinted) => return,
        }
        self.decide();
        self.invariants();
    }

    /// A hint that the answer waits for is on disk, or could not be kept.
    pub fn handle_hinted(&mut self, to: NodeId, kept: bool) {
        let hinted = |replica: &&mut Replica| replica.node == to && replica.state == State::Hinted;
        let Some(replica) = self.replicas.iter_mut().find(hinted) else { return };
        if !kept {
            replica.state = State::Unhinted;
        } else if !self.answered && !self.stamping && self.needed == Needed::Any {
            self.answer_ok();
        }
        self.decide();
        self.invariants();
    }

    /// The connection to `node` is gone, or it was found dead.
    pub fn handle_unreachable(&mut self, node: NodeId) {
        for replica in self.replicas.iter_mut().filter(|replica| replica.node == node) {
            replica.reachable = false;
            if matches!(replica.state, State::Asked { .. }) {
                replica.state = State::Lost;
            }
        }
        self.decide();
        self.invariants();
    }

    /// There is a connection to `node`, in place of a broken one maybe: what was on its way there may be lost. Applying an
    /// event twice is a no-op.
    pub fn handle_reachable(&mut self, node: NodeId) {
        for at in 0..self.replicas.len() {
            if self.replicas[at].node != node {
                continue;
            }
            self.replicas[at].reachable = true;
            let is_open = matches!(self.replicas[at].state, State::Asked { .. } | State::Lost);
            if is_open && !self.answered && !self.stamping && self.resends < RESENDS_MAX {
                self.resends += 1;
                self.send(at, self.mode);
            }
        }
        self.invariants();
    }

    /// Time has passed. Early calls change nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_none_or(|timeout| now < timeout) {
            return;
        }
        if self.attempt == 0 {
            self.handle_no_stamp(Refusal::NoStamp);
        } else if self.answered || now >= self.deadline {
            self.stamping = false;
            self.hint_rest();
            if !self.answered {
                self.answer(Err(Refusal::Timeout { acks: self.acks(), needed: self.count() }));
            }
        } else {
            assert_eq!(self.needed, Needed::Any);
            self.hint_rest();
        }
        self.invariants();
    }

    /// Hints all that is outstanding now: the driver keeps too many answered writes.
    pub fn hurry(&mut self) {
        if self.answered {
            self.hint_rest();
        }
        self.invariants();
    }

    /// When `handle_timeout` is next wanted; `None` once it is done.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.is_done() {
            return None;
        }
        let outstanding = self.replicas.iter().any(|replica| !replica.is_settled());
        let hint = self.answered || (self.needed == Needed::Any && outstanding && !self.stamping);
        Some(if hint { self.hint_at } else { self.deadline })
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<PutOutput> {
        self.outputs.pop_front()
    }

    fn ask_for_stamp(&mut self, above: Option<Stamp>) {
        self.stamping = true;
        self.outputs.push_back(PutOutput::Stamp { above });
    }

    /// Sends the event to all that are reachable and hints the others.
    fn dispatch(&mut self) {
        self.attempt += 1;
        for at in 0..self.replicas.len() {
            if self.replicas[at].reachable {
                self.send(at, self.mode);
            } else {
                self.hint(at);
            }
        }
    }

    fn send(&mut self, at: usize, mode: Mode) {
        let replica = &mut self.replicas[at];
        replica.state = State::Asked { copy: mode == Mode::Copy };
        let (to, event, attempt) = (replica.node, self.event.clone(), self.attempt);
        self.outputs.push_back(PutOutput::Send { to, event, mode, attempt });
    }

    fn hint(&mut self, at: usize) {
        self.replicas[at].state = State::Hinted;
        let wait = self.needed == Needed::Any && !self.answered;
        let (to, event) = (self.replicas[at].node, self.event.clone());
        self.outputs.push_back(PutOutput::Hint { to, event, wait });
    }

    fn hint_rest(&mut self) {
        for at in 0..self.replicas.len() {
            if !self.replicas[at].is_settled() {
                self.hint(at);
            }
        }
    }

    /// The replica has a newer event of the key: get past it, unless it is too late or too often for that.
    fn handle_superseded(&mut self, at: usize, newest: Stamp) {
        let hide = mutation::is(Mutation::HideSuperseded);
        if !self.answered && !self.superseded && self.restamps < RESTAMPS_MAX && !hide {
            self.restamps += 1;
            self.ask_for_stamp(Some(newest));
            return;
        }
        // After an `Ok` it is history at this replica and no news; before, the answer says so.
        self.superseded |= !self.answered && !mutation::is(Mutation::HideSuperseded);
        self.send(at, Mode::Copy);
    }

    /// Answers if it can be known, and hints those that are known not to have it.
    fn decide(&mut self) {
        if self.stamping || self.attempt == 0 {
            return;
        }
        let acks = self.acks();
        let open = self.replicas.iter().filter(|replica| replica.is_open()).count();
        if !self.answered {
            match self.needed {
                Needed::Replicas(needed) if needed <= acks => self.answer_ok(),
                Needed::Replicas(_) if 0 < acks && mutation::is(Mutation::AckBeforeQuorum) => {
                    self.answer_ok();
                }
                Needed::Replicas(needed) if acks + open < needed => self.answer_impossible(needed),
                Needed::Any if 0 < acks => self.answer_ok(),
                Needed::Any if self.replicas.iter().all(|it| it.state == State::Unhinted) => {
                    let outcome = WriteOutcome::Full;
                    self.answer(Err(Refusal::Failed { acks: 0, needed: 1, outcome }));
                }
                Needed::Replicas(_) | Needed::Any => {}
            }
        }
        if self.answered || self.needed == Needed::Any {
            for at in 0..self.replicas.len() {
                if matches!(self.replicas[at].state, State::Refused(_) | State::Lost) {
                    self.hint(at);
                }
            }
        }
    }

    /// The level cannot be met any more. If all refused cleanly nothing happened, and nothing shall.
    fn answer_impossible(&mut self, needed: usize) {
        let clean = |replica: &Replica| match replica.state {
            State::Refused(outcome) if outcome != WriteOutcome::Poisoned => Some(outcome),
            _ => None,
        };
        let refusals: Vec<_> = self.replicas.iter().filter_map(clean).collect();
        // Events of earlier stamps may be with some replicas; and so may this one, if an earlier request made it or if a
        // replica was asked twice.
        let is_first = self.attempt == 1 && self.resends == 0 && self.mode == Mode::Direct;
        if refusals.len() == self.replicas.len() && is_first {
            self.replicas.clear();
            self.answer(Err(Refusal::Refused { outcome: refusals[0] }));
            return;
        }
        let outcome = self.replicas.iter().find_map(|replica| match replica.state {
            State::Refused(outcome) => Some(outcome),
            _ => None,
        });
        let acks = self.acks();
        self.answer(Err(match outcome {
            Some(outcome) => Refusal::Failed { acks, needed, outcome },
            None => Refusal::Lost { acks, needed },
        }));
    }

    fn answer_ok(&mut self) {
        let acks = u8::try_from(self.acks()).expect("a key has at most 16 home replicas");
        let written = Written { stamp: self.event.stamp, superseded: self.superseded, acks };
        self.answer(Ok(written));
    }

    fn answer(&mut self, result: Result<Written, Refusal>) {
        assert!(!self.answered);
        self.answered = true;
        self.outputs.push_back(PutOutput::Answer(result));
    }

    fn acks(&self) -> usize {
        self.replicas.iter().filter(|replica| replica.state == State::Acked).count()
    }

    fn count(&self) -> usize {
        match self.needed {
            Needed::Replicas(needed) => needed,
            Needed::Any => 1,
        }
    }

    fn invariants(&self) {
        assert!(self.restamps <= RESTAMPS_MAX);
        assert!(self.resends <= RESENDS_MAX);
        assert!(!(self.stamping && self.answered), "no re-stamp after the answer");
        if let (false, false, Needed::Replicas(needed)) =
            (self.answered, self.stamping, self.needed)
        {
            assert!(self.acks() < needed, "an answer that can be given is given");
        }
    }
}

impl Replica {
    fn is_settled(&self) -> bool {
        matches!(self.state, State::Acked | State::Hinted | State::Unhinted)
    }

    fn is_open(&self) -> bool {
        matches!(self.state, State::Asked { .. })
    }
}

#[cfg(test)]
mod tests;
