//! Golden transcripts of single writes, and properties over random ones.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use bytes::Bytes;
use proptest::prelude::*;
use starling_clock::HybridTime;
use starling_storage::{Action, KeyspaceId, RequestId};

use super::*;

fn stamp(ms: u64) -> Stamp {
    Stamp::new(HybridTime::new(ms, 0), NodeId(1))
}

fn event() -> Event {
    Event {
        partition: 0,
        keyspace: KeyspaceId(7),
        key: Bytes::from_static(b"key"),
        stamp: Stamp::ZERO,
        request: RequestId { client: 1, sequence: 2 },
        action: Action::Put,
        payload: Bytes::from_static(b"value"),
    }
}

fn plan(replicas: Vec<(NodeId, bool)>, needed: Needed) -> PutPlan {
    let (deadline, hint_at) = (Instant(1000), Instant(100));
    PutPlan { event: event(), replicas, needed, deadline, hint_at }
}

/// Runs a transcript: a line that begins with `>` is a command, the lines below it are what the machine then wants.
///
/// `> new N [3-] any|NUMBER [found MS [superseded]]`, `> stamp MS`, `> skewed`, `> refuse`, `> outcome NODE ATTEMPT OUTCOME [MS]`,
/// `> hinted NODE yes|no`, `> unreachable NODE`, `> reachable NODE`, `> timeout NOW`.
fn run(transcript: &str) -> String {
    let mut put: Option<Put> = None;
    let mut out = String::new();
    for line in transcript.lines().filter(|line| line.starts_with(['>', '#'])) {
        writeln!(out, "{line}").unwrap();
        let Some(command) = line.strip_prefix("> ") else { continue };
        let words: Vec<&str> = command.split_whitespace().collect();
        if words[0] == "new" {
            put = Some(new(&words[1..]));
        } else {
            step(put.as_mut().expect("`new` comes first"), &words);
        }
        describe(put.as_mut().expect("`new` comes first"), &mut out);
    }
    out
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("{word} is no number"))
}

fn new(words: &[&str]) -> Put {
    let away: Vec<u64> =
        words.iter().filter_map(|word| word.strip_suffix('-')).map(number).collect();
    let rest: Vec<&str> = words.iter().copied().filter(|word| !word.ends_with('-')).collect();
    let replicas = 1..=number(rest[0]);
    let replicas = replicas.map(|node| (NodeId(node), !away.contains(&node))).collect();
    let needed = match rest[1] {
        "any" => Needed::Any,
        count => Needed::Replicas(usize::try_from(number(count)).unwrap()),
    };
    let mut plan = plan(replicas, needed);
    if rest.get(2) == Some(&"found") {
        plan.event.stamp = stamp(number(rest[3]));
        return Put::new(plan, Start::Found { superseded: rest.len() > 4 });
    }
    Put::new(plan, Start::Fresh)
}

fn step(put: &mut Put, words: &[&str]) {
    match words {
        ["stamp", ms] => put.handle_stamp(stamp(number(ms))),
        ["skewed"] => put.handle_skewed(),
        ["refuse"] => put.handle_no_stamp(Refusal::StoragePoisoned),
        ["outcome", node, attempt, outcome @ ..] => {
            let outcome = match outcome {
                ["applied"] => WriteOutcome::Applied,
                ["duplicate"] => WriteOutcome::Duplicate,
                ["superseded", ms] => WriteOutcome::Superseded(stamp(number(ms)).into()),
                ["skewed"] => WriteOutcome::Skewed,
                ["not-home"] => WriteOutcome::NotHome,
                ["overloaded"] => WriteOutcome::Overloaded,
                ["invalid"] => WriteOutcome::Invalid,
                ["full"] => WriteOutcome::Full,
                ["poisoned"] => WriteOutcome::Poisoned,
                other => panic!("no such outcome: {other:?}"),
            };
            let attempt = u32::try_from(number(attempt)).unwrap();
            put.handle_outcome(NodeId(number(node)), attempt, outcome);
        }
        ["hinted", node, kept] => put.handle_hinted(NodeId(number(node)), *kept == "yes"),
        ["unreachable", node] => put.handle_unreachable(NodeId(number(node))),
        ["reachable", node] => put.handle_reachable(NodeId(number(node))),
        ["timeout", now] => put.handle_timeout(Instant(number(now))),
        other => panic!("no such command: {other:?}"),
    }
}

fn describe(put: &mut Put, out: &mut String) {
    while let Some(output) = put.poll_output() {
        match output {
            PutOutput::Stamp { above: None } => writeln!(out, "stamp"),
            PutOutput::Stamp { above: Some(above) } => writeln!(out, "stamp above {above}"),
            PutOutput::Send { to, event, mode, attempt } => {
                writeln!(out, "send to {to} {} {mode:?} attempt {attempt}", event.stamp)
            }
            PutOutput::Hint { to, event, wait } => {
                let wait = if wait { ", answer waits" } else { "" };
                writeln!(out, "hint for {to} {}{wait}", event.stamp)
            }
            PutOutput::Answer(Ok(Written { stamp, superseded, acks })) => {
                let superseded = if superseded { " superseded" } else { "" };
                writeln!(out, "answer {stamp} acks {acks}{superseded}")
            }
            PutOutput::Answer(Err(refusal)) => {
                writeln!(out, "answer {:?}: {refusal}", refusal.code())
            }
        }
        .unwrap();
    }
    match put.poll_timeout() {
        Some(timeout) => writeln!(out, "wake at {}", timeout.0).unwrap(),
        None => writeln!(out, "done").unwrap(),
    }
}

/// `UPDATE=1 cargo test` writes the transcripts anew: read the difference before you commit it.
fn check(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/core/put/transcripts")
        .join(format!("{name}.txt"));
    let expected = std::fs::read_to_string(&path).unwrap();
    let actual = run(&expected);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, actual).unwrap();
    } else {
        assert_eq!(actual, expected, "{name}");
    }
}

#[test]
fn transcripts() {
    for name in ["quorum", "restamp", "any", "refusals", "retry", "stamps", "lost"] {
        check(name);
    }
}

/// What happens to a write from outside.
#[derive(Clone, Copy, Debug)]
enum Happening {
    /// The stamp that was asked for, or `None`: it cannot be had.
    Stamp(bool),
    /// The question that was asked last but so many is answered.
    Outcome(usize, WriteOutcome),
    Hinted(u64, bool),
    Unreachable(u64),
    Reachable(u64),
    Timeout(u64),
}

fn any_outcome() -> impl Strategy<Value = WriteOutcome> {
    prop_oneof![
        4 => Just(WriteOutcome::Applied),
        1 => Just(WriteOutcome::Duplicate),
        3 => (0..1000_u64).prop_map(|ms| WriteOutcome::Superseded(stamp(ms).into())),
        1 => Just(WriteOutcome::Skewed),
        1 => Just(WriteOutcome::Overloaded),
        1 => Just(WriteOutcome::Full),
        1 => Just(WriteOutcome::Poisoned),
        1 => Just(WriteOutcome::NotHome),
    ]
}

fn any_happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        4 => prop::bool::weighted(0.9).prop_map(Happening::Stamp),
        8 => (0..12_usize, any_outcome()).prop_map(|(at, outcome)| Happening::Outcome(at, outcome)),
        1 => (1..6_u64, any::<bool>()).prop_map(|(node, kept)| Happening::Hinted(node, kept)),
        1 => (1..6_u64).prop_map(Happening::Unreachable),
        1 => (1..6_u64).prop_map(Happening::Reachable),
        1 => (0..1200_u64).prop_map(Happening::Timeout),
    ]
}

/// What the world saw of one write.
#[derive(Debug, Default)]
struct Seen {
    /// Questions not answered yet: (node, attempt, stamp).
    open: Vec<(NodeId, u32, Stamp)>,
    /// Who took which stamp.
    took: Vec<(NodeId, Stamp)>,
    hints: Vec<(NodeId, Stamp)>,
    kept: Vec<(NodeId, Stamp)>,
    stamps: u64,
    wants_stamp: bool,
    last: Option<Stamp>,
    sent: usize,
    answers: Vec<Result<Written, Refusal>>,
}

impl Seen {
    fn drain(&mut self, put: &mut Put) {
        while let Some(output) = put.poll_output() {
            match output {
                PutOutput::Stamp { .. } => self.wants_stamp = true,
                PutOutput::Send { to, event, attempt, .. } => {
                    self.sent += 1;
                    self.last = Some(event.stamp);
                    self.open.push((to, attempt, event.stamp));
                }
                PutOutput::Hint { to, event, .. } => self.hints.push((to, event.stamp)),
                PutOutput::Answer(answer) => {
                    if let Ok(written) = &answer {
                        assert_eq!(Some(written.stamp), self.last.or(Some(put.event().stamp)));
                    }
                    self.answers.push(answer);
                }
            }
        }
    }

    fn happen(&mut self, put: &mut Put, happening: Happening) {
        match happening {
            Happening::Stamp(given) if self.wants_stamp && put.is_stamping() => {
                self.wants_stamp = false;
                self.stamps += 1;
                if given {
                    put.handle_stamp(stamp(2000 + self.stamps));
                } else {
                    put.handle_no_stamp(Refusal::DiskFull);
                }
            }
            Happening::Outcome(at, outcome) if !self.open.is_empty() => {
                let at = at % self.open.len();
                let (node, attempt, stamp) = self.open.swap_remove(at);
                if matches!(outcome, WriteOutcome::Applied | WriteOutcome::Duplicate) {
                    self.took.push((node, stamp));
                }
                put.handle_outcome(node, attempt, outcome);
            }
            Happening::Hinted(node, kept) => {
                let hint = self.hints.iter().find(|(hinted, _)| *hinted == NodeId(node));
                if let Some(&hint) = hint {
                    if kept {
                        self.kept.push(hint);
                    }
                    put.handle_hinted(NodeId(node), kept);
                }
            }
            Happening::Unreachable(node) => put.handle_unreachable(NodeId(node)),
            Happening::Reachable(node) => put.handle_reachable(NodeId(node)),
            Happening::Timeout(now) => put.handle_timeout(Instant(now)),
            Happening::Stamp(_) | Happening::Outcome(..) => {}
        }
        self.drain(put);
    }
}

proptest! {
    /// One answer; as many acks as the level asks for; every home replica acked or hinted with the last stamp, or
    /// nothing happened; bounded re-stamps; it ends by itself.
    #[test]
    fn promises_hold(
        reachable in prop::collection::vec(prop::bool::weighted(0.8), 1..6),
        level in 0..6_usize,
        happenings in prop::collection::vec(any_happening(), 0..60),
    ) {
        let count = reachable.len();
        let replicas: Vec<_> = (1..).map(NodeId).zip(reachable).collect();
        let needed = if level == 0 { Needed::Any } else { Needed::Replicas(level.min(count)) };
        let mut put = Put::new(plan(replicas.clone(), needed), Start::Fresh);
        let mut seen = Seen::default();
        seen.drain(&mut put);
        for happening in happenings {
            let answered = seen.answers.len();
            seen.happen(&mut put, happening);
            if answered == 0 && let Some(Ok(written)) = seen.answers.first() {
                let took: BTreeMap<_, _> =
                    seen.took.iter().filter(|(_, it)| *it == written.stamp).copied().collect();
                // More may have taken it by an earlier dispatch of the same stamp, whose acks do not count.
                prop_assert!(usize::from(written.acks) <= took.len());
                match needed {
                    Needed::Replicas(needed) => prop_assert!(needed <= took.len()),
                    Needed::Any => prop_assert!(!took.is_empty() || !seen.kept.is_empty()),
                }
            }
        }
        while let Some(timeout) = put.poll_timeout() {
            put.handle_timeout(timeout);
            seen.drain(&mut put);
            prop_assert!(put.poll_timeout() != Some(timeout) || put.is_done());
        }
        prop_assert!(put.is_done());
        prop_assert_eq!(seen.answers.len(), 1);
        prop_assert!(seen.stamps <= u64::from(RESTAMPS_MAX) + 1);
        let nothing_happened = match &seen.answers[0] {
            Err(Refusal::Refused { .. }) => seen.took.is_empty() && seen.hints.is_empty(),
            Err(_) if seen.sent == 0 && seen.hints.is_empty() => true,
            _ => false,
        };
        if !nothing_happened {
            let last = put.event().stamp;
            for (node, _) in replicas {
                let reached = seen.took.contains(&(node, last)) || seen.hints.contains(&(node, last));
                prop_assert!(reached, "{} has no event and no hint of {}", node, last);
            }
        }
    }
}
