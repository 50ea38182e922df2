//! When this node may give stamps: at the start, and after its wall clock was set back.
//!
//! Invariants:
//!
//! - No request is taken before the clock's first bound is on disk, unless no stamp can be given for a while anyway.
//! - No stamp is given that is further ahead of this node's wall clock than the skew bound: the others would refuse it (GUARANTEES G5).
//!
//! A clock starts at its last life's bound, up to a window ahead of what was given. Restarts in quick succession, each with a
//! bound of its own, would add up until peers refuse this node's stamps. So a node whose next stamp is ahead of its wall
//! clock by more than half of the skew bound, the safe part (the other half is for what the clocks differ), waits before it makes
//! another bound durable and takes requests; it serves its peers meanwhile. It never waits longer than such restarts can
//! account for, [`Core::catching_up_ms_max`], because its wall clock may have been set back by hours. Then it takes requests, and refuses
//! those that need a stamp as [`Refusal::ClockAhead`] until the wall clock has caught up. Alone in its cluster it refuses none:
//! there is nobody to take offence.

use starling_clock::mutation::{self, Mutation};
use starling_clock::{SkewError, Stamp};

use super::error::Refusal;
use super::{Core, Phase};

/// No start waits longer for the wall clock, in milliseconds.
const CATCHING_UP_MS_MAX: u64 = 5_000;

impl Core {
    /// The clock moves past what storage holds, unless that is too far ahead: to be called once after [`Core::new`], before
    /// anything is handled. Copies may have brought stamps that nobody could observe.
    pub fn observe_recovered(&mut self, greatest: Stamp) {
        // What is too far ahead does not move the clock, as it did not in the life that took it.
        let _ = self.clock.observe(greatest.time, self.now.wall_ms);
        self.begin_serving();
    }

    /// Takes the next step towards taking requests: waits for the wall clock, makes a bound durable, or begins.
    pub(super) fn begin_serving(&mut self) {
        if self.phase != Phase::Starting {
            return;
        }
        let config = self.clock.config();
        let ahead_ms = self.clock.ahead_ms(self.now.wall_ms);
        let safe_ms = config.skew_ms_max / 2;
        let may_wait = self.now.mono.since_ms(self.started) < self.catching_up_ms_max();
        if may_wait && safe_ms < ahead_ms && ahead_ms - safe_ms <= self.catching_up_ms_max() {
            self.catch_up_at = Some(self.now.mono.plus_ms(ahead_ms - safe_ms));
        } else if config.skew_ms_max < ahead_ms {
            // A bound would be of no use yet: the first stamp that may be given makes one.
            self.phase = Phase::Serving;
        } else {
            self.renew_bound();
        }
    }

    /// The longest that a start waits for the wall clock, in milliseconds, however large the skew bound is. An earlier life was ahead by the skew bound at most,
    /// and its bound by a window more.
    fn catching_up_ms_max(&self) -> u64 {
        let config = self.clock.config();
        let accounted_ms = config.skew_ms_max - config.skew_ms_max / 2 + config.bound_window_ms;
        accounted_ms.min(CATCHING_UP_MS_MAX)
    }

    /// Whether a stamp that is given now could be taken by others.
    pub(super) fn check_clock(&self) -> Result<(), Refusal> {
        let limit_ms = self.clock.config().skew_ms_max;
        let ahead_ms = self.clock.ahead_ms(self.now.wall_ms);
        let is_alone = self.cluster.peers().next().is_none();
        if ahead_ms <= limit_ms || is_alone || mutation::is(Mutation::IgnoreSkewBound) {
            return Ok(());
        }
        Err(Refusal::ClockAhead(SkewError { ahead_ms, limit_ms }))
    }

    /// Whether a stamp from elsewhere is further ahead of the wall clock than the skew bound.
    pub(super) fn is_too_far_ahead(&self, stamp: Stamp) -> bool {
        self.now.wall_ms.saturating_add(self.clock.config().skew_ms_max) < stamp.time.physical_ms()
    }
}
