//! The comparison of one partition, place by place, as pages of identities come in from both sides.
//!
//! Invariants:
//!
//! - Both sides are taken in the internal order, and each place once: what one side lacks is known as soon as both are past it.
//! - A run is of one side, without a place between that is not to be moved, and of at most [`TRANSFER_EVENTS_MAX`] events.
//! - Nothing is copied of a page but what is remembered of where it ended.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use starling_clock::Stamp;
use starling_storage::{Event, KeyspaceId};

use super::{Digest, Side, TRANSFER_EVENTS_MAX};
use crate::core::replica::Place;

/// A page of identities of one side.
#[derive(Debug, Default)]
pub(super) struct Page {
    places: VecDeque<Place>,
    /// The last place that came from this side.
    last: Option<Place>,
    /// There is nothing after `places`.
    done: bool,
}

impl Page {
    /// What follows has to be asked for.
    fn is_used_up(&self) -> bool {
        self.places.is_empty() && !self.done
    }
}

/// Events that one side has and the other lacks, next to each other on the side that has them.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) from: Side,
    /// Its side's place before the first of them.
    pub(super) after: Option<Place>,
    pub(super) places: BTreeSet<(KeyspaceId, Bytes, Reverse<Stamp>)>,
    pub(super) last: Place,
}

/// The comparison of one partition.
#[derive(Debug)]
pub(super) struct Walk {
    pub(super) partition: u32,
    pub(super) digests: (Digest, Digest),
    own: Page,
    peer: Page,
    /// The last place taken from each side.
    passed: (Option<Place>, Option<Place>),
    pub(super) run: Option<Run>,
    /// The key that the walk is in, how many of its events were passed, and the stamp of the last one.
    key: Option<(KeyspaceId, Bytes, u64, Stamp)>,
    /// Something was moved, or was left for being young: the comparison is to be made again.
    pub(super) unsettled: bool,
}

/// What is to be done with an event that one side lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Worth {
    Moving,
    /// It is young, or of a keyspace to be learned of: looked at again in another session.
    Later,
    Nothing,
}

/// Sorts places in the internal order: newest first within a key.
pub(super) fn order(place: &Place) -> (KeyspaceId, Bytes, Reverse<Stamp>) {
    (place.0, place.1.clone(), Reverse(place.2))
}

/// How places follow each other in that order.
pub(super) fn compare(left: &Place, right: &Place) -> Ordering {
    let keys = (left.0, &left.1).cmp(&(right.0, &right.1));
    keys.then_with(|| right.2.cmp(&left.2))
}

impl Walk {
    pub(super) fn new(partition: u32, digests: (Digest, Digest)) -> Self {
        Self {
            partition,
            digests,
            own: Page::default(),
            peer: Page::default(),
            passed: (None, None),
            run: None,
            key: None,
            unsettled: false,
        }
    }

    /// A page of identities came from `side`; false if it cannot be one.
    pub(super) fn take_page(&mut self, side: Side, events: Vec<Event>, more: bool) -> bool {
        if more && events.is_empty() {
            return false;
        }
        let page = if side == Side::Own { &mut self.own } else { &mut self.peer };
        page.done = !more;
        page.places.reserve(events.len());
        for event in events {
            if event.partition != self.partition {
                return false;
            }
            let place = (event.keyspace, event.key, event.stamp);
            let before = page.places.back().or(page.last.as_ref());
            if before.is_some_and(|before| compare(before, &place).is_ge()) {
                return false;
            }
            page.places.push_back(place);
        }
        if let Some(last) = page.places.back() {
            page.last = Some(last.clone());
        }
        true
    }

    /// The pages that must come before the comparison can go on, and after which place they begin.
    pub(super) fn wanted_pages(&self) -> Vec<(Side, Option<Place>)> {
        [(Side::Own, &self.own), (Side::Peer, &self.peer)]
            .into_iter()
            .filter(|(_, page)| page.is_used_up())
            .map(|(side, page)| (side, page.last.clone()))
            .collect()
    }

    /// Walks both sides in order until a run of events that one side lacks is complete, or a page is used up.
    pub(super) fn compare(&mut self, mut worth: impl FnMut(&Place, u64, Option<Stamp>) -> Worth) {
        if self.run.is_some() {
            return;
        }
        let mut open: Option<Run> = None;
        while !self.own.is_used_up() && !self.peer.is_used_up() {
            let (own, peer) = (self.own.places.front(), self.peer.places.front());
            let side = match (own, peer) {
                (None, None) => break,
                (Some(own), Some(peer)) if own == peer => None,
                (Some(own), Some(peer)) if compare(own, peer).is_lt() => Some(Side::Own),
                (Some(_), None) => Some(Side::Own),
                (_, Some(_)) => Some(Side::Peer),
            };
            let front = if side == Some(Side::Peer) { peer } else { own };
            let place = front.expect("the match chose a side that has one");
            let (rank, newer) = self.rank(place);
            let moving = side.is_some() && {
                let worth = worth(place, rank, newer);
                self.unsettled |= worth == Worth::Later;
                worth == Worth::Moving
            };
            let fits = |run: &Run| {
                moving && Some(run.from) == side && run.places.len() < TRANSFER_EVENTS_MAX
            };
            if open.as_ref().is_some_and(|run| !fits(run)) {
                break;
            }
            if moving && let Some(from) = side {
                let run = open.get_or_insert_with(|| Run {
                    from,
                    after: self.passed(from),
                    places: BTreeSet::new(),
                    last: place.clone(),
                });
                run.places.insert(order(place));
                run.last = place.clone();
            }
            self.pass(side, rank);
        }
        self.run = open;
    }

    fn passed(&self, side: Side) -> Option<Place> {
        if side == Side::Own { self.passed.0.clone() } else { self.passed.1.clone() }
    }

    /// How many newer events of its key either side has, and the stamp of the next newer one.
    fn rank(&self, place: &Place) -> (u64, Option<Stamp>) {
        match &self.key {
            Some((keyspace, key, passed, newer)) if *keyspace == place.0 && *key == place.1 => {
                (*passed, Some(*newer))
            }
            _ => (0, None),
        }
    }

    /// Takes the first place from one side, or the same one from both.
    fn pass(&mut self, side: Option<Side>, rank: u64) {
        if side != Some(Side::Peer) {
            self.passed.0 = self.own.places.pop_front();
        }
        if side != Some(Side::Own) {
            self.passed.1 = self.peer.places.pop_front();
        }
        let from_peer = side == Some(Side::Peer);
        let passed = if from_peer { &self.passed.1 } else { &self.passed.0 };
        let (keyspace, bytes, stamp) = passed.as_ref().expect("it was the first of that side");
        match &mut self.key {
            Some((_, _, passed, newer)) if 0 < rank => (*passed, *newer) = (rank + 1, *stamp),
            key => *key = Some((*keyspace, bytes.clone(), rank + 1, *stamp)),
        }
    }
}
