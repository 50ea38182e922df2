//! The client and its transport against small nodes in the same process, over real QUIC on loopback.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod changes;
mod connections;
mod protocol;
mod requests;
mod support;
mod transport;
