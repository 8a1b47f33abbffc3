//! Stores the task of an operation that has ended in memory with an error to retry, and gives the task back to its queue.

use std::pin::pin;

use rmcp::ErrorData;
use tokio::task::JoinError;
use tokio::time::sleep;

use super::storing::{is_refusal, limit_elapsed};
use super::{CallAnswer, CallRun};
use crate::backend::Agenda;
use crate::printable::Chain;
use crate::rmcp::operation::Outcome;
use crate::rmcp::outcome;
use crate::rmcp::run::Run;
use crate::store::{BackOff, NewTask, Starting};
use crate::task::StoredTask;

impl<B: Agenda> CallRun<B> {
    /// Returns the error of an operation that is retried. Once a shutdown has begun, nothing new is stored.
    pub(super) fn error_to_retry(&self, ended: &Result<Outcome, JoinError>) -> Option<ErrorData> {
        match ended {
            Ok(Outcome::Retry(error)) if self.can_resume && !self.shutdown.has_begun() => Some(error.clone()),
            _ => None,
        }
    }

    /// Stores the task, answers the call with it, and retries it.
    pub(super) async fn store_and_retry(self, new: NewTask, error: ErrorData) {
        let starting = self.starting(new);
        self.retry_once_stored(starting, error, None).await;
    }

    /// Answers the call with its stored task, and retries it. `stored` is the task if it is stored already. A task that cannot be
    /// stored ends with the error, which then answers the call.
    pub(super) async fn retry_once_stored(
        mut self,
        starting: Starting<B>,
        error: ErrorData,
        stored: Option<Box<StoredTask>>,
    ) {
        let stored = match stored {
            Some(stored) => Some(stored),
            None => self.try_while_held(&starting).await,
        };
        let Some(stored) = stored else {
            let outcome = self.answer_end(Ok(Outcome::Retry(error)));
            return self.store_outcome(starting, outcome, None).await;
        };
        let answer = self.answer.take();
        let Self { store, renewer, operation, reports, stage, shutdown, .. } = self;
        let attempt = starting.attempt().clone();
        let run = Run::continue_with(store, renewer, attempt, *stored, operation, reports);
        let stored = CallAnswer::Stored(run.state.stored());
        if answer.is_some_and(|answer| answer.send(Ok(stored)).is_err()) {
            tracing::debug!("the task of a call is stored, and its client has left");
        }
        drop((starting, stage));
        outcome::store(run, Outcome::Retry(error), &shutdown).await;
    }

    /// Tries to store the task until it is stored, or the call is held no longer.
    async fn try_while_held(&self, starting: &Starting<B>) -> Option<Box<StoredTask>> {
        let mut limit = pin!(limit_elapsed(self.begun, self.limits, self.shutdown.clone()));
        let mut back_off = BackOff::new();
        loop {
            let mut create = pin!(starting.try_to_store());
            let tried = tokio::select! {
                biased;
                tried = create.as_mut() => tried,
                _ = limit.as_mut() => return self.last_try(create).await,
            };
            match tried {
                Ok(stored) => return Some(Box::new(stored)),
                Err(error) if is_refusal(&error) => return None,
                Err(error) => {
                    tracing::debug!(error = %Chain(&error), "the task of a call could not be stored yet");
                }
            }
            tokio::select! {
                biased;
                _ = limit.as_mut() => return None,
                () = sleep(back_off.next_pause()) => {}
            }
        }
    }
}
