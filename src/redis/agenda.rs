//! Timers across owners.
//!
//! The timers of one queue are a sorted set by due time. A score is exact to 1/1024 ms. Its fraction is a salt that changes
//! with every write of the timer, so the score is the token of the taker. With hash tags the sets are in 16 shards by
//! owner, which a cluster distributes over its masters. A shard whose master is unreachable delays only its own timers.

pub(super) mod listing;
mod shards;
mod wakeups;

use std::pin::pin;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_core::stream::BoxStream;

use super::RedisBackend;
use super::error::Context;
use super::in_flight::CallInFlight;
use super::write::expiry_argument;
use crate::backend::engine::{MAX_TAKEN, WriteMode, check_size, delay_millis};
use crate::backend::{
    Agenda, Cursor, Due, Next, OwnerPage, PutOptions, Queue, StorageBackend, StorageError, Taken, TaskKey,
    TimerPage, Version, Written,
};
use crate::printable::Chain;
use crate::scripts::{
    ExpiryArgument, FoundTimers, Insert, InsertTimer, QueueState, RESOLVE, Resolve, Resolved, SCHEDULE,
    Schedule, TAKE_DUE, TakeDue, Timed,
};
use crate::spans::engine_span;
pub(super) use shards::Outages;

/// How many timers one script takes at most. Such a script occupies the server for about as long as a small call.
const MAX_TAKEN_BY_SCRIPT: usize = 32;

/// A timer that was taken: the number of its queue, the time at which it was due, and the timer.
type DueTimer = (usize, f64, Due);

/// What one shard replied.
struct ShardReply {
    shard: u64,
    /// The timers that were taken.
    due: Vec<DueTimer>,
    /// How many timers were taken, including those that belong to no task.
    count: usize,
    /// The state of each queue after the script took them.
    queues: Vec<QueueState>,
    /// The clock of the shard's server, in microseconds.
    server_us: u64,
}

impl ShardReply {
    /// Returns the time until the next timer is due.
    fn next_in(&self) -> Option<Duration> {
        let firsts = self.queues.iter().filter_map(|queue| queue.first);
        let first = firsts.min_by(f64::total_cmp)?;
        // A timer is due from the beginning of its millisecond on. A negative score becomes zero.
        let due_us = (first.floor() as u64).saturating_mul(1000);
        Some(Duration::from_micros(due_us.saturating_sub(self.server_us)))
    }
}

impl RedisBackend {
    pub(super) async fn run_schedule(
        &self,
        timer: InsertTimer,
        context: &Context<'_>,
    ) -> Result<(), StorageError> {
        let InsertTimer { due, member, after_ms, channel } = timer;
        let notice = self.notice(channel, context).await?;
        self.run(&SCHEDULE, &Schedule { due, member, after_ms, notice }, context).await
    }

    fn wake_channel(&self, shard: u64) -> Option<String> {
        self.0.publishes.then(|| self.0.schema.wake(shard))
    }

    /// Takes due timers from one shard.
    async fn take(
        &self,
        shard: u64,
        queues: &[Queue],
        limit: usize,
        hide_ms: u64,
    ) -> Result<ShardReply, StorageError> {
        let due = queues.iter().map(|queue| self.0.schema.due(shard, queue)).collect();
        let take = TakeDue { due, hide_ms, limit };
        let key = take.due.first().map(String::as_str).unwrap_or_default();
        let context = Context { writes: limit > 0, ..self.reads(key) };
        let span = engine_span!("take_due", shard, limit);
        let call = pin!(async {
            let Timed { value: FoundTimers { queues: states, taken }, server_us } =
                self.run_on_master(&TAKE_DUE, &take, &context).await?;
            let count = taken.len();
            let (mut due, mut foreign) = (Vec::with_capacity(count), Vec::new());
            for timer in taken {
                let queue = queues.get(timer.queue);
                let key = std::str::from_utf8(&timer.member).ok().and_then(|member| member.parse().ok());
                match (queue, key) {
                    (Some(queue), Some(key)) => {
                        let taken = Due::new(queue.clone(), key, timer.token);
                        due.push((timer.queue, timer.due_at, taken));
                    }
                    _ => foreign.push((timer.queue, timer.member)),
                }
            }
            if !foreign.is_empty() {
                self.remove_foreign(&take.due, foreign).await;
            }
            Ok(ShardReply { shard, due, count, queues: states, server_us })
        });
        self.limited(span, &context, call).await
    }

    async fn take_from_one_shard(
        &self,
        queues: &[Queue],
        limit: usize,
        hide_ms: u64,
    ) -> Result<Taken, StorageError> {
        let mut due = Vec::new();
        loop {
            let step = (limit - due.len()).min(MAX_TAKEN_BY_SCRIPT);
            match self.take(0, queues, step, hide_ms).await {
                Ok(found) => {
                    let next_in = found.next_in();
                    let (is_full, is_new) = (found.count >= step, merge(&mut due, found.due));
                    if !is_full || !is_new || due.len() >= limit {
                        return Ok(in_order(due, next_in));
                    }
                }
                Err(error) if due.is_empty() => return Err(error),
                // The caller receives the timers that were taken, and the error with the next call.
                Err(error) => {
                    tracing::debug!(error = %Chain(&error), "took fewer timers than are due");
                    return Ok(in_order(due, Some(Duration::ZERO)));
                }
            }
        }
    }

    /// Removes members that are not keys of tasks. This crate did not write them, and they would be due again and again.
    async fn remove_foreign(&self, keys: &[String], foreign: Vec<(usize, Vec<u8>)>) {
        for (place, key) in keys.iter().enumerate() {
            let members: Vec<&[u8]> =
                foreign.iter().filter(|(of, _)| *of == place).map(|(_, member)| &member[..]).collect();
            if members.is_empty() {
                continue;
            }
            let mut remove = redis::cmd("ZREM");
            remove.arg(key).arg(&members);
            let count = members.len();
            match self.0.connection.send(&remove, key, &CallInFlight::default()).await {
                Ok(_) => tracing::warn!(key, count, "removed timers that belong to no task"),
                Err(failure) => {
                    let error = self.writes(key).storage_error(failure);
                    tracing::warn!(key, count, error = %Chain(&error), "timers that belong to no task were not removed");
                }
            }
        }
    }
}

/// Adds the timers of a later step. If the `hide_for` of a timer elapsed between two steps, both steps took the timer.
/// The list then keeps it once, with the token of the later step, and the function returns `false`: every timer that
/// was due earlier has been taken.
fn merge(due: &mut Vec<DueTimer>, more: Vec<DueTimer>) -> bool {
    let before = due.len();
    due.retain(|(queue, _, one)| {
        !more.iter().any(|(other, _, another)| queue == other && one.key == another.key)
    });
    let is_new = due.len() == before;
    due.extend(more);
    is_new
}

/// Sorts timers by queue, and within a queue by due time.
fn in_order(mut due: Vec<DueTimer>, next_in: Option<Duration>) -> Taken {
    due.sort_by(|(queue, due_at, _), (other, other_due_at, _)| {
        queue.cmp(other).then(due_at.total_cmp(other_due_at))
    });
    Taken::new(due.into_iter().map(|(_, _, due)| due).collect(), next_in)
}

#[async_trait]
impl Agenda for RedisBackend {
    async fn schedule(&self, queue: &Queue, key: &TaskKey, after: Duration) -> Result<(), StorageError> {
        let span = engine_span!("schedule", owner = %key.owner.printable(), task = %key.task.printable(), queue = %queue.printable());
        let after_ms = delay_millis(after)?;
        let shard = self.0.schema.shard(&key.owner);
        let due = self.0.schema.due(shard, queue);
        let context = self.writes(&due).of(key);
        let write = pin!(async {
            let (member, channel) = (key.to_string(), self.wake_channel(shard));
            self.run_schedule(InsertTimer { due: due.clone(), member, after_ms, channel }, &context).await
        });
        self.limited(span, &context, write).await
    }

    async fn create_with_timer(
        &self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        queue: &Queue,
        after: Duration,
    ) -> Result<Written, StorageError> {
        let (expiry, after_ms) = (expiry_argument(options.expiry)?, delay_millis(after)?);
        check_size(&data, self.0.max_value_bytes)?;
        match expiry {
            // With hash tags the timers may be on another server than the record.
            ExpiryArgument::AfterMillis(expiry_ms)
                if options.parts.is_empty() && !self.0.schema.has_hash_tags() =>
            {
                let span = engine_span!("create_with_timer", owner = %key.owner.printable(), task = %key.task.printable(), queue = %queue.printable());
                let (due, member) = (self.0.schema.due(0, queue), key.to_string());
                let timer = Some(InsertTimer { due, member, after_ms, channel: self.wake_channel(0) });
                let (keys, id, quota) = (self.0.schema.keys(key), key.task.clone(), options.quota);
                let write = Insert { keys, id, data, expiry_ms, quota, timer };
                self.insert(span, write, WriteMode::Create, key).await
            }
            _ => {
                self.schedule(queue, key, after).await?;
                self.put_if_version(key, data, options, Version::ABSENT).await
            }
        }
    }

    async fn take_due(
        &self,
        queues: &[Queue],
        limit: usize,
        hide_for: Duration,
    ) -> Result<Taken, StorageError> {
        let hide_ms = delay_millis(hide_for)?;
        let limit = limit.min(MAX_TAKEN);
        if queues.is_empty() {
            return Ok(Taken::default());
        }
        if self.0.schema.shards() > 1 {
            return self.take_from_shards(queues, limit, hide_ms).await;
        }
        self.take_from_one_shard(queues, limit, hide_ms).await
    }

    async fn resolve(&self, due: &Due, next: Next) -> Result<bool, StorageError> {
        let Due { queue, key, token, .. } = due;
        let span = engine_span!("resolve", owner = %key.owner.printable(), task = %key.task.printable(), queue = %queue.printable());
        let after_ms = match next {
            Next::After(after) => Some(delay_millis(after)?),
            Next::Remove => None,
        };
        let shard = self.0.schema.shard(&key.owner);
        let due = self.0.schema.due(shard, queue);
        let context = self.writes(&due).of(key);
        let write = pin!(async {
            // The removal of a timer sends no notification.
            let channel = after_ms.and_then(|_| self.wake_channel(shard));
            let notice = self.notice(channel, &context).await?;
            let (member, token) = (key.to_string(), token.clone());
            let resolve = Resolve { due: due.clone(), member, token, after_ms, notice };
            if after_ms.is_some() {
                return self.run(&RESOLVE, &resolve, &context).await;
            }
            // A timer that a failover restores fires once more. This does no harm, so replicas need not confirm.
            self.run_on_master(&RESOLVE, &resolve, &context).await.map(|reply| reply.value)
        });
        let Resolved(had_effect) = self.limited(span, &context, write).await?;
        Ok(had_effect)
    }

    fn wakeups(&self, queues: &[Queue]) -> BoxStream<'static, ()> {
        self.wakeups_of(queues.to_vec())
    }

    async fn owners(&self, after: Option<&Cursor>) -> Result<OwnerPage, StorageError> {
        self.owners_page(after).await
    }

    async fn timers(&self, queue: &Queue, after: Option<&Cursor>) -> Result<TimerPage, StorageError> {
        self.timers_page(queue, after).await
    }
}
