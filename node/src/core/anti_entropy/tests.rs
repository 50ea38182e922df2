//! Two model replicas are compared until they hold the same events.

use proptest::prelude::*;
use starling_storage::Action;

use super::super::replica::Declined;
use super::super::replica::testing::{KEYSPACE, Model, PARTITIONS, event, stamp};
use super::*;

const CONFIG: AntiEntropyConfig = AntiEntropyConfig {
    interval_ms: 60_000,
    first_ms: 1_000,
    timeout_ms: 5_000,
    pause_ms: 1,
    settle_ms: 100,
};
const OWN: NodeId = NodeId(1);
const PEER: NodeId = NodeId(2);

struct Ring {
    retention: HistoryRetention,
    known: bool,
}

impl Placement for Ring {
    fn partitions(&self) -> u32 {
        PARTITIONS
    }

    fn is_shared(&self, partition: u32, own: NodeId, peer: NodeId) -> bool {
        assert_eq!((own, peer), (OWN, PEER));
        partition != 3
    }

    fn sharing(&self, keyspace: KeyspaceId, _: u32, own: NodeId, peer: NodeId) -> Sharing {
        assert_eq!((own, peer), (OWN, PEER));
        match keyspace == KEYSPACE {
            true if self.known => Sharing::Both(self.retention),
            true => Sharing::Unknown,
            false => Sharing::Apart,
        }
    }
}

const RING: Ring =
    Ring { retention: HistoryRetention { versions_max: None, age_ms_max: None }, known: true };

fn at(ms: u64) -> Now {
    Now { mono: Instant(0).plus_ms(ms), wall_ms: ms }
}

/// How a session went: (complete, pushed, pulled), the questions it took, and how long.
#[derive(Debug, PartialEq, Eq)]
struct Ended {
    complete: bool,
    pushed: u64,
    pulled: u64,
    asks: u64,
}

/// Runs until a session ends; at the question numbered `fail_at` the peer declines.
fn run(
    machine: &mut AntiEntropy,
    models: &mut [Model; 2],
    ring: &Ring,
    now_ms: &mut u64,
    fail_at: Option<u64>,
) -> Ended {
    let mut asks = 0;
    loop {
        let Some(output) = machine.poll_output() else {
            let next = machine.poll_timeout().expect("something is due");
            *now_ms = next.0.div_ceil(1000).max(*now_ms);
            machine.handle_timeout(at(*now_ms), ring);
            continue;
        };
        asks += 1;
        let index = |to: NodeId| usize::from(to == PEER);
        match output {
            AntiEntropyOutput::Ask { ask, to, query } => {
                let mut answer = models[index(to)].answer(&query);
                if fail_at == Some(asks) {
                    answer = ReplicaAnswer::Declined(Declined::Damaged);
                }
                machine.handle_answer(at(*now_ms), ask, answer, ring);
            }
            AntiEntropyOutput::Copy { ask, to, events } => {
                assert!(!events.is_empty() && events.len() <= TRANSFER_EVENTS_MAX);
                let model = &mut models[index(to)];
                let applied = events.iter().filter(|event| model.apply(event)).count() as u64;
                let applied = (fail_at != Some(asks)).then_some(applied);
                machine.handle_copied(at(*now_ms), ask, applied, ring);
            }
            AntiEntropyOutput::Ended { peer, complete, pushed, pulled } => {
                assert_eq!(peer, PEER);
                return Ended { complete, pushed, pulled, asks: asks - 1 };
            }
        }
    }
}

fn started() -> AntiEntropy {
    let mut machine = AntiEntropy::new(Instant(0), CONFIG, OWN);
    machine.handle_peer_up(Instant(0), PEER);
    machine
}

fn put(key: u8, ms: u64) -> Event {
    event(&[key], ms, Action::Put, b"payload")
}

#[test]
fn each_side_gets_what_it_lacks_and_equal_partitions_cost_nothing() {
    let mut models = [Model::new(10), Model::new(10)];
    let both = put(0, 10);
    for model in &mut models {
        model.apply(&both);
    }
    models[0].apply(&put(1, 20));
    models[1].apply(&put(2, 30));
    models[1].apply(&put(3, 40)); // Partition 3 is not shared.
    let (mut machine, mut now_ms) = (started(), 0);
    let ended = run(&mut machine, &mut models, &RING, &mut now_ms, None);
    // Two digests; for each of two partitions two of its keyspaces, two pages, a fetch and a copy.
    assert_eq!(ended, Ended { complete: true, pushed: 1, pulled: 1, asks: 14 });
    assert_eq!(models[0].events().count(), 3);
    assert_eq!(models[1].events().count(), 4);
    let again = run(&mut machine, &mut models, &RING, &mut now_ms, None);
    assert_eq!(again, Ended { complete: true, pushed: 0, pulled: 0, asks: 2 });
    assert_eq!(
        now_ms,
        61_000 + CONFIG.pause_ms,
        "once an interval, then a pause after the digests"
    );
}

#[test]
fn the_lower_id_begins_unless_a_node_has_just_started() {
    let mut machine = AntiEntropy::new(Instant(0), CONFIG, NodeId(3));
    machine.handle_peer_up(Instant(0), PEER);
    assert_eq!(machine.poll_timeout(), Some(Instant(1_000_000)));
    machine.handle_peer_down(PEER);
    machine.handle_peer_up(Instant(2_000_000), PEER);
    assert_eq!(machine.poll_timeout(), None, "that is the peer's to begin");
    machine.handle_peer_up(Instant(2_000_000), NodeId(4));
    assert_eq!(machine.poll_timeout(), Some(Instant(3_000_000)));
}

#[test]
fn silence_and_refusal_end_a_session_and_the_next_goes_on() {
    let mut models = [Model::new(10), Model::new(10)];
    models[0].apply(&put(1, 20));
    models[1].apply(&put(1, 30));
    for fail_at in 2..=8 {
        let mut models = models.clone();
        let (mut machine, mut now_ms) = (started(), 0);
        let ended = run(&mut machine, &mut models, &RING, &mut now_ms, Some(fail_at));
        assert!(!ended.complete, "refused at {fail_at}");
        assert!(run(&mut machine, &mut models, &RING, &mut now_ms, None).complete);
        assert_eq!(models[0], models[1]);
    }
    let mut machine = started();
    machine.handle_timeout(at(1_000), &RING);
    assert_eq!(machine.poll_timeout(), Some(Instant(6_000_000)));
    machine.handle_timeout(at(6_000), &RING);
    let last = std::iter::from_fn(|| machine.poll_output()).last();
    assert!(matches!(last, Some(AntiEntropyOutput::Ended { complete: false, .. })), "{last:?}");
    machine.handle_timeout(at(61_000), &RING);
    machine.handle_peer_down(PEER);
    let last = std::iter::from_fn(|| machine.poll_output()).last();
    assert!(matches!(last, Some(AntiEntropyOutput::Ended { complete: false, .. })), "{last:?}");
    assert_eq!(machine.poll_timeout(), None);
}

#[test]
fn a_page_that_goes_back_ends_the_session() {
    let mut models = [Model::new(10), Model::new(10)];
    models[0].apply(&put(1, 20));
    let mut machine = started();
    machine.handle_timeout(at(1_000), &RING);
    loop {
        let Some(output) = machine.poll_output() else {
            // The pause after the digests.
            machine.handle_timeout(at(1_000 + CONFIG.pause_ms), &RING);
            continue;
        };
        match output {
            AntiEntropyOutput::Ask { ask, to: PEER, query: ReadQuery::PartitionEvents { .. } } => {
                let events = vec![put(5, 9), put(1, 9)];
                let answer = ReplicaAnswer::Events { events, more: false };
                machine.handle_answer(at(1_000), ask, answer, &RING);
            }
            AntiEntropyOutput::Ask { ask, to, query } => {
                let answer = models[usize::from(to == PEER)].answer(&query);
                machine.handle_answer(at(1_000), ask, answer, &RING);
            }
            AntiEntropyOutput::Ended { complete, .. } => break assert!(!complete),
            copy @ AntiEntropyOutput::Copy { .. } => panic!("{copy:?}"),
        }
    }
}

#[test]
fn young_events_and_unknown_keyspaces_are_left_for_later() {
    let mut models = [Model::new(10), Model::new(10)];
    models[0].apply(&put(1, 950));
    let (mut machine, mut now_ms) = (started(), 0);
    let ended = run(&mut machine, &mut models, &RING, &mut now_ms, None);
    assert_eq!((ended.complete, ended.pushed), (true, 0), "it is 50 ms old");
    assert_eq!(ended.asks, 4, "two digests, two of keyspaces, no pages");
    let unknown = Ring { known: false, ..RING };
    let ended = run(&mut machine, &mut models, &unknown, &mut now_ms, None);
    assert_eq!((ended.pushed, ended.asks), (0, 4), "as before");
    assert_eq!(run(&mut machine, &mut models, &RING, &mut now_ms, None).pushed, 1);
}

#[test]
fn keyspaces_that_are_not_shared_do_not_make_a_partition_be_walked() {
    let mut models = [Model::new(10), Model::new(10)];
    for model in &mut models {
        model.apply(&put(1, 20));
    }
    let foreign = Event { keyspace: KeyspaceId(KEYSPACE.0 + 1), ..put(1, 20) };
    models[0].apply(&foreign);
    let (mut machine, mut now_ms) = (started(), 0);
    let ended = run(&mut machine, &mut models, &RING, &mut now_ms, None);
    assert_eq!((ended.complete, ended.pushed, ended.asks), (true, 0, 4), "no pages");
    let again = run(&mut machine, &mut models, &RING, &mut now_ms, None);
    assert_eq!(again.asks, 2, "it is remembered");
    models[1].apply(&put(5, 30));
    let ended = run(&mut machine, &mut models, &RING, &mut now_ms, None);
    assert_eq!((ended.pushed, ended.pulled, ended.asks), (0, 1, 8));
}

#[test]
fn what_merges_drop_is_not_copied_and_not_walked_for_ever() {
    let retention = HistoryRetention { versions_max: Some(2), age_ms_max: None };
    let ring = Ring { retention, ..RING };
    let mut models = [Model::new(10), Model::new(10)];
    for ms in [10, 20, 30, 40] {
        models[0].apply(&put(1, ms));
    }
    models[1].apply(&put(1, 40));
    let (mut machine, mut now_ms) = (started(), 0);
    let ended = run(&mut machine, &mut models, &ring, &mut now_ms, None);
    assert_eq!((ended.pushed, ended.pulled), (1, 0), "the second version, and no older one");
    let walked = run(&mut machine, &mut models, &ring, &mut now_ms, None);
    assert_eq!((walked.pushed, walked.asks), (0, 6), "two digests, two of keyspaces, two pages");
    let remembered = run(&mut machine, &mut models, &ring, &mut now_ms, None);
    assert_eq!((remembered.pushed, remembered.asks), (0, 2), "two digests");
    // What a merge takes away later changes the digest: it is walked once more.
    models[1].remove(&put(1, 30));
    assert_eq!(run(&mut machine, &mut models, &ring, &mut now_ms, None).pushed, 1);
}

#[test]
fn what_the_other_side_has_let_go_is_not_sent_for_ever() {
    let mut models = [Model::new(10), Model::new(10)];
    models[0].apply(&event(&[1], 10, Action::Delete, b""));
    models[1].floor = stamp(20);
    let (mut machine, mut now_ms) = (started(), 0);
    let sent = run(&mut machine, &mut models, &RING, &mut now_ms, None);
    assert_eq!(
        (sent.pushed, sent.asks),
        (0, 8),
        "two digests, two of keyspaces, two pages, a fetch and a copy in vain"
    );
    let remembered = run(&mut machine, &mut models, &RING, &mut now_ms, None);
    assert_eq!((remembered.pushed, remembered.asks), (0, 2), "two digests");
}

#[test]
fn a_long_absence_is_made_up_in_batches() {
    let mut models = [Model::new(2000), Model::new(2000)];
    for ms in 0..3000 {
        models[1].apply(&put((ms % 200) as u8, 10 + ms));
    }
    let wanted = models[1].events().filter(|event| event.partition != 3).count() as u64;
    let (mut machine, mut now_ms) = (started(), 10_000);
    let ended = run(&mut machine, &mut models, &RING, &mut now_ms, None);
    assert_eq!((ended.pushed, ended.pulled), (0, wanted));
    // A fetch and a copy for each batch, and the pages.
    assert!(ended.asks < 2 * wanted.div_ceil(TRANSFER_EVENTS_MAX as u64) + 30, "{ended:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the two hold, and however short pages are, one session makes them equal and moves nothing twice.
    #[test]
    fn a_session_makes_two_replicas_equal(
        placed in prop::collection::vec((0..12u8, 1..60u64, 1..4u8), 0..120),
        page_max in 1..9usize,
    ) {
        let mut models = [Model::new(page_max), Model::new(page_max)];
        for (key, ms, mask) in placed {
            let event = put(key, ms);
            for (index, model) in models.iter_mut().enumerate() {
                if mask >> index & 1 == 1 && event.partition != 3 {
                    model.apply(&event);
                }
            }
        }
        let before = models.clone();
        let (mut machine, mut now_ms) = (started(), 0);
        let ended = run(&mut machine, &mut models, &RING, &mut now_ms, None);
        prop_assert!(ended.complete);
        prop_assert_eq!(&models[0], &models[1]);
        let grew = |index: usize| {
            (models[index].events().count() - before[index].events().count()) as u64
        };
        prop_assert_eq!((ended.pushed, ended.pulled), (grew(1), grew(0)));
    }
}
