//! The peer `sled`: a log-structured Bw-tree in Rust. It has neither memtable nor filters; without the feature it does not compress.

use std::path::Path;

use sled::{Batch, Db};

use super::api::{Change, Durability, Engine, EngineError, Range, Reader, Settings, Visit};
use super::measure::pause;

const NAME: &str = "sled";

struct Sled {
    db: Db,
}

fn failed(error: impl std::fmt::Display) -> EngineError {
    EngineError::new(NAME, error)
}

/// Opens or makes what is in `dir`.
pub(super) fn open(dir: &Path, settings: Settings) -> Result<Box<dyn Engine>, EngineError> {
    let config = sled::Config::new().path(dir).cache_capacity(settings.cache_bytes as u64);
    Ok(Box::new(Sled { db: config.open().map_err(failed)? }))
}

impl Engine for Sled {
    fn write(&self, changes: &[Change<'_>], durability: Durability) -> Result<(), EngineError> {
        match changes {
            [Change::Put(key, value)] => drop(self.db.insert(key, *value).map_err(failed)?),
            [Change::Delete(key)] => drop(self.db.remove(key).map_err(failed)?),
            _ => {
                let mut batch = Batch::default();
                for change in changes {
                    match *change {
                        Change::Put(key, value) => batch.insert(key, value),
                        Change::Delete(key) => batch.remove(key),
                    }
                }
                self.db.apply_batch(batch).map_err(failed)?;
            }
        }
        match durability {
            Durability::Process => Ok(()),
            Durability::Disk => self.db.flush().map(drop).map_err(failed),
        }
    }

    fn reader(&self) -> Box<dyn Reader + '_> {
        Box::new(SledReader { db: &self.db })
    }

    fn settle(&self) -> Result<(), EngineError> {
        while 0 < self.db.flush().map_err(failed)? {
            pause();
        }
        Ok(())
    }

    fn compact(&self) -> Result<(), EngineError> {
        self.settle()
    }
}

struct SledReader<'a> {
    db: &'a Db,
}

impl Reader for SledReader<'_> {
    fn get(&mut self, key: &[u8]) -> Result<Option<usize>, EngineError> {
        Ok(self.db.get(key).map_err(failed)?.map(|value| value.len()))
    }

    fn scan(
        &mut self,
        range: Range<'_>,
        limit: usize,
        visit: Visit<'_>,
    ) -> Result<(), EngineError> {
        let rows = match range {
            Range::All => self.db.iter(),
            Range::From(key) => self.db.range(key..),
            Range::Prefix(prefix) => self.db.scan_prefix(prefix),
        };
        for row in rows.take(limit) {
            let (key, value) = row.map_err(failed)?;
            visit(&key, &value);
        }
        Ok(())
    }
}
