//! [`Tasks`]: local tasks that end with the connection they belong to.

use std::future::Future;

use tokio::task::JoinSet;

/// Local tasks; dropping this ends them.
#[derive(Debug)]
pub(super) struct Tasks(JoinSet<()>);

impl Tasks {
    /// None yet.
    pub(super) fn new() -> Self {
        Self(JoinSet::new())
    }

    /// Starts a task, and forgets those that have ended.
    pub(super) fn spawn(&mut self, task: impl Future<Output = ()> + 'static) {
        while self.0.try_join_next().is_some() {}
        self.0.spawn_local(task);
    }
}
