//! One line in the log when something begins to fail, and one when it works again.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How often a failure is reported that has no end to report.
const AT_MOST_EVERY: Duration = Duration::from_secs(60);

/// How long to wait after an error: longer after each in a row.
#[derive(Debug)]
pub(crate) struct BackOff(Duration);

impl BackOff {
    const FIRST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(1);

    pub(crate) fn new() -> Self {
        Self(Self::FIRST)
    }

    pub(crate) fn longer(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(Self::LONGEST);
        pause
    }
}

/// Whether something fails at the moment, as the log was told.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    has_begun: AtomicBool,
    reported: Mutex<Option<Instant>>,
}

impl Outage {
    pub(crate) fn begin(&self, error: &dyn fmt::Display, what: &str) {
        if self.has_begun.swap(true, Ordering::AcqRel) {
            tracing::debug!(%error, "{what}");
        } else {
            tracing::warn!(%error, "{what}");
        }
    }

    pub(crate) fn end(&self, what: &str) {
        if self.has_begun.load(Ordering::Acquire) && self.has_begun.swap(false, Ordering::AcqRel) {
            tracing::info!("{what}");
        }
    }

    /// Reports one of many failures of single tasks, at most once a minute.
    pub(crate) fn report(&self, error: &dyn fmt::Display, what: &str) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.is_none_or(|at| at.elapsed() >= AT_MOST_EVERY) {
            *reported = Some(Instant::now());
            tracing::warn!(%error, "{what}");
        } else {
            tracing::debug!(%error, "{what}");
        }
    }
}
