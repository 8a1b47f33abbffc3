//! `mcp-tasks delete`

use super::change;
use crate::action::Action;
use crate::args::DeleteArgs;
use crate::engine::Store;
use crate::failure::Failure;

pub async fn run(store: &Store, args: DeleteArgs, quiet: bool) -> Result<(), Failure> {
    change(store, args.bulk, Action::Delete { force: args.force }, quiet).await
}
