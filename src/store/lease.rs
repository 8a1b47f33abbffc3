//! Begins attempts: with a new task, or with a claim of a task that waits for a worker.

use tokio::time::Instant;

use super::attempt::Attempt;
use super::deadline::Deadline;
use super::durations::pause_after_conflicts;
use super::error::TaskError;
use super::hold::{Hold, Span, hold_task};
use super::keeper::KeptRecords;
use super::machine::exit::{WorkerExit, announce_attempt, delay_left, may_run, take_lease};
use super::machine::{self, Change, waiting_lease};
use super::new_task::NewTask;
use super::records::Records;
use super::write::{ChangeKind, Writer};
use crate::backend::{Agenda, TaskKey};
use crate::task::{EventKind, Lease, StoredTask};

/// Creates a task, and begins its first attempt.
pub(super) async fn start<B: Agenda>(
    kept: &KeptRecords<B>,
    deadline: &Deadline,
    key: &TaskKey,
    new: NewTask,
) -> Result<(StoredTask, Attempt<B>), TaskError> {
    let (stored, attempt) = create(kept, deadline, key, new).await?;
    attempt.set_begun();
    Ok((stored, attempt))
}

/// Creates a task under a lease of this store. The caller begins the attempt.
pub(super) async fn create<B: Agenda>(
    kept: &KeptRecords<B>,
    deadline: &Deadline,
    key: &TaskKey,
    new: NewTask,
) -> Result<(StoredTask, Attempt<B>), TaskError> {
    let records = kept.records();
    let started = Instant::now();
    // Register the attempt before the engine stores its lease. A keeper ends every lease that belongs to a store of
    // its process and has no registered attempt.
    let attempt = Attempt::new(kept, key, 1);
    let stored = match records.create(deadline, key, new, Some(records.new_lease(1, 0))).await {
        Ok(stored) => stored,
        Err(error) => {
            attempt.set_over_unless_outcome_unknown(&error);
            return Err(error);
        }
    };
    records.scheduler.reschedule_slow_lease(deadline, key, started).await?;
    Ok((stored, attempt))
}

/// Begins an attempt whose lease is written. `started`: when the call began that wrote the lease.
pub(super) async fn begin<B: Agenda>(
    kept: &KeptRecords<B>,
    deadline: &Deadline,
    attempt: &Attempt<B>,
    started: Instant,
) -> Result<(), TaskError> {
    kept.records().scheduler.reschedule_slow_lease(deadline, attempt.key(), started).await?;
    attempt.set_begun();
    Ok(())
}

/// Opens the span of an attempt at this task, which still waits, and returns its `traceparent`. The number is that of the attempt.
pub(crate) type OpenSpan<'a> = &'a mut (dyn FnMut(&StoredTask, u32) -> Option<String> + Send);

/// Claims a task that waits for a worker. Returns `None` if there is nothing to claim.
pub(super) async fn claim<B: Agenda>(
    kept: &KeptRecords<B>,
    deadline: &Deadline,
    key: &TaskKey,
    open_span: OpenSpan<'_>,
) -> Result<Option<(StoredTask, Attempt<B>)>, TaskError> {
    let records = kept.records();
    let queued = records.writers().join(key, ChangeKind::Lifecycle.priority());
    let mut writer = Writer::new(ChangeKind::Lifecycle, deadline, queued.permit().await);
    for conflicts in 0..records.config.max_conflicts {
        pause_after_conflicts(conflicts).await;
        match try_claim(kept, deadline, &mut writer, key, open_span).await {
            Ok(Claim::Claimed(stored, attempt)) => return Ok(Some((*stored, attempt))),
            Ok(Claim::Nothing) | Err(TaskError::NotFound { .. }) => return Ok(None),
            Ok(Claim::Conflict) => {}
            Err(error) => return Err(error),
        }
    }
    Err(records.contended(key))
}

enum Claim<B> {
    Claimed(Box<StoredTask>, Attempt<B>),
    /// No attempt at the task may begin.
    Nothing,
    /// Another writer has written the task after the read.
    Conflict,
}

async fn try_claim<B: Agenda>(
    kept: &KeptRecords<B>,
    deadline: &Deadline,
    writer: &mut Writer<'_>,
    key: &TaskKey,
    open_span: OpenSpan<'_>,
) -> Result<Claim<B>, TaskError> {
    let records = kept.records();
    let read = records.read(key).await?;
    let Some(mut stored) = records.expire_if_overdue(read).await? else { return Ok(Claim::Conflict) };
    let Some(waiting) = waiting_lease(&stored.task) else { return Ok(Claim::Nothing) };
    if let Some(found) = stored.task.forbids_leases() {
        records.notices.report_later(&stored, &found);
        return Err(TaskError::LaterVersion { task: key.task.clone(), found });
    }
    if stored.task.cancel_requested || !may_run(&stored.task, waiting) {
        let terms = records.exit_terms(records.engine.now());
        take_lease(stored.task_mut(), WorkerExit::Released, &terms)?;
        let ended = records.write(writer, stored, Change::Visible).await?;
        return Ok(if ended.is_some() { Claim::Nothing } else { Claim::Conflict });
    }
    if !has_come(records, &stored.key, waiting).await? {
        // This voids the token of the caller that has taken the timer, so the caller cannot remove the timer.
        records.scheduler.schedule_work(&stored).await?;
        return Ok(Claim::Nothing);
    }
    if !is_held(records, &stored).await? {
        machine::replace(stored.task_mut())?;
        let ended = records.write(writer, stored, Change::Visible).await?;
        return Ok(if ended.is_some() { Claim::Nothing } else { Claim::Conflict });
    }
    // Schedule the timer between the read and the write. This voids the token of an earlier taker, so a taker that
    // does not know of this claim cannot move the timer.
    let started = Instant::now();
    records.scheduler.schedule_new_lease(key).await?;
    let mut lease = records.new_lease(waiting.attempt.saturating_add(1), waiting.losses);
    let is_first = lease.attempt == 1;
    let attempt = Attempt::new(kept, key, lease.attempt);
    // Before the write: a worker that is lost soon after it leaves its span in the record.
    lease.traceparent = open_span(&stored, lease.attempt);
    announce_attempt(stored.task_mut());
    let task = stored.task_mut();
    task.lease = Some(lease);
    task.note(if is_first { EventKind::Started } else { EventKind::Resumed });
    match records.write(writer, stored, Change::Visible).await {
        Ok(Some(claimed)) => {
            begin(kept, deadline, &attempt, started).await?;
            if let Some(operation) = &claimed.task.operation {
                records.notices.note_known(operation);
            }
            Ok(Claim::Claimed(Box::new(claimed), attempt))
        }
        Ok(None) => {
            attempt.set_over();
            Ok(Claim::Conflict)
        }
        Err(error) => {
            attempt.set_over_unless_outcome_unknown(&error);
            Err(error)
        }
    }
}

/// Returns whether the earliest start of a waiting task has come. The estimate of the engine's clock may lag, so only the
/// engine's clock itself can refuse a claim.
async fn has_come<B: Agenda>(
    records: &Records<B>,
    key: &TaskKey,
    waiting: &Lease,
) -> Result<bool, TaskError> {
    if delay_left(waiting, records.engine.now()).is_zero() {
        return Ok(true);
    }
    Ok(delay_left(waiting, records.engine.clock(key).await?).is_zero())
}

/// Returns whether a task is not unique, or is the open task of its key. Only such a task may run again: its start may have ended
/// between the create and the confirmation, and another task may have the key by now.
async fn is_held<B: Agenda>(records: &Records<B>, stored: &StoredTask) -> Result<bool, TaskError> {
    let span = Span::of(stored, records.engine.now(), records.config.call_timeout);
    match hold_task(records, stored, span).await? {
        Hold::Held => Ok(true),
        Hold::Lost => Ok(false),
        Hold::Shared => Err(records.contended(&stored.key)),
    }
}
