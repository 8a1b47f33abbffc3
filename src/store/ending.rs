//! How a runtime ends a task: the outcome and the last status message in one write. And how it ends a run.

use std::sync::Arc;

use serde_json::Value;

use super::attempts::Guard;
use super::change::Kind;
use super::write::Event;
use super::{Attempt, TaskError, TaskStore, transitions};
use crate::backend::Agenda;
use crate::task::{RpcError, StoredTask, Task, TaskStatus};

/// What the work on a task came to.
#[derive(Clone, Debug)]
pub(crate) enum Ending {
    Completed(Value),
    Failed(RpcError),
    Cancelled,
}

impl<B: Agenda> Attempt<B> {
    /// Ends the task, and sets its status message if there is one.
    pub(crate) async fn end(
        &self,
        ending: &Ending,
        status_message: Option<&str>,
    ) -> Result<StoredTask, TaskError> {
        let config = &self.store.0.config;
        let end = |task: &mut Task| {
            if let Some(message) = status_message {
                transitions::set_status_message(task, message, config)?;
            }
            match ending {
                Ending::Completed(result) => transitions::complete(task, result),
                Ending::Failed(error) => transitions::fail(task, error),
                Ending::Cancelled => transitions::cancel(task),
            }
        };
        self.change(Kind::Lifecycle, ending.name(), end).await
    }

    /// Reports the end of the task, where the call that ended it was given up before the reply came.
    pub(crate) fn report(&self, ending: &Ending, operation: Option<&str>) {
        Event::Ended(ending.status()).log(self.key(), operation);
    }

    /// Returns what ends the attempt in this process when it is dropped, whoever still holds a clone: an operation may have
    /// put its context anywhere. If the task is still open then, its worker counts as lost.
    pub(crate) fn in_charge(&self) -> InCharge {
        InCharge(Arc::clone(&self.guard))
    }
}

/// Held by the run of an attempt.
pub(crate) struct InCharge(Arc<Guard>);

impl Drop for InCharge {
    fn drop(&mut self) {
        self.0.set_gone();
    }
}

impl Ending {
    /// The status of a task that has ended like this.
    pub(crate) fn status(&self) -> TaskStatus {
        match self {
            Self::Completed(_) => TaskStatus::Completed,
            Self::Failed(_) => TaskStatus::Failed,
            Self::Cancelled => TaskStatus::Cancelled,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Completed(_) => "complete",
            Self::Failed(_) => "fail",
            Self::Cancelled => "cancel",
        }
    }
}

impl<B: Agenda> TaskStore<B> {
    /// Returns how long a status message may be.
    pub(crate) fn max_status_message_bytes(&self) -> usize {
        self.0.config.max_status_message_bytes
    }
}
