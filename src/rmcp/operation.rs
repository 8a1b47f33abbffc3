//! An operation as the runtime polls it: a panic ends with it, whatever its payload and its destructors do.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use rmcp::task_manager::TaskFuture;

use super::outcome::Ended;

/// A running operation. It is never polled again once it is ready.
pub(super) struct Operation {
    future: Option<TaskFuture>,
    /// The panic of the closure that should have made the future.
    panic: Option<String>,
}

impl Operation {
    /// Calls the closure that makes the future.
    pub(super) fn call(make_future: impl FnOnce() -> TaskFuture) -> Self {
        match catch_unwind(AssertUnwindSafe(make_future)) {
            Ok(future) => Self { future: Some(future), panic: None },
            Err(payload) => Self { future: None, panic: Some(message(payload)) },
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
        let Some(future) = &mut self.future else {
            return Poll::Ready(Err(self.panic.take().unwrap_or_default()));
        };
        let ended = match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
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
