//! `mcp-tasks owners`

use std::collections::HashSet;
use std::io::{self, Write};

use serde_json::json;

use crate::args::OwnersArgs;
use crate::engine::Store;
use crate::failure::Failure;
use crate::output::{json, remark, text};

pub async fn run(store: &Store, args: &OwnersArgs, quiet: bool) -> Result<(), Failure> {
    remark(quiet, "scans the store for owners");
    let (mut seen, mut cursor) = (HashSet::new(), None);
    loop {
        let mut page = store.owners(cursor.as_ref()).await?;
        page.owners.sort_unstable();
        let mut out = io::stdout().lock();
        for owner in page.owners {
            // An engine may list an owner twice.
            if seen.contains(&owner) {
                continue;
            }
            if seen.len() == args.limit {
                let limit = text::count(args.limit as u64, "owner");
                remark(quiet, format_args!("stopped after {limit}; --limit N shows more"));
                return Ok(());
            }
            match args.form.json {
                true => writeln!(out, "{}", json::line(&json!({ "owner": owner })))?,
                false => writeln!(out, "{}", text::plain(owner.as_str()))?,
            }
            seen.insert(owner);
        }
        out.flush()?;
        cursor = page.next;
        if cursor.is_none() {
            return Ok(());
        }
    }
}
