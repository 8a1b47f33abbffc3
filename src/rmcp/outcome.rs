//! How an operation has ended, and how that is stored: it is tried until the store takes it, or answers that the attempt is
//! void.

use std::time::Duration;

use rmcp::ErrorData;
use rmcp::task_manager::TaskExit;
use tokio::time::{sleep, timeout};

use super::meaning::{Meaning, meaning};
use super::operation::Ended;
use super::renewals::RETRY;
use super::run::Run;
use super::stop::Stop;
use super::wire::{is_unreadable, rpc_error};
use crate::backend::Agenda;
use crate::printable::{Chain, Printable};
use crate::store::{Ending, TaskError};
use crate::task::RpcError;

/// How long after a shutdown began an outcome may still be stored. No supervisor waits for much longer.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(30);

fn ending(ended: Ended) -> Ending {
    let internal = |message: String| Ending::Failed(RpcError::new(-32603, message));
    match ended {
        Ok(Ok(result)) => match serde_json::to_value(result) {
            Ok(result) => Ending::Completed(result),
            Err(error) => internal(format!("the result is not JSON: {error}")),
        },
        Ok(Err(TaskExit::Cancelled)) => Ending::Cancelled,
        Ok(Err(TaskExit::Error(error))) => Ending::Failed(rpc_error(error)),
        Err(panic) => {
            tracing::error!(panic, "an operation panicked");
            internal("the operation panicked".to_owned())
        }
    }
}

impl<B: Agenda> Run<B> {
    /// Stores what the operation has ended with, and its last status message, as soon as the engine takes it, unless the
    /// attempt is void. Meanwhile its lease is renewed.
    pub(super) async fn end(self, ended: Ended, stop: &Stop) {
        tokio::select! {
            biased;
            () = self.store_outcome(ended) => {}
            () = stop.passed(SHUTDOWN_LIMIT) => tracing::error!(
                "the outcome of an operation is lost: it could not be stored within {SHUTDOWN_LIMIT:?} after the shutdown began"
            ),
        }
    }

    async fn store_outcome(&self, ended: Ended) {
        let mut ending = ending(ended);
        let (mut has_message, mut is_reduced, mut may_be_stored) = (true, false, false);
        let mut delay = Duration::from_millis(50);
        loop {
            let patience = self.patience();
            let message = self.progress.unwritten().filter(|_| has_message);
            match timeout(patience, self.attempt.end(&ending, message.as_deref())).await {
                Ok(Ok(_)) => return,
                Ok(Err(error)) => match meaning(&error) {
                    // The reply to an earlier write did not come, and the task has ended as it should.
                    Meaning::Void if may_be_stored && has_ended_so(&error, &ending) => {
                        self.attempt.report(&ending, self.operation_name().as_deref());
                        return;
                    }
                    // That was said when it became so.
                    Meaning::Void if self.is_over() => {
                        tracing::debug!(error = %Chain(&error), "the outcome of an operation was not stored");
                        return;
                    }
                    Meaning::Void => {
                        tracing::warn!(error = %Chain(&error), "the outcome of an operation was not stored: the attempt is void");
                        return;
                    }
                    // It may be the message that has no room.
                    Meaning::Final if message.is_some() && !is_unreadable(&error) => {
                        has_message = false;
                        continue;
                    }
                    Meaning::Final if is_reduced || is_unreadable(&error) => {
                        tracing::warn!(error = %Chain(&error), "the outcome of an operation cannot be stored; its worker counts as lost");
                        return;
                    }
                    // Something over the limits is no reason to leave the task open.
                    Meaning::Final => {
                        let reason = ErrorData::from(error).message;
                        tracing::warn!(reason = %Printable(&reason), "the outcome of an operation cannot be stored; the task fails");
                        let message = format!("the outcome of the operation cannot be stored: {reason}");
                        ending = Ending::Failed(RpcError::new(-32603, message));
                        is_reduced = true;
                        continue;
                    }
                    Meaning::Temporary => {
                        may_be_stored |= error.outcome_unknown();
                        tracing::debug!(error = %Chain(&error), "the outcome of an operation could not be stored yet");
                    }
                },
                Err(_) => {
                    may_be_stored = true;
                    tracing::debug!(
                        "the outcome of an operation could not be stored within {patience:?} yet"
                    );
                }
            }
            sleep(delay).await;
            delay = (delay * 2).min(RETRY);
        }
    }
}

/// Whether the task, which has ended, has the status of this ending.
fn has_ended_so(error: &TaskError, ending: &Ending) -> bool {
    matches!(error, TaskError::InvalidTransition { from, .. } if *from == ending.status())
}
