//! What there is to tell, and how often each has been told: the retransmission queue of SWIM.
//!
//! Invariants:
//!
//! - There is at most one rumour about a member, and one about a register: the newest knowledge replaces
//!   the older, so the queue is bounded by what may be known.
//! - The order of telling is least told first, and among those the freshest first.
//!
//! It holds subjects, not bytes: a rumour is written from what is known when it is told.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use starling_clock::NodeId;

/// What a rumour is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    Member(NodeId),
    Register(String),
}

/// The place of a rumour in the order: times told, then age.
type Rank = (u32, Reverse<u64>);

/// The queue.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rumours {
    ranks: BTreeMap<Subject, Rank>,
    order: BTreeSet<(Rank, Subject)>,
    next_age: u64,
}

impl Rumours {
    pub(crate) fn is_empty(&self) -> bool {
        self.ranks.is_empty()
    }

    pub(crate) fn contains(&self, subject: &Subject) -> bool {
        self.ranks.contains_key(subject)
    }

    /// There is news of `subject`: it counts as never told.
    pub(crate) fn push(&mut self, subject: Subject) {
        let rank = (0, Reverse(self.next_age));
        self.next_age += 1;
        self.remove(&subject);
        self.order.insert((rank, subject.clone()));
        self.ranks.insert(subject, rank);
        self.invariants();
    }

    /// Forgets a rumour.
    pub(crate) fn remove(&mut self, subject: &Subject) {
        if let Some(rank) = self.ranks.remove(subject) {
            self.order.remove(&(rank, subject.clone()));
        }
    }

    /// In the order of telling.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Subject> {
        self.order.iter().map(|(_, subject)| subject)
    }

    /// `subject` has been told once more; after `limit` times it is forgotten.
    pub(crate) fn told(&mut self, subject: Subject, limit: u32) {
        let Some(rank) = self.ranks.get_mut(&subject) else { return };
        let entry = (*rank, subject);
        self.order.remove(&entry);
        let subject = entry.1;
        rank.0 += 1;
        if rank.0 >= limit {
            self.ranks.remove(&subject);
        } else {
            self.order.insert((*rank, subject));
        }
        self.invariants();
    }

    fn invariants(&self) {
        assert_eq!(self.ranks.len(), self.order.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(node: u64) -> Subject {
        Subject::Member(NodeId(node))
    }

    fn order(rumours: &Rumours) -> Vec<Subject> {
        rumours.iter().cloned().collect()
    }

    #[test]
    fn the_least_told_goes_first_then_the_freshest() {
        let mut rumours = Rumours::default();
        for node in [1, 2, 3] {
            rumours.push(member(node));
        }
        assert_eq!(order(&rumours), [member(3), member(2), member(1)]);
        rumours.told(member(3), 9);
        assert_eq!(order(&rumours), [member(2), member(1), member(3)]);
        rumours.push(member(1));
        assert_eq!(order(&rumours), [member(1), member(2), member(3)]);
    }

    #[test]
    fn a_rumour_is_told_as_often_as_the_limit_and_news_starts_over() {
        let mut rumours = Rumours::default();
        rumours.push(member(1));
        rumours.told(member(1), 2);
        rumours.push(member(1));
        rumours.told(member(1), 2);
        assert!(rumours.contains(&member(1)));
        rumours.told(member(1), 2);
        assert!(rumours.is_empty());
        rumours.told(member(1), 2);
        assert!(rumours.is_empty(), "a rumour that is gone stays gone");
    }
}
