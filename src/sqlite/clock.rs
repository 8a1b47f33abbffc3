//! The clock of the engine: the clock of the operating system, which all processes on one file share.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the time in microseconds since the epoch.
pub(super) fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}

/// Returns the time in milliseconds since the epoch.
pub(super) fn now_ms() -> u64 {
    now_us() / 1000
}

/// Converts a number that the engine computed for a column. Columns are signed; no time or version comes near the limit.
pub(super) fn column(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
