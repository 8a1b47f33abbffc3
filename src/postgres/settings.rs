//! The limits of the settings of a [`PostgresBackend`](super::PostgresBackend).

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::backend::StorageError;

/// How long a call may take.
const LIMITS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3600);
/// The maximum sizes of data and of parts. PostgreSQL has no values over 1 GB.
const SIZES: RangeInclusive<usize> = 1..=512 * 1024 * 1024;
const CONNECTIONS: RangeInclusive<usize> = 1..=1000;

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

pub(super) fn check_connections(given: usize) -> Result<(), StorageError> {
    match CONNECTIONS.contains(&given) {
        true => Ok(()),
        false => Err(invalid_setting(format!(
            "max_connections is {given}; choose {} to {}",
            CONNECTIONS.start(),
            CONNECTIONS.end()
        ))),
    }
}

pub(super) fn invalid_setting(reason: String) -> StorageError {
    StorageError::Backend { address: "PostgreSQL".to_owned(), reason, outcome_unknown: false, source: None }
}
