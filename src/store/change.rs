//! How a change lands: the task is read, ended if its TTL has elapsed, changed, and written only if nobody else has
//! written it meanwhile; otherwise all over again.

use std::pin::pin;

use tracing::{Instrument, debug_span};

use super::deadline::{Deadline, Subject};
use super::transitions::{self, Change};
use super::turns::Lane;
use super::write::{Caller, jittered};
use super::{TaskError, TaskRef, TaskStore, check_key, decode};
use crate::backend::{Agenda, StorageBackend, StorageError, TaskKey};
use crate::printable::Chain;
use crate::task::{StoredTask, Task};

/// What a change is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// How far the work has come: other changes pass it.
    Progress,
    /// Requests to the client, and its answers.
    Input,
    /// Leases, cancels and the end of a task.
    Lifecycle,
}

impl Kind {
    pub(super) fn lane(self) -> Lane {
        match self {
            Self::Progress => Lane::Progress,
            Self::Input | Self::Lifecycle => Lane::First,
        }
    }
}

/// Who changes a task.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    /// Somebody who looks after lost workers on the way.
    Anybody,
    /// The worker of the task.
    Holder,
}

impl<B: Agenda> TaskStore<B> {
    pub(super) async fn read(&self, key: &TaskKey) -> Result<StoredTask, TaskError> {
        check_key(key)?;
        self.keep();
        let origin = self.origin();
        let record = self.0.answers.count(Some(&key.owner), self.0.backend.get(key)).await;
        if matches!(record, Err(StorageError::NotFound { .. })) {
            self.0.noticed.forget(key);
        }
        decode(key, record.map_err(|error| TaskError::from_storage(error, &key.task))?, origin)
    }

    /// Applies `change` to the task and writes it, again and again until nobody else got in between.
    pub(super) async fn change(
        &self,
        kind: Kind,
        operation: &'static str,
        task: TaskRef<'_>,
        change: impl Fn(&mut Task) -> Result<Change, TaskError> + Send,
    ) -> Result<StoredTask, TaskError> {
        self.change_before(&self.deadline(), kind, operation, task, change).await
    }

    /// The same in a call that has begun before.
    pub(super) async fn change_before(
        &self,
        deadline: &Deadline,
        kind: Kind,
        operation: &'static str,
        task: TaskRef<'_>,
        change: impl Fn(&mut Task) -> Result<Change, TaskError> + Send,
    ) -> Result<StoredTask, TaskError> {
        self.change_by(Who::Anybody, deadline, kind, operation, task, change).await
    }

    /// The same by the holder of the task's lease.
    pub(super) async fn change_by_holder(
        &self,
        deadline: &Deadline,
        kind: Kind,
        operation: &'static str,
        task: TaskRef<'_>,
        change: impl Fn(&mut Task) -> Result<Change, TaskError> + Send,
    ) -> Result<StoredTask, TaskError> {
        self.change_by(Who::Holder, deadline, kind, operation, task, change).await
    }

    async fn change_by(
        &self,
        who: Who,
        deadline: &Deadline,
        kind: Kind,
        operation: &'static str,
        task: TaskRef<'_>,
        change: impl Fn(&mut Task) -> Result<Change, TaskError> + Send,
    ) -> Result<StoredTask, TaskError> {
        let key = task.key();
        let span =
            debug_span!("change", operation, owner = %key.owner.printable(), task = %key.task.printable());
        let change = pin!(self.change_in_turn(who, deadline, kind, task, change));
        deadline.limit(operation, Subject::Task(key), change).instrument(span).await
    }

    async fn change_in_turn(
        &self,
        who: Who,
        deadline: &Deadline,
        kind: Kind,
        task: TaskRef<'_>,
        change: impl Fn(&mut Task) -> Result<Change, TaskError> + Send,
    ) -> Result<StoredTask, TaskError> {
        let key = task.key();
        check_key(key)?;
        let place = self.0.turns.queue(key, kind.lane());
        let mut caller = Caller::new(kind, deadline, Some(place.turn().await));
        // A copy that the caller holds is good for a write only. That there is nothing to do, or that it may not
        // be done, is never said without looking at the task as it is.
        if let TaskRef::Stored(held) = task
            && held.is_fresh(self.origin())
            && !self.is_overdue(&held.task)
        {
            caller.was_ended = held.task.status.is_terminal();
            let mut task = Task::clone(&held.task);
            if let Ok(made @ (Change::Made | Change::Unseen)) = change(&mut task) {
                match self.write_by(&mut caller, key, held.version, task, made).await {
                    Ok(Some(written)) => return Ok(written),
                    Ok(None) | Err(TaskError::LimitExceeded { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        for attempt in 0..self.0.config.max_conflicts {
            self.back_off(attempt).await;
            let Some(mut stored) = self.settle(self.read(key).await?).await? else {
                continue;
            };
            if who == Who::Anybody {
                self.notice(&stored).await;
            }
            caller.was_ended = stored.task.status.is_terminal();
            let made = change(stored.task_mut())?;
            if made == Change::None {
                return Ok(stored);
            }
            let task = stored.task.into_task();
            if let Some(written) = self.write_by(&mut caller, key, stored.version, task, made).await? {
                return Ok(written);
            }
        }
        Err(self.contended(key))
    }

    fn is_overdue(&self, task: &Task) -> bool {
        !task.status.is_terminal() && task.deadline().is_some_and(|deadline| deadline <= self.now())
    }

    /// Ends a task whose TTL has elapsed before it ended; others are left as they are. The estimate of the clock may
    /// lead, so the engine is asked for its clock first. `None` if somebody else wrote the task meanwhile. If the engine
    /// does not take the write, the task is given as it must end all the same, and the next reader tries again.
    pub(super) async fn settle(&self, stored: StoredTask) -> Result<Option<StoredTask>, TaskError> {
        if !self.is_overdue(&stored.task) {
            return Ok(Some(stored));
        }
        let now = match self.clock(&stored.key).await {
            Ok(now) => now,
            Err(error) => {
                tracing::debug!(error = %Chain(&error), "a task whose TTL seems to have elapsed stays as it is: the clock cannot be asked");
                return Ok(Some(stored));
            }
        };
        if stored.task.deadline().is_none_or(|deadline| now < deadline) {
            return Ok(Some(stored));
        }
        let mut task = Task::clone(&stored.task);
        transitions::expire(&mut task)?;
        let write = self.write(&stored.key, stored.version, task.clone(), Change::Made);
        match Box::pin(write).await {
            Err(error) if !matches!(error, TaskError::NotFound { .. }) => {
                const WHAT: &str = "the end of a task whose TTL has elapsed was not stored";
                match &error {
                    TaskError::Storage(_) | TaskError::Contended { .. } => {
                        tracing::debug!(error = %Chain(&error), "{WHAT}")
                    }
                    // No outage explains that.
                    _ => tracing::warn!(error = %Chain(&error), "{WHAT}"),
                }
                Ok(Some(stored.showing(task)))
            }
            other => other,
        }
    }

    pub(super) fn contended(&self, key: &TaskKey) -> TaskError {
        TaskError::Contended { task: key.task.clone(), conflicts: self.0.config.max_conflicts }
    }

    /// Waits before an attempt that follows a conflict: a random time, on average longer with each one.
    pub(super) async fn back_off(&self, attempt: u32) {
        if attempt > 0 {
            tokio::time::sleep(jittered(1 << attempt.min(6))).await;
        }
    }
}
