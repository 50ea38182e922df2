//! Membership and failure detection of Starling, as a value: SWIM (Das, Gupta, Motivala 2002) with suspicion,
//! incarnation numbers, indirect probes and Lifeguard's local health (Dadgar, Phillips, Currey 2018), and small
//! state that spreads with it.
//!
//! Architecture invariant: this crate opens no socket, reads no time and owns no source of chance but a
//! generator seeded by an argument. The machine is [`Gossip`]; its doc says how to drive it. `FORMAT.md` documents
//! the bytes.
//!
//! Architecture invariant: nothing here knows of certificates or addresses as identities. Who a peer is, the
//! caller knows from the connection, and passes as `from`.

mod config;
mod error;
pub mod limits;
mod logarithm;
mod machine;
mod member;
mod register;
mod roster;
mod rumours;
mod wire;

pub use config::{GossipConfig, Instant};
pub use error::GossipError;
pub use machine::{Gossip, Output};
pub use member::{Member, NodeState, Status};
pub use register::Register;
pub use wire::{DecodeError, describe};
