//! The keeper of a store: one background task, which takes the timers of leases and finds lost workers. It also
//! takes the timers of dead tasks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;

use futures_core::stream::BoxStream;
use futures_util::StreamExt;
use futures_util::stream::Fuse;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{Instrument, Span, debug_span};

use super::durations::{BackOff, jittered, millis};
use super::engine::EngineClient;
use super::local_attempts::DroppedAttempt;
use super::observation::{MAX_LATENESS, Observation, end_dropped, log_retry, observation_time};
use super::records::Records;
use crate::backend::{Agenda, Due, Queue};
use crate::printable::Chain;
use crate::telemetry::EngineCall;

/// How many timers one `take_due` takes.
const BATCH: usize = 64;
/// How many timers are observed at the same time. Further timers stay in the queue.
const MAX_OBSERVATIONS: usize = 16_384;
/// How many observations call the engine at the same time.
const MAX_CALLS: usize = 64;
/// How often the keeper calls the engine while it observes leases, so that it detects an outage during an
/// observation.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Keepers wake up at random times within this many milliseconds, so that the timers are not always taken by the same
/// keeper. A process never ends the lease of an attempt that it holds itself, so other processes must be able to take
/// the timer.
const SPREAD_MS: u64 = 50;
/// A timer is hidden for at least this much longer than an observation takes.
const MIN_HIDDEN: Duration = Duration::from_secs(2);
/// A take hides a timer only for as long as the observation of a lease of this duration takes, so that other
/// instances wait less if this process dies. The observation of a longer lease hides the timer again.
const LONG_LEASE: Duration = Duration::from_secs(60);
/// The longest sleep, in case a wakeup is lost.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// How late a keeper's heartbeat may be before the next call starts another keeper. The runtime of a late keeper may
/// no longer run.
const MAX_SILENCE: Duration = Duration::from_secs(10);

/// The records of a store, and the keeper of the store. Cheap to clone.
#[derive(Debug)]
pub(super) struct KeptRecords<B> {
    records: Arc<Records<B>>,
    /// `None` for an observer, and for a store whose leases the keeper of another store observes.
    keeper: Option<Arc<KeeperHandle>>,
}

impl<B> Clone for KeptRecords<B> {
    fn clone(&self) -> Self {
        Self { records: Arc::clone(&self.records), keeper: self.keeper.clone() }
    }
}

/// What a store shares with its keeper.
#[derive(Debug)]
struct KeeperHandle {
    liveness: Arc<Liveness>,
    /// Receives the attempts that were dropped. No keeper holds the lock while it waits: the runtime of a keeper may
    /// stop forever, and the lock must then be free.
    dropped: Arc<Mutex<mpsc::UnboundedReceiver<DroppedAttempt>>>,
}

impl<B: Agenda> KeptRecords<B> {
    /// Starts a keeper, if there is a runtime.
    pub(super) fn new(records: Records<B>, dropped: mpsc::UnboundedReceiver<DroppedAttempt>) -> Self {
        let keeper =
            KeeperHandle { liveness: Arc::new(Liveness::new()), dropped: Arc::new(Mutex::new(dropped)) };
        let kept = Self { records: Arc::new(records), keeper: Some(Arc::new(keeper)) };
        kept.ensure_keeper();
        kept
    }

    /// Returns records without a keeper of their own.
    pub(super) fn without_keeper(records: Records<B>) -> Self {
        Self { records: Arc::new(records), keeper: None }
    }

    /// Returns the records for a call, and starts the keeper if it does not run.
    pub(super) fn records(&self) -> &Records<B> {
        self.ensure_keeper();
        &self.records
    }

    /// Returns the records without starting the keeper.
    pub(super) fn records_only(&self) -> &Records<B> {
        &self.records
    }

    /// Starts the keeper, unless it runs or there is no runtime. A keeper does not run if its runtime has ended, or
    /// is a current-thread runtime that is not inside `block_on`.
    fn ensure_keeper(&self) {
        let Some(KeeperHandle { liveness, dropped }) = self.keeper.as_deref() else { return };
        if liveness.is_alive() {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        let Some(term) = liveness.start_term() else { return };
        let config = &self.records.config;
        let keeper = Keeper {
            records: Arc::downgrade(&self.records),
            engine: Arc::clone(&self.records.engine),
            queues: [Queue::leases(), Queue::dead()],
            limit: config.call_timeout.max(MAX_LATENESS),
            hide_for: observation_time(config.lease.min(LONG_LEASE)) + config.call_timeout.max(MIN_HIDDEN),
            calls: Arc::new(Semaphore::new(MAX_CALLS)),
            observations: JoinSet::new(),
        };
        runtime.spawn(keeper.run(term, Arc::clone(dropped)));
    }
}

/// The heartbeats of a store's keepers.
#[derive(Debug)]
struct Liveness {
    started: Instant,
    /// When the next heartbeat is due at the latest, in milliseconds since `started`; 0 while no keeper runs.
    due_ms: AtomicU64,
    /// The number of the current keeper's term. A keeper of an earlier term ends as soon as its runtime runs again.
    term: AtomicU64,
}

impl Liveness {
    fn new() -> Self {
        Self { started: Instant::now(), due_ms: AtomicU64::new(0), term: AtomicU64::new(0) }
    }

    fn now_ms(&self) -> u64 {
        millis(self.started.elapsed())
    }

    fn is_alive(&self) -> bool {
        self.is_alive_until(self.due_ms.load(Ordering::Acquire))
    }

    fn is_alive_until(&self, due_ms: u64) -> bool {
        due_ms != 0 && self.now_ms() <= due_ms
    }

    /// Starts the term of a new keeper. Returns `None` if a keeper is alive, or if another caller has just started
    /// one.
    fn start_term(self: &Arc<Self>) -> Option<Term> {
        let due_ms = self.due_ms.load(Ordering::Acquire);
        if self.is_alive_until(due_ms) {
            return None;
        }
        let next = self.now_ms() + millis(MAX_SILENCE);
        self.due_ms.compare_exchange(due_ms, next, Ordering::AcqRel, Ordering::Acquire).ok()?;
        let number = self.term.fetch_add(1, Ordering::AcqRel) + 1;
        Some(Term { liveness: Arc::clone(self), number })
    }
}

/// The term of one keeper. It ends when the keeper's future is dropped, for example with its runtime.
struct Term {
    liveness: Arc<Liveness>,
    number: u64,
}

impl Term {
    /// Records a heartbeat. The next one follows within `next`. Returns whether this term is still the current one.
    fn beat(&self, next: Duration) -> bool {
        let is_current = self.is_current();
        if is_current {
            let due_ms = self.liveness.now_ms() + millis(next + MAX_SILENCE);
            self.liveness.due_ms.store(due_ms, Ordering::Release);
        }
        is_current
    }

    fn is_current(&self) -> bool {
        self.liveness.term.load(Ordering::Acquire) == self.number
    }
}

impl Drop for Term {
    fn drop(&mut self) {
        if self.is_current() {
            self.liveness.due_ms.store(0, Ordering::Release);
        }
    }
}

struct Keeper<B> {
    /// The keeper never holds a strong reference across a sleep: it must end with the last clone of the store.
    records: Weak<Records<B>>,
    engine: Arc<EngineClient<B>>,
    queues: [Queue; 2],
    limit: Duration,
    hide_for: Duration,
    calls: Arc<Semaphore>,
    observations: JoinSet<()>,
}

enum Event {
    /// All clones of the store were dropped, or the term has ended.
    Closed,
    /// The last clone of an attempt was dropped.
    Dropped(DroppedAttempt),
    /// A timer may be due sooner than expected.
    Woken,
    /// It is time to take timers.
    Due,
}

impl<B: Agenda> Keeper<B> {
    async fn run(mut self, term: Term, dropped: Arc<Mutex<mpsc::UnboundedReceiver<DroppedAttempt>>>) {
        let mut wakeups = self.engine.backend.wakeups(&self.queues).fuse();
        let mut back_off = BackOff::new();
        while term.beat(self.limit) {
            let pause = self.take_or_back_off(&mut back_off).instrument(span()).await;
            let pause = if self.observations.is_empty() { pause } else { pause.min(HEARTBEAT) };
            // After a full batch, the keeper takes the next batch at once.
            let mut at = Instant::now() + pause + if pause.is_zero() { pause } else { jittered(SPREAD_MS) };
            loop {
                if !term.beat(at.saturating_duration_since(Instant::now())) {
                    return;
                }
                match next_event(&term, &dropped, &mut wakeups, at).await {
                    Event::Closed => return,
                    Event::Dropped(attempt) => self.end_dropped(attempt),
                    Event::Woken => at = at.min(Instant::now() + jittered(SPREAD_MS)),
                    Event::Due => break,
                }
            }
            if at.elapsed() > MAX_LATENESS {
                self.engine.answers.count_late_wakeup();
            }
        }
    }

    /// Takes due timers. Returns how long to wait before the next take.
    async fn take_or_back_off(&mut self, back_off: &mut BackOff) -> Duration {
        match self.take().await {
            Ok(pause) => {
                *back_off = BackOff::new();
                pause
            }
            Err(error) => {
                tracing::debug!(error, "the timers of leases cannot be taken; lost workers are found later");
                back_off.next_pause()
            }
        }
    }

    /// Takes due timers and observes the lease of each. Returns when the next timer is due.
    async fn take(&mut self) -> Result<Duration, String> {
        while self.observations.try_join_next().is_some() {}
        let limit = BATCH.min(MAX_OBSERVATIONS.saturating_sub(self.observations.len()));
        if limit == 0 {
            return Ok(HEARTBEAT);
        }
        if self.records.strong_count() == 0 {
            // All clones of the store were dropped, so no observation would resolve the taken timers.
            return Ok(LONGEST_SLEEP);
        }
        let hidden_until = Instant::now() + self.hide_for;
        let taking = self.engine.backend.take_due(&self.queues, limit, self.hide_for);
        let taken =
            match timeout(self.limit, self.engine.answers.count(EngineCall::TakeDue, None, taking)).await {
                Ok(Ok(taken)) => taken,
                Ok(Err(error)) => return Err(Chain(&error).to_string()),
                Err(_) => return Err(format!("no answer within {:?}", self.limit)),
            };
        let next_in = if taken.due.len() == limit { Some(Duration::ZERO) } else { taken.next_in };
        for due in taken.due {
            let observation = self.observation(due, hidden_until);
            self.observations.spawn(observation.run().in_current_span());
        }
        Ok(next_in.map_or(LONGEST_SLEEP, |next_in| next_in.min(LONGEST_SLEEP)))
    }

    fn observation(&self, due: Due, hidden_until: Instant) -> Observation<B> {
        Observation {
            records: Weak::clone(&self.records),
            due,
            hidden_until,
            is_token_void: false,
            answers: Arc::clone(&self.engine.answers),
            calls: Arc::clone(&self.calls),
        }
    }

    /// Ends the lease of a dropped attempt.
    fn end_dropped(&mut self, attempt: DroppedAttempt) {
        let (records, calls) = (Weak::clone(&self.records), Arc::clone(&self.calls));
        let end = async move {
            let mut back_off = BackOff::new();
            let started = Instant::now();
            loop {
                let Some(records) = records.upgrade() else { return };
                let ended = {
                    let _permit = calls.acquire().await;
                    end_dropped(&records, &attempt).await
                };
                let Err(error) = ended else { return };
                log_retry(&error);
                // After one lease, the timer of the lease has fired. The keeper that takes it ends the lease.
                if started.elapsed() > records.config.lease {
                    return;
                }
                drop(records);
                sleep(back_off.next_pause()).await;
            }
        };
        self.observations.spawn(end.instrument(span()));
    }
}

/// Creates the span of one round. A span of the keeper itself would never end, and an exporter would never show it.
fn span() -> Span {
    debug_span!(parent: None, "keeper")
}

/// Waits for the next event, until `at` at the latest.
async fn next_event(
    term: &Term,
    dropped: &Mutex<mpsc::UnboundedReceiver<DroppedAttempt>>,
    wakeups: &mut Fuse<BoxStream<'static, ()>>,
    at: Instant,
) -> Event {
    let mut due = std::pin::pin!(sleep_until(at));
    std::future::poll_fn(|cx| {
        // A keeper whose term has ended must leave dropped attempts to its successor.
        if !term.is_current() {
            return Poll::Ready(Event::Closed);
        }
        let received = dropped.lock().unwrap_or_else(PoisonError::into_inner).poll_recv(cx);
        if let Poll::Ready(dropped) = received {
            return Poll::Ready(dropped.map_or(Event::Closed, Event::Dropped));
        }
        // Once the stream has ended, only the sleep wakes the keeper.
        if let Poll::Ready(Some(())) = wakeups.poll_next_unpin(cx) {
            return Poll::Ready(Event::Woken);
        }
        due.as_mut().poll(cx).map(|()| Event::Due)
    })
    .await
}
