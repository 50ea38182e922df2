//! [`ThreadCache`]: the program's allocator: what a thread gives back it takes again, without asking the system.
//!
//! Invariants:
//!
//! - Blocks of up to [`CACHED_SIZE_MAX`] bytes come from lists of the thread, one a size; larger ones, and those that ask for an
//!   unusual alignment, from the system. Which it is follows from the layout alone.
//! - A block of a list is as long as its class says, wherever it was first taken, so that a thread may give back what another took.
//! - It never asks for time or chance: the tripwire would tell.
//!
//! A simulation takes and gives back some forty small blocks an event, all in one thread. Nothing goes back to the system before the
//! program ends, and what a thread has when it ends is not used again: the threads that simulate live as long as the program does.
#![expect(unsafe_code, reason = "an allocator hands out raw memory")]
#![expect(clippy::cast_ptr_alignment, reason = "every block is aligned to `STEP`")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr;

use rustix::mm::{Advice, madvise};

/// Larger blocks are the system's, which clears the memory of each anew: files, pages of events, and the parts of a history are below.
const CACHED_SIZE_MAX: usize = 16 << 20;
/// Larger ones are not cut from a chunk, and come from the system at first.
const CUT_SIZE_MAX: usize = 32 << 10;
/// Up to here there is a class every [`STEP`] bytes.
const FINE_SIZE_MAX: usize = 1 << 10;
/// What blocks are multiples of, and aligned to.
const STEP: usize = 16;
const FINE_CLASSES: usize = FINE_SIZE_MAX / STEP;
/// Beyond, so many classes a doubling.
const COARSE_CLASSES: usize = 4;
const DOUBLINGS: usize = (CACHED_SIZE_MAX / FINE_SIZE_MAX).trailing_zeros() as usize;
const CLASSES: usize = FINE_CLASSES + DOUBLINGS * COARSE_CLASSES;
/// Asked of the system at once: whole huge pages, since what a run keeps is read all over by its checkers.
const CHUNK_SIZE: usize = 4 << 20;
/// A huge page of x86-64, and of aarch64 with small pages of 4 KiB.
const HUGE_PAGE_SIZE: usize = 2 << 20;

const _: () = assert!(CACHED_SIZE_MAX.is_power_of_two() && FINE_SIZE_MAX.is_power_of_two());
const _: () = assert!(CUT_SIZE_MAX <= CHUNK_SIZE / 8 && CHUNK_SIZE.is_multiple_of(HUGE_PAGE_SIZE));
const _: () = assert!(size_of::<*mut u8>() <= STEP);

/// What a thread keeps.
struct Lists {
    /// The first free block of each class; it holds the address of the next.
    free: [Cell<*mut u8>; CLASSES],
    /// The rest of the last chunk.
    chunk: Cell<*mut u8>,
    chunk_left: Cell<usize>,
}

thread_local! {
    // It needs no destructor, so that it is there as long as anything can be given back.
    static LISTS: Lists = const {
        Lists {
            free: [const { Cell::new(ptr::null_mut()) }; CLASSES],
            chunk: Cell::new(ptr::null_mut()),
            chunk_left: Cell::new(0),
        }
    };
}

/// See the file's head.
pub(crate) struct ThreadCache;

/// The class of a block, and how long its blocks are; `None`: it is the system's.
fn class_of(layout: Layout) -> Option<(usize, usize)> {
    let size = layout.size().max(1);
    if CACHED_SIZE_MAX < size || STEP < layout.align() {
        return None;
    }
    if size <= FINE_SIZE_MAX {
        let class = (size - 1) / STEP;
        return Some((class, (class + 1) * STEP));
    }
    // The power of two below the size, and which of the steps to the next one holds it.
    let doubling = (size - 1).ilog2();
    let step = (1_usize << doubling) / COARSE_CLASSES;
    let rest = (size - 1 - (1 << doubling)) / step;
    let below = doubling as usize - FINE_SIZE_MAX.trailing_zeros() as usize;
    let class = FINE_CLASSES + below * COARSE_CLASSES + rest;
    Some((class, (1 << doubling) + (rest + 1) * step))
}

impl Lists {
    /// A block of the class, whose length is `size`; null if the system has no memory.
    fn take(&self, class: usize, size: usize) -> *mut u8 {
        let first = self.free[class].get();
        if first.is_null() {
            return self.cut(size);
        }
        // SAFETY: a free block is at least a pointer long and aligned for one, and holds the next one's address.
        let next = unsafe { first.cast::<*mut u8>().read() };
        self.free[class].set(next);
        first
    }

    /// # Safety
    /// `block` must be a block of this class that nobody uses any more.
    unsafe fn give(&self, class: usize, block: *mut u8) {
        // SAFETY: by the caller's promise it is ours to write to, at least a pointer long, and aligned for one.
        unsafe { block.cast::<*mut u8>().write(self.free[class].get()) };
        self.free[class].set(block);
    }

    #[cold]
    fn cut(&self, size: usize) -> *mut u8 {
        let from_system = |size, align| {
            let layout = Layout::from_size_align(size, align).expect("far below the largest");
            // SAFETY: the layout is not empty.
            unsafe { System.alloc(layout) }
        };
        if CUT_SIZE_MAX < size {
            return from_system(size, STEP);
        }
        if self.chunk_left.get() < size {
            let chunk = from_system(CHUNK_SIZE, HUGE_PAGE_SIZE);
            if chunk.is_null() {
                return chunk;
            }
            // A hint: whatever becomes of it, the memory is there.
            // SAFETY: the pages are the chunk's, and the advice changes nothing in them.
            let _ = unsafe { madvise(chunk.cast(), CHUNK_SIZE, Advice::LinuxHugepage) };
            self.chunk.set(chunk);
            self.chunk_left.set(CHUNK_SIZE);
        }
        let block = self.chunk.get();
        // SAFETY: so many bytes are left of the chunk.
        self.chunk.set(unsafe { block.add(size) });
        self.chunk_left.set(self.chunk_left.get() - size);
        block
    }
}

// SAFETY: a block is handed out once until it is given back, is as long as asked for or longer, and aligned to `STEP`, which is no less
// than what it was asked for. `class_of` answers the same for the layout that a block is given back with as for the one it was taken with.
unsafe impl GlobalAlloc for ThreadCache {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match class_of(layout) {
            Some((class, size)) => LISTS.with(|lists| lists.take(class, size)),
            // SAFETY: the caller's promise is the same.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match class_of(layout) {
            // SAFETY: it was taken with this layout, so it is of this class, and the caller uses it no more.
            Some((class, _)) => LISTS.with(|lists| unsafe { lists.give(class, block) }),
            // SAFETY: it was taken from the system with this layout.
            None => unsafe { System.dealloc(block, layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if class_of(layout).is_none() {
            // SAFETY: the caller's promise is the same.
            return unsafe { System.alloc_zeroed(layout) };
        }
        // SAFETY: the caller's promise is the same.
        let block = unsafe { self.alloc(layout) };
        if !block.is_null() {
            // SAFETY: it is this long.
            unsafe { block.write_bytes(0, layout.size()) };
        }
        block
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the new size is in bounds for this alignment.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        match (class_of(layout), class_of(new_layout)) {
            // SAFETY: both are the system's, and the caller's promise is the same.
            (None, None) => unsafe { System.realloc(block, layout, new_size) },
            (Some((old, _)), Some((new, _))) if old == new => block,
            _ => {
                // SAFETY: the new size is not 0 by the caller's promise.
                let moved = unsafe { self.alloc(new_layout) };
                if !moved.is_null() {
                    // SAFETY: both are at least this long, and a block that is in use is not handed out.
                    unsafe {
                        ptr::copy_nonoverlapping(block, moved, layout.size().min(new_size));
                        self.dealloc(block, layout);
                    }
                }
                moved
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 8).unwrap()
    }

    #[test]
    fn a_class_holds_its_sizes_and_no_others() {
        let mut before = (0, 0);
        // Beyond, classes are further apart than steps.
        let large = (64 << 10..=CACHED_SIZE_MAX).step_by(STEP);
        for size in (1..64 << 10).chain(large) {
            let (class, length) = class_of(layout(size)).unwrap();
            assert!(class < CLASSES && size <= length, "{size}");
            assert!(length % STEP == 0 && length - size < STEP.max(length / 4), "{size}");
            assert!((class, length) == before || before.1 < size, "{size}");
            assert!(class == before.0 || class == before.0 + 1, "{size}");
            before = (class, length);
        }
        assert_eq!(before, (CLASSES - 1, CACHED_SIZE_MAX));
        assert_eq!(class_of(layout(CACHED_SIZE_MAX + 1)), None);
        assert_eq!(class_of(Layout::from_size_align(8, 32).unwrap()), None);
    }

    #[test]
    fn blocks_keep_what_is_written_to_them_however_they_grow() {
        let allocator = ThreadCache;
        let mut sizes =
            vec![1, 7, 16, 17, 100, 1000, 1024, 1025, 5000, 32 << 10, 33 << 10, 1 << 20, 9 << 20];
        sizes.extend(sizes.clone().into_iter().rev());
        let mut blocks = Vec::new();
        for (number, &size) in (0_u8..).zip(&sizes) {
            // SAFETY: sizes are not 0, and blocks are used within their sizes until they are given back, below.
            unsafe {
                let block = allocator.alloc_zeroed(layout(size));
                assert!(!block.is_null() && block.addr().is_multiple_of(STEP));
                assert!((0..size).all(|at| block.add(at).read() == 0));
                block.write_bytes(number, size);
                blocks.push((block, size, number));
            }
        }
        for (block, size, number) in blocks {
            for new_size in [size, size + 1, size * 3, size.div_ceil(2)] {
                // SAFETY: as above; each size is freed as soon as it was looked at.
                unsafe {
                    let copy = allocator.alloc(layout(size));
                    copy.copy_from_nonoverlapping(block, size);
                    let moved = allocator.realloc(copy, layout(size), new_size);
                    assert!((0..size.min(new_size)).all(|at| moved.add(at).read() == number));
                    allocator.dealloc(moved, layout(new_size));
                }
            }
            // SAFETY: it was taken with this layout.
            unsafe { allocator.dealloc(block, layout(size)) };
        }
    }

    #[test]
    fn what_was_given_back_is_taken_again() {
        let allocator = ThreadCache;
        // SAFETY: neither block is used.
        unsafe {
            let first = allocator.alloc(layout(100));
            allocator.dealloc(first, layout(97));
            assert_eq!(allocator.alloc(layout(112)), first, "of the same class");
            let elsewhere = first.addr();
            std::thread::spawn(move || {
                assert_ne!(ThreadCache.alloc(layout(100)).addr(), elsewhere);
            })
            .join()
            .unwrap();
            allocator.dealloc(first, layout(112));
        }
    }
}
