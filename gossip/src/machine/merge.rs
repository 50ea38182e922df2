//! Weighing what is heard: of other members, of ourselves, of registers; and suspicion.
//!
//! Invariants:
//!
//! - Of two claims about a member the one with the greater (incarnation, status) stays, whatever the order they
//!   are heard in; what a member says of itself goes by its own incarnation.
//! - A claim that this node is anything but alive, at its incarnation or above, is refuted by a greater one,
//!   unless it has left.
//! - A register of another node that is stamped too late changes nothing here and is not passed on.
//! - A suspect becomes dead only when its time has passed on a node that was awake.

use std::sync::Arc;

use starling_clock::NodeId;

use super::{Gossip, Output, Timer};
use crate::limits::{BULK_MEMBERS, INCARNATION_MAX, REGISTERS_MAX};
use crate::logarithm::{confirmations_wanted, suspicion_us};
use crate::rumours::Subject;
use crate::wire::push_pull::{Knowledge, MemberView};
use crate::wire::rumour::Rumour;
use crate::wire::{RegisterView, StateView};
use crate::{Instant, Member, Status};

/// A claim about a member.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard<'a> {
    pub(super) node: NodeId,
    pub(super) status: Status,
    pub(super) incarnation: u64,
    /// Who claims it, if it is a doubt.
    pub(super) by: NodeId,
    /// What the member says of itself, and in which incarnation it said so.
    pub(super) state: Option<(u64, StateView<'a>)>,
}

/// A suspicion that runs.
#[derive(Clone, Debug)]
pub(super) struct Suspicion {
    pub(super) incarnation: u64,
    pub(super) deadline: Instant,
    started: Instant,
    /// How many others have to agree for the least time.
    wanted: u32,
    /// Who suspects, the first one and those that agreed: at most one more than `wanted`, all distinct.
    by: Vec<NodeId>,
}

impl Suspicion {
    /// Who agreed last: told on, so that others can count too.
    pub(super) fn by(&self) -> NodeId {
        *self.by.last().expect("somebody began it")
    }
}

impl Gossip {
    pub(super) fn hear_rumour(&mut self, rumour: &Rumour<'_>) {
        let heard = match *rumour {
            Rumour::Alive { node, incarnation, state } => Heard {
                node,
                status: Status::Alive,
                incarnation,
                by: node,
                state: Some((incarnation, state)),
            },
            Rumour::Doubt { node, status, incarnation, by } => {
                Heard { node, status, incarnation, by, state: None }
            }
            Rumour::Register(register) => {
                self.hear_register(register, true);
                return;
            }
            // Pulled together, once the whole datagram was heard.
            Rumour::Notice { .. } => return,
        };
        self.hear(&heard, true);
    }

    /// Merges what `from` knows. Many new members at once are old news elsewhere, and are not spread.
    pub(super) fn hear_knowledge(&mut self, from: NodeId, knowledge: &Knowledge<'_>) {
        // Almost all of it is known almost always: one look at each, and no more than that.
        let mut news: Vec<&MemberView<'_>> = Vec::new();
        let mut new_count = 0;
        let mut known = self.roster.reader();
        for member in &knowledge.members {
            match known.get(member.node) {
                None => new_count += 1,
                // What is said of ourselves may be of a former life that differs in nothing but the state.
                Some(known) if member.node != self.own && member.is_old_to(known) => continue,
                Some(_) => {}
            }
            news.push(member);
        }
        let is_bulk = new_count > BULK_MEMBERS;
        for member in news {
            let known = self.roster.get(member.node).map(|known| known.status);
            // What we hold to be up is not dead because another one says so: it gets the chance to refute. Otherwise
            // the two halves of a healed partition would take each other's verdicts.
            let status = match (member.status, known) {
                (Status::Dead, Some(Status::Alive | Status::Suspect)) => Status::Suspect,
                (status, _) => status,
            };
            let heard = Heard {
                node: member.node,
                status,
                incarnation: member.incarnation,
                by: from,
                state: Some((member.state_incarnation, member.state)),
            };
            self.hear(&heard, !is_bulk || member.node == from);
        }
        let new = |register: &&RegisterView<'_>| !self.registers.contains_key(register.name);
        let is_bulk = knowledge.registers.iter().filter(new).count() > BULK_MEMBERS;
        for &register in &knowledge.registers {
            self.hear_register(register, !is_bulk);
        }
    }

    /// Weighs one claim. A member that it makes known is spread if `spreads_new`; other news always is.
    pub(super) fn hear(&mut self, heard: &Heard<'_>, spreads_new: bool) {
        if heard.node == self.own {
            self.hear_of_own(heard);
            return;
        }
        let Some(known) = self.roster.get(heard.node) else {
            self.meet(heard, spreads_new);
            return;
        };
        let before = (known.incarnation, known.status);
        let state_incarnation = known.state_incarnation;
        let mut is_news = false;
        if let Some((incarnation, state)) = heard.state
            && incarnation > state_incarnation
        {
            let is_changed = state != StateView::of(&known.state);
            self.roster.set_state(heard.node, state.to_state(), incarnation);
            if is_changed {
                self.outputs.push_back(Output::StateChanged { node: heard.node });
            }
            is_news = true;
        }
        if (heard.incarnation, heard.status) > before {
            self.believe(heard.node, heard.status, heard.incarnation, heard.by);
            is_news = true;
        } else if heard.status == Status::Suspect && (heard.incarnation, heard.status) == before {
            is_news |= self.confirm(heard.node, heard.by);
        }
        if is_news {
            self.spread(Subject::Member(heard.node));
        }
    }

    /// Hears of a node for the first time. Without its state it cannot be reached: push-pull will bring that.
    fn meet(&mut self, heard: &Heard<'_>, spreads: bool) {
        let Some((state_incarnation, state)) = heard.state else { return };
        let member = Member {
            node: heard.node,
            status: heard.status,
            incarnation: heard.incarnation,
            state_incarnation,
            state: Arc::new(state.to_state()),
        };
        if self.admit(member, heard.by) && spreads {
            self.spread(Subject::Member(heard.node));
        }
    }

    /// Makes a member known, if there is room.
    fn admit(&mut self, member: Member, by: NodeId) -> bool {
        let (node, status, incarnation) = (member.node, member.status, member.incarnation);
        if !self.roster.insert(member, &mut self.rng) {
            return false;
        }
        if status == Status::Suspect {
            self.suspect(node, incarnation, by);
        }
        self.outputs.push_back(Output::MemberChanged { node, from: None, to: status });
        true
    }

    /// Takes over one member from elsewhere. Dead ones may well be back: they are called on.
    pub(super) fn restore(&mut self, mut member: Member) {
        if member.node == self.own {
            // What a former life was known by: this one goes above it.
            self.raise_above(member.incarnation);
        } else if self.roster.get(member.node).is_none() {
            member.state_incarnation = match member.status {
                Status::Alive => member.incarnation,
                _ => member.state_incarnation.min(member.incarnation),
            };
            self.admit(member, self.own);
        }
    }

    /// Changes a known member's status.
    fn believe(&mut self, node: NodeId, status: Status, incarnation: u64, by: NodeId) {
        let before = self.roster.get(node).map(|member| member.status);
        self.roster.set_status(node, status, incarnation, &mut self.rng);
        if let Some(suspicion) = self.suspicions.remove(&node) {
            self.timers.remove(&(suspicion.deadline, Timer::Suspicion(node)));
        }
        if status == Status::Suspect {
            self.suspect(node, incarnation, by);
        }
        if before != Some(status) {
            self.outputs.push_back(Output::MemberChanged { node, from: before, to: status });
        }
    }

    /// Begins a suspicion.
    fn suspect(&mut self, node: NodeId, incarnation: u64, by: NodeId) {
        let members = self.roster.up();
        let wanted = confirmations_wanted(&self.config, members);
        let time_us = suspicion_us(&self.config, members, 0, wanted);
        let deadline = self.arm(Timer::Suspicion(node), time_us);
        let suspicion =
            Suspicion { incarnation, deadline, started: self.now, wanted, by: vec![by] };
        self.suspicions.insert(node, suspicion);
    }

    /// `by` suspects the same: less time is left. Answers whether that was news.
    fn confirm(&mut self, node: NodeId, by: NodeId) -> bool {
        let members = self.roster.up();
        let suspicion = self.suspicions.get_mut(&node).expect("every suspect has a suspicion");
        if suspicion.by.contains(&by) || suspicion.by.len() > suspicion.wanted as usize {
            return false;
        }
        let confirmations = u32::try_from(suspicion.by.len()).expect("at most wanted");
        suspicion.by.push(by);
        let time_us = suspicion_us(&self.config, members, confirmations, suspicion.wanted);
        let before = suspicion.deadline;
        // At the earliest in a moment: a timer that is set now must be later than now.
        suspicion.deadline = suspicion.started.plus(time_us).max(self.now.plus(1)).min(before);
        self.timers.remove(&(before, Timer::Suspicion(node)));
        self.timers.insert((suspicion.deadline, Timer::Suspicion(node)));
        true
    }

    /// The suspect had its time.
    pub(super) fn on_suspicion(&mut self, node: NodeId, due: Instant) {
        let late_us = self.now.since(due);
        let interval_us = self.config.probe_interval_us;
        if late_us > interval_us {
            // We slept, and its refutation may lie among what we have not read yet.
            let deadline = self.arm(Timer::Suspicion(node), interval_us);
            let suspicion = self.suspicions.get_mut(&node).expect("timers go with suspicions");
            suspicion.deadline = deadline;
            return;
        }
        let incarnation =
            self.suspicions.get(&node).expect("timers go with suspicions").incarnation;
        let by = self.own;
        self.hear(&Heard { node, status: Status::Dead, incarnation, by, state: None }, true);
    }

    /// Hears of itself: of doubts about it, or of a former life.
    fn hear_of_own(&mut self, heard: &Heard<'_>) {
        if self.has_left() {
            return;
        }
        let own = self.roster.own();
        let is_refuted = match heard.status {
            Status::Alive => {
                let is_own =
                    heard.state.is_none_or(|(_, state)| state == StateView::of(&own.state));
                heard.incarnation > own.incarnation
                    || (heard.incarnation == own.incarnation && !is_own)
            }
            Status::Suspect | Status::Dead | Status::Left => heard.incarnation >= own.incarnation,
        };
        if is_refuted {
            if heard.status == Status::Suspect {
                self.worsen_health(1);
            }
            self.raise_above(heard.incarnation);
        }
    }

    /// Lives on in an incarnation above `incarnation`. Half of the numbers are out of reach of hearsay, so that
    /// nobody can take from a node the room to publish its state.
    fn raise_above(&mut self, incarnation: u64) {
        let own = self.roster.own();
        if incarnation < INCARNATION_MAX / 2 && incarnation >= own.incarnation {
            let state = own.state.clone();
            self.publish_own(Status::Alive, incarnation + 1, state);
        }
    }

    /// Takes another node's register, unless it is stamped too late.
    fn hear_register(&mut self, heard: RegisterView<'_>, spreads: bool) {
        if heard.stamp.time <= self.register_time_max {
            self.merge_register(heard, spreads);
        }
    }

    /// Takes a register if it is newer. Of equal stamps, which only a fault can give, the greater value stays: so
    /// all nodes agree even then.
    pub(super) fn merge_register(&mut self, heard: RegisterView<'_>, spreads: bool) -> bool {
        let known = self.registers.get(heard.name);
        if known.is_some_and(|known| (heard.stamp, heard.value) <= (known.stamp, &known.value)) {
            return false;
        }
        if known.is_none() && self.registers.len() >= REGISTERS_MAX {
            return false;
        }
        let name = heard.name.to_owned();
        self.registers.insert(name.clone(), heard.to_register());
        self.pulls.remove(&name);
        if spreads {
            self.spread(Subject::Register(name.clone()));
        }
        self.outputs.push_back(Output::RegisterChanged { name });
        true
    }
}
