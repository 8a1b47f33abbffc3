//! Stores in SQLite files.

use std::path::PathBuf;
use std::sync::Arc;

use mcp_task_store::{SqliteBackend, SqliteBuilder};
use rusqlite::Connection;
use tempfile::TempDir;

use super::{MAX_PART_BYTES, MAX_VALUE_BYTES, Store};

/// A folder with the file of one store. The last clone removes the folder.
#[derive(Clone)]
pub struct Folder {
    folder: Arc<TempDir>,
    is_roomy: bool,
}

impl Folder {
    pub fn new() -> Self {
        Self { folder: Arc::new(tempfile::tempdir().unwrap()), is_roomy: false }
    }

    /// Returns a folder for a store with the default limits.
    pub fn roomy() -> Self {
        Self { is_roomy: true, ..Self::new() }
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("tasks.db")
    }

    pub fn builder(&self) -> SqliteBuilder {
        let builder = SqliteBackend::builder(self.path());
        if self.is_roomy {
            return builder;
        }
        builder.max_value_bytes(MAX_VALUE_BYTES).max_part_bytes(MAX_PART_BYTES)
    }

    /// Opens the file as another process does: with connections of its own.
    pub async fn backend(&self) -> SqliteBackend {
        self.builder().open().await.unwrap()
    }

    pub async fn store(self) -> Store {
        Store {
            backend: Arc::new(self.backend().await),
            sqlite: Some(self),
            #[cfg(feature = "redis-tests")]
            redis: None,
        }
    }

    /// Opens the file as the command `sqlite3` does.
    pub fn connection(&self) -> Connection {
        let connection = Connection::open(self.path()).unwrap();
        connection.busy_timeout(std::time::Duration::from_secs(60)).unwrap();
        connection
    }
}
