//! [`Stamp`]: the identity and the order of an event, in 16 bytes.
//!
//! Invariants:
//!
//! - Byte order of [`Stamp::to_bytes`] is time order: (milliseconds, logical, node), big-endian.
//! - The packed first half fits a positive `i64`, so that it can serve as an offset in systems whose
//!   offsets are signed: milliseconds stay below 2^47 (the year 6429).
//! - Milliseconds above the bound are unrepresentable: decoding refuses them, counting saturates never,
//!   it panics at the end of time.

use std::fmt;
use std::str::FromStr;

use hybrid_logical_clock::HybridLogicalClock;

/// A member of the cluster. Chosen by the operator or drawn at random once; never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A point in hybrid time: 48 bits of milliseconds since the Unix epoch, 16 bits of logical counter.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HybridTime(u64);

impl HybridTime {
    /// Before every event.
    pub const ZERO: Self = Self(0);
    /// After every event.
    pub const MAX: Self = Self(i64::MAX as u64);
    /// The largest millisecond that can be told.
    pub const PHYSICAL_MS_MAX: u64 = (1 << 47) - 1;

    /// A point in time from its parts.
    ///
    /// # Panics
    /// If `physical_ms` is over [`Self::PHYSICAL_MS_MAX`].
    pub const fn new(physical_ms: u64, logical: u16) -> Self {
        assert!(physical_ms <= Self::PHYSICAL_MS_MAX);
        Self(physical_ms << 16 | logical as u64)
    }

    /// From the packed form; `None` if it is beyond [`Self::MAX`].
    pub const fn from_packed(packed: u64) -> Option<Self> {
        if packed <= Self::MAX.0 { Some(Self(packed)) } else { None }
    }

    /// Milliseconds since the Unix epoch.
    pub const fn physical_ms(self) -> u64 {
        self.0 >> 16
    }

    /// The counter within one millisecond.
    pub const fn logical(self) -> u16 {
        (self.0 & 0xffff) as u16
    }

    /// The packed form: order of numbers is order of time; fits a positive `i64`.
    pub const fn packed(self) -> u64 {
        self.0
    }

    /// The next point in time; overflow of the logical part carries into the physical one.
    ///
    /// # Panics
    /// At the end of time, [`Self::MAX`].
    #[must_use]
    pub const fn successor(self) -> Self {
        assert!(self.0 < Self::MAX.0);
        Self(self.0 + 1)
    }

    /// `ms` milliseconds later, at most [`Self::MAX`]; the logical part is kept.
    #[must_use]
    pub const fn plus_ms(self, ms: u64) -> Self {
        let room = Self::PHYSICAL_MS_MAX - self.physical_ms();
        let ms = if ms < room { ms } else { room };
        Self(self.0 + (ms << 16))
    }
}

impl From<HybridTime> for HybridLogicalClock {
    fn from(time: HybridTime) -> Self {
        Self::new_with_both_physical_and_logical_clock_time(
            time.physical_ms(),
            u32::from(time.logical()),
        )
    }
}

impl From<HybridLogicalClock> for HybridTime {
    /// Carries a logical part over 16 bits into the physical part.
    fn from(clock: HybridLogicalClock) -> Self {
        let carry = u64::from(clock.logical >> 16);
        Self::new(clock.physical + carry, (clock.logical & 0xffff) as u16)
    }
}

impl fmt::Display for HybridTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.physical_ms(), self.logical())
    }
}

impl fmt::Debug for HybridTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// When and where an event was made: unique in the cluster, totally ordered, time first.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    /// Hybrid time.
    pub time: HybridTime,
    /// The coordinator that gave the stamp; breaks ties.
    pub node: NodeId,
}

impl Stamp {
    /// Before every event.
    pub const ZERO: Self = Self { time: HybridTime::ZERO, node: NodeId(0) };
    /// After every event.
    pub const MAX: Self = Self { time: HybridTime::MAX, node: NodeId(u64::MAX) };
    /// Encoded size in bytes.
    pub const SIZE: usize = 16;

    /// A stamp from its parts.
    pub const fn new(time: HybridTime, node: NodeId) -> Self {
        Self { time, node }
    }

    /// As one number, whose order is the order of stamps.
    pub const fn to_bits(self) -> u128 {
        (self.time.packed() as u128) << 64 | self.node.0 as u128
    }

    /// The reverse of [`Self::to_bits`]; `None` if the time is out of range.
    #[expect(clippy::cast_possible_truncation, reason = "each half is taken by itself")]
    pub const fn from_bits(bits: u128) -> Option<Self> {
        match HybridTime::from_packed((bits >> 64) as u64) {
            Some(time) => Some(Self { time, node: NodeId(bits as u64) }),
            None => None,
        }
    }

    /// Big-endian, so that the order of bytes is the order of stamps.
    pub const fn to_bytes(self) -> [u8; Self::SIZE] {
        self.to_bits().to_be_bytes()
    }

    /// The reverse of [`Self::to_bytes`]; `None` if the time is out of range.
    pub const fn from_bytes(bytes: [u8; Self::SIZE]) -> Option<Self> {
        Self::from_bits(u128::from_be_bytes(bytes))
    }
}

/// `<milliseconds>.<logical>@<node>`, the form that the command line prints and takes.
impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.time, self.node)
    }
}

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Text that is not a stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a stamp reads <milliseconds>.<logical>@<node>, for example 1517363399650.0@1")]
pub struct ParseStampError;

impl FromStr for Stamp {
    type Err = ParseStampError;

    fn from_str(text: &str) -> Result<Self, ParseStampError> {
        let (time, node) = text.split_once('@').ok_or(ParseStampError)?;
        let (physical, logical) = time.split_once('.').ok_or(ParseStampError)?;
        let physical: u64 = physical.parse().map_err(|_| ParseStampError)?;
        if physical > HybridTime::PHYSICAL_MS_MAX {
            return Err(ParseStampError);
        }
        let logical = logical.parse().map_err(|_| ParseStampError)?;
        let node = node.parse().map_err(|_| ParseStampError)?;
        Ok(Self::new(HybridTime::new(physical, logical), NodeId(node)))
    }
}
