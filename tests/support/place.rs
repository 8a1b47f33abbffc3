//! Where a store is, for an instance in another process.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mcp_task_store::{Agenda, RedisBackend, SqliteBackend, StorageError};
use serde::{Deserialize, Serialize};

use super::Store;
use super::deployment::Endpoints;
use super::redis::url;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Place {
    /// The keys below a prefix, on the server of the tests.
    Prefix(String),
    /// Servers that a test has started.
    Servers(Endpoints),
    /// A SQLite file, and its maximum size.
    File { path: PathBuf, max_bytes: Option<u64> },
}

impl Place {
    /// Returns the place of a store that another process can open.
    pub fn of(store: &Store) -> Self {
        match (&store.redis, &store.sqlite) {
            (Some(namespace), _) => Self::Prefix(namespace.prefix.clone()),
            (_, Some(folder)) => Self::File { path: folder.path(), max_bytes: None },
            _ => panic!("no other process can open a store in this one"),
        }
    }

    pub async fn open(&self) -> Result<Arc<dyn Agenda>, StorageError> {
        Ok(match self {
            Self::Prefix(prefix) => Arc::new(RedisBackend::builder().prefix(prefix).connect(&url()).await?),
            Self::Servers(endpoints) => Arc::new(endpoints.connect(RedisBackend::builder()).await?),
            Self::File { path, max_bytes } => Arc::new(open_file(path, *max_bytes).await?),
        })
    }
}

async fn open_file(path: &Path, max_bytes: Option<u64>) -> Result<SqliteBackend, StorageError> {
    let builder = SqliteBackend::builder(path);
    let builder = match max_bytes {
        Some(max) => builder.max_file_bytes(max),
        None => builder,
    };
    builder.open().await
}
