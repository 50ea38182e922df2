//! The chaos harness: what Starling promises, held against a simulated cluster in which everything fails, and against real
//! processes that are killed under load.
//!
//! [`workload`] draws what clients ask; [`sim`] runs it on a simulated cluster and records a [`history`], which [`check`] judges by
//! `../GUARANTEES`, as the README states them. [`processes`] starts a cluster of real `starling` processes on 127.0.0.1; the tests
//! in `tests/` put load on it, break it, and judge what is left. Nothing depends on this crate.

pub mod check;
pub mod history;
pub mod processes;
pub mod sim;
pub mod workload;
