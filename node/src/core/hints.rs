//! The delivery of the hints held for one peer: a batch at a time, in order, until there are none.
//!
//! Invariants:
//!
//! - One batch is in flight at a time.
//! - Hints are marked as delivered only after the peer took all events of their batch. Delivering twice is harmless.
//! - Events that the peer calls malformed are skipped: they would never be taken, and would hold up the rest.
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

    /// What storage holds, in order of sequence. Empty: that was all.
    pub fn handle_batch(&mut self, now: Instant, hints: Vec<(u64, Event)>) {
        if !matches!(self.state, State::Reading) {
            return;
        }
        let Some(&(up_to, _)) = hints.last() else {
            self.state = State::Done;
            return;
        };
        assert!(self.after < up_to, "hints come in order");
        self.send(now, hints.into_iter().map(|(_, event)| event).collect(), up_to);
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
        self.after = up_to;
        self.state = State::Reading;
        self.outputs.push_back(ReplayOutput::Delivered { up_to, events: taken as u64 });
        self.outputs.push_back(ReplayOutput::Read { after: up_to });
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
