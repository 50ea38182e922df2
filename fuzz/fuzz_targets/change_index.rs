//! An index of the change log, its checksums put right.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| starling_storage::fuzzing::change_index(data));
