//! Tables: immutable sorted files of events. See `FORMAT.md`, "Table".
//!
//! Invariants:
//!
//! - A table never changes after it was synced and named by the manifest; its number is never reused.
//! - Every byte of it is covered by the checksum of a block or of the footer.

mod block;
mod bloom;
mod buffers;
mod builder;
mod cache;
mod cursor;
mod entries;
mod footer;
mod index;
mod partitions;
mod readahead;
mod reader;
mod salvage;
mod section;
mod slot;
#[cfg(test)]
pub(super) mod tests;

pub(crate) use bloom::key_hash;
pub(crate) use builder::TableBuilder;
pub(crate) use cache::BlockCache;
pub(crate) use cursor::TableCursor;
pub(crate) use footer::Bounds;
#[cfg(feature = "fuzzing")]
pub(crate) use footer::FOOTER_SIZE;
pub(crate) use reader::{FoundEvent, Table};
pub(crate) use salvage::{Salvaged, salvage};

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

/// What the test of `FORMAT.md` compares with it.
#[cfg(test)]
pub(crate) mod formats {
    pub(crate) use super::block::LAYOUT as BLOCK_LAYOUT;
    pub(crate) use super::footer::LAYOUT as FOOTER_LAYOUT;
    pub(crate) use super::partitions::LAYOUT as PARTITIONS_LAYOUT;

    pub(crate) fn example_entries() -> Vec<u8> {
        let mut builder = super::entries::EntriesBuilder::new(super::entries::RESTART_INTERVAL);
        builder.add(b"apple", &[b"1"]);
        builder.add(b"apply", &[b"22"]);
        builder.finish().to_vec()
    }

    pub(crate) fn example_block(contents: &[u8]) -> Vec<u8> {
        let mut block = Vec::new();
        super::block::encode(super::block::Kind::Data, contents, false, &mut block);
        block
    }

    pub(crate) fn example_partitions() -> Vec<u8> {
        super::partitions::example().to_vec()
    }

    pub(crate) fn example_footer() -> Vec<u8> {
        super::footer::tests::example().encode().to_vec()
    }
}
