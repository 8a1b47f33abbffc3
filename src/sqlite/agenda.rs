//! Timers across owners.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_core::stream::BoxStream;

use super::clock::now_ms;
use super::{SqliteBackend, pages, timers};
use crate::backend::engine::{WriteMode, delay_millis};
use crate::backend::{
    Agenda, Cursor, Due, Next, OwnerPage, PutOptions, Queue, StorageError, Taken, TaskKey, TimerPage, Written,
};
use crate::spans::engine_span;

#[async_trait]
impl Agenda for SqliteBackend {
    async fn schedule(&self, queue: &Queue, key: &TaskKey, after: Duration) -> Result<(), StorageError> {
        let span = engine_span!("schedule", owner = %key.owner.printable(), task = %key.task.printable(), queue = %queue.printable());
        let (queue, key, after_ms) = (queue.clone(), key.clone(), delay_millis(after)?);
        self.write(span, move |transaction| timers::schedule(transaction, &queue, &key, now_ms() + after_ms))
            .await
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
        let put = self.0.max_sizes.check(key, data, options, WriteMode::Create)?;
        let (queue, after_ms) = (queue.clone(), delay_millis(after)?);
        self.write(span, move |transaction| {
            // Not later than asked, although the create takes time.
            let due_at_ms = now_ms() + after_ms;
            // A create that is refused writes no timer.
            let written = put.run(transaction)?;
            timers::schedule(transaction, &queue, &put.key, due_at_ms)?;
            Ok(written)
        })
        .await
    }

    async fn take_due(
        &self,
        queues: &[Queue],
        limit: usize,
        hide_for: Duration,
    ) -> Result<Taken, StorageError> {
        let (queues, hide_ms) = (queues.to_vec(), delay_millis(hide_for)?);
        let span = engine_span!("take_due", limit);
        self.write(span, move |transaction| timers::take_due(transaction, &queues, limit, hide_ms)).await
    }

    async fn resolve(&self, due: &Due, next: Next) -> Result<bool, StorageError> {
        let Due { queue, key, .. } = due;
        let span = engine_span!("resolve", owner = %key.owner.printable(), task = %key.task.printable(), queue = %queue.printable());
        let after_ms = match next {
            Next::After(after) => Some(delay_millis(after)?),
            Next::Remove => None,
        };
        let due = due.clone();
        self.write(span, move |transaction| timers::resolve(transaction, &due, after_ms)).await
    }

    fn wakeups(&self, queues: &[Queue]) -> BoxStream<'static, ()> {
        let wakeups = self.0.subscribers.wakeups.subscribe(queues);
        self.look_for_changes();
        wakeups
    }

    async fn owners(&self, after: Option<&Cursor>) -> Result<OwnerPage, StorageError> {
        let after = after.cloned();
        self.read(engine_span!("owners"), move |connection| pages::owners(connection, after.as_ref())).await
    }

    async fn timers(&self, queue: &Queue, after: Option<&Cursor>) -> Result<TimerPage, StorageError> {
        let span = engine_span!("timers", queue = %queue.printable());
        let (queue, after) = (queue.clone(), after.cloned());
        self.read(span, move |connection| timers::list(connection, &queue, after.as_ref())).await
    }
}
