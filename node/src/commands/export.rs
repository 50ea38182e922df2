//! `starling export`: the live keys of a keyspace as JSON lines or CSV, so that `import` takes them back.
//!
//! Invariants:
//!
//! - An output file appears whole or not at all: it is written beside its name and renamed at the end.
//! - A device or a pipe is written to and never replaced.
//! - JSON lines: a value that is a JSON object is written as it stands, byte for byte but for its line breaks. Any other becomes
//!   `{"key": .., "value": ..}`.
//! - CSV: the fields are those of the first row; a row with others is an error, not a silent loss.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::ProgressBar;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use starling_client::{Client, Row};

use super::Failure;
use super::client::{KeyspaceArg, ReadArgs};
use super::output::{Out, bytes_json, count};
use super::rows::Format;

/// `starling export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    #[command(flatten)]
    keyspace: KeyspaceArg,
    #[command(flatten)]
    read: ReadArgs,
    /// Where to write; standard output if `-` or not said. A file that is there is replaced when the whole export has succeeded.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The format; unless said, by the file's name, else JSON lines.
    #[arg(long)]
    format: Option<Format>,
    /// Only keys that begin so.
    #[arg(long, default_value = "")]
    prefix: String,
    /// Every row as an object of its key, stamp and value, whatever the value is. Without it, a value that does not hold its key
    /// is written without it.
    #[arg(long)]
    with_keys: bool,
}

/// Runs the command.
pub(super) async fn run(client: &Client, out: Out, args: ExportArgs) -> Result<(), Failure> {
    let by_name = args.output.as_ref().and_then(|path| Format::of_name(&path.to_string_lossy()));
    let format = args.format.or(by_name).unwrap_or(Format::Jsonl);
    let mut scan = args.keyspace.of(client).scan(args.prefix.clone());
    if let Some(level) = args.read.level {
        scan = scan.level(level);
    }
    let output = args.output.as_deref().filter(|path| *path != Path::new("-"));
    let mut sink = Sink::create(output, format)?;
    let progress = if out.shows_progress() && output.is_some() {
        ProgressBar::new_spinner()
    } else {
        ProgressBar::hidden()
    };
    let (mut pages, mut rows) = (scan.pages(), 0_u64);
    while let Some(page) = pages.next().await? {
        for row in page {
            sink.write(&row, args.with_keys, rows + 1)?;
            rows += 1;
        }
        progress.set_message(format!("{rows} rows"));
        progress.tick();
    }
    progress.finish_and_clear();
    sink.finish()?;
    match output {
        Some(path) => {
            let path = path.display().to_string();
            out.value(&json!({ "rows": rows, "file": path }), || {
                format!("{} written to {path}\n", count(rows, "row"))
            })
        }
        None => Ok(()),
    }
}

/// The value if it is a JSON object, on one line: as it stands, because a parser's numbers are not always those that were written.
fn object_line(payload: &[u8]) -> Option<Vec<u8>> {
    let object: &RawValue = serde_json::from_slice(payload).ok()?;
    if !object.get().starts_with('{') {
        return None;
    }
    // In JSON, line breaks are white space: a text has them escaped.
    let one_line = |byte: u8| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte };
    Some(object.get().bytes().map(one_line).collect())
}

fn object_of(row: &Row, with_keys: bool) -> Map<String, Value> {
    let parsed = serde_json::from_slice::<Value>(&row.version.payload).ok();
    let value = match parsed {
        Some(Value::Object(fields)) if !with_keys => return fields,
        Some(value) => value,
        None => bytes_json(&row.version.payload),
    };
    let mut object = Map::new();
    object.insert("key".to_owned(), bytes_json(&row.key));
    if with_keys {
        object.insert("stamp".to_owned(), Value::String(row.version.stamp.to_string()));
    }
    object.insert("value".to_owned(), value);
    object
}

/// Where rows go.
struct Sink {
    /// Where rows go, for complaints; `None`: standard output.
    path: Option<PathBuf>,
    /// The name wanted, of a file that has another until the end.
    rename_to: Option<PathBuf>,
    writer: Writer,
}

impl Drop for Sink {
    fn drop(&mut self) {
        if let (Some(partial), Some(_)) = (&self.path, &self.rename_to) {
            // The export has failed, and that is told.
            let _ = fs::remove_file(partial);
        }
    }
}

enum Writer {
    Jsonl(Box<dyn Write>),
    Csv { writer: Box<csv::Writer<Box<dyn Write>>>, header: Option<Vec<String>> },
}

impl Sink {
    fn create(path: Option<&Path>, format: Format) -> Result<Self, Failure> {
        let is_file = |path: &Path| fs::metadata(path).is_ok_and(|there| there.is_file());
        let rename_to = path.filter(|path| is_file(path) || !path.exists()).map(Path::to_owned);
        let path = path.map(|path| match &rename_to {
            Some(path) => {
                let mut partial = path.as_os_str().to_owned();
                partial.push(".partial");
                PathBuf::from(partial)
            }
            None => path.to_owned(),
        });
        let output: Box<dyn Write> = match &path {
            None => Box::new(std::io::stdout()),
            Some(path) => match File::create(path) {
                Ok(file) => Box::new(BufWriter::new(file)),
                Err(source) => return Err(Failure::File { path: path.clone(), source }),
            },
        };
        let writer = match format {
            Format::Jsonl => Writer::Jsonl(output),
            Format::Csv => {
                Writer::Csv { writer: Box::new(csv::Writer::from_writer(output)), header: None }
            }
        };
        Ok(Self { path, rename_to, writer })
    }

    fn write(&mut self, row: &Row, with_keys: bool, number: u64) -> Result<(), Failure> {
        let written = match &mut self.writer {
            Writer::Jsonl(output) => {
                let as_it_stands = object_line(&row.version.payload).filter(|_| !with_keys);
                let mut line = as_it_stands.unwrap_or_else(|| {
                    Value::Object(object_of(row, with_keys)).to_string().into_bytes()
                });
                line.push(b'\n');
                output.write_all(&line)
            }
            Writer::Csv { writer, header } => {
                let object = object_of(row, with_keys);
                let names: Vec<String> = object.keys().cloned().collect();
                let first = header.is_none();
                let header = header.get_or_insert(names);
                if let Some(stranger) = object.keys().find(|name| !header.contains(name)) {
                    let problem = format!(
                        "row {number} has a field '{stranger}' that the first row has not: export as JSON lines (--format jsonl)"
                    );
                    return Err(Failure::Usage(problem));
                }
                let fields = header.iter().map(|name| object.get(name).map_or(String::new(), cell));
                let title = if first { writer.write_record(&*header) } else { Ok(()) };
                title.and_then(|()| writer.write_record(fields)).map_err(std::io::Error::from)
            }
        };
        written.map_err(|source| self.failure(source))
    }

    fn finish(mut self) -> Result<(), Failure> {
        let flushed = match &mut self.writer {
            Writer::Jsonl(output) => output.flush(),
            Writer::Csv { writer, .. } => writer.flush(),
        };
        flushed.map_err(|source| self.failure(source))?;
        let (Some(partial), Some(path)) = (&self.path, &self.rename_to) else { return Ok(()) };
        fs::rename(partial, path).map_err(|source| Failure::File { path: path.clone(), source })?;
        self.rename_to = None;
        Ok(())
    }

    fn failure(&self, source: std::io::Error) -> Failure {
        match &self.path {
            None => Failure::Output(source),
            Some(path) => Failure::File { path: path.clone(), source },
        }
    }
}

/// A JSON value as a field of CSV: a text as it is, anything else as JSON.
fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}
