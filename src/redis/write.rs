//! Writes of a record.

use std::pin::pin;

use bytes::Bytes;
use tracing::Span;

use super::RedisBackend;
use super::error::Context;
use crate::backend::engine::{WriteMode, check_parts, check_size, expiry_millis};
use crate::backend::{Expiry, PutOptions, StorageError, TaskKey, Written};
use crate::scripts::{CAS_PUT, CasPut, ExpiryArgument, Kept, PUT, Put};

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
        let keeps = options.expiry == Expiry::Keep && options.parts.is_empty();
        if let (WriteMode::Update(expected), true) = (mode, keeps)
            && let Some(next) = expected.next()
        {
            let task = self.0.schema.task(&key.owner, &key.task);
            let cas_put = CasPut { task, data, expected, next, notice: None };
            return self.compare_and_swap(span, cas_put, channel, key).await;
        }
        let (keys, id) = (self.0.schema.keys(key), key.task.clone());
        let PutOptions { quota, parts, .. } = options;
        let put = Put { keys, id, data, expiry, quota, mode, notice: None, parts };
        self.put_record(span, put, channel, key).await
    }

    async fn compare_and_swap(
        &self,
        span: Span,
        mut cas_put: CasPut,
        channel: Option<String>,
        key: &TaskKey,
    ) -> Result<Written, StorageError> {
        let task = cas_put.task.clone();
        let context = Context { expected: Some(cas_put.expected), ..self.writes(&task).of(key) };
        let write = pin!(async {
            cas_put.notice = self.notice(channel, &context).await?;
            let Kept(expires_at) = self.run(&CAS_PUT, &cas_put, &context).await?;
            Ok(Written { version: cas_put.next, expires_at })
        });
        self.limited(span, &context, write).await
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
            let full = match self.run(&PUT, &put, &context).await {
                Err(full @ StorageError::CapacityExceeded { quota: Some(_), .. }) => full,
                other => return other,
            };
            // The quota counts index members. Members whose hash was evicted or deleted by hand must not count. The
            // refused write wrote nothing, so it can be sent again.
            match Box::pin(self.reap_all(&key.owner, &self.reads(context.key))).await? {
                true => self.run(&PUT, &put, &context).await,
                false => Err(full),
            }
        });
        self.limited(span, &context, write).await
    }
}

fn expiry_argument(expiry: Expiry) -> Result<ExpiryArgument, StorageError> {
    Ok(match (expiry, expiry_millis(expiry)?) {
        (_, Some(millis)) => ExpiryArgument::AfterMillis(millis),
        (Expiry::Never, None) => ExpiryArgument::Never,
        (_, None) => ExpiryArgument::Keep,
    })
}
