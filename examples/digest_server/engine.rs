//! The engine that keeps the tasks.

use std::env::{VarError, var};
use std::path::PathBuf;
use std::sync::Arc;

use mcp_task_store::{Agenda, MemoryBackend};
use tokio::process::Command;

use crate::{Failure, Options};

/// The environment variable with the URL of Redis. The URL may contain a password, which must not appear in a command line.
const REDIS_VARIABLE: &str = "DIGEST_SERVER_REDIS_URL";

pub enum Engine {
    Memory,
    Sqlite { file: PathBuf },
    Redis { url: String },
}

impl Engine {
    /// Returns the engine that the options choose. The options take precedence over the environment variable.
    pub fn of(options: &Options) -> Result<Self, Failure> {
        if let Some(file) = &options.sqlite {
            return Ok(Self::Sqlite { file: file.clone() });
        }
        if let Some(url) = &options.redis {
            return Ok(Self::Redis { url: url.clone() });
        }
        match var(REDIS_VARIABLE) {
            Ok(url) => Ok(Self::Redis { url }),
            Err(VarError::NotPresent) => Ok(Self::Memory),
            Err(VarError::NotUnicode(_)) => Err(format!("{REDIS_VARIABLE} is not UTF-8").into()),
        }
    }

    /// Returns whether several processes can use the engine.
    pub fn is_shared(&self) -> bool {
        !matches!(self, Self::Memory)
    }

    /// Makes a server process use this engine.
    pub fn pass_to(&self, server: &mut Command) {
        match self {
            Self::Memory => {}
            Self::Sqlite { file } => drop(server.arg("--sqlite").arg(file)),
            Self::Redis { url } => drop(server.env(REDIS_VARIABLE, url)),
        }
    }

    pub async fn open(&self) -> Result<Arc<dyn Agenda>, Failure> {
        match self {
            Self::Memory => Ok(Arc::new(MemoryBackend::new())),
            #[cfg(feature = "sqlite")]
            Self::Sqlite { file } => Ok(Arc::new(mcp_task_store::SqliteBackend::open(file).await?)),
            #[cfg(not(feature = "sqlite"))]
            Self::Sqlite { .. } => Err("--sqlite needs a build with --features sqlite".into()),
            #[cfg(feature = "redis")]
            Self::Redis { url } => Ok(Arc::new(mcp_task_store::RedisBackend::connect(url).await?)),
            #[cfg(not(feature = "redis"))]
            Self::Redis { .. } => Err("--redis needs a build with --features redis".into()),
        }
    }
}
