//! Logarithms in whole numbers, and the protocol's two formulas that need them.
//!
//! Invariants:
//!
//! - The same arguments give the same result on every machine: the standard library's `ln` does not promise
//!   that, and a simulation has to replay anywhere.

use crate::GossipConfig;

/// Fractional bits of the results.
const BITS: u32 = 16;
const ONE: u64 = 1 << BITS;
/// log10(2) in units of `ONE`.
const LOG10_OF_2: u64 = 19_728;

/// The binary logarithm in units of 1/65,536, rounded down, by repeated squaring.
///
/// # Panics
/// If `value` is 0.
fn log2(value: u64) -> u64 {
    assert!(0 < value);
    let whole = value.ilog2();
    // The mantissa, in [1, 2) with 62 bits behind the point.
    let mut mantissa = u128::from(value) << (62 - whole.min(62)) >> whole.saturating_sub(62);
    let mut result = u64::from(whole);
    for _ in 0..BITS {
        mantissa = (mantissa * mantissa) >> 62;
        result <<= 1;
        if mantissa >= 1 << 63 {
            mantissa >>= 1;
            result |= 1;
        }
    }
    result
}

/// The decimal logarithm in units of 1/65,536, rounded down.
fn log10(value: u64) -> u64 {
    log2(value) * LOG10_OF_2 / ONE
}

/// How often a rumour is told in a cluster of `members`: multiplier x log10(members + 1), rounded up.
pub(crate) fn retransmits(config: &GossipConfig, members: usize) -> u32 {
    let logarithm = log10(members as u64 + 1).div_ceil(ONE).max(1);
    let limit = u64::from(config.retransmit_multiplier) * logarithm;
    u32::try_from(limit).expect("at most 100 x 20")
}

/// How many others have to agree with a suspicion before the least time is enough.
pub(crate) fn confirmations_wanted(config: &GossipConfig, members: usize) -> u32 {
    let wanted = config.suspicion_multiplier.saturating_sub(2);
    // The suspect and ourselves cannot.
    if members < wanted as usize + 2 { 0 } else { wanted }
}

/// How long a suspect has to refute in all, in microseconds, when `confirmations` of `wanted` others have agreed:
/// from the greatest time down to the least one by the logarithm of the confirmations (Lifeguard, section IV-B).
pub(crate) fn suspicion_us(
    config: &GossipConfig,
    members: usize,
    confirmations: u32,
    wanted: u32,
) -> u64 {
    let scale = log10(members as u64).max(ONE);
    let least = config.probe_interval_us * u64::from(config.suspicion_multiplier) * scale / ONE;
    if wanted == 0 || confirmations >= wanted {
        return least;
    }
    let greatest = least * u64::from(config.suspicion_factor_max);
    let shrink = u128::from(greatest - least) * u128::from(log2(u64::from(confirmations) + 1))
        / u128::from(log2(u64::from(wanted) + 1));
    greatest - u64::try_from(shrink).expect("at most greatest - least")
}

/// How many push-pull intervals apart push-pulls are: 1 up to 32 members, and 1 more each doubling.
pub(crate) fn push_pull_scale(members: usize) -> u64 {
    if members <= 32 { 1 } else { u64::from((members as u64 - 1).ilog2()) - 3 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_agree_with_the_standard_library() {
        for value in (1..5_000).chain([u64::from(u32::MAX), 1 << 62, 1 << 63, u64::MAX]) {
            #[expect(clippy::cast_precision_loss, reason = "compared with a tolerance")]
            let (ours, theirs) = (log2(value) as f64 / ONE as f64, (value as f64).log2());
            assert!((ours - theirs).abs() < 1e-3, "log2({value}) = {theirs}, ours {ours}");
        }
    }

    #[test]
    fn suspicion_shrinks_from_the_greatest_to_the_least_time() {
        let config = GossipConfig::default();
        let times: Vec<u64> = (0..4).map(|c| suspicion_us(&config, 100, c, 2)).collect();
        assert!(times[0] > times[1] && times[1] > times[2], "{times:?}");
        assert_eq!(times[0], times[2] * 6);
        assert_eq!(times[3], times[2], "more than wanted changes nothing");
        assert!((7_990_000..=8_000_000).contains(&times[2]), "4 x log10(100) x 1 s: {times:?}");
        assert_eq!(suspicion_us(&config, 3, 0, 0), 4_000_000, "nobody could agree");
    }

    #[test]
    fn small_clusters_want_no_confirmation() {
        let config = GossipConfig::default();
        let wanted = [2, 3, 4, 100].map(|members| confirmations_wanted(&config, members));
        assert_eq!(wanted, [0, 0, 2, 2]);
    }

    #[test]
    fn retransmits_and_push_pulls_grow_with_the_logarithm() {
        let config = GossipConfig::default();
        assert_eq!([1, 9, 10, 99, 20_000].map(|n| retransmits(&config, n)), [4, 4, 8, 8, 20]);
        assert_eq!([1, 32, 33, 64, 65, 10_000].map(push_pull_scale), [1, 1, 2, 2, 3, 10]);
    }
}
