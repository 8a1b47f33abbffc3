//! How a change lands: the task is read, settled if its time or its worker has gone, changed, and written only if nobody
//! else has written it meanwhile; otherwise all over again.

use tracing::{Instrument, debug_span};

use super::lease::Attempt;
use super::transitions::{self, Change};
use super::write::jittered;
use super::{TaskError, TaskRef, TaskStore, decode};
use crate::{Agenda, OnWorkerLost, StorageBackend, StoredTask, Task, TaskKey};

impl<B: Agenda> TaskStore<B> {
    pub(super) async fn read(&self, key: &TaskKey) -> Result<StoredTask, TaskError> {
        let record = self.0.backend.get(key).await;
        decode(key, record.map_err(|error| TaskError::from_storage(error, &key.task))?)
    }

    /// Applies `change` to the task and writes it, again and again until nobody else got in between.
    pub(super) async fn change(
        &self,
        operation: &'static str,
        task: TaskRef<'_>,
        change: impl Fn(&mut Task) -> Result<Change, TaskError> + Send,
    ) -> Result<StoredTask, TaskError> {
        self.change_by(None, operation, task, change).await
    }

    /// The same by whoever holds the task's lease.
    pub(super) async fn change_by(
        &self,
        holder: Option<&Attempt<B>>,
        operation: &'static str,
        task: TaskRef<'_>,
        change: impl Fn(&mut Task) -> Result<Change, TaskError> + Send,
    ) -> Result<StoredTask, TaskError> {
        let TaskKey { owner, task: id } = task.key();
        let span = debug_span!("change", operation, %owner, task = %id);
        self.change_in_turn(holder, task, change).instrument(span).await
    }

    async fn change_in_turn(
        &self,
        holder: Option<&Attempt<B>>,
        task: TaskRef<'_>,
        change: impl Fn(&mut Task) -> Result<Change, TaskError> + Send,
    ) -> Result<StoredTask, TaskError> {
        let key = task.key();
        let place = self.0.turns.queue(key);
        let _turn = place.turn().await;
        // A copy that the caller holds is good for a write only. That there is nothing to do, or that it may not
        // be done, is never said without looking at the task as it is.
        if let TaskRef::Stored(held) = task
            && !self.is_overdue(&held.task)
        {
            let mut task = held.task.clone();
            if let Ok(made @ (Change::Made | Change::Unseen)) = change(&mut task) {
                match self.write(key, held.version, task, made).await {
                    Ok(Some(written)) => return Ok(written),
                    Ok(None) | Err(TaskError::LimitExceeded { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        for attempt in 0..self.0.config.max_attempts {
            self.back_off(attempt).await;
            let Some(mut stored) = self.settle(self.read(key).await?, holder).await? else {
                continue;
            };
            let made = change(&mut stored.task)?;
            if made == Change::None {
                return Ok(stored);
            }
            if let Some(written) = self.write(key, stored.version, stored.task, made).await? {
                return Ok(written);
            }
        }
        Err(self.contended(key))
    }

    fn is_overdue(&self, task: &Task) -> bool {
        !task.status.is_terminal() && task.deadline().is_some_and(|deadline| deadline <= self.now())
    }

    /// Fails a task whose TTL has elapsed before it ended, or whose worker is lost for everybody but the `holder` of
    /// its lease; others are left as they are. `None` if somebody else wrote it meanwhile. If the engine does not take
    /// the write, the task is given as it has to be settled all the same, and the next reader tries again.
    pub(super) async fn settle(
        &self,
        mut stored: StoredTask,
        holder: Option<&Attempt<B>>,
    ) -> Result<Option<StoredTask>, TaskError> {
        if self.is_overdue(&stored.task) {
            transitions::expire(&mut stored.task)?;
        } else if holder.is_none()
            && stored.task.on_worker_lost == OnWorkerLost::Fail
            && self.has_lost_its_worker(&stored)
        {
            transitions::lose_worker(&mut stored.task)?;
        } else {
            return Ok(Some(stored));
        }
        let write = self.write(&stored.key, stored.version, stored.task.clone(), Change::Made);
        match Box::pin(write).await {
            Err(error) if !matches!(error, TaskError::NotFound { .. }) => {
                tracing::warn!(%error, "a task whose time or worker has gone was not settled");
                Ok(Some(stored))
            }
            other => other,
        }
    }

    pub(super) fn contended(&self, key: &TaskKey) -> TaskError {
        TaskError::Contended { task: key.task.clone(), attempts: self.0.config.max_attempts }
    }

    /// Waits before an attempt that follows a conflict: a random time, on average longer with each one.
    pub(super) async fn back_off(&self, attempt: u32) {
        if attempt > 0 {
            tokio::time::sleep(jittered(1 << attempt.min(6))).await;
        }
    }
}
