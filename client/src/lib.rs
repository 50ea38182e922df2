//! The client library of Starling, its wire protocol and its QUIC transport.
//!
//! [`Client`] is where to begin. `PROTOCOL.md` describes what travels; [`wire`], [`codec`] and [`transport`] are
//! the code of it, which the node uses as well.
//!
//! Architecture invariant: this crate decides placement by `starling-ring` alone, and reads the clock in one file.

mod call;
mod changes;
mod client;
pub mod codec;
mod config;
mod connection;
mod error;
mod event;
mod keyspace;
mod nodes;
mod routing;
mod time;
pub mod transport;
pub mod wire;

pub use bytes::Bytes;
pub use changes::{AllChanges, Changes, NodeChanges};
pub use client::Client;
pub use config::ClientConfig;
pub use error::ClientError;
pub use event::{Change, ChangesEvent, Row, Version, Written};
pub use keyspace::{Get, History, HistoryPages, Keyspace, Scan, ScanPages, Write};
pub use routing::epoch_of;
pub use starling_clock::{HybridTime, NodeId, Stamp};
pub use transport::{Credentials, TlsError, TlsFiles, TransportOptions};
pub use wire::{
    Action, ChangesFrom, Cursor, Durability, ErrorCode, ErrorKind, KeyspaceSettings, Level,
    Liveness, MemberInfo, NodeStatus, Provenance, RequestId, Topology, WireError,
};
