//! Gives a task back to its queue after an error that a further attempt may avoid.

use std::pin::pin;

use super::attempt::Attempt;
use super::dead::log_gave_up;
use super::deadline::{CallTarget, Deadline};
use super::error::TaskError;
use super::machine::exit::{self, ExitTerms};
use super::machine::{Change, waiting_lease};
use super::records::ChangeCall;
use super::task_ref::TaskRef;
use super::write::ChangeKind;
use crate::backend::{Agenda, TaskKey};
use crate::task::{RpcError, StoredTask, Task};

impl<B: Agenda> Attempt<B> {
    /// Gives the task back to its queue after an error that a further attempt may avoid. The attempt counts like a lost
    /// worker. The next attempt begins after the delay of the task's [`Retry`](crate::Retry). Without one, the second attempt begins at once,
    /// and the third after 10 s. Until then, the status message names the attempt, the error and the delay.
    ///
    /// If this was the last attempt, the task fails with the error, and its status message says that it gave up. A task that
    /// cannot resume fails with the error. A task whose cancel was requested becomes `cancelled`.
    ///
    /// # Errors
    /// The errors of [`release`](Self::release). [`LimitExceeded`](TaskError::LimitExceeded) if the task fails, and the record has
    /// no room for the error.
    pub async fn retry(&self, error: RpcError) -> Result<StoredTask, TaskError> {
        self.retry_after(&error, false).await
    }

    /// Retries the task as [`retry`](Self::retry) does. `may_be_applied`: an earlier call of this attempt may have been applied,
    /// although it failed. If it was, the call schedules the next attempt.
    pub(crate) async fn retry_after(
        &self,
        error: &RpcError,
        may_be_applied: bool,
    ) -> Result<StoredTask, TaskError> {
        let records = self.store.records();
        let deadline = records.deadline();
        let current = {
            let read = pin!(records.read_current(self.key()));
            deadline.limit("retry", CallTarget::Task(self.key()), read).await?
        };
        if may_be_applied && self.has_left(&current.task) {
            self.set_over();
            self.offer(&deadline, &current).await;
            return Ok(current);
        }
        if exit::is_last_attempt(&current.task) && self.holds(&current.task) {
            let schedule = pin!(records.scheduler.schedule_dead(&current));
            deadline.limit("retry", CallTarget::Task(self.key()), schedule).await?;
        }
        // The random part of the delay is chosen once, also if the write is repeated after a conflict.
        let terms = records.exit_terms(records.engine.now());
        // The whole message must leave the reserve of the record free.
        let (whole, brief) = ((ChangeKind::Input, Some(&*error.message)), (ChangeKind::Lifecycle, None));
        let retried = match self.leave_after(&deadline, error, whole, &terms).await {
            Err(TaskError::LimitExceeded { .. }) => self.leave_after(&deadline, error, brief, &terms).await,
            retried => retried,
        }?;
        self.set_over();
        log_retry(&retried, self.number());
        self.offer(&deadline, &retried).await;
        Ok(retried)
    }

    /// Returns whether the task waits for the attempt after this one.
    fn has_left(&self, task: &Task) -> bool {
        waiting_lease(task).is_some_and(|lease| lease.attempt == self.number())
    }

    /// Leaves the task after an error. `(kind, reason)`: the kind of the change, and the text of the error in the status message.
    async fn leave_after(
        &self,
        deadline: &Deadline,
        error: &RpcError,
        (kind, reason): (ChangeKind, Option<&str>),
        terms: &ExitTerms,
    ) -> Result<StoredTask, TaskError> {
        let leave = |task: &mut Task| exit::retry(task, error, reason, terms).map(|_| Change::Visible);
        let call = ChangeCall::by_holder(kind, "retry", TaskRef::Key(self.key()));
        self.change_before(deadline, call, leave).await
    }
}

/// Logs a retry, or that it was the last one.
fn log_retry(left: &StoredTask, attempt: u32) {
    let (TaskKey { owner, task: id }, operation) = (&left.key, &left.task.operation);
    if left.task.status.is_terminal() {
        log_gave_up(left);
    } else {
        tracing::info!(owner = %owner.printable(), task = %id.printable(), operation, attempt, "attempt failed");
    }
}
