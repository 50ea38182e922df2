//! The checkers: what `GUARANTEES.md` promises, one property a file, each a pure function of a [`History`].
//!
//! Invariants:
//!
//! - A checker sees the history and nothing else: what judges the simulator judges real processes.
//! - Reads and writes are ordered by the true time of the recorder, never by stamps: stamps are what is on trial.
//! - What a checker lets pass it lets pass by name: every exemption stands in [`Facts`] or in the checker, with the sentence of the
//!   contract that allows it.
//! - Every checker has a history that passes and one that does not among its tests, and a bug put in on purpose that it finds
//!   (`README.md` of this crate).

mod bounds;
mod clock;
mod convergence;
mod damage;
mod durability;
mod errors;
mod facts;
mod gaps;
mod local_log;
mod losses;
#[cfg(feature = "mutations")]
pub mod mutations;
mod reads;
mod resurrection;
mod session;
mod survival;
#[cfg(test)]
mod testing;
mod union;
mod versions;
mod winner;

use std::fmt;

use crate::history::History;

pub use facts::Facts;

/// Violations that one checker reports: the first ones say what is wrong, the rest only repeat it.
const REPORTED_MAX: usize = 5;

/// What was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guarantee {
    /// G1.
    Ack,
    /// G2.
    Error,
    /// G3.
    Read,
    /// G4.
    Conflict,
    /// G5.
    Clock,
    /// G6.
    LocalChanges,
    /// G7, as far as the union of the local change logs goes.
    MergedChanges,
    /// G8.
    Gap,
    /// G9.
    Session,
    /// G10.
    Delete,
    /// G11.
    History,
    /// G13: nothing crashes a node.
    Survival,
    /// G14.
    Disk,
    /// The end of G1: all home replicas have everything at last.
    Convergence,
    /// G13: memory is bounded.
    Memory,
}

impl Guarantee {
    /// As `GUARANTEES.md` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ack => "G1 Ack",
            Self::Error => "G2 Error",
            Self::Read => "G3 Read",
            Self::Conflict => "G4 Conflict",
            Self::Clock => "G5 Clock",
            Self::LocalChanges => "G6 Local changes",
            Self::MergedChanges => "G7 Merged changes",
            Self::Gap => "G8 Gap",
            Self::Session => "G9 Session",
            Self::Delete => "G10 Delete",
            Self::History => "G11 History",
            Self::Survival => "G13 Bad input (no crash)",
            Self::Disk => "G14 Disk",
            Self::Convergence => "G1 Ack (convergence)",
            Self::Memory => "G13 Bad input (bounded memory)",
        }
    }
}

impl fmt::Display for Guarantee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A broken promise, with the smallest evidence that the checker has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which promise.
    pub guarantee: Guarantee,
    /// When it showed, in microseconds of the recorder.
    pub at_us: u64,
    /// What is wrong, in one sentence.
    pub what: String,
    /// The operations, events and incidents that show it, one a line.
    pub evidence: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} broken: {}", self.guarantee, self.what)?;
        for line in &self.evidence {
            write!(f, "\n  {line}")?;
        }
        Ok(())
    }
}

/// A checker.
pub type Checker = fn(&Facts<'_>) -> Vec<Violation>;

/// All checkers, those first whose findings explain the others'.
pub const CHECKERS: [(&str, Checker); 15] = [
    ("survival", survival::check),
    ("bounds", bounds::check),
    ("damage", damage::check),
    ("clock", clock::check),
    ("session", session::check),
    ("resurrection", resurrection::check),
    ("local log", local_log::check),
    ("gaps", gaps::check),
    ("durability", durability::check),
    ("errors", errors::check),
    ("reads", reads::check),
    ("winner", winner::check),
    ("versions", versions::check),
    ("union", union::check),
    ("convergence", convergence::check),
];

/// Holds every promise against a history: what was broken, by checker, in the order of [`CHECKERS`]; empty if all were kept.
pub fn check(history: &History) -> Vec<Violation> {
    let facts = Facts::new(history);
    let mut violations = Vec::new();
    for (_, checker) in CHECKERS {
        let mut found = checker(&facts);
        found.sort_by_key(|violation| violation.at_us);
        found.truncate(REPORTED_MAX);
        violations.extend(found);
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::testing::Builder;
    use super::*;

    #[test]
    fn an_empty_history_and_a_quiet_one_break_nothing() {
        let history = History { healed_at_us: Some(0), ..History::default() };
        assert_eq!(check(&history), []);
        let mut quiet = Builder::new();
        let first = quiet.put("k", 1, 0..10, 100);
        quiet.get("k", 2, 20..30, Some(first));
        let second = quiet.put("k", 2, 40..50, 200);
        quiet.get("k", 3, 60..70, Some(second));
        quiet.delete("k", 3, 80..90, 300);
        assert_eq!(check(&quiet.finish()), []);
    }

    #[test]
    fn a_violation_reads_as_a_paragraph() {
        let violation = Violation {
            guarantee: Guarantee::Read,
            at_us: 7,
            what: "a read is stale".to_owned(),
            evidence: vec!["the write".to_owned(), "the read".to_owned()],
        };
        assert_eq!(
            violation.to_string(),
            "G3 Read broken: a read is stale\n  the write\n  the read"
        );
    }
}
