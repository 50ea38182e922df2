//! The tables' part of a repair: what is good of damaged ones is kept, and the manifest says what there is then.
//!
//! Invariants:
//!
//! - A table of which anything can be read loses only its damaged blocks; those are told by the keys that they lie between.
//! - A damaged file keeps its name until a manifest names what was saved of it.

use super::{KeyPlace, Plan, Step};
use crate::offline::examine::UnsoundTable;
use crate::offline::tables::{DIR as TABLES_DIR, MANIFEST};
use crate::tree::inspect::{ManifestState, ManifestTable, count_kept, key_parts, table_path};
use crate::{Disk, DiskFile, Error, Lsn};

impl Plan {
    /// Gives up damaged tables, or what is damaged of them; tells whether the manifest has to be written anew.
    pub(super) fn plan_tables<D: Disk>(&mut self, disk: &D) -> Result<bool, Error> {
        let begins_late = self.facts.wal.extent.is_some_and(|wal| 1 < wal.first);
        let manifest_lost =
            self.facts.manifest.is_none() && (self.facts.tables_seen || begins_late);
        for (number, table) in self.facts.unsound.clone() {
            // What the manifest does not name was never finished, or has been merged into another.
            let wanted = table.named.is_some() || self.facts.manifest.is_none();
            if wanted && table.there && self.plan_salvage(disk, number, &table)? {
                continue;
            }
            let path = table_path(TABLES_DIR, number);
            if table.there {
                self.quarantine(&path);
            }
            if !wanted {
                continue;
            }
            let what = match table.named {
                Some(_) => "the events of a table",
                None => "the events of a table, if it was ever finished",
            };
            self.lose(what, &path, |loss| {
                if let Some(claimed) = table.claimed {
                    loss.partitions = Some((claimed.partition_least, claimed.partition_greatest));
                    loss.stamps = Some((claimed.stamp_least, claimed.stamp_greatest));
                    loss.events = Some(claimed.events);
                    loss.deletes = Some(claimed.deletes);
                }
            });
        }
        if manifest_lost {
            self.quarantine(MANIFEST);
        }
        if manifest_lost && self.facts.sound.is_empty() {
            self.lose("the events of tables that are not there", MANIFEST, |_| {});
        }
        Ok(manifest_lost || self.tables_lost())
    }

    /// Whether something of the table can be saved: tells what is not.
    fn plan_salvage<D: Disk>(
        &mut self,
        disk: &D,
        number: u64,
        table: &UnsoundTable,
    ) -> Result<bool, Error> {
        let path = table_path(TABLES_DIR, number);
        let entry = if let Some(entry) = table.named {
            entry
        } else {
            let size = disk.open_read(&path).and_then(|file| file.len());
            let size = size.map_err(Error::io("open", &path))?;
            ManifestTable { number, run: number, size }
        };
        let kept = count_kept(disk, TABLES_DIR, entry)?;
        if kept.events == 0 {
            return Ok(false);
        }
        let claimed = kept.claimed.as_ref();
        let lost = claimed.map(|claimed| claimed.events.saturating_sub(kept.events));
        let deletes = claimed.map(|claimed| claimed.deletes.saturating_sub(kept.deletes));
        for range in &kept.lost {
            let what =
                format!("the events of damaged blocks of a table, from offset {} on", range.offset);
            self.lose(&what, &path, |loss| {
                let (after, before) =
                    (place_of(range.after.as_ref()), place_of(range.before.as_ref()));
                let least = after.as_ref().map(|place| place.partition);
                let greatest = before.as_ref().map(|place| place.partition);
                let least = least.or(claimed.map(|claimed| claimed.partition_least));
                let greatest = greatest.or(claimed.map(|claimed| claimed.partition_greatest));
                loss.partitions = least.zip(greatest);
                loss.stamps = claimed.map(|claimed| (claimed.stamp_least, claimed.stamp_greatest));
                (loss.events, loss.deletes) = (lost, deletes);
                loss.between = Some((after, before));
            });
        }
        self.repair.steps.push(Step::SalvageTable { file: path, events: kept.events });
        self.salvaged.push(entry);
        Ok(true)
    }

    pub(super) fn plan_manifest(&mut self, flushed: u64) {
        let mut manifest = self.facts.manifest.clone().unwrap_or_default();
        let sound = self.facts.sound.values().map(|(entry, _)| (entry.number, *entry));
        manifest.tables = sound.collect();
        let ManifestState { tables, hidden, .. } = &mut manifest;
        hidden.retain(|(table, _)| tables.contains_key(table));
        manifest.flushed = Lsn(flushed);
        // A repair that was cut short may have left tables that nobody names.
        let unused = self.facts.table_greatest.saturating_add(1);
        manifest.next_table = manifest.next_table.max(unused);
        self.repair.steps.push(Step::RebuildManifest { tables: manifest.tables.len() as u64 });
        self.manifest = Some(manifest);
    }
}

/// Where the key of an internal key is.
fn place_of(internal: Option<&Vec<u8>>) -> Option<KeyPlace> {
    let (partition, keyspace, key) = key_parts(internal?)?;
    Some(KeyPlace { partition, keyspace, key })
}
