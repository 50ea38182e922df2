//! What the runs gave, side by side: medians, ratios of ours to each peer's, goals met or not. As Markdown, and as JSON.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::api::Kind;
use super::workloads::{Group, Row, StageReport, Unit};

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Goal {
    /// Name of the rows.
    pub(super) workload: &'static str,
    title: &'static str,
    /// How many times as good as the better of the log-structured peers ours has to be; `None`: for information.
    ratio: Option<f64>,
}

const fn goal(workload: &'static str, title: &'static str, ratio: f64) -> Goal {
    Goal { workload, title, ratio: Some(ratio) }
}

const fn info(workload: &'static str, title: &'static str) -> Goal {
    Goal { workload, title, ratio: None }
}

/// The lines, in order.
pub(super) const GOALS: [Goal; 31] = [
    goal("fill-sequential", "fill sequential", 1.0),
    goal("fill-random", "fill random", 1.5),
    goal("fill-random-1k", "fill random, 1 KiB", 1.3),
    goal("fill-random-2-threads", "fill random, 2 threads", 1.5),
    goal("fill-random-4-threads", "fill random, 4 threads", 1.5),
    goal("sync-1", "fsync a write, 1 writer", 1.0),
    goal("sync-16", "fsync a write, 16 writers", 2.0),
    goal("sync-64", "fsync a write, 64 writers", 3.0),
    info("sync-batch-100", "fsync a batch of 100"),
    goal("read-hit", "read random hit", 1.2),
    goal("read-hit-2-threads", "read random hit, 2 threads", 1.2),
    goal("read-miss", "read miss", 1.0),
    goal("read-zipfian", "read zipfian", 1.5),
    goal("read-while-writing", "read while writing: reads", 1.3),
    info("write-while-reading", "read while writing: writes"),
    goal("seek-10", "seek + 10 next", 1.0),
    goal("full-scan", "full scan, rows", 1.0),
    goal("prefix-100", "prefix scan of 100 rows", 1.2),
    goal("prefix-absent", "absent prefix", 1.0),
    goal("deleted-scan", "scan over 90 % deletes, rows left", 3.0),
    info("deleted-scan-compacted", "the same after compaction"),
    goal("queue-pop", "pop the front of a queue", 20.0),
    info("overwrite", "overwrite four times"),
    info("fill-log", "fill without flush"),
    goal("reopen", "reopen after kill -9, 200 MB of log", 10.0),
    goal("write-amplification", "write amplification, random fill", 1.0),
    info("write-amplification-without-changes", "the same without the change log"),
    goal("space-overwritten", "space after overwriting four times", 1.0),
    info("space-overwritten-without-changes", "the same without the change log"),
    goal("memory-fill", "peak memory, fill", 1.0),
    goal("memory-read", "peak memory, read", 1.0),
];

/// One stage of one run.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) kind: Kind,
    pub(super) group: Group,
    pub(super) stage: usize,
    pub(super) repeat: u32,
    pub(super) report: StageReport,
}

/// Everything that was measured.
#[derive(Debug, Default)]
pub(super) struct Results {
    runs: Vec<Run>,
}

impl Results {
    /// Takes in one more stage.
    pub(super) fn add(&mut self, run: Run) {
        self.runs.push(run);
    }

    /// The engines, each once, ours first.
    fn kinds(&self) -> Vec<Kind> {
        let mut kinds: Vec<Kind> = self.runs.iter().map(|run| run.kind).collect();
        kinds.sort();
        kinds.dedup();
        kinds
    }

    /// The median over the repeats of one workload, for each engine that ran it.
    fn medians(&self, workload: &str) -> BTreeMap<Kind, Row> {
        let mut rows: BTreeMap<Kind, Vec<&Row>> = BTreeMap::new();
        for run in &self.runs {
            for row in run.report.rows.iter().filter(|row| row.workload == workload) {
                rows.entry(run.kind).or_default().push(row);
            }
        }
        rows.into_iter().map(|(kind, rows)| (kind, median(rows))).collect()
    }

    /// The table, in Markdown.
    pub(super) fn to_markdown(&self) -> String {
        let kinds = self.kinds();
        let peers: Vec<Kind> =
            kinds.iter().copied().filter(|kind| *kind != Kind::Starling).collect();
        let mut head = vec!["workload".to_owned()];
        head.extend(kinds.iter().map(|kind| kind.name().to_owned()));
        head.extend(peers.iter().map(|kind| format!("to {}", kind.name())));
        head.extend(["to the better", "by processor time", "goal"].map(str::to_owned));
        let mut text = line(&head) + &rule(head.len());
        for goal in GOALS {
            let medians = self.medians(goal.workload);
            let mut cells = vec![goal.title.to_owned()];
            cells.extend(kinds.iter().map(|kind| medians.get(kind).map_or(String::new(), show)));
            let ratios = peers.iter().map(|peer| ratio(&medians, *peer));
            cells.extend(ratios.map(|ratio| ratio.map_or(String::new(), |it| format!("{it:.2}x"))));
            let better = Self::to_the_better(&medians);
            cells.push(better.map_or(String::new(), |ratio| format!("{ratio:.2}x")));
            let by_cpu = to_the_better_by_cpu(&medians);
            cells.push(by_cpu.map_or(String::new(), |ratio| format!("{ratio:.2}x")));
            cells.push(verdict(goal.ratio, better));
            if !medians.is_empty() {
                text += &line(&cells);
            }
        }
        text
    }

    /// Ours to the better of the peers that the goals are against.
    fn to_the_better(medians: &BTreeMap<Kind, Row>) -> Option<f64> {
        let peers = medians.keys().filter(|kind| kind.is_goal());
        peers.filter_map(|peer| ratio(medians, *peer)).reduce(f64::min)
    }

    /// Latencies and processor time of what was timed one by one, in Markdown.
    pub(super) fn details_to_markdown(&self) -> String {
        let kinds = self.kinds();
        let mut text = self.detail("p50 / p99, microseconds", &kinds, |row| {
            row.latency_us.map(|(p50, p99)| format!("{p50:.1} / {p99:.1}"))
        });
        text.push('\n');
        text += &self.detail("processor time an operation, microseconds", &kinds, |row| {
            row.cpu_us.map(|cpu_us| format!("{cpu_us:.2}"))
        });
        text
    }

    fn detail(&self, title: &str, kinds: &[Kind], show: fn(&Row) -> Option<String>) -> String {
        let head = std::iter::once(title).chain(kinds.iter().map(|kind| kind.name()));
        let head: Vec<String> = head.map(str::to_owned).collect();
        let mut text = line(&head) + &rule(head.len());
        for goal in GOALS {
            let medians = self.medians(goal.workload);
            let shown: Vec<_> = kinds.iter().map(|kind| medians.get(kind).and_then(show)).collect();
            if shown.iter().any(Option::is_some) {
                let cells = shown.into_iter().map(Option::unwrap_or_default);
                text +=
                    &line(&std::iter::once(goal.title.to_owned()).chain(cells).collect::<Vec<_>>());
            }
        }
        text
    }

    /// Every run, for programs.
    pub(super) fn to_json(&self) -> Value {
        let runs = self.runs.iter().map(|run| {
            json!({
                "engine": run.kind,
                "group": run.group,
                "stage": run.stage,
                "repeat": run.repeat,
                "report": run.report,
            })
        });
        Value::Array(runs.collect())
    }
}

fn line(cells: &[String]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

/// The line below the heads: text to the left, numbers to the right.
fn rule(columns: usize) -> String {
    format!("| --- |{}\n", " ---: |".repeat(columns - 1))
}

fn median(mut rows: Vec<&Row>) -> Row {
    rows.sort_by(|a, b| a.value.total_cmp(&b.value));
    rows[rows.len() / 2].clone()
}

/// How many times as good ours is.
fn ratio(medians: &BTreeMap<Kind, Row>, peer: Kind) -> Option<f64> {
    let (ours, theirs) = (medians.get(&Kind::Starling)?, medians.get(&peer)?);
    let (more, less) = if ours.unit.more_is_better() {
        (ours.value, theirs.value)
    } else {
        (theirs.value, ours.value)
    };
    Some(more / less)
}

/// The same by processor time an operation, which tells more on a machine that does other things.
fn to_the_better_by_cpu(medians: &BTreeMap<Kind, Row>) -> Option<f64> {
    let cpu_us = |kind: &Kind| medians.get(kind)?.cpu_us.filter(|cpu_us| 0.0 < *cpu_us);
    let ours = cpu_us(&Kind::Starling)?;
    let peers = medians.keys().filter(|kind| kind.is_goal());
    peers.filter_map(cpu_us).reduce(f64::min).map(|peer| peer / ours)
}

fn verdict(goal: Option<f64>, reached: Option<f64>) -> String {
    match (goal, reached) {
        (None, _) => String::new(),
        (Some(goal), None) => format!("{goal}x"),
        (Some(goal), Some(reached)) if goal <= reached => format!("{goal}x met"),
        (Some(goal), Some(_)) => format!("{goal}x **not met**"),
    }
}

fn show(row: &Row) -> String {
    match row.unit {
        Unit::PerSecond if row.value < 10_000.0 => format!("{:.0}/s", row.value),
        Unit::PerSecond if row.value < 1e6 => format!("{:.0}k/s", row.value / 1e3),
        Unit::PerSecond => format!("{:.2}M/s", row.value / 1e6),
        Unit::Seconds => format!("{:.2} s", row.value),
        Unit::Bytes => format!("{:.0} MB", row.value / 1e6),
        Unit::Factor => format!("{:.2}", row.value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(values: &[f64], unit: Unit) -> Results {
        let mut results = Results::default();
        for (repeat, value) in (0..).zip(values) {
            let workload = "read-hit".to_owned();
            let row = Row {
                workload,
                unit,
                value: *value,
                latency_us: Some((1.0, *value)),
                cpu_us: Some(2.0),
            };
            let report = StageReport { rows: vec![row], ..StageReport::default() };
            results.add(Run {
                kind: Kind::Starling,
                group: Group::Random,
                stage: 0,
                repeat,
                report,
            });
        }
        results
    }

    #[test]
    fn the_median_of_three_stands_in_the_tables() {
        let results = results(&[900.0, 100.0, 400.0], Unit::PerSecond);
        assert!(results.to_markdown().contains("| read random hit | 400/s |  |  | 1.2x |"));
        assert!(results.details_to_markdown().contains("| read random hit | 1.0 / 400.0 |"));
        assert_eq!(results.to_json().as_array().unwrap().len(), 3);
    }

    #[test]
    fn a_goal_is_met_from_its_ratio_on() {
        assert_eq!(verdict(Some(1.2), Some(1.2)), "1.2x met");
        assert_eq!(verdict(Some(1.2), Some(1.19)), "1.2x **not met**");
        assert_eq!(verdict(None, Some(1.0)), "");
    }

    #[cfg(feature = "fjall")]
    #[test]
    fn less_is_better_where_it_is() {
        let row = |unit, value| Row {
            workload: String::new(),
            unit,
            value,
            latency_us: None,
            cpu_us: None,
        };
        let pair = |unit, ours, theirs| {
            BTreeMap::from([(Kind::Starling, row(unit, ours)), (Kind::Fjall, row(unit, theirs))])
        };
        assert_eq!(ratio(&pair(Unit::PerSecond, 300.0, 200.0), Kind::Fjall), Some(1.5));
        assert_eq!(ratio(&pair(Unit::Bytes, 300.0, 150.0), Kind::Fjall), Some(0.5));
    }
}
