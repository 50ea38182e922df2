//! What most blocks contain: sorted entries with shared prefixes, and restart points to search by
//! (the block of `LevelDB`, `doc/table_format.md`). See `FORMAT.md`, "Table entries".
//!
//! Invariants:
//!
//! - Keys rise strictly within a block.
//! - An entry at a restart point is written whole, and its offset stands in the list at the end. The first entry is
//!   one; how many entries lie between is the writer's choice, and no reader's business.
//! - Any bytes can be read: what does not parse is [`Damaged`], never a panic, also behind a good checksum.
//!
//! A search builds no key and takes no memory: what a search has met of its target says all that it needs.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::block::Damaged;
use crate::tree::memtable::prefetch;
use crate::tree::words::{self, common_prefix};

/// Entries from one restart point of a block to the next, where blocks are read one after the other.
pub(crate) const RESTART_INTERVAL: usize = 16;
/// The same where blocks are searched only.
pub(crate) const SEARCHED_RESTART_INTERVAL: usize = 2;

/// How many entries a search is ahead of itself.
const LEAD: usize = 8;

/// Lays entries out. Reused from block to block.
pub(crate) struct EntriesBuilder {
    interval: usize,
    bytes: Vec<u8>,
    restarts: Vec<u32>,
    last_key: Vec<u8>,
    count: usize,
}

impl EntriesBuilder {
    /// A builder that writes every `interval`-th key whole.
    pub(crate) fn new(interval: usize) -> Self {
        assert!(0 < interval);
        let (bytes, restarts, last_key) = (Vec::new(), Vec::new(), Vec::new());
        Self { interval, bytes, restarts, last_key, count: 0 }
    }

    /// Appends an entry whose value is the concatenation of `value`.
    ///
    /// # Panics
    /// If `key` is not above the one before.
    pub(crate) fn add(&mut self, key: &[u8], value: &[&[u8]]) {
        let common = common_prefix(&self.last_key, key);
        let rises = self.last_key[common..] < key[common..];
        assert!(self.count == 0 || rises, "keys rise strictly");
        let shared = if self.count.is_multiple_of(self.interval) {
            self.restarts.push(u32::try_from(self.bytes.len()).expect("bounded by BLOCK_SIZE_MAX"));
            0
        } else {
            common
        };
        put_varint(shared, &mut self.bytes);
        put_varint(key.len() - shared, &mut self.bytes);
        put_varint(value.iter().map(|part| part.len()).sum(), &mut self.bytes);
        self.bytes.extend_from_slice(&key[shared..]);
        for part in value {
            self.bytes.extend_from_slice(part);
        }
        self.last_key.truncate(common);
        self.last_key.extend_from_slice(&key[common..]);
        self.count += 1;
    }

    /// Bytes that [`Self::finish`] would give now.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len() + 4 * self.restarts.len() + 4
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The key added last, empty before the first; it stays after [`Self::clear`].
    pub(crate) fn last_key(&self) -> &[u8] {
        &self.last_key
    }

    /// The contents of the block; the builder is empty again after [`Self::clear`].
    pub(crate) fn finish(&mut self) -> &[u8] {
        for restart in &self.restarts {
            self.bytes.extend_from_slice(&restart.to_le_bytes());
        }
        let count = u32::try_from(self.restarts.len()).expect("bounded by BLOCK_SIZE_MAX");
        self.bytes.extend_from_slice(&count.to_le_bytes());
        &self.bytes
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.restarts.clear();
        self.count = 0;
    }
}

/// The contents of a block, ready to be searched. A clone is a reference count.
pub(crate) type Entries = Arc<EntriesBlock>;

/// See [`Entries`].
#[derive(Debug, Default)]
pub(crate) struct EntriesBlock {
    bytes: Bytes,
    /// Where the entries end and the list of restart points begins.
    list_start: usize,
    restarts: usize,
}

/// An entry that a search found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Where it begins.
    at: usize,
    /// So many bytes of its key are the first ones of the target.
    pub(crate) shared: usize,
    /// Where the rest of its key lies.
    pub(crate) suffix: Range<usize>,
    /// Where its value lies.
    pub(crate) value: Range<usize>,
}

impl EntriesBlock {
    pub(crate) fn open(bytes: Bytes) -> Result<Entries, Damaged> {
        let (rest, count) = bytes.split_last_chunk::<4>().ok_or(Damaged)?;
        let restarts = u32::from_le_bytes(*count) as usize;
        let list = restarts.checked_mul(4).ok_or(Damaged)?;
        let list_start = rest.len().checked_sub(list).ok_or(Damaged)?;
        if (restarts == 0) != (list_start == 0) {
            return Err(Damaged);
        }
        Ok(Arc::new(Self { bytes, list_start, restarts }))
    }

    /// Memory held, in bytes.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Whether the key of `found`, by a search for `target`, begins with the first `size` bytes of `target`.
    pub(crate) fn begins_with(&self, found: &Found, target: &[u8], size: usize) -> bool {
        let rest = target[..size].get(found.shared..).unwrap_or_default();
        self.slice(found.suffix.clone()).starts_with(rest)
    }

    /// The bytes of a [`Found`] range.
    pub(crate) fn slice(&self, range: Range<usize>) -> &[u8] {
        &self.bytes[range]
    }

    /// The same as a value of its own: a copy of what is small, and a part of the block, which it keeps, of what is
    /// most of it.
    pub(crate) fn value(&self, range: Range<usize>) -> Bytes {
        if range.len() < self.bytes.len() / 2 {
            Bytes::copy_from_slice(&self.bytes[range])
        } else {
            self.bytes.slice(range)
        }
    }

    /// The first entry whose key is `target` or above it.
    pub(crate) fn find(&self, target: &[u8]) -> Result<Option<Found>, Damaged> {
        if self.restarts == 0 {
            return Ok(None);
        }
        let mut at = self.restart(self.restart_before(target)?)?;
        // How many bytes of the target the entry before begins with: it was below the target.
        let mut matched = 0;
        let mut ahead = 0;
        while at < self.list_start {
            let Header { shared, suffix, value } = self.header(at)?;
            ahead = self.prefetch(
                ahead.max(value.end),
                value.end - at,
                value.end + LEAD * (value.end - at),
            );
            // What shares more than that with the one before differs from the target where that did.
            if shared <= matched {
                let (rest, wanted) = (&self.bytes[suffix.clone()], &target[shared..]);
                let common = common_prefix(rest, wanted);
                if wanted[common..] <= rest[common..] {
                    return Ok(Some(Found { at, shared, suffix, value }));
                }
                matched = shared + common;
            }
            at = value.end;
        }
        Ok(None)
    }

    /// Begins to bring near what lies at `from` and from there on, a step of `size` after the other, up to `end`, and tells
    /// how far it got. Entries are mostly as long as the one before: so their heads come near all at once, where a block
    /// that has been in the cache for a while would make a search wait for each.
    #[inline]
    fn prefetch(&self, from: usize, size: usize, end: usize) -> usize {
        let mut at = from;
        while at < end
            && let Some(byte) = self.bytes.get(at)
        {
            prefetch(byte);
            at += size;
        }
        at
    }

    fn restart(&self, index: usize) -> Result<usize, Damaged> {
        assert!(index < self.restarts);
        let list = &self.bytes[self.list_start + 4 * index..];
        let offset = u32::from_le_bytes(*list.first_chunk().ok_or(Damaged)?) as usize;
        if offset < self.list_start { Ok(offset) } else { Err(Damaged) }
    }

    #[inline]
    fn header(&self, offset: usize) -> Result<Header, Damaged> {
        let rest = &self.bytes[offset..self.list_start];
        // Nearly every length is below 128.
        let (shared, unshared, value, length) = match *rest {
            [shared, unshared, value, ..] if (shared | unshared | value) < 0x80 => {
                (usize::from(shared), usize::from(unshared), usize::from(value), 3)
            }
            _ => {
                let mut left = rest;
                let shared = take_varint(&mut left)?;
                let unshared = take_varint(&mut left)?;
                (shared, unshared, take_varint(&mut left)?, rest.len() - left.len())
            }
        };
        let left = rest.len() - length;
        if left < unshared || left - unshared < value {
            return Err(Damaged);
        }
        let suffix_start = offset + length;
        let value_start = suffix_start + unshared;
        Ok(Header {
            shared,
            suffix: suffix_start..value_start,
            value: value_start..value_start + value,
        })
    }

    /// The last restart point whose key is below `target`, or the first one.
    fn restart_before(&self, target: &[u8]) -> Result<usize, Damaged> {
        let (mut low, mut high) = (0, self.restarts);
        while low + 1 < high {
            let middle = low.midpoint(high);
            let header = self.header(self.restart(middle)?)?;
            if header.shared != 0 {
                return Err(Damaged);
            }
            match words::compare(&self.bytes[header.suffix], target) {
                Ordering::Less => low = middle,
                Ordering::Equal | Ordering::Greater => high = middle,
            }
        }
        Ok(low)
    }

    /// The last restart point before this offset, which is that of an entry but the first.
    fn restart_before_offset(&self, offset: usize) -> Result<usize, Damaged> {
        let (mut low, mut high) = (0, self.restarts);
        while low + 1 < high {
            let middle = low.midpoint(high);
            if self.restart(middle)? < offset {
                low = middle;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }
}

struct Header {
    shared: usize,
    suffix: Range<usize>,
    value: Range<usize>,
}

/// An entry behind the cursor, met on the way from the restart point before it.
#[derive(Debug)]
struct Passed {
    at: usize,
    key: Range<usize>,
    value: Range<usize>,
}

/// Walks the entries of a block forwards and backwards.
#[derive(Debug)]
pub(crate) struct EntriesCursor {
    /// Those to be on; there is one at the least.
    entries: Option<Entries>,
    /// Offset of the entry that the cursor is on.
    at: usize,
    valid: bool,
    key: Vec<u8>,
    value: Range<usize>,
    /// What lies between the restart point before and the cursor, if it was asked for.
    passed: Vec<Passed>,
    passed_keys: Vec<u8>,
}

impl EntriesCursor {
    /// A cursor on no entry: call one of the methods that move it.
    pub(crate) fn new(entries: Entries) -> Self {
        let mut cursor = Self::unloaded();
        cursor.reset(entries);
        cursor
    }

    /// A cursor without entries: call [`Self::reset`] first.
    pub(crate) fn unloaded() -> Self {
        Self {
            entries: None,
            at: 0,
            valid: false,
            key: Vec::new(),
            value: 0..0,
            passed: Vec::new(),
            passed_keys: Vec::new(),
        }
    }

    /// Whether there are entries to be on.
    pub(crate) fn is_loaded(&self) -> bool {
        self.entries.is_some()
    }

    /// Goes on with other entries, on none of them.
    pub(crate) fn reset(&mut self, entries: Entries) {
        self.entries = Some(entries).filter(|entries| 0 < entries.restarts);
        self.valid = false;
        self.passed.clear();
    }

    /// The entries are no longer those to be on: call [`Self::reset`] before any move.
    pub(crate) fn unload(&mut self) {
        self.entries = None;
        self.valid = false;
        self.passed.clear();
    }

    /// Moves to the first entry.
    pub(crate) fn first(&mut self) -> Result<(), Damaged> {
        self.leave();
        self.enter(0)
    }

    /// Moves to the last entry.
    pub(crate) fn last(&mut self) -> Result<(), Damaged> {
        self.leave();
        let end = self.entries.as_ref().map_or(0, |entries| entries.list_start);
        self.retreat_from(end)
    }

    /// Moves to the first entry whose key is `target` or above it, or off the end.
    pub(crate) fn seek(&mut self, target: &[u8]) -> Result<(), Damaged> {
        self.leave();
        let Some(entries) = &self.entries else { return Ok(()) };
        let Some(found) = entries.find(target)? else { return Ok(()) };
        self.key.reserve(found.shared + found.suffix.len());
        self.key.extend_from_slice(&target[..found.shared]);
        self.key.extend_from_slice(entries.slice(found.suffix.clone()));
        self.at = found.at;
        self.value = found.value;
        self.valid = true;
        Ok(())
    }

    /// Moves to the last entry whose key is below `target`, or off the front.
    pub(crate) fn seek_before(&mut self, target: &[u8]) -> Result<(), Damaged> {
        self.seek(target)?;
        if self.valid { self.retreat() } else { self.last() }
    }

    /// Moves to the next entry, or off the end.
    #[inline]
    pub(crate) fn advance(&mut self) -> Result<(), Damaged> {
        if !self.valid {
            return Ok(());
        }
        self.valid = false;
        self.passed.clear();
        self.enter(self.value.end)
    }

    /// Moves to the entry before, or off the front.
    pub(crate) fn retreat(&mut self) -> Result<(), Damaged> {
        if !self.valid {
            return Ok(());
        }
        self.valid = false;
        self.retreat_from(self.at)
    }

    /// Whether the cursor is on an entry.
    #[inline]
    pub(crate) fn valid(&self) -> bool {
        self.valid
    }

    /// # Panics
    /// If the cursor is on no entry.
    #[inline]
    pub(crate) fn key(&self) -> &[u8] {
        assert!(self.valid);
        &self.key
    }

    /// # Panics
    /// If the cursor is on no entry.
    #[inline]
    pub(crate) fn value(&self) -> &[u8] {
        assert!(self.valid);
        self.entries().slice(self.value.clone())
    }

    /// The part of the value from `from` on as a value of its own: see [`EntriesBlock::value`].
    ///
    /// # Panics
    /// If the cursor is on no entry, or its value is shorter than that.
    pub(crate) fn value_from(&self, from: usize) -> Bytes {
        assert!(self.valid);
        self.entries().value(self.value.start + from..self.value.end)
    }

    /// The block, and where in it the value lies.
    ///
    /// # Panics
    /// If the cursor is on no entry.
    pub(crate) fn into_value(self) -> (Entries, Range<usize>) {
        assert!(self.valid);
        (self.entries.expect("it is on one of them"), self.value)
    }

    #[inline]
    fn entries(&self) -> &EntriesBlock {
        self.entries.as_ref().expect("it is on one of them")
    }

    fn leave(&mut self) {
        self.valid = false;
        self.key.clear();
        self.passed.clear();
    }

    /// Moves to the entry at this offset; the key is that of the one before, or empty.
    #[inline]
    fn enter(&mut self, offset: usize) -> Result<(), Damaged> {
        let Some(entries) = self.entries.as_ref().filter(|it| offset != it.list_start) else {
            return Ok(());
        };
        let header = entries.header(offset)?;
        let suffix = &entries.bytes[header.suffix];
        let before = self.key.get(header.shared..).ok_or(Damaged)?;
        // The first byte decides but where less is shared than could be.
        let rises = match (before.first(), suffix.first()) {
            (Some(before), Some(first)) if before != first => before < first,
            _ => before < suffix,
        };
        if !rises && offset != 0 {
            return Err(Damaged);
        }
        self.key.truncate(header.shared);
        self.key.extend_from_slice(suffix);
        self.at = offset;
        self.value = header.value;
        self.valid = true;
        Ok(())
    }

    /// Moves to the last entry that begins before this offset.
    fn retreat_from(&mut self, offset: usize) -> Result<(), Damaged> {
        if self.passed.is_empty() {
            self.pass(offset)?;
        }
        let Some(Passed { at, key, value }) = self.passed.pop() else { return Ok(()) };
        self.key.clear();
        self.key.extend_from_slice(&self.passed_keys[key]);
        (self.at, self.value, self.valid) = (at, value, true);
        Ok(())
    }

    /// Reads the entries from the restart point before `offset` up to there.
    fn pass(&mut self, offset: usize) -> Result<(), Damaged> {
        self.passed_keys.clear();
        let Some(entries) = &self.entries else { return Ok(()) };
        let mut at = entries.restart(entries.restart_before_offset(offset)?)?;
        let mut before = 0..0;
        while at < offset {
            let Header { shared, suffix, value } = entries.header(at)?;
            if before.len() < shared {
                return Err(Damaged);
            }
            let start = self.passed_keys.len();
            self.passed_keys.extend_from_within(before.start..before.start + shared);
            self.passed_keys.extend_from_slice(&entries.bytes[suffix]);
            let key = start..self.passed_keys.len();
            if !before.is_empty() && self.passed_keys[key.clone()] <= self.passed_keys[before] {
                return Err(Damaged);
            }
            before = key.clone();
            self.passed.push(Passed { at, key, value: value.clone() });
            at = value.end;
        }
        Ok(())
    }
}

#[expect(clippy::cast_possible_truncation, reason = "seven bits a byte")]
fn put_varint(mut value: usize, out: &mut Vec<u8>) {
    while 0x80 <= value {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// At most five bytes, 35 bits: more than any length in a block.
fn take_varint(bytes: &mut &[u8]) -> Result<usize, Damaged> {
    let mut value = 0_u64;
    for shift in (0..35).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or(Damaged)?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return usize::try_from(value).map_err(|_| Damaged);
        }
    }
    Err(Damaged)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    type Pair = (Vec<u8>, Vec<u8>);

    fn build(model: &[Pair], interval: usize) -> Entries {
        let mut builder = EntriesBuilder::new(interval);
        for (key, value) in model {
            builder.add(key, &[value]);
        }
        assert_eq!(builder.size(), builder.bytes.len() + 4 * builder.restarts.len() + 4);
        EntriesBlock::open(Bytes::copy_from_slice(builder.finish())).expect("just built")
    }

    fn pair(cursor: &EntriesCursor) -> Option<Pair> {
        cursor.valid().then(|| (cursor.key().to_vec(), cursor.value().to_vec()))
    }

    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(0..3_u8, 0..12)
    }

    #[derive(Clone, Debug)]
    enum Move {
        First,
        Last,
        Seek(Vec<u8>),
        SeekBefore(Vec<u8>),
        Advance(usize),
        Retreat(usize),
    }

    fn any_move() -> impl Strategy<Value = Move> {
        prop_oneof![
            Just(Move::First),
            Just(Move::Last),
            key().prop_map(Move::Seek),
            key().prop_map(Move::SeekBefore),
            (1..40_usize).prop_map(Move::Advance),
            (1..40_usize).prop_map(Move::Retreat),
        ]
    }

    fn run(cursor: &mut EntriesCursor, step: &Move) -> Result<(), Damaged> {
        match step {
            Move::First => cursor.first(),
            Move::Last => cursor.last(),
            Move::Seek(target) => cursor.seek(target),
            Move::SeekBefore(target) => cursor.seek_before(target),
            Move::Advance(times) => (0..*times).try_for_each(|_| cursor.advance()),
            Move::Retreat(times) => (0..*times).try_for_each(|_| cursor.retreat()),
        }
    }

    /// Where the move leads to in a sorted vector.
    fn moved(model: &[Pair], at: Option<usize>, step: &Move) -> Option<usize> {
        let below = |target: &Vec<u8>| model.partition_point(|(key, _)| key < target);
        let index = match step {
            Move::First => Some(0),
            Move::Last => model.len().checked_sub(1),
            Move::Seek(target) => Some(below(target)),
            Move::SeekBefore(target) => below(target).checked_sub(1),
            Move::Advance(times) => at.map(|at| at + times),
            Move::Retreat(times) => at.and_then(|at| at.checked_sub(*times)),
        };
        index.filter(|index| *index < model.len())
    }

    proptest! {
        #[test]
        fn a_cursor_goes_as_in_a_sorted_vector(
            model in prop::collection::btree_map(key(), prop::collection::vec(any::<u8>(), 0..200), 0..100),
            steps in prop::collection::vec(any_move(), 1..60), interval in 1..20_usize,
        ) {
            let model: Vec<Pair> = BTreeMap::into_iter(model).collect();
            let entries = build(&model, interval);
            let mut cursor = EntriesCursor::new(entries.clone());
            let mut at = None;
            for step in &steps {
                run(&mut cursor, step).expect("sound");
                at = moved(&model, at, step);
                prop_assert_eq!(pair(&cursor), at.map(|at| model[at].clone()), "after {:?}", step);
                if let Move::Seek(target) = step {
                    let found = entries.find(target).expect("sound").map(|found| {
                        let suffix = entries.slice(found.suffix);
                        ([&target[..found.shared], suffix].concat(), entries.slice(found.value).to_vec())
                    });
                    prop_assert_eq!(found, at.map(|at| model[at].clone()));
                }
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(
            bytes in prop::collection::vec(0..20_u8, 0..100), restart in 0..30_u32,
            steps in prop::collection::vec(any_move(), 1..20),
        ) {
            // A list of two restart points, so that most are taken for a block.
            let tail = [[0; 4], restart.to_le_bytes(), 2_u32.to_le_bytes()].concat();
            for bytes in [bytes.clone(), [bytes, tail].concat()] {
                if let Ok(entries) = EntriesBlock::open(bytes.into()) {
                    let mut cursor = EntriesCursor::new(entries);
                    for step in &steps {
                        let _ = run(&mut cursor, step);
                    }
                }
            }
        }
    }
}
