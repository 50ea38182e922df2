//! Runs a cluster in virtual time and prints how fast that goes and what the protocol costs:
//!
//! `cargo run --release -p starling-gossip --example simulate -- [nodes] [seconds] [seed]`
//!
//! The nodes know one another when it begins; one crashes after a quarter of the time.

#![expect(clippy::print_stdout, reason = "a program for people")]

#[path = "../tests/support/mod.rs"]
mod support;

use starling_clock::NodeId;
use starling_gossip::{GossipConfig, Instant, Status};
use support::{Network, World};

/// As in the node's program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn argument(at: usize, default: u64) -> u64 {
    std::env::args().nth(at).map_or(default, |text| text.parse().expect("a number"))
}

#[expect(clippy::disallowed_methods, reason = "measures how fast the simulation runs")]
fn real_now() -> std::time::Instant {
    std::time::Instant::now()
}

#[expect(clippy::cast_precision_loss, reason = "printed with a digit or two")]
fn main() {
    let (nodes, seconds, seed) = (argument(1, 1_000), argument(2, 60), argument(3, 1));
    assert!(nodes >= 2, "a cluster has at least two nodes");
    let network = Network { loss_per_mille: 10, delay_us: (200, 2_000) };
    let mut world = World::new(GossipConfig::default(), network, seed);
    let began = real_now();
    world.start_acquainted(nodes);
    println!("{nodes} nodes made in {:.1} s", began.elapsed().as_secs_f64());

    let began = real_now();
    world.run_ms(seconds * 250);
    let crashed = NodeId(nodes / 2);
    world.crash(crashed);
    let crashed_at = world.now;
    world.run_ms(seconds * 750);
    let real = began.elapsed().as_secs_f64();

    let after = |status: Status| {
        let times = world.changes.iter().filter(|&&(_, _, of, to)| of == crashed && to == status);
        let mut times: Vec<Instant> = times.map(|&(at, ..)| at).collect();
        times.sort();
        let seconds = |at: &Instant| at.since(crashed_at) as f64 / 1e6;
        times
            .first()
            .zip(times.last())
            .map(|(first, last)| (seconds(first), seconds(last), times.len()))
    };
    for status in [Status::Suspect, Status::Dead] {
        match after(status) {
            Some((first, last, count)) => println!(
                "the crash: {status} at the first node after {first:.1} s, at the last of {count} after {last:.1} s"
            ),
            None => println!("the crash: {status} nowhere yet"),
        }
    }
    let wrong = world.changes.iter().filter(|&&(.., of, to)| of != crashed && to == Status::Dead);
    println!("wrongly dead: {}", wrong.count());
    let per = |total: u64| total as f64 / nodes as f64 / seconds as f64;
    println!(
        "{:.2} datagrams and {:.0} bytes a node and second, the largest {} bytes",
        per(world.datagrams),
        per(world.bytes),
        world.datagram_size_max
    );
    println!("{:.1} simulated seconds a real second", seconds as f64 / real);
    println!("trace {:016x}", world.trace());
}
