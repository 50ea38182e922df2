//! [`Version`]: the tables that there are at one moment. Immutable: a flush or a merge makes a new one.
//!
//! Invariants:
//!
//! - Tables stand in the order of their greatest stamp, greatest first: a point read stops at the first table
//!   whose greatest stamp is not above the version found.
//! - A table's file lives as long as a version that has it: readers of an old version are never disturbed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::table::Table;
use crate::disk::DiskFile;

/// A list of open tables.
pub(crate) struct Version<F> {
    tables: Vec<Arc<Table<F>>>,
    runs_len: usize,
}

impl<F: DiskFile> Version<F> {
    pub(crate) fn new(mut tables: Vec<Arc<Table<F>>>) -> Self {
        tables.sort_by_key(|table| (Reverse(table.bounds().stamp_greatest), table.number()));
        let runs: BTreeSet<u64> = tables.iter().map(|table| table.run()).collect();
        Self { runs_len: runs.len(), tables }
    }

    /// Greatest stamp first.
    pub(crate) fn tables(&self) -> &[Arc<Table<F>>] {
        &self.tables
    }

    /// How many runs the tables make up.
    pub(crate) fn runs_len(&self) -> usize {
        self.runs_len
    }

    /// This version less the tables of these numbers, with some more.
    pub(crate) fn edited(&self, removed: &[u64], added: Vec<Arc<Table<F>>>) -> Self {
        let kept = self.tables.iter().filter(|table| !removed.contains(&table.number()));
        Self::new(kept.cloned().chain(added).collect())
    }

    /// Bytes by run.
    pub(crate) fn runs(&self) -> BTreeMap<u64, u64> {
        let mut runs = BTreeMap::new();
        for table in &self.tables {
            *runs.entry(table.run()).or_insert(0) += table.size();
        }
        runs
    }
}
