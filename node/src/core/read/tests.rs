//! Reads over model replicas in any order of answers, failures and time-outs, and the cases worth a name.

use proptest::prelude::*;
use starling_client::wire::ErrorCode;
use starling_storage::{Action, RequestId};

use super::super::replica::Declined;
use super::super::replica::testing::{KEYSPACE, Model, event, stamp};
use super::*;

const KEY: &[u8] = b"key";
const DEADLINE: Instant = Instant(1_000_000);

fn plan(question: Question, candidates: u64, needed: usize) -> ReadPlan {
    ReadPlan {
        keyspace: KEYSPACE,
        key: Bytes::from_static(KEY),
        question,
        candidates: (1..=candidates).map(NodeId).collect(),
        needed,
        deadline: DEADLINE,
        hedge_ms: 20,
        retention: HistoryRetention::default(),
        wall_ms: 1_000,
    }
}

fn newest() -> Question {
    Question::Newest { at: Stamp::MAX }
}

fn versions(descending: bool, limit: u32) -> Question {
    Question::Versions { from: Stamp::ZERO, to: Stamp::MAX, descending, limit }
}

fn put(ms: u64) -> Event {
    event(KEY, ms, Action::Put, format!("value {ms}").as_bytes())
}

/// What a test sees of an output.
fn show(output: &ReadOutput) -> String {
    match output {
        ReadOutput::Ask { ask, to, query: ReadQuery::Get { payload_size_max, .. } } => {
            format!("ask {} of {to}, payload to {payload_size_max}", ask.0)
        }
        ReadOutput::Ask { ask, to, .. } => format!("ask {} of {to}", ask.0),
        ReadOutput::Repair { ask, to, events } => {
            let stamps: Vec<_> = events.iter().map(|event| event.stamp.to_string()).collect();
            format!("repair {} of {to}: {}", ask.0, stamps.join(" "))
        }
        ReadOutput::Answer(Ok(ReadValue::Newest(event))) => {
            let text = event.as_ref().map(|event| {
                format!("{} {}", event.stamp, String::from_utf8_lossy(&event.payload))
            });
            format!("answer {}", text.unwrap_or_else(|| "nothing".to_owned()))
        }
        ReadOutput::Answer(Ok(ReadValue::Versions { events, more })) => {
            let stamps: Vec<_> = events.iter().map(|event| event.stamp.to_string()).collect();
            format!("answer {}{}", stamps.join(" "), if *more { " ..." } else { "" })
        }
        ReadOutput::Answer(other) => format!("answer {other:?}"),
    }
}

fn drain(read: &mut Read) -> Vec<String> {
    std::iter::from_fn(|| read.poll_output()).map(|output| show(&output)).collect()
}

fn found(event: Event) -> ReplicaAnswer {
    ReplicaAnswer::Event { event: Some(event), cut: false }
}

const NOTHING: ReplicaAnswer = ReplicaAnswer::Event { event: None, cut: false };

#[test]
fn what_differs_is_repaired_before_the_answer() {
    let mut read = Read::new(Instant(0), plan(newest(), 3, 2));
    assert_eq!(
        drain(&mut read),
        ["ask 0 of 1, payload to 4294967295", "ask 1 of 2, payload to 512",]
    );
    read.handle_answer(AskId(0), found(put(5)));
    assert_eq!(drain(&mut read), [""; 0]);
    read.handle_answer(AskId(1), found(put(9)));
    assert_eq!(drain(&mut read), ["repair 2 of 1: 9.0@1"]);
    read.handle_repaired(AskId(2), true);
    assert_eq!(drain(&mut read), ["answer 9.0@1 value 9"]);
    assert_eq!(read.poll_timeout(), None);
}

#[test]
fn a_payload_that_was_left_out_is_fetched() {
    let mut read = Read::new(Instant(0), plan(newest(), 3, 2));
    drain(&mut read);
    read.handle_answer(AskId(0), NOTHING);
    let cut = Event { payload: Bytes::new(), ..put(9) };
    read.handle_answer(AskId(1), ReplicaAnswer::Event { event: Some(cut), cut: true });
    assert_eq!(drain(&mut read), ["ask 2 of 2, payload to 4294967295"]);
    read.handle_answer(AskId(2), found(put(9)));
    assert_eq!(drain(&mut read), ["repair 3 of 1: 9.0@1"]);
    read.handle_repaired(AskId(3), true);
    assert_eq!(drain(&mut read), ["answer 9.0@1 value 9"]);
}

#[test]
fn a_slow_replica_is_joined_by_another() {
    let mut read = Read::new(Instant(0), plan(newest(), 3, 2));
    drain(&mut read);
    read.handle_answer(AskId(0), found(put(5)));
    assert_eq!(read.poll_timeout(), Some(Instant(20_000)));
    read.handle_timeout(Instant(19_999));
    assert_eq!(drain(&mut read), [""; 0]);
    read.handle_timeout(Instant(20_000));
    assert_eq!(drain(&mut read), ["ask 2 of 3, payload to 4294967295"]);
    read.handle_answer(AskId(2), found(put(5)));
    assert_eq!(drain(&mut read), ["answer 5.0@1 value 5"]);
    read.handle_answer(AskId(1), found(put(9)));
    assert_eq!(drain(&mut read), [""; 0], "nothing after the answer");
}

#[test]
fn a_replica_that_does_not_take_a_repair_is_replaced() {
    let mut read = Read::new(Instant(0), plan(newest(), 3, 2));
    drain(&mut read);
    read.handle_answer(AskId(0), found(put(9)));
    read.handle_answer(AskId(1), NOTHING);
    assert_eq!(drain(&mut read), ["repair 2 of 2: 9.0@1"]);
    read.handle_unreachable(NodeId(2));
    assert_eq!(drain(&mut read), ["ask 3 of 3, payload to 4294967295"]);
    read.handle_answer(AskId(3), found(put(12)));
    assert_eq!(drain(&mut read), ["repair 4 of 1: 12.0@1"]);
    read.handle_repaired(AskId(4), true);
    assert_eq!(drain(&mut read), ["answer 12.0@1 value 12"]);
}

#[test]
fn too_few_and_too_late_are_errors_that_say_why() {
    let mut read = Read::new(Instant(0), plan(newest(), 2, 2));
    drain(&mut read);
    read.handle_answer(AskId(0), ReplicaAnswer::Declined(Declined::Damaged));
    let Some(ReadOutput::Answer(Err(failure))) = read.poll_output() else { panic!("no answer") };
    assert_eq!(failure.code(), ErrorCode::Damaged);

    let mut read = Read::new(Instant(0), plan(newest(), 2, 2));
    drain(&mut read);
    read.handle_answer(AskId(0), NOTHING);
    read.handle_timeout(DEADLINE);
    let Some(ReadOutput::Answer(Err(failure))) = read.poll_output() else { panic!("no answer") };
    assert_eq!(failure, ReadFailure::Timeout { answered: 1, needed: 2 });
    assert_eq!(failure.code(), ErrorCode::ReadTimeout);
}

#[test]
fn answers_to_another_question_are_no_answers() {
    let other = event(b"other", 5, Action::Put, b"");
    let later = put(50);
    for answer in [found(other), found(later), ReplicaAnswer::Digests(Vec::new())] {
        let mut read = Read::new(Instant(0), plan(Question::Newest { at: stamp(40) }, 1, 1));
        drain(&mut read);
        read.handle_answer(AskId(0), answer);
        let Some(ReadOutput::Answer(Err(failure))) = read.poll_output() else { panic!() };
        assert!(matches!(failure, ReadFailure::TooFew { reason: Trouble::Malformed, .. }));
    }
}

#[test]
fn a_history_ends_where_the_least_of_the_answers_ends() {
    let mut read = Read::new(Instant(0), plan(versions(false, 10), 2, 2));
    assert_eq!(drain(&mut read), ["ask 0 of 1", "ask 1 of 2"]);
    let first = vec![put(1), put(2), put(3)];
    read.handle_answer(AskId(0), ReplicaAnswer::Events { events: first, more: true });
    let second = vec![put(2), put(4), put(5)];
    read.handle_answer(AskId(1), ReplicaAnswer::Events { events: second, more: false });
    assert_eq!(drain(&mut read), ["repair 2 of 2: 1.0@1 3.0@1"]);
    read.handle_repaired(AskId(2), true);
    assert_eq!(drain(&mut read), ["answer 1.0@1 2.0@1 3.0@1 ..."]);
}

#[test]
fn a_write_that_was_stamped_anew_is_shown_once() {
    let again = Event { request: RequestId { client: 1, sequence: 2 }, ..put(6) };
    let mut read = Read::new(Instant(0), plan(versions(true, 10), 1, 1));
    drain(&mut read);
    let events = vec![again, put(4), put(2)];
    read.handle_answer(AskId(0), ReplicaAnswer::Events { events, more: false });
    assert_eq!(drain(&mut read), ["answer 6.0@1 4.0@1"]);
}

#[test]
fn what_merges_drop_is_not_brought_back() {
    let retention = HistoryRetention { versions_max: Some(2), age_ms_max: None };
    let mut read = Read::new(Instant(0), ReadPlan { retention, ..plan(versions(true, 10), 2, 2) });
    drain(&mut read);
    let all = vec![put(9), put(5), put(3)];
    read.handle_answer(AskId(0), ReplicaAnswer::Events { events: all, more: false });
    let merged = vec![put(9)];
    read.handle_answer(AskId(1), ReplicaAnswer::Events { events: merged, more: false });
    assert_eq!(drain(&mut read), ["repair 2 of 2: 5.0@1"], "and not the third");
}

#[test]
fn what_a_replica_has_let_go_is_not_written_back() {
    let at = stamp(5);
    // Of two versions that are kept, and so many newer ones there: whether the old one is written back.
    for (newer, is_repaired) in
        [(vec![], true), (vec![put(9)], true), (vec![put(7), put(9)], false)]
    {
        let retention = HistoryRetention { versions_max: Some(2), age_ms_max: None };
        let question = Question::Newest { at };
        let mut read = Read::new(Instant(0), ReadPlan { retention, ..plan(question, 2, 2) });
        drain(&mut read);
        read.handle_answer(AskId(0), ReplicaAnswer::Event { event: Some(put(5)), cut: false });
        read.handle_answer(AskId(1), ReplicaAnswer::Event { event: None, cut: false });
        assert_eq!(drain(&mut read), ["ask 2 of 2"], "for what it has beyond");
        read.handle_answer(AskId(2), ReplicaAnswer::Events { events: newer, more: false });
        if is_repaired {
            assert_eq!(drain(&mut read), ["repair 3 of 2: 5.0@1"]);
            read.handle_repaired(AskId(3), true);
        }
        assert_eq!(drain(&mut read), ["answer 5.0@1 value 5"]);
    }
}

#[test]
fn a_version_that_was_replaced_long_ago_is_not_written_back() {
    let retention = HistoryRetention { versions_max: None, age_ms_max: Some(100) };
    for (replaced_ms, is_repaired) in [(899, false), (900, true)] {
        let question = Question::Newest { at: stamp(5) };
        let mut read = Read::new(Instant(0), ReadPlan { retention, ..plan(question, 2, 2) });
        drain(&mut read);
        read.handle_answer(AskId(0), ReplicaAnswer::Event { event: None, cut: false });
        read.handle_answer(AskId(1), ReplicaAnswer::Event { event: Some(put(5)), cut: false });
        assert_eq!(drain(&mut read), ["ask 2 of 1"]);
        let events = vec![put(replaced_ms)];
        read.handle_answer(AskId(2), ReplicaAnswer::Events { events, more: true });
        let expected = if is_repaired { "repair 3 of 1: 5.0@1" } else { "answer 5.0@1 value 5" };
        assert_eq!(drain(&mut read), [expected]);
    }
}

#[test]
fn what_is_no_answer_about_newer_versions_fails_the_replica() {
    let retention = HistoryRetention { versions_max: Some(1), age_ms_max: None };
    let strange = [
        ReplicaAnswer::Declined(Declined::Damaged),
        ReplicaAnswer::Event { event: None, cut: false },
        ReplicaAnswer::Events { events: vec![put(4)], more: false },
        ReplicaAnswer::Events { events: vec![put(9), put(7)], more: false },
    ];
    for answer in strange {
        let question = Question::Newest { at: stamp(5) };
        let mut read = Read::new(Instant(0), ReadPlan { retention, ..plan(question, 2, 2) });
        drain(&mut read);
        read.handle_answer(AskId(0), ReplicaAnswer::Event { event: Some(put(5)), cut: false });
        read.handle_answer(AskId(1), ReplicaAnswer::Event { event: None, cut: false });
        drain(&mut read);
        read.handle_answer(AskId(2), answer);
        let outputs = drain(&mut read);
        assert!(outputs.len() == 1 && outputs[0].contains("TooFew"), "{outputs:?}");
    }
}

/// What happens next in a random run: the number chooses among what is outstanding.
#[derive(Clone, Copy, Debug)]
enum Step {
    Deliver(usize),
    Decline(usize),
    Unreachable(u64),
    Hedge,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..8usize).prop_map(Step::Deliver),
        1 => (0..8usize).prop_map(Step::Decline),
        1 => (1..=5u64).prop_map(Step::Unreachable),
        1 => Just(Step::Hedge),
    ]
}

/// Runs a read over the replicas to its end and gives its one answer.
fn run(models: &mut [Model], plan: ReadPlan, steps: &[Step]) -> Result<ReadValue, ReadFailure> {
    let mut read = Read::new(Instant(0), plan);
    let mut open: Vec<ReadOutput> = Vec::new();
    let (mut answer, mut now) = (None, Instant(0));
    let mut steps = steps.iter();
    loop {
        while let Some(output) = read.poll_output() {
            assert!(answer.is_none(), "nothing after the answer");
            match output {
                ReadOutput::Answer(result) => answer = Some(result),
                other => open.push(other),
            }
        }
        if let Some(answer) = answer {
            assert_eq!(read.poll_timeout(), None);
            return answer;
        }
        let index = |at: usize, open: &Vec<ReadOutput>| at % open.len().max(1);
        match steps.next() {
            Some(Step::Deliver(at) | Step::Decline(at)) if open.is_empty() => {
                let _ = at;
                now = DEADLINE;
                read.handle_timeout(now);
            }
            Some(&Step::Deliver(at)) => match open.remove(index(at, &open)) {
                ReadOutput::Ask { ask, to, query } => {
                    let model = &models[usize::try_from(to.0).unwrap() - 1];
                    read.handle_answer(ask, model.answer(&query));
                }
                ReadOutput::Repair { ask, to, events } => {
                    let model = &mut models[usize::try_from(to.0).unwrap() - 1];
                    for event in &events {
                        model.apply(event);
                    }
                    read.handle_repaired(ask, true);
                }
                ReadOutput::Answer(_) => unreachable!("taken above"),
            },
            Some(&Step::Decline(at)) => match open.remove(index(at, &open)) {
                ReadOutput::Ask { ask, .. } => {
                    read.handle_answer(ask, ReplicaAnswer::Declined(Declined::Overloaded));
                }
                ReadOutput::Repair { ask, .. } => read.handle_repaired(ask, false),
                ReadOutput::Answer(_) => unreachable!("taken above"),
            },
            Some(&Step::Unreachable(node)) => {
                open.retain(|output| match output {
                    ReadOutput::Ask { to, .. } | ReadOutput::Repair { to, .. } => to.0 != node,
                    ReadOutput::Answer(_) => true,
                });
                read.handle_unreachable(NodeId(node));
            }
            Some(Step::Hedge) => {
                now = now.plus_ms(20);
                read.handle_timeout(now);
            }
            None => read.handle_timeout(DEADLINE),
        }
    }
}

/// Five replicas, each with some of the events of the key.
fn any_models(page_max: usize) -> impl Strategy<Value = Vec<Model>> {
    let long = |ms: u64| if ms.is_multiple_of(3) { vec![b'x'; 600] } else { vec![b'y'; 3] };
    prop::collection::vec(prop::collection::btree_set(1..30u64, 0..10), 5).prop_map(
        move |replicas| {
            let model = |stamps: BTreeSet<u64>| {
                let mut model = Model::new(page_max);
                for ms in stamps {
                    model.apply(&event(KEY, ms, Action::Put, &long(ms)));
                }
                model
            };
            replicas.into_iter().map(model).collect()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// A value that was answered is as new as what any of the replicas that count had, and `needed` have it after.
    #[test]
    fn a_read_answers_once_and_what_it_answers_stays(
        mut models in any_models(100),
        needed in 1..=5usize,
        steps in prop::collection::vec(any_step(), 0..60),
    ) {
        let before = models.clone();
        let answer = run(&mut models, plan(newest(), 5, needed), &steps);
        let newest_of = |model: &Model| model.versions(KEY).first().map(|event| event.stamp);
        if let Ok(ReadValue::Newest(event)) = answer {
            let stamp = event.as_ref().map(|event| event.stamp);
            let at_least = models.iter().filter(|model| newest_of(model) >= stamp).count();
            prop_assert!(at_least >= needed);
            // R + W > N: whatever 5 - needed + 1 replicas had before is not missed.
            let mut had: Vec<_> = before.iter().map(newest_of).collect();
            had.sort_unstable();
            prop_assert!(stamp >= had[needed - 1], "{stamp:?} of {had:?}");
            if let Some(event) = event {
                let whole = before.iter().flat_map(Model::events).find(|e| e.stamp == event.stamp);
                prop_assert_eq!(Some(&event), whole);
            }
        }
    }

    /// Page after page a history shows, in order, each event that 5 - needed + 1 replicas had.
    #[test]
    fn pages_of_a_history_make_the_union(
        mut models in any_models(3),
        needed in 1..=5usize,
        descending in any::<bool>(),
        seeds in prop::collection::vec(0..8usize, 4..40),
    ) {
        let before = models.clone();
        let (mut from, mut to, mut shown) = (Stamp::ZERO, Stamp::MAX, Vec::new());
        loop {
            let question = Question::Versions { from, to, descending, limit: 4 };
            let steps: Vec<_> = seeds.iter().cycle().take(200).map(|&at| Step::Deliver(at)).collect();
            let answer = run(&mut models, plan(question, 5, needed), &steps);
            let Ok(ReadValue::Versions { events, more }) = answer else {
                panic!("all replicas answered: {answer:?}");
            };
            shown.extend(events.iter().map(|event| event.stamp));
            if !more {
                break;
            }
            let last = *shown.last().expect("a page with more has something");
            if descending {
                to = stamp(last.time.physical_ms() - 1);
            } else {
                from = stamp(last.time.physical_ms() + 1);
            }
        }
        let ordered = shown.windows(2).all(|pair| pair[0] != pair[1] && (pair[0] > pair[1]) == descending);
        prop_assert!(ordered);
        for ms in 1..30 {
            let had = before.iter().filter(|model| model.events().any(|e| e.stamp == stamp(ms)));
            if had.count() > 5 - needed {
                prop_assert!(shown.contains(&stamp(ms)), "{ms} is missing in {shown:?}");
            }
        }
        for stamp in shown {
            let have = models.iter().filter(|model| model.events().any(|e| e.stamp == stamp));
            prop_assert!(have.count() >= needed, "{stamp} was shown");
        }
    }
}
