//! Rows of a file as events: JSON lines and CSV in, a key and a JSON payload out.
//!
//! Invariants:
//!
//! - A row is never changed on its way: a JSON line is its payload byte for byte (less the white space around it), a CSV
//!   record becomes one JSON object of its header's names and its fields as text.
//! - A line longer than the limit is an error before it is in memory.
//! - An error names the row, counted from 1 as an editor counts lines (CSV: as records after the header).

use std::collections::BTreeSet;
use std::io::{BufRead, Read};

use bytes::Bytes;
use serde_json::{Number, Value};
use starling_client::wire::KEY_SIZE_MAX;

/// How a file is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One JSON object a line.
    Jsonl,
    /// Comma-separated values with a header.
    Csv,
}

impl Format {
    /// By the file's name; `None` if it does not say.
    pub fn of_name(name: &str) -> Option<Self> {
        let (_, ending) = name.rsplit_once('.')?;
        match ending.to_ascii_lowercase().as_str() {
            "jsonl" | "ndjson" | "json" => Some(Self::Jsonl),
            "csv" => Some(Self::Csv),
            _ => None,
        }
    }
}

/// Which part of a row is its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPath {
    /// A field of the row by its name.
    Field(String),
    /// A JSON pointer (RFC 6901) such as `/properties/code`.
    Pointer(String),
}

impl std::str::FromStr for KeyPath {
    type Err = std::convert::Infallible;

    /// What begins with `/` is a pointer, anything else a field.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.to_owned();
        Ok(if text.starts_with('/') { Self::Pointer(text) } else { Self::Field(text) })
    }
}

/// A row, ready to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Counted from 1.
    pub number: u64,
    /// What the key path found.
    pub key: Bytes,
    /// The row as JSON.
    pub payload: Bytes,
}

/// A row that cannot be imported, or an input that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// The input failed.
    #[error("row {number}: cannot read the input: {source}")]
    Input {
        /// Which row was next.
        number: u64,
        /// Why.
        source: std::io::Error,
    },
    /// The row is longer than a payload may be.
    #[error("row {number} is longer than {limit} bytes: raise --row-size-max, or split the row")]
    TooLong {
        /// Which.
        number: u64,
        /// The limit.
        limit: usize,
    },
    /// The row is not of the format.
    #[error("row {number} is not {format}: {reason}")]
    Malformed {
        /// Which.
        number: u64,
        /// What it should be.
        format: &'static str,
        /// What the parser says.
        reason: String,
    },
    /// The header names two fields alike: a row would lose one of them.
    #[error("the header names '{name}' twice: rename one")]
    TwiceInHeader {
        /// The name.
        name: String,
    },
    /// The key path finds nothing there.
    #[error("row {number} has no field '{path}': name another with --key")]
    NoKey {
        /// Which.
        number: u64,
        /// The key path.
        path: String,
    },
    /// The key path finds something that is no key.
    #[error(
        "row {number}: '{path}' is {found}, a key is a text of 1 to {KEY_SIZE_MAX} bytes, a number or a truth value"
    )]
    BadKey {
        /// Which.
        number: u64,
        /// The key path.
        path: String,
        /// What is there.
        found: &'static str,
    },
}

impl RowError {
    /// The row is bad and the next one may be good: `--skip-bad` may go on.
    pub fn is_of_one_row(&self) -> bool {
        match self {
            Self::Input { .. } | Self::TooLong { .. } | Self::TwiceInHeader { .. } => false,
            Self::Malformed { .. } | Self::NoKey { .. } | Self::BadKey { .. } => true,
        }
    }
}

/// What some editors put before the first line (the CSV reader knows it).
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Whether the number may stand for several: as a key it would bring rows together that are apart in the file.
fn is_rounded(number: &Number) -> bool {
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    number.is_f64() && number.as_f64().is_none_or(|number| number.abs() >= EXACT_MAX)
}

/// Reads rows one by one.
pub struct Rows<R> {
    source: Source<R>,
    key: KeyPath,
    row_size_max: usize,
    number: u64,
    ended: bool,
}

enum Source<R> {
    Jsonl(R),
    Csv { reader: csv::Reader<Budgeted<R>>, header: Option<csv::StringRecord> },
}

/// Lets so many bytes through and then fails: a record whose quote never closes does not fill the memory.
struct Budgeted<R> {
    input: R,
    left: usize,
}

/// The CSV reader asks for this many bytes ahead of the record that it is in, at the most.
const CSV_READ_AHEAD: usize = 64 << 10;

impl<R: Read> Read for Budgeted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        let wanted = buffer.len().min(self.left);
        let read = self.input.read(&mut buffer[..wanted])?;
        self.left -= read;
        Ok(read)
    }
}

impl<R: BufRead> Rows<R> {
    /// Rows of `input`.
    pub fn new(input: R, format: Format, key: KeyPath, row_size_max: usize) -> Self {
        let source = match format {
            Format::Jsonl => Source::Jsonl(input),
            Format::Csv => {
                let input = Budgeted { input, left: row_size_max + CSV_READ_AHEAD };
                let reader = csv::ReaderBuilder::new().flexible(false).from_reader(input);
                Source::Csv { reader, header: None }
            }
        };
        Self { source, key, row_size_max, number: 0, ended: false }
    }

    fn next_json(&mut self) -> Result<Option<Row>, RowError> {
        loop {
            let Source::Jsonl(input) = &mut self.source else {
                unreachable!("asked for JSON lines")
            };
            self.number += 1;
            let number = self.number;
            let mut line = Vec::new();
            let limit = self.row_size_max as u64 + 2;
            let read = input.take(limit).read_until(b'\n', &mut line);
            let read = read.map_err(|source| RowError::Input { number, source })?;
            if read == 0 {
                return Ok(None);
            }
            let mark = if number == 1 { BYTE_ORDER_MARK } else { b"" };
            let text = line.strip_prefix(mark).unwrap_or(&line).trim_ascii();
            if text.len() > self.row_size_max {
                return Err(RowError::TooLong { number, limit: self.row_size_max });
            }
            if text.is_empty() {
                continue;
            }
            let value: Value = serde_json::from_slice(text).map_err(|error| {
                // The row is one line of its own to the parser.
                let reason = error.to_string().replace("at line 1 column", "at byte");
                RowError::Malformed { number, format: "a JSON value", reason }
            })?;
            let key = self.key_of(&value)?;
            return Ok(Some(Row { number, key, payload: Bytes::copy_from_slice(text) }));
        }
    }

    fn next_csv(&mut self) -> Result<Option<Row>, RowError> {
        let Source::Csv { reader, header } = &mut self.source else {
            unreachable!("asked for CSV")
        };
        let limit = self.row_size_max;
        reader.get_mut().left = limit + CSV_READ_AHEAD;
        let malformed = |number: u64, error: csv::Error| match error.into_kind() {
            csv::ErrorKind::Io(source) if source.kind() == std::io::ErrorKind::FileTooLarge => {
                RowError::TooLong { number, limit }
            }
            csv::ErrorKind::Io(source) => RowError::Input { number, source },
            kind => {
                let reason = match kind {
                    csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                        format!("it has {len} fields and the header {expected_len}")
                    }
                    csv::ErrorKind::Utf8 { err, .. } => err.to_string(),
                    other => format!("{other:?}"),
                };
                RowError::Malformed { number, format: "CSV", reason }
            }
        };
        if header.is_none() {
            let names = reader.headers().map_err(|error| malformed(1, error))?.clone();
            let mut seen = BTreeSet::new();
            if let Some(name) = names.iter().find(|name| !seen.insert(*name)) {
                return Err(RowError::TwiceInHeader { name: name.to_owned() });
            }
            *header = Some(names);
        }
        self.number += 1;
        let number = self.number;
        let mut record = csv::StringRecord::new();
        if !reader.read_record(&mut record).map_err(|error| malformed(number, error))? {
            return Ok(None);
        }
        if record.as_slice().len() > limit {
            return Err(RowError::TooLong { number, limit });
        }
        let names = header.iter().flatten().map(str::to_owned);
        let fields = record.iter().map(|field| Value::String(field.to_owned()));
        let value = Value::Object(names.zip(fields).collect());
        let key = self.key_of(&value)?;
        Ok(Some(Row { number, key, payload: value.to_string().into() }))
    }

    fn key_of(&self, row: &Value) -> Result<Bytes, RowError> {
        let (path, found) = match &self.key {
            KeyPath::Field(name) => (name, row.get(name)),
            KeyPath::Pointer(pointer) => (pointer, row.pointer(pointer)),
        };
        let (number, path) = (self.number, path.clone());
        let bad = |found| Err(RowError::BadKey { number, path: path.clone(), found });
        match found {
            None => Err(RowError::NoKey { number, path }),
            Some(Value::String(text)) if text.is_empty() => bad("an empty text"),
            Some(Value::String(text)) if text.len() > KEY_SIZE_MAX => bad("a longer text"),
            Some(Value::Number(number)) if is_rounded(number) => {
                bad("a number of more digits than are kept apart (quote it)")
            }
            Some(Value::String(text)) => Ok(Bytes::copy_from_slice(text.as_bytes())),
            Some(scalar @ (Value::Number(_) | Value::Bool(_))) => Ok(scalar.to_string().into()),
            Some(Value::Null) => bad("null"),
            Some(Value::Array(_)) => bad("an array"),
            Some(Value::Object(_)) => bad("an object"),
        }
    }
}

impl<R: BufRead> Iterator for Rows<R> {
    type Item = Result<Row, RowError>;

    /// `None` also after an error that is not of one row: what follows it cannot be told apart.
    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let row = match self.source {
            Source::Jsonl(_) => self.next_json().transpose(),
            Source::Csv { .. } => self.next_csv().transpose(),
        };
        self.ended = matches!(&row, Some(Err(error)) if !error.is_of_one_row());
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str, format: Format, key: &str) -> Vec<Result<Row, RowError>> {
        let Ok(key) = key.parse();
        Rows::new(text.as_bytes(), format, key, 100).collect()
    }

    fn message(text: &str, format: Format, key: &str) -> String {
        let errors: Vec<_> = rows(text, format, key).into_iter().filter_map(Result::err).collect();
        assert_eq!(errors.len(), 1);
        errors[0].to_string()
    }

    #[test]
    fn json_lines_are_payloads_as_they_stand() {
        let text = "{\"id\": \"a\", \"n\": 1}\n\n  {\"id\":7}  \n{\"id\":true}";
        let got: Vec<_> = rows(text, Format::Jsonl, "id").into_iter().map(Result::unwrap).collect();
        let row = |number, key: &'static str, payload: &'static str| Row {
            number,
            key: key.into(),
            payload: payload.into(),
        };
        let wanted = [
            row(1, "a", "{\"id\": \"a\", \"n\": 1}"),
            row(3, "7", "{\"id\":7}"),
            row(4, "true", "{\"id\":true}"),
        ];
        assert_eq!(got, wanted);
    }

    #[test]
    fn a_pointer_reaches_into_a_row() {
        let got = rows(r#"{"a":{"b":["x","y"]}}"#, Format::Jsonl, "/a/b/1");
        assert_eq!(got[0].as_ref().unwrap().key, "y");
    }

    #[test]
    fn csv_records_become_objects_in_the_order_of_the_header() {
        let got = rows("airport,cost\n\"A, B\",\n", Format::Csv, "airport");
        let row = got[0].as_ref().unwrap();
        assert_eq!(row.key, "A, B");
        assert_eq!(row.payload, r#"{"airport":"A, B","cost":""}"#);
    }

    #[test]
    fn a_bad_row_is_named_and_the_next_one_is_read() {
        assert!(
            message("{\"id\":1}\n{\"id\":\n", Format::Jsonl, "id")
                .starts_with("row 2 is not a JSON value")
        );
        assert!(message("{\"x\":1}\n", Format::Jsonl, "id").contains("no field 'id'"));
        assert!(message("{\"id\":null}\n", Format::Jsonl, "id").contains("null"));
        assert!(message("{\"id\":\"\"}\n", Format::Jsonl, "id").contains("empty"));
        assert!(message("a,b\n1\n", Format::Csv, "a").contains("it has 1 fields and the header 2"));
        let got = rows("{\"id\":\n{\"id\":2}\n", Format::Jsonl, "id");
        assert!(got[0].is_err() && got[0].as_ref().is_err_and(RowError::is_of_one_row));
        assert_eq!(got[1].as_ref().unwrap().key, "2");
    }

    #[test]
    fn what_would_lose_something_is_no_row() {
        let twice = rows("a,b,a\n1,2,3\n", Format::Csv, "a");
        assert!(matches!(&twice[0], Err(RowError::TwiceInHeader { name }) if name == "a"));
        assert!(!twice[0].as_ref().is_err_and(RowError::is_of_one_row));
        let long = "{\"id\":12345678901234567890123}\n";
        assert!(message(long, Format::Jsonl, "id").contains("quote it"));
        let kept = rows("{\"id\":18446744073709551615}\n{\"id\":-1.5}\n", Format::Jsonl, "id");
        assert_eq!(kept[0].as_ref().unwrap().key, "18446744073709551615");
        assert_eq!(kept[1].as_ref().unwrap().key, "-1.5");
    }

    #[test]
    fn a_mark_of_the_byte_order_is_no_part_of_the_first_row() {
        let got = rows("\u{feff}{\"id\":1}\n", Format::Jsonl, "id");
        assert_eq!(got[0].as_ref().unwrap().payload, "{\"id\":1}");
        let got = rows("\u{feff}id\n1\n", Format::Csv, "id");
        assert_eq!(got[0].as_ref().unwrap().key, "1");
    }

    #[test]
    fn a_key_has_a_longest_length() {
        let Ok(key) = "id".parse::<KeyPath>();
        let text = |size: usize| format!("{{\"id\":\"{}\"}}", "k".repeat(size));
        for (size, good) in [(KEY_SIZE_MAX, true), (KEY_SIZE_MAX + 1, false)] {
            let text = text(size);
            let mut rows = Rows::new(text.as_bytes(), Format::Jsonl, key.clone(), 10_000);
            assert_eq!(rows.next().unwrap().is_ok(), good, "{size}");
        }
    }

    #[test]
    fn a_line_over_the_limit_is_refused_before_it_is_read_whole() {
        let long = format!("{{\"id\":\"{}\"}}", "x".repeat(1000));
        let Ok(key) = "id".parse();
        let first = Rows::new(long.as_bytes(), Format::Jsonl, key, 100).next().unwrap();
        assert!(matches!(first, Err(RowError::TooLong { number: 1, limit: 100 })));
        let unclosed = format!("id\n\"{}", "x".repeat(1 << 20));
        let got = rows(&unclosed, Format::Csv, "id");
        assert!(matches!(got[0], Err(RowError::TooLong { number: 1, limit: 100 })));
    }
}
