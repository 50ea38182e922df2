//! [`GossipConfig`]: the timings of the protocol, and [`Instant`], the time they are measured in.
//!
//! Invariants:
//!
//! - A machine runs only with settings that [`GossipConfig::check`] accepts.
//!
//! The defaults are those of memberlist for a local network. Bounds are `limits.rs`'s.

use crate::GossipError;

/// A point of monotonic time, in microseconds since a zero of the caller's choice; a newtype because
/// `std::time::Instant` cannot be made up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub u64);

impl Instant {
    /// `micros` later.
    #[must_use]
    pub const fn plus(self, micros: u64) -> Self {
        Self(self.0.saturating_add(micros))
    }

    /// Microseconds from `earlier` to this, 0 if it is not earlier.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// How fast the protocol runs. Every node of a cluster should have the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GossipConfig {
    /// One member is probed each interval, in microseconds. Shorter notices a crash sooner and costs
    /// a datagram each way per node and interval.
    pub probe_interval_us: u64,
    /// An answer later than this, in microseconds, makes others probe too; at most half the interval, so that they
    /// have as long again. Shorter than a usual pause of a node costs needless indirect probes.
    /// A node in bad local health waits up to nine times as long.
    pub probe_timeout_us: u64,
    /// How many others are asked to probe a member that did not answer. More saves a member behind a
    /// broken path more surely.
    pub indirect_probes: usize,
    /// A suspect has at least this many probe intervals x log10(members) to refute. More gives slow nodes
    /// longer and notices a crash later. It also sets how many others have to agree, this less two,
    /// before the least time is enough.
    pub suspicion_multiplier: u32,
    /// Without anybody agreeing, a suspect has this many times the least time (Lifeguard). More
    /// protects against a single prober that is at fault itself.
    pub suspicion_factor_max: u32,
    /// Rumours go out to `gossip_fanout` members each interval, in microseconds, while there are any.
    pub gossip_interval_us: u64,
    /// How many members are told each gossip interval. More spreads faster and costs as much more traffic.
    pub gossip_fanout: usize,
    /// A rumour is told this many times x log10(members). Fewer leave more to push-pull.
    pub retransmit_multiplier: u32,
    /// Everything is compared with one member each interval, in microseconds, over 32 members with one at
    /// each growing interval. Shorter cures lost rumours sooner and costs the whole state each time.
    pub push_pull_interval_us: u64,
    /// Each dead member is called on by about one other each interval, in microseconds, in case it is back. Shorter
    /// heals a partition sooner and costs a failed connection each time.
    pub reconnect_interval_us: u64,
}

impl Default for GossipConfig {
    fn default() -> Self {
        Self {
            probe_interval_us: 1_000_000,
            probe_timeout_us: 500_000,
            indirect_probes: 3,
            suspicion_multiplier: 4,
            suspicion_factor_max: 6,
            gossip_interval_us: 200_000,
            gossip_fanout: 3,
            retransmit_multiplier: 4,
            push_pull_interval_us: 10_000_000,
            reconnect_interval_us: 10_000_000,
        }
    }
}

/// An hour: longer intervals are a mistake of units.
const INTERVAL_US_MAX: u64 = 3_600_000_000;

impl GossipConfig {
    /// The defaults with every interval scaled so that the probe interval is `probe_interval_us`.
    #[must_use]
    pub fn scaled(probe_interval_us: u64) -> Self {
        let default = Self::default();
        let scale = |interval_us: u64| {
            let scaled = u128::from(interval_us) * u128::from(probe_interval_us)
                / u128::from(default.probe_interval_us);
            u64::try_from(scaled).unwrap_or(u64::MAX)
        };
        Self {
            probe_interval_us,
            probe_timeout_us: scale(default.probe_timeout_us),
            gossip_interval_us: scale(default.gossip_interval_us),
            push_pull_interval_us: scale(default.push_pull_interval_us),
            reconnect_interval_us: scale(default.reconnect_interval_us),
            ..default
        }
    }

    /// Whether a machine can run with these settings.
    ///
    /// # Errors
    /// [`GossipError::Setting`] with the first field that is out of its range.
    pub fn check(&self) -> Result<(), GossipError> {
        let interval = |us: u64| (1_000..=INTERVAL_US_MAX).contains(&us);
        let must = "from 1 millisecond to 1 hour";
        let rules = [
            ("probe_interval_us", interval(self.probe_interval_us), must),
            ("gossip_interval_us", interval(self.gossip_interval_us), must),
            ("push_pull_interval_us", interval(self.push_pull_interval_us), must),
            ("reconnect_interval_us", interval(self.reconnect_interval_us), must),
            (
                "probe_timeout_us",
                0 < self.probe_timeout_us && self.probe_timeout_us <= self.probe_interval_us / 2,
                "above zero and at most half of probe_interval_us",
            ),
            ("indirect_probes", self.indirect_probes <= 16, "at most 16"),
            ("gossip_fanout", (1..=16).contains(&self.gossip_fanout), "from 1 to 16"),
            (
                "suspicion_multiplier",
                (1..=100).contains(&self.suspicion_multiplier),
                "from 1 to 100",
            ),
            (
                "suspicion_factor_max",
                (1..=100).contains(&self.suspicion_factor_max),
                "from 1 to 100",
            ),
            (
                "retransmit_multiplier",
                (1..=100).contains(&self.retransmit_multiplier),
                "from 1 to 100",
            ),
        ];
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            Some((field, _, must)) => Err(GossipError::Setting { field, must }),
            None => Ok(()),
        }
    }
}
