//! The manifest: which tables there are, how far the write-ahead log is in them, and below what tombstones went. See `FORMAT.md`, "Manifest".
//!
//! Invariants:
//!
//! - An edit is one record: after a crash it has happened as a whole or not at all.
//! - An edit counts once [`Manifest::append`] returned: it is synced by then. Tables that it names were synced
//!   before, tables that it drops are removed after.
//! - The floor under which a merge let a tombstone go is in the edit that makes the merge count.
//! - A partition is dropped by one edit, which names the tables that have events of it at that moment.
//! - A record that was cut short by a crash is the last one and is cut off. Anything else that does not parse is damage.
//! - Rewriting makes a new file and renames it: at every instant one whole manifest has the name.
//!
//! A flipped bit in the very last record cannot be told from a torn write. It is noticed all the same: the edit's
//! inputs are gone ([`Error::Missing`]), or the write-ahead log begins after what is flushed, which its owner checks.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use starling_clock::Stamp;

use crate::disk::{Disk, DiskFile};
use crate::error::Error;
use crate::lsn::Lsn;
use crate::tree::sync_failed;

/// Bytes before the first record.
pub(crate) const HEADER_SIZE: usize = 16;
/// The first bytes of a manifest.
pub(crate) const MAGIC: [u8; 8] = *b"STARLMAN";
/// The format version written, and the only one read.
pub(crate) const VERSION: u32 = 1;
/// Bytes of a record before its edit.
pub(crate) const RECORD_HEADER_SIZE: usize = 16;
/// A longer manifest is damaged: it is rewritten long before.
const FILE_SIZE_MAX: u64 = 1 << 28;
/// A manifest this long is rewritten, if that makes it much shorter.
const REWRITE_SIZE: u64 = 64 << 10;

const NAME: &str = "MANIFEST";
const NEW_NAME: &str = "MANIFEST.new";

/// Field name, offset, size of a record's fixed part: the same table as `FORMAT.md`, for the test that compares them.
#[cfg(test)]
pub(crate) const RECORD_LAYOUT: [(&str, usize, usize); 8] = [
    ("crc", 0, 4),
    ("length", 4, 4),
    ("sequence", 8, 8),
    ("flushed", 16, 8),
    ("next table", 24, 8),
    ("removed", 32, 4),
    ("added", 36, 4),
    ("floors", 40, 4),
];

/// A table as the manifest knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TableEntry {
    pub(crate) number: u64,
    /// The tables of one run hold ranges of keys that don't overlap; a merge takes whole runs.
    pub(crate) run: u64,
    /// Length of the file, in bytes.
    pub(crate) size: u64,
}

/// When a partition was dropped the last time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dropped {
    /// The events of log records up to this are gone.
    pub(crate) up_to: Lsn,
    /// So are those of changes before this.
    pub(crate) changes: u64,
}

/// A change of the set of tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Edit {
    /// Every event of records up to this is in tables.
    pub(crate) flushed: Lsn,
    /// Numbers from this on were never used.
    pub(crate) next_table: u64,
    pub(crate) removed: Vec<u64>,
    pub(crate) added: Vec<TableEntry>,
    /// Tombstones below these went with this edit, by partition.
    pub(crate) floors: BTreeMap<u32, Stamp>,
    /// Partitions that are dropped; their floors go with them.
    pub(crate) dropped: BTreeMap<u32, Dropped>,
    /// Tables, and partitions in them that were dropped.
    pub(crate) hidden: BTreeSet<(u64, u32)>,
}

/// What the edits add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) flushed: Lsn,
    pub(crate) next_table: u64,
    pub(crate) tables: BTreeMap<u64, TableEntry>,
    /// By partition: a tombstone that was below may be gone, so that nothing at or below may come in again.
    pub(crate) floors: BTreeMap<u32, Stamp>,
    /// By partition: when it was dropped the last time.
    pub(crate) dropped: BTreeMap<u32, Dropped>,
    /// Tables, and partitions in them whose events are gone.
    pub(crate) hidden: BTreeSet<(u64, u32)>,
}

impl State {
    /// `None` if the edit does not fit: it removes what is not there, adds what is, or goes back.
    fn apply(&mut self, edit: &Edit) -> Option<()> {
        if edit.flushed < self.flushed || edit.next_table < self.next_table {
            return None;
        }
        for number in &edit.removed {
            self.tables.remove(number)?;
            self.hidden.retain(|(table, _)| table != number);
        }
        for entry in &edit.added {
            let fresh = entry.number < edit.next_table
                && self.tables.insert(entry.number, *entry).is_none();
            fresh.then_some(())?;
        }
        for (partition, floor) in &edit.floors {
            let known = self.floors.entry(*partition).or_insert(*floor);
            *known = (*known).max(*floor);
        }
        for (partition, dropped) in &edit.dropped {
            self.floors.remove(partition);
            self.dropped.insert(*partition, *dropped);
        }
        for hidden in &edit.hidden {
            self.tables.contains_key(&hidden.0).then_some(())?;
            self.hidden.insert(*hidden);
        }
        self.flushed = edit.flushed;
        self.next_table = edit.next_table;
        Some(())
    }

    /// The write-ahead log had records up to this.
    pub(crate) fn log_end(&self) -> Lsn {
        let dropped = self.dropped.values().map(|dropped| dropped.up_to);
        dropped.fold(self.flushed, Lsn::max)
    }

    fn snapshot(&self) -> Edit {
        Edit {
            flushed: self.flushed,
            next_table: self.next_table,
            removed: Vec::new(),
            added: self.tables.values().copied().collect(),
            floors: self.floors.clone(),
            dropped: self.dropped.clone(),
            hidden: self.hidden.clone(),
        }
    }
}

impl Edit {
    /// Appends the edit as record `sequence`.
    pub(crate) fn encode(&self, sequence: u64, out: &mut Vec<u8>) {
        let count = |items: usize| u32::try_from(items).expect("fewer tables than 2^32");
        let start = out.len();
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&sequence.to_le_bytes());
        out.extend_from_slice(&self.flushed.0.to_le_bytes());
        out.extend_from_slice(&self.next_table.to_le_bytes());
        out.extend_from_slice(&count(self.removed.len()).to_le_bytes());
        out.extend_from_slice(&count(self.added.len()).to_le_bytes());
        out.extend_from_slice(&count(self.floors.len()).to_le_bytes());
        for number in &self.removed {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for entry in &self.added {
            out.extend_from_slice(&entry.number.to_le_bytes());
            out.extend_from_slice(&entry.run.to_le_bytes());
            out.extend_from_slice(&entry.size.to_le_bytes());
        }
        for (partition, floor) in &self.floors {
            out.extend_from_slice(&partition.to_le_bytes());
            out.extend_from_slice(&floor.to_bytes());
        }
        if !self.dropped.is_empty() || !self.hidden.is_empty() {
            self.encode_dropped(out);
        }
        let length = count(out.len() - start - RECORD_HEADER_SIZE);
        out[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
        let crc = crc32c::crc32c(&out[start + 4..]);
        out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    }

    fn encode_dropped(&self, out: &mut Vec<u8>) {
        let count = |items: usize| u32::try_from(items).expect("fewer than 2^32");
        out.extend_from_slice(&count(self.dropped.len()).to_le_bytes());
        out.extend_from_slice(&count(self.hidden.len()).to_le_bytes());
        for (partition, Dropped { up_to, changes }) in &self.dropped {
            out.extend_from_slice(&partition.to_le_bytes());
            out.extend_from_slice(&up_to.0.to_le_bytes());
            out.extend_from_slice(&changes.to_le_bytes());
        }
        for (table, partition) in &self.hidden {
            out.extend_from_slice(&table.to_le_bytes());
            out.extend_from_slice(&partition.to_le_bytes());
        }
    }

    fn decode_dropped(&mut self, mut payload: &[u8]) -> Option<()> {
        let dropped = take_u32(&mut payload)? as usize;
        let hidden = take_u32(&mut payload)? as usize;
        let wanted = dropped.checked_mul(20)?.checked_add(hidden.checked_mul(12)?)?;
        if payload.len() != wanted {
            return None;
        }
        for _ in 0..dropped {
            let partition = take_u32(&mut payload)?;
            let up_to = Lsn(take_u64(&mut payload)?);
            self.dropped.insert(partition, Dropped { up_to, changes: take_u64(&mut payload)? });
        }
        for _ in 0..hidden {
            let table = take_u64(&mut payload)?;
            self.hidden.insert((table, take_u32(&mut payload)?));
        }
        let some = 0 < dropped || 0 < hidden;
        (some && self.dropped.len() == dropped && self.hidden.len() == hidden).then_some(())
    }

    /// The edit in the payload of a record whose checksum is good; `None` if it is none.
    fn decode(mut payload: &[u8]) -> Option<Self> {
        let flushed = Lsn(take_u64(&mut payload)?);
        let next_table = take_u64(&mut payload)?;
        let removed = take_u32(&mut payload)? as usize;
        let added = take_u32(&mut payload)? as usize;
        let floors = take_u32(&mut payload)? as usize;
        let sizes = [removed.checked_mul(8)?, added.checked_mul(24)?, floors.checked_mul(20)?];
        let wanted = sizes.into_iter().try_fold(0_usize, usize::checked_add)?;
        if payload.len() < wanted {
            return None;
        }
        let mut edit = Self { flushed, next_table, ..Self::default() };
        for _ in 0..removed {
            edit.removed.push(take_u64(&mut payload)?);
        }
        for _ in 0..added {
            let number = take_u64(&mut payload)?;
            let run = take_u64(&mut payload)?;
            edit.added.push(TableEntry { number, run, size: take_u64(&mut payload)? });
        }
        for _ in 0..floors {
            let partition = take_u32(&mut payload)?;
            let (floor, rest) = payload.split_first_chunk()?;
            payload = rest;
            edit.floors.insert(partition, Stamp::from_bytes(*floor)?);
        }
        if !payload.is_empty() {
            edit.decode_dropped(payload)?;
        }
        (edit.floors.len() == floors).then_some(edit)
    }
}

/// An open manifest.
pub(crate) struct Manifest<D: Disk> {
    dir: String,
    path: String,
    file: D::File,
    state: State,
    /// Sequence of the record to be written next, and where.
    sequence: u64,
    end: u64,
    /// A sync failed, or a write whose outcome is unknown: nothing can be made durable any more.
    poisoned: bool,
}

impl<D: Disk> Manifest<D> {
    /// Opens the manifest in `dir`, or makes it in a directory without tables.
    ///
    /// # Errors
    /// [`Error::Missing`] if there are tables and no manifest, [`Error::Corrupt`], [`Error::NewerFormat`], [`Error::Io`].
    pub(crate) fn open(disk: &D, dir: &str) -> Result<Self, Error> {
        let path = format!("{dir}/{NAME}");
        if disk.exists(&path).map_err(Error::io("find", &path))? {
            return Self::recover(disk, dir, path);
        }
        let names = disk.list(dir).map_err(Error::io("list", dir))?;
        if names.iter().any(|name| super::table::number(name).is_some()) {
            return Err(Error::Missing { file: path });
        }
        let state = State { next_table: 1, ..State::default() };
        let (file, end) = write_new(disk, dir, &path, &state)?;
        Ok(Self { dir: dir.to_owned(), path, file, state, sequence: 2, end, poisoned: false })
    }

    fn recover(disk: &D, dir: &str, path: String) -> Result<Self, Error> {
        let (file, bytes) = read_file(disk.open(&path), &path)?;
        let (state, sequence, end) = replay(&bytes, &path)?;
        if end < bytes.len() {
            file.truncate(end as u64).map_err(Error::io("truncate", &path))?;
        }
        // An earlier process may have written its last record and not synced it. Files will be removed by it.
        file.sync().map_err(sync_failed(&path))?;
        let dir = dir.to_owned();
        Ok(Self { dir, path, file, state, sequence, end: end as u64, poisoned: false })
    }

    /// What is there now.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Makes an edit durable.
    ///
    /// # Errors
    /// [`Error::WriteFailed`]: the outcome is unknown, and every later edit gets [`Error::Poisoned`]. With any other
    /// error the edit has not happened and should be tried again: a crash may still bring it about, so that what it
    /// adds and removes must stay on disk until then.
    ///
    /// # Panics
    /// If the edit does not fit the state.
    pub(crate) fn append(&mut self, disk: &D, edit: &Edit) -> Result<(), Error> {
        if self.poisoned {
            return Err(Error::Poisoned);
        }
        let mut state = self.state.clone();
        state.apply(edit).expect("an edit of what is there");
        let result = if self.is_long() { self.rewrite(disk, &state) } else { self.write(edit) };
        self.poisoned = matches!(result, Err(Error::WriteFailed { .. }));
        result?;
        self.state = state;
        Ok(())
    }

    fn write(&mut self, edit: &Edit) -> Result<(), Error> {
        let mut bytes = Vec::new();
        edit.encode(self.sequence, &mut bytes);
        self.file.write_at(&bytes, self.end).map_err(write_failed(&self.path))?;
        self.file.sync().map_err(sync_failed(&self.path))?;
        self.sequence += 1;
        self.end += bytes.len() as u64;
        Ok(())
    }

    fn rewrite(&mut self, disk: &D, state: &State) -> Result<(), Error> {
        let (file, end) = write_new(disk, &self.dir, &self.path, state)?;
        self.file = file;
        self.sequence = 2;
        self.end = end;
        Ok(())
    }

    fn is_long(&self) -> bool {
        let entries = 24 * self.state.tables.len()
            + 20 * (self.state.floors.len() + self.state.dropped.len())
            + 12 * self.state.hidden.len();
        let snapshot = HEADER_SIZE + RECORD_HEADER_SIZE + 28 + entries;
        REWRITE_SIZE.max(4 * snapshot as u64) < self.end
    }
}

/// Reads all of the opened file; its header is good.
fn read_file<F: DiskFile>(opened: io::Result<F>, path: &str) -> Result<(F, Vec<u8>), Error> {
    let file = opened.map_err(Error::io("open", path))?;
    let size = file.len().map_err(Error::io("measure", path))?;
    if FILE_SIZE_MAX < size {
        return Err(Error::corrupt(path, FILE_SIZE_MAX, "the manifest is too long"));
    }
    let mut bytes = vec![0; usize::try_from(size).expect("bounded by FILE_SIZE_MAX")];
    let read = file.read_full_at(&mut bytes, 0).map_err(Error::io("read", path))?;
    bytes.truncate(read);
    check_header(&bytes, path)?;
    Ok((file, bytes))
}

/// What the manifest says, with nothing changed; where its good part ends, and where the file does.
///
/// # Errors
/// As [`Manifest::open`].
pub(crate) fn inspect<D: Disk>(disk: &D, dir: &str) -> Result<(State, u64, u64), Error> {
    let path = format!("{dir}/{NAME}");
    let (_, bytes) = read_file(disk.open_read(&path), &path)?;
    let (state, _, end) = replay(&bytes, &path)?;
    Ok((state, end as u64, bytes.len() as u64))
}

/// Makes a manifest that says `state` and nothing of what was, durably.
///
/// # Errors
/// [`Error::Full`], [`Error::Io`]: it is as it was. [`Error::WriteFailed`]: it is either.
pub(crate) fn replace<D: Disk>(disk: &D, dir: &str, state: &State) -> Result<(), Error> {
    write_new(disk, dir, &format!("{dir}/{NAME}"), state).map(drop)
}

/// Whether a file of this name in the directory is what a rewrite left behind when it was cut short.
pub(crate) fn is_leftover(name: &str) -> bool {
    name == NEW_NAME
}

/// Writes `state` to a new file and gives it the name `path`.
fn write_new<D: Disk>(
    disk: &D,
    dir: &str,
    path: &str,
    state: &State,
) -> Result<(D::File, u64), Error> {
    let mut bytes = Vec::new();
    encode_header(&mut bytes);
    state.snapshot().encode(1, &mut bytes);
    let new_path = format!("{dir}/{NEW_NAME}");
    if disk.exists(&new_path).map_err(Error::io("find", &new_path))? {
        disk.remove(&new_path).map_err(Error::io("remove", &new_path))?;
    }
    let file = disk.create(&new_path).map_err(Error::io("create", &new_path))?;
    file.write_at(&bytes, 0).map_err(write_failed(&new_path))?;
    file.sync().map_err(sync_failed(&new_path))?;
    disk.rename(&new_path, path).map_err(write_failed(path))?;
    disk.sync_dir(dir).map_err(sync_failed(dir))?;
    Ok((file, bytes.len() as u64))
}

pub(crate) fn encode_header(out: &mut Vec<u8>) {
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&crc32c::crc32c(&out[out.len() - 12..]).to_le_bytes());
}

fn check_header(bytes: &[u8], path: &str) -> Result<(), Error> {
    let damaged = || Error::corrupt(path, 0, "the manifest's header");
    let header = bytes.first_chunk::<HEADER_SIZE>().ok_or_else(damaged)?;
    let mut fields = &header[8..];
    let version = take_u32(&mut fields).ok_or_else(damaged)?;
    let crc = take_u32(&mut fields).ok_or_else(damaged)?;
    if header[..8] != MAGIC || crc != crc32c::crc32c(&header[..12]) {
        return Err(damaged());
    }
    if version != VERSION {
        let file = path.to_owned();
        return Err(Error::NewerFormat { file, found: version, supported: VERSION });
    }
    Ok(())
}

/// Applies the records in order. Gives the state, the sequence of the next record, and where it goes.
fn replay(bytes: &[u8], path: &str) -> Result<(State, u64, usize), Error> {
    let mut state = State::default();
    let (mut sequence, mut at) = (1, HEADER_SIZE);
    while at < bytes.len() {
        let Some((found, payload)) = record(&bytes[at..]).filter(|record| record.0 == sequence)
        else {
            // The first record was there before the file had its name: it cannot be torn.
            if sequence == 1 || has_record_after(&bytes[at..], sequence) {
                return Err(Error::corrupt(path, at as u64, "a manifest record"));
            }
            return Ok((state, sequence, at));
        };
        let applied = Edit::decode(payload).and_then(|edit| state.apply(&edit));
        applied.ok_or_else(|| Error::corrupt(path, at as u64, "a manifest edit"))?;
        at += RECORD_HEADER_SIZE + payload.len();
        sequence = found + 1;
    }
    if sequence == 1 {
        return Err(Error::corrupt(path, at as u64, "a manifest without records"));
    }
    Ok((state, sequence, at))
}

/// Sequence and payload of the record that `bytes` begins with.
fn record(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut header = bytes;
    let crc = take_u32(&mut header)?;
    let length = take_u32(&mut header)? as usize;
    let sequence = take_u64(&mut header)?;
    let payload = header.get(..length)?;
    (crc32c::crc32c(&bytes[4..RECORD_HEADER_SIZE + length]) == crc).then_some((sequence, payload))
}

/// Whether a whole record with a sequence after `sequence` lies in `bytes`: then what is before it was not torn by
/// a crash, since records are synced one by one.
fn has_record_after(bytes: &[u8], sequence: u64) -> bool {
    (1..bytes.len()).any(|at| {
        let mut field = bytes.get(at + 8..).unwrap_or_default();
        let plausible = take_u64(&mut field)
            .is_some_and(|found| sequence < found && found - sequence < 1 << 20);
        plausible && record(&bytes[at..]).is_some()
    })
}

/// A write whose outcome matters: no room is told apart, since then it may be repeated.
fn write_failed(file: &str) -> impl FnOnce(io::Error) -> Error {
    move |source| match source.kind() {
        io::ErrorKind::StorageFull => Error::Full { file: file.to_owned() },
        _ => Error::WriteFailed { operation: "write", file: file.to_owned(), source },
    }
}

fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    let (number, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u32::from_le_bytes(*number))
}

fn take_u64(bytes: &mut &[u8]) -> Option<u64> {
    let (number, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u64::from_le_bytes(*number))
}
