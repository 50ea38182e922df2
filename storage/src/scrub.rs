//! [`Scrub`]: reads, beside a storage that is in use, all that lies on its disk, a little at a time, and tells what is damaged before a
//! request comes to it.
//!
//! Invariants:
//!
//! - It reads past every cache of ours, and writes nothing.
//! - It looks at what no longer changes: tables that the manifest names, segments that are not the newest of their log, small files.
//!   What went while it was looked at is no damage.
//! - A step reads about as much as it is told to; memory is one table's index and one block.
//!
//! It serves and decides nothing: who drives it reports the damage. It has no thread and no clock.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::log::{LogKind, Segment, reason};
use crate::offline::{Damage, FINDINGS_MAX};
use crate::state::State;
use crate::tree::inspect::{ManifestTable, Walk, inspect_manifest, open_table, table_path};
use crate::{Disk, Error, identity};

const TABLES_DIR: &str = "tables";
const MANIFEST: &str = "tables/MANIFEST";

/// Something to be read.
enum Target {
    Identity,
    State,
    Table(ManifestTable),
    /// A segment from record `first` to the one before `until`.
    Segment {
        dir: String,
        kind: LogKind,
        first: u64,
        until: u64,
    },
}

/// What is being read.
enum Current<D: Disk> {
    Table(ManifestTable, Box<Walk<D::File>>),
    Segment { segment: Segment<D::File>, offset: u64, number: u64, until: u64 },
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubStatus {
    /// Rounds that have read all there was.
    pub rounds: u64,
    /// Bytes read since the first round began.
    pub bytes: u64,
    /// Places found damaged in the last whole round.
    pub damaged: u64,
}

/// See the file's head.
pub struct Scrub<D: Disk> {
    disk: Arc<D>,
    queue: VecDeque<Target>,
    current: Option<Current<D>>,
    /// In this round.
    damaged: u64,
    status: ScrubStatus,
}

/// What a step did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// What it found.
    pub damage: Vec<Damage>,
    /// All has been read: the next step begins anew.
    pub round_ended: bool,
}

impl<D: Disk> Scrub<D> {
    /// For a disk that storage is open on.
    pub fn new(disk: Arc<D>) -> Self {
        let (queue, current) = (VecDeque::new(), None);
        Self { disk, queue, current, damaged: 0, status: ScrubStatus::default() }
    }

    /// How far it is.
    pub fn status(&self) -> ScrubStatus {
        self.status
    }

    /// Reads about `bytes` bytes further.
    pub fn step(&mut self, bytes: usize) -> Scrubbed {
        let mut scrubbed = Scrubbed::default();
        let begins = self.current.is_none() && self.queue.is_empty();
        if begins && let Err(error) = self.begin() {
            self.take_damage(MANIFEST, &error, &mut scrubbed);
        }
        let end = self.status.bytes.saturating_add(bytes as u64);
        while self.status.bytes < end {
            if self.current.is_none() {
                let Some(target) = self.queue.pop_front() else { break };
                self.open(target, &mut scrubbed);
                continue;
            }
            self.read_on(end, &mut scrubbed);
        }
        if self.current.is_none() && self.queue.is_empty() {
            scrubbed.round_ended = true;
            self.status.rounds += 1;
            self.status.damaged = std::mem::take(&mut self.damaged);
        }
        scrubbed
    }

    /// Lists what there is.
    fn begin(&mut self) -> Result<(), Error> {
        self.queue.extend([Target::Identity, Target::State]);
        self.list_log("wal", LogKind::WriteAhead);
        self.list_log("changes", LogKind::Changes);
        for name in self.disk.list("hints").unwrap_or_default() {
            self.list_log(&format!("hints/{name}"), LogKind::Hints);
        }
        match inspect_manifest(&*self.disk, TABLES_DIR) {
            Ok((manifest, ..)) => {
                self.queue.extend(manifest.tables.values().copied().map(Target::Table));
                Ok(())
            }
            // It is replaced at this moment: there is a next round.
            Err(Error::Missing { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn list_log(&mut self, dir: &str, kind: LogKind) {
        let names = self.disk.list(dir).unwrap_or_default();
        let numbers = names.iter().filter_map(|name| name.strip_suffix(".log")?.parse().ok());
        let firsts: Vec<u64> = numbers.collect();
        for pair in firsts.windows(2) {
            let (first, until) = (pair[0], pair[1]);
            self.queue.push_back(Target::Segment { dir: dir.to_owned(), kind, first, until });
        }
    }

    fn open(&mut self, target: Target, scrubbed: &mut Scrubbed) {
        let disk = &*self.disk;
        match target {
            Target::Identity => {
                if let Err(error) = identity::read(disk) {
                    self.take_damage("identity", &error, scrubbed);
                }
            }
            Target::State => {
                if let Err(error) = State::read(disk) {
                    self.take_damage("state", &error, scrubbed);
                }
            }
            Target::Table(entry) => {
                let opened = open_table(disk, TABLES_DIR, entry).and_then(Walk::begin);
                match opened {
                    Ok(walk) => self.current = Some(Current::Table(entry, Box::new(walk))),
                    Err(error) => self.take_table_damage(entry, &error, scrubbed),
                }
            }
            Target::Segment { dir, kind, first, until } => {
                match Segment::open_read(disk, &dir, kind, first) {
                    Ok(segment) => {
                        let frames = segment.all_frames();
                        let (offset, number) = (frames.offset, frames.number);
                        let current = Current::Segment { segment, offset, number, until };
                        self.current = Some(current);
                    }
                    Err(error) => {
                        let path = format!("{dir}/{first:020}.log");
                        self.take_damage(&path, &error, scrubbed);
                    }
                }
            }
        }
    }

    /// Reads on in what is open, until `status.bytes` comes to `end`.
    fn read_on(&mut self, end: u64, scrubbed: &mut Scrubbed) {
        match self.current.take() {
            None => {}
            Some(Current::Table(entry, mut walk)) => loop {
                match walk.next_size() {
                    Ok(Some(size)) => self.status.bytes += size as u64,
                    Ok(None) => return,
                    Err(error) => return self.take_table_damage(entry, &error, scrubbed),
                }
                if end <= self.status.bytes {
                    self.current = Some(Current::Table(entry, walk));
                    return;
                }
            },
            Some(Current::Segment { segment, offset, number, until }) => {
                let mut frames = segment.frames(offset, number).until(until);
                let failed = loop {
                    let before = frames.offset;
                    match frames.next_frame() {
                        Ok(Some(_)) => self.status.bytes += frames.offset - before,
                        Ok(None) => return,
                        Err(error) => break error,
                    }
                    if end <= self.status.bytes {
                        let (offset, number) = (frames.offset, frames.number);
                        self.current = Some(Current::Segment { segment, offset, number, until });
                        return;
                    }
                };
                let path = segment.path.clone();
                self.take_damage(&path, &failed, scrubbed);
            }
        }
    }

    /// A table that was merged away while it was read is no damage.
    fn take_table_damage(&mut self, entry: ManifestTable, error: &Error, scrubbed: &mut Scrubbed) {
        let named = inspect_manifest(&*self.disk, TABLES_DIR)
            .is_ok_and(|(manifest, ..)| manifest.tables.get(&entry.number) == Some(&entry));
        if named {
            self.tell(&table_path(TABLES_DIR, entry.number), error, scrubbed);
        }
    }

    /// A file that went, or has another name now, is no damage.
    fn take_damage(&mut self, path: &str, error: &Error, scrubbed: &mut Scrubbed) {
        if self.disk.exists(path).unwrap_or(true) {
            self.tell(path, error, scrubbed);
        }
    }

    fn tell(&mut self, path: &str, error: &Error, scrubbed: &mut Scrubbed) {
        let offset = if let Error::Corrupt { offset, .. } = error { *offset } else { 0 };
        self.damaged += 1;
        if scrubbed.damage.len() < FINDINGS_MAX {
            scrubbed.damage.push(Damage {
                file: path.to_owned(),
                offset,
                what: reason(error),
                consequence: "it is not served: stop the node and run `starling storage repair`"
                    .to_owned(),
            });
        }
    }
}
