//! What data and index blocks contain: sorted entries with shared prefixes, and restart points to search by
//! (the block of `LevelDB`, `doc/table_format.md`). See `FORMAT.md`, "Table entries".
//!
//! Invariants:
//!
//! - Keys rise strictly within a block.
//! - Every [`RESTART_INTERVAL`]-th entry is written whole, and its offset stands in the list at the end.
//! - Any bytes can be read: what does not parse is [`Damaged`], never a panic, also behind a good checksum.

use std::cmp::Ordering;
use std::ops::Range;

use bytes::Bytes;

use super::block::Damaged;

/// Entries from one restart point to the next.
pub(crate) const RESTART_INTERVAL: usize = 16;

/// Lays entries out. Reused from block to block.
#[derive(Default)]
pub(crate) struct EntriesBuilder {
    bytes: Vec<u8>,
    restarts: Vec<u32>,
    last_key: Vec<u8>,
    count: usize,
}

impl EntriesBuilder {
    /// Appends an entry whose value is the concatenation of `value`.
    ///
    /// # Panics
    /// If `key` is not above the one before.
    pub(crate) fn add(&mut self, key: &[u8], value: &[&[u8]]) {
        assert!(self.count == 0 || self.last_key.as_slice() < key, "keys rise strictly");
        let shared = if self.count.is_multiple_of(RESTART_INTERVAL) {
            self.restarts.push(u32::try_from(self.bytes.len()).expect("bounded by BLOCK_SIZE_MAX"));
            0
        } else {
            self.last_key.iter().zip(key).take_while(|(left, right)| left == right).count()
        };
        put_varint(shared, &mut self.bytes);
        put_varint(key.len() - shared, &mut self.bytes);
        put_varint(value.iter().map(|part| part.len()).sum(), &mut self.bytes);
        self.bytes.extend_from_slice(&key[shared..]);
        for part in value {
            self.bytes.extend_from_slice(part);
        }
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        self.count += 1;
    }

    /// Bytes that [`Self::finish`] would give now.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len() + 4 * self.restarts.len() + 4
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The key added last.
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
        self.last_key.clear();
        self.count = 0;
    }
}

/// The contents of a block, ready to be searched. A clone is a reference count.
#[derive(Clone, Debug)]
pub(crate) struct Entries {
    bytes: Bytes,
    /// Where the entries end and the list of restart points begins.
    list_start: usize,
    restarts: usize,
}

impl Entries {
    pub(crate) fn new(bytes: Bytes) -> Result<Self, Damaged> {
        let (rest, count) = bytes.split_last_chunk::<4>().ok_or(Damaged)?;
        let restarts = u32::from_le_bytes(*count) as usize;
        let list = restarts.checked_mul(4).ok_or(Damaged)?;
        let list_start = rest.len().checked_sub(list).ok_or(Damaged)?;
        if (restarts == 0) != (list_start == 0) {
            return Err(Damaged);
        }
        Ok(Self { bytes, list_start, restarts })
    }

    /// Memory held, in bytes.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len()
    }

    fn restart(&self, index: usize) -> Result<usize, Damaged> {
        assert!(index < self.restarts);
        let list = &self.bytes[self.list_start + 4 * index..];
        let offset = u32::from_le_bytes(*list.first_chunk().ok_or(Damaged)?) as usize;
        if offset < self.list_start { Ok(offset) } else { Err(Damaged) }
    }

    fn header(&self, offset: usize) -> Result<Header, Damaged> {
        let mut rest = &self.bytes[offset..self.list_start];
        let before = rest.len();
        let shared = take_varint(&mut rest)?;
        let unshared = take_varint(&mut rest)?;
        let value = take_varint(&mut rest)?;
        let suffix_start = offset + before - rest.len();
        if rest.len() < unshared || rest.len() - unshared < value {
            return Err(Damaged);
        }
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
            match self.bytes[header.suffix].cmp(target) {
                Ordering::Less => low = middle,
                Ordering::Equal | Ordering::Greater => high = middle,
            }
        }
        self.restart(low)
    }
}

struct Header {
    shared: usize,
    suffix: Range<usize>,
    value: Range<usize>,
}

/// Walks the entries of a block in order.
#[derive(Debug)]
pub(crate) struct EntriesCursor {
    entries: Entries,
    next: usize,
    valid: bool,
    key: Vec<u8>,
    value: Range<usize>,
}

impl EntriesCursor {
    /// A cursor on no entry: call [`Self::first`] or [`Self::seek`].
    pub(crate) fn new(entries: Entries) -> Self {
        Self { entries, next: 0, valid: false, key: Vec::new(), value: 0..0 }
    }

    /// Moves to the first entry.
    pub(crate) fn first(&mut self) -> Result<(), Damaged> {
        self.next = 0;
        self.key.clear();
        self.valid = false;
        self.advance()
    }

    /// Moves to the first entry whose key is `target` or above it.
    pub(crate) fn seek(&mut self, target: &[u8]) -> Result<(), Damaged> {
        self.valid = false;
        if self.entries.restarts == 0 {
            return Ok(());
        }
        self.next = self.entries.restart_before(target)?;
        self.key.clear();
        self.advance()?;
        while self.valid && self.key.as_slice() < target {
            self.advance()?;
        }
        Ok(())
    }

    /// Moves to the next entry, or off the end.
    pub(crate) fn advance(&mut self) -> Result<(), Damaged> {
        if self.next == self.entries.list_start {
            self.valid = false;
            return Ok(());
        }
        let was_valid = self.valid;
        self.valid = false;
        let header = self.entries.header(self.next)?;
        let suffix = &self.entries.bytes[header.suffix];
        let rises = self.key.get(header.shared..).ok_or(Damaged)? < suffix;
        if was_valid && !rises {
            return Err(Damaged);
        }
        self.key.truncate(header.shared);
        self.key.extend_from_slice(suffix);
        self.next = header.value.end;
        self.value = header.value;
        self.valid = true;
        Ok(())
    }

    /// Whether the cursor is on an entry.
    pub(crate) fn valid(&self) -> bool {
        self.valid
    }

    /// # Panics
    /// If the cursor is on no entry.
    pub(crate) fn key(&self) -> &[u8] {
        assert!(self.valid);
        &self.key
    }

    /// A slice of the block: keeping it keeps the block.
    ///
    /// # Panics
    /// If the cursor is on no entry.
    pub(crate) fn value(&self) -> Bytes {
        assert!(self.valid);
        self.entries.bytes.slice(self.value.clone())
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

    type Model = BTreeMap<Vec<u8>, Vec<u8>>;

    fn build(model: &Model) -> Entries {
        let mut builder = EntriesBuilder::default();
        for (key, value) in model {
            builder.add(key, &[value]);
        }
        assert_eq!(builder.size(), builder.bytes.len() + 4 * builder.restarts.len() + 4);
        Entries::new(Bytes::copy_from_slice(builder.finish())).expect("just built")
    }

    type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

    fn rest(cursor: &mut EntriesCursor) -> Result<Pairs, Damaged> {
        let mut found = Vec::new();
        while cursor.valid() {
            found.push((cursor.key().to_vec(), cursor.value().to_vec()));
            cursor.advance()?;
        }
        Ok(found)
    }

    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(0..3_u8, 0..6)
    }

    proptest! {
        #[test]
        fn reads_what_was_added(
            model in prop::collection::btree_map(key(), prop::collection::vec(any::<u8>(), 0..200), 0..100),
            targets in prop::collection::vec(key(), 10),
        ) {
            let mut cursor = EntriesCursor::new(build(&model));
            cursor.first().expect("sound");
            let all: Vec<_> = model.clone().into_iter().collect();
            prop_assert_eq!(rest(&mut cursor).expect("sound"), all);
            for target in targets {
                cursor.seek(&target).expect("sound");
                let wanted: Vec<_> = model.range(target..).map(|(k, v)| (k.clone(), v.clone())).collect();
                prop_assert_eq!(rest(&mut cursor).expect("sound"), wanted);
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(0..20_u8, 0..100), target in key()) {
            if let Ok(entries) = Entries::new(bytes.into()) {
                let mut cursor = EntriesCursor::new(entries);
                let _ = cursor.first().and_then(|()| rest(&mut cursor));
                let _ = cursor.seek(&target).and_then(|()| rest(&mut cursor));
            }
        }
    }
}
