//! Change subscriptions: checked, told that the log grew, driven.
//!
//! Invariants:
//!
//! - At most as many as [`crate::limits::Limits`] says; one more gets an error item and no flight.
//! - A subscription is in the table exactly while its flight is.

use std::sync::Arc;

use starling_client::codec::Text;
use starling_client::wire::{ChangesItem, ChangesRequest, KEY_SIZE_MAX, WireError};

use super::changes::{ChangesOutput, ChangesPlan, Subscription};
use super::driver::Work;
use super::error::Refusal;
use super::flights::{About, Questions};
use super::storage::StorageAnswer;
use super::types::SubscriptionId;
use super::{Core, Instant, Output, Phase};

/// A subscription in flight.
#[derive(Debug)]
pub(super) struct SubscriptionWork {
    pub(super) id: SubscriptionId,
    pub(super) machine: Subscription,
}

impl Core {
    pub(super) fn handle_subscribe(
        &mut self,
        subscription: SubscriptionId,
        request: ChangesRequest,
    ) {
        match self.plan_changes(request) {
            Ok(plan) => {
                let id = self.flights.next_id();
                self.subscriptions.insert(subscription, id);
                let machine = Subscription::new(plan);
                let work = SubscriptionWork { id: subscription, machine };
                self.launch(id, Work::Subscription(work));
            }
            Err(refusal) => {
                let item = Arc::new(ChangesItem::Error(WireError::from(refusal)));
                self.outputs.push_back(Output::SubscriptionItem { subscription, item });
            }
        }
    }

    fn plan_changes(&self, request: ChangesRequest) -> Result<ChangesPlan, Refusal> {
        match self.phase {
            Phase::Starting => return Err(Refusal::Starting),
            Phase::Stopping { .. } | Phase::Stopped => return Err(Refusal::Stopping),
            Phase::Serving => {}
        }
        let ChangesRequest { keyspace, prefix, partitions, from, follow } = request;
        let count = self.cluster.epoch().partitions().count();
        if partitions.is_some_and(|(first, last)| first > last || count <= last) {
            return Err(Refusal::OutOfBounds("no such range of partitions"));
        }
        let (size, limit) = (prefix.len(), KEY_SIZE_MAX);
        if size > limit {
            return Err(Refusal::KeyTooLarge { size, limit });
        }
        let keyspace = match keyspace {
            Some(name) => Some(self.keyspace(&name)?.id),
            None => None,
        };
        if self.subscriptions.len() >= self.limits.subscriptions_max {
            return Err(Refusal::SubscriptionsMax(self.subscriptions.len()));
        }
        Ok(ChangesPlan { keyspace, prefix: prefix.0, partitions, from, follow })
    }

    pub(super) fn handle_changes_grew(&mut self, end: u64) {
        let ids: Vec<u64> = self.subscriptions.values().copied().collect();
        for id in ids {
            let Some(mut flight) = self.flights.take(id) else { continue };
            if let Work::Subscription(work) = &mut flight.work {
                work.machine.handle_grew(end);
            }
            self.drive(id, flight);
        }
    }

    pub(super) fn handle_subscription_ready(&mut self, subscription: SubscriptionId) {
        let id = self.subscriptions.get(&subscription).copied();
        let Some((id, mut flight)) = id.and_then(|id| Some((id, self.flights.take(id)?))) else {
            return;
        };
        if let Work::Subscription(work) = &mut flight.work {
            work.machine.handle_ready();
        }
        self.drive(id, flight);
    }

    pub(super) fn handle_unsubscribe(&mut self, subscription: SubscriptionId) {
        if let Some(id) = self.subscriptions.remove(&subscription)
            && self.flights.take(id).is_some()
        {
            self.flights.end(id);
        }
    }

    /// Storage answered a subscription.
    pub(super) fn read_changes(&self, machine: &mut Subscription, answer: StorageAnswer) {
        machine.handle_storage(answer, |id| {
            self.keyspaces.get_id(id).map(|keyspace| Text(keyspace.settings.name.0.clone()))
        });
    }

    pub(super) fn drive_subscription(
        &mut self,
        id: u64,
        work: &mut SubscriptionWork,
        questions: &mut Questions,
    ) -> (bool, Option<Instant>) {
        while let Some(output) = work.machine.poll_output() {
            match output {
                ChangesOutput::Storage(request) => {
                    self.ask_storage(id, questions, About::Local, request);
                }
                ChangesOutput::Item(item) => {
                    let subscription = work.id;
                    self.outputs.push_back(Output::SubscriptionItem { subscription, item });
                }
            }
        }
        let done = work.machine.is_finished();
        if done {
            self.subscriptions.remove(&work.id);
        }
        (done, None)
    }
}
