//! The status message of a running operation. The newest message is written at most four times a second, and the last one
//! together with the outcome.

use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep_until, timeout};

use super::error_class::ErrorClass;
use super::renewals::RenewalSignals;
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
        lease: Duration,
        signals: &RenewalSignals,
    ) -> Infallible {
        loop {
            let Newest { unwritten, number } = self.newest().clone();
            let Some(message) = unwritten else {
                self.changed.notified().await;
                continue;
            };
            let begun = Instant::now();
            let write = timeout(short_call_timeout(lease), attempt.set_status_message(message));
            tokio::select! {
                written = write => if self.finish_write(written, number) {
                    // The renewal receives the same answer and stops the operation.
                    signals.request_renewal();
                    return std::future::pending().await;
                },
                () = signals.renewal_begins() => {
                    tracing::debug!("the write of a status message was dropped in favor of the renewal of the lease");
                }
            }
            sleep_until(begun + WRITE_INTERVAL).await;
        }
    }

    /// Handles the result of a write. Returns whether the attempt is void.
    fn finish_write(&self, written: Result<Result<StoredTask, TaskError>, Elapsed>, number: u64) -> bool {
        match written {
            Ok(Ok(_)) => self.set_written(number),
            Ok(Err(error)) => {
                tracing::debug!(error = %Chain(&error), "a status message could not be written");
                match ErrorClass::of(&error) {
                    ErrorClass::Void => return true,
                    ErrorClass::Permanent => self.set_written(number),
                    ErrorClass::Transient => {}
                }
            }
            Err(_) => tracing::debug!("a status message could not be written in time"),
        }
        false
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
