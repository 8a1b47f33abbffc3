//! The owners that have tasks.

use std::pin::pin;

use tracing::instrument;

use super::TaskStore;
use super::deadline::CallTarget;
use super::error::TaskError;
use super::limits::check_owner;
use crate::backend::{Agenda, Cursor, OwnerPage};

impl<B: Agenda> TaskStore<B> {
    /// Reads one page of the owners that have tasks. For operators: the call may cost a bounded scan of all records. See
    /// [`Agenda::owners`].
    ///
    /// The reserved owners (those that begin with `\0mcp/`) are left out: they own records of the server's runtime.
    ///
    /// # Errors
    /// [`InvalidPage`](TaskError::InvalidPage) for a cursor that is malformed; [`Storage`](TaskError::Storage) on an engine
    /// that cannot list owners.
    ///
    /// # Cancellation safety
    /// Dropping the future has no effect.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), mcp_task_store::TaskError> {
    /// use mcp_task_store::{MemoryBackend, NewTask, OwnerId, TaskStore};
    ///
    /// let store = TaskStore::new(MemoryBackend::new());
    /// let alice = OwnerId::try_from("alice").expect("not empty");
    /// store.create(&alice, NewTask::new("tools/call")).await?;
    /// assert_eq!(store.owners(None).await?.owners, [alice]);
    /// # Ok(())
    /// # }
    /// ```
    #[instrument(level = "debug", skip_all)]
    pub async fn owners(&self, after: Option<&Cursor>) -> Result<OwnerPage, TaskError> {
        let records = self.0.records();
        let read = pin!(records.engine.owners(after));
        let mut page = records.deadline().limit("owners", CallTarget::Store, read).await?;
        page.owners.retain(|owner| check_owner(owner).is_ok());
        Ok(page)
    }
}
