//! The chaos harness: what Starling promises, held against a simulated cluster in which everything fails, and against real
//! processes that are killed under load.
//!
//! [`history`] records a run as data, for checkers that are pure functions of it. [`processes`] starts a cluster of real `starling` processes on 127.0.0.1; the tests in `tests/` put load on it, break it, and
//! judge what is left by `../GUARANTEES` as the README states them. Nothing depends on this crate.

pub mod check;
pub mod history;
pub mod processes;
