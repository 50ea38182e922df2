//! [`Rig`]: drives a core, carries out its storage requests, keeps the rest of its outputs for the test to look at.

use std::sync::Arc;

use starling_client::codec::Blob;
use starling_client::wire::{
    Action, ErrorCode, Header, KeyspaceSettings, Level, Request, RequestId, Response,
};
use starling_clock::NodeId;
use starling_ring::{Member, Partitions};
use starling_storage::{Config, Event, Identity, SimDisk, Storage};

use crate::core::peer::{PeerMessage, ReadAnswer, ReadQuery, WriteOutcome};
use crate::core::storage::{Reader, StorageAnswer, StorageFailure, StorageRequest, Writer};
use crate::core::*;
use crate::limits::Limits;

pub(super) const START_MS: u64 = 1_700_000_000_000;

/// Which requests storage fails.
pub(super) type Chosen = fn(&StorageRequest) -> bool;

/// The core and what is around it.
pub(super) struct Rig {
    pub(super) core: Core,
    disk: SimDisk,
    writer: Writer<SimDisk>,
    reader: Reader<SimDisk>,
    pub(super) now: Now,
    config: CoreConfig,
    /// Storage answers nothing of the lane until this is unset.
    pub(super) held: Vec<(Ticket, StorageRequest)>,
    pub(super) hold: bool,
    /// Storage fails like this, if asked for what the function chooses.
    pub(super) fail: Option<(Chosen, StorageFailure)>,
    /// Outputs that are no storage requests.
    pub(super) outputs: Vec<Output>,
    next_request: u64,
}

fn open(disk: &SimDisk, node: NodeId) -> Storage<SimDisk> {
    let identity = Identity { cluster: "test".into(), node };
    Storage::open(Arc::new(disk.clone()), Config::default(), identity).unwrap()
}

impl Rig {
    /// Node 1 of a cluster of so many; it serves, and nobody else is there.
    pub(super) fn new(nodes: u64, limits: Limits) -> Self {
        let mut rig = Self::starting(nodes, limits);
        rig.run();
        assert!(rig.core.is_serving());
        rig
    }

    /// As [`Self::new`], but storage has not been asked anything yet.
    pub(super) fn starting(nodes: u64, limits: Limits) -> Self {
        let member = |node| Member { node: NodeId(node), zone: String::new(), weight: 1 };
        let members: Vec<_> = (1..=nodes).map(member).collect();
        let address = |node| format!("127.0.0.1:{}", 4000 + node).parse().unwrap();
        let config = CoreConfig {
            cluster: "test".into(),
            node: NodeId(1),
            software: "test".into(),
            epoch: Epoch::new(1, Partitions::new(16).unwrap(), members).unwrap(),
            addresses: (1..=nodes).map(|node| (NodeId(node), address(node))).collect(),
            gossip: GossipConfig::default(),
            clock: ClockConfig::default(),
            limits,
        };
        let now = Now { mono: Instant(0), wall_ms: START_MS };
        let disk = SimDisk::new(7);
        let writer = Writer::new(open(&disk, NodeId(1)));
        Self {
            core: Core::new(config.clone(), &[], 1, now).unwrap(),
            reader: writer.reader(),
            disk,
            writer,
            now,
            config,
            held: Vec::new(),
            hold: false,
            fail: None,
            outputs: Vec::new(),
            next_request: 0,
        }
    }

    /// The process is started again, without a chance to say goodbye.
    pub(super) fn restart(self) -> Self {
        let Self { disk, now, config, writer, reader, .. } = self;
        drop((writer, reader));
        disk.restart(starling_storage::CrashMode::LoseUnsynced);
        let writer = Writer::new(open(&disk, NodeId(1)));
        let metas = writer.storage().metas("");
        let mut core = Core::new(config.clone(), &metas, 2, now).unwrap();
        core.observe_recovered(writer.storage().recovered_stamp());
        let mut rig = Self {
            core,
            reader: writer.reader(),
            disk,
            writer,
            now,
            config,
            held: Vec::new(),
            hold: false,
            fail: None,
            outputs: Vec::new(),
            next_request: 1000,
        };
        rig.run();
        rig
    }

    /// Carries out storage requests until there are none.
    pub(super) fn run(&mut self) {
        loop {
            let mut batch = if self.hold { Vec::new() } else { std::mem::take(&mut self.held) };
            while let Some(output) = self.core.poll_output() {
                match output {
                    Output::Storage { ticket, request } if self.hold => {
                        self.held.push((ticket, request));
                    }
                    Output::Storage { ticket, request } => batch.push((ticket, request)),
                    other => self.outputs.push(other),
                }
            }
            if batch.is_empty() {
                return;
            }
            for (ticket, request) in batch {
                let answer = self.execute(ticket, request);
                self.core.handle(self.now, Input::StorageDone { ticket, answer });
            }
        }
    }

    fn execute(&mut self, ticket: Ticket, request: StorageRequest) -> StorageAnswer {
        if let Some((chosen, failure)) = self.fail
            && chosen(&request)
        {
            return StorageAnswer::Failed(failure);
        }
        if request.is_write_lane() {
            let mut answers = self.writer.execute(self.now.wall_ms, vec![(ticket, request)]);
            return answers.pop().unwrap().1;
        }
        self.reader.execute(request)
    }

    pub(super) fn input(&mut self, input: Input) {
        self.core.handle(self.now, input);
        self.run();
    }

    /// Time passes, and the core is woken when it wants to be.
    pub(super) fn pass(&mut self, ms: u64) {
        let end = self.now.mono.plus_ms(ms);
        while let Some(at) = self.core.poll_timeout().filter(|at| *at <= end) {
            let passed = at.since_ms(self.now.mono);
            self.now = Now { mono: at.max(self.now.mono), wall_ms: self.now.wall_ms + passed };
            self.input(Input::Timeout);
        }
        let passed = end.since_ms(self.now.mono);
        self.now = Now { mono: end, wall_ms: self.now.wall_ms + passed };
    }

    pub(super) fn connect(&mut self, node: u64) {
        self.input(Input::PeerConnected { peer: NodeId(node), address: None });
    }

    /// Sends a request; gives its id.
    pub(super) fn send(&mut self, header: Header, request: Request) -> u64 {
        self.next_request += 1;
        let (connection, id) = (ConnectionId(1), self.next_request);
        self.input(Input::Request { connection, id, header, request });
        id
    }

    /// The answer to a request, if it is there; at most one ever is.
    pub(super) fn answer(&mut self, id: u64) -> Option<Response> {
        let is_it = |output: &Output| matches!(output, Output::Answer { id: of, .. } if *of == id);
        assert!(self.outputs.iter().filter(|output| is_it(output)).count() <= 1);
        let at = self.outputs.iter().position(is_it)?;
        match self.outputs.remove(at) {
            Output::Answer { response, .. } => Some(*response),
            other => panic!("{other:?}"),
        }
    }

    /// Sends a request that is answered without anybody else.
    pub(super) fn ask(&mut self, request: Request) -> Response {
        let header = self.header();
        let id = self.send(header, request);
        self.answer(id).expect("answered at once")
    }

    /// Sends a request that must be refused.
    pub(super) fn code(&mut self, header: Header, request: Request) -> ErrorCode {
        let id = self.send(header, request);
        code_of(self.answer(id).expect("answered at once"))
    }

    pub(super) fn header(&self) -> Header {
        let request = RequestId { client: 9, sequence: self.next_request + 1 };
        Header { request, attempt: 0, timeout_ms: 2000, epoch: 0, observed: 0 }
    }

    /// Takes the messages to a peer.
    pub(super) fn messages(&mut self, node: u64) -> Vec<PeerMessage> {
        let mut messages = Vec::new();
        self.outputs.retain(|output| match output {
            Output::Peer { to, message } if *to == NodeId(node) => {
                messages.push(message.clone());
                false
            }
            _ => true,
        });
        messages
    }

    /// Takes the only write to a peer: its op and event.
    pub(super) fn write_to(&mut self, node: u64) -> (u64, bool, Event) {
        match &self.messages(node)[..] {
            [PeerMessage::Write { op, direct, events, .. }] => {
                (*op, *direct, Event::decode(&events[0].0).unwrap().0)
            }
            other => panic!("{other:?}"),
        }
    }

    /// Takes the only question to a peer.
    pub(super) fn read_to(&mut self, node: u64) -> (u64, ReadQuery) {
        match &self.messages(node)[..] {
            [PeerMessage::Read { op, query, .. }] => (*op, query.clone()),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn say(&mut self, node: u64, message: PeerMessage) {
        self.input(Input::Peer { from: NodeId(node), message });
    }

    pub(super) fn written(&mut self, node: u64, op: u64, outcome: WriteOutcome) {
        self.say(node, PeerMessage::Written { op, outcomes: vec![outcome].into() });
    }

    pub(super) fn read_done(&mut self, node: u64, op: u64, answer: ReadAnswer) {
        self.say(node, PeerMessage::ReadDone { op, answer });
    }

    /// Hints that storage holds for a node.
    pub(super) fn hints(&self, node: u64) -> u64 {
        let targets = self.writer.storage().hint_targets();
        let found = targets.iter().find(|(target, ..)| *target == NodeId(node));
        found.map_or(0, |(_, pending, _)| *pending)
    }
}

pub(super) fn code_of(response: Response) -> ErrorCode {
    match response {
        Response::Error(error) => {
            assert!(!error.message.is_empty());
            error.code
        }
        other => panic!("{other:?}"),
    }
}

pub(super) fn blob(text: &str) -> Blob {
    Blob(text.as_bytes().to_vec().into())
}

pub(super) fn put(key: &str, payload: &str) -> Request {
    put_at(key, payload, None)
}

pub(super) fn put_at(key: &str, payload: &str, level: Option<Level>) -> Request {
    Request::Write {
        keyspace: "default".into(),
        key: blob(key),
        action: Action::Put,
        payload: blob(payload),
        level,
        durability: None,
    }
}

pub(super) fn get(key: &str) -> Request {
    Request::Get { keyspace: "default".into(), key: blob(key), at: None, level: None }
}

pub(super) fn settings(name: &str, replication: u8) -> KeyspaceSettings {
    KeyspaceSettings {
        name: name.into(),
        replication,
        write_level: Level::Quorum,
        read_level: Level::Quorum,
        durability: starling_client::wire::Durability::Sync,
        history_versions_max: None,
        history_age_ms_max: None,
    }
}
