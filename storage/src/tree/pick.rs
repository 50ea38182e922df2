//! Which runs to merge next. Size-tiered: runs of about one size are merged, so that each event is rewritten about
//! once for each factor that the data grows by (`Cassandra`'s size-tiered compaction).

use crate::TreeConfig;

/// Runs below this are of one size, in bytes: none is too small to be merged with another small one.
const SMALL_RUN: u64 = 1 << 20;

/// The smallest runs of about one size, if there are enough of them.
pub(crate) fn pick(runs: impl Iterator<Item = (u64, u64)>, config: &TreeConfig) -> Vec<u64> {
    let mut sized: Vec<(u64, u64)> = runs.map(|(run, bytes)| (bytes, run)).collect();
    sized.sort_unstable();
    for start in 0..sized.len() {
        let (mut bytes, mut end) = (0_u64, start);
        while end < sized.len() && end - start < config.merge_width_max {
            let average = bytes / ((end - start).max(1) as u64);
            if start < end && SMALL_RUN.max(average * 2) < sized[end].0 {
                break;
            }
            bytes += sized[end].0;
            end += 1;
        }
        if config.merge_width_min <= end - start {
            return sized[start..end].iter().map(|&(_, run)| run).collect();
        }
    }
    Vec::new()
}
