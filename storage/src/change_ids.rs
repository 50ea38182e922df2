//! Which events a segment of the change log has: in memory while it takes changes, in an index beside it after. See
//! FORMAT.md, "Change index".
//!
//! Invariants:
//!
//! - Looking for an event costs a few small reads a segment, and no memory: an index is sorted by hashes, which are
//!   spread evenly, so that the page where one should be is known. Hashes that somebody chose cost a bisection.
//! - What is found is a candidate: half of the hash is kept, and whoever asks reads the change to be sure.
//! - An index that is missing or bad is made again from its segment; a page that is bad is never believed.

use starling_clock::Stamp;

use crate::changes::DIR;
use crate::event::array;
use crate::log::{Mark, Segment};
use crate::{Disk, DiskFile, Error};

pub(crate) const INDEX_MAGIC: [u8; 8] = *b"STARIDX\0";
/// The version that this code writes, and the newest that it reads.
pub(crate) const INDEX_VERSION: u32 = 1;
/// Bytes of an index before its places.
pub(crate) const INDEX_HEADER_SIZE: usize = 88;
const PLACE_SIZE: usize = 16;
/// Bytes of a page of ids before its entries.
const PAGE_HEADER_SIZE: usize = 8;
const ENTRY_SIZE: usize = 8;
/// Entries of each page but the last.
const PAGE_ENTRIES: usize = 511;
const PAGE_SIZE: usize = PAGE_HEADER_SIZE + PAGE_ENTRIES * ENTRY_SIZE;
/// Ids are put in order as soon as so many are not.
const UNSORTED_MAX: usize = 512;

/// Field name, offset, size: the same table as FORMAT.md, for the test that compares them.
#[cfg(test)]
pub(crate) const INDEX_LAYOUT: [(&str, usize, usize); 11] = [
    ("magic", 0, 8),
    ("version", 8, 4),
    ("crc", 12, 4),
    ("first", 16, 8),
    ("next", 24, 8),
    ("bytes", 32, 8),
    ("sealed", 40, 8),
    ("least", 48, 16),
    ("greatest", 64, 16),
    ("places", 80, 4),
    ("zero", 84, 4),
];

/// Inclusive bounds of stamps; wider than need be does no harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StampBounds {
    pub(crate) least: Stamp,
    pub(crate) greatest: Stamp,
}

impl StampBounds {
    const NONE: Self = Self { least: Stamp::MAX, greatest: Stamp::ZERO };

    fn take(&mut self, stamp: Stamp) {
        self.least = self.least.min(stamp);
        self.greatest = self.greatest.max(stamp);
    }

    /// Whether an event with this stamp may be within.
    pub(crate) fn contains(self, stamp: Stamp) -> bool {
        self.least <= stamp && stamp <= self.greatest
    }
}

/// The events of a segment, in memory.
#[derive(Clone, Debug)]
pub(crate) struct Ids {
    /// The segment's first change.
    first: u64,
    /// The upper half of an event's hash, and how many changes after the first it is.
    entries: Vec<u64>,
    /// Ends of the runs at the start of `entries` that are sorted each.
    runs: Vec<usize>,
    pub(crate) bounds: StampBounds,
}

impl Default for Ids {
    fn default() -> Self {
        Self::new(0)
    }
}

fn entry(hash: u64, distance: u64) -> u64 {
    let distance = u32::try_from(distance).expect("a segment has few changes");
    (hash & !u64::from(u32::MAX)) | u64::from(distance)
}

/// The entries of a sorted run that may be of an event with this hash.
fn matching(run: &[u64], hash: u64) -> &[u64] {
    let start = run.partition_point(|&entry| entry >> 32 < hash >> 32);
    let end = run.partition_point(|&entry| entry >> 32 <= hash >> 32);
    &run[start..end]
}

impl Ids {
    /// None yet; the segment begins with the change `first`.
    pub(crate) fn new(first: u64) -> Self {
        Self { first, entries: Vec::new(), runs: Vec::new(), bounds: StampBounds::NONE }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Takes the event of a change: the hash of its identity, and its stamp.
    pub(crate) fn take(&mut self, (hash, stamp): (u64, Stamp), sequence: u64) {
        self.entries.push(entry(hash, sequence - self.first));
        self.bounds.take(stamp);
    }

    /// The changes whose event may be the one with this stamp and hash.
    pub(crate) fn find(&mut self, stamp: Stamp, hash: u64) -> Vec<u64> {
        if !self.bounds.contains(stamp) {
            return Vec::new();
        }
        if self.entries.len() - self.runs.last().unwrap_or(&0) > UNSORTED_MAX {
            self.sort_tail();
        }
        let (mut found, mut start) = (Vec::new(), 0);
        for &end in &self.runs {
            found.extend_from_slice(matching(&self.entries[start..end], hash));
            start = end;
        }
        found.extend(self.entries[start..].iter().filter(|&&entry| entry >> 32 == hash >> 32));
        found.into_iter().map(|entry| self.first + (entry & u64::from(u32::MAX))).collect()
    }

    /// Makes the tail a run, and one of it and the runs before that are not much longer: each entry is moved a
    /// logarithmic number of times.
    fn sort_tail(&mut self) {
        let end = self.entries.len();
        let mut start = self.runs.last().copied().unwrap_or(0);
        while let Some(index) = self.runs.len().checked_sub(1) {
            let before = if index == 0 { 0 } else { self.runs[index - 1] };
            if start - before > 2 * (end - start) {
                break;
            }
            self.runs.pop();
            start = before;
        }
        sort(&mut self.entries[start..]);
        self.runs.push(end);
    }

    /// The changes from `sequence` on, which are taken out: they are of the next segment.
    pub(crate) fn split_off(&mut self, sequence: u64) -> Self {
        let kept = sequence - self.first;
        let (mut rest, entries): (Vec<u64>, Vec<u64>) =
            self.entries.iter().partition(|&&entry| (entry & u64::from(u32::MAX)) >= kept);
        for entry in &mut rest {
            *entry -= kept;
        }
        self.entries = entries;
        self.runs.clear();
        let bounds = if rest.is_empty() { StampBounds::NONE } else { self.bounds };
        Self { first: sequence, entries: rest, runs: Vec::new(), bounds }
    }

    /// All entries, in order.
    pub(crate) fn sorted(&mut self) -> &[u64] {
        sort(&mut self.entries);
        self.runs = vec![self.entries.len()];
        &self.entries
    }
}

#[expect(clippy::stable_sort_primitive, reason = "it merges runs, which the other does not")]
fn sort(entries: &mut [u64]) {
    entries.sort();
}

/// The head of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IndexHead {
    pub(crate) first: u64,
    pub(crate) next: u64,
    pub(crate) bytes: u64,
    pub(crate) sealed_ms: u64,
    pub(crate) bounds: StampBounds,
}

/// Where the ids of an index are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IndexPlace {
    /// Offset of the first page.
    offset: u64,
    entries: u64,
}

/// The name of the index of the segment whose first change is `first`.
pub(crate) fn index_path(first: u64) -> String {
    format!("{DIR}/{first:020}.ids")
}

/// The whole index file; `entries` are sorted.
pub(crate) fn encode_index(head: &IndexHead, marks: &[Mark], entries: &[u64]) -> Vec<u8> {
    let pages = entries.len().div_ceil(PAGE_ENTRIES);
    let ids_size = pages * PAGE_HEADER_SIZE + entries.len() * ENTRY_SIZE;
    let mut out = Vec::with_capacity(INDEX_HEADER_SIZE + marks.len() * PLACE_SIZE + ids_size);
    out.extend_from_slice(&INDEX_MAGIC);
    out.extend_from_slice(&INDEX_VERSION.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    for number in [head.first, head.next, head.bytes, head.sealed_ms] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&head.bounds.least.to_bytes());
    out.extend_from_slice(&head.bounds.greatest.to_bytes());
    let places = u32::try_from(marks.len()).expect("a segment has few places");
    out.extend_from_slice(&places.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    for mark in marks {
        out.extend_from_slice(&mark.number.to_le_bytes());
        out.extend_from_slice(&mark.offset.to_le_bytes());
    }
    let crc = crc32c::crc32c(&out[16..]);
    out[12..16].copy_from_slice(&crc.to_le_bytes());
    for (number, page) in entries.chunks(PAGE_ENTRIES).enumerate() {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&u32::try_from(number).expect("few pages").to_le_bytes());
        for entry in page {
            out.extend_from_slice(&entry.to_le_bytes());
        }
        let crc = crc32c::crc32c(&out[start + 4..]);
        out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    }
    out
}

/// The head of an index, and how many places follow it; their checksum is not yet checked.
fn decode_head(header: &[u8; INDEX_HEADER_SIZE]) -> Option<(IndexHead, usize)> {
    let number = |offset: usize| u64::from_le_bytes(array(header, offset));
    let word = |offset: usize| u32::from_le_bytes(array(header, offset));
    if header[..8] != INDEX_MAGIC || word(8) != INDEX_VERSION || word(84) != 0 {
        return None;
    }
    let head = IndexHead {
        first: number(16),
        next: number(24),
        bytes: number(32),
        sealed_ms: number(40),
        bounds: StampBounds {
            least: Stamp::from_bytes(array(header, 48))?,
            greatest: Stamp::from_bytes(array(header, 64))?,
        },
    };
    // No log comes to more changes: sums cannot overflow.
    (head.first < head.next && head.next < 1 << 62).then_some((head, word(80) as usize))
}

/// Makes an index of any bytes, as far as magic, version and checksums go.
#[cfg(feature = "fuzzing")]
pub(crate) fn put_right(bytes: &mut [u8]) {
    if bytes.len() < INDEX_HEADER_SIZE {
        return;
    }
    bytes[..8].copy_from_slice(&INDEX_MAGIC);
    bytes[8..12].copy_from_slice(&INDEX_VERSION.to_le_bytes());
    bytes[84..88].fill(0);
    let places = u32::from_le_bytes(array(bytes, 80)) as usize;
    let ids = INDEX_HEADER_SIZE.saturating_add(places.saturating_mul(PLACE_SIZE)).min(bytes.len());
    let crc = crc32c::crc32c(&bytes[16..ids]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    for (number, page) in bytes[ids..].chunks_mut(PAGE_SIZE).enumerate() {
        if page.len() > PAGE_HEADER_SIZE {
            page[4..8].copy_from_slice(&u32::try_from(number).expect("few pages").to_le_bytes());
            let crc = crc32c::crc32c(&page[4..]);
            page[..4].copy_from_slice(&crc.to_le_bytes());
        }
    }
}

/// An index without its ids.
type Index = (IndexHead, IndexPlace, Vec<Mark>);

/// The head and the places of a segment's index, if there is a good one that fits the segment.
///
/// # Errors
/// A failed read.
pub(crate) fn read_index<D: Disk>(
    disk: &D,
    segment: &Segment<D::File>,
) -> Result<Option<Index>, Error> {
    let path = index_path(segment.head.first);
    if !disk.exists(&path).map_err(Error::io("look for", &path))? {
        return Ok(None);
    }
    let index = read_head(disk, &path)?;
    Ok(index.filter(|(head, ..)| head.first == segment.head.first && head.bytes == segment.len))
}

/// The head and the places of the index in a file that is there, if they are good.
///
/// # Errors
/// A failed read.
pub(crate) fn read_head<D: Disk>(disk: &D, path: &str) -> Result<Option<Index>, Error> {
    let file = disk.open_read(path).map_err(Error::io("open", path))?;
    let mut header = [0; INDEX_HEADER_SIZE];
    let read = file.read_full_at(&mut header, 0).map_err(Error::io("read", path))?;
    let Some((head, places)) = decode_head(&header).filter(|_| read == INDEX_HEADER_SIZE) else {
        return Ok(None);
    };
    let place = IndexPlace::new(&head, places);
    // The length of the file bounds what is read.
    if places == 0 || file.len().map_err(Error::io("read", path))? != place.end() {
        return Ok(None);
    }
    let mut bytes = vec![0; places * PLACE_SIZE];
    let at = INDEX_HEADER_SIZE as u64;
    let read = file.read_full_at(&mut bytes, at).map_err(Error::io("read", path))?;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header[16..]), &bytes);
    if read < bytes.len() || crc != u32::from_le_bytes(array(&header, 12)) {
        return Ok(None);
    }
    let mark = |place: &[u8]| Mark {
        number: u64::from_le_bytes(array(place, 0)),
        offset: u64::from_le_bytes(array(place, 8)),
    };
    Ok(Some((head, place, bytes.chunks_exact(PLACE_SIZE).map(mark).collect())))
}

impl IndexPlace {
    /// Of an index with so many places.
    pub(crate) fn new(head: &IndexHead, places: usize) -> Self {
        let offset = INDEX_HEADER_SIZE as u64 + places as u64 * PLACE_SIZE as u64;
        Self { offset, entries: head.next - head.first }
    }

    fn pages(self) -> u64 {
        self.entries.div_ceil(PAGE_ENTRIES as u64)
    }

    /// The length of the file.
    pub(crate) fn end(self) -> u64 {
        let ids = self.entries.saturating_mul(ENTRY_SIZE as u64);
        ids.saturating_add(self.pages() * PAGE_HEADER_SIZE as u64).saturating_add(self.offset)
    }

    /// The changes whose event may be the one with this hash.
    ///
    /// # Errors
    /// [`Error::Corrupt`] or a failed read.
    pub(crate) fn find<D: Disk>(
        self,
        disk: &D,
        head: &IndexHead,
        hash: u64,
    ) -> Result<Vec<u64>, Error> {
        let path = index_path(head.first);
        let file = disk.open_read(&path).map_err(Error::io("open", &path))?;
        let pages = self.pages();
        let (mut low, mut high, mut step) = (0, pages, 1);
        // The first page whose last entry is not before the hash: near where it would be if hashes were even.
        let even = (u128::from(hash) * u128::from(pages)) >> 64;
        let mut probe = u64::try_from(even).expect("less than there are pages");
        while low < high {
            if self.page(&file, &path, probe)?.last().is_some_and(|last| last >> 32 < hash >> 32) {
                low = probe + 1;
                probe += step;
            } else {
                high = probe;
                probe = probe.saturating_sub(step);
            }
            step *= 2;
            if !(low..high).contains(&probe) {
                probe = u64::midpoint(low, high);
            }
        }
        let mut found = Vec::new();
        for number in low..pages {
            let page = self.page(&file, &path, number)?;
            found.extend_from_slice(matching(&page, hash));
            if page.last().is_none_or(|last| last >> 32 > hash >> 32) {
                break;
            }
        }
        Ok(found.into_iter().map(|entry| head.first + (entry & u64::from(u32::MAX))).collect())
    }

    /// Hands all ids to `visit`, in order: the upper half of an event's hash, and its change.
    ///
    /// # Errors
    /// [`Error::Corrupt`] or a failed read.
    pub(crate) fn each<D: Disk>(
        self,
        disk: &D,
        head: &IndexHead,
        mut visit: impl FnMut(u64, u64),
    ) -> Result<(), Error> {
        let path = index_path(head.first);
        let file = disk.open_read(&path).map_err(Error::io("open", &path))?;
        for number in 0..self.pages() {
            for entry in self.page(&file, &path, number)? {
                visit(entry >> 32, head.first + (entry & u64::from(u32::MAX)));
            }
        }
        Ok(())
    }

    fn page<F: DiskFile>(self, file: &F, path: &str, number: u64) -> Result<Vec<u64>, Error> {
        let offset = self.offset + number * PAGE_SIZE as u64;
        let entries = (self.entries - number * PAGE_ENTRIES as u64).min(PAGE_ENTRIES as u64);
        let mut buffer = [0; PAGE_SIZE];
        let size = usize::try_from(entries).expect("at most a page") * ENTRY_SIZE;
        let page = &mut buffer[..PAGE_HEADER_SIZE + size];
        let read = file.read_full_at(page, offset).map_err(Error::io("read", path))?;
        if read < page.len()
            || u64::from(u32::from_le_bytes(array(page, 4))) != number
            || crc32c::crc32c(&page[4..]) != u32::from_le_bytes(array(page, 0))
        {
            return Err(Error::corrupt(path, offset, "page of the index"));
        }
        let entries = page[PAGE_HEADER_SIZE..].as_chunks::<ENTRY_SIZE>().0;
        Ok(entries.iter().map(|&entry| u64::from_le_bytes(entry)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SimDisk;
    use proptest::prelude::*;

    fn head(count: u64) -> IndexHead {
        let bounds = StampBounds { least: Stamp::ZERO, greatest: Stamp::MAX };
        IndexHead { first: 100, next: 100 + count, bytes: 1000, sealed_ms: 7, bounds }
    }

    fn hashes(seed: u64, count: usize, clustered: bool) -> Vec<u64> {
        let spread = |n: u64| xxhash_rust::xxh3::xxh3_64(&(seed + n).to_le_bytes());
        (0..count as u64)
            .map(|n| if clustered { (7 << 50) | ((n % 900) << 32) } else { spread(n) })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn what_was_taken_is_found_in_memory_and_on_disk(
            seed in 0..1_000_u64, count in 1..4_000_usize, clustered: bool, split in 0..4_000_usize,
        ) {
            let hashes = hashes(seed, count, clustered);
            let mut ids = Ids { bounds: head(1).bounds, ..Ids::new(100) };
            for (index, &hash) in hashes.iter().enumerate() {
                ids.entries.push(entry(hash, index as u64));
                if index % 300 == 0 {
                    prop_assert!(ids.find(Stamp::ZERO, hash).contains(&(100 + index as u64)));
                }
            }
            for (index, &hash) in hashes.iter().enumerate().step_by(17) {
                prop_assert!(ids.find(Stamp::ZERO, hash).contains(&(100 + index as u64)));
            }
            let absent = ids.find(Stamp::ZERO, (1 << 63) | 5);
            prop_assert!(absent.len() <= 2, "hardly ever");

            let mut rest = ids.split_off(100 + split.min(count) as u64);
            prop_assert_eq!(ids.len() + rest.len(), count);
            let kept = ids.len();
            for (index, &hash) in hashes.iter().enumerate().step_by(31) {
                let of = if index < kept { &mut ids } else { &mut rest };
                of.bounds = head(1).bounds;
                prop_assert!(of.find(Stamp::ZERO, hash).contains(&(100 + index as u64)));
            }
            if kept > 0 {
                let marks = [Mark { number: 100, offset: 40 }];
                let head = head(kept as u64);
                let disk = SimDisk::new(1);
                disk.replace("changes", b"");
                let bytes = encode_index(&head, &marks, ids.sorted());
                let place = IndexPlace::new(&head, 1);
                prop_assert_eq!(bytes.len() as u64, place.end());
                disk.replace(&index_path(100), &bytes);
                let before = disk.calls();
                for (index, &hash) in hashes[..kept].iter().enumerate().step_by(53) {
                    prop_assert!(place.find(&disk, &head, hash).unwrap().contains(&(100 + index as u64)));
                }
                let finds = kept.div_ceil(53) as u64;
                prop_assert!(disk.calls() - before <= finds * 8, "an open and a few reads each");
                disk.flip_bit(&index_path(100), place.offset + 9, 3);
                let first = (0..kept).min_by_key(|&index| hashes[index] >> 32).unwrap();
                let error = place.find(&disk, &head, hashes[first]);
                prop_assert!(matches!(error, Err(Error::Corrupt { .. })), "the first page is bad");
            }
        }
    }
}
