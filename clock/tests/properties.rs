//! The promises of the clock (G5), over wall clocks that drift, jump, stand still and go back, and nodes that
//! restart at the worst of moments.

use proptest::prelude::*;
use starling_clock::{Clock, ClockConfig, HybridTime, NodeId, SkewError, Stamp};

const CONFIG: ClockConfig = ClockConfig { skew_ms_max: 100, bound_window_ms: 40 };
const NODES: usize = 3;

/// A node with a wall clock, a disk that holds nothing but the bound, and a memory of what it promised.
#[derive(Clone, Debug)]
struct Node {
    clock: Clock,
    wall_ms: u64,
    disk: HybridTime,
    /// The greatest stamp given in all lives.
    given: Stamp,
    /// The greatest time observed in this life.
    observed: HybridTime,
    /// The greatest reading of the wall clock.
    wall_ms_max: u64,
    restarts: u64,
}

impl Node {
    fn new(id: u64, wall_ms: u64) -> Self {
        let clock = Clock::new(NodeId(id), CONFIG, HybridTime::ZERO);
        let (disk, observed) = (HybridTime::ZERO, HybridTime::ZERO);
        let wall_ms_max = wall_ms;
        Self { clock, wall_ms, disk, given: Stamp::ZERO, observed, wall_ms_max, restarts: 0 }
    }

    /// Ticks as the protocol of the bound says, and checks what every stamp has to keep.
    fn stamp(&mut self) -> Stamp {
        let stamp = self.clock.tick(self.wall_ms).or_else(|refused| {
            self.disk = refused.wanted;
            self.clock.handle_bound_durable(refused.wanted);
            self.clock.tick(self.wall_ms)
        });
        let stamp = stamp.expect("the wanted bound leaves room for a stamp");
        assert!(self.given < stamp, "{stamp} given after {}", self.given);
        assert!(self.observed < stamp.time, "{stamp} given after {} was observed", self.observed);
        assert!(stamp.time < self.disk, "{stamp} given over the durable bound {}", self.disk);
        assert_eq!(stamp.node, self.clock.node());
        self.given = stamp;
        self.check();
        stamp
    }

    fn observe(&mut self, stamp: Stamp) -> Result<(), SkewError> {
        let before = format!("{:?}", self.clock);
        let ahead_ms = stamp.time.physical_ms().saturating_sub(self.wall_ms);
        let result = self.clock.observe(stamp.time, self.wall_ms);
        assert_eq!(result.is_err(), ahead_ms > CONFIG.skew_ms_max);
        match result {
            Ok(()) => self.observed = self.observed.max(stamp.time),
            Err(error) => {
                assert_eq!(error, SkewError { ahead_ms, limit_ms: CONFIG.skew_ms_max });
                assert_eq!(before, format!("{:?}", self.clock), "a refusal changes nothing");
            }
        }
        self.check();
        result
    }

    /// Persists the bound if the clock asks for it, and dies in between if `dies`.
    fn poll(&mut self, dies: bool) {
        if let Some(bound) = self.clock.poll_bound(self.wall_ms) {
            assert!(self.clock.durable_bound() < bound, "asks for what it has");
            self.disk = bound;
            if dies {
                self.restart();
            } else {
                self.clock.handle_bound_durable(bound);
            }
        }
        self.check();
    }

    fn restart(&mut self) {
        self.clock = Clock::new(self.clock.node(), CONFIG, self.disk);
        self.observed = HybridTime::ZERO;
        self.restarts += 1;
    }

    fn move_wall(&mut self, delta_ms: i64) {
        self.wall_ms = self.wall_ms.saturating_add_signed(delta_ms);
        self.wall_ms_max = self.wall_ms_max.max(self.wall_ms);
    }

    /// However others' clocks run, this one is dragged no further than the skew bound; a life adds a window, and
    /// counters add a millisecond at most in runs as short as these.
    fn check(&self) {
        assert_eq!(self.clock.durable_bound().max(self.disk), self.disk);
        let lives = self.restarts * (CONFIG.bound_window_ms + 1);
        let limit_ms = self.wall_ms_max + CONFIG.skew_ms_max + lives;
        assert!(self.clock.last().physical_ms() <= limit_ms);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Local { node: usize },
    Message { from: usize, to: usize },
    Wall { node: usize, delta_ms: i64 },
    Poll { node: usize, dies: bool },
    Restart { node: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let node = 0..NODES;
    // Mostly drift; now and then a jump over the window, over the skew bound, and far back.
    let delta_ms = prop_oneof![6 => -2..20_i64, 2 => -60..60_i64, 1 => -400..400_i64];
    prop_oneof![
        4 => node.clone().prop_map(|node| Step::Local { node }),
        4 => (node.clone(), node.clone()).prop_map(|(from, to)| Step::Message { from, to }),
        4 => (node.clone(), delta_ms).prop_map(|(node, delta_ms)| Step::Wall { node, delta_ms }),
        2 => (node.clone(), any::<bool>()).prop_map(|(node, dies)| Step::Poll { node, dies }),
        1 => node.prop_map(|node| Step::Restart { node }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// The checks are in [`Node`]; here is what takes two nodes: who received a stamp gives only greater ones.
    #[test]
    fn stamps_respect_happens_before_and_never_go_back(
        steps in prop::collection::vec(step(), 1..200),
        walls in prop::array::uniform3(1_000..1_080_u64),
    ) {
        let mut nodes: Vec<Node> = walls.iter().zip(1..).map(|(&wall, id)| Node::new(id, wall)).collect();
        let mut all = Vec::new();
        for step in steps {
            match step {
                Step::Local { node } => all.push(nodes[node].stamp()),
                Step::Message { from, to } => {
                    let sent = nodes[from].stamp();
                    all.push(sent);
                    if nodes[to].observe(sent).is_ok() {
                        let answer = nodes[to].stamp();
                        prop_assert!(sent < answer);
                        all.push(answer);
                    }
                }
                Step::Wall { node, delta_ms } => nodes[node].move_wall(delta_ms),
                Step::Poll { node, dies } => nodes[node].poll(dies),
                Step::Restart { node } => nodes[node].restart(),
            }
        }
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        prop_assert_eq!(all.len(), count, "stamps are unique in the cluster");
    }

    /// Without restarts no clock is ahead of the furthest wall clock: stamps do not drift off on their own.
    #[test]
    fn no_clock_is_ahead_of_every_wall_clock(
        steps in prop::collection::vec(step(), 1..200),
        walls in prop::array::uniform3(1_000..1_080_u64),
    ) {
        let mut nodes: Vec<Node> = walls.iter().zip(1..).map(|(&wall, id)| Node::new(id, wall)).collect();
        for step in steps {
            match step {
                Step::Local { node } => {
                    nodes[node].stamp();
                }
                Step::Message { from, to } => {
                    let sent = nodes[from].stamp();
                    // Whether it is refused is up to the skew; that it does no harm is checked.
                    let _ = nodes[to].observe(sent);
                }
                Step::Wall { node, delta_ms } => nodes[node].move_wall(delta_ms),
                Step::Poll { node, .. } => nodes[node].poll(false),
                Step::Restart { .. } => {}
            }
            let furthest = nodes.iter().map(|node| node.wall_ms_max).max().unwrap();
            for node in &nodes {
                prop_assert!(node.clock.last().physical_ms() <= furthest);
            }
        }
    }

    /// A restart skips the rest of the window and no more.
    #[test]
    fn a_restart_begins_at_most_a_window_ahead(
        deltas in prop::collection::vec((-20..60_i64, any::<bool>()), 1..60),
    ) {
        let mut node = Node::new(1, 1_000);
        for (delta_ms, polls) in deltas {
            node.move_wall(delta_ms);
            if polls {
                node.poll(false);
            }
            node.stamp();
        }
        let before = node.given;
        node.restart();
        let first = node.stamp();
        prop_assert!(before < first);
        let ahead_ms = first.time.physical_ms() - node.wall_ms_max;
        prop_assert!(ahead_ms <= CONFIG.bound_window_ms + 1, "{ahead_ms} ms ahead");
    }

    /// Who polls at least every half window never waits for the disk within a tick.
    #[test]
    fn polling_in_time_keeps_ticks_free_of_the_disk(
        deltas in prop::collection::vec(0..20_u64, 1..200),
    ) {
        let mut clock = Clock::new(NodeId(1), CONFIG, HybridTime::ZERO);
        let mut now_ms = 1_000;
        for delta_ms in deltas {
            if let Some(bound) = clock.poll_bound(now_ms) {
                clock.handle_bound_durable(bound);
            }
            prop_assert_eq!(clock.poll_bound(now_ms), None);
            now_ms += delta_ms;
            prop_assert!(clock.tick(now_ms).is_ok());
        }
    }
}

/// A clock with a bound of `window_ms` from `now_ms` on.
fn ready(window_ms: u64, now_ms: u64) -> Clock {
    let config = ClockConfig { skew_ms_max: window_ms, bound_window_ms: window_ms };
    let mut clock = Clock::new(NodeId(1), config, HybridTime::ZERO);
    clock.handle_bound_durable(clock.wanted_bound(now_ms));
    clock
}

#[test]
fn the_counter_carries_while_the_wall_clock_stands_still() {
    let mut clock = ready(100, 1_000);
    let mut last = clock.tick(1_000).unwrap();
    assert_eq!(last.time, HybridTime::new(1_000, 0));
    for _ in 0..3 * 65_536 {
        let next = clock.tick(1_000).unwrap();
        assert_eq!(next.time.packed(), last.time.packed() + 1);
        last = next;
    }
    assert_eq!(last.time, HybridTime::new(1_003, 0));
}

#[test]
fn a_bound_that_is_not_durable_stops_the_clock_and_changes_nothing() {
    let mut clock = Clock::new(NodeId(1), CONFIG, HybridTime::ZERO);
    let refused = clock.tick(1_000).unwrap_err();
    assert_eq!(refused.wanted, HybridTime::new(1_040, 0));
    assert_eq!(clock.last(), HybridTime::ZERO);
    clock.handle_bound_durable(refused.wanted);
    assert_eq!(clock.tick(1_039).unwrap().time, HybridTime::new(1_039, 0));
    let before = format!("{clock:?}");
    assert_eq!(clock.tick(1_040).unwrap_err().wanted, HybridTime::new(1_080, 0));
    assert_eq!(before, format!("{clock:?}"));
}

#[test]
fn an_older_bound_changes_nothing() {
    let mut clock = ready(40, 1_000);
    let bound = clock.durable_bound();
    clock.handle_bound_durable(HybridTime::new(500, 0));
    assert_eq!(clock.durable_bound(), bound);
}

#[test]
fn the_skew_bound_is_inclusive() {
    let mut clock = ready(100, 1_000);
    let most = HybridTime::new(1_100, u16::MAX);
    let refused = SkewError { ahead_ms: 101, limit_ms: 100 };
    assert_eq!(clock.observe(most.successor(), 1_000), Err(refused));
    assert_eq!(clock.last(), HybridTime::ZERO);
    assert_eq!(clock.observe(most, 1_000), Ok(()));
    assert_eq!(clock.last(), most);
    assert_eq!(clock.observe(HybridTime::MAX, 1_000).unwrap_err().limit_ms, 100);
}

#[test]
fn an_observed_time_over_the_bound_makes_the_clock_wait_for_the_disk() {
    let mut clock = ready(40, 1_000);
    clock.observe(HybridTime::new(1_040, 7), 1_000).unwrap();
    let wanted = clock.tick(1_000).unwrap_err().wanted;
    assert_eq!(wanted, HybridTime::new(1_080, 8));
    clock.handle_bound_durable(wanted);
    assert_eq!(clock.tick(1_000).unwrap().time, HybridTime::new(1_040, 8));
}

#[test]
fn a_first_life_may_begin_at_the_epoch() {
    let mut clock = ready(40, 0);
    assert_eq!(clock.tick(0).unwrap().time, HybridTime::new(0, 1));
}

#[test]
#[should_panic(expected = "config.bound_window_ms <= config.skew_ms_max")]
fn a_window_over_the_skew_bound_is_a_programmer_error() {
    let config = ClockConfig { skew_ms_max: 10, bound_window_ms: 11 };
    Clock::new(NodeId(1), config, HybridTime::ZERO);
}
