//! The status message of a running operation. The newest message is written at most four times a second, and the last one
//! together with the outcome.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep_until, timeout};

use super::error_class::ErrorClass;
use super::renewals::RenewalSignals;
use super::task_state::RunState;
use super::timeouts::short_call_timeout;
use crate::backend::Agenda;
use crate::printable::Chain;
use crate::store::{Attempt, TaskError};
use crate::task::StoredTask;

/// The time between two writes for one task.
const WRITE_INTERVAL: Duration = Duration::from_millis(250);

/// The newest status message of an operation.
#[derive(Debug)]
pub(super) struct StatusMessage {
    newest: Mutex<Newest>,
    changed: Notify,
    max_bytes: usize,
}

#[derive(Clone, Debug, Default)]
struct Newest {
    /// `None` if the newest message is written.
    unwritten: Option<String>,
    /// How many messages the operation has set.
    number: u64,
}

/// The attempt is void.
struct Void;

impl StatusMessage {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { newest: Mutex::default(), changed: Notify::new(), max_bytes }
    }

    fn newest(&self) -> MutexGuard<'_, Newest> {
        // No code panics while it holds this lock.
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the message. A message over the limit is cut.
    pub(super) fn set(&self, mut message: String) {
        if message.len() > self.max_bytes {
            let boundary = (0..=self.max_bytes).rev().find(|at| message.is_char_boundary(*at));
            message.truncate(boundary.unwrap_or_default());
        }
        {
            let mut newest = self.newest();
            newest.unwritten = Some(message);
            newest.number += 1;
        }
        self.changed.notify_one();
    }

    /// Returns the message that is not written yet.
    pub(super) fn unwritten(&self) -> Option<String> {
        self.newest().unwritten.clone()
    }

    /// Writes messages while it is polled. A message whose write fails or is dropped stays unwritten.
    pub(super) async fn write<B: Agenda>(
        &self,
        attempt: &Attempt<B>,
        state: &RunState,
        lease: Duration,
        signals: &RenewalSignals,
    ) -> Infallible {
        let mut earliest = Instant::now();
        loop {
            self.message_is_unwritten().await;
            if Instant::now() < earliest {
                // Even a time in the past can take a turn of the timer.
                sleep_until(earliest).await;
            }
            let Newest { unwritten: Some(message), number } = self.newest().clone() else { continue };
            let (begun, since) = (Instant::now(), std::time::Instant::now());
            let copy = state.begin_write(since);
            let mut write = pin!(attempt.write_status_message(copy.as_deref(), &message));
            tokio::select! {
                biased;
                written = timeout(short_call_timeout(lease), write.as_mut()) => match self.finish_write(written, number) {
                    Ok(stored) => stored.into_iter().for_each(|stored| state.set(Arc::new(stored), since)),
                    Err(Void) => {
                        // The renewal receives the same answer and stops the operation.
                        signals.request_renewal();
                        return std::future::pending().await;
                    }
                },
                () = signals.renewal_begins() => {
                    tracing::debug!("the write of a status message was dropped in favor of the renewal of the lease");
                }
            }
            earliest = begun + WRITE_INTERVAL;
        }
    }

    /// Waits until there is a message that is not written yet.
    async fn message_is_unwritten(&self) {
        while self.newest().unwritten.is_none() {
            self.changed.notified().await;
        }
    }

    /// Handles the result of a write. Returns the written task, if the write succeeded.
    fn finish_write(
        &self,
        written: Result<Result<StoredTask, TaskError>, Elapsed>,
        number: u64,
    ) -> Result<Option<StoredTask>, Void> {
        match written {
            Ok(Ok(stored)) => {
                self.set_written(number);
                return Ok(Some(stored));
            }
            Ok(Err(error)) => {
                tracing::debug!(error = %Chain(&error), "a status message could not be written");
                match ErrorClass::of(&error) {
                    ErrorClass::Void => return Err(Void),
                    ErrorClass::Permanent => self.set_written(number),
                    ErrorClass::Transient => {}
                }
            }
            Err(_) => tracing::debug!("a status message could not be written in time"),
        }
        Ok(None)
    }

    fn set_written(&self, number: u64) {
        let mut newest = self.newest();
        if newest.number == number {
            newest.unwritten = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_over_the_limit_is_cut_between_two_characters() {
        let message = StatusMessage::new(6);
        for (set, cut) in
            [("short", "short"), ("longer", "longer"), ("too long", "too lo"), ("naïveté", "naïve")]
        {
            message.set(set.to_owned());
            assert_eq!(message.unwritten().as_deref(), Some(cut));
        }
        let none = StatusMessage::new(0);
        none.set("é".to_owned());
        assert_eq!(none.unwritten().as_deref(), Some(""));
    }

    #[test]
    fn a_message_that_was_replaced_during_its_write_stays_unwritten() {
        let message = StatusMessage::new(100);
        message.set("first".to_owned());
        let number = message.newest().number;
        message.set("second".to_owned());
        message.set_written(number);
        assert_eq!(message.unwritten().as_deref(), Some("second"));
        message.set_written(number + 1);
        assert_eq!(message.unwritten(), None);
    }
}
