//! Durations: whole milliseconds, random delays, and the pauses of a background task while the engine fails.

use std::time::Duration;

/// Rounds a duration up to whole milliseconds.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// Returns a random duration of less than `millis` milliseconds.
pub(super) fn jittered(millis: u64) -> Duration {
    Duration::from_micros(uuid::Uuid::new_v4().as_u64_pair().1 % (millis * 1000))
}

/// Returns a random number.
pub(super) fn random() -> u64 {
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    // Each half has a few bits that are the same in every id.
    high.rotate_left(32) ^ low
}

/// Waits before the next try, after `conflicts` compare-and-swaps have failed. The random delay grows with each
/// conflict.
pub(super) async fn pause_after_conflicts(conflicts: u32) {
    if conflicts > 0 {
        tokio::time::sleep(jittered(1 << conflicts.min(6))).await;
    }
}

/// The pauses of a background task while the engine fails. Each pause is twice as long as the previous one, up to a
/// limit.
#[derive(Debug)]
pub(crate) struct BackOff(Duration);

impl BackOff {
    const FIRST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(1);

    pub(crate) fn new() -> Self {
        Self(Self::FIRST)
    }

    /// Returns the next pause, and doubles the pause after it.
    pub(crate) fn next_pause(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(Self::LONGEST);
        pause
    }
}
