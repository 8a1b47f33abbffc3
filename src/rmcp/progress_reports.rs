//! What a running operation reports about its work: its status message and its progress. The newest report is written at
//! most four times a second, and the last one together with the outcome.

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
use crate::store::{Attempt, ProgressReport, TaskError};
use crate::task::{Progress, StoredTask};

/// The time between two writes for one task.
const WRITE_INTERVAL: Duration = Duration::from_millis(250);

/// The newest report of an operation.
#[derive(Debug)]
pub(super) struct ProgressReports {
    newest: Mutex<Newest>,
    changed: Notify,
    max_message_bytes: usize,
}

#[derive(Clone, Debug, Default)]
struct Newest {
    /// `None` if the newest report is written.
    unwritten: Option<ProgressReport>,
    /// How many reports the operation has made.
    number: u64,
}

/// The attempt is void.
struct Void;

impl ProgressReports {
    pub(super) fn new(max_message_bytes: usize) -> Self {
        Self { newest: Mutex::default(), changed: Notify::new(), max_message_bytes }
    }

    fn newest(&self) -> MutexGuard<'_, Newest> {
        // No code panics while it holds this lock.
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the report. A message over the limit is cut. A report without progress leaves the progress as it is.
    pub(super) fn set(&self, mut message: String, progress: Option<Progress>) {
        if message.len() > self.max_message_bytes {
            let boundary = (0..=self.max_message_bytes).rev().find(|at| message.is_char_boundary(*at));
            message.truncate(boundary.unwrap_or_default());
        }
        {
            let mut newest = self.newest();
            let earlier = newest.unwritten.take().and_then(|unwritten| unwritten.progress);
            let progress = progress.or(earlier);
            newest.unwritten = Some(ProgressReport { status_message: message, progress });
            newest.number += 1;
        }
        self.changed.notify_one();
    }

    /// Returns the report that is not written yet.
    pub(super) fn unwritten(&self) -> Option<ProgressReport> {
        self.newest().unwritten.clone()
    }

    /// Returns the report that is not written yet, and its number for [`set_written`](Self::set_written).
    pub(super) fn unwritten_with_number(&self) -> Option<(ProgressReport, u64)> {
        let Newest { unwritten, number } = self.newest().clone();
        unwritten.map(|report| (report, number))
    }

    /// Writes reports while it is polled. A report whose write fails or is dropped stays unwritten.
    pub(super) async fn write<B: Agenda>(
        &self,
        attempt: &Attempt<B>,
        state: &RunState,
        lease: Duration,
        signals: &RenewalSignals,
    ) -> Infallible {
        let mut earliest = Instant::now();
        loop {
            self.report_is_unwritten().await;
            if Instant::now() < earliest {
                // Even a time in the past can take a turn of the timer.
                sleep_until(earliest).await;
            }
            let Newest { unwritten: Some(report), number } = self.newest().clone() else { continue };
            let (begun, since) = (Instant::now(), std::time::Instant::now());
            let copy = state.begin_write(since);
            let mut write = pin!(attempt.report_progress(copy.as_deref(), &report));
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
                    tracing::debug!("the write of a report of progress was dropped in favor of the renewal of the lease");
                }
            }
            earliest = begun + WRITE_INTERVAL;
        }
    }

    /// Waits until there is a report that is not written yet.
    async fn report_is_unwritten(&self) {
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
                tracing::debug!(error = %Chain(&error), "a report of progress could not be written");
                match ErrorClass::of(&error) {
                    ErrorClass::Void => return Err(Void),
                    ErrorClass::Permanent => self.set_written(number),
                    ErrorClass::Transient => {}
                }
            }
            Err(_) => tracing::debug!("a report of progress could not be written in time"),
        }
        Ok(None)
    }

    /// Says that the report of this number is written. A newer one stays unwritten.
    pub(super) fn set_written(&self, number: u64) {
        let mut newest = self.newest();
        if newest.number == number {
            newest.unwritten = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(reports: &ProgressReports) -> Option<String> {
        reports.unwritten().map(|report| report.status_message)
    }

    #[test]
    fn a_message_over_the_limit_is_cut_between_two_characters() {
        let reports = ProgressReports::new(6);
        for (set, cut) in
            [("short", "short"), ("longer", "longer"), ("too long", "too lo"), ("naïveté", "naïve")]
        {
            reports.set(set.to_owned(), None);
            assert_eq!(message(&reports).as_deref(), Some(cut));
        }
        let none = ProgressReports::new(0);
        none.set("é".to_owned(), None);
        assert_eq!(message(&none).as_deref(), Some(""));
    }

    #[test]
    fn a_report_that_was_replaced_during_its_write_stays_unwritten() {
        let reports = ProgressReports::new(100);
        reports.set("first".to_owned(), None);
        let number = reports.newest().number;
        reports.set("second".to_owned(), None);
        reports.set_written(number);
        assert_eq!(message(&reports).as_deref(), Some("second"));
        reports.set_written(number + 1);
        assert_eq!(reports.unwritten(), None);
    }

    #[test]
    fn a_message_without_progress_keeps_the_progress_that_is_not_written_yet() {
        let reports = ProgressReports::new(100);
        reports.set("one".to_owned(), Some(Progress::new(1, 3)));
        reports.set("a word".to_owned(), None);
        let unwritten = reports.unwritten().unwrap();
        assert_eq!((&*unwritten.status_message, unwritten.progress), ("a word", Some(Progress::new(1, 3))));
        reports.set("two".to_owned(), Some(Progress::new(2, None)));
        assert_eq!(reports.unwritten().unwrap().progress, Some(Progress::new(2, None)));
    }
}
