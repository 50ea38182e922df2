//! The peer RocksDB: the one that the crate `librocksdb-sys` bundles, or the system's, if `ROCKSDB_LIB_DIR` says where that is.
//! Nothing is called here that releases since 7.8 do not have.

use std::path::Path;

use rocksdb::{
    BlockBasedOptions, BottommostLevelCompaction, Cache, CompactOptions, DB, DBCompressionType,
    Options, ReadOptions, WriteBatch, WriteOptions, properties,
};

use super::api::{Change, Durability, Engine, EngineError, Range, Reader, Settings, Visit};
use super::measure::pause;

const NAME: &str = "rocksdb";

struct RocksDb {
    db: DB,
}

fn failed(error: impl std::fmt::Display) -> EngineError {
    EngineError::new(NAME, error)
}

/// Opens or makes what is in `dir`.
pub(super) fn open(dir: &Path, settings: Settings) -> Result<Box<dyn Engine>, EngineError> {
    let mut tables = BlockBasedOptions::default();
    tables.set_block_cache(&Cache::new_lru_cache(settings.cache_bytes));
    #[expect(clippy::cast_precision_loss, reason = "a handful of bits")]
    tables.set_bloom_filter(settings.bloom_bits_per_key as f64, false);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_write_buffer_size(settings.memtable_bytes);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_block_based_table_factory(&tables);
    let db = DB::open(&options, dir).map_err(failed)?;
    Ok(Box::new(RocksDb { db }))
}

impl RocksDb {
    /// Until nothing is going on in the background.
    fn wait(&self) -> Result<(), EngineError> {
        let count = |name| {
            let value = self.db.property_int_value(name).map_err(failed)?;
            value.ok_or_else(|| failed("a property of compactions is missing"))
        };
        while 0 < count(properties::COMPACTION_PENDING)?
            + count(properties::NUM_RUNNING_COMPACTIONS)?
            + count(properties::NUM_RUNNING_FLUSHES)?
        {
            pause();
        }
        Ok(())
    }
}

impl Engine for RocksDb {
    fn write(&self, changes: &[Change<'_>], durability: Durability) -> Result<(), EngineError> {
        let mut options = WriteOptions::default();
        options.set_sync(durability == Durability::Disk);
        let done = match changes {
            [Change::Put(key, value)] => self.db.put_opt(key, value, &options),
            [Change::Delete(key)] => self.db.delete_opt(key, &options),
            _ => {
                let mut batch = WriteBatch::default();
                for change in changes {
                    match change {
                        Change::Put(key, value) => batch.put(key, value),
                        Change::Delete(key) => batch.delete(key),
                    }
                }
                self.db.write_opt(batch, &options)
            }
        };
        done.map_err(failed)
    }

    fn reader(&self) -> Box<dyn Reader + '_> {
        Box::new(RocksDbReader { db: &self.db })
    }

    fn settle(&self) -> Result<(), EngineError> {
        self.db.flush().map_err(failed)?;
        self.wait()
    }

    fn compact(&self) -> Result<(), EngineError> {
        self.settle()?;
        let mut options = CompactOptions::default();
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        self.db.compact_range_opt(None::<&[u8]>, None::<&[u8]>, &options);
        self.settle()
    }
}

struct RocksDbReader<'a> {
    db: &'a DB,
}

impl Reader for RocksDbReader<'_> {
    fn get(&mut self, key: &[u8]) -> Result<Option<usize>, EngineError> {
        Ok(self.db.get_pinned(key).map_err(failed)?.map(|value| value.len()))
    }

    fn scan(
        &mut self,
        range: Range<'_>,
        limit: usize,
        visit: Visit<'_>,
    ) -> Result<(), EngineError> {
        let mut options = ReadOptions::default();
        let from = match range {
            Range::All => [].as_slice(),
            Range::From(key) => key,
            Range::Prefix(prefix) => {
                options.set_iterate_range(rocksdb::PrefixRange(prefix));
                prefix
            }
        };
        let mut rows = self.db.raw_iterator_opt(options);
        rows.seek(from);
        for _ in 0..limit {
            let Some((key, value)) = rows.item() else { break };
            visit(key, value);
            rows.next();
        }
        rows.status().map_err(failed)
    }
}
