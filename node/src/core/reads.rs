//! Clients' reads: checked, planned, driven to their answer; and the search for an earlier attempt's event.
//!
//! Invariants:
//!
//! - Only home replicas of the key count, this node first if it is one. The others take turns from read to read, so that all N
//!   share the reads of a hot key.

use bytes::Bytes;
use starling_client::wire::{Cursor, Header, Level, PAGE_ROWS_MAX, Response, WireError};
use starling_clock::{NodeId, Stamp};
use starling_storage::Provenance;

use super::asks::AskId;
use super::driver::Work;
use super::error::Refusal;
use super::flights::Questions;
use super::keyspaces::Keyspace;
use super::read::{Question, Read, ReadOutput, ReadPlan};
use super::replica::ReplicaAnswer;
use super::requests::Client;
use super::scan::{Scan, ScanPlan, range_homes};
use super::settings;
use super::writes::Retry;
use super::{Core, Instant};

/// 2^64 divided by the golden ratio.
const TURN: u64 = 0x9E37_79B9_7F4A_7C15;

/// A read in flight, of one key or of a page.
#[derive(Debug)]
pub(super) enum Reader {
    Read(Read),
    Scan(Scan),
}

/// What becomes of the result.
#[derive(Debug)]
pub(super) enum Sink {
    Client(Client),
    Retry(Box<Retry>),
    /// It was handed on.
    Drained,
}

/// A read in flight and whom it is for.
#[derive(Debug)]
pub(super) struct ReadWork {
    pub(super) reader: Reader,
    pub(super) sink: Sink,
}

impl Reader {
    pub(super) fn handle_answer(&mut self, ask: u32, answer: ReplicaAnswer) {
        match self {
            Self::Read(read) => read.handle_answer(AskId(ask), answer),
            Self::Scan(scan) => scan.handle_answer(AskId(ask), answer),
        }
    }

    pub(super) fn handle_repaired(&mut self, ask: u32, taken: bool) {
        match self {
            Self::Read(read) => read.handle_repaired(AskId(ask), taken),
            Self::Scan(scan) => scan.handle_repaired(AskId(ask), taken),
        }
    }

    pub(super) fn handle_unreachable(&mut self, node: NodeId) {
        match self {
            Self::Read(read) => read.handle_unreachable(node),
            Self::Scan(scan) => scan.handle_unreachable(node),
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        match self {
            Self::Read(read) => read.handle_timeout(now),
            Self::Scan(scan) => scan.handle_timeout(now),
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Read(read) => read.poll_timeout(),
            Self::Scan(scan) => scan.poll_timeout(),
        }
    }

    fn poll_output(&mut self) -> Option<ReadOutput> {
        match self {
            Self::Read(read) => read.poll_output(),
            Self::Scan(scan) => scan.poll_output(),
        }
    }
}

/// A client's scan, as it came.
pub(super) struct ScanRequest {
    pub(super) keyspace: String,
    pub(super) prefix: Bytes,
    pub(super) cursor: Option<Cursor>,
    pub(super) limit: u32,
    pub(super) level: Option<Level>,
}

impl Core {
    pub(super) fn handle_read(
        &mut self,
        client: Client,
        header: &Header,
        keyspace: &str,
        key: Bytes,
        level: Option<Level>,
        question: Question,
    ) -> Result<(), Refusal> {
        Self::check_key(&key)?;
        if let Question::Versions { from, to, limit, .. } = &question {
            check_limit(*limit)?;
            if from > to {
                return Err(Refusal::OutOfBounds("the range of stamps ends before it begins"));
            }
        }
        let keyspace = self.keyspace(keyspace)?;
        let n = keyspace.settings.replication;
        let partition = self.cluster.partition_of(&key);
        let replicas = self.cluster.homes(n, partition).len();
        let needed = read_level(&keyspace, level, replicas)?;
        let candidates = self.candidates(n, partition);
        if candidates.len() < needed {
            return Err(Refusal::Unavailable { reachable: candidates.len(), needed, replicas });
        }
        self.admit()?;
        let plan = ReadPlan {
            keyspace: keyspace.id,
            key,
            question,
            candidates,
            needed,
            deadline: self.now.mono.plus_ms(self.timeout_ms(header)),
            hedge_ms: self.limits.hedge_after_ms,
            retention: keyspace.retention(),
            wall_ms: self.now.wall_ms,
        };
        self.launch_read(client, Reader::Read(Read::new(self.now.mono, plan)));
        Ok(())
    }

    pub(super) fn handle_scan(
        &mut self,
        client: Client,
        header: &Header,
        scan: ScanRequest,
    ) -> Result<(), Refusal> {
        check_limit(scan.limit)?;
        if !scan.prefix.is_empty() {
            Self::check_key(&scan.prefix)?;
        }
        let keyspace = self.keyspace(&scan.keyspace)?;
        let n = keyspace.settings.replication;
        let partitions = self.cluster.epoch().partitions().count();
        let Cursor { partition: first, after } =
            scan.cursor.unwrap_or(Cursor { partition: 0, after: None });
        if first >= partitions {
            return Err(Refusal::OutOfBounds("the cursor is beyond the last partition"));
        }
        if let Some(after) = &after {
            Self::check_key(after)?;
        }
        let replicas = self.cluster.homes(n, first).len();
        let needed = read_level(&keyspace, scan.level, replicas)?;
        self.admit()?;
        let table = self.cluster.table(n);
        let homes = range_homes(first, partitions, |partition| {
            table.preference_list(starling_ring::Partition(partition))
        });
        let own = self.node();
        let members = self.cluster.epoch().members().iter().map(|member| member.node);
        let mut candidates: Vec<_> =
            members.filter(|&node| self.membership.is_reachable(node)).collect();
        candidates.sort_by_key(|&node| node != own);
        let plan = ScanPlan {
            keyspace: keyspace.id,
            prefix: scan.prefix,
            first,
            after: after.map(|after| after.0),
            limit: scan.limit,
            homes,
            partitions,
            candidates,
            needed,
            deadline: self.now.mono.plus_ms(self.timeout_ms(header)),
            hedge_ms: self.limits.hedge_after_ms,
        };
        self.launch_read(client, Reader::Scan(Scan::new(self.now.mono, plan)));
        Ok(())
    }

    fn launch_read(&mut self, client: Client, reader: Reader) {
        self.in_flight += 1;
        self.counters.reads += 1;
        let id = self.flights.next_id();
        self.launch(id, Work::Read(ReadWork { reader, sink: Sink::Client(client) }));
    }

    /// The home replicas of a partition that are reachable, this node first, the others in turn.
    fn candidates(&mut self, n: u8, partition: u32) -> Vec<NodeId> {
        let own = self.node();
        let Self { cluster, membership, .. } = self;
        let homes = cluster.homes(n, partition).iter().copied();
        let mut candidates: Vec<_> = homes.filter(|&node| membership.is_reachable(node)).collect();
        candidates.sort_by_key(|&node| node != own);
        let first = usize::from(candidates.first() == Some(&own));
        let others = &mut candidates[first..];
        if !others.is_empty() {
            // Fibonacci hashing (Knuth): even turns for every key also if clients read their keys in a pattern.
            let fraction = self.counters.reads.wrapping_mul(TURN) >> 32;
            let turn = (fraction * others.len() as u64) >> 32;
            others.rotate_left(usize::try_from(turn).expect("below the number of replicas"));
        }
        candidates
    }

    pub(super) fn drive_read(
        &mut self,
        id: u64,
        work: &mut ReadWork,
        questions: &mut Questions,
    ) -> (bool, Option<Instant>) {
        while let Some(output) = work.reader.poll_output() {
            match output {
                ReadOutput::Ask { ask, to, query } => {
                    self.ask_read(id, questions, to, ask.0, query);
                }
                ReadOutput::Repair { ask, to, events } => {
                    self.counters.read_repairs += 1;
                    let provenance = Provenance::ReadRepair;
                    self.ask_copy(id, questions, to, ask.0, events, provenance);
                }
                ReadOutput::Answer(result) => {
                    match std::mem::replace(&mut work.sink, Sink::Drained) {
                        Sink::Client(client) => {
                            self.in_flight -= 1;
                            let response = match result {
                                Ok(value) => Response::from(value),
                                Err(failure) => Response::Error(WireError::from(failure)),
                            };
                            self.answer(client, response);
                        }
                        Sink::Retry(retry) => self.continue_retry(*retry, result),
                        Sink::Drained => unreachable!("a read answers once"),
                    }
                }
            }
        }
        (matches!(work.sink, Sink::Drained), work.reader.poll_timeout())
    }
}

/// How many replicas a read asks for.
fn read_level(
    keyspace: &Keyspace,
    level: Option<Level>,
    replicas: usize,
) -> Result<usize, Refusal> {
    let level = level.unwrap_or(keyspace.settings.read_level);
    if level == Level::Any {
        return Err(Refusal::LevelNotForReads);
    }
    let needed = settings::needed(level, keyspace.settings.replication);
    if needed == 0 || usize::from(needed) > replicas {
        return Err(Refusal::LevelTooLarge { needed, replicas });
    }
    Ok(usize::from(needed))
}

fn check_limit(limit: u32) -> Result<(), Refusal> {
    if (1..=PAGE_ROWS_MAX).contains(&limit) {
        Ok(())
    } else {
        Err(Refusal::OutOfBounds("limit is from 1 to 10000"))
    }
}

/// From a client's optional stamp.
pub(super) fn newest_at(at: Option<Stamp>) -> Question {
    Question::Newest { at: at.unwrap_or(Stamp::MAX) }
}
