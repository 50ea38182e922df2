//! The client and its transport against small nodes in the same process, over real QUIC on loopback.

mod changes;
mod connections;
mod protocol;
mod requests;
mod support;
mod transport;
