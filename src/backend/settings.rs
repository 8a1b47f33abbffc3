//! Checks of the settings that engines share.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::error::StorageError;

/// The time limits of connections and calls. The kernel stores some of them as 32 bits of milliseconds.
const LIMITS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3600);
/// The maximum sizes of data and of parts. Redis has no larger strings, and the values of SQLite and PostgreSQL end at 1 GB.
const SIZES: RangeInclusive<usize> = 1..=512 * 1024 * 1024;

pub(crate) fn check_limit(engine: &str, setting: &str, given: Duration) -> Result<(), StorageError> {
    match LIMITS.contains(&given) {
        true => Ok(()),
        false => Err(invalid_setting(engine, format!("{setting} is {given:?}; choose 1 ms to 1 h"))),
    }
}

pub(crate) fn check_size(engine: &str, setting: &str, given: usize) -> Result<(), StorageError> {
    match SIZES.contains(&given) {
        true => Ok(()),
        false => Err(invalid_setting(
            engine,
            format!("{setting} is {given}; choose 1 byte to 512 MiB ({} bytes)", SIZES.end()),
        )),
    }
}

/// Returns the error for an invalid setting. Nothing was sent or opened.
pub(crate) fn invalid_setting(engine: &str, reason: String) -> StorageError {
    StorageError::Backend { address: engine.to_owned(), reason, outcome_unknown: false, source: None }
}
