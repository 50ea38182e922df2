//! [`Stamp`] and [`HybridTime`]: bytes, order, text, and the ends of their ranges.

use hybrid_logical_clock::HybridLogicalClock;
use proptest::prelude::*;
use starling_clock::{HybridTime, NodeId, ParseStampError, Stamp};

fn time() -> impl Strategy<Value = HybridTime> {
    // Small numbers meet each other; large ones meet the bounds.
    let physical = prop_oneof![0..4_u64, 0..=HybridTime::PHYSICAL_MS_MAX];
    let logical = prop_oneof![0..4_u16, any::<u16>()];
    (physical, logical).prop_map(|(physical, logical)| HybridTime::new(physical, logical))
}

fn stamp() -> impl Strategy<Value = Stamp> {
    let node = prop_oneof![0..4_u64, any::<u64>()];
    (time(), node).prop_map(|(time, node)| Stamp::new(time, NodeId(node)))
}

proptest! {
    #[test]
    fn bytes_roundtrip(stamp in stamp()) {
        prop_assert_eq!(Stamp::from_bytes(stamp.to_bytes()), Some(stamp));
    }

    #[test]
    fn order_of_bytes_is_order_of_stamps(one in stamp(), other in stamp()) {
        prop_assert_eq!(one.cmp(&other), one.to_bytes().cmp(&other.to_bytes()));
        let parts = |stamp: Stamp| (stamp.time.physical_ms(), stamp.time.logical(), stamp.node);
        prop_assert_eq!(one.cmp(&other), parts(one).cmp(&parts(other)));
    }

    #[test]
    fn any_bytes_decode_to_themselves_or_not_at_all(bytes in any::<[u8; Stamp::SIZE]>()) {
        match Stamp::from_bytes(bytes) {
            Some(stamp) => prop_assert_eq!(stamp.to_bytes(), bytes),
            None => prop_assert!(bytes[0] >= 0x80, "only the sign bit of the time is refused"),
        }
    }

    #[test]
    fn text_roundtrips(stamp in stamp()) {
        prop_assert_eq!(stamp.to_string().parse(), Ok(stamp));
    }

    #[test]
    fn any_text_is_a_stamp_or_an_error(text in "[0-9.@+-]{0,24}|\\PC{0,24}") {
        if let Ok(stamp) = text.parse::<Stamp>() {
            prop_assert_eq!(stamp.to_string().parse(), Ok(stamp));
        }
    }

    #[test]
    fn packed_time_roundtrips_and_fits_a_signed_offset(time in time()) {
        prop_assert_eq!(HybridTime::from_packed(time.packed()), Some(time));
        prop_assert!(i64::try_from(time.packed()).is_ok());
    }

    #[test]
    fn nothing_lies_between_a_time_and_its_successor(time in time()) {
        prop_assume!(time < HybridTime::MAX);
        prop_assert_eq!(time.successor().packed(), time.packed() + 1);
    }

    #[test]
    fn later_times_keep_the_counter_and_stop_at_the_end(time in time(), ms in any::<u64>()) {
        let later = time.plus_ms(ms);
        let physical = time.physical_ms().saturating_add(ms).min(HybridTime::PHYSICAL_MS_MAX);
        prop_assert_eq!(later, HybridTime::new(physical, time.logical()));
    }

    #[test]
    fn the_crates_type_carries_the_same_time(time in time()) {
        let carried = HybridLogicalClock::from(time);
        prop_assert_eq!(carried.physical, time.physical_ms());
        prop_assert_eq!(HybridTime::from(carried), time);
    }
}

#[test]
fn bytes_are_big_endian() {
    let stamp =
        Stamp::new(HybridTime::new(0x0102_0304_0506, 0x0708), NodeId(0x090a_0b0c_0d0e_0f10));
    assert_eq!(stamp.to_bytes(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
}

#[test]
fn ends_of_time() {
    assert_eq!(HybridTime::MAX, HybridTime::new(HybridTime::PHYSICAL_MS_MAX, u16::MAX));
    assert_eq!(HybridTime::from_packed(HybridTime::MAX.packed() + 1), None);
    assert_eq!(HybridTime::from_packed(u64::MAX), None);
    assert_eq!(Stamp::from_bytes([0; Stamp::SIZE]), Some(Stamp::ZERO));
    assert_eq!(Stamp::from_bytes(Stamp::MAX.to_bytes()), Some(Stamp::MAX));
    assert_eq!(Stamp::from_bytes([0xff; Stamp::SIZE]), None);
}

#[test]
fn overflow_of_the_counter_carries() {
    assert_eq!(HybridTime::new(7, u16::MAX).successor(), HybridTime::new(8, 0));
    let over = HybridLogicalClock::new_with_both_physical_and_logical_clock_time(7, 0x2_0003);
    assert_eq!(HybridTime::from(over), HybridTime::new(9, 3));
}

#[test]
#[should_panic(expected = "self.0 < Self::MAX.0")]
fn there_is_nothing_after_the_end() {
    let _ = HybridTime::MAX.successor();
}

#[test]
fn text_is_milliseconds_counter_and_node() {
    let stamp = Stamp::new(HybridTime::new(1_517_363_399_650, 3), NodeId(12));
    assert_eq!(stamp.to_string(), "1517363399650.3@12");
    assert_eq!(format!("{stamp:?}"), "1517363399650.3@12");
    assert_eq!("1517363399650.3@12".parse(), Ok(stamp));
    assert_eq!(Stamp::MAX.to_string(), "140737488355327.65535@18446744073709551615");
}

#[test]
fn text_that_is_no_stamp_is_refused() {
    let wrong = [
        "",
        "1",
        "1.0",
        "1@2",
        "1.0@",
        ".0@1",
        "1.@1",
        "1.0@2@3",
        "1.0.0@1",
        " 1.0@1",
        "-1.0@1",
        "1.65536@1",
        "140737488355328.0@1",
        "18446744073709551616.0@1",
        "1.0@18446744073709551616",
    ];
    for text in wrong {
        assert_eq!(text.parse::<Stamp>(), Err(ParseStampError), "{text:?}");
    }
}
