//! Scans: the newest version of each key of a range, forwards or backwards.
//!
//! Invariants:
//!
//! - Keys come in order, each once, with the greatest event that is not newer than the scan's stamp.
//! - A scan ends at its limits, of events, of bytes and of steps, and tells the key that it got to: so a page over
//!   millions of tombstones costs no more than any other.
//! - Nothing is kept of the events passed over: no memory, no copy of a payload.
//! - What is skipped without a look lies in a gap of `gaps.rs`: forwards, for live keys, as of now.

use std::sync::Arc;

use bytes::Bytes;
use starling_clock::Stamp;

use super::Snapshot;
use super::cursor::MergeCursor;
use super::gaps::{Gaps, Learning};
use super::internal_key;
use super::memtable::Memtable;
use super::view::{Limits, TreeView, event, no_internal_key};
use crate::disk::{Disk, DiskFile};
use crate::error::Error;
use crate::event::{Action, Event, KEY_SIZE_MAX};
use crate::types::{Order, Scan, ScanPage};

/// Events of a key that a scan steps over before it searches for what it wants.
const STEPS_BEFORE_SEEK: usize = 8;
/// Keys without anything live, one after the other, before a scan begins to learn a gap. To learn one costs as much as
/// some tens of steps.
const DEAD_BEFORE_LEARNING: usize = if cfg!(test) { 3 } else { 32 };
/// The same right behind a gap that is known.
const DEAD_BEFORE_LEARNING_MORE: usize = if cfg!(test) { 1 } else { 4 };

impl<D: Disk> TreeView<D> {
    /// A page of the scan.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn scan(&self, scan: &Scan<'_>) -> Result<ScanPage, Error> {
        let range = internal_key::keys_from(scan.partition, scan.keyspace, scan.prefix);
        let after = scan.after.map(|key| internal_key::prefix(scan.partition, scan.keyspace, key));
        let mut walk = Walk::new(scan, self.cursor(scan.partition)?);
        match scan.order {
            Order::Ascending => {
                let after = after.map(|after| past_key(&after)).unwrap_or_default();
                let mut from = after.max(range.clone());
                if scan.live_only && scan.at == Stamp::MAX {
                    let mut run = Run::new(&self.snapshot, from.clone());
                    if let Some(end) = run.gaps.end_of(&from) {
                        run.begin_behind(&end);
                        from = end;
                    }
                    walk.run = Some(run);
                }
                walk.cursor.seek(&from)?;
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

/// Keys without anything live that a scan goes through, and whether it learns a gap from them.
struct Run<'a> {
    gaps: &'a Gaps,
    active: &'a Arc<Memtable>,
    /// Where the first of them may be.
    start: Vec<u8>,
    /// How many there were.
    dead: usize,
    /// So many make it worth learning.
    enough: usize,
    learning: Option<Learning<'a>>,
}

impl<'a> Run<'a> {
    fn new<F>(snapshot: &'a Snapshot<F>, start: Vec<u8>) -> Self {
        let (gaps, active) = (&*snapshot.gaps, &snapshot.active);
        Self { gaps, active, start, dead: 0, enough: DEAD_BEFORE_LEARNING, learning: None }
    }

    /// What follows lies behind a known gap that ends at `end`.
    fn begin_behind(&mut self, end: &[u8]) {
        self.start.clear();
        self.start.extend_from_slice(end);
        (self.dead, self.enough) = (0, DEAD_BEFORE_LEARNING_MORE);
    }

    /// Nothing live lies before `end`, where something does or the scan ends.
    fn end(&mut self, end: &[u8]) {
        if let Some(learning) = self.learning.take() {
            learning.finish(end);
        }
    }

    /// Where to go on, if not with the key after the dead one at hand, which begins at `next`.
    fn pass_dead(&mut self, next: &[u8]) -> Option<Vec<u8>> {
        self.dead += 1;
        if !self.dead.is_multiple_of(self.enough) {
            return None;
        }
        if self.learning.is_none() {
            self.learning = self.gaps.begin(self.active, &self.start);
            if self.learning.is_some() {
                // What was read before it began may lack a put.
                return Some(self.start.clone());
            }
        }
        let end = self.gaps.end_of(next);
        if let Some(end) = &end
            && self.learning.is_none()
        {
            self.begin_behind(end);
        }
        end
    }
}

/// A scan under way.
pub(super) struct Walk<'a, F> {
    scan: &'a Scan<'a>,
    limits: Limits,
    cursor: MergeCursor<'a, F>,
    steps: usize,
    /// What the versions of the key at hand begin with.
    key: Vec<u8>,
    target: Vec<u8>,
    pub(super) page: ScanPage,
    bytes: usize,
    /// If only what is live now is wanted.
    run: Option<Run<'a>>,
}

impl<'a, F: DiskFile> Walk<'a, F> {
    /// A scan with a cursor that is on no event yet.
    pub(super) fn new(scan: &'a Scan<'a>, cursor: MergeCursor<'a, F>) -> Self {
        Self {
            scan,
            limits: Limits { events: scan.limit, bytes: scan.bytes_max },
            cursor,
            steps: 0,
            key: Vec::new(),
            target: Vec::new(),
            page: ScanPage::default(),
            bytes: 0,
            run: None,
        }
    }

    /// Where a scan of `partition` begins, forwards.
    pub(super) fn first_of(&self, partition: u32, after: Option<&[u8]>) -> Vec<u8> {
        let Scan { keyspace, prefix, .. } = *self.scan;
        let after = after.map(|key| past_key(&internal_key::prefix(partition, keyspace, key)));
        after.unwrap_or_default().max(internal_key::keys_from(partition, keyspace, prefix))
    }

    pub(super) fn seek(&mut self, from: &[u8]) -> Result<(), Error> {
        self.cursor.seek(from)
    }

    pub(super) fn seek_onwards(&mut self, from: &[u8]) -> Result<(), Error> {
        self.cursor.seek_onwards(from)
    }

    /// The partition of the event that the cursor is on.
    pub(super) fn partition(&self) -> Option<u32> {
        self.cursor.key().and_then(internal_key::partition_of)
    }

    /// No further event fits into the page.
    pub(super) fn is_full(&self) -> bool {
        self.limits.reached(self.page.events.len(), self.bytes)
    }

    /// Takes what it wants of the keys of `range`, from the cursor on.
    pub(super) fn ascend(&mut self, range: &[u8]) -> Result<(), Error> {
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
                let taken = self.take()?;
                self.target.clear();
                self.target.extend_from_slice(&self.key);
                *self.target.last_mut().expect("a prefix of a key ends in 0x01") += 1;
                if let Some(end) = self.note_run(taken) {
                    self.steps += 1;
                    self.cursor.seek(&end)?;
                } else {
                    self.step_to_target()?;
                }
            }
        }
        self.end_run(range);
        Ok(())
    }

    /// Notes that the key at hand, behind which the target is, was live or was not: where to go on if not at the target.
    fn note_run(&mut self, live: bool) -> Option<Vec<u8>> {
        let run = self.run.as_mut()?;
        if !live {
            return run.pass_dead(&self.target);
        }
        run.end(&self.key);
        run.start.clear();
        run.start.extend_from_slice(&self.target);
        (run.dead, run.enough) = (0, DEAD_BEFORE_LEARNING);
        None
    }

    /// The scan ends where the cursor is, or behind `range`.
    fn end_run(&mut self, range: &[u8]) {
        let Some(run) = &mut self.run else { return };
        match self.cursor.key().filter(|internal| internal.starts_with(range)) {
            Some(internal) => run.end(internal_key::prefix_of(internal)),
            None => {
                if let Some(end) = internal_key::past(range) {
                    run.end(&end);
                }
            }
        }
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

    /// Takes the event that the cursor is on, if it is wanted, and tells whether it was.
    fn take(&mut self) -> Result<bool, Error> {
        if self.scan.live_only && self.cursor.action()? == Action::Delete {
            return Ok(false);
        }
        let internal = self.cursor.key().expect("the cursor is on an event");
        let event = event(self.cursor.stored()?, internal)?;
        self.push(event);
        Ok(true)
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
        self.cursor.seek_onwards(&self.target)
    }
}
