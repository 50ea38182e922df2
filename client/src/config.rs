//! [`ClientConfig`]: what a client is told when it starts, each field with its consequence.

use std::net::SocketAddr;
use std::time::Duration;

use crate::error::ClientError;
use crate::transport::{Credentials, FRAME_SIZE_MAX, TransportOptions};

/// Settings of a client. Start with [`ClientConfig::new`] and change fields.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// `host:port` of any nodes: one that answers suffices to find the others. They are asked in this order.
    pub addresses: Vec<String>,
    /// What the client trusts and shows.
    pub credentials: Credentials,
    /// Local address of the socket; `None`: any that reaches the first node.
    pub bind: Option<SocketAddr>,
    /// A node that does not take a connection within this is left alone for a while.
    pub connect_timeout: Duration,
    /// How long a call waits that names no timeout, all its attempts together.
    pub request_timeout: Duration,
    /// A node that sends nothing at all for so long while it owes an answer is given up, and the request repeated at
    /// another one. Short: fewer requests wait for a dead node; too short: slow nodes get repeated work.
    pub silence_timeout: Duration,
    /// Requests on their way at once; more wait for their turn within their timeout.
    pub in_flight_max: usize,
    /// How often the client asks who is in the cluster; it asks at once when it notices a change itself.
    pub topology_refresh: Duration,
    /// Bytes of large answers that may be in memory at once.
    pub large_bytes_max: usize,
    /// QUIC's timeouts and window.
    pub transport: TransportOptions,
}

impl ClientConfig {
    /// The usual settings.
    pub fn new<A: Into<String>>(
        addresses: impl IntoIterator<Item = A>,
        credentials: Credentials,
    ) -> Self {
        Self {
            addresses: addresses.into_iter().map(Into::into).collect(),
            credentials,
            bind: None,
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(5),
            silence_timeout: Duration::from_secs(1),
            in_flight_max: 4096,
            topology_refresh: Duration::from_secs(10),
            large_bytes_max: 256 << 20,
            transport: TransportOptions::DEFAULT,
        }
    }

    pub(crate) fn check(&self) -> Result<(), ClientError> {
        let wrong = |problem: &str| Err(ClientError::Config(problem.to_owned()));
        if self.addresses.is_empty() {
            return wrong("give the address of one node at least");
        }
        if self.in_flight_max == 0 || self.in_flight_max > tokio::sync::Semaphore::MAX_PERMITS {
            return wrong("in_flight_max is out of range");
        }
        let timeouts = [
            self.connect_timeout,
            self.request_timeout,
            self.silence_timeout,
            self.topology_refresh,
        ];
        if timeouts.contains(&Duration::ZERO) {
            return wrong("timeouts must be more than zero");
        }
        if self.large_bytes_max < FRAME_SIZE_MAX {
            return wrong("large_bytes_max must hold one message of the largest size");
        }
        Ok(())
    }
}
