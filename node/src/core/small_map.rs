//! [`SmallMap`]: a sorted map of a few entries, in one piece of memory.
//!
//! Invariants:
//!
//! - Keys rise strictly, so that it is walked in one order, as a `BTreeMap` is.
//!
//! A machine has a handful of replicas and questions, a read mostly one event a replica: a tree would take a node of eleven
//! places for each. An insert in the middle moves what follows: this is for few entries, or for those that come in order.

use std::ops::Index;

/// See the file's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SmallMap<K, V> {
    entries: Vec<(K, V)>,
}

impl<K, V> Default for SmallMap<K, V> {
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}

impl<K: Ord, V> SmallMap<K, V> {
    /// An empty map with room for `entries`.
    pub(super) fn with_capacity(entries: usize) -> Self {
        Self { entries: Vec::with_capacity(entries) }
    }

    fn place(&self, key: &K) -> Result<usize, usize> {
        // What is new is mostly the greatest.
        match self.entries.last() {
            Some((last, _)) if last < key => Err(self.entries.len()),
            _ => self.entries.binary_search_by(|(known, _)| known.cmp(key)),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.place(key).ok().map(|at| &self.entries[at].1)
    }

    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.place(key).ok().map(|at| &mut self.entries[at].1)
    }

    pub(super) fn contains_key(&self, key: &K) -> bool {
        self.place(key).is_ok()
    }

    /// Gives the value that the key had.
    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self.place(&key) {
            Ok(at) => Some(std::mem::replace(&mut self.entries[at].1, value)),
            Err(at) => {
                if self.entries.capacity() == 0 {
                    // Often it stays alone.
                    self.entries.reserve_exact(1);
                }
                self.entries.insert(at, (key, value));
                None
            }
        }
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        self.place(key).ok().map(|at| self.entries.remove(at).1)
    }

    pub(super) fn retain(&mut self, mut keep: impl FnMut(&K, &mut V) -> bool) {
        self.entries.retain_mut(|(key, value)| keep(key, value));
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }

    /// The entry with the greatest key.
    pub(super) fn last(&self) -> Option<(&K, &V)> {
        self.entries.last().map(|(key, value)| (key, value))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|(key, value)| (key, value))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.entries.iter_mut().map(|(key, value)| (&*key, value))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.entries.iter().map(|(_, value)| value)
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.entries.iter_mut().map(|(_, value)| value)
    }
}

impl<K: Ord, V> Index<&K> for SmallMap<K, V> {
    type Output = V;

    /// # Panics
    /// If the key is not there.
    fn index(&self, key: &K) -> &V {
        self.get(key).expect("the key is in the map")
    }
}

/// Of entries with equal keys the last one stays.
impl<K: Ord, V> Extend<(K, V)> for SmallMap<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        let more = entries.into_iter();
        let known = std::mem::take(&mut self.entries);
        *self = known.into_iter().chain(more).collect();
    }
}

impl<K: Ord, V> FromIterator<(K, V)> for SmallMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut entries: Vec<(K, V)> = entries.into_iter().collect();
        // A stable sort leaves the last of equal ones last, and takes runs, either way up, as they are.
        entries.sort_by(|(left, _), (right, _)| left.cmp(right));
        entries.dedup_by(|next, kept| {
            let is_same = next.0 == kept.0;
            if is_same {
                std::mem::swap(next, kept);
            }
            is_same
        });
        Self { entries }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_is_a_sorted_map(
            first in prop::collection::vec((0..20_u8, any::<u16>()), 0..20),
            more in prop::collection::vec((0..20_u8, any::<u16>()), 0..20),
            steps in prop::collection::vec((0..20_u8, prop::option::of(any::<u16>())), 0..60),
        ) {
            let mut map: SmallMap<u8, u16> = first.iter().copied().collect();
            let mut model: BTreeMap<u8, u16> = first.into_iter().collect();
            map.extend(more.iter().copied());
            model.extend(more);
            for (key, value) in steps {
                prop_assert!(map.iter().eq(model.iter()));
                prop_assert!(map.values().eq(model.values()));
                prop_assert_eq!(map.last(), model.last_key_value());
                prop_assert_eq!(map.is_empty(), model.is_empty());
                prop_assert_eq!(map.get(&key), model.get(&key));
                prop_assert_eq!(map.contains_key(&key), model.contains_key(&key));
                prop_assert_eq!(map.get_mut(&key), model.get_mut(&key));
                if let Some(value) = value {
                    prop_assert_eq!(map.insert(key, value), model.insert(key, value));
                } else {
                    prop_assert_eq!(map.remove(&key), model.remove(&key));
                }
            }
            map.retain(|key, value| (u32::from(*key) + u32::from(*value)) % 3 > 0);
            model.retain(|key, value| (u32::from(*key) + u32::from(*value)) % 3 > 0);
            prop_assert!(map.iter_mut().eq(model.iter_mut()));
            prop_assert!(map.values_mut().eq(model.values_mut()));
            map.clear();
            prop_assert!(map.is_empty());
        }
    }
}
