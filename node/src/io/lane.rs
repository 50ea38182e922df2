//! [`Mailbox`]: what one thread hands to another, a batch a wake-up.
//!
//! Invariants:
//!
//! - Order is kept, and everything sent before [`Mailbox::close`] is taken.
//! - The taker gets all that waits at once: under load a group, alone without delay.
//!
//! It has no bound of its own: whoever sends counts what is unanswered and stops taking work in (`driver.rs`).

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// A queue from one thread to another.
#[derive(Debug)]
pub(super) struct Mailbox<T> {
    state: Mutex<State<T>>,
    wake: Condvar,
}

#[derive(Debug)]
struct State<T> {
    items: Vec<T>,
    closed: bool,
    nudged: bool,
}

/// What [`Mailbox::take`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Something.
    Items,
    /// Nothing, for as long as it was allowed to wait or until it was nudged.
    Nothing,
    /// Nothing, and nothing more comes.
    Closed,
}

impl<T> Mailbox<T> {
    /// An empty one.
    pub(super) fn new() -> Self {
        let state = Mutex::new(State { items: Vec::new(), closed: false, nudged: false });
        Self { state, wake: Condvar::new() }
    }

    /// Puts all of `items` in, in order, and leaves the list empty.
    pub(super) fn send(&self, items: &mut Vec<T>) {
        if items.is_empty() {
            return;
        }
        let mut state = self.state();
        let was_empty = state.items.is_empty();
        state.items.append(items);
        drop(state);
        if was_empty {
            self.wake.notify_one();
        }
    }

    /// Wakes the taker, even if there is nothing to take.
    pub(super) fn nudge(&self) {
        self.state().nudged = true;
        self.wake.notify_one();
    }

    /// Nothing more comes.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.wake.notify_one();
    }

    /// Moves all that waits to the end of `items`; waits for something, or a nudge, up to `timeout`, `None`: for ever.
    pub(super) fn take(&self, items: &mut Vec<T>, timeout: Option<Duration>) -> Taken {
        let mut state = self.state();
        let nothing =
            |state: &mut State<T>| state.items.is_empty() && !state.closed && !state.nudged;
        state = match timeout {
            None => self.wake.wait_while(state, nothing).expect("nobody panics with this lock"),
            Some(Duration::ZERO) => state,
            Some(timeout) => {
                let waited = self.wake.wait_timeout_while(state, timeout, nothing);
                waited.expect("nobody panics with this lock").0
            }
        };
        state.nudged = false;
        if !state.items.is_empty() {
            items.append(&mut state.items);
            return Taken::Items;
        }
        if state.closed { Taken::Closed } else { Taken::Nothing }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().expect("nobody panics with this lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_comes_at_once_and_in_order() {
        let (mailbox, mut taken) = (Mailbox::new(), Vec::new());
        assert_eq!(mailbox.take(&mut taken, Some(Duration::ZERO)), Taken::Nothing);
        mailbox.send(&mut vec![1, 2]);
        mailbox.send(&mut vec![3]);
        mailbox.close();
        assert_eq!(mailbox.take(&mut taken, None), Taken::Items);
        assert_eq!(taken, [1, 2, 3]);
        assert_eq!(mailbox.take(&mut taken, None), Taken::Closed);
    }

    #[test]
    fn a_nudge_ends_one_wait() {
        let (mailbox, mut taken) = (Mailbox::<u8>::new(), Vec::new());
        mailbox.nudge();
        assert_eq!(mailbox.take(&mut taken, None), Taken::Nothing);
        mailbox.close();
        assert_eq!(mailbox.take(&mut taken, None), Taken::Closed);
    }

    #[test]
    fn a_waiting_taker_is_woken() {
        let mailbox = Mailbox::new();
        std::thread::scope(|scope| {
            let taker = scope.spawn(|| {
                let mut taken = Vec::new();
                while mailbox.take(&mut taken, None) == Taken::Items {}
                taken
            });
            for item in 0..1000 {
                mailbox.send(&mut vec![item]);
            }
            mailbox.close();
            assert_eq!(taker.join().unwrap(), (0..1000).collect::<Vec<_>>());
        });
    }
}
