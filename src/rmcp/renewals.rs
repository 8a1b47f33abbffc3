//! The renewals of one lease while an operation runs and while its outcome is stored. They run in a Tokio task of
//! their own, so no other call of the run delays them.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::error_class::ErrorClass;
use super::renewal_delay::RenewalDelay;
use super::timeouts::{MAX_RETRY_DELAY, call_timeout, lease_left};
use crate::backend::Agenda;
use crate::printable::Chain;
use crate::store::{Attempt, TaskError, TaskStore};
use crate::task::StoredTask;

/// The result of the last renewal.
#[derive(Clone)]
pub(super) enum RenewalReport {
    /// The first renewal has not ended.
    Pending,
    /// The lease was renewed.
    Renewed {
        stored: Arc<StoredTask>,
        /// When the renewal began.
        since: std::time::Instant,
    },
    /// The store has answered that the attempt is void, for this reason.
    Void(String),
}

/// A run's handle on the renewals of its lease. The renewals end when the handle is dropped.
pub(super) struct RenewalHandle {
    pub(super) reports: watch::Receiver<RenewalReport>,
    signals: Arc<RenewalSignals>,
}

/// The signals between the renewals and the other writes of a run.
#[derive(Default)]
pub(super) struct RenewalSignals {
    /// The lease must be renewed now.
    requested: Notify,
    /// A renewal begins. Writes that can wait are dropped.
    begins: Notify,
}

impl RenewalSignals {
    pub(super) fn request_renewal(&self) {
        self.requested.notify_one();
    }

    /// Waits until the next renewal begins.
    pub(super) async fn renewal_begins(&self) {
        self.begins.notified().await;
    }
}

impl RenewalHandle {
    pub(super) fn request_renewal(&self) {
        self.signals.request_renewal();
    }

    pub(super) fn signals(&self) -> Arc<RenewalSignals> {
        Arc::clone(&self.signals)
    }

    /// Returns the deadline of the lease after the last renewal.
    pub(super) fn deadline(&self) -> Option<DateTime<Utc>> {
        match &*self.reports.borrow() {
            RenewalReport::Renewed { stored, .. } => stored.task.lease.as_ref().map(|lease| lease.deadline),
            RenewalReport::Pending | RenewalReport::Void(_) => None,
        }
    }
}

/// Renews one lease.
pub(super) struct LeaseRenewal<B> {
    store: TaskStore<B>,
    attempt: Attempt<B>,
    deadline: Option<DateTime<Utc>>,
    signals: Arc<RenewalSignals>,
    report: watch::Sender<RenewalReport>,
    delay: RenewalDelay,
    /// Limits how many renewals of the manager begin at once.
    admission: Arc<Semaphore>,
    /// When the next renewal is due. The time of the first renewal counts from the start of the run, even if the
    /// runtime polls the renewals late.
    due_at: Instant,
    /// The store of the dedicated renewals, which replaces the store of the attempt.
    dedicated_store: Option<watch::Receiver<TaskStore<B>>>,
}

impl<B: Agenda> LeaseRenewal<B> {
    pub(super) fn new(
        store: TaskStore<B>,
        attempt: Attempt<B>,
        stored: &StoredTask,
        delay: RenewalDelay,
        admission: Arc<Semaphore>,
    ) -> (Self, RenewalHandle) {
        let (report, reports) = watch::channel(RenewalReport::Pending);
        let signals = Arc::<RenewalSignals>::default();
        let handle = RenewalHandle { reports, signals: Arc::clone(&signals) };
        let due_at = Instant::now() + store.lease_duration() / 3;
        let deadline = stored.task.lease.as_ref().map(|lease| lease.deadline);
        let dedicated_store = None;
        let renewal =
            Self { store, attempt, deadline, signals, report, delay, admission, due_at, dedicated_store };
        (renewal, handle)
    }

    /// Renews the lease as [`run`](Self::run) does, over the newest store in this channel.
    pub(super) async fn run_dedicated(mut self, store: watch::Receiver<TaskStore<B>>) {
        self.dedicated_store = Some(store);
        self.run().await;
    }

    /// Renews the lease each time a third of its duration has passed, until the attempt is void or its run has ended.
    pub(super) async fn run(mut self) {
        loop {
            let is_due = self.wait_until_due().await;
            // The renewal may be overdue after each of the three events.
            self.report_delay();
            if !is_due {
                return;
            }
            let Some(pause) = self.renew().await else { return };
            self.due_at = Instant::now() + pause;
        }
    }

    /// Waits for the next renewal. Returns `false` if the run has ended.
    async fn wait_until_due(&self) -> bool {
        tokio::select! {
            () = self.report.closed() => false,
            () = sleep_until(self.due_at) => true,
            () = self.signals.requested.notified() => true,
        }
    }

    /// Renews the lease once. Returns the pause before the next renewal; `None` if there is no next one.
    async fn renew(&mut self) -> Option<Duration> {
        let permit = tokio::select! {
            () = self.report.closed() => return None,
            permit = Arc::clone(&self.admission).acquire_owned() => permit.ok(),
        };
        self.signals.begins.notify_waiters();
        let since = std::time::Instant::now();
        let limit = call_timeout(self.store.lease_duration(), lease_left(&self.store, self.deadline));
        let attempt = self.attempt();
        let renew = pin!(attempt.renew());
        let renewed = tokio::select! {
            // Drop the write, so that it does not conflict with the next write of the run.
            () = self.report.closed() => return None,
            renewed = timeout(limit, admitted(permit, renew)) => renewed,
        };
        self.publish(renewed, since, limit)
    }

    /// Returns the attempt over the store that the renewals use.
    fn attempt(&self) -> Attempt<B> {
        match &self.dedicated_store {
            Some(store) => self.attempt.over(&store.borrow()),
            None => self.attempt.clone(),
        }
    }

    /// Reports the result of a renewal to the run. Returns the pause before the next renewal; `None` if the attempt is void.
    fn publish(
        &mut self,
        renewed: Result<Result<StoredTask, TaskError>, Elapsed>,
        since: std::time::Instant,
        limit: Duration,
    ) -> Option<Duration> {
        let third = self.store.lease_duration() / 3;
        match renewed {
            Ok(Ok(stored)) => {
                self.deadline = stored.task.lease.as_ref().map(|lease| lease.deadline);
                self.report.send_replace(RenewalReport::Renewed { stored: Arc::new(stored), since });
                return Some(third);
            }
            Ok(Err(error)) if ErrorClass::of(&error) == ErrorClass::Void => {
                self.report.send_replace(RenewalReport::Void(error.to_string()));
                return None;
            }
            Ok(Err(error)) => tracing::debug!(error = %Chain(&error), "a lease could not be renewed"),
            Err(_) => tracing::debug!("a lease could not be renewed within {limit:?}"),
        }
        Some(third.min(MAX_RETRY_DELAY))
    }

    /// Reports that a renewal is late. No operation can delay dedicated renewals, so this function does not report
    /// them.
    fn report_delay(&self) {
        let third = self.store.lease_duration() / 3;
        let late = self.due_at.elapsed();
        if late > third && self.dedicated_store.is_none() {
            self.delay.report(late, third);
        }
    }
}

/// Waits for a call that was admitted. A slow call releases its permit after 100 ms, so that servers that hang do not
/// delay the renewals on servers that answer.
async fn admitted<T>(permit: Option<OwnedSemaphorePermit>, call: impl Future<Output = T>) -> T {
    const SLOW: Duration = Duration::from_millis(100);
    let mut call = pin!(call);
    tokio::select! {
        returned = &mut call => return returned,
        () = sleep(SLOW) => drop(permit),
    }
    call.await
}
