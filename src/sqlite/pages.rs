//! Pages of the records of one owner, and pages of owners.

use rusqlite::{Connection, params};

use super::clock::{column, now_ms};
use super::error::Failure;
use super::fields::{Fields, Stored};
use crate::backend::engine::{PageBounds, cursor, from_micros};
use crate::backend::{CorruptRecord, Cursor, ListedRecord, OwnerId, OwnerPage, Page, StorageError, TaskId};

/// The data is the last column, so SQLite does not read it for a record that the page leaves out.
const LIST: &str = "
    SELECT task, version, created_at, expires_at, parts, data FROM records
    WHERE owner = (SELECT id FROM owners WHERE name = ?1) AND created_at < ?2
    ORDER BY created_at DESC";

/// How many expired records one page skips at most. The next page continues there.
const MAX_SKIPPED: usize = 4096;

pub(super) fn list(connection: &Connection, owner: &OwnerId, bounds: PageBounds) -> Result<Page, Failure> {
    let PageBounds { limit, max_bytes, below, .. } = bounds;
    let mut list = connection.prepare_cached(LIST)?;
    let mut rows = list.query(params![owner.as_str(), column(below.unwrap_or(u64::MAX))])?;
    let (now_ms, mut page) = (now_ms(), Page::default());
    let (mut bytes, mut skipped) = (0, 0);
    while let Some(row) = rows.next()? {
        let stored = Stored::read(row, 1)?;
        let (Stored::Readable(Fields { created_at, .. }) | Stored::Damaged { created_at, .. }) = stored;
        if !stored.is_live(now_ms) {
            skipped += 1;
            if skipped > MAX_SKIPPED {
                return Ok(page);
            }
            page.next = Some(cursor(owner, created_at));
            continue;
        }
        if page.records.len() + page.corrupt.len() == limit {
            return Ok(page);
        }
        // This crate writes no other ids.
        let Ok(task) = TaskId::try_from(row.get::<_, String>(0)?) else { continue };
        match stored {
            Stored::Damaged { reason, .. } => page.corrupt.push(CorruptRecord::new(task, reason)),
            Stored::Readable(fields) => {
                let data = row.get_ref(5)?.as_blob().map_err(rusqlite::Error::from)?;
                bytes += data.len();
                if !page.records.is_empty() && bytes > max_bytes {
                    return Ok(page);
                }
                let record = fields.into_record(data);
                page.records.push(ListedRecord::new(task, record, from_micros(created_at)));
            }
        }
        page.next = Some(cursor(owner, created_at));
    }
    page.next = None;
    Ok(page)
}

/// How many owners one page visits.
const OWNERS: usize = 256;

const LIST_OWNERS: &str = "
    SELECT id, name, EXISTS (
        SELECT 1 FROM records WHERE owner = owners.id AND (expires_at IS NULL OR expires_at > ?2))
    FROM owners WHERE id > ?1 ORDER BY id LIMIT ?3";

/// Returns a page of owners. The cursor is the number of the last owner that the page visited.
pub(super) fn owners(connection: &Connection, after: Option<&Cursor>) -> Result<OwnerPage, Failure> {
    let after = after.map_or(Ok(0), owner_number)?;
    let mut list = connection.prepare_cached(LIST_OWNERS)?;
    let mut rows = list.query(params![column(after), column(now_ms()), column(OWNERS as u64)])?;
    let (mut owners, mut visited, mut last) = (Vec::new(), 0, after as i64);
    while let Some(row) = rows.next()? {
        (visited, last) = (visited + 1, row.get(0)?);
        if row.get(2)? {
            owners.extend(OwnerId::try_from(row.get::<_, String>(1)?));
        }
    }
    let next = (visited == OWNERS).then(|| Cursor::from(last.to_string()));
    Ok(OwnerPage::new(owners, next))
}

fn owner_number(cursor: &Cursor) -> Result<u64, StorageError> {
    let number = cursor.as_str().parse().ok().filter(|number| i64::try_from(*number).is_ok());
    number
        .filter(|number: &u64| number.to_string() == cursor.as_str())
        .ok_or_else(|| StorageError::InvalidPage { reason: "the cursor is malformed".to_owned() })
}
