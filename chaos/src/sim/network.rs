//! [`Network`]: which nodes are connected and what becomes of a message between two of them.
//!
//! Invariants:
//!
//! - A connection is of a pair, both ways; it has a number that no other connection of the run has, and a message arrives only
//!   over the connection that it was sent over.
//! - What does not pass is asked when a message is sent; a pair that cannot talk both ways loses its connection after a while.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::plan::Shape;

/// Shortest and longest way of a message when nothing is wrong, in microseconds.
const DELAY_US: (u64, u64) = (150, 700);

/// The connections and the weather.
#[derive(Debug)]
pub(super) struct Network {
    nodes: usize,
    random: ChaCha8Rng,
    /// Number of the connection of each pair.
    connections: Vec<Option<u64>>,
    next: u64,
    blocked: Vec<bool>,
    /// Lost and repeated of a thousand, longest way in microseconds.
    rough: Option<(u32, u32, u64)>,
}

impl Network {
    pub(super) fn new(nodes: usize, random: ChaCha8Rng) -> Self {
        Self {
            nodes,
            random,
            connections: vec![None; nodes * nodes],
            next: 1,
            blocked: vec![false; nodes * nodes],
            rough: None,
        }
    }

    /// Everything passes.
    pub(super) fn clear(&mut self) {
        self.blocked.fill(false);
        self.rough = None;
    }

    /// Adds what a fault does.
    pub(super) fn make_rough(&mut self, lost: u32, repeated: u32, delay_us: u64) {
        let known = self.rough.unwrap_or((0, 0, 0));
        self.rough = Some((known.0.max(lost), known.1.max(repeated), known.2.max(delay_us)));
    }

    /// Adds a partition. Nodes are told by their index: id less one.
    pub(super) fn partition(&mut self, shape: &Shape) {
        let nodes = self.nodes;
        let index =
            |node: starling_clock::NodeId| usize::try_from(node.0 - 1).expect("nodes are few");
        for from in 0..nodes {
            for to in 0..nodes {
                let is_cut = match shape {
                    Shape::Split(side) => {
                        let inside = |at: usize| side.iter().any(|&node| index(node) == at);
                        inside(from) != inside(to)
                    }
                    Shape::OneWay(a, b) => (from, to) == (index(*a), index(*b)),
                    Shape::Ring => {
                        let apart = (from + nodes - to) % nodes;
                        apart != 1 && apart != nodes - 1
                    }
                    Shape::Bridge(node) => {
                        let half = |at: usize| at < nodes / 2;
                        from != index(*node) && to != index(*node) && half(from) != half(to)
                    }
                    Shape::Deaf(node) => to == index(*node),
                };
                self.blocked[from * nodes + to] |= is_cut && from != to;
            }
        }
    }

    pub(super) fn is_blocked(&self, from: usize, to: usize) -> bool {
        self.blocked[from * self.nodes + to]
    }

    /// Either way is blocked.
    pub(super) fn is_broken(&self, a: usize, b: usize) -> bool {
        self.is_blocked(a, b) || self.is_blocked(b, a)
    }

    /// Pairs that are connected and cannot talk both ways.
    pub(super) fn dying(&self) -> Vec<(usize, usize, u64)> {
        let pairs = (0..self.nodes).flat_map(|a| (a + 1..self.nodes).map(move |b| (a, b)));
        let broken = pairs.filter(|&(a, b)| self.is_broken(a, b));
        broken.filter_map(|(a, b)| Some((a, b, self.connection(a, b)?))).collect()
    }

    /// Where the connection of a pair stands, whichever way it is named.
    fn place(&self, a: usize, b: usize) -> usize {
        a.min(b) * self.nodes + a.max(b)
    }

    /// The number of a pair's connection.
    pub(super) fn connection(&self, a: usize, b: usize) -> Option<u64> {
        self.connections[self.place(a, b)]
    }

    /// Connects a pair; `false` if it was connected.
    pub(super) fn connect(&mut self, a: usize, b: usize) -> bool {
        let number = self.next;
        self.next += 1;
        let place = self.place(a, b);
        let is_new = self.connections[place].is_none();
        self.connections[place].get_or_insert(number);
        is_new
    }

    /// Ends a pair's connection; `false` if there was none.
    pub(super) fn disconnect(&mut self, a: usize, b: usize) -> bool {
        let place = self.place(a, b);
        self.connections[place].take().is_some()
    }

    /// How long a message takes, in microseconds; a second time if it comes twice; none if it is lost.
    pub(super) fn ways(&mut self, from: usize, to: usize) -> [Option<u64>; 2] {
        if self.is_blocked(from, to) {
            return [None, None];
        }
        let (lost, repeated, longest) = self.rough.unwrap_or((0, 0, 0));
        if lost > 0 && self.random.random_range(0..1000) < lost {
            return [None, None];
        }
        let first = self.way(longest);
        let twice = repeated > 0 && self.random.random_range(0..1000) < repeated;
        [Some(first), twice.then(|| self.way(longest))]
    }

    /// How long anything takes over this network, to and from clients too.
    pub(super) fn way(&mut self, longest: u64) -> u64 {
        let way = self.random.random_range(DELAY_US.0..DELAY_US.1);
        // Most messages of a rough network are not much later, some are as late as can be.
        if longest > 0 && self.random.random_range(0..3) == 0 {
            return way + self.random.random_range(0..longest);
        }
        way
    }
}
