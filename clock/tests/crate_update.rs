//! Why the receive rule is ours: `update()` of the crate `hybrid-logical-clock` 0.0.2 against [`Clock`].
//!
//! These tests describe the crate as it is. One that fails after an upgrade is good news: look again.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use hybrid_logical_clock::HybridLogicalClock;
use starling_clock::{Clock, ClockConfig, HybridTime, NodeId};

fn carried(physical: u64, logical: u32) -> HybridLogicalClock {
    HybridLogicalClock::new_with_both_physical_and_logical_clock_time(physical, logical)
}

/// A clock of ours whose greatest time is `last`.
fn clock_at(last: HybridTime) -> Clock {
    let config = ClockConfig { skew_ms_max: 1000, bound_window_ms: 1000 };
    let mut clock = Clock::new(NodeId(1), config, HybridTime::ZERO);
    clock.observe(last, last.physical_ms()).unwrap();
    clock.handle_bound_durable(last.plus_ms(1000));
    assert_eq!(clock.last(), last);
    clock
}

/// What our clock stamps after it received `received` at `now_ms`.
fn after_receipt(last: HybridTime, received: HybridTime, now_ms: u64) -> HybridTime {
    let mut clock = clock_at(last);
    clock.observe(received, now_ms).unwrap();
    clock.tick(now_ms).unwrap().time
}

/// The local time is the greatest of the three, so its counter has to go on: the crate resets it.
#[test]
fn update_goes_backwards_and_ours_does_not() {
    let mut theirs = carried(200, 10);
    let before = theirs;
    theirs.update(&carried(100, 5), 150);
    assert_eq!(theirs, carried(200, 0));
    assert!(theirs < before, "the crate's clock went backwards");

    let ours = after_receipt(HybridTime::new(200, 10), HybridTime::new(100, 5), 150);
    assert_eq!(ours, HybridTime::new(200, 11));
}

/// The wall clock is the greatest of the three, so the counter should begin anew: the crate keeps counting, for ever.
#[test]
fn the_counter_of_update_never_resets_and_ours_does() {
    let mut theirs = carried(100, 10);
    for now_ms in 201..=300 {
        theirs.update(&carried(now_ms - 100, 0), now_ms);
    }
    assert_eq!(theirs, carried(300, 110));

    let ours = after_receipt(HybridTime::new(100, 10), HybridTime::new(150, 0), 300);
    assert_eq!(ours, HybridTime::new(300, 0));
}

/// A counter at its end carries into the milliseconds here. There it is 32 bits wide, which does not fit a
/// stamp, and overflows: a panic with overflow checks, a step backwards without.
#[test]
fn the_counter_of_update_overflows_and_ours_carries() {
    let overflown = std::panic::catch_unwind(|| {
        let mut theirs = carried(200, u32::MAX);
        theirs.update(&carried(200, 0), 200);
        theirs
    });
    assert!(overflown.is_err() || overflown.is_ok_and(|theirs| theirs < carried(200, u32::MAX)));

    let ours = after_receipt(HybridTime::new(200, u16::MAX), HybridTime::new(200, 0), 200);
    assert_eq!(ours, HybridTime::new(201, 0));
}
