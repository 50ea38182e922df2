//! Carries storage requests out on the real engine: [`Writer`] in one group commit a batch, [`Reader`] from any thread.
//!
//! Invariants:
//!
//! - They decide nothing: a request becomes calls of `starling-storage`, their outcome an answer.
//! - Every request of a batch gets one answer, in order. A request that the engine refuses does not fail the others.
//! - A reader sees all events that were answered before it was asked.
//! - Damage that a request meets is in the engine's damage log before the request is answered.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use starling_client::wire::{self, StorageStatus};
use starling_clock::Stamp;
use starling_storage::{
    DamageLog, DamageStatus, Disk, Error, FoundBy, Order, Outcome, PartitionCursor, Storage, Sync,
    View, Write,
};

use super::storage::{StorageAnswer, StorageFailure, StorageReport, StorageRequest};
use super::types::Ticket;

/// The engine, and the view that readers share.
pub struct Writer<D: Disk> {
    storage: Storage<D>,
    view: Arc<Mutex<View<D>>>,
}

/// Reads what the [`Writer`] has answered.
pub struct Reader<D: Disk> {
    view: Arc<Mutex<View<D>>>,
    damage: DamageLog,
}

impl<D: Disk> Clone for Reader<D> {
    fn clone(&self) -> Self {
        Self { view: self.view.clone(), damage: self.damage.clone() }
    }
}

/// One request of a batch until it is answered.
struct Pending {
    ticket: Ticket,
    request: StorageRequest,
    /// How many writes it is.
    writes: usize,
    answer: Option<StorageAnswer>,
}

impl<D: Disk> Writer<D> {
    /// Takes over the engine.
    pub fn new(storage: Storage<D>) -> Self {
        let view = Arc::new(Mutex::new(storage.view()));
        Self { storage, view }
    }

    /// A reader of what this writer has answered.
    pub fn reader(&self) -> Reader<D> {
        Reader { view: self.view.clone(), damage: self.storage.damage_log() }
    }

    /// The engine.
    pub fn storage(&self) -> &Storage<D> {
        &self.storage
    }

    /// The engine, for background work and syncs.
    pub fn storage_mut(&mut self) -> &mut Storage<D> {
        &mut self.storage
    }

    /// Carries out the requests as one group commit; see [`StorageRequest::is_write_lane`].
    pub fn execute(
        &mut self,
        now_ms: u64,
        batch: Vec<(Ticket, StorageRequest)>,
    ) -> Vec<(Ticket, StorageAnswer)> {
        let pending = |(ticket, request)| {
            let writes = count_writes(&request);
            Pending { ticket, request, writes, answer: None }
        };
        let mut batch: Vec<Pending> = batch.into_iter().map(pending).collect();
        self.commit(now_ms, &mut batch);
        let mut view = lock(&self.view);
        if !self.storage.is_current(&view) {
            *view = self.storage.view();
        }
        drop(view);
        let answer = |pending: Pending| {
            let Pending { ticket, request, answer, .. } = pending;
            (ticket, answer.unwrap_or_else(|| self.read(request)))
        };
        batch.into_iter().map(answer).collect()
    }

    /// Commits all writes of the batch together. What stands in the way of that is taken out and answered.
    fn commit(&mut self, now_ms: u64, batch: &mut [Pending]) {
        loop {
            let open = || |pending: &&mut Pending| pending.is_open();
            let together: Vec<&mut Pending> = batch.iter_mut().filter(open()).collect();
            if together.is_empty() {
                return;
            }
            match self.commit_together(now_ms, &together) {
                Ok(outcomes) => {
                    let mut outcomes = outcomes.into_iter();
                    for pending in together {
                        let count = pending.writes;
                        pending.settle(outcomes.by_ref().take(count).collect());
                    }
                    return;
                }
                // A full queue stays full for a while: the others must not pay for it with a sync each.
                Err(Error::HintsFull { target, .. }) => {
                    let mut refused = 0;
                    for pending in together {
                        if let StorageRequest::Hint { targets, .. } = &pending.request
                            && targets.contains(&target)
                        {
                            pending.answer = Some(StorageAnswer::Failed(StorageFailure::Full));
                            refused += 1;
                        }
                    }
                    assert!(0 < refused, "hints are full for one that is hinted");
                }
                Err(error) if is_for_all(&error) => {
                    let failure = self.failure(&error);
                    for pending in together {
                        pending.answer = Some(StorageAnswer::Failed(failure));
                    }
                    return;
                }
                Err(_) => {
                    for pending in together {
                        match self.commit_together(now_ms, &[&mut *pending]) {
                            Ok(outcomes) => pending.settle(outcomes),
                            Err(error) => {
                                let failure = self.failure(&error);
                                pending.answer = Some(StorageAnswer::Failed(failure));
                            }
                        }
                    }
                    return;
                }
            }
        }
    }

    fn commit_together(
        &mut self,
        now_ms: u64,
        together: &[&mut Pending],
    ) -> Result<Vec<Outcome>, Error> {
        let sync = |pending: &&mut Pending| match &pending.request {
            StorageRequest::Apply { sync, .. } | StorageRequest::Hint { sync, .. } => *sync,
            _ => false,
        };
        let sync = if together.iter().any(sync) { Sync::Now } else { Sync::Later };
        let count = together.iter().map(|pending| pending.writes).sum();
        let mut writes = Vec::with_capacity(count);
        for pending in together {
            put_writes(&pending.request, &mut writes);
        }
        assert_eq!(writes.len(), count);
        self.storage.commit(writes, sync, now_ms)
    }

    /// What writes nothing: settings, and reads of what is the writer's own.
    fn read(&mut self, request: StorageRequest) -> StorageAnswer {
        match request {
            StorageRequest::Retention { keyspace, retention } => {
                self.storage.set_retention(keyspace, retention);
                StorageAnswer::Done
            }
            StorageRequest::Hints { target, after, bytes_max } => {
                match self.storage.hints(target, after, bytes_max) {
                    Ok(page) => {
                        if 0 < page.lost {
                            let (up_to, lost) = (page.up_to, page.lost);
                            tracing::error!(%target, up_to, lost, "damaged hints are passed over");
                        }
                        StorageAnswer::Hints { hints: page.hints, up_to: page.up_to }
                    }
                    Err(error) => StorageAnswer::Failed(self.failure(&error)),
                }
            }
            StorageRequest::Status => StorageAnswer::Status(Box::new(self.report())),
            StorageRequest::Apply { .. } => StorageAnswer::Applied(Vec::new()),
            StorageRequest::Hint { .. }
            | StorageRequest::HintsDelivered { .. }
            | StorageRequest::Meta { .. } => StorageAnswer::Done,
            StorageRequest::Get { .. }
            | StorageRequest::Versions { .. }
            | StorageRequest::Scan { .. }
            | StorageRequest::Changes { .. }
            | StorageRequest::ChangesAt { .. }
            | StorageRequest::Digests { .. }
            | StorageRequest::KeyspaceDigests { .. }
            | StorageRequest::PartitionEvents { .. } => self.reader().execute(request),
        }
    }

    fn report(&self) -> StorageReport {
        let status = self.storage.status();
        let storage = StorageStatus {
            memtable_bytes: status.memtable_bytes,
            tables: status.tables,
            table_bytes: status.table_bytes,
            wal_bytes: status.wal_bytes,
            changes_first: status.changes_first,
            changes_end: status.changes_end,
            change_bytes: status.change_bytes,
            poisoned: status.poisoned,
        };
        let damage = damage_on_the_wire(self.storage.damage_log().status());
        StorageReport { storage, hints: self.storage.hint_targets(), damage }
    }

    /// What a request is answered that met this error.
    fn failure(&self, error: &Error) -> StorageFailure {
        failure(&self.storage.damage_log(), error)
    }
}

fn damage_on_the_wire(damage: DamageStatus) -> wire::DamageStatus {
    let place = |place: starling_storage::DamagedPlace| wire::DamagedPlace {
        file: place.file.into(),
        offset: place.offset,
        what: place.what.into(),
        found_by: match place.found_by {
            FoundBy::Start => wire::FoundBy::Start,
            FoundBy::Request => wire::FoundBy::Request,
            FoundBy::Work => wire::FoundBy::Work,
            FoundBy::Scrub => wire::FoundBy::Scrub,
        },
    };
    wire::DamageStatus {
        places: damage.places,
        latest: damage.latest.into_iter().map(place).collect(),
        scrub_rounds: damage.scrub.rounds,
        scrub_damaged: damage.scrub.damaged,
    }
}

impl Pending {
    fn is_open(&self) -> bool {
        self.answer.is_none() && 0 < self.writes
    }

    fn settle(&mut self, outcomes: Vec<Outcome>) {
        assert_eq!(outcomes.len(), self.writes);
        self.answer = Some(match self.request {
            StorageRequest::Apply { .. } => StorageAnswer::Applied(outcomes),
            _ => StorageAnswer::Done,
        });
    }
}

impl<D: Disk> Reader<D> {
    /// Carries out one request of the read lane.
    pub fn execute(&self, request: StorageRequest) -> StorageAnswer {
        let view = lock(&self.view).clone();
        match read(&view, request) {
            Ok(answer) => answer,
            Err(error) => StorageAnswer::Failed(failure(&self.damage, &error)),
        }
    }
}

/// A thread that panicked leaves the view as it was.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many writes a request is; 0 if it writes nothing.
fn count_writes(request: &StorageRequest) -> usize {
    match request {
        StorageRequest::Apply { events, .. } => events.len(),
        StorageRequest::Hint { targets, .. } => targets.len(),
        StorageRequest::HintsDelivered { .. } | StorageRequest::Meta { .. } => 1,
        _ => 0,
    }
}

/// Adds the writes that a request is.
fn put_writes(request: &StorageRequest, writes: &mut Vec<Write>) {
    match request {
        StorageRequest::Apply { events, provenance, mode, .. } => {
            let (provenance, mode) = (*provenance, *mode);
            let apply = |event: &starling_storage::Event| Write::Apply {
                event: event.clone(),
                provenance,
                mode,
            };
            writes.extend(events.iter().map(apply));
        }
        StorageRequest::Hint { targets, event, .. } => {
            let hint = |&target| Write::Hint { target, event: event.clone() };
            writes.extend(targets.iter().map(hint));
        }
        StorageRequest::HintsDelivered { target, up_to } => {
            writes.push(Write::HintsDone { target: *target, up_to: *up_to });
        }
        StorageRequest::Meta { name, value } => {
            writes.push(Write::Meta { name: name.clone(), value: value.clone() });
        }
        _ => {}
    }
}

/// The error is not about one write of the commit.
fn is_for_all(error: &Error) -> bool {
    matches!(
        error,
        Error::WriteFailed { .. } | Error::Poisoned | Error::Full { .. } | Error::Busy { .. }
    )
}

/// What the core is told. Which file and what the system said is for the logs alone; damage is told once, however many meet it.
fn failure(damage: &DamageLog, error: &Error) -> StorageFailure {
    let is_new = damage.note_error(FoundBy::Request, error);
    match error {
        Error::Full { .. } | Error::HintsFull { .. } => StorageFailure::Full,
        Error::WriteFailed { .. } => {
            tracing::error!(?error, "storage takes no more writes until the node is restarted");
            StorageFailure::Poisoned
        }
        Error::Poisoned => StorageFailure::Poisoned,
        Error::Busy { .. } => StorageFailure::Busy,
        Error::TooLarge { .. } | Error::KeyEmpty | Error::Gap { .. } => StorageFailure::Invalid,
        _ => {
            if is_new {
                tracing::error!(?error, "storage could not serve a request");
            } else {
                tracing::debug!(?error, "storage could not serve a request");
            }
            StorageFailure::Damaged
        }
    }
}

fn read<D: Disk>(view: &View<D>, request: StorageRequest) -> Result<StorageAnswer, Error> {
    match request {
        StorageRequest::Get { partition, keyspace, key, at, payload_size_max } => {
            let mut event = view.get(partition, keyspace, &key, at)?;
            let cut = event.as_ref().is_some_and(|it| it.payload.len() > payload_size_max);
            if let Some(event) = event.as_mut().filter(|_| cut) {
                event.payload = Bytes::new();
            }
            Ok(StorageAnswer::Event { event, cut })
        }
        StorageRequest::Versions {
            partition,
            keyspace,
            key,
            from,
            to,
            descending,
            limit,
            bytes_max,
        } => {
            let order = if descending { Order::Descending } else { Order::Ascending };
            let page =
                view.versions(partition, keyspace, &key, from, to, order, limit, bytes_max)?;
            Ok(StorageAnswer::Events { events: page.events, more: page.more })
        }
        StorageRequest::Scan { .. } => scan(view, request),
        StorageRequest::Changes { from, limit, bytes_max } => {
            // The end first: the log may grow meanwhile, and nothing before an end may seem to be missing.
            let (_, end) = view.change_range();
            let changes = view.changes(from, limit, bytes_max);
            match changes {
                Ok(changes) => Ok(StorageAnswer::Changes { changes, end }),
                Err(Error::Gap { first, .. }) => Ok(StorageAnswer::ChangesGap { first, end }),
                Err(error) => Err(error),
            }
        }
        StorageRequest::ChangesAt { stamp } => Ok(StorageAnswer::Sequence(view.changes_at(stamp)?)),
        StorageRequest::KeyspaceDigests { partition, up_to } => {
            Ok(StorageAnswer::KeyspaceDigests(view.keyspace_digests(partition, up_to)?))
        }
        StorageRequest::Digests { first, last } => {
            let mut digests = Vec::new();
            for partition in first..=last {
                let digest = view.digest(partition)?;
                if digest.events > 0 {
                    digests.push((partition, digest.events, digest.hash));
                }
            }
            Ok(StorageAnswer::Digests(digests))
        }
        StorageRequest::PartitionEvents { partition, after, limit, bytes_max, ids_only } => {
            let cursor =
                after.map(|(keyspace, key, stamp)| PartitionCursor { keyspace, key, stamp });
            let cursor = cursor.as_ref();
            let page = if ids_only {
                view.partition_identities(partition, cursor, limit, bytes_max)?
            } else {
                view.partition_events(partition, cursor, limit, bytes_max)?
            };
            let (events, more) = (page.events, page.more);
            Ok(StorageAnswer::PartitionEvents { events, more })
        }
        StorageRequest::Apply { .. }
        | StorageRequest::Hint { .. }
        | StorageRequest::HintsDelivered { .. }
        | StorageRequest::Meta { .. }
        | StorageRequest::Retention { .. }
        | StorageRequest::Hints { .. }
        | StorageRequest::Status => panic!("the writer's lane"),
    }
}

fn scan<D: Disk>(view: &View<D>, request: StorageRequest) -> Result<StorageAnswer, Error> {
    let StorageRequest::Scan { first, last, keyspace, prefix, after, limit, bytes_max } = request
    else {
        panic!("a scan is asked for");
    };
    let (partitions, at) = (first..=last, Stamp::MAX);
    let after = after.as_deref();
    let page = view.scan_partitions(partitions, keyspace, &prefix, after, at, limit, bytes_max)?;
    let end = page.events.last().filter(|_| page.more);
    let covered = end.map(|it| (it.partition, it.key.clone()));
    Ok(StorageAnswer::Scanned { events: page.events, covered })
}

#[cfg(test)]
mod tests {
    use starling_clock::{HybridTime, NodeId};
    use starling_storage::{
        Action, Config, Event, Identity, KeyspaceId, Mode, Provenance, RequestId, SimDisk,
    };

    use super::*;

    fn writer(disk: &SimDisk, config: Config) -> Writer<SimDisk> {
        let identity = Identity { cluster: "test".into(), node: NodeId(1) };
        Writer::new(Storage::open(Arc::new(disk.clone()), config, identity).unwrap())
    }

    fn event(key: &str, ms: u64, size: usize) -> Event {
        Event {
            partition: 0,
            keyspace: KeyspaceId(7),
            key: Bytes::copy_from_slice(key.as_bytes()),
            stamp: Stamp::new(HybridTime::new(ms, 0), NodeId(1)),
            request: RequestId::default(),
            action: Action::Put,
            payload: vec![0; size].into(),
        }
    }

    fn apply(events: Vec<Event>) -> StorageRequest {
        let (provenance, mode) = (Provenance::Write, Mode::Direct);
        StorageRequest::Apply { events, provenance, mode, sync: true }
    }

    fn hint(target: u64, size: usize) -> StorageRequest {
        let event = event("hinted", 1, size);
        StorageRequest::Hint { targets: vec![NodeId(target)], event, sync: false }
    }

    fn execute(writer: &mut Writer<SimDisk>, requests: Vec<StorageRequest>) -> Vec<StorageAnswer> {
        let tickets = (1..).map(Ticket);
        let batch: Vec<_> = tickets.clone().zip(requests).collect();
        let answers = writer.execute(0, batch);
        assert!(answers.iter().map(|(ticket, _)| *ticket).eq(tickets.take(answers.len())));
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    #[test]
    fn a_batch_is_one_sync_and_a_bad_event_fails_alone() {
        let disk = SimDisk::new(1);
        let mut writer = writer(&disk, Config { payload_size_max: 10, ..Config::default() });
        let before = disk.syncs();
        let many = (0..20).map(|number| apply(vec![event(&format!("k{number}"), 5, 1)]));
        let answers = execute(&mut writer, many.collect());
        assert!(answers.iter().all(|answer| matches!(answer, StorageAnswer::Applied(_))));
        assert_eq!(disk.syncs() - before, 1);

        let requests = vec![
            apply(vec![event("a", 5, 1), event("k1", 4, 1)]),
            apply(vec![event("large", 5, 11)]),
            StorageRequest::Meta { name: "name".into(), value: Bytes::from_static(b"value") },
            StorageRequest::Status,
        ];
        let answers = execute(&mut writer, requests);
        let StorageAnswer::Applied(outcomes) = &answers[0] else { panic!("{answers:?}") };
        assert!(matches!(outcomes[..], [Outcome::Applied { .. }, Outcome::Superseded { .. }]));
        assert!(matches!(answers[1], StorageAnswer::Failed(StorageFailure::Invalid)));
        assert!(matches!(answers[2], StorageAnswer::Done));
        assert!(
            matches!(&answers[3], StorageAnswer::Status(report) if report.storage.changes_end > 20)
        );
        assert!(writer.storage().meta("name").is_some());
    }

    #[test]
    fn damage_that_a_read_meets_is_in_the_report() {
        let disk = SimDisk::new(1);
        let mut tree = Config::default().tree;
        tree.block_cache_bytes = 0;
        let config = Config { memtable_bytes_max: 64 << 10, tree, ..Config::default() };
        let mut writer = writer(&disk, config);
        for number in 0..20 {
            execute(&mut writer, vec![apply(vec![event(&format!("k{number:02}"), 5, 8 << 10)])]);
        }
        while writer.storage_mut().work(0).unwrap() == starling_storage::Progress::Did {}
        writer.execute(0, Vec::new());
        let table = disk.list("tables").unwrap().into_iter().find(|name| name.len() == 22);
        let file = format!("tables/{}", table.unwrap());
        disk.flip_bit(&file, 20, 1);
        let get = StorageRequest::Get {
            partition: 0,
            keyspace: KeyspaceId(7),
            key: Bytes::from_static(b"k00"),
            at: Stamp::MAX,
            payload_size_max: 100,
        };
        let damage =
            |writer: &mut Writer<SimDisk>| match execute(writer, vec![StorageRequest::Status])
                .remove(0)
            {
                StorageAnswer::Status(report) => report.damage,
                answer => panic!("{answer:?}"),
            };
        assert_eq!(damage(&mut writer), wire::DamageStatus::default());
        for _ in 0..2 {
            let answer = writer.reader().execute(get.clone());
            assert!(matches!(answer, StorageAnswer::Failed(StorageFailure::Damaged)), "{answer:?}");
        }
        let place = wire::DamagedPlace {
            file: file.into(),
            offset: 0,
            what: "a table block".into(),
            found_by: wire::FoundBy::Request,
        };
        let expected = wire::DamageStatus {
            places: 1,
            latest: vec![place].into(),
            scrub_rounds: 0,
            scrub_damaged: 0,
        };
        assert_eq!(damage(&mut writer), expected);
    }

    #[test]
    fn full_hints_fail_alone_and_at_no_cost() {
        let disk = SimDisk::new(1);
        let config = Config { hint_bytes_max: 2000, ..Config::default() };
        let mut writer = writer(&disk, config);
        execute(&mut writer, vec![hint(3, 1)]);
        for _ in 0..3 {
            execute(&mut writer, vec![hint(2, 900)]);
        }
        let before = disk.syncs();
        let requests = vec![apply(vec![event("k", 1, 1)]), hint(2, 900), hint(3, 900)];
        let answers = execute(&mut writer, requests);
        assert!(matches!(answers[0], StorageAnswer::Applied(_)));
        assert!(matches!(answers[1], StorageAnswer::Failed(StorageFailure::Full)));
        assert!(matches!(answers[2], StorageAnswer::Done));
        assert_eq!(disk.syncs() - before, 1);
    }

    #[test]
    fn a_reader_sees_what_was_answered_also_after_flushes() {
        let disk = SimDisk::new(1);
        let config = Config { memtable_bytes_max: 4096, ..Config::default() };
        let mut writer = writer(&disk, config);
        let reader = writer.reader();
        for number in 0..100 {
            let key = format!("k{number:03}");
            execute(&mut writer, vec![apply(vec![event(&key, 5, 200)])]);
            let key = Bytes::from(key);
            let (partition, keyspace, at) = (0, KeyspaceId(7), Stamp::MAX);
            let get = StorageRequest::Get { partition, keyspace, key, at, payload_size_max: 100 };
            let answer = reader.execute(get);
            let StorageAnswer::Event { event: Some(event), cut: true } = answer else {
                panic!("{answer:?}")
            };
            assert!(event.payload.is_empty());
            writer.storage_mut().work(0).unwrap();
        }
        // A scan by pages is everything, once, in order.
        let (mut after, mut keys) = (None, Vec::new());
        loop {
            let answer = reader.execute(StorageRequest::Scan {
                first: 0,
                last: 3,
                keyspace: KeyspaceId(7),
                prefix: Bytes::from_static(b"k0"),
                after: after.take(),
                limit: 7,
                bytes_max: 10_000,
            });
            let StorageAnswer::Scanned { events, covered } = answer else { panic!("{answer:?}") };
            assert!(events.len() <= 7);
            keys.extend(events.into_iter().map(|event| event.key));
            let Some((partition, key)) = covered else { break };
            assert_eq!(partition, 0);
            after = Some(key);
        }
        let expected: Vec<_> =
            (0..100).map(|number| Bytes::from(format!("k{number:03}"))).collect();
        assert_eq!(keys, expected);
    }
}
