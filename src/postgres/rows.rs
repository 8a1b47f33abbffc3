//! Reads records from rows.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::Value;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Json};

use super::database::Database;
use super::error::Stage;
use crate::backend::engine::from_millis;
use crate::backend::{PartName, PartSizes, Record, StorageError, TaskKey, Version};

/// The fields of a stored record without its data.
pub(super) struct Fields {
    pub(super) version: Version,
    /// In microseconds since the epoch.
    pub(super) created_at: u64,
    /// In milliseconds since the epoch.
    pub(super) expires_at: Option<u64>,
    pub(super) parts: PartSizes,
}

/// A stored record, or why it cannot be read.
pub(super) enum Stored {
    Readable(Fields),
    Damaged { created_at: u64, reason: String },
}

/// Reads a column, whose type this version of the crate knows.
pub(super) fn column<'a, T: FromSql<'a>>(
    database: &Database,
    row: &'a Row,
    name: &str,
) -> Result<T, StorageError> {
    row.try_get(name).map_err(|error| database.errors.unexpected(&error.to_string(), Stage::NothingWritten))
}

impl Stored {
    pub(super) fn read(database: &Database, row: &Row) -> Result<Self, StorageError> {
        let version: i64 = column(database, row, "version")?;
        let created_at = unsigned(column(database, row, "created_at")?);
        let expires_at: Option<i64> = column(database, row, "expires_at")?;
        let Json(parts): Json<Value> = column(database, row, "parts")?;
        let version = u64::try_from(version).map(Version::from);
        let readable = version.ok().filter(|version| (Version::FIRST..=Version::MAX).contains(version));
        Ok(match (readable, part_sizes(parts)) {
            (Some(version), Some(parts)) => {
                Self::Readable(Fields { version, created_at, expires_at: expires_at.map(unsigned), parts })
            }
            (None, _) => {
                Self::Damaged { created_at, reason: "the column `version` holds no version".to_owned() }
            }
            (_, None) => Self::Damaged {
                created_at,
                reason: "the column `parts` holds no names and sizes of parts".to_owned(),
            },
        })
    }

    /// Reads the only row of a record that must be live.
    pub(super) fn read_live(
        database: &Database,
        key: &TaskKey,
        rows: &[Row],
    ) -> Result<Fields, StorageError> {
        let missing = || StorageError::NotFound { key: key.clone() };
        let row = rows.first().ok_or_else(missing)?;
        let now_us = unsigned(column(database, row, "now_us")?);
        let expires_at: Option<i64> = column(database, row, "expires_at")?;
        if expires_at.is_some_and(|at| unsigned(at) <= now_us / 1000) {
            return Err(missing());
        }
        match Self::read(database, row)? {
            Self::Readable(fields) => Ok(fields),
            Self::Damaged { reason, .. } => {
                Err(StorageError::Corrupt { key: key.clone(), reason, source: None })
            }
        }
    }
}

impl Fields {
    pub(super) fn into_record(self, data: &[u8]) -> Record {
        let data = Bytes::copy_from_slice(data);
        Record::new(data, self.version, self.expires_at.map(from_millis), self.parts)
    }
}

/// No time or version that this crate writes is negative.
pub(super) fn unsigned(column: i64) -> u64 {
    u64::try_from(column).unwrap_or(0)
}

/// Converts a number that this crate computed for a column.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn part_sizes(parts: Value) -> Option<PartSizes> {
    let parts: BTreeMap<String, usize> = serde_json::from_value(parts).ok()?;
    parts.into_iter().map(|(name, size)| Some((PartName::try_from(name).ok()?, size))).collect()
}
