//! `mcp-tasks requeue`

use mcp_task_console::operator::Action;

use super::change;
use crate::args::{RequeueArgs, StatusArg};
use crate::engine::Store;
use crate::failure::Failure;

pub async fn run(store: &Store, args: RequeueArgs, quiet: bool) -> Result<(), Failure> {
    let mut bulk = args.bulk;
    // Completed tasks have done their work, and cancelled ones must not.
    if bulk.filter.status.is_empty() && bulk.tasks.is_empty() {
        bulk.filter.status.push(StatusArg::Failed);
    }
    change(store, bulk, Action::Requeue, quiet).await
}
