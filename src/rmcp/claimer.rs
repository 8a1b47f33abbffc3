//! The background task of a manager, which finds tasks that wait for a worker of a registered operation.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tracing::{Instrument, debug_span};

use super::claim::{Waiting, claim_and_resolve};
use super::count::CountGuard;
use super::owner_turns::OwnerTurns;
use super::runtime::Runtime;
use super::shutdown::ShutdownSignal;
use super::slots::{Slot, Slots};
use crate::backend::{Agenda, Priority, Queue, Taken, TaskKey};
use crate::printable::Chain;
use crate::store::{BackOff, TaskError};

/// How many timers the claimer takes at once.
const MAX_BATCH: usize = 16;
/// The pause before the claimer repeats a failed claim.
pub(super) const RETRY_DELAY: Duration = Duration::from_secs(1);
/// How often the claimer looks for a free slot of a fleet-wide limit.
pub(super) const FLEET_POLL: Duration = Duration::from_millis(250);
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
pub(super) fn call_limit<B: Agenda>(runtime: &Runtime<B>) -> Duration {
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

    /// Claims one waiting task for each slot. Returns when to claim again. The tasks of an operation without a free place stay in
    /// their queue, where other instances find them.
    async fn claim_due(&mut self, mut slots: Vec<Slot>) -> Result<Duration, String> {
        let Some(runtime) = self.runtime.upgrade() else { return Ok(MAX_SLEEP) };
        // A shutdown waits for the claims: the timers that it has taken would stay hidden from other instances.
        let claims = runtime.claiming.claims.add();
        let claimable = Claimable::of(&runtime).await.map_err(|error| Chain(&error).to_string())?;
        slots.truncate(claimable.places);
        while let Some((queue, key)) = self.next_turn(&claimable.operations, slots.len()) {
            let Some(slot) = slots.pop() else { break };
            self.spawn_claim(&runtime, &claims, Waiting { queue, key, due: None }, slot);
        }
        if slots.is_empty() {
            return Ok(claimable.poll.unwrap_or_default());
        }
        let wanted = slots.len();
        let taken = self.take(&runtime, &claimable.operations, wanted).await?;
        let has_more = taken.due.len() == wanted;
        for due in taken.due {
            // The engine returns at most as many timers as there are slots.
            let Some(slot) = slots.pop() else { break };
            let (queue, key) = (due.queue.clone(), due.key.clone());
            self.spawn_claim(&runtime, &claims, Waiting { queue, key, due: Some(due) }, slot);
        }
        self.search_owners(&runtime, &claimable.operations, has_more).await;
        let mut pause = if has_more { Duration::ZERO } else { taken.next_in.unwrap_or(MAX_SLEEP) };
        if runtime.claiming.owner_is_full.swap(false, Ordering::AcqRel) {
            pause = pause.max(OWNER_FULL_PAUSE);
        }
        Ok(pause.min(claimable.poll.unwrap_or(MAX_SLEEP)))
    }

    /// Takes up to `limit` due timers of these operations.
    async fn take(
        &mut self,
        runtime: &Runtime<B>,
        operations: &[String],
        limit: usize,
    ) -> Result<Taken, String> {
        let queues = self.turns.next(operations.to_vec());
        if queues.is_empty() {
            return Ok(Taken::default());
        }
        match timeout(self.call_limit, runtime.store.backend().take_due(&queues, limit, self.call_limit))
            .await
        {
            Ok(Ok(taken)) => Ok(taken),
            Ok(Err(error)) => Err(Chain(&error).to_string()),
            Err(_) => Err(format!("no answer within {:?}", self.call_limit)),
        }
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

/// The operations whose tasks this instance can claim now.
struct Claimable {
    operations: Vec<String>,
    /// How many tasks of each of them at least.
    places: usize,
    /// When to look again, if all slots of a fleet-wide limit are held.
    poll: Option<Duration>,
}

impl Claimable {
    async fn of<B: Agenda>(runtime: &Runtime<B>) -> Result<Self, TaskError> {
        let (mut operations, places) = runtime.claimable();
        let with_place = operations.len();
        let fleet = runtime.limits.retain_free(runtime, &mut operations).await?;
        let places = fleet.map_or(places, |free| places.min(free));
        let poll = (operations.len() < with_place).then_some(FLEET_POLL);
        Ok(Self { operations, places, poll })
    }
}

fn queues_of(names: &[String]) -> Vec<Queue> {
    let of_priority = |priority| names.iter().filter_map(move |name| Queue::work(name, priority).ok());
    // A name that is too long for a queue is also too long for a task.
    Priority::ALL.into_iter().flat_map(of_priority).collect()
}
