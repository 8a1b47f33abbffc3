//! Holds a call until its task has ended or requires input, or until the call must be answered.

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;

use rmcp::model::DetailedTask;
use rmcp::service::{RequestContext, RoleServer};
use tokio::sync::watch;

use super::client::Client;
use super::notifications::ProgressNotifications;
use super::retry::while_engine_fails;
use crate::backend::{Agenda, TaskKey};
use crate::rmcp::wire;
use crate::store::{TaskError, TaskStore};
use crate::task::{StoredTask, TaskStatus};

/// A call whose client waits for the answer.
pub(super) struct HeldCall<'a> {
    context: &'a RequestContext<RoleServer>,
    notifications: ProgressNotifications,
    /// The newest state of the task that was read.
    seen: watch::Sender<Option<Arc<StoredTask>>>,
}

/// Why a call is held no longer.
pub(super) enum HoldEnd {
    /// The task has ended or requires input.
    Over { stored: Arc<StoredTask>, task: Box<DetailedTask> },
    /// The task goes on, and the call must be answered now.
    TimeElapsed,
    /// The client has cancelled the call or has left.
    Cancelled,
}

impl<'a> HeldCall<'a> {
    pub(super) fn new(client: &Client, context: &'a RequestContext<RoleServer>) -> Self {
        let notifications = ProgressNotifications::new(context.peer.clone(), client.progress_token.clone());
        Self { context, notifications, seen: watch::Sender::default() }
    }

    /// Returns the newest state of the task that was read.
    pub(super) fn seen(&self) -> Option<Arc<StoredTask>> {
        self.seen.borrow().clone()
    }

    /// Takes a state of the task as the newest one that was read.
    pub(super) fn see(&self, stored: Arc<StoredTask>) {
        self.seen.send_replace(Some(stored));
    }

    /// Reads the task once.
    ///
    /// # Errors
    /// The errors of the store.
    pub(super) async fn read<B: Agenda>(
        &self,
        store: &TaskStore<B>,
        key: &TaskKey,
    ) -> Result<(Arc<StoredTask>, Box<DetailedTask>), TaskError> {
        let stored = Arc::new(store.get(key).await?);
        self.see(Arc::clone(&stored));
        let task = Box::new(wire::detailed(store, &stored).await?);
        Ok((stored, task))
    }

    /// Waits for a future. Notifies the client of the progress meanwhile.
    pub(super) async fn wait<T>(&mut self, answer: impl Future<Output = T>) -> T {
        let Self { notifications, seen, .. } = self;
        tokio::select! {
            biased;
            answer = answer => answer,
            never = notifications.send(seen.subscribe()) => match never {},
        }
    }

    /// Holds the call until its task has ended or requires input, at most until `limit` is ready. While the engine fails, the
    /// call is held.
    ///
    /// # Errors
    /// `NotFound` if the owner has no such task any more; errors that a later read cannot avoid.
    pub(super) async fn hold<B: Agenda>(
        &mut self,
        store: &TaskStore<B>,
        key: &TaskKey,
        limit: impl Future<Output = ()>,
    ) -> Result<HoldEnd, TaskError> {
        let (seen, cancelled) = (self.seen.clone(), self.context.ct.clone());
        let held = async {
            let read = || read_over(store, key, &seen);
            let no_limit = pin!(pending());
            tokio::select! {
                biased;
                () = cancelled.cancelled() => Ok(HoldEnd::Cancelled),
                () = limit => Ok(HoldEnd::TimeElapsed),
                over = while_engine_fails(read, no_limit) => over,
            }
        };
        self.wait(held).await
    }
}

/// Reads the task until it has ended or requires input.
async fn read_over<B: Agenda>(
    store: &TaskStore<B>,
    key: &TaskKey,
    seen: &watch::Sender<Option<Arc<StoredTask>>>,
) -> Result<HoldEnd, TaskError> {
    let is_over = |stored: &StoredTask| {
        seen.send_replace(Some(Arc::new(stored.clone())));
        stored.task.status.is_terminal() || stored.task.status == TaskStatus::InputRequired
    };
    let stored = store.wait_until(key, is_over).await?;
    let task = Box::new(wire::detailed(store, &stored).await?);
    Ok(HoldEnd::Over { stored: Arc::new(stored), task })
}
