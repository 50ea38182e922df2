//! Scans over model replicas in any order of answers and failures.

use proptest::prelude::*;

use super::super::replica::testing::{KEYSPACE, Model, PARTITIONS, event};
use super::*;

const DEADLINE: Instant = Instant(1_000_000);
const NODES: u64 = 4;
const REPLICATION: usize = 3;

/// Home nodes in the model: of partition p all but node p + 1.
fn homes(partition: u32) -> Vec<NodeId> {
    (1..=NODES).filter(|node| *node != u64::from(partition) + 1).map(NodeId).collect()
}

fn plan(first: u32, after: Option<Bytes>, limit: u32, needed: usize) -> ScanPlan {
    let all: Vec<Vec<NodeId>> = (0..PARTITIONS).map(homes).collect();
    ScanPlan {
        keyspace: KEYSPACE,
        prefix: Bytes::new(),
        first,
        after,
        limit,
        homes: range_homes(first, PARTITIONS, |partition| &all[partition as usize]),
        partitions: PARTITIONS,
        candidates: (1..=NODES).map(NodeId).collect(),
        needed,
        deadline: DEADLINE,
        hedge_ms: 20,
    }
}

fn drain(scan: &mut Scan) -> Vec<ReadOutput> {
    std::iter::from_fn(|| scan.poll_output()).collect()
}

fn asked(outputs: &[ReadOutput]) -> Vec<u64> {
    let to = |output: &ReadOutput| match output {
        ReadOutput::Ask { to, .. } | ReadOutput::Repair { to, .. } => to.0,
        ReadOutput::Answer(_) => 0,
    };
    outputs.iter().map(to).collect()
}

#[test]
fn no_more_nodes_are_asked_than_it_takes() {
    // Node 1 is home of 1, 2, 3 and node 2 of 0, 2, 3: 0 and 1 need one more each at level 2, which node 3 gives.
    assert_eq!(asked(&drain(&mut Scan::new(Instant(0), plan(0, None, 9, 2)))), [1, 2, 3]);
    assert_eq!(asked(&drain(&mut Scan::new(Instant(0), plan(0, None, 9, 1)))), [1, 2]);
    assert_eq!(asked(&drain(&mut Scan::new(Instant(0), plan(0, None, 9, 3)))), [1, 2, 3, 4]);
}

#[test]
fn a_level_that_cannot_be_met_is_refused_at_once() {
    let mut plan = plan(0, None, 9, 3);
    plan.candidates.pop();
    let mut scan = Scan::new(Instant(0), plan);
    let last = drain(&mut scan).pop();
    let Some(ReadOutput::Answer(Err(failure))) = last else { panic!("{last:?}") };
    assert!(matches!(failure, ReadFailure::TooFew { reason: Trouble::Unreachable, .. }));
    assert_eq!(scan.poll_timeout(), None);
}

#[test]
fn a_slow_node_is_joined_by_another_and_the_deadline_ends_it() {
    let mut scan = Scan::new(Instant(0), plan(0, None, 9, 2));
    drain(&mut scan);
    assert_eq!(scan.poll_timeout(), Some(Instant(20_000)));
    scan.handle_timeout(Instant(20_000));
    assert_eq!(asked(&drain(&mut scan)), [4]);
    assert_eq!(scan.poll_timeout(), Some(DEADLINE));
    scan.handle_timeout(DEADLINE);
    let outputs = drain(&mut scan);
    assert_eq!(outputs, [ReadOutput::Answer(Err(ReadFailure::Timeout { answered: 0, needed: 2 }))]);
}

#[test]
fn what_a_node_says_of_partitions_that_it_is_no_home_of_does_not_count() {
    let mut scan = Scan::new(Instant(0), plan(0, None, 9, 3));
    let stranger = event(&[0], 5, Action::Put, b"node 1 is no home of partition 0");
    for output in drain(&mut scan) {
        let ReadOutput::Ask { ask, to, .. } = output else { panic!("{output:?}") };
        let events = if to == NodeId(1) { vec![stranger.clone()] } else { Vec::new() };
        scan.handle_answer(ask, ReplicaAnswer::Scanned { events, covered: None });
    }
    let page = ReadValue::Page { rows: Vec::new(), cursor: None };
    assert_eq!(drain(&mut scan), [ReadOutput::Answer(Ok(page))]);
}

#[test]
fn answers_out_of_order_or_out_of_range_are_no_answers() {
    let (low, high) = (event(&[1], 5, Action::Put, b""), event(&[2], 5, Action::Put, b""));
    let bad = [
        (vec![high.clone(), low.clone()], None),
        (vec![low.clone(), low.clone()], None),
        (vec![high], Some((1, Bytes::from_static(&[1])))),
        (vec![event(&[0], 5, Action::Put, b"")], None),
    ];
    for (events, covered) in bad {
        let mut plan = plan(1, None, 9, 1);
        plan.candidates = vec![NodeId(1)];
        let mut scan = Scan::new(Instant(0), plan);
        let outputs = drain(&mut scan);
        let ReadOutput::Ask { ask, .. } = outputs[0] else { panic!("{outputs:?}") };
        scan.handle_answer(ask, ReplicaAnswer::Scanned { events, covered });
        let outputs = drain(&mut scan);
        assert!(
            matches!(
                outputs[..],
                [ReadOutput::Answer(Err(ReadFailure::TooFew { reason: Trouble::Malformed, .. }))]
            ),
            "{outputs:?}"
        );
    }
}

/// Runs a scan of one page to its end; `order` chooses what is delivered, a 9 loses it.
fn run(models: &mut [Model], plan: ScanPlan, order: &[usize]) -> Result<ReadValue, ReadFailure> {
    let mut scan = Scan::new(Instant(0), plan);
    let mut open: Vec<ReadOutput> = Vec::new();
    let (mut answer, mut order) = (None, order.iter());
    loop {
        for output in drain(&mut scan) {
            assert!(answer.is_none(), "nothing after the answer");
            match output {
                ReadOutput::Answer(result) => answer = Some(result),
                other => open.push(other),
            }
        }
        if let Some(answer) = answer {
            assert_eq!(scan.poll_timeout(), None);
            return answer;
        }
        let Some(&at) = order.next().filter(|_| !open.is_empty()) else {
            scan.handle_timeout(DEADLINE);
            continue;
        };
        let output = open.remove(at % open.len());
        match output {
            ReadOutput::Ask { to, .. } | ReadOutput::Repair { to, .. } if at == 9 => {
                open.retain(|other| asked(std::slice::from_ref(other)) != [to.0]);
                scan.handle_unreachable(to);
            }
            ReadOutput::Ask { ask, to, query } => {
                let model = &models[usize::try_from(to.0).unwrap() - 1];
                scan.handle_answer(ask, model.answer(&query));
            }
            ReadOutput::Repair { ask, to, events } => {
                let model = &mut models[usize::try_from(to.0).unwrap() - 1];
                for event in &events {
                    model.apply(event);
                }
                scan.handle_repaired(ask, true);
            }
            ReadOutput::Answer(_) => unreachable!("taken above"),
        }
    }
}

/// Each event at some of its partition's home nodes.
fn any_models() -> impl Strategy<Value = Vec<Model>> {
    let placed = (0..24u8, 1..40u64, 1..8u8);
    prop::collection::vec(placed, 0..60).prop_map(|placed| {
        let mut models = vec![Model::new(5); usize::try_from(NODES).unwrap()];
        for (key, ms, mask) in placed {
            let action = if ms % 4 == 0 { Action::Delete } else { Action::Put };
            let event = event(&[key], ms, action, b"payload");
            for (index, node) in homes(event.partition).iter().enumerate() {
                if mask >> index & 1 == 1 {
                    models[usize::try_from(node.0).unwrap() - 1].apply(&event);
                }
            }
        }
        models
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Page after page: keys in order, each once, none that enough replicas had is missed, and what was shown is at
    /// `needed` replicas.
    #[test]
    fn pages_of_a_scan_make_the_union(
        mut models in any_models(),
        needed in 1..=REPLICATION,
        limit in 1..9u32,
        order in prop::collection::vec(0..9usize, 1..30),
    ) {
        let before = models.clone();
        let (mut first, mut after, mut shown) = (0, None, Vec::new());
        loop {
            let order: Vec<_> = order.iter().copied().cycle().take(100).collect();
            let answer = run(&mut models, plan(first, after, limit, needed), &order);
            let Ok(ReadValue::Page { rows, cursor }) = answer else {
                panic!("all replicas answered: {answer:?}");
            };
            prop_assert!(rows.len() <= limit as usize);
            shown.extend(rows);
            match cursor {
                Some(cursor) => (first, after) = cursor,
                None => break,
            }
        }
        let place = |event: &Event| (event.partition, event.key.clone());
        prop_assert!(shown.is_sorted_by(|a, b| place(a) < place(b)));
        for key in 0..24u8 {
            let row = shown.iter().find(|row| row.key[..] == [key]);
            let newest = |model: &Model| model.versions(&[key]).into_iter().next();
            let at_home: Vec<&Model> = homes(u32::from(key) % PARTITIONS)
                .iter()
                .map(|node| &before[usize::try_from(node.0).unwrap() - 1])
                .collect();
            let mut had: Vec<_> = at_home.iter().map(|model| newest(model)).collect();
            had.sort_by_key(|event| event.as_ref().map(|event| event.stamp));
            // Needed of the three replicas answered: at least this was seen.
            let least = had[needed - 1].clone();
            if let Some(row) = row {
                prop_assert_eq!(row.action, Action::Put);
                prop_assert!(least.is_none_or(|least| least.stamp <= row.stamp));
                let have = models.iter().filter(|model| newest(model).map(|e| e.stamp) >= Some(row.stamp));
                prop_assert!(have.count() >= needed);
            } else {
                let newest = had[REPLICATION - 1].clone();
                let may_be_missing = least.is_none_or(|least| least.action == Action::Delete)
                    || newest.is_some_and(|newest| newest.action == Action::Delete)
                    || had.iter().flatten().any(|event| event.action == Action::Delete);
                prop_assert!(may_be_missing, "key {key} is missing: {had:?}");
            }
        }
    }

    #[test]
    fn a_scan_ends_with_one_answer_whatever_fails(
        mut models in any_models(),
        needed in 1..=REPLICATION,
        order in prop::collection::vec(0..10usize, 0..30),
    ) {
        let _ = run(&mut models, plan(0, None, 100, needed), &order);
    }
}
