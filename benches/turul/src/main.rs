//! Runs `turul-mcp-task-storage` on a SQLite file. The harness in `benches/peers` starts this program.

use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sqlite_calls::{Contender, PAGE, SIZE, TTL, serve};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool};
use turul_mcp_protocol::TaskStatus;
use turul_mcp_task_storage::sqlite::{SqliteTaskConfig, SqliteTaskStorage};
use turul_mcp_task_storage::{TaskRecord, TaskStorage};

fn main() -> Result<()> {
    serve::<Turul>()
}

struct Turul(SqliteTaskStorage);

impl Contender for Turul {
    type Record = TaskRecord;

    async fn open(file: &Path) -> Result<Self> {
        use_write_ahead_log(file).await?;
        // Its limit of tasks counts all rows of the table at each create.
        let config = SqliteTaskConfig { database_path: file.to_owned(), max_tasks: 0, ..Default::default() };
        Ok(Self(SqliteTaskStorage::with_config(config).await?))
    }

    /// Returns a task whose arguments fill it up to the size of a record.
    fn record(owner: &str, task: &str) -> TaskRecord {
        let now = chrono::Utc::now().to_rfc3339();
        let mut record = TaskRecord {
            task_id: task.to_owned(),
            session_id: Some(owner.to_owned()),
            status: TaskStatus::Working,
            status_message: None,
            created_at: now.clone(),
            last_updated_at: now,
            ttl: Some(TTL.as_millis() as i64),
            poll_interval: None,
            original_method: "tools/call".to_owned(),
            original_params: Some(json!("")),
            result: None,
            meta: None,
        };
        let missing = SIZE.saturating_sub(size(&record));
        record.original_params = Some(Value::from("x".repeat(missing)));
        record
    }

    async fn create(&self, record: &TaskRecord) -> Result<()> {
        self.0.create_task(record.clone()).await?;
        Ok(())
    }

    /// Replaces the task without a check: the peer has no compare-and-swap.
    async fn swap(&self, record: &TaskRecord, _version: u64) -> Result<()> {
        self.0.update_task(record.clone()).await?;
        Ok(())
    }

    async fn get(&self, record: &TaskRecord) -> Result<bool> {
        let read = self.0.get_task(&record.task_id).await?.context("no such task")?;
        Ok(read.original_params == record.original_params)
    }

    async fn page(&self, record: &TaskRecord) -> Result<usize> {
        let owner = record.session_id.as_deref().unwrap_or_default();
        Ok(self.0.list_tasks_for_session(owner, None, Some(PAGE as u32)).await?.tasks.len())
    }
}

fn size(record: &TaskRecord) -> usize {
    serde_json::to_vec(record).map_or(0, |json| json.len())
}

/// Creates the file with a write-ahead log, which it keeps. The peer itself leaves the journal mode of the file as it is.
async fn use_write_ahead_log(file: &Path) -> Result<()> {
    let options = SqliteConnectOptions::from_str(&format!("sqlite://{}", file.display()))?;
    let pool = SqlitePool::connect_with(
        options.clone().create_if_missing(true).journal_mode(SqliteJournalMode::Wal),
    )
    .await?;
    pool.close().await;
    // As the peer opens the file.
    let pool = SqlitePool::connect_with(options).await?;
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&pool).await?;
    let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(&pool).await?;
    anyhow::ensure!(
        (mode.as_str(), synchronous) == ("wal", 2),
        "the peer's durability is {mode}, synchronous {synchronous}; all contenders must use wal and FULL (2)"
    );
    pool.close().await;
    Ok(())
}
