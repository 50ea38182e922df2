//! The checkers' own test: bugs put in on purpose ([`Mutation`]), each of which has to be found.
//!
//! Invariants:
//!
//! - A seed finds a mutation only if the run with it breaks a guarantee and the run of the same seed without it breaks none.
//! - A mutation is set on the thread that simulates, for the time of one run.
//!
//! Only with the feature `mutations`, which the node's program does not compile with.

use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};

use starling_clock::mutation::{self, Mutation};

use super::check;
use crate::sim::plan::Profile;
use crate::sim::{self, Settings};

/// Operations a simulated second and node.
const OPERATIONS_PER_SECOND: u64 = 200;

/// A mutation, and the world in which it shows.
#[derive(Clone, Copy, Debug)]
pub struct Experiment {
    /// The bug.
    pub mutation: Mutation,
    /// What goes wrong meanwhile.
    pub profile: Profile,
    /// In one line.
    pub bug: &'static str,
}

const fn experiment(mutation: Mutation, profile: Profile, bug: &'static str) -> Experiment {
    Experiment { mutation, profile, bug }
}

/// All mutations, in the order of [`Mutation::ALL`].
pub const EXPERIMENTS: [Experiment; Mutation::ALL.len()] = [
    experiment(
        Mutation::AckBeforeQuorum,
        Profile::All,
        "a write is acked after the first replica, whatever the level",
    ),
    experiment(
        Mutation::SkipFsync,
        Profile::Disk,
        "the write-ahead log is not synced before the ack",
    ),
    experiment(Mutation::RetryFsync, Profile::Disk, "after a failed sync the log goes on"),
    experiment(
        Mutation::SkipDirectorySync,
        Profile::Disk,
        "the name of a new segment is not synced",
    ),
    experiment(
        Mutation::ChangesBeforeLog,
        Profile::Disk,
        "the change log shows what the write-ahead log has not synced",
    ),
    experiment(
        Mutation::HintTwice,
        Profile::Net,
        "a hint is put into the change log a second time",
    ),
    experiment(
        Mutation::LoseHints,
        Profile::All,
        "hints of the write-ahead log are lost at a restart",
    ),
    experiment(
        Mutation::ServeUnchecked,
        Profile::Disk,
        "blocks and frames are read without their checksums",
    ),
    experiment(
        Mutation::DropTombstoneEarly,
        Profile::All,
        "a merge drops tombstones without proof",
    ),
    experiment(
        Mutation::ReadBeforeQuorum,
        Profile::All,
        "a read is answered after one replica, whatever the level",
    ),
    experiment(
        Mutation::AnswerBeforeRepair,
        Profile::All,
        "a read is answered before its repairs are on disk",
    ),
    experiment(
        Mutation::TiesByArrival,
        Profile::All,
        "of two events of one millisecond a read takes the first that it sees",
    ),
    experiment(Mutation::NoRestamp, Profile::Clock, "a replica takes an older write as news"),
    experiment(
        Mutation::HideSuperseded,
        Profile::Clock,
        "a write that lost is answered as if it had won",
    ),
    experiment(
        Mutation::ForgetRestartBound,
        Profile::Clock,
        "after a restart the clock starts from the wall clock alone",
    ),
    experiment(
        Mutation::IgnoreSkewBound,
        Profile::Clock,
        "a stamp from the far future moves the clock",
    ),
    experiment(
        Mutation::IgnoreObserved,
        Profile::Clock,
        "what the session has seen does not move the clock",
    ),
    experiment(Mutation::HistoryOfOne, Profile::All, "a history is what one replica has"),
    experiment(
        Mutation::NoConvergence,
        Profile::All,
        "replicas are never compared, and hints never delivered",
    ),
];

/// How a mutation was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The seed that found it.
    pub seed: u64,
    /// The guarantee that broke first, in the order of [`super::CHECKERS`].
    pub guarantee: &'static str,
    /// What was wrong, in one sentence.
    pub what: String,
}

impl Experiment {
    /// The first seed that finds the mutation.
    pub fn find(&self, seeds: RangeInclusive<u64>) -> Option<Found> {
        seeds.into_iter().find_map(|seed| self.try_seed(seed))
    }

    /// What a run does.
    pub fn settings(&self, seed: u64) -> Settings {
        let profile = self.profile;
        Settings { profile, operations_per_second: OPERATIONS_PER_SECOND, ..Settings::new(seed) }
    }

    fn try_seed(&self, seed: u64) -> Option<Found> {
        let settings = self.settings(seed);
        let (guarantee, what) = broken(&settings, Some(self.mutation))?;
        broken(&settings, None).is_none().then_some(Found { seed, guarantee, what })
    }
}

/// What a run breaks first. A simulator that panics found something too.
fn broken(settings: &Settings, mutated: Option<Mutation>) -> Option<(&'static str, String)> {
    let before = mutation::set(mutated);
    let run = catch_unwind(AssertUnwindSafe(|| sim::run(settings, None)));
    mutation::set(before);
    match run {
        Ok(run) => {
            let violation = check(&run.history).into_iter().next()?;
            Some((violation.guarantee.name(), violation.what))
        }
        Err(_) => Some(("the simulator", "panicked".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutation_has_its_experiment() {
        assert!(EXPERIMENTS.iter().map(|it| it.mutation).eq(Mutation::ALL));
    }

    #[test]
    fn a_mutation_is_found_and_gone_afterwards() {
        let experiment = &EXPERIMENTS[0];
        let found = experiment.find(1..=20);
        assert!(found.is_some(), "{experiment:?}");
        assert!(!mutation::is(experiment.mutation));
    }
}
