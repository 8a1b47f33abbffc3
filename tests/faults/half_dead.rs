//! Servers that are half dead: they accept connections and do not answer, lead to another server, or were deposed and do not know
//! it.

mod comparison;
mod faults;
mod fresh;
mod master;

use futures_util::stream::BoxStream;
use mcp_task_store::StorageError;

type Watch = BoxStream<'static, Result<(), StorageError>>;
