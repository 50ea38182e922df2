//! Scans: the newest version of each key of a range, forwards or backwards.
//!
//! Invariants:
//!
//! - Keys come in order, each once, with the greatest event that is not newer than the scan's stamp.
//! - A scan ends at its limits, of events, of bytes and of steps, and tells the key that it got to: so a page over
//!   millions of tombstones costs no more than any other.
//! - Nothing is kept of the events passed over: no memory, no copy of a payload.
//! - What is skipped without a look lies in a gap of `gaps.rs`: forwards, for live keys, as of now.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use starling_clock::Stamp;

use super::Snapshot;
use super::cursor::MergeCursor;
use super::gaps::{Gaps, Learning};
use super::internal_key::{self, Parts, past_key};
use super::memtable::Memtable;
use super::page::{PageBuilder, SMALL_PAYLOAD_MAX};
use super::stored::StoredRef;
use super::view::{Limits, TreeView, event, no_internal_key};
use super::words;
use crate::disk::{Disk, DiskFile};
use crate::error::Error;
use crate::event::{Action, Event, EventRef, KEY_SIZE_MAX};
use crate::types::{Order, Scan, ScanEnd, ScanPage};

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
        let mut page = PageBuilder::default();
        let ScanEnd { more, resume } = self.walk(scan, |event, payload| {
            page.push(event, payload);
            ControlFlow::Continue(())
        })?;
        Ok(ScanPage { events: page.finish(), more, resume })
    }

    /// Shows each event of the scan to `visit`, until that has enough.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn scan_each(
        &self,
        scan: &Scan<'_>,
        mut visit: impl FnMut(EventRef<'_>) -> ControlFlow<()>,
    ) -> Result<ScanEnd, Error> {
        self.walk(scan, |event, _| visit(event))
    }

    /// Shows each event of the scan to `show`, with its payload where that can be shared.
    fn walk<S>(&self, scan: &Scan<'_>, show: S) -> Result<ScanEnd, Error>
    where
        S: FnMut(EventRef<'_>, Option<Bytes>) -> ControlFlow<()>,
    {
        let range = internal_key::keys_from(scan.partition, scan.keyspace, scan.prefix);
        let after = scan.after.map(|key| internal_key::prefix(scan.partition, scan.keyspace, key));
        let mut walk = Walk::new(scan, self.cursor(scan.partition)?, show);
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
        Ok(walk.end)
    }
}

/// Keys without anything live that a scan goes through, and whether it learns a gap from them.
struct Run<'a> {
    gaps: &'a Gaps,
    active: &'a Arc<Memtable>,
    /// The key before was live: the run begins right behind it, if it does.
    begins: bool,
    /// Where the first of them may be, unless it begins only.
    start: Vec<u8>,
    /// How many there were since, or since what was done about them.
    dead: usize,
    /// So many make it worth learning.
    enough: usize,
    learning: Option<Learning<'a>>,
}

impl<'a> Run<'a> {
    fn new<F>(snapshot: &'a Snapshot<F>, start: Vec<u8>) -> Self {
        let (gaps, active) = (&*snapshot.gaps, &snapshot.active);
        Self {
            gaps,
            active,
            begins: false,
            start,
            dead: 0,
            enough: DEAD_BEFORE_LEARNING,
            learning: None,
        }
    }

    /// What follows lies behind a known gap that ends at `end`.
    fn begin_behind(&mut self, end: &[u8]) {
        self.begins = false;
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

    /// The key at hand is live.
    fn pass_live(&mut self, key: &[u8]) {
        self.end(key);
        self.begins = true;
    }

    /// Where to go on, if not with the key after the dead one at hand, `key`; `before`: the key before that.
    fn pass_dead(&mut self, key: &[u8], before: &[u8]) -> Option<Vec<u8>> {
        if std::mem::take(&mut self.begins) {
            self.start = past_key(before);
            (self.dead, self.enough) = (0, DEAD_BEFORE_LEARNING);
        }
        self.dead += 1;
        if self.dead < self.enough {
            return None;
        }
        self.dead = 0;
        if self.learning.is_none() {
            self.learning = self.gaps.begin(self.active, &self.start);
            if self.learning.is_some() {
                // What was read before it began may lack a put.
                return Some(self.start.clone());
            }
        }
        let end = self.gaps.end_of(&past_key(key));
        if let Some(end) = &end
            && self.learning.is_none()
        {
            self.begin_behind(end);
        }
        end
    }
}

/// A scan under way.
pub(super) struct Walk<'a, F, S> {
    scan: &'a Scan<'a>,
    limits: Limits,
    cursor: MergeCursor<'a, F>,
    steps: usize,
    /// What the versions of the key at hand begin with, and those of the key before.
    key: Vec<u8>,
    before: Vec<u8>,
    /// Takes what is found.
    show: S,
    /// How many events that were, and bytes of their keys and payloads.
    shown: usize,
    bytes: usize,
    pub(super) end: ScanEnd,
    /// If only what is live now is wanted.
    run: Option<Run<'a>>,
}

/// What became of the event that a walk was on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taken {
    /// Shown.
    Live,
    /// Not shown: a delete, and those are not wanted.
    Dead,
    /// Shown, and no more is wanted.
    Last,
}

impl<'a, F, S> Walk<'a, F, S>
where
    F: DiskFile,
    S: FnMut(EventRef<'_>, Option<Bytes>) -> ControlFlow<()>,
{
    /// A scan with a cursor that is on no event yet.
    pub(super) fn new(scan: &'a Scan<'a>, cursor: MergeCursor<'a, F>, show: S) -> Self {
        Self {
            scan,
            limits: Limits { events: scan.limit, bytes: scan.bytes_max },
            cursor,
            steps: 0,
            key: Vec::new(),
            before: Vec::new(),
            show,
            shown: 0,
            bytes: 0,
            end: ScanEnd::default(),
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

    /// No further event is wanted.
    pub(super) fn is_full(&self) -> bool {
        self.limits.reached(self.shown, self.bytes)
    }

    /// Takes what it wants of the keys of `range`, from the cursor on.
    pub(super) fn ascend(&mut self, range: &[u8]) -> Result<(), Error> {
        let newest = internal_key::inverted(self.scan.at);
        let as_of_now = self.scan.at == Stamp::MAX;
        while self.enter_key(range)? {
            // Newer versions come first.
            if !as_of_now {
                self.pass_newer(&newest)?;
                if !self.on_key() {
                    continue;
                }
            }
            let taken = self.take()?;
            if taken == Taken::Last {
                return self.stop();
            }
            if let Some(end) = self.note_run(taken) {
                self.steps += 1;
                self.cursor.seek(&end)?;
            } else {
                self.pass_key()?;
            }
        }
        self.end_run(range);
        Ok(())
    }

    /// Notes that the key at hand was live or was not: where to go on if not with the key after it.
    fn note_run(&mut self, taken: Taken) -> Option<Vec<u8>> {
        let run = self.run.as_mut()?;
        if taken == Taken::Dead {
            return run.pass_dead(&self.key, &self.before);
        }
        run.pass_live(&self.key);
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
                found = Some(self.event()?);
                self.cursor.advance()?;
                self.steps += 1;
                left -= 1;
            }
            if self.on_key() {
                self.cursor.seek_before(&self.key)?;
            }
            let live = |event: &Event| !self.scan.live_only || event.action != Action::Delete;
            let Some(event) = found.filter(live) else { continue };
            let shared = (SMALL_PAYLOAD_MAX < event.payload.len()).then(|| event.payload.clone());
            self.shown += 1;
            self.bytes += event.key.len() + event.payload.len();
            if (self.show)(event.borrow(), shared).is_break() {
                return self.stop();
            }
        }
        Ok(())
    }

    /// Takes up the key of the event that the cursor is on; false if the range or a limit ends the scan there.
    fn enter_key(&mut self, range: &[u8]) -> Result<bool, Error> {
        let Some(internal) =
            self.cursor.key().filter(|internal| words::starts_with(internal, range))
        else {
            return Ok(false);
        };
        let spent = self.scan.steps_max <= self.steps && 0 < self.steps;
        if spent || self.limits.reached(self.shown, self.bytes) {
            self.stop()?;
            return Ok(false);
        }
        std::mem::swap(&mut self.key, &mut self.before);
        self.key.clear();
        self.key.extend_from_slice(internal_key::prefix_of(internal));
        Ok(true)
    }

    /// The scan ends behind the key at hand, and there may be more.
    fn stop(&mut self) -> Result<(), Error> {
        self.end.more = true;
        if !self.key.is_empty() {
            let last = internal_key::key_of(&self.key).ok_or_else(no_internal_key)?;
            self.end.resume = Some(Bytes::from(last));
        }
        Ok(())
    }

    #[inline]
    fn on_key(&self) -> bool {
        self.cursor.key().is_some_and(|internal| internal_key::is_version(internal, &self.key))
    }

    /// Takes the event that the cursor is on.
    fn take(&mut self) -> Result<Taken, Error> {
        self.cursor.arrive()?;
        let StoredRef { action, request, payload } = self.cursor.borrowed()?;
        if self.scan.live_only && action == Action::Delete {
            return Ok(Taken::Dead);
        }
        let internal = self.cursor.key().expect("the cursor is on an event");
        let parts = internal_key::decode(internal).ok_or_else(no_internal_key)?;
        let Parts { partition, keyspace, ref key, stamp } = parts;
        let event = EventRef { partition, keyspace, key, stamp, request, action, payload };
        let shared = if SMALL_PAYLOAD_MAX < payload.len() {
            Some(self.cursor.stored()?.payload)
        } else {
            None
        };
        self.shown += 1;
        self.bytes += key.len() + payload.len();
        let flow = (self.show)(event, shared);
        Ok(if flow.is_break() { Taken::Last } else { Taken::Live })
    }

    /// A copy of the event that the cursor is on.
    fn event(&mut self) -> Result<Event, Error> {
        self.cursor.arrive()?;
        let internal = self.cursor.key().expect("the cursor is on an event");
        event(self.cursor.stored()?, internal)
    }

    /// The version wanted of the key at hand, by a search.
    fn get<D: Disk<File = F>>(&self, view: &TreeView<D>) -> Result<Option<Event>, Error> {
        let key = internal_key::key_of(&self.key).ok_or_else(no_internal_key)?;
        view.get(self.scan.partition, self.scan.keyspace, &key, self.scan.at)
    }

    /// Moves past the versions of the key at hand that are newer than `newest` says.
    fn pass_newer(&mut self, newest: &[u8]) -> Result<(), Error> {
        let is_newer = |key: &[u8], internal: &[u8]| {
            internal.strip_prefix(key).is_some_and(|stamp| stamp < newest)
        };
        for _ in 0..STEPS_BEFORE_SEEK {
            if !self.cursor.key().is_some_and(|internal| is_newer(&self.key, internal)) {
                return Ok(());
            }
            self.cursor.advance()?;
            self.steps += 1;
        }
        if self.cursor.key().is_some_and(|internal| is_newer(&self.key, internal)) {
            self.steps += 1;
            self.cursor.seek(&[&self.key, newest].concat())?;
        }
        Ok(())
    }

    /// Moves past the key at hand.
    fn pass_key(&mut self) -> Result<(), Error> {
        self.steps += self.cursor.pass_key(&self.key)?;
        Ok(())
    }
}
