//! The time limit of one call of a store.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::error::TaskError;
use crate::backend::{OwnerId, StorageError, TaskKey};

/// The target of a call of a store, for the message of a timeout.
#[derive(Clone, Copy, Debug)]
pub(super) enum CallTarget<'a> {
    Task(&'a TaskKey),
    Owner(&'a OwnerId),
    Store,
}

impl fmt::Display for CallTarget<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Task(key) => write!(f, "task {}", key.task.printable()),
            Self::Owner(owner) => write!(f, "the tasks of {}", owner.printable()),
            Self::Store => f.write_str("the store"),
        }
    }
}

/// The time at which a call must end, and whether the engine may have applied one of its writes.
#[derive(Debug)]
pub(super) struct Deadline {
    limit: Duration,
    at: Instant,
    is_in_doubt: AtomicBool,
}

impl Deadline {
    /// Starts the time limit of a call.
    pub(super) fn after(limit: Duration) -> Self {
        Self { limit, at: Instant::now() + limit, is_in_doubt: AtomicBool::new(false) }
    }

    /// Records that the outcome of a write is unknown, or that it is known again.
    pub(super) fn set_in_doubt(&self, is_in_doubt: bool) {
        self.is_in_doubt.store(is_in_doubt, Ordering::Relaxed);
    }

    /// Waits for `call` until the deadline.
    ///
    /// The caller pins the call, because each function that takes a future by value adds the size of that future to
    /// its own.
    pub(super) async fn limit<T>(
        &self,
        operation: &str,
        target: CallTarget<'_>,
        call: Pin<&mut (impl Future<Output = Result<T, TaskError>> + ?Sized)>,
    ) -> Result<T, TaskError> {
        if let Ok(ended) = timeout_at(self.at, call).await {
            return ended;
        }
        let outcome_unknown = self.is_in_doubt.load(Ordering::Relaxed);
        let then = match outcome_unknown {
            true => "it may have been applied: check that the server answers, and read the record",
            false => "nothing was written: check that the server answers, and try again",
        };
        Err(TaskError::Storage(StorageError::Unavailable {
            address: "the storage engine".to_owned(),
            reason: format!("{operation} of {target} did not end within {:?}; {then}", self.limit),
            outcome_unknown,
            source: None,
        }))
    }

    /// Does work on which the result of the call does not depend, until the deadline at the latest.
    pub(super) async fn limit_optional(&self, work: impl Future<Output = ()>) {
        if timeout_at(self.at, work).await.is_err() {
            tracing::debug!("a timer was not scheduled within the time limit of the call");
        }
    }
}
