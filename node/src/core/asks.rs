//! [`Asks`]: the questions and repairs of one machine that have no answer yet.
//!
//! Invariants:
//!
//! - A number is given once; an answer to one that is not open any more is an answer to nothing.

use starling_clock::NodeId;

use super::small_map::SmallMap;

/// Pairs a question or a repair with its answer, within one machine. The caller hands back at most one answer for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AskId(pub u32);

/// See the file's head.
#[derive(Debug, Default)]
pub(super) struct Asks {
    /// Whom they went to.
    open: SmallMap<AskId, NodeId>,
    next: u32,
}

impl Asks {
    /// None, and room for so many.
    pub(super) fn with_capacity(asks: usize) -> Self {
        Self { open: SmallMap::with_capacity(asks), next: 0 }
    }

    /// One more, to this node.
    pub(super) fn open(&mut self, to: NodeId) -> AskId {
        let ask = AskId(self.next);
        self.next += 1;
        self.open.insert(ask, to);
        ask
    }

    /// Its answer has come; whom it went to, if it was open.
    pub(super) fn close(&mut self, ask: AskId) -> Option<NodeId> {
        self.open.remove(&ask)
    }

    /// What this node was asked will not be answered; whether it was asked anything.
    pub(super) fn forget(&mut self, node: NodeId) -> bool {
        let is_asked = 0 < self.count(node);
        self.open.retain(|_, &mut asked| asked != node);
        is_asked
    }

    /// How many are open with this node.
    pub(super) fn count(&self, node: NodeId) -> usize {
        self.nodes().filter(|&asked| asked == node).count()
    }

    /// Whom the open ones went to, one after the other.
    pub(super) fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.open.values().copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_once_and_not_from_who_was_forgotten() {
        let mut asks = Asks::default();
        let [first, second, third] = [1, 2, 1].map(|node| asks.open(NodeId(node)));
        assert_eq!((asks.count(NodeId(1)), asks.count(NodeId(3))), (2, 0));
        assert_eq!((asks.close(first), asks.close(first)), (Some(NodeId(1)), None));
        assert!(asks.forget(NodeId(1)) && !asks.forget(NodeId(1)));
        assert_eq!((asks.close(third), asks.close(second)), (None, Some(NodeId(2))));
        assert!(asks.is_empty());
        assert_ne!(asks.open(NodeId(1)), first, "a number is given once");
    }
}
