//! The only place of the client that reads a clock.
//!
//! Invariants:
//!
//! - Monotonic time only: wall-clock time is the nodes' business, the client carries theirs back to them.

use std::time::Duration;

use tokio::time::Instant;

/// The present.
#[expect(clippy::disallowed_methods, reason = "this is where the client reads the clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// When a caller stops waiting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    /// `timeout` from now; a timeout beyond the end of time is a year.
    pub(crate) fn after(timeout: Duration) -> Self {
        const YEAR: Duration = Duration::from_hours(365 * 24);
        Self(now() + timeout.min(YEAR))
    }

    /// When.
    pub(crate) fn at(self) -> Instant {
        self.0
    }

    /// How long that is from now on; zero once it has passed.
    pub(crate) fn remaining(self) -> Duration {
        self.0.saturating_duration_since(now())
    }

    /// The same for the wire, rounded up so that a wait is never told as none.
    pub(crate) fn remaining_ms(self) -> u32 {
        u32::try_from(self.remaining().as_micros().div_ceil(1000)).unwrap_or(u32::MAX)
    }
}
