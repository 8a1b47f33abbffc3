//! The limits of the settings of a [`PostgresBackend`](super::PostgresBackend).

use std::ops::RangeInclusive;

use crate::backend::{StorageError, settings};

/// The name of the engine in errors of settings.
pub(super) const ENGINE: &str = "PostgreSQL";
const CONNECTIONS: RangeInclusive<usize> = 1..=1000;

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

/// Returns the error for an invalid setting.
pub(super) fn invalid_setting(reason: String) -> StorageError {
    settings::invalid_setting(ENGINE, reason)
}
