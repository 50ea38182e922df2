//! Measuring: rates and latencies of threads that do one thing, and what the system says of this process.

use std::path::Path;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::api::EngineError;
use crate::load::cpu_us;

/// Largest latency that is told apart, in nanoseconds: a minute.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// Reads the clock.
#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
pub(super) fn now() -> Instant {
    Instant::now()
}

/// Lets a moment pass, for engines that tell nobody when their background work is done.
#[cfg(any(feature = "fjall", feature = "rocksdb", feature = "sled"))]
pub(super) fn pause() {
    #[expect(clippy::disallowed_methods, reason = "there is nothing to be told by")]
    std::thread::sleep(Duration::from_millis(5));
}

/// When a measurement ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    /// Operations of each thread.
    pub(super) operations: u64,
    /// Or this long, whatever is first.
    pub(super) seconds: f64,
    /// The latency of one in so many operations is taken; a power of two.
    pub(super) sample_every: u64,
}

/// What a measurement gave.
#[derive(Debug)]
pub(super) struct Timed {
    /// Operations that were done, over all threads.
    pub(super) operations: u64,
    /// From the start of all to the end of the last.
    pub(super) elapsed: Duration,
    /// Processor time of the whole process meanwhile, in microseconds.
    cpu_us: u64,
    latency_ns: Histogram<u64>,
}

impl Timed {
    /// Operations a second.
    #[expect(clippy::cast_precision_loss, reason = "counts of a run, far below 2^52")]
    pub(super) fn rate(&self) -> f64 {
        self.operations as f64 / self.elapsed.as_secs_f64().max(f64::EPSILON)
    }

    /// Microseconds of processor time an operation, background work too: it does not depend on what else the machine does.
    #[expect(clippy::cast_precision_loss, reason = "counts of a run, far below 2^52")]
    pub(super) fn cpu_us_each(&self) -> f64 {
        self.cpu_us as f64 / self.operations.max(1) as f64
    }

    /// Microseconds below which this part of the sampled operations stayed.
    #[expect(clippy::cast_precision_loss, reason = "at most a minute in nanoseconds")]
    pub(super) fn latency_us(&self, quantile: f64) -> f64 {
        self.latency_ns.value_at_quantile(quantile) as f64 / 1000.0
    }
}

/// One thread's part of a measurement: does operation number so and so.
pub(super) type Operation<'a> = Box<dyn FnMut(u64) -> Result<(), EngineError> + 'a>;

/// Runs `threads` threads, each with an operation that `make` made for it, all started together.
///
/// # Errors
/// The first operation that failed.
pub(super) fn timed<'a>(
    threads: usize,
    limit: Limit,
    make: impl Fn(usize) -> Operation<'a> + Sync,
) -> Result<Timed, EngineError> {
    assert!(limit.sample_every.is_power_of_two());
    let barrier = Barrier::new(threads + 1);
    let run = |thread| {
        let operation = make(thread);
        barrier.wait();
        run_thread(limit, operation)
    };
    let run = &run;
    let (results, elapsed, cpu_us) = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run(thread))).collect();
        barrier.wait();
        let (started, cpu_before) = (now(), cpu_us(&[std::process::id()]));
        let results: Vec<_> =
            running.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        let elapsed = started.elapsed();
        (results, elapsed, cpu_us(&[std::process::id()]).saturating_sub(cpu_before))
    });
    let mut all = Timed { operations: 0, elapsed, cpu_us, latency_ns: histogram() };
    for result in results {
        let (operations, latency_ns) = result.expect("an operation does not panic")?;
        all.operations += operations;
        all.latency_ns.add(&latency_ns).expect("same bounds");
    }
    Ok(all)
}

fn run_thread(
    limit: Limit,
    mut operation: Operation<'_>,
) -> Result<(u64, Histogram<u64>), EngineError> {
    let mut latency_ns = histogram();
    let deadline = now() + Duration::from_secs_f64(limit.seconds);
    for number in 0..limit.operations {
        if number & (limit.sample_every - 1) != 0 {
            operation(number)?;
            continue;
        }
        let before = now();
        operation(number)?;
        let after = now();
        let ns = u64::try_from((after - before).as_nanos()).unwrap_or(LATENCY_NS_MAX);
        latency_ns.saturating_record(ns.max(1));
        if deadline <= after {
            return Ok((number + 1, latency_ns));
        }
    }
    Ok((limit.operations, latency_ns))
}

fn histogram() -> Histogram<u64> {
    let histogram = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3);
    histogram.expect("1 ns to a minute at three digits is a valid histogram")
}

/// A number of `/proc/self/{file}`, by the name before its colon; 0 where there is no such thing.
fn proc_number(file: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
    number_of(&text, name)
}

fn number_of(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Most memory that this process ever held, in bytes.
pub(super) fn peak_memory_bytes() -> u64 {
    proc_number("status", "VmHWM") << 10
}

/// Bytes that this process handed to the system to write, and bytes of pages that it made dirty.
pub(super) fn written_bytes() -> (u64, u64) {
    (proc_number("io", "wchar"), proc_number("io", "write_bytes"))
}

/// Bytes that the files of a directory take on the disk, those of its directories too.
///
/// # Errors
/// What the system says; a file that goes while it is looked at is none.
pub(super) fn disk_bytes(dir: &Path) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;

    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        match std::fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => bytes += disk_bytes(&path)?,
            Ok(metadata) => bytes += metadata.blocks() * 512,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn all_operations_of_all_threads_are_counted_and_a_limit_in_time_ends_them() {
        let done = AtomicU64::new(0);
        let limit = Limit { operations: 100, seconds: 60.0, sample_every: 8 };
        let count = |_| -> Operation<'_> {
            Box::new(|_| {
                done.fetch_add(1, Ordering::Relaxed);
                Ok(())
            })
        };
        let result = timed(3, limit, count).unwrap();
        assert_eq!((result.operations, done.load(Ordering::Relaxed)), (300, 300));
        assert_eq!(result.latency_ns.len(), 3 * 100_u64.div_ceil(8));
        assert!(result.rate() > 0.0 && result.latency_us(0.5) <= result.latency_us(0.99));

        let limit = Limit { operations: u64::MAX, seconds: 0.01, sample_every: 1 };
        assert!(timed(1, limit, |_| Box::new(|_| Ok(()))).unwrap().operations < u64::MAX);
    }

    #[test]
    fn an_operation_that_fails_fails_the_measurement() {
        let limit = Limit { operations: 10, seconds: 60.0, sample_every: 1 };
        let fail = |number| if number == 5 { Err(EngineError::new("test", "no")) } else { Ok(()) };
        assert_eq!(timed(2, limit, |_| Box::new(fail)).unwrap_err().to_string(), "test: no");
    }

    #[test]
    fn numbers_of_the_system_are_found() {
        let text = "VmPeak:\t  10 kB\nVmHWM:\t  1234 kB\n";
        assert_eq!((number_of(text, "VmHWM"), number_of(text, "VmRSS")), (1234, 0));
        assert!(peak_memory_bytes() > 1 << 20);
        let dir = std::env::temp_dir().join(format!("starling-measure-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("inner")).unwrap();
        std::fs::write(dir.join("inner/file"), vec![1; 100_000]).unwrap();
        assert!(disk_bytes(&dir).unwrap() >= 100_000);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
