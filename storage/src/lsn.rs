//! [`Lsn`]: a position in the write-ahead log.

use std::fmt;

/// Number of a record in the write-ahead log. The first is 1, each next one more, for ever; 0 is before all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
