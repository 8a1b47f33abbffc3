//! Checks the settings of a backend.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::backend::{StorageError, settings};

/// The name of the engine in errors of settings.
pub(super) const ENGINE: &str = "Redis";
/// How many replicas a write may wait for.
const REPLICAS: RangeInclusive<u32> = 1..=100;

/// Checks how many replicas a write waits for, and for how long. `limit` is the time limit of a call.
pub(super) fn check_replicas(count: u32, within: Duration, limit: Duration) -> Result<(), StorageError> {
    if !REPLICAS.contains(&count) {
        return Err(invalid_setting(format!(
            "wait_for_replicas waits for {count} replicas; choose 0 to {}",
            REPLICAS.end()
        )));
    }
    if within < Duration::from_millis(1) || within >= limit {
        return Err(invalid_setting(format!(
            "wait_for_replicas waits {within:?}; choose at least 1 ms and less than the response_timeout of {limit:?}"
        )));
    }
    Ok(())
}

/// Returns the error for an invalid setting.
pub(super) fn invalid_setting(reason: String) -> StorageError {
    settings::invalid_setting(ENGINE, reason)
}
