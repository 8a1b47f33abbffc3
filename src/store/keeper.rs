//! The keeper of a store: one background task, which takes the timers of leases and finds lost workers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use futures_core::stream::BoxStream;
use futures_util::StreamExt;
use futures_util::stream::Fuse;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{Instrument, debug_span};

use super::answers::Answers;
use super::attempts::Dropped;
use super::look::{FAILING, Look};
use super::outage::{BackOff, Outage};
use super::write::jittered;
use super::{Inner, TaskStore};
use crate::{Agenda, Due, Queue};

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

/// What the store knows of its keeper.
#[derive(Debug)]
pub(super) struct Keeping {
    is_kept: Arc<AtomicBool>,
    /// Attempts that were dropped. The keeper that runs holds the lock.
    dropped: Arc<Mutex<mpsc::UnboundedReceiver<Dropped>>>,
}

impl Keeping {
    pub(super) fn new(dropped: mpsc::UnboundedReceiver<Dropped>) -> Self {
        Self { is_kept: Arc::default(), dropped: Arc::new(Mutex::new(dropped)) }
    }

    /// Of a store whose leases another one looks after.
    #[cfg(feature = "rmcp")]
    pub(super) fn none() -> Self {
        let (_, dropped) = mpsc::unbounded_channel();
        Self { is_kept: Arc::new(AtomicBool::new(true)), ..Self::new(dropped) }
    }
}

/// Says that a keeper runs, until its future is dropped, with its runtime or without.
struct Kept(Arc<AtomicBool>);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl<B: Agenda> TaskStore<B> {
    /// Starts the keeper, unless it runs or there is no runtime yet.
    pub(super) fn keep(&self) {
        let Keeping { is_kept, dropped } = &self.0.keeping;
        if is_kept.load(Ordering::Acquire) {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        if is_kept.swap(true, Ordering::AcqRel) {
            return;
        }
        let (kept, dropped) = (Kept(Arc::clone(is_kept)), Arc::clone(dropped));
        let keeper = Keeper {
            store: Arc::downgrade(&self.0),
            backend: Arc::clone(&self.0.backend),
            queue: [self.0.leases.clone()],
            limit: self.0.config.call_timeout.max(MOST_LATE),
            hide_for: window(self.0.config.lease.min(LONG_LEASE))
                + self.0.config.call_timeout.max(LEAST_HIDDEN),
            answers: Arc::clone(&self.0.answers),
            calls: Arc::new(Semaphore::new(MOST_CALLS)),
            failing: Arc::default(),
            looks: JoinSet::new(),
        };
        let run = async move {
            let _kept = kept;
            keeper.run(dropped).await;
        };
        runtime.spawn(run.instrument(debug_span!("keeper")));
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
    /// Looks that fail.
    failing: Arc<Outage>,
    looks: JoinSet<()>,
}

enum Event {
    /// All clones of the store are gone.
    Closed,
    /// The last clone of an attempt was dropped.
    Dropped(Dropped),
    /// A timer may be due sooner than expected.
    Woken,
    /// It is time to take timers.
    Due,
}

impl<B: Agenda> Keeper<B> {
    async fn run(mut self, dropped: Arc<Mutex<mpsc::UnboundedReceiver<Dropped>>>) {
        // One of an earlier runtime may be about to end.
        let mut dropped = dropped.lock().await;
        let mut wakeups = Arc::clone(&self.backend).wakeups(&self.queue).fuse();
        let (outage, mut back_off) = (Outage::default(), BackOff::new());
        loop {
            let pause = match self.take().await {
                Ok(pause) => {
                    outage.end("the timers of leases are taken again");
                    back_off = BackOff::new();
                    pause
                }
                Err(error) => {
                    outage
                        .begin(&error, "the timers of leases cannot be taken; lost workers are found later");
                    back_off.longer()
                }
            };
            let pause = if self.looks.is_empty() { pause } else { pause.min(HEARTBEAT) };
            // A batch that was full is followed by the next at once.
            let mut at = Instant::now() + pause + if pause.is_zero() { pause } else { jittered(APART_MS) };
            loop {
                match event(&mut dropped, &mut wakeups, at).await {
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
            Ok(Err(error)) => return Err(error.to_string()),
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
            failing: Arc::clone(&self.failing),
        }
    }

    /// Treats the worker of an attempt that nobody holds any more as lost.
    fn end_dropped(&mut self, attempt: Dropped) {
        let (store, calls, failing) =
            (Weak::clone(&self.store), Arc::clone(&self.calls), Arc::clone(&self.failing));
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
                failing.report(&error, FAILING);
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
    dropped: &mut mpsc::UnboundedReceiver<Dropped>,
    wakeups: &mut Fuse<BoxStream<'static, ()>>,
    at: Instant,
) -> Event {
    let mut due = std::pin::pin!(sleep_until(at));
    std::future::poll_fn(|cx| {
        if let Poll::Ready(dropped) = dropped.poll_recv(cx) {
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
