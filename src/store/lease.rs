//! Who works on a task: leases, which lapse when their holder is lost, and the writes that need one.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::transitions::{self, Change};
use super::{NewTask, TaskError, TaskRef, TaskStore};
use crate::{Agenda, Lease, OnWorkerLost, OwnerId, RpcError, StoredTask, Task, TaskKey};

/// How far apart a lease must have been seen lapsed twice. When the engine was out of reach for everybody, those who
/// work have this long to renew their leases before others take them for lost.
pub(crate) const SEEN_APART: Duration = Duration::from_secs(1);
/// For how long it counts that a lease was seen lapsed.
const SEEN_FOR: Duration = Duration::from_secs(24 * 3600);

/// Which lapsed leases this process has seen, and when first, by its monotonic clock.
#[derive(Debug, Default)]
pub(super) struct Sightings(Mutex<HashMap<TaskKey, (Lease, Instant)>>);

impl Sightings {
    /// Nothing panics while it holds the map.
    fn seen(&self) -> MutexGuard<'_, HashMap<TaskKey, (Lease, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether just this lease was seen lapsed long enough ago.
    fn see(&self, key: &TaskKey, lease: &Lease) -> bool {
        let (mut seen, now) = (self.seen(), Instant::now());
        if let Some((before, at)) = seen.get(key)
            && before == lease
        {
            return now.duration_since(*at) >= SEEN_APART;
        }
        // Now and then, so that it costs little in the mean.
        if seen.len().is_power_of_two() {
            seen.retain(|_, (_, at)| now.duration_since(*at) < SEEN_FOR);
        }
        seen.insert(key.clone(), (lease.clone(), now));
        false
    }
}

impl<B: Agenda> TaskStore<B> {
    /// Creates a task that this process begins to work on, as its first attempt, in one write. Otherwise as
    /// [`create`](Self::create).
    ///
    /// # Errors
    /// As [`create`](Self::create); [`InvalidArgument`](TaskError::InvalidArgument) for a task that is to resume and
    /// has no operation.
    pub async fn start(&self, owner: &OwnerId, new: NewTask) -> Result<(StoredTask, Attempt<B>), TaskError> {
        let stored = self.create_with(owner, new, Some(self.lease(1))).await?;
        let attempt = Attempt::new(self, &stored.key, 1);
        Ok((stored, attempt))
    }

    /// Whether nobody works any more on a task that can resume: its lease was handed back, or this store has read it
    /// lapsed twice and at least a second apart.
    pub fn is_orphaned(&self, task: &StoredTask) -> bool {
        task.task.on_worker_lost == OnWorkerLost::Resume && self.has_lost_its_worker(task)
    }

    /// Begins the next attempt at a task that [is orphaned](Self::is_orphaned), as it was read. `None` if somebody
    /// else has taken it up, or it has ended.
    pub async fn take_up(&self, orphan: &StoredTask) -> Result<Option<Attempt<B>>, TaskError> {
        let Some(lapsed) = orphan.task.lease.as_ref().filter(|_| self.is_orphaned(orphan)) else {
            return Ok(None);
        };
        let lease = self.lease(lapsed.attempt.saturating_add(1));
        let attempt = lease.attempt;
        let lost = || TaskError::LeaseLost { task: orphan.key.task.clone(), attempt };
        let taken = self.change("take_up", TaskRef::Stored(orphan), |task| match &task.lease {
            Some(current) if current == lapsed => {
                task.lease = Some(lease.clone());
                Ok(Change::Made)
            }
            _ => Err(lost()),
        });
        match taken.await {
            Ok(_) => Ok(Some(Attempt::new(self, &orphan.key, attempt))),
            Err(TaskError::LeaseLost { .. } | TaskError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// How long a lease lasts; it is to be renewed each third of it.
    pub fn lease_duration(&self) -> Duration {
        self.0.config.lease
    }

    fn lease(&self, attempt: u32) -> Lease {
        Lease { holder: Some(self.0.holder.clone()), attempt, deadline: self.now() + self.0.config.lease }
    }

    pub(super) fn has_lost_its_worker(&self, stored: &StoredTask) -> bool {
        stored.task.lease.as_ref().is_some_and(|lease| {
            !stored.task.status.is_terminal()
                && !lease.is_live(self.now())
                && (lease.holder.is_none() || self.0.sightings.see(&stored.key, lease))
        })
    }
}

/// The right to work on a task, as long as its lease is not lost. Every change that it makes is refused once somebody
/// else has the lease or the task has ended.
///
/// The lease lapses unless it is [renewed](Self::renew) in time; one that has lapsed can still be renewed while nobody
/// has settled the task or taken it up. One process writes at a time; what a worker does outside of the store may
/// overlap with the next attempt, if it goes on without having noticed that its lease is lost.
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
/// Beside those of the call of the same name in [`TaskStore`]: [`LeaseLost`](TaskError::LeaseLost).
///
/// # Cancellation safety
/// Dropping the future of a call leaves its change made or not, as a whole. Dropping the attempt hands nothing back:
/// its lease lapses.
pub struct Attempt<B> {
    store: TaskStore<B>,
    key: TaskKey,
    number: u32,
    /// The keys of the input requests that it has made.
    asked: Arc<Mutex<HashSet<String>>>,
}

impl<B> Clone for Attempt<B> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            key: self.key.clone(),
            number: self.number,
            asked: Arc::clone(&self.asked),
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
        Self { store: store.clone(), key: key.clone(), number, asked: Arc::default() }
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
        task.lease.as_ref().is_some_and(|lease| {
            lease.attempt == self.number && lease.holder.as_ref() == Some(&self.store.0.holder)
        })
    }

    /// Makes the lease last for its whole duration from now on. Changes nothing that a client sees, and wakes nobody
    /// who watches.
    pub async fn renew(&self) -> Result<StoredTask, TaskError> {
        self.change("renew", |task| {
            transitions::set_lease(task, self.store.lease(self.number), "renew its lease")?;
            Ok(Change::Unseen)
        })
        .await
    }

    /// Reads the task, as long as it is this attempt's or has ended.
    pub async fn read(&self) -> Result<StoredTask, TaskError> {
        self.change("read", |_| Ok(Change::None)).await
    }

    /// Gives up the lease, so that the next reader need not wait for it to lapse.
    pub async fn hand_back(&self) -> Result<StoredTask, TaskError> {
        let lease = Lease { holder: None, attempt: self.number, deadline: self.store.now() };
        self.change("hand_back", |task| {
            transitions::set_lease(task, lease.clone(), "hand its lease back")?;
            Ok(Change::Made)
        })
        .await
    }

    /// As [`TaskStore::set_status_message`].
    pub async fn set_status_message(&self, message: impl Into<String>) -> Result<StoredTask, TaskError> {
        let (message, config) = (message.into(), &self.store.0.config);
        self.change("set_status_message", |task| transitions::set_status_message(task, &message, config))
            .await
    }

    /// Makes a request that the client has to answer, under a key that this attempt has not used yet, and moves the
    /// task to `input_required`. The answer comes to stand in the task's
    /// [`input_responses`](Task::input_responses). Where an earlier attempt has made the same request, it is as if
    /// this one had: it may be open, or answered, by now.
    ///
    /// # Errors
    /// [`InputKeyUsed`](TaskError::InputKeyUsed) for a key that this attempt has used, or an earlier one for another
    /// request; otherwise as [`TaskStore::require_input`].
    pub async fn ask(&self, key: impl Into<String>, request: Value) -> Result<StoredTask, TaskError> {
        let (key, config) = (key.into(), &self.store.0.config);
        if !self.asked().insert(key.clone()) {
            return Err(TaskError::InputKeyUsed { task: self.key.task.clone(), key });
        }
        let asked = self.change("ask", |task| transitions::ask(task, &key, &request, config)).await;
        if asked.is_err() {
            self.asked().remove(&key);
        }
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
        self.change("set_variables", |task| transitions::set_variables(task, &variables, config)).await
    }

    /// Keeps a value for the next attempt, in place of the one before: how far the work has come, for instance. The
    /// next attempt loads it with [`TaskStore::payload`]. The end of the task removes it. It changes nothing that a
    /// client sees, and subscribers receive no notification.
    ///
    /// # Errors
    /// [`InvalidTransition`](TaskError::InvalidTransition) when the task has ended,
    /// [`LimitExceeded`](TaskError::LimitExceeded) when the value is too large or too deep.
    pub async fn set_checkpoint(&self, checkpoint: Value) -> Result<StoredTask, TaskError> {
        self.change("set_checkpoint", |task| transitions::set_checkpoint(task, &checkpoint)).await
    }

    /// As [`TaskStore::complete`].
    pub async fn complete(&self, result: Value) -> Result<StoredTask, TaskError> {
        self.change("complete", |task| transitions::complete(task, &result)).await
    }

    /// As [`TaskStore::fail`].
    pub async fn fail(&self, error: RpcError) -> Result<StoredTask, TaskError> {
        self.change("fail", |task| transitions::fail(task, &error)).await
    }

    /// As [`TaskStore::cancel`].
    pub async fn cancel(&self) -> Result<StoredTask, TaskError> {
        self.change("cancel", transitions::cancel).await
    }

    /// A task that has ended has no lease: the change itself says that it may not be changed any more.
    async fn change(
        &self,
        operation: &'static str,
        change: impl Fn(&mut Task) -> Result<Change, TaskError> + Send + Sync,
    ) -> Result<StoredTask, TaskError> {
        let fenced = |task: &mut Task| {
            if !task.status.is_terminal() && !self.holds(task) {
                return Err(TaskError::LeaseLost { task: self.key.task.clone(), attempt: self.number });
            }
            change(task)
        };
        self.store.change_by(Some(self), operation, TaskRef::Key(&self.key), fenced).await
    }
}
