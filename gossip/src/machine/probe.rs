//! Who answers: the probe that is out, the probes relayed for others, and the datagrams of both.
//!
//! Invariants:
//!
//! - At most one probe of our own is out. It is judged when the next one goes out, so a member is suspected a probe
//!   interval after it did not answer, in which others have probed it too.
//! - Relayed probes are bounded, and each ends by its timer.
//! - A probe that was out while this node slept is not judged.

use std::collections::BTreeSet;

use starling_clock::NodeId;

use super::merge::Heard;
use super::{Gossip, Timer};
use crate::limits::{PULL_NAMES_MAX, RELAYS_MAX};
use crate::wire::message::{self, Header, Message};
use crate::wire::rumour::Rumour;
use crate::{DecodeError, Instant, Status};

/// A probe of our own that is out.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    target: NodeId,
    /// The life that was probed.
    incarnation: u64,
    sequence: u32,
    is_acked: bool,
    /// Who was asked to probe it too.
    helpers: Vec<NodeId>,
    /// Those of them that said it does not answer them either.
    nacks: BTreeSet<NodeId>,
}

/// A probe on behalf of another node.
#[derive(Clone, Debug)]
pub(super) struct Relay {
    target: NodeId,
    origin: NodeId,
    origin_sequence: u32,
}

impl Gossip {
    /// A datagram came from `from`, as the connection's certificate names it.
    ///
    /// # Errors
    /// [`DecodeError`] if it is none; nothing of it was applied.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        from: NodeId,
        bytes: &[u8],
    ) -> Result<(), DecodeError> {
        let (header, message, rumours) = message::decode(bytes)?;
        self.check_sender(from, header)?;
        self.advance(now);
        for rumour in &rumours {
            self.hear_rumour(rumour);
        }
        self.pull_noticed(from, &rumours);
        self.greet(from, header);
        self.handle_message(from, header, message);
        self.invariants();
        Ok(())
    }

    pub(super) fn check_sender(&self, from: NodeId, header: Header) -> Result<(), DecodeError> {
        if header.sender != from {
            return Err(DecodeError::Sender { from, claimed: header.sender });
        }
        if from == self.own {
            return Err(DecodeError::Malformed("the sender has this node's id"));
        }
        Ok(())
    }

    fn handle_message(&mut self, from: NodeId, header: Header, message: Message) {
        match message {
            Message::Probe { sequence } => {
                let known = self.roster.get(from).map_or(0, |member| member.incarnation);
                let is_behind = header.incarnation < known;
                self.send(from, Message::Ack { sequence }, is_behind);
            }
            Message::ProbeFor { sequence, target } => self.relay(from, sequence, target),
            Message::Ack { sequence } => self.on_ack(from, sequence),
            Message::Nack { sequence } => {
                if let Some(probe) = &mut self.probe
                    && probe.sequence == sequence
                    && probe.helpers.contains(&from)
                {
                    probe.nacks.insert(from);
                }
            }
            Message::Gossip => {}
        }
    }

    /// Asks for the registers that `rumours` only gave notice of, and that are newer than ours.
    fn pull_noticed(&mut self, from: NodeId, rumours: &[Rumour<'_>]) {
        let mut names = Vec::new();
        for rumour in rumours {
            if let Rumour::Notice { name, stamp } = *rumour
                && names.len() < PULL_NAMES_MAX
                && self.wants_register(name, stamp)
            {
                self.pulls.insert(name.to_owned(), stamp);
                names.push(name);
            }
        }
        if !names.is_empty() {
            self.send_pull(from, &names);
        }
    }

    fn take_sequence(&mut self) -> u32 {
        let sequence = self.next_sequence;
        self.next_sequence = sequence.wrapping_add(1);
        sequence
    }

    /// Judges the probe that is out and sends the next one.
    pub(super) fn on_probe(&mut self, due: Instant) {
        let probe = self.probe.take();
        if self.has_left() {
            return;
        }
        let has_slept = self.now.since(due) > self.config.probe_interval_us;
        match probe {
            Some(_) if has_slept => self.worsen_health(1),
            Some(probe) if !probe.is_acked => self.fail(&probe),
            _ => {}
        }
        if let Some(target) = self.roster.next_probe(&mut self.rng) {
            let sequence = self.take_sequence();
            let timeout_us = self.stretched(self.config.probe_timeout_us);
            self.arm(Timer::ProbeTimeout(sequence), timeout_us);
            let incarnation = self.roster.get(target).map_or(0, |member| member.incarnation);
            self.probe = Some(Probe {
                target,
                incarnation,
                sequence,
                is_acked: false,
                helpers: Vec::new(),
                nacks: BTreeSet::new(),
            });
            self.send(target, Message::Probe { sequence }, false);
        }
        self.arm(Timer::Probe, self.stretched(self.config.probe_interval_us));
    }

    /// Neither the target nor anybody for it answered. If helpers that are well would have said that it does not
    /// answer them, and did not, the fault may be ours (Lifeguard, section IV-A).
    fn fail(&mut self, probe: &Probe) {
        let missing = match probe.helpers.len() {
            0 => 1,
            asked => asked - probe.nacks.len(),
        };
        self.worsen_health(u32::try_from(missing).expect("few helpers"));
        let Some(member) = self.roster.get(probe.target) else { return };
        // Meanwhile it may have died or left by others' word, or refuted, which is a sign of life too.
        if member.status.is_up() && member.incarnation == probe.incarnation {
            let (node, by, incarnation) = (probe.target, self.own, probe.incarnation);
            let status = Status::Suspect;
            self.hear(&Heard { node, status, incarnation, by, state: None }, true);
        }
    }

    /// No answer in time: others try.
    pub(super) fn on_probe_timeout(&mut self, sequence: u32) {
        let Some(probe) = &mut self.probe else { return };
        if probe.sequence != sequence || probe.is_acked {
            return;
        }
        let target = probe.target;
        let count = self.config.indirect_probes;
        let helpers = self.roster.sample(count, Some(target), &mut self.rng);
        probe.helpers.clone_from(&helpers);
        for helper in helpers {
            self.send(helper, Message::ProbeFor { sequence, target }, false);
        }
    }

    /// An answer to a probe of ours, by the target or a helper, or to one that we relay.
    fn on_ack(&mut self, from: NodeId, sequence: u32) {
        if let Some(probe) = &mut self.probe
            && probe.sequence == sequence
            && !probe.is_acked
            && (probe.target == from || probe.helpers.contains(&from))
        {
            probe.is_acked = true;
            self.local_health = self.local_health.saturating_sub(1);
            return;
        }
        let is_relayed = self.relays.get(&sequence).is_some_and(|relay| relay.target == from);
        if is_relayed && let Some(relay) = self.relays.remove(&sequence) {
            self.send(relay.origin, Message::Ack { sequence: relay.origin_sequence }, false);
        }
    }

    /// Probes `target` for `origin`.
    fn relay(&mut self, origin: NodeId, origin_sequence: u32, target: NodeId) {
        if target == self.own {
            self.send(origin, Message::Ack { sequence: origin_sequence }, false);
            return;
        }
        if self.relays.len() >= RELAYS_MAX || self.roster.get(target).is_none() {
            return;
        }
        let sequence = self.take_sequence();
        self.relays.insert(sequence, Relay { target, origin, origin_sequence });
        // A little less than the origin waits, so that the nack is there when it judges.
        self.arm(Timer::Relay(sequence), (self.config.probe_timeout_us * 4 / 5).max(1));
        self.send(target, Message::Probe { sequence }, false);
    }

    /// The target has not answered us either.
    pub(super) fn on_relay(&mut self, sequence: u32) {
        if let Some(relay) = self.relays.remove(&sequence) {
            self.send(relay.origin, Message::Nack { sequence: relay.origin_sequence }, false);
        }
    }
}
