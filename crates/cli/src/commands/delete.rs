//! `mcp-tasks delete`

use mcp_task_console::operator::Action;

use super::change;
use crate::args::DeleteArgs;
use crate::engine::Store;
use crate::failure::Failure;

pub async fn run(store: &Store, args: DeleteArgs, quiet: bool) -> Result<(), Failure> {
    change(store, args.bulk, Action::Delete { force: args.force }, quiet).await
}
