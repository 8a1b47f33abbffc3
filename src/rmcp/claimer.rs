//! The background task of a manager, which finds tasks that wait for a worker of a registered operation.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tracing::{Instrument, Span, debug_span};

use super::claim::{Waiting, claim_and_resolve};
use super::count::CountGuard;
use super::owner_turns::OwnerTurns;
use super::running_mark::RunningMark;
use super::runtime::Runtime;
use super::shutdown::ShutdownSignal;
use super::slots::{Slot, Slots};
use crate::backend::{Agenda, Priority, Queue, Taken, TaskKey};
use crate::printable::Chain;
use crate::store::{BackOff, TaskError};
use crate::telemetry::{EngineCall, timed};

/// How many timers the claimer takes at once.
const MAX_BATCH: usize = 16;
/// The pause before the claimer repeats a failed claim.
pub(super) const RETRY_DELAY: Duration = Duration::from_secs(1);
/// How often the claimer looks for a free slot of a fleet-wide limit.
pub(super) const FLEET_POLL: Duration = Duration::from_millis(250);
/// The pause after a claim that the engine or a limit has refused. Without it, the claimer would go through a long queue of such
/// tasks at full speed.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);
/// The longest sleep between two takes, in case a wakeup is lost.
const MAX_SLEEP: Duration = Duration::from_secs(60);

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
    let (mark, claimer) = (RunningMark(Arc::clone(is_running)), Claimer::new(runtime));
    let run = async move {
        let _mark = mark;
        claimer.run().await;
    };
    tokio.spawn(run);
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
    /// Returns the queues of these operations and priorities: those of a higher priority first.
    fn next(&mut self, mut names: Vec<String>, priorities: &[Priority]) -> Vec<Queue> {
        names.sort_unstable();
        self.0 = self.0.wrapping_add(1);
        if !names.is_empty() {
            let first = self.0 % names.len();
            names.rotate_left(first);
        }
        queues_of(&names, priorities)
    }
}

impl<B: Agenda> Claimer<B> {
    fn new(runtime: &Arc<Runtime<B>>) -> Self {
        Self {
            runtime: Arc::downgrade(runtime),
            call_limit: call_limit(runtime),
            registered: Arc::clone(&runtime.claiming.registered),
            place_freed: Arc::clone(&runtime.claiming.place_freed),
            closed: runtime.claiming.closed.signal(),
            slots: runtime.slots.clone(),
            turns: Turns::default(),
            owners: OwnerTurns::default(),
        }
    }

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
        Some(queues_of(&self.runtime.upgrade()?.registered(), &Priority::ALL))
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
            let pause = self.claim_or_back_off(slots, &mut back_off).instrument(round_span()).await;
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

    /// Claims waiting tasks. Returns when to claim again.
    async fn claim_or_back_off(&mut self, slots: Vec<Slot>, back_off: &mut BackOff) -> Duration {
        match self.claim_due(slots).await {
            Ok(pause) => {
                *back_off = BackOff::new();
                pause
            }
            Err(error) => {
                tracing::debug!(error, "the timers of tasks that wait for a worker could not be taken");
                back_off.next_pause()
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
        if slots.is_empty() {
            // A place that becomes free wakes the claimer.
            return Ok(claimable.longest_pause());
        }
        let round = ClaimRound { runtime: &runtime, operations: &claimable.operations, claims };
        self.claim_turns(&round, &mut slots).await?;
        let mut pause = Duration::ZERO;
        if !slots.is_empty() {
            let taken = self.take(&round, &Priority::ALL, &mut slots).await?;
            match taken.last.filter(|_| slots.is_empty()) {
                // The take has emptied the queues of each higher priority.
                Some(priority) if self.owners.is_due() => self.search_owners(&round, priority).await,
                Some(_) => {}
                None => {
                    self.owners.clear();
                    pause = taken.next_in.unwrap_or(MAX_SLEEP);
                }
            }
        }
        if runtime.claiming.was_refused.swap(false, Ordering::AcqRel) {
            pause = pause.max(REFUSED_PAUSE);
        }
        Ok(pause.min(claimable.longest_pause()))
    }

    /// Claims the tasks of the owners whose turn it is, after the tasks of a higher priority.
    async fn claim_turns(&mut self, round: &ClaimRound<'_, B>, slots: &mut Vec<Slot>) -> Result<(), String> {
        let Some(priority) = self.owners.priority() else { return Ok(()) };
        let higher: Vec<_> = Priority::ALL.into_iter().take_while(|higher| *higher != priority).collect();
        self.take(round, &higher, slots).await?;
        if !slots.is_empty() && self.owners.is_outdated() {
            self.search_owners(round, priority).await;
        }
        while !slots.is_empty()
            && let Some((queue, key)) = self.next_turn(round.operations)
        {
            self.spawn_claim(round, Waiting { queue, key, due: None }, slots);
        }
        Ok(())
    }

    /// Takes due timers of these priorities, at most one for each slot, and claims their tasks.
    async fn take(
        &mut self,
        round: &ClaimRound<'_, B>,
        priorities: &[Priority],
        slots: &mut Vec<Slot>,
    ) -> Result<TakenTimers, String> {
        let taken = self.take_due(round, priorities, slots.len()).await?;
        let last = taken.due.last().map(|due| due.queue.priority());
        for due in taken.due {
            self.owners.note_turn(&due.key.owner);
            let (queue, key) = (due.queue.clone(), due.key.clone());
            self.spawn_claim(round, Waiting { queue, key, due: Some(due) }, slots);
        }
        Ok(TakenTimers { last, next_in: taken.next_in })
    }

    async fn take_due(
        &mut self,
        round: &ClaimRound<'_, B>,
        priorities: &[Priority],
        limit: usize,
    ) -> Result<Taken, String> {
        let queues = self.turns.next(round.operations.to_vec(), priorities);
        if queues.is_empty() {
            return Ok(Taken::default());
        }
        let take = round.runtime.store.backend().take_due(&queues, limit, self.call_limit);
        match timeout(self.call_limit, timed(EngineCall::TakeDue, take)).await {
            Ok(Ok(taken)) => Ok(taken),
            Ok(Err(error)) => Err(Chain(&error).to_string()),
            Err(_) => Err(format!("no answer within {:?}", self.call_limit)),
        }
    }

    /// Returns the next task of the owner whose turn it is, if one of these operations can run it.
    fn next_turn(&mut self, claimable: &[String]) -> Option<(Queue, TaskKey)> {
        let is_claimable = |queue: &Queue| claimable.iter().any(|name| queue.operation() == Some(name));
        std::iter::from_fn(|| self.owners.next()).find(|(queue, _)| is_claimable(queue))
    }

    /// Searches for owners whose tasks wait behind those of another owner, while more tasks wait than this instance can run.
    async fn search_owners(&mut self, round: &ClaimRound<'_, B>, priority: Priority) {
        let claiming = &round.runtime.claiming;
        claiming.take_refused_turns().iter().for_each(|key| self.owners.readmit(key));
        let full = claiming.full_owners.owners();
        let search = self.owners.search(round.runtime.store.backend(), round.operations, priority, &full);
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

    /// Claims a task in one of these slots. The callers have one.
    fn spawn_claim(&self, round: &ClaimRound<'_, B>, waiting: Waiting, slots: &mut Vec<Slot>) {
        let Some(slot) = slots.pop() else { return };
        let place = round.runtime.reserve(waiting.queue.operation());
        let claim = claim_and_resolve(Weak::clone(&self.runtime), waiting, slot, place, self.call_limit);
        let claims = round.claims.clone();
        let claim = async move {
            claim.await;
            drop(claims);
        };
        tokio::spawn(claim.in_current_span());
    }
}

/// Creates the span of one round. A span of the claimer itself would never end, and an exporter would never show it.
fn round_span() -> Span {
    debug_span!(parent: None, "work")
}

/// What the claims of one round have in common.
struct ClaimRound<'a, B> {
    runtime: &'a Runtime<B>,
    /// The operations whose tasks this instance can claim.
    operations: &'a [String],
    claims: CountGuard,
}

/// What the timers that were taken say about the others.
struct TakenTimers {
    /// The priority of the last timer that was taken.
    last: Option<Priority>,
    next_in: Option<Duration>,
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

    fn longest_pause(&self) -> Duration {
        self.poll.unwrap_or(MAX_SLEEP)
    }
}

fn queues_of(names: &[String], priorities: &[Priority]) -> Vec<Queue> {
    let of_priority = |priority| names.iter().filter_map(move |name| Queue::work(name, priority).ok());
    // A name that is too long for a queue is also too long for a task.
    priorities.iter().copied().flat_map(of_priority).collect()
}

#[cfg(test)]
mod tests {
    use super::super::config::ManagerConfig;
    use super::super::places::Places;
    use super::*;
    use crate::memory::MemoryBackend;
    use crate::store::TaskStore;

    #[tokio::test]
    async fn a_claimer_without_a_free_place_sleeps_until_one_is_free() {
        let runtime = Arc::new(Runtime::new(TaskStore::new(MemoryBackend::new()), ManagerConfig::default()));
        let places = Places::new(1).unwrap();
        let operation = |_, _| unreachable!("no task waits");
        runtime.register("render".to_owned(), Arc::new(operation), Some(places.clone()));
        let mut claimer = Claimer::new(&runtime);
        let place = places.try_take().unwrap();
        for _ in 0..2 {
            let slots = runtime.slots.acquire(1).await;
            assert_eq!(claimer.claim_due(slots).await, Ok(MAX_SLEEP));
        }
        drop(place);
        assert!(futures_util::poll!(Box::pin(runtime.claiming.place_freed.notified())).is_ready());
    }
}
