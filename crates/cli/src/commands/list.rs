//! `mcp-tasks list`

use crate::args::ListArgs;
use crate::engine::Store;
use crate::failure::Failure;
use crate::output::tasks::TaskPrinter;
use crate::output::{remark, text};
use crate::selection::Wanted;

/// How many tasks one part of a table has. Its columns have one width.
const PART: usize = 1_000;

pub async fn run(store: &Store, args: &ListArgs, quiet: bool) -> Result<(), Failure> {
    let wanted = Wanted::new(&args.filter, args.rate, quiet);
    wanted.announce();
    let (mut selection, mut printer) = (wanted.select(store), TaskPrinter::new(args.form.json));
    let (mut part, mut left, mut has_more) = (Vec::new(), args.limit, false);
    while !has_more && let Some(mut page) = selection.next_page().await? {
        has_more = page.len() > left;
        page.truncate(left);
        left -= page.len();
        part.extend(page);
        if part.len() >= PART {
            printer.print(&part, store.backend().now())?;
            part.clear();
        }
    }
    selection.mention_unreadable(quiet);
    drop(selection);
    let is_empty = args.limit == left;
    printer.print(&part, store.backend().now())?;
    if has_more {
        let limit = text::with_commas(args.limit as u64);
        remark(quiet, format_args!("stopped after {limit} tasks; --limit N shows more"));
    } else if is_empty {
        remark(quiet, "no task matches");
    }
    Ok(())
}
