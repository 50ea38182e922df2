//! Carries questions and answers between the machines, this node's storage and the peers.
//!
//! Invariants:
//!
//! - A question to this node goes to its storage, one to another node to its peer stream: a machine cannot tell.
//! - A flight is taken out while it is driven, then kept or ended; nothing else changes it meanwhile.

use std::collections::BTreeSet;

use starling_clock::{HybridTime, NodeId};
use starling_storage::{Event, Mode, Outcome, Provenance};

use super::anti_entropy::AntiEntropy;
use super::error::Refusal;
use super::flights::{About, Flight, Flights, Questions};
use super::hints::{Replay, ReplayOutput};
use super::membership;
use super::peer::{PeerMessage, ReadQuery, WriteOutcome};
use super::peers::{ServedRead, ServedWrite};
use super::reads::ReadWork;
use super::registers::{Adopt, CreateWork, NewKeyspace};
use super::replica::{self, Declined, ReplicaAnswer};
use super::requests::Client;
use super::storage::{StorageAnswer, StorageFailure, StorageRequest};
use super::subscriptions::SubscriptionWork;
use super::writes::PutWork;
use super::{Core, Output, Phase, Ticket};

/// The ticket of storage requests whose answer nobody waits for.
pub(super) const TICKET_NOBODY: Ticket = Ticket(0);

/// What is in flight.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "flights are boxed, and the large are the frequent")]
pub(super) enum Work {
    Put(PutWork),
    Read(ReadWork),
    NewKeyspace(NewKeyspace),
    Create(CreateWork),
    Replay(Replay),
    ServedWrite(ServedWrite),
    ServedRead(ServedRead),
    Adopt(Adopt),
    Bound(HybridTime),
    Status(Client),
    Subscription(SubscriptionWork),
    AntiEntropy(AntiEntropy),
}

/// What came back to a question.
#[derive(Debug)]
pub(super) enum Reply {
    Outcomes(Vec<WriteOutcome>),
    Read(ReplicaAnswer),
    Registered,
    Storage(StorageAnswer),
}

impl Core {
    /// Starts a flight and drives it.
    pub(super) fn launch(&mut self, id: u64, work: Work) {
        self.drive(id, Flights::start(work));
    }

    pub(super) fn handle_storage(&mut self, ticket: Ticket, answer: StorageAnswer) {
        if matches!(answer, StorageAnswer::Failed(StorageFailure::Poisoned)) {
            self.poisoned = true;
        }
        if ticket == TICKET_NOBODY {
            if matches!(answer, StorageAnswer::Failed(_)) {
                self.counters.hints_lost += 1;
            }
            return;
        }
        let own = self.node();
        // A flight that is over has no use for the answer.
        let Some((id, flight, about)) = self.flights.take_asker(ticket.0, own) else { return };
        let reply = match about {
            About::Write(_) => Reply::Outcomes(match answer {
                StorageAnswer::Applied(outcomes) => outcomes.into_iter().map(outcome).collect(),
                StorageAnswer::Failed(failure) => vec![failed_outcome(failure)],
                _ => vec![WriteOutcome::Invalid],
            }),
            About::Read(_) => Reply::Read(answer.into()),
            About::Register | About::Hint(_) | About::Local => Reply::Storage(answer),
        };
        self.deliver(id, flight, own, about, reply);
    }

    /// The answer of a peer to the question `op`.
    pub(super) fn handle_answer(&mut self, from: NodeId, op: u64, reply: Reply) {
        if from == self.node() {
            return;
        }
        let Some((id, flight, about)) = self.flights.take_asker(op, from) else { return };
        self.deliver(id, flight, from, about, reply);
    }

    fn deliver(
        &mut self,
        id: u64,
        flight: Box<Flight<Work>>,
        from: NodeId,
        about: About,
        reply: Reply,
    ) {
        let mut flight = flight;
        let now = self.now.mono;
        match (&mut flight.work, about, reply) {
            (Work::Put(work), About::Write(attempt), Reply::Outcomes(outcomes)) => {
                let outcome = outcomes.first().copied().unwrap_or(WriteOutcome::Invalid);
                work.put.handle_outcome(from, attempt, outcome);
            }
            (Work::Put(work), About::Hint(target), Reply::Storage(answer)) => {
                work.put.handle_hinted(target, matches!(answer, StorageAnswer::Done));
            }
            (Work::Read(work), About::Read(ask), Reply::Read(answer)) => {
                work.reader.handle_answer(ask, answer);
            }
            (Work::Read(work), About::Write(ask), Reply::Outcomes(outcomes)) => {
                work.reader.handle_repaired(ask, is_taken(&outcomes));
            }
            (Work::Replay(replay), About::Write(batch), Reply::Outcomes(outcomes)) => {
                replay.handle_outcomes(now, batch, &outcomes);
            }
            (Work::Replay(replay), About::Local, Reply::Storage(answer)) => match answer {
                StorageAnswer::Hints { hints, up_to } => replay.handle_batch(now, hints, up_to),
                _ => replay.handle_unreadable(),
            },
            (Work::Create(work), About::Register, Reply::Registered) => {
                work.create.handle_registered(from);
            }
            (Work::Create(work), About::Register, Reply::Storage(answer)) => match answer {
                StorageAnswer::Done => work.create.handle_registered(from),
                _ => work.create.handle_unreachable(from),
            },
            (Work::ServedWrite(served), About::Write(_), Reply::Outcomes(outcomes)) => {
                served.handle_outcomes(&outcomes);
            }
            (Work::ServedRead(served), About::Read(_), Reply::Read(answer)) => {
                served.handle_answer(answer);
            }
            (Work::Adopt(adopt), About::Local, Reply::Storage(answer)) => {
                adopt.handle_done(matches!(answer, StorageAnswer::Done));
            }
            (Work::Bound(bound), About::Local, Reply::Storage(answer)) => {
                let bound = *bound;
                self.flights.end(id);
                self.handle_bound(bound, &answer);
                return;
            }
            (Work::Subscription(work), About::Local, Reply::Storage(answer)) => {
                self.read_changes(&mut work.machine, answer);
            }
            (Work::AntiEntropy(machine), about, reply) => {
                self.compare(machine, Some((about, reply)));
            }
            (Work::Status(client), About::Local, Reply::Storage(answer)) => {
                let client = *client;
                self.flights.end(id);
                self.answer_status(client, answer);
                return;
            }
            // A peer answered a read with a write, or the like.
            _ => self.counters.malformed += 1,
        }
        self.drive(id, flight);
    }

    /// A flight's time has come.
    pub(super) fn wake(&mut self, id: u64) {
        let now = self.now.mono;
        let Some(mut flight) = self.flights.take(id) else { return };
        match &mut flight.work {
            Work::Put(work) => work.put.handle_timeout(now),
            Work::Read(work) => work.reader.handle_timeout(now),
            Work::NewKeyspace(new) => {
                let new = new.clone();
                self.flights.end(id);
                self.waiting_for_bound.remove(&id);
                self.continue_keyspace(new, Some(Refusal::NoStamp));
                return;
            }
            Work::Create(work) => work.create.handle_timeout(now),
            Work::Replay(replay) => replay.handle_timeout(now),
            Work::AntiEntropy(machine) => self.compare(machine, None),
            Work::ServedWrite(_)
            | Work::ServedRead(_)
            | Work::Adopt(_)
            | Work::Bound(_)
            | Work::Subscription(_)
            | Work::Status(_) => unreachable!("they wait for storage alone, which always answers"),
        }
        self.drive(id, flight);
    }

    /// `node` does not answer any more: tells all that may wait for it. Linear, and rare.
    pub(super) fn lose(&mut self, node: NodeId) {
        let ids: Vec<u64> = self.flights.iter().map(|(id, _)| id).collect();
        for id in ids {
            let Some(mut flight) = self.flights.take(id) else { continue };
            match &mut flight.work {
                Work::Put(work) => work.put.handle_unreachable(node),
                Work::Read(work) => work.reader.handle_unreachable(node),
                Work::Create(work) => work.create.handle_unreachable(node),
                Work::Replay(replay) if replay.target() == node => {
                    self.replays.remove(&node);
                    self.hinted.insert(node);
                    self.flights.end(id);
                    continue;
                }
                Work::Replay(_)
                | Work::ServedWrite(_)
                | Work::ServedRead(_)
                | Work::NewKeyspace(_)
                | Work::Adopt(_)
                | Work::Bound(_)
                | Work::Subscription(_)
                | Work::AntiEntropy(_)
                | Work::Status(_) => {}
            }
            self.drive(id, flight);
        }
    }

    /// There is another connection to `node`: writes that wait for it are sent again. Reads ask somebody else meanwhile.
    fn ask_again(&mut self, node: NodeId) {
        if !self.membership.is_reachable(node) {
            return;
        }
        let puts = self.flights.iter().filter(|(_, work)| matches!(work, Work::Put(_)));
        let ids: Vec<u64> = puts.map(|(id, _)| id).collect();
        for id in ids {
            let Some(mut flight) = self.flights.take(id) else { continue };
            if let Work::Put(work) = &mut flight.work {
                work.put.handle_reachable(node);
            }
            self.drive(id, flight);
        }
    }

    /// Does what a machine wants, then keeps its flight or ends it.
    pub(super) fn drive(&mut self, id: u64, mut flight: Box<Flight<Work>>) {
        let Flight { work, questions, .. } = &mut *flight;
        let (done, timer) = match work {
            Work::Put(work) => self.drive_put(id, work, questions),
            Work::Read(work) => self.drive_read(id, work, questions),
            Work::NewKeyspace(new) => (false, Some(new.deadline)),
            Work::Create(work) => self.drive_create(id, work, questions),
            Work::Replay(replay) => self.drive_replay(id, replay, questions),
            Work::ServedWrite(served) => self.drive_served_write(id, served, questions),
            Work::ServedRead(served) => self.drive_served_read(id, served, questions),
            Work::Adopt(adopt) => self.drive_adopt(id, adopt, questions),
            Work::Bound(bound) => self.drive_bound(id, *bound, questions),
            Work::Subscription(work) => self.drive_subscription(id, work, questions),
            Work::AntiEntropy(machine) => self.drive_anti_entropy(id, machine, questions),
            Work::Status(_) => {
                self.ask_storage(id, questions, About::Local, StorageRequest::Status);
                (false, None)
            }
        };
        if done {
            self.flights.end(id);
        } else {
            self.flights.keep(id, flight, timer);
        }
    }

    /// Asks this node's storage.
    pub(super) fn ask_storage(
        &mut self,
        id: u64,
        questions: &mut Questions,
        about: About,
        request: StorageRequest,
    ) {
        let ticket = Ticket(questions.open(id, self.node(), about));
        self.outputs.push_back(Output::Storage { ticket, request });
    }

    /// Asks a replica to read.
    pub(super) fn ask_read(
        &mut self,
        id: u64,
        questions: &mut Questions,
        to: NodeId,
        ask: u32,
        query: ReadQuery,
    ) {
        if to == self.node() {
            let request = replica::storage_request(&query, |key| self.cluster.partition_of(key));
            // Requests are checked before a machine is made of them.
            let request = request.expect("own questions are within bounds");
            self.ask_storage(id, questions, About::Read(ask), request);
            return;
        }
        let op = questions.open(id, to, About::Read(ask));
        let epoch = self.cluster.epoch().number();
        let message = PeerMessage::Read { op, epoch, query };
        self.outputs.push_back(Output::Peer { to, message });
    }

    /// Hands copies of events to a replica, to be on its disk before it answers.
    pub(super) fn ask_copy(
        &mut self,
        id: u64,
        questions: &mut Questions,
        to: NodeId,
        number: u32,
        events: Vec<Event>,
        provenance: Provenance,
    ) {
        let about = About::Write(number);
        if to == self.node() {
            let mode = Mode::Copy;
            let request = StorageRequest::Apply { events, provenance, mode, sync: true };
            self.ask_storage(id, questions, about, request);
            return;
        }
        let events = replica::encode_events(&events);
        let op = questions.open(id, to, about);
        let epoch = self.cluster.epoch().number();
        let provenance = provenance as u8;
        let message =
            PeerMessage::Write { op, epoch, direct: false, provenance, sync: true, events };
        self.outputs.push_back(Output::Peer { to, message });
    }

    fn drive_replay(
        &mut self,
        id: u64,
        replay: &mut Replay,
        questions: &mut Questions,
    ) -> (bool, Option<super::Instant>) {
        let target = replay.target();
        while let Some(output) = replay.poll_output() {
            match output {
                ReplayOutput::Read { after } => {
                    let bytes_max = crate::limits::HINT_BATCH_BYTES_MAX;
                    let request = StorageRequest::Hints { target, after, bytes_max };
                    self.ask_storage(id, questions, About::Local, request);
                }
                ReplayOutput::Send { batch, events } => {
                    questions.forget_writes();
                    self.ask_copy(id, questions, target, batch, events, Provenance::Hint);
                }
                ReplayOutput::Delivered { up_to, events } => {
                    self.counters.hints_delivered += events;
                    let request = StorageRequest::HintsDelivered { target, up_to };
                    self.outputs.push_back(Output::Storage { ticket: TICKET_NOBODY, request });
                }
            }
        }
        if replay.is_done() {
            self.replays.remove(&target);
        }
        (replay.is_done(), replay.poll_timeout())
    }

    /// Begins to deliver hints to all that are there and may have some.
    pub(super) fn start_replays(&mut self) {
        if self.phase != Phase::Serving || self.hinted.is_empty() {
            return;
        }
        let Self { hinted, membership, replays, .. } = self;
        let ready = |node: &&NodeId| membership.is_reachable(**node) && !replays.contains_key(node);
        let targets: BTreeSet<NodeId> = hinted.iter().filter(ready).copied().collect();
        for target in targets {
            self.hinted.remove(&target);
            let id = self.flights.next_id();
            self.replays.insert(target, id);
            let replay =
                Replay::new(target, self.limits.hint_batch_timeout_ms, self.limits.retry_ms);
            self.launch(id, Work::Replay(replay));
        }
    }

    pub(super) fn handle_peer_connected(&mut self, peer: NodeId) {
        self.membership.handle_connected(self.now.mono, peer);
        if self.cluster.is_member(peer) {
            self.ask_again(peer);
            // Hints may have come while the last delivery was on its way.
            self.hinted.insert(peer);
            self.tell_comparing(peer);
        }
    }

    pub(super) fn handle_peer_disconnected(&mut self, peer: NodeId) {
        self.membership.handle_disconnected(self.now.mono, peer);
        self.lose(peer);
        self.tell_comparing(peer);
    }

    pub(super) fn handle_gossip(&mut self, from: NodeId, bytes: &[u8]) {
        let now = membership::gossip_now(self.now.mono);
        if self.membership.gossip.handle_datagram(now, from, bytes).is_err() {
            self.counters.malformed += 1;
        }
    }

    pub(super) fn handle_push_pull(&mut self, from: NodeId, exchange: u64, bytes: &[u8]) {
        let now = membership::gossip_now(self.now.mono);
        match self.membership.gossip.handle_push_pull(now, from, bytes) {
            Ok(answer) => {
                self.outputs.push_back(Output::PushPullAnswer { exchange, bytes: answer.into() });
            }
            // The exchange ends without an answer; io's stream times out.
            Err(_) => self.counters.malformed += 1,
        }
    }

    pub(super) fn handle_push_pull_answer(&mut self, from: NodeId, bytes: &[u8]) {
        let now = membership::gossip_now(self.now.mono);
        if self.membership.gossip.handle_push_pull_answer(now, from, bytes).is_err() {
            self.counters.malformed += 1;
        }
    }

    /// Does what gossip wants.
    pub(super) fn drain_gossip(&mut self) {
        while let Some(output) = self.membership.gossip.poll_output() {
            match output {
                starling_gossip::Output::Datagram { to, bytes } => {
                    self.outputs.push_back(Output::Gossip { to, bytes: bytes.into() });
                }
                starling_gossip::Output::PushPull { to, bytes } => {
                    self.outputs.push_back(Output::PushPull { to, bytes: bytes.into() });
                }
                starling_gossip::Output::MemberChanged { node, to, .. } => {
                    if to.is_up() {
                        if self.cluster.is_member(node) {
                            self.hinted.insert(node);
                        }
                    } else {
                        self.lose(node);
                    }
                    self.tell_comparing(node);
                }
                starling_gossip::Output::StateChanged { .. } => {}
                starling_gossip::Output::RegisterChanged { name } => self.adopt_register(&name),
            }
        }
    }
}

/// All events of a message were taken.
pub(super) fn is_taken(outcomes: &[WriteOutcome]) -> bool {
    let taken =
        |outcome: &WriteOutcome| matches!(outcome, WriteOutcome::Applied | WriteOutcome::Duplicate);
    !outcomes.is_empty() && outcomes.iter().all(taken)
}

/// What storage made of one event, as replicas tell each other.
fn outcome(outcome: Outcome) -> WriteOutcome {
    match outcome {
        Outcome::Applied { .. } => WriteOutcome::Applied,
        // Settled long ago: there is nothing to be done about it.
        Outcome::Duplicate | Outcome::BelowFloor { .. } => WriteOutcome::Duplicate,
        Outcome::Superseded { newest } => WriteOutcome::Superseded(newest.into()),
        // Not to an event.
        Outcome::Hinted { .. } | Outcome::Done => WriteOutcome::Invalid,
    }
}

/// Why storage did not take any of the events, as replicas tell each other.
fn failed_outcome(failure: StorageFailure) -> WriteOutcome {
    match failure {
        StorageFailure::Full => WriteOutcome::Full,
        StorageFailure::Poisoned => WriteOutcome::Poisoned,
        StorageFailure::Invalid => WriteOutcome::Invalid,
        // Whether the event is there already could not be read: nothing was written, it may work another time.
        StorageFailure::Damaged | StorageFailure::Busy => WriteOutcome::Overloaded,
    }
}

impl ServedRead {
    /// What is said of a question that is not put to storage.
    pub(super) const OUT_OF_BOUNDS: ReplicaAnswer = ReplicaAnswer::Declined(Declined::Malformed);
}
