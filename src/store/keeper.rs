//! The keeper of a store: one background task, which takes the timers of leases and finds lost workers.

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
use tracing::{Instrument, debug_span};

use super::answers::Answers;
use super::attempts::Dropped;
use super::back_off::BackOff;
use super::look::{FAILING, Look};
use super::write::jittered;
use super::{Inner, TaskStore};
use crate::backend::{Agenda, Due, Queue};
use crate::printable::Chain;

/// How many timers are taken at once.
const BATCH: usize = 64;
/// How many timers are looked at, or observed, at the same time. More stay in the queue.
const MOST_LOOKS: usize = 16_384;
/// How many of those talk to the engine at the same time.
const MOST_CALLS: usize = 64;
/// How often the engine is asked while leases are observed: an outage in between must not go unnoticed.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Stores wake at different moments, in milliseconds: one of them takes what is due, and not always the same one. A process
/// that may not end a lease, because its run is alive there, leaves it to the others.
const APART_MS: u64 = 50;
/// By how much the own ticking may be late. A process that was stopped or slept has not observed anything.
pub(super) const MOST_LATE: Duration = Duration::from_secs(1);
/// For how much longer than an observation a timer is hidden at least.
const LEAST_HIDDEN: Duration = Duration::from_secs(2);
/// The timer of a longer lease is hidden again when it is observed. If this process dies, others wait less.
const LONG_LEASE: Duration = Duration::from_secs(60);
/// The longest sleep, should a wakeup be lost.
const LONGEST: Duration = Duration::from_secs(60);

/// How late a sign of a keeper may be before the next call starts another. Nobody may drive its runtime any more.
const PARKED: Duration = Duration::from_secs(10);

/// What the store knows of its keeper.
#[derive(Debug)]
pub(super) struct Keeping {
    signs: Arc<Signs>,
    /// Attempts that were dropped. The lock is held for a moment only: a keeper that is not driven must not keep it.
    dropped: Arc<Mutex<mpsc::UnboundedReceiver<Dropped>>>,
}

impl Keeping {
    pub(super) fn new(dropped: mpsc::UnboundedReceiver<Dropped>) -> Self {
        let signs =
            Signs { begun: Instant::now(), expected_ms: AtomicU64::new(0), in_charge: AtomicU64::new(0) };
        Self { signs: Arc::new(signs), dropped: Arc::new(Mutex::new(dropped)) }
    }
}

/// The signs of life of a store's keepers.
#[derive(Debug)]
struct Signs {
    begun: Instant,
    /// When the next one is expected at the latest, in milliseconds since `begun`; 0 while no keeper runs.
    expected_ms: AtomicU64,
    /// Which keeper is in charge. An earlier one that is driven again ends.
    in_charge: AtomicU64,
}

impl Signs {
    fn now_ms(&self) -> u64 {
        super::millis(self.begun.elapsed())
    }

    fn is_kept(&self) -> bool {
        self.is_kept_until(self.expected_ms.load(Ordering::Acquire))
    }

    fn is_kept_until(&self, expected_ms: u64) -> bool {
        expected_ms != 0 && self.now_ms() <= expected_ms
    }

    /// Puts the caller in charge, unless somebody else was quicker.
    fn take_charge(self: &Arc<Self>) -> Option<Kept> {
        let expected = self.expected_ms.load(Ordering::Acquire);
        if self.is_kept_until(expected) {
            return None;
        }
        let next = self.now_ms() + super::millis(PARKED);
        self.expected_ms.compare_exchange(expected, next, Ordering::AcqRel, Ordering::Acquire).ok()?;
        let number = self.in_charge.fetch_add(1, Ordering::AcqRel) + 1;
        Some(Kept { signs: Arc::clone(self), number })
    }
}

/// Says that a keeper runs, until its future is dropped, with its runtime or without.
struct Kept {
    signs: Arc<Signs>,
    number: u64,
}

impl Kept {
    /// Gives a sign of life, and says within which time the next one follows. Returns whether it is still in charge.
    fn sign(&self, next: Duration) -> bool {
        let is_in_charge = self.is_in_charge();
        if is_in_charge {
            let expected = self.signs.now_ms() + super::millis(next + PARKED);
            self.signs.expected_ms.store(expected, Ordering::Release);
        }
        is_in_charge
    }

    fn is_in_charge(&self) -> bool {
        self.signs.in_charge.load(Ordering::Acquire) == self.number
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.is_in_charge() {
            self.signs.expected_ms.store(0, Ordering::Release);
        }
    }
}

impl<B: Agenda> TaskStore<B> {
    /// Starts the keeper, unless it runs or there is no runtime yet. One whose runtime has ended does not run, nor does one
    /// whose runtime nobody drives: a runtime of one thread outside of `block_on`.
    pub(super) fn keep(&self) {
        let Some(Keeping { signs, dropped }) = &self.0.keeping else { return };
        if signs.is_kept() {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        let Some(kept) = signs.take_charge() else { return };
        let dropped = Arc::clone(dropped);
        let keeper = Keeper {
            store: Arc::downgrade(&self.0),
            backend: Arc::clone(&self.0.backend),
            queue: [self.0.leases.clone()],
            limit: self.0.config.call_timeout.max(MOST_LATE),
            hide_for: window(self.0.config.lease.min(LONG_LEASE))
                + self.0.config.call_timeout.max(LEAST_HIDDEN),
            answers: Arc::clone(&self.0.answers),
            calls: Arc::new(Semaphore::new(MOST_CALLS)),
            looks: JoinSet::new(),
        };
        runtime.spawn(keeper.run(kept, dropped).instrument(debug_span!("keeper")));
    }
}

/// How long a lapsed lease is observed before its worker counts as lost: the worker has this long to renew it after an
/// outage that concerned everybody.
pub(super) fn window(lease: Duration) -> Duration {
    lease / 3 + Duration::from_secs(1)
}

struct Keeper<B> {
    /// Never held across a sleep: the keeper ends with the last clone of the store.
    store: Weak<Inner<B>>,
    backend: Arc<B>,
    queue: [Queue; 1],
    limit: Duration,
    hide_for: Duration,
    answers: Arc<Answers>,
    calls: Arc<Semaphore>,
    looks: JoinSet<()>,
}

enum Event {
    /// All clones of the store are gone, or another keeper is in charge.
    Closed,
    /// The last clone of an attempt was dropped.
    Dropped(Dropped),
    /// A timer may be due sooner than expected.
    Woken,
    /// It is time to take timers.
    Due,
}

impl<B: Agenda> Keeper<B> {
    async fn run(mut self, kept: Kept, dropped: Arc<Mutex<mpsc::UnboundedReceiver<Dropped>>>) {
        let mut wakeups = self.backend.wakeups(&self.queue).fuse();
        let mut back_off = BackOff::new();
        while kept.sign(self.limit) {
            let pause = match self.take().await {
                Ok(pause) => {
                    back_off = BackOff::new();
                    pause
                }
                Err(error) => {
                    tracing::debug!(
                        error,
                        "the timers of leases cannot be taken; lost workers are found later"
                    );
                    back_off.longer()
                }
            };
            let pause = if self.looks.is_empty() { pause } else { pause.min(HEARTBEAT) };
            // A batch that was full is followed by the next at once.
            let mut at = Instant::now() + pause + if pause.is_zero() { pause } else { jittered(APART_MS) };
            loop {
                if !kept.sign(at.saturating_duration_since(Instant::now())) {
                    return;
                }
                match event(&kept, &dropped, &mut wakeups, at).await {
                    Event::Closed => return,
                    Event::Dropped(attempt) => self.end_dropped(attempt),
                    Event::Woken => at = at.min(Instant::now() + jittered(APART_MS)),
                    Event::Due => break,
                }
            }
            if at.elapsed() > MOST_LATE {
                self.answers.disturb();
            }
        }
    }

    /// Takes what is due and looks at each. Returns when the next one is due.
    async fn take(&mut self) -> Result<Duration, String> {
        while self.looks.try_join_next().is_some() {}
        let most = BATCH.min(MOST_LOOKS.saturating_sub(self.looks.len()));
        if most == 0 {
            return Ok(HEARTBEAT);
        }
        if self.store.strong_count() == 0 {
            // The store is gone, and nobody would look at what is taken.
            return Ok(LONGEST);
        }
        let hidden_until = Instant::now() + self.hide_for;
        let taking = self.backend.take_due(&self.queue, most, self.hide_for);
        let taken = match timeout(self.limit, self.answers.count(None, taking)).await {
            Ok(Ok(taken)) => taken,
            Ok(Err(error)) => return Err(Chain(&error).to_string()),
            Err(_) => return Err(format!("no answer within {:?}", self.limit)),
        };
        let next_in = if taken.due.len() == most { Some(Duration::ZERO) } else { taken.next_in };
        for due in taken.due {
            let look = self.look(due, hidden_until);
            self.looks.spawn(look.run().in_current_span());
        }
        Ok(next_in.map_or(LONGEST, |next_in| next_in.min(LONGEST)))
    }

    fn look(&self, due: Due, hidden_until: Instant) -> Look<B> {
        Look {
            store: Weak::clone(&self.store),
            due,
            hidden_until,
            is_token_void: false,
            answers: Arc::clone(&self.answers),
            calls: Arc::clone(&self.calls),
        }
    }

    /// Treats the worker of an attempt that nobody holds any more as lost.
    fn end_dropped(&mut self, attempt: Dropped) {
        let (store, calls) = (Weak::clone(&self.store), Arc::clone(&self.calls));
        let end = async move {
            let mut back_off = BackOff::new();
            let begun = Instant::now();
            loop {
                let Some(store) = store.upgrade().map(TaskStore) else { return };
                let ended = {
                    let _permit = calls.acquire().await;
                    store.end_dropped(&attempt).await
                };
                let Err(error) = ended else { return };
                tracing::debug!(error = %Chain(&error), "{FAILING}");
                // From then on its timer leads to the same.
                if begun.elapsed() > store.0.config.lease {
                    return;
                }
                drop(store);
                sleep(back_off.longer()).await;
            }
        };
        self.looks.spawn(end.in_current_span());
    }
}

/// What happens first, at `at` at the latest.
async fn event(
    kept: &Kept,
    dropped: &Mutex<mpsc::UnboundedReceiver<Dropped>>,
    wakeups: &mut Fuse<BoxStream<'static, ()>>,
    at: Instant,
) -> Event {
    let mut due = std::pin::pin!(sleep_until(at));
    std::future::poll_fn(|cx| {
        // One that was replaced takes nothing away from its successor.
        if !kept.is_in_charge() {
            return Poll::Ready(Event::Closed);
        }
        let received = dropped.lock().unwrap_or_else(PoisonError::into_inner).poll_recv(cx);
        if let Poll::Ready(dropped) = received {
            return Poll::Ready(dropped.map_or(Event::Closed, Event::Dropped));
        }
        // A stream that ends has no more items: then the sleep decides.
        if let Poll::Ready(Some(())) = wakeups.poll_next_unpin(cx) {
            return Poll::Ready(Event::Woken);
        }
        due.as_mut().poll(cx).map(|()| Event::Due)
    })
    .await
}
