//! A payload behind a good checksum, as a record of each log.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| starling_storage::fuzzing::log_record(data));
