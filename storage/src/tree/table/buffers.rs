//! [`Buffers`]: the memory of blocks, used again.
//!
//! Invariants:
//!
//! - A buffer has one of a few sizes, so that what a full cache lets go is what it needs next: allocators that get back blocks of
//!   any size, from any thread, end up with half as much again in pieces that nothing fits.
//! - What is kept for later is bounded: [`FREE_MAX`] buffers of each size. Larger blocks have buffers of their own.
//! - Nobody sees what a buffer held before: it is as long as what was put into it.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Sizes are multiples of this part of a block's size.
const STEPS_PER_BLOCK: usize = 8;
/// The largest buffer that is used again has so many steps: two blocks, for what does not compress has an envelope too.
const STEPS: usize = 2 * STEPS_PER_BLOCK;
/// So many buffers of each size are kept for later.
const FREE_MAX: usize = 8;

type Free = Mutex<Vec<Box<[u8]>>>;

/// See the file's head.
#[derive(Debug)]
pub(crate) struct Buffers {
    /// Bytes of the smallest size, and between one and the next.
    step: usize,
    /// By size.
    free: [Free; STEPS],
}

impl Buffers {
    /// For blocks of about so many bytes.
    pub(crate) fn new(block_bytes: usize) -> Self {
        let step = (block_bytes / STEPS_PER_BLOCK).max(1);
        Self { step, free: std::array::from_fn(|_| Mutex::default()) }
    }

    /// Whether so many bytes get a buffer of their own.
    pub(crate) fn is_large(&self, size: usize) -> bool {
        STEPS * self.step < size
    }

    /// What `size` bytes take.
    pub(crate) fn rounded(&self, size: usize) -> usize {
        if self.is_large(size) { size } else { size.next_multiple_of(self.step) }
    }

    /// The buffers of the size that `size` bytes take; `None` if there are none of it.
    fn free(&self, size: usize) -> Option<&Free> {
        self.free.get(size.div_ceil(self.step).checked_sub(1)?)
    }

    /// `size` bytes, which `fill` is to write.
    ///
    /// # Errors
    /// That of `fill`.
    pub(crate) fn filled<E>(
        self: &Arc<Self>,
        size: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Bytes, E> {
        let Some(free) = self.free(size) else {
            let mut bytes = vec![0; size];
            fill(&mut bytes)?;
            return Ok(bytes.into());
        };
        let used = free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = used.unwrap_or_else(|| vec![0; self.rounded(size)].into());
        let mut buffer = Buffer { bytes, size, home: Arc::clone(self) };
        fill(&mut buffer.bytes[..size])?;
        Ok(Bytes::from_owner(buffer))
    }
}

/// A buffer that goes back where it is from.
struct Buffer {
    bytes: Box<[u8]>,
    /// So much of it is of meaning.
    size: usize,
    home: Arc<Buffers>,
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.size]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(free) = self.home.free(self.size) else { return };
        let mut free = free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < FREE_MAX {
            free.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(buffers: &Arc<Buffers>, size: usize, with: u8) -> Bytes {
        let fill = |bytes: &mut [u8]| {
            bytes.fill(with);
            Ok::<_, ()>(())
        };
        buffers.filled(size, fill).unwrap()
    }

    #[test]
    fn memory_that_is_let_go_is_used_again_for_what_takes_as_much() {
        let buffers = Arc::new(Buffers::new(4096));
        let first = filled(&buffers, 4000, 1);
        let at = first.as_ptr();
        let part = first.slice(10..20);
        drop(first);
        assert_ne!(filled(&buffers, 4000, 2).as_ptr(), at, "a part of it is still in use");
        assert_eq!(&part[..], [1; 10]);
        drop(part);
        let sizes = [3585, 4096].map(|size| {
            let again = filled(&buffers, size, 3);
            assert_eq!((again.len(), again.iter().all(|byte| *byte == 3)), (size, true));
            again.as_ptr()
        });
        assert!(sizes.contains(&at));
        assert_ne!(filled(&buffers, 3584, 4).as_ptr(), at, "that takes less");
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_is_large_is_not() {
        let buffers = Arc::new(Buffers::new(64));
        for size in [0, 1, 8, 9, 64, 128, 129, 5000] {
            let all: Vec<Bytes> = (0..2 * FREE_MAX).map(|_| filled(&buffers, size, 1)).collect();
            assert!(all.iter().all(|bytes| bytes.len() == size));
        }
        let kept = buffers.free.iter().map(|free| free.lock().unwrap().len());
        assert_eq!(kept.sum::<usize>(), 4 * FREE_MAX, "of the sizes 8, 16, 64 and 128");
        assert_eq!(
            [0, 1, 8, 9, 128, 129].map(|size| buffers.rounded(size)),
            [0, 8, 8, 16, 128, 129]
        );
    }

    #[test]
    fn what_could_not_be_filled_is_kept_too() {
        let buffers = Arc::new(Buffers::new(64));
        assert_eq!(buffers.filled(60, |_| Err("torn")), Err("torn"));
        assert_eq!(buffers.free(60).unwrap().lock().unwrap().len(), 1);
    }
}
