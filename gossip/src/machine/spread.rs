//! Telling: rumours on every datagram and by themselves, push-pull, pulls of large registers, calling on the dead.
//!
//! Invariants:
//!
//! - No datagram is over [`DATAGRAM_SIZE_MAX`].
//! - Whoever is sent anything is told first what is believed of it, if that is not that it lives: so it can
//!   refute at once (Lifeguard's "buddy system").
//! - A stranger's datagrams cause at most one push-pull a gossip interval, however many they are.
//! - Nothing is sent in answer to a datagram but an ack, so two nodes can never answer each other for ever.

use rand::RngExt;
use starling_clock::{NodeId, Stamp};

use super::{Gossip, Output, Timer};
#[cfg(doc)]
use crate::limits::DATAGRAM_SIZE_MAX;
use crate::limits::REGISTERS_MAX;
use crate::logarithm::retransmits;
use crate::rumours::Subject;
use crate::wire::message::{self, Header, Message};
use crate::wire::push_pull::{self, Direction, PushPull};
use crate::wire::rumour::{REGISTER_INLINE_SIZE_MAX, Rumour};
use crate::wire::{RegisterView, StateView};
use crate::{DecodeError, Instant, Status};

/// Rumours that may be passed over for not fitting before a datagram counts as full: the search for one that fits
/// must not be linear in the rumours.
const MISFITS_MAX: usize = 4;

impl Gossip {
    /// A connection to `node` is there, for example to a seed: compares everything with it.
    pub fn handle_peer_found(&mut self, now: Instant, node: NodeId) {
        self.advance(now);
        if node != self.own && !self.has_left() {
            self.send_push_pull(node);
        }
        self.invariants();
    }

    /// A push-pull request came from `from`, as the connection's certificate names it. Gives the answer to send back,
    /// at most [`crate::limits::PUSH_PULL_SIZE_MAX`] bytes.
    ///
    /// # Errors
    /// [`DecodeError`] if it is none; nothing of it was applied.
    pub fn handle_push_pull(
        &mut self,
        now: Instant,
        from: NodeId,
        bytes: &[u8],
    ) -> Result<Vec<u8>, DecodeError> {
        let (header, message) = push_pull::decode(bytes)?;
        self.check_sender(from, header)?;
        self.advance(now);
        let answer = match message {
            PushPull::Request(knowledge) => {
                self.hear_knowledge(from, &knowledge);
                self.encode_all(Direction::Answer)
            }
            PushPull::Pull(names) => {
                let registers = names.iter().filter_map(|&name| self.registers.get(name));
                let members = std::iter::empty();
                push_pull::encode_knowledge(Direction::Answer, self.header(), 0, members, registers)
            }
            PushPull::Answer(_) => {
                return Err(DecodeError::Malformed("an answer nobody asked for"));
            }
        };
        self.invariants();
        Ok(answer)
    }

    /// The answer to an [`Output::PushPull`] came from `from`.
    ///
    /// # Errors
    /// [`DecodeError`] if it is none; nothing of it was applied.
    pub fn handle_push_pull_answer(
        &mut self,
        now: Instant,
        from: NodeId,
        bytes: &[u8],
    ) -> Result<(), DecodeError> {
        let (header, message) = push_pull::decode(bytes)?;
        self.check_sender(from, header)?;
        let PushPull::Answer(knowledge) = message else {
            return Err(DecodeError::Malformed("a request where an answer was due"));
        };
        self.advance(now);
        self.hear_knowledge(from, &knowledge);
        self.invariants();
        Ok(())
    }

    fn header(&self) -> Header {
        Header { sender: self.own, incarnation: self.roster.own().incarnation }
    }

    /// There is news of `subject` to tell.
    pub(super) fn spread(&mut self, subject: Subject) {
        self.rumours.push(subject);
        if !self.is_gossip_due {
            self.is_gossip_due = true;
            // At a moment of our own, or nodes that hear of something together would tell it together.
            let after_us = self.rng.random_range(1..=self.config.gossip_interval_us);
            self.arm(Timer::Gossip, after_us);
        }
    }

    /// Sends a message with as many rumours as fit. `is_behind`: the receiver may not know of its own last life.
    pub(super) fn send(&mut self, to: NodeId, message: Message, is_behind: bool) {
        let mut bytes = message::encode(self.header(), message);
        let is_doubted = self.roster.get(to).is_some_and(|known| known.status != Status::Alive);
        if (is_doubted || is_behind)
            && let Some(rumour) = self.rumour_of(&Subject::Member(to))
        {
            message::push_rumour(&mut bytes, &rumour);
        }
        self.append_rumours(to, &mut bytes);
        if message == Message::Gossip && message::rumour_count(&bytes) == 0 {
            return;
        }
        self.outputs.push_back(Output::Datagram { to, bytes });
    }

    fn append_rumours(&mut self, to: NodeId, bytes: &mut Vec<u8>) {
        let mut told = Vec::new();
        let mut misfits = 0;
        for subject in self.rumours.iter() {
            if message::is_full(bytes) || misfits == MISFITS_MAX {
                break;
            }
            match self.rumour_of(subject) {
                // It knows best what it is, and has just been told what it is believed to be.
                _ if *subject == Subject::Member(to) => told.push(subject.clone()),
                Some(rumour) if !message::push_rumour(bytes, &rumour) => misfits += 1,
                // One of a member that made room for another goes like one that was told.
                _ => told.push(subject.clone()),
            }
        }
        let limit = retransmits(&self.config, self.roster.up());
        for subject in told {
            self.rumours.told(subject, limit);
        }
    }

    /// What there is to tell of `subject` now.
    fn rumour_of(&self, subject: &Subject) -> Option<Rumour<'_>> {
        match subject {
            Subject::Member(node) => {
                let member = self.roster.get(*node)?;
                let (node, status, incarnation) = (member.node, member.status, member.incarnation);
                Some(match status {
                    Status::Alive => {
                        Rumour::Alive { node, incarnation, state: StateView::of(&member.state) }
                    }
                    Status::Suspect | Status::Dead | Status::Left => {
                        let suspicion = self.suspicions.get(&node);
                        let by = suspicion.map_or(self.own, super::merge::Suspicion::by);
                        Rumour::Doubt { node, status, incarnation, by }
                    }
                })
            }
            Subject::Register(name) => {
                let register = RegisterView::of(self.registers.get(name)?);
                Some(if register.encoded_size() <= REGISTER_INLINE_SIZE_MAX {
                    Rumour::Register(register)
                } else {
                    Rumour::Notice { name: register.name, stamp: register.stamp }
                })
            }
        }
    }

    /// Tells some members, at once.
    pub(super) fn tell_some(&mut self) {
        let count = self.config.gossip_fanout;
        for to in self.roster.sample(count, None, &mut self.rng) {
            if self.rumours.is_empty() {
                break;
            }
            self.send(to, Message::Gossip, false);
        }
    }

    /// Tells some members, as long as there is anything to tell.
    pub(super) fn on_gossip(&mut self) {
        if self.roster.up() == 1 {
            // Nobody to tell: whoever comes, comes with a push-pull.
            self.rumours = crate::rumours::Rumours::default();
        }
        self.tell_some();
        self.is_gossip_due = !self.rumours.is_empty();
        if self.is_gossip_due {
            self.arm(Timer::Gossip, self.config.gossip_interval_us);
        }
    }

    /// Compares everything with some member.
    pub(super) fn on_push_pull(&mut self) {
        self.pulls.clear();
        if self.has_left() {
            return;
        }
        if let Some(&to) = self.roster.sample(1, None, &mut self.rng).first() {
            self.send_push_pull(to);
        }
        self.arm(Timer::PushPull, self.push_pull_interval_us());
    }

    /// Now and then calls on some dead member, in case it is back (Serf's reconnect).
    pub(super) fn on_reconnect(&mut self) {
        if self.has_left() {
            return;
        }
        if let Some(to) = self.roster.sample_dead(&mut self.rng) {
            self.send_push_pull(to);
        }
        self.arm(Timer::Reconnect, self.config.reconnect_interval_us);
    }

    /// A stranger, or a node that is back in a later life than the one we know ended, sent a datagram: gets to
    /// know it.
    pub(super) fn greet(&mut self, from: NodeId, header: Header) {
        let is_news = match self.roster.get(from) {
            None => true,
            Some(known) => {
                matches!(known.status, Status::Dead | Status::Left)
                    && header.incarnation > known.incarnation
            }
        };
        if is_news && self.greeting_at <= self.now && !self.has_left() {
            self.greeting_at = self.now.plus(self.config.gossip_interval_us);
            self.send_push_pull(from);
        }
    }

    fn send_push_pull(&mut self, to: NodeId) {
        let bytes = self.encode_all(Direction::Request);
        self.outputs.push_back(Output::PushPull { to, bytes });
    }

    /// All that is known, or as much as fits: the node itself, then a window that begins somewhere else each time.
    fn encode_all(&mut self, direction: Direction) -> Vec<u8> {
        let start = self.roster.random_start(&mut self.rng);
        let members = std::iter::once(self.roster.own()).chain(self.roster.iter_from(start));
        let skip = match self.registers.len() {
            0 => 0,
            count => self.rng.random_range(0..count),
        };
        let (before, after) =
            (self.registers.values().take(skip), self.registers.values().skip(skip));
        let count = self.roster.len();
        push_pull::encode_knowledge(direction, self.header(), count, members, after.chain(before))
    }

    pub(super) fn wants_register(&self, name: &str, stamp: Stamp) -> bool {
        let is_newer = match self.registers.get(name) {
            Some(known) => known.stamp < stamp,
            None => self.registers.len() < REGISTERS_MAX,
        };
        let is_asked = self.pulls.get(name).is_some_and(|&asked| asked >= stamp);
        let is_in_time = stamp.time <= self.register_time_max;
        is_newer
            && is_in_time
            && !is_asked
            && (self.pulls.len() < REGISTERS_MAX || self.pulls.contains_key(name))
    }

    pub(super) fn send_pull(&mut self, to: NodeId, names: &[&str]) {
        let bytes = push_pull::encode_pull(self.header(), names.iter().copied());
        self.outputs.push_back(Output::PushPull { to, bytes });
    }
}
