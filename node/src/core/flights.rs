//! [`Flights`]: what is in flight, by number, with the questions it has open and the time it wants to be woken.
//!
//! Invariants:
//!
//! - A question is known as long as its flight: what a machine asked is forgotten with it, so nothing leaks when answers never come.
//! - An answer counts once, and only from the node that was asked.
//! - There is a timer for a flight exactly if its machine wants one.

use std::collections::{BTreeMap, BTreeSet};

use starling_clock::NodeId;

use super::types::Instant;

/// Bits of a question's number that tell it from others of its flight.
const QUESTION_BITS: u32 = u16::BITS;

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
    timer: Option<Instant>,
}

/// Everything in flight.
#[derive(Debug)]
pub(super) struct Flights<W> {
    by_id: BTreeMap<u64, Box<Flight<W>>>,
    timers: BTreeSet<(Instant, u64)>,
    next: u64,
}

impl<W> Flights<W> {
    /// None yet. Numbers begin at a place of this life of the node (`seed`): a late answer to an earlier life is no answer.
    pub(super) fn new(seed: u64) -> Self {
        // Half of what a question's number leaves room for, so that counting never overflows.
        let next = (seed >> (QUESTION_BITS + 1)).max(1);
        Self { by_id: BTreeMap::new(), timers: BTreeSet::new(), next }
    }

    /// A number for a new flight. 0 is never given: it stands for nobody.
    pub(super) fn next_id(&mut self) -> u64 {
        let id = self.next;
        self.next += 1;
        id
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &W)> {
        self.by_id.iter().map(|(&id, flight)| (id, &flight.work))
    }

    /// A new flight, to be handed to [`Self::keep`].
    #[expect(
        clippy::unnecessary_box_returns,
        reason = "flights move in and out of the table: a pointer is moved"
    )]
    pub(super) fn start(work: W) -> Box<Flight<W>> {
        Box::new(Flight { work, questions: Questions::default(), timer: None })
    }

    /// Takes a flight out, to drive it.
    pub(super) fn take(&mut self, id: u64) -> Option<Box<Flight<W>>> {
        self.by_id.remove(&id)
    }

    /// Takes out the flight that asked the question `op` of `from`; `None` if it is over or did not ask that.
    pub(super) fn take_asker(
        &mut self,
        op: u64,
        from: NodeId,
    ) -> Option<(u64, Box<Flight<W>>, About)> {
        let id = op >> QUESTION_BITS;
        let flight = self.by_id.get_mut(&id)?;
        let about = flight.questions.close(op, from)?;
        Some((id, self.by_id.remove(&id)?, about))
    }

    /// Puts a flight back that goes on, to be woken at `timer`.
    pub(super) fn keep(&mut self, id: u64, mut flight: Box<Flight<W>>, timer: Option<Instant>) {
        if flight.timer != timer {
            if let Some(old) = flight.timer {
                self.timers.remove(&(old, id));
            }
            if let Some(new) = timer {
                self.timers.insert((new, id));
            }
            flight.timer = timer;
        }
        let before = self.by_id.insert(id, flight);
        assert!(before.is_none(), "a flight is kept once");
    }

    /// A flight that was taken out is over.
    pub(super) fn end(&mut self, id: u64, flight: &Flight<W>) {
        if let Some(timer) = flight.timer {
            self.timers.remove(&(timer, id));
        }
    }

    /// A flight whose time has come.
    pub(super) fn next_due(&self, now: Instant) -> Option<u64> {
        self.timers.first().filter(|(at, _)| *at <= now).map(|&(_, id)| id)
    }

    /// When the next one wants to be woken.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|&(at, _)| at)
    }
}
