//! [`Index`]: lower bounds of blocks or of sections, taken apart for searching.
//!
//! Invariants:
//!
//! - Lower bounds rise strictly; there is one at the least.
//! - A search finds what a comparison of whole keys would: the eight bytes that stand for each are compared first, and
//!   the rest where those are equal.
//!
//! Most steps of a search in a sorted list of keys miss the processor's caches, twice where keys are apart from the
//! list. Here all but the last ones touch a few lines of one array.

use bytes::Bytes;

use super::block::Damaged;
use super::entries::{EntriesBlock, EntriesCursor};
use crate::tree::words;

/// See the file's head. `V` is what lies at or above a lower bound.
pub(super) struct Index<V> {
    /// How many bytes all keys begin with.
    common: usize,
    /// The eight bytes after those of each key, as a number; zeros where a key is shorter.
    heads: Vec<u64>,
    /// Where each key ends.
    ends: Vec<u32>,
    keys: Vec<u8>,
    values: Vec<V>,
}

impl<V> Index<V> {
    /// From an index or sections block, whose values `decode` takes apart.
    ///
    /// # Errors
    /// [`Damaged`] if it is not that.
    pub(super) fn new(
        contents: Bytes,
        decode: impl Fn(&[u8]) -> Option<V>,
    ) -> Result<Self, Damaged> {
        let mut index = Self {
            common: 0,
            heads: Vec::new(),
            ends: Vec::new(),
            keys: Vec::new(),
            values: Vec::new(),
        };
        let mut cursor = EntriesCursor::new(EntriesBlock::open(contents)?);
        cursor.first()?;
        while cursor.valid() {
            index.keys.extend_from_slice(cursor.key());
            index.ends.push(u32::try_from(index.keys.len()).map_err(|_| Damaged)?);
            index.values.push(decode(cursor.value()).ok_or(Damaged)?);
            cursor.advance()?;
        }
        let last = index.len().checked_sub(1).ok_or(Damaged)?;
        // What the first and the last of sorted keys share, all share.
        index.common = words::common_prefix(index.key(0), index.key(last));
        index.heads = (0..=last).map(|at| head(&index.key(at)[index.common..])).collect();
        index.ends.shrink_to_fit();
        index.keys.shrink_to_fit();
        index.values.shrink_to_fit();
        Ok(index)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Memory held, in bytes.
    pub(super) fn size(&self) -> usize {
        self.keys.len() + self.len() * (8 + 4 + size_of::<V>()) + size_of::<Self>()
    }

    /// # Panics
    /// If there are not so many.
    pub(super) fn key(&self, at: usize) -> &[u8] {
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        &self.keys[start..self.ends[at] as usize]
    }

    /// # Panics
    /// If there are not so many.
    pub(super) fn value(&self, at: usize) -> &V {
        &self.values[at]
    }

    /// Takes the last one off: its key.
    pub(super) fn pop(&mut self) -> Option<(Box<[u8]>, V)> {
        let value = self.values.pop()?;
        let key = self.key(self.len() - 1).into();
        self.ends.pop();
        self.heads.pop();
        self.keys.truncate(self.ends.last().map_or(0, |end| *end as usize));
        Some((key, value))
    }

    /// The last one whose key is not above `target`, or else the first one.
    pub(super) fn floor(&self, target: &[u8]) -> usize {
        let common = &self.keys[..self.common];
        if !words::starts_with(target, common) {
            return if target < common { 0 } else { self.len() - 1 };
        }
        let rest = &target[self.common..];
        let wanted = head(rest);
        let first = self.heads.partition_point(|head| *head < wanted);
        // Mostly there are none: a search for their end would look at others far from here.
        let equal = match self.heads.get(first) {
            Some(head) if *head == wanted => {
                self.heads[first..].partition_point(|head| *head == wanted)
            }
            _ => 0,
        };
        let (mut low, mut high) = (first, first + equal);
        while low < high {
            let middle = low.midpoint(high);
            if &self.key(middle)[self.common..] <= rest {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low.saturating_sub(1)
    }
}

impl<V> Index<Option<V>> {
    /// The same if each has a value and there is one at the least.
    pub(super) fn unwrap_all(self) -> Option<Index<V>> {
        let Self { common, heads, ends, keys, values } = self;
        let values: Vec<V> = values.into_iter().collect::<Option<_>>()?;
        (!values.is_empty()).then_some(Index { common, heads, ends, keys, values })
    }
}

fn head(bytes: &[u8]) -> u64 {
    if let Some(head) = bytes.first_chunk() {
        return u64::from_be_bytes(*head);
    }
    let mut head = [0; 8];
    head[..bytes.len()].copy_from_slice(bytes);
    u64::from_be_bytes(head)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::tree::table::entries::EntriesBuilder;

    /// Keys that share much, and zeros at their ends.
    fn key() -> impl Strategy<Value = Vec<u8>> {
        (0..2_u8, prop::collection::vec(prop::sample::select(vec![0_u8, 1, 0xff]), 0..14))
            .prop_map(|(far, rest)| [&[7; 5], &[far * 9][..usize::from(far)], &rest].concat())
    }

    proptest! {
        #[test]
        fn a_search_finds_what_comparing_finds(
            keys in prop::collection::btree_set(key(), 1..40),
            targets in prop::collection::vec(prop_oneof![key(), prop::collection::vec(0..9_u8, 0..9)], 20),
        ) {
            let keys: Vec<Vec<u8>> = BTreeSet::into_iter(keys).collect();
            let mut builder = EntriesBuilder::new(2);
            for key in &keys {
                builder.add(key, &[key]);
            }
            let contents = Bytes::copy_from_slice(builder.finish());
            let mut index = Index::new(contents, |value| Some(value.to_vec())).expect("just built");
            for target in targets.iter().chain(&keys) {
                let wanted = keys.partition_point(|key| key <= target).saturating_sub(1);
                prop_assert_eq!(index.floor(target), wanted, "{:?} in {:?}", target, keys);
                prop_assert_eq!(index.key(wanted), &keys[wanted][..]);
                prop_assert_eq!(index.value(wanted), &keys[wanted]);
            }
            for key in keys.iter().rev() {
                prop_assert_eq!(index.pop(), Some((key.clone().into(), key.clone())));
            }
            prop_assert_eq!(index.pop(), None);
        }
    }
}
