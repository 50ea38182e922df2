//! The tripwire: in this program `clock_gettime` and `getrandom` are ours, and whoever calls them inside a simulation is noticed.
//!
//! Invariants:
//!
//! - Outside simulations both do what the system's do.
//! - Inside one they do so too, so that the run ends, and [`take`] tells that its verdict is worth nothing.
//!
//! The linker prefers a program's own symbols to the C library's, so the standard library and every dependency are caught. What asks
//! the kernel directly is not; the lints of the core crates and the test over their sources are for that.
#![expect(unsafe_code, reason = "symbols of the C library are replaced, with its signatures")]

use std::cell::Cell;
use std::ffi::{c_int, c_long, c_uint, c_void};

use rustix::rand::GetRandomFlags;
use rustix::time::ClockId;
use starling_chaos::sim;

thread_local! {
    static TRIPPED: Cell<u64> = const { Cell::new(0) };
}

/// How many calls there were inside this thread's simulations since the last time that this was asked.
pub(crate) fn take() -> u64 {
    TRIPPED.replace(0)
}

fn trip() {
    if sim::is_inside() {
        TRIPPED.set(TRIPPED.get() + 1);
    }
}

/// `struct timespec` of 64-bit Linux.
#[repr(C)]
pub(crate) struct Timespec {
    seconds: i64,
    nanoseconds: c_long,
}

/// `clock_gettime(2)`.
///
/// # Safety
/// `time` must be valid for a write, as the C library demands.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn clock_gettime(clock: c_int, time: *mut Timespec) -> c_int {
    trip();
    let clock = match clock {
        0 => ClockId::Realtime,
        1 => ClockId::Monotonic,
        2 => ClockId::ProcessCPUTime,
        3 => ClockId::ThreadCPUTime,
        5 => ClockId::RealtimeCoarse,
        6 => ClockId::MonotonicCoarse,
        7 => ClockId::Boottime,
        _ => return -1,
    };
    let now = rustix::time::clock_gettime(clock);
    let value = Timespec { seconds: now.tv_sec, nanoseconds: now.tv_nsec };
    // SAFETY: the caller passes a place for the answer, as it would to the C library.
    unsafe { time.write(value) };
    0
}

/// `getrandom(2)`.
///
/// # Safety
/// `buffer` must be valid for a write of `length` bytes, as the C library demands.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn getrandom(
    buffer: *mut c_void,
    length: usize,
    flags: c_uint,
) -> isize {
    trip();
    // SAFETY: the caller passes so many bytes, as it would to the C library; bytes have no invalid values.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
    bytes.fill(0);
    match rustix::rand::getrandom(bytes, GetRandomFlags::from_bits_retain(flags)) {
        Ok(filled) => isize::try_from(filled).unwrap_or(-1),
        Err(_) => -1,
    }
}
