//! [`Event`]: what happens in a world, and how the trace tells it.
//!
//! Invariants:
//!
//! - A kind's number is its own; the mark tells the content as far as that is cheap.

use starling_client::wire::Response;
use starling_node::core::peer::PeerMessage;
use starling_node::core::storage::{StorageAnswer, StorageRequest};
use starling_node::core::types::{Input, Ticket};

/// What happens. Small: what is large is moved as a pointer, through the queue and on to the core.
pub(super) enum Event {
    Input(Box<Input>),
    /// Over the connection with this number.
    Arrival {
        from: usize,
        connection: u64,
        input: Box<Input>,
    },
    PeerGone(usize),
    Commit,
    Committed(Vec<(Ticket, StorageAnswer)>),
    Read(Ticket, Box<StorageRequest>),
    Sync,
    Work,
    /// The thread beside the writer carries on with a flush or a merge.
    Step,
    /// What it has done is made to count.
    Finish,
    Dial(usize),
    Boot,
    /// An operator ends the process and starts it again.
    Restart,
    FaultBegins(usize),
    FaultEnds(usize),
    LinkDies {
        a: usize,
        b: usize,
        connection: u64,
    },
    ClientActs(usize),
    /// A client looks whether it has patience left.
    ClientAlarm(usize),
    Answered {
        operation: usize,
        response: Box<Response>,
    },
    Sample,
}

impl Event {
    pub(super) fn kind(&self) -> u8 {
        match self {
            Self::Input(_) => 0,
            Self::Arrival { .. } => 1,
            Self::PeerGone(_) => 2,
            Self::Commit => 3,
            Self::Committed(_) => 4,
            Self::Read(..) => 5,
            Self::Sync => 6,
            Self::Work => 7,
            Self::Dial(_) => 8,
            Self::Boot => 9,
            Self::FaultBegins(_) => 10,
            Self::FaultEnds(_) => 11,
            Self::LinkDies { .. } => 12,
            Self::ClientActs(_) => 13,
            Self::ClientAlarm(_) => 14,
            Self::Answered { .. } => 15,
            Self::Sample => 16,
            Self::Restart => 18,
            Self::Step => 23,
            Self::Finish => 24,
        }
    }

    /// A number that tells its content, cheaply.
    pub(super) fn mark(&self) -> u64 {
        match self {
            Self::Arrival { from, connection, input } => {
                let content = match &**input {
                    Input::Gossip { bytes, .. } | Input::PushPull { bytes, .. } => {
                        xxhash_rust::xxh3::xxh3_64(bytes)
                    }
                    Input::Peer { message, .. } => message_mark(message),
                    _ => 0,
                };
                content ^ (*from as u64) << 48 ^ connection << 32
            }
            Self::PeerGone(index)
            | Self::Dial(index)
            | Self::ClientActs(index)
            | Self::ClientAlarm(index) => *index as u64,
            Self::Committed(answers) => {
                answers.iter().fold(0, |sum, (ticket, _)| ticket.0.wrapping_add(sum))
            }
            Self::Read(ticket, _) => ticket.0,
            Self::FaultBegins(fault) | Self::FaultEnds(fault) => *fault as u64,
            Self::Answered { operation, response } => {
                let content = match &**response {
                    Response::Written { stamp, .. } => stamp.0.time.packed() ^ stamp.0.node.0 << 56,
                    Response::Value { version: Some(version) } => version.stamp.0.time.packed(),
                    Response::Error(error) => error.code as u64,
                    _ => 0,
                };
                content ^ (*operation as u64) << 20
            }
            _ => 0,
        }
    }
}

fn message_mark(message: &PeerMessage) -> u64 {
    match message {
        PeerMessage::Write { op, events, .. } => op ^ (events.0.len() as u64) << 40,
        PeerMessage::Written { op, outcomes } => op ^ (outcomes.0.len() as u64) << 41,
        PeerMessage::Read { op, .. } => op ^ 1 << 60,
        PeerMessage::ReadDone { op, .. } => op ^ 1 << 61,
        PeerMessage::Register { op, .. } | PeerMessage::Registered { op } => op ^ 1 << 62,
    }
}

/// In words, for the trace.
pub(super) fn describe(event: &Event) -> String {
    match event {
        Event::Input(input) => format!("{input:?}"),
        Event::Arrival { from, input, .. } => format!("from n{}: {input:?}", from + 1),
        Event::PeerGone(peer) => format!("n{} is gone", peer + 1),
        Event::Commit => "commit".to_owned(),
        Event::Committed(answers) => format!("committed {answers:?}"),
        Event::Read(ticket, request) => format!("read {ticket:?} {request:?}"),
        Event::Sync => "sync".to_owned(),
        Event::Work => "work".to_owned(),
        Event::Step => "carries on with a job".to_owned(),
        Event::Finish => "ends a job".to_owned(),
        Event::Dial(peer) => format!("dials n{}", peer + 1),
        Event::Boot => "starts".to_owned(),
        Event::Restart => "is restarted".to_owned(),
        Event::FaultBegins(fault) => format!("fault {fault} begins"),
        Event::FaultEnds(fault) => format!("fault {fault} ends"),
        Event::LinkDies { a, b, .. } => format!("n{} and n{} give up", a + 1, b + 1),
        Event::ClientActs(client) => format!("client {client} acts"),
        Event::ClientAlarm(client) => format!("client {client} looks at its patience"),
        Event::Answered { operation, response } => format!("operation {operation}: {response:?}"),
        Event::Sample => "sample".to_owned(),
    }
}
