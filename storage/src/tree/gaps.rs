//! [`Gaps`]: ranges of keys known to have nothing live, so that scans for live keys step over deletes once and not
//! each time: who takes from the front of a queue passes all that was taken before.
//!
//! Invariants:
//!
//! - No key of a gap has a put as its newest event, in anything that was inserted so far. A put in a gap cuts it.
//! - A gap is learned only by a scan that saw all that was inserted before it began to learn, and of what was inserted
//!   meanwhile every put has cut it: see [`Gaps::begin`].
//! - Memory is bounded: at most [`GAPS_MAX`] gaps, the ones learned last, and [`LEARNERS_MAX`] scans that learn.
//!
//! Merges change nothing here: what they drop was not live. A gap is a place in the order of internal keys from the
//! beginning of a key to the beginning of another. It is known in memory only, and of the newest events only: reads as
//! of a stamp don't ask.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::internal_key;
use super::memtable::Memtable;
use crate::event::Event;

/// The most gaps that are kept.
const GAPS_MAX: usize = 256;
/// The most scans that learn at one time.
const LEARNERS_MAX: usize = 64;

/// A range of keys without anything live.
struct Gap {
    end: Vec<u8>,
    /// Greater in those that were learned later.
    learned: u64,
}

/// A scan that learns a gap from `start` on.
struct Learner {
    number: u64,
    start: Vec<u8>,
    /// The least key that got a put since.
    cut: Option<Vec<u8>>,
}

#[derive(Default)]
struct State {
    /// By where they begin. They neither overlap nor touch.
    gaps: BTreeMap<Vec<u8>, Gap>,
    learners: Vec<Learner>,
    /// The one that takes inserts.
    active: Arc<Memtable>,
    count: u64,
}

/// See the file's head. One thread inserts; any number scan.
#[derive(Default)]
pub(crate) struct Gaps {
    state: Mutex<State>,
}

impl Gaps {
    fn state(&self) -> MutexGuard<'_, State> {
        // No step below leaves the state half done: what a panic elsewhere left is sound.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on `active` takes the inserts. Called before the first of them.
    pub(crate) fn set_active(&self, active: &Arc<Memtable>) {
        self.state().active = Arc::clone(active);
    }

    /// The key got a put, this one, which is in the active memtable by now.
    pub(crate) fn cut(&self, put: &Event) {
        let mut state = self.state();
        if state.gaps.is_empty() && state.learners.is_empty() {
            return;
        }
        let prefix = &internal_key::prefix(put.partition, put.keyspace, &put.key)[..];
        for learner in &mut state.learners {
            let cuts = learner.cut.as_deref().is_none_or(|cut| prefix < cut);
            if *learner.start <= *prefix && cuts {
                learner.cut = Some(prefix.to_vec());
            }
        }
        let up_to = (Bound::Unbounded, Bound::Included(prefix));
        let Some((start, gap)) = state.gaps.range_mut::<[u8], _>(up_to).next_back() else { return };
        if *gap.end <= *prefix {
            return;
        }
        let (start, learned) = (start.clone(), gap.learned);
        let end = std::mem::replace(&mut gap.end, prefix.to_vec());
        if start == prefix {
            state.gaps.remove(&start);
        }
        let after = internal_key::past(prefix).expect("a prefix of a key ends in 0x01");
        if after < end {
            state.gaps.insert(after, Gap { end, learned });
        }
        state.bound();
    }

    /// The end of the gap that `position` is in.
    pub(crate) fn end_of(&self, position: &[u8]) -> Option<Vec<u8>> {
        let state = self.state();
        let up_to = (Bound::Unbounded, Bound::Included(position));
        let (_, gap) = state.gaps.range::<[u8], _>(up_to).next_back()?;
        (*position < *gap.end).then(|| gap.end.clone())
    }

    /// Begins to learn what lies at and after `start`, for a scan of a snapshot whose memtable is `active`. The scan has
    /// to read from `start` on anew: what it read before may lack a put that came before this. `None` if the snapshot
    /// is an older one, which later puts don't reach, or if too many scans learn.
    pub(crate) fn begin(&self, active: &Arc<Memtable>, start: &[u8]) -> Option<Learning<'_>> {
        let mut state = self.state();
        if !Arc::ptr_eq(&state.active, active) || LEARNERS_MAX <= state.learners.len() {
            return None;
        }
        state.count += 1;
        let number = state.count;
        state.learners.push(Learner { number, start: start.to_vec(), cut: None });
        Some(Learning { gaps: self, number })
    }
}

impl State {
    fn take(&mut self, number: u64) -> Option<Learner> {
        let at = self.learners.iter().position(|learner| learner.number == number)?;
        Some(self.learners.swap_remove(at))
    }

    /// Adds a gap and unites it with those that it touches.
    fn add(&mut self, mut start: Vec<u8>, mut end: Vec<u8>, learned: u64) {
        if let Some((before, gap)) = self.gaps.range(..=start.clone()).next_back()
            && start <= gap.end
        {
            start.clone_from(before);
        }
        while let Some((touched, gap)) = self.gaps.range(start.clone()..).next()
            && *touched <= end
        {
            end = end.max(gap.end.clone());
            let touched = touched.clone();
            self.gaps.remove(&touched);
        }
        self.gaps.insert(start, Gap { end, learned });
        self.bound();
    }

    fn bound(&mut self) {
        while GAPS_MAX < self.gaps.len() {
            let oldest = self.gaps.iter().min_by_key(|(_, gap)| gap.learned);
            let oldest = oldest.map(|(start, _)| start.clone()).expect("there are some");
            self.gaps.remove(&oldest);
        }
    }
}

/// A scan that learns. Dropped without [`Self::finish`] it has learned nothing.
pub(crate) struct Learning<'a> {
    gaps: &'a Gaps,
    number: u64,
}

impl Learning<'_> {
    /// The scan found nothing live before `end`.
    pub(crate) fn finish(self, end: &[u8]) {
        let mut state = self.gaps.state();
        let Some(Learner { start, cut, number }) = state.take(self.number) else { return };
        let end = cut.filter(|cut| **cut < *end).unwrap_or_else(|| end.to_vec());
        if start < end {
            state.add(start, end, number);
        }
    }
}

impl Drop for Learning<'_> {
    fn drop(&mut self) {
        self.gaps.state().take(self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use starling_clock::Stamp;

    use super::*;
    use crate::event::{Action, KeyspaceId};

    fn position(key: u8) -> Vec<u8> {
        internal_key::prefix(0, KeyspaceId(1), &[key])
    }

    fn put(key: u8) -> Event {
        let event = crate::tree::tests::event(0, &[key], Stamp::ZERO, Action::Put);
        Event { keyspace: KeyspaceId(1), ..event }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Begin(u8),
        Finish(usize, u8),
        Forget(usize),
        Put(u8),
        Delete(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..40_u8).prop_map(Step::Begin),
            (0..4_usize, 0..41_u8).prop_map(|(learner, end)| Step::Finish(learner, end)),
            (0..4_usize).prop_map(Step::Forget),
            (0..40_u8).prop_map(Step::Put),
            (0..40_u8).prop_map(Step::Delete),
        ]
    }

    proptest! {
        /// Scans finish with ends that were true when they began, which is all that a scan knows.
        #[test]
        fn what_lies_in_a_gap_is_not_live(steps in prop::collection::vec(step(), 1..120)) {
            let gaps = Gaps::default();
            let active = Arc::default();
            gaps.set_active(&active);
            let mut live = BTreeSet::new();
            let mut learners = Vec::new();
            for step in steps {
                match step {
                    Step::Begin(start) => {
                        let reach = live.range(start..).next().copied().unwrap_or(41);
                        let learning = gaps.begin(&active, &position(start)).expect("the newest snapshot");
                        learners.push((learning, reach));
                    }
                    Step::Finish(at, end) if at < learners.len() => {
                        let (learning, reach) = learners.remove(at);
                        learning.finish(&position(end.min(reach)));
                    }
                    Step::Forget(at) if at < learners.len() => {
                        learners.remove(at);
                    }
                    Step::Put(key) => {
                        live.insert(key);
                        gaps.cut(&put(key));
                    }
                    Step::Delete(key) => {
                        live.remove(&key);
                    }
                    Step::Finish(..) | Step::Forget(_) => {}
                }
                for key in 0..41 {
                    if let Some(end) = gaps.end_of(&position(key)) {
                        let inside = live.iter().filter(|live| position(key) <= position(**live));
                        prop_assert!(inside.filter(|live| position(**live) < end).count() == 0);
                    }
                }
            }
            drop(learners);
            prop_assert!(gaps.state().learners.is_empty());
        }
    }

    #[test]
    fn gaps_that_touch_are_one_and_a_put_cuts_them() {
        let gaps = Gaps::default();
        let active = Arc::default();
        assert!(gaps.begin(&active, &position(1)).is_none(), "not the newest snapshot");
        gaps.set_active(&active);
        for (start, end) in [(1, 5), (9, 12), (5, 9)] {
            gaps.begin(&active, &position(start)).unwrap().finish(&position(end));
        }
        assert_eq!(gaps.end_of(&position(1)), Some(position(12)));
        gaps.cut(&put(7));
        assert_eq!(gaps.end_of(&position(1)), Some(position(7)));
        assert_eq!(gaps.end_of(&position(7)), None);
        assert_eq!(gaps.end_of(&position(8)), Some(position(12)));
    }

    #[test]
    fn memory_is_bounded() {
        let gaps = Gaps::default();
        let active = Arc::default();
        gaps.set_active(&active);
        for n in 0..1000_u64 {
            let at = |n: u64| internal_key::prefix(0, KeyspaceId(1), &n.to_be_bytes());
            gaps.begin(&active, &at(2 * n)).unwrap().finish(&at(2 * n + 1));
        }
        assert_eq!(gaps.state().gaps.len(), GAPS_MAX);
        let learners: Vec<_> = (0..100).map(|_| gaps.begin(&active, &position(1))).collect();
        assert_eq!(learners.iter().flatten().count(), LEARNERS_MAX);
    }
}
