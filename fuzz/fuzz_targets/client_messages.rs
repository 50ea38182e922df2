//! Messages between clients and nodes: what is decoded encodes to something that is decoded to the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use starling_client::codec::{self, bincode};
use starling_client::wire::{ChangesItem, ChangesRequest, Request, Response, Topology, WireError};

fn check<T>(bytes: &[u8])
where
    T: bincode::Encode + for<'de> bincode::BorrowDecode<'de, ()> + std::fmt::Debug + PartialEq,
{
    if let Ok(message) = codec::decode::<T>(bytes) {
        let mut again = Vec::new();
        codec::encode(&message, &mut again);
        assert_eq!(codec::decode::<T>(&again).as_ref(), Ok(&message));
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&kind, body)) = data.split_first() else { return };
    match kind % 6 {
        0 => check::<Request>(body),
        1 => check::<Response>(body),
        2 => check::<ChangesRequest>(body),
        3 => check::<ChangesItem>(body),
        4 => check::<Topology>(body),
        _ => check::<WireError>(body),
    }
});
