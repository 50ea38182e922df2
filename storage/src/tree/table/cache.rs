//! The block cache: decoded blocks of all tables, sections' indexes and filters too, bounded in bytes.
//!
//! Invariants:
//!
//! - A block is cached only after its checksum was found good.
//! - Table numbers are never reused, so a cached block is never that of another table.
//! - The hasher has no random seed: the same reads give the same evictions.

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};

use super::buffers::Buffers;
use super::entries::Entries;
use super::section::Section;

/// Locks that the cache is divided among.
const SHARDS: usize = 8;
/// What a cached block costs beside its bytes: what owns the buffer, what is known of the entries, the place in the cache.
const BLOCK_OVERHEAD: u64 = 208;

/// Where a block is from: table and offset.
type BlockKey = (u64, u64);

/// What is cached.
#[derive(Clone)]
pub(crate) enum CachedBlock {
    Entries(Entries),
    Section(Arc<Section>),
}

impl CachedBlock {
    fn size(&self, buffers: &Buffers) -> usize {
        match self {
            Self::Entries(entries) => buffers.rounded(entries.size()),
            Self::Section(section) => section.size(),
        }
    }
}

/// Decoded blocks.
pub(crate) struct BlockCache {
    cache: Cache<BlockKey, CachedBlock, BlockWeighter, BuildHasherDefault<BlockHasher>>,
    buffers: Arc<Buffers>,
}

impl BlockCache {
    /// A cache of at most `bytes`, for blocks of about `block_bytes`.
    pub(crate) fn new(bytes: u64, block_bytes: usize) -> Self {
        let blocks = usize::try_from(bytes / (block_bytes.max(1) as u64)).unwrap_or(usize::MAX);
        let options = OptionsBuilder::new()
            .shards(SHARDS)
            .estimated_items_capacity(blocks.clamp(1, 1 << 24))
            .weight_capacity(bytes)
            .build()
            .expect("capacity and item count are set");
        let hasher = BuildHasherDefault::default();
        let lifecycle = DefaultLifecycle::default();
        let buffers = Arc::new(Buffers::new(block_bytes));
        let weighter = BlockWeighter { buffers: Arc::clone(&buffers) };
        Self { cache: Cache::with_options(options, weighter, hasher, lifecycle), buffers }
    }

    /// What blocks are read into.
    pub(crate) fn buffers(&self) -> &Arc<Buffers> {
        &self.buffers
    }

    pub(crate) fn get(&self, table: u64, offset: u64) -> Option<CachedBlock> {
        self.cache.get(&(table, offset))
    }

    pub(crate) fn insert(&self, table: u64, offset: u64, block: CachedBlock) {
        self.cache.insert((table, offset), block);
    }

    /// Bytes held now.
    pub(crate) fn bytes(&self) -> u64 {
        self.cache.weight()
    }
}

#[derive(Clone)]
struct BlockWeighter {
    buffers: Arc<Buffers>,
}

impl Weighter<BlockKey, CachedBlock> for BlockWeighter {
    fn weight(&self, _key: &BlockKey, block: &CachedBlock) -> u64 {
        block.size(&self.buffers) as u64 + BLOCK_OVERHEAD
    }
}

/// Multiply and fold: enough for two small numbers.
#[derive(Default)]
struct BlockHasher(u64);

impl Hasher for BlockHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        let mixed = (self.0.rotate_left(5) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::tree::table::entries::{EntriesBlock, EntriesBuilder};

    fn block(size: usize) -> CachedBlock {
        let mut builder = EntriesBuilder::new(1);
        builder.add(b"key", &[&vec![0; size]]);
        let entries = EntriesBlock::open(Bytes::copy_from_slice(builder.finish()));
        CachedBlock::Entries(entries.expect("just built"))
    }

    #[test]
    fn memory_stays_within_the_bound() {
        let cache = BlockCache::new(1 << 20, 8 << 10);
        for offset in 0..10_000 {
            cache.insert(1, offset, block(8 << 10));
            assert!(cache.bytes() <= 1 << 20);
        }
        assert!(1 << 19 < cache.bytes(), "it is used, too");
    }

    #[test]
    fn a_block_is_found_by_table_and_offset() {
        let cache = BlockCache::new(1 << 20, 8 << 10);
        cache.insert(1, 0, block(10));
        assert!(cache.get(1, 0).is_some());
        assert!(cache.get(1, 1).is_none());
        assert!(cache.get(2, 0).is_none());
    }

    #[test]
    fn a_block_counts_with_the_buffer_that_it_is_in() {
        let cache = BlockCache::new(1 << 20, 4 << 10);
        cache.insert(1, 0, block(3700));
        assert_eq!(cache.bytes(), (4 << 10) + BLOCK_OVERHEAD);
    }

    #[test]
    fn no_room_means_no_cache() {
        let cache = BlockCache::new(0, 8 << 10);
        cache.insert(1, 0, block(10));
        assert_eq!(cache.bytes(), 0);
    }
}
