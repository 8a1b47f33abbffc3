//! Pages of the records of one owner, and pages of owners.

use super::database::{Access, Database};
use super::rows::{Fields, Stored, column, signed};
use crate::backend::engine::{PageBounds, cursor, from_micros};
use crate::backend::key::{escape, stable_hash, unescape};
use crate::backend::{CorruptRecord, Cursor, ListedRecord, OwnerId, OwnerPage, Page, StorageError, TaskId};
use crate::spans::engine_span;

pub(super) async fn list(
    database: &Database,
    owner: &OwnerId,
    bounds: PageBounds,
) -> Result<Page, StorageError> {
    let span = engine_span!("list", owner = %owner.printable());
    let PageBounds { limit, max_bytes, below, .. } = bounds;
    let (name, below) = (escape(owner.as_str()), signed(below.unwrap_or(u64::MAX)));
    let (limit, max_bytes) = (signed(limit as u64), signed(max_bytes as u64));
    let statement = &database.statements.list;
    let rows = database.call(span, statement, &[&name, &below, &limit, &max_bytes], Access::Reads).await?;
    let mut page = Page::default();
    let (mut found, mut last) = (0, 0);
    for row in &rows {
        found = column::<i64>(database, row, "found")?;
        let stored = Stored::read(database, row)?;
        let (Stored::Readable(Fields { created_at, .. }) | Stored::Damaged { created_at, .. }) = stored;
        last = created_at;
        // This crate writes no other ids.
        let task = unescape(column(database, row, "task")?).and_then(|task| TaskId::try_from(task).ok());
        let Some(task) = task else { continue };
        match stored {
            Stored::Damaged { reason, .. } => page.corrupt.push(CorruptRecord::new(task, reason)),
            Stored::Readable(fields) => {
                let record = fields.into_record(column(database, row, "data")?);
                page.records.push(ListedRecord::new(task, record, from_micros(created_at)));
            }
        }
    }
    page.next = (found > signed(rows.len() as u64)).then(|| cursor(owner, last));
    Ok(page)
}

/// How many owners one page visits.
const OWNERS: usize = 256;

pub(super) async fn owners(database: &Database, after: Option<&Cursor>) -> Result<OwnerPage, StorageError> {
    let after = after.map_or(Ok(String::new()), name_in)?;
    let most = signed(OWNERS as u64);
    let span = engine_span!("owners");
    let rows = database.call(span, &database.statements.owners, &[&after, &most], Access::Reads).await?;
    let mut owners = Vec::new();
    for row in &rows {
        let (name, is_live): (&str, bool) =
            (column(database, row, "name")?, column(database, row, "exists")?);
        if is_live {
            owners.extend(unescape(name).and_then(|name| OwnerId::try_from(name).ok()));
        }
    }
    let last = rows.last().filter(|_| rows.len() == OWNERS);
    let last = last.map(|row| column::<&str>(database, row, "name")).transpose()?;
    Ok(OwnerPage::new(owners, last.map(owner_cursor)))
}

/// Returns the cursor after an owner: its name as the database stores it, with a checksum.
fn owner_cursor(name: &str) -> Cursor {
    Cursor::from(format!("{:016x}.{name}", stable_hash(name.bytes())))
}

fn name_in(cursor: &Cursor) -> Result<String, StorageError> {
    let name = cursor.as_str().split_once('.').map(|(_, name)| name);
    name.filter(|name| owner_cursor(name) == *cursor)
        .map(str::to_owned)
        .ok_or_else(|| StorageError::InvalidPage { reason: "the cursor is malformed".to_owned() })
}
