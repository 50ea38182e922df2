//! What storage may use and keep. Settings are data; each tells its consequence.

use std::collections::BTreeMap;

use starling_clock::Stamp;

use crate::KeyspaceId;
use crate::event::PAYLOAD_SIZE_LIMIT;

/// The largest memtable, in bytes: half of what its arena has numbers for.
pub const MEMTABLE_BYTES_LIMIT: usize = 16 << 30;

/// Settings of one node's storage.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The largest payload that is taken, in bytes. Larger lets one write hold up others for longer.
    pub payload_size_max: usize,
    /// A memtable this large, in bytes, is frozen and flushed. Larger means fewer merges, more memory (up to
    /// twice this) and a longer recovery. At most [`MEMTABLE_BYTES_LIMIT`].
    pub memtable_bytes_max: usize,
    /// A segment of the write-ahead log this large, in bytes, is ended even if the memtable is not full.
    pub wal_segment_bytes_max: u64,
    /// A segment of the change log this large, in bytes, is ended. Retention removes whole segments.
    pub change_segment_bytes_max: u64,
    /// The change log keeps at most about this many bytes; consumers further behind meet a gap.
    pub change_bytes_max: u64,
    /// The change log keeps changes for at least about this long, in milliseconds, if there is room.
    pub change_age_ms_max: u64,
    /// Hints for one node hold at most this many bytes; a write that needs one more fails with `HintsFull`.
    pub hint_bytes_max: u64,
    /// A segment of hints this large, in bytes, is ended; consumed hints are removed by whole segments.
    pub hint_segment_bytes_max: u64,
    /// Changes and hints wait in memory for up to this many bytes before they are written to their own logs; if jobs do that, for
    /// up to four times as many before writers are slowed down, and sixteen times before they are refused. What of each log was
    /// written last stays in memory beside it, for those who follow.
    pub log_buffer_bytes_max: usize,
    /// Where checksums of new log segments start from. Drawn at random at each start by the node: a client that
    /// cannot guess it cannot make values that look like records of a log.
    pub log_salt: u32,
    /// The tables.
    pub tree: TreeConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            payload_size_max: 16 << 20,
            memtable_bytes_max: 64 << 20,
            wal_segment_bytes_max: 128 << 20,
            change_segment_bytes_max: 64 << 20,
            change_bytes_max: 4 << 30,
            change_age_ms_max: 7 * 24 * 60 * 60 * 1000,
            hint_bytes_max: 1 << 30,
            hint_segment_bytes_max: 16 << 20,
            log_buffer_bytes_max: 1 << 20,
            log_salt: 0,
            tree: TreeConfig::default(),
        }
    }
}

impl Config {
    /// # Panics
    /// If a setting makes no sense.
    pub(crate) fn check(&self) {
        assert!(self.payload_size_max <= PAYLOAD_SIZE_LIMIT);
        assert!(0 < self.memtable_bytes_max && self.memtable_bytes_max <= MEMTABLE_BYTES_LIMIT);
        assert!(0 < self.wal_segment_bytes_max);
        assert!(0 < self.change_segment_bytes_max);
        assert!(0 < self.hint_segment_bytes_max);
        assert!(0 < self.log_buffer_bytes_max);
    }
}

/// Settings of the tables.
#[derive(Clone, Debug, PartialEq)]
pub struct TreeConfig {
    /// A block of a table holds about this many bytes before compression. Smaller reads less for a point
    /// read, larger compresses better.
    pub block_bytes: usize,
    /// Bits of Bloom filter a key. 10 is about 1 % of needless table reads.
    pub bloom_bits_per_key: usize,
    /// Blocks kept in memory, in bytes.
    pub block_cache_bytes: u64,
    /// A merge takes at least this many tables of about one size. Smaller means less to read, more to write.
    pub merge_width_min: usize,
    /// A merge takes at most this many tables.
    pub merge_width_max: usize,
    /// A merge starts a new table once one is this large, in bytes.
    pub table_bytes_max: u64,
    /// One step of background work handles about this many bytes; smaller lets commits in sooner.
    pub work_bytes: usize,
}

impl Default for TreeConfig {
    fn default() -> Self {
        Self {
            block_bytes: 4 << 10,
            bloom_bits_per_key: 10,
            block_cache_bytes: 64 << 20,
            merge_width_min: 4,
            merge_width_max: 8,
            table_bytes_max: 1 << 30,
            work_bytes: 1 << 20,
        }
    }
}

/// How much history of its keys a keyspace keeps. The newest version is always kept. The default keeps all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HistoryRetention {
    /// At most this many versions of a key.
    pub versions_max: Option<u32>,
    /// A version that was replaced this long ago, in milliseconds, may go.
    pub age_ms_max: Option<u64>,
}

/// What merges may drop. Told by the node after each start; until then everything is kept. What is not above a floor is
/// not taken any more.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Retentions {
    keyspaces: BTreeMap<KeyspaceId, HistoryRetention>,
    tombstone_floors: BTreeMap<u32, Stamp>,
    /// Counts changes.
    revision: u64,
}

impl Retentions {
    /// What `keyspace` keeps.
    pub fn history(&self, keyspace: KeyspaceId) -> HistoryRetention {
        self.keyspaces.get(&keyspace).copied().unwrap_or_default()
    }

    /// Tombstones of `partition` below this may be dropped; [`Stamp::ZERO`] if none may.
    pub fn tombstone_floor(&self, partition: u32) -> Stamp {
        self.tombstone_floors.get(&partition).copied().unwrap_or(Stamp::ZERO)
    }

    /// Whether tombstones of any partition may be dropped.
    pub(crate) fn has_tombstone_floors(&self) -> bool {
        !self.tombstone_floors.is_empty()
    }

    /// The least of the floors of the partitions `first..=last` that have one.
    pub(crate) fn least_tombstone_floor(&self, first: u32, last: u32) -> Option<Stamp> {
        self.tombstone_floors.range(first..=last).map(|(_, floor)| *floor).min()
    }

    /// Whether any keyspace keeps less than all history.
    pub(crate) fn has_limits(&self) -> bool {
        self.keyspaces.values().any(|retention| *retention != HistoryRetention::default())
    }

    /// The longest time that any keyspace which limits it keeps a version that was replaced.
    pub(crate) fn greatest_age_ms_max(&self) -> Option<u64> {
        self.keyspaces.values().filter_map(|retention| retention.age_ms_max).max()
    }

    /// Another number after each change.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// Sets what `keyspace` keeps.
    pub fn set_history(&mut self, keyspace: KeyspaceId, retention: HistoryRetention) {
        self.revision += 1;
        self.keyspaces.insert(keyspace, retention);
    }

    /// Sets below which stamp tombstones of `partition` may be dropped. It never goes back.
    pub fn set_tombstone_floor(&mut self, partition: u32, floor: Stamp) {
        self.revision += 1;
        let known = self.tombstone_floors.entry(partition).or_insert(Stamp::ZERO);
        *known = floor.max(*known);
    }

    /// The partition is dropped: what comes of it again begins without a floor.
    pub(crate) fn forget_tombstone_floor(&mut self, partition: u32) {
        self.revision += 1;
        self.tombstone_floors.remove(&partition);
    }
}
