//! The skiplist's order (Pugh, 1990): searching and linking, whatever the nodes are made of.
//!
//! Invariants:
//!
//! - One writer, any number of readers, none of which waits for another.
//! - A node is linked from the lowest level up, each time with release: who meets it at any level finds it whole, and
//!   finds it below.
//! - Nothing is ever unlinked.
//!
//! Heights are drawn from a generator with a constant seed: they must be independent of the keys, not secret from us.

use super::sync::{AtomicU32, Ordering};

/// The most levels of a list: enough for a few hundred thousand.
pub(super) const HEIGHT_MAX: usize = if cfg!(all(loom, test)) { 2 } else { 9 };
/// One node in so many is a level higher, as a power of two.
const BRANCHING_BITS: u32 = 2;

/// For each level the node after which something goes, 0 for the head.
pub(super) type Path = [u32; HEIGHT_MAX];

/// A list of nodes that are called by numbers other than 0, sorted.
pub(super) trait List {
    /// A node that can be read.
    type Node: Copy;

    /// The node with this number.
    fn node(&self, number: u32) -> Self::Node;
    /// The link at `level` of a node, or of the head.
    fn link(&self, at: Option<Self::Node>, level: usize) -> &AtomicU32;
    /// Levels in use.
    fn height(&self) -> &AtomicU32;
    /// The node with this number may be read soon.
    fn prefetch(&self, number: u32);
}

/// The last node that is `before`, in `path` for each level in use, and the first that is not: 0 if there is none.
#[inline]
pub(super) fn search<L: List>(list: &L, before: impl Fn(L::Node) -> bool, path: &mut Path) -> u32 {
    let (mut at, mut at_number, mut beyond, mut next) = (None, 0, 0, 0);
    for level in (0..list.height().load(Ordering::Relaxed) as usize).rev() {
        loop {
            next = list.link(at, level).load(Ordering::Acquire);
            // It is the one that ended the level above, more often than not.
            if next == 0 || next == beyond {
                break;
            }
            if let Some(at) = at
                && 0 < level
            {
                // Half of the time the search goes down here: then this spares it the wait.
                list.prefetch(list.link(Some(at), level - 1).load(Ordering::Acquire));
            }
            let node = list.node(next);
            if !before(node) {
                beyond = next;
                break;
            }
            (at, at_number) = (Some(node), next);
        }
        path[level] = at_number;
    }
    next
}

/// From the node `from`, which is `before` and higher than `levels`, the last node of those levels that is.
#[inline]
pub(super) fn search_from<L: List>(
    list: &L,
    (from, levels): (u32, usize),
    before: impl Fn(L::Node) -> bool,
) -> u32 {
    let (mut at, mut at_number, mut beyond) = (list.node(from), from, 0);
    for level in (0..levels).rev() {
        loop {
            let next = list.link(Some(at), level).load(Ordering::Acquire);
            if next == 0 || next == beyond {
                break;
            }
            if 0 < level {
                list.prefetch(list.link(Some(at), level - 1).load(Ordering::Acquire));
            }
            let node = list.node(next);
            if !before(node) {
                beyond = next;
                break;
            }
            (at, at_number) = (node, next);
        }
    }
    at_number
}

/// Links the node `number`, `height` levels high, behind what `path` has at each level. Only the writer does this.
pub(super) fn link_in<L: List>(list: &L, number: u32, height: usize, path: &Path) {
    let at = |level: usize| match path[level] {
        0 => None,
        before => Some(list.node(before)),
    };
    let node = Some(list.node(number));
    for level in 0..height {
        let next = list.link(at(level), level).load(Ordering::Relaxed);
        list.link(node, level).store(next, Ordering::Relaxed);
    }
    for level in 0..height {
        list.link(at(level), level).store(number, Ordering::Release);
    }
    if list.height().load(Ordering::Relaxed) < levels(height) {
        list.height().store(levels(height), Ordering::Relaxed);
    }
}

fn levels(height: usize) -> u32 {
    u32::try_from(height).expect("at most HEIGHT_MAX")
}

/// Heights of nodes.
pub(super) struct Heights {
    state: u64,
}

impl Default for Heights {
    fn default() -> Self {
        // Any number; this one is the fraction of the golden ratio.
        Self { state: 0x9e37_79b9_7f4a_7c15 }
    }
}

impl Heights {
    /// The next one, at most [`HEIGHT_MAX`].
    pub(super) fn draw(&mut self) -> usize {
        // xorshift64* (Vigna, 2016).
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let drawn = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d);
        let higher = drawn.leading_zeros() / BRANCHING_BITS;
        HEIGHT_MAX.min(1 + higher as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_goes_up_at_each_level() {
        let mut heights = Heights::default();
        let mut counts = [0_u32; HEIGHT_MAX + 1];
        for _ in 0..65_536 {
            counts[heights.draw()] += 1;
        }
        assert_eq!(counts[0], 0);
        for height in 1..=4.min(HEIGHT_MAX - 1) {
            let expected = (65_536 * 3) >> (2 * height);
            assert!(counts[height].abs_diff(expected) < expected / 8, "{counts:?}");
        }
    }
}
