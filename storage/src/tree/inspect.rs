//! Reads the tree's files from end to end and changes nothing; and makes a tree anew from tables. For tools.
//!
//! Invariants:
//!
//! - [`check_table`] reads every block past the cache, and holds the table to what its footer, its index and its filter say.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use starling_clock::Stamp;

use super::internal_key;
use super::manifest::{State, TableEntry};
use super::run_writer::{RunWriter, TableNumbers, TableSpace};
use super::stored::{Stored, StoredRef};
use super::table::{self, BlockCache, Bounds, Table, TableCursor, key_hash};
use crate::{Action, Digest, Disk, DiskFile, Error, Event, EventId, KeyspaceId, TreeConfig};

pub(crate) use super::manifest::{
    State as ManifestState, TableEntry as ManifestTable, inspect as inspect_manifest,
    replace as replace_manifest,
};
pub(crate) use super::salvage::{count_kept, rewrite_kept};
pub(crate) use super::table::{number as table_number, path as table_path};

/// A key is sought for by the index this often; each key is asked of the filter.
const SEEK_INTERVAL: u64 = 64;
/// Tables are read past this: it only has to exist.
const CACHE_BYTES: u64 = 1 << 20;

/// What a table holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TableFacts {
    pub(crate) partition_least: u32,
    pub(crate) partition_greatest: u32,
    pub(crate) stamp_least: Stamp,
    pub(crate) stamp_greatest: Stamp,
    pub(crate) events: u64,
    /// How many of them are deletes.
    pub(crate) deletes: u64,
    /// Least and greatest internal key.
    pub(crate) least: Vec<u8>,
    pub(crate) greatest: Vec<u8>,
}

fn small_cache() -> Arc<BlockCache> {
    Arc::new(BlockCache::new(CACHE_BYTES, 4 << 10))
}

/// Opens a table of `size` bytes past every cache.
pub(crate) fn open_table<D: Disk>(
    disk: &D,
    dir: &str,
    entry: TableEntry,
) -> Result<Arc<Table<D::File>>, Error> {
    let place = (entry.number, entry.run, entry.size);
    Table::open(disk, dir, place, small_cache()).map(Arc::new)
}

/// What the footer of a table says; the rest may be damaged.
pub(crate) fn claimed<F: DiskFile>(table: &Table<F>) -> TableFacts {
    facts_of(table.bounds())
}

/// What a footer says.
pub(super) fn facts_of(bounds: &Bounds) -> TableFacts {
    TableFacts {
        partition_least: bounds.partition_least,
        partition_greatest: bounds.partition_greatest,
        stamp_least: bounds.stamp_least,
        stamp_greatest: bounds.stamp_greatest,
        events: bounds.events,
        deletes: bounds.deletes,
        least: Vec::new(),
        greatest: Vec::new(),
    }
}

/// Whether the table has the event with this internal key.
///
/// # Errors
/// [`Error::Corrupt`] or a failed read.
pub(crate) fn has_event<F: DiskFile>(table: &Arc<Table<F>>, key: &[u8]) -> Result<bool, Error> {
    let found = table.get(key, key_hash(internal_key::prefix_of(key)))?;
    Ok(found.is_some_and(|found| Some(found.stamp) == internal_key::stamp_of(key)))
}

/// Hands each event of a table to `visit`, in the order of internal keys.
///
/// # Errors
/// [`Error::Corrupt`] at the first damage, a failed read, or whatever `visit` answers.
pub(crate) fn walk_table<F: DiskFile>(
    table: &Arc<Table<F>>,
    mut visit: impl FnMut(&[u8], Stored) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut cursor = TableCursor::seek(Arc::clone(table), &[], false)?;
    while let Some(key) = cursor.key() {
        visit(key, cursor.stored()?)?;
        cursor.advance()?;
    }
    Ok(())
}

/// A walk over a table that can be put aside.
pub(crate) struct Walk<F> {
    table: Arc<Table<F>>,
    cursor: TableCursor<F>,
}

impl<F: DiskFile> Walk<F> {
    /// Begins at the first event.
    ///
    /// # Errors
    /// [`Error::Corrupt`] or a failed read.
    pub(crate) fn begin(table: Arc<Table<F>>) -> Result<Self, Error> {
        table.summaries()?;
        let cursor = TableCursor::seek(Arc::clone(&table), &[], false)?;
        Ok(Self { table, cursor })
    }

    /// How large the next event is, which is read; `None` at the end.
    ///
    /// # Errors
    /// [`Error::Corrupt`] or a failed read.
    pub(crate) fn next_size(&mut self) -> Result<Option<usize>, Error> {
        let Some(key) = self.cursor.key() else { return Ok(None) };
        if !self.table.may_contain(key, key_hash(internal_key::prefix_of(key)))? {
            return Err(Error::corrupt(self.table.path(), 0, "the filter misses a key"));
        }
        let size = key.len() + self.cursor.stored()?.payload.len();
        self.cursor.advance()?;
        Ok(Some(size))
    }
}

/// Reads all of a table and holds it to what it says of itself.
///
/// # Errors
/// [`Error::Corrupt`] at the first damage, or a failed read.
pub(crate) fn check_table<D: Disk>(
    disk: &D,
    dir: &str,
    entry: TableEntry,
) -> Result<TableFacts, Error> {
    let table = open_table(disk, dir, entry)?;
    let path = table::path(dir, entry.number);
    let damaged = |reason| Error::corrupt(&path, 0, reason);
    let mut seeker = TableCursor::seek(Arc::clone(&table), &[], false)?;
    let (mut events, mut deletes, mut keys) = (0_u64, 0_u64, 0_u64);
    let mut partitions: BTreeMap<u32, (Digest, u64, u64)> = BTreeMap::new();
    let (mut stamp_least, mut stamp_greatest) = (Stamp::MAX, Stamp::ZERO);
    let (mut least, mut last) = (Vec::new(), Vec::new());
    walk_table(&table, |key, stored| {
        let parts = internal_key::decode(key).ok_or_else(|| damaged("an internal key"))?;
        if events == 0 {
            least = key.to_vec();
        } else if key <= last.as_slice() {
            return Err(damaged("keys do not rise"));
        }
        let prefix = internal_key::prefix_of(key);
        if events == 0 || internal_key::prefix_of(&last) != prefix {
            keys += 1;
            partitions.entry(parts.partition).or_default().2 += 1;
            if !table.may_contain(key, key_hash(prefix))? {
                return Err(damaged("the filter misses a key"));
            }
        }
        if events.is_multiple_of(SEEK_INTERVAL) {
            seeker.reseek(key)?;
            if seeker.key() != Some(key) {
                return Err(damaged("the index misses a key"));
            }
        }
        let (keyspace, stamp) = (parts.keyspace, parts.stamp);
        let sum = partitions.entry(parts.partition).or_default();
        sum.0.add(EventId { keyspace, key: &parts.key, stamp }.hash());
        sum.1 += u64::from(stored.action == Action::Delete);
        stamp_least = stamp_least.min(parts.stamp);
        stamp_greatest = stamp_greatest.max(parts.stamp);
        events += 1;
        deletes += u64::from(stored.action == Action::Delete);
        last.clear();
        last.extend_from_slice(key);
        Ok(())
    })?;
    let told = table.summaries()?.into_iter();
    if !told.map(|(partition, it)| (partition, (it.digest, it.deletes, it.keys))).eq(partitions) {
        return Err(damaged("the counts of partitions"));
    }
    let bounds = table.bounds();
    let counts = (bounds.events, bounds.deletes, bounds.keys) == (events, deletes, keys);
    if events == 0 || !counts {
        return Err(damaged("the counts of the footer"));
    }
    let partitions = (internal_key::partition_of(&least), internal_key::partition_of(&last));
    let stamps = (bounds.stamp_least, bounds.stamp_greatest) == (stamp_least, stamp_greatest);
    if !stamps || partitions != (Some(bounds.partition_least), Some(bounds.partition_greatest)) {
        return Err(damaged("the bounds of the footer"));
    }
    Ok(TableFacts { least, greatest: last, ..claimed(&table) })
}

/// Writes `events` to new tables of a run of their own, durably, and adds those to `state`. They are not in the manifest yet.
///
/// # Errors
/// A failed write; what was written is an orphan then.
pub(crate) fn write_run<D: Disk>(
    disk: &Arc<D>,
    dir: &str,
    state: &mut State,
    events: &BTreeMap<Vec<u8>, Event>,
) -> Result<(), Error> {
    let space = Arc::new(table_space(disk, dir, state.next_table));
    let mut writer = RunWriter::new(Arc::clone(&space));
    for (key, event) in events {
        let (action, request) = (event.action, event.request);
        writer.add(key, StoredRef { action, request, payload: &event.payload })?;
    }
    let written = writer.finish()?;
    state.next_table = space.numbers.next();
    state.tables.extend(written.entries.into_iter().map(|entry| (entry.number, entry)));
    Ok(())
}

/// Where new tables go, and the number that the next one gets.
pub(super) fn table_space<D: Disk>(disk: &Arc<D>, dir: &str, next: u64) -> TableSpace<D> {
    TableSpace {
        disk: Arc::clone(disk),
        dir: dir.to_owned(),
        config: TreeConfig::default(),
        cache: small_cache(),
        numbers: TableNumbers::new(next),
    }
}

/// Where an event lies.
pub(crate) fn internal_key_of(event: &Event) -> Vec<u8> {
    internal_key::encode(event.partition, event.keyspace, &event.key, event.stamp)
}

/// Partition, keyspace and key of an internal key; `None` if it is none.
pub(crate) fn key_parts(internal: &[u8]) -> Option<(u32, KeyspaceId, Bytes)> {
    let parts = internal_key::decode(internal)?;
    Some((parts.partition, parts.keyspace, Bytes::from(parts.key.into_owned())))
}

/// The event of an entry; `None` if it is none.
pub(crate) fn event_of(key: &[u8], stored: Stored) -> Option<Event> {
    stored.into_event(key)
}

#[cfg(feature = "fuzzing")]
pub(crate) use super::table::FOOTER_SIZE as TABLE_FOOTER_SIZE;
#[cfg(feature = "fuzzing")]
pub(crate) use fuzzing::{decode_stored, internal_key_parts, manifest_of_edits};

#[cfg(feature = "fuzzing")]
mod fuzzing {
    use super::internal_key;
    use crate::tree::manifest;
    use crate::tree::stored::StoredRef;
    use crate::{Disk, DiskFile, KeyspaceId, SimDisk};
    use starling_clock::Stamp;

    /// Partition, keyspace, key and stamp; what is one encodes to the same bytes.
    pub(crate) fn internal_key_parts(bytes: &[u8]) -> Option<(u32, KeyspaceId, Vec<u8>, Stamp)> {
        let parts = internal_key::decode(bytes)?;
        let key = parts.key.to_vec();
        let again = internal_key::encode(parts.partition, parts.keyspace, &key, parts.stamp);
        assert_eq!(again[..], *bytes);
        Some((parts.partition, parts.keyspace, key, parts.stamp))
    }

    /// A stored value is the same in either form.
    pub(crate) fn decode_stored(data: &[u8]) {
        if let Some(stored) = StoredRef::decode(data) {
            for header in [&stored.header()[..], stored.short_header().as_bytes()] {
                let again = [header, stored.payload].concat();
                assert_eq!(StoredRef::decode(&again), Some(stored));
            }
        }
    }

    /// A manifest whose records have these payloads, read.
    pub(crate) fn manifest_of_edits(mut data: &[u8]) {
        let mut bytes = Vec::new();
        manifest::encode_header(&mut bytes);
        let mut sequence = 1_u64;
        while let Some((length, rest)) = data.split_first_chunk::<2>() {
            let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
            let start = bytes.len();
            bytes.extend_from_slice(&[0; 4]);
            bytes.extend_from_slice(&u32::try_from(length).expect("two bytes").to_le_bytes());
            bytes.extend_from_slice(&sequence.to_le_bytes());
            bytes.extend_from_slice(&rest[..length]);
            let crc = crc32c::crc32c(&bytes[start + 4..]);
            bytes[start..start + 4].copy_from_slice(&crc.to_le_bytes());
            sequence += 1;
            data = &rest[length..];
        }
        let disk = SimDisk::new(1);
        disk.create_dir("tables").expect("nothing fails");
        let file = disk.create("tables/MANIFEST").expect("nothing fails");
        file.write_at(&bytes, 0).expect("nothing fails");
        if let Ok((state, ..)) = manifest::inspect(&disk, "tables") {
            manifest::replace(&disk, "tables", &state).expect("nothing fails");
            let again = manifest::inspect(&disk, "tables").map(|(state, ..)| state);
            assert_eq!(again.ok(), Some(state), "what is known is kept");
        }
    }
}
