//! [`Hidden`]: partitions that were dropped, and whose events still lie in a table or a memtable.
//!
//! Invariant: a partition that is hidden stays so: what comes of it later goes into other memtables and tables.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

/// See the file's head.
#[derive(Debug, Default)]
pub(crate) struct Hidden {
    /// There is one: without any, nobody waits for the lock.
    any: AtomicBool,
    /// Each with about how many events of it there are.
    partitions: RwLock<BTreeMap<u32, u64>>,
}

impl Hidden {
    /// Hides a partition of about so many events.
    pub(crate) fn hide(&self, partition: u32, events: u64) {
        let mut partitions = self.partitions.write().unwrap_or_else(PoisonError::into_inner);
        partitions.insert(partition, events);
        self.any.store(true, Ordering::Release);
    }

    /// Whether any partition is.
    pub(crate) fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// Whether `partition` is hidden.
    #[inline]
    pub(crate) fn has(&self, partition: u32) -> bool {
        self.any.load(Ordering::Acquire) && self.with(|hidden| hidden.contains_key(&partition))
    }

    /// Events of all that is hidden, about.
    pub(crate) fn events(&self) -> u64 {
        if self.any.load(Ordering::Acquire) { self.with(|hidden| hidden.values().sum()) } else { 0 }
    }

    fn with<T>(&self, read: impl FnOnce(&BTreeMap<u32, u64>) -> T) -> T {
        read(&self.partitions.read().unwrap_or_else(PoisonError::into_inner))
    }
}
