//! An operation as the runtime polls it. A panic ends only the operation, even if the destructor of the operation or
//! of the panic's payload panics, too.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rmcp::ErrorData;
use rmcp::model::CallToolResult;
use rmcp::task_manager::{TaskExit, TaskFuture};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{Instrument, Span};

use super::retry_mark::RetryMark;
use crate::spans;

/// The time limit of each step when a run is stopped.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// What a trace says about a call that returns an error as its result.
pub(super) const TOOL_ERROR: &str = "tool_error";

/// How an operation has ended.
pub(super) enum Outcome {
    Returned(Result<CallToolResult, TaskExit>),
    /// The operation has returned an error that the runtime retries.
    Retry(ErrorData),
    /// The message of its panic.
    Panicked(String),
}

impl Clone for Outcome {
    fn clone(&self) -> Self {
        match self {
            Self::Returned(Ok(result)) => Self::Returned(Ok(result.clone())),
            Self::Returned(Err(TaskExit::Cancelled)) => Self::Returned(Err(TaskExit::Cancelled)),
            Self::Returned(Err(TaskExit::Error(error))) => {
                Self::Returned(Err(TaskExit::Error(error.clone())))
            }
            Self::Retry(error) => Self::Retry(error.clone()),
            Self::Panicked(message) => Self::Panicked(message.clone()),
        }
    }
}

impl Outcome {
    fn returned(returned: Result<CallToolResult, TaskExit>, mark: &RetryMark) -> Self {
        match returned {
            Err(exit) if mark.is_on(&exit) => match exit {
                TaskExit::Error(error) => Self::Retry(error),
                TaskExit::Cancelled => Self::Returned(Err(exit)),
            },
            returned => Self::Returned(returned),
        }
    }

    /// Returns what a trace says about an outcome that is an error.
    fn error_class(&self) -> Option<String> {
        match self {
            Self::Returned(Ok(result)) => (result.is_error == Some(true)).then(|| TOOL_ERROR.to_owned()),
            Self::Returned(Err(TaskExit::Cancelled)) => None,
            Self::Returned(Err(TaskExit::Error(error))) | Self::Retry(error) => {
                Some(error.code.0.to_string())
            }
            Self::Panicked(_) => Some("panic".to_owned()),
        }
    }

    /// Returns the outcome of an operation that is not retried.
    pub(super) fn without_retry(self) -> Self {
        match self {
            Self::Retry(error) => Self::Returned(Err(TaskExit::Error(error))),
            outcome => outcome,
        }
    }
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

/// An operation in a Tokio task of its own.
pub(super) struct RunningOperation {
    pub(super) handle: JoinHandle<Outcome>,
    pub(super) polls: Arc<PollTimer>,
}

impl RunningOperation {
    /// Calls the closure that returns the operation's future, and runs the future in the current span. Also returns whether
    /// there is a future. If there is none, the closure has panicked.
    pub(super) fn start(
        polls: Arc<PollTimer>,
        retry_mark: RetryMark,
        operation: impl FnOnce() -> TaskFuture,
    ) -> (Self, bool) {
        let operation = Operation::call(Arc::clone(&polls), retry_mark, operation);
        let has_begun = !operation.has_panicked();
        let handle = tokio::spawn(operation.in_current_span());
        (Self { handle, polls }, has_begun)
    }

    /// Stops the operation. Returns its outcome if it has ended just before.
    pub(super) async fn abort(&mut self) -> Option<Outcome> {
        self.handle.abort();
        match timeout(STOP_TIMEOUT, &mut self.handle).await {
            Ok(ended) => ended.ok(),
            Err(_) => {
                tracing::warn!("an operation that must stop did not yield within {STOP_TIMEOUT:?}");
                None
            }
        }
    }
}

/// The future of an operation. The runtime does not poll it again once it is ready.
struct Operation {
    /// `None` once the operation has ended.
    future: Option<TaskFuture>,
    polls: Arc<PollTimer>,
    retry_mark: RetryMark,
    /// The message of the panic, if the closure panicked and returned no future.
    panic: Option<String>,
}

impl Operation {
    /// Calls the closure that returns the operation's future.
    fn call(polls: Arc<PollTimer>, retry_mark: RetryMark, operation: impl FnOnce() -> TaskFuture) -> Self {
        match polls.measure(|| catch_unwind(AssertUnwindSafe(operation))) {
            Ok(future) => Self { future: Some(future), polls, retry_mark, panic: None },
            Err(payload) => Self { future: None, polls, retry_mark, panic: Some(message(payload)) },
        }
    }

    /// Returns whether the closure panicked, so that there is no future.
    fn has_panicked(&self) -> bool {
        self.panic.is_some()
    }
}

impl Future for Operation {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let Self { future, polls, retry_mark, panic } = &mut *self;
        let Some(future) = future else {
            return Poll::Ready(Outcome::Panicked(panic.take().unwrap_or_default()));
        };
        let polled = polls.measure(|| catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))));
        let outcome = match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(returned)) => Outcome::returned(returned, retry_mark),
            Err(payload) => Outcome::Panicked(message(payload)),
        };
        discard(self.future.take());
        if let Some(class) = outcome.error_class() {
            spans::failed(&Span::current(), &class);
        }
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
