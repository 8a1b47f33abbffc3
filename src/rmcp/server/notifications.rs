//! Notifies a client of the progress of its call (`notifications/progress`). Several clients reset their idle timer on each
//! notification and show its message.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use rmcp::model::{ProgressNotificationParam, ProgressToken};
use rmcp::service::{Peer, RoleServer};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::printable::Chain;
use crate::task::{Progress, StoredTask};

/// The longest time between two notifications. Clients are promised one at least every 5 s.
const LONGEST: Duration = Duration::from_secs(4);
/// The shortest time between two notifications.
const SHORTEST: Duration = Duration::from_millis(250);
/// How many characters of the status message a notification has.
const MESSAGE_CHARS: usize = 200;

/// The notifications of one call.
pub(super) struct ProgressNotifications {
    peer: Peer<RoleServer>,
    /// `None` if the client wants no notifications.
    token: Option<ProgressToken>,
    values: Values,
    report: Report,
    sent_at: Instant,
}

/// What a client can see of a report.
#[derive(Clone, Debug, Default, PartialEq)]
struct Report {
    message: Option<String>,
    progress: Option<Progress>,
}

impl Report {
    fn of(task: Option<&StoredTask>) -> Self {
        let Some(stored) = task else { return Self::default() };
        let message =
            stored.task.status_message.as_deref().map(|message| first_chars(message, MESSAGE_CHARS));
        Self { message, progress: stored.task.progress.clone() }
    }
}

impl ProgressNotifications {
    pub(super) fn new(peer: Peer<RoleServer>, token: Option<ProgressToken>) -> Self {
        Self { peer, token, values: Values::default(), report: Report::default(), sent_at: Instant::now() }
    }

    /// Sends notifications while it is polled: one for each new report, at most four a second, and one at least every four
    /// seconds.
    pub(super) async fn send(&mut self, mut seen: watch::Receiver<Option<Arc<StoredTask>>>) -> Infallible {
        let Some(token) = self.token.clone() else { return pending().await };
        loop {
            let report = self.next_report(&mut seen).await;
            let notification = self.notification(token.clone(), &report);
            self.report = report;
            self.sent_at = Instant::now();
            if let Err(error) = self.peer.notify_progress(notification).await {
                tracing::debug!(error = %Chain(&error), "a client receives no progress of its call");
                return pending().await;
            }
        }
    }

    /// Waits until a notification is due, and returns its report.
    async fn next_report(&self, seen: &mut watch::Receiver<Option<Arc<StoredTask>>>) -> Report {
        let mut due = self.sent_at + LONGEST;
        loop {
            let report = Report::of(seen.borrow_and_update().as_deref());
            if report != self.report {
                due = self.sent_at + SHORTEST;
            }
            tokio::select! {
                biased;
                () = sleep_until(due) => return report,
                // The sender lives as long as the call.
                Ok(()) = seen.changed() => {}
            }
        }
    }

    fn notification(&mut self, token: ProgressToken, report: &Report) -> ProgressNotificationParam {
        let value = self.values.next(report.progress.as_ref().map_or(0, |progress| progress.done));
        let mut notification = ProgressNotificationParam::new(token, value);
        // A value over the total would show more than 100 %.
        notification.total = report
            .progress
            .as_ref()
            .and_then(|progress| progress.total)
            .map(approximate)
            .filter(|total| *total >= value);
        notification.message.clone_from(&report.message);
        notification
    }
}

/// The values of the notifications of one call. They strictly increase, as the protocol demands, even while an operation
/// reports nothing new, and after a later attempt began from the start.
#[derive(Clone, Copy, Debug, Default)]
struct Values {
    /// The highest number that was reported.
    done: u64,
    /// How many notifications have had this number.
    repeated: u32,
    last: Option<f64>,
}

impl Values {
    fn next(&mut self, done: u64) -> f64 {
        if self.last.is_some() && done <= self.done {
            self.repeated = self.repeated.saturating_add(1);
        } else {
            (self.done, self.repeated) = (done, 0);
        }
        // Less than one unit above the number, and closer to the next unit each time.
        let repeated = f64::from(self.repeated);
        let value = approximate(self.done) + repeated / (repeated + 1.0);
        let value = self.last.map_or(value, |last| value.max(last.next_up()));
        self.last = Some(value);
        value
    }
}

#[expect(clippy::cast_precision_loss, reason = "the protocol has only floating-point numbers here")]
fn approximate(number: u64) -> f64 {
    number as f64
}

fn first_chars(text: &str, max: usize) -> String {
    let end = text.char_indices().nth(max).map_or(text.len(), |(at, _)| at);
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_strictly_increase_whatever_an_operation_reports() {
        let mut values = Values::default();
        let reports = [0, 0, 0, 1, 1, 3, 2, 0, 3, 4, u64::MAX - 1, u64::MAX, u64::MAX, 5];
        let sent: Vec<_> = reports.into_iter().map(|done| values.next(done)).collect();
        assert!(sent.windows(2).all(|pair| pair[0] < pair[1]), "{sent:?}");
        assert_eq!(sent[..5], [0.0, 0.5, 2.0 / 3.0, 1.0, 1.5]);
        let mut silent = Values::default();
        let sent: Vec<_> = (0..10_000).map(|_| silent.next(7)).collect();
        assert!(sent.windows(2).all(|pair| pair[0] < pair[1]) && sent[9_999] < 8.0);
    }

    #[test]
    fn a_message_is_cut_between_two_characters() {
        assert_eq!(first_chars("naïve", 3), "naï");
        assert_eq!(first_chars("naïve", 5), "naïve");
        assert_eq!(first_chars("", 5), "");
    }
}
