//! Writes of records.

use tokio_postgres::Row;

use super::database::{Access, Database};
use super::error::{Failed, Stage, TOO_MANY_PARTS};
use super::group_commit::Batched;
use super::rows::{signed, unsigned};
use crate::backend::engine::{CheckedPut, from_millis};
use crate::backend::key::escape;
use crate::backend::{Expiry, MAX_PARTS, PartChange, StorageError, TaskKey, Version, Written};

/// A write of a record.
pub(super) struct Put {
    pub(super) put: CheckedPut,
    /// A timer to schedule if the record is created: its queue, and after how many milliseconds it fires.
    pub(super) timer: Option<(String, u64)>,
}

impl From<CheckedPut> for Put {
    fn from(put: CheckedPut) -> Self {
        Self { put, timer: None }
    }
}

impl Put {
    /// Returns the expiry as the function `put` takes it.
    fn expiry(&self) -> i64 {
        match (self.put.expiry, self.put.expiry_ms) {
            (Expiry::Keep, _) => -1,
            (Expiry::Never, _) => 0,
            (Expiry::After(_), after_ms) => after_ms.map_or(0, signed),
        }
    }

    fn outcome(&self, row: &Row) -> Result<Result<Written, StorageError>, tokio_postgres::Error> {
        let (outcome, version): (&str, Option<i64>) = (row.try_get("outcome")?, row.try_get("new_version")?);
        let expires_at: Option<i64> = row.try_get("new_expires_at")?;
        let version = version.map(|version| Version::from(unsigned(version)));
        let key = || self.put.key.clone();
        Ok(match (outcome, version) {
            ("ok", Some(version)) => {
                Ok(Written::new(version, expires_at.map(|at| from_millis(unsigned(at)))))
            }
            ("conflict", Some(actual)) => {
                let expected = self.put.mode.expected().unwrap_or(Version::ABSENT);
                Err(StorageError::VersionConflict { key: key(), expected, actual })
            }
            ("missing", _) => Err(StorageError::NotFound { key: key() }),
            ("exhausted", _) => Err(StorageError::VersionExhausted { key: key() }),
            ("full", _) => Err(quota_reached(&self.put.key, self.put.quota)),
            _ => Err(StorageError::Corrupt {
                key: key(),
                reason: "the column `version` holds no version".to_owned(),
                source: None,
            }),
        })
    }
}

fn quota_reached(key: &TaskKey, quota: Option<u64>) -> StorageError {
    let reason = format!(
        "the owner {} has reached its quota of {} records; delete records, or wait until some expire",
        key.owner.printable(),
        quota.unwrap_or_default()
    );
    StorageError::CapacityExceeded { reason, quota, source: None }
}

impl Batched for Put {
    type Reply = Written;

    fn row(&self) -> String {
        self.put.key.to_string()
    }

    fn bytes(&self) -> usize {
        self.put.data.len()
    }

    fn is_alone(&self) -> bool {
        !self.put.parts.is_empty()
    }

    async fn send(
        writes: &[Self],
        database: &Database,
    ) -> Result<Vec<Result<Written, StorageError>>, Failed> {
        let owners: Vec<_> = writes.iter().map(|put| escape(put.put.key.owner.as_str())).collect();
        let tasks: Vec<_> = writes.iter().map(|put| escape(put.put.key.task.as_str())).collect();
        let expectations: Vec<_> =
            writes.iter().map(|put| put.put.mode.expected().map(|version| signed(version.get()))).collect();
        let datas: Vec<_> = writes.iter().map(|put| &put.put.data[..]).collect();
        let expiries: Vec<_> = writes.iter().map(Put::expiry).collect();
        let quotas: Vec<_> = writes.iter().map(|put| put.put.quota.map(signed)).collect();
        let notices: Vec<_> = writes.iter().map(|put| put.put.notifies).collect();
        let queues: Vec<_> = writes.iter().map(|put| put.timer.as_ref().map(|(queue, _)| queue)).collect();
        let delays: Vec<_> = writes.iter().map(|put| put.timer.as_ref().map(|(_, ms)| signed(*ms))).collect();
        // A write that changes parts is alone.
        let parts = writes.first().map(|put| &put.put.parts).filter(|parts| !parts.is_empty());
        let part_names: Option<Vec<_>> = parts.map(|parts| parts.keys().map(|name| name.as_str()).collect());
        let part_datas: Option<Vec<_>> = parts.map(|parts| {
            parts
                .values()
                .map(|change| match change {
                    PartChange::Set(data) => Some(&data[..]),
                    PartChange::Clear => None,
                })
                .collect()
        });
        let rows = database
            .run(
                &database.statements.put,
                &[
                    &owners,
                    &tasks,
                    &expectations,
                    &datas,
                    &expiries,
                    &quotas,
                    &notices,
                    &queues,
                    &delays,
                    &part_names,
                    &part_datas,
                    &signed(Version::MAX.get()),
                    &(MAX_PARTS as i32),
                ],
                Access::Writes,
            )
            .await;
        match rows {
            Ok(rows) => in_order(&rows, writes, Put::outcome),
            Err(failed) if failed.code().is_some_and(|code| code.code() == TOO_MANY_PARTS) => {
                Ok(vec![Err(too_many_parts())])
            }
            Err(failed) => Err(failed),
        }
    }
}

/// Returns the outcome of each write, in the order of the writes. Each row states the place of its write, from 1.
pub(super) fn in_order<W, T>(
    rows: &[Row],
    writes: &[W],
    outcome: impl Fn(&W, &Row) -> Result<T, tokio_postgres::Error>,
) -> Result<Vec<T>, Failed> {
    let unexpected = |what: String| Failed::Unexpected(what, Stage::WriteSent);
    let mut placed: Vec<Option<T>> = writes.iter().map(|_| None).collect();
    for row in rows {
        let nth: i64 = row.try_get("nth").map_err(|error| unexpected(error.to_string()))?;
        let at = usize::try_from(nth - 1).ok().filter(|at| *at < writes.len());
        let at = at.ok_or_else(|| unexpected(format!("there is no write {nth}")))?;
        placed[at] = Some(outcome(&writes[at], row).map_err(|error| unexpected(error.to_string()))?);
    }
    placed.into_iter().collect::<Option<_>>().ok_or_else(|| unexpected("a write has no outcome".to_owned()))
}

fn too_many_parts() -> StorageError {
    let what = "parts of a record".to_owned();
    StorageError::TooLarge { what, size: MAX_PARTS + 1, max: MAX_PARTS }
}
