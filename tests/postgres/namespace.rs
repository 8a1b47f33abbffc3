//! A schema of its own for each test, on the server of `POSTGRES_URL`.

use std::time::Duration;

use mcp_task_store::{PostgresBackend, PostgresBuilder};
use tokio_postgres::{Client, NoTls};

pub const MAX_VALUE_BYTES: usize = 4096;
pub const MAX_PART_BYTES: usize = 16 * 1024;

/// Returns the URL of the shared server: `POSTGRES_URL`, or the server that `make postgres-up` starts.
pub fn url() -> String {
    std::env::var("POSTGRES_URL").unwrap_or_else(|_| "postgres://postgres@127.0.0.1:5433/postgres".to_owned())
}

/// A schema that no other test uses. Dropping it removes the schema.
pub struct Namespace {
    pub schema: String,
}

impl Namespace {
    pub fn new() -> Self {
        Self { schema: format!("t{}", &uuid::Uuid::new_v4().simple().to_string()[..24]) }
    }

    pub fn builder(&self) -> PostgresBuilder {
        PostgresBackend::builder()
            .schema(&self.schema)
            .max_value_bytes(MAX_VALUE_BYTES)
            .max_part_bytes(MAX_PART_BYTES)
            .response_timeout(Duration::from_secs(20))
    }

    pub async fn backend(&self) -> PostgresBackend {
        self.builder().init(&url()).await.unwrap()
    }

    /// Opens a connection as psql does.
    pub async fn client(&self) -> Client {
        let (client, connection) = tokio_postgres::connect(&url(), NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute(&format!("SET search_path = {}", self.schema)).await.unwrap();
        client
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let sql = format!("DROP SCHEMA IF EXISTS {} CASCADE", self.schema);
        // A test drops its runtime before or after this.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (client, connection) = tokio_postgres::connect(&url(), NoTls).await.unwrap();
                tokio::spawn(connection);
                client.batch_execute(&format!("SET client_min_messages = error; {sql}")).await
            })
        });
        let dropped = dropped.join().unwrap();
        if !std::thread::panicking() {
            dropped.unwrap();
        }
    }
}
