//! Writes that are made at the same moment share scripts. Each caller keeps its own reply, error, time limit and
//! cancellation.

mod batches;
mod cluster;
mod order;
mod permissions;
mod puts;
mod refused_alone;
mod replicas;
mod runtimes;
mod server_states;
mod unanswered;

use std::collections::HashMap;

use futures_util::future::join_all;
use mcp_task_store::{RedisBackend, StorageBackend, StorageError, TaskKey, Version, Written};

use crate::support::tap::Sent;
use crate::support::{after_ms, in_an_hour, keep, key};

type Outcome = Result<Written, StorageError>;

/// A write of a kind that shares scripts.
#[derive(Clone, Debug)]
enum Write {
    Create(TaskKey),
    /// A compare-and-swap of the record's first version.
    Swap(TaskKey),
}

impl Write {
    fn key(&self) -> &TaskKey {
        match self {
            Self::Create(key) | Self::Swap(key) => key,
        }
    }

    /// Returns the version that the write gives the record.
    fn version(&self) -> Version {
        match self {
            Self::Create(_) => Version::FIRST,
            Self::Swap(_) => Version::from(2),
        }
    }

    async fn send(&self, backend: &RedisBackend) -> Outcome {
        let data = format!("new {}", self.key()).into();
        match self {
            Self::Create(key) => backend.put_if_version(key, data, in_an_hour(), Version::ABSENT).await,
            Self::Swap(key) => backend.put_if_version(key, data, keep(), Version::FIRST).await,
        }
    }

    /// Asserts that the write was applied once.
    async fn assert_applied(&self, reader: &RedisBackend) {
        let record = reader.get(self.key()).await.unwrap_or_else(|error| panic!("{self:?}: {error:?}"));
        let data = format!("new {}", self.key());
        assert_eq!((record.data.as_ref(), record.version), (data.as_bytes(), self.version()), "{self:?}");
        assert!(record.expires_at.is_some(), "{self:?}");
    }

    /// Asserts that the write was not applied.
    async fn assert_not_applied(&self, reader: &RedisBackend) {
        match (self, reader.get(self.key()).await) {
            (Self::Create(_), Err(StorageError::NotFound { .. })) => {}
            (Self::Swap(_), Ok(record)) if record.data == "old" && record.version == Version::FIRST => {}
            (_, found) => panic!("{self:?}: {found:?}"),
        }
    }
}

/// Writes the records of `count` compare-and-swaps. Returns these, each followed by a create. The tasks belong to the owners
/// in turn.
async fn prepared(backend: &RedisBackend, owners: &[&str], count: usize) -> Vec<Write> {
    let mut writes = Vec::with_capacity(2 * count);
    for number in 0..count {
        let owner = owners[number % owners.len()];
        let [swapped, created] = ["swapped", "created"].map(|kind| key(owner, &format!("{kind}-{number}")));
        backend.put(&swapped, "old".into(), in_an_hour()).await.unwrap();
        writes.extend([Write::Swap(swapped), Write::Create(created)]);
    }
    writes
}

/// Creates 200 records of each owner that expire at once, and one that lives. Returns when the server has removed the
/// expired records. Their members are still in the index.
async fn with_expired_members(backend: &RedisBackend, owners: &[&str]) {
    for owner in owners {
        backend.put(&key(owner, "lives"), "data".into(), in_an_hour()).await.unwrap();
        let keys: Vec<_> = (0..200).map(|number| key(owner, &format!("expires-{number}"))).collect();
        let put = async |key| backend.put(key, "data".into(), after_ms(50)).await;
        assert!(join_all(keys.iter().map(put)).await.iter().all(Result::is_ok));
        for key in &keys {
            while backend.get(key).await.is_ok() {}
            // The record may have expired after the server replied. The server removes it now.
            let _ = backend.get(key).await;
        }
    }
}

/// Sends all writes at the same moment, from one thread.
async fn send_all(backend: &RedisBackend, writes: &[Write]) -> Vec<Outcome> {
    join_all(writes.iter().map(|write| write.send(backend))).await
}

/// Sends all writes at the same moment, and asserts that each succeeds.
async fn assert_all_succeed(backend: &RedisBackend, writes: &[Write]) {
    for (write, outcome) in writes.iter().zip(send_all(backend, writes).await) {
        let written = outcome.unwrap_or_else(|error| panic!("{write:?}: {error:?}"));
        assert_eq!(written.version, write.version(), "{write:?}");
        assert!(written.expires_at.is_some(), "{write:?}");
        write.assert_applied(backend).await;
    }
}

/// Returns how many of these scripts name each record.
fn times_sent(scripts: &[Sent]) -> HashMap<&str, usize> {
    let mut times = HashMap::new();
    for record in scripts.iter().flat_map(Sent::records) {
        *times.entry(record.as_str()).or_default() += 1;
    }
    times
}

/// Returns the key of a record under the default prefix.
fn record_key(key: &TaskKey) -> String {
    format!("pmcp:tasks:{key}")
}

/// Asserts that each write was sent exactly once.
fn assert_each_sent_once(writes: &[Write], scripts: &[Sent]) {
    let times = times_sent(scripts);
    for write in writes {
        let times = times.get(&*record_key(write.key())).copied().unwrap_or_default();
        assert_eq!(times, 1, "{write:?}");
    }
    assert_eq!(times.len(), writes.len());
}
