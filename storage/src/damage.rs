//! [`DamageLog`]: what was found damaged since storage was opened, for whoever tells operators of it.
//!
//! Invariants:
//!
//! - A place counts once, however often and by whomever it is met.
//! - Memory is bounded, however much is damaged: [`DAMAGED_PLACES_MAX`] places are told apart, [`DAMAGED_LATEST_MAX`] are told in full.
//!
//! Storage notes by itself only what it passes over when it goes on. What it answers as an error, and what a [`crate::Scrub`] finds, is
//! noted by whoever gets it: many an error is expected there, and who has it knows how it came.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::log::reason;
use crate::offline::Damage;
use crate::{Error, ScrubStatus};

/// Places that are told apart; with so many there may be more.
pub const DAMAGED_PLACES_MAX: usize = 1000;
/// Places that are told with what is wrong.
pub const DAMAGED_LATEST_MAX: usize = 8;

/// How damage was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundBy {
    /// When storage was opened.
    Start,
    /// By a request: a read, or a write that had to look.
    Request,
    /// By a flush, a merge or other background work.
    Work,
    /// By a [`crate::Scrub`].
    Scrub,
}

/// Something on the disk that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedPlace {
    /// File name, relative to the data directory.
    pub file: String,
    /// Where in the file the bad record or block starts; 0 if the file is not there or the place is not known.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
    /// How it was met first.
    pub found_by: FoundBy,
}

/// What a [`DamageLog`] knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DamageStatus {
    /// Damaged places; [`DAMAGED_PLACES_MAX`]: so many or more.
    pub places: u64,
    /// Those of them that were found last, the latest one first.
    pub latest: Vec<DamagedPlace>,
    /// How far the scrub is.
    pub scrub: ScrubStatus,
}

#[derive(Debug, Default)]
struct Known {
    places: BTreeSet<(String, u64)>,
    /// Oldest first.
    latest: VecDeque<DamagedPlace>,
    scrub: ScrubStatus,
}

/// See the file's head. Clones are one log.
#[derive(Clone, Debug, Default)]
pub struct DamageLog(Arc<Mutex<Known>>);

impl DamageLog {
    /// Notes the place that `error` tells of: damage, a file that is not there, or one that cannot be read. Other errors say
    /// nothing of the disk's contents. Tells whether it is a new one.
    pub fn note_error(&self, found_by: FoundBy, error: &Error) -> bool {
        let (file, offset) = match error {
            Error::Corrupt { file, offset, .. } => (file, *offset),
            Error::Missing { file } | Error::Io { file, .. } => (file, 0),
            Error::TooLarge { .. }
            | Error::KeyEmpty
            | Error::Full { .. }
            | Error::Busy { .. }
            | Error::HintsFull { .. }
            | Error::NewerFormat { .. }
            | Error::WrongNode { .. }
            | Error::WrongCluster { .. }
            | Error::Locked
            | Error::Gap { .. }
            | Error::WriteFailed { .. }
            | Error::Poisoned => return false,
        };
        self.note(DamagedPlace { file: file.clone(), offset, what: reason(error), found_by })
    }

    /// Notes what a scrub has found. Tells whether it is new.
    pub fn note_scrubbed(&self, damage: &Damage) -> bool {
        let Damage { file, offset, what, .. } = damage.clone();
        self.note(DamagedPlace { file, offset, what, found_by: FoundBy::Scrub })
    }

    /// How far the scrub is now.
    pub fn set_scrub(&self, scrub: ScrubStatus) {
        self.lock().scrub = scrub;
    }

    /// What is known now.
    pub fn status(&self) -> DamageStatus {
        let known = self.lock();
        DamageStatus {
            places: known.places.len() as u64,
            latest: known.latest.iter().rev().cloned().collect(),
            scrub: known.scrub,
        }
    }

    fn note(&self, place: DamagedPlace) -> bool {
        let mut known = self.lock();
        if known.places.len() == DAMAGED_PLACES_MAX
            || !known.places.insert((place.file.clone(), place.offset))
        {
            return false;
        }
        if known.latest.len() == DAMAGED_LATEST_MAX {
            known.latest.pop_front();
        }
        known.latest.push_back(place);
        true
    }

    /// What is known is whole whenever the lock is free.
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corrupt(offset: u64) -> Error {
        Error::corrupt("tables/a", offset, "block checksum")
    }

    #[test]
    fn a_place_counts_once_whoever_meets_it() {
        let log = DamageLog::default();
        assert_eq!(log.status(), DamageStatus::default());
        assert!(log.note_error(FoundBy::Request, &corrupt(7)));
        assert!(!log.note_error(FoundBy::Work, &corrupt(7)));
        let again = Damage {
            file: "tables/a".to_owned(),
            offset: 7,
            what: "block checksum".to_owned(),
            consequence: String::new(),
        };
        assert!(!log.note_scrubbed(&again));
        assert!(log.clone().note_scrubbed(&Damage { offset: 9, ..again }));
        assert!(log.note_error(FoundBy::Start, &Error::Missing { file: "wal/b".to_owned() }));
        let place = |file: &str, offset, what: &str, found_by| DamagedPlace {
            file: file.to_owned(),
            offset,
            what: what.to_owned(),
            found_by,
        };
        let status = log.status();
        assert_eq!(status.places, 3);
        let expected = [
            place("wal/b", 0, "the file is not there", FoundBy::Start),
            place("tables/a", 9, "block checksum", FoundBy::Scrub),
            place("tables/a", 7, "block checksum", FoundBy::Request),
        ];
        assert_eq!(status.latest, expected);
    }

    #[test]
    fn what_is_no_damage_is_not_noted() {
        let log = DamageLog::default();
        for error in [Error::Poisoned, Error::KeyEmpty, Error::Gap { from: 1, first: 2 }] {
            assert!(!log.note_error(FoundBy::Request, &error), "{error}");
        }
        assert_eq!(log.status().places, 0);
    }

    #[test]
    fn a_disk_that_is_damaged_all_over_takes_bounded_memory() {
        let log = DamageLog::default();
        for offset in 0..2000 {
            log.note_error(FoundBy::Scrub, &corrupt(offset));
        }
        let status = log.status();
        assert_eq!(status.places, DAMAGED_PLACES_MAX as u64);
        let offsets: Vec<u64> = status.latest.iter().map(|place| place.offset).collect();
        assert_eq!(offsets, (992..1000).rev().collect::<Vec<_>>());
        assert_eq!(log.lock().places.len(), DAMAGED_PLACES_MAX);
    }
}
