//! The contenders, each used through its own public interface.

use std::future::Future;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use bytes::Bytes;
use mcp_task_store::{Expiry, PutOptions, StorageBackend as _, TaskKey, Version};
use pmcp_tasks::store::backend::{StorageBackend as _, make_key};
use redis::aio::MultiplexedConnection;

/// The default expiry of a record.
pub const HOUR: Duration = Duration::from_secs(3600);

/// The calls on one record, as each contender makes them. Rows create the keys before the clock starts, because a real server
/// also reuses its keys.
pub trait Contender: Clone + Send + Sync + 'static {
    type Key: Send + Sync + 'static;

    fn key(owner: &str, task: &str) -> Self::Key;
    /// Writes the record, which expires after this time. Its JSON states the same expiry.
    fn put(&self, key: &Self::Key, data: Bytes, after: Duration) -> impl Future<Output = Result<()>> + Send;
    /// Does the same for a record that must not exist. Only this crate has such a call.
    fn create(
        &self,
        key: &Self::Key,
        data: Bytes,
        after: Duration,
    ) -> impl Future<Output = Result<()>> + Send {
        self.put(key, data, after)
    }
    /// Replaces the record at version `expected`.
    fn swap(&self, key: &Self::Key, data: Bytes, expected: u64) -> impl Future<Output = Result<()>> + Send;
    /// Reads the record, and returns its length.
    fn get(&self, key: &Self::Key) -> impl Future<Output = Result<usize>> + Send;
}

/// This crate.
#[derive(Clone)]
pub struct Ours(pub mcp_task_store::RedisBackend);

impl Contender for Ours {
    type Key = TaskKey;

    fn key(owner: &str, task: &str) -> TaskKey {
        TaskKey::new(owner, task).expect("legal ids")
    }

    async fn put(&self, key: &TaskKey, data: Bytes, after: Duration) -> Result<()> {
        self.0.put(key, data, PutOptions::new(Expiry::After(after))).await?;
        Ok(())
    }

    async fn create(&self, key: &TaskKey, data: Bytes, after: Duration) -> Result<()> {
        self.0.put_if_version(key, data, PutOptions::new(Expiry::After(after)), Version::ABSENT).await?;
        Ok(())
    }

    async fn swap(&self, key: &TaskKey, data: Bytes, expected: u64) -> Result<()> {
        self.0.put_if_version(key, data, PutOptions::new(Expiry::Keep), Version::from(expected)).await?;
        Ok(())
    }

    async fn get(&self, key: &TaskKey) -> Result<usize> {
        Ok(self.0.get(key).await?.data.len())
    }
}

/// `pmcp-tasks`, which reads the expiry from the JSON of the record.
#[derive(Clone)]
pub struct Peer(pub pmcp_tasks::RedisBackend);

impl Contender for Peer {
    type Key = String;

    fn key(owner: &str, task: &str) -> String {
        make_key(owner, task)
    }

    async fn put(&self, key: &String, data: Bytes, _after: Duration) -> Result<()> {
        self.0.put(key, &data).await?;
        Ok(())
    }

    async fn swap(&self, key: &String, data: Bytes, expected: u64) -> Result<()> {
        self.0.put_if_version(key, &data, expected).await?;
        Ok(())
    }

    async fn get(&self, key: &String) -> Result<usize> {
        Ok(self.0.get(key).await?.data.len())
    }
}

/// The bare commands that the calls of this crate run, through the same redis crate.
#[derive(Clone)]
pub struct Bare(pub MultiplexedConnection);

pub struct BareKey {
    pub hash: String,
    idx: String,
    task: String,
}

impl Contender for Bare {
    type Key = BareKey;

    fn key(owner: &str, task: &str) -> BareKey {
        BareKey { hash: bare_hash(owner, task), idx: bare_idx(owner), task: task.to_owned() }
    }

    /// Sends all writes of a put as one MULTI/EXEC pipeline.
    async fn put(&self, key: &BareKey, data: Bytes, after: Duration) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let expires_at = (now + after).as_millis() as u64;
        let mut commands = redis::pipe();
        commands.atomic();
        let by_expiry = [b"\xff", key.task.as_bytes()].concat();
        commands.cmd("ZADD").arg(&key.idx).arg(now.as_micros() as u64).arg(&key.task);
        commands.arg(expires_at).arg(by_expiry);
        commands.cmd("PEXPIREAT").arg(&key.idx).arg(expires_at);
        commands.cmd("HSET").arg(&key.hash).arg("version").arg(1).arg("data").arg(&data[..]);
        commands.arg("expires_at").arg(expires_at);
        commands.cmd("PEXPIREAT").arg(&key.hash).arg(expires_at);
        let _: redis::Value = commands.query_async(&mut self.0.clone()).await?;
        Ok(())
    }

    async fn swap(&self, key: &BareKey, data: Bytes, expected: u64) -> Result<()> {
        let mut command = redis::cmd("HSET");
        command.arg(&key.hash).arg("version").arg(expected + 1).arg("data").arg(&data[..]);
        let _: i64 = command.query_async(&mut self.0.clone()).await?;
        Ok(())
    }

    async fn get(&self, key: &BareKey) -> Result<usize> {
        let read: BareRecord = bare_read(&key.hash).query_async(&mut self.0.clone()).await?;
        Ok(read.1.context("no record")?.len())
    }
}

/// Version, data, expires_at, parts.
pub type BareRecord = (Option<u64>, Option<Vec<u8>>, Option<u64>, Option<String>);

pub fn bare_hash(owner: &str, task: &str) -> String {
    format!("bare:tasks:{owner}:{task}")
}

pub fn bare_idx(owner: &str) -> String {
    format!("bare:idx:{owner}")
}

pub fn bare_read(hash: &str) -> redis::Cmd {
    let mut command = redis::cmd("HMGET");
    command.arg(hash).arg("version").arg("data").arg("expires_at").arg("parts");
    command
}
