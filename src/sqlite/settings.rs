//! The settings of a [`SqliteBackend`](super::SqliteBackend), and their limits.

use crate::backend::StorageError;
use crate::backend::settings::invalid_setting;

/// The name of the engine in errors of settings.
pub(super) const ENGINE: &str = "SQLite";
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

pub(super) fn check_file_size(given: u64) -> Result<(), StorageError> {
    match given >= SMALLEST_FILE {
        true => Ok(()),
        false => Err(invalid_setting(
            ENGINE,
            format!("max_file_bytes is {given}; choose at least {SMALLEST_FILE}"),
        )),
    }
}
