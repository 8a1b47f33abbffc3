//! One timer of a lease that was due: what its record says, and what follows.

use std::sync::{Arc, Weak};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until};

use super::answers::Answers;
use super::attempts::{Dropped, Run};
use super::back_off::BackOff;
use super::keeper::{MOST_LATE, window};
use super::transitions::{self, Change, Gone, Then, may_run, waiting};
use super::{Inner, TaskError, TaskStore};
use crate::backend::{Agenda, Due, Next, StorageError, TaskKey, Version};
use crate::printable::Chain;
use crate::task::{Lease, StoredTask};

/// After how many leases a task that waits for a worker is looked at again.
const WAITING: u32 = 10;
/// What the log says when a look fails.
pub(super) const FAILING: &str = "the lease of a task could not be looked at; it is tried again";

pub(super) struct Look<B> {
    /// Never held across a sleep.
    pub(super) store: Weak<Inner<B>>,
    pub(super) due: Due,
    /// Until then no other instance gets the timer.
    pub(super) hidden_until: Instant,
    /// The timer was moved, and stays where it is.
    pub(super) is_token_void: bool,
    pub(super) answers: Arc<Answers>,
    pub(super) calls: Arc<Semaphore>,
}

/// What a record leads to.
enum Verdict {
    /// The timer is resolved like this.
    Next(Next),
    /// Its lease has lapsed, and must be observed.
    Lapsed(Box<StoredTask>),
    /// It was written meanwhile.
    Again,
    /// Somebody else has the timer, or the store is gone.
    Nothing,
}

impl<B: Agenda> Look<B> {
    pub(super) async fn run(mut self) {
        let mut back_off = BackOff::new();
        loop {
            match self.judge().await {
                Ok(Verdict::Next(next)) => return self.resolve(next).await,
                Ok(Verdict::Nothing) => return,
                // Gone or changed meanwhile: the next read tells.
                Ok(Verdict::Again | Verdict::Lapsed(_)) | Err(TaskError::NotFound { .. }) => {}
                Err(error) => tracing::debug!(error = %Chain(&error), "{FAILING}"),
            }
            // From then on another instance may have it.
            if Instant::now() >= self.hidden_until {
                return self.resolve(Next::After(Duration::ZERO)).await;
            }
            sleep(back_off.longer()).await;
        }
    }

    async fn resolve(&self, next: Next) {
        if self.is_token_void {
            return;
        }
        let Some(store) = self.store.upgrade() else { return };
        let _permit = self.calls.acquire().await;
        let resolved =
            self.answers.count(Some(&self.due.key.owner), store.backend.resolve(&self.due, next)).await;
        if let Err(error) = resolved {
            // It fires again when it is no longer hidden.
            tracing::debug!(error = %Chain(&error), "{FAILING}");
        }
    }

    /// Reads the record, and observes its lease if that has lapsed.
    async fn judge(&mut self) -> Result<Verdict, TaskError> {
        let mut failures = self.answers.failures(&self.due.key.owner);
        let mut verdict = {
            let Some(store) = self.store.upgrade().map(TaskStore) else { return Ok(Verdict::Nothing) };
            let _permit = self.calls.acquire().await;
            store.look(&self.due.key).await?
        };
        loop {
            let first = match verdict {
                Verdict::Lapsed(first) => first,
                verdict => return Ok(verdict),
            };
            let Some(lease) = first.task.lease.clone() else { return Ok(Verdict::Again) };
            let window = window(lease.duration());
            if !self.hide(window).await? {
                return Ok(Verdict::Nothing);
            }
            {
                let Some(store) = self.store.upgrade().map(TaskStore) else { return Ok(Verdict::Nothing) };
                let _permit = self.calls.acquire().await;
                if !store.touch(*first).await? {
                    return Ok(Verdict::Again);
                }
            }
            let at = Instant::now() + window;
            sleep_until(at).await;
            let is_late = at.elapsed() > MOST_LATE;

            let Some(store) = self.store.upgrade().map(TaskStore) else { return Ok(Verdict::Nothing) };
            let _permit = self.calls.acquire().await;
            let failures_before =
                std::mem::replace(&mut failures, self.answers.failures(&self.due.key.owner));
            verdict = store.look(&self.due.key).await?;
            let Verdict::Lapsed(second) = &verdict else { continue };
            let is_the_same = second.task.lease.as_ref().is_some_and(|second| is_the_same(&lease, second));
            if is_late || !is_the_same {
                continue;
            }
            let now = store.clock(&self.due.key).await?;
            if lease.is_live(now) {
                return Ok(Verdict::Next(Next::After(left(&lease, now))));
            }
            // The answers to the second read and to the question for the clock count, too.
            if self.answers.failures(&self.due.key.owner) != failures_before {
                continue;
            }
            return store.take_lease((**second).clone(), Gone::Lost, now).await;
        }
    }

    /// Hides the timer for longer than an observation takes. Returns whether it is still this taker's.
    async fn hide(&mut self, window: Duration) -> Result<bool, TaskError> {
        const SLACK: Duration = Duration::from_secs(1);
        if Instant::now() + window + SLACK <= self.hidden_until {
            return Ok(true);
        }
        if self.is_token_void {
            // It was moved before, and the observation was disturbed: its next taker begins again.
            return Ok(false);
        }
        let Some(store) = self.store.upgrade() else { return Ok(false) };
        let hide_for = window + 2 * SLACK;
        let hidden_until = Instant::now() + hide_for;
        let moved = store.backend.resolve(&self.due, Next::After(hide_for));
        let is_moved =
            self.answers.count(Some(&self.due.key.owner), moved).await.map_err(TaskError::Storage)?;
        (self.is_token_void, self.hidden_until) = (true, hidden_until);
        Ok(is_moved)
    }
}

/// Whether the holder gave no sign between two reads.
fn is_the_same(first: &Lease, second: &Lease) -> bool {
    (&first.holder, first.attempt, first.renewals) == (&second.holder, second.attempt, second.renewals)
}

/// How long a live lease still lasts.
fn left(lease: &Lease, now: DateTime<Utc>) -> Duration {
    (lease.deadline - now).to_std().unwrap_or_default()
}

/// How long its holder has given no sign. After the clock was set back, that is not known.
fn silent_for(lease: &Lease, now: DateTime<Utc>) -> Duration {
    (now + lease.duration() - lease.deadline).to_std().unwrap_or_default()
}

impl<B: Agenda> TaskStore<B> {
    /// Reads the record of a timer that was due, and does what needs no observation.
    async fn look(&self, key: &TaskKey) -> Result<Verdict, TaskError> {
        let (mut was_open, mut version) = (false, Version::ABSENT);
        let read = match self.read(key).await {
            Ok(stored) => {
                (was_open, version) = (!stored.task.status.is_terminal(), stored.version);
                self.settle(stored).await
            }
            Err(error) => Err(error),
        };
        let stored = match read {
            // Its TTL has elapsed, and its end was not stored. The timer of an open task is never removed.
            Ok(Some(stored)) if was_open && stored.task.status.is_terminal() && stored.version == version => {
                return Ok(Verdict::Again);
            }
            Ok(Some(stored)) => stored,
            Ok(None) => return Ok(Verdict::Again),
            Err(TaskError::NotFound { .. }) => return Ok(Verdict::Next(Next::Remove)),
            // It can only be deleted, or be read again by a later version.
            Err(TaskError::Unreadable { .. } | TaskError::Storage(StorageError::Corrupt { .. })) => {
                return Ok(Verdict::Next(Next::After(self.0.config.lease * WAITING)));
            }
            Err(error) => return Err(error),
        };
        let Some(lease) = stored.task.lease.clone().filter(|_| !stored.task.status.is_terminal()) else {
            self.0.noticed.forget(key);
            return Ok(Verdict::Next(Next::Remove));
        };
        if waiting(&stored.task).is_some() {
            return self.offer(stored, &lease).await;
        }
        let now = self.now();
        match self.run(key, &lease) {
            Run::Here => {
                return Ok(Verdict::Next(Next::After(left(&lease, now).max(window(lease.duration())))));
            }
            Run::Gone => return self.take_lease(stored, Gone::Lost, now).await,
            Run::Elsewhere => {}
        }
        if lease.may_have_lapsed(now) {
            return Ok(Verdict::Lapsed(Box::new(stored)));
        }
        Ok(Verdict::Next(Next::After(left(&lease, now))))
    }

    /// Writes a task unchanged, but for the id of the write. Returns whether the engine accepted it: one that takes no
    /// writes lets no worker renew its lease. The write also makes every claim fail that began before it, so that no
    /// timer is moved away from under a claim.
    async fn touch(&self, stored: StoredTask) -> Result<bool, TaskError> {
        Ok(self.write(&stored.key, stored.version, stored.task.into_task(), Change::Unseen).await?.is_some())
    }

    /// Schedules a task that waits for a worker where workers look.
    async fn offer(&self, stored: StoredTask, lease: &Lease) -> Result<Verdict, TaskError> {
        if stored.task.cancel_requested || !may_run(&stored.task, lease) {
            return self.take_lease(stored, Gone::Released, self.now()).await;
        }
        let again = match self.touch(stored.clone()).await {
            Ok(true) => lease.duration() * WAITING,
            Ok(false) => return Ok(Verdict::Again),
            // It is full. A claim may be under way, so it is looked at sooner.
            Err(TaskError::LimitExceeded { .. }) => lease.duration(),
            Err(error) => return Err(error),
        };
        self.schedule_work(&stored).await?;
        Ok(Verdict::Next(Next::After(again)))
    }

    /// Takes the lease of a task from a worker that is gone.
    async fn take_lease(
        &self,
        stored: StoredTask,
        gone: Gone,
        now: DateTime<Utc>,
    ) -> Result<Verdict, TaskError> {
        let StoredTask { key, task, version, .. } = stored;
        let mut task = task.into_task();
        let Some(lease) = task.lease.clone() else { return Ok(Verdict::Again) };
        let then = transitions::lose_worker(&mut task, gone, now)?;
        let Some(written) = self.write(&key, version, task, Change::Made).await? else {
            return Ok(Verdict::Again);
        };
        let (TaskKey { owner, task: id }, operation) = (&key, &written.task.operation);
        if let (Gone::Lost, Some(holder)) = (gone, &lease.holder) {
            let silent = silent_for(&lease, now);
            tracing::info!(owner = %owner.printable(), task = %id.printable(), operation, attempt = lease.attempt, holder, ?silent, "worker lost");
        }
        if let Then::GaveUp { losses } = then {
            tracing::info!(owner = %owner.printable(), task = %id.printable(), operation, losses, "gave up");
        }
        if waiting(&written.task).is_none() {
            return Ok(Verdict::Next(Next::Remove));
        }
        self.schedule_work(&written).await?;
        Ok(Verdict::Next(Next::After(lease.duration() * WAITING)))
    }

    /// Takes the lease of an attempt that nobody in this process holds any more. Its timer stays as it is.
    pub(super) async fn end_dropped(&self, dropped: &Dropped) -> Result<(), TaskError> {
        let Dropped { id: (key, number), gone } = dropped;
        loop {
            let stored = match self.read(key).await {
                Ok(stored) => stored,
                Err(TaskError::NotFound { .. }) => return Ok(()),
                Err(error) => return Err(error),
            };
            let is_its = |lease: &Lease| {
                lease.attempt == *number && self.is_own(lease) && self.run(key, lease) == Run::Gone
            };
            if stored.task.status.is_terminal() || !stored.task.lease.as_ref().is_some_and(is_its) {
                return Ok(());
            }
            match self.take_lease(stored, *gone, self.now()).await {
                Ok(Verdict::Again) => {}
                Ok(_) | Err(TaskError::NotFound { .. }) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}
