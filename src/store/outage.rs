//! What a background task does while the engine fails.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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

/// Reports what fails because the engine does. The log has one line for the whole outage, so these are for who looks
/// closer.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    has_begun: AtomicBool,
}

impl Outage {
    pub(crate) fn begin(&self, error: &dyn fmt::Display, what: &str) {
        self.has_begun.store(true, Ordering::Release);
        tracing::debug!(%error, "{what}");
    }

    pub(crate) fn end(&self, what: &str) {
        if self.has_begun.load(Ordering::Acquire) && self.has_begun.swap(false, Ordering::AcqRel) {
            tracing::debug!("{what}");
        }
    }

    /// Reports one of many failures of single tasks.
    pub(crate) fn report(&self, error: &dyn fmt::Display, what: &str) {
        tracing::debug!(%error, "{what}");
    }
}
