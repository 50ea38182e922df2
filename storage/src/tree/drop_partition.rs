//! Dropping a partition: what a replica does that is no longer home to it.
//!
//! Invariants:
//!
//! - It happens with one edit of the manifest: after a crash as a whole or not at all. It costs as much as there are tables
//!   with events of the partition, however many events those are.
//! - Tables that have nothing else go at once; in the others, and in memtables, the events are hidden until a merge
//!   or flush leaves them out.
//! - What a job writes that was begun before is of events of before: of the partition it is hidden as well.
//! - What comes of the partition afterwards is in other memtables and tables, and is read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Tree;
use super::manifest::{Dropped, Edit};
use super::table::Table;
use crate::disk::{Disk, DiskFile};
use crate::error::Error;
use crate::lsn::Lsn;

type Tables<F> = Vec<Arc<Table<F>>>;

impl<D: Disk> Tree<D> {
    /// Whether the active memtable has events of `partition`: it has to be rotated before the partition is dropped.
    pub(crate) fn is_active(&self, partition: u32) -> bool {
        0 < self.snapshot.active.digest(partition).events
    }

    /// The partitions that were dropped, and when each was the last time.
    pub(crate) fn dropped(&self) -> &BTreeMap<u32, Dropped> {
        &self.manifest.state().dropped
    }

    /// Drops all events of `partition`, and its tombstone floor. They are those of log records up to `dropped.up_to`.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Io`]: nothing was dropped. [`Error::WriteFailed`]: it was or not. [`Error::Poisoned`].
    ///
    /// # Panics
    /// If the active memtable has events of it.
    pub(crate) fn drop_partition(&mut self, partition: u32, dropped: Dropped) -> Result<(), Error> {
        assert!(!self.is_active(partition));
        self.guarded(|tree| {
            let (removed, hidden) = tree.tables_with(partition);
            let state = tree.manifest.state();
            let edit = Edit {
                flushed: state.flushed,
                next_table: tree.space.numbers.next(),
                dropped: BTreeMap::from([(partition, dropped)]),
                hidden: hidden.iter().map(|table| (table.number(), partition)).collect(),
                removed,
                ..Edit::default()
            };
            tree.manifest.append(&*tree.space.disk, &edit)?;
            for (memtable, _) in &tree.frozen {
                memtable.hidden().hide(partition, memtable.digest(partition).events);
            }
            for table in hidden {
                table.hide(partition);
            }
            tree.drops_count += 1;
            tree.drops.push((tree.drops_count, partition));
            tree.forget_drops();
            let version = tree.snapshot.version.edited(&edit.removed, Vec::new());
            tree.obsolete.extend(edit.removed);
            tree.looked = None;
            tree.publish(Arc::clone(&tree.snapshot.active), Arc::new(version));
            Ok(())
        })
    }

    /// The tables with events of `partition`: those that may go as a whole, and the others.
    fn tables_with(&self, partition: u32) -> (Vec<u64>, Tables<D::File>) {
        let (mut removed, mut hidden) = (Vec::new(), Vec::new());
        for table in self.snapshot.version.tables() {
            // One that can't be read may have some.
            if !table.spans(partition) || matches!(table.summary(partition), Ok(None)) {
                continue;
            }
            // A merge counts on its inputs to be there when it ends.
            if !self.merging.contains(&table.run()) && has_nothing_but(table, partition) {
                removed.push(table.number());
            } else {
                hidden.push(Arc::clone(table));
            }
        }
        (removed, hidden)
    }

    /// Adds to the edit what is to be hidden in new tables: partitions that were dropped since their job was begun.
    pub(super) fn hide_dropped(&self, drops: u64, tables: &[Arc<Table<D::File>>], edit: &mut Edit) {
        let since = self.drops.iter().filter(|(number, _)| drops < *number);
        let since: BTreeSet<u32> = since.map(|(_, partition)| *partition).collect();
        for partition in since {
            edit.floors.remove(&partition);
            for table in tables {
                // Nobody reads it yet. If the edit fails it is tried again.
                if !matches!(table.summary(partition), Ok(None)) || table.hidden().has(partition) {
                    edit.hidden.insert((table.number(), partition));
                    table.hide(partition);
                }
            }
        }
    }

    /// Without jobs out no drop has to be remembered.
    pub(super) fn forget_drops(&mut self) {
        if !self.flushing && self.merges == 0 {
            self.drops.clear();
        }
    }
}

/// Whether all other partitions in the table were dropped as well.
fn has_nothing_but<F: DiskFile>(table: &Table<F>, partition: u32) -> bool {
    let others = |number: u32| number != partition && !table.hidden().has(number);
    table.summaries().is_ok_and(|found| !found.iter().any(|(number, _)| others(*number)))
}

/// Whether the event of log record `lsn` went with its partition.
pub(crate) fn is_dropped(dropped: &BTreeMap<u32, Dropped>, partition: u32, lsn: Lsn) -> bool {
    dropped.get(&partition).is_some_and(|dropped| lsn <= dropped.up_to)
}
