//! [`Trace`]: what happened, as one number, and on demand as text.
//!
//! Invariants:
//!
//! - Two runs with equal traces did the same: every event that was carried out is in the number, with its time and its content's
//!   mark, and the final state of all replicas.
//! - Text is written only if it was asked for, and changes nothing about the run.

use std::fmt;
use std::io::Write;

/// What happened. See the file's head.
pub(super) struct Trace {
    hash: u64,
    events: u64,
    text: Option<Box<dyn Write + Send>>,
    failed: bool,
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trace")
            .field("hash", &self.hash)
            .field("events", &self.events)
            .finish_non_exhaustive()
    }
}

impl Trace {
    /// An empty trace. `text`, if there is one, gets a line an event.
    pub(super) fn new(text: Option<Box<dyn Write + Send>>) -> Self {
        Self { hash: 0, events: 0, text, failed: false }
    }

    /// The number.
    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    /// How many events it is made of.
    pub(super) fn events(&self) -> u64 {
        self.events
    }

    /// Takes in an event: when, where, which kind, and a mark of its content; `line` is asked for only if text is wanted.
    pub(super) fn note(
        &mut self,
        at_us: u64,
        node: u64,
        kind: u8,
        mark: u64,
        line: impl FnOnce() -> String,
    ) {
        let mut bytes = [0; 25];
        bytes[..8].copy_from_slice(&at_us.to_le_bytes());
        bytes[8..16].copy_from_slice(&node.to_le_bytes());
        bytes[16] = kind;
        bytes[17..].copy_from_slice(&mark.to_le_bytes());
        self.mix(&bytes);
        self.events += 1;
        if let Some(text) = self.text.as_mut() {
            let line = format!("{at_us:>12} n{node} {}\n", line());
            self.failed |= text.write_all(line.as_bytes()).is_err();
        }
    }

    /// Takes in bytes.
    pub(super) fn mix(&mut self, bytes: &[u8]) {
        self.hash = xxhash_rust::xxh3::xxh3_64_with_seed(bytes, self.hash);
    }

    /// Whether all of the text was written.
    pub(super) fn finish(&mut self) -> bool {
        let flushed = self.text.as_mut().is_none_or(|text| text.flush().is_ok());
        flushed && !self.failed
    }
}
