//! The time limit of one call of a store.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::TaskError;
use crate::backend::{OwnerId, StorageError, TaskKey};

/// What a call is about.
#[derive(Clone, Copy, Debug)]
pub(super) enum Subject<'a> {
    Task(&'a TaskKey),
    Owner(&'a OwnerId),
    Store,
}

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Task(key) => write!(f, "task {}", key.task.printable()),
            Self::Owner(owner) => write!(f, "the tasks of {}", owner.printable()),
            Self::Store => f.write_str("the store"),
        }
    }
}

/// Until when a call must have ended, and whether a write of it may have been applied.
#[derive(Debug)]
pub(super) struct Deadline {
    limit: Duration,
    at: Instant,
    is_in_doubt: AtomicBool,
}

impl Deadline {
    /// The call begins now.
    pub(super) fn after(limit: Duration) -> Self {
        Self { limit, at: Instant::now() + limit, is_in_doubt: AtomicBool::new(false) }
    }

    /// A write is under way, or its outcome is known.
    pub(super) fn set_in_doubt(&self, is_in_doubt: bool) {
        self.is_in_doubt.store(is_in_doubt, Ordering::Relaxed);
    }

    /// Waits for `call`, which is about `subject`, until the deadline.
    ///
    /// The call stays where it is pinned: each that hands a future on by value holds it once more.
    pub(super) async fn limit<T>(
        &self,
        what: &str,
        subject: Subject<'_>,
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
            reason: format!("{what} of {subject} did not end within {:?}; {then}", self.limit),
            outcome_unknown,
            source: None,
        }))
    }

    /// Waits until the deadline for what the call does not depend on.
    pub(super) async fn give(&self, extra: impl Future<Output = ()>) {
        if timeout_at(self.at, extra).await.is_err() {
            tracing::debug!("a timer was not scheduled within the time limit of the call");
        }
    }
}
