//! The logs' part of [`super::verify`]: write-ahead log, change log with its indexes, hints.

use starling_clock::{NodeId, Stamp};

use super::examine::{Facts, LogFacts, OnFile};
use super::{Extent, Report};
use crate::change_ids::{IndexHead, IndexPlace, read_head};
use crate::log::{LogItem, LogKind, Record, walk_log};
use crate::wal::record::WalRecord;
use crate::{Disk, DiskFile, Error, EventId, changes, packed};

pub(super) const WAL_DIR: &str = "wal";
pub(super) const CHANGES_DIR: &str = "changes";
pub(super) const HINTS_DIR: &str = "hints";

pub(super) fn hints_dir(target: NodeId) -> String {
    format!("{HINTS_DIR}/{:020}", target.0)
}

/// What damage to a log means.
struct Consequences {
    damaged: &'static str,
    missing: &'static str,
}

/// Walks one log and reports what is wrong with its frames; `examine` reads each record and says what is wrong with that.
fn examine_log<D: Disk>(
    disk: &D,
    dir: &str,
    kind: LogKind,
    consequences: &Consequences,
    report: &mut Report,
    progress: OnFile<'_>,
    mut examine: impl FnMut(&mut Report, &str, u64, &Record) -> Result<(), &'static str>,
) -> Result<(LogFacts, Extent), Error> {
    let mut facts = LogFacts::default();
    let mut extent = Extent::default();
    let walked = walk_log(disk, dir, kind, |item| {
        match item {
            LogItem::Segment { path, bytes } => {
                progress(path, report.bytes);
                report.read(bytes);
                extent.segments += 1;
                extent.bytes += bytes;
                facts.segments.push((path.to_owned(), true));
            }
            LogItem::Record { path, offset, record } => {
                facts.records += 1;
                if let Err(what) = examine(report, path, offset, record) {
                    facts.spoil(path);
                    report.damaged(path, offset, what, consequences.damaged);
                }
            }
            LogItem::Damaged { path, offset, reason, number, lost } => {
                facts.spoil(path);
                let what = format!("{reason}: record {number} and {} more", lost.saturating_sub(1));
                report.damaged(path, offset, what, consequences.damaged);
            }
            LogItem::Hole { path, from, to } => {
                // The segment itself is good: it is those before it that cannot be joined to it.
                facts.damaged = true;
                let before = facts.segments.len().saturating_sub(1);
                facts.segments[..before].iter_mut().for_each(|(_, good)| *good = false);
                let what = format!("records {from} to {} before it are not there", to - 1);
                report.damaged(path, 0, what, consequences.missing);
            }
            LogItem::Torn { path, offset, bytes } => {
                let what = format!(
                    "{bytes} bytes from {offset} on were never promised: cut off at the next start"
                );
                report.note(path, what);
            }
        }
        Ok(())
    });
    match walked {
        Ok(walked) => facts.extent = walked,
        Err(Error::Missing { .. }) => {}
        Err(error) => return Err(error),
    }
    if let Some(found) = facts.extent {
        extent.first = found.first;
        extent.end = found.next;
    }
    Ok((facts, extent))
}

pub(super) fn examine_wal<D: Disk>(
    disk: &D,
    report: &mut Report,
    facts: &mut Facts,
    progress: OnFile<'_>,
) -> Result<(), Error> {
    let consequences = Consequences {
        damaged: "the node does not start: writes that were acknowledged are lost here",
        missing: "the node does not start: writes that were acknowledged are lost here",
    };
    let (mut seen, mut hints) = (None, std::mem::take(&mut facts.wal_hints));
    let mut gaps_allowed = false;
    let (wal, extent) = examine_log(
        disk,
        WAL_DIR,
        LogKind::WriteAhead,
        &consequences,
        report,
        progress,
        |_, _, _, record| {
            let record = WalRecord::decode(record).map_err(|_| "a record that is none")?;
            match record {
                WalRecord::Event { sequence, .. } => {
                    let before = seen.map(|(_, last)| last);
                    let first = seen.map_or(sequence, |(first, _)| first);
                    seen = Some((first, sequence));
                    let follows = before.is_none_or(|last: u64| sequence == last.saturating_add(1));
                    if !follows && !gaps_allowed {
                        gaps_allowed = true;
                        return Err("changes are not numbered one by one");
                    }
                }
                WalRecord::Hint { target, sequence, .. } => {
                    hints.insert(target, sequence);
                }
                WalRecord::HintsDone { .. } | WalRecord::Meta { .. } => {}
            }
            Ok(())
        },
    )?;
    if wal.extent.is_none() {
        report.damaged(WAL_DIR, 0, "there is no write-ahead log", "the node does not start");
    }
    facts.wal = wal;
    facts.wal_changes = seen;
    facts.wal_hints = hints;
    report.wal = extent;
    Ok(())
}

/// The events of the segment that is being read, as its index has to tell them.
#[derive(Clone, Copy, Default)]
struct Indexed {
    events: u64,
    /// Exclusive or over (upper half of the hash of the identity, number).
    digest: u64,
    bounds: Option<(Stamp, Stamp)>,
}

impl Indexed {
    fn take(&mut self, hash: u64, number: u64) {
        self.events += 1;
        let pair = [hash.to_le_bytes(), number.to_le_bytes()].concat();
        self.digest ^= xxhash_rust::xxh3::xxh3_64(&pair);
    }

    fn take_event(&mut self, id: EventId<'_>, number: u64) {
        self.take(id.hash() >> 32, number);
        let (least, greatest) = self.bounds.unwrap_or((id.stamp, id.stamp));
        self.bounds = Some((least.min(id.stamp), greatest.max(id.stamp)));
    }
}

pub(super) fn examine_changes<D: Disk>(
    disk: &D,
    report: &mut Report,
    facts: &mut Facts,
    progress: OnFile<'_>,
) -> Result<(), Error> {
    let consequences = Consequences {
        damaged: "consumers of this node's changes stop there",
        missing: "the node does not start",
    };
    let mut segments: Vec<(String, Indexed)> = Vec::new();
    let (changes, extent) = examine_log(
        disk,
        CHANGES_DIR,
        LogKind::Changes,
        &consequences,
        report,
        progress,
        |_, path, _, record| {
            if segments.last().is_none_or(|(last, _)| last != path) {
                segments.push((path.to_owned(), Indexed::default()));
            }
            let (_, indexed) = segments.last_mut().expect("just pushed");
            let change = changes::decode(record).map_err(|_| "a record that is none")?;
            indexed.take_event(change.event.id(), record.number);
            Ok(())
        },
    )?;
    report.changes = extent;
    for (path, indexed) in segments {
        let index = path.replace(".log", ".ids");
        progress(&index, report.bytes);
        let good = changes.segments.iter().any(|(segment, good)| *segment == path && *good);
        if good && !examine_index(disk, &index, indexed, report)? {
            facts.bad_indexes.push(index);
        }
    }
    facts.changes = changes;
    Ok(())
}

/// Whether the index may be used, or is not there.
fn examine_index<D: Disk>(
    disk: &D,
    path: &str,
    indexed: Indexed,
    report: &mut Report,
) -> Result<bool, Error> {
    if !disk.exists(path).map_err(Error::io("look for", path))? {
        return Ok(true);
    }
    let size = disk.open_read(path).and_then(|file| file.len()).map_err(Error::io("read", path))?;
    report.read(size);
    let Some((head, place, _)) = read_head(disk, path)? else {
        report.note(path, "not a good index: made anew at the next start");
        return Ok(true);
    };
    let fault = index_fault(disk, place, &head, indexed);
    if let Some(what) = fault {
        let consequence = "an event that comes late may be refused as damaged";
        report.damaged(path, 0, what, consequence);
    }
    Ok(fault.is_none())
}

/// What is wrong with an index whose head is good.
fn index_fault<D: Disk>(
    disk: &D,
    place: IndexPlace,
    head: &IndexHead,
    indexed: Indexed,
) -> Option<&'static str> {
    let mut found = Indexed::default();
    let (mut before, mut sorted) = (None, true);
    let read = place.each(disk, head, |hash, number| {
        sorted &= before.is_none_or(|before| before < (hash, number));
        before = Some((hash, number));
        found.take(hash, number);
    });
    if read.is_err() {
        return Some("a page of its ids");
    }
    if !sorted {
        return Some("its ids are not in order");
    }
    if (found.events, found.digest) != (indexed.events, indexed.digest) {
        return Some("its ids are not those of its segment");
    }
    let (least, greatest) = indexed.bounds.unwrap_or((head.bounds.least, head.bounds.greatest));
    (least < head.bounds.least || head.bounds.greatest < greatest)
        .then_some("events lie outside of its bounds")
}

pub(super) fn examine_hints<D: Disk>(
    disk: &D,
    report: &mut Report,
    facts: &mut Facts,
    progress: OnFile<'_>,
) -> Result<(), Error> {
    let names = match disk.list(HINTS_DIR).map_err(Error::io("list", HINTS_DIR)) {
        Ok(names) => names,
        Err(Error::Missing { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    let consequences = Consequences {
        damaged: "those hints are not delivered: the target is repaired by comparison",
        missing: "those hints are not delivered: the target is repaired by comparison",
    };
    for name in names {
        let Ok(target) = name.parse().map(NodeId) else { continue };
        let dir = hints_dir(target);
        let (found, extent) = examine_log(
            disk,
            &dir,
            LogKind::Hints,
            &consequences,
            report,
            progress,
            |_, _, _, record| {
                packed::event(&record.payload).map(drop).map_err(|_| "a record that is none")
            },
        )?;
        facts.hints.insert(target, found);
        report.hints.push((target, extent));
    }
    Ok(())
}
