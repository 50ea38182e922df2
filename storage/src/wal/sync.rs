//! [`Gate`] and [`WalSync`]: syncs of the write-ahead log, some of them on another thread while commits go on.
//!
//! Invariants:
//!
//! - Syncs come one after the other. A system tells a failure once, to one of those that sync a file at the same time, and then
//!   says that all is well (ext4): here a failure is that of every later sync too, until the log is opened again.
//! - What a sync is for was written before it began.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use starling_clock::mutation::{self, Mutation};

use crate::log::write_failed;
use crate::{DiskFile, Error};

/// What all syncs of a log go through.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    one: Mutex<()>,
    failed: AtomicBool,
}

impl Gate {
    /// Whether a sync has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Makes what was written to the file survive a crash, once syncs that are under way have ended.
    ///
    /// # Errors
    /// [`Error::WriteFailed`] if this sync or an earlier one failed: nothing is known of what was written since the one before.
    pub(crate) fn sync<F: DiskFile>(&self, file: &F, path: &str) -> Result<(), Error> {
        let _one = self.one.lock().unwrap_or_else(PoisonError::into_inner);
        if self.has_failed() {
            let earlier = std::io::Error::other("an earlier sync of the log failed");
            return Err(write_failed("sync", path)(earlier));
        }
        if mutation::is(Mutation::SkipFsync) {
            return Ok(());
        }
        match file.sync() {
            Err(error) if !mutation::is(Mutation::RetryFsync) => {
                self.failed.store(true, Ordering::Release);
                Err(write_failed("sync", path)(error))
            }
            _ => Ok(()),
        }
    }
}

/// A sync of what the log had when it was begun.
#[derive(Debug)]
pub(crate) struct WalSync<F> {
    gate: Arc<Gate>,
    file: Arc<F>,
    path: String,
    /// The records below this, and the bytes of the segment.
    pub(super) up_to: u64,
    pub(super) len: u64,
    outcome: Option<Result<(), Error>>,
}

impl<F: DiskFile> WalSync<F> {
    pub(super) fn new(
        gate: Arc<Gate>,
        file: Arc<F>,
        path: String,
        (up_to, len): (u64, u64),
    ) -> Self {
        Self { gate, file, path, up_to, len, outcome: None }
    }

    /// Does it; another call does nothing.
    pub(crate) fn run(&mut self) {
        let Self { gate, file, path, outcome, .. } = self;
        outcome.get_or_insert_with(|| gate.sync(&**file, path));
    }

    /// How it ended; `None` if it was not run.
    pub(super) fn end(self) -> Option<Result<(), Error>> {
        self.outcome
    }
}
