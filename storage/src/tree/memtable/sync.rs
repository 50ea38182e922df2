//! The atomics that the memtable is built on: those of the standard library, or loom's in its model.

#[cfg(not(all(loom, test)))]
pub(super) use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

#[cfg(all(loom, test))]
pub(super) use loom::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

#[cfg(not(all(loom, test)))]
pub(super) use std::hint::spin_loop;

/// Lets another thread go on, so that the model ends.
#[cfg(all(loom, test))]
pub(super) use loom::thread::yield_now as spin_loop;
