//! A subscription over a model of the change log: what it sends, when it reads, where it ends.

use proptest::prelude::*;
use starling_clock::Stamp;
use starling_storage::Action;

use super::super::replica::testing::{KEYSPACE, event, stamp};
use super::*;

/// A change log that hands out short pages.
#[derive(Clone, Debug, Default)]
struct Log {
    first: u64,
    changes: Vec<Change>,
    page_max: usize,
}

impl Log {
    fn new(first: u64, length: u64, page_max: usize) -> Self {
        let change = |sequence: u64| Change {
            sequence,
            event: event(&[b'a' + (sequence % 3) as u8], sequence + 1, Action::Put, b"payload"),
            provenance: Provenance::Write,
            previous: None,
        };
        Self { first, changes: (first..first + length).map(change).collect(), page_max }
    }

    fn end(&self) -> u64 {
        self.first + self.changes.len() as u64
    }

    fn answer(&self, request: &StorageRequest) -> StorageAnswer {
        let end = self.end();
        match request {
            StorageRequest::Changes { from, .. } if *from < self.first => {
                StorageAnswer::ChangesGap { first: self.first, end }
            }
            StorageRequest::Changes { from, .. } => {
                let changes = self.changes.iter().filter(|change| change.sequence >= *from);
                StorageAnswer::Changes {
                    changes: changes.take(self.page_max).cloned().collect(),
                    end,
                }
            }
            StorageRequest::ChangesAt { stamp } => {
                let at = self.changes.iter().find(|change| change.event.stamp >= *stamp);
                StorageAnswer::Sequence(at.map_or(end, |change| change.sequence))
            }
            StorageRequest::Status => {
                let mut report = super::super::storage::StorageReport::default();
                report.storage.changes_end = end;
                StorageAnswer::Status(Box::new(report))
            }
            other => panic!("{other:?} is not for a change log"),
        }
    }
}

fn plan(from: ChangesFrom, follow: bool) -> ChangesPlan {
    ChangesPlan { keyspace: None, prefix: Bytes::new(), partitions: None, from, follow }
}

fn name_of(keyspace: KeyspaceId) -> Option<Text> {
    (keyspace == KEYSPACE).then(|| "orders".into())
}

fn show(item: &ChangesItem) -> String {
    match item {
        ChangesItem::Batch { changes, next, end } => {
            let sequences: Vec<_> = changes.iter().map(|c| c.sequence.to_string()).collect();
            format!("[{}] next {next} end {end}", sequences.join(" "))
        }
        ChangesItem::Gap { from, to } => format!("gap {from} to {to}"),
        ChangesItem::End { next } => format!("end {next}"),
        ChangesItem::Error(error) => format!("error {:?}", error.code),
    }
}

/// Lets the log answer until the subscription asks nothing more; gives the items that it sent.
fn serve(subscription: &mut Subscription, log: &Log) -> Vec<String> {
    let mut items = Vec::new();
    while let Some(output) = subscription.poll_output() {
        match output {
            ChangesOutput::Storage(request) => {
                subscription.handle_storage(log.answer(&request), name_of);
            }
            ChangesOutput::Item(item) => items.push(show(&item)),
        }
    }
    items
}

/// Everything that comes while the stream takes what it gets.
fn serve_all(subscription: &mut Subscription, log: &Log) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        let items = serve(subscription, log);
        if items.is_empty() {
            return all;
        }
        assert_eq!(items.len(), 1, "one item is in flight at a time");
        all.extend(items);
        subscription.handle_ready();
    }
}

#[test]
fn all_of_the_log_and_the_end() {
    let log = Log::new(0, 5, 2);
    let mut subscription = Subscription::new(plan(ChangesFrom::Oldest, false));
    assert_eq!(
        serve_all(&mut subscription, &log),
        ["[0 1] next 2 end 5", "[2 3] next 4 end 5", "[4] next 5 end 5", "end 5",]
    );
    assert!(subscription.is_finished());
}

#[test]
fn an_empty_log_ends_at_once_and_is_followed_quietly() {
    let mut log = Log::new(0, 0, 2);
    let mut subscription = Subscription::new(plan(ChangesFrom::Oldest, false));
    assert_eq!(serve_all(&mut subscription, &log), ["end 0"]);

    let mut subscription = Subscription::new(plan(ChangesFrom::Now, true));
    assert_eq!(serve_all(&mut subscription, &log), ["[] next 0 end 0"]);
    subscription.handle_grew(0);
    assert_eq!(serve_all(&mut subscription, &log), [""; 0]);
    log = Log::new(0, 1, 2);
    subscription.handle_grew(1);
    assert_eq!(serve_all(&mut subscription, &log), ["[0] next 1 end 1"]);
}

#[test]
fn a_slow_stream_costs_two_batches_and_no_more_reading() {
    let log = Log::new(0, 9, 2);
    let mut subscription = Subscription::new(plan(ChangesFrom::Oldest, true));
    assert_eq!(serve(&mut subscription, &log), ["[0 1] next 2 end 9"]);
    subscription.handle_grew(9);
    assert!(subscription.poll_output().is_none(), "a second batch is ready, a third is not read");
    subscription.handle_ready();
    assert_eq!(serve(&mut subscription, &log), ["[2 3] next 4 end 9"]);
}

#[test]
fn retention_that_passed_a_cursor_is_a_gap_but_the_oldest_is_whatever_there_is() {
    let log = Log::new(5, 2, 9);
    let mut subscription = Subscription::new(plan(ChangesFrom::Sequence(2), false));
    assert_eq!(serve_all(&mut subscription, &log), ["gap 2 to 5", "[5 6] next 7 end 7", "end 7"]);
    let mut subscription = Subscription::new(plan(ChangesFrom::Oldest, false));
    assert_eq!(serve_all(&mut subscription, &log), ["[5 6] next 7 end 7", "end 7"]);
    let gone = Log::new(5, 0, 9);
    let mut subscription = Subscription::new(plan(ChangesFrom::Sequence(2), false));
    assert_eq!(serve_all(&mut subscription, &gone), ["gap 2 to 5", "end 5"]);
}

#[test]
fn a_stamp_is_a_place_to_begin() {
    let log = Log::new(0, 5, 9);
    let cursor_zero = Subscription::new(plan(ChangesFrom::Sequence(0), false));
    assert_eq!(serve_all(&mut { cursor_zero }, &Log::new(1, 1, 9)), ["[1] next 2 end 2", "end 2"]);
    let from = ChangesFrom::Stamp(WireStamp(stamp(4)));
    let mut subscription = Subscription::new(plan(from, false));
    assert_eq!(serve_all(&mut subscription, &log), ["[3 4] next 5 end 5", "end 5"]);
    let from = ChangesFrom::Stamp(WireStamp(Stamp::MAX));
    let mut subscription = Subscription::new(plan(from, false));
    assert_eq!(serve_all(&mut subscription, &log), ["end 5"]);
}

#[test]
fn a_filter_leaves_gaps_and_still_moves_the_cursor() {
    let log = Log::new(0, 8, 3);
    let only_b =
        ChangesPlan { prefix: Bytes::from_static(b"b"), ..plan(ChangesFrom::Oldest, true) };
    let mut subscription = Subscription::new(only_b);
    assert_eq!(
        serve_all(&mut subscription, &log),
        ["[1] next 3 end 8", "[4] next 6 end 8", "[7] next 8 end 8",]
    );
    let elsewhere =
        ChangesPlan { keyspace: Some(KeyspaceId(1)), ..plan(ChangesFrom::Oldest, true) };
    let mut subscription = Subscription::new(elsewhere);
    assert_eq!(serve_all(&mut subscription, &log), ["[] next 8 end 8"]);
    let only_c = ChangesPlan { partitions: Some((3, 3)), ..plan(ChangesFrom::Oldest, false) };
    let mut subscription = Subscription::new(only_c);
    assert_eq!(
        serve_all(&mut subscription, &log),
        ["[2] next 3 end 8", "[5] next 6 end 8", "end 8"],
        "c is 99, partition 3 of 4"
    );
}

#[test]
fn what_cannot_be_read_ends_it_with_an_error() {
    let log = Log::new(0, 5, 9);
    let mut subscription = Subscription::new(plan(ChangesFrom::Sequence(6), true));
    assert_eq!(serve_all(&mut subscription, &log), ["error OutOfBounds"]);
    assert!(subscription.is_finished());
    let mut subscription = Subscription::new(plan(ChangesFrom::Oldest, true));
    subscription.handle_storage(StorageAnswer::Failed(StorageFailure::Damaged), name_of);
    subscription.poll_output();
    assert_eq!(serve_all(&mut subscription, &log), ["error Damaged"]);
    subscription.handle_grew(9);
    assert!(subscription.poll_output().is_none(), "nothing is read after the error");
}

#[test]
fn a_keyspace_without_a_name_is_told_by_its_number() {
    let mut change = Log::new(0, 1, 1).changes.remove(0);
    assert_eq!(change_to_wire(&change, name_of).keyspace, Text::from("orders"));
    change.event.keyspace = KeyspaceId(0xab);
    assert_eq!(change_to_wire(&change, name_of).keyspace, Text::from("00000000000000ab"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// However the log grows, is cut, and is taken: what is sent and what is named as gone make up the log, in order.
    #[test]
    fn nothing_is_sent_twice_or_left_out(
        start in 1..4u64,
        page_max in 1..4usize,
        steps in prop::collection::vec(0..4u8, 0..60),
    ) {
        let mut log = Log::new(0, 4, page_max);
        let mut subscription = Subscription::new(plan(ChangesFrom::Sequence(start), true));
        let (mut expected, mut taking) = (start, false);
        for step in steps.into_iter().chain(std::iter::repeat_n(0, 200)) {
            match step {
                0 if taking => {
                    taking = false;
                    subscription.handle_ready();
                }
                1 => {
                    let grown = Log::new(log.first, log.changes.len() as u64 + 1, page_max);
                    log = grown;
                    subscription.handle_grew(log.end());
                }
                2 if !log.changes.is_empty() => {
                    log.changes.remove(0);
                    log.first += 1;
                }
                _ => {}
            }
            if let Some(output) = subscription.poll_output() {
                match output {
                    ChangesOutput::Storage(request) => {
                        subscription.handle_storage(log.answer(&request), name_of);
                    }
                    ChangesOutput::Item(item) => {
                        prop_assert!(!taking, "one item is in flight at a time");
                        taking = true;
                        match &*item {
                            ChangesItem::Batch { changes, next, .. } => {
                                for change in changes.iter() {
                                    prop_assert_eq!(change.sequence, expected);
                                    expected += 1;
                                }
                                prop_assert_eq!(*next, expected);
                            }
                            ChangesItem::Gap { from, to } => {
                                prop_assert_eq!(*from, expected);
                                prop_assert!(from < to);
                                expected = *to;
                            }
                            other => prop_assert!(false, "{other:?}"),
                        }
                    }
                }
            }
        }
        prop_assert_eq!(expected, log.end());
    }
}
