//! The renewals of one lease while an operation runs and while its outcome is stored, in a task of their own: nothing that a
//! run waits for holds them up.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::lateness::Lateness;
use super::meaning::{Meaning, meaning};
use crate::backend::Agenda;
use crate::printable::Chain;
use crate::store::{Attempt, TaskStore};
use crate::task::StoredTask;

/// How long to wait at most before a write that the engine did not take is tried again.
pub(super) const RETRY: Duration = Duration::from_millis(200);
/// How long one write may take at least before it is tried again. Together with [`RETRY`], this is shorter than the observation
/// after which others declare a worker lost whose lease has lapsed in an outage.
pub(super) const PATIENCE: Duration = Duration::from_millis(700);

/// How long to wait for one write under a lease that lasts for `left`: long while there is time, because a write that is given
/// up too early never succeeds on a slow engine.
pub(super) fn patience(lease: Duration, left: Option<Duration>) -> Duration {
    // After the clock was set back, a lease seems to last for longer than it does.
    left.map_or(PATIENCE, |left| PATIENCE.max(left.min(lease) / 2))
}

/// How long another write may delay the next renewal.
pub(super) fn short_patience(lease: Duration) -> Duration {
    PATIENCE.max(lease / 3)
}

/// How long a lease still lasts that ends at `deadline`; `None` if it has lapsed.
pub(super) fn left<B: Agenda>(store: &TaskStore<B>, deadline: Option<DateTime<Utc>>) -> Option<Duration> {
    (deadline? - store.backend().now()).to_std().ok().filter(|left| !left.is_zero())
}

/// The result of the last renewal.
#[derive(Clone)]
pub(super) enum Report {
    /// There was none yet.
    Nothing,
    /// The task as it was written.
    Renewed {
        stored: Arc<StoredTask>,
        /// When the renewal began.
        since: std::time::Instant,
    },
    /// The store has answered that the attempt is void, and why.
    Void(String),
}

/// What a run has of the renewals of its lease. They end when it is dropped.
pub(super) struct Renewals {
    pub(super) reports: watch::Receiver<Report>,
    signals: Arc<Signals>,
}

/// What a renewal and the other writes of its run signal to each other.
#[derive(Default)]
pub(super) struct Signals {
    /// The lease must be renewed now.
    nudge: Notify,
    /// A renewal begins: writes that can wait make way for it.
    begins: Notify,
}

impl Signals {
    pub(super) fn nudge(&self) {
        self.nudge.notify_one();
    }

    /// Returns when the next renewal begins.
    pub(super) async fn renewal_begins(&self) {
        self.begins.notified().await;
    }
}

impl Renewals {
    /// Asks for a renewal now.
    pub(super) fn nudge(&self) {
        self.signals.nudge();
    }

    pub(super) fn signals(&self) -> Arc<Signals> {
        Arc::clone(&self.signals)
    }

    /// Until when the lease lasts by the last renewal.
    pub(super) fn deadline(&self) -> Option<DateTime<Utc>> {
        match &*self.reports.borrow() {
            Report::Renewed { stored, .. } => stored.task.lease.as_ref().map(|lease| lease.deadline),
            Report::Nothing | Report::Void(_) => None,
        }
    }
}

/// Renews one lease.
pub(super) struct Renewal<B> {
    store: TaskStore<B>,
    attempt: Attempt<B>,
    deadline: Option<DateTime<Utc>>,
    signals: Arc<Signals>,
    report: watch::Sender<Report>,
    lateness: Lateness,
    /// Limits how many renewals of the process begin at once.
    turnstile: Arc<Semaphore>,
    /// When the next renewal is due: counted from the run's begin, however late this is polled first.
    at: Instant,
    /// Over which store it renews, where that is not the one of the attempt.
    twin: Option<watch::Receiver<TaskStore<B>>>,
}

impl<B: Agenda> Renewal<B> {
    pub(super) fn new(
        store: TaskStore<B>,
        attempt: Attempt<B>,
        stored: &StoredTask,
        lateness: Lateness,
        turnstile: Arc<Semaphore>,
    ) -> (Self, Renewals) {
        let (report, reports) = watch::channel(Report::Nothing);
        let signals = Arc::<Signals>::default();
        let at = Instant::now() + store.lease_duration() / 3;
        let deadline = stored.task.lease.as_ref().map(|lease| lease.deadline);
        let renewals = Renewals { reports, signals: Arc::clone(&signals) };
        let renewal = Self { store, attempt, deadline, signals, report, lateness, turnstile, at, twin: None };
        (renewal, renewals)
    }

    /// As [`run`](Self::run), over the store that is in this channel at each time.
    pub(super) async fn run_over(mut self, twin: watch::Receiver<TaskStore<B>>) {
        self.twin = Some(twin);
        self.run().await;
    }

    /// Renews the lease each third of it until the attempt is void or its run is gone.
    pub(super) async fn run(mut self) {
        let lease = self.store.lease_duration();
        let third = lease / 3;
        loop {
            let is_gone = tokio::select! {
                () = self.report.closed() => true,
                () = sleep_until(self.at) => false,
                () = self.signals.nudge.notified() => false,
            };
            // Whatever came first: the timer may have been due for long.
            self.check(third);
            if is_gone {
                return;
            }
            let permit = tokio::select! {
                () = self.report.closed() => return,
                permit = Arc::clone(&self.turnstile).acquire_owned() => permit.ok(),
            };
            self.signals.begins.notify_waiters();
            let since = std::time::Instant::now();
            let patience = patience(lease, left(&self.store, self.deadline));
            let attempt = match &self.twin {
                Some(twin) => self.attempt.over(&twin.borrow()),
                None => self.attempt.clone(),
            };
            let renewed = tokio::select! {
                // The write is given up, so that it is not in the way of what the run does next.
                () = self.report.closed() => return,
                renewed = timeout(patience, through(permit, attempt.renew())) => renewed,
            };
            let is_renewed = matches!(renewed, Ok(Ok(_)));
            match renewed {
                Ok(Ok(stored)) => {
                    self.deadline = stored.task.lease.as_ref().map(|lease| lease.deadline);
                    self.report.send_replace(Report::Renewed { stored: Arc::new(stored), since });
                }
                Ok(Err(error)) if meaning(&error) == Meaning::Void => {
                    self.report.send_replace(Report::Void(error.to_string()));
                    return;
                }
                // It is renewed again soon, and until then the operation goes on.
                Ok(Err(error)) => tracing::debug!(error = %Chain(&error), "a lease could not be renewed"),
                Err(_) => tracing::debug!("a lease could not be renewed within {patience:?}"),
            }
            self.at = Instant::now() + if is_renewed { third } else { third.min(RETRY) };
        }
    }

    /// Reports that a timer fired late. On a thread of its own no operation holds it up.
    fn check(&self, third: Duration) {
        let late = self.at.elapsed();
        if late > third && self.twin.is_none() {
            self.lateness.report(late, third);
        }
    }
}

/// Waits for a call that was let through. One that takes long lets the next one through: servers that hang must not hold up
/// the leases of those that answer.
async fn through<T>(permit: Option<OwnedSemaphorePermit>, call: impl Future<Output = T>) -> T {
    const LONG: Duration = Duration::from_millis(100);
    let mut call = pin!(call);
    tokio::select! {
        ended = &mut call => return ended,
        () = sleep(LONG) => drop(permit),
    }
    call.await
}
