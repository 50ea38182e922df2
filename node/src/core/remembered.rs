//! [`Remembered`]: which writes this node coordinates or has coordinated lately, by the client's request id, so that a
//! repetition joins the first or gets its outcome (GUARANTEES G2).
//!
//! Invariants:
//!
//! - At most [`REMEMBERED_REQUESTS_MAX`] requests; the oldest goes first. Forgetting is harmless: a repetition then looks for
//!   the event on the replicas.
//! - Only a success is kept: after an unknown outcome a repetition looks again.
//! - At most [`JOINED_MAX`] repetitions wait for one request.

use std::collections::{BTreeMap, VecDeque};

use starling_client::wire::RequestId;
use xxhash_rust::xxh3::Xxh3Default;

use super::error::Refusal;
use super::put::Written;
use super::requests::Client;
use crate::limits::{JOINED_MAX, REMEMBERED_REQUESTS_MAX};

/// Hash of what a request writes to: a repetition must write to the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subject(u64);

impl Subject {
    pub(super) fn of(keyspace: u64, key: &[u8]) -> Self {
        let mut hasher = Xxh3Default::new();
        hasher.update(&keyspace.to_le_bytes());
        hasher.update(key);
        Self(hasher.digest())
    }
}

/// What became of a repetition.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Repeated {
    /// It is answered together with the first.
    Joined,
    /// This was the outcome.
    Done(Written),
    /// Nothing is known of it.
    Unknown,
}

#[derive(Debug)]
enum State {
    InFlight { waiting: Vec<Client> },
    Done(Written),
}

#[derive(Debug)]
struct Entry {
    /// Which start of the request it is about.
    token: u64,
    subject: Subject,
    state: State,
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    entries: BTreeMap<RequestId, Entry>,
    /// By age; may name entries that were replaced since.
    order: VecDeque<(RequestId, u64)>,
}

impl Remembered {
    /// A repetition of a request came from `client`.
    pub(super) fn repeat(
        &mut self,
        request: RequestId,
        subject: Subject,
        client: Client,
    ) -> Result<Repeated, Refusal> {
        let Some(entry) = self.entries.get_mut(&request) else { return Ok(Repeated::Unknown) };
        if entry.subject != subject {
            return Err(Refusal::Malformed("the request id was used for another key"));
        }
        match &mut entry.state {
            State::Done(written) => Ok(Repeated::Done(*written)),
            State::InFlight { waiting } if waiting.len() >= JOINED_MAX => {
                Err(Refusal::TooManyRepetitions)
            }
            State::InFlight { waiting } => {
                waiting.push(client);
                Ok(Repeated::Joined)
            }
        }
    }

    /// A write begins; `token` is handed back at its end. Gives those who waited for what it replaces: nobody, unless
    /// the client uses an id twice.
    pub(super) fn begin(
        &mut self,
        request: RequestId,
        subject: Subject,
        token: u64,
    ) -> Vec<Client> {
        let state = State::InFlight { waiting: Vec::new() };
        let before = self.entries.insert(request, Entry { token, subject, state });
        self.order.push_back((request, token));
        let mut orphans = before.map(Entry::into_waiting).unwrap_or_default();
        while self.order.len() > REMEMBERED_REQUESTS_MAX {
            let Some((oldest, token)) = self.order.pop_front() else { break };
            if self.entries.get(&oldest).is_some_and(|entry| entry.token == token) {
                let entry = self.entries.remove(&oldest);
                orphans.extend(entry.map(Entry::into_waiting).unwrap_or_default());
            }
        }
        orphans
    }

    /// A write ended: `Some` if it was taken. Gives those who waited for it.
    pub(super) fn finish(
        &mut self,
        request: RequestId,
        token: u64,
        written: Option<Written>,
    ) -> Vec<Client> {
        let Some(entry) = self.entries.get_mut(&request) else { return Vec::new() };
        if entry.token != token {
            return Vec::new();
        }
        if let Some(written) = written {
            let done = std::mem::replace(&mut entry.state, State::Done(written));
            return done.into_waiting();
        }
        self.entries.remove(&request).map(Entry::into_waiting).unwrap_or_default()
    }
}

impl Entry {
    fn into_waiting(self) -> Vec<Client> {
        self.state.into_waiting()
    }
}

impl State {
    fn into_waiting(self) -> Vec<Client> {
        match self {
            Self::InFlight { waiting } => waiting,
            Self::Done(_) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use starling_clock::Stamp;

    use super::*;
    use crate::core::types::ConnectionId;

    fn client(id: u64) -> Client {
        Client { connection: ConnectionId(1), id }
    }

    fn request(sequence: u64) -> RequestId {
        RequestId { client: 1, sequence }
    }

    const WRITTEN: Written = Written { stamp: Stamp::ZERO, superseded: false, acks: 2 };

    #[test]
    fn repetitions_join_then_get_the_outcome_unless_it_failed() {
        let mut remembered = Remembered::default();
        let subject = Subject::of(7, b"key");
        assert_eq!(remembered.repeat(request(1), subject, client(1)), Ok(Repeated::Unknown));
        assert_eq!(remembered.begin(request(1), subject, 5), []);
        for id in 0..JOINED_MAX as u64 {
            assert_eq!(remembered.repeat(request(1), subject, client(id)), Ok(Repeated::Joined));
        }
        let more = remembered.repeat(request(1), subject, client(99));
        assert_eq!(more, Err(Refusal::TooManyRepetitions));
        let other = remembered.repeat(request(1), Subject::of(7, b"other"), client(1));
        assert!(matches!(other, Err(Refusal::Malformed(_))));
        assert_eq!(remembered.finish(request(1), 4, None), [], "of another start");
        assert_eq!(remembered.finish(request(1), 5, Some(WRITTEN)).len(), JOINED_MAX);
        let after = remembered.repeat(request(1), subject, client(1));
        assert_eq!(after, Ok(Repeated::Done(WRITTEN)));
        remembered.begin(request(1), subject, 6);
        assert_eq!(remembered.finish(request(1), 6, None), []);
        assert_eq!(remembered.repeat(request(1), subject, client(1)), Ok(Repeated::Unknown));
    }

    #[test]
    fn the_oldest_goes_first_and_whoever_waits_for_it_is_told() {
        let mut remembered = Remembered::default();
        let subject = Subject::of(7, b"key");
        remembered.begin(request(0), subject, 0);
        assert_eq!(remembered.repeat(request(0), subject, client(1)), Ok(Repeated::Joined));
        let count = REMEMBERED_REQUESTS_MAX as u64;
        for sequence in 1..count {
            assert_eq!(remembered.begin(request(sequence), subject, sequence), []);
        }
        assert_eq!(remembered.begin(request(count), subject, count), [client(1)]);
        assert!(remembered.entries.len() <= REMEMBERED_REQUESTS_MAX);
        assert!(remembered.order.len() <= REMEMBERED_REQUESTS_MAX);
        assert_eq!(remembered.repeat(request(0), subject, client(1)), Ok(Repeated::Unknown));
    }
}
