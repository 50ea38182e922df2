//! The Starling node: `core` decides, `io` carries out.
//!
//! Architecture invariant: [`core`] is a value. It holds no clock, no source of chance, no task, socket or file: `now`, the seed
//! and every answer from outside are arguments, so that a simulator runs the very code that a cluster runs.

pub mod commands;
pub mod config;
pub mod core;
pub mod identity;
pub mod io;
pub mod limits;
pub mod tls;
