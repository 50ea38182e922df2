//! What a core is given, and the carrying out of what it says.
//!
//! Invariants:
//!
//! - An input takes the core's thread a while: what it says leaves after that, in order.
//! - One message of some goes through the codec; what was encoded decodes to the same.

use std::collections::BTreeMap;

use rand::RngExt;
use starling_client::codec;
use starling_client::wire::{ChangesFrom, ChangesItem, ChangesRequest};
use starling_clock::NodeId;
use starling_node::core::types::{Input, Output, SubscriptionId};
use starling_storage::KeyspaceId;

use super::event::Event;
use super::node::guard;
use super::world::{NOBODY, World};
use crate::history::{IncidentKind, KeyspaceFacts, TailItem, Tailed};

/// What an input costs the core, and a read the lane that reads, in microseconds.
const INPUT_US: u64 = 2;
const READ_US: u64 = 15;
/// One message of so many goes through the codec.
const CODEC_EVERY: u64 = 8;

impl World {
    /// Gives the core an input and carries out what follows.
    pub(super) fn input(&mut self, node: usize, input: Box<Input>) {
        self.feed(node, input);
        self.carry_out(node);
    }

    /// Gives the core an input.
    pub(super) fn feed(&mut self, node: usize, input: Box<Input>) {
        let now = self.now(node);
        let cost_us = INPUT_US * self.nodes[node].slow;
        let Some(running) = self.nodes[node].running.as_mut() else { return };
        running.core_until_us = running.core_until_us.max(now.mono.0) + cost_us;
        if let Err(message) = guard(|| running.core.handle(now, *input)) {
            self.panicked(node, message);
        }
    }

    /// Does what the core said.
    pub(super) fn carry_out(&mut self, node: usize) {
        while let Some(running) = self.nodes[node].running.as_mut()
            && let Some(output) = running.core.poll_output()
        {
            self.do_output(node, output);
        }
        let now_us = self.now_us;
        let Some(running) = self.nodes[node].running.as_mut() else { return };
        running.timer_us = running.core.poll_timeout().map(|at| at.0.max(now_us));
        if !running.subscribed && running.core.is_serving() {
            running.subscribed = true;
            self.subscribe(node);
        }
    }

    fn do_output(&mut self, node: usize, output: Output) {
        // The core is on one thread: what it says comes when it is through with what it was given before.
        let busy_us = self.running(node).core_until_us.saturating_sub(self.now_us);
        match output {
            Output::Storage { ticket, request } if request.is_write_lane() => {
                let running = self.running(node);
                running.writes.push((ticket, request));
                if !running.committing {
                    running.committing = true;
                    self.at_life(busy_us + 5, node, Event::Commit);
                }
            }
            Output::Storage { ticket, request } => {
                let now_us = self.now_us;
                let cost_us = READ_US * self.nodes[node].slow * self.nodes[node].slow_disk;
                let running = self.running(node);
                running.reads_until_us = running.reads_until_us.max(now_us + busy_us) + cost_us;
                running.reads_waiting += 1;
                let after_us = running.reads_until_us - now_us;
                self.at_life(after_us, node, Event::Read(ticket, Box::new(request)));
            }
            Output::Peer { to, mut message } => {
                self.messages += 1;
                if self.messages.is_multiple_of(CODEC_EVERY) {
                    let mut bytes = Vec::new();
                    codec::encode(&message, &mut bytes);
                    message = codec::decode(&bytes).expect("what was encoded decodes");
                    self.trace.mix(&bytes);
                }
                let from = self.nodes[node].id;
                self.send(node, to, busy_us, Input::Peer { from, message });
            }
            Output::Gossip { to, bytes } => {
                let from = self.nodes[node].id;
                self.send(node, to, busy_us, Input::Gossip { from, bytes });
            }
            Output::PushPull { to, bytes } => {
                let exchange = self.next_number();
                let (from, life) = (self.nodes[node].id, self.nodes[node].life);
                self.exchanges.insert(exchange, (node, life));
                self.send(node, to, busy_us, Input::PushPull { from, exchange, bytes });
            }
            Output::PushPullAnswer { exchange, bytes } => {
                if let Some((asker, life)) = self.exchanges.remove(&exchange)
                    && self.nodes[asker].life == life
                {
                    let (from, to) = (self.nodes[node].id, self.nodes[asker].id);
                    self.send(node, to, busy_us, Input::PushPullAnswer { from, bytes });
                }
            }
            Output::Answer { id, response, .. } => {
                let operation = usize::try_from(id).expect("it is an index");
                let after_us = busy_us + self.network.way(0) * self.nodes[node].slow;
                self.at(after_us, NOBODY, Event::Answered { operation, response });
            }
            Output::SubscriptionItem { subscription, item } => {
                self.tail(node, subscription, &item);
                let ready = Input::SubscriptionReady { subscription };
                let after_us = busy_us + self.running(node).consumer_us;
                self.at_life(after_us, node, Event::Input(Box::new(ready)));
            }
            Output::Dial { peer, .. } => {
                let peer = peer.expect("members have ids");
                let peer = self.index_of(peer);
                self.at_life(busy_us + 500, node, Event::Dial(peer));
            }
            Output::Stopped => self.stopped(node),
        }
    }

    #[expect(clippy::unused_self, reason = "nodes are this world's")]
    pub(super) fn index_of(&self, node: NodeId) -> usize {
        usize::try_from(node.0 - 1).expect("nodes are few")
    }

    fn send(&mut self, node: usize, to: NodeId, after_us: u64, input: Input) {
        let to = self.index_of(to);
        let Some(connection) = self.network.connection(node, to) else { return };
        let slow = self.nodes[node].slow.max(self.nodes[to].slow);
        let [first, again] = self.network.ways(node, to);
        let input = Box::new(input);
        if let Some(way) = again {
            let input = input.clone();
            let arrival = Event::Arrival { from: node, connection, input };
            self.at(after_us + way * slow, to, arrival);
        }
        if let Some(way) = first {
            let arrival = Event::Arrival { from: node, connection, input };
            self.at(after_us + way * slow, to, arrival);
        }
    }

    pub(super) fn dial(&mut self, node: usize, peer: usize) {
        let address = super::node::address_of(peer);
        let up = self.nodes[peer].running.is_some() && !self.nodes[peer].paused;
        if !up || self.network.is_broken(node, peer) {
            let failed = Box::new(Input::DialFailed { address });
            self.at_life(20_000, node, Event::Input(failed));
        } else if self.network.connect(node, peer) {
            let (own, other) = (self.nodes[node].id, self.nodes[peer].id);
            let dialled = Input::PeerConnected { peer: other, address: Some(address) };
            self.at_life(100, node, Event::Input(Box::new(dialled)));
            let accepted = Input::PeerConnected { peer: own, address: None };
            self.at_life(100, peer, Event::Input(Box::new(accepted)));
        }
    }

    /// Ends a pair's connection; both are told within so many microseconds.
    pub(super) fn disconnect(&mut self, a: usize, b: usize, within_us: u64) {
        if self.network.disconnect(a, b) {
            for (node, peer) in [(a, b), (b, a)] {
                let after_us = self.random.random_range(500..within_us);
                self.at_life(after_us, node, Event::PeerGone(peer));
            }
        }
    }

    fn subscribe(&mut self, node: usize) {
        let from = self.nodes[node].cursor.map_or(ChangesFrom::Oldest, ChangesFrom::Sequence);
        // Its own in the whole history.
        let subscription = SubscriptionId(self.nodes[node].life << 16 | self.nodes[node].id.0);
        let request = ChangesRequest {
            keyspace: None,
            prefix: codec::Blob::default(),
            partitions: None,
            from,
            follow: true,
        };
        let subscribe = Box::new(Input::Subscribe { subscription, request });
        self.at_life(0, node, Event::Input(subscribe));
        self.at_life(0, node, Event::Work);
        let what = IncidentKind::Started;
        self.incident(node, what);
    }

    fn tail(&mut self, node: usize, subscription: SubscriptionId, item: &ChangesItem) {
        let (at_us, id) = (self.now_us, self.nodes[node].id);
        let (tails, keyspaces) = (&mut self.history.tails, &self.history.keyspaces);
        let mut push = |what| {
            tails.push(TailItem { at_us, node: id, subscription: subscription.0, what });
        };
        match item {
            ChangesItem::Batch { changes, next, .. } => {
                for change in &changes.0 {
                    push(Tailed::Change {
                        sequence: change.sequence,
                        keyspace: named(keyspaces, &change.keyspace.0),
                        key: change.key.0.clone(),
                        stamp: change.version.stamp.0,
                        payload: change.version.payload.0.clone(),
                    });
                }
                push(Tailed::Next(*next));
                self.nodes[node].cursor = Some(*next);
            }
            ChangesItem::Gap { from, to } => {
                push(Tailed::Gap { from: *from, to: *to });
                self.nodes[node].cursor = Some(*to);
            }
            ChangesItem::End { next } => self.nodes[node].cursor = Some(*next),
            ChangesItem::Error(_) => {}
        }
    }
}

/// A keyspace's name: a node that has not learned it yet tells the id in hexadecimal.
fn named(keyspaces: &BTreeMap<String, KeyspaceFacts>, told: &str) -> String {
    if keyspaces.contains_key(told) {
        return told.to_owned();
    }
    let id = u64::from_str_radix(told, 16).ok().map(KeyspaceId);
    let known = keyspaces.iter().find(|(_, facts)| Some(facts.id) == id);
    known.map_or(told, |(name, _)| name).to_owned()
}
