//! [`Index`]: a hash table from hashes to numbers that one thread writes while others read.
//!
//! An extendible hash table (Fagin et al., 1979): the upper bits of a hash choose one of many small segments, and a full
//! segment is split in two, so that growing never stops the writer for long and leaves no old table behind. In a segment
//! the hash chooses a cache line, and a full line passes on to the next one.
//!
//! Invariants:
//!
//! - A slot is one word, 32 bits of hash and the number, so that a reader sees an entry whole. Whether it is the one
//!   that is looked for is for the caller to check: a number that is found may be one that was replaced meanwhile.
//! - What was added before a search began is found, or the search is [`Found::Unsure`]: a split moves entries only
//!   while the segment's version is odd, after the directory shows where to, and a search that met any of it says so.
//! - Segments and directory stay in proportion to the entries whatever the hashes are. Entries that no split would make
//!   room for are left out; from then on no search says [`Found::Absent`].

use std::sync::OnceLock;

use super::arena::prefetch;
use super::stable::Stable;
use super::sync::{AtomicU32, AtomicU64, Ordering};

/// Slots of a line, which is a cache line of the machine.
const LINE_SLOTS: usize = if cfg!(all(loom, test)) { 2 } else { 8 };
/// Lines of a segment: with what is beside them they make two kilobytes.
const LINES: usize = if cfg!(all(loom, test)) { 1 } else { 31 };
const SLOTS: usize = LINE_SLOTS * LINES;
/// A segment is split at this many entries: lines begin to be full.
const SPLIT_AT: usize = SLOTS - SLOTS / 8;
/// Bits of hash that may choose a segment.
const DEPTH_MAX: u32 = 20;
/// Bits of hash, the lowest in the slot, that choose a line.
const LINE_BITS: u32 = 12;
/// Slots that there may be for one entry before splits are refused, above those of [`SEGMENTS_FREE`].
const SLOTS_PER_ENTRY_MAX: usize = 6;
/// Places in the directory that there may be for one segment, above those of [`SEGMENTS_FREE`].
const PLACES_PER_SEGMENT_MAX: usize = 16;
/// Segments that are granted without a proportion.
const SEGMENTS_FREE: usize = 4;
/// A search that meets a split tries again so many times.
const TRIES: usize = 3;

const _: () =
    assert!(DEPTH_MAX + LINE_BITS <= 32, "lines and segments are chosen by bits of their own");

#[repr(align(64))]
struct Line([AtomicU64; LINE_SLOTS]);

struct Segment {
    /// Odd while entries are moved.
    version: AtomicU32,
    lines: [Line; LINES],
}

/// What a search came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// This number, which the caller said is the one.
    Number(u32),
    /// Nothing that was added before the search began.
    Absent,
    /// A split was under way, or entries were left out: look elsewhere.
    Unsure,
}

/// See the file's head.
pub(super) struct Index {
    /// By depth: which segment the upper bits of a hash choose.
    directories: [OnceLock<Box<[AtomicU32]>>; DEPTH_MAX as usize + 1],
    depth: AtomicU32,
    segments: Stable<Segment>,
    /// Entries were left out.
    incomplete: AtomicU32,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            directories: [const { OnceLock::new() }; DEPTH_MAX as usize + 1],
            depth: AtomicU32::new(0),
            segments: Stable::default(),
            incomplete: AtomicU32::new(0),
        }
    }
}

/// What the writer of an [`Index`] knows about it.
#[derive(Default)]
pub(super) struct IndexWriter {
    /// Of each segment: how many bits chose it, and how many entries it has.
    segments: Vec<(u32, usize)>,
    entries: usize,
    /// Entries that were told of beforehand.
    expected: usize,
    /// Memory of the index, in bytes.
    bytes: usize,
}

impl IndexWriter {
    /// Memory of the index, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

fn slot(tag: u32, number: u32) -> u64 {
    u64::from(tag) << 32 | u64::from(number)
}

fn number_in(slot: u64) -> u32 {
    u32::try_from(slot & u64::from(u32::MAX)).expect("32 bits")
}

fn tag_in(slot: u64) -> u32 {
    u32::try_from(slot >> 32).expect("32 bits")
}

/// The upper half of a hash is all that is used of it.
fn tag_of(hash: u64) -> u32 {
    tag_in(hash)
}

fn place(tag: u32, depth: u32) -> usize {
    tag.checked_shr(32 - depth).unwrap_or(0) as usize
}

fn line_of(tag: u32) -> usize {
    ((tag as usize & ((1 << LINE_BITS) - 1)) * LINES) >> LINE_BITS
}

/// The entries in the order of their places in a directory of this depth, and where those of each place end.
fn by_place(entries: &[u64], depth: u32) -> (Vec<u64>, Vec<usize>) {
    let mut ends = vec![0; 1 << depth];
    for &entry in entries {
        ends[place(tag_in(entry), depth)] += 1;
    }
    let mut end = 0;
    for places in &mut ends {
        // Where they begin, until each has been put there.
        end += std::mem::replace(places, end);
    }
    let mut grouped = vec![0; entries.len()];
    for &entry in entries {
        let next = &mut ends[place(tag_in(entry), depth)];
        grouped[*next] = entry;
        *next += 1;
    }
    (grouped, ends)
}

impl Segment {
    fn new() -> Self {
        let lines = std::array::from_fn(|_| Line(std::array::from_fn(|_| AtomicU64::new(0))));
        Self { version: AtomicU32::new(0), lines }
    }

    /// The first slot that is wanted, in the order in which they are tried for `tag`, and what is in it.
    #[inline]
    fn find(&self, tag: u32, is_wanted: impl Fn(u64) -> bool) -> Option<(&AtomicU64, u64)> {
        let first = line_of(tag);
        for line in (first..LINES).chain(0..first) {
            for slot in &self.lines[line].0 {
                let content = slot.load(Ordering::Acquire);
                if is_wanted(content) {
                    return Some((slot, content));
                }
            }
        }
        None
    }

    /// Whether there was room.
    fn put(&self, tag: u32, number: u32) -> bool {
        let free = self.find(tag, |content| content == 0);
        free.inspect(|(free, _)| free.store(slot(tag, number), Ordering::Release)).is_some()
    }
}

impl Index {
    /// Looks for a number with this hash for which `is_it` says that it is the one.
    #[inline]
    pub(super) fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Found {
        let tag = tag_of(hash);
        for _ in 0..TRIES {
            let depth = self.depth.load(Ordering::Acquire);
            let Some(directory) = self.directories[depth as usize].get() else {
                return Found::Absent;
            };
            let place = &directory[place(tag, depth)];
            let number = place.load(Ordering::Acquire);
            let segment = self.segments.get(number);
            let version = segment.version.load(Ordering::Acquire);
            // Nothing is behind a free slot.
            let found = segment.find(tag, |content| {
                content == 0 || (tag_in(content) == tag && is_it(number_in(content)))
            });
            if let Some((_, content)) = found.filter(|(_, content)| *content != 0) {
                return Found::Number(number_in(content));
            }
            // A slot that a split has written shows, by its acquiring load, all that the split did before.
            let is_still = version.is_multiple_of(2)
                && segment.version.load(Ordering::Acquire) == version
                && place.load(Ordering::Acquire) == number
                && self.depth.load(Ordering::Relaxed) == depth;
            if is_still {
                let complete = self.incomplete.load(Ordering::Acquire) == 0;
                return if complete { Found::Absent } else { Found::Unsure };
            }
        }
        Found::Unsure
    }

    /// Begins to bring near what a search for this hash looks at.
    #[inline]
    pub(super) fn prefetch(&self, hash: u64) {
        let tag = tag_of(hash);
        let depth = self.depth.load(Ordering::Acquire);
        let Some(directory) = self.directories[depth as usize].get() else { return };
        let segment = self.segments.get(directory[place(tag, depth)].load(Ordering::Acquire));
        prefetch(&segment.version);
        prefetch(&segment.lines[line_of(tag)]);
    }

    /// Adds numbers that are not there, each below the upper half of its hash, to an index that is empty. Segment after segment:
    /// what is added one by one, in any order, waits for memory each time.
    pub(super) fn fill(&self, writer: &mut IndexWriter, entries: &[u64]) {
        assert!(writer.segments.is_empty());
        writer.expected = entries.len();
        let segments = (entries.len() / SPLIT_AT).next_power_of_two();
        let depth = segments.ilog2().min(DEPTH_MAX);
        // If they are all but full, each will be split.
        let nearly_full = SPLIT_AT - SPLIT_AT / 8 < entries.len() >> depth;
        let depth = (depth + u32::from(nearly_full)).min(DEPTH_MAX);
        let mut left_over = Vec::new();
        let (grouped, ends) = by_place(entries, depth);
        let mut start = 0;
        for end in ends {
            let here = &grouped[start..end];
            let (fit, more) = here.split_at(here.len().min(SPLIT_AT));
            let segment = Segment::new();
            for &entry in fit {
                assert!(segment.put(tag_in(entry), number_in(entry)));
            }
            self.push_segment(writer, depth, segment, fit.len());
            writer.entries += fit.len();
            left_over.extend_from_slice(more);
            start = end;
        }
        self.push_directory(writer, depth, |place| u32::try_from(place).expect("20 bits"));
        for entry in left_over {
            self.add(writer, entry, number_in(entry));
        }
    }

    /// Adds a number that is not there.
    pub(super) fn add(&self, writer: &mut IndexWriter, hash: u64, number: u32) {
        let tag = tag_of(hash);
        if writer.segments.is_empty() {
            self.push_segment(writer, 0, Segment::new(), 0);
            self.push_directory(writer, 0, |_| 0);
        }
        writer.entries += 1;
        loop {
            let (depth, directory) = self.directory();
            let segment = directory[place(tag, depth)].load(Ordering::Relaxed);
            let (_, entries) = writer.segments[segment as usize];
            if SPLIT_AT <= entries && self.split(writer, segment, tag) {
                continue;
            }
            if self.segments.get(segment).put(tag, number) {
                writer.segments[segment as usize].1 += 1;
            } else {
                self.incomplete.store(1, Ordering::Release);
            }
            return;
        }
    }

    /// Puts `number` where `before` was, if it was not left out. Only the writer does this.
    pub(super) fn replace(&self, hash: u64, before: u32, number: u32) {
        let tag = tag_of(hash);
        let (depth, directory) = self.directory();
        let segment = self.segments.get(directory[place(tag, depth)].load(Ordering::Relaxed));
        let old = slot(tag, before);
        if let Some((found, _)) = segment.find(tag, |content| content == old) {
            found.store(slot(tag, number), Ordering::Release);
        }
    }

    fn directory(&self) -> (u32, &[AtomicU32]) {
        let depth = self.depth.load(Ordering::Relaxed);
        let directory = self.directories[depth as usize].get();
        (depth, directory.expect("there is one of this depth"))
    }

    /// Splits a segment that `tag` belongs to; whether that was granted.
    fn split(&self, writer: &mut IndexWriter, low: u32, tag: u32) -> bool {
        let (bits, _) = writer.segments[low as usize];
        let (depth, directory) = self.directory();
        let segments = writer.segments.len();
        let granted = segments < SEGMENTS_FREE
            || (segments + 1 - SEGMENTS_FREE) * SLOTS
                <= writer.entries.max(writer.expected) * SLOTS_PER_ENTRY_MAX;
        if bits == DEPTH_MAX || !granted {
            return false;
        }
        if bits == depth {
            if segments.max(SEGMENTS_FREE) * PLACES_PER_SEGMENT_MAX < 2 << depth {
                return false;
            }
            let doubled = |place: usize| directory[place / 2].load(Ordering::Relaxed);
            self.push_directory(writer, depth + 1, doubled);
        }
        let (depth, directory) = self.directory();
        let high = Segment::new();
        let mut stay = Vec::with_capacity(SLOTS);
        let mut moved = 0;
        let segment = self.segments.get(low);
        for slot in segment.lines.iter().flat_map(|line| &line.0) {
            let slot = slot.load(Ordering::Relaxed);
            if slot == 0 {
            } else if tag_in(slot) << bits >> 31 == 1 {
                assert!(high.put(tag_in(slot), number_in(slot)));
                moved += 1;
            } else {
                stay.push(slot);
            }
        }
        let number = self.push_segment(writer, bits + 1, high, moved);
        writer.segments[low as usize] = (bits + 1, stay.len());

        let version = segment.version.load(Ordering::Relaxed);
        segment.version.store(version + 1, Ordering::Relaxed);
        let places = 1 << (depth - bits - 1);
        let first = (place(tag, bits) * 2 + 1) * places;
        for place in &directory[first..first + places] {
            place.store(number, Ordering::Release);
        }
        for slot in segment.lines.iter().flat_map(|line| &line.0) {
            slot.store(0, Ordering::Release);
        }
        for slot in stay {
            assert!(segment.put(tag_in(slot), number_in(slot)));
        }
        segment.version.store(version + 2, Ordering::Release);
        true
    }

    fn push_segment(
        &self,
        writer: &mut IndexWriter,
        bits: u32,
        segment: Segment,
        entries: usize,
    ) -> u32 {
        let number = u32::try_from(writer.segments.len()).expect("bounded by the entries");
        writer.bytes += self.segments.push(number, segment);
        writer.segments.push((bits, entries));
        number
    }

    fn push_directory(&self, writer: &mut IndexWriter, depth: u32, of: impl Fn(usize) -> u32) {
        let places: Box<[_]> = (0..1 << depth).map(|place| AtomicU32::new(of(place))).collect();
        writer.bytes += places.len() * size_of::<AtomicU32>();
        assert!(self.directories[depth as usize].set(places).is_ok(), "each depth comes once");
        self.depth.store(depth, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use xxhash_rust::xxh3::xxh3_64;

    use super::*;

    fn check(index: &Index, model: &BTreeMap<u32, u64>, complete: bool) {
        for (&number, &hash) in model {
            let found = index.find(hash, |found| found == number);
            let left_out = !complete && found == Found::Unsure;
            assert!(found == Found::Number(number) || left_out, "{number}: {found:?}");
        }
    }

    proptest! {
        /// Hashes that share their upper bits make deep directories, those that share all that counts fill segments.
        #[test]
        fn what_was_added_is_found(hashes in prop::collection::vec(
            prop_oneof![any::<u64>(), (0..1_u64 << 52), Just(7 << 32), (0_u64..8).prop_map(|n| n << 61)], 1..1500,
        )) {
            let (index, mut writer) = (Index::default(), IndexWriter::default());
            let mut model = BTreeMap::new();
            for (number, hash) in (1..).zip(hashes) {
                index.add(&mut writer, hash, number);
                model.insert(number, hash);
            }
            let complete = index.incomplete.load(Ordering::Relaxed) == 0;
            check(&index, &model, complete);
            let absent = if complete { Found::Absent } else { Found::Unsure };
            prop_assert_eq!(index.find(3 << 40, |_| false), absent);
        }
    }

    #[test]
    fn hashes_of_one_kind_cost_no_more_memory_than_others() {
        let hashes = [|_| 0, |n: u32| u64::from(n), |n: u32| u64::from(n) << 32];
        let one_by_one = hashes.map(|hash| (hash, false));
        for (hash, is_filled) in one_by_one.into_iter().chain(hashes.map(|hash| (hash, true))) {
            let (index, mut writer) = (Index::default(), IndexWriter::default());
            let entries = 1..20_000_u32;
            if is_filled {
                let entry = |number| hash(number) & !u64::from(u32::MAX) | u64::from(number);
                index.fill(&mut writer, &entries.map(entry).collect::<Vec<_>>());
            } else {
                entries.for_each(|number| index.add(&mut writer, hash(number), number));
            }
            assert_eq!(index.find(1 << 63, |_| false), Found::Unsure, "most were left out");
            assert!(writer.bytes() < 20_000 * 64, "{}", writer.bytes());
        }
    }

    #[test]
    fn a_key_takes_about_sixteen_bytes_and_all_are_found() {
        let (index, mut writer) = (Index::default(), IndexWriter::default());
        for number in 1..200_000_u32 {
            index.add(&mut writer, xxh3_64(&number.to_le_bytes()), number);
        }
        for number in 1..400_000_u32 {
            let found = index.find(xxh3_64(&number.to_le_bytes()), |found| found == number);
            let expected = if number < 200_000 { Found::Number(number) } else { Found::Absent };
            assert_eq!(found, expected);
        }
        assert!(writer.bytes() < 200_000 * 20, "{}", writer.bytes());
    }

    #[test]
    fn one_that_is_filled_at_once_has_all_and_takes_more() {
        for entries in [0, 1, 200, 217, 218, 1_000, 5_000, 30_000, 54_000, 55_000, 100_000_u32] {
            let (index, mut writer) = (Index::default(), IndexWriter::default());
            let hash = |number: u32| xxh3_64(&number.to_le_bytes());
            let entry = |number| hash(number) & !u64::from(u32::MAX) | u64::from(number);
            index.fill(&mut writer, &(1..=entries).map(entry).collect::<Vec<_>>());
            for number in 1..=2 * entries {
                let found = index.find(hash(number), |found| found == number);
                let expected =
                    if number <= entries { Found::Number(number) } else { Found::Absent };
                assert_eq!(found, expected, "{number} of {entries}");
            }
            let segment = size_of::<Segment>() + 64;
            assert!(
                writer.bytes <= entries as usize * 30 + 3 * segment,
                "{entries}: {}",
                writer.bytes
            );
            for number in entries + 1..=entries + 1_000 {
                index.add(&mut writer, hash(number), number);
            }
            for number in 1..=entries + 1_000 {
                let found = index.find(hash(number), |found| found == number);
                assert_eq!(found, Found::Number(number), "{number} of {entries}");
            }
        }
    }

    #[test]
    fn a_number_is_replaced() {
        let (index, mut writer) = (Index::default(), IndexWriter::default());
        index.add(&mut writer, 9 << 32, 1);
        index.replace(9 << 32, 1, 2);
        assert_eq!(index.find(9 << 32, |_| true), Found::Number(2));
        assert_eq!(index.find(9 << 32, |number| number == 1), Found::Absent);
    }
}
