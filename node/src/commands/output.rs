//! What the commands print: lines for people, one JSON value a line for programs (`--json`).
//!
//! Invariants:
//!
//! - Standard output carries the answer and nothing else; progress and complaints go to standard error.
//! - A reader that goes away (`| head`) ends the command quietly.
//! - Bytes from the database never reach a terminal raw: control characters are escaped.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};
use starling_client::{Action, Version};

use super::Failure;

/// Where and how to print.
#[derive(Clone, Copy, Debug)]
pub struct Out {
    json: bool,
}

impl Out {
    /// JSON for programs, or text for people.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Programs read this.
    pub fn is_json(self) -> bool {
        self.json
    }

    /// A person looks at standard error.
    pub fn shows_progress(self) -> bool {
        io::stderr().is_terminal()
    }

    /// Prints `value` on a line of its own, or the text that `human` makes, which brings its own line ends.
    ///
    /// # Errors
    /// [`Failure::Output`] if standard output cannot be written.
    pub fn value(self, value: &Value, human: impl FnOnce() -> String) -> Result<(), Failure> {
        let text = if self.json { format!("{value}\n") } else { human() };
        self.raw(text.as_bytes())
    }

    /// A line on standard error, for people.
    pub fn complain(self, text: &str) {
        let text: String = text.chars().map(without_control).collect();
        // There is nobody left to tell if standard error is gone.
        let _ = writeln!(io::stderr().lock(), "starling: {text}");
    }

    /// Writes bytes as they are.
    ///
    /// # Errors
    /// [`Failure::Output`] if standard output cannot be written.
    pub fn raw(self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(Failure::Output)
    }
}

/// What a node or a file says may be part of a complaint.
fn without_control(letter: char) -> char {
    if letter.is_control() && letter != '\n' { char::REPLACEMENT_CHARACTER } else { letter }
}

/// Bytes as text that is safe on a terminal: what is not printable UTF-8 is escaped as `\xNN` or `\u{N}`.
pub fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            if letter.is_control() || letter == '\\' {
                text.extend(letter.escape_default());
            } else {
                text.push(letter);
            }
        }
        for byte in chunk.invalid() {
            // Writing to a String does not fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// Bytes for a program: a text if they are UTF-8, or an object with their hexadecimal digits.
pub fn bytes_json(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => Value::String(text.to_owned()),
        Err(_) => json!({ "hex": hex(bytes) }),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A version for a program.
pub fn version_json(version: &Version) -> Value {
    json!({
        "stamp": version.stamp.to_string(),
        "action": action_name(version.action),
        "payload": bytes_json(&version.payload),
        "request": format!("{:016x}-{}", version.request.client, version.request.sequence),
    })
}

/// What an action is called.
pub fn action_name(action: Action) -> &'static str {
    match action {
        Action::Put => "put",
        Action::Delete => "delete",
    }
}

/// First millisecond of the year 10000, which dates of four-digit years do not reach.
const CALENDAR_END_MS: u64 = 253_402_300_800_000;

/// Milliseconds since the Unix epoch as `2018-02-01T02:16:39.650Z`. A time that no calendar of ours has (a node may send any) is told as
/// the number that it is.
pub fn utc(ms: u64) -> String {
    if CALENDAR_END_MS <= ms {
        return format!("{ms} ms");
    }
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(ms)).to_string()
}

/// A count of things: `1 replica`, `2 replicas`.
pub fn count(number: u64, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// A count of bytes as people read it.
pub fn size(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_the_calendars() {
        assert_eq!(utc(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(utc(1_517_451_399_650), "2018-02-01T02:16:39.650Z");
        assert_eq!(utc(CALENDAR_END_MS - 1), "9999-12-31T23:59:59.999Z");
        for ms in [CALENDAR_END_MS, (1 << 48) - 1, u64::MAX] {
            assert_eq!(utc(ms), format!("{ms} ms"));
        }
    }

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        assert_eq!(printable(b"caf\xc3\xa9 \x1b[2J \xff"), "café \\u{1b}[2J \\xff");
        assert_eq!(bytes_json(b"\xff\x00"), json!({ "hex": "ff00" }));
        assert_eq!(bytes_json(b"text"), json!("text"));
        let said: String = "a\u{1b}[2J\nb".chars().map(without_control).collect();
        assert_eq!(said, "a\u{fffd}[2J\nb");
    }
}
