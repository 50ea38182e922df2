//! Clients' requests: where each goes, and the checks that all of them share.
//!
//! Invariants:
//!
//! - Every request is answered exactly once: here, or by the flight that was started for it.

use std::sync::Arc;

use bytes::Bytes;
use starling_client::wire::{Header, KEY_SIZE_MAX, Request, Response};

use super::error::Refusal;
use super::keyspaces::Keyspace;
use super::read::Question;
use super::reads::{ScanRequest, newest_at};
use super::types::ConnectionId;
use super::writes::WriteRequest;
use super::{Core, Phase};

/// The longest part of a name from outside that is told back in an error, in characters.
const NAME_TOLD_MAX: usize = 80;

/// Who waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Client {
    pub(super) connection: ConnectionId,
    pub(super) id: u64,
}

impl Core {
    pub(super) fn handle_request(&mut self, client: Client, header: Header, request: Request) {
        if let Err(refusal) = self.route_request(client, header, request) {
            self.refuse(client, refusal);
        }
    }

    /// `Err`: refused, and not answered yet.
    fn route_request(
        &mut self,
        client: Client,
        header: Header,
        request: Request,
    ) -> Result<(), Refusal> {
        match self.phase {
            Phase::Starting => return Err(Refusal::Starting),
            Phase::Stopping { .. } | Phase::Stopped => return Err(Refusal::Stopping),
            Phase::Serving => {}
        }
        match request {
            // What a client with another epoch needs to find the way again.
            Request::Topology => {
                let topology = self.topology();
                self.answer(client, Response::Topology(topology));
                return Ok(());
            }
            Request::Status => return self.handle_status(client),
            Request::KeyspaceList => {
                let settings = self.keyspaces.iter().map(|keyspace| keyspace.settings.clone());
                let list = settings.collect();
                self.answer(client, Response::Keyspaces(list));
                return Ok(());
            }
            Request::KeyspaceCreate { settings } => {
                return self.handle_keyspace_create(client, &header, settings);
            }
            Request::Write { .. }
            | Request::Get { .. }
            | Request::History { .. }
            | Request::Scan { .. } => {}
        }
        let ours = self.cluster.epoch().number();
        if header.epoch != 0 && header.epoch != ours {
            return Err(Refusal::WrongEpoch { theirs: header.epoch, ours });
        }
        match request {
            Request::Write { keyspace, key, action, payload, level, durability } => {
                let (keyspace, key, payload) = (keyspace.0, key.0, payload.0);
                let write = WriteRequest { keyspace, key, action, payload, level, durability };
                self.handle_write(client, header, &write)
            }
            Request::Get { keyspace, key, at, level } => {
                let question = newest_at(at.map(|at| at.0));
                self.handle_read(client, &header, &keyspace, key.0, level, question)
            }
            Request::History { keyspace, key, from, to, descending, limit, level } => {
                let question = Question::Versions { from: from.0, to: to.0, descending, limit };
                self.handle_read(client, &header, &keyspace, key.0, level, question)
            }
            Request::Scan { keyspace, prefix, cursor, limit, level } => {
                let (keyspace, prefix) = (keyspace.0, prefix.0);
                let scan = ScanRequest { keyspace, prefix, cursor, limit, level };
                self.handle_scan(client, &header, scan)
            }
            Request::Topology
            | Request::Status
            | Request::KeyspaceCreate { .. }
            | Request::KeyspaceList => unreachable!("answered above"),
        }
    }

    pub(super) fn check_key(key: &Bytes) -> Result<(), Refusal> {
        match key.len() {
            0 => Err(Refusal::KeyEmpty),
            size if size > KEY_SIZE_MAX => Err(Refusal::KeyTooLarge { size, limit: KEY_SIZE_MAX }),
            _ => Ok(()),
        }
    }

    pub(super) fn keyspace(&self, name: &str) -> Result<Arc<Keyspace>, Refusal> {
        let unknown =
            || Refusal::KeyspaceUnknown { name: name.chars().take(NAME_TOLD_MAX).collect() };
        self.keyspaces.get(name).cloned().ok_or_else(unknown)
    }

    /// Whether one more request may be in flight.
    pub(super) fn admit(&self) -> Result<(), Refusal> {
        if self.in_flight >= self.limits.in_flight_max {
            return Err(Refusal::Overloaded { in_flight: self.in_flight });
        }
        Ok(())
    }

    /// How long a request may take.
    pub(super) fn timeout_ms(&self, header: &Header) -> u64 {
        u64::from(header.timeout_ms).clamp(1, self.limits.request_timeout_ms_max)
    }
}
