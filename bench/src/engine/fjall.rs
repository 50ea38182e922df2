//! The peer `fjall`: a log-structured merge tree in Rust.

use std::path::Path;

use fjall::config::{BloomConstructionPolicy, CompressionPolicy, FilterPolicy, FilterPolicyEntry};
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::api::{Change, Durability, Engine, EngineError, Range, Reader, Settings, Visit};
use super::measure::pause;

const NAME: &str = "fjall";

struct Fjall {
    database: Database,
    keyspace: Keyspace,
}

fn failed(error: impl std::fmt::Display) -> EngineError {
    EngineError::new(NAME, error)
}

/// Opens or makes what is in `dir`.
pub(super) fn open(dir: &Path, settings: Settings) -> Result<Box<dyn Engine>, EngineError> {
    let log_bytes = (settings.memtable_bytes as u64 * 8).max(64 << 20);
    let database = Database::builder(dir)
        .cache_size(settings.cache_bytes as u64)
        .max_journaling_size(log_bytes)
        .open()
        .map_err(failed)?;
    #[expect(clippy::cast_precision_loss, reason = "a handful of bits")]
    let bloom = BloomConstructionPolicy::BitsPerKey(settings.bloom_bits_per_key as f32);
    let options = || {
        KeyspaceCreateOptions::default()
            .max_memtable_size(settings.memtable_bytes as u64)
            .filter_policy(FilterPolicy::all(FilterPolicyEntry::Bloom(bloom)))
            .data_block_compression_policy(CompressionPolicy::all(CompressionType::Lz4))
    };
    let keyspace = database.keyspace("bench", options).map_err(failed)?;
    Ok(Box::new(Fjall { database, keyspace }))
}

impl Fjall {
    fn wait(&self) {
        // What ends may begin the next: quiet is nothing going on for a while.
        let mut quiet = 0;
        let mut completed = 0;
        while quiet < 10 {
            let now = self.database.compactions_completed();
            let busy = self.database.active_compactions() > 0
                || self.database.outstanding_flushes() > 0
                || now != completed;
            completed = now;
            quiet = if busy { 0 } else { quiet + 1 };
            pause();
        }
    }
}

impl Engine for Fjall {
    fn write(&self, changes: &[Change<'_>], durability: Durability) -> Result<(), EngineError> {
        let done = match changes {
            [Change::Put(key, value)] => self.keyspace.insert(*key, *value),
            [Change::Delete(key)] => self.keyspace.remove(*key),
            _ => {
                let mut batch = self.database.batch();
                for change in changes {
                    match *change {
                        Change::Put(key, value) => batch.insert(&self.keyspace, key, value),
                        Change::Delete(key) => batch.remove(&self.keyspace, key),
                    }
                }
                batch.commit()
            }
        };
        done.map_err(failed)?;
        match durability {
            Durability::Process => Ok(()),
            Durability::Disk => self.database.persist(PersistMode::SyncData).map_err(failed),
        }
    }

    fn reader(&self) -> Box<dyn Reader + '_> {
        Box::new(FjallReader { keyspace: &self.keyspace })
    }

    fn settle(&self) -> Result<(), EngineError> {
        self.keyspace.rotate_memtable_and_wait().map_err(failed)?;
        self.wait();
        Ok(())
    }

    fn compact(&self) -> Result<(), EngineError> {
        self.settle()?;
        self.keyspace.major_compact().map_err(failed)?;
        self.wait();
        Ok(())
    }
}

struct FjallReader<'a> {
    keyspace: &'a Keyspace,
}

impl Reader for FjallReader<'_> {
    fn get(&mut self, key: &[u8]) -> Result<Option<usize>, EngineError> {
        Ok(self.keyspace.get(key).map_err(failed)?.map(|value| value.len()))
    }

    fn scan(
        &mut self,
        range: Range<'_>,
        limit: usize,
        visit: Visit<'_>,
    ) -> Result<(), EngineError> {
        let rows = match range {
            Range::All => self.keyspace.iter(),
            Range::From(key) => self.keyspace.range(key..),
            Range::Prefix(prefix) => self.keyspace.prefix(prefix),
        };
        for row in rows.take(limit) {
            let (key, value) = row.into_inner().map_err(failed)?;
            visit(&key, &value);
        }
        Ok(())
    }
}
