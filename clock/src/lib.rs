//! Time in Starling: [`Stamp`], [`NodeId`] and the hybrid logical clock ([`Clock`]).
//!
//! Architecture invariant: this crate never reads the time. The caller passes `now_ms`, so a simulator
//! can run it with any clock it likes, and a property test can make that clock lie.

mod clock;
pub mod mutation;
mod stamp;

pub use clock::{BoundNotDurable, Clock, ClockConfig, SkewError};
pub use stamp::{HybridTime, NodeId, ParseStampError, Stamp};
