//! Where servers of the Model Context Protocol keep their long-running tasks.

#![warn(missing_docs, unreachable_pub)]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    warn(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::todo,
        clippy::print_stdout,
        clippy::print_stderr
    )
)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend;
mod error;
mod key;
mod memory;
mod page;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "redis")]
mod scripts;
mod store;
mod task;

pub use backend::{DEFAULT_MAX_VALUE_BYTES, Expiry, PutOptions, Record, StorageBackend, Version, Written};
pub use error::{BoxError, StorageError};
pub use key::{MAX_ID_BYTES, OwnerId, TaskId, TaskKey};
pub use memory::MemoryBackend;
pub use page::{CorruptRecord, Cursor, ListedRecord, MAX_PAGE_LIMIT, Page, PageRequest};
#[cfg(feature = "redis")]
pub use redis::{RedisBackend, RedisBuilder};
pub use store::{NewTask, StoreConfig, TaskError, TaskPage, TaskRef, TaskStore, Ttl};
pub use task::{RpcError, StoredTask, Task, TaskStatus};
