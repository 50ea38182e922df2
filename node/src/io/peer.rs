//! Connections between nodes: dialling, the one stream that both send on, datagrams of gossip, push-pull.
//!
//! Invariants:
//!
//! - A peer is who its certificate says; a node of another cluster or ring, or one that shows this node's own id, is turned away.
//! - A pair of nodes may have two connections, one dialled by each. Both are read; messages go on the one that the lower id dialled, so that both
//!   sides choose the same. A newer connection of the same direction replaces the older one, whose other end has forgotten it.
//! - The dialler's first frame is [`FrameKind::Hello`]: it opens the stream for both, and names the cluster and its ring.
//!
//! It does not decide whom to dial or when: the core does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use starling_client::codec;
use starling_client::transport::tls::{NODE_NAME, node_name};
use starling_client::transport::{
    FrameError, FrameKind, FrameReader, LargeFrame, Outbox, PeerIdentity, encode_frame,
};
use starling_clock::NodeId;
use starling_gossip::limits::PUSH_PULL_SIZE_MAX;
use tokio::sync::Semaphore;

use super::close_code::CloseCode;
use super::driver::Driver;
use super::tasks::Tasks;
use crate::core::peer::{PeerMessage, Stranger};
use crate::core::types::Input;

/// A dial that takes longer has failed: QUIC alone would try for its idle timeout.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// A dialler that has not said hello by then is turned away.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// An exchange of full gossip states that takes longer is given up.
const PUSH_PULL_TIMEOUT: Duration = Duration::from_secs(10);
/// Exchanges that a peer may have under way on a connection, each of which may hold a state in memory. Further ones wait.
const EXCHANGES_MAX: usize = 4;
/// A large frame that takes longer is given up, and its connection with it: it would hold memory that others need.
const LARGE_FRAME_TIMEOUT: Duration = Duration::from_mins(1);
/// Bytes of a frame before a push-pull's state, and some.
const PUSH_PULL_FRAME_SIZE_MAX: usize = PUSH_PULL_SIZE_MAX + 64;

/// One connection to a peer, ready to send on.
#[derive(Debug)]
pub(super) struct Link {
    /// Tells links of one peer apart.
    pub(super) name: u64,
    /// For datagrams and streams.
    pub(super) connection: quinn::Connection,
    /// For messages.
    pub(super) outbox: Outbox,
}

/// The connections to one peer: at most one a direction.
#[derive(Debug)]
pub(super) struct Links {
    preferred_is_ours: bool,
    ours: Option<Link>,
    theirs: Option<Link>,
}

impl Links {
    /// None yet. `preferred_is_ours`: this node's id is the lower one.
    pub(super) fn new(preferred_is_ours: bool) -> Self {
        Self { preferred_is_ours, ours: None, theirs: None }
    }

    /// Adds a link in place of an older one of the same direction.
    pub(super) fn add(&mut self, is_ours: bool, link: Link) {
        let place = if is_ours { &mut self.ours } else { &mut self.theirs };
        if let Some(old) = place.replace(link) {
            CloseCode::Replaced.close(&old.connection);
        }
    }

    /// Removes the link of this name if it is still here.
    pub(super) fn remove(&mut self, name: u64) {
        for place in [&mut self.ours, &mut self.theirs] {
            if place.as_ref().is_some_and(|link| link.name == name) {
                *place = None;
            }
        }
    }

    /// Whether there is no connection.
    pub(super) fn is_empty(&self) -> bool {
        self.ours.is_none() && self.theirs.is_none()
    }

    /// All connections.
    pub(super) fn all(&self) -> impl Iterator<Item = &Link> {
        self.ours.iter().chain(&self.theirs)
    }

    fn preferred(&self) -> Option<&Link> {
        let (first, second) = if self.preferred_is_ours {
            (&self.ours, &self.theirs)
        } else {
            (&self.theirs, &self.ours)
        };
        first.as_ref().or(second.as_ref())
    }

    /// Whether messages go on the link of this name.
    pub(super) fn is_in_use(&self, name: u64) -> bool {
        self.preferred().is_some_and(|link| link.name == name)
    }

    /// Where messages go.
    pub(super) fn outbox(&self) -> Option<&Outbox> {
        self.preferred().map(|link| &link.outbox)
    }

    /// Where datagrams and exchanges go.
    pub(super) fn connection(&self) -> Option<quinn::Connection> {
        self.preferred().map(|link| link.connection.clone())
    }
}

/// Why a connection between nodes ended. Logged once, where it ends.
#[derive(Debug, thiserror::Error)]
enum PeerError {
    #[error("no connection in time")]
    Timeout,
    #[error(transparent)]
    Connect(#[from] quinn::ConnectError),
    #[error(transparent)]
    Connection(#[from] quinn::ConnectionError),
    #[error(transparent)]
    Tls(#[from] starling_client::transport::TlsError),
    #[error("a client's certificate where a node's is needed")]
    NotANode,
    #[error("node {0} answers where another was expected")]
    OtherNode(NodeId),
    #[error(
        "the node shows this node's own id: two nodes have one id, or a member's address is this node's"
    )]
    OwnId,
    #[error(transparent)]
    Stranger(#[from] Stranger),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("frame of kind {0:?} where it does not belong")]
    UnexpectedKind(FrameKind),
    #[error(transparent)]
    Decode(#[from] codec::DecodeError),
    #[error("a large frame did not arrive in time")]
    LargeFrameTimeout,
}

impl PeerError {
    /// What the other end is told.
    fn close_code(&self) -> CloseCode {
        match self {
            Self::Timeout
            | Self::Connect(_)
            | Self::Connection(_)
            | Self::Frame(FrameError::Read(_)) => CloseCode::Done,
            Self::Tls(_) | Self::NotANode | Self::OtherNode(_) | Self::OwnId => {
                CloseCode::WrongIdentity
            }
            Self::Stranger(Stranger::OtherCluster(_)) => CloseCode::OtherCluster,
            Self::Stranger(Stranger::OtherRing(_)) => CloseCode::OtherRing,
            Self::Frame(_)
            | Self::UnexpectedKind(_)
            | Self::Decode(_)
            | Self::LargeFrameTimeout => CloseCode::Protocol,
        }
    }
}

/// Dials, and serves the connection to its end.
pub(super) async fn dial(driver: Driver, expected: Option<NodeId>, address: SocketAddr) {
    let dialled = tokio::time::timeout(DIAL_TIMEOUT, connect(&driver, expected, address)).await;
    driver.dial_ended(address);
    match dialled.unwrap_or(Err(PeerError::Timeout)) {
        Ok((connection, peer)) => match open(&driver, &connection).await {
            Ok((outbox, reader)) => {
                serve(driver, peer, Some(address), connection, outbox, reader).await;
            }
            Err(error) => {
                tracing::debug!(%peer, %address, %error, "connection to a node was lost at once");
                driver.feed(Input::DialFailed { address });
            }
        },
        Err(error) => {
            match error {
                PeerError::OtherNode(_) | PeerError::OwnId | PeerError::Tls(_) => {
                    tracing::warn!(%address, %error, "dialled the wrong node");
                }
                error => tracing::debug!(%address, %error, "dial failed"),
            }
            driver.feed(Input::DialFailed { address });
        }
    }
}

async fn connect(
    driver: &Driver,
    expected: Option<NodeId>,
    address: SocketAddr,
) -> Result<(quinn::Connection, NodeId), PeerError> {
    let config = driver.config();
    let name = expected.map_or_else(|| NODE_NAME.to_owned(), node_name);
    let connecting = config.endpoint.connect_with(config.peer_config.clone(), address, &name)?;
    let connection = connecting.await?;
    let checked = identify(driver, &connection).and_then(|peer| match expected {
        Some(expected) if expected != peer => Err(PeerError::OtherNode(peer)),
        _ => Ok(peer),
    });
    match checked {
        Ok(peer) => Ok((connection, peer)),
        Err(error) => {
            error.close_code().close(&connection);
            Err(error)
        }
    }
}

fn identify(driver: &Driver, connection: &quinn::Connection) -> Result<NodeId, PeerError> {
    match PeerIdentity::of_connection(connection)? {
        PeerIdentity::Client(_) => Err(PeerError::NotANode),
        PeerIdentity::Node(peer) if peer == driver.config().node => Err(PeerError::OwnId),
        PeerIdentity::Node(peer) => Ok(peer),
    }
}

async fn open(
    driver: &Driver,
    connection: &quinn::Connection,
) -> Result<(Outbox, FrameReader), PeerError> {
    let (send, receive) = connection.open_bi().await?;
    let outbox = Outbox::spawn(connection.clone(), send, driver.config().peer_queue_bytes);
    let hello = &driver.config().hello;
    // A connection that is lost already shows where it is read.
    let _ = outbox.try_push(FrameKind::Hello, 0, |body| codec::encode(hello, body));
    Ok((outbox, FrameReader::shared(receive)))
}

/// Serves a connection that a node dialled to its end.
pub(super) async fn accept(driver: Driver, connection: quinn::Connection) {
    let greeted = tokio::time::timeout(HELLO_TIMEOUT, greet(&driver, &connection)).await;
    match greeted.unwrap_or(Err(PeerError::Timeout)) {
        Ok((peer, outbox, reader)) => serve(driver, peer, None, connection, outbox, reader).await,
        Err(error) => {
            let address = connection.remote_address();
            tracing::warn!(%address, %error, "turned a node away");
            error.close_code().close(&connection);
        }
    }
}

async fn greet(
    driver: &Driver,
    connection: &quinn::Connection,
) -> Result<(NodeId, Outbox, FrameReader), PeerError> {
    let peer = identify(driver, connection)?;
    let (send, receive) = connection.accept_bi().await?;
    let mut reader = FrameReader::shared(receive);
    loop {
        if let Some(frame) = reader.next_frame()? {
            if frame.kind != FrameKind::Hello {
                return Err(PeerError::UnexpectedKind(frame.kind));
            }
            driver.config().hello.check(&codec::decode(frame.body)?)?;
            break;
        }
        if !reader.read().await? {
            return Err(FrameError::Truncated.into());
        }
    }
    let outbox = Outbox::spawn(connection.clone(), send, driver.config().peer_queue_bytes);
    Ok((peer, outbox, reader))
}

/// Reads a peer's connection until it is lost.
async fn serve(
    driver: Driver,
    peer: NodeId,
    dialled: Option<SocketAddr>,
    connection: quinn::Connection,
    outbox: Outbox,
    reader: FrameReader,
) {
    let name = driver.name();
    let address = connection.remote_address();
    tracing::info!(%peer, %address, dialled = dialled.is_some(), "connected to node");
    driver.add_peer(peer, dialled, Link { name, connection: connection.clone(), outbox });
    let mut tasks = Tasks::new();
    tasks.spawn(datagrams(driver.clone(), peer, connection.clone()));
    let ended = tokio::select! {
        biased;
        ended = messages(&driver, peer, reader) => ended,
        ended = large_messages(&driver, peer, &connection) => ended,
        ended = exchanges(&driver, peer, &connection, &mut tasks) => ended,
    };
    match ended {
        Ok(()) => {
            tracing::info!(%peer, "connection to node was closed");
            CloseCode::Done.close(&connection);
        }
        Err(error) => {
            let code = error.close_code();
            if code == CloseCode::Done {
                tracing::info!(%peer, %error, "connection to node was lost");
            } else {
                tracing::warn!(%peer, %error, "connection to node was closed: it does not follow the protocol");
            }
            code.close(&connection);
        }
    }
    driver.remove_peer(peer, name);
}

async fn messages(driver: &Driver, peer: NodeId, mut reader: FrameReader) -> Result<(), PeerError> {
    // What came in the same packet as the greeting is in the reader already.
    loop {
        let mut inputs = Vec::new();
        let ended = loop {
            match reader.next_frame() {
                Ok(None) => break Ok(()),
                Ok(Some(frame)) => match message(peer, frame.kind, frame.body) {
                    Ok(input) => inputs.push(input),
                    Err(error) => break Err(error),
                },
                Err(error) => break Err(error.into()),
            }
        };
        // What came before a bad frame counts.
        driver.feed_all(inputs);
        ended?;
        driver.storage_room().await;
        if !reader.read().await? {
            return Ok(());
        }
    }
}

fn message(from: NodeId, kind: FrameKind, body: &[u8]) -> Result<Input, PeerError> {
    if kind != FrameKind::Peer {
        return Err(PeerError::UnexpectedKind(kind));
    }
    let message: PeerMessage = codec::decode(body)?;
    Ok(Input::Peer { from, message })
}

async fn large_messages(
    driver: &Driver,
    peer: NodeId,
    connection: &quinn::Connection,
) -> Result<(), PeerError> {
    loop {
        driver.storage_room().await;
        let mut stream = connection.accept_uni().await?;
        let read = LargeFrame::read(&mut stream, &driver.config().peer_budget);
        let large = tokio::time::timeout(LARGE_FRAME_TIMEOUT, read)
            .await
            .map_err(|_| PeerError::LargeFrameTimeout)??;
        let frame = large.frame();
        driver.feed(message(peer, frame.kind, frame.body)?);
    }
}

async fn datagrams(driver: Driver, peer: NodeId, connection: quinn::Connection) {
    // An error is the connection's end, which its stream tells as well.
    while let Ok(bytes) = connection.read_datagram().await {
        driver.feed(Input::Gossip { from: peer, bytes });
    }
}

async fn exchanges(
    driver: &Driver,
    peer: NodeId,
    connection: &quinn::Connection,
    tasks: &mut Tasks,
) -> Result<(), PeerError> {
    let turns = Arc::new(Semaphore::new(EXCHANGES_MAX));
    loop {
        let turn = turns.clone().acquire_owned().await.expect("it is never closed");
        let (send, receive) = connection.accept_bi().await?;
        let driver = driver.clone();
        tasks.spawn(async move {
            let _turn = turn;
            let answered = answer_push_pull(&driver, peer, send, receive);
            match tokio::time::timeout(PUSH_PULL_TIMEOUT, answered).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%peer, %error, "push-pull failed"),
                Err(_) => tracing::debug!(%peer, "push-pull took too long"),
            }
        });
    }
}

async fn answer_push_pull(
    driver: &Driver,
    from: NodeId,
    mut send: quinn::SendStream,
    receive: quinn::RecvStream,
) -> Result<(), PeerError> {
    let bytes = read_state(receive, FrameKind::PushPull).await?;
    let (exchange, answer) = driver.add_exchange();
    driver.feed(Input::PushPull { from, exchange, bytes });
    let answered = answer.await;
    driver.remove_exchange(exchange);
    // Without an answer the core did not understand the state, and has said so.
    if let Ok(state) = answered {
        write_state(&mut send, FrameKind::PushPullAnswer, &state).await?;
    }
    Ok(())
}

/// Sends our state to a peer and gives its answer to the core.
pub(super) async fn push_pull(
    driver: Driver,
    to: NodeId,
    connection: quinn::Connection,
    state: Bytes,
) {
    let exchange = async {
        let (mut send, receive) = connection.open_bi().await?;
        write_state(&mut send, FrameKind::PushPull, &state).await?;
        read_state(receive, FrameKind::PushPullAnswer).await
    };
    match tokio::time::timeout(PUSH_PULL_TIMEOUT, exchange).await {
        Ok(Ok(bytes)) => driver.feed(Input::PushPullAnswer { from: to, bytes }),
        Ok(Err(error)) => tracing::debug!(peer = %to, %error, "push-pull failed"),
        Err(_) => tracing::debug!(peer = %to, "push-pull took too long"),
    }
}

async fn write_state(
    stream: &mut quinn::SendStream,
    kind: FrameKind,
    state: &[u8],
) -> Result<(), PeerError> {
    let mut bytes = Vec::new();
    encode_frame(kind, 0, &mut bytes, |body| body.extend_from_slice(state));
    // Either error is the stream's or the connection's end.
    let lost = |_| PeerError::Frame(FrameError::Truncated);
    stream.write_chunk(bytes.into()).await.map_err(lost)?;
    stream.finish().map_err(|_| PeerError::Frame(FrameError::Truncated))
}

async fn read_state(receive: quinn::RecvStream, kind: FrameKind) -> Result<Bytes, PeerError> {
    let mut reader = FrameReader::exchange(receive, PUSH_PULL_FRAME_SIZE_MAX);
    while reader.read().await? {
        if let Some(frame) = reader.next_frame()? {
            if frame.kind != kind {
                return Err(PeerError::UnexpectedKind(frame.kind));
            }
            return Ok(Bytes::copy_from_slice(frame.body));
        }
    }
    Err(FrameError::Truncated.into())
}

#[cfg(test)]
mod tests {
    use starling_client::transport::{
        Credentials, TlsFiles, TransportOptions, bind, client_config, server_config,
    };
    use starling_client::wire::ALPN_PEER;
    use starling_gossip::limits::DATAGRAM_SIZE_MAX;

    use super::*;
    use crate::io::time::wall_s;
    use crate::tls;

    #[test]
    fn the_largest_datagram_of_gossip_fits_a_connection_from_the_start() {
        let dir = tempfile::tempdir().unwrap();
        tls::ensure_development(dir.path(), "test", NodeId(1), wall_s()).unwrap();
        let credentials = Credentials::from_files(&TlsFiles::of_node(dir.path())).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let options = TransportOptions::DEFAULT;
            let server = server_config(credentials.server_crypto(&[ALPN_PEER]).unwrap(), options);
            let address = SocketAddr::from(([127, 0, 0, 1], 0));
            let listening = bind(address, Some(server), None).unwrap();
            let dialling = bind(address, None, None).unwrap();
            let client = client_config(credentials.client_crypto(ALPN_PEER).unwrap(), options);
            let to = listening.local_addr().unwrap();
            let connecting = dialling.connect_with(client, to, NODE_NAME).unwrap();
            let accepting = async { listening.accept().await.unwrap().await.unwrap() };
            let (dialled, accepted) = tokio::join!(connecting, accepting);
            for connection in [dialled.unwrap(), accepted] {
                let fits = connection.max_datagram_size().unwrap();
                assert!(DATAGRAM_SIZE_MAX <= fits, "{fits} bytes fit");
            }
        });
    }
}
