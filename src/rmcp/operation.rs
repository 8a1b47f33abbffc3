//! An operation as the runtime polls it. A panic ends only the operation, even if the destructor of the operation or
//! of the panic's payload panics, too.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rmcp::model::CallToolResult;
use rmcp::task_manager::{TaskExit, TaskFuture};

/// How an operation has ended.
pub(super) enum Outcome {
    Returned(Result<CallToolResult, TaskExit>),
    /// The message of its panic.
    Panicked(String),
}

/// Measures how long an operation blocks its thread: the time of its longest poll.
#[derive(Debug)]
pub(super) struct PollTimer {
    epoch: Instant,
    /// When the current poll began, in microseconds since `epoch`; 0 between two polls.
    begun: AtomicU64,
    /// The longest poll, in microseconds.
    longest: AtomicU64,
}

impl PollTimer {
    pub(super) fn new() -> Self {
        Self { epoch: Instant::now(), begun: AtomicU64::new(0), longest: AtomicU64::new(0) }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(u64::MAX).max(1)
    }

    fn measure<T>(&self, poll: impl FnOnce() -> T) -> T {
        self.begun.store(self.now(), Ordering::Relaxed);
        let polled = poll();
        let lasted = self.now().saturating_sub(self.begun.swap(0, Ordering::Relaxed));
        self.longest.fetch_max(lasted, Ordering::Relaxed);
        polled
    }

    /// Returns the longest poll since the last call. The current poll counts.
    pub(super) fn take_longest(&self) -> Duration {
        let current = match self.begun.load(Ordering::Relaxed) {
            0 => 0,
            begun => self.now().saturating_sub(begun),
        };
        Duration::from_micros(self.longest.swap(0, Ordering::Relaxed).max(current))
    }
}

/// A running operation. The runtime does not poll it again once it is ready.
pub(super) struct Operation {
    /// `None` once the operation has ended.
    future: Option<TaskFuture>,
    polls: Arc<PollTimer>,
    /// The message of the panic, if the closure panicked and returned no future.
    panic: Option<String>,
}

impl Operation {
    /// Calls the closure that returns the operation's future.
    pub(super) fn call(polls: Arc<PollTimer>, operation: impl FnOnce() -> TaskFuture) -> Self {
        match polls.measure(|| catch_unwind(AssertUnwindSafe(operation))) {
            Ok(future) => Self { future: Some(future), polls, panic: None },
            Err(payload) => Self { future: None, polls, panic: Some(message(payload)) },
        }
    }

    /// Returns whether the closure panicked, so that there is no future.
    pub(super) fn has_panicked(&self) -> bool {
        self.panic.is_some()
    }
}

impl Future for Operation {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let Self { future, polls, panic } = &mut *self;
        let Some(future) = future else {
            return Poll::Ready(Outcome::Panicked(panic.take().unwrap_or_default()));
        };
        let polled = polls.measure(|| catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))));
        let outcome = match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(returned)) => Outcome::Returned(returned),
            Err(payload) => Outcome::Panicked(message(payload)),
        };
        discard(self.future.take());
        Poll::Ready(outcome)
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        discard(self.future.take());
    }
}

/// Returns the message of a panic.
fn message(payload: Box<dyn Any + Send>) -> String {
    let message = match payload.downcast_ref::<&str>() {
        Some(message) => Some((*message).to_owned()),
        None => payload.downcast_ref::<String>().cloned(),
    };
    discard(payload);
    message.unwrap_or_else(|| "a panic without a message".to_owned())
}

/// Drops a value of the operation, whose destructor may panic.
fn discard<T>(value: T) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(value))) {
        // The destructor of this payload could panic as well, and so on without end. So it never runs.
        std::mem::forget(payload);
    }
}
