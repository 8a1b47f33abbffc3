//! Watches on Redis: subscriptions, and lost servers and connections.

mod commands;
mod lifetimes;
mod outages;
mod polling;
mod refused;
mod subscriptions;

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use mcp_task_store::{RedisBackend, StorageBackend, StorageError};
use redis::{Connection, Value};

use crate::support::key;
use crate::support::redis::{can_shard_publishing, command};

type Watch = BoxStream<'static, Result<(), StorageError>>;

fn watch(backend: &RedisBackend, task: &str) -> Watch {
    backend.watch(&key("alice", task))
}

/// Waits for the next good item of a watch. Errors in between come from an outage.
async fn next(watch: &mut Watch) {
    let good = async {
        loop {
            match watch.next().await.expect("the record lives") {
                Ok(()) => return,
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), good).await.expect("an item");
}

/// How many connections are subscribed to the channel of `alice`.
fn subscribers(connection: &mut Connection) -> i64 {
    let asked = if can_shard_publishing(connection) { "SHARDNUMSUB" } else { "NUMSUB" };
    let [_, count]: [Value; 2] = command(connection, ["PUBSUB", asked, "pmcp:watch:alice"]);
    redis::from_redis_value(count).unwrap()
}

async fn until(mut reached: impl FnMut() -> bool) {
    let waiting = async {
        while !reached() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting)
        .await
        .expect("the condition is met within a minute");
}
