//! What peers ask of this node's replica, and their answers to us.
//!
//! Invariants:
//!
//! - Nothing of a peer is believed: every event is decoded to its last byte, lies in its key's partition, and this node must be its home.
//! - Each bad event of a message is refused by itself; the others are applied.
//! - A direct write moves the clock, or is refused; copies never move it.
//! - At most as many requests of one peer are served at a time as [`crate::limits::Limits`] says.

use starling_client::codec::Blob;
use starling_clock::NodeId;
use starling_ring::Partition;
use starling_storage::{Event, Mode, Provenance};

use super::driver::{Reply, Work};
use super::flights::{About, Questions};
use super::peer::{PeerMessage, ReadAnswer, ReadQuery, WriteOutcome};
use super::replica::{self, ReplicaAnswer};
use super::storage::StorageRequest;
use super::{Core, Instant, Output, Phase};
use crate::limits::PEER_EVENTS_MAX;

/// A peer's write, on its way through this node's storage.
#[derive(Debug)]
pub(super) struct ServedWrite {
    from: NodeId,
    op: u64,
    /// For storage; taken when it is asked.
    request: Option<StorageRequest>,
    /// One an event; `None`: storage decides.
    outcomes: Vec<Option<WriteOutcome>>,
    done: bool,
}

/// A peer's read, on its way through this node's storage.
#[derive(Debug)]
pub(super) struct ServedRead {
    from: NodeId,
    op: u64,
    request: Option<StorageRequest>,
    answer: Option<ReadAnswer>,
}

/// How the events of a message are to be taken.
#[derive(Clone, Copy, Debug)]
struct Manner {
    direct: bool,
    provenance: u8,
    sync: bool,
}

impl ServedWrite {
    /// What storage made of the events that it was given: one outcome each, or one for all.
    pub(super) fn handle_outcomes(&mut self, outcomes: &[WriteOutcome]) {
        let open = self.outcomes.iter_mut().filter(|outcome| outcome.is_none());
        let last = outcomes.last().copied().unwrap_or(WriteOutcome::Invalid);
        let given = outcomes.iter().copied().chain(std::iter::repeat(last));
        for (slot, outcome) in open.zip(given) {
            *slot = Some(outcome);
        }
        self.done = true;
    }
}

impl ServedRead {
    pub(super) fn handle_answer(&mut self, answer: ReplicaAnswer) {
        self.answer = Some(answer.into_wire());
    }
}

impl Core {
    pub(super) fn handle_peer(&mut self, from: NodeId, message: PeerMessage) {
        match message {
            PeerMessage::Write { op, epoch, direct, provenance, sync, events } => {
                let manner = Manner { direct, provenance, sync };
                self.handle_peer_write(from, op, epoch, manner, &events);
            }
            PeerMessage::Read { op, epoch, query } => {
                self.handle_peer_read(from, op, epoch, &query);
            }
            PeerMessage::Register { op, name, stamp, value } => {
                if self.cluster.is_member(from) {
                    self.handle_register(from, op, &name, stamp.0, &value);
                }
            }
            PeerMessage::Written { op, outcomes } => {
                self.handle_answer(from, op, Reply::Outcomes(outcomes.0));
            }
            PeerMessage::ReadDone { op, answer } => {
                let answer = ReplicaAnswer::from_wire(answer, |key| self.cluster.partition_of(key));
                self.handle_answer(from, op, Reply::Read(answer));
            }
            PeerMessage::Registered { op } => self.handle_answer(from, op, Reply::Registered),
        }
    }

    fn handle_peer_write(
        &mut self,
        from: NodeId,
        op: u64,
        epoch: u64,
        manner: Manner,
        events: &[Blob],
    ) {
        let all = |outcome| vec![outcome; events.len().min(PEER_EVENTS_MAX)];
        let provenance = Provenance::from_u8(manner.provenance);
        let refused = if epoch != self.cluster.epoch().number() || !self.cluster.is_member(from) {
            Some(WriteOutcome::NotHome)
        } else if events.is_empty() || events.len() > PEER_EVENTS_MAX || provenance.is_none() {
            self.counters.malformed += 1;
            Some(WriteOutcome::Invalid)
        } else if self.poisoned {
            Some(WriteOutcome::Poisoned)
        } else if !self.serves_peers() || !self.serve(from) {
            Some(WriteOutcome::Overloaded)
        } else {
            None
        };
        if let Some(outcome) = refused {
            let message = PeerMessage::Written { op, outcomes: all(outcome).into() };
            self.outputs.push_back(Output::Peer { to: from, message });
            return;
        }
        let mut taken = Vec::with_capacity(events.len());
        let mut outcomes = Vec::with_capacity(events.len());
        for bytes in events {
            match self.check_event(bytes, manner.direct) {
                Ok(event) => {
                    taken.push(event);
                    outcomes.push(None);
                }
                Err(outcome) => outcomes.push(Some(outcome)),
            }
        }
        let request = (!taken.is_empty()).then(|| StorageRequest::Apply {
            events: taken,
            provenance: provenance.unwrap_or(Provenance::Write),
            mode: if manner.direct { Mode::Direct } else { Mode::Copy },
            sync: manner.sync,
        });
        let done = request.is_none();
        let id = self.flights.next_id();
        self.launch(id, Work::ServedWrite(ServedWrite { from, op, request, outcomes, done }));
    }

    /// One event of a peer, if it may be applied here.
    fn check_event(&mut self, bytes: &Blob, direct: bool) -> Result<Event, WriteOutcome> {
        let decoded = replica::decode_event(bytes, |key| self.cluster.partition_of(key));
        let Some(event) = decoded else {
            self.counters.malformed += 1;
            return Err(WriteOutcome::Invalid);
        };
        if event.payload.len() > self.limits.payload_size_max {
            return Err(WriteOutcome::Invalid);
        }
        // How many homes a keyspace has that we have not heard of yet, the sender knows.
        if let Some(keyspace) = self.keyspaces.get_id(event.keyspace) {
            let n = keyspace.settings.replication;
            let own = self.node();
            if !self.cluster.table(n).is_home(own, Partition(event.partition)) {
                return Err(WriteOutcome::NotHome);
            }
        }
        if direct && self.clock.observe(event.stamp.time, self.now.wall_ms).is_err() {
            return Err(WriteOutcome::Skewed);
        }
        Ok(event)
    }

    pub(super) fn drive_served_write(
        &mut self,
        id: u64,
        served: &mut ServedWrite,
        questions: &mut Questions,
    ) -> (bool, Option<Instant>) {
        if let Some(request) = served.request.take() {
            self.ask_storage(id, questions, About::Write(0), request);
        }
        if served.done {
            let outcomes = std::mem::take(&mut served.outcomes).into_iter();
            let outcomes = outcomes.map(|outcome| outcome.unwrap_or(WriteOutcome::Invalid));
            let message = PeerMessage::Written { op: served.op, outcomes: outcomes.collect() };
            self.outputs.push_back(Output::Peer { to: served.from, message });
            self.served(served.from);
        }
        (served.done, None)
    }

    fn handle_peer_read(&mut self, from: NodeId, op: u64, epoch: u64, query: &ReadQuery) {
        let refused = if epoch != self.cluster.epoch().number() || !self.cluster.is_member(from) {
            Some(ReadAnswer::NotHome)
        } else if !self.is_within_bounds(query) {
            self.counters.malformed += 1;
            Some(ReadAnswer::Invalid)
        } else if !self.serves_peers() || !self.serve(from) {
            Some(ReadAnswer::Overloaded)
        } else {
            None
        };
        if let Some(answer) = refused {
            let message = PeerMessage::ReadDone { op, answer };
            self.outputs.push_back(Output::Peer { to: from, message });
            return;
        }
        let request = replica::storage_request(query, |key| self.cluster.partition_of(key));
        let answer = request.is_none().then(|| ServedRead::OUT_OF_BOUNDS.into_wire());
        let id = self.flights.next_id();
        self.launch(id, Work::ServedRead(ServedRead { from, op, request, answer }));
    }

    /// The partitions that a query names exist.
    fn is_within_bounds(&self, query: &ReadQuery) -> bool {
        let partitions = self.cluster.epoch().partitions().count();
        match query {
            ReadQuery::Get { .. } | ReadQuery::Versions { .. } => true,
            ReadQuery::Scan { last, .. } | ReadQuery::Digests { last, .. } => *last < partitions,
            ReadQuery::PartitionEvents { partition, .. }
            | ReadQuery::KeyspaceDigests { partition, .. } => *partition < partitions,
        }
    }

    pub(super) fn drive_served_read(
        &mut self,
        id: u64,
        served: &mut ServedRead,
        questions: &mut Questions,
    ) -> (bool, Option<Instant>) {
        if let Some(request) = served.request.take() {
            self.ask_storage(id, questions, About::Read(0), request);
        }
        let Some(answer) = served.answer.take() else { return (false, None) };
        let message = PeerMessage::ReadDone { op: served.op, answer };
        self.outputs.push_back(Output::Peer { to: served.from, message });
        self.served(served.from);
        (true, None)
    }

    /// While it stops, a node still serves its peers: what they do ends sooner.
    fn serves_peers(&self) -> bool {
        self.phase != Phase::Stopped
    }

    /// Counts one more request of `from` that is served, unless there are too many.
    pub(super) fn serve(&mut self, from: NodeId) -> bool {
        let limit = self.limits.served_per_peer_max;
        let count = self.served.get(&from).copied().unwrap_or(0);
        if count < limit {
            self.served.insert(from, count + 1);
        }
        count < limit
    }

    /// One request of `from` was answered.
    pub(super) fn served(&mut self, from: NodeId) {
        if let Some(count) = self.served.get_mut(&from) {
            *count -= 1;
            if *count == 0 {
                self.served.remove(&from);
            }
        }
    }
}
