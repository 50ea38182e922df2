//! The `starling node` process from outside: what it takes, what it refuses, how it stops and comes back.
//!
//! Every test runs the built program on a port of the system's choice and speaks QUIC to it. Waiting is for a
//! condition, up to a deadline.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod admission;
mod frames;
mod life;
mod requests;
mod support;
