//! Calls of the store that may be repeated, in commands that run for a long time.

use std::time::Duration;

use mcp_task_store::{StorageError, TaskError};
use tokio::time::sleep;

/// How often a call is made at most.
const TRIES: u32 = 6;
/// How long the command waits before it makes a call again.
const PAUSE: Duration = Duration::from_secs(1);

/// An error of the store.
pub trait StoreError {
    /// Returns whether the same call may succeed later.
    fn may_pass(&self) -> bool;
}

impl StoreError for StorageError {
    fn may_pass(&self) -> bool {
        self.is_retryable()
    }
}

impl StoreError for TaskError {
    fn may_pass(&self) -> bool {
        self.is_retryable()
    }
}

/// Makes a call again while the store fails for a short time. A repeated call must do no harm.
pub async fn retried<T, E: StoreError>(mut call: impl AsyncFnMut() -> Result<T, E>) -> Result<T, E> {
    for _ in 1..TRIES {
        match call().await {
            Err(error) if error.may_pass() => sleep(PAUSE).await,
            done => return done,
        }
    }
    call().await
}
