//! [`Window`]: a piece of a file in this process's memory. A small write to it is a copy, and no call of the system, which takes
//! ten times as long (1.2 us against 0.1 us for 176 bytes on ext4).
//!
//! What is copied is in the system's page cache at once: it survives the end of this process, however that ends, and a sync of the
//! file makes it survive a crash of the machine, as with any other write.
//!
//! Invariants:
//!
//! - What may fail is done before there is a window: its bytes lie in the file, with blocks of their own, and their pages are in
//!   memory and may be written to. So a full disk and a bad one are told as errors, when the window is opened or by a sync.
//! - The file does not become shorter than the window: [`super::OsFile`] closes it first. Who else shortens a file of a data directory
//!   that is in use, or a file system that turns read-only and throws the window's pages out of memory before the next sync, ends the
//!   process (`SIGBUS`); what was answered before is in the log as after any other end.
//! - Only file systems of which that is known: ext4, XFS and tmpfs. One that writes pages to another place each time would need
//!   room that nobody has set aside.
#![expect(
    unsafe_code,
    reason = "memory that the system shares with a file is outside of what safe code can name"
)]

use std::fs::File;
use std::ptr::{self, NonNull};

/// How large a window is, and where one may start: a huge page of the usual machines.
pub(super) const WINDOW_SIZE: u64 = 2 << 20;
/// The least that can be asked of the system for memory.
const PAGE_SIZE: u64 = 4 << 10;

/// See the file's head.
#[derive(Debug)]
pub(super) struct Window {
    start: NonNull<u8>,
    /// Where in the file it starts.
    offset: u64,
    /// Where in the file its pages are in memory from.
    ready: u64,
}

// SAFETY: the mapping is this value's alone, and belongs to no thread.
unsafe impl Send for Window {}

impl Window {
    /// The window in which the byte at `offset` is, for writes from there on; the file is made longer, by zeros, if it ends before.
    /// `None` if that is not to be had: the file may be longer then.
    pub(super) fn open(file: &File, offset: u64) -> Option<Self> {
        let start = offset / WINDOW_SIZE * WINDOW_SIZE;
        let ready = offset / PAGE_SIZE * PAGE_SIZE;
        let window = Self { start: map(file, start)?, offset: start, ready };
        window.populate()?;
        Some(window)
    }

    /// Has the system bring all pages that are to be ready into memory, to be written to. Those before them are not written again.
    fn populate(&self) -> Option<()> {
        #[cfg(all(target_os = "linux", not(miri)))]
        // SAFETY: it is within the mapping, whose bytes it does not change.
        unsafe {
            let from = size(self.ready - self.offset);
            let wanted = self.start.as_ptr().add(from).cast();
            let advice = rustix::mm::Advice::LinuxPopulateWrite;
            rustix::mm::madvise(wanted, size(WINDOW_SIZE) - from, advice).ok()?;
        }
        Some(())
    }

    /// Where in the file it ends.
    pub(super) fn end(&self) -> u64 {
        self.offset + WINDOW_SIZE
    }

    /// Writes as many of the first bytes as it has a place for, and tells how many.
    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) -> usize {
        if offset < self.ready || self.end() <= offset {
            return 0;
        }
        let taken = bytes.len().min(size(self.end() - offset));
        // SAFETY: the target is within the mapping, which nothing but pointers of this type points to: it does not overlap with
        // `bytes`. That another process may read or write the file meanwhile changes nothing about this memory.
        unsafe {
            let target = self.start.as_ptr().add(size(offset - self.offset));
            ptr::copy_nonoverlapping(bytes.as_ptr(), target, taken);
        }
        taken
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        #[cfg(all(target_os = "linux", not(miri)))]
        // SAFETY: it is this value's mapping, and nothing else points there. It cannot fail for a mapping that is there.
        unsafe {
            let _ = rustix::mm::munmap(self.start.as_ptr().cast(), size(WINDOW_SIZE));
        }
    }
}

/// A new mapping of [`WINDOW_SIZE`] bytes of the file, which has blocks of its own for all of them.
#[cfg(all(target_os = "linux", not(miri)))]
fn map(file: &File, offset: u64) -> Option<NonNull<u8>> {
    use rustix::fs::{FallocateFlags, fallocate, fstatfs};
    use rustix::mm::{MapFlags, ProtFlags, mmap};

    /// `f_type` of ext4, XFS and tmpfs (statfs(2)).
    const FILE_SYSTEMS: [i64; 3] = [0xef53, 0x5846_5342, 0x0102_1994];

    let file_system = fstatfs(file).ok()?.f_type;
    if !FILE_SYSTEMS.contains(&file_system) {
        return None;
    }
    fallocate(file, FallocateFlags::empty(), offset, WINDOW_SIZE).ok()?;
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping, wherever the system wants it.
    let start =
        unsafe { mmap(ptr::null_mut(), size(WINDOW_SIZE), access, MapFlags::SHARED, file, offset) };
    NonNull::new(start.ok()?.cast())
}

#[cfg(not(all(target_os = "linux", not(miri))))]
fn map(_file: &File, _offset: u64) -> Option<NonNull<u8>> {
    None
}

/// Of what is within a window.
#[expect(clippy::cast_possible_truncation, reason = "a window fits in memory")]
const fn size(bytes: u64) -> usize {
    assert!(bytes <= WINDOW_SIZE);
    bytes as usize
}
