//! Gossip registers and the keyspaces in them: kept on disk, restored at the start, told to all live nodes when one is made.
//!
//! Invariants:
//!
//! - `Registered` is answered only after the register is on this node's disk.
//! - A register of another node that is stamped further ahead of the wall clock than the skew bound is not taken, and not passed on.
//! - A register that is no keyspace's is carried by gossip and not kept.

use std::collections::BTreeSet;

use bytes::Bytes;
use starling_client::codec::Blob;
use starling_client::wire::{Header, KeyspaceSettings, Response};
use starling_clock::{HybridTime, NodeId, Stamp};
use starling_gossip::Register;

use super::driver::{TICKET_NOBODY, Work};
use super::error::{Refusal, StartError};
use super::flights::{About, Questions};
use super::keyspaces::{Create, CreateOutput, Keyspace, REGISTER_PREFIX};
use super::membership::gossip_now;
use super::peer::PeerMessage;
use super::requests::Client;
use super::settings;
use super::storage::StorageRequest;
use super::{Core, Instant, META_REGISTER_PREFIX, Output};

/// A keyspace being made.
#[derive(Debug)]
pub(super) struct CreateWork {
    pub(super) create: Create,
    client: Client,
    register: Register,
}

/// A keyspace to be made that waits for a stamp.
#[derive(Clone, Debug)]
pub(super) struct NewKeyspace {
    client: Client,
    settings: KeyspaceSettings,
    pub(super) deadline: Instant,
}

/// A register on its way to this node's disk, and the peer that waits for it.
#[derive(Debug)]
pub(super) struct Adopt {
    from: NodeId,
    op: u64,
    register: Register,
    asked: bool,
    /// `Some(false)`: storage did not take it, so nothing is said.
    durable: Option<bool>,
}

impl Adopt {
    pub(super) fn handle_done(&mut self, durable: bool) {
        self.durable = Some(durable);
    }
}

fn persist(register: &Register) -> StorageRequest {
    let mut value = Vec::with_capacity(Stamp::SIZE + register.value.len());
    value.extend_from_slice(&register.stamp.to_bytes());
    value.extend_from_slice(&register.value);
    StorageRequest::Meta {
        name: format!("{META_REGISTER_PREFIX}{}", register.name),
        value: value.into(),
    }
}

impl Core {
    pub(super) fn handle_keyspace_create(
        &mut self,
        client: Client,
        header: &Header,
        settings: KeyspaceSettings,
    ) -> Result<(), Refusal> {
        let members = self.cluster.epoch().members().len();
        let known = self.keyspaces.check_new(&settings, members)?;
        if known.as_ref().is_some_and(|keyspace| keyspace.stamp == Stamp::ZERO) {
            // The built-in one is everywhere.
            let nodes = u32::try_from(members).unwrap_or(u32::MAX);
            self.answer(client, Response::KeyspaceCreated { nodes });
            return Ok(());
        }
        self.admit()?;
        self.in_flight += 1;
        let deadline = self.now.mono.plus_ms(self.timeout_ms(header));
        match known {
            Some(keyspace) => self.spread_keyspace(client, &settings, keyspace.stamp, deadline),
            None => self.stamp_keyspace(NewKeyspace { client, settings, deadline }),
        }
        Ok(())
    }

    /// Stamps the keyspace now, or lets it wait until the clock's bound is on disk.
    fn stamp_keyspace(&mut self, new: NewKeyspace) {
        if let Err(refusal) = self.check_clock() {
            self.in_flight -= 1;
            self.refuse(new.client, refusal);
            return;
        }
        if let Ok(stamp) = self.clock.tick(self.now.wall_ms) {
            self.spread_keyspace(new.client, &new.settings, stamp, new.deadline);
            return;
        }
        let id = self.flights.next_id();
        self.waiting_for_bound.insert(id);
        self.launch(id, Work::NewKeyspace(new));
        self.renew_bound();
    }

    /// The clock's bound is on disk; `refusal`: it cannot be, or it took too long.
    pub(super) fn continue_keyspace(&mut self, new: NewKeyspace, refusal: Option<Refusal>) {
        let members = self.cluster.epoch().members().len();
        // Another client may have been faster.
        let refusal = refusal.or_else(|| self.keyspaces.check_new(&new.settings, members).err());
        match refusal {
            Some(refusal) => {
                self.in_flight -= 1;
                self.refuse(new.client, refusal);
            }
            None => self.stamp_keyspace(new),
        }
    }

    fn spread_keyspace(
        &mut self,
        client: Client,
        settings: &KeyspaceSettings,
        stamp: Stamp,
        deadline: Instant,
    ) {
        let members = self.cluster.epoch().members().len();
        let peers = self.cluster.peers().filter(|&peer| self.membership.is_reachable(peer));
        let mut reachable: BTreeSet<NodeId> = peers.collect();
        reachable.insert(self.node());
        let create = Create::new(reachable, members, deadline);
        let name = format!("{REGISTER_PREFIX}{}", settings.name.as_str());
        let register = Register { name, stamp, value: settings::encode(settings) };
        let id = self.flights.next_id();
        self.launch(id, Work::Create(CreateWork { create, client, register }));
    }

    pub(super) fn drive_create(
        &mut self,
        id: u64,
        work: &mut CreateWork,
        questions: &mut Questions,
    ) -> (bool, Option<Instant>) {
        while let Some(output) = work.create.poll_output() {
            match output {
                CreateOutput::Register { to } if to == self.node() => {
                    self.take_over(&work.register);
                    self.ask_storage(id, questions, About::Register, persist(&work.register));
                }
                CreateOutput::Register { to } => {
                    let op = questions.open(id, to, About::Register);
                    let Register { name, stamp, value } = work.register.clone();
                    let message = PeerMessage::Register {
                        op,
                        name: Blob(name.into()),
                        stamp: stamp.into(),
                        value: Blob(value.into()),
                    };
                    self.outputs.push_back(Output::Peer { to, message });
                }
                CreateOutput::Answer(result) => {
                    self.in_flight -= 1;
                    match result {
                        Ok(nodes) => {
                            let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
                            self.answer(work.client, Response::KeyspaceCreated { nodes });
                        }
                        Err(refusal) => self.refuse(work.client, refusal),
                    }
                }
            }
        }
        (work.create.is_done(), work.create.poll_timeout())
    }

    /// A peer wants this register on our disk.
    pub(super) fn handle_register(
        &mut self,
        from: NodeId,
        op: u64,
        name: &Bytes,
        stamp: Stamp,
        value: &Bytes,
    ) {
        let valid = std::str::from_utf8(name).ok().filter(|name| {
            let keyspace = name.strip_prefix(REGISTER_PREFIX);
            let settings = settings::decode(value);
            keyspace.is_some() && keyspace == settings.as_ref().map(|it| it.name.as_str())
        });
        let Some(name) = valid else {
            self.counters.malformed += 1;
            return;
        };
        // What is not taken now gossip brings later.
        if self.is_too_far_ahead(stamp) || !self.serve(from) {
            return;
        }
        self.take_over(&Register { name: name.to_owned(), stamp, value: value.to_vec() });
        // The answer is about what won here: it is as good.
        let known = self.membership.gossip.register(name).cloned();
        let is_installed = self.keyspaces.get(&name[REGISTER_PREFIX.len()..]).is_some();
        let Some(register) = known.filter(|_| is_installed) else {
            self.served(from);
            return;
        };
        let id = self.flights.next_id();
        let adopt = Adopt { from, op, register, asked: false, durable: None };
        self.launch(id, Work::Adopt(adopt));
    }

    pub(super) fn drive_adopt(
        &mut self,
        id: u64,
        adopt: &mut Adopt,
        questions: &mut Questions,
    ) -> (bool, Option<Instant>) {
        if !adopt.asked {
            adopt.asked = true;
            self.ask_storage(id, questions, About::Local, persist(&adopt.register));
        }
        if adopt.durable == Some(true) {
            let message = PeerMessage::Registered { op: adopt.op };
            self.outputs.push_back(Output::Peer { to: adopt.from, message });
        }
        if adopt.durable.is_some() {
            self.served(adopt.from);
        }
        (adopt.durable.is_some(), None)
    }

    /// Gossip takes no register from further ahead of the wall clock than the skew bound.
    pub(super) fn bound_registers(&mut self) {
        let latest_ms = self.now.wall_ms.saturating_add(self.clock.config().skew_ms_max);
        let latest = HybridTime::new(latest_ms.min(HybridTime::PHYSICAL_MS_MAX), u16::MAX);
        self.membership.gossip.set_register_time_max(latest);
    }

    /// Puts a register into gossip and the keyspaces; whoever calls it makes it durable.
    fn take_over(&mut self, register: &Register) {
        let now = gossip_now(self.now.mono);
        // Refused if gossip has no room or a newer value: then that one holds.
        let _ = self.membership.gossip.set_register(now, register);
        if let Some(register) = self.membership.gossip.register(&register.name).cloned() {
            self.install(&register);
        }
    }

    /// Gossip brought a new value: install it and keep it. One that is installed already is being kept.
    pub(super) fn adopt_register(&mut self, name: &str) {
        let Some(register) = self.membership.gossip.register(name).cloned() else { return };
        if self.install(&register).is_some() {
            let request = persist(&register);
            self.outputs.push_back(Output::Storage { ticket: TICKET_NOBODY, request });
        }
    }

    fn install(&mut self, register: &Register) -> Option<()> {
        let keyspace = self.keyspaces.adopt(&register.name, register.stamp, &register.value)?;
        self.cluster.table(keyspace.settings.replication);
        self.tell_retention(&keyspace);
        Some(())
    }

    fn tell_retention(&mut self, keyspace: &Keyspace) {
        let request =
            StorageRequest::Retention { keyspace: keyspace.id, retention: keyspace.retention() };
        self.outputs.push_back(Output::Storage { ticket: TICKET_NOBODY, request });
    }

    /// Takes back the registers that an earlier life kept.
    pub(super) fn restore_registers(
        &mut self,
        metas: &[(String, Bytes)],
    ) -> Result<(), StartError> {
        let registers = metas.iter().filter_map(|(name, value)| {
            name.strip_prefix(META_REGISTER_PREFIX).map(|register| (name, register, value))
        });
        for (meta, name, value) in registers {
            let bad = || StartError::BadMeta { name: meta.clone() };
            let (stamp, value) = value.split_first_chunk::<{ Stamp::SIZE }>().ok_or_else(bad)?;
            let stamp = Stamp::from_bytes(*stamp).ok_or_else(bad)?;
            let register = Register { name: name.to_owned(), stamp, value: value.to_vec() };
            if settings::decode(value).is_none() {
                return Err(bad());
            }
            self.take_over(&register);
        }
        Ok(())
    }
}
