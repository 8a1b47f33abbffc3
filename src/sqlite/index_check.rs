//! Compares records with the owners that the file has, and repairs the counts of the owners.

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, params};

use super::SqliteBackend;
use super::clock::{column, now_ms};
use super::error::Failure;
use crate::backend::{
    CheckedPage, Cursor, Diagnose, Fault, FaultKind, Finding, OwnerId, Queue, QueuePage, StorageError,
    TaskKey,
};
use crate::spans::engine_span;

/// How many rows one page reads.
const ROWS: usize = 256;

const RECORDS: &str = "
    SELECT records.id, owners.name, records.task, records.expires_at IS NULL OR records.expires_at > ?2
    FROM records LEFT JOIN owners ON owners.id = records.owner
    WHERE records.id > ?1 ORDER BY records.id LIMIT ?3";

/// What the triggers keep of an owner, and what it should be.
const COUNT: &str = "
    SELECT owners.id, owners.records, count(records.id), owners.newest >= ifnull(max(records.created_at), 0)
    FROM owners LEFT JOIN records ON records.owner = owners.id
    WHERE owners.name = ?1 GROUP BY owners.id";

const REPAIR: &str = "
    UPDATE owners SET
        records = (SELECT count(*) FROM records WHERE owner = owners.id),
        newest = max(newest, ifnull((SELECT max(created_at) FROM records WHERE owner = owners.id), 0))
    WHERE id = ?1";

const REMOVE_EMPTY: &str = "DELETE FROM owners WHERE id = ?1 AND records = 0";

const QUEUES: &str = "SELECT queue FROM timers WHERE queue > ?1 ORDER BY queue LIMIT 1";

const HAS_TIMER: &str = "SELECT 1 FROM timers WHERE queue = ?1 AND owner = ?2 AND task = ?3";

#[async_trait]
impl Diagnose for SqliteBackend {
    async fn diagnose(&self, is_thorough: bool) -> Result<Vec<Finding>, StorageError> {
        self.findings(is_thorough).await
    }

    async fn check_records(
        &self,
        after: Option<&Cursor>,
        _repair: bool,
    ) -> Result<CheckedPage, StorageError> {
        let after = after.map_or(Ok(0), row_number)?;
        self.read(engine_span!("check_records"), move |connection| records(connection, after)).await
    }

    async fn check_members(
        &self,
        owner: &OwnerId,
        _after: Option<&Cursor>,
        repair: bool,
    ) -> Result<CheckedPage, StorageError> {
        let of_read = owner.clone();
        let read = self
            .read(engine_span!("check_members"), move |connection| Ok(wrong_count(connection, &of_read)?));
        let mut is_wrong = read.await?;
        // Most owners need no transaction.
        if repair && is_wrong.is_some() {
            let owner = owner.clone();
            let span = engine_span!("check_members", repair);
            is_wrong = self.write(span, move |transaction| recount(transaction.connection, &owner)).await?;
        }
        let faults = is_wrong.map(|subject| Fault::new(FaultKind::WrongCount, subject, repair));
        Ok(CheckedPage { checked: 1, faults: faults.into_iter().collect(), ..CheckedPage::default() })
    }

    async fn queues(&self, after: Option<&Cursor>) -> Result<QueuePage, StorageError> {
        let after = after.map(|cursor| cursor.as_str().to_owned()).unwrap_or_default();
        self.read(engine_span!("queues"), move |connection| {
            let mut queues = connection.prepare_cached(QUEUES)?;
            let next: Option<String> = queues.query_row([&after], |row| row.get(0)).optional()?;
            let queue = next.as_deref().and_then(|name| Queue::try_from(name).ok());
            Ok(QueuePage::new(queue.into_iter().collect(), next.map(Cursor::from)))
        })
        .await
    }

    async fn without_timer(&self, queue: &Queue, keys: &[TaskKey]) -> Result<Vec<TaskKey>, StorageError> {
        let (queue, mut keys) = (queue.clone(), keys.to_vec());
        self.read(engine_span!("without_timer"), move |connection| {
            let mut find = connection.prepare_cached(HAS_TIMER)?;
            let mut failed = Ok(());
            keys.retain(|key| {
                let found = find.exists(params![queue.as_str(), key.owner.as_str(), key.task.as_str()]);
                found.map(|exists| !exists).unwrap_or_else(|error| {
                    failed = Err(error);
                    false
                })
            });
            failed?;
            Ok(keys)
        })
        .await
    }
}

fn records(connection: &Connection, after: i64) -> Result<CheckedPage, Failure> {
    let mut page = CheckedPage::default();
    let mut rows = connection.prepare_cached(RECORDS)?;
    let mut rows = rows.query(params![after, column(now_ms()), column(ROWS as u64)])?;
    let mut last = after;
    while let Some(row) = rows.next()? {
        (page.checked, last) = (page.checked + 1, row.get(0)?);
        let (owner, task): (Option<String>, String) = (row.get(1)?, row.get(2)?);
        match owner {
            Some(owner) if row.get(3)? => page.records.extend(TaskKey::new(&owner, &task)),
            Some(_) => {}
            // Without the name of its owner, nothing can repair the record.
            None => page.faults.push(Fault::new(FaultKind::RecordWithoutMember, format!("?:{task}"), false)),
        }
    }
    page.next = (page.checked == ROWS).then(|| Cursor::from(last.to_string()));
    Ok(page)
}

/// Returns the owner if its count of records is wrong, or its latest creation time too early.
fn wrong_count(connection: &Connection, owner: &OwnerId) -> rusqlite::Result<Option<String>> {
    Ok(miscounted(connection, owner)?.map(|_| owner.printable().to_string()))
}

fn miscounted(connection: &Connection, owner: &OwnerId) -> rusqlite::Result<Option<i64>> {
    let mut count = connection.prepare_cached(COUNT)?;
    let read = |row: &rusqlite::Row<'_>| {
        let is_right = row.get::<_, i64>(1)? == row.get::<_, i64>(2)? && row.get(3)?;
        Ok((!is_right).then_some(row.get::<_, i64>(0)?))
    };
    Ok(count.query_row([owner.as_str()], read).optional()?.flatten())
}

/// Repairs the count of an owner if it is wrong, within one transaction.
fn recount(connection: &Connection, owner: &OwnerId) -> Result<Option<String>, Failure> {
    let Some(id) = miscounted(connection, owner)? else { return Ok(None) };
    connection.prepare_cached(REPAIR)?.execute([id])?;
    connection.prepare_cached(REMOVE_EMPTY)?.execute([id])?;
    Ok(Some(owner.printable().to_string()))
}

fn row_number(cursor: &Cursor) -> Result<i64, StorageError> {
    let number = cursor.as_str().parse().ok();
    number.ok_or_else(|| StorageError::InvalidPage { reason: "the cursor is malformed".to_owned() })
}
