//! A database as this process uses it: its connections, its statements, and its clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use deadpool_postgres::{ClientWrapper, Object, Pool};
use tokio::time::timeout;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use tracing::{Instrument, Span};

use super::error::{Errors, Failed, Stage, is_conflict};
use super::names::{Statement, Statements};
use super::rows::{column, unsigned};
use crate::backend::StorageError;
use crate::backend::server_clock::{Clock, Moment};
use crate::spans::{self, engine_span};

/// How often a statement is sent whose transaction the server rolled back for the sake of another one.
const TRIES: usize = 5;

/// The parameters of a statement.
pub(super) type Parameters<'a> = &'a [&'a (dyn ToSql + Sync)];

/// All clones of a backend share it.
pub(super) struct Database {
    pub(super) pool: Pool,
    pub(super) statements: Statements,
    pub(super) clock: Clock,
    pub(super) errors: Errors,
    /// Whether statements are prepared once per connection. A pooler in transaction mode does not allow it.
    pub(super) prepares: bool,
    /// The database as the spans of calls describe it.
    pub(super) described: spans::Database,
    /// Grows with each new connection.
    pub(super) generation: Arc<AtomicU64>,
}

/// What a statement does, which decides what an error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Reads,
    Writes,
}

impl Database {
    /// Runs a statement in its span and under the time limit of a call.
    pub(super) async fn call(
        &self,
        span: Span,
        statement: &Statement,
        parameters: Parameters<'_>,
        access: Access,
    ) -> Result<Vec<Row>, StorageError> {
        let rows =
            async { self.run(statement, parameters, access).await.map_err(|failed| self.errors.of(failed)) };
        self.in_span(span, rows).await
    }

    pub(super) async fn in_span<T>(
        &self,
        span: Span,
        call: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        spans::engine_call(&span, &self.described);
        let answer = call.instrument(span.clone()).await;
        spans::engine_answered(&span, &answer);
        answer
    }

    pub(super) async fn run(
        &self,
        statement: &Statement,
        parameters: Parameters<'_>,
        access: Access,
    ) -> Result<Vec<Row>, Failed> {
        let (mut stage, mut used) = (Stage::NothingWritten, None);
        let sent = self.clock.moment();
        let rows = async {
            let connection = self.pool.get().await.map_err(|error| Failed::Connect(Arc::new(error)))?;
            self.send(used.insert(connection), statement, parameters, access, &mut stage).await
        };
        let rows = match timeout(self.errors.limit, rows).await {
            Ok(rows) => rows?,
            Err(_) => {
                // The statement may block its connection for long.
                used.map(Object::take);
                return Err(Failed::TimedOut(stage));
            }
        };
        self.observe_clock(&rows, sent);
        Ok(rows)
    }

    async fn send(
        &self,
        client: &ClientWrapper,
        statement: &Statement,
        parameters: Parameters<'_>,
        access: Access,
        stage: &mut Stage,
    ) -> Result<Vec<Row>, Failed> {
        let mut tries = 1;
        loop {
            match self.send_once(client, statement, parameters, access, stage).await {
                Err(error) if tries < TRIES && is_conflict(&error) => {
                    *stage = Stage::NothingWritten;
                    tries += 1;
                }
                Err(error) => return Err(Failed::Statement(Arc::new(error), *stage)),
                Ok(rows) => return Ok(rows),
            }
        }
    }

    async fn send_once(
        &self,
        client: &ClientWrapper,
        statement: &Statement,
        parameters: Parameters<'_>,
        access: Access,
        stage: &mut Stage,
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        let Statement { sql, types } = statement;
        let sends = match access {
            Access::Reads => Stage::NothingWritten,
            Access::Writes => Stage::WriteSent,
        };
        if self.prepares {
            let prepared = client.prepare_typed_cached(sql, types).await?;
            *stage = sends;
            return client.query(&prepared, parameters).await;
        }
        let typed: Vec<_> = parameters.iter().copied().zip(types.iter().cloned()).collect();
        *stage = sends;
        client.query_typed(sql, &typed).await
    }

    fn observe_clock(&self, rows: &[Row], sent: Moment) {
        let Some(row) = rows.last() else { return };
        let Some(at) = row.columns().iter().position(|column| column.name() == "now_us") else { return };
        if let Ok(now_us) = row.try_get::<_, i64>(at) {
            self.clock.observe(now_us.unsigned_abs(), sent);
        }
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Reads the clock of the server, in microseconds since the epoch.
    pub(super) async fn read_clock(&self) -> Result<u64, StorageError> {
        let span = engine_span!("clock");
        let rows = self.call(span, &self.statements.clock, &[], Access::Reads).await?;
        rows.first().map_or(Ok(0), |row| column(self, row, "now_us")).map(unsigned)
    }
}
