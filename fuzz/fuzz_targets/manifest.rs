//! Edits of a manifest behind good checksums.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| starling_storage::fuzzing::manifest(data));
