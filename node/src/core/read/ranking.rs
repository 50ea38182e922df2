//! Whether a replica that lacks an old version has let it go: asked before a read as of a stamp writes that version back.
//!
//! Invariants:
//!
//! - A keyspace that keeps all of its history is never asked: what is missing there was never there.
//! - A replica is judged by what it has itself: if its own newer events put the version beyond what the keyspace keeps, it has
//!   dropped it, or will at its next merge, and counts as one that has it. Written back it would go again, read after read.
//! - What cannot be told, because the newer events did not fit into the answer, is written back.

use starling_client::codec::{Blob, WireStamp};
use starling_clock::Stamp;

use super::{Question, Read, ReadOutput, Replica, Standing, Trouble};
use crate::core::peer::ReadQuery;
use crate::core::replica::{ReplicaAnswer, is_retained};
use crate::limits::PEER_READ_EVENTS_MAX;

/// What a replica's newer events say of a version that it lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ranked {
    pub(super) version: Stamp,
    pub(super) is_retained: bool,
}

impl Replica {
    /// It lacks the version because it has let it go.
    pub(super) fn has_dropped(&self, version: Stamp) -> bool {
        self.ranked == Some(Ranked { version, is_retained: false })
    }
}

impl Read {
    /// Asks those that lack `version`, and may have let it go, for what they have beyond it.
    pub(super) fn rank(&mut self, version: Stamp) {
        let Question::Newest { at } = self.plan.question else { return };
        let retention = self.plan.retention;
        // The newest event of all is always kept.
        if at == Stamp::MAX || (retention.versions_max.is_none() && retention.age_ms_max.is_none())
        {
            return;
        }
        let limit = retention.versions_max.unwrap_or(1).clamp(1, PEER_READ_EVENTS_MAX);
        let is_open = |replica: &Replica| {
            replica.standing == Standing::Answered
                && replica.events.last().is_none_or(|(&newest, _)| newest < version)
                && replica.ranked.is_none_or(|ranked| ranked.version != version)
        };
        let open = self.replicas.iter().filter(|(_, replica)| is_open(replica));
        let open: Vec<_> = open.map(|(&node, _)| node).collect();
        for to in open {
            let replica = self.replicas.get_mut(&to).expect("listed above");
            replica.standing = Standing::Ranking(version);
            let query = ReadQuery::Versions {
                keyspace: self.plan.keyspace.0,
                key: Blob(self.plan.key.clone()),
                from: WireStamp(version),
                to: WireStamp(Stamp::MAX),
                descending: false,
                limit,
            };
            let ask = self.asks.open(to);
            self.outputs.push_back(ReadOutput::Ask { ask, to, query });
        }
    }

    /// What a replica has beyond `version`; an error if that is not an answer to the question.
    pub(super) fn judge(&self, version: Stamp, answer: &ReplicaAnswer) -> Result<Ranked, Trouble> {
        let events = match answer {
            ReplicaAnswer::Events { events, .. } => events,
            ReplicaAnswer::Declined(refusal) => return Err((*refusal).into()),
            _ => return Err(Trouble::Malformed),
        };
        let is_strange = events.iter().any(|event| {
            event.keyspace != self.plan.keyspace
                || event.key != self.plan.key
                || event.stamp < version
        });
        if is_strange || !events.is_sorted_by(|one, next| one.stamp < next.stamp) {
            return Err(Trouble::Malformed);
        }
        // It may have come meanwhile.
        let newer = || events.iter().map(|event| event.stamp).filter(|&stamp| version < stamp);
        let (rank, next) = (newer().count() as u64, newer().next());
        let is_retained = is_retained(self.plan.retention, rank, next, self.plan.wall_ms);
        Ok(Ranked { version, is_retained })
    }
}
