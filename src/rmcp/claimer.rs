//! The background task of a manager, which claims tasks that wait for a worker of a registered operation.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tracing::{Instrument, debug_span};

use super::count::CountGuard;
use super::error_class::ErrorClass;
use super::fleet_limits::FleetFull;
use super::identity::Identity;
use super::owner_turns::OwnerTurns;
use super::places::{Full, Place};
use super::runtime::{Runtime, SHUTDOWN_CALL_LIMIT};
use super::shutdown::ShutdownSignal;
use super::slots::{Slot, Slots};
use super::wire;
use crate::backend::{Agenda, Due, Next, Priority, Queue, TaskKey};
use crate::printable::Chain;
use crate::store::{Attempt, BackOff, TaskError, TaskStore};
use crate::task::{PayloadKind, StoredTask};

/// How many timers the claimer takes at once.
const MAX_BATCH: usize = 16;
/// The pause before the claimer repeats a failed claim.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// How often the claimer looks for a free slot of a fleet-wide limit.
const FLEET_POLL: Duration = Duration::from_millis(250);
/// How much later a task is claimed whose owner has as many attempts as one owner may have.
const OWNER_FULL_DELAY: Duration = Duration::from_secs(1);
/// The pause after a take that met such a task, so that the claimer does not move a long queue at full speed.
const OWNER_FULL_PAUSE: Duration = Duration::from_millis(100);
/// The longest sleep between two takes, in case a wakeup is lost.
const MAX_SLEEP: Duration = Duration::from_secs(60);

/// Marks the claimer as running until the claimer's future has ended or was dropped with its runtime.
struct RunningMark(Arc<AtomicBool>);

impl Drop for RunningMark {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Starts the claimer unless it runs, there is no Tokio runtime yet, or a shutdown has begun.
pub(super) fn ensure_running<B: Agenda>(runtime: &Arc<Runtime<B>>) {
    let is_running = &runtime.claiming.is_running;
    if is_running.load(Ordering::Acquire) || runtime.claiming.closed.has_begun() {
        return;
    }
    let Ok(tokio) = Handle::try_current() else { return };
    if is_running.swap(true, Ordering::AcqRel) {
        return;
    }
    let mark = RunningMark(Arc::clone(is_running));
    let claimer = Claimer {
        runtime: Arc::downgrade(runtime),
        call_limit: call_limit(runtime),
        registered: Arc::clone(&runtime.claiming.registered),
        place_freed: Arc::clone(&runtime.claiming.place_freed),
        closed: runtime.claiming.closed.signal(),
        slots: runtime.slots.clone(),
        turns: Turns::default(),
        owners: OwnerTurns::default(),
    };
    let run = async move {
        let _mark = mark;
        claimer.run().await;
    };
    tokio.spawn(run.instrument(debug_span!("work")));
}

/// Returns the time limit of one call of the engine.
fn call_limit<B: Agenda>(runtime: &Runtime<B>) -> Duration {
    runtime.store.call_timeout().max(RETRY_DELAY)
}

struct Claimer<B> {
    /// The claimer never holds a strong reference across a sleep: it must end with the last clone of the manager.
    runtime: Weak<Runtime<B>>,
    call_limit: Duration,
    registered: Arc<Notify>,
    place_freed: Arc<Notify>,
    closed: ShutdownSignal,
    slots: Slots,
    turns: Turns,
    owners: OwnerTurns,
}

/// Which operation comes first when the claimer takes timers. It changes with each take, so no operation has to wait while another
/// one always has due timers.
#[derive(Debug, Default)]
struct Turns(usize);

impl Turns {
    /// Returns the queues of these operations: those of a higher priority first.
    fn next(&mut self, mut names: Vec<String>) -> Vec<Queue> {
        names.sort_unstable();
        self.0 = self.0.wrapping_add(1);
        if !names.is_empty() {
            let first = self.0 % names.len();
            names.rotate_left(first);
        }
        queues_of(&names)
    }
}

impl<B: Agenda> Claimer<B> {
    async fn run(mut self) {
        while let Some(queues) = self.queues() {
            let goes_on = if queues.is_empty() {
                tokio::select! {
                    () = self.registered.notified() => true,
                    _ = self.closed.begun() => false,
                }
            } else {
                self.claim_from(&queues).await
            };
            if !goes_on {
                return;
            }
        }
    }

    /// Returns the queues of the registered operations; `None` once the manager was dropped.
    fn queues(&self) -> Option<Vec<Queue>> {
        Some(queues_of(&self.runtime.upgrade()?.registered()))
    }

    /// Claims tasks from these queues. Returns `true` when there may be more queues, and `false` when this process claims no more
    /// tasks.
    async fn claim_from(&mut self, queues: &[Queue]) -> bool {
        let Some(runtime) = self.runtime.upgrade() else { return true };
        let mut wakeups = runtime.store.backend().wakeups(queues).fuse();
        drop(runtime);
        let mut back_off = BackOff::new();
        loop {
            let slots = tokio::select! {
                // Checked first: this instance must not claim the tasks that it releases to other instances.
                biased;
                _ = self.closed.begun() => return false,
                () = self.registered.notified() => return true,
                slots = self.slots.acquire(MAX_BATCH) => slots,
            };
            // This call must never be dropped halfway: the timers that it has taken would stay hidden from other
            // instances.
            let pause = match self.claim_due(slots).await {
                Ok(pause) => {
                    back_off = BackOff::new();
                    pause
                }
                Err(error) => {
                    tracing::debug!(error, "the timers of tasks that wait for a worker could not be taken");
                    back_off.next_pause()
                }
            };
            tokio::select! {
                biased;
                _ = self.closed.begun() => return false,
                () = sleep(pause) => {}
                // Once the stream has ended, only the sleep wakes the claimer.
                Some(()) = wakeups.next() => {}
                () = self.place_freed.notified() => {}
                () = self.registered.notified() => return true,
            }
        }
    }

    /// Claims one waiting task for each slot. Returns when the next timer is due. The tasks of an operation without a free place
    /// stay in their queue, where other instances find them.
    async fn claim_due(&mut self, mut slots: Vec<Slot>) -> Result<Duration, String> {
        let Some(runtime) = self.runtime.upgrade() else { return Ok(MAX_SLEEP) };
        let claiming = &runtime.claiming;
        // A shutdown waits for the claims: the timers that it has taken would stay hidden from other instances.
        let claims = claiming.claims.add();
        let (mut claimable, places) = runtime.claimable();
        let registered = claimable.len();
        let fleet = runtime.limits.retain_free(&runtime, &mut claimable).await;
        let fleet = fleet.map_err(|error| Chain(&error).to_string())?;
        let poll = (claimable.len() < registered).then_some(FLEET_POLL);
        let fleet = fleet.map_or(usize::MAX, |free| usize::try_from(free).unwrap_or(usize::MAX));
        slots.truncate(places.min(fleet));
        while let Some((queue, key)) = self.next_turn(&claimable, slots.len()) {
            let Some(slot) = slots.pop() else { break };
            self.spawn_claim(&runtime, &claims, Waiting { queue, key, due: None }, slot);
        }
        let (queues, max) = (self.turns.next(claimable.clone()), slots.len());
        if queues.is_empty() || max == 0 {
            return Ok(poll.unwrap_or(if claimable.is_empty() { MAX_SLEEP } else { Duration::ZERO }));
        }
        let take = runtime.store.backend().take_due(&queues, max, self.call_limit);
        let taken = match timeout(self.call_limit, take).await {
            Ok(Ok(taken)) => taken,
            Ok(Err(error)) => return Err(Chain(&error).to_string()),
            Err(_) => return Err(format!("no answer within {:?}", self.call_limit)),
        };
        let has_more = taken.due.len() == max;
        let next_in = if has_more { Some(Duration::ZERO) } else { taken.next_in };
        for due in taken.due {
            // The engine returns at most as many timers as there are slots.
            let Some(slot) = slots.pop() else { break };
            let (queue, key) = (due.queue.clone(), due.key.clone());
            self.spawn_claim(&runtime, &claims, Waiting { queue, key, due: Some(due) }, slot);
        }
        self.search_owners(&runtime, &claimable, has_more).await;
        let next_in = next_in.map_or(MAX_SLEEP, |next_in| next_in.min(MAX_SLEEP));
        let next_in = if claiming.owner_is_full.swap(false, Ordering::AcqRel) {
            next_in.max(OWNER_FULL_PAUSE)
        } else {
            next_in
        };
        Ok(poll.map_or(next_in, |poll| poll.min(next_in)))
    }

    /// Returns the next task of the owner whose turn it is, if one of these operations can run it.
    fn next_turn(&mut self, claimable: &[String], slots: usize) -> Option<(Queue, TaskKey)> {
        if slots == 0 {
            return None;
        }
        let is_claimable = |queue: &Queue| claimable.iter().any(|name| queue.operation() == Some(name));
        std::iter::from_fn(|| self.owners.next()).find(|(queue, _)| is_claimable(queue))
    }

    /// Searches for owners whose tasks wait behind those of another owner, while more tasks wait than this instance can run.
    async fn search_owners(&mut self, runtime: &Runtime<B>, claimable: &[String], has_more: bool) {
        if !has_more {
            self.owners.clear();
        } else if self.owners.is_due() {
            let search = self.owners.search(runtime.store.backend(), claimable);
            match timeout(self.call_limit, search).await {
                Ok(Ok(())) => {}
                // The tasks are claimed in the order of their queue until a later search succeeds.
                Ok(Err(error)) => {
                    tracing::debug!(error = %Chain(&error), "the waiting tasks could not be listed")
                }
                Err(_) => {
                    tracing::debug!("the waiting tasks could not be listed within {:?}", self.call_limit)
                }
            }
        }
    }

    fn spawn_claim(&self, runtime: &Runtime<B>, claims: &CountGuard, waiting: Waiting, slot: Slot) {
        let place = runtime.reserve(waiting.queue.operation());
        let claim = claim_and_resolve(Weak::clone(&self.runtime), waiting, slot, place, self.call_limit);
        let claims = claims.clone();
        let claim = async move {
            claim.await;
            drop(claims);
        };
        tokio::spawn(claim.in_current_span());
    }
}

/// A task that waits for a worker.
struct Waiting {
    queue: Queue,
    key: TaskKey,
    /// The timer, if the claimer has taken it.
    due: Option<Due>,
}

fn queues_of(names: &[String]) -> Vec<Queue> {
    let of_priority = |priority| names.iter().filter_map(move |name| Queue::work(name, priority).ok());
    // A name that is too long for a queue is also too long for a task.
    Priority::ALL.into_iter().flat_map(of_priority).collect()
}

/// Claims one task, then moves or removes its timer.
async fn claim_and_resolve<B: Agenda>(
    runtime: Weak<Runtime<B>>,
    waiting: Waiting,
    slot: Slot,
    place: Result<Option<Place>, Full>,
    limit: Duration,
) {
    let Some(runtime) = runtime.upgrade() else { return };
    let next = match claim(&runtime, &waiting, slot, place).await {
        Ok(next) => next,
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
            Next::After(RETRY_DELAY)
        }
    };
    let Some(due) = &waiting.due else { return };
    match timeout(limit, runtime.store.backend().resolve(due, next)).await {
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
    let fleet = match runtime.limits.take(runtime, waiting.queue.operation(), &waiting.key.owner).await? {
        Ok(slots) => slots,
        Err(FleetFull::Operation) => return Ok(Next::After(FLEET_POLL)),
        Err(FleetFull::Owner) => {
            runtime.claiming.owner_is_full.store(true, Ordering::Release);
            return Ok(Next::After(OWNER_FULL_DELAY));
        }
    };
    // If the claim is dropped halfway, the store releases the task, as after a dropped attempt.
    let claimed = tokio::select! {
        claimed = runtime.store.claim(&waiting.key) => claimed?,
        () = shutdown.limit_elapsed(SHUTDOWN_CALL_LIMIT) => return Ok(Next::After(Duration::ZERO)),
    };
    let Some((stored, attempt)) = claimed else { return Ok(Next::Remove) };
    let name = stored.task.operation.as_deref();
    let Some(operation) = name.and_then(|name| runtime.operation(name)) else {
        release_unregistered(&attempt).await?;
        return Ok(Next::Remove);
    };
    // A claimed task has no call whose span could be its parent.
    let span = Identity::of(&stored, attempt.number()).span(None);
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

/// Returns a timer to its queue that this claimer took just before its process closed, or just before a call took the last place.
async fn return_to_queue<B: Agenda>(runtime: &Runtime<B>, waiting: &Waiting) -> Result<Next, TaskError> {
    let Some(due) = &waiting.due else { return Ok(Next::After(Duration::ZERO)) };
    // A `schedule` wakes other instances. A `resolve` does not.
    let schedule = runtime.store.backend().schedule(&due.queue, &due.key, Duration::ZERO);
    if let Ok(scheduled) = timeout(SHUTDOWN_CALL_LIMIT, schedule).await {
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
