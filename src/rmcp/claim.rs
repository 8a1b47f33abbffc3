//! Claims one waiting task, and starts its operation.

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;
use tokio::time::{sleep, timeout};
use tracing::Span;

use super::claimer::{FLEET_POLL, RETRY_DELAY, call_limit};
use super::error_class::ErrorClass;
use super::fleet_limits::FleetFull;
use super::identity::Identity;
use super::places::{Full, Place};
use super::runtime::{Runtime, SHUTDOWN_CALL_LIMIT};
use super::slots::Slot;
use super::wire;
use crate::backend::{Agenda, Due, Next, Queue, StorageError, TaskKey};
use crate::printable::Chain;
use crate::spans;
use crate::store::{Attempt, TaskError, TaskStore};
use crate::task::{PayloadKind, StoredTask};
use crate::telemetry::{EngineCall, timed};

/// How much later a task is claimed whose owner has as many attempts as one owner may have.
const OWNER_FULL_DELAY: Duration = Duration::from_secs(1);

/// A task that waits for a worker.
pub(super) struct Waiting {
    pub(super) queue: Queue,
    pub(super) key: TaskKey,
    /// The timer, if the claimer has taken it.
    pub(super) due: Option<Due>,
}

/// Claims one task, then moves or removes its timer.
pub(super) async fn claim_and_resolve<B: Agenda>(
    runtime: Weak<Runtime<B>>,
    waiting: Waiting,
    slot: Slot,
    place: Result<Option<Place>, Full>,
    limit: Duration,
) {
    let Some(runtime) = runtime.upgrade() else { return };
    let next = match claim(&runtime, &waiting, slot, place).await {
        Ok(next) => next,
        // A worker that has the encryption key may be among those that take the timer meanwhile.
        Err(TaskError::Storage(StorageError::MissingKey { .. })) => {
            Next::After(runtime.store.lease_duration())
        }
        // An instance with a newer version of this crate may be able to read the record. It finds the task by the
        // timer of the lease.
        Err(error) if wire::is_unreadable(&error) => Next::Remove,
        // A worker with a later version may be among those that take the timer meanwhile.
        Err(TaskError::LaterVersion { .. }) => Next::After(runtime.store.lease_duration()),
        Err(error) => {
            tracing::debug!(
                error = %Chain(&error),
                task = %waiting.key.task.printable(),
                "a task that waits for a worker could not be claimed yet"
            );
            runtime.claiming.was_refused.store(true, Ordering::Release);
            Next::After(RETRY_DELAY)
        }
    };
    let Some(due) = &waiting.due else {
        if next != Next::Remove {
            runtime.claiming.add_refused_turn(waiting.key);
        }
        return;
    };
    let resolve = timed(EngineCall::Resolve, runtime.store.backend().resolve(due, next));
    match timeout(limit, resolve).await {
        Ok(Ok(_)) => {}
        // The timer fires again when it is no longer hidden. Its taker then finds nothing to claim.
        Ok(Err(error)) => {
            tracing::debug!(error = %Chain(&error), "the timer of a claimed task could not be resolved")
        }
        Err(_) => tracing::debug!("the timer of a claimed task could not be resolved within {limit:?}"),
    }
}

/// Claims a task and starts its operation. Returns what to do with the timer.
async fn claim<B: Agenda>(
    runtime: &Runtime<B>,
    waiting: &Waiting,
    slot: Slot,
    place: Result<Option<Place>, Full>,
) -> Result<Next, TaskError> {
    let guard = runtime.runs.add();
    let shutdown = runtime.shutdown.signal();
    let place = match place {
        Ok(place) if !runtime.claiming.closed.has_begun() => place,
        _ => return return_to_queue(runtime, waiting).await,
    };
    let limits = tokio::select! {
        taken = runtime.limits.take(runtime, waiting.queue.operation(), &waiting.key.owner) => taken?,
        () = shutdown.limit_elapsed(SHUTDOWN_CALL_LIMIT) => return Ok(Next::After(Duration::ZERO)),
    };
    let fleet = match limits {
        Ok(slots) => slots,
        Err(FleetFull::Operation) => return Ok(Next::After(FLEET_POLL)),
        Err(FleetFull::Owner) => {
            runtime.claiming.was_refused.store(true, Ordering::Release);
            runtime.claiming.full_owners.note_refused(&waiting.key.owner);
            return Ok(Next::After(OWNER_FULL_DELAY));
        }
    };
    // If the claim is dropped halfway, the store releases the task, as after a dropped attempt.
    let mut span = AttemptSpan::default();
    let mut open_span = |waiting: &StoredTask, attempt: u32| span.open(waiting, attempt);
    let claimed = tokio::select! {
        claimed = runtime.store.claim_in(&waiting.key, &mut open_span) => claimed?,
        () = shutdown.limit_elapsed(SHUTDOWN_CALL_LIMIT) => return Ok(Next::After(Duration::ZERO)),
    };
    let Some((stored, attempt)) = claimed else { return Ok(Next::Remove) };
    let span = span.begin();
    let name = stored.task.operation.as_deref();
    let Some(operation) = name.and_then(|name| runtime.operation(name)) else {
        release_unregistered(&attempt).await?;
        return Ok(Next::Remove);
    };
    let _in_span = span.enter();
    match attempt.number() {
        1 => tracing::info!("started"),
        _ => tracing::info!("resumed"),
    }
    let (store, task, limit) = (runtime.store.clone(), stored.clone(), call_limit(runtime));
    runtime.run(guard, attempt, stored, Some(slot), |context| {
        Box::pin(async move {
            let (_place, _fleet) = (place, fleet);
            let arguments = load_arguments(&store, &task, limit).await.map_err(wire::exit)?;
            operation(context.with_place(), arguments).await
        })
    });
    Ok(Next::Remove)
}

/// The span of an attempt that a claim may begin.
struct AttemptSpan {
    span: Span,
    has_begun: bool,
}

impl Default for AttemptSpan {
    fn default() -> Self {
        Self { span: Span::none(), has_begun: false }
    }
}

impl AttemptSpan {
    /// Opens the span for the next try of the claim. Returns its `traceparent`.
    fn open(&mut self, waiting: &StoredTask, attempt: u32) -> Option<String> {
        spans::unused_attempt(&self.span);
        // A claimed task has no call whose span could be its parent.
        self.span = Identity::of(waiting, attempt).span(None);
        spans::traceparent(&self.span)
    }

    fn begin(mut self) -> Span {
        self.has_begun = true;
        self.span.clone()
    }
}

impl Drop for AttemptSpan {
    fn drop(&mut self) {
        if !self.has_begun {
            spans::unused_attempt(&self.span);
        }
    }
}

/// Returns a timer to its queue that this claimer took just before its process closed, or just before a call took the last place.
async fn return_to_queue<B: Agenda>(runtime: &Runtime<B>, waiting: &Waiting) -> Result<Next, TaskError> {
    let Some(due) = &waiting.due else { return Ok(Next::After(Duration::ZERO)) };
    // A `schedule` wakes other instances. A `resolve` does not.
    let schedule = runtime.store.backend().schedule(&due.queue, &due.key, Duration::ZERO);
    if let Ok(scheduled) = timeout(SHUTDOWN_CALL_LIMIT, timed(EngineCall::Schedule, schedule)).await {
        scheduled.map_err(TaskError::Storage)?;
    }
    Ok(Next::After(Duration::ZERO))
}

/// Releases a task whose operation is not registered here, so that another instance claims it. An operation stays
/// registered and a task keeps its operation, so this happens only if another program has rewritten the record.
async fn release_unregistered<B: Agenda>(attempt: &Attempt<B>) -> Result<(), TaskError> {
    tracing::warn!(
        task = %attempt.key().task.printable(),
        "the operation of a claimed task is not registered here; the task is released"
    );
    if let Ok(released) = timeout(SHUTDOWN_CALL_LIMIT, attempt.release()).await {
        released?;
    }
    Ok(())
}

/// Loads the arguments of a claimed task, and tries again while the engine fails. Meanwhile the run of the task
/// renews the lease. The end of the run stops the load.
///
/// # Errors
/// `Unreadable` and `Corrupt` if the arguments cannot be read, `NotFound` if the record no longer exists.
async fn load_arguments<B: Agenda>(
    store: &TaskStore<B>,
    task: &StoredTask,
    limit: Duration,
) -> Result<Value, TaskError> {
    loop {
        match timeout(limit, store.payload(task, PayloadKind::Input)).await {
            Ok(Ok(arguments)) => return Ok(arguments.unwrap_or_default()),
            Ok(Err(error)) if ErrorClass::of(&error) != ErrorClass::Transient => return Err(error),
            Ok(Err(error)) => {
                tracing::debug!(error = %Chain(&error), "the arguments of a task could not be loaded yet")
            }
            Err(_) => tracing::debug!("the arguments of a task could not be loaded within {limit:?} yet"),
        }
        sleep(RETRY_DELAY).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::config::ManagerConfig;
    use super::*;
    use crate::backend::{OwnerId, Priority};
    use crate::memory::MemoryBackend;
    use crate::store::{NewTask, SlotLimit};

    const MINUTE: Duration = Duration::from_secs(60);

    async fn take_due(runtime: &Runtime<MemoryBackend>) -> Option<Due> {
        let queue = Queue::work("render", Priority::Normal).unwrap();
        runtime.store.backend().take_due(&[queue], 1, MINUTE).await.unwrap().due.pop()
    }

    /// Enqueues a task of this owner, and takes its timer.
    async fn waiting(runtime: &Runtime<MemoryBackend>, owner: &OwnerId) -> Waiting {
        runtime.store.enqueue(owner, NewTask::new("tools/call").operation("render")).await.unwrap();
        let due = take_due(runtime).await.unwrap();
        Waiting { queue: due.queue.clone(), key: due.key.clone(), due: Some(due) }
    }

    fn runtime(config: ManagerConfig<MemoryBackend>) -> (Arc<Runtime<MemoryBackend>>, OwnerId) {
        let runtime = Runtime::new(TaskStore::new(MemoryBackend::new()), config);
        (Arc::new(runtime), OwnerId::try_from("alice").unwrap())
    }

    async fn claim_one(runtime: &Runtime<MemoryBackend>, waiting: &Waiting) -> Next {
        let slot = runtime.slots.acquire(1).await.pop().unwrap();
        claim(runtime, waiting, slot, Ok(None)).await.unwrap()
    }

    #[tokio::test]
    async fn a_timer_that_was_taken_as_the_process_closed_is_due_again_before_it_is_resolved() {
        let (runtime, alice) = runtime(ManagerConfig::default());
        let waiting = waiting(&runtime, &alice).await;
        runtime.claiming.closed.begin();
        assert_eq!(claim_one(&runtime, &waiting).await, Next::After(Duration::ZERO));
        assert_eq!(take_due(&runtime).await.unwrap().key, waiting.key);
    }

    #[tokio::test]
    async fn a_task_whose_owner_has_enough_attempts_is_claimed_a_second_later() {
        let (runtime, alice) = runtime(ManagerConfig::new().limit_per_owner(1));
        let _slot = runtime.store.take_slot(&SlotLimit::of_owner(&alice, 1).unwrap()).await.unwrap().unwrap();
        let waiting = waiting(&runtime, &alice).await;
        assert_eq!(claim_one(&runtime, &waiting).await, Next::After(Duration::from_secs(1)));
    }
}
