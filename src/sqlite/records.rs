//! Reads and writes of single records. A write checks everything before it writes anything, so a write that is refused
//! leaves the transaction as it was.

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params};

use super::clock::{column, now_ms};
use super::error::Failure;
use super::fields::{Fields, Stored, write_parts};
use super::transaction::Transaction;
use super::watched::ABSENT;
use crate::backend::engine::{Change, CheckedPut, check_part_count, from_millis};
use crate::backend::{
    Expiry, OwnerId, Part, PartChange, PartName, PartSizes, Record, StorageError, TaskKey, Version, Written,
};

const READ: &str = "
    SELECT records.version, records.created_at, records.expires_at, records.parts, records.data
    FROM owners JOIN records ON records.owner = owners.id
    WHERE owners.name = ?1 AND records.task = ?2";

const READ_PART: &str = "
    SELECT records.version, records.created_at, records.expires_at, records.parts, parts.data
    FROM owners JOIN records ON records.owner = owners.id
    LEFT JOIN parts ON parts.record = records.id AND parts.name = ?3
    WHERE owners.name = ?1 AND records.task = ?2";

const FIND: &str = "
    SELECT records.id, records.version, records.created_at, records.expires_at, records.parts
    FROM owners JOIN records ON records.owner = owners.id
    WHERE owners.name = ?1 AND records.task = ?2";

const FIND_OWNER: &str = "SELECT id, records, newest FROM owners WHERE name = ?1";

const COUNT_EXPIRED: &str = "SELECT count(*) FROM records WHERE expires_at <= ?1 AND owner = ?2";

const INSERT_OWNER: &str = "INSERT INTO owners (name, records, newest) VALUES (?1, 0, 0)";

const INSERT: &str = "
    INSERT INTO records (owner, task, version, created_at, expires_at, parts, data)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";

/// Touches no index.
const UPDATE_DATA: &str = "UPDATE records SET version = ?2, data = ?3 WHERE id = ?1";

const UPDATE: &str = "
    UPDATE records SET version = ?2, data = ?3, expires_at = ?4, parts = ?5 WHERE id = ?1";

const DELETE: &str = "DELETE FROM records WHERE id = ?1";

const SET_PART: &str = "
    INSERT INTO parts (record, name, data) VALUES (?1, ?2, ?3)
    ON CONFLICT (record, name) DO UPDATE SET data = excluded.data";

const CLEAR_PART: &str = "DELETE FROM parts WHERE record = ?1 AND name = ?2";

fn not_found(key: &TaskKey) -> Failure {
    Failure::Refused(StorageError::NotFound { key: key.clone() })
}

fn corrupt(key: &TaskKey, reason: String) -> Failure {
    Failure::Refused(StorageError::Corrupt { key: key.clone(), reason, source: None })
}

/// Returns the fields of a live record.
fn live(key: &TaskKey, stored: Stored, now_ms: u64) -> Result<Fields, Failure> {
    if !stored.is_live(now_ms) {
        return Err(not_found(key));
    }
    match stored {
        Stored::Readable(fields) => Ok(fields),
        Stored::Damaged { reason, .. } => Err(corrupt(key, reason)),
    }
}

pub(super) fn get(connection: &Connection, key: &TaskKey) -> Result<Record, Failure> {
    let mut read = connection.prepare_cached(READ)?;
    let mut rows = read.query([key.owner.as_str(), key.task.as_str()])?;
    let Some(row) = rows.next()? else { return Err(not_found(key)) };
    let fields = live(key, Stored::read(row, 0)?, now_ms())?;
    let data = row.get_ref(4)?.as_blob();
    let data = data.map_err(|_| corrupt(key, "the column data cannot be read".to_owned()))?;
    Ok(fields.into_record(data))
}

pub(super) fn part(connection: &Connection, key: &TaskKey, name: &PartName) -> Result<Option<Part>, Failure> {
    let mut read = connection.prepare_cached(READ_PART)?;
    let mut rows = read.query([key.owner.as_str(), key.task.as_str(), name.as_str()])?;
    let Some(row) = rows.next()? else { return Err(not_found(key)) };
    let fields = live(key, Stored::read(row, 0)?, now_ms())?;
    let Some(size) = fields.parts.get(name) else { return Ok(None) };
    match row.get_ref(4)?.as_blob() {
        Ok(data) if data.len() == *size => Ok(Some(Part::new(Bytes::copy_from_slice(data), fields.version))),
        _ => Err(corrupt(key, format!("the part {name} does not have its {size} bytes"))),
    }
}

/// Returns when the record was created, and its version; [`ABSENT`] if there is no such record.
pub(super) fn seen(connection: &Connection, key: &TaskKey) -> rusqlite::Result<(u64, u64)> {
    let mut find = connection.prepare_cached(FIND)?;
    let mut rows = find.query([key.owner.as_str(), key.task.as_str()])?;
    let Some(row) = rows.next()? else { return Ok(ABSENT) };
    Ok(match Stored::read(row, 1)? {
        Stored::Readable(fields) => (fields.created_at, fields.version.get()),
        Stored::Damaged { created_at, .. } => (created_at, u64::MAX),
    })
}

/// A row that the write found.
struct Found {
    id: i64,
    stored: Stored,
}

/// A live record that the write replaces.
struct Live {
    id: i64,
    fields: Fields,
}

impl CheckedPut {
    pub(super) fn run(&self, transaction: &mut Transaction<'_>) -> Result<Written, Failure> {
        let now_us = transaction.now_us();
        let found = find(transaction.connection, &self.key)?;
        let (live, expired) = match found {
            Some(found) if found.stored.is_live(now_us / 1000) => {
                let fields = live(&self.key, found.stored, now_us / 1000)?;
                (Some(Live { id: found.id, fields }), None)
            }
            found => (None, found.map(|found| found.id)),
        };
        let actual = live.as_ref().map(|live| live.fields.version);
        let version = self.mode.next_version(&self.key, actual)?;
        let before = live.as_ref().map(|live| &live.fields);
        let expires_at = match self.expiry {
            Expiry::Keep => before.and_then(|before| before.expires_at),
            Expiry::Never => None,
            // Part of the current millisecond has passed already.
            Expiry::After(_) => self.expiry_ms.map(|millis| now_us / 1000 + 1 + millis),
        };
        let parts = self.parts_after(before.map(|before| &before.parts))?;
        let created_at = match live {
            Some(live) => {
                self.update(transaction.connection, &live, version, expires_at, &parts)?;
                live.fields.created_at
            }
            None => self.insert(transaction.connection, expired, now_us, expires_at, &parts)?,
        };
        let expires_at = expires_at.map(from_millis);
        let change = self.notifies.then_some(Change::Written(expires_at));
        transaction.wrote(&self.key, (created_at, version.get()), change);
        Ok(Written::new(version, expires_at))
    }

    /// Returns the parts that the record has after the write.
    fn parts_after(&self, before: Option<&PartSizes>) -> Result<PartSizes, StorageError> {
        let mut parts = before.cloned().unwrap_or_default();
        for (name, change) in &self.parts {
            match change {
                PartChange::Set(data) => parts.insert(name.clone(), data.len()),
                PartChange::Clear => parts.remove(name),
            };
        }
        check_part_count(parts.len())?;
        Ok(parts)
    }

    fn update(
        &self,
        connection: &Connection,
        live: &Live,
        version: Version,
        expires_at: Option<u64>,
        parts: &PartSizes,
    ) -> Result<(), Failure> {
        let (id, version, data) = (live.id, column(version.get()), &*self.data);
        if live.fields.expires_at == expires_at && live.fields.parts == *parts {
            connection.prepare_cached(UPDATE_DATA)?.execute(params![id, version, data])?;
        } else {
            let (expires_at, parts) = (expires_at.map(column), write_parts(parts));
            connection.prepare_cached(UPDATE)?.execute(params![id, version, data, expires_at, parts])?;
        }
        self.write_parts(connection, id)
    }

    /// Inserts a new record, in place of an expired one if there is one. Returns when it was created.
    fn insert(
        &self,
        connection: &Connection,
        expired: Option<i64>,
        now_us: u64,
        expires_at: Option<u64>,
        parts: &PartSizes,
    ) -> Result<u64, Failure> {
        let mut owner = Owner::find(connection, &self.key.owner)?;
        if let Some(quota) = self.quota {
            check_quota(connection, &self.key.owner, owner.as_ref(), quota, now_us / 1000)?;
        }
        if let Some(expired) = expired {
            connection.prepare_cached(DELETE)?.execute([expired])?;
            // The owner is deleted with its last record.
            owner = Owner::find(connection, &self.key.owner)?;
        }
        let owner = match owner {
            Some(owner) => owner,
            None => {
                connection.prepare_cached(INSERT_OWNER)?.execute([self.key.owner.as_str()])?;
                Owner { id: connection.last_insert_rowid(), records: 0, newest: 0 }
            }
        };
        // The clock may have been set back.
        let created_at = now_us.max(owner.newest + 1);
        connection.prepare_cached(INSERT)?.execute(params![
            owner.id,
            self.key.task.as_str(),
            column(Version::FIRST.get()),
            column(created_at),
            expires_at.map(column),
            write_parts(parts),
            &*self.data,
        ])?;
        self.write_parts(connection, connection.last_insert_rowid())?;
        Ok(created_at)
    }

    fn write_parts(&self, connection: &Connection, id: i64) -> Result<(), Failure> {
        for (name, change) in &self.parts {
            match change {
                PartChange::Set(data) => {
                    connection.prepare_cached(SET_PART)?.execute(params![id, name.as_str(), &**data])?
                }
                PartChange::Clear => {
                    connection.prepare_cached(CLEAR_PART)?.execute(params![id, name.as_str()])?
                }
            };
        }
        Ok(())
    }
}

/// Removes a record. Returns whether it was live.
pub(super) fn delete(transaction: &mut Transaction<'_>, key: &TaskKey) -> Result<bool, Failure> {
    let Some(found) = find(transaction.connection, key)? else { return Ok(false) };
    let was_live = found.stored.is_live(transaction.now_us() / 1000);
    transaction.connection.prepare_cached(DELETE)?.execute([found.id])?;
    transaction.wrote(key, ABSENT, Some(Change::Unknown));
    Ok(was_live)
}

fn find(connection: &Connection, key: &TaskKey) -> rusqlite::Result<Option<Found>> {
    let mut find = connection.prepare_cached(FIND)?;
    find.query_row([key.owner.as_str(), key.task.as_str()], |row| {
        Ok(Found { id: row.get(0)?, stored: Stored::read(row, 1)? })
    })
    .optional()
}

/// A row of `owners`.
struct Owner {
    id: i64,
    /// How many records the file holds of this owner, live or expired.
    records: u64,
    newest: u64,
}

impl Owner {
    fn find(connection: &Connection, id: &OwnerId) -> rusqlite::Result<Option<Self>> {
        let mut find = connection.prepare_cached(FIND_OWNER)?;
        find.query_row([id.as_str()], |row| {
            let number = |place| row.get::<_, i64>(place).map(|number| u64::try_from(number).unwrap_or(0));
            Ok(Self { id: row.get(0)?, records: number(1)?, newest: number(2)? })
        })
        .optional()
    }
}

fn check_quota(
    connection: &Connection,
    id: &OwnerId,
    owner: Option<&Owner>,
    quota: u64,
    now_ms: u64,
) -> Result<(), Failure> {
    let held = owner.map_or(0, |owner| owner.records);
    if held < quota {
        return Ok(());
    }
    // The count visits only expired records, never the live ones.
    let expired = match owner {
        Some(owner) => {
            let mut count = connection.prepare_cached(COUNT_EXPIRED)?;
            count.query_row([column(now_ms), owner.id], |row| row.get::<_, i64>(0))?
        }
        None => 0,
    };
    let live = held.saturating_sub(u64::try_from(expired).unwrap_or(0));
    if live < quota {
        return Ok(());
    }
    Err(Failure::Refused(StorageError::CapacityExceeded {
        reason: format!(
            "owner {id:?} has {live} live records, and its quota is {quota}; delete records or raise the quota"
        ),
        quota: Some(quota),
        source: None,
    }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rusqlite::StatementStatus::{RePrepare, Run};

    use super::*;
    use crate::sqlite::error::Errors;
    use crate::sqlite::open::File;
    use crate::sqlite::settings::Synchronous;

    #[test]
    fn a_statement_is_compiled_once_whatever_its_parameters_are() {
        let folder = tempfile::tempdir().unwrap();
        let errors = Errors { address: String::new(), busy_timeout: Duration::ZERO };
        let path = folder.path().join("tasks.db");
        let file =
            File { path, synchronous: Synchronous::Normal, max_file_bytes: None, must_exist: false, errors };
        for session in [file.open_writer().unwrap(), file.open_reader().unwrap()] {
            for task in ["t1", "t2", "t3"] {
                let key = TaskKey::new("alice", task).unwrap();
                assert!(get(&session.connection, &key).is_err());
                assert!(find(&session.connection, &key).unwrap().is_none());
            }
            for sql in [READ, FIND] {
                let statement = session.connection.prepare_cached(sql).unwrap();
                assert_eq!((statement.get_status(RePrepare), statement.get_status(Run)), (0, 3), "{sql}");
            }
        }
    }
}
