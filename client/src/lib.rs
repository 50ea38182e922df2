//! The client library of Starling, its wire protocol and its QUIC transport.

pub mod codec;
pub mod transport;
pub mod wire;
