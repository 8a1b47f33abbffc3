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
    // Records that cannot be read match no filter.
    let lists_unreadable = args.filter.is_empty_but_owner();
    while !has_more && let Some(mut page) = selection.next_page().await? {
        let mut unreadable = std::mem::take(&mut selection.unreadable_of_page);
        if !lists_unreadable {
            unreadable.clear();
        }
        has_more = page.len() + unreadable.len() > left;
        page.truncate(left);
        unreadable.truncate(left - page.len());
        left -= page.len() + unreadable.len();
        selection.print(|| {
            printer.print(&page, store.backend().now())?;
            printer.print_unreadable(&unreadable)
        })?;
    }
    match lists_unreadable {
        true => selection.explain_unreadable(quiet),
        false => selection.mention_unreadable(quiet),
    }
    printer.finish()?;
    if has_more {
        let limit = text::count(args.limit as u64, "task");
        remark(quiet, format_args!("stopped after {limit}; --limit N shows more"));
    } else if args.limit == left {
        remark(quiet, "no task matches");
    }
    Ok(())
}
