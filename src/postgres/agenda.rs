//! Timers across owners.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_core::stream::BoxStream;
use futures_util::stream;

use super::database::Access;
use super::puts::Put;
use super::rows::signed;
use super::timers::{self, Resolve, Schedule};
use super::{PostgresBackend, pages};
use crate::backend::engine::{MAX_TAKEN, WriteMode, delay_millis};
use crate::backend::key::escape;
use crate::backend::{
    Agenda, Cursor, Due, Next, OwnerPage, PutOptions, Queue, StorageError, Taken, TaskKey, TimerPage, Written,
};
use crate::spans::engine_span;

/// How often takers look for due timers where nothing listens.
const POLL_EVERY: Duration = Duration::from_millis(250);

#[async_trait]
impl Agenda for PostgresBackend {
    async fn schedule(&self, queue: &Queue, key: &TaskKey, after: Duration) -> Result<(), StorageError> {
        let span = engine_span!("schedule", owner = %key.owner.printable(), task = %key.task.printable(), queue = %queue.printable());
        let schedule = Schedule { queue: queue.clone(), key: key.clone(), after_ms: delay_millis(after)? };
        self.0.database.in_span(span, self.0.schedules.write(&self.0.database, schedule)).await
    }

    async fn create_with_timer(
        &self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        queue: &Queue,
        after: Duration,
    ) -> Result<Written, StorageError> {
        let span = engine_span!("create_with_timer", owner = %key.owner.printable(), task = %key.task.printable(), queue = %queue.printable());
        let after_ms = delay_millis(after)?;
        let put = self.0.max_sizes.check(key, data, options, WriteMode::Create)?;
        let put = Put { put, timer: Some((escape(queue.as_str()).into_owned(), after_ms)) };
        self.0.database.in_span(span, self.0.puts.write(&self.0.database, put)).await
    }

    async fn take_due(
        &self,
        queues: &[Queue],
        limit: usize,
        hide_for: Duration,
    ) -> Result<Taken, StorageError> {
        let hide_ms = signed(delay_millis(hide_for)?);
        let most = i32::try_from(limit.min(MAX_TAKEN)).unwrap_or(i32::MAX);
        let queues: Vec<_> = queues.iter().map(|queue| escape(queue.as_str())).collect();
        let (database, span) = (&self.0.database, engine_span!("take_due", limit));
        let statement = &database.statements.take_due;
        let rows = database.call(span, statement, &[&queues, &most, &hide_ms], Access::Writes).await?;
        timers::taken(database, &rows)
    }

    async fn resolve(&self, due: &Due, next: Next) -> Result<bool, StorageError> {
        let Due { queue, key, .. } = due;
        let span = engine_span!("resolve", owner = %key.owner.printable(), task = %key.task.printable(), queue = %queue.printable());
        let after_ms = match next {
            Next::After(after) => Some(delay_millis(after)?),
            Next::Remove => None,
        };
        let Some(token) = timers::token(due) else { return Ok(false) };
        let resolve = Resolve { due: due.clone(), token, after_ms };
        self.0.database.in_span(span, self.0.resolves.write(&self.0.database, resolve)).await
    }

    fn wakeups(&self, queues: &[Queue]) -> BoxStream<'static, ()> {
        if self.0.listens() || queues.is_empty() {
            return self.0.subscribers.wakers().subscribe(queues);
        }
        Box::pin(stream::unfold((), |()| async {
            tokio::time::sleep(POLL_EVERY).await;
            Some(((), ()))
        }))
    }

    async fn owners(&self, after: Option<&Cursor>) -> Result<OwnerPage, StorageError> {
        pages::owners(&self.0.database, after).await
    }

    async fn timers(&self, queue: &Queue, after: Option<&Cursor>) -> Result<TimerPage, StorageError> {
        timers::list(&self.0.database, queue, after).await
    }
}
