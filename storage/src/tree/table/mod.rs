//! Tables: immutable sorted files of events. See `FORMAT.md`, "Table".
//!
//! Invariants:
//!
//! - A table never changes after it was synced and named by the manifest; its number is never reused.
//! - Every byte of it is covered by the checksum of a block or of the footer.

mod block;
mod bloom;
mod builder;
mod cache;
mod entries;
mod footer;
mod reader;
#[cfg(test)]
mod tests;

pub(crate) use bloom::key_hash;
pub(crate) use builder::TableBuilder;
pub(crate) use cache::BlockCache;
pub(crate) use footer::Bounds;
pub(crate) use reader::{Table, TableCursor};

/// The path of table `number` in `dir`.
pub(crate) fn path(dir: &str, number: u64) -> String {
    format!("{dir}/{number:016x}{SUFFIX}")
}

/// The number of the table that a file of this name is; `None` if it is no table.
pub(crate) fn number(name: &str) -> Option<u64> {
    let number = u64::from_str_radix(name.strip_suffix(SUFFIX)?, 16).ok()?;
    (format!("{number:016x}{SUFFIX}") == name).then_some(number)
}

const SUFFIX: &str = ".table";
