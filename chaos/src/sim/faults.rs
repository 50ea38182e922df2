//! What befalls nodes: faults of the plan, crashes, starts.
//!
//! Invariants:
//!
//! - What is wrong at a moment follows from the faults that go on at it: it is worked out anew whenever one begins or ends.
//! - A node that is down comes back by itself, unless data on its disk was destroyed and storage refuses to open.

use rand::{Rng, RngExt};
use starling_node::core::types::Input;
use starling_storage::{CrashMode, Fault};

use super::event::Event;
use super::node::{BootError, guard};
use super::plan::{FaultKind, Shape};
use super::world::{BEGIN_US, NOBODY, World};
use crate::history::{Incident, IncidentKind};

impl World {
    pub(super) fn incident(&mut self, node: usize, what: IncidentKind) {
        let (at_us, id) = (self.now_us, self.nodes[node].id);
        self.trace.note(at_us, id.0, 20, 0, || format!("{what:?}"));
        self.history.incidents.push(Incident { at_us, node: id, what });
    }

    pub(super) fn fault_begins(&mut self, index: usize) {
        if self.plan.faults[index].kind.destroys() {
            self.destroy(index);
            return;
        }
        self.tell_clock(index);
        self.active.push(index);
        let fault = self.plan.faults[index].clone();
        match fault.kind {
            FaultKind::Crash { node, calls, mode, recovery } => {
                let to_us = BEGIN_US + fault.to_us;
                let node = self.index_of(node);
                let target = &mut self.nodes[node];
                if target.running.is_some() {
                    target.crash_mode = mode;
                    target.recovery_crash = recovery;
                    target.down_until_us = target.down_until_us.max(to_us);
                    target.disk.inject(target.disk.calls() + calls, Fault::Crash);
                }
            }
            FaultKind::Eio { node, calls } => {
                let node = self.index_of(node);
                let target = &mut self.nodes[node];
                target.disk_faulty = true;
                target.disk.inject(target.disk.calls() + calls, Fault::Io);
            }
            FaultKind::Full { node, room } => {
                let node = self.index_of(node);
                let target = &mut self.nodes[node];
                target.disk_faulty = true;
                target.disk.set_capacity(Some(target.disk.used() + room));
            }
            FaultKind::Stop { node } => {
                let to_us = BEGIN_US + fault.to_us;
                let node = self.index_of(node);
                let target = &mut self.nodes[node];
                if target.running.is_some() {
                    target.down_until_us = target.down_until_us.max(to_us);
                    self.at_life(0, node, Event::Input(Box::new(Input::Stop)));
                }
            }
            FaultKind::Rough { .. }
            | FaultKind::Partition(_)
            | FaultKind::Pause(_)
            | FaultKind::Slow { .. }
            | FaultKind::SlowDisk { .. }
            | FaultKind::Skew { .. }
            | FaultKind::Drift { .. }
            | FaultKind::HotKey { .. } => {}
            FaultKind::FlipBits { .. } | FaultKind::LoseFile { .. } | FaultKind::Replace { .. } => {
                unreachable!("told above")
            }
        }
        self.work_out();
        self.tell_clock(index);
    }

    pub(super) fn fault_ends(&mut self, index: usize) {
        self.tell_clock(index);
        self.active.retain(|&active| active != index);
        if let FaultKind::Full { node, .. } = self.plan.faults[index].kind {
            let node = self.index_of(node);
            self.nodes[node].disk.set_capacity(None);
        }
        self.work_out();
        self.tell_clock(index);
    }

    fn tell_clock(&mut self, index: usize) {
        if let FaultKind::Skew { node, .. } | FaultKind::Drift { node, .. } =
            self.plan.faults[index].kind
        {
            let node = self.index_of(node);
            let skew_ms = self.skew_us(node) / 1000;
            self.incident(node, IncidentKind::Clock { skew_ms });
        }
    }

    /// How far the node's wall clock is ahead, in microseconds.
    pub(super) fn skew_us(&self, node: usize) -> i64 {
        let id = self.nodes[node].id;
        let skew = |&index: &usize| {
            let fault = &self.plan.faults[index];
            match fault.kind {
                FaultKind::Skew { node, skew_ms } if node == id => skew_ms * 1000,
                FaultKind::Drift { node, per_second_us } if node == id => {
                    let from_us = BEGIN_US + fault.from_us;
                    let passed_ms = self.now_us.saturating_sub(from_us) / 1000;
                    per_second_us * i64::try_from(passed_ms).expect("runs are short") / 1000
                }
                _ => 0,
            }
        };
        self.active.iter().map(skew).sum()
    }

    /// What is wrong now.
    fn work_out(&mut self) {
        self.network.clear();
        let paused: Vec<bool> = self.nodes.iter().map(|node| node.paused).collect();
        for node in &mut self.nodes {
            (node.paused, node.slow, node.slow_disk) = (false, 1, 1);
        }
        let mut hot = None;
        let mut shapes: Vec<Shape> = Vec::new();
        for &index in &self.active {
            match &self.plan.faults[index].kind {
                FaultKind::Rough { lost, repeated, delay_us } => {
                    self.network.make_rough(*lost, *repeated, *delay_us);
                }
                FaultKind::Partition(shape) => shapes.push(shape.clone()),
                FaultKind::Pause(node) => {
                    let node = self.index_of(*node);
                    self.nodes[node].paused = true;
                }
                FaultKind::Slow { node, factor } => {
                    let node = self.index_of(*node);
                    self.nodes[node].slow = self.nodes[node].slow.max(*factor);
                }
                FaultKind::SlowDisk { node, factor } => {
                    let node = self.index_of(*node);
                    self.nodes[node].slow_disk = self.nodes[node].slow_disk.max(*factor);
                }
                FaultKind::HotKey { key, per_mille } => hot = Some((*key, *per_mille)),
                FaultKind::Crash { .. }
                | FaultKind::Full { .. }
                | FaultKind::Eio { .. }
                | FaultKind::FlipBits { .. }
                | FaultKind::LoseFile { .. }
                | FaultKind::Replace { .. }
                | FaultKind::Stop { .. }
                | FaultKind::Skew { .. }
                | FaultKind::Drift { .. } => {}
            }
        }
        for shape in &shapes {
            self.network.partition(shape);
        }
        self.clients.workload.set_hot(hot);
        for (a, b, connection) in self.network.dying() {
            let after_us = self.random.random_range(300_000..1_000_000);
            self.at(after_us, NOBODY, Event::LinkDies { a, b, connection });
        }
        for (node, was_paused) in paused.into_iter().enumerate() {
            if was_paused && !self.nodes[node].paused {
                self.resume(node);
            }
        }
    }

    /// The node's power is gone, or its process.
    pub(super) fn crash(&mut self, node: usize) {
        let mode = self.nodes[node].crash_mode;
        self.end_life(node, mode, IncidentKind::Crashed { power: mode != CrashMode::KeepAll });
    }

    /// The process is gone; `mode` says what is left of what it had not synced.
    fn end_life(&mut self, node: usize, mode: CrashMode, how: IncidentKind) {
        let target = &mut self.nodes[node];
        target.disk.crash();
        let was = target.running.take();
        let was_running = was.is_some();
        if let Some(running) = was {
            target.clock_ms = target.clock_ms.max(running.core.clock_last().physical_ms());
        }
        target.disk.restart(mode);
        target.life += 1;
        target.crash_mode = CrashMode::LoseUnsynced;
        // The power may go while the node starts, too, before that has synced what the process before had not.
        if was_running || mode != CrashMode::KeepAll {
            self.incident(node, how);
        }
        if was_running {
            for peer in 0..self.nodes.len() {
                if peer != node {
                    let within_us = if mode == CrashMode::KeepAll { 2_000 } else { 1_000_000 };
                    self.disconnect(node, peer, within_us);
                }
            }
        }
        self.start_later(node);
    }

    /// The core has finished: what waits is carried out and synced, as `io` does it, the process ends, and then the power goes.
    pub(super) fn stopped(&mut self, node: usize) {
        let wall_ms = self.now(node).wall_ms;
        let running = self.running(node);
        let waiting = std::mem::take(&mut running.writes);
        let closed = guard(|| {
            running.writer.execute(wall_ms, waiting);
            running.writer.storage_mut().sync().is_ok()
        });
        match closed {
            _ if self.nodes[node].disk.is_crashed() => self.crash(node),
            Err(message) => self.panicked(node, message),
            Ok(true) => self.end_life(node, CrashMode::LoseUnsynced, IncidentKind::Stopped),
            Ok(false) => {
                self.incident(node, IncidentKind::SyncFailed);
                self.crash(node);
            }
        }
    }

    pub(super) fn panicked(&mut self, node: usize, message: String) {
        self.incident(node, IncidentKind::Panicked { message });
        self.nodes[node].crash_mode = CrashMode::KeepAll;
        self.crash(node);
    }

    /// A sync or write failed: storage takes no more writes; an operator restarts the node after a while.
    pub(super) fn poisoned(&mut self, node: usize) {
        let running = self.running(node);
        if std::mem::replace(&mut running.poisoned, true) {
            return;
        }
        self.incident(node, IncidentKind::SyncFailed);
        let after_us = self.random.random_range(100_000..3_000_000);
        let modes = [CrashMode::KeepAll, CrashMode::KeepAll, CrashMode::LoseUnsynced];
        let mode = modes[self.random.random_range(0..3)];
        let target = &mut self.nodes[node];
        target.crash_mode = mode;
        self.at_life(after_us, node, Event::Restart);
    }

    pub(super) fn start_later(&mut self, node: usize) {
        if std::mem::replace(&mut self.nodes[node].booting, true) {
            return;
        }
        let pause_us = self.random.random_range(20_000..200_000);
        let down_us = self.nodes[node].down_until_us.saturating_sub(self.now_us);
        self.at(pause_us.max(down_us), node, Event::Boot);
    }

    pub(super) fn boot(&mut self, node: usize) {
        self.nodes[node].booting = false;
        if self.nodes[node].running.is_some() {
            return;
        }
        let (seed, now) = (self.random.next_u64(), self.now(node));
        if now.wall_ms <= self.nodes[node].given_up_ms && !self.clients.stopped {
            self.start_later(node);
            return;
        }
        let booted = self.nodes[node].boot(&self.settings, seed, now);
        match booted {
            Ok(()) => {
                self.nodes[node].down_until_us = 0;
                self.input(node, Box::new(Input::Timeout));
            }
            Err(BootError::Crashed) => self.crash(node),
            Err(BootError::Again(_)) if self.nodes[node].disk_faulty => {
                self.nodes[node].disk.restart(CrashMode::KeepAll);
                self.start_later(node);
            }
            Err(BootError::Again(error) | BootError::Lost(error)) => {
                self.trace.note(self.now_us, node as u64 + 1, 21, 0, || error.clone());
                if !self.nodes[node].damaged {
                    self.incident(node, IncidentKind::Unopenable { error });
                }
            }
            Err(BootError::Panicked(message)) => {
                self.incident(node, IncidentKind::Panicked { message });
            }
        }
    }
}
