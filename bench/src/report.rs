//! What a run measured: counts, latencies in HDR histograms, processor time of the servers.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Largest latency that is told apart, in microseconds: a minute.
const LATENCY_US_MAX: u64 = 60_000_000;

/// Latencies and errors of one kind of operation.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    latency_us: Histogram<u64>,
    errors: u64,
    last_error: Option<String>,
}

impl Measured {
    /// Nothing yet.
    pub(crate) fn new() -> Self {
        let latency_us = Histogram::new_with_bounds(1, LATENCY_US_MAX, 3);
        let latency_us = latency_us.expect("1 us to a minute at three digits is a valid histogram");
        Self { latency_us, errors: 0, last_error: None }
    }

    /// An operation that succeeded.
    pub(crate) fn record(&mut self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(LATENCY_US_MAX);
        self.latency_us.saturating_record(us.max(1));
    }

    /// An operation that did not.
    pub(crate) fn record_error(&mut self, error: String) {
        self.errors += 1;
        self.last_error = Some(error);
    }

    /// Adds another's.
    pub(crate) fn add(&mut self, other: &Self) {
        self.latency_us.add(&other.latency_us).expect("same bounds");
        self.errors += other.errors;
        if other.last_error.is_some() {
            self.last_error.clone_from(&other.last_error);
        }
    }

    /// How many succeeded.
    pub(crate) fn count(&self) -> u64 {
        self.latency_us.len()
    }

    /// How many did not.
    pub(crate) fn errors(&self) -> u64 {
        self.errors
    }

    fn to_json(&self, elapsed: Duration) -> Value {
        let q = |quantile| self.latency_us.value_at_quantile(quantile);
        json!({
            "operations": self.count(),
            "errors": self.errors,
            "last_error": self.last_error,
            "per_second": rate(self.count(), elapsed),
            "latency_us": {
                "p50": q(0.5), "p90": q(0.9), "p99": q(0.99), "p999": q(0.999),
                "max": self.latency_us.max(), "mean": self.latency_us.mean(),
            },
        })
    }

    fn line(&self, name: &str, elapsed: Duration) -> String {
        let ms = |quantile| micros_as_ms(self.latency_us.value_at_quantile(quantile));
        format!(
            "{name:<5} {:>9.0}/s  p50 {:>7.3} ms  p90 {:>7.3}  p99 {:>7.3}  p99.9 {:>7.3}  max {:>8.3}  errors {}",
            rate(self.count(), elapsed),
            ms(0.5),
            ms(0.9),
            ms(0.99),
            ms(0.999),
            micros_as_ms(self.latency_us.max()),
            self.errors,
        )
    }
}

/// A whole run.
#[derive(Debug)]
pub(crate) struct Report {
    /// What was run, for people.
    pub(crate) title: String,
    /// How long it took.
    pub(crate) elapsed: Duration,
    /// Writes.
    pub(crate) puts: Measured,
    /// Reads.
    pub(crate) gets: Measured,
    /// Processor time of the processes named by `--pid`, in microseconds.
    pub(crate) server_cpu_us: Option<u64>,
    /// Processor time of the generator itself, in microseconds.
    pub(crate) own_cpu_us: u64,
}

impl Report {
    /// For programs.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "title": self.title,
            "elapsed_ms": u64::try_from(self.elapsed.as_millis()).unwrap_or(u64::MAX),
            "put": self.puts.to_json(self.elapsed),
            "get": self.gets.to_json(self.elapsed),
            "server_cpu_us": self.server_cpu_us,
            "own_cpu_us": self.own_cpu_us,
        })
    }

    /// For people.
    pub(crate) fn to_text(&self) -> String {
        let mut text = format!("{}\n", self.title);
        for (name, measured) in [("put", &self.puts), ("get", &self.gets)] {
            if measured.count() + measured.errors() > 0 {
                text += &format!("  {}\n", measured.line(name, self.elapsed));
            }
            if let Some(error) = &measured.last_error {
                text += &format!("        last error: {error}\n");
            }
        }
        let operations = (self.puts.count() + self.gets.count()).max(1);
        if let Some(cpu) = self.server_cpu_us {
            let (server, own) = (cpu / operations, self.own_cpu_us / operations);
            text += &format!("  cpu   servers {server} us an operation, generator {own} us\n");
        }
        text
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of a run, far below 2^52")]
fn rate(count: u64, elapsed: Duration) -> f64 {
    count as f64 / elapsed.as_secs_f64().max(f64::EPSILON)
}

#[expect(clippy::cast_precision_loss, reason = "at most a minute in microseconds")]
fn micros_as_ms(us: u64) -> f64 {
    us as f64 / 1000.0
}
