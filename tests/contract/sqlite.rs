//! The contract on the SQLite engine.

use async_trait::async_trait;
use chrono::{TimeDelta, Utc};
use mcp_task_store::conformance::{Hooks, Subject};
use mcp_task_store::{TaskKey, Version, conformance_tests};
use rusqlite::Params;

use crate::capabilities;
use crate::support::sqlite::Folder;
use crate::support::{Engine, Store};

async fn open() -> Subject {
    subject(Engine::Sqlite.open().await)
}

pub fn subject(store: Store) -> Subject {
    let rows = Rows(store.sqlite.expect("a store in a file"));
    Subject::new(store.backend).capabilities(capabilities()).hooks(rows)
}

conformance_tests!(open);

/// Changes the rows of a store over a connection of its own.
struct Rows(Folder);

/// The record of an owner and a task.
const OF_KEY: &str = "owner = (SELECT id FROM owners WHERE name = ?1) AND task = ?2";

impl Rows {
    fn update(&self, sql: &str, parameters: impl Params) {
        assert_eq!(self.0.connection().execute(sql, parameters).unwrap(), 1, "{sql}");
    }
}

#[async_trait]
impl Hooks for Rows {
    async fn damage(&self, key: &TaskKey) -> bool {
        let sql = format!("UPDATE records SET version = -1 WHERE {OF_KEY}");
        self.update(&sql, [key.owner.as_str(), key.task.as_str()]);
        true
    }

    async fn set_version(&self, key: &TaskKey, version: Version) -> bool {
        let sql = format!("UPDATE records SET version = ?3 WHERE {OF_KEY}");
        self.update(&sql, (key.owner.as_str(), key.task.as_str(), version.get() as i64));
        true
    }

    async fn step_clock_back(&self, key: &TaskKey, by: TimeDelta) -> bool {
        let ahead = (Utc::now() + by).timestamp_micros();
        let sql = format!("UPDATE records SET created_at = ?3 WHERE {OF_KEY}");
        self.update(&sql, (key.owner.as_str(), key.task.as_str(), ahead));
        self.update("UPDATE owners SET newest = ?2 WHERE name = ?1", (key.owner.as_str(), ahead));
        true
    }

    async fn left_behind(&self) -> Option<Vec<String>> {
        let connection = self.0.connection();
        let mut rows = connection
            .prepare(
                "SELECT 'owner ' || name FROM owners UNION ALL SELECT 'record ' || task FROM records
                 UNION ALL SELECT 'part ' || name FROM parts",
            )
            .unwrap();
        let rows = rows.query_map([], |row| row.get(0)).unwrap();
        Some(rows.map(Result::unwrap).collect())
    }
}
