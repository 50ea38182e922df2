//! lz4 blocks, as the library has them (`lz4_Block_format.md` of lz4).
//!
//! Invariants:
//!
//! - The same input gives the same bytes.
//! - What is decoded may be anything: it is written to the memory given and nowhere else.
//!
//! A thread keeps the compressor's table for its next block: to take memory for one costs as much as to compress a commit of one
//! event.

use std::cell::RefCell;

use lz4_flex::block::{
    CompressTable, compress_into, compress_into_with_table, decompress_into,
    get_maximum_output_size,
};

/// From here on the table of a small input does not do.
const SMALL_SIZE_MAX: usize = u16::MAX as usize;

thread_local! {
    static TABLE: RefCell<CompressTable> = RefCell::new(CompressTable::small());
}

/// Appends the block of `input` to `out`.
pub(crate) fn compress(input: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + get_maximum_output_size(input.len()), 0);
    let room = &mut out[start..];
    let size = if input.len() < SMALL_SIZE_MAX {
        TABLE.with_borrow_mut(|table| compress_into_with_table(input, room, table))
    } else {
        compress_into(input, room)
    };
    out.truncate(start + size.expect("there is room for the worst case"));
}

/// Whether `block` is one that fills `contents`, and does so.
pub(crate) fn decompress(block: &[u8], contents: &mut [u8]) -> bool {
    decompress_into(block, contents).is_ok_and(|size| size == contents.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_compressed_comes_back_and_no_other_length(
            part in prop::collection::vec(any::<u8>(), 0..300),
            times in 1..500_usize,
        ) {
            let input = part.repeat(times);
            let mut out = vec![7];
            compress(&input, &mut out);
            prop_assert_eq!(&out[1..], &lz4_flex::block::compress(&input), "a table used before changes nothing");
            let mut contents = vec![0; input.len()];
            prop_assert!(decompress(&out[1..], &mut contents));
            prop_assert_eq!(&contents, &input);
            prop_assert!(!decompress(&out[1..], &mut vec![0; input.len() + 1]));
        }
    }
}
