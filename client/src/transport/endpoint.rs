//! The QUIC endpoint: one UDP socket and the settings that measured best.
//!
//! Invariants:
//!
//! - What a peer can make us hold unread is bounded by [`TransportOptions::receive_window`] a connection.
//! - All streams of a connection together cannot fill that window, so a stream that nobody reads never stops the others.
//! - A send call stays below 64 KiB: over it the kernel refuses it, quinn-udp drops it, and the connection would
//!   fall back to packets of 1,200 bytes. Hence the cap on segments.
//!
//! It opens no stream and reads no clock.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller, VarInt};
use socket2::{Domain, Protocol, Socket, Type};

/// Kernel buffers of the socket, in bytes each way: the default lost thousands of packets a bulk transfer.
const SOCKET_BUFFER_SIZE: usize = 4 << 20;
/// Largest UDP payload: loopback and jumbo-frame networks take it, discovery finds 1,452 elsewhere.
const UDP_PAYLOAD_SIZE_MAX: u16 = 9000;
/// Packets a send call.
const TRANSMIT_SEGMENTS_MAX: usize = 7;
/// Streams that the peer may have open towards us, each way of use.
const BIDIRECTIONAL_STREAMS_MAX: u32 = 100;
/// Large frames that may be on their way at once.
const UNIDIRECTIONAL_STREAMS_MAX: u32 = 16;
/// Unread bytes of one stream.
const STREAM_WINDOW: u32 = 1 << 20;
/// Unacknowledged bytes that we hold of all streams of a connection.
const SEND_WINDOW: u64 = 16 << 20;
/// Packets that a receiver lets pass before it acknowledges.
const ACK_ELICITING_THRESHOLD: u32 = 10;
/// How long a receiver waits for them. At 1 % loss the usual 25 ms make a lost tail cost 27 ms.
const ACK_DELAY_MAX: Duration = Duration::from_millis(3);
/// Datagrams that wait unread, in bytes.
const DATAGRAM_BUFFER_SIZE: usize = 1 << 20;

const _: () = assert!(TRANSMIT_SEGMENTS_MAX * (UDP_PAYLOAD_SIZE_MAX as usize) < 65_507);
const _: () = assert!(
    (BIDIRECTIONAL_STREAMS_MAX + UNIDIRECTIONAL_STREAMS_MAX) * STREAM_WINDOW
        < TransportOptions::DEFAULT.receive_window,
    "streams that nobody reads leave room for those that somebody reads"
);

/// What differs from use to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransportOptions {
    /// Without a packet for so long the connection is lost.
    pub idle_timeout: Duration,
    /// A quiet connection sends a packet so often; `None`: never. At 1 s, 1,000 connections cost 3.5 % of a core.
    pub keep_alive: Option<Duration>,
    /// Unread bytes of all streams together that the peer may make us hold.
    pub receive_window: u32,
}

impl TransportOptions {
    /// What clients and nodes use unless they are told otherwise: 10 s, kept alive every 3 s, 128 MiB.
    pub const DEFAULT: Self = Self {
        idle_timeout: Duration::from_secs(10),
        keep_alive: Some(Duration::from_secs(3)),
        receive_window: 128 << 20,
    };
}

impl Default for TransportOptions {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Keys that a restarted node must still have: with them it tells peers of connections that it has forgotten, and
/// they dial again at once; without them they wait for the idle timeout.
#[derive(Clone)]
pub struct KeptKeys {
    /// Signs stateless resets.
    pub reset: [u8; 64],
    /// Marks connection ids as ours.
    pub connection_id: u64,
}

impl std::fmt::Debug for KeptKeys {
    /// Without the keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeptKeys").finish_non_exhaustive()
    }
}

/// Binds `address` and makes an endpoint that dials, and takes connections if `server` is given.
///
/// # Errors
/// What the system says: the address is in use, or not ours.
///
/// # Panics
/// Outside a tokio runtime.
pub fn bind(
    address: SocketAddr,
    server: Option<quinn::ServerConfig>,
    keys: Option<&KeptKeys>,
) -> io::Result<quinn::Endpoint> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    // The system caps what it grants without an error; less than this only costs packets.
    socket.set_recv_buffer_size(SOCKET_BUFFER_SIZE)?;
    socket.set_send_buffer_size(SOCKET_BUFFER_SIZE)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        // A system without dual-stack sockets serves IPv6 alone.
        if let Err(error) = socket.set_only_v6(false) {
            tracing::debug!(%error, "socket is IPv6 only");
        }
    }
    socket.bind(&address.into())?;

    let mut config = match keys {
        None => quinn::EndpointConfig::default(),
        Some(keys) => {
            let reset = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &keys.reset);
            let mut config = quinn::EndpointConfig::new(Arc::new(reset));
            let id_key = keys.connection_id;
            config.cid_generator(move || {
                Box::new(quinn_proto::HashedConnectionIdGenerator::from_key(id_key))
            });
            config
        }
    };
    config.max_udp_payload_size(UDP_PAYLOAD_SIZE_MAX).expect("over QUIC's least");
    let runtime = Arc::new(TokioRuntime);
    let socket = runtime.wrap_udp_socket(UdpSocket::from(socket))?;
    let capped = Arc::new(CappedSocket(socket));
    quinn::Endpoint::new_with_abstract_socket(config, server, capped, runtime)
}

/// How an endpoint takes connections.
pub fn server_config(crypto: QuicServerConfig, options: TransportOptions) -> quinn::ServerConfig {
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(transport_config(options)));
    config
}

/// How an endpoint dials.
pub fn client_config(crypto: QuicClientConfig, options: TransportOptions) -> quinn::ClientConfig {
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport_config(options)));
    config
}

fn transport_config(options: TransportOptions) -> quinn::TransportConfig {
    let mut discovery = quinn::MtuDiscoveryConfig::default();
    discovery.upper_bound(UDP_PAYLOAD_SIZE_MAX);
    let mut acknowledgements = quinn::AckFrequencyConfig::default();
    acknowledgements
        .ack_eliciting_threshold(VarInt::from_u32(ACK_ELICITING_THRESHOLD))
        .max_ack_delay(Some(ACK_DELAY_MAX));
    let idle_timeout_ms = u32::try_from(options.idle_timeout.as_millis()).unwrap_or(u32::MAX);

    let mut config = quinn::TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(BIDIRECTIONAL_STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(UNIDIRECTIONAL_STREAMS_MAX))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(options.receive_window))
        .send_window(SEND_WINDOW)
        .mtu_discovery_config(Some(discovery))
        .ack_frequency_config(Some(acknowledgements))
        .max_idle_timeout(Some(VarInt::from_u32(idle_timeout_ms).into()))
        .keep_alive_interval(options.keep_alive)
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_SIZE))
        .datagram_send_buffer_size(DATAGRAM_BUFFER_SIZE);
    config
}

/// A socket that sends at most [`TRANSMIT_SEGMENTS_MAX`] packets a call.
#[derive(Debug)]
struct CappedSocket(Arc<dyn AsyncUdpSocket>);

impl AsyncUdpSocket for CappedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.0.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.0.try_send(transmit)
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_recv(context, buffers, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.0.max_transmit_segments().min(TRANSMIT_SEGMENTS_MAX)
    }

    /// Not capped: it sizes the receive buffers, and what the kernel has put together must fit.
    fn max_receive_segments(&self) -> usize {
        self.0.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.0.may_fragment()
    }
}
