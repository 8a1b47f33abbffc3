//! Who works on a task: leases, which lapse when their holder is lost, and the writes that need one.

use std::collections::HashSet;
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::attempts::{Guard, Run};
use super::change::Kind;
use super::deadline::{Deadline, Subject};
use super::transitions::{self, Change, Gone};
use super::turns::Lane;
use super::write::Caller;
use super::{NewTask, StoreConfig, TaskError, TaskRef, TaskStore};
use crate::backend::{Agenda, OwnerId, StorageError, TaskId, TaskKey};
use crate::printable::Chain;
use crate::task::{Lease, RpcError, StoredTask, Task};

impl<B: Agenda> TaskStore<B> {
    /// Creates a task that this process begins to work on, as its first attempt, in one write. Otherwise as
    /// [`create`](Self::create).
    ///
    /// The store schedules the task in the queue `leases` first, so that any instance finds it if this one is lost.
    ///
    /// # Errors
    /// As [`create`](Self::create); [`InvalidArgument`](TaskError::InvalidArgument) for a task that must resume and
    /// has no operation.
    ///
    /// # Cancellation safety
    /// Dropping the future may leave a task that nobody works on. The store fails it, or releases it if it can resume.
    pub async fn start(&self, owner: &OwnerId, new: NewTask) -> Result<(StoredTask, Attempt<B>), TaskError> {
        self.keep();
        let key = TaskKey { owner: owner.clone(), task: TaskId::random() };
        let deadline = self.deadline();
        deadline.limit("start", Subject::Task(&key), pin!(self.start_with(&deadline, &key, new))).await
    }

    async fn start_with(
        &self,
        deadline: &Deadline,
        key: &TaskKey,
        new: NewTask,
    ) -> Result<(StoredTask, Attempt<B>), TaskError> {
        let mut caller = Caller::new(Kind::Input, deadline, None);
        let begun = Instant::now();
        // Registered before it is stored: the keepers of this process end a lease of its own without an attempt.
        let attempt = Attempt::new(self, key, 1);
        let stored = match self.create_with(&mut caller, key, new, Some(self.lease(1, 0))).await {
            Ok(stored) => stored,
            Err(error) => {
                if !error.outcome_unknown() {
                    attempt.guard.set_over();
                }
                return Err(error);
            }
        };
        self.schedule_again_if_slow(deadline, key, begun).await?;
        attempt.guard.set_begun();
        Ok((stored, attempt))
    }

    /// Begins the next attempt at a task that waits for a worker: its lease has no holder, because it was
    /// [released](Attempt::release) or its worker was lost, and its operation may run again. A task that was asked to
    /// cancel is cancelled instead.
    ///
    /// `None` if there is nothing to claim: somebody else claimed the task, or it has ended or gone.
    ///
    /// Workers find such tasks in the queue `work/{operation}` of the [`Agenda`]. Whoever took the timer of a task
    /// removes it after the claim, also if there was nothing to claim.
    ///
    /// # Cancellation safety
    /// As [`start`](Self::start).
    pub async fn claim(&self, key: &TaskKey) -> Result<Option<(StoredTask, Attempt<B>)>, TaskError> {
        self.keep();
        let deadline = self.deadline();
        deadline.limit("claim", Subject::Task(key), pin!(self.claim_in_turn(&deadline, key))).await
    }

    async fn claim_in_turn(
        &self,
        deadline: &Deadline,
        key: &TaskKey,
    ) -> Result<Option<(StoredTask, Attempt<B>)>, TaskError> {
        let place = self.0.turns.queue(key, Lane::First);
        let mut caller = Caller::new(Kind::Lifecycle, deadline, Some(place.turn().await));
        for retry in 0..self.0.config.max_conflicts {
            self.back_off(retry).await;
            let read = match self.read(key).await {
                Ok(stored) => self.settle(stored).await,
                Err(error) => Err(error),
            };
            let stored = match read {
                Ok(Some(stored)) => stored,
                Ok(None) => continue,
                Err(TaskError::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(error),
            };
            let StoredTask { task, version, .. } = stored;
            let mut task = task.into_task();
            let Some(waiting) = transitions::waiting(&task) else { return Ok(None) };
            if task.cancel_requested || !transitions::may_run(&task, waiting) {
                transitions::lose_worker(&mut task, Gone::Released, self.now())?;
                match self.write_by(&mut caller, key, version, task, Change::Made).await? {
                    Some(_) => return Ok(None),
                    None => continue,
                }
            }
            // Scheduled after the read and before the write: whoever took the timer earlier, and has not seen this claim,
            // cannot move it any more.
            let begun = Instant::now();
            self.schedule_lease(key).await?;
            let lease = self.lease(waiting.attempt.saturating_add(1), waiting.losses);
            let attempt = Attempt::new(self, key, lease.attempt);
            task.lease = Some(lease);
            match self.write_by(&mut caller, key, version, task, Change::Made).await {
                Ok(Some(claimed)) => {
                    self.schedule_again_if_slow(deadline, key, begun).await?;
                    attempt.guard.set_begun();
                    return Ok(Some((claimed, attempt)));
                }
                Ok(None) => attempt.guard.set_over(),
                Err(error) => {
                    if !error.outcome_unknown() {
                        attempt.guard.set_over();
                    }
                    return match error {
                        TaskError::NotFound { .. } => Ok(None),
                        error => Err(error),
                    };
                }
            }
        }
        Err(self.contended(key))
    }

    /// Returns how long a lease of this store lasts. Its holder must renew it each third of that.
    pub fn lease_duration(&self) -> Duration {
        self.0.config.lease
    }

    fn lease(&self, attempt: u32, losses: u32) -> Lease {
        let duration = self.0.config.lease;
        Lease {
            holder: Some(self.0.holder.clone()),
            attempt,
            losses,
            renewals: 0,
            duration_ms: super::millis(duration),
            deadline: self.now() + duration,
            extra: Map::new(),
        }
    }

    /// Makes the timer of a lease that is about to be written fire one time limit of a call after it lapses: whoever
    /// finds no record then knows that there will be none.
    pub(super) async fn schedule_lease(&self, key: &TaskKey) -> Result<(), TaskError> {
        self.schedule(&self.0.leases, key, self.0.config.lease + self.write_limit()).await
    }

    /// How long the write of a lease may take before its timer is scheduled again. No longer than that a worker which dies
    /// soon after its first renewal is found as soon as any other: within 1⅓ leases and 5 s.
    fn write_limit(&self) -> Duration {
        let StoreConfig { call_timeout, lease, .. } = self.0.config;
        call_timeout.min(lease / 3 + lease.min(Duration::from_secs(3)))
    }

    /// The write of a lease took longer than one call may: its timer may have fired before, and may be gone. Without it the
    /// call fails although the lease was written.
    async fn schedule_again_if_slow(
        &self,
        deadline: &Deadline,
        key: &TaskKey,
        begun: Instant,
    ) -> Result<(), TaskError> {
        if begun.elapsed() <= self.write_limit() {
            return Ok(());
        }
        deadline.set_in_doubt(true);
        self.schedule(&self.0.leases, key, self.0.config.lease).await.map_err(|error| {
            TaskError::Storage(StorageError::Unavailable {
                address: "the storage engine".to_owned(),
                reason: format!(
                    "the lease of task {} was written, and its timer could not be scheduled; read the record",
                    key.task.printable()
                ),
                outcome_unknown: true,
                source: Some(error.into()),
            })
        })
    }

    /// Where the attempt is that the lease is of.
    pub(super) fn run(&self, key: &TaskKey, lease: &Lease) -> Run {
        lease.holder.as_ref().map_or(Run::Elsewhere, |holder| Run::of(holder, &(key.clone(), lease.attempt)))
    }

    /// Whether this store wrote the lease.
    pub(super) fn is_own(&self, lease: &Lease) -> bool {
        lease.holder.as_ref() == Some(&self.0.holder)
    }
}

/// The right to work on a task, as long as its lease is not lost. Every change that it makes is refused once somebody
/// else has the lease or the task has ended.
///
/// The lease lapses unless it is [renewed](Self::renew) in time. Every other change that the attempt makes renews it, too.
/// A lease that has lapsed can still be renewed until another instance has declared the worker lost. One process writes at a
/// time. What a worker does outside of the store may overlap with the next attempt until it detects that its lease is lost.
///
/// Clones are one attempt. When the last one is dropped and the task has neither ended nor been released, the store
/// treats its worker as lost, at once.
///
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
///
/// # Errors
/// In addition to those of the call of the same name in [`TaskStore`]: [`LeaseLost`](TaskError::LeaseLost).
///
/// # Cancellation safety
/// Dropping the future of a call leaves its change made or not, as a whole.
pub struct Attempt<B> {
    pub(super) store: TaskStore<B>,
    key: TaskKey,
    number: u32,
    /// The keys of the input requests that it has made.
    asked: Arc<Mutex<HashSet<String>>>,
    pub(super) guard: Arc<Guard>,
}

impl<B> Clone for Attempt<B> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            key: self.key.clone(),
            number: self.number,
            asked: Arc::clone(&self.asked),
            guard: Arc::clone(&self.guard),
        }
    }
}

/// A key that is being asked under. It may be used again unless the request was made, also when the call is dropped.
struct Asking<'a> {
    asked: &'a Mutex<HashSet<String>>,
    key: &'a str,
    is_asked: bool,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if !self.is_asked {
            self.asked.lock().unwrap_or_else(PoisonError::into_inner).remove(self.key);
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

impl<B: Agenda> Attempt<B> {
    fn new(store: &TaskStore<B>, key: &TaskKey, number: u32) -> Self {
        let guard = Arc::new(store.0.attempts.register(key, number));
        Self { store: store.clone(), key: key.clone(), number, asked: Arc::default(), guard }
    }

    /// The same attempt in another store that shares its leases.
    #[cfg(feature = "rmcp")]
    pub(crate) fn over(&self, store: &TaskStore<B>) -> Self {
        Self { store: store.clone(), ..self.clone() }
    }

    /// The task.
    pub fn key(&self) -> &TaskKey {
        &self.key
    }

    /// Which attempt at the task this is: 1, 2, 3, …
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Whether a task, as it was read, is still this attempt's.
    pub fn holds(&self, task: &Task) -> bool {
        task.lease.as_ref().is_some_and(|lease| lease.attempt == self.number && self.store.is_own(lease))
    }

    /// Makes the lease last for its whole duration from now on. Changes nothing that a client sees, and wakes no
    /// subscriber. It does not touch the timer of the lease: the taker of that timer reads the new deadline.
    pub async fn renew(&self) -> Result<StoredTask, TaskError> {
        self.change(Kind::Lifecycle, "renew", |task| transitions::renew(task)).await
    }

    /// Reads the task, as long as it is this attempt's or has ended.
    pub async fn read(&self) -> Result<StoredTask, TaskError> {
        self.change(Kind::Lifecycle, "read", |_| Ok(Change::None)).await
    }

    /// Gives up the lease, so that nobody needs to wait for it to lapse. A task that can resume is scheduled in its work
    /// queue, for now, and the attempt does not count against its [bound](NewTask::max_attempts). One that cannot resume fails
    /// in the same write, and one that was asked to cancel becomes `cancelled`.
    pub async fn release(&self) -> Result<StoredTask, TaskError> {
        let deadline = self.store.deadline();
        let change = |task: &mut Task| {
            transitions::lose_worker(task, Gone::Released, self.store.now()).map(|_| Change::Made)
        };
        let released = self.change_before(&deadline, Kind::Lifecycle, "release", change).await?;
        self.guard.set_over();
        let schedule = async {
            if let Err(error) = self.store.schedule_work(&released).await {
                tracing::debug!(error = %Chain(&error), task = %self.key.task.printable(), "a released task waits until the timer of its lease fires");
            }
        };
        deadline.give(schedule).await;
        Ok(released)
    }

    /// As [`TaskStore::set_status_message`].
    pub async fn set_status_message(&self, message: impl Into<String>) -> Result<StoredTask, TaskError> {
        let (message, config) = (message.into(), &self.store.0.config);
        self.change(Kind::Progress, "set_status_message", |task| {
            transitions::set_status_message(task, &message, config)
        })
        .await
    }

    /// Makes a request that the client has to answer, under a key that this attempt has not used yet, and moves the
    /// task to `input_required`. The answer is stored in the task's [`input_responses`](Task::input_responses). Where
    /// an earlier attempt has made the same request, it is as if this one had: it may be open, or answered, by now.
    ///
    /// # Errors
    /// [`InputKeyUsed`](TaskError::InputKeyUsed) for a key that this attempt has used, or an earlier one for another
    /// request; otherwise as [`TaskStore::request_input`].
    pub async fn request_input(
        &self,
        key: impl Into<String>,
        request: Value,
    ) -> Result<StoredTask, TaskError> {
        let (key, config) = (key.into(), &self.store.0.config);
        if !self.asked().insert(key.clone()) {
            return Err(TaskError::InputKeyUsed { task: self.key.task.clone(), key });
        }
        let mut asking = Asking { asked: &self.asked, key: &key, is_asked: false };
        let asked = self
            .change(Kind::Input, "request_input", |task| {
                transitions::request_input_again(task, &key, &request, config)
            })
            .await;
        asking.is_asked = asked.is_ok();
        asked
    }

    /// Nothing panics while it holds the keys.
    fn asked(&self) -> MutexGuard<'_, HashSet<String>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`TaskStore::set_variables`].
    pub async fn set_variables<K: Into<String>>(
        &self,
        variables: impl IntoIterator<Item = (K, Value)>,
    ) -> Result<StoredTask, TaskError> {
        let variables = variables.into_iter().map(|(name, value)| (name.into(), value)).collect();
        let config = &self.store.0.config;
        self.change(Kind::Progress, "set_variables", |task| {
            transitions::set_variables(task, &variables, config)
        })
        .await
    }

    /// As [`TaskStore::remove_variables`].
    pub async fn remove_variables<K: Into<String>>(
        &self,
        names: impl IntoIterator<Item = K>,
    ) -> Result<StoredTask, TaskError> {
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        let change = |task: &mut Task| transitions::remove_variables(task, &names);
        self.change(Kind::Progress, "remove_variables", change).await
    }

    /// Keeps a value for the next attempt, in place of the one before: how far the work has come, for instance. The
    /// next attempt loads it with [`TaskStore::payload`]. The end of the task removes it. It changes nothing that a
    /// client sees, and subscribers receive no notification.
    ///
    /// # Errors
    /// [`InvalidTransition`](TaskError::InvalidTransition) when the task has ended,
    /// [`LimitExceeded`](TaskError::LimitExceeded) when the value is too large or too deep.
    pub async fn set_checkpoint(&self, checkpoint: Value) -> Result<StoredTask, TaskError> {
        self.change(Kind::Progress, "set_checkpoint", |task| transitions::set_checkpoint(task, &checkpoint))
            .await
    }

    /// As [`TaskStore::complete`].
    pub async fn complete(&self, result: Value) -> Result<StoredTask, TaskError> {
        self.change(Kind::Lifecycle, "complete", |task| transitions::complete(task, &result)).await
    }

    /// As [`TaskStore::fail`].
    pub async fn fail(&self, error: RpcError) -> Result<StoredTask, TaskError> {
        self.change(Kind::Lifecycle, "fail", |task| transitions::fail(task, &error)).await
    }

    /// As [`TaskStore::cancel`].
    pub async fn cancel(&self) -> Result<StoredTask, TaskError> {
        self.change(Kind::Lifecycle, "cancel", transitions::cancel).await
    }

    pub(super) async fn change(
        &self,
        kind: Kind,
        operation: &'static str,
        change: impl Fn(&mut Task) -> Result<Change, TaskError> + Send + Sync,
    ) -> Result<StoredTask, TaskError> {
        self.change_before(&self.store.deadline(), kind, operation, change).await
    }

    /// A task that has ended has no lease: the change itself says that it may not be changed any more.
    async fn change_before(
        &self,
        deadline: &Deadline,
        kind: Kind,
        operation: &'static str,
        change: impl Fn(&mut Task) -> Result<Change, TaskError> + Send + Sync,
    ) -> Result<StoredTask, TaskError> {
        let fenced = |task: &mut Task| {
            if !task.status.is_terminal() && !self.holds(task) {
                return Err(TaskError::LeaseLost { task: self.key.task.clone(), attempt: self.number });
            }
            let made = change(task)?;
            // Every write shows that the worker lives.
            if made != Change::None
                && self.holds(task)
                && let Some(lease) = &mut task.lease
            {
                let renewed = self.store.lease(self.number, lease.losses);
                lease.renewals = lease.renewals.wrapping_add(1);
                (lease.duration_ms, lease.deadline) = (renewed.duration_ms, renewed.deadline);
            }
            Ok(made)
        };
        let task = TaskRef::Key(&self.key);
        let changed = self.store.change_by_holder(deadline, kind, operation, task, fenced).await;
        let is_over = match &changed {
            Ok(stored) => stored.task.status.is_terminal(),
            Err(
                TaskError::LeaseLost { .. }
                | TaskError::NotFound { .. }
                // Said only of a task that has ended.
                | TaskError::InvalidTransition { .. },
            ) => true,
            Err(_) => false,
        };
        if is_over {
            self.guard.set_over();
        }
        changed
    }
}

/// How much a clock that lags may make a deadline seem too far ahead.
const CLOCK_LAG: Duration = Duration::from_secs(2);

impl Lease {
    /// Whether the lease needs a second look at this estimate of the engine's clock.
    pub(super) fn may_have_lapsed(&self, now: DateTime<Utc>) -> bool {
        !self.is_live(now) && !self.is_live(now + CLOCK_LAG.min(self.duration()))
    }
}
