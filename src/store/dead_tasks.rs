//! Lists dead tasks, by the timers of the queue `dead`.

use std::pin::pin;

use futures_util::{StreamExt, TryStreamExt, stream};
use tracing::instrument;

use super::TaskStore;
use super::dead::is_dead;
use super::deadline::CallTarget;
use super::error::TaskError;
use super::records::Records;
use super::requeue::{self, requeued_key};
use crate::backend::{Agenda, Cursor, Queue, TaskKey};
use crate::printable::Chain;
use crate::task::StoredTask;

/// How many records of a page are read at the same time.
const CONCURRENT_READS: usize = 16;

/// One page of dead tasks.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeadTaskPage {
    /// The tasks. A page may be empty before the end of the walk.
    pub tasks: Vec<StoredTask>,
    /// The position of the next page. Only `None` ends the walk.
    pub next: Option<Cursor>,
}

impl<B: Agenda> TaskStore<B> {
    /// Reads one page of the dead tasks of all owners: those that failed because their attempts are used up. For operators, who
    /// [requeue](Self::requeue) them. A task that was requeued is left out while the record of its new task exists.
    ///
    /// A task stays in the list for its retention. The list comes from the timers of the queue [`dead`](Queue::dead), and the call
    /// reads one page of them, with the record of each task. If the engine loses timers in a failover, their tasks are no longer
    /// in the list. Their records stay.
    ///
    /// # Errors
    /// [`InvalidPage`](TaskError::InvalidPage) for a cursor that is malformed.
    ///
    /// # Cancellation safety
    /// Dropping the future has no effect.
    #[instrument(level = "debug", skip_all)]
    pub async fn dead_tasks(&self, after: Option<&Cursor>) -> Result<DeadTaskPage, TaskError> {
        let records = self.0.records();
        let read = pin!(read_page(records, after));
        records.deadline().limit("dead_tasks", CallTarget::Store, read).await
    }
}

async fn read_page<B: Agenda>(
    records: &Records<B>,
    after: Option<&Cursor>,
) -> Result<DeadTaskPage, TaskError> {
    let page = records.engine.timers(&Queue::dead(), after).await?;
    let listed = stream::iter(page.timers).map(|timer| find(records, timer.key)).buffered(CONCURRENT_READS);
    let tasks: Vec<Option<StoredTask>> = listed.try_collect().await?;
    Ok(DeadTaskPage { tasks: tasks.into_iter().flatten().collect(), next: page.next })
}

/// Returns a task if it is dead and was not requeued.
async fn find<B: Agenda>(records: &Records<B>, key: TaskKey) -> Result<Option<StoredTask>, TaskError> {
    let stored = match records.read(&key).await {
        Ok(stored) if is_dead(&stored.task) => stored,
        Ok(_) | Err(TaskError::NotFound { .. }) => return Ok(None),
        Err(error) if error.is_unreadable() => {
            tracing::debug!(error = %Chain(&error), "a task in the queue of dead tasks cannot be read");
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let requeued = requeue::find(records, &requeued_key(&key)).await?;
    Ok(requeued.is_none().then_some(stored))
}
