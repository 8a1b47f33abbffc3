//! Configures and opens a [`SqliteBackend`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::SqliteBackend;
use super::error::Errors;
use super::open::File;
use super::settings::{ENGINE, Synchronous, check_file_size};
use crate::backend::engine::MaxSizes;
use crate::backend::settings::{check_limit, check_size};
use crate::backend::{DEFAULT_MAX_PART_BYTES, DEFAULT_MAX_VALUE_BYTES, StorageError};

/// Configures a [`SqliteBackend`] and opens its file.
///
/// [`SqliteBackend::builder`] returns a builder. Each setting has a default, and each method replaces one.
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("tasks.db");
/// use std::time::Duration;
/// use mcp_task_store::{SqliteBackend, Synchronous};
///
/// let backend = SqliteBackend::builder(path)
///     .synchronous(Synchronous::Normal)
///     .busy_timeout(Duration::from_secs(2))
///     .open()
///     .await?;
/// # drop(backend);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct SqliteBuilder {
    path: PathBuf,
    synchronous: Synchronous,
    busy_timeout: Duration,
    max_value_bytes: usize,
    max_part_bytes: usize,
    max_file_bytes: Option<u64>,
    must_exist: bool,
}

impl SqliteBackend {
    /// Opens a file with the default settings of [`SqliteBuilder`]. Creates the file if it does not exist.
    ///
    /// # Errors
    /// The errors of [`SqliteBuilder::open`].
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, StorageError> {
        Self::builder(path).open().await
    }

    /// Returns a builder with the default settings.
    pub fn builder(path: impl AsRef<Path>) -> SqliteBuilder {
        SqliteBuilder {
            path: path.as_ref().to_owned(),
            synchronous: Synchronous::default(),
            busy_timeout: Duration::from_secs(5),
            max_value_bytes: DEFAULT_MAX_VALUE_BYTES,
            max_part_bytes: DEFAULT_MAX_PART_BYTES,
            max_file_bytes: None,
            must_exist: false,
        }
    }
}

impl SqliteBuilder {
    /// Sets when SQLite waits for the disk. The default is [`Synchronous::Full`]: no acknowledged write is lost.
    pub fn synchronous(mut self, synchronous: Synchronous) -> Self {
        self.synchronous = synchronous;
        self
    }

    /// Sets how long a call waits while another process holds a lock on the file: 1 ms to 1 h. The default is 5 s.
    ///
    /// A call that waits longer fails with [`Unavailable`](StorageError::Unavailable), and has written nothing.
    pub fn busy_timeout(mut self, limit: Duration) -> Self {
        self.busy_timeout = limit;
        self
    }

    /// Sets the maximum size of a record's data in bytes: 1 byte to 512 MiB. The default is 1 MiB.
    pub fn max_value_bytes(mut self, max: usize) -> Self {
        self.max_value_bytes = max;
        self
    }

    /// Sets the maximum size of a part in bytes: 1 byte to 512 MiB. The default is 4 MiB.
    pub fn max_part_bytes(mut self, max: usize) -> Self {
        self.max_part_bytes = max;
        self
    }

    /// Sets the maximum size of the file in bytes, without its write-ahead log: at least 128 KiB. The default is no
    /// maximum.
    ///
    /// A write that needs more fails with [`CapacityExceeded`](StorageError::CapacityExceeded), and has written
    /// nothing. The space of deleted and expired records is used again. Give all processes on one file the same
    /// maximum.
    pub fn max_file_bytes(mut self, max: u64) -> Self {
        self.max_file_bytes = Some(max);
        self
    }

    /// Requires a file with the tables of this version: [`open`](Self::open) then neither creates the file nor creates or migrates its
    /// tables. For tools that look into the store of a server.
    pub fn must_exist(mut self) -> Self {
        self.must_exist = true;
        self
    }

    /// Opens the file, and creates or migrates its tables.
    ///
    /// # Errors
    /// * `Backend` for an invalid setting, for a folder that does not exist, and for a file that is damaged, that belongs
    ///   to another program, that a newer version of this crate has written, or that [must exist](Self::must_exist) and does not;
    /// * `Denied` if this process may not write to the file or to its folder;
    /// * `Unavailable` if another process keeps the file locked;
    /// * `CapacityExceeded` if no space is left.
    ///
    /// A file that cannot be opened is unchanged.
    pub async fn open(self) -> Result<SqliteBackend, StorageError> {
        check_limit(ENGINE, "busy_timeout", self.busy_timeout)?;
        check_size(ENGINE, "max_value_bytes", self.max_value_bytes)?;
        check_size(ENGINE, "max_part_bytes", self.max_part_bytes)?;
        self.max_file_bytes.map_or(Ok(()), check_file_size)?;
        let errors = Errors { address: self.path.display().to_string(), busy_timeout: self.busy_timeout };
        let file = File {
            path: self.path,
            synchronous: self.synchronous,
            max_file_bytes: self.max_file_bytes,
            must_exist: self.must_exist,
            errors,
        };
        SqliteBackend::start(file, MaxSizes { value: self.max_value_bytes, part: self.max_part_bytes }).await
    }
}
