//! [`Version`]: the tables that there are at one moment. Immutable: a flush or a merge makes a new one.
//!
//! Invariants:
//!
//! - Tables stand in the order of their greatest stamp, greatest first: a point read stops at the first table
//!   whose greatest stamp is not above the version found.
//! - A table's file lives as long as a version that has it: readers of an old version are never disturbed.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::pick::Run;
use super::table::Table;
use crate::disk::DiskFile;

/// A list of open tables.
pub(crate) struct Version<F> {
    tables: Vec<Arc<Table<F>>>,
    runs: Vec<Run>,
}

impl<F: DiskFile> Version<F> {
    pub(crate) fn new(mut tables: Vec<Arc<Table<F>>>) -> Self {
        tables.sort_by_key(|table| (Reverse(table.bounds().stamp_greatest), table.number()));
        Self { runs: runs(&tables), tables }
    }

    /// Greatest stamp first.
    pub(crate) fn tables(&self) -> &[Arc<Table<F>>] {
        &self.tables
    }

    /// This version less the tables of these numbers, with some more.
    pub(crate) fn edited(&self, removed: &[u64], added: Vec<Arc<Table<F>>>) -> Self {
        let kept = self.tables.iter().filter(|table| !removed.contains(&table.number()));
        Self::new(kept.cloned().chain(added).collect())
    }

    /// The runs that the tables make up, by number.
    pub(crate) fn runs(&self) -> &[Run] {
        &self.runs
    }
}

fn runs<F: DiskFile>(tables: &[Arc<Table<F>>]) -> Vec<Run> {
    let mut runs: BTreeMap<u64, Run> = BTreeMap::new();
    for table in tables {
        let bounds = table.bounds();
        let run = runs.entry(table.run()).or_insert(Run {
            number: table.run(),
            bytes: 0,
            events: 0,
            keys: 0,
            deletes: 0,
            hidden: 0,
            stamp_greatest: bounds.stamp_greatest,
            partitions: (bounds.partition_least, bounds.partition_greatest),
        });
        run.bytes += table.size();
        run.events += bounds.events;
        run.keys += bounds.keys;
        run.deletes += bounds.deletes;
        run.hidden += table.hidden().events();
        run.stamp_greatest = run.stamp_greatest.max(bounds.stamp_greatest);
        run.partitions.0 = run.partitions.0.min(bounds.partition_least);
        run.partitions.1 = run.partitions.1.max(bounds.partition_greatest);
    }
    runs.into_values().collect()
}
