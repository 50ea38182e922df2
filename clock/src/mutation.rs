//! [`Mutation`]: bugs that can be put into the code on purpose, to prove that the checkers of `chaos/` find them.
//!
//! Invariants:
//!
//! - Without the feature `mutations` every question is a constant `false`, and nothing of a mutation is in the program.
//! - The feature is never a default, and the node's program does not compile with it.
//! - With the feature, a thread has at most one mutation, and none unless somebody sets it.
//!
//! It stands in this crate because every crate that has mutations uses this one. It does not say what a mutation does: the place
//! that asks does, in one line.

/// A bug, named by what goes wrong. The comment says which guarantee has to notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutation {
    /// A write is answered `Ok` after the first replica, whatever the level (G1).
    AckBeforeQuorum,
    /// The write-ahead log is not synced before the answer (G1).
    SkipFsync,
    /// After a failed sync the log goes on as if nothing had happened (G14).
    RetryFsync,
    /// A new segment's name is not synced (G1).
    SkipDirectorySync,
    /// What the write-ahead log has not on disk yet is let into the change log (G6).
    ChangesBeforeLog,
    /// An event that comes again as a hint is put into the change log again (G6).
    HintTwice,
    /// Hints that are only in the write-ahead log are forgotten at a restart (G1, level ANY).
    LoseHints,
    /// Blocks and frames are served without a look at their checksum (G14).
    ServeUnchecked,
    /// A merge drops tombstones without proof that everybody has them (G10).
    DropTombstoneEarly,
    /// A read is answered after one replica, whatever the level (G3).
    ReadBeforeQuorum,
    /// A read is answered before what it repairs is on disk (G3).
    AnswerBeforeRepair,
    /// Of two events of one millisecond a read takes the one that it sees first (G4).
    TiesByArrival,
    /// A replica takes a write that is older than what it has as if it were news (G4).
    NoRestamp,
    /// A write that lost is answered as if it had won (G4).
    HideSuperseded,
    /// After a restart the clock starts from the wall clock alone (G5).
    ForgetRestartBound,
    /// A stamp from the far future moves the clock (G5).
    IgnoreSkewBound,
    /// What the session has seen does not move the clock (G5, G9).
    IgnoreObserved,
    /// A history is what one replica has, not the union (G11).
    HistoryOfOne,
    /// Replicas are never compared, and hints are never delivered (G1, convergence).
    NoConvergence,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::AckBeforeQuorum,
        Self::SkipFsync,
        Self::RetryFsync,
        Self::SkipDirectorySync,
        Self::ChangesBeforeLog,
        Self::HintTwice,
        Self::LoseHints,
        Self::ServeUnchecked,
        Self::DropTombstoneEarly,
        Self::ReadBeforeQuorum,
        Self::AnswerBeforeRepair,
        Self::TiesByArrival,
        Self::NoRestamp,
        Self::HideSuperseded,
        Self::ForgetRestartBound,
        Self::IgnoreSkewBound,
        Self::IgnoreObserved,
        Self::HistoryOfOne,
        Self::NoConvergence,
    ];
}

/// Whether this thread runs with the mutation: never, without the feature.
#[cfg(not(feature = "mutations"))]
#[inline]
pub const fn is(_mutation: Mutation) -> bool {
    false
}

#[cfg(feature = "mutations")]
pub use active::{is, set};

#[cfg(feature = "mutations")]
mod active {
    use std::cell::Cell;

    use super::Mutation;

    thread_local! {
        static ACTIVE: Cell<Option<Mutation>> = const { Cell::new(None) };
    }

    /// Whether this thread runs with the mutation.
    pub fn is(mutation: Mutation) -> bool {
        ACTIVE.get() == Some(mutation)
    }

    /// From now on this thread runs with this mutation, or with none. Tells the one before.
    pub fn set(mutation: Option<Mutation>) -> Option<Mutation> {
        ACTIVE.replace(mutation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_listed_once_in_order() {
        assert!(Mutation::ALL.is_sorted_by(|before, after| before < after));
        assert_eq!(Mutation::ALL[Mutation::ALL.len() - 1], Mutation::NoConvergence);
        assert_eq!(Mutation::NoConvergence as usize + 1, Mutation::ALL.len());
    }

    #[test]
    fn nothing_is_mutated_unless_it_is_set() {
        assert!(!Mutation::ALL.into_iter().any(is));
    }

    #[cfg(feature = "mutations")]
    #[test]
    fn one_is_set_at_a_time() {
        assert_eq!(set(Some(Mutation::SkipFsync)), None);
        assert!(is(Mutation::SkipFsync) && !is(Mutation::RetryFsync));
        assert_eq!(set(None), Some(Mutation::SkipFsync));
        assert!(!is(Mutation::SkipFsync));
    }
}
