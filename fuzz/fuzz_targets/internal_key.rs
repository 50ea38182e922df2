//! Keys and values as they lie in tables.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| starling_storage::fuzzing::internal_key(data));
