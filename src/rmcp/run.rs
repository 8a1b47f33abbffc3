//! One run of an operation in this process: what comes in from elsewhere is passed on to it, and it is stopped when it must.

use std::sync::Arc;
use std::time::Duration;

use futures_core::Stream;
use futures_util::StreamExt;
use rmcp::task_manager::TaskFuture;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{Instrument, Span, info_span};

use super::context::{Seen, TaskContext};
use super::meaning::{Meaning, meaning};
use super::operation::{Ended, Operation, Polls};
use super::places::{Occupied, Place};
use super::progress::Progress;
use super::renewals::{Renewal, Renewals, Report, left, patience};
use super::renewer::Renewer;
use super::stop::Stop;
use crate::backend::Agenda;
use crate::printable::Chain;
use crate::store::{Attempt, InCharge, TaskError, TaskStore};
use crate::task::StoredTask;

/// How long an operation may take to end by itself once its attempt is void.
const GRACE: Duration = Duration::from_secs(10);
/// How long each step of stopping may take. The process is about to end, and a lease lapses by itself.
const FAREWELL: Duration = Duration::from_secs(5);

/// The span of everything that a run does, a child of `parent` if there is one.
pub(super) fn span<B: Agenda>(
    parent: Option<tracing::Id>,
    stored: &StoredTask,
    attempt: &Attempt<B>,
) -> Span {
    info_span!(
        parent: parent,
        "task",
        task = %stored.key.task.printable(),
        owner = %stored.key.owner.printable(),
        operation = stored.task.operation.as_deref(),
        attempt = attempt.number(),
    )
}

pub(super) struct Run<B> {
    store: TaskStore<B>,
    pub(super) attempt: Attempt<B>,
    seen: watch::Sender<Seen>,
    pub(super) progress: Arc<Progress>,
    renewals: Renewals,
    renewer: Arc<Renewer<B>>,
    polls: Arc<Polls>,
    operation: JoinHandle<Ended>,
    /// Held until the end, except while the operation waits for input.
    _place: Option<Occupied>,
    /// The attempt is that of this run: a clone in the hands of the operation does not keep it alive.
    _in_charge: InCharge,
}

/// Why a run ends.
enum End {
    Ended(Ended),
    /// The process is about to end.
    Stopped,
    /// The operation did not stop by itself, or its runtime ends.
    Aborted,
}

impl<B: Agenda> Run<B> {
    /// Begins to work on a task, as it was read or written when `attempt` began. Also returns whether the closure has
    /// returned a future; if it has not, the operation has panicked.
    pub(super) fn begin(
        store: TaskStore<B>,
        renewer: Arc<Renewer<B>>,
        attempt: Attempt<B>,
        stored: StoredTask,
        place: Option<Place>,
        make_future: impl FnOnce(TaskContext) -> TaskFuture,
    ) -> (Self, bool) {
        let stored = Arc::new(stored);
        let seen = Seen { stored: Arc::clone(&stored), since: std::time::Instant::now(), is_over: false };
        let seen = watch::Sender::new(seen);
        let progress = Arc::new(Progress::new(store.max_status_message_bytes()));
        let place = place.map(Arc::new);
        let context = TaskContext::new(
            attempt.clone(),
            store.lease_duration(),
            seen.subscribe(),
            Arc::clone(&progress),
            place.clone(),
        );
        let polls = Arc::new(Polls::new());
        // Before the operation is called, which may block.
        let renewals = renew(&store, &renewer, &attempt, &stored, &polls);
        let operation = Operation::call(Arc::clone(&polls), || make_future(context));
        let has_begun = !operation.has_panicked();
        let operation = tokio::spawn(operation.in_current_span());
        let (_place, _in_charge) = (place.map(Occupied), attempt.in_charge());
        let run =
            Self { store, attempt, seen, progress, renewals, renewer, polls, operation, _place, _in_charge };
        (run, has_begun)
    }

    /// Stays with the operation until it has ended, or is stopped because this process is to end.
    pub(super) async fn attend(mut self, stop: Stop) {
        let end = {
            let (progress, attempt) = (Arc::clone(&self.progress), self.attempt.clone());
            let signals = self.renewals.signals();
            let messages = progress.write(&attempt, self.store.lease_duration(), &signals);
            // A message that is being written when the operation ends is given up. It goes with the outcome.
            tokio::select! {
                end = self.follow(&stop) => end,
                never = messages => match never {},
            }
        };
        match end {
            End::Ended(ended) => self.end(ended, &stop).await,
            End::Stopped => self.release(&stop).await,
            End::Aborted => {}
        }
    }

    async fn follow(&mut self, stop: &Stop) -> End {
        let (backend, key) = (Arc::clone(self.store.shared_backend()), self.attempt.key().clone());
        let watch = || backend.watch(&key);
        let mut changes = Some(watch());
        let mut abort_at = None;
        let mut ttl_at = self.ttl().map(|left| Instant::now() + left);
        loop {
            let is_over = self.is_over();
            if is_over && abort_at.is_none() {
                abort_at = Some(Instant::now() + GRACE);
            }
            tokio::select! {
                ended = &mut self.operation => return ended.map_or(End::Aborted, End::Ended),
                _ = stop.told() => return End::Stopped,
                renewed = self.renewals.reports.changed(), if !is_over => {
                    if renewed.is_err() {
                        // It has panicked with the engine.
                        self.renew_anew();
                        continue;
                    }
                    let report = self.renewals.reports.borrow_and_update().clone();
                    match report {
                        Report::Nothing => {}
                        Report::Renewed { stored, since } => self.look_at(stored, since),
                        Report::Void(reason) => self.set_over(&reason),
                    }
                    // A watch that has ended although the task is there is begun again, but not at once.
                    changes.get_or_insert_with(watch);
                }
                change = next(&mut changes), if !is_over => {
                    match change {
                        Some(Ok(())) => {}
                        // The next good item stands for all that was missed.
                        Some(Err(error)) => {
                            tracing::debug!(error = %Chain(&error), "the worker receives no changes of its task for now");
                            continue;
                        }
                        None => changes = None,
                    }
                    let since = std::time::Instant::now();
                    let read = tokio::select! {
                        read = timeout(self.patience(), self.attempt.read()) => read,
                        _ = stop.told() => return End::Stopped,
                    };
                    match read {
                        Ok(Ok(stored)) => self.look_at(Arc::new(stored), since),
                        Ok(Err(error)) => self.look_at_error(&error),
                        // A renewal reads it, too.
                        Err(_) => self.renewals.nudge(),
                    }
                    if self.lease_left().is_none() {
                        self.renewals.nudge();
                    }
                }
                () = at(ttl_at), if !is_over => {
                    ttl_at = None;
                    // A renewal reads the task, and each reader ends an overdue one.
                    self.renewals.nudge();
                }
                () = at(abort_at) => {
                    tracing::warn!("the attempt of an operation is void, and the operation did not stop within {GRACE:?}; it is aborted");
                    self.operation.abort();
                    return End::Aborted;
                }
            }
        }
    }

    fn renew_anew(&mut self) {
        let stored = Arc::clone(&self.seen.borrow().stored);
        self.renewals = renew(&self.store, &self.renewer, &self.attempt, &stored, &self.polls);
    }

    /// How long the task may still run.
    fn ttl(&self) -> Option<Duration> {
        let deadline = self.seen.borrow().stored.task.deadline()?;
        Some((deadline - self.store.backend().now()).to_std().unwrap_or_default() + Duration::from_millis(5))
    }

    /// How long its lease still lasts, as far as is known.
    fn lease_left(&self) -> Option<Duration> {
        let seen = self.seen.borrow().stored.task.lease.as_ref().map(|lease| lease.deadline);
        left(&self.store, seen.max(self.renewals.deadline()))
    }

    /// How long to wait for one read or write.
    pub(super) fn patience(&self) -> Duration {
        patience(self.store.lease_duration(), self.lease_left())
    }

    /// Passes on what the task looks like now. What began later knows more, whichever answer comes first.
    fn look_at(&self, stored: Arc<StoredTask>, since: std::time::Instant) {
        self.seen.send_if_modified(|seen| {
            if since < seen.since {
                return false;
            }
            let is_over = stored.task.status.is_terminal();
            *seen = Seen { stored, since, is_over };
            true
        });
    }

    fn look_at_error(&self, error: &TaskError) {
        match meaning(error) {
            Meaning::Void => self.set_over(error),
            // A renewal reads it, too, and is tried again until it does.
            Meaning::Final | Meaning::Temporary => {
                tracing::debug!(error = %Chain(&error), "a task could not be read by its worker");
                self.renewals.nudge();
            }
        }
    }

    pub(super) fn operation_name(&self) -> Option<String> {
        self.seen.borrow().stored.task.operation.clone()
    }

    /// Whether the operation was told that the attempt is void.
    pub(super) fn is_over(&self) -> bool {
        self.seen.borrow().is_over
    }

    fn set_over(&self, reason: &dyn std::fmt::Display) {
        tracing::warn!(%reason, "the attempt of an operation is void; the operation must stop");
        self.seen.send_modify(|seen| seen.is_over = true);
    }

    /// Stops the operation. What can resume does so on another instance.
    async fn release(mut self, stop: &Stop) {
        // One that is about to end does so.
        tokio::task::yield_now().await;
        self.operation.abort();
        match timeout(FAREWELL, &mut self.operation).await {
            // It may have ended just before.
            Ok(Ok(ended)) => return self.end(ended, stop).await,
            Ok(Err(_)) => {}
            Err(_) => tracing::warn!("an operation that must stop did not yield within {FAREWELL:?}"),
        }
        // A renewal that is under way would be in the way.
        drop(self.renewals);
        match timeout(FAREWELL, self.attempt.release()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(error = %Chain(&error), "a lease was not released"),
            Err(_) => tracing::debug!("a lease was not released within {FAREWELL:?}"),
        }
    }
}

fn renew<B: Agenda>(
    store: &TaskStore<B>,
    renewer: &Arc<Renewer<B>>,
    attempt: &Attempt<B>,
    stored: &StoredTask,
    polls: &Arc<Polls>,
) -> Renewals {
    let lateness = renewer.lateness(stored.task.operation.clone(), Arc::clone(polls));
    let (renewal, renewals) =
        Renewal::new(store.clone(), attempt.clone(), stored, lateness, renewer.turnstile());
    renewer.start(renewal);
    renewals
}

/// The next item of a watch, which never comes where there is none.
async fn next<S: Stream + Unpin>(watch: &mut Option<S>) -> Option<S::Item> {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

/// Returns at this time, or never.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
