//! One run of an operation in this process: its lease is renewed, what comes in from elsewhere is passed on to it, and
//! what it ends with is stored.

use std::sync::Arc;
use std::time::Duration;

use futures_core::Stream;
use futures_util::StreamExt;
use rmcp::ErrorData;
use rmcp::model::CallToolResult;
use rmcp::task_manager::{TaskExit, TaskFuture};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{Instrument, debug_span};

use super::context::{Seen, TaskContext};
use super::wire::rpc_error;
use crate::{Agenda, Attempt, RpcError, StorageError, StoredTask, TaskError, TaskStore};

/// How long an operation may take to end by itself once its attempt is void.
const GRACE: Duration = Duration::from_secs(10);
/// How long to wait at most before a write that the engine did not take is tried again.
const RETRY: Duration = Duration::from_millis(200);
/// How long one write may take at least before it is tried again. With [`RETRY`], less than others need to take a worker
/// for lost whose lease has lapsed in an outage.
const PATIENCE: Duration = Duration::from_millis(700);
/// How long each step of stopping may take. The process is about to end, and a lease lapses by itself.
const FAREWELL: Duration = Duration::from_secs(5);

/// Says that this process is to end.
#[derive(Clone)]
pub(super) struct Stop(watch::Receiver<bool>);

impl Stop {
    pub(super) fn new(stop: &watch::Sender<bool>) -> Self {
        Self(stop.subscribe())
    }

    fn now() -> Self {
        Self(watch::channel(true).1)
    }

    pub(super) async fn told(&self) {
        // A manager that is gone tells nobody to stop: its runs go on.
        if self.0.clone().wait_for(|stop| *stop).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Returns once the process has waited for a call for as long as it may.
    pub(super) async fn passed(&self) {
        self.told().await;
        sleep(FAREWELL).await;
    }
}

type Outcome = Result<Result<CallToolResult, TaskExit>, JoinError>;

pub(super) struct Run<B> {
    store: TaskStore<B>,
    attempt: Attempt<B>,
    seen: watch::Sender<Seen>,
    operation: JoinHandle<Result<CallToolResult, TaskExit>>,
}

impl<B: Agenda> Run<B> {
    /// Begins to work on a task, as it was read or written when `attempt` began.
    pub(super) fn begin(
        store: TaskStore<B>,
        attempt: Attempt<B>,
        stored: StoredTask,
        make_future: impl FnOnce(TaskContext) -> TaskFuture,
    ) -> Self {
        let seen = watch::Sender::new(Seen { task: Arc::new(stored.task.into_task()), is_over: false });
        let operation = make_future(TaskContext::new(attempt.clone(), seen.subscribe()));
        let operation = tokio::spawn(operation);
        Self { store, attempt, seen, operation }
    }

    /// Stays with the operation until it has ended, or is stopped because this process is to end.
    pub(super) async fn attend(self, stop: Stop) {
        let key = self.attempt.key();
        let span = debug_span!("run", owner = %key.owner, task = %key.task, attempt = self.attempt.number());
        self.attend_in_span(stop).instrument(span).await;
    }

    async fn attend_in_span(mut self, stop: Stop) {
        let third = self.store.lease_duration() / 3;
        let watch = || Arc::clone(self.store.shared_backend()).watch(self.attempt.key());
        let mut changes = Some(watch());
        let mut renew_at = Instant::now() + third;
        let mut abort_at = None;
        let mut ttl_at = self.ttl().map(|left| Instant::now() + left);
        loop {
            let is_over = self.seen.borrow().is_over;
            if is_over && abort_at.is_none() {
                abort_at = Some(Instant::now() + GRACE);
            }
            tokio::select! {
                outcome = &mut self.operation => return self.end(outcome, stop).await,
                () = stop.told() => return self.release().await,
                () = sleep_until(renew_at), if !is_over => {
                    let renewed = tokio::select! {
                        renewed = timeout(self.patience(), self.attempt.renew()) => renewed,
                        () = stop.told() => return self.release().await,
                    };
                    // One that has ended although the task is there is begun again, but not at once.
                    changes.get_or_insert_with(watch);
                    let is_renewed = matches!(renewed, Ok(Ok(_)));
                    renew_at = Instant::now() + if is_renewed { third } else { third.min(RETRY) };
                    match renewed {
                        Ok(renewed) => self.look_at(renewed),
                        Err(_) => tracing::warn!("a lease could not be renewed in time"),
                    }
                }
                change = next(&mut changes), if !is_over => {
                    match change {
                        Some(Ok(())) => {}
                        // The next good item stands for all that was missed.
                        Some(Err(error)) => {
                            tracing::warn!(%error, "a task is not watched by its worker for now");
                            continue;
                        }
                        None => changes = None,
                    }
                    let read = tokio::select! {
                        read = timeout(self.patience(), self.attempt.read()) => read,
                        () = stop.told() => return self.release().await,
                    };
                    match read {
                        Ok(read) => self.look_at(read),
                        // A renewal reads it, too.
                        Err(_) => renew_at = Instant::now(),
                    }
                    if self.lease_left().is_none() {
                        renew_at = Instant::now();
                    }
                }
                () = sleep_until(ttl_at.unwrap_or(renew_at)), if ttl_at.is_some() && !is_over => {
                    ttl_at = None;
                    // A renewal reads the task, and each reader ends an overdue one.
                    renew_at = Instant::now();
                }
                () = sleep_until(abort_at.unwrap_or(renew_at)), if abort_at.is_some() => {
                    tracing::warn!("an operation that was to stop did not, and is aborted");
                    self.operation.abort();
                    return;
                }
            }
        }
    }

    /// How long the task may still run.
    fn ttl(&self) -> Option<Duration> {
        let deadline = self.seen.borrow().task.deadline()?;
        Some((deadline - self.store.backend().now()).to_std().unwrap_or_default() + Duration::from_millis(5))
    }

    /// How long its lease still lasts, as far as is known.
    fn lease_left(&self) -> Option<Duration> {
        let deadline = self.seen.borrow().task.lease.as_ref()?.deadline;
        (deadline - self.store.backend().now()).to_std().ok().filter(|left| !left.is_zero())
    }

    /// How long to wait for one write: long while there is time, so that a slow engine is no lost one.
    fn patience(&self) -> Duration {
        let lease = self.store.lease_duration();
        // After the clock was set back, a lease seems to last for longer than it does.
        self.lease_left().map_or(PATIENCE, |left| PATIENCE.max(left.min(lease) / 2))
    }

    /// Passes on what the task looks like now.
    fn look_at(&self, read: Result<StoredTask, TaskError>) {
        match read {
            Ok(StoredTask { task, .. }) => {
                let is_over = task.status.is_terminal();
                self.seen.send_replace(Seen { task: Arc::new(task.into_task()), is_over });
            }
            Err(error) if is_lost(&error) => {
                tracing::warn!(%error, "the attempt of an operation is void");
                self.seen.send_modify(|seen| seen.is_over = true);
            }
            // The lease is renewed again soon, and until then the operation goes on.
            Err(error) => tracing::warn!(%error, "a task could not be read or renewed by its worker"),
        }
    }

    /// Stores what the operation has ended with, as soon as the engine takes it, unless the lease is lost.
    async fn end(self, outcome: Outcome, stop: Stop) {
        let store = self.store_outcome(outcome);
        tokio::select! {
            () = store => {}
            () = stop.passed() => tracing::error!("the process ends before the outcome of an operation could be stored"),
        }
    }

    async fn store_outcome(&self, outcome: Outcome) {
        let mut ending = Ending::of(outcome);
        let mut is_reduced = false;
        let mut delay = Duration::from_millis(50);
        loop {
            let write = async {
                match &ending {
                    Ending::Completed(result) => self.attempt.complete(result.clone()).await,
                    Ending::Failed(error) => self.attempt.fail(error.clone()).await,
                    Ending::Cancelled => self.attempt.cancel().await,
                }
            };
            match timeout(self.patience(), write).await {
                Ok(Ok(_)) => return,
                Ok(Err(error)) if is_lost(&error) => {
                    // So it is also if the write before was applied, and only its reply did not come in time.
                    tracing::warn!(%error, "the outcome of an operation was not stored: the task is another's, or has ended");
                    return;
                }
                Ok(Err(error)) if may_pass(&error) => {
                    tracing::warn!(%error, "the outcome of an operation could not be stored yet");
                }
                Err(_) => tracing::warn!("the outcome of an operation could not be stored in time yet"),
                Ok(Err(error)) => {
                    let told = ErrorData::from(error).message;
                    tracing::error!(error = %told, "the outcome of an operation cannot be stored");
                    // One over the limits is no reason to leave the task open. If not even this can be stored, its lease
                    // lapses, and others settle it.
                    if std::mem::replace(&mut is_reduced, true) {
                        return;
                    }
                    let told = format!("the outcome of the operation cannot be stored: {told}");
                    ending = Ending::Failed(RpcError::new(-32603, told));
                    continue;
                }
            }
            if !self.keep_lease().await {
                return;
            }
            sleep(delay).await;
            delay = (delay * 2).min(RETRY);
        }
    }

    /// Renews the lease if a third of it has passed, so that no other instance considers this worker lost while it
    /// retries. Returns whether the attempt may still be valid.
    async fn keep_lease(&self) -> bool {
        let lease = self.store.lease_duration();
        if self.lease_left().is_some_and(|left| left > lease * 2 / 3) {
            return true;
        }
        match timeout(self.patience(), self.attempt.renew()).await {
            Ok(renewed) => self.look_at(renewed),
            Err(_) => tracing::warn!("a lease could not be renewed in time"),
        }
        !self.seen.borrow().is_over
    }

    /// Stops the operation. What can resume does so on another instance.
    async fn release(mut self) {
        // One that is about to end does so.
        tokio::task::yield_now().await;
        self.operation.abort();
        match timeout(FAREWELL, &mut self.operation).await {
            // It may have ended just before.
            Ok(Ok(ended)) => return self.end(Ok(ended), Stop::now()).await,
            Ok(Err(_)) => {}
            Err(_) => tracing::warn!("an operation that was to stop does not yield"),
        }
        match timeout(FAREWELL, self.attempt.release()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "a lease was not released"),
            Err(_) => tracing::warn!("a lease was not released within {FAREWELL:?}"),
        }
    }
}

/// The next item of a watch, which never comes where there is none.
async fn next<S: Stream + Unpin>(watch: &mut Option<S>) -> Option<S::Item> {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

enum Ending {
    Completed(serde_json::Value),
    Failed(RpcError),
    Cancelled,
}

impl Ending {
    fn of(outcome: Outcome) -> Self {
        let internal = |message: String| Self::Failed(RpcError::new(-32603, message));
        match outcome {
            Ok(Ok(result)) => match serde_json::to_value(result) {
                Ok(result) => Self::Completed(result),
                Err(error) => internal(format!("the result is not JSON: {error}")),
            },
            Ok(Err(TaskExit::Cancelled)) => Self::Cancelled,
            Ok(Err(TaskExit::Error(error))) => Self::Failed(rpc_error(error)),
            Err(panic) => {
                tracing::error!(%panic, "an operation panicked");
                Self::Failed(rpc_error(ErrorData::internal_error("the operation panicked", None)))
            }
        }
    }
}

/// Whether the engine may take the same write later. A password that is being changed is no reason to lose a result.
fn may_pass(error: &TaskError) -> bool {
    error.is_retryable()
        || error.outcome_unknown()
        || matches!(error, TaskError::Storage(StorageError::Denied { .. }))
}

/// Whether the attempt is not to go on.
fn is_lost(error: &TaskError) -> bool {
    use TaskError::{InvalidTransition, LeaseLost, NotFound};
    matches!(error, InvalidTransition { .. } | LeaseLost { .. } | NotFound { .. })
}
