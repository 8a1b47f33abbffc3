//! The background task of a manager: it takes the tasks that wait for a worker of an operation that is registered here.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{sleep, timeout};
use tracing::{Instrument, debug_span};

use super::manager::{Inner, Running};
use super::run::Stop;
use super::wire;
use crate::store::{BackOff, Outage};
use crate::{Agenda, Due, Next, PayloadKind, Queue, StorageError, StoredTask, TaskError, TaskStore};

/// How many tasks are taken, and claimed, at once.
const AT_ONCE: usize = 16;
/// When a task is tried again that could not be claimed.
const AGAIN: Duration = Duration::from_secs(1);
/// The longest sleep, should a wakeup be lost.
const LONGEST: Duration = Duration::from_secs(60);

/// What a manager knows of its background task.
#[derive(Debug, Default)]
pub(super) struct Working {
    is_working: Arc<AtomicBool>,
    /// An operation was registered: its queue is taken too from now on.
    pub(super) registered: Arc<Notify>,
}

impl Drop for Working {
    fn drop(&mut self) {
        // The background task finds that the manager is gone.
        self.registered.notify_one();
    }
}

/// Says that the background task runs, until its future is dropped, with its runtime or without.
struct AtWork(Arc<AtomicBool>);

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl<B: Agenda> Inner<B> {
    /// Starts the background task, unless it runs, there is no runtime yet, or this process is about to end.
    pub(super) fn begin_to_work(self: &Arc<Self>) {
        let is_working = &self.working.is_working;
        if is_working.load(Ordering::Acquire) || self.is_stopping() {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        if is_working.swap(true, Ordering::AcqRel) {
            return;
        }
        let at_work = AtWork(Arc::clone(is_working));
        let worker = Worker {
            manager: Arc::downgrade(self),
            backend: Arc::clone(self.store.shared_backend()),
            registered: Arc::clone(&self.working.registered),
            stop: self.stop(),
            limit: self.store.call_timeout().max(AGAIN),
            claims: Arc::new(Semaphore::new(AT_ONCE)),
            failing: Arc::default(),
        };
        let work = async move {
            let _at_work = at_work;
            worker.run().await;
        };
        runtime.spawn(work.instrument(debug_span!("work")));
    }

    /// Claims a task and begins to work on it. Returns what becomes of its timer.
    async fn claim(self: &Arc<Self>, due: &Due) -> Result<Next, TaskError> {
        // Counted before it looks, so that a shutdown waits for what it has not stopped.
        let running = Running::new(self);
        if self.is_stopping() {
            // It was taken just before. Scheduled, and not only resolved, so that the other instances wake.
            let schedule = self.store.shared_backend().schedule(&due.queue, &due.key, Duration::ZERO);
            schedule.await.map_err(TaskError::Storage)?;
            return Ok(Next::After(Duration::ZERO));
        }
        let stop = self.stop();
        // A claim that is given up halfway is that of a lost worker: the store releases the task.
        let claimed = tokio::select! {
            claimed = self.store.claim(&due.key) => claimed?,
            () = stop.passed() => return Ok(Next::After(Duration::ZERO)),
        };
        if let Some((stored, attempt)) = claimed {
            let Some(operation) = stored.task.operation.as_deref().and_then(|name| self.operation(name))
            else {
                // Registered operations stay registered, and a task keeps its operation. It goes to another instance.
                tracing::warn!(task = %due.key.task, "a task was claimed whose operation is not registered here");
                attempt.release().await?;
                return Ok(Next::Remove);
            };
            tracing::info!(task = %due.key.task, attempt = attempt.number(), "a task is resumed");
            let (store, task) = (self.store.clone(), stored.clone());
            self.run(running, attempt, stored, |context| {
                Box::pin(async move {
                    let arguments = load_arguments(&store, &task).await.map_err(wire::exit)?;
                    operation(context, arguments).await
                })
            });
        }
        Ok(Next::Remove)
    }
}

/// Loads the arguments of a task that was claimed, and tries again for as long as the engine fails: the run around it
/// renews the lease, and ends with it.
///
/// # Errors
/// `Unreadable` when they are not JSON, `NotFound` when the task has gone.
async fn load_arguments<B: Agenda>(store: &TaskStore<B>, task: &StoredTask) -> Result<Value, TaskError> {
    loop {
        match store.payload(task, PayloadKind::Input).await {
            Ok(arguments) => return Ok(arguments.unwrap_or_default()),
            Err(error @ (TaskError::Unreadable { .. } | TaskError::NotFound { .. })) => return Err(error),
            Err(error) => {
                tracing::warn!(%error, task = %task.key.task, "the arguments of a task cannot be loaded yet");
                sleep(AGAIN).await;
            }
        }
    }
}

struct Worker<B> {
    /// Never held across a sleep: the background task ends with the last clone of the manager.
    manager: Weak<Inner<B>>,
    backend: Arc<B>,
    registered: Arc<Notify>,
    stop: Stop,
    limit: Duration,
    claims: Arc<Semaphore>,
    failing: Arc<Outage>,
}

impl<B: Agenda> Worker<B> {
    async fn run(self) {
        while let Some(queues) = self.queues() {
            let go_on = if queues.is_empty() {
                tokio::select! {
                    () = self.registered.notified() => true,
                    () = self.stop.told() => false,
                }
            } else {
                self.take_from(&queues).await
            };
            if !go_on {
                return;
            }
        }
    }

    /// The queues of the registered operations; `None` once the manager is gone.
    fn queues(&self) -> Option<Vec<Queue>> {
        // A name that is too long for a queue is too long for a task, too.
        Some(self.manager.upgrade()?.registered().iter().filter_map(|name| Queue::work(name).ok()).collect())
    }

    /// Takes tasks from these queues until there may be more queues, or the process is about to end: then `false`.
    async fn take_from(&self, queues: &[Queue]) -> bool {
        let mut wakeups = Arc::clone(&self.backend).wakeups(queues).fuse();
        let mut back_off = BackOff::new();
        loop {
            // Not given up halfway: what it took would be hidden from the other instances.
            let pause = match self.take(queues).await {
                Ok(pause) => {
                    self.failing.end("tasks that wait for a worker are taken again");
                    back_off = BackOff::new();
                    pause
                }
                Err(error) => {
                    self.failing.begin(&error, "tasks that wait for a worker cannot be taken");
                    back_off.longer()
                }
            };
            tokio::select! {
                // First of all: what this instance releases is for the others.
                biased;
                () = self.stop.told() => return false,
                () = sleep(pause) => {}
                // A stream that ends has no more items: then the sleep decides.
                Some(()) = wakeups.next() => {}
                () = self.registered.notified() => return true,
            }
        }
    }

    /// Takes what is due and claims each. Returns when the next one is due.
    async fn take(&self, queues: &[Queue]) -> Result<Duration, String> {
        let taking = self.backend.take_due(queues, AT_ONCE, self.limit);
        let taken = match timeout(self.limit, taking).await {
            Ok(Ok(taken)) => taken,
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err(format!("no answer within {:?}", self.limit)),
        };
        let next_in = if taken.due.len() == AT_ONCE { Some(Duration::ZERO) } else { taken.next_in };
        for due in taken.due {
            let permit = Arc::clone(&self.claims).acquire_owned().await;
            let (manager, backend, failing) =
                (Weak::clone(&self.manager), Arc::clone(&self.backend), Arc::clone(&self.failing));
            let claim = async move {
                let _permit = permit;
                let Some(manager) = manager.upgrade() else { return };
                let next = match manager.claim(&due).await {
                    Ok(next) => next,
                    // A later version may read it. The timer of its lease leads such an instance to it.
                    Err(TaskError::Unreadable { .. } | TaskError::Storage(StorageError::Corrupt { .. })) => {
                        Next::Remove
                    }
                    Err(error) => {
                        failing.report(
                            &error,
                            "a task that waits for a worker could not be claimed; it is tried again",
                        );
                        Next::After(AGAIN)
                    }
                };
                if let Err(error) = backend.resolve(&due, next).await {
                    // The timer fires again when it is no longer hidden, and there is nothing to claim any more.
                    failing.report(&error, "the timer of a claimed task could not be removed");
                }
            };
            tokio::spawn(claim.in_current_span());
        }
        Ok(next_in.map_or(LONGEST, |next_in| next_in.min(LONGEST)))
    }
}
