//! Clients' writes: checked, joined with their repetitions, given a stamp, driven to their end.
//!
//! Invariants:
//!
//! - Nothing is dispatched before all checks passed.
//! - A write that waits for a stamp is in `waiting_for_bound`, and gets one, or an answer, as soon as the bound is on disk or cannot be.
//! - A repetition that finds the event of an earlier attempt writes that event, and no other.

use bytes::Bytes;
use starling_client::codec::Blob;
use starling_client::wire::{self, Durability, Header, Level, RequestId, Response};
use starling_clock::mutation::{self, Mutation};
use starling_clock::{HybridTime, Stamp};
use starling_storage::{Action, Event, Mode, Provenance};

use super::driver::{TICKET_NOBODY, Work};
use super::error::Refusal;
use super::flights::{About, Questions};
use super::keyspaces::Keyspace;
use super::peer::PeerMessage;
use super::put::{Needed, Put, PutOutput, PutPlan, Start, Written};
use super::read::{Question, Read, ReadFailure, ReadPlan, ReadValue};
use super::reads::{ReadWork, Reader, Sink};
use super::remembered::{Repeated, Subject};
use super::replica;
use super::requests::Client;
use super::settings;
use super::storage::{StorageAnswer, StorageFailure, StorageRequest};
use super::{Core, Instant, META_CLOCK_BOUND, Output, Phase};
use crate::limits::RETRY_VERSIONS_MAX;

/// A write in flight.
#[derive(Debug)]
pub(super) struct PutWork {
    pub(super) put: Put,
    job: WriteJob,
    /// The event as it goes to peers, of this dispatch.
    encoded: Option<(u32, Blob)>,
}

/// Whom a write is for, and what goes with it.
#[derive(Clone, Copy, Debug)]
pub(super) struct WriteJob {
    client: Client,
    request: RequestId,
    token: u64,
    sync: bool,
    /// Bytes that the write keeps in memory.
    size: usize,
}

/// A write that first looks for the event of an earlier attempt.
#[derive(Debug)]
pub(super) struct Retry {
    job: WriteJob,
    plan: PutPlan,
}

/// A client's write, as it came.
pub(super) struct WriteRequest {
    pub(super) keyspace: String,
    pub(super) key: Bytes,
    pub(super) action: wire::Action,
    pub(super) payload: Bytes,
    pub(super) level: Option<Level>,
    pub(super) durability: Option<Durability>,
}

impl Core {
    pub(super) fn handle_write(
        &mut self,
        client: Client,
        header: Header,
        write: &WriteRequest,
    ) -> Result<(), Refusal> {
        Self::check_key(&write.key)?;
        let (size, limit) = (write.payload.len(), self.limits.payload_size_max);
        if size > limit {
            return Err(Refusal::PayloadTooLarge { size, limit });
        }
        let keyspace = self.keyspace(&write.keyspace)?;
        self.observe(header.observed)?;
        let plan = self.plan_write(&keyspace, &header, write)?;
        if self.poisoned {
            return Err(Refusal::StoragePoisoned);
        }
        self.admit()?;
        if 0 < self.write_bytes && self.write_bytes + size > self.limits.write_bytes_max {
            return Err(Refusal::Overloaded { in_flight: self.in_flight });
        }

        let subject = Subject::of(keyspace.id.0, &write.key);
        if header.attempt > 0 {
            match self.remembered.repeat(header.request, subject, client)? {
                Repeated::Joined => {
                    self.in_flight += 1;
                    return Ok(());
                }
                Repeated::Done(written) => {
                    self.answer(client, response(written));
                    return Ok(());
                }
                Repeated::Unknown => {}
            }
        }
        let id = self.flights.next_id();
        let durability = write.durability.unwrap_or(keyspace.settings.durability);
        let sync = durability == Durability::Sync;
        let size = write.key.len() + write.payload.len();
        let job = WriteJob { client, request: header.request, token: id, sync, size };
        self.in_flight += 1;
        self.write_bytes += size;
        self.counters.writes += 1;
        for orphan in self.remembered.begin(header.request, subject, id) {
            self.in_flight -= 1;
            self.refuse(orphan, Refusal::TooManyRepetitions);
        }
        let work = if header.attempt > 0 {
            self.look_for_earlier(&keyspace, job, plan)
        } else {
            Work::Put(PutWork::new(job, plan, Start::Fresh))
        };
        self.launch(id, work);
        Ok(())
    }

    /// Where a write goes and how long it may take.
    fn plan_write(
        &mut self,
        keyspace: &Keyspace,
        header: &Header,
        write: &WriteRequest,
    ) -> Result<PutPlan, Refusal> {
        let n = keyspace.settings.replication;
        let level = write.level.unwrap_or(keyspace.settings.write_level);
        let partition = self.cluster.partition_of(&write.key);
        let Self { cluster, membership, .. } = self;
        let homes = cluster.homes(n, partition);
        let replicas: Vec<_> =
            homes.iter().map(|&node| (node, membership.is_reachable(node))).collect();
        let reachable = replicas.iter().filter(|(_, reachable)| *reachable).count();
        let needed = settings::needed(level, n);
        if usize::from(needed) > replicas.len() || (needed == 0 && level != Level::Any) {
            return Err(Refusal::LevelTooLarge { needed, replicas: replicas.len() });
        }
        let needed = usize::from(needed);
        if needed > reachable {
            return Err(Refusal::Unavailable { reachable, needed, replicas: replicas.len() });
        }
        let timeout_ms = self.timeout_ms(header);
        // At level ANY the hint is the answer, and has to be on disk in time.
        let hint_after_ms = if needed == 0 { timeout_ms / 2 } else { self.limits.hint_after_ms };
        let hint_after_ms = hint_after_ms.min(self.limits.hint_after_ms);
        let event = Event {
            partition,
            keyspace: keyspace.id,
            key: write.key.clone(),
            stamp: Stamp::ZERO,
            request: starling_storage::RequestId {
                client: header.request.client,
                sequence: header.request.sequence,
            },
            action: match write.action {
                wire::Action::Put => Action::Put,
                wire::Action::Delete => Action::Delete,
            },
            payload: write.payload.clone(),
        };
        let now = self.now.mono;
        Ok(PutPlan {
            event,
            replicas,
            needed: if needed == 0 { Needed::Any } else { Needed::Replicas(needed) },
            deadline: now.plus_ms(timeout_ms),
            hint_at: now.plus_ms(hint_after_ms),
        })
    }

    /// Reads the key's newest versions from as many replicas as a write at this level may have missed.
    fn look_for_earlier(&mut self, keyspace: &Keyspace, job: WriteJob, plan: PutPlan) -> Work {
        let reachable = plan.replicas.iter().filter(|(_, reachable)| *reachable);
        let mut candidates: Vec<_> = reachable.map(|(node, _)| *node).collect();
        let own = self.node();
        candidates.sort_by_key(|&node| node != own);
        let written = match plan.needed {
            Needed::Replicas(needed) => needed,
            Needed::Any => 0,
        };
        let wanted = (plan.replicas.len() + 1).saturating_sub(written.max(1));
        let needed = wanted.min(candidates.len());
        if needed == 0 {
            return Work::Put(PutWork::new(job, plan, Start::Fresh));
        }
        let read = ReadPlan {
            keyspace: plan.event.keyspace,
            key: plan.event.key.clone(),
            question: Question::Versions {
                from: Stamp::ZERO,
                to: Stamp::MAX,
                descending: true,
                limit: RETRY_VERSIONS_MAX,
            },
            candidates,
            needed,
            // Half of the time is left for the write.
            deadline: halfway(self.now.mono, plan.deadline),
            hedge_ms: self.limits.hedge_after_ms,
            retention: keyspace.retention(),
            wall_ms: self.now.wall_ms,
        };
        let reader = Reader::Read(Read::new(self.now.mono, read));
        Work::Read(ReadWork { reader, sink: Sink::Retry(Box::new(Retry { job, plan })) })
    }

    /// The search for an earlier attempt's event is over. What it did not find in time may be there, and then the request
    /// makes a second event; reads show events of one request as one.
    pub(super) fn continue_retry(&mut self, retry: Retry, found: Result<ReadValue, ReadFailure>) {
        let Retry { job, mut plan } = retry;
        let mut start = Start::Fresh;
        if let Ok(ReadValue::Versions { events, .. }) = found {
            let request = plan.event.request;
            if let Some(at) = events.iter().position(|event| event.request == request) {
                plan.event = events[at].clone();
                start = Start::Found { superseded: 0 < at };
            }
        }
        for (node, reachable) in &mut plan.replicas {
            *reachable = self.membership.is_reachable(*node);
        }
        let id = self.flights.next_id();
        self.launch(id, Work::Put(PutWork::new(job, plan, start)));
    }

    pub(super) fn drive_put(
        &mut self,
        id: u64,
        work: &mut PutWork,
        questions: &mut Questions,
    ) -> (bool, Option<Instant>) {
        while let Some(output) = work.put.poll_output() {
            match output {
                PutOutput::Stamp { above } => self.give_stamp(id, &mut work.put, above),
                PutOutput::Send { to, event, mode, attempt } => {
                    let about = About::Write(attempt);
                    let (provenance, sync) = (Provenance::Write, work.job.sync);
                    if to == self.node() {
                        let events = vec![event];
                        let request = StorageRequest::Apply { events, provenance, mode, sync };
                        self.ask_storage(id, questions, about, request);
                        continue;
                    }
                    let op = questions.open(id, to, about);
                    let message = PeerMessage::Write {
                        op,
                        epoch: self.cluster.epoch().number(),
                        direct: mode == Mode::Direct,
                        provenance: provenance as u8,
                        sync,
                        events: vec![work.encoded(attempt, &event)].into(),
                    };
                    self.outputs.push_back(Output::Peer { to, message });
                }
                PutOutput::Hint { to, event, wait } => {
                    self.counters.hints += 1;
                    self.hinted.insert(to);
                    let request = StorageRequest::Hint { targets: vec![to], event, sync: wait };
                    if wait {
                        self.ask_storage(id, questions, About::Hint(to), request);
                    } else {
                        self.outputs.push_back(Output::Storage { ticket: TICKET_NOBODY, request });
                    }
                }
                PutOutput::Answer(result) => self.finish_write(work.job, &result),
            }
        }
        if !work.put.is_stamping() {
            self.waiting_for_bound.remove(&id);
        }
        let done = work.put.is_done();
        if done {
            self.lingering.remove(&id);
            self.write_bytes -= work.job.size;
        } else if work.put.is_answered() && self.lingering.insert(id) {
            // The slow must not keep the memory that new writes need.
            let many = self.lingering.len() > self.limits.lingering_max;
            if many || self.write_bytes > self.limits.write_bytes_max / 2 {
                work.put.hurry();
                return self.drive_put(id, work, questions);
            }
        }
        (done, work.put.poll_timeout())
    }

    fn finish_write(&mut self, job: WriteJob, result: &Result<Written, Refusal>) {
        let mut clients = self.remembered.finish(job.request, job.token, result.clone().ok());
        clients.insert(0, job.client);
        for client in clients {
            self.in_flight -= 1;
            match result {
                Ok(written) => self.answer(client, response(*written)),
                Err(refusal) => self.refuse(client, refusal.clone()),
            }
        }
    }

    /// Gives a stamp now, or lets the write wait until the clock's bound is on disk.
    fn give_stamp(&mut self, id: u64, put: &mut Put, above: Option<Stamp>) {
        if let Some(above) = above {
            self.counters.restamps += 1;
            if self.clock.observe(above.time, self.now.wall_ms).is_err() {
                put.handle_skewed();
                return;
            }
        }
        if let Err(refusal) = self.check_clock() {
            put.handle_no_stamp(refusal);
            return;
        }
        if let Ok(stamp) = self.clock.tick(self.now.wall_ms) {
            put.handle_stamp(stamp);
            if self.clock.poll_bound(self.now.wall_ms).is_none() {
                return;
            }
        } else {
            self.waiting_for_bound.insert(id);
        }
        self.renew_bound();
    }

    /// Makes a bound of the clock durable, unless that is on its way.
    pub(super) fn renew_bound(&mut self) {
        if self.bound_flight.is_some() || self.poisoned {
            return;
        }
        let bound = self.clock.wanted_bound(self.now.wall_ms);
        let id = self.flights.next_id();
        self.bound_flight = Some(id);
        self.launch(id, Work::Bound(bound));
    }

    pub(super) fn drive_bound(
        &mut self,
        id: u64,
        bound: HybridTime,
        questions: &mut Questions,
    ) -> (bool, Option<Instant>) {
        let value = Bytes::copy_from_slice(&bound.packed().to_le_bytes());
        let request = StorageRequest::Meta { name: META_CLOCK_BOUND.to_owned(), value };
        self.ask_storage(id, questions, About::Local, request);
        (false, None)
    }

    /// The bound is on disk, or is not.
    pub(super) fn handle_bound(&mut self, bound: HybridTime, answer: &StorageAnswer) {
        self.bound_flight = None;
        let refusal = match answer {
            StorageAnswer::Failed(StorageFailure::Poisoned) => Some(Refusal::StoragePoisoned),
            StorageAnswer::Failed(StorageFailure::Full) => Some(Refusal::DiskFull),
            StorageAnswer::Failed(StorageFailure::Busy) => Some(Refusal::NoStamp),
            StorageAnswer::Failed(_) => Some(Refusal::Damaged),
            _ => None,
        };
        if refusal.is_none() {
            self.clock.handle_bound_durable(bound);
            if self.phase == Phase::Starting && self.catch_up_at.is_none() {
                self.phase = Phase::Serving;
            }
        } else if self.phase == Phase::Starting && !self.poisoned {
            self.bound_retry_at = Some(self.now.mono.plus_ms(self.limits.retry_ms.1));
        }
        // Those that still get none wait again.
        for id in std::mem::take(&mut self.waiting_for_bound) {
            let Some(mut flight) = self.flights.take(id) else { continue };
            match &mut flight.work {
                Work::Put(work) if work.put.is_stamping() => match &refusal {
                    Some(refusal) => work.put.handle_no_stamp(refusal.clone()),
                    None => self.give_stamp(id, &mut work.put, None),
                },
                Work::NewKeyspace(new) => {
                    let new = new.clone();
                    self.flights.end(id);
                    self.continue_keyspace(new, refusal.clone());
                    continue;
                }
                _ => {}
            }
            self.drive(id, flight);
        }
    }

    /// The clock moves past what the client has seen.
    fn observe(&mut self, observed: u64) -> Result<(), Refusal> {
        if observed == 0 || mutation::is(Mutation::IgnoreObserved) {
            return Ok(());
        }
        let time = HybridTime::from_packed(observed)
            .ok_or(Refusal::Malformed("the observed time is beyond the end of time"))?;
        self.clock.observe(time, self.now.wall_ms).map_err(Refusal::ClockSkew)
    }
}

impl PutWork {
    fn new(job: WriteJob, plan: PutPlan, start: Start) -> Self {
        Self { put: Put::new(plan, start), job, encoded: None }
    }

    fn encoded(&mut self, attempt: u32, event: &Event) -> Blob {
        match &self.encoded {
            Some((encoded, bytes)) if *encoded == attempt => bytes.clone(),
            _ => {
                let bytes = replica::encode_event(event);
                self.encoded = Some((attempt, bytes.clone()));
                bytes
            }
        }
    }
}

fn response(written: Written) -> Response {
    let Written { stamp, superseded, acks } = written;
    Response::Written { stamp: stamp.into(), superseded, acks }
}

fn halfway(from: Instant, to: Instant) -> Instant {
    Instant(from.0 + to.0.saturating_sub(from.0) / 2)
}
