//! The hybrid logical clock of one node (Kulkarni, Demirbas et al., "Logical Physical Clocks", 2014).
//!
//! Invariants:
//!
//! - Every stamp that this clock gives is greater than every stamp that it gave before, across restarts
//!   too, whatever the wall clock does.
//! - It is greater than every stamp observed in this life. Observations are not persisted and may lie above the
//!   durable bound: whoever keeps events over a restart observes the greatest of them again.
//! - A stamp further ahead of the wall clock than the skew bound is refused and changes nothing.
//! - No stamp at or above the durable bound is ever given: a restart that starts at the bound is above
//!   all of them (the same idea as `CockroachDB`'s `server.clock.persist_upper_bound_interval`).
//!
//! The send and receive rules are ours: the crate `hybrid-logical-clock` carries (physical, logical), but its
//! `update()` goes backwards (`tests/crate_update.rs` shows it).
//!
//! Protocol of the bound: when [`Clock::tick`] answers [`BoundNotDurable`], or [`Clock::poll_bound`] answers
//! `Some`, the caller makes [`Clock::wanted_bound`] durable and then calls [`Clock::handle_bound_durable`].

use hybrid_logical_clock::HybridLogicalClock;

use crate::mutation::{self, Mutation};
use crate::{HybridTime, NodeId, Stamp};

/// What a clock may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockConfig {
    /// A remote stamp further than this ahead of our wall clock is refused, in milliseconds.
    /// Larger tolerates worse clocks and lets one bad clock drag the cluster further into the future.
    pub skew_ms_max: u64,
    /// How far ahead of the stamps the durable bound is set, in milliseconds: after a restart stamps
    /// begin that far ahead of the earlier life's at most. Must not be above `skew_ms_max`, or peers refuse a
    /// restarted node. Restarts closer together than this add up until the wall clock has caught up: see [`Clock::ahead_ms`].
    pub bound_window_ms: u64,
}

impl Default for ClockConfig {
    fn default() -> Self {
        Self { skew_ms_max: 500, bound_window_ms: 250 }
    }
}

/// A remote stamp was ahead of our wall clock by more than the bound. The clock is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stamp is {ahead_ms} ms ahead of the wall clock, over the bound of {limit_ms} ms")]
pub struct SkewError {
    /// How far ahead, in milliseconds.
    pub ahead_ms: u64,
    /// [`ClockConfig::skew_ms_max`].
    pub limit_ms: u64,
}

/// The next stamp would be at or above the durable bound. The clock is unchanged: make `wanted` durable first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the clock bound {wanted} is not durable yet")]
pub struct BoundNotDurable {
    /// What has to be durable.
    pub wanted: HybridTime,
}

/// The clock of one node. It never reads the time: the caller passes `now_ms`, milliseconds since the Unix epoch.
#[derive(Clone, Debug)]
pub struct Clock {
    node: NodeId,
    config: ClockConfig,
    /// The greatest time given or observed.
    last: HybridLogicalClock,
    /// Stamps stay below this; it is on disk.
    bound: HybridTime,
}

impl Clock {
    /// A clock that starts at `durable_bound`, which is what an earlier life of this node made durable last,
    /// or [`HybridTime::ZERO`] in its first life.
    ///
    /// # Panics
    /// If the bound window is zero or above the skew bound.
    pub fn new(node: NodeId, config: ClockConfig, durable_bound: HybridTime) -> Self {
        assert!(0 < config.bound_window_ms);
        assert!(config.bound_window_ms <= config.skew_ms_max);
        Self { node, config, last: durable_bound.into(), bound: durable_bound }
    }

    /// Whose clock this is.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The greatest time given or observed.
    pub fn last(&self) -> HybridTime {
        self.last.into()
    }

    /// No stamp at or above this has been given.
    pub fn durable_bound(&self) -> HybridTime {
        self.bound
    }

    /// The rules this clock runs by.
    pub fn config(&self) -> ClockConfig {
        self.config
    }

    /// A stamp for a local event: the send rule of the paper.
    ///
    /// # Errors
    /// [`BoundNotDurable`] if the stamp would reach the durable bound. The clock is unchanged.
    pub fn tick(&mut self, now_ms: u64) -> Result<Stamp, BoundNotDurable> {
        let next = self.next(now_ms);
        if next >= self.bound {
            return Err(BoundNotDurable { wanted: self.wanted_bound(now_ms) });
        }
        assert!(self.last() < next);
        self.last = next.into();
        self.invariants();
        Ok(Stamp::new(next, self.node))
    }

    /// Takes note of a stamp from elsewhere: the receive rule of the paper, less the tick for the receipt
    /// itself, which is no event here.
    ///
    /// # Errors
    /// [`SkewError`] if `remote` is too far ahead of `now_ms`. The clock is unchanged.
    pub fn observe(&mut self, remote: HybridTime, now_ms: u64) -> Result<(), SkewError> {
        let limit_ms = self.config.skew_ms_max;
        let ahead_ms = remote.physical_ms().saturating_sub(now_ms);
        if ahead_ms > limit_ms && !mutation::is(Mutation::IgnoreSkewBound) {
            return Err(SkewError { ahead_ms, limit_ms });
        }
        self.last = self.last().max(remote).into();
        self.invariants();
        Ok(())
    }

    /// The bound that should be made durable now, or `None` while at least half of the window is left.
    pub fn poll_bound(&self, now_ms: u64) -> Option<HybridTime> {
        let half = self.next(now_ms).plus_ms(self.config.bound_window_ms / 2);
        (half >= self.bound).then(|| self.wanted_bound(now_ms))
    }

    /// How far the next stamp would be ahead of the wall clock, in milliseconds.
    pub fn ahead_ms(&self, now_ms: u64) -> u64 {
        self.next(now_ms).physical_ms().saturating_sub(now_ms)
    }

    /// The bound that gives a whole window of stamps from `now_ms` on.
    pub fn wanted_bound(&self, now_ms: u64) -> HybridTime {
        self.next(now_ms).plus_ms(self.config.bound_window_ms)
    }

    /// `bound` is on disk. An older one than the present changes nothing.
    pub fn handle_bound_durable(&mut self, bound: HybridTime) {
        self.bound = self.bound.max(bound);
    }

    fn next(&self, now_ms: u64) -> HybridTime {
        let now = HybridTime::new(now_ms.min(HybridTime::PHYSICAL_MS_MAX), 0);
        now.max(self.last().successor())
    }

    fn invariants(&self) {
        assert!(u16::try_from(self.last.logical).is_ok(), "the carry keeps the counter in 16 bits");
    }
}
