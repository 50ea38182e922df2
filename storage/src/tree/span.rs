//! Scans over several partitions, one after the other, as one page.
//!
//! Invariants:
//!
//! - A page is what scans of each partition by itself would give, put together, as far as the limits let.
//! - One cursor goes through all of them, and only forwards: a source that has nothing in a partition is not searched
//!   for it, and a partition that nobody has anything of costs nothing.

use std::ops::{ControlFlow, RangeInclusive};
use std::sync::Arc;

use super::cursor::{MergeCursor, Source};
use super::internal_key;
use super::page::PageBuilder;
use super::scan::Walk;
use super::table::TableCursor;
use super::view::{Limits, Page, TreeView};
use crate::disk::{Disk, DiskFile};
use crate::error::Error;
use crate::types::{Order, Scan};

impl<D: Disk> TreeView<D> {
    /// A page of `scan`, which is of the first of `partitions`, and of the same in the others; `after` is for the first alone.
    /// `more` of the page: not all of them were looked at to their end.
    ///
    /// # Panics
    /// If the scan goes backwards, is of another partition, or has a bound on its steps.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn scan_partitions(
        &self,
        scan: &Scan<'_>,
        partitions: RangeInclusive<u32>,
    ) -> Result<Page, Error> {
        assert!(scan.order == Order::Ascending && scan.steps_max == usize::MAX);
        assert_eq!(scan.partition, *partitions.start());
        match self.sources_of(&partitions) {
            Some(sources) => scan_as_one(scan, *partitions.end(), MergeCursor::new(sources)),
            None => self.scan_one_by_one(scan, partitions),
        }
    }

    /// What may have events of the partitions; `None` if some of them were dropped, which a cursor over all would not see.
    fn sources_of(&self, partitions: &RangeInclusive<u32>) -> Option<Vec<Source<'_, D::File>>> {
        let mut sources = Vec::new();
        for memtable in self.snapshot.memtables() {
            if memtable.hidden().any() {
                return None;
            }
            sources.push(Source::Memtable(memtable, memtable.none()));
        }
        for table in self.snapshot.version.tables() {
            if table.hidden().any() {
                return None;
            }
            let bounds = table.bounds();
            if bounds.partition_least <= *partitions.end()
                && *partitions.start() <= bounds.partition_greatest
            {
                sources.push(Source::Table(Box::new(TableCursor::new(Arc::clone(table), true))));
            }
        }
        Some(sources)
    }

    fn scan_one_by_one(
        &self,
        scan: &Scan<'_>,
        partitions: RangeInclusive<u32>,
    ) -> Result<Page, Error> {
        let limits = Limits { events: scan.limit, bytes: scan.bytes_max };
        let last = *partitions.end();
        let (mut page, mut bytes, mut after) = (Page::default(), 0, scan.after);
        for partition in partitions {
            let found = self.scan(&Scan {
                partition,
                after: after.take(),
                limit: scan.limit - page.events.len(),
                bytes_max: scan.bytes_max - bytes,
                ..*scan
            })?;
            bytes += found.events.iter().map(|it| it.key.len() + it.payload.len()).sum::<usize>();
            page.events.extend(found.events);
            let full = limits.reached(page.events.len(), bytes);
            if found.more || (full && partition < last) {
                page.more = true;
                break;
            }
        }
        Ok(page)
    }
}

fn scan_as_one<F: DiskFile>(
    scan: &Scan<'_>,
    last: u32,
    cursor: MergeCursor<'_, F>,
) -> Result<Page, Error> {
    let mut page = PageBuilder::default();
    let mut walk = Walk::new(scan, cursor, |event, payload| {
        page.push(event, payload);
        ControlFlow::Continue(())
    });
    let mut partition = scan.partition;
    walk.seek(&walk.first_of(partition, scan.after))?;
    loop {
        walk.ascend(&internal_key::keys_from(partition, scan.keyspace, scan.prefix))?;
        if walk.end.more || partition == last {
            break;
        }
        if walk.is_full() {
            walk.end.more = true;
            break;
        }
        // What follows may be of this partition still, in other keyspaces.
        let next = walk.partition().map(|next| next.max(partition + 1));
        let Some(next) = next.filter(|next| *next <= last) else { break };
        partition = next;
        walk.seek_onwards(&walk.first_of(partition, None))?;
    }
    let more = walk.end.more;
    Ok(Page { events: page.finish(), more })
}
