//! Servers that are half dead: they accept and answer nothing, lead elsewhere, were deposed and do not know it.

#![cfg(feature = "redis-tests")]

mod support;

#[path = "half_dead/comparison.rs"]
mod comparison;
#[path = "half_dead/faults.rs"]
mod faults;
#[path = "half_dead/fresh.rs"]
mod fresh;
#[path = "half_dead/master.rs"]
mod master;

use futures_util::stream::BoxStream;
use mcp_task_store::StorageError;

type Watch = BoxStream<'static, Result<(), StorageError>>;
