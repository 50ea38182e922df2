//! [`shrink`]: makes the fault schedule of a failing run smaller while it goes on failing.
//!
//! Invariants:
//!
//! - Every plan that it settles on was run and failed.
//! - It ends: each step takes a fault out or halves its time, and there is a bound on runs.

use super::Settings;
use super::plan::Plan;

/// Faults are not made shorter than this, in microseconds.
const LENGTH_US_MIN: u64 = 10_000;

/// Tries to make the plan smaller with at most `runs` runs; `fails` tells whether a run with these settings fails. `progress` is
/// told how many faults are left after each run.
pub fn shrink(
    settings: &Settings,
    runs: usize,
    mut fails: impl FnMut(&Settings) -> bool,
    mut progress: impl FnMut(usize),
) -> Settings {
    let mut best = Settings { plan: Some(settings.plan()), ..settings.clone() };
    let mut left = runs;
    let mut attempt = |plan: Plan, best: &mut Settings, left: &mut usize| {
        let candidate = Settings { plan: Some(plan), ..best.clone() };
        *left -= 1;
        let failed = fails(&candidate);
        if failed {
            *best = candidate;
        }
        progress(best.plan().faults.len());
        failed
    };
    // Large pieces first, then single faults.
    let mut piece = best.plan().faults.len().div_ceil(2);
    while piece > 0 && left > 0 {
        let mut at = 0;
        while at < best.plan().faults.len() && left > 0 {
            let mut plan = best.plan();
            let end = (at + piece).min(plan.faults.len());
            plan.faults.drain(at..end);
            if !attempt(plan, &mut best, &mut left) {
                at += piece;
            }
        }
        piece /= 2;
    }
    let mut index = 0;
    while index < best.plan().faults.len() && left > 0 {
        let mut plan = best.plan();
        let fault = &mut plan.faults[index];
        let length_us = (fault.to_us - fault.from_us) / 2;
        if length_us < LENGTH_US_MIN {
            index += 1;
            continue;
        }
        fault.to_us = fault.from_us + length_us;
        if !attempt(plan, &mut best, &mut left) {
            index += 1;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_matter_is_taken_out() {
        let several = |settings: &Settings| settings.plan().faults.len() > 2;
        let settings = (1..100).map(Settings::new).find(several);
        let settings = settings.expect("most seeds draw several faults");
        let needed = settings.plan().faults[1].clone();
        let is_needed = |plan: &Plan| {
            plan.faults.iter().any(|it| it.kind == needed.kind && it.from_us == needed.from_us)
        };
        let fails = |settings: &Settings| is_needed(&settings.plan());
        let small = shrink(&settings, 1_000, fails, |_| {}).plan();
        assert_eq!(small.faults.len(), 1);
        assert_eq!(small.faults[0].kind, needed.kind);
        assert!(small.faults[0].to_us - small.faults[0].from_us < 2 * LENGTH_US_MIN);
        let never = shrink(&settings, 1_000, |_| false, |_| {});
        assert_eq!(never.plan(), settings.plan());
    }
}
