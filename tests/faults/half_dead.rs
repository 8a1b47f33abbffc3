//! Servers that are half dead: they accept and answer nothing, lead elsewhere, were deposed and do not know it.

mod comparison;
mod faults;
mod fresh;
mod master;

use futures_util::stream::BoxStream;
use mcp_task_store::StorageError;

type Watch = BoxStream<'static, Result<(), StorageError>>;
