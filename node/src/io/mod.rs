//! What the node does outside: sockets, threads, clocks, files. It carries out what [`crate::core`] says and decides nothing.
//!
//! ```text
//! network thread: quinn, the core, timers (one current-thread runtime)
//!    |  requests, a batch a wake-up     ^  answers, a batch a wake-up
//!    v                                  |
//! storage-write: group commits, background work      storage-read: views
//! ```
//!
//! Invariants:
//!
//! - The core runs on one thread, and nothing on that thread waits for the disk once the node serves.
//! - Only `time.rs` reads clocks.
//! - Every queue is bounded by what stands in `driver.rs` and in the configuration.

mod client;
mod close_code;
mod driver;
mod error;
mod lane;
mod listen;
mod peer;
mod start;
mod storage;
mod tasks;
pub mod time;

pub use close_code::CloseCode;
pub use error::NodeError;
pub use start::run;
