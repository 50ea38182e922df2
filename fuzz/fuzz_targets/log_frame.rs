//! Any bytes as a frame of a log.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| starling_storage::fuzzing::frame(data));
