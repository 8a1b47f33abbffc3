//! An attempt at a task, and the writes that need its lease.

use std::collections::HashSet;
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde_json::Value;

use super::deadline::{CallTarget, Deadline};
use super::error::TaskError;
use super::keeper::KeptRecords;
use super::local_attempts::AttemptGuard;
use super::machine::exit::{self, WorkerExit};
use super::machine::{self, Change};
use super::payloads;
use super::records::ChangeCall;
use super::task_ref::TaskRef;
use super::write::ChangeKind;
use crate::backend::{Agenda, TaskKey};
use crate::printable::Chain;
use crate::task::{PayloadKind, RpcError, StoredTask, Task};

/// The right to work on a task, until its lease is lost or the task ends.
///
/// [`TaskStore::start`](crate::TaskStore::start) and [`TaskStore::claim`](crate::TaskStore::claim) return an attempt.
/// The lease lapses unless the worker [renews](Self::renew) it in time. Every other change that the attempt makes
/// renews the lease, too. A worker can still renew a lease that has lapsed, until another instance has declared the
/// worker lost. After that, and once the task has ended, the store rejects every change of the attempt.
///
/// At most one attempt at a task can write at a time. Effects outside of the store may overlap with the next attempt, until
/// the worker detects that its lease is lost.
///
/// Clones share one attempt. If the last clone is dropped before the task has ended or was released, the store treats
/// the worker as lost at once.
///
/// # Errors
/// The errors of the [`TaskStore`](crate::TaskStore) call of the same name, and [`LeaseLost`](TaskError::LeaseLost).
///
/// # Cancellation safety
/// If the future of a call is dropped, its change is applied as a whole or not at all.
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), mcp_task_store::TaskError> {
/// use mcp_task_store::{MemoryBackend, NewTask, OwnerId, TaskStore};
/// use serde_json::json;
///
/// let store = TaskStore::new(MemoryBackend::new());
/// let alice = OwnerId::try_from("alice").expect("not empty");
/// let (task, attempt) = store.start(&alice, NewTask::new("tools/call")).await?;
/// attempt.renew().await?;
/// attempt.complete(json!({ "content": [] })).await?;
/// assert!(store.get(&task.key).await?.task.lease.is_none());
/// # Ok(())
/// # }
/// ```
pub struct Attempt<B> {
    pub(super) store: KeptRecords<B>,
    key: TaskKey,
    number: u32,
    /// The keys of the input requests of this attempt.
    requested: Arc<Mutex<HashSet<String>>>,
    /// The `traceparent` of the span of this attempt. Each write of the attempt stores it.
    traceparent: Arc<OnceLock<String>>,
    guard: Arc<AttemptGuard>,
}

impl<B> Clone for Attempt<B> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            key: self.key.clone(),
            number: self.number,
            requested: Arc::clone(&self.requested),
            traceparent: Arc::clone(&self.traceparent),
            guard: Arc::clone(&self.guard),
        }
    }
}

impl<B> fmt::Debug for Attempt<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempt")
            .field("key", &self.key)
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl<B> Attempt<B> {
    pub(super) fn set_begun(&self) {
        self.guard.set_begun();
    }

    pub(super) fn set_over(&self) {
        self.guard.set_over();
    }

    #[cfg(feature = "rmcp")]
    pub(super) fn guard(&self) -> Arc<AttemptGuard> {
        Arc::clone(&self.guard)
    }

    /// Sets the `traceparent` of the span of this attempt. Only the first one counts.
    #[cfg(feature = "rmcp")]
    pub(crate) fn set_traceparent(&self, traceparent: Option<String>) {
        if let Some(traceparent) = traceparent {
            let _ = self.traceparent.set(traceparent);
        }
    }

    #[cfg(feature = "rmcp")]
    pub(super) fn traceparent(&self) -> Option<String> {
        self.traceparent.get().cloned()
    }

    /// Returns the same attempt, which writes through another store that shares its leases.
    #[cfg(feature = "rmcp")]
    pub(super) fn with_store(&self, store: &KeptRecords<B>) -> Self {
        Self { store: store.clone(), ..self.clone() }
    }

    /// Ends the attempt after the write of its lease has failed, unless the outcome of that write is unknown.
    pub(super) fn set_over_unless_outcome_unknown(&self, error: &TaskError) {
        if !error.outcome_unknown() {
            self.set_over();
        }
    }
}

impl<B: Agenda> Attempt<B> {
    /// Registers an attempt of this process.
    pub(super) fn new(store: &KeptRecords<B>, key: &TaskKey, number: u32) -> Self {
        let guard = Arc::new(store.records_only().attempts.register(key, number));
        let (requested, traceparent) = Default::default();
        Self { store: store.clone(), key: key.clone(), number, requested, traceparent, guard }
    }

    /// Returns the key of the task.
    pub fn key(&self) -> &TaskKey {
        &self.key
    }

    /// Returns the number of this attempt at the task: 1, 2, 3, …
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Returns whether this attempt held the lease when `task` was read.
    pub fn holds(&self, task: &Task) -> bool {
        let is_own = |lease| self.store.records_only().attempts.is_own(lease);
        task.lease.as_ref().is_some_and(|lease| lease.attempt == self.number && is_own(lease))
    }

    /// Renews the lease: it lasts for its whole duration from now.
    ///
    /// The renewal changes nothing that a client sees, and subscribers receive no notification. It does not move the timer of
    /// the lease: the taker of the timer reads the new deadline.
    pub async fn renew(&self) -> Result<StoredTask, TaskError> {
        self.change(ChangeKind::Lifecycle, "renew", |task| machine::renew(task)).await
    }

    /// Reads the task. Succeeds while this attempt holds the lease, and after the task has ended.
    pub async fn read(&self) -> Result<StoredTask, TaskError> {
        self.read_task(|| None).await
    }

    /// Reads the task of this attempt. The call decodes the record only if the task has changed since `copy`.
    pub(super) async fn read_task(
        &self,
        copy: impl Fn() -> Option<Arc<StoredTask>> + Send + Sync,
    ) -> Result<StoredTask, TaskError> {
        let records = self.store.records();
        let read = records.read_after_writers(&records.deadline(), &self.key, copy).await;
        let read = read.and_then(|stored| {
            self.check_lease(&stored.task)?;
            Ok(stored)
        });
        if is_over(&read) {
            self.set_over();
        }
        read
    }

    /// Returns an error if this attempt does not hold the lease. A task that has ended has no lease.
    fn check_lease(&self, task: &Task) -> Result<(), TaskError> {
        match task.status.is_terminal() || self.holds(task) {
            true => Ok(()),
            false => Err(TaskError::LeaseLost { task: self.key.task.clone(), attempt: self.number }),
        }
    }

    /// Releases the lease, so that the next worker need not wait until the lease lapses. Call it when the process
    /// shuts down.
    ///
    /// A task that can resume is scheduled in its work queue for now, and the release does not count against
    /// [`NewTask::max_attempts`](crate::NewTask::max_attempts). A task that cannot resume fails in the same write. A
    /// task whose cancel was requested becomes `cancelled`.
    pub async fn release(&self) -> Result<StoredTask, TaskError> {
        let records = self.store.records();
        let deadline = records.deadline();
        let release = |task: &mut Task| {
            let terms = records.exit_terms(records.engine.now());
            exit::take_lease(task, WorkerExit::Released, &terms).map(|_| Change::Visible)
        };
        let call = ChangeCall::by_holder(ChangeKind::Lifecycle, "release", TaskRef::Key(&self.key));
        let released = self.change_before(&deadline, call, release).await?;
        self.set_over();
        self.offer(&deadline, &released).await;
        Ok(released)
    }

    /// Schedules a task that this attempt has left, if it waits for the next worker.
    pub(super) async fn offer(&self, deadline: &Deadline, left: &StoredTask) {
        let schedule = async {
            if let Err(error) = self.store.records().scheduler.schedule_work(left).await {
                tracing::debug!(error = %Chain(&error), task = %self.key.task.printable(), "a task that waits for a worker could not be scheduled; it waits until the timer of its lease fires");
            }
        };
        deadline.limit_optional(schedule).await;
    }

    /// Sets the status message. See [`TaskStore::set_status_message`](crate::TaskStore::set_status_message).
    pub async fn set_status_message(&self, message: impl Into<String>) -> Result<StoredTask, TaskError> {
        let (message, config) = (message.into(), &self.store.records_only().config);
        self.change(ChangeKind::Progress, "set_status_message", |task| {
            machine::set_status_message(task, &message, config)
        })
        .await
    }

    /// Stores a request that the client must answer, and moves the task to `input_required`. The task's
    /// [`input_responses`](Task::input_responses) receive the answer.
    ///
    /// The key must be new in this attempt. If an earlier attempt has made the same request under the same key, that
    /// request counts as a request of this attempt, and may already have its answer.
    ///
    /// # Errors
    /// [`InputKeyUsed`](TaskError::InputKeyUsed) if this attempt has used the key, or if an earlier attempt has used
    /// it for another request; the errors of [`TaskStore::request_input`](crate::TaskStore::request_input).
    pub async fn request_input(
        &self,
        key: impl Into<String>,
        request: Value,
    ) -> Result<StoredTask, TaskError> {
        let (key, config) = (key.into(), &self.store.records_only().config);
        if !self.requested().insert(key.clone()) {
            return Err(TaskError::InputKeyUsed { task: self.key.task.clone(), key });
        }
        let mut reservation = KeyReservation { requested: &self.requested, key: &key, is_used: false };
        let requested = self
            .change(ChangeKind::Input, "request_input", |task| {
                machine::request_input_once(task, &key, &request, config)
            })
            .await;
        reservation.is_used = requested.is_ok();
        requested
    }

    /// No code panics while it holds the lock.
    fn requested(&self) -> MutexGuard<'_, HashSet<String>> {
        self.requested.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Merges variables into those of the task. See [`TaskStore::set_variables`](crate::TaskStore::set_variables).
    pub async fn set_variables<K: Into<String>>(
        &self,
        variables: impl IntoIterator<Item = (K, Value)>,
    ) -> Result<StoredTask, TaskError> {
        let variables = variables.into_iter().map(|(name, value)| (name.into(), value)).collect();
        let config = &self.store.records_only().config;
        self.change(ChangeKind::Progress, "set_variables", |task| {
            machine::set_variables(task, &variables, config)
        })
        .await
    }

    /// Removes variables. See [`TaskStore::remove_variables`](crate::TaskStore::remove_variables).
    pub async fn remove_variables<K: Into<String>>(
        &self,
        names: impl IntoIterator<Item = K>,
    ) -> Result<StoredTask, TaskError> {
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        let remove = |task: &mut Task| machine::remove_variables(task, &names);
        self.change(ChangeKind::Progress, "remove_variables", remove).await
    }

    /// Stores a checkpoint for the next attempt. It replaces the previous checkpoint. A checkpoint states, for
    /// example, which steps of the work are done.
    ///
    /// The next attempt loads it with [`last_checkpoint`](Self::last_checkpoint). The end of the task removes it. A
    /// checkpoint changes nothing that a client sees, and subscribers receive no notification.
    ///
    /// # Errors
    /// [`InvalidTransition`](TaskError::InvalidTransition) if the task has ended;
    /// [`LimitExceeded`](TaskError::LimitExceeded) if the value is too large or nested too deeply.
    pub async fn set_checkpoint(&self, checkpoint: Value) -> Result<StoredTask, TaskError> {
        self.change(ChangeKind::Progress, "set_checkpoint", |task| machine::set_checkpoint(task, &checkpoint))
            .await
    }

    /// Loads the last checkpoint of the task, of this attempt or an earlier one; `None` if there is none. Succeeds while
    /// this attempt holds the lease, and after the task has ended.
    ///
    /// # Errors
    /// [`Unreadable`](TaskError::Unreadable) if the stored checkpoint is not JSON.
    pub async fn last_checkpoint(&self) -> Result<Option<Value>, TaskError> {
        let stored = self.read().await?;
        let records = self.store.records();
        let load = pin!(payloads::load(records, &stored, PayloadKind::Checkpoint));
        records.deadline().limit("last_checkpoint", CallTarget::Task(&self.key), load).await
    }

    /// Ends the task as `completed`. See [`TaskStore::complete`](crate::TaskStore::complete).
    pub async fn complete(&self, result: Value) -> Result<StoredTask, TaskError> {
        self.change(ChangeKind::Lifecycle, "complete", |task| machine::complete(task, &result)).await
    }

    /// Ends the task as `failed`. See [`TaskStore::fail`](crate::TaskStore::fail).
    pub async fn fail(&self, error: RpcError) -> Result<StoredTask, TaskError> {
        self.change(ChangeKind::Lifecycle, "fail", |task| machine::fail(task, &error)).await
    }

    /// Ends the task as `cancelled`. See [`TaskStore::cancel`](crate::TaskStore::cancel).
    pub async fn cancel(&self) -> Result<StoredTask, TaskError> {
        self.change(ChangeKind::Lifecycle, "cancel", machine::cancel).await
    }

    pub(super) async fn change(
        &self,
        kind: ChangeKind,
        operation: &'static str,
        change: impl Fn(&mut Task) -> Result<Change, TaskError> + Send + Sync,
    ) -> Result<StoredTask, TaskError> {
        self.change_task(TaskRef::Key(&self.key), kind, operation, change).await
    }

    /// Changes the task of this attempt. A copy of it can save the read.
    pub(super) async fn change_task(
        &self,
        task: TaskRef<'_>,
        kind: ChangeKind,
        operation: &'static str,
        change: impl Fn(&mut Task) -> Result<Change, TaskError> + Send + Sync,
    ) -> Result<StoredTask, TaskError> {
        let call = ChangeCall::by_holder(kind, operation, task);
        self.change_before(&self.store.records_only().deadline(), call, change).await
    }

    pub(super) async fn change_before(
        &self,
        deadline: &Deadline,
        call: ChangeCall<'_>,
        change: impl Fn(&mut Task) -> Result<Change, TaskError> + Send + Sync,
    ) -> Result<StoredTask, TaskError> {
        let fenced = |task: &mut Task| {
            // If the task has ended, the change itself returns the error.
            self.check_lease(task)?;
            // Before the change: a release and a retry keep it for the next attempt.
            if let (Some(lease), Some(traceparent)) = (&mut task.lease, self.traceparent.get()) {
                lease.traceparent.get_or_insert_with(|| traceparent.clone());
            }
            let made = change(task)?;
            if made != Change::None {
                self.renew_lease(task);
            }
            Ok(made)
        };
        let changed = self.store.records().change(deadline, call, fenced).await;
        if is_over(&changed) {
            self.set_over();
        }
        changed
    }

    /// Every write of the attempt renews the lease, because a write shows that the worker is alive.
    fn renew_lease(&self, task: &mut Task) {
        if !self.holds(task) {
            return;
        }
        if let Some(lease) = &mut task.lease {
            let renewed = self.store.records_only().new_lease(self.number, lease.losses);
            lease.renewals = lease.renewals.wrapping_add(1);
            (lease.duration_ms, lease.deadline) = (renewed.duration_ms, renewed.deadline);
        }
    }
}

/// Returns whether the attempt is over, according to the outcome of one of its calls.
fn is_over(changed: &Result<StoredTask, TaskError>) -> bool {
    match changed {
        Ok(stored) => stored.task.status.is_terminal(),
        Err(
            TaskError::LeaseLost { .. }
            | TaskError::NotFound { .. }
            // Only a task that has ended causes this error.
            | TaskError::InvalidTransition { .. },
        ) => true,
        Err(_) => false,
    }
}

/// Reserves the key of an input request during a call. If the call fails or is dropped, the attempt can use the key again.
struct KeyReservation<'a> {
    requested: &'a Mutex<HashSet<String>>,
    key: &'a str,
    is_used: bool,
}

impl Drop for KeyReservation<'_> {
    fn drop(&mut self) {
        if !self.is_used {
            self.requested.lock().unwrap_or_else(PoisonError::into_inner).remove(self.key);
        }
    }
}
