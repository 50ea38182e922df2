//! The peer `redb`: a copy-on-write B+tree in Rust. Each batch is a transaction; it has neither memtable nor filters nor
//! compression.

use std::path::Path;

use redb::{Database, ReadableDatabase as _, TableDefinition};

use super::api::{Change, Durability, Engine, EngineError, Range, Reader, Settings, Visit};

const NAME: &str = "redb";
const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("bench");

struct Redb {
    database: Database,
}

fn failed(error: impl std::fmt::Display) -> EngineError {
    EngineError::new(NAME, error)
}

/// Opens or makes what is in `dir`.
pub(super) fn open(dir: &Path, settings: Settings) -> Result<Box<dyn Engine>, EngineError> {
    let database = redb::Builder::new()
        .set_cache_size(settings.cache_bytes)
        .create(dir.join("data.redb"))
        .map_err(failed)?;
    let engine = Redb { database };
    engine.write(&[], Durability::Process)?;
    Ok(Box::new(engine))
}

impl Engine for Redb {
    fn write(&self, changes: &[Change<'_>], durability: Durability) -> Result<(), EngineError> {
        let mut transaction = self.database.begin_write().map_err(failed)?;
        let durability = match durability {
            Durability::Process => redb::Durability::None,
            Durability::Disk => redb::Durability::Immediate,
        };
        transaction.set_durability(durability).map_err(failed)?;
        {
            let mut table = transaction.open_table(TABLE).map_err(failed)?;
            for change in changes {
                match *change {
                    Change::Put(key, value) => drop(table.insert(key, value).map_err(failed)?),
                    Change::Delete(key) => drop(table.remove(key).map_err(failed)?),
                }
            }
        }
        transaction.commit().map_err(failed)
    }

    fn reader(&self) -> Box<dyn Reader + '_> {
        Box::new(RedbReader { database: &self.database })
    }

    fn settle(&self) -> Result<(), EngineError> {
        self.write(&[], Durability::Disk)
    }

    fn compact(&self) -> Result<(), EngineError> {
        // It merges nothing; its file shrinks only while nobody else uses it.
        self.settle()
    }
}

struct RedbReader<'a> {
    database: &'a Database,
}

impl Reader for RedbReader<'_> {
    fn get(&mut self, key: &[u8]) -> Result<Option<usize>, EngineError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let table = transaction.open_table(TABLE).map_err(failed)?;
        Ok(table.get(key).map_err(failed)?.map(|value| value.value().len()))
    }

    fn scan(
        &mut self,
        range: Range<'_>,
        limit: usize,
        visit: Visit<'_>,
    ) -> Result<(), EngineError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let table = transaction.open_table(TABLE).map_err(failed)?;
        let (from, prefix): (&[u8], &[u8]) = match range {
            Range::All => (&[], &[]),
            Range::From(key) => (key, &[]),
            Range::Prefix(prefix) => (prefix, prefix),
        };
        for row in table.range(from..).map_err(failed)?.take(limit) {
            let (key, value) = row.map_err(failed)?;
            if !key.value().starts_with(prefix) {
                break;
            }
            visit(key.value(), value.value());
        }
        Ok(())
    }
}
