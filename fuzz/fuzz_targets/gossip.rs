//! Datagrams and messages of gossip, in a row, to a node that knows some others.
#![no_main]

use libfuzzer_sys::fuzz_target;
use starling_clock::NodeId;
use starling_gossip::{Gossip, GossipConfig, Instant, NodeState, describe};

fuzz_target!(|data: &[u8]| {
    let now = Instant(1);
    let state = NodeState::at("127.0.0.1:7400".parse().expect("an address"));
    let Ok(mut gossip) = Gossip::new(GossipConfig::default(), NodeId(1), state, 7, now) else {
        return;
    };
    for node in 2..5 {
        gossip.handle_peer_found(now, NodeId(node));
    }
    let mut rest = data;
    let mut us = 1;
    while let Some((&[kind, length], after)) = rest.split_first_chunk::<2>() {
        let (message, after) = after.split_at(usize::from(length).min(after.len()));
        rest = after;
        us += 1000;
        let (now, from) = (Instant(us), NodeId(2 + u64::from(kind >> 6)));
        let _ = describe(message);
        match kind % 4 {
            0 | 1 => drop(gossip.handle_datagram(now, from, message)),
            2 => drop(gossip.handle_push_pull(now, from, message)),
            _ => drop(gossip.handle_push_pull_answer(now, from, message)),
        }
        if kind & 32 != 0 {
            us += 1_000_000;
            gossip.handle_timeout(Instant(us));
        }
        while gossip.poll_output().is_some() {}
    }
});
