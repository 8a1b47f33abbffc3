//! `mcp-tasks purge`

use mcp_task_console::operator::Action;

use crate::args::PurgeArgs;
use crate::bulk::Change;
use crate::engine::Store;
use crate::failure::Failure;
use crate::selection::Wanted;

pub fn check(args: &PurgeArgs) -> Result<(), Failure> {
    match args.all_ended || args.filter.older_than.is_some() {
        true => Ok(()),
        false => {
            Err(Failure::usage("say which tasks to delete: --older-than AGE, for example 7d, or --all-ended"))
        }
    }
}

pub async fn run(store: &Store, args: PurgeArgs, quiet: bool) -> Result<(), Failure> {
    let (action, json) = (Action::Delete { force: false }, args.form.json);
    let change = Change { action, yes: args.yes, dry_run: args.dry_run, json, quiet };
    change.matching(store, &Wanted::new(&args.filter, args.rate, quiet)).await
}
