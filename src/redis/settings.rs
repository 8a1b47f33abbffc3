//! The limits of the settings of a backend.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::backend::StorageError;

/// The time limits of a connection and of a call. The kernel counts some of them in 32 bits of milliseconds.
const LIMITS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3600);
/// The sizes of data and parts. No string in Redis is larger.
const SIZES: RangeInclusive<usize> = 1..=512 * 1024 * 1024;
/// How many replicas a write may wait for.
const REPLICAS: RangeInclusive<u32> = 1..=100;

pub(super) fn check_limit(setting: &str, given: Duration) -> Result<(), StorageError> {
    match LIMITS.contains(&given) {
        true => Ok(()),
        false => Err(invalid_setting(format!("{setting} is {given:?}; choose 1 ms to 1 h"))),
    }
}

pub(super) fn check_size(setting: &str, given: usize) -> Result<(), StorageError> {
    match SIZES.contains(&given) {
        true => Ok(()),
        false => Err(invalid_setting(format!(
            "{setting} is {given}; choose 1 byte to 512 MiB ({} bytes)",
            SIZES.end()
        ))),
    }
}

/// Checks how many replicas a write waits for and how long, where a call may take `limit`.
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

/// Returns the error for a setting that cannot be used. Nothing was sent.
pub(super) fn invalid_setting(reason: String) -> StorageError {
    StorageError::Backend { address: "Redis".to_owned(), reason, outcome_unknown: false, source: None }
}
