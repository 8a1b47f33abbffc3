//! Writes of a record.

use std::pin::pin;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tracing::Span;

use super::RedisBackend;
use super::error::Context;
use super::group_commit::Answer;
use crate::backend::engine::{WriteMode, check_parts, check_size, expiry_millis};
use crate::backend::{Expiry, PutOptions, StorageError, TaskKey, Version, Written};
use crate::scripts::{CAS_PUT, CasPut, CasPuts, ExpiryArgument, Insert, PUT, Put};

impl RedisBackend {
    /// Writes a record with the script for this kind of write.
    pub(super) async fn write(
        &self,
        span: Span,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        mode: WriteMode,
    ) -> Result<Written, StorageError> {
        check_size(&data, self.0.max_value_bytes)?;
        check_parts(&options.parts, self.0.max_part_bytes)?;
        let expiry = expiry_argument(options.expiry)?;
        let channel = self.channel(&key.owner, options.notifies());
        let PutOptions { quota, parts, .. } = options;
        match (mode, expiry) {
            (WriteMode::Update(expected), ExpiryArgument::Keep) if parts.is_empty() => {
                if let Some(next) = expected.next() {
                    let task = self.0.schema.task(&key.owner, &key.task);
                    let write = CasPut { task, data, expected, next, channel };
                    return self.compare_and_swap(span, write, key).await;
                }
            }
            (_, ExpiryArgument::AfterMillis(expiry_ms))
                if parts.is_empty() && self.probably_creates(mode) =>
            {
                let (keys, id) = (self.0.schema.keys(key), key.task.clone());
                let write = Insert { keys, id, data, expiry_ms, quota, timer: None };
                return self.insert(span, write, mode, key).await;
            }
            _ => {}
        }
        let (keys, id) = (self.0.schema.keys(key), key.task.clone());
        let put = Put { keys, id, data, expiry, quota, mode, notice: None, parts };
        self.put_record(span, put, channel, key).await
    }

    async fn compare_and_swap(
        &self,
        span: Span,
        write: CasPut,
        key: &TaskKey,
    ) -> Result<Written, StorageError> {
        let task = write.task.clone();
        let (expected, version) = (Some(write.expected), write.next);
        let context = Context { expected, ..self.writes(&task).of(key) };
        let call = pin!(async {
            let kept = match self.0.swaps.write(write, &context.in_flight).await {
                Answer::Reply(reply) => reply.map_err(|failure| self.failed(failure, &context))?,
                Answer::Alone(write) => {
                    let pubsub = self.pubsub(write.channel.is_some(), &context).await?;
                    let alone = CasPuts { records: &[write], pubsub };
                    self.run(&CAS_PUT, &alone, &context).await?
                }
            };
            Ok(Written { version, expires_at: kept.0 })
        });
        self.limited(span, &context, call).await
    }

    /// Returns whether a write of this mode creates its record, as far as this process knows.
    fn probably_creates(&self, mode: WriteMode) -> bool {
        match mode {
            WriteMode::Create => true,
            WriteMode::Upsert => self.0.puts_in_a_row_that_created.load(Ordering::Relaxed) >= PUTS_TO_BATCH,
            WriteMode::Update(_) => false,
        }
    }

    /// Creates a record that expires and has no parts, with its timer. If there is such a record, `mode` decides.
    pub(super) async fn insert(
        &self,
        span: Span,
        write: Insert,
        mode: WriteMode,
        key: &TaskKey,
    ) -> Result<Written, StorageError> {
        let task = write.keys.task.clone();
        let (expected, quota) = (mode.expected(), write.quota);
        let context = Context { expected, quota, ..self.writes(&task).of(key) };
        let call = pin!(async {
            match self.0.inserts.write(write, &context.in_flight).await {
                Answer::Reply(reply) => {
                    let expires_at = reply.map_err(|failure| self.failed(failure, &context))?;
                    Ok(Written { version: Version::FIRST, expires_at: Some(expires_at) })
                }
                // Boxed, because it is rare and would enlarge the future of every call.
                Answer::Alone(write) => Box::pin(self.insert_alone(write, mode, key, &context)).await,
            }
        });
        self.limited(span, &context, call).await
    }

    /// Writes a record that no batch could create. The batch may have scheduled its timer.
    async fn insert_alone(
        &self,
        mut write: Insert,
        mode: WriteMode,
        key: &TaskKey,
        context: &Context<'_>,
    ) -> Result<Written, StorageError> {
        if let Some(timer) = write.timer.take() {
            let due = timer.due.clone();
            self.run_schedule(timer, &self.writes(&due).of(key)).await?;
        }
        let channel = self.channel(&key.owner, mode == WriteMode::Upsert);
        let notice = self.notice(channel, context).await?;
        self.put_or_reap(&Put { mode, notice, ..write.into() }, key, context).await
    }

    async fn put_record(
        &self,
        span: Span,
        mut put: Put,
        channel: Option<String>,
        key: &TaskKey,
    ) -> Result<Written, StorageError> {
        let is_bulk = !put.parts.is_empty();
        let task = put.keys.task.clone();
        let (expected, quota) = (put.mode.expected(), put.quota);
        let context = Context { expected, quota, is_bulk, ..self.writes(&task).of(key) };
        let write = pin!(async {
            put.notice = self.notice(channel, &context).await?;
            self.put_or_reap(&put, key, &context).await
        });
        self.limited(span, &context, write).await
    }

    /// Records whether a `put` created its record. While puts create records, they share scripts with creates. A put that
    /// finds a record then costs a second round trip, and the following puts go out in scripts of their own.
    fn observe_put(&self, mode: WriteMode, written: &Written) {
        let puts = &self.0.puts_in_a_row_that_created;
        match (mode, written.version) {
            (WriteMode::Upsert, Version::FIRST) => _ = puts.fetch_add(1, Ordering::Relaxed),
            (WriteMode::Upsert, _) => puts.store(0, Ordering::Relaxed),
            _ => {}
        }
    }

    /// Runs `put`. At the quota, removes the index members whose hash is gone, and runs it again.
    async fn put_or_reap(
        &self,
        put: &Put,
        key: &TaskKey,
        context: &Context<'_>,
    ) -> Result<Written, StorageError> {
        let full = match self.run(&PUT, put, context).await {
            Err(full @ StorageError::CapacityExceeded { quota: Some(_), .. }) => full,
            Ok(written) => {
                self.observe_put(put.mode, &written);
                return Ok(written);
            }
            failed => return failed,
        };
        // The quota counts index members. Members whose hash was evicted or deleted by hand must not count. The
        // refused write wrote nothing, so it can be sent again.
        match Box::pin(self.reap_all(&key.owner, &self.reads(context.key))).await? {
            true => self.run(&PUT, put, context).await,
            false => Err(full),
        }
    }
}

/// The number of puts in a row that must have created their records before the next one shares a script with creates.
const PUTS_TO_BATCH: usize = 8;

pub(super) fn expiry_argument(expiry: Expiry) -> Result<ExpiryArgument, StorageError> {
    Ok(match (expiry, expiry_millis(expiry)?) {
        (_, Some(millis)) => ExpiryArgument::AfterMillis(millis),
        (Expiry::Never, None) => ExpiryArgument::Never,
        (_, None) => ExpiryArgument::Keep,
    })
}
