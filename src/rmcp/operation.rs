//! An operation as the runtime polls it: a panic ends with it, whatever its payload and its destructors do.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rmcp::model::CallToolResult;
use rmcp::task_manager::{TaskExit, TaskFuture};

/// What an operation returned, or the message of its panic.
pub(super) type Ended = Result<Result<CallToolResult, TaskExit>, String>;

/// For how long an operation has kept its thread without a break.
#[derive(Debug)]
pub(super) struct Polls {
    /// When the run began.
    since: Instant,
    /// When the poll under way began, in microseconds from then; 0 between two polls.
    begun: AtomicU64,
    /// The longest poll, in microseconds.
    longest: AtomicU64,
}

impl Polls {
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), begun: AtomicU64::new(0), longest: AtomicU64::new(0) }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX).max(1)
    }

    fn begin(&self) {
        self.begun.store(self.now(), Ordering::Relaxed);
    }

    fn end(&self) {
        let lasted = self.now().saturating_sub(self.begun.swap(0, Ordering::Relaxed));
        self.longest.fetch_max(lasted, Ordering::Relaxed);
    }

    /// The longest poll since the last call, the one under way included.
    pub(super) fn take_longest(&self) -> Duration {
        let under_way = match self.begun.load(Ordering::Relaxed) {
            0 => 0,
            begun => self.now().saturating_sub(begun),
        };
        Duration::from_micros(self.longest.swap(0, Ordering::Relaxed).max(under_way))
    }
}

/// A running operation. It is never polled again once it is ready.
pub(super) struct Operation {
    future: Option<TaskFuture>,
    polls: Arc<Polls>,
    /// The panic of the closure that should have made the future.
    panic: Option<String>,
}

impl Operation {
    /// Calls the closure that makes the future.
    pub(super) fn call(polls: Arc<Polls>, make_future: impl FnOnce() -> TaskFuture) -> Self {
        polls.begin();
        let made = catch_unwind(AssertUnwindSafe(make_future));
        polls.end();
        match made {
            Ok(future) => Self { future: Some(future), polls, panic: None },
            Err(payload) => Self { future: None, polls, panic: Some(message(payload)) },
        }
    }

    /// Whether the closure panicked, so that there is no future.
    pub(super) fn has_panicked(&self) -> bool {
        self.panic.is_some()
    }
}

impl Future for Operation {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let Self { future, polls, panic } = &mut *self;
        let Some(future) = future else {
            return Poll::Ready(Err(panic.take().unwrap_or_default()));
        };
        polls.begin();
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
        polls.end();
        let ended = match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(returned)) => Ok(returned),
            Err(payload) => Err(message(payload)),
        };
        discard(self.future.take());
        Poll::Ready(ended)
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        discard(self.future.take());
    }
}

/// What a panic said.
fn message(payload: Box<dyn Any + Send>) -> String {
    let message = match payload.downcast_ref::<&str>() {
        Some(message) => Some((*message).to_owned()),
        None => payload.downcast_ref::<String>().cloned(),
    };
    discard(payload);
    message.unwrap_or_else(|| "a panic without a message".to_owned())
}

/// Drops something of the operation's, whose destructor may panic.
fn discard<T>(value: T) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(value))) {
        // The destructor of this payload may panic in turn, and so on without end: it never runs.
        std::mem::forget(payload);
    }
}
