//! [`Slot`]: where something that the cache may have was found last, so that most uses of it need no search.
//!
//! Invariants:
//!
//! - What is in a slot does not stay in memory for it: it is there for as long as the cache, or who uses it, keeps it.
//! - The cache is told of the first use after it took something and of one in [`TOLD_EVERY`] from then on: what is
//!   in use stays.
//! - Nobody waits: a slot that another thread looks at is as good as an empty one.
//!
//! A search in the cache waits for memory four or five times, one after the other; a slot lies beside what led to it.

use std::sync::{Arc, Mutex, Weak};

/// The cache is told of one in so many uses.
const TOLD_EVERY: u32 = 4;

/// See the file's head.
#[derive(Debug)]
pub(super) struct Slot<T> {
    /// What was found, and how often it was used since it was read.
    found: Mutex<(Weak<T>, u32)>,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self { found: Mutex::new((Weak::new(), 0)) }
    }
}

impl<T> Slot<T> {
    /// So many empty ones.
    pub(super) fn list(count: usize) -> Box<[Self]> {
        std::iter::repeat_with(Self::default).take(count).collect()
    }

    /// What was found; `None` if that is not known, or it is time to ask the cache.
    pub(super) fn get(&self) -> Option<Arc<T>> {
        let mut found = self.found.try_lock().ok()?;
        let (what, uses) = &mut *found;
        *uses = uses.wrapping_add(1);
        if *uses % TOLD_EVERY == 1 { None } else { what.upgrade() }
    }

    /// The cache had this.
    pub(super) fn found(&self, what: &Arc<T>) {
        if let Ok(mut found) = self.found.try_lock()
            && found.0.as_ptr() != Arc::as_ptr(what)
        {
            found.0 = Arc::downgrade(what);
        }
    }

    /// The cache took this just now.
    pub(super) fn read(&self, what: &Arc<T>) {
        if let Ok(mut found) = self.found.try_lock() {
            *found = (Arc::downgrade(what), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_told_of_the_first_use_and_of_some_of_the_rest() {
        let slot = Slot::default();
        let block = Arc::new(7);
        slot.read(&block);
        let known = |_| slot.get().inspect(|found| assert!(Arc::ptr_eq(found, &block))).is_some();
        let known: Vec<bool> = (0..9).map(known).collect();
        assert_eq!(known, [false, true, true, true, false, true, true, true, false]);
    }

    #[test]
    fn nothing_is_kept() {
        let slot = Slot::default();
        let block = Arc::new(7);
        slot.read(&block);
        assert_eq!((Arc::strong_count(&block), slot.get()), (1, None));
        drop(block);
        assert_eq!((slot.get(), slot.get()), (None, None));
    }

    #[test]
    fn what_is_read_again_replaces_what_was() {
        let slot = Slot::default();
        let (old, new) = (Arc::new(1), Arc::new(2));
        slot.read(&old);
        slot.found(&new);
        slot.get();
        assert_eq!(slot.get(), Some(new));
    }
}
