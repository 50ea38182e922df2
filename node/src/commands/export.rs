//! `starling export`: the live keys of a keyspace as JSON lines or CSV, so that `import` takes them back.
//!
//! Invariants:
//!
//! - An output file appears whole or not at all: it is written beside its name and renamed at the end.
//! - JSON lines: a value that is a JSON object is written as it stands. Any other becomes `{"key": .., "value": ..}`.
//! - CSV: the fields are those of the first row; a row with others is an error, not a silent loss.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::ProgressBar;
use serde_json::{Map, Value, json};
use starling_client::{Client, Row};

use super::Failure;
use super::client::{KeyspaceArg, ReadArgs};
use super::output::{Out, bytes_json};
use super::rows::Format;

/// `starling export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    #[command(flatten)]
    keyspace: KeyspaceArg,
    #[command(flatten)]
    read: ReadArgs,
    /// Where to write; standard output unless said.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The format; unless said, by the file's name, else JSON lines.
    #[arg(long)]
    format: Option<Format>,
    /// Only keys that begin so.
    #[arg(long, default_value = "")]
    prefix: String,
    /// Every row as an object of its key, stamp and value, whatever the value is.
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
    let mut sink = Sink::create(args.output.as_deref(), format)?;
    let progress = if out.shows_progress() && args.output.is_some() {
        ProgressBar::new_spinner()
    } else {
        ProgressBar::hidden()
    };
    let (mut pages, mut rows) = (scan.pages(), 0_u64);
    while let Some(page) = pages.next().await? {
        for row in page {
            sink.write(&object_of(&row, args.with_keys), rows + 1)?;
            rows += 1;
        }
        progress.set_message(format!("{rows} rows"));
        progress.tick();
    }
    progress.finish_and_clear();
    sink.finish()?;
    match &args.output {
        Some(path) => {
            let path = path.display().to_string();
            out.value(&json!({ "rows": rows, "file": path }), || {
                format!("{rows} rows written to {path}\n")
            })
        }
        None => Ok(()),
    }
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
    /// The name wanted and the name written to until the end; `None`: standard output.
    paths: Option<(PathBuf, PathBuf)>,
    writer: Writer,
}

enum Writer {
    Jsonl(Box<dyn Write>),
    Csv { writer: Box<csv::Writer<Box<dyn Write>>>, header: Option<Vec<String>> },
}

impl Sink {
    fn create(path: Option<&Path>, format: Format) -> Result<Self, Failure> {
        let paths = path.map(|path| {
            let mut partial = path.as_os_str().to_owned();
            partial.push(".partial");
            (path.to_owned(), PathBuf::from(partial))
        });
        let output: Box<dyn Write> = match &paths {
            None => Box::new(std::io::stdout()),
            Some((_, partial)) => match File::create(partial) {
                Ok(file) => Box::new(BufWriter::new(file)),
                Err(source) => return Err(Failure::File { path: partial.clone(), source }),
            },
        };
        let writer = match format {
            Format::Jsonl => Writer::Jsonl(output),
            Format::Csv => {
                Writer::Csv { writer: Box::new(csv::Writer::from_writer(output)), header: None }
            }
        };
        Ok(Self { paths, writer })
    }

    fn write(&mut self, object: &Map<String, Value>, row: u64) -> Result<(), Failure> {
        let written = match &mut self.writer {
            Writer::Jsonl(output) => {
                let line = Value::Object(object.clone());
                writeln!(output, "{line}")
            }
            Writer::Csv { writer, header } => {
                let names: Vec<String> = object.keys().cloned().collect();
                let first = header.is_none();
                let header = header.get_or_insert(names);
                if let Some(stranger) = object.keys().find(|name| !header.contains(name)) {
                    let problem = format!(
                        "row {row} has a field '{stranger}' that the first row has not: export as JSON lines (--format jsonl)"
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
        match &self.paths {
            None => Ok(()),
            Some((path, partial)) => fs::rename(partial, path)
                .map_err(|source| Failure::File { path: path.clone(), source }),
        }
    }

    fn failure(&self, source: std::io::Error) -> Failure {
        match &self.paths {
            None => Failure::Output(source),
            Some((_, partial)) => Failure::File { path: partial.clone(), source },
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
