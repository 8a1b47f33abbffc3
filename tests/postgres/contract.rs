//! The contract on the PostgreSQL engine.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{TimeDelta, Utc};
use mcp_task_store::conformance::{Capabilities, Hooks, Subject};
use mcp_task_store::{TaskKey, Version, conformance_tests};
use tokio_postgres::types::ToSql;

use crate::namespace::{MAX_PART_BYTES, Namespace};

async fn open() -> Subject {
    let namespace = Arc::new(Namespace::new());
    let backend = namespace.backend().await;
    let capabilities = Capabilities::default().max_part_bytes(MAX_PART_BYTES);
    Subject::new(backend).capabilities(capabilities).hooks(Rows(namespace))
}

conformance_tests!(open);

/// Changes the rows of a store over a connection of its own.
struct Rows(Arc<Namespace>);

impl Rows {
    async fn update(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) {
        assert_eq!(self.0.client().await.execute(sql, parameters).await.unwrap(), 1, "{sql}");
    }
}

#[async_trait]
impl Hooks for Rows {
    async fn damage(&self, key: &TaskKey) -> bool {
        let sql = "UPDATE records SET version = -1 WHERE owner = $1 AND task = $2";
        self.update(sql, &[&key.owner.as_str(), &key.task.as_str()]).await;
        true
    }

    async fn set_version(&self, key: &TaskKey, version: Version) -> bool {
        let sql = "UPDATE records SET version = $3 WHERE owner = $1 AND task = $2";
        self.update(sql, &[&key.owner.as_str(), &key.task.as_str(), &(version.get() as i64)]).await;
        true
    }

    async fn step_clock_back(&self, key: &TaskKey, by: TimeDelta) -> bool {
        let ahead = (Utc::now() + by).timestamp_micros();
        let sql = "UPDATE records SET created_at = $3 WHERE owner = $1 AND task = $2";
        self.update(sql, &[&key.owner.as_str(), &key.task.as_str(), &ahead]).await;
        self.update("UPDATE owners SET newest = $2 WHERE name = $1", &[&key.owner.as_str(), &ahead]).await;
        true
    }

    async fn left_behind(&self) -> Option<Vec<String>> {
        let sql = "SELECT 'owner ' || name FROM owners UNION ALL SELECT 'record ' || task FROM records
                   UNION ALL SELECT 'part ' || name FROM parts";
        let rows = self.0.client().await.query(sql, &[]).await.unwrap();
        Some(rows.iter().map(|row| row.get(0)).collect())
    }
}
