//! The tree's part of [`super::verify`]: the manifest and the tables.

use std::collections::BTreeMap;

use super::Report;
use super::examine::{Facts, OnFile, UnsoundTable};
use crate::log::reason;
use crate::tree::inspect::{
    ManifestTable, TableFacts, check_table, claimed, inspect_manifest, open_table, table_number,
    table_path,
};
use crate::{Disk, DiskFile, Error};

pub(super) const DIR: &str = "tables";
pub(super) const MANIFEST: &str = "tables/MANIFEST";

pub(super) fn examine<D: Disk>(
    disk: &D,
    report: &mut Report,
    facts: &mut Facts,
    progress: OnFile<'_>,
) -> Result<(), Error> {
    let names = match disk.list(DIR).map_err(Error::io("list", DIR)) {
        Ok(names) => names,
        Err(Error::Missing { .. }) => Vec::new(),
        Err(error) => return Err(error),
    };
    progress(MANIFEST, report.bytes);
    read_manifest(disk, &names, report, facts)?;
    hold_to_log(report, facts);
    let mut numbers: BTreeMap<u64, Option<ManifestTable>> =
        names.iter().filter_map(|name| table_number(name)).map(|number| (number, None)).collect();
    let there: Vec<u64> = numbers.keys().copied().collect();
    if let Some(manifest) = &facts.manifest {
        numbers.extend(manifest.tables.values().map(|entry| (entry.number, Some(*entry))));
    }
    facts.table_greatest = there.last().copied().unwrap_or(0);
    // If one is gone the manifest lacks an edit, maybe: what that named is not to be overlooked.
    let complete = facts.manifest.is_some()
        && numbers.keys().all(|number| there.binary_search(number).is_ok());
    facts.tables_seen = !numbers.is_empty() || names.iter().any(|name| name == "MANIFEST");
    for (number, named) in numbers {
        let path = table_path(DIR, number);
        progress(&path, report.bytes);
        // Numbers come from the directory, which is in the order of numbers.
        let there = there.binary_search(&number).is_ok();
        if named.is_none() && facts.manifest.is_some() {
            report.note(&path, "the manifest does not name it: removed at the next start");
        }
        if named.is_some() || !complete {
            examine_table(disk, &path, (number, named, there), report, facts)?;
        } else {
            report.read(size_of(disk, &path));
        }
    }
    overlaps(report, facts);
    Ok(())
}

fn read_manifest<D: Disk>(
    disk: &D,
    names: &[String],
    report: &mut Report,
    facts: &mut Facts,
) -> Result<(), Error> {
    if names.iter().any(|name| name == "MANIFEST.new") {
        report.note("tables/MANIFEST.new", "left by a rewrite that was cut short; not used");
    }
    match inspect_manifest(disk, DIR) {
        Ok((state, end, length)) => {
            report.read(length);
            if end < length {
                let what = format!(
                    "{} bytes at the end are torn: cut off at the next start",
                    length - end
                );
                report.note(MANIFEST, what);
            }
            report.flushed = state.flushed.0;
            facts.manifest = Some(state);
        }
        Err(error @ Error::NewerFormat { .. }) => return Err(error),
        // A directory in which nothing was flushed yet may have none.
        Err(Error::Missing { .. })
            if facts.wal.extent.is_none_or(|wal| wal.first == 1)
                && !names.iter().any(|name| table_number(name).is_some()) => {}
        Err(error) => {
            let offset = if let Error::Corrupt { offset, .. } = &error { *offset } else { 0 };
            report.damaged(MANIFEST, offset, reason(&error), "the node does not start");
        }
    }
    Ok(())
}

fn size_of<D: Disk>(disk: &D, path: &str) -> u64 {
    disk.open_read(path).and_then(|file| file.len()).unwrap_or(0)
}

/// The write-ahead log begins no later than the tables end: else the manifest is an old one, and not to be gone by.
fn hold_to_log(report: &mut Report, facts: &mut Facts) {
    let flushed = facts.manifest.as_ref().map_or(0, |manifest| manifest.flushed.0);
    let Some(wal) = facts.wal.extent else { return };
    if facts.manifest.is_some() && flushed.saturating_add(1) < wal.first {
        let what = format!("it knows of records up to {flushed}, the log begins at {}", wal.first);
        report.damaged(MANIFEST, 0, what, "events of the records between may be lost");
        facts.manifest = None;
    }
}

fn examine_table<D: Disk>(
    disk: &D,
    path: &str,
    (number, named, there): (u64, Option<ManifestTable>, bool),
    report: &mut Report,
    facts: &mut Facts,
) -> Result<(), Error> {
    let size = if there { size_of(disk, path) } else { 0 };
    report.read(size);
    let entry = named.unwrap_or(ManifestTable { number, run: number, size });
    match check_table(disk, DIR, entry) {
        Ok(found) => {
            report.tables += 1;
            report.table_events += found.events;
            report.table_stamp_greatest = report.table_stamp_greatest.max(found.stamp_greatest);
            facts.sound.insert(number, (entry, found));
        }
        Err(error @ Error::NewerFormat { .. }) => return Err(error),
        Err(error) => {
            let offset = if let Error::Corrupt { offset, .. } = &error { *offset } else { 0 };
            let claimed = open_table(disk, DIR, entry).ok().map(|table| claimed(&table));
            if named.is_some() || facts.manifest.is_none() {
                report.damaged(path, offset, reason(&error), consequence(claimed.as_ref()));
            }
            facts.unsound.insert(number, UnsoundTable { named, there, claimed });
        }
    }
    Ok(())
}

fn consequence(claimed: Option<&TableFacts>) -> String {
    match claimed {
        None => "the node does not start".to_owned(),
        Some(facts) => format!(
            "reads that come to it fail, in partitions {} to {}: other replicas serve them; it is left out of merges",
            facts.partition_least, facts.partition_greatest
        ),
    }
}

/// The tables of a run hold ranges of keys that do not overlap.
fn overlaps(report: &mut Report, facts: &Facts) {
    let mut runs: BTreeMap<u64, Vec<(&TableFacts, u64)>> = BTreeMap::new();
    for (number, (entry, found)) in &facts.sound {
        runs.entry(entry.run).or_default().push((found, *number));
    }
    for tables in runs.values_mut() {
        tables.sort_by(|left, right| left.0.least.cmp(&right.0.least));
        for pair in tables.windows(2) {
            if pair[1].0.least <= pair[0].0.greatest {
                let what = format!("overlaps table {:x} of its run", pair[0].1);
                report.damaged(&table_path(DIR, pair[1].1), 0, what, "reads may miss events");
            }
        }
    }
}
