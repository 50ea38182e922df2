//! Simulated clients: sessions that ask, wait, give up, ask again and vanish.
//!
//! Invariants:
//!
//! - A client has one operation in flight at a time; everything that it asks and is answered is in the history.
//! - A repetition has the request id of the first attempt, and is made only of writes whose outcome is unknown.
//! - A client that gave up or vanished takes no answer any more.
//! - Keyspaces are made by clients like everything else; what was answered as made is used by all of them.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use starling_client::codec::{Blob, Text, WireStamp};
use starling_client::wire::{
    Action as WireAction, Cursor, ErrorKind, Header, KeyspaceSettings, Request,
    RequestId as WireRequestId, Response, Version,
};
use starling_clock::Stamp;
use starling_node::core::types::{ConnectionId, Input};
use starling_storage::{Action, RequestId};

use super::event::Event;
use super::keyspaces::is_built_in;
use super::world::{NOBODY, World};
use crate::history::{Ask, Operation, Place, Reply, Seen};
use crate::workload::Workload;

/// Attempts at one write.
const ATTEMPTS_MAX: u8 = 4;
/// Stamps that reads as of a stamp are drawn from.
const STAMPS_MAX: usize = 64;

/// One session.
#[derive(Debug)]
struct Client {
    id: u64,
    sequence: u64,
    /// It sends what it has seen.
    session: bool,
    seen: u64,
    /// Whom it prefers to ask.
    home: usize,
    current: Option<usize>,
    /// When it has no more patience with that, in microseconds.
    patient_until_us: u64,
    /// When it next looks whether that is over; never later than it is, and once for all that is answered in time.
    alarm_us: Option<u64>,
    /// What to ask again.
    again: Option<usize>,
    /// The scan whose next page is to be asked for.
    page: Option<usize>,
    /// When the next operation is due.
    due_us: u64,
}

/// All clients, and what they draw from.
#[derive(Debug)]
pub(super) struct Clients {
    random: ChaCha8Rng,
    pub(super) workload: Workload,
    /// All of the run; the first is there from the beginning.
    all: Vec<KeyspaceSettings>,
    /// Those that somebody was told are there.
    keyspaces: Vec<String>,
    /// Those that nobody was told of yet, and when somebody begins to make them.
    unmade: Vec<(u64, KeyspaceSettings)>,
    /// Stamps that were seen lately.
    stamps: Vec<Stamp>,
    sessions: Vec<Client>,
    /// Time between the operations of one client, in microseconds.
    interval_us: u64,
    next_id: u64,
    /// No new operations.
    pub(super) stopped: bool,
}

impl Clients {
    /// `count` clients that together make `per_second` operations a second until `until_us`.
    pub(super) fn new(
        seed: u64,
        workload: Workload,
        all: Vec<KeyspaceSettings>,
        (nodes, count, per_second): (usize, usize, u64),
        until_us: u64,
    ) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let (built_in, drawn) = all.iter().partition::<Vec<_>, _>(|it| is_built_in(it));
        let at_once = random.random_range(0..2) == 0;
        let begin = |settings: &KeyspaceSettings| {
            let at_us = if at_once { 0 } else { random.random_range(0..until_us) };
            (at_us, settings.clone())
        };
        let unmade = drawn.into_iter().map(begin).collect();
        let keyspaces = built_in.into_iter().map(|it| it.name.0.clone()).collect();
        let client = |index: usize| Client {
            id: index as u64 + 1,
            sequence: 0,
            session: random.random_range(0..2) == 0,
            seen: 0,
            home: index % nodes,
            current: None,
            patient_until_us: 0,
            alarm_us: None,
            again: None,
            page: None,
            due_us: 0,
        };
        let clients: Vec<Client> = (0..count).map(client).collect();
        let interval_us = (count as u64 * 1_000_000 / per_second.max(1)).max(1);
        Self {
            random,
            workload,
            all,
            keyspaces,
            unmade,
            stamps: Vec::new(),
            next_id: count as u64 + 1,
            sessions: clients,
            interval_us,
            stopped: false,
        }
    }

    /// What to ask next, of which keyspace.
    fn draw(&mut self, now_us: u64) -> (String, Ask) {
        let due = self.unmade.iter().position(|(at_us, _)| *at_us <= now_us);
        if let Some(due) = due
            && self.random.random_range(0..4) == 0
        {
            return create(&self.unmade[due].1);
        }
        let whichever = self.random.random_range(0..1_000);
        if whichever == 0 {
            // Again, or nearly so: the same settings are fine.
            return create(&self.all[self.random.random_range(0..self.all.len())]);
        }
        let (keyspace, mut ask) = self.workload.draw(self.keyspaces.len());
        let mut keyspace = self.keyspaces[keyspace].clone();
        if whichever < 5 {
            // Perhaps nobody has made it yet.
            let which = self.random.random_range(0..self.all.len());
            keyspace.clone_from(&self.all[which].name.0);
        }
        if let Ask::Get { at, .. } = &mut ask
            && !self.stamps.is_empty()
            && self.random.random_range(0..10) == 0
        {
            *at = Some(self.stamps[self.random.random_range(0..self.stamps.len())]);
        }
        (keyspace, ask)
    }

    /// Remembers what an answer tells.
    fn learn(&mut self, operation: &Operation) {
        if let Reply::Created { .. } = operation.reply
            && !self.keyspaces.contains(&operation.keyspace)
        {
            self.keyspaces.push(operation.keyspace.clone());
            self.unmade.retain(|(_, settings)| settings.name.as_str() != operation.keyspace);
        }
        let stamp = match &operation.reply {
            Reply::Written { stamp, .. } => *stamp,
            Reply::Value(Some(seen)) => seen.stamp,
            _ => return,
        };
        if self.stamps.len() < STAMPS_MAX {
            self.stamps.push(stamp);
        } else {
            let place = self.random.random_range(0..STAMPS_MAX);
            self.stamps[place] = stamp;
        }
    }

    /// Keyspaces that somebody was told are there.
    pub(super) fn keyspaces(&self) -> &[String] {
        &self.keyspaces
    }

    /// Nothing is in flight.
    pub(super) fn idle(&self) -> bool {
        self.sessions.iter().all(|client| client.current.is_none())
    }
}

impl World {
    /// Lets clients begin, spread over one interval.
    pub(super) fn start_clients(&mut self) {
        for client in 0..self.clients.sessions.len() {
            let after_us = self.clients.random.random_range(0..self.clients.interval_us);
            self.at(after_us, NOBODY, Event::ClientActs(client));
        }
    }

    pub(super) fn client_acts(&mut self, slot: usize) {
        if self.clients.sessions[slot].current.is_some() {
            return;
        }
        let nodes = self.nodes.len();
        let clients = &mut self.clients;
        let client = &mut clients.sessions[slot];
        if let Some(earlier) = client.again.take() {
            let earlier = &self.history.operations[earlier];
            let (request, attempt) = (earlier.request, earlier.attempt + 1);
            let (keyspace, ask) = (earlier.keyspace.clone(), earlier.ask.clone());
            let coordinator = clients.random.random_range(0..nodes);
            self.ask(Some(slot), request, attempt, coordinator, keyspace, ask);
            return;
        }
        if clients.stopped {
            return;
        }
        client.sequence += 1;
        client.due_us = self.now_us + clients.random.random_range(1..2 * clients.interval_us);
        let request = RequestId { client: client.id, sequence: client.sequence };
        let is_home = clients.random.random_range(0..4) > 0;
        let coordinator = if is_home { client.home } else { clients.random.random_range(0..nodes) };
        let page = client.page.take();
        let page = page.and_then(|earlier| next_page(&self.history.operations[earlier]));
        let (keyspace, ask) = match page {
            Some(page) => page,
            None => clients.draw(self.now_us),
        };
        self.ask(Some(slot), request, 0, coordinator, keyspace, ask);
    }

    /// Sends a request and records it; the answer comes as an event. Tells the operation's index.
    pub(super) fn ask(
        &mut self,
        slot: Option<usize>,
        request: RequestId,
        attempt: u8,
        coordinator: usize,
        keyspace: String,
        ask: Ask,
    ) -> usize {
        let operation = self.history.operations.len();
        let timeout_ms = self.clients.random.random_range(300..2_000);
        let session = slot.map(|slot| &mut self.clients.sessions[slot]);
        let observed = session.as_ref().filter(|it| it.session).map_or(0, |it| it.seen);
        if let Some(client) = session {
            client.current = Some(operation);
        }
        let wire_request = WireRequestId { client: request.client, sequence: request.sequence };
        let header = Header { request: wire_request, attempt, timeout_ms, epoch: 1, observed };
        let input = Input::Request {
            connection: ConnectionId(request.client),
            id: operation as u64,
            header,
            request: wire(&keyspace, &ask),
        };
        self.history.operations.push(Operation {
            client: request.client,
            request,
            attempt,
            coordinator: self.nodes[coordinator].id,
            observed,
            keyspace,
            ask,
            from_us: self.now_us,
            to_us: None,
            reply: Reply::None,
        });
        let way_us = self.network.way(0);
        if self.nodes[coordinator].running.is_some() {
            self.at_life(way_us, coordinator, Event::Input(Box::new(input)));
        }
        let Some(client) = slot else { return operation };
        // Some vanish, some are less patient than what they said.
        let patience_us = match self.clients.random.random_range(0..300) {
            0 => self.clients.random.random_range(0..3_000),
            1..4 => u64::from(timeout_ms) * 300,
            _ if self.nodes[coordinator].running.is_none() => way_us * 2,
            _ => u64::from(timeout_ms) * 1000 + 200_000,
        };
        self.clients.sessions[client].patient_until_us = self.now_us + patience_us;
        self.set_alarm(client);
        operation
    }

    fn set_alarm(&mut self, slot: usize) {
        let client = &mut self.clients.sessions[slot];
        let at_us = client.patient_until_us;
        if client.alarm_us.is_none_or(|alarm_us| at_us < alarm_us) {
            client.alarm_us = Some(at_us);
            self.at(at_us - self.now_us, NOBODY, Event::ClientAlarm(slot));
        }
    }

    pub(super) fn client_alarm(&mut self, slot: usize) {
        let client = &mut self.clients.sessions[slot];
        if client.alarm_us != Some(self.now_us) {
            // Of an operation before the one for which it was set anew.
            return;
        }
        client.alarm_us = None;
        let Some(operation) = client.current else { return };
        if self.now_us < client.patient_until_us {
            self.set_alarm(slot);
        } else {
            client.current = None;
            self.client_goes_on(slot, operation, true);
        }
    }

    pub(super) fn client_is_answered(&mut self, operation: usize, response: Response) {
        let now_us = self.now_us;
        let reply = reply_of(response);
        let seen = greatest(&reply);
        let is_unknown = matches!(reply, Reply::Error { kind: ErrorKind::Unknown, .. });
        let slot = self.clients.sessions.iter().position(|it| it.current == Some(operation));
        let record = &mut self.history.operations[operation];
        // The final reads have no client.
        if slot.is_some() || FINAL_CLIENT <= record.client {
            record.to_us = Some(now_us);
            record.reply = reply;
            self.clients.learn(record);
        }
        if let Some(slot) = slot {
            let client = &mut self.clients.sessions[slot];
            client.current = None;
            client.seen = client.seen.max(seen);
            self.client_goes_on(slot, operation, is_unknown);
        }
    }

    fn client_goes_on(&mut self, slot: usize, operation: usize, is_unknown: bool) {
        let record = &self.history.operations[operation];
        let is_write = matches!(record.ask, Ask::Write { .. } | Ask::Create { .. });
        let clients = &mut self.clients;
        let client = &mut clients.sessions[slot];
        client.page = matches!(record.reply, Reply::Rows { end: Some(_), .. }).then_some(operation);
        let chance = clients.random.random_range(0..100);
        let mut after_us = client.due_us.saturating_sub(self.now_us);
        if is_unknown && is_write && record.attempt + 1 < ATTEMPTS_MAX && chance < 60 {
            client.again = Some(operation);
            after_us = clients.random.random_range(1_000..300_000);
        } else if is_unknown && chance < 90 {
            // It vanishes; another comes in its place.
            client.id = clients.next_id;
            clients.next_id += 1;
            (client.sequence, client.seen) = (0, 0);
        }
        self.at(after_us, NOBODY, Event::ClientActs(slot));
    }
}

/// Clients from this number on are the world's own, which reads when everything is over.
pub(super) const FINAL_CLIENT: u64 = 1 << 40;

fn create(settings: &KeyspaceSettings) -> (String, Ask) {
    (settings.name.0.clone(), Ask::Create { settings: settings.clone() })
}

/// The page after the one that was answered.
fn next_page(operation: &Operation) -> Option<(String, Ask)> {
    let Ask::Scan { prefix, limit, level, .. } = &operation.ask else { return None };
    let Reply::Rows { end, .. } = &operation.reply else { return None };
    let after = Some(end.clone()?);
    let ask = Ask::Scan { prefix: prefix.clone(), after, limit: *limit, level: *level };
    Some((operation.keyspace.clone(), ask))
}

/// The request as it travels.
fn wire(keyspace: &str, ask: &Ask) -> Request {
    let keyspace = Text(keyspace.to_owned());
    match ask {
        Ask::Write { key, action, payload, level, durability, .. } => Request::Write {
            keyspace,
            key: Blob(key.clone()),
            action: match action {
                Action::Put => WireAction::Put,
                Action::Delete => WireAction::Delete,
            },
            payload: Blob(payload.clone()),
            level: *level,
            durability: *durability,
        },
        Ask::Get { key, at, level, .. } => {
            Request::Get { keyspace, key: Blob(key.clone()), at: at.map(WireStamp), level: *level }
        }
        Ask::Versions { key, limit, level, .. } => Request::History {
            keyspace,
            key: Blob(key.clone()),
            from: Stamp::ZERO.into(),
            to: Stamp::MAX.into(),
            descending: false,
            limit: *limit,
            level: *level,
        },
        Ask::Scan { prefix, after, limit, level } => Request::Scan {
            keyspace,
            prefix: Blob(prefix.clone()),
            cursor: after.as_ref().map(|place| Cursor {
                partition: place.partition,
                after: place.key.clone().map(Blob),
            }),
            limit: *limit,
            level: *level,
        },
        Ask::Create { settings } => Request::KeyspaceCreate { settings: settings.clone() },
    }
}

fn seen(version: Version) -> Seen {
    Seen {
        stamp: version.stamp.0,
        request: RequestId { client: version.request.client, sequence: version.request.sequence },
        action: match version.action {
            WireAction::Put => Action::Put,
            WireAction::Delete => Action::Delete,
        },
        payload: version.payload.0,
    }
}

fn reply_of(response: Response) -> Reply {
    match response {
        Response::Written { stamp, superseded, acks } => {
            Reply::Written { stamp: stamp.0, superseded, acks }
        }
        Response::Value { version } => Reply::Value(version.map(seen)),
        Response::History { versions, more } => {
            Reply::Versions { versions: versions.0.into_iter().map(seen).collect(), more }
        }
        Response::Page { rows, cursor } => {
            let rows = rows.0.into_iter().map(|row| (row.key.0, seen(row.version)));
            let end = cursor
                .map(|it| Place { partition: it.partition, key: it.after.map(|after| after.0) });
            Reply::Rows { rows: rows.collect(), end }
        }
        Response::KeyspaceCreated { nodes } => Reply::Created { nodes },
        Response::Error(error) => Reply::Error { code: error.code, kind: error.kind() },
        other => panic!("nobody asked for {other:?}"),
    }
}

/// The greatest hybrid time in a reply, packed.
fn greatest(reply: &Reply) -> u64 {
    let packed = |stamp: &Stamp| stamp.time.packed();
    match reply {
        Reply::Written { stamp, .. } => packed(stamp),
        Reply::Value(Some(seen)) => packed(&seen.stamp),
        Reply::Versions { versions, .. } => {
            versions.iter().map(|seen| packed(&seen.stamp)).max().unwrap_or(0)
        }
        Reply::Rows { rows, .. } => {
            rows.iter().map(|(_, seen)| packed(&seen.stamp)).max().unwrap_or(0)
        }
        Reply::None | Reply::Value(None) | Reply::Created { .. } | Reply::Error { .. } => 0,
    }
}
