//! The status message of a running operation: the newest one is written a few times a second at most, and the last one with
//! the outcome.

use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use super::meaning::{Meaning, meaning};
use super::renewals::{Signals, short_patience};
use crate::backend::Agenda;
use crate::printable::Chain;
use crate::store::Attempt;

/// Between two writes of one task.
const BETWEEN: Duration = Duration::from_millis(250);

/// The newest status message of an operation.
#[derive(Debug)]
pub(super) struct Progress {
    newest: Mutex<Newest>,
    changed: Notify,
    max_bytes: usize,
}

#[derive(Debug, Default)]
struct Newest {
    /// `None` if there is nothing to write.
    message: Option<String>,
    /// How many messages were set.
    number: u64,
}

impl Progress {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { newest: Mutex::default(), changed: Notify::new(), max_bytes }
    }

    /// Nothing panics while it holds the message.
    fn newest(&self) -> MutexGuard<'_, Newest> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the message. One over the limit is cut.
    pub(super) fn set(&self, mut message: String) {
        if message.len() > self.max_bytes {
            let boundary = (0..=self.max_bytes).rev().find(|at| message.is_char_boundary(*at));
            message.truncate(boundary.unwrap_or_default());
        }
        {
            let mut newest = self.newest();
            newest.message = Some(message);
            newest.number += 1;
        }
        self.changed.notify_one();
    }

    /// The message that is not written yet.
    pub(super) fn unwritten(&self) -> Option<String> {
        self.newest().message.clone()
    }

    /// Writes messages for as long as it is polled. One whose write fails, or is given up, stays unwritten.
    pub(super) async fn write<B: Agenda>(
        &self,
        attempt: &Attempt<B>,
        lease: Duration,
        signals: &Signals,
    ) -> Infallible {
        loop {
            let (message, number) = {
                let newest = self.newest();
                (newest.message.clone(), newest.number)
            };
            let Some(message) = message else {
                self.changed.notified().await;
                continue;
            };
            let begun = Instant::now();
            let write = timeout(short_patience(lease), attempt.set_status_message(message));
            let written = tokio::select! {
                written = write => written,
                () = signals.renewal_begins() => {
                    tracing::debug!("a status message makes way for the renewal of the lease");
                    sleep_until(begun + BETWEEN).await;
                    continue;
                }
            };
            match written {
                Ok(Ok(_)) => self.set_written(number),
                Ok(Err(error)) => {
                    tracing::debug!(error = %Chain(&error), "a status message could not be written");
                    match meaning(&error) {
                        // The renewal receives the same answer, and stops the operation.
                        Meaning::Void => {
                            signals.nudge();
                            return std::future::pending().await;
                        }
                        Meaning::Final => self.set_written(number),
                        Meaning::Temporary => {}
                    }
                }
                Err(_) => tracing::debug!("a status message could not be written in time"),
            }
            sleep_until(begun + BETWEEN).await;
        }
    }

    fn set_written(&self, number: u64) {
        let mut newest = self.newest();
        if newest.number == number {
            newest.message = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_over_the_limit_is_cut_between_two_characters() {
        let progress = Progress::new(6);
        for (message, cut) in
            [("short", "short"), ("longer", "longer"), ("too long", "too lo"), ("naïveté", "naïve")]
        {
            progress.set(message.to_owned());
            assert_eq!(progress.unwritten().as_deref(), Some(cut));
        }
        let none = Progress::new(0);
        none.set("é".to_owned());
        assert_eq!(none.unwritten().as_deref(), Some(""));
    }

    #[test]
    fn a_message_that_was_replaced_during_its_write_stays_unwritten() {
        let progress = Progress::new(100);
        progress.set("first".to_owned());
        let number = progress.newest().number;
        progress.set("second".to_owned());
        progress.set_written(number);
        assert_eq!(progress.unwritten().as_deref(), Some("second"));
        progress.set_written(number + 1);
        assert_eq!(progress.unwritten(), None);
    }
}
