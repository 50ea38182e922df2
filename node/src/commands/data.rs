//! `put`, `get`, `del`, `history` and `scan`: one key, or many.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};
use starling_client::wire::{PAGE_ROWS_MAX, PAYLOAD_SIZE_LIMIT};
use starling_client::{Bytes, Client, Stamp, Version, Written};

use super::Failure;
use super::client::{KeyspaceArg, ReadArgs, WriteArgs};
use super::output::{Out, action_name, bytes_json, count, printable, utc, version_json};

/// `starling put`.
#[derive(Debug, Args)]
pub struct PutArgs {
    #[command(flatten)]
    keyspace: KeyspaceArg,
    #[command(flatten)]
    write: WriteArgs,
    /// The key, 1 to 4096 bytes.
    #[arg(allow_negative_numbers = true)]
    key: String,
    /// The value, of at most what the nodes take (16 MiB unless configured); `-` or nothing reads it from standard input.
    #[arg(conflicts_with = "file", allow_negative_numbers = true)]
    value: Option<String>,
    /// Read the value from a file.
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[arg(skip)]
    payload: Bytes,
}

impl PutArgs {
    /// Takes the value from wherever it is.
    pub(super) fn read_value(&mut self, out: Out) -> Result<(), Failure> {
        self.payload = match (self.value.take(), &self.file) {
            (Some(value), _) if value != "-" => Bytes::from(value),
            (_, Some(path)) => {
                let file = std::fs::File::open(path)
                    .map_err(|source| Failure::File { path: path.clone(), source })?;
                read_value(file, path)?
            }
            _ => {
                let stdin = std::io::stdin();
                if stdin.is_terminal() {
                    out.complain("type the value, and Ctrl-D at its end");
                }
                read_value(stdin.lock(), Path::new("standard input"))?
            }
        };
        Ok(())
    }
}

/// `starling get`.
#[derive(Debug, Args)]
pub struct GetArgs {
    #[command(flatten)]
    keyspace: KeyspaceArg,
    #[command(flatten)]
    read: ReadArgs,
    /// The key.
    #[arg(allow_negative_numbers = true)]
    key: String,
    /// The value as of this stamp, as `history` prints it, not the newest.
    #[arg(long, value_name = "STAMP")]
    at: Option<Stamp>,
    /// Write the value's bytes and nothing else: for files and pipes. Otherwise what a terminal would obey is escaped, and a line
    /// ends it.
    #[arg(long, conflicts_with = "json")]
    raw: bool,
}

/// `starling del`.
#[derive(Debug, Args)]
pub struct DelArgs {
    #[command(flatten)]
    keyspace: KeyspaceArg,
    #[command(flatten)]
    write: WriteArgs,
    /// The key.
    #[arg(allow_negative_numbers = true)]
    key: String,
}

/// `starling history`.
#[derive(Debug, Args)]
pub struct HistoryArgs {
    #[command(flatten)]
    keyspace: KeyspaceArg,
    #[command(flatten)]
    read: ReadArgs,
    /// The key.
    #[arg(allow_negative_numbers = true)]
    key: String,
    /// From this stamp on.
    #[arg(long, value_name = "STAMP")]
    from: Option<Stamp>,
    /// Up to and with this stamp.
    #[arg(long, value_name = "STAMP")]
    to: Option<Stamp>,
    /// Newest first.
    #[arg(short, long)]
    reverse: bool,
    /// At most so many events.
    #[arg(short = 'n', long, value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

/// `starling scan`.
#[derive(Debug, Args)]
pub struct ScanArgs {
    #[command(flatten)]
    keyspace: KeyspaceArg,
    #[command(flatten)]
    read: ReadArgs,
    /// Only keys that begin so.
    #[arg(default_value = "")]
    prefix: String,
    /// At most so many keys.
    #[arg(short = 'n', long, value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Keys only.
    #[arg(long)]
    keys: bool,
}

/// Runs `put`.
pub(super) async fn put(client: &Client, out: Out, args: PutArgs) -> Result<(), Failure> {
    let mut write = args.keyspace.of(client).put(args.key, args.payload);
    if let Some(level) = args.write.level {
        write = write.level(level);
    }
    if let Some(durability) = args.write.durability {
        write = write.durability(durability);
    }
    report_write(out, write.await?)
}

/// Runs `del`.
pub(super) async fn del(client: &Client, out: Out, args: DelArgs) -> Result<(), Failure> {
    let mut write = args.keyspace.of(client).delete(args.key);
    if let Some(level) = args.write.level {
        write = write.level(level);
    }
    if let Some(durability) = args.write.durability {
        write = write.durability(durability);
    }
    report_write(out, write.await?)
}

fn report_write(out: Out, written: Written) -> Result<(), Failure> {
    let json = json!({
        "stamp": written.stamp.to_string(),
        "superseded": written.superseded,
        "acks": written.acks,
    });
    out.value(&json, || {
        let newer = if written.superseded { ", and a newer event is there already" } else { "" };
        let replicas = count(written.acks.into(), "replica");
        format!("ok, stamp {}, on {replicas}{newer}\n", written.stamp)
    })
}

/// Runs `get`.
pub(super) async fn get(client: &Client, out: Out, args: GetArgs) -> Result<(), Failure> {
    let mut get = args.keyspace.of(client).get(args.key.clone());
    if let Some(level) = args.read.level {
        get = get.level(level);
    }
    if let Some(stamp) = args.at {
        get = get.at(stamp);
    }
    let Some(version) = get.await? else { return Err(Failure::NotFound(args.key)) };
    if args.raw {
        return out.raw(&version.payload);
    }
    let json = with_key(args.key.as_bytes(), version_json(&version));
    out.value(&json, || format!("{}\n", printable(&version.payload)))
}

/// Runs `history`.
pub(super) async fn history(client: &Client, out: Out, args: HistoryArgs) -> Result<(), Failure> {
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut history = args.keyspace.of(client).history(args.key.clone());
    history = history.page_size(page_size(left));
    history = history.from(args.from.unwrap_or(Stamp::ZERO)).to(args.to.unwrap_or(Stamp::MAX));
    if let Some(level) = args.read.level {
        history = history.level(level);
    }
    if args.reverse {
        history = history.newest_first();
    }
    let (mut pages, mut found) = (history.pages(), false);
    while let Some(versions) = pages.next().await? {
        for version in versions {
            if left == 0 {
                return Ok(());
            }
            (left, found) = (left - 1, true);
            let json = with_key(args.key.as_bytes(), version_json(&version));
            out.value(&json, || history_line(&version))?;
        }
    }
    match (args.from, args.to) {
        _ if found => Ok(()),
        (None, None) => Err(Failure::NotFound(args.key)),
        _ => Err(Failure::NoEvent(args.key)),
    }
}

fn history_line(version: &Version) -> String {
    let time = utc(version.stamp.time.physical_ms());
    let (stamp, action) = (version.stamp, action_name(version.action));
    format!("{stamp}  {time}  {action}  {}\n", printable(&version.payload))
}

/// Runs `scan`.
pub(super) async fn scan(client: &Client, out: Out, args: ScanArgs) -> Result<(), Failure> {
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut scan = args.keyspace.of(client).scan(args.prefix).page_size(page_size(left));
    if let Some(level) = args.read.level {
        scan = scan.level(level);
    }
    let mut pages = scan.pages();
    while let Some(rows) = pages.next().await? {
        for row in rows {
            if left == 0 {
                return Ok(());
            }
            left -= 1;
            if args.keys {
                out.value(&bytes_json(&row.key), || format!("{}\n", printable(&row.key)))?;
                continue;
            }
            let json = with_key(&row.key, version_json(&row.version));
            let line = || format!("{}\t{}\n", printable(&row.key), printable(&row.version.payload));
            out.value(&json, line)?;
        }
    }
    Ok(())
}

fn page_size(left: u64) -> u32 {
    u32::try_from(left).unwrap_or(PAGE_ROWS_MAX).clamp(1, 1000.min(PAGE_ROWS_MAX))
}

fn with_key(key: &[u8], mut version: Value) -> Value {
    if let Some(fields) = version.as_object_mut() {
        fields.shift_insert(0, "key".to_owned(), bytes_json(key));
    }
    version
}

/// Reads a value whole, unless it is longer than any payload may be.
fn read_value(input: impl Read, path: &Path) -> Result<Bytes, Failure> {
    let mut value = Vec::new();
    let limit = PAYLOAD_SIZE_LIMIT as u64 + 1;
    input
        .take(limit)
        .read_to_end(&mut value)
        .map_err(|source| Failure::File { path: path.to_owned(), source })?;
    if value.len() > PAYLOAD_SIZE_LIMIT {
        let path = path.display();
        let problem =
            format!("{path} is longer than {PAYLOAD_SIZE_LIMIT} bytes, no value may be: split it");
        return Err(Failure::Usage(problem));
    }
    Ok(value.into())
}
