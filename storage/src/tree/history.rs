//! What a merge keeps: the keyspace's history retention, and the tombstones.
//!
//! Invariants:
//!
//! - The newest version of a key is kept, whatever the history retention, unless it is a tombstone that may go.
//! - A version goes for its age by when it was replaced, not by when it was written: every read as of a time
//!   within the retention still finds what was current then.
//! - If a version goes, every older one goes too: history has no holes.
//! - A tombstone goes only if its stamp is below the floor of its partition and nothing older is kept, here or
//!   anywhere else; and only if nothing newer is in the merge, since then it is part of a history.
//!
//! A merge sees some of the versions of a key; what would go by those goes by all of them, since further versions
//! can only push it further back.

use starling_clock::Stamp;
use starling_clock::mutation::{self, Mutation};

use crate::{HistoryRetention, Retentions};

/// What becomes of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Keep,
    Drop,
    /// A tombstone: it goes if every older version in the merge goes.
    Hold,
}

/// One event of a merge, as far as retention is concerned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) partition: u32,
    pub(crate) stamp: Stamp,
    pub(crate) is_delete: bool,
    /// What the event's keyspace keeps.
    pub(crate) retention: HistoryRetention,
}

/// Judges the versions of one key after the other, newest first.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Versions of the present key that were kept or held.
    rank: u32,
    /// The version before, which replaced the next one.
    newer: Option<Stamp>,
    /// The last version went: so do the rest.
    dropping: bool,
}

impl History {
    /// The next version is of another key.
    pub(crate) fn next_key(&mut self) {
        *self = Self::default();
    }

    /// Judges the next older version of the key. `has_older_elsewhere` is asked only about a tombstone that could go.
    pub(crate) fn judge(
        &mut self,
        candidate: Candidate,
        retentions: &Retentions,
        now_ms: u64,
        has_older_elsewhere: impl FnOnce() -> bool,
    ) -> Verdict {
        assert!(self.newer.is_none_or(|newer| candidate.stamp < newer));
        let newer = self.newer.replace(candidate.stamp);
        self.dropping = self.dropping
            || newer.is_some_and(|newer| self.exceeds(candidate.retention, newer, now_ms));
        if self.dropping {
            return Verdict::Drop;
        }
        self.rank += 1;
        let may_go = candidate.is_delete
            && newer.is_none()
            && (candidate.stamp < retentions.tombstone_floor(candidate.partition)
                || mutation::is(Mutation::DropTombstoneEarly))
            && !has_older_elsewhere();
        if may_go { Verdict::Hold } else { Verdict::Keep }
    }

    fn exceeds(&self, retention: HistoryRetention, newer: Stamp, now_ms: u64) -> bool {
        let replaced_ms = newer.time.physical_ms();
        retention.versions_max.is_some_and(|versions_max| versions_max <= self.rank)
            || retention.age_ms_max.is_some_and(|age| replaced_ms.saturating_add(age) < now_ms)
    }
}
