//! [`Stable`]: a list that grows at its end and never moves what is in it.
//!
//! Invariants:
//!
//! - An element stays where it is until the list is dropped: a reference to it is good for as long as the list.
//! - Readers never wait; what is pushed is seen by whoever is told its number.
//! - One thread at a time pushes.

use std::sync::OnceLock;

/// Elements of the first chunk; each chunk has twice as many as the one before.
const FIRST: usize = 16;
/// Enough chunks for every number that fits 32 bits.
const CHUNKS: usize = 28;

type Chunk<T> = OnceLock<Box<[OnceLock<Box<T>>]>>;

/// See the file's head.
pub(super) struct Stable<T> {
    chunks: [Chunk<T>; CHUNKS],
}

impl<T> Default for Stable<T> {
    fn default() -> Self {
        Self { chunks: [const { OnceLock::new() }; CHUNKS] }
    }
}

impl<T> Stable<T> {
    /// What an element costs beside itself, in bytes: its place in a chunk.
    pub(super) const SLOT_SIZE: usize = size_of::<OnceLock<Box<T>>>();

    /// The element with this number.
    ///
    /// # Panics
    /// If it was never pushed.
    #[inline]
    pub(super) fn get(&self, number: u32) -> &T {
        let (chunk, offset) = place(number);
        let chunk = self.chunks[chunk].get().expect("the number of an element");
        chunk[offset].get().expect("the number of an element")
    }

    /// Adds the element with this number, which is the count of those before; how many bytes it takes.
    ///
    /// # Panics
    /// If there is one with the number.
    pub(super) fn push(&self, number: u32, element: T) -> usize {
        let (chunk, offset) = place(number);
        let mut bytes = size_of::<T>();
        let chunk = self.chunks[chunk].get_or_init(|| {
            bytes += (FIRST << chunk) * Self::SLOT_SIZE;
            (0..FIRST << chunk).map(|_| OnceLock::new()).collect()
        });
        assert!(chunk[offset].set(Box::new(element)).is_ok(), "each number is given once");
        bytes
    }
}

#[inline]
fn place(number: u32) -> (usize, usize) {
    let shifted = number as usize + FIRST;
    let chunk = shifted.ilog2() - FIRST.ilog2();
    (chunk as usize, shifted - (FIRST << chunk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_a_place_of_its_own() {
        let stable = Stable::default();
        let mut bytes = 0;
        for number in 0..1000_u32 {
            bytes += stable.push(number, number);
        }
        assert!((0..1000).all(|number| *stable.get(number) == number));
        let chunks = (0..6).map(|chunk| FIRST << chunk).sum::<usize>();
        assert_eq!(bytes, 1000 * size_of::<u32>() + chunks * Stable::<u32>::SLOT_SIZE);
    }

    #[test]
    #[should_panic(expected = "the number of an element")]
    fn a_number_that_was_not_given_is_refused() {
        Stable::<u8>::default().get(0);
    }
}
