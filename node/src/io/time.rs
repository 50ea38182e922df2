//! The only place of the node that reads clocks.
//!
//! Invariants:
//!
//! - Monotonic time counts from the moment the clock was made and never goes back; copies of a clock agree.
//! - The wall clock is told as the system tells it: it may jump, and the core knows.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::core::types::{Instant, Now};

/// Both clocks of this process.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: std::time::Instant,
}

impl Clock {
    /// A clock whose monotonic time begins now.
    #[expect(clippy::disallowed_methods, reason = "this is where the node reads the clock")]
    pub fn start() -> Self {
        Self { origin: std::time::Instant::now() }
    }

    /// Both clocks.
    pub fn now(&self) -> Now {
        Now { mono: self.mono(), wall_ms: wall_ms() }
    }

    /// The monotonic clock.
    pub fn mono(&self) -> Instant {
        let elapsed = self.origin.elapsed().as_micros();
        Instant(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }

    /// How long it is until `when`; zero if it has passed.
    pub fn until(&self, when: Instant) -> Duration {
        Duration::from_micros(when.0.saturating_sub(self.mono().0))
    }
}

/// Milliseconds since the Unix epoch; 0 before it.
#[expect(clippy::disallowed_methods, reason = "this is where the node reads the clock")]
pub fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Seconds since the Unix epoch, for certificates.
pub fn wall_s() -> u64 {
    wall_ms() / 1000
}
