//! `starling import`: the rows of a file as events.
//!
//! Invariants:
//!
//! - Events of one key are written in the order of the file: a key belongs to one lane, and a lane writes one at a time.
//! - A row is counted as written when the cluster took it at the level asked for, and never before.
//! - Memory is bounded, however long the rows are: the reader waits until earlier rows have been written.
//! - After a failure no further row is begun, unless asked to go on.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use starling_client::wire::PAYLOAD_SIZE_LIMIT;
use starling_client::{Bytes, Client, ClientError, ErrorKind, Keyspace, Written};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use xxhash_rust::xxh3::xxh3_64;

use super::Failure;
use super::client::{KeyspaceArg, WriteArgs};
use super::output::{Out, bytes_json, count};
use super::rows::{Format, KeyPath, Row, RowError, Rows};
use crate::io::time::Clock;

/// Rows that wait in one lane.
const LANE_ROWS_MAX: usize = 4;
/// Rows or outcomes on their way between the tasks.
const QUEUE_MAX: usize = 256;
/// KiB of rows in memory at once.
const ROWS_KIB_MAX: u32 = 256 << 10;
const _: () = assert!(PAYLOAD_SIZE_LIMIT / 1024 < ROWS_KIB_MAX as usize, "any row finds room");

/// `starling import`.
///
/// Each row becomes an event, in the order of the file for rows of one key. Importing a file again writes all of it again, as newer
/// events of the same keys.
#[derive(Debug, Args)]
pub struct ImportArgs {
    #[command(flatten)]
    keyspace: KeyspaceArg,
    #[command(flatten)]
    write: WriteArgs,
    /// JSON lines or CSV with a header; `-` reads standard input.
    file: PathBuf,
    /// Which part of a row is its key: a field's name, or a JSON pointer such as /properties/code.
    #[arg(long, value_name = "FIELD")]
    key: KeyPath,
    /// The file's format; unless said, by its name.
    #[arg(long)]
    format: Option<Format>,
    /// Keys that are written at the same time. More is faster until the cluster is busy.
    #[arg(short, long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    concurrency: u16,
    /// Write at most so many rows a second.
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    /// Longest row, in bytes. The nodes have a limit of their own (`limits.payload_size_max`).
    #[arg(long, value_name = "BYTES", default_value_t = 16 << 20, value_parser = clap::value_parser!(u32).range(1..=PAYLOAD_SIZE_LIMIT as i64))]
    row_size_max: u32,
    /// Leave out rows that are malformed or have no key, and count them, where otherwise the import stops.
    #[arg(long)]
    skip_bad: bool,
    /// Go on after a row that could not be written, where otherwise the import stops. Then a later row of its key may be there without it.
    #[arg(long)]
    keep_going: bool,
    /// Write a line of JSON for each row that was taken: its number, key and stamp. A file that is there is replaced.
    #[arg(long, value_name = "FILE")]
    receipts: Option<PathBuf>,
}

impl ImportArgs {
    /// Refuses what cannot be imported from, before a cluster is asked for.
    pub(super) fn check(&self) -> Result<(), Failure> {
        self.format()?;
        open(&self.file)?;
        let Some(receipts) = &self.receipts else { return Ok(()) };
        let place = |path: &Path| std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
        if place(receipts).is_some_and(|receipts| Some(receipts) == place(&self.file)) {
            let problem = "--receipts names the file that is imported: name another";
            return Err(Failure::Usage(problem.to_owned()));
        }
        Ok(())
    }

    fn format(&self) -> Result<Format, Failure> {
        let by_name = || Format::of_name(&self.file.to_string_lossy());
        self.format.or_else(by_name).ok_or_else(|| {
            let problem = "the file's name does not say what it holds: add --format jsonl or csv";
            Failure::Usage(problem.to_owned())
        })
    }
}

/// A row, and its part of the room that rows may take.
struct Queued {
    row: Row,
    _room: OwnedSemaphorePermit,
}

/// What became of a row.
struct Outcome {
    number: u64,
    key: Bytes,
    result: Result<Written, ClientError>,
}

/// What the reader thread found, besides rows.
#[derive(Default)]
struct Bad {
    skipped: u64,
    first_skipped: Option<RowError>,
    stopped: Option<RowError>,
}

/// What became of all.
#[derive(Default)]
struct Tally {
    taken: u64,
    superseded: u64,
    repeated: u64,
    failed: u64,
    first_failure: Option<(u64, ClientError)>,
    /// One failure at least left it open whether its row is there.
    unknown: bool,
}

impl Tally {
    fn add(&mut self, row: u64, result: Result<Written, ClientError>) {
        match result {
            Ok(written) => {
                self.taken += 1;
                self.superseded += u64::from(written.superseded);
                self.repeated += u64::from(written.attempts > 1);
            }
            Err(error) => {
                self.failed += 1;
                self.unknown |= error.kind() == ErrorKind::Unknown;
                if self.first_failure.as_ref().is_none_or(|(first, _)| row < *first) {
                    self.first_failure = Some((row, error));
                }
            }
        }
    }
}

/// Runs the command.
pub(super) async fn run(client: &Client, out: Out, args: ImportArgs) -> Result<(), Failure> {
    let format = args.format()?;
    let (input, size) = open(&args.file)?;
    let receipts = args.receipts.as_deref().map(Receipts::create).transpose()?;
    let progress = progress_bar(out, size);
    let clock = Clock::start();

    let (rows_in, rows_out) = channel(QUEUE_MAX);
    let (done_in, done_out) = channel(QUEUE_MAX);
    let keep_going = args.keep_going;
    let input = BufReader::new(progress.wrap_read(input));
    let rows = Rows::new(input, format, args.key.clone(), args.row_size_max as usize);
    let (bad_in, bad_out) = oneshot::channel();
    let skip_bad = args.skip_bad;
    // Not a task of the runtime: standard input may keep it waiting after everything else has ended.
    let runtime = Handle::current();
    std::thread::spawn(move || bad_in.send(read_all(rows, skip_bad, &runtime, &rows_in)));
    let keyspace = args.keyspace.of(client);
    let writer = Writer { keyspace, how: args.write.clone(), keep_going, stop: Arc::default() };
    let lanes = spawn_lanes(&writer, args.concurrency, &done_in);
    drop(done_in);
    let feeder = tokio::spawn(feed(rows_out, lanes, args.rate));
    let tally = collect(done_out, receipts, &progress, || {
        if !keep_going {
            feeder.abort();
        }
    })
    .await?;
    let stopped = tally.failed > 0 && !keep_going;
    let bad = if stopped { Bad::default() } else { bad_out.await.unwrap_or_default() };
    progress.finish_and_clear();
    let elapsed = Duration::from_micros(clock.mono().0);
    report(out, &tally, &bad, elapsed)?;
    verdict(tally, bad)
}

fn open(path: &Path) -> Result<(Box<dyn std::io::Read + Send>, Option<u64>), Failure> {
    if path == Path::new("-") {
        return Ok((Box::new(std::io::stdin()), None));
    }
    let failed = |source| Failure::File { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?;
    Ok((Box::new(file), size.is_file().then_some(size.len())))
}

fn progress_bar(out: Out, size: Option<u64>) -> ProgressBar {
    if !out.shows_progress() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match size {
        Some(size) => (
            ProgressBar::new(size),
            "{bar:40} {bytes}/{total_bytes}  {msg}  {elapsed} of about {duration}",
        ),
        None => (ProgressBar::new_spinner(), "{spinner} {bytes}  {msg}  {elapsed}"),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn read_all<R: BufRead>(
    rows: Rows<R>,
    skip_bad: bool,
    runtime: &Handle,
    to: &Sender<Queued>,
) -> Bad {
    let mut bad = Bad::default();
    let room = Arc::new(Semaphore::new(ROWS_KIB_MAX as usize));
    for row in rows {
        match row {
            Ok(row) => {
                let kib = u32::try_from(row.payload.len() / 1024 + 1).unwrap_or(ROWS_KIB_MAX);
                let needed = room.clone().acquire_many_owned(kib.min(ROWS_KIB_MAX));
                // Nobody closes it.
                let Ok(room) = runtime.block_on(needed) else { break };
                if to.blocking_send(Queued { row, _room: room }).is_err() {
                    break;
                }
            }
            Err(error) if skip_bad && error.is_of_one_row() => {
                bad.skipped += 1;
                bad.first_skipped.get_or_insert(error);
            }
            Err(error) => {
                bad.stopped = Some(error);
                break;
            }
        }
    }
    bad
}

#[derive(Clone)]
struct Writer {
    keyspace: Keyspace,
    how: WriteArgs,
    keep_going: bool,
    /// No lane begins a further row.
    stop: Arc<AtomicBool>,
}

impl Writer {
    async fn write(&self, row: &Row) -> Result<Written, ClientError> {
        let mut write = self.keyspace.put(row.key.clone(), row.payload.clone());
        if let Some(level) = self.how.level {
            write = write.level(level);
        }
        if let Some(durability) = self.how.durability {
            write = write.durability(durability);
        }
        write.await
    }
}

/// Starts the lanes: each writes its rows one by one, and ends when its queue is dropped or the import stops.
fn spawn_lanes(writer: &Writer, count: u16, done: &Sender<Outcome>) -> Vec<Sender<Queued>> {
    let lane = |_| {
        let (rows_in, mut rows) = channel::<Queued>(LANE_ROWS_MAX);
        let (writer, done) = (writer.clone(), done.clone());
        tokio::spawn(async move {
            while let Some(queued) = rows.recv().await {
                if writer.stop.load(Ordering::Relaxed) {
                    break;
                }
                let result = writer.write(&queued.row).await;
                if result.is_err() && !writer.keep_going {
                    // At once: the next row of this lane may be of the same key.
                    writer.stop.store(true, Ordering::Relaxed);
                }
                let (number, key) = (queued.row.number, queued.row.key.clone());
                drop(queued);
                if done.send(Outcome { number, key, result }).await.is_err() {
                    break;
                }
            }
        });
        rows_in
    };
    (0..count).map(lane).collect()
}

/// Hands each row to the lane of its key.
async fn feed(mut rows: Receiver<Queued>, lanes: Vec<Sender<Queued>>, rate: Option<u32>) {
    let mut pace = rate.map(|rate| {
        let mut pace = tokio::time::interval(Duration::from_secs(1) / rate);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
        pace
    });
    let count = lanes.len() as u64;
    while let Some(queued) = rows.recv().await {
        if let Some(pace) = &mut pace {
            pace.tick().await;
        }
        let lane = usize::try_from(xxh3_64(&queued.row.key) % count).unwrap_or(0);
        if lanes[lane].send(queued).await.is_err() {
            return;
        }
    }
}

async fn collect(
    mut done: Receiver<Outcome>,
    mut receipts: Option<Receipts>,
    progress: &ProgressBar,
    mut on_failure: impl FnMut(),
) -> Result<Tally, Failure> {
    let mut tally = Tally::default();
    while let Some(Outcome { number, key, result }) = done.recv().await {
        if let (Some(receipts), Ok(written)) = (&mut receipts, &result) {
            receipts.add(number, &key, written)?;
        }
        if result.is_err() {
            on_failure();
        }
        tally.add(number, result);
        progress.set_message(format!("{} rows", tally.taken));
    }
    if let Some(receipts) = receipts {
        receipts.finish()?;
    }
    Ok(tally)
}

struct Receipts {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Receipts {
    fn create(path: &Path) -> Result<Self, Failure> {
        let path = path.to_owned();
        match File::create(&path) {
            Ok(file) => Ok(Self { path, file: BufWriter::new(file) }),
            Err(source) => Err(Failure::File { path, source }),
        }
    }

    fn add(&mut self, row: u64, key: &[u8], written: &Written) -> Result<(), Failure> {
        let stamp = written.stamp.to_string();
        let line = json!({ "row": row, "key": bytes_json(key), "stamp": stamp });
        writeln!(self.file, "{line}")
            .map_err(|source| Failure::File { path: self.path.clone(), source })
    }

    fn finish(mut self) -> Result<(), Failure> {
        self.file.flush().map_err(|source| Failure::File { path: self.path, source })
    }
}

fn report(out: Out, tally: &Tally, bad: &Bad, elapsed: Duration) -> Result<(), Failure> {
    let json = json!({
        "taken": tally.taken,
        "superseded": tally.superseded,
        "repeated": tally.repeated,
        "failed": tally.failed,
        "skipped": bad.skipped,
        "first_skipped": bad.first_skipped.as_ref().map(RowError::to_string),
        "elapsed_ms": u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
    });
    out.value(&json, || {
        let seconds = elapsed.as_secs_f64();
        let mut text = format!("{} written in {seconds:.1} s", count(tally.taken, "row"));
        if tally.repeated > 0 {
            text += &format!(", {} of them after a repetition", tally.repeated);
        }
        if let Some(first) = &bad.first_skipped {
            text += &format!(", {} left out; the first: {first}", count(bad.skipped, "bad row"));
        }
        text + "\n"
    })
}

fn verdict(tally: Tally, bad: Bad) -> Result<(), Failure> {
    if let Some((row, error)) = tally.first_failure {
        let (failed, rows) = (tally.failed, tally.taken + tally.failed);
        let kind = if tally.unknown { ErrorKind::Unknown } else { error.kind() };
        return Err(Failure::Import { failed, rows, first: format!("row {row}: {error}"), kind });
    }
    match bad.stopped {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}
