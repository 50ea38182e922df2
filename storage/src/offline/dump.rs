//! The records of a data directory, one by one. See [`dump()`].
//!
//! Invariants:
//!
//! - A record is given only if its checksum is good; what is bad is given as [`DumpRecord::Damaged`], and the dump goes on behind it.
//! - One record is held at a time.

use bytes::Bytes;
use starling_clock::{NodeId, Stamp};

use super::logs::{CHANGES_DIR, HINTS_DIR, WAL_DIR, hints_dir};
use super::tables::{DIR as TABLES_DIR, MANIFEST};
use crate::log::{LogItem, LogKind, Record, reason, walk_log};
use crate::state::State;
use crate::tree::inspect::{
    ManifestTable, claimed, event_of, inspect_manifest, open_table, table_number, table_path,
    walk_table,
};
use crate::wal::record::WalRecord;
use crate::{Change, Disk, DiskFile, Error, Event, Identity, KeyspaceId, identity};
use crate::{changes, packed};

/// What to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DumpKind {
    /// Whose directory it is.
    Identity,
    /// Named values and consumed hints.
    State,
    /// Which tables there are.
    Manifest,
    /// Events in tables, table by table.
    Tables,
    /// The write-ahead log.
    Wal,
    /// The change log.
    Changes,
    /// Hints, target by target.
    Hints,
}

/// Which records to show; the default is all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DumpFilter {
    /// Records of a log with this number or a higher one.
    pub from: Option<u64>,
    /// Records of a log with this number or a lower one.
    pub to: Option<u64>,
    /// Events of this keyspace, and no records that have no event.
    pub keyspace: Option<KeyspaceId>,
    /// Events whose keys begin so, and no records that have no event.
    pub key_prefix: Option<Bytes>,
    /// Events of this partition, and no records that have no event.
    pub partition: Option<u32>,
    /// Hints for this node.
    pub target: Option<NodeId>,
    /// This table.
    pub table: Option<u64>,
}

impl DumpFilter {
    fn has_number(&self, number: u64) -> bool {
        self.from.is_none_or(|from| from <= number) && self.to.is_none_or(|to| number <= to)
    }

    fn has_event(&self, event: &Event) -> bool {
        self.keyspace.is_none_or(|keyspace| keyspace == event.keyspace)
            && self.key_prefix.as_ref().is_none_or(|prefix| event.key.starts_with(prefix))
            && self.partition.is_none_or(|partition| partition == event.partition)
    }

    fn wants_events_alone(&self) -> bool {
        self.keyspace.is_some() || self.key_prefix.is_some() || self.partition.is_some()
    }
}

/// A table as the manifest names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DumpTable {
    /// Its number.
    pub number: u64,
    /// The sorted run that it is part of.
    pub run: u64,
    /// Length of its file, in bytes.
    pub bytes: u64,
    /// What its footer says; `None` if that cannot be read.
    pub bounds: Option<DumpBounds>,
}

/// What the footer of a table says of its events; bounds are inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DumpBounds {
    /// Least and greatest partition.
    pub partitions: (u32, u32),
    /// Least and greatest stamp.
    pub stamps: (Stamp, Stamp),
    /// How many.
    pub events: u64,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DumpRecord {
    /// Whose directory it is.
    Identity(Identity),
    /// The state file says what the write-ahead log said up to this record; changes below the other number were in the change log.
    State {
        /// Record of the write-ahead log.
        up_to: u64,
        /// Number of the next change then.
        changes: u64,
    },
    /// A named value, in the state file or (with its record's number) in the write-ahead log.
    Meta {
        /// Record of the write-ahead log.
        number: Option<u64>,
        /// Its name.
        name: String,
        /// Its value.
        value: Bytes,
    },
    /// What the state file knows of the hints for a node.
    HintMark {
        /// For whom.
        target: NodeId,
        /// It has them up to this.
        done: u64,
        /// The number that its next one gets.
        next: u64,
    },
    /// The manifest: events of log records up to `flushed` are in tables; tables from `next_table` on were never used.
    Manifest {
        /// Record of the write-ahead log.
        flushed: u64,
        /// Number of the next table.
        next_table: u64,
    },
    /// A partition that was dropped: its events of records up to `up_to` are gone, and so are those of changes before
    /// `changes`.
    Dropped {
        /// Which.
        partition: u32,
        /// Record of the write-ahead log.
        up_to: u64,
        /// Number of a change.
        changes: u64,
    },
    /// A table that the manifest names.
    Table(DumpTable),
    /// Events of a partition that was dropped, which are still in a table and are not read.
    Hidden {
        /// The table's number.
        table: u64,
        /// Which partition.
        partition: u32,
    },
    /// An event in a table.
    TableEvent {
        /// The table's number.
        table: u64,
        /// The event.
        event: Event,
    },
    /// An event in the write-ahead log, and the change that it was.
    WalEvent {
        /// The record's number.
        number: u64,
        /// The change.
        change: Change,
    },
    /// A hint in the write-ahead log.
    WalHint {
        /// The record's number.
        number: u64,
        /// For whom.
        target: NodeId,
        /// The hint's number.
        hint: u64,
        /// The event.
        event: Event,
    },
    /// A note in the write-ahead log that hints were consumed.
    HintsDone {
        /// The record's number.
        number: u64,
        /// By whom.
        target: NodeId,
        /// The last that it has.
        up_to: u64,
    },
    /// A change.
    Change(Change),
    /// A hint.
    Hint {
        /// For whom.
        target: NodeId,
        /// The hint's number.
        number: u64,
        /// The event.
        event: Event,
    },
    /// Bytes that are not what was written.
    Damaged {
        /// File name, relative to the data directory.
        file: String,
        /// Where they begin.
        offset: u64,
        /// What is wrong.
        what: String,
    },
}

type Sink<'a, E> = &'a mut dyn FnMut(DumpRecord) -> Result<(), E>;

/// Hands the records of `kind` that the filter lets through to `sink`, in the order in which they lie.
///
/// # Errors
/// [`Error::NewerFormat`] or a directory that cannot be listed, made into an `E`; or what `sink` answers, which ends the dump.
pub fn dump<D: Disk, E: From<Error>>(
    disk: &D,
    kind: DumpKind,
    filter: &DumpFilter,
    mut sink: impl FnMut(DumpRecord) -> Result<(), E>,
) -> Result<(), E> {
    let sink: Sink<'_, E> = &mut sink;
    match kind {
        DumpKind::Identity => match identity::read(disk) {
            Ok(Some(identity)) => sink(DumpRecord::Identity(identity)),
            Ok(None) => Ok(()),
            Err(error) => damaged("identity", error, sink),
        },
        DumpKind::State => dump_state(disk, sink),
        DumpKind::Manifest => dump_manifest(disk, sink),
        DumpKind::Tables => dump_tables(disk, filter, sink),
        DumpKind::Wal => dump_log(disk, WAL_DIR, LogKind::WriteAhead, filter, sink, wal_record),
        DumpKind::Changes => {
            dump_log(disk, CHANGES_DIR, LogKind::Changes, filter, sink, change_record)
        }
        DumpKind::Hints => dump_hints(disk, filter, sink),
    }
}

/// Damage is a record; anything else ends the dump.
fn damaged<E: From<Error>>(file: &str, error: Error, sink: Sink<'_, E>) -> Result<(), E> {
    let offset = match &error {
        Error::Corrupt { offset, .. } => *offset,
        Error::Io { .. } | Error::Missing { .. } => 0,
        _ => return Err(error.into()),
    };
    sink(DumpRecord::Damaged { file: file.to_owned(), offset, what: reason(&error) })
}

fn dump_state<D: Disk, E: From<Error>>(disk: &D, sink: Sink<'_, E>) -> Result<(), E> {
    let state = match State::read(disk) {
        Ok(state) => state,
        Err(error) => return damaged("state", error, sink),
    };
    sink(DumpRecord::State { up_to: state.up_to.0, changes: state.changes })?;
    for (name, value) in state.metas {
        sink(DumpRecord::Meta { number: None, name, value })?;
    }
    for (target, mark) in state.hints {
        sink(DumpRecord::HintMark { target, done: mark.done, next: mark.next })?;
    }
    Ok(())
}

fn dump_manifest<D: Disk, E: From<Error>>(disk: &D, sink: Sink<'_, E>) -> Result<(), E> {
    let state = match inspect_manifest(disk, TABLES_DIR) {
        Ok((state, ..)) => state,
        Err(error) => return damaged(MANIFEST, error, sink),
    };
    let (flushed, next_table) = (state.flushed.0, state.next_table);
    sink(DumpRecord::Manifest { flushed, next_table })?;
    for (&partition, dropped) in &state.dropped {
        let (up_to, changes) = (dropped.up_to.0, dropped.changes);
        sink(DumpRecord::Dropped { partition, up_to, changes })?;
    }
    for entry in state.tables.values() {
        let bounds = open_table(disk, TABLES_DIR, *entry).ok().map(|table| {
            let facts = claimed(&table);
            DumpBounds {
                partitions: (facts.partition_least, facts.partition_greatest),
                stamps: (facts.stamp_least, facts.stamp_greatest),
                events: facts.events,
            }
        });
        let (number, run, bytes) = (entry.number, entry.run, entry.size);
        sink(DumpRecord::Table(DumpTable { number, run, bytes, bounds }))?;
    }
    for (table, partition) in state.hidden {
        sink(DumpRecord::Hidden { table, partition })?;
    }
    Ok(())
}

fn dump_tables<D: Disk, E: From<Error>>(
    disk: &D,
    filter: &DumpFilter,
    sink: Sink<'_, E>,
) -> Result<(), E> {
    let names = disk.list(TABLES_DIR).map_err(Error::io("list", TABLES_DIR))?;
    let numbers = names.iter().filter_map(|name| table_number(name));
    for number in numbers.filter(|number| filter.table.is_none_or(|wanted| wanted == *number)) {
        let path = table_path(TABLES_DIR, number);
        let size = disk.open_read(&path).and_then(|file| file.len());
        let size = size.map_err(Error::io("open", &path))?;
        let entry = ManifestTable { number, run: number, size };
        // The sink's own error has to get out past the walk's.
        let mut stopped = None;
        let walked = open_table(disk, TABLES_DIR, entry).and_then(|table| {
            walk_table(&table, |key, stored| {
                let event = event_of(key, stored);
                let event = event.ok_or_else(|| Error::corrupt(&path, 0, "an internal key"))?;
                if filter.has_event(&event) {
                    let given = sink(DumpRecord::TableEvent { table: number, event });
                    if let Err(error) = given {
                        stopped = Some(error);
                        return Err(Error::Poisoned);
                    }
                }
                Ok(())
            })
        });
        match (walked, stopped) {
            (_, Some(error)) => return Err(error),
            (Ok(()), None) => {}
            (Err(error), None) => damaged(&path, error, sink)?,
        }
    }
    Ok(())
}

fn dump_hints<D: Disk, E: From<Error>>(
    disk: &D,
    filter: &DumpFilter,
    sink: Sink<'_, E>,
) -> Result<(), E> {
    let names = disk.list(HINTS_DIR).map_err(Error::io("list", HINTS_DIR))?;
    let targets = names.iter().filter_map(|name| name.parse().ok().map(NodeId));
    for target in targets.filter(|target| filter.target.is_none_or(|wanted| wanted == *target)) {
        dump_log(disk, &hints_dir(target), LogKind::Hints, filter, sink, |record| {
            let event = packed::event(&record.payload).ok()?;
            Some(DumpRecord::Hint { target, number: record.number, event })
        })?;
    }
    Ok(())
}

fn wal_record(record: &Record) -> Option<DumpRecord> {
    let number = record.number;
    Some(match WalRecord::decode(record).ok()? {
        WalRecord::Event { sequence, provenance, previous, event, .. } => {
            let change = Change { sequence, event, provenance, previous };
            DumpRecord::WalEvent { number, change }
        }
        WalRecord::Hint { target, sequence, event, .. } => {
            DumpRecord::WalHint { number, target, hint: sequence, event }
        }
        WalRecord::HintsDone { target, up_to } => DumpRecord::HintsDone { number, target, up_to },
        WalRecord::Meta { name, value } => DumpRecord::Meta { number: Some(number), name, value },
    })
}

fn change_record(record: &Record) -> Option<DumpRecord> {
    changes::decode(record).ok().map(DumpRecord::Change)
}

fn dump_log<D: Disk, E: From<Error>>(
    disk: &D,
    dir: &str,
    kind: LogKind,
    filter: &DumpFilter,
    sink: Sink<'_, E>,
    decode: impl Fn(&Record) -> Option<DumpRecord>,
) -> Result<(), E> {
    let mut stopped = None;
    let walked = walk_log(disk, dir, kind, |item| {
        let record = match item {
            LogItem::Record { record, .. } if !filter.has_number(record.number) => None,
            LogItem::Record { path, offset, record } => match decode(record) {
                Some(record) => lets_through(filter, &record).then_some(record),
                None => Some(bad(path, offset, "a record that is none".to_owned())),
            },
            LogItem::Damaged { path, offset, reason, .. } => Some(bad(path, offset, reason)),
            LogItem::Hole { path, from, to } => {
                Some(bad(path, 0, format!("records {from} to {} are not there", to - 1)))
            }
            LogItem::Segment { .. } | LogItem::Torn { .. } => None,
        };
        if let Some(record) = record
            && let Err(error) = sink(record)
        {
            stopped = Some(error);
            return Err(Error::Poisoned);
        }
        Ok(())
    });
    match (walked, stopped) {
        (_, Some(error)) => Err(error),
        (Err(error), None) => Err(error.into()),
        (Ok(_), None) => Ok(()),
    }
}

fn bad(file: &str, offset: u64, what: String) -> DumpRecord {
    DumpRecord::Damaged { file: file.to_owned(), offset, what }
}

fn lets_through(filter: &DumpFilter, record: &DumpRecord) -> bool {
    match record {
        DumpRecord::WalEvent { change, .. } | DumpRecord::Change(change) => {
            filter.has_event(&change.event)
        }
        DumpRecord::WalHint { event, .. } | DumpRecord::Hint { event, .. } => {
            filter.has_event(event)
        }
        _ => !filter.wants_events_alone(),
    }
}
