//! [`MergeCursor`]: many sorted sources read as one, forwards or backwards.
//!
//! Invariants:
//!
//! - Internal keys rise strictly, or fall strictly: an event that is in several sources is met once.
//! - An error of one source ends the read: a damaged table never makes events disappear.
//! - A cursor goes one way until it is told where to begin anew: a merge of sources has to search for the event before
//!   the present one in each of them.
//! - Of a table that begins behind where the walk is (ends before, backwards) nothing is read before the walk is there.
//!
//! The sources that have events left are kept sorted, by insertion: they are few, and a step costs one comparison while events
//! come from one source. Who wants one version of each key passes the others in all sources at once.

use std::cmp::Ordering;

use super::internal_key::{is_version, past_key};
use super::memtable::{Memtable, MemtableCursor};
use super::stored::{Stored, StoredRef};
use super::table::TableCursor;
use super::words;
use crate::disk::DiskFile;
use crate::error::Error;

/// Versions of a key that are stepped over in a source before what is behind them is searched for.
const STEPS_BEFORE_SEEK: usize = if cfg!(test) { 2 } else { 8 };

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

    /// Whether it is on a version of the key that `prefix` is of.
    #[inline]
    fn is_on(&self, prefix: &[u8]) -> bool {
        self.key().is_some_and(|internal| is_version(internal, prefix))
    }

    /// Moves forwards past the versions of that key, on one of which it is: by steps if they are few, else by a search. How many
    /// moves that took.
    #[inline]
    fn pass(&mut self, prefix: &[u8]) -> Result<usize, Error> {
        let is_other = |key: Option<&[u8]>| !key.is_some_and(|key| is_version(key, prefix));
        for before in 0..STEPS_BEFORE_SEEK {
            let is_other = match self {
                Self::Memtable(_, cursor) => {
                    cursor.advance();
                    is_other(cursor.key())
                }
                Self::Table(cursor) => {
                    cursor.advance()?;
                    is_other(cursor.key())
                }
            };
            if is_other {
                return Ok(before + 1);
            }
        }
        self.seek(&past_key(prefix), false)?;
        Ok(STEPS_BEFORE_SEEK + 1)
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

/// A source that has events left.
#[derive(Clone, Copy)]
struct Live {
    source: usize,
    /// The event that it is on is also the one that the source behind it is on.
    tied: bool,
}

/// Walks the union of its sources.
pub(crate) struct MergeCursor<'a, F> {
    sources: Vec<Source<'a, F>>,
    /// The one that comes next is the last.
    live: Vec<Live>,
    backwards: bool,
}

impl<'a, F: DiskFile> MergeCursor<'a, F> {
    /// A cursor on the least event of all sources, which stand where the walk begins.
    pub(crate) fn new(sources: Vec<Source<'a, F>>) -> Self {
        let live = Vec::with_capacity(sources.len());
        let mut cursor = Self { sources, live, backwards: false };
        cursor.sort();
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
        self.live.clear();
        for source in &mut self.sources {
            if source.key().is_some_and(|key| key < target) {
                source.seek(target, false)?;
            }
        }
        self.sort();
        Ok(())
    }

    /// Moves to the last event before `target`, and goes backwards from there.
    pub(crate) fn seek_before(&mut self, target: &[u8]) -> Result<(), Error> {
        self.seek_all(target, true)
    }

    /// The internal key of the event, `None` past the last one.
    #[inline]
    pub(crate) fn key(&self) -> Option<&[u8]> {
        self.live.last().and_then(|next| self.sources[next.source].key())
    }

    /// Makes sure that the event was read. Call it before [`Self::borrowed`] and [`Self::stored`], once it is clear that
    /// the event is wanted.
    #[inline]
    pub(crate) fn arrive(&mut self) -> Result<(), Error> {
        let Some(next) = self.live.last() else { return Ok(()) };
        self.sources[next.source].arrive().inspect_err(|_| self.live.clear())
    }

    /// What there is of the event beside its internal key.
    ///
    /// # Panics
    /// If the cursor is past the last event, or has not arrived there.
    #[inline]
    pub(crate) fn borrowed(&self) -> Result<StoredRef<'_>, Error> {
        match self.next() {
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
        match self.next() {
            Source::Table(cursor) => cursor.stored(),
            Source::Memtable(..) => self.borrowed().map(StoredRef::to_stored),
        }
    }

    /// The source that the event is of.
    #[inline]
    fn next(&self) -> &Source<'a, F> {
        &self.sources[self.live.last().expect("the cursor is on an event").source]
    }

    /// Moves to the next event in the way that the cursor goes, past every copy of this one.
    pub(crate) fn advance(&mut self) -> Result<(), Error> {
        let mut moved = self.live.len();
        for next in self.live.iter().rev() {
            moved -= 1;
            if let Err(error) = self.sources[next.source].step(self.backwards) {
                self.live.clear();
                return Err(error);
            }
            if !next.tied {
                break;
            }
        }
        self.settle(moved);
        Ok(())
    }

    /// Moves forwards past the versions of the key that `prefix` is of, on one of which the cursor is, to the first event of
    /// another key. How many moves of sources that took.
    ///
    /// # Panics
    /// If the cursor goes backwards.
    pub(crate) fn pass_key(&mut self, prefix: &[u8]) -> Result<usize, Error> {
        assert!(!self.backwards);
        let (mut moved, mut moves) = (self.live.len(), 0);
        for next in self.live.iter().rev() {
            let source = &mut self.sources[next.source];
            // The cursor is on a version.
            if moved < self.live.len() && !source.is_on(prefix) {
                break;
            }
            moved -= 1;
            match source.pass(prefix) {
                Ok(more) => moves += more,
                Err(error) => {
                    self.live.clear();
                    return Err(error);
                }
            }
        }
        self.settle(moved);
        Ok(moves)
    }

    fn seek_all(&mut self, target: &[u8], backwards: bool) -> Result<(), Error> {
        self.live.clear();
        self.backwards = backwards;
        for source in &mut self.sources {
            source.seek(target, backwards)?;
        }
        self.sort();
        Ok(())
    }

    /// Sorts all sources.
    fn sort(&mut self) {
        self.live.clear();
        self.live.extend((0..self.sources.len()).map(|source| Live { source, tied: false }));
        self.insert_from(0);
    }

    /// The sources from `moved` on are on other events than they were, or on none: puts them where they belong.
    #[inline]
    fn settle(&mut self, moved: usize) {
        let is_alone = self.live.len() == 1 && self.key().is_some();
        if !is_alone {
            self.insert_from(moved);
        }
    }

    fn insert_from(&mut self, moved: usize) {
        let mut place = moved;
        while let Some(Live { source, .. }) = self.live.get(place) {
            let Some(key) = self.sources[*source].key() else {
                self.live.remove(place);
                continue;
            };
            // Mostly it is the one that comes next.
            let order = place.checked_sub(1).map_or(Ordering::Less, |next| self.compare(key, next));
            self.live[place].tied = order == Ordering::Equal;
            if order == Ordering::Greater {
                self.move_back(place);
            }
            place += 1;
        }
    }

    /// Puts a live source where it belongs among those before its place, which are sorted; not next.
    fn move_back(&mut self, place: usize) {
        let mut moving = self.live[place];
        let key = self.sources[moving.source].key().unwrap_or_default();
        let (mut low, mut high) = (0, place - 1);
        while low < high {
            let middle = low.midpoint(high);
            let order = self.compare(key, middle);
            if order == Ordering::Greater {
                high = middle;
            } else {
                (low, moving.tied) = (middle + 1, order == Ordering::Equal);
            }
        }
        for behind in (low..place).rev() {
            self.live[behind + 1] = self.live[behind];
        }
        self.live[low] = moving;
    }

    /// How `key` compares to the event that the live source at `place` is on, in the way that the cursor goes.
    #[inline]
    fn compare(&self, key: &[u8], place: usize) -> Ordering {
        let other = self.sources[self.live[place].source].key().unwrap_or_default();
        let order = words::compare(key, other);
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
    use crate::tree::internal_key::prefix_of;
    use crate::tree::table::tests::{built, tiny};
    use crate::tree::tests::{event, internal, stamp};

    #[derive(Clone, Debug)]
    enum Move {
        Seek(prop::sample::Index, bool),
        SeekBefore(prop::sample::Index, bool),
        Advance(usize),
        PassKey(usize),
    }

    fn any_move() -> impl Strategy<Value = Move> {
        prop_oneof![
            (any::<prop::sample::Index>(), any::<bool>())
                .prop_map(|(at, behind)| Move::Seek(at, behind)),
            (any::<prop::sample::Index>(), any::<bool>())
                .prop_map(|(at, behind)| Move::SeekBefore(at, behind)),
            (1..30_usize).prop_map(Move::Advance),
            (1..6_usize).prop_map(Move::PassKey),
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
                    Move::PassKey(times) => {
                        for _ in 0..*times {
                            let Some(on) = cursor.key().filter(|_| !backwards).map(prefix_of) else { break };
                            let on = on.to_vec();
                            let is_other = |(row, _): &(Vec<u8>, Event)| !row.starts_with(&on);
                            let moves = cursor.pass_key(&on).unwrap();
                            let from = at.expect("it is on an event");
                            let behind = rows[from..].iter().position(is_other);
                            at = Some(behind.map_or(rows.len(), |behind| from + behind));
                            prop_assert!(0 < moves && moves <= (memtables.len() + tables.len()) * (STEPS_BEFORE_SEEK + 1));
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
