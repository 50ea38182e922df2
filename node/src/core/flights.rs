//! [`Flights`]: what is in flight, by number, with the questions it has open and the time it wants to be woken.
//!
//! Invariants:
//!
//! - A question is known as long as its flight: what a machine asked is forgotten with it, so nothing leaks when answers never come.
//! - An answer counts once, and only from the node that was asked.
//! - There is a timer for a flight exactly if its machine wants one.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use starling_clock::NodeId;

use super::types::Instant;

/// Bits of a question's number that tell it from others of its flight.
const QUESTION_BITS: u32 = u16::BITS;
/// So many of the last flights are found without a search. Tests have few, so that flights grow old in them.
const RECENT_MAX: usize = if cfg!(test) { 16 } else { 1024 };
/// So many timers that do not count any more may be kept beside those that do, and as many again.
const STALE_TIMERS_MAX: usize = 32;

/// What an open question is about; handed back with its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum About {
    /// A write: the machine's number of the dispatch.
    Write(u32),
    /// A read: the machine's number of the question.
    Read(u32),
    /// A hint for this node that an answer waits for.
    Hint(NodeId),
    /// A register.
    Register,
    /// Something only this node's storage answers.
    Local,
}

#[derive(Clone, Copy, Debug)]
struct Question {
    number: u16,
    to: NodeId,
    about: About,
}

/// The open questions of one flight.
#[derive(Debug, Default)]
pub(super) struct Questions {
    open: Vec<Question>,
    next: u16,
}

impl Questions {
    /// A new question of the flight `id` to `to`; gives the number that goes with it.
    pub(super) fn open(&mut self, id: u64, to: NodeId, about: About) -> u64 {
        while self.open.iter().any(|question| question.number == self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.open.push(Question { number, to, about });
        assert!(self.open.len() < 1 << QUESTION_BITS, "machines bound what they ask");
        id << QUESTION_BITS | u64::from(number)
    }

    /// Writes that were asked for do not matter any more: others take their place.
    pub(super) fn forget_writes(&mut self) {
        self.open.retain(|question| !matches!(question.about, About::Write(_)));
    }

    /// Nothing that was asked for matters any more.
    pub(super) fn forget_all(&mut self) {
        self.open.clear();
    }

    /// The question with this number is answered by `from`.
    fn close(&mut self, op: u64, from: NodeId) -> Option<About> {
        let number = u16::try_from(op & u64::from(u16::MAX)).expect("16 bits are left");
        let matches = |question: &Question| question.number == number && question.to == from;
        let at = self.open.iter().position(matches)?;
        Some(self.open.swap_remove(at).about)
    }
}

/// One thing in flight.
#[derive(Debug)]
pub(super) struct Flight<W> {
    pub(super) work: W,
    pub(super) questions: Questions,
}

/// A flight's place in the table.
#[derive(Debug)]
struct Slot<W> {
    /// `None` while it is driven, and when it is over.
    flight: Option<Box<Flight<W>>>,
    timer: Option<Instant>,
}

/// Everything in flight.
#[derive(Debug)]
pub(super) struct Flights<W> {
    /// The flights numbered from `first` on: nearly all are over before [`RECENT_MAX`] others have begun.
    recent: VecDeque<Slot<W>>,
    first: u64,
    /// Those before that are not over.
    old: BTreeMap<u64, Slot<W>>,
    count: usize,
    /// When whom to wake; more than there are timers, for one that changes or ends stays until it comes up.
    timers: BinaryHeap<Reverse<(Instant, u64)>>,
    /// How many timers there are.
    armed: usize,
    next: u64,
}

impl<W> Flights<W> {
    /// None yet. Numbers begin at a place of this life of the node (`seed`): a late answer to an earlier life is no answer.
    pub(super) fn new(seed: u64) -> Self {
        // Half of what a question's number leaves room for, so that counting never overflows.
        let next = (seed >> (QUESTION_BITS + 1)).max(1);
        Self {
            recent: VecDeque::new(),
            first: next,
            old: BTreeMap::new(),
            count: 0,
            timers: BinaryHeap::new(),
            armed: 0,
            next,
        }
    }

    /// A number for a new flight. 0 is never given: it stands for nobody.
    pub(super) fn next_id(&mut self) -> u64 {
        let id = self.next;
        self.next += 1;
        id
    }

    /// How many there are, those left out that are being driven.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// In the order of their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &W)> {
        let old = self.old.iter().map(|(&id, slot)| (id, slot));
        let all = old.chain((self.first..).zip(&self.recent));
        all.filter_map(|(id, slot)| Some((id, &slot.flight.as_ref()?.work)))
    }

    /// A new flight, to be handed to [`Self::keep`].
    #[expect(
        clippy::unnecessary_box_returns,
        reason = "flights move in and out of the table: a pointer is moved"
    )]
    pub(super) fn start(work: W) -> Box<Flight<W>> {
        Box::new(Flight { work, questions: Questions::default() })
    }

    /// Takes a flight out, to drive it.
    pub(super) fn take(&mut self, id: u64) -> Option<Box<Flight<W>>> {
        let flight = self.slot_mut(id)?.flight.take()?;
        self.count -= 1;
        Some(flight)
    }

    /// Takes out the flight that asked the question `op` of `from`; `None` if it is over or did not ask that.
    pub(super) fn take_asker(
        &mut self,
        op: u64,
        from: NodeId,
    ) -> Option<(u64, Box<Flight<W>>, About)> {
        let id = op >> QUESTION_BITS;
        let slot = self.slot_mut(id)?;
        let about = slot.flight.as_mut()?.questions.close(op, from)?;
        let flight = slot.flight.take()?;
        self.count -= 1;
        Some((id, flight, about))
    }

    /// Puts a flight back that goes on, to be woken at `timer`.
    ///
    /// # Panics
    /// If it is there already, or its number was never given.
    pub(super) fn keep(&mut self, id: u64, flight: Box<Flight<W>>, timer: Option<Instant>) {
        assert!(id < self.next);
        while self.first + self.recent.len() as u64 <= id {
            self.make_slot();
        }
        if id < self.first {
            self.old.entry(id).or_insert(Slot { flight: None, timer: None });
        }
        let slot = self.slot_mut(id).expect("it was made just now");
        assert!(slot.flight.is_none(), "a flight is kept once");
        slot.flight = Some(flight);
        let before = std::mem::replace(&mut slot.timer, timer);
        self.count += 1;
        if before != timer {
            self.armed -= usize::from(before.is_some());
            if let Some(at) = timer {
                self.armed += 1;
                self.timers.push(Reverse((at, id)));
            }
            self.tidy();
        }
    }

    /// A flight that was taken out is over.
    pub(super) fn end(&mut self, id: u64) {
        let slot = if id < self.first { self.old.remove(&id) } else { None };
        let timer = match slot {
            Some(slot) => slot.timer,
            None => self.slot_mut(id).and_then(|slot| slot.timer.take()),
        };
        if timer.is_some() {
            self.armed -= 1;
            self.tidy();
        }
    }

    /// A flight whose time has come.
    pub(super) fn next_due(&self, now: Instant) -> Option<u64> {
        self.timers.peek().filter(|Reverse((at, _))| *at <= now).map(|&Reverse((_, id))| id)
    }

    /// When the next one wants to be woken.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.timers.peek().map(|&Reverse((at, _))| at)
    }

    fn slot(&self, id: u64) -> Option<&Slot<W>> {
        match id.checked_sub(self.first) {
            Some(index) => self.recent.get(usize::try_from(index).ok()?),
            None => self.old.get(&id),
        }
    }

    fn slot_mut(&mut self, id: u64) -> Option<&mut Slot<W>> {
        match id.checked_sub(self.first) {
            Some(index) => self.recent.get_mut(usize::try_from(index).ok()?),
            None => self.old.get_mut(&id),
        }
    }

    /// A place for the number after the last that has one. The oldest moves over to the old ones if it is still in use.
    fn make_slot(&mut self) {
        if self.recent.len() == RECENT_MAX
            && let Some(oldest) = self.recent.pop_front()
        {
            if oldest.flight.is_some() || oldest.timer.is_some() {
                self.old.insert(self.first, oldest);
            }
            self.first += 1;
        }
        self.recent.push_back(Slot { flight: None, timer: None });
    }

    fn is_armed(&self, at: Instant, id: u64) -> bool {
        self.slot(id).is_some_and(|slot| slot.timer == Some(at))
    }

    /// Takes away what does not count any more: where it would come up next, and everywhere once it is more than the rest.
    fn tidy(&mut self) {
        while let Some(&Reverse((at, id))) = self.timers.peek()
            && !self.is_armed(at, id)
        {
            self.timers.pop();
        }
        if self.timers.len() > 2 * self.armed + STALE_TIMERS_MAX {
            let mut timers = std::mem::take(&mut self.timers);
            timers.retain(|&Reverse((at, id))| self.is_armed(at, id));
            self.timers = timers;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWN: NodeId = NodeId(1);

    #[derive(Clone, Debug)]
    enum Step {
        Launch(Option<u64>),
        Drive(usize, Option<u64>),
        End(usize),
        Wake(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let timer = || prop::option::of(0..50_u64);
        prop_oneof![
            6 => timer().prop_map(Step::Launch),
            6 => (any::<usize>(), timer()).prop_map(|(which, timer)| Step::Drive(which, timer)),
            5 => any::<usize>().prop_map(Step::End),
            2 => (0..50_u64).prop_map(Step::Wake),
        ]
    }

    /// The table against a sorted map of what is in flight and when it wants to be woken.
    struct Pair {
        flights: Flights<u64>,
        model: BTreeMap<u64, Option<u64>>,
    }

    impl Pair {
        fn launch(&mut self, timer: Option<u64>) {
            let id = self.flights.next_id();
            self.flights.keep(id, Flights::start(id), timer.map(Instant));
            self.model.insert(id, timer);
        }

        fn pick(&self, which: usize) -> Option<u64> {
            self.model.keys().nth(which.checked_rem(self.model.len())?).copied()
        }

        fn drive(&mut self, id: u64, timer: Option<u64>) {
            let flight = self.flights.take(id).expect("it is in flight");
            assert_eq!(flight.work, id);
            assert!(self.flights.take(id).is_none(), "it is out");
            self.flights.keep(id, flight, timer.map(Instant));
            self.model.insert(id, timer);
        }

        fn end(&mut self, id: u64) {
            self.flights.take(id).expect("it is in flight");
            self.flights.end(id);
            assert!(self.flights.take(id).is_none(), "it is over");
            self.model.remove(&id);
        }

        fn check(&self) {
            assert_eq!(self.flights.len(), self.model.len());
            assert!(self.flights.iter().map(|(id, _)| id).eq(self.model.keys().copied()));
            let first = self.model.values().flatten().min().copied();
            assert_eq!(self.flights.poll_timeout(), first.map(Instant));
            let armed = self.model.values().flatten().count();
            assert_eq!(self.flights.armed, armed);
            assert!(self.flights.timers.len() <= 2 * armed + STALE_TIMERS_MAX + 1);
            assert!(self.flights.recent.len() <= RECENT_MAX);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn flights_and_timers_are_what_was_kept(steps in prop::collection::vec(step(), 1..300)) {
            let mut pair = Pair { flights: Flights::new(7 << 40), model: BTreeMap::new() };
            for step in steps {
                match step {
                    Step::Launch(timer) => pair.launch(timer),
                    Step::Drive(which, timer) => {
                        if let Some(id) = pair.pick(which) {
                            pair.drive(id, timer);
                        }
                    }
                    Step::End(which) => {
                        if let Some(id) = pair.pick(which) {
                            pair.end(id);
                        }
                    }
                    Step::Wake(now) => {
                        while let Some(id) = pair.flights.next_due(Instant(now)) {
                            assert!(pair.model[&id].is_some_and(|at| at <= now));
                            pair.drive(id, Some(now + 1 + id % 3));
                        }
                    }
                }
                pair.check();
            }
        }
    }

    #[test]
    fn an_answer_counts_once_and_from_whom_was_asked() {
        let mut flights = Flights::new(1);
        let id = flights.next_id();
        let mut flight = Flights::start(());
        let ops: Vec<u64> =
            (0..3).map(|number| flight.questions.open(id, OWN, About::Read(number))).collect();
        flights.keep(id, flight, None);
        assert!(flights.take_asker(ops[1], NodeId(2)).is_none());
        let (_, flight, about) = flights.take_asker(ops[1], OWN).unwrap();
        assert_eq!(about, About::Read(1));
        assert!(flights.take_asker(ops[2], OWN).is_none(), "its flight is driven");
        flights.keep(id, flight, None);
        assert!(flights.take_asker(ops[1], OWN).is_none());
        let (_, _, about) = flights.take_asker(ops[2], OWN).unwrap();
        assert_eq!(about, About::Read(2));
        flights.end(id);
        assert!(flights.take_asker(ops[0], OWN).is_none(), "its flight is over");
    }
}
