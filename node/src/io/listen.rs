//! Taking connections: handshakes, and who serves what comes of them.
//!
//! Invariants:
//!
//! - Nobody gets past the handshake without a certificate of the cluster's authority, and past [`serve`] without one that names a node or a client.
//! - What a stranger can make the node hold is bounded: handshakes in progress are counted, and above half of the bound a stranger has to show that it
//!   receives what is sent to its address.
//! - Which protocol is spoken (ALPN) says whether it is a client or a peer; a node may speak as a client, a client never as a peer.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use starling_client::transport::{PeerIdentity, negotiated_protocol};
use starling_client::wire::ALPN_PEER;

use super::close_code::CloseCode;
use super::driver::Driver;
use super::{client, peer};

/// Handshakes in progress.
const HANDSHAKES_MAX: usize = 1024;
/// A handshake that takes longer is given up.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Takes connections until the endpoint is closed.
pub(super) async fn accept(driver: Driver) {
    let handshakes = Rc::new(Cell::new(0_usize));
    let endpoint = driver.config().endpoint.clone();
    while let Some(incoming) = endpoint.accept().await {
        if HANDSHAKES_MAX <= handshakes.get() {
            incoming.refuse();
            continue;
        }
        if HANDSHAKES_MAX / 2 <= handshakes.get() && incoming.may_retry() {
            // It may have gone meanwhile; then there is nothing to do.
            let _ = incoming.retry();
            continue;
        }
        handshakes.set(handshakes.get() + 1);
        let (driver, handshakes) = (driver.clone(), handshakes.clone());
        tokio::task::spawn_local(async move {
            let address = incoming.remote_address();
            let connecting = tokio::time::timeout(HANDSHAKE_TIMEOUT, incoming.into_future()).await;
            handshakes.set(handshakes.get() - 1);
            match connecting {
                Ok(Ok(connection)) => serve(driver, connection).await,
                Ok(Err(error)) => tracing::debug!(%address, %error, "handshake failed"),
                Err(_) => tracing::debug!(%address, "handshake took too long"),
            }
        });
    }
}

async fn serve(driver: Driver, connection: quinn::Connection) {
    if negotiated_protocol(&connection).as_deref() == Some(ALPN_PEER) {
        peer::accept(driver, connection).await;
        return;
    }
    if let Err(error) = PeerIdentity::of_connection(&connection) {
        let address = connection.remote_address();
        tracing::warn!(%address, %error, "turned a client away");
        CloseCode::WrongIdentity.close_with(&connection, &error.to_string());
    } else if driver.client_begins() {
        client::serve(driver.clone(), connection).await;
        driver.client_ends();
    } else {
        CloseCode::TooManyConnections.close(&connection);
    }
}
