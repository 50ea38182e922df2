//! One subscription to the local change log: read on as fast as the stream takes it, filter, say what is gone.
//!
//! Invariants:
//!
//! - Sequences of the changes sent grow; `next` of each item is where the following one goes on. Between two items nothing is
//!   left out but what the filter dropped or a [`ChangesItem::Gap`] names.
//! - One item is on its way to the stream and one more is ready at most: a slow consumer costs two batches of memory, and the
//!   log is read no further.
//! - After [`ChangesItem::End`] or [`ChangesItem::Error`] nothing more is sent or read.
//!
//! It keeps no cursor for the consumer: `next` is handed out with each item and comes back in the next subscription.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use starling_client::codec::{Blob, Text, WireStamp};
use starling_client::wire::{self, ChangesFrom, ChangesItem, ErrorCode, WireError};
use starling_storage::{Change, KeyspaceId, Provenance};

use super::read::version_of;
use super::storage::{StorageAnswer, StorageFailure, StorageRequest};
use crate::limits::{CHANGE_BATCH_BYTES_MAX, CHANGE_BATCH_MAX};

/// Change logs count from here: nothing was ever before it, so that a cursor of 0 has missed nothing.
const FIRST_SEQUENCE: u64 = 1;

/// What a subscription wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangesPlan {
    /// Only this keyspace; `None`: all.
    pub keyspace: Option<KeyspaceId>,
    /// Only keys that begin so; empty: all.
    pub prefix: Bytes,
    /// Only partitions from the first to the last of these; `None`: all.
    pub partitions: Option<(u32, u32)>,
    /// Where to begin.
    pub from: ChangesFrom,
    /// Stay and send what comes.
    pub follow: bool,
}

/// What the driver must do, in this order.
#[derive(Clone, Debug)]
pub enum ChangesOutput {
    /// Ask storage; its answer goes to [`Subscription::handle_storage`].
    Storage(StorageRequest),
    /// Hand to the stream; [`Subscription::handle_ready`] when it has been taken.
    Item(Arc<ChangesItem>),
}

/// Where the reading of the log stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cursor {
    /// The place to begin at is asked for.
    Finding,
    /// The next sequence to read. `asked`: a read from there is under way.
    At { next: u64, asked: bool },
    /// Nothing more is read.
    Finished,
}

/// The state of one subscription.
#[derive(Debug)]
pub struct Subscription {
    plan: ChangesPlan,
    cursor: Cursor,
    /// One past the newest sequence that is known to be readable.
    end: u64,
    /// Without `follow`: where it ends; known with the first answer.
    stop_at: Option<u64>,
    /// The last `next` that the consumer was told.
    told: Option<u64>,
    /// A gap before the first item is none: the consumer asked for whatever is oldest.
    begun: bool,
    /// The stream has an item that it has not taken yet.
    sending: bool,
    /// What goes to the stream next: a batch, perhaps with the item that ends it all behind it.
    ready: VecDeque<ChangesItem>,
    outputs: VecDeque<ChangesOutput>,
}

impl Subscription {
    /// Starts reading.
    pub fn new(plan: ChangesPlan) -> Self {
        let begun = !matches!(plan.from, ChangesFrom::Oldest);
        let cursor = match plan.from {
            ChangesFrom::Oldest => Cursor::At { next: 0, asked: false },
            ChangesFrom::Sequence(next) => {
                Cursor::At { next: next.max(FIRST_SEQUENCE), asked: false }
            }
            ChangesFrom::Now | ChangesFrom::Stamp(_) => Cursor::Finding,
        };
        let outputs = match plan.from {
            ChangesFrom::Now => VecDeque::from([ChangesOutput::Storage(StorageRequest::Status)]),
            ChangesFrom::Stamp(stamp) => {
                VecDeque::from([ChangesOutput::Storage(StorageRequest::ChangesAt {
                    stamp: stamp.0,
                })])
            }
            ChangesFrom::Oldest | ChangesFrom::Sequence(_) => VecDeque::new(),
        };
        let mut subscription = Self {
            plan,
            cursor,
            end: 0,
            stop_at: None,
            told: None,
            begun,
            sending: false,
            ready: VecDeque::new(),
            outputs,
        };
        subscription.read();
        subscription.invariants();
        subscription
    }

    /// Storage answered. `name_of` tells a keyspace's name, if the node knows it.
    pub fn handle_storage(
        &mut self,
        answer: StorageAnswer,
        name_of: impl Fn(KeyspaceId) -> Option<Text>,
    ) {
        match (self.cursor, answer) {
            (Cursor::Finished, _) => {}
            (_, StorageAnswer::Failed(failure)) => self.fail(error_of(failure)),
            (Cursor::Finding, StorageAnswer::Sequence(next)) => self.begin(next),
            (Cursor::Finding, StorageAnswer::Status(report)) => {
                self.begin(report.storage.changes_end);
            }
            (Cursor::At { next, asked: true }, StorageAnswer::Changes { changes, end }) => {
                self.take(next, &changes, end, name_of);
            }
            (Cursor::At { next, asked: true }, StorageAnswer::ChangesGap { first, end }) => {
                self.skip(next, first, end);
            }
            (cursor, answer) => panic!("{answer:?} is no answer for {cursor:?}"),
        }
        self.send();
        self.invariants();
    }

    /// The stream has taken the last item.
    pub fn handle_ready(&mut self) {
        self.sending = false;
        self.send();
        self.invariants();
    }

    /// The log may be read up to before `end`.
    pub fn handle_grew(&mut self, end: u64) {
        self.end = self.end.max(end);
        self.read();
        self.invariants();
    }

    /// Nothing more will come.
    pub fn is_finished(&self) -> bool {
        self.cursor == Cursor::Finished && self.ready.is_empty()
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<ChangesOutput> {
        self.outputs.pop_front()
    }

    fn begin(&mut self, next: u64) {
        self.cursor = Cursor::At { next, asked: false };
        self.read();
    }

    /// Asks for the next stretch of the log, if there may be one and there is room for it.
    fn read(&mut self) {
        let Cursor::At { next, asked: false } = self.cursor else { return };
        let first_read = self.stop_at.is_none();
        if !self.ready.is_empty() || !(first_read || next < self.end) {
            return;
        }
        self.cursor = Cursor::At { next, asked: true };
        self.outputs.push_back(ChangesOutput::Storage(StorageRequest::Changes {
            from: next,
            limit: CHANGE_BATCH_MAX,
            bytes_max: CHANGE_BATCH_BYTES_MAX,
        }));
    }

    /// A stretch of the log was read.
    fn take(
        &mut self,
        next: u64,
        changes: &[Change],
        end: u64,
        name_of: impl Fn(KeyspaceId) -> Option<Text>,
    ) {
        if next > end {
            let text = format!("the log ends at {end}, sequence {next} was asked for");
            self.fail(WireError::new(ErrorCode::OutOfBounds, text));
            return;
        }
        self.begun = true;
        let end = changes.last().map_or(end, |last| end.max(last.sequence + 1));
        self.end = self.end.max(end);
        let stop_at = *self.stop_at.get_or_insert(end);
        let within = |change: &&Change| self.plan.follow || change.sequence < stop_at;
        let after = changes.iter().filter(within).last().map_or(next, |last| last.sequence + 1);
        assert!(next <= after, "storage answers from the sequence asked for");
        let stuck = after == next && next < if self.plan.follow { end } else { stop_at };
        if stuck {
            let text = format!("the change log answers nothing at {next}, before its end {end}");
            self.fail(WireError::new(ErrorCode::Damaged, text));
            return;
        }
        let wanted = changes.iter().filter(within).filter(|change| self.is_wanted(change));
        let wanted: Vec<_> = wanted.map(|change| change_to_wire(change, &name_of)).collect();
        self.cursor = Cursor::At { next: after, asked: false };
        let caught_up = after >= if self.plan.follow { self.end } else { stop_at };
        let news = self.told != Some(after);
        if !wanted.is_empty() || (caught_up && news && self.plan.follow) {
            self.told = Some(after);
            let changes = wanted.into();
            self.ready.push_back(ChangesItem::Batch { changes, next: after, end: self.end });
        }
        if caught_up && !self.plan.follow {
            self.cursor = Cursor::Finished;
            self.ready.push_back(ChangesItem::End { next: after });
        }
    }

    /// Retention passed the cursor.
    fn skip(&mut self, next: u64, first: u64, end: u64) {
        if first <= next {
            let text = format!("the change log begins at {first} and does not have {next}");
            self.fail(WireError::new(ErrorCode::Damaged, text));
            return;
        }
        if self.begun {
            self.ready.push_back(ChangesItem::Gap { from: next, to: first });
        }
        self.begun = true;
        self.end = self.end.max(end);
        self.told = Some(first);
        self.cursor = Cursor::At { next: first, asked: false };
        if first >= end && !self.plan.follow {
            self.cursor = Cursor::Finished;
            self.ready.push_back(ChangesItem::End { next: first });
        }
    }

    fn fail(&mut self, error: WireError) {
        self.cursor = Cursor::Finished;
        self.ready.push_back(ChangesItem::Error(error));
    }

    /// Hands the next item to the stream if it has taken the one before, and reads on if there is room.
    fn send(&mut self) {
        if !self.sending
            && let Some(item) = self.ready.pop_front()
        {
            self.sending = true;
            self.outputs.push_back(ChangesOutput::Item(Arc::new(item)));
        }
        self.read();
    }

    fn is_wanted(&self, change: &Change) -> bool {
        let event = &change.event;
        let in_range = |(first, last): (u32, u32)| (first..=last).contains(&event.partition);
        self.plan.keyspace.is_none_or(|keyspace| keyspace == event.keyspace)
            && event.key.starts_with(&self.plan.prefix)
            && self.plan.partitions.is_none_or(in_range)
    }

    fn invariants(&self) {
        assert!(self.ready.len() <= 2, "a batch, and what ends it all");
        assert!(self.ready.is_empty() || self.sending, "what is ready goes out as soon as it may");
    }
}

fn error_of(failure: StorageFailure) -> WireError {
    let (code, text) = match failure {
        StorageFailure::Damaged => {
            (ErrorCode::Damaged, "the change log is damaged here: read another node's")
        }
        StorageFailure::Poisoned => {
            (ErrorCode::StoragePoisoned, "storage stopped after a failed sync: restart the node")
        }
        StorageFailure::Full => (ErrorCode::DiskFull, "the disk is full"),
        StorageFailure::Busy => (ErrorCode::Overloaded, "it is busy, slow down"),
        StorageFailure::Invalid => (ErrorCode::OutOfBounds, "there is no such place in the log"),
    };
    WireError::new(code, text)
}

fn change_to_wire(change: &Change, name_of: impl Fn(KeyspaceId) -> Option<Text>) -> wire::Change {
    let event = &change.event;
    let unnamed = || Text(format!("{:016x}", event.keyspace.0));
    wire::Change {
        sequence: change.sequence,
        keyspace: name_of(event.keyspace).unwrap_or_else(unnamed),
        key: Blob(event.key.clone()),
        partition: event.partition,
        version: version_of(event),
        provenance: provenance_to_wire(change.provenance),
        previous: change.previous.map(WireStamp),
    }
}

fn provenance_to_wire(provenance: Provenance) -> wire::Provenance {
    match provenance {
        Provenance::Write => wire::Provenance::Write,
        Provenance::Hint => wire::Provenance::Hint,
        Provenance::ReadRepair => wire::Provenance::ReadRepair,
        Provenance::AntiEntropy => wire::Provenance::AntiEntropy,
        Provenance::Transfer => wire::Provenance::Transfer,
        Provenance::Expiry => wire::Provenance::Expiry,
    }
}

#[cfg(test)]
mod tests;
