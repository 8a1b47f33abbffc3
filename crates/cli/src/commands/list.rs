//! `mcp-tasks list`

use crate::args::ListArgs;
use crate::engine::Store;
use crate::failure::Failure;
use crate::output::tasks::TaskPrinter;
use crate::output::{remark, text};
use crate::selection::Wanted;

pub async fn run(store: &Store, args: &ListArgs, quiet: bool) -> Result<(), Failure> {
    let wanted = Wanted::new(&args.filter, args.rate, quiet);
    wanted.announce();
    let (mut selection, mut printer) = (wanted.select(store), TaskPrinter::new(args.form.json));
    let (mut left, mut has_more) = (args.limit, false);
    while !has_more && let Some(mut page) = selection.next_page().await? {
        has_more = page.len() > left;
        page.truncate(left);
        left -= page.len();
        selection.print(|| printer.print(&page, store.backend().now()))?;
    }
    selection.mention_unreadable(quiet);
    printer.finish()?;
    if has_more {
        let limit = text::with_commas(args.limit as u64);
        remark(quiet, format_args!("stopped after {limit} tasks; --limit N shows more"));
    } else if args.limit == left {
        remark(quiet, "no task matches");
    }
    Ok(())
}
