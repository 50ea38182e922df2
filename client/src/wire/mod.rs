//! What clients and nodes say to each other. `PROTOCOL.md` is the document; these types are the code.
//!
//! Invariants:
//!
//! - Variants and fields are only ever added at the end, with a new protocol version in the ALPN name.
//! - No type contains itself; every length is bounded when it is decoded (`codec.rs`).

mod changes;
mod error;
mod request;
mod topology;

pub use changes::{Change, ChangesFrom, ChangesItem, ChangesRequest, Provenance};
pub use error::{ErrorCode, ErrorKind, WireError};
pub use request::{
    Action, Cursor, Durability, Header, KeyspaceSettings, Level, Request, RequestId, Response, Row,
    Version,
};
pub use topology::{
    DAMAGED_PLACES_MAX, DamageStatus, DamagedPlace, FoundBy, Liveness, MemberInfo, NodeStatus,
    PeerHints, StorageStatus, Topology,
};

/// Version of the client protocol; part of [`ALPN_CLIENT`].
pub const PROTOCOL_VERSION: u16 = 1;
/// What a client says it speaks.
pub const ALPN_CLIENT: &[u8] = b"starling/1";
/// What a node says that it speaks to a node.
pub const ALPN_PEER: &[u8] = b"starling-peer/1";

/// Longest key, in bytes.
pub const KEY_SIZE_MAX: usize = 4096;
/// Longest payload that any configuration may allow, in bytes.
pub const PAYLOAD_SIZE_LIMIT: usize = 64 << 20;
/// Longest payload by default, in bytes.
pub const PAYLOAD_SIZE_DEFAULT: usize = 16 << 20;
/// Longest keyspace name, in bytes: lower-case letters, digits, `-`, `_` and `.`.
pub const KEYSPACE_NAME_SIZE_MAX: usize = 64;
/// Most rows or versions that one page carries.
pub const PAGE_ROWS_MAX: u32 = 10_000;
/// Bytes of keys and payloads after which a page ends, one row at the least.
pub const PAGE_BYTES_MAX: usize = 1 << 20;
