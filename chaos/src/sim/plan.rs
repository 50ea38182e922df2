//! [`Plan`]: what goes wrong in a run, and when: drawn from the seed before anything happens, so that it can be shown and shrunk.
//!
//! Invariants:
//!
//! - The same seed, profile, nodes and duration give the same plan.
//! - Every fault begins after the cluster has found itself and ends before the run does.
//! - Taking faults out of a plan, or making them shorter, gives a plan: none depends on another.
//!
//! It does nothing: `world` lets the faults happen, those that destroy data only as far as the contract covers them (`damage`).

use std::fmt;

use clap::ValueEnum;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use starling_clock::NodeId;
use starling_storage::CrashMode;

/// How long a fault that destroys data waits until it may, in microseconds.
const DESTROY_US: u64 = 20_000_000;

/// Which kinds of faults a run has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// None.
    Calm,
    /// Messages are late, lost, repeated and overtaken; partitions of all shapes.
    Net,
    /// Crashes, and disks that fail, fill up, slow down and forget.
    Disk,
    /// Wall clocks that are wrong, drift and jump; crashes.
    Clock,
    /// Everything, and nodes that pause and are slow.
    All,
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Calm => "calm",
            Self::Net => "net",
            Self::Disk => "disk",
            Self::Clock => "clock",
            Self::All => "all",
        })
    }
}

/// Which way messages do not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// From none of these to any other node, and back.
    Split(Vec<NodeId>),
    /// From the first to the second, one way.
    OneWay(NodeId, NodeId),
    /// Each node hears its neighbours alone.
    Ring,
    /// All pairs but those with this node: two halves that only it can hear.
    Bridge(NodeId),
    /// From all others to this one; it is heard.
    Deaf(NodeId),
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Messages are lost, repeated (of a thousand) and take up to so long, in microseconds.
    Rough {
        /// Of a thousand.
        lost: u32,
        /// Of a thousand.
        repeated: u32,
        /// Microseconds.
        delay_us: u64,
    },
    /// Some nodes do not hear some others.
    Partition(Shape),
    /// The node's power goes, or its process dies, at the n-th disk call from the beginning on, and comes back at the end. If
    /// `recovery` is set, the power goes once more at that call of the recovery.
    Crash {
        /// Which node.
        node: NodeId,
        /// Disk calls until it happens.
        calls: u64,
        /// What is left of unsynced work.
        mode: CrashMode,
        /// Disk calls of the recovery until it happens again.
        recovery: Option<u64>,
    },
    /// The node does nothing, and then goes on as if nothing had been.
    Pause(NodeId),
    /// Everything that the node does takes so many times as long.
    Slow {
        /// Which node.
        node: NodeId,
        /// How many times.
        factor: u64,
    },
    /// The node's disk takes so many times as long.
    SlowDisk {
        /// Which node.
        node: NodeId,
        /// How many times.
        factor: u64,
    },
    /// The disk has room for so many more bytes.
    Full {
        /// Which node.
        node: NodeId,
        /// Bytes.
        room: u64,
    },
    /// The n-th disk call from the beginning on fails with EIO; a sync loses what it was for.
    Eio {
        /// Which node.
        node: NodeId,
        /// Disk calls until it happens.
        calls: u64,
    },
    /// Bits of a file at rest are flipped as soon as may be. The node's disk is replaced when everything heals, or before.
    FlipBits {
        /// Which node.
        node: NodeId,
        /// Which file and bits.
        seed: u64,
    },
    /// A file at rest is lost as soon as may be. The node's disk is replaced when everything heals, or before.
    LoseFile {
        /// Which node.
        node: NodeId,
        /// Which file.
        seed: u64,
    },
    /// The node is told to stop, finishes what it has begun, and is started at the end.
    Stop {
        /// Which node.
        node: NodeId,
    },
    /// The node's disk is lost for good, and an operator puts in an empty one.
    Replace {
        /// Which node.
        node: NodeId,
    },
    /// The node's wall clock is so far ahead from the beginning to the end.
    Skew {
        /// Which node.
        node: NodeId,
        /// Milliseconds; behind is negative.
        skew_ms: i64,
    },
    /// The node's wall clock runs too fast (or slow) by so much from the beginning to the end, and is then set right.
    Drift {
        /// Which node.
        node: NodeId,
        /// Microseconds a second.
        per_second_us: i64,
    },
    /// So many of a thousand asks go to one key.
    HotKey {
        /// Number of the key.
        key: u64,
        /// Of a thousand.
        per_mille: u32,
    },
}

impl FaultKind {
    /// It takes data for good.
    pub fn destroys(&self) -> bool {
        matches!(self, Self::FlipBits { .. } | Self::LoseFile { .. } | Self::Replace { .. })
    }
}

/// A fault and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// When it begins, in microseconds from the start of the run.
    pub from_us: u64,
    /// When it ends.
    pub to_us: u64,
    /// What.
    pub kind: FaultKind,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |us: u64| us / 1000;
        write!(f, "{:>8} ms to {:>8} ms: {:?}", ms(self.from_us), ms(self.to_us), self.kind)
    }
}

/// All faults of a run, in order of beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The faults.
    pub faults: Vec<Fault>,
}

impl Plan {
    /// Draws a plan for `nodes` nodes with the ids from 1 on, from `begin_us` to `end_us`.
    pub fn draw(seed: u64, profile: Profile, nodes: u64, begin_us: u64, end_us: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut draw = Draw { nodes, victim: None, profile };
        let mut faults = Vec::new();
        if profile == Profile::Calm || end_us <= begin_us {
            return Self { faults };
        }
        // Some runs have a fault a second, some one in ten.
        let pause_us = random.random_range(400_000..6_000_000_u64);
        let mut at_us = begin_us;
        loop {
            at_us += random.random_range(1..2 * pause_us);
            let length_us = match random.random_range(0..10) {
                0..5 => random.random_range(10_000..1_000_000),
                5..9 => random.random_range(500_000..5_000_000),
                _ => random.random_range(3_000_000..15_000_000),
            };
            if end_us <= at_us {
                break;
            }
            let kind = draw.kind(&mut random);
            // What may be destroyed only later waits.
            let length_us = if kind.destroys() { DESTROY_US } else { length_us };
            faults.push(Fault { from_us: at_us, to_us: (at_us + length_us).min(end_us), kind });
        }
        Self { faults }
    }
}

struct Draw {
    nodes: u64,
    /// The node whose data was destroyed last, until its disk is replaced.
    victim: Option<NodeId>,
    profile: Profile,
}

impl Draw {
    fn kind(&mut self, random: &mut ChaCha8Rng) -> FaultKind {
        let family = match self.profile {
            Profile::Calm | Profile::Net => 0,
            Profile::Disk => 1,
            Profile::Clock => [1, 2, 2, 2][random.random_range(0..4)],
            Profile::All => [0, 0, 0, 1, 1, 1, 2, 3][random.random_range(0..8)],
        };
        match family {
            0 => self.net(random),
            1 => self.disk(random),
            2 => self.clock(random),
            _ => self.pace(random),
        }
    }

    fn node(&self, random: &mut ChaCha8Rng) -> NodeId {
        NodeId(random.random_range(1..=self.nodes))
    }

    fn net(&self, random: &mut ChaCha8Rng) -> FaultKind {
        let node = self.node(random);
        let shape = match random.random_range(0..10) {
            0..3 => {
                return FaultKind::Rough {
                    lost: random.random_range(0..200),
                    repeated: random.random_range(0..100),
                    delay_us: 1000 << random.random_range(0..10),
                };
            }
            3..5 => Shape::Split(vec![node]),
            5 => {
                let side = (1..=self.nodes).map(NodeId).filter(|_| random.random_range(0..2) == 0);
                Shape::Split(side.collect())
            }
            6..8 => {
                let step = random.random_range(1..self.nodes.max(2));
                Shape::OneWay(node, NodeId((node.0 - 1 + step) % self.nodes + 1))
            }
            8 => [Shape::Ring, Shape::Deaf(node)][random.random_range(0..2)].clone(),
            _ => Shape::Bridge(node),
        };
        FaultKind::Partition(shape)
    }

    fn disk(&mut self, random: &mut ChaCha8Rng) -> FaultKind {
        let node = self.node(random);
        let calls_max = 1 << random.random_range(1..9);
        match random.random_range(0..24) {
            0..10 => FaultKind::Crash {
                node,
                calls: random.random_range(0..calls_max),
                mode: [
                    CrashMode::LoseUnsynced,
                    CrashMode::KeepPrefix,
                    CrashMode::Torn,
                    CrashMode::KeepAll,
                ][random.random_range(0..4)],
                recovery: (random.random_range(0..3) == 0).then(|| random.random_range(0..120)),
            },
            10..12 => FaultKind::SlowDisk { node, factor: 1 << random.random_range(1..9) },
            12..14 => FaultKind::Full { node, room: random.random_range(0..60_000) },
            14..18 => FaultKind::Eio { node, calls: random.random_range(0..200) },
            18..21 => FaultKind::Stop { node },
            21 => FaultKind::Replace { node: self.victim.take().unwrap_or(node) },
            damage => {
                let node = *self.victim.get_or_insert(node);
                let seed = random.next_u64();
                if damage == 22 {
                    FaultKind::FlipBits { node, seed }
                } else {
                    FaultKind::LoseFile { node, seed }
                }
            }
        }
    }

    fn clock(&self, random: &mut ChaCha8Rng) -> FaultKind {
        let node = self.node(random);
        let sign = if random.random_range(0..2) == 0 { 1 } else { -1 };
        match random.random_range(0..4) {
            0..2 => FaultKind::Skew { node, skew_ms: sign * random.random_range(1..450) },
            2 => FaultKind::Skew { node, skew_ms: sign * random.random_range(450..20_000) },
            _ => FaultKind::Drift { node, per_second_us: sign * random.random_range(10..100_000) },
        }
    }

    fn pace(&self, random: &mut ChaCha8Rng) -> FaultKind {
        let node = self.node(random);
        match random.random_range(0..4) {
            0..2 => FaultKind::Pause(node),
            2 => FaultKind::Slow { node, factor: 1 << random.random_range(1..8) },
            _ => FaultKind::HotKey {
                key: random.next_u64(),
                per_mille: random.random_range(300..1_000),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_plan() {
        let end_us = 600_000_000;
        let mut kinds = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let plan = Plan::draw(seed, Profile::All, 5, 1_000_000, end_us);
            assert_eq!(plan, Plan::draw(seed, Profile::All, 5, 1_000_000, end_us));
            assert!(plan.faults.is_sorted_by_key(|fault| fault.from_us));
            assert!(plan.faults.iter().all(|it| it.from_us <= it.to_us && it.to_us <= end_us));
            let name = |fault: &Fault| {
                let kind = format!("{:?}", fault.kind);
                kind.split([' ', '(']).next().unwrap_or_default().to_owned()
            };
            kinds.extend(plan.faults.iter().map(name));
        }
        assert_eq!(kinds.len(), 15, "{kinds:?}");
        assert!(Plan::draw(1, Profile::Calm, 5, 0, end_us).faults.is_empty());
    }
}
