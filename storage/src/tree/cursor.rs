//! [`MergeCursor`]: many sorted sources read as one, forwards or backwards.
//!
//! Invariants:
//!
//! - Internal keys rise strictly, or fall strictly: an event that is in several sources is met once.
//! - An error of one source ends the read: a damaged table never makes events disappear.
//! - A cursor goes one way until it is told where to begin anew: a merge of sources has to search for the event before
//!   the present one in each of them.
//!
//! - Of a table that begins behind where the walk is (ends before, backwards) nothing is read before the walk is there.
//!
//! The sources that have events left are a binary heap, of which the second is known besides the first: a step costs one
//! comparison while events come from one source.

use std::cmp::Ordering;

use super::memtable::{Memtable, MemtableCursor};
use super::stored::{Stored, StoredRef};
use super::table::TableCursor;
use crate::disk::DiskFile;
use crate::error::Error;

/// One sorted source.
pub(crate) enum Source<'a, F> {
    Memtable(&'a Memtable, MemtableCursor<'a>),
    Table(Box<TableCursor<F>>),
}

impl<F: DiskFile> Source<'_, F> {
    #[inline]
    fn key(&self) -> Option<&[u8]> {
        match self {
            Self::Memtable(_, cursor) => cursor.key(),
            Self::Table(cursor) => cursor.key(),
        }
    }

    /// Reads where the walk is now, if that was put off.
    #[inline]
    fn arrive(&mut self) -> Result<(), Error> {
        match self {
            Self::Memtable(..) => Ok(()),
            Self::Table(cursor) => cursor.arrive(),
        }
    }

    #[inline]
    fn step(&mut self, backwards: bool) -> Result<(), Error> {
        match (self, backwards) {
            (Self::Memtable(_, cursor), false) => cursor.advance(),
            (Self::Memtable(_, cursor), true) => cursor.retreat(),
            (Self::Table(cursor), false) => cursor.advance()?,
            (Self::Table(cursor), true) => cursor.retreat()?,
        }
        Ok(())
    }

    fn seek(&mut self, target: &[u8], backwards: bool) -> Result<(), Error> {
        match (self, backwards) {
            (Self::Memtable(memtable, cursor), false) => *cursor = memtable.seek(target),
            (Self::Memtable(memtable, cursor), true) => *cursor = memtable.seek_before(target),
            (Self::Table(cursor), false) => cursor.reseek(target)?,
            (Self::Table(cursor), true) => cursor.seek_before(target)?,
        }
        Ok(())
    }
}

/// Walks the union of its sources.
pub(crate) struct MergeCursor<'a, F> {
    /// The first `live` of them are a heap, the one that comes next on top; the rest have no event left.
    sources: Vec<Source<'a, F>>,
    live: usize,
    backwards: bool,
    /// Which of those below the top comes before the others; any number if there is none.
    second: usize,
    /// The event on top is the second's too.
    tied: bool,
}

impl<'a, F: DiskFile> MergeCursor<'a, F> {
    /// A cursor on the least event of all sources, which stand where the walk begins.
    pub(crate) fn new(sources: Vec<Source<'a, F>>) -> Self {
        let mut cursor = Self { sources, live: 0, backwards: false, second: 1, tied: false };
        cursor.build();
        cursor
    }

    /// Moves to the first event at or after `target`, and goes forwards from there.
    pub(crate) fn seek(&mut self, target: &[u8]) -> Result<(), Error> {
        self.seek_all(target, false)
    }

    /// Moves on to the first event at or after `target`, as [`Self::seek`] does, from where such a one has led: only the
    /// sources that are before it are searched.
    ///
    /// # Panics
    /// If the cursor goes backwards.
    pub(crate) fn seek_onwards(&mut self, target: &[u8]) -> Result<(), Error> {
        assert!(!self.backwards);
        let live = std::mem::take(&mut self.live);
        for source in &mut self.sources[..live] {
            if source.key().is_some_and(|key| key < target) {
                source.seek(target, false)?;
            }
        }
        self.build();
        Ok(())
    }

    /// Moves to the last event before `target`, and goes backwards from there.
    pub(crate) fn seek_before(&mut self, target: &[u8]) -> Result<(), Error> {
        self.seek_all(target, true)
    }

    /// The internal key of the event, `None` past the last one.
    #[inline]
    pub(crate) fn key(&self) -> Option<&[u8]> {
        if self.live == 0 { None } else { self.sources[0].key() }
    }

    /// Makes sure that the event was read. Call it before [`Self::borrowed`] and [`Self::stored`], once it is clear that
    /// the event is wanted.
    #[inline]
    pub(crate) fn arrive(&mut self) -> Result<(), Error> {
        if self.live == 0 {
            return Ok(());
        }
        self.sources[0].arrive().inspect_err(|_| self.live = 0)
    }

    /// What there is of the event beside its internal key.
    ///
    /// # Panics
    /// If the cursor is past the last event, or has not arrived there.
    #[inline]
    pub(crate) fn borrowed(&self) -> Result<StoredRef<'_>, Error> {
        assert!(0 < self.live, "the cursor is on an event");
        match &self.sources[0] {
            Source::Memtable(_, cursor) => {
                Ok(cursor.entry().expect("the cursor is on an event").stored())
            }
            Source::Table(cursor) => cursor.borrowed(),
        }
    }

    /// The same with a payload of its own, which shares a table's block.
    ///
    /// # Panics
    /// As [`Self::borrowed`].
    pub(crate) fn stored(&self) -> Result<Stored, Error> {
        match self.sources.first() {
            Some(Source::Table(cursor)) if 0 < self.live => cursor.stored(),
            _ => self.borrowed().map(StoredRef::to_stored),
        }
    }

    /// Moves to the next event in the way that the cursor goes, past every copy of this one.
    pub(crate) fn advance(&mut self) -> Result<(), Error> {
        while 0 < self.live {
            let tied = self.tied;
            self.step_first()?;
            if !tied {
                break;
            }
        }
        Ok(())
    }

    /// Steps the source on top of the heap, and puts the heap right.
    fn step_first(&mut self) -> Result<(), Error> {
        if let Err(error) = self.sources[0].step(self.backwards) {
            self.live = 0;
            return Err(error);
        }
        if self.sources[0].key().is_none() {
            self.live -= 1;
            self.sources.swap(0, self.live);
            self.sift_down(0);
            self.find_second();
        } else if 1 < self.live {
            let order = self.compare(0, self.second);
            self.tied = order == Ordering::Equal;
            if order == Ordering::Greater {
                self.give_way();
            }
        }
        Ok(())
    }

    /// The second comes before the source on top, which takes its place.
    fn give_way(&mut self) {
        let place = self.second;
        self.sources.swap(0, place);
        let stays = !self.sift_down(place);
        self.second = self.least_below();
        // What gave way is not the same event: that is known already.
        let known = stays && self.second == place;
        self.tied = !known && self.compare(0, self.second) == Ordering::Equal;
    }

    fn seek_all(&mut self, target: &[u8], backwards: bool) -> Result<(), Error> {
        self.live = 0;
        self.backwards = backwards;
        for source in &mut self.sources {
            source.seek(target, backwards)?;
        }
        self.build();
        Ok(())
    }

    fn build(&mut self) {
        self.live = 0;
        for index in 0..self.sources.len() {
            if self.sources[index].key().is_some() {
                self.sources.swap(index, self.live);
                self.live += 1;
            }
        }
        for index in (0..self.live / 2).rev() {
            self.sift_down(index);
        }
        self.find_second();
    }

    fn find_second(&mut self) {
        self.second = self.least_below();
        self.tied = 1 < self.live && self.compare(0, self.second) == Ordering::Equal;
    }

    /// Which of those right below the top comes first.
    fn least_below(&self) -> usize {
        if 2 < self.live && self.compare(2, 1) == Ordering::Less { 2 } else { 1 }
    }

    /// Moves a source down to where it belongs, and tells whether that is elsewhere.
    fn sift_down(&mut self, start: usize) -> bool {
        let mut index = start;
        loop {
            let mut first = index;
            for child in [2 * index + 1, 2 * index + 2] {
                if child < self.live && self.compare(child, first) == Ordering::Less {
                    first = child;
                }
            }
            if first == index {
                return index != start;
            }
            self.sources.swap(index, first);
            index = first;
        }
    }

    /// Which of two sources comes first in the way that the cursor goes.
    #[inline]
    fn compare(&self, left: usize, right: usize) -> Ordering {
        let order = self.sources[left].key().cmp(&self.sources[right].key());
        if self.backwards { order.reverse() } else { order }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::disk::SimFile;
    use crate::event::{Action, Event};
    use crate::tree::table::tests::{built, tiny};
    use crate::tree::tests::{event, internal, stamp};

    #[derive(Clone, Debug)]
    enum Move {
        Seek(prop::sample::Index, bool),
        SeekBefore(prop::sample::Index, bool),
        Advance(usize),
    }

    fn any_move() -> impl Strategy<Value = Move> {
        prop_oneof![
            (any::<prop::sample::Index>(), any::<bool>())
                .prop_map(|(at, behind)| Move::Seek(at, behind)),
            (any::<prop::sample::Index>(), any::<bool>())
                .prop_map(|(at, behind)| Move::SeekBefore(at, behind)),
            (1..30_usize).prop_map(Move::Advance),
        ]
    }

    /// Few keys, so that an event is in several sources.
    fn any_events() -> impl Strategy<Value = Vec<Event>> {
        let one = (prop::collection::vec(0..3_u8, 1..4), 0..4_u64)
            .prop_map(|(key, ms)| event(0, &key, stamp(ms), Action::Put));
        prop::collection::vec(one, 1..30)
    }

    fn table(events: &[Event]) -> TableCursor<SimFile> {
        let rows: BTreeMap<_, _> = events
            .iter()
            .map(|event| {
                let Event { action, request, payload, .. } = event.clone();
                (internal(event), Stored { action, request, payload })
            })
            .collect();
        TableCursor::new(built(&rows.into_iter().collect(), &tiny(100), 1 << 20), true)
    }

    proptest! {
        #[test]
        fn a_merge_goes_as_in_a_sorted_map(
            memtables in prop::collection::vec(any_events(), 0..3),
            tables in prop::collection::vec(any_events(), 1..5),
            moves in prop::collection::vec((any_move(), any::<bool>()), 1..40),
        ) {
            let all = memtables.iter().chain(&tables).flatten();
            let rows: BTreeMap<Vec<u8>, Event> = all.map(|event| (internal(event), event.clone())).collect();
            let rows: Vec<_> = rows.into_iter().collect();
            let made: Vec<Memtable> = memtables.iter().map(|events| {
                let memtable = Memtable::default();
                for event in events {
                    memtable.insert(event);
                }
                memtable
            }).collect();
            let mut sources: Vec<Source<'_, SimFile>> =
                made.iter().map(|memtable| Source::Memtable(memtable, memtable.none())).collect();
            sources.extend(tables.iter().map(|events| Source::Table(Box::new(table(events)))));
            let mut cursor = MergeCursor::new(sources);
            let (mut at, mut backwards): (Option<usize>, bool) = (None, false);
            for (step, looks) in moves {
                let place = |index: &prop::sample::Index, behind: &bool| {
                    let mut key = index.get(&rows).0.clone();
                    key.extend(behind.then_some(0));
                    let below = rows.partition_point(|(row, _)| *row < key);
                    (key, below)
                };
                match &step {
                    Move::Seek(index, behind) => {
                        let (key, below) = place(index, behind);
                        cursor.seek(&key).unwrap();
                        (at, backwards) = (Some(below), false);
                    }
                    Move::SeekBefore(index, behind) => {
                        let (key, below) = place(index, behind);
                        cursor.seek_before(&key).unwrap();
                        (at, backwards) = (below.checked_sub(1), true);
                    }
                    Move::Advance(times) => {
                        for _ in 0..*times {
                            cursor.advance().unwrap();
                            at = if backwards { at.and_then(|at| at.checked_sub(1)) } else { at.map(|at| at + 1) };
                        }
                    }
                }
                let wanted = at.and_then(|at| rows.get(at));
                prop_assert_eq!(cursor.key(), wanted.map(|(key, _)| &key[..]), "after {:?}", step);
                if let Some((_, event)) = wanted.filter(|_| looks) {
                    cursor.arrive().unwrap();
                    prop_assert_eq!(cursor.borrowed().unwrap().payload, &event.payload[..]);
                    prop_assert_eq!(cursor.stored().unwrap().payload, &event.payload);
                }
            }
        }
    }
}
