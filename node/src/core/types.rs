//! What goes into the core and what comes out of it.
//!
//! Invariants:
//!
//! - The core is fed by [`Input`] and drained by [`Output`]; nothing else crosses the border. `io` carries out outputs in order
//!   and decides nothing.
//! - An [`Output::Answer`] or [`Output::Peer`] that speaks of a write as taken is emitted only after the
//!   [`Input::StorageDone`] of its [`Output::Storage`]: durable before visible.
//! - Loss of any `Peer` message is fine: deadlines cover it.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use starling_client::wire::{ChangesItem, ChangesRequest, Header, Request, Response};
use starling_clock::NodeId;

use super::peer::PeerMessage;
use super::storage::{StorageAnswer, StorageRequest};

/// Monotonic time in microseconds from an origin of the driver's choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(pub u64);

impl Instant {
    /// `ms` milliseconds later.
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms.saturating_mul(1000)))
    }

    /// Milliseconds from `earlier` to here, 0 if it is later.
    pub fn since_ms(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0) / 1000
    }
}

/// Both clocks, read once an input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Monotonic: deadlines are made of this. Never goes back.
    pub mono: Instant,
    /// Wall clock, milliseconds since the Unix epoch: stamps are made of this. May jump anywhere.
    pub wall_ms: u64,
}

/// A client's connection, named by io; never reused in one life of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// A change subscription, named by io; never reused in one life of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SubscriptionId(pub u64);

/// Pairs a storage request with its answer. `Ticket(0)` is that of write-lane requests whose answer no request waits for:
/// several may be in flight, and are answered in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// What happened outside.
#[derive(Clone, Debug)]
pub enum Input {
    /// A client asks. Exactly one [`Output::Answer`] with the same `connection` and `id` follows.
    Request {
        /// Where from.
        connection: ConnectionId,
        /// The frame's id; the client's choice.
        id: u64,
        /// Deadline, request id, epoch, observed time.
        header: Header,
        /// What.
        request: Request,
    },
    /// The client's connection is gone: answers to it go nowhere. Requests in flight run to their end.
    ConnectionClosed {
        /// Which.
        connection: ConnectionId,
    },
    /// A peer says something.
    Peer {
        /// Who, by its certificate.
        from: NodeId,
        /// What.
        message: PeerMessage,
    },
    /// There is a connection to this peer now, or another one in place of one that is lost with what was on its way.
    PeerConnected {
        /// Who, by its certificate.
        peer: NodeId,
        /// The address that was dialled; `None` if the peer dialled us.
        address: Option<SocketAddr>,
    },
    /// The last connection to this peer is gone.
    PeerDisconnected {
        /// Who.
        peer: NodeId,
    },
    /// A dial did not succeed.
    DialFailed {
        /// Where to.
        address: SocketAddr,
    },
    /// Storage answers. Answers come in the order of the requests of one lane (writes, reads).
    StorageDone {
        /// Which request.
        ticket: Ticket,
        /// What.
        answer: StorageAnswer,
    },
    /// The change log grew to `end` (durable).
    ChangesGrew {
        /// One past the newest sequence that may be read.
        end: u64,
    },
    /// A gossip datagram.
    Gossip {
        /// Who, by its certificate.
        from: NodeId,
        /// What.
        bytes: Bytes,
    },
    /// A peer wants to exchange full gossip state; answered by [`Output::PushPullAnswer`] with the same `exchange`.
    PushPull {
        /// Who.
        from: NodeId,
        /// Named by io.
        exchange: u64,
        /// Its state.
        bytes: Bytes,
    },
    /// The answer to our push-pull.
    PushPullAnswer {
        /// Who.
        from: NodeId,
        /// Its state.
        bytes: Bytes,
    },
    /// A client asks for changes on a stream of its own.
    Subscribe {
        /// Named by io.
        subscription: SubscriptionId,
        /// What it wants.
        request: ChangesRequest,
    },
    /// The stream has taken the last [`Output::SubscriptionItem`]; one more may come. One is in flight at a time.
    SubscriptionReady {
        /// Which.
        subscription: SubscriptionId,
    },
    /// The stream or its connection is gone.
    Unsubscribe {
        /// Which.
        subscription: SubscriptionId,
    },
    /// Time has passed; `Core::poll_timeout` said when this is wanted. Early calls change nothing.
    Timeout,
    /// Stop gracefully: refuse new work, finish what is in flight, say goodbye, then [`Output::Stopped`].
    Stop,
}

/// What io must do, in this order.
#[derive(Clone, Debug)]
pub enum Output {
    /// Hand to storage; answered by [`Input::StorageDone`].
    Storage {
        /// Pairs it with the answer.
        ticket: Ticket,
        /// What.
        request: StorageRequest,
    },
    /// Send to a peer; dropped if there is no connection, or its queue is full.
    Peer {
        /// Whom.
        to: NodeId,
        /// What.
        message: PeerMessage,
    },
    /// Answer a client.
    Answer {
        /// Whom.
        connection: ConnectionId,
        /// The id of its request.
        id: u64,
        /// What. Apart, for it is larger than anything else that a core says.
        response: Box<Response>,
    },
    /// Send a datagram; loss is fine.
    Gossip {
        /// Whom.
        to: NodeId,
        /// What.
        bytes: Bytes,
    },
    /// Send our gossip state on a stream of its own and hand back the answer as [`Input::PushPullAnswer`].
    PushPull {
        /// Whom.
        to: NodeId,
        /// Our state.
        bytes: Bytes,
    },
    /// Answer an [`Input::PushPull`].
    PushPullAnswer {
        /// Which.
        exchange: u64,
        /// Our state.
        bytes: Bytes,
    },
    /// Write to a subscription's stream; then [`Input::SubscriptionReady`]. After `End` or `Error` the stream is finished.
    SubscriptionItem {
        /// Which.
        subscription: SubscriptionId,
        /// What.
        item: Arc<ChangesItem>,
    },
    /// Connect to a peer unless there is a connection; the id is not known for a seed.
    Dial {
        /// Who must be there; `None`: whoever is (a seed).
        peer: Option<NodeId>,
        /// Where.
        address: SocketAddr,
    },
    /// Everything is finished: close connections and storage.
    Stopped,
}
