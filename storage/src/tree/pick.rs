//! [`Picker`]: which runs to merge next.
//!
//! Runs of about one size are merged, so that each event is rewritten about once for each factor that the data grows
//! by (`Cassandra`'s size-tiered compaction). That alone keeps what was replaced until runs happen to meet; so all runs
//! are merged when so much is likely to go that it pays (`RocksDB`'s universal compaction bounds space likewise):
//!
//! - where history is limited: what is above the largest run grew to a part of it, from a half to all of it, that
//!   adapts to how much the last such merge made go;
//! - when tombstones are many and all below the floor, and when versions are many and all past the age limit: these
//!   come with time, without any write. A run for which that was so when it was made is not tried again.
//!
//! A run that is for a good part of partitions that were dropped is written anew without them.
//!
//! What it costs, by the test below, which merges at once what is picked; flushes are of 64 MiB, and keys are drawn
//! evenly. `Writes` is bytes written to tables for each byte flushed, `space` bytes for each that lives.
//!
//! | flushes | keys     | history | writes | space, worst and end | runs at most |
//! |--------:|----------|---------|-------:|---------------------:|-------------:|
//! |       6 | all new  | all     |    1.7 |           1.0, 1.0   |            3 |
//! |      64 | all new  | all     |    4.0 |           1.0, 1.0   |            9 |
//! |     400 | all new  | all     |    4.6 |           1.0, 1.0   |           12 |
//! |      64 | all new  | newest  |    3.9 |           1.0, 1.0   |            8 |
//! |      40 | 128 MiB  | newest  |    1.8 |           1.4, 1.0   |            2 |
//! |      40 | 512 MiB  | newest  |    2.6 |           1.5, 1.2   |            4 |
//! |     400 | 4096 MiB | newest  |    4.0 |           1.5, 1.5   |            8 |
//!
//! With a least width of 3, 6 or 8 in place of 4, 64 flushes of new keys cost 3.8, 2.5 and 3.0 and make up to 7, 10
//! and 14 runs, and 6 flushes cost 2.0, 2.0 and 1.0: fewer runs for reads were worth more than that.
//!
//! Invariant: the choice depends on the runs, the retentions and the time given, and on nothing else.

use std::collections::BTreeMap;

use starling_clock::Stamp;

use crate::{Retentions, TreeConfig};

/// Runs below this are of one size, in bytes: none is too small to be merged with another small one.
const SMALL_RUN: u64 = 1 << 20;
/// Bounds of what may be above the largest run, in percent of it.
const ABOVE_PERCENT_MIN: u64 = 50;
const ABOVE_PERCENT_MAX: u64 = 100;
/// A merge of everything that made less than this go, in percent, was not worth it; more than that: overdue.
const GONE_PERCENT_LOW: u64 = 15;
const GONE_PERCENT_HIGH: u64 = 30;
/// So many tombstones, or versions that were replaced, in percent of a run's events, are many.
const MANY_PERCENT: u64 = 20;
/// A run of less than this share of all bytes is not worth a merge of everything.
const SHARE_PERCENT: u64 = 10;

/// What is known of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) number: u64,
    pub(crate) bytes: u64,
    pub(crate) events: u64,
    pub(crate) keys: u64,
    pub(crate) deletes: u64,
    /// Events of partitions that were dropped.
    pub(crate) hidden: u64,
    pub(crate) stamp_greatest: Stamp,
    /// Least and greatest.
    pub(crate) partitions: (u32, u32),
}

/// What could all go from a run when it was made, as far as it may at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settled {
    tombstones: bool,
    versions: bool,
}

/// Runs to be merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pick {
    pub(crate) runs: Vec<u64>,
    /// These were all runs there are.
    pub(crate) whole: bool,
    pub(crate) settled: Settled,
}

/// See the file's head.
#[derive(Debug)]
pub(crate) struct Picker {
    above_percent: u64,
    settled: BTreeMap<u64, Settled>,
}

impl Default for Picker {
    fn default() -> Self {
        Self { above_percent: ABOVE_PERCENT_MIN, settled: BTreeMap::new() }
    }
}

impl Picker {
    /// Chooses among `runs`, which are `all` there are or those that no merge has; nothing: all is well as it is.
    pub(crate) fn pick(
        &self,
        runs: &[Run],
        all: bool,
        config: &TreeConfig,
        retentions: &Retentions,
        now_ms: u64,
    ) -> Pick {
        if all && self.pays(runs, retentions, now_ms) {
            return Self::whole(runs, retentions, now_ms);
        }
        let tier = tier(runs, config);
        let dropped = |run: &&Run| run.events * MANY_PERCENT <= run.hidden * 100;
        if tier.is_empty()
            && let Some(run) = runs.iter().find(dropped)
        {
            return Pick { runs: vec![run.number], ..Pick::default() };
        }
        Pick { runs: tier, ..Pick::default() }
    }

    /// All of the runs.
    pub(crate) fn whole(runs: &[Run], retentions: &Retentions, now_ms: u64) -> Pick {
        let settled = Settled {
            tombstones: runs.iter().all(|run| tombstones_may_go(run, retentions)),
            versions: runs.iter().all(|run| versions_may_go(run, retentions, now_ms)),
        };
        Pick { runs: runs.iter().map(|run| run.number).collect(), whole: true, settled }
    }

    /// Learns what became of a pick: bytes that went in, and the run that came out with its bytes, if any did.
    pub(crate) fn handle_merged(&mut self, pick: &Pick, before: u64, after: Option<(u64, u64)>) {
        for run in &pick.runs {
            self.settled.remove(run);
        }
        let (run, bytes) = after.unwrap_or_default();
        if !pick.whole {
            return;
        }
        if after.is_some() {
            self.settled.insert(run, pick.settled);
        }
        let gone = before.saturating_sub(bytes) * 100 / before.max(1);
        if 1 < pick.runs.len() {
            self.above_percent = match gone {
                0..GONE_PERCENT_LOW => (self.above_percent * 2).min(ABOVE_PERCENT_MAX),
                GONE_PERCENT_LOW..GONE_PERCENT_HIGH => self.above_percent,
                _ => (self.above_percent / 2).max(ABOVE_PERCENT_MIN),
            };
        }
    }

    /// Whether a merge of everything is likely to make much go.
    fn pays(&self, runs: &[Run], retentions: &Retentions, now_ms: u64) -> bool {
        let Some(largest) = runs.iter().max_by_key(|run| run.bytes) else { return false };
        let bytes: u64 = runs.iter().map(|run| run.bytes).sum();
        if 1 < runs.len() && retentions.has_limits() {
            // Tombstones are small, and what they hide is not.
            let deletes = runs.iter().map(|run| run.deletes).sum::<u64>() - largest.deletes;
            let above = (bytes - largest.bytes) * 100 / largest.bytes.max(1);
            let above = above.max(deletes * 100 / largest.events.max(1));
            if self.above_percent <= above {
                return true;
            }
        }
        runs.iter().filter(|run| bytes * SHARE_PERCENT <= run.bytes * 100).any(|run| {
            let settled = self.settled.get(&run.number).copied().unwrap_or_default();
            let many = |count: u64| run.events * MANY_PERCENT <= count * 100;
            (!settled.tombstones && many(run.deletes) && tombstones_may_go(run, retentions))
                || (!settled.versions
                    && many(run.events.saturating_sub(run.keys))
                    && versions_may_go(run, retentions, now_ms))
        })
    }
}

fn tombstones_may_go(run: &Run, retentions: &Retentions) -> bool {
    let floor = retentions.least_tombstone_floor(run.partitions.0, run.partitions.1);
    floor.is_some_and(|floor| run.stamp_greatest < floor)
}

fn versions_may_go(run: &Run, retentions: &Retentions, now_ms: u64) -> bool {
    let newest_ms = run.stamp_greatest.time.physical_ms();
    retentions.greatest_age_ms_max().is_some_and(|age_ms| newest_ms.saturating_add(age_ms) < now_ms)
}

/// The smallest runs of about one size, if there are enough of them.
fn tier(runs: &[Run], config: &TreeConfig) -> Vec<u64> {
    let mut sized: Vec<(u64, u64)> = runs.iter().map(|run| (run.bytes, run.number)).collect();
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

#[cfg(test)]
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "amplification is told to two digits"
)]
mod tests {
    use starling_clock::{HybridTime, NodeId};

    use super::*;
    use crate::{HistoryRetention, KeyspaceId};

    const MIB: u64 = 1 << 20;
    const FLUSH: u64 = 64 * MIB;

    fn stamp(ms: u64) -> Stamp {
        Stamp::new(HybridTime::new(ms, 0), NodeId(1))
    }

    fn run(number: u64, bytes: u64) -> Run {
        let stamp_greatest = stamp(100);
        let events = bytes / 128;
        Run {
            number,
            bytes,
            events,
            keys: events,
            deletes: 0,
            hidden: 0,
            stamp_greatest,
            partitions: (0, 9),
        }
    }

    fn limited(versions_max: Option<u32>, age_ms_max: Option<u64>) -> Retentions {
        let mut retentions = Retentions::default();
        retentions.set_history(KeyspaceId(1), HistoryRetention { versions_max, age_ms_max });
        retentions
    }

    /// What a workload of flushes costs when each pick is merged at once.
    struct Cost {
        /// Bytes written for each byte flushed.
        write: f64,
        /// Bytes at the worst moment between merges, and at the end, for each byte that lives then.
        space_worst: f64,
        space_end: f64,
        runs_most: usize,
    }

    /// `flushes` of keys drawn evenly from `keys_bytes` bytes of keys; 0: none is ever written again.
    fn cost(flushes: u64, keys_bytes: u64, retentions: &Retentions) -> Cost {
        let config = TreeConfig::default();
        // What of the keys is left out of `bytes` of draws.
        let union = |bytes: u64| match keys_bytes {
            0 => bytes,
            keys => {
                let (bytes, keys) = (bytes as f64, keys as f64);
                (keys * (1.0 - (-bytes / keys).exp())) as u64
            }
        };
        let mut picker = Picker::default();
        // With the bytes drawn into each.
        let mut runs: Vec<(Run, u64)> = Vec::new();
        let mut cost = Cost { write: 0.0, space_worst: 0.0, space_end: 0.0, runs_most: 0 };
        let (mut next, mut written, mut drawn) = (1, 0, 0);
        for _ in 0..flushes {
            drawn += FLUSH;
            written += union(FLUSH);
            runs.push((run(next, union(FLUSH)), FLUSH));
            next += 1;
            loop {
                let all: Vec<Run> = runs.iter().map(|(run, _)| *run).collect();
                let pick = picker.pick(&all, true, &config, retentions, 0);
                if pick.runs.is_empty() {
                    break;
                }
                let goes = |run: &(Run, u64)| pick.runs.contains(&run.0.number);
                let before = runs.iter().filter(|run| goes(run)).map(|(run, _)| run.bytes).sum();
                let draws = runs.iter().filter(|run| goes(run)).map(|(_, drawn)| *drawn).sum();
                runs.retain(|run| !goes(run));
                runs.push((run(next, union(draws)), draws));
                written += union(draws);
                picker.handle_merged(&pick, before, Some((next, union(draws))));
                next += 1;
            }
            let bytes: u64 = runs.iter().map(|(run, _)| run.bytes).sum();
            cost.space_end = bytes as f64 / union(drawn) as f64;
            cost.space_worst = cost.space_worst.max(cost.space_end);
            cost.runs_most = cost.runs_most.max(runs.len());
        }
        cost.write = written as f64 / drawn as f64;
        cost
    }

    #[test]
    fn amplification_is_bounded() {
        // Flushes, bytes of keys, limited history; bounds of: bytes written for each flushed, space at the worst and at
        // the end, runs.
        let table = [
            (6, 0, false, [1.7, 1.0, 1.0, 3.0]),
            (64, 0, false, [4.0, 1.0, 1.0, 9.0]),
            (400, 0, false, [4.7, 1.0, 1.0, 12.0]),
            (64, 0, true, [4.0, 1.0, 1.0, 8.0]),
            (40, 2 * FLUSH, true, [1.9, 1.4, 1.1, 2.0]),
            (40, 8 * FLUSH, true, [2.7, 1.6, 1.3, 4.0]),
            (400, 64 * FLUSH, true, [4.1, 1.6, 1.5, 8.0]),
        ];
        for (flushes, keys, is_limited, [write, worst, end, runs]) in table {
            let retentions =
                if is_limited { limited(Some(1), None) } else { Retentions::default() };
            let cost = cost(flushes, keys, &retentions);
            let told = format!(
                "{flushes} flushes, {} MiB of keys, limited {is_limited}: writes {:.2}, space {:.2} and {:.2}, {} runs",
                keys / MIB,
                cost.write,
                cost.space_worst,
                cost.space_end,
                cost.runs_most
            );
            println!("{told}");
            assert!(cost.write <= write && cost.space_worst <= worst, "{told}");
            assert!(cost.space_end <= end && cost.runs_most as f64 <= runs, "{told}");
        }
    }

    #[test]
    fn tombstones_go_once_the_floor_is_above_them_all() {
        let config = TreeConfig::default();
        let picker = &mut Picker::default();
        let mut retentions = Retentions::default();
        let dense = Run { deletes: 300, events: 1000, keys: 900, ..run(1, 50 * MIB) };
        let runs = [dense, run(2, 20 * MIB)];
        let pick = |picker: &Picker, retentions: &Retentions| {
            picker.pick(&runs, true, &config, retentions, 0).runs
        };
        retentions.set_tombstone_floor(3, stamp(100));
        assert_eq!(pick(picker, &retentions), [], "not all are below");
        retentions.set_tombstone_floor(3, stamp(101));
        assert_eq!(pick(picker, &retentions), [1, 2]);
        // Other merges have some of the runs.
        assert_eq!(picker.pick(&runs, false, &config, &retentions, 0).runs, []);
        let whole = Picker::whole(&runs, &retentions, 0);
        picker.handle_merged(&whole, 70 * MIB, Some((3, 69 * MIB)));
        let left = [Run { number: 3, ..dense }];
        let again = picker.pick(&left, true, &config, &retentions, 0);
        assert_eq!(again.runs, [], "what is left has something to hide");
    }

    #[test]
    fn versions_go_when_their_age_has_passed() {
        let config = TreeConfig::default();
        let picker = &mut Picker::default();
        let retentions = limited(None, Some(1000));
        let old = Run { keys: 100, events: 1000, ..run(1, 50 * MIB) };
        let pick = |picker: &Picker, run: Run, now_ms: u64| {
            picker.pick(&[run], true, &config, &retentions, now_ms)
        };
        assert_eq!(pick(picker, old, 1100).runs, []);
        let due = pick(picker, old, 1101);
        assert_eq!(due.runs, [1]);
        picker.handle_merged(&due, 50 * MIB, Some((2, 40 * MIB)));
        assert_eq!(pick(picker, Run { number: 2, ..old }, 9999).runs, [], "nothing more goes");
    }
}
