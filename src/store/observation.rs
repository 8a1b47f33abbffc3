//! What the keeper does with one due timer of a lease: it reads the record, observes a lapsed lease, and resolves the timer.

use std::sync::{Arc, Weak};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until};

use super::answers::Answers;
use super::dead::log_gave_up;
use super::dead_timers;
use super::durations::BackOff;
use super::error::TaskError;
use super::hold::extend_unlimited;
use super::local_attempts::{AttemptState, DroppedAttempt};
use super::machine::exit::{self, AfterExit, WorkerExit, may_run};
use super::machine::{Change, open_lease, waiting_lease};
use super::records::Records;
use super::scheduler::may_have_lapsed;
use super::write::Writer;
use crate::backend::{Agenda, Due, Next, Queue, TaskKey, Version};
use crate::printable::Chain;
use crate::task::{Lease, StoredTask};

/// How late a sleep of this process may end. If it ends later, the process was stopped or suspended, and the
/// observation starts again.
pub(super) const MAX_LATENESS: Duration = Duration::from_secs(1);
/// After how many lease durations the timer of a task that waits for a worker fires again.
const WAITING_LEASES: u32 = 10;

/// Returns how long a lapsed lease is observed before its worker counts as lost. After an outage that affected all
/// instances, the worker has this long to renew its lease.
pub(super) fn observation_time(lease: Duration) -> Duration {
    lease / 3 + Duration::from_secs(1)
}

/// Logs an error after which the keeper tries again.
pub(super) fn log_retry(error: &TaskError) {
    tracing::debug!(error = %Chain(error), "the lease of a task could not be checked; the store tries again");
}

/// One due timer of a lease, which this keeper has taken.
pub(super) struct Observation<B> {
    /// The observation never holds a strong reference across a sleep: the keeper must end with the last clone of the
    /// store.
    pub(super) records: Weak<Records<B>>,
    pub(super) due: Due,
    /// No other instance takes the timer before this time.
    pub(super) hidden_until: Instant,
    /// This keeper has already moved the timer, so its token is void.
    pub(super) is_token_void: bool,
    pub(super) answers: Arc<Answers>,
    pub(super) calls: Arc<Semaphore>,
}

/// What a record means for the timer of its lease.
enum Verdict {
    /// The timer can be resolved.
    Resolve(Next),
    /// The lease has lapsed and must be observed.
    Lapsed(Box<StoredTask>),
    /// The record has changed since the read and must be read again.
    Changed,
    /// Another instance has the timer, or the store was dropped.
    NotOurs,
}

impl<B: Agenda> Observation<B> {
    pub(super) async fn run(mut self) {
        let mut back_off = BackOff::new();
        loop {
            let verdict = if self.is_of_lease() { self.judge().await } else { self.look_at_the_dead().await };
            match verdict {
                Ok(Verdict::Resolve(next)) => return self.resolve(next).await,
                Ok(Verdict::NotOurs) => return,
                // The next read shows what happened to the record.
                Ok(Verdict::Changed | Verdict::Lapsed(_)) | Err(TaskError::NotFound { .. }) => {}
                Err(error) => log_retry(&error),
            }
            // The timer is no longer hidden, so another instance may have taken it.
            if Instant::now() >= self.hidden_until {
                return self.resolve(Next::After(Duration::ZERO)).await;
            }
            sleep(back_off.next_pause()).await;
        }
    }

    /// Returns whether the timer is that of a lease. The other timers are those of dead tasks.
    fn is_of_lease(&self) -> bool {
        self.due.queue == Queue::leases()
    }

    async fn look_at_the_dead(&self) -> Result<Verdict, TaskError> {
        let Some(records) = self.records.upgrade() else { return Ok(Verdict::NotOurs) };
        let _permit = self.calls.acquire().await;
        dead_timers::next(&records, &self.due.key).await.map(Verdict::Resolve)
    }

    async fn resolve(&self, next: Next) {
        if self.is_token_void {
            return;
        }
        let Some(records) = self.records.upgrade() else { return };
        let _permit = self.calls.acquire().await;
        if let Err(error) = records.engine.resolve(&self.due, next).await {
            // The timer fires again when it is no longer hidden.
            log_retry(&error);
        }
    }

    /// Reads the record. Observes a lapsed lease until its worker is lost, or until a read shows another state.
    async fn judge(&mut self) -> Result<Verdict, TaskError> {
        let mut failures = self.answers.failures(&self.due.key.owner);
        let mut verdict = {
            let Some(records) = self.records.upgrade() else { return Ok(Verdict::NotOurs) };
            let _permit = self.calls.acquire().await;
            check(&records, &self.due.key).await?
        };
        while let Verdict::Lapsed(first) = verdict {
            let Some(lease) = first.task.lease.clone() else { return Ok(Verdict::Changed) };
            let observation_time = observation_time(lease.duration());
            if !self.hide(observation_time).await? {
                return Ok(Verdict::NotOurs);
            }
            {
                let Some(records) = self.records.upgrade() else { return Ok(Verdict::NotOurs) };
                let _permit = self.calls.acquire().await;
                if !touch(&records, *first).await? {
                    return Ok(Verdict::Changed);
                }
            }
            let at = Instant::now() + observation_time;
            sleep_until(at).await;
            let is_late = at.elapsed() > MAX_LATENESS;

            let Some(records) = self.records.upgrade() else { return Ok(Verdict::NotOurs) };
            let _permit = self.calls.acquire().await;
            let failures_before =
                std::mem::replace(&mut failures, self.answers.failures(&self.due.key.owner));
            verdict = check(&records, &self.due.key).await?;
            let Verdict::Lapsed(second) = &verdict else { return Ok(verdict) };
            if is_late || !second.task.lease.as_ref().is_some_and(|second| is_unrenewed(&lease, second)) {
                continue;
            }
            let now = records.engine.clock(&self.due.key).await?;
            if lease.is_live(now) {
                return Ok(Verdict::Resolve(Next::After(left(&lease, now))));
            }
            // The second read and the read of the clock count as well, so check the failures after both.
            if self.answers.failures(&self.due.key.owner) == failures_before {
                return take_lease(&records, (**second).clone(), WorkerExit::Lost, now).await;
            }
        }
        Ok(verdict)
    }

    /// Hides the timer for longer than an observation takes. Returns whether this keeper still has the timer.
    async fn hide(&mut self, observation_time: Duration) -> Result<bool, TaskError> {
        const SLACK: Duration = Duration::from_secs(1);
        if Instant::now() + observation_time + SLACK <= self.hidden_until {
            return Ok(true);
        }
        if self.is_token_void {
            // This keeper has already moved the timer once, and failures have restarted the observation. The next
            // taker of the timer observes the lease.
            return Ok(false);
        }
        let Some(records) = self.records.upgrade() else { return Ok(false) };
        let hide_for = observation_time + 2 * SLACK;
        let hidden_until = Instant::now() + hide_for;
        let is_moved = records.engine.resolve(&self.due, Next::After(hide_for)).await?;
        (self.is_token_void, self.hidden_until) = (true, hidden_until);
        Ok(is_moved)
    }
}

/// Returns whether the holder did not renew the lease between two reads.
fn is_unrenewed(first: &Lease, second: &Lease) -> bool {
    (&first.holder, first.attempt, first.renewals) == (&second.holder, second.attempt, second.renewals)
}

/// Returns how long a live lease still lasts.
fn left(lease: &Lease, now: DateTime<Utc>) -> Duration {
    (lease.deadline - now).to_std().unwrap_or_default()
}

/// Returns the time since the holder last renewed the lease. The result is zero if the clock was set back.
fn silent_for(lease: &Lease, now: DateTime<Utc>) -> Duration {
    (now + lease.duration() - lease.deadline).to_std().unwrap_or_default()
}

/// Reads the record of a due timer, and acts on it unless the lease must be observed.
async fn check<B: Agenda>(records: &Records<B>, key: &TaskKey) -> Result<Verdict, TaskError> {
    let (mut was_open, mut version) = (false, Version::ABSENT);
    let read = match records.read(key).await {
        Ok(stored) => {
            (was_open, version) = (!stored.task.status.is_terminal(), stored.version);
            records.expire_if_overdue(stored).await
        }
        Err(error) => Err(error),
    };
    let stored = match read {
        // The TTL has elapsed, and the engine rejected the end of the task. The timer of an open task is never removed.
        Ok(Some(stored)) if was_open && stored.task.status.is_terminal() && stored.version == version => {
            return Ok(Verdict::Changed);
        }
        Ok(Some(stored)) => stored,
        Ok(None) => return Ok(Verdict::Changed),
        Err(TaskError::NotFound { .. }) => return Ok(Verdict::Resolve(Next::Remove)),
        // This version of the crate cannot end the task. An operator may delete the record, or a later version may
        // read it.
        Err(error) if error.is_unreadable() => {
            return Ok(Verdict::Resolve(Next::After(records.config.lease * WAITING_LEASES)));
        }
        Err(error) => return Err(error),
    };
    check_lease(records, stored).await
}

async fn check_lease<B: Agenda>(records: &Records<B>, stored: StoredTask) -> Result<Verdict, TaskError> {
    let is_open = !stored.task.status.is_terminal();
    if let Some(found) = stored.task.forbids_leases().filter(|_| is_open) {
        records.notices.report_later(&stored, &found);
        extend_pointer(records, &stored).await;
        // One of the next takers may be a keeper of that version.
        return Ok(Verdict::Resolve(Next::After(records.config.lease)));
    }
    let Some(lease) = open_lease(&stored.task).cloned() else {
        records.scheduler.forget(&stored.key);
        return Ok(Verdict::Resolve(Next::Remove));
    };
    extend_pointer(records, &stored).await;
    if waiting_lease(&stored.task).is_some() {
        return offer(records, stored, &lease).await;
    }
    let now = records.engine.now();
    match AttemptState::of_lease(&stored.key, &lease) {
        AttemptState::Held => {
            let again = left(&lease, now).max(observation_time(lease.duration()));
            Ok(Verdict::Resolve(Next::After(again)))
        }
        AttemptState::Dropped => take_lease(records, stored, WorkerExit::Lost, now).await,
        AttemptState::Foreign if may_have_lapsed(&lease, now) => Ok(Verdict::Lapsed(Box::new(stored))),
        AttemptState::Foreign => Ok(Verdict::Resolve(Next::After(left(&lease, now)))),
    }
}

/// Extends the pointer of a unique task whose TTL is unlimited.
async fn extend_pointer<B: Agenda>(records: &Records<B>, stored: &StoredTask) {
    if let Err(error) = extend_unlimited(records, stored).await {
        // The timer of an open task fires many times before the pointer expires.
        tracing::debug!(error = %Chain(&error), "the pointer of a unique task could not be extended yet");
    }
}

/// Writes a task with a new write id and no other change. Returns whether the engine accepted the write. While an
/// engine rejects writes, no worker can renew its lease, so no worker may be declared lost. The write also conflicts
/// with every claim that began earlier. So the caller never moves the timer of a task that was claimed meanwhile.
async fn touch<B: Agenda>(records: &Records<B>, stored: StoredTask) -> Result<bool, TaskError> {
    let mut writer = Writer::store();
    let written = records.write(&mut writer, stored, Change::Internal).await?;
    Ok(written.is_some())
}

/// Schedules a task that waits for a worker in its work queue.
async fn offer<B: Agenda>(
    records: &Records<B>,
    stored: StoredTask,
    lease: &Lease,
) -> Result<Verdict, TaskError> {
    if stored.task.cancel_requested || !may_run(&stored.task, lease) {
        return take_lease(records, stored, WorkerExit::Released, records.engine.now()).await;
    }
    let again = match touch(records, stored.clone()).await {
        Ok(true) => lease.duration() * WAITING_LEASES,
        Ok(false) => return Ok(Verdict::Changed),
        // The record is full, so the write was not possible. A claim may have begun before this read, so the timer
        // fires sooner.
        Err(TaskError::LimitExceeded { .. }) => lease.duration(),
        Err(error) => return Err(error),
    };
    records.scheduler.schedule_work(&stored).await?;
    records.notices.report_waiting(&stored, lease, records.engine.now());
    Ok(Verdict::Resolve(Next::After(again)))
}

/// Takes the lease of a task from a worker that has left the task.
async fn take_lease<B: Agenda>(
    records: &Records<B>,
    mut stored: StoredTask,
    cause: WorkerExit,
    now: DateTime<Utc>,
) -> Result<Verdict, TaskError> {
    let Some(lease) = stored.task.lease.clone() else { return Ok(Verdict::Changed) };
    let after = exit::take_lease(stored.task_mut(), cause, &records.exit_terms(now))?;
    if after == AfterExit::GaveUp {
        records.scheduler.schedule_dead(&stored).await?;
    }
    let mut writer = Writer::store();
    let written = records.write(&mut writer, stored, Change::Visible).await?;
    let Some(written) = written else { return Ok(Verdict::Changed) };
    let (TaskKey { owner, task: id }, operation) = (&written.key, &written.task.operation);
    if let (WorkerExit::Lost, Some(holder)) = (cause, &lease.holder) {
        let silent = silent_for(&lease, now);
        tracing::info!(owner = %owner.printable(), task = %id.printable(), operation, attempt = lease.attempt, holder, ?silent, "worker lost");
    }
    log_gave_up(&written);
    if waiting_lease(&written.task).is_none() {
        return Ok(Verdict::Resolve(Next::Remove));
    }
    records.scheduler.schedule_work(&written).await?;
    Ok(Verdict::Resolve(Next::After(lease.duration() * WAITING_LEASES)))
}

/// Takes the lease of a dropped attempt of this process. The timer of the lease stays as it is.
pub(super) async fn end_dropped<B: Agenda>(
    records: &Records<B>,
    dropped: &DroppedAttempt,
) -> Result<(), TaskError> {
    let DroppedAttempt { id: (key, number), exit } = dropped;
    loop {
        let stored = match records.read(key).await {
            Ok(stored) => stored,
            Err(TaskError::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let is_of_attempt = |lease: &Lease| {
            lease.attempt == *number
                && records.attempts.is_own(lease)
                && AttemptState::of_lease(key, lease) == AttemptState::Dropped
        };
        if !open_lease(&stored.task).is_some_and(is_of_attempt) {
            return Ok(());
        }
        match take_lease(records, stored, *exit, records.engine.now()).await {
            Ok(Verdict::Changed) => {}
            Ok(_) | Err(TaskError::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
