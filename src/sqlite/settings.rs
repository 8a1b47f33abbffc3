//! The settings of a [`SqliteBackend`](super::SqliteBackend), and their limits.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::backend::StorageError;

/// How long a call may wait for a lock.
const LIMITS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3600);
/// The maximum sizes of data and of parts. SQLite has no longer values than 1 GB.
const SIZES: RangeInclusive<usize> = 1..=512 * 1024 * 1024;
/// The smallest limit of the file. The empty tables need less.
const SMALLEST_FILE: u64 = 128 * 1024;

/// When SQLite waits until the disk has stored a transaction (<https://www.sqlite.org/pragma.html#pragma_synchronous>).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Synchronous {
    /// Each transaction is on the disk before its writes are acknowledged. A power loss or a crash of the operating
    /// system loses no acknowledged write.
    #[default]
    Full,
    /// SQLite syncs only when it copies the write-ahead log into the file. Writes are several times as fast. A power
    /// loss or a crash of the operating system may lose the latest acknowledged writes, and the file stays intact. A
    /// crash of the process loses nothing.
    Normal,
}

impl Synchronous {
    pub(super) fn pragma(self) -> &'static str {
        match self {
            Self::Full => "FULL",
            Self::Normal => "NORMAL",
        }
    }
}

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

pub(super) fn check_file_size(given: u64) -> Result<(), StorageError> {
    match given >= SMALLEST_FILE {
        true => Ok(()),
        false => Err(invalid_setting(format!("max_file_bytes is {given}; choose at least {SMALLEST_FILE}"))),
    }
}

fn invalid_setting(reason: String) -> StorageError {
    StorageError::Backend { address: "SQLite".to_owned(), reason, outcome_unknown: false, source: None }
}
