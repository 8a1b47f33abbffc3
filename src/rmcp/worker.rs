//! The background task of a manager: it takes the tasks that wait for a worker of an operation that is registered here.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tracing::{Instrument, debug_span};

use super::manager::{Inner, PATIENCE, Running};
use super::meaning::{Meaning, meaning};
use super::places::{Place, Places};
use super::stop::Stop;
use super::{run, wire};
use crate::backend::{Agenda, Due, Next, Queue};
use crate::printable::Chain;
use crate::store::{BackOff, TaskError, TaskStore};
use crate::task::{PayloadKind, StoredTask};

/// How many tasks are taken at once.
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

/// Marks the background task as running until its future is dropped, with its runtime or without.
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
            limit: self.limit(),
            places: self.places.clone(),
        };
        let work = async move {
            let _at_work = at_work;
            worker.run().await;
        };
        runtime.spawn(work.instrument(debug_span!("work")));
    }

    /// Claims a task and begins to work on it. Returns what becomes of its timer.
    async fn claim(self: &Arc<Self>, due: &Due, place: Place) -> Result<Next, TaskError> {
        // Counted before it looks, so that a shutdown waits for what it has not stopped.
        let running = Running::new(self);
        let stop = self.stop();
        if stop.is_told() {
            // It was taken just before. Scheduled, and not only resolved, so that the other instances wake.
            let schedule = self.store.shared_backend().schedule(&due.queue, &due.key, Duration::ZERO);
            if let Ok(scheduled) = timeout(PATIENCE, schedule).await {
                scheduled.map_err(TaskError::Storage)?;
            }
            return Ok(Next::After(Duration::ZERO));
        }
        // If a claim is given up halfway, the store releases the task, as after a dropped attempt.
        let claimed = tokio::select! {
            claimed = self.store.claim(&due.key) => claimed?,
            () = stop.passed(PATIENCE) => return Ok(Next::After(Duration::ZERO)),
        };
        let Some((stored, attempt)) = claimed else { return Ok(Next::Remove) };
        let Some(operation) = stored.task.operation.as_deref().and_then(|name| self.operation(name)) else {
            // Registered operations stay registered, and a task keeps its operation. It goes to another instance.
            tracing::warn!(task = %due.key.task.printable(), "a task was claimed whose operation is not registered here");
            if let Ok(released) = timeout(PATIENCE, attempt.release()).await {
                released?;
            }
            return Ok(Next::Remove);
        };
        // No call started it here.
        let span = run::span(None, &stored, &attempt);
        let _in_span = span.enter();
        tracing::info!("resumed");
        let (store, task, limit) = (self.store.clone(), stored.clone(), self.limit());
        self.run(running, attempt, stored, Some(place), |context| {
            Box::pin(async move {
                let arguments = load_arguments(&store, &task, limit).await.map_err(wire::exit)?;
                operation(context, arguments).await
            })
        });
        Ok(Next::Remove)
    }

    /// How long one call of the engine may take.
    fn limit(&self) -> Duration {
        self.store.call_timeout().max(AGAIN)
    }
}

/// Loads the arguments of a task that was claimed, and tries again for as long as the engine fails: the run around it
/// renews the lease, and ends with it.
///
/// # Errors
/// `Unreadable` and `Corrupt` when they cannot be read, `NotFound` when the task has gone.
async fn load_arguments<B: Agenda>(
    store: &TaskStore<B>,
    task: &StoredTask,
    limit: Duration,
) -> Result<Value, TaskError> {
    loop {
        match timeout(limit, store.payload(task, PayloadKind::Input)).await {
            Ok(Ok(arguments)) => return Ok(arguments.unwrap_or_default()),
            Ok(Err(error)) if meaning(&error) != Meaning::Temporary => return Err(error),
            Ok(Err(error)) => {
                tracing::debug!(error = %Chain(&error), "the arguments of a task cannot be loaded yet")
            }
            Err(_) => tracing::debug!("the arguments of a task cannot be loaded within {limit:?} yet"),
        }
        sleep(AGAIN).await;
    }
}

struct Worker<B> {
    /// Never held across a sleep: the background task ends with the last clone of the manager.
    manager: Weak<Inner<B>>,
    backend: Arc<B>,
    registered: Arc<Notify>,
    stop: Stop,
    limit: Duration,
    places: Places,
}

impl<B: Agenda> Worker<B> {
    async fn run(self) {
        while let Some(queues) = self.queues() {
            let go_on = if queues.is_empty() {
                tokio::select! {
                    () = self.registered.notified() => true,
                    _ = self.stop.told() => false,
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
        let mut wakeups = self.backend.wakeups(queues).fuse();
        let mut back_off = BackOff::new();
        loop {
            let places = tokio::select! {
                // First of all: what this instance releases is for the others.
                biased;
                _ = self.stop.told() => return false,
                () = self.registered.notified() => return true,
                places = self.places.take(AT_ONCE) => places,
            };
            // Not given up halfway: what it took would be hidden from the other instances.
            let pause = match self.take(queues, places).await {
                Ok(pause) => {
                    back_off = BackOff::new();
                    pause
                }
                Err(error) => {
                    tracing::debug!(error, "tasks that wait for a worker cannot be taken");
                    back_off.longer()
                }
            };
            tokio::select! {
                biased;
                _ = self.stop.told() => return false,
                () = sleep(pause) => {}
                // A stream that ends has no more items: then the sleep decides.
                Some(()) = wakeups.next() => {}
                () = self.registered.notified() => return true,
            }
        }
    }

    /// Takes as many of the tasks that are due as there are places, and claims each. Returns when the next one is due.
    async fn take(&self, queues: &[Queue], mut places: Vec<Place>) -> Result<Duration, String> {
        let most = places.len();
        let taking = self.backend.take_due(queues, most, self.limit);
        let taken = match timeout(self.limit, taking).await {
            Ok(Ok(taken)) => taken,
            Ok(Err(error)) => return Err(Chain(&error).to_string()),
            Err(_) => return Err(format!("no answer within {:?}", self.limit)),
        };
        let next_in = if taken.due.len() == most { Some(Duration::ZERO) } else { taken.next_in };
        for due in taken.due {
            // The engine returns no more than it was asked for.
            let Some(place) = places.pop() else { break };
            let claim = claim(Weak::clone(&self.manager), due, place, self.limit);
            tokio::spawn(claim.in_current_span());
        }
        Ok(next_in.map_or(LONGEST, |next_in| next_in.min(LONGEST)))
    }
}

/// Claims one task and moves or removes its timer.
async fn claim<B: Agenda>(manager: Weak<Inner<B>>, due: Due, place: Place, limit: Duration) {
    let Some(manager) = manager.upgrade() else { return };
    let next = match manager.claim(&due, place).await {
        Ok(next) => next,
        // A later version may read it. The timer of its lease leads such an instance to it.
        Err(error) if wire::is_unreadable(&error) => Next::Remove,
        Err(error) => {
            tracing::debug!(error = %Chain(&error), task = %due.key.task.printable(), "a task that waits for a worker could not be claimed; it is tried again");
            Next::After(AGAIN)
        }
    };
    match timeout(limit, manager.store.shared_backend().resolve(&due, next)).await {
        Ok(Ok(_)) => {}
        // The timer fires again when it is no longer hidden, and there is nothing to claim any more.
        Ok(Err(error)) => {
            tracing::debug!(error = %Chain(&error), "the timer of a claimed task could not be removed")
        }
        Err(_) => tracing::debug!("the timer of a claimed task could not be removed within {limit:?}"),
    }
}
