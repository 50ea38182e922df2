//! Golden transcripts: `tests/transcripts/*.txt` hold commands, lines that begin with `> `, and what followed.
//!
//! `UPDATE=1 cargo test -p starling-gossip --test transcripts` writes what follows now; read the difference before
//! it is committed.

#![expect(clippy::unwrap_used, reason = "a test: what fails, fails it")]

mod support;

use std::fmt::Write;
use std::path::Path;

use starling_clock::NodeId;
use starling_gossip::{GossipConfig, NodeState, Register};
use support::{Network, World, address};

/// Says how one command reads; every transcript is made of these.
fn obey(world: &mut World, command: &str) {
    let words: Vec<&str> = command.split(' ').collect();
    let node = |at: usize| NodeId(words[at].parse().expect("a node id"));
    let pair = || (node(1).min(node(2)), node(1).max(node(2)));
    match words[0] {
        "start" | "restart" => world.start(node(1)),
        "crash" => world.crash(node(1)),
        "meet" => world.act(node(1), |gossip, now| gossip.handle_peer_found(now, node(2))),
        "cut" => assert!(world.cuts.insert(pair())),
        "heal" => assert!(world.cuts.remove(&pair())),
        "run" => world.run_ms(words[1].parse().expect("milliseconds")),
        // Runs without a word, to pass over what another transcript shows.
        "skip" => {
            let log = world.log.take();
            world.run_ms(words[1].parse().expect("milliseconds"));
            world.log = log;
        }
        "leave" => world.act(node(1), starling_gossip::Gossip::leave),
        "remove" => world.act(node(1), |gossip, now| gossip.remove(now, node(2)).unwrap()),
        "load" => world.act(node(1), |gossip, now| {
            let load = words[2].parse().expect("a load");
            gossip
                .update_state(now, NodeState { load, ..NodeState::at(address(node(1))) })
                .unwrap();
        }),
        "set" => {
            let size: usize = words[4].parse().expect("a size");
            let register = Register {
                name: words[2].into(),
                stamp: words[3].parse().unwrap(),
                value: vec![7; size],
            };
            let is_set =
                world.act(node(1), |gossip, now| gossip.set_register(now, &register).unwrap());
            world.tell(&format!("set: {is_set}"));
        }
        "show" => show(world, node(1)),
        other => panic!("no such command: {other}"),
    }
}

fn show(world: &mut World, node: NodeId) {
    let gossip = &world.nodes[&node];
    let mut words = format!("{node} knows:");
    for member in gossip.members() {
        let (load, status) = (member.state.load, member.status);
        write!(words, " [{} {status} {} load {load}]", member.node, member.incarnation).unwrap();
    }
    for register in gossip.registers() {
        write!(words, " [{} at {}]", register.name, register.stamp).unwrap();
    }
    write!(words, " health {} left {}", gossip.local_health(), gossip.is_leave_told()).unwrap();
    world.tell(&words);
}

fn replay(transcript: &str) -> String {
    let network = Network { loss_per_mille: 0, delay_us: (1_000, 1_000) };
    let mut world = World::new(GossipConfig::default(), network, 1);
    let mut text = String::new();
    for line in transcript.lines() {
        if line.starts_with('#') || line.is_empty() {
            writeln!(text, "{line}").unwrap();
        } else if let Some(command) = line.strip_prefix("> ") {
            world.log = Some(String::new());
            obey(&mut world, command);
            write!(text, "{line}\n{}", world.log.take().unwrap()).unwrap();
        }
    }
    text
}

#[test]
fn transcripts_replay_byte_for_byte() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 9, "{paths:?}");
    for path in paths {
        let golden = std::fs::read_to_string(&path).unwrap();
        let text = replay(&golden);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, text).unwrap();
        } else {
            assert!(text == golden, "{} now reads:\n{text}", path.display());
        }
    }
}
