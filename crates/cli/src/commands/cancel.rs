//! `mcp-tasks cancel`

use mcp_task_console::operator::Action;

use super::change;
use crate::args::CancelArgs;
use crate::engine::Store;
use crate::failure::Failure;

pub async fn run(store: &Store, args: CancelArgs, quiet: bool) -> Result<(), Failure> {
    let action = if args.now { Action::CancelNow } else { Action::RequestCancel };
    change(store, args.bulk, action, quiet).await
}
