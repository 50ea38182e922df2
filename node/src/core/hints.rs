//! The delivery of the hints held for one peer: a batch at a time, in order, until there are none.
//!
//! Invariants:
//!
//! - One batch is in flight at a time.
//! - Hints are marked as delivered only after the peer took all events of their batch. Delivering twice is harmless.
//! - Events that the peer calls malformed are skipped: they would never be taken, and would hold up the rest. So are hints that
//!   are damaged on disk: comparison brings what they held.
//!
//! Call one `handle_*`, then drain [`Replay::poll_output`] until `None`. The driver drops it when the peer becomes
//! unreachable, and starts another when it is back.

use std::collections::VecDeque;

use starling_clock::NodeId;
use starling_storage::Event;

use super::peer::WriteOutcome;
use super::types::Instant;

/// What the driver must do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplayOutput {
    /// Read a batch of hints after this sequence: [`Replay::handle_batch`].
    Read {
        /// The last sequence that was delivered.
        after: u64,
    },
    /// Send these to the peer as copies, to be on its disk: [`Replay::handle_outcomes`] with the same `batch`.
    Send {
        /// Tells its answer from a late one to an earlier batch.
        batch: u32,
        /// The events.
        events: Vec<Event>,
    },
    /// Note in storage that hints up to here are done.
    Delivered {
        /// The sequence.
        up_to: u64,
        /// How many events the peer took.
        events: u64,
    },
}

#[derive(Debug)]
enum State {
    Reading,
    Sending {
        events: Vec<Event>,
        up_to: u64,
        give_up: Instant,
    },
    /// The peer refused, or did not answer: the same batch again at this time.
    Waiting {
        events: Vec<Event>,
        up_to: u64,
        at: Instant,
    },
    Done,
}

/// The delivery of one peer's hints.
#[derive(Debug)]
pub struct Replay {
    target: NodeId,
    state: State,
    after: u64,
    batch: u32,
    failures: u32,
    batch_timeout_ms: u64,
    retry_ms: (u64, u64),
    outputs: VecDeque<ReplayOutput>,
}

impl Replay {
    /// Starts with the oldest hint. A batch without an answer for `batch_timeout_ms` is sent again; between attempts it
    /// waits from the first to the second of `retry_ms`, doubling.
    pub fn new(target: NodeId, batch_timeout_ms: u64, retry_ms: (u64, u64)) -> Self {
        let outputs = VecDeque::from([ReplayOutput::Read { after: 0 }]);
        let state = State::Reading;
        Self { target, state, after: 0, batch: 0, failures: 0, batch_timeout_ms, retry_ms, outputs }
    }

    /// Whose hints.
    pub fn target(&self) -> NodeId {
        self.target
    }

    /// There are no more hints, or they cannot be read.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// What storage holds, in order of sequence, which is all up to `up_to` that can be read. Nothing, and `up_to` where the read
    /// began: that was all.
    pub fn handle_batch(&mut self, now: Instant, hints: Vec<(u64, Event)>, up_to: u64) {
        if !matches!(self.state, State::Reading) {
            return;
        }
        assert!(hints.last().is_none_or(|&(last, _)| self.after < last && last <= up_to));
        if !hints.is_empty() {
            self.send(now, hints.into_iter().map(|(_, event)| event).collect(), up_to);
        } else if self.after < up_to {
            self.delivered(up_to, 0);
        } else {
            self.state = State::Done;
        }
    }

    /// Storage cannot read the hints: anti-entropy has to bring the events.
    pub fn handle_unreadable(&mut self) {
        self.state = State::Done;
    }

    /// What the peer made of a batch, one outcome an event.
    pub fn handle_outcomes(&mut self, now: Instant, batch: u32, outcomes: &[WriteOutcome]) {
        let State::Sending { events, up_to, .. } = &mut self.state else { return };
        if batch != self.batch {
            return;
        }
        let final_ = |outcome: &WriteOutcome| {
            matches!(
                outcome,
                WriteOutcome::Applied | WriteOutcome::Duplicate | WriteOutcome::Invalid
            )
        };
        if outcomes.len() != events.len() || !outcomes.iter().all(final_) {
            self.wait(now);
            return;
        }
        let taken = outcomes.iter().filter(|&&outcome| outcome != WriteOutcome::Invalid).count();
        let up_to = *up_to;
        self.failures = 0;
        self.delivered(up_to, taken as u64);
    }

    /// Time has passed. Early calls change nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        match &mut self.state {
            State::Sending { give_up, .. } if *give_up <= now => self.wait(now),
            State::Waiting { events, up_to, at } if *at <= now => {
                let (events, up_to) = (std::mem::take(events), *up_to);
                self.send(now, events, up_to);
            }
            State::Reading | State::Sending { .. } | State::Waiting { .. } | State::Done => {}
        }
    }

    /// When `handle_timeout` is next wanted.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Sending { give_up, .. } => Some(*give_up),
            State::Waiting { at, .. } => Some(*at),
            State::Reading | State::Done => None,
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<ReplayOutput> {
        self.outputs.pop_front()
    }

    /// Notes it and reads on.
    fn delivered(&mut self, up_to: u64, events: u64) {
        self.after = up_to;
        self.state = State::Reading;
        self.outputs.push_back(ReplayOutput::Delivered { up_to, events });
        self.outputs.push_back(ReplayOutput::Read { after: up_to });
    }

    fn send(&mut self, now: Instant, events: Vec<Event>, up_to: u64) {
        self.batch += 1;
        self.outputs.push_back(ReplayOutput::Send { batch: self.batch, events: events.clone() });
        let give_up = now.plus_ms(self.batch_timeout_ms);
        self.state = State::Sending { events, up_to, give_up };
    }

    fn wait(&mut self, now: Instant) {
        let State::Sending { events, up_to, .. } = &mut self.state else { return };
        let (first, longest) = self.retry_ms;
        let wait_ms = first.saturating_mul(1 << self.failures.min(20)).min(longest);
        self.failures += 1;
        let (events, up_to) = (std::mem::take(events), *up_to);
        self.state = State::Waiting { events, up_to, at: now.plus_ms(wait_ms) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::replica::testing;
    use starling_storage::Action;

    fn hints(sequences: std::ops::Range<u64>) -> Vec<(u64, Event)> {
        sequences.map(|at| (at, testing::event(b"k", at, Action::Put, b"v"))).collect()
    }

    fn outputs(replay: &mut Replay) -> Vec<ReplayOutput> {
        std::iter::from_fn(|| replay.poll_output()).collect()
    }

    fn sent(batch: u32, sequences: std::ops::Range<u64>) -> Vec<ReplayOutput> {
        let events = hints(sequences).into_iter().map(|(_, event)| event).collect();
        vec![ReplayOutput::Send { batch, events }]
    }

    #[test]
    fn batches_go_one_after_the_other_until_there_are_none() {
        let mut replay = Replay::new(NodeId(2), 1000, (100, 400));
        assert_eq!(outputs(&mut replay), [ReplayOutput::Read { after: 0 }]);
        replay.handle_batch(Instant(0), hints(3..6), 5);
        assert_eq!(outputs(&mut replay), sent(1, 3..6));
        // One event is malformed over there and will stay so.
        let taken = [WriteOutcome::Applied, WriteOutcome::Duplicate, WriteOutcome::Invalid];
        replay.handle_outcomes(Instant(0), 1, &taken);
        let expected =
            [ReplayOutput::Delivered { up_to: 5, events: 2 }, ReplayOutput::Read { after: 5 }];
        assert_eq!(outputs(&mut replay), expected);
        replay.handle_batch(Instant(0), Vec::new(), 5);
        assert!(replay.is_done());
        assert_eq!(replay.poll_timeout(), None);
    }

    #[test]
    fn what_was_not_taken_is_sent_again_with_growing_waits() {
        let mut replay = Replay::new(NodeId(2), 1000, (100, 400));
        replay.handle_batch(Instant(0), hints(1..3), 2);
        outputs(&mut replay);
        let mut now = Instant(0);
        for (batch, wait_ms) in [(1, 100), (2, 200), (3, 400), (4, 400)] {
            let refused = [WriteOutcome::Applied, WriteOutcome::Overloaded];
            replay.handle_outcomes(now, batch, &refused);
            assert_eq!(replay.poll_timeout(), Some(now.plus_ms(wait_ms)));
            replay.handle_timeout(Instant(now.plus_ms(wait_ms).0 - 1));
            assert_eq!(outputs(&mut replay), []);
            now = now.plus_ms(wait_ms);
            replay.handle_timeout(now);
            assert_eq!(outputs(&mut replay), sent(batch + 1, 1..3));
        }
        // Without an answer too; a late answer to an earlier batch does not count.
        replay.handle_outcomes(now, 4, &[WriteOutcome::Applied; 2]);
        replay.handle_outcomes(now, 5, &[WriteOutcome::Applied]);
        assert_eq!(replay.poll_timeout(), Some(now.plus_ms(400)), "an answer of another length");
        replay.handle_timeout(now.plus_ms(400));
        outputs(&mut replay);
        let sent_at = now.plus_ms(400);
        assert_eq!(replay.poll_timeout(), Some(sent_at.plus_ms(1000)));
        replay.handle_timeout(sent_at.plus_ms(1000));
        assert_eq!(replay.poll_timeout(), Some(sent_at.plus_ms(1400)));
        assert!(!replay.is_done());
    }

    #[test]
    fn damaged_hints_are_passed_over_and_count_as_delivered() {
        let mut replay = Replay::new(NodeId(2), 1000, (100, 400));
        outputs(&mut replay);
        // Those from 6 to 8 are damaged, and so is all of the next page.
        replay.handle_batch(Instant(0), hints(3..6), 8);
        assert_eq!(outputs(&mut replay), sent(1, 3..6));
        replay.handle_outcomes(Instant(0), 1, &[WriteOutcome::Applied; 3]);
        let expected =
            [ReplayOutput::Delivered { up_to: 8, events: 3 }, ReplayOutput::Read { after: 8 }];
        assert_eq!(outputs(&mut replay), expected);
        replay.handle_batch(Instant(0), Vec::new(), 11);
        let expected =
            [ReplayOutput::Delivered { up_to: 11, events: 0 }, ReplayOutput::Read { after: 11 }];
        assert_eq!(outputs(&mut replay), expected);
        assert!(!replay.is_done());
        replay.handle_batch(Instant(0), Vec::new(), 11);
        assert!(replay.is_done());
    }

    #[test]
    fn hints_that_cannot_be_read_end_it() {
        let mut replay = Replay::new(NodeId(2), 1000, (100, 400));
        replay.handle_unreadable();
        assert!(replay.is_done());
    }
}
