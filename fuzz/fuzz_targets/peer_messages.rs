//! Messages between nodes: what is decoded encodes to something that is decoded to the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use starling_client::codec;
use starling_node::core::peer::{Hello, PeerMessage};

fuzz_target!(|data: &[u8]| {
    let _ = codec::decode::<Hello>(data);
    if let Ok(message) = codec::decode::<PeerMessage>(data) {
        let mut again = Vec::new();
        codec::encode(&message, &mut again);
        assert_eq!(codec::decode::<PeerMessage>(&again), Ok(message));
    }
});
