//! The workloads: groups of stages. Each stage runs in a process of its own, on the directory that the stages before it in its
//! group have left.
//!
//! Invariants:
//!
//! - Which keys are touched, in which order, with which values follows from the seed: every engine gets the same.
//! - What is measured in a stage that reads was settled and closed by the stage before it, and every engine is warmed by the same
//!   reads.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::api::{Change, Durability, Engine, EngineError, Kind, Range, Reader, Settings};
use super::data::{
    KEY_SIZE, PREFIX_ROWS, Permutation, Values, absent_key, absent_prefix, key, prefix, uniform,
    zipfian,
};
use super::measure::{
    Limit, Operation, Timed, disk_bytes, now, peak_memory_bytes, timed, written_bytes,
};

const SEED: u64 = 20_261_122;
const VALUE_SIZE: usize = 100;
const LARGE_VALUE_SIZE: usize = 1024;
/// Fills that are slower end here; what is missing is written in batches, unmeasured.
const FILL_SECONDS_MAX: f64 = 30.0;
const READ_SECONDS_MAX: f64 = 10.0;
const BATCH: u64 = 1000;
/// Memtable of the stages about recovery: all of the log has to be replayed.
const LOG_MEMTABLE_BYTES: usize = 512 << 20;
/// Versions of each key in the overwriting workload.
const ROUNDS: u64 = 4;

/// How much of everything.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Sizes {
    /// Keys of the large fills.
    keys: u64,
    /// Keys of the fill with large values.
    large: u64,
    /// Keys of the fills with threads, of the deletes and of the overwrites.
    some: u64,
    /// Reads.
    reads: u64,
    /// Rows at the front of a queue that are popped.
    pops: u64,
    /// Bytes of log to replay.
    log_bytes: u64,
    /// Length of a workload that syncs each write.
    sync_seconds: f64,
}

impl Sizes {
    /// `scale` times as much as by default.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts, far below 2^52, times a positive number"
    )]
    pub(super) fn scaled(scale: f64) -> Self {
        // Whole groups of prefixes, and some in any case.
        let count =
            |default: u64| ((default as f64 * scale) as u64 / PREFIX_ROWS).max(5) * PREFIX_ROWS;
        Self {
            keys: count(2_000_000),
            large: count(300_000),
            some: count(1_000_000),
            reads: count(300_000),
            pops: count(10_000),
            log_bytes: count(200_000_000),
            sync_seconds: (3.0 * scale).min(10.0),
        }
    }
}

/// Workloads that share a directory.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Group {
    /// Fill in the order of keys.
    FillSequential,
    /// Fill in random order; then read, scan, read while writing.
    Random,
    /// Fill with values of 1 KiB.
    FillLarge,
    /// Fill with two threads.
    TwoWriters,
    /// Fill with four threads.
    FourWriters,
    /// Each write on disk before the answer.
    Sync,
    /// Delete nine of ten keys, and scan what is left.
    Deletes,
    /// Pop the front of a queue, over and over.
    Queue,
    /// Write each key four times.
    Overwrite,
    /// Open after a kill, with a log that has to be replayed.
    Reopen,
}

/// What a row counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Unit {
    /// More is better.
    PerSecond,
    /// Less is better.
    Seconds,
    /// Less is better; bytes.
    Bytes,
    /// Bytes of one thing over bytes of another; less is better.
    Factor,
}

impl Unit {
    /// Whether more of it is better.
    pub(super) fn more_is_better(self) -> bool {
        self == Self::PerSecond
    }
}

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Row {
    /// Which, as in the table of goals.
    pub(super) workload: String,
    pub(super) unit: Unit,
    pub(super) value: f64,
    /// Microseconds: median and 99th percentile of an operation, where operations were timed one by one.
    pub(super) latency_us: Option<(f64, f64)>,
    /// Microseconds of processor time an operation (a row, where rows are counted), where there was enough of it to tell.
    pub(super) cpu_us: Option<f64>,
}

/// What a stage reports.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct StageReport {
    pub(super) rows: Vec<Row>,
    /// Bytes that were handed to the system to write, and bytes of pages made dirty.
    pub(super) written_bytes: u64,
    pub(super) dirtied_bytes: u64,
    pub(super) peak_memory_bytes: u64,
}

/// What a stage runs on.
pub(super) struct Stage<'a> {
    engine: &'a dyn Engine,
    dir: &'a Path,
    sizes: Sizes,
    rows: Vec<Row>,
}

type StageFn = fn(&mut Stage<'_>) -> Result<(), EngineError>;

impl Group {
    /// All, in the order in which they run.
    pub(super) const ALL: [Self; 10] = [
        Self::FillSequential,
        Self::Random,
        Self::FillLarge,
        Self::TwoWriters,
        Self::FourWriters,
        Self::Sync,
        Self::Deletes,
        Self::Queue,
        Self::Overwrite,
        Self::Reopen,
    ];

    fn stages(self) -> &'static [StageFn] {
        match self {
            Self::FillSequential => &[|stage| stage.fill_sequential()],
            Self::Random => &[
                |stage| stage.fill_random(),
                |stage| stage.read(),
                |stage| stage.scan(),
                |stage| stage.read_while_writing(),
            ],
            Self::FillLarge => &[|stage| stage.fill_large()],
            Self::TwoWriters => &[|stage| stage.fill_with_threads(2)],
            Self::FourWriters => &[|stage| stage.fill_with_threads(4)],
            Self::Sync => &[|stage| stage.sync_each()],
            Self::Deletes => &[|stage| stage.deletes()],
            Self::Queue => &[|stage| stage.queue()],
            Self::Overwrite => &[|stage| stage.overwrite()],
            Self::Reopen => &[|stage| stage.fill_log(), |stage| stage.reopened()],
        }
    }

    /// How many stages it has.
    pub(super) fn stage_count(self) -> usize {
        self.stages().len()
    }

    /// Whether the process that ran this stage is killed when it is through, instead of closing the engine.
    pub(super) fn is_killed(self, stage: usize) -> bool {
        self == Self::Reopen && stage == 0
    }

    fn settings(self) -> Settings {
        let settings = Settings::default();
        match self {
            Self::Reopen => Settings { memtable_bytes: LOG_MEMTABLE_BYTES, ..settings },
            Self::Overwrite | Self::Deletes => Settings { history: false, ..settings },
            _ => settings,
        }
    }

    /// Opens the engine, runs one stage of the group, and calls `end` with the report before the engine is closed.
    ///
    /// # Errors
    /// The engine's first error.
    pub(super) fn run<T>(
        self,
        stage: usize,
        kind: Kind,
        dir: &Path,
        sizes: Sizes,
        end: impl FnOnce(StageReport) -> T,
    ) -> Result<T, EngineError> {
        let started = now();
        let engine = kind.open(dir, self.settings())?;
        let opened = started.elapsed();
        let mut context = Stage { engine: &*engine, dir, sizes, rows: Vec::new() };
        if self == Self::Reopen && stage == 1 {
            context.push("reopen", Unit::Seconds, opened.as_secs_f64());
        }
        self.stages()[stage](&mut context)?;
        let (handed_over, dirtied_bytes) = written_bytes();
        let written_bytes = handed_over + engine.copied_bytes();
        let peak_memory_bytes = peak_memory_bytes();
        let rows = context.rows;
        Ok(end(StageReport { rows, written_bytes, dirtied_bytes, peak_memory_bytes }))
    }
}

impl Stage<'_> {
    fn push(&mut self, workload: &str, unit: Unit, value: f64) {
        let workload = workload.to_owned();
        self.rows.push(Row { workload, unit, value, latency_us: None, cpu_us: None });
    }

    fn push_timed(&mut self, workload: &str, timed: &Timed) {
        let latency_us = Some((timed.latency_us(0.5), timed.latency_us(0.99)));
        let (workload, value) = (workload.to_owned(), timed.rate());
        self.rows.push(Row {
            workload,
            unit: Unit::PerSecond,
            value,
            latency_us,
            cpu_us: Some(timed.cpu_us_each()),
        });
    }

    /// Counts `each` for every operation.
    fn push_rows(&mut self, workload: &str, timed: &Timed, each: u64) {
        let (workload, each) = (workload.to_owned(), as_f64(each));
        let (value, cpu_us) = (timed.rate() * each, Some(timed.cpu_us_each() / each));
        self.rows.push(Row { workload, unit: Unit::PerSecond, value, latency_us: None, cpu_us });
    }

    /// Puts keys `number(0..count)`, by `threads` threads, and tells how fast. What time cuts off is written all the same.
    fn fill(
        &self,
        count: u64,
        value_size: usize,
        threads: u64,
        number: impl Fn(u64) -> u64 + Sync,
    ) -> Result<Timed, EngineError> {
        let values = Values::new(value_size, SEED);
        let share = count.div_ceil(threads);
        let limit = Limit { operations: share, seconds: FILL_SECONDS_MAX, sample_every: 8 };
        let reached: Vec<AtomicU64> = (0..threads).map(|_| AtomicU64::new(0)).collect();
        let (values, number, reached) = (&values, &number, &reached);
        let engine = self.engine;
        let timed = timed(usize::try_from(threads).expect("a few"), limit, |thread| {
            let mut values = values.starting_at(thread * 1009);
            let first = thread as u64 * share;
            Box::new(move |index| {
                reached[thread].store(index + 1, Ordering::Relaxed);
                if count <= first + index {
                    return Ok(());
                }
                let key = key(number(first + index));
                engine.write(&[Change::Put(&key, values.next())], Durability::Process)
            })
        })?;
        for (thread, reached) in (0..).zip(reached) {
            let first = thread * share;
            let missing = first + reached.load(Ordering::Relaxed)..(first + share).min(count);
            self.put_all(missing, &mut values.clone(), number)?;
        }
        Ok(timed)
    }

    /// Puts keys in batches.
    fn put_all(
        &self,
        indexes: std::ops::Range<u64>,
        values: &mut Values,
        number: impl Fn(u64) -> u64,
    ) -> Result<(), EngineError> {
        let mut next = indexes.start;
        while next < indexes.end {
            let end = (next + BATCH).min(indexes.end);
            let rows: Vec<_> =
                (next..end).map(|i| (key(number(i)), values.next().to_vec())).collect();
            let changes: Vec<_> =
                rows.iter().map(|(key, value)| Change::Put(&key[..], value)).collect();
            self.engine.write(&changes, Durability::Process)?;
            next = end;
        }
        Ok(())
    }

    fn fill_sequential(&mut self) -> Result<(), EngineError> {
        let timed = self.fill(self.sizes.keys, VALUE_SIZE, 1, |index| index)?;
        self.push_timed("fill-sequential", &timed);
        Ok(())
    }

    fn fill_random(&mut self) -> Result<(), EngineError> {
        let count = self.sizes.keys;
        let order = Permutation::new(count, SEED);
        let timed = self.fill(count, VALUE_SIZE, 1, |index| order.get(index))?;
        self.push_timed("fill-random", &timed);
        self.engine.settle()?;
        self.push_amplification("write-amplification", count);
        self.push("memory-fill", Unit::Bytes, as_f64(peak_memory_bytes()));
        Ok(())
    }

    fn push_amplification(&mut self, workload: &str, puts: u64) {
        let given = as_f64(puts * (KEY_SIZE + VALUE_SIZE) as u64);
        let written = written_bytes().0 + self.engine.copied_bytes();
        let without = written.saturating_sub(self.engine.change_log_bytes());
        self.push(workload, Unit::Factor, as_f64(written) / given);
        let workload = format!("{workload}-without-changes");
        self.push(&workload, Unit::Factor, as_f64(without) / given);
    }

    fn fill_large(&mut self) -> Result<(), EngineError> {
        let count = self.sizes.large;
        let order = Permutation::new(count, SEED);
        let timed = self.fill(count, LARGE_VALUE_SIZE, 1, |index| order.get(index))?;
        self.push_timed("fill-random-1k", &timed);
        Ok(())
    }

    fn fill_with_threads(&mut self, threads: u64) -> Result<(), EngineError> {
        let count = self.sizes.some;
        let order = Permutation::new(count, SEED);
        let timed = self.fill(count, VALUE_SIZE, threads, |index| order.get(index))?;
        self.push_timed(&format!("fill-random-{threads}-threads"), &timed);
        Ok(())
    }

    fn sync_each(&mut self) -> Result<(), EngineError> {
        let limit =
            Limit { operations: u64::MAX, seconds: self.sizes.sync_seconds, sample_every: 1 };
        let order = Permutation::new(1 << 40, SEED);
        let values = Values::new(VALUE_SIZE, SEED);
        let engine = self.engine;
        for (round, threads, batch) in [(0, 1, 1), (1, 16, 1), (2, 64, 1), (3, 1, 100)] {
            let timed = timed(threads, limit, |thread| {
                let mut values = values.starting_at(thread * 1009);
                let first = (round * 64 + thread as u64) << 24;
                Box::new(move |index| {
                    let row =
                        |i| (key(order.get(first + index * batch + i)), values.next().to_vec());
                    let rows: Vec<_> = (0..batch).map(row).collect();
                    let changes: Vec<_> =
                        rows.iter().map(|(key, value)| Change::Put(&key[..], value)).collect();
                    engine.write(&changes, Durability::Disk)
                })
            })?;
            match batch {
                1 => self.push_timed(&format!("sync-{threads}"), &timed),
                _ => self.push_rows("sync-batch-100", &timed, batch),
            }
        }
        Ok(())
    }

    /// Reads the keys of these numbers, each thread its part, and checks that all or none are there.
    fn read_keys(
        &self,
        numbers: &[u64],
        threads: usize,
        key_of: fn(u64) -> [u8; KEY_SIZE],
        expected: Option<usize>,
    ) -> Result<Timed, EngineError> {
        let share = numbers.len() / threads;
        let limit = Limit { operations: share as u64, seconds: READ_SECONDS_MAX, sample_every: 8 };
        let engine = self.engine;
        timed(threads, limit, |thread| {
            let mut numbers = numbers[thread * share..][..share].iter();
            let mut reader = engine.reader();
            Box::new(move |_| {
                let number = *numbers.next().expect("as many as there are operations");
                let found = reader.get(&key_of(number))?;
                check(found == expected, || format!("key {number}: {found:?}"))
            })
        })
    }

    fn warm(&self) -> Result<(), EngineError> {
        let numbers = uniform(self.sizes.keys, self.sizes.reads / 2, SEED ^ 1);
        self.read_keys(&numbers, 1, key, Some(VALUE_SIZE)).map(drop)
    }

    fn read(&mut self) -> Result<(), EngineError> {
        let (keys, reads) = (self.sizes.keys, self.sizes.reads);
        self.warm()?;
        let numbers = uniform(keys, reads, SEED ^ 2);
        let timed = self.read_keys(&numbers, 1, key, Some(VALUE_SIZE))?;
        self.push_timed("read-hit", &timed);
        let numbers = uniform(keys, 2 * reads, SEED ^ 3);
        let timed = self.read_keys(&numbers, 2, key, Some(VALUE_SIZE))?;
        self.push_timed("read-hit-2-threads", &timed);
        let numbers = uniform(keys, 2 * reads, SEED ^ 4);
        let timed = self.read_keys(&numbers, 1, absent_key, None)?;
        self.push_timed("read-miss", &timed);
        let numbers = zipfian(keys, reads, SEED ^ 5);
        let timed = self.read_keys(&numbers, 1, key, Some(VALUE_SIZE))?;
        self.push_timed("read-zipfian", &timed);
        self.push("memory-read", Unit::Bytes, as_f64(peak_memory_bytes()));
        Ok(())
    }

    fn scan(&mut self) -> Result<(), EngineError> {
        self.warm()?;
        let (keys, reads) = (self.sizes.keys, self.sizes.reads);
        let limit = Limit { operations: reads / 2, seconds: READ_SECONDS_MAX, sample_every: 8 };
        let numbers = uniform(keys, limit.operations, SEED ^ 6);
        let seek = self.scans(limit, |reader, index| {
            let number = numbers[usize::try_from(index).expect("in memory")];
            let (rows, _) = count(reader, Range::From(&key(number)), 10)?;
            check(rows == (keys - number).min(10), || format!("{rows} rows from key {number}"))
        })?;
        self.push_timed("seek-10", &seek);

        let once = Limit { operations: 1, ..limit };
        let full = self.scans(once, |reader, _| {
            let (rows, bytes) = count(reader, Range::All, usize::MAX)?;
            let expected = keys * (KEY_SIZE + VALUE_SIZE) as u64;
            check((rows, bytes) == (keys, expected), || format!("{rows} rows of {keys}"))
        })?;
        self.push_rows("full-scan", &full, keys);

        let groups = uniform(keys / PREFIX_ROWS, limit.operations, SEED ^ 7);
        let group = |index| groups[usize::try_from(index).expect("in memory")];
        let present = self.scans(Limit { operations: reads / 8, ..limit }, |reader, index| {
            let (rows, _) = count(reader, Range::Prefix(&prefix(group(index))), usize::MAX)?;
            check(rows == PREFIX_ROWS, || format!("{rows} rows of a prefix"))
        })?;
        self.push_timed("prefix-100", &present);
        let absent = self.scans(limit, |reader, index| {
            let range = Range::Prefix(&absent_prefix(group(index)));
            let (rows, _) = count(reader, range, usize::MAX)?;
            check(rows == 0, || format!("{rows} rows of an absent prefix"))
        })?;
        self.push_timed("prefix-absent", &absent);
        Ok(())
    }

    /// Scans by one thread.
    fn scans<'a>(
        &'a self,
        limit: Limit,
        scan: impl Fn(&mut dyn Reader, u64) -> Result<(), EngineError> + Sync + 'a,
    ) -> Result<Timed, EngineError> {
        let scan = &scan;
        timed(1, limit, |_| {
            let mut reader = self.engine.reader();
            Box::new(move |index| scan(&mut *reader, index))
        })
    }

    fn read_while_writing(&mut self) -> Result<(), EngineError> {
        self.warm()?;
        let (keys, reads) = (self.sizes.keys, self.sizes.reads);
        let numbers = uniform(keys, reads, SEED ^ 8);
        let order = Permutation::new(keys, SEED ^ 9);
        let values = Values::new(VALUE_SIZE, SEED ^ 9);
        let stop = AtomicBool::new(false);
        let (engine, stop) = (self.engine, &stop);
        let write = || {
            let (mut values, started) = (values.clone(), now());
            let mut done = 0;
            // One at the least, however busy the machine is.
            while done == 0 || !stop.load(Ordering::Relaxed) {
                let key = key(order.get(done % keys));
                engine.write(&[Change::Put(&key, values.next())], Durability::Process)?;
                done += 1;
            }
            Ok(as_f64(done) / started.elapsed().as_secs_f64())
        };
        let (writes, reads) = std::thread::scope(|scope| {
            let writer = scope.spawn(write);
            let reads = self.read_keys(&numbers, 1, key, Some(VALUE_SIZE));
            stop.store(true, Ordering::Relaxed);
            (writer.join().expect("a write does not panic"), reads)
        });
        self.push_timed("read-while-writing", &reads?);
        self.push("write-while-reading", Unit::PerSecond, writes?);
        Ok(())
    }

    fn deletes(&mut self) -> Result<(), EngineError> {
        let count = self.sizes.some;
        let order = Permutation::new(count, SEED);
        self.put_all(0..count, &mut Values::new(VALUE_SIZE, SEED), |index| order.get(index))?;
        self.engine.settle()?;
        let deleted = count / 10 * 9;
        let order = Permutation::new(count, SEED ^ 0xa);
        for first in (0..deleted).step_by(usize::try_from(BATCH).expect("small")) {
            let last = (first + BATCH).min(deleted);
            let keys: Vec<_> = (first..last).map(|index| key(order.get(index))).collect();
            let changes: Vec<_> = keys.iter().map(|key| Change::Delete(&key[..])).collect();
            self.engine.write(&changes, Durability::Process)?;
        }
        self.scan_what_is_left("deleted-scan", count - deleted)?;
        self.engine.compact()?;
        self.scan_what_is_left("deleted-scan-compacted", count - deleted)
    }

    fn scan_what_is_left(&mut self, workload: &str, left: u64) -> Result<(), EngineError> {
        let limit = Limit { operations: 3, seconds: READ_SECONDS_MAX, sample_every: 1 };
        let scan = self.scans(limit, |reader, _| {
            let (rows, _) = count(reader, Range::All, usize::MAX)?;
            check(rows == left, || format!("{rows} rows of {left}"))
        })?;
        self.push_rows(workload, &scan, left);
        Ok(())
    }

    fn queue(&mut self) -> Result<(), EngineError> {
        let (rows, pops) = (self.sizes.pops * 10, self.sizes.pops);
        self.put_all(0..rows, &mut Values::new(VALUE_SIZE, SEED), |index| index)?;
        let limit = Limit { operations: pops, seconds: 3.0 * READ_SECONDS_MAX, sample_every: 1 };
        let engine = self.engine;
        let timed = timed(1, limit, |_| -> Operation<'_> {
            let mut reader = engine.reader();
            Box::new(move |index| {
                let mut front = None;
                let take = &mut |key: &[u8], _: &[u8]| front = Some(key.to_vec());
                reader.scan(Range::All, 1, take)?;
                let front = front.unwrap_or_default();
                check(front == key(index), || format!("pop {index} found {front:?}"))?;
                engine.write(&[Change::Delete(&front)], Durability::Process)
            })
        })?;
        self.push_timed("queue-pop", &timed);
        Ok(())
    }

    fn overwrite(&mut self) -> Result<(), EngineError> {
        let count = self.sizes.some;
        let order = Permutation::new(count, SEED);
        let timed = self.fill(ROUNDS * count, VALUE_SIZE, 1, |index| order.get(index % count))?;
        self.push_timed("overwrite", &timed);
        self.engine.settle()?;
        let live = as_f64(count * (KEY_SIZE + VALUE_SIZE) as u64);
        let bytes = disk_bytes(self.dir).map_err(|error| EngineError::new("disk", error))?;
        let without = bytes.saturating_sub(self.engine.change_log_bytes());
        self.push("space-overwritten", Unit::Factor, as_f64(bytes) / live);
        self.push("space-overwritten-without-changes", Unit::Factor, as_f64(without) / live);
        Ok(())
    }

    fn log_rows(&self) -> u64 {
        self.sizes.log_bytes / (KEY_SIZE + VALUE_SIZE) as u64
    }

    fn fill_log(&mut self) -> Result<(), EngineError> {
        let count = self.log_rows();
        let order = Permutation::new(count, SEED);
        let timed = self.fill(count, VALUE_SIZE, 1, |index| order.get(index))?;
        self.push_timed("fill-log", &timed);
        Ok(())
    }

    fn reopened(&mut self) -> Result<(), EngineError> {
        let numbers = uniform(self.log_rows(), self.sizes.reads / 10, SEED ^ 0xb);
        self.read_keys(&numbers, 1, key, Some(VALUE_SIZE)).map(drop)
    }
}

/// Rows of a range and the bytes of their keys and values.
fn count(
    reader: &mut dyn Reader,
    range: Range<'_>,
    limit: usize,
) -> Result<(u64, u64), EngineError> {
    let (mut rows, mut bytes) = (0, 0);
    reader.scan(range, limit, &mut |key, value| {
        rows += 1;
        bytes += (key.len() + value.len()) as u64;
    })?;
    Ok((rows, bytes))
}

fn check(holds: bool, message: impl FnOnce() -> String) -> Result<(), EngineError> {
    if holds { Ok(()) } else { Err(EngineError::new("wrong answer", message())) }
}

#[expect(clippy::cast_precision_loss, reason = "counts and bytes of a run, far below 2^52")]
fn as_f64(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::table::GOALS;
    use super::*;

    #[test]
    fn our_engine_runs_every_workload_and_every_goal_has_its_row() {
        let sizes = Sizes::scaled(0.0005);
        let mut seen = BTreeSet::new();
        for group in Group::ALL {
            let name = format!("starling-engine-{}-{group:?}", std::process::id());
            let dir = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&dir).unwrap();
            for stage in 0..group.stage_count() {
                let report = group
                    .run(stage, Kind::Starling, &dir, sizes, |report| report)
                    .unwrap_or_else(|error| panic!("{group:?} {stage}: {error}"));
                for row in report.rows {
                    assert!(row.value.is_finite() && 0.0 < row.value, "{row:?}");
                    assert!(seen.insert(row.workload));
                }
            }
            std::fs::remove_dir_all(dir).unwrap();
        }
        for goal in GOALS {
            assert!(seen.contains(goal.workload), "{}", goal.workload);
        }
    }

    #[test]
    fn scaled_sizes_are_whole_groups_of_prefixes() {
        let sizes = Sizes::scaled(0.001);
        assert_eq!((sizes.keys, sizes.keys % PREFIX_ROWS), (2000, 0));
        assert_eq!(Sizes::scaled(1.0).keys, 2_000_000);
    }
}
