//! Scans: the newest version of each key of a range, forwards or backwards.
//!
//! Invariants:
//!
//! - Keys come in order, each once, with the greatest event that is not newer than the scan's stamp.
//! - A scan ends at its limits, of events, of bytes and of steps, and tells the key that it got to: so a page over
//!   millions of tombstones costs no more than any other.
//! - Nothing is kept of the events passed over: no memory, no copy of a payload.

use bytes::Bytes;

use super::cursor::MergeCursor;
use super::internal_key;
use super::view::{Limits, TreeView, event, no_internal_key};
use crate::disk::{Disk, DiskFile};
use crate::error::Error;
use crate::event::{Action, Event, KEY_SIZE_MAX};
use crate::types::{Order, Scan, ScanPage};

/// Events of a key that a scan steps over before it searches for what it wants.
const STEPS_BEFORE_SEEK: usize = 8;

impl<D: Disk> TreeView<D> {
    /// A page of the scan.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn scan(&self, scan: &Scan<'_>) -> Result<ScanPage, Error> {
        let range = internal_key::keys_from(scan.partition, scan.keyspace, scan.prefix);
        let after = scan.after.map(|key| internal_key::prefix(scan.partition, scan.keyspace, key));
        let mut walk = Walk {
            scan,
            limits: Limits { events: scan.limit, bytes: scan.bytes_max },
            cursor: self.cursor(scan.partition)?,
            steps: 0,
            key: Vec::new(),
            target: Vec::new(),
            page: ScanPage::default(),
            bytes: 0,
        };
        match scan.order {
            Order::Ascending => {
                let after = after.map(|after| past_key(&after)).unwrap_or_default();
                walk.cursor.seek(after.as_slice().max(&range))?;
                walk.ascend(&range)?;
            }
            Order::Descending => {
                let end = internal_key::past(&range);
                // What is above every internal key: a partition and a keyspace of 0xFF only.
                let end =
                    end.unwrap_or_else(|| vec![0xff; internal_key::HEAD_SIZE + 2 * KEY_SIZE_MAX]);
                walk.cursor
                    .seek_before(after.map_or(end.clone(), |after| after.min(end)).as_slice())?;
                walk.descend(&range, self)?;
            }
        }
        Ok(walk.page)
    }
}

/// Just above every version of the key that `prefix` is of.
fn past_key(prefix: &[u8]) -> Vec<u8> {
    internal_key::past(prefix).expect("a prefix of a key ends in 0x01")
}

/// A scan under way.
struct Walk<'a, F> {
    scan: &'a Scan<'a>,
    limits: Limits,
    cursor: MergeCursor<'a, F>,
    steps: usize,
    /// What the versions of the key at hand begin with.
    key: Vec<u8>,
    target: Vec<u8>,
    page: ScanPage,
    bytes: usize,
}

impl<F: DiskFile> Walk<'_, F> {
    fn ascend(&mut self, range: &[u8]) -> Result<(), Error> {
        let newest = internal_key::inverted(self.scan.at);
        while self.enter_key(range)? {
            // Newer versions come first.
            let internal = self.cursor.key().expect("the cursor is on the key");
            if internal[self.key.len()..] < newest[..] {
                self.target.clear();
                self.target.extend_from_slice(&self.key);
                self.target.extend_from_slice(&newest);
                self.step_to_target()?;
            }
            if self.on_key() {
                self.take()?;
                self.target.clear();
                self.target.extend_from_slice(&self.key);
                *self.target.last_mut().expect("a prefix of a key ends in 0x01") += 1;
                self.step_to_target()?;
            }
        }
        Ok(())
    }

    fn descend<D: Disk<File = F>>(
        &mut self,
        range: &[u8],
        view: &TreeView<D>,
    ) -> Result<(), Error> {
        let newest = internal_key::inverted(self.scan.at);
        while self.enter_key(range)? {
            // Older versions come first here: the one wanted is the last that is not newer.
            let mut found: Option<Event> = None;
            let mut left = STEPS_BEFORE_SEEK;
            while let Some(internal) = self.cursor.key().filter(|it| it.starts_with(&self.key)) {
                if internal[self.key.len()..] < newest[..] {
                    break;
                }
                if left == 0 {
                    found = self.get(view)?;
                    break;
                }
                found = Some(event(self.cursor.stored()?, internal)?);
                self.cursor.advance()?;
                self.steps += 1;
                left -= 1;
            }
            if self.on_key() {
                self.cursor.seek_before(&self.key)?;
            }
            if let Some(event) = found {
                self.push(event);
            }
        }
        Ok(())
    }

    /// Takes up the key of the event that the cursor is on; false if the range or a limit ends the scan there.
    fn enter_key(&mut self, range: &[u8]) -> Result<bool, Error> {
        let Some(internal) = self.cursor.key().filter(|internal| internal.starts_with(range))
        else {
            return Ok(false);
        };
        let spent = self.scan.steps_max <= self.steps && 0 < self.steps;
        if spent || self.limits.reached(self.page.events.len(), self.bytes) {
            self.page.more = true;
            if !self.key.is_empty() {
                let last = internal_key::key_of(&self.key).ok_or_else(no_internal_key)?;
                self.page.resume = Some(Bytes::from(last));
            }
            return Ok(false);
        }
        self.key.clear();
        self.key.extend_from_slice(internal_key::prefix_of(internal));
        Ok(true)
    }

    fn on_key(&self) -> bool {
        self.cursor.key().is_some_and(|internal| internal.starts_with(&self.key))
    }

    /// Takes the event that the cursor is on, if it is wanted.
    fn take(&mut self) -> Result<(), Error> {
        if self.scan.live_only && self.cursor.action()? == Action::Delete {
            return Ok(());
        }
        let internal = self.cursor.key().expect("the cursor is on an event");
        let event = event(self.cursor.stored()?, internal)?;
        self.push(event);
        Ok(())
    }

    fn push(&mut self, event: Event) {
        if self.scan.live_only && event.action == Action::Delete {
            return;
        }
        self.bytes += event.key.len() + event.payload.len();
        self.page.events.push(event);
    }

    /// The version wanted of the key at hand, by a search.
    fn get<D: Disk<File = F>>(&self, view: &TreeView<D>) -> Result<Option<Event>, Error> {
        let key = internal_key::key_of(&self.key).ok_or_else(no_internal_key)?;
        view.get(self.scan.partition, self.scan.keyspace, &key, self.scan.at)
    }

    /// Moves forwards to the target: by steps if it is near, else by a search.
    fn step_to_target(&mut self) -> Result<(), Error> {
        for _ in 0..STEPS_BEFORE_SEEK {
            if self.cursor.key().is_none_or(|key| *self.target <= *key) {
                return Ok(());
            }
            self.cursor.advance()?;
            self.steps += 1;
        }
        if self.cursor.key().is_none_or(|key| *self.target <= *key) {
            return Ok(());
        }
        self.steps += 1;
        self.cursor.seek(&self.target)
    }
}
