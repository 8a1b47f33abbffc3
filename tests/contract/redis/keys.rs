//! Keys of the Redis engine, and states of them that no call of the contract creates or shows.

mod damage;
mod expiry;
mod index;
mod layout;
mod numbers;

use mcp_task_store::{PageRequest, PartName, PartSizes, StorageBackend, Version};

use crate::support::redis::Namespace;
use crate::support::{Engine, Store, in_an_hour, key, owner};

const PART: PartName = PartName::from_static("input");
const OTHER: PartName = PartName::from_static("output");

fn version(number: u64) -> Version {
    Version::from(number)
}

fn sizes<const N: usize>(parts: [(PartName, usize); N]) -> PartSizes {
    parts.into()
}

async fn open() -> Store {
    Engine::Redis.open().await
}

fn redis(store: &Store) -> &Namespace {
    store.redis.as_ref().unwrap()
}

/// The expiry of an index key in milliseconds since the epoch; -1 for none, -2 for no key. Redis 7 has a command for
/// this. The calculation here works on 6.2 too.
fn expires(store: &Store, key: &str) -> i64 {
    let script = "local t = redis.call('TIME') local left = redis.call('PTTL', KEYS[1]) \
                  return left < 0 and left or t[1] * 1000 + math.floor(t[2] / 1000) + left";
    redis(store).run(&["EVAL", script, "1", &format!("{{}}:{key}")])
}

fn assert_index_expires(store: &Store, at: Option<i64>) {
    let expires = expires(store, "idx:alice");
    // Reading the clock and the remaining time takes a moment.
    assert!(at.map_or(expires == -1, |at| (expires - at).abs() <= 20), "{expires}, not {at:?}");
}

#[tokio::test]
async fn a_backend_works_over_a_connection_that_the_caller_made() {
    let namespace = Namespace::new();
    let client = ::redis::Client::open(namespace.url()).unwrap();
    let connection = client.get_multiplexed_async_connection().await.unwrap();
    let backend = namespace.builder().over(connection).await.unwrap();
    backend.put(&key("alice", "t1"), "data".into(), in_an_hour()).await.unwrap();
    assert_eq!(namespace.backend().await.get(&key("alice", "t1")).await.unwrap().data, "data");
    assert_eq!(backend.list(&owner("alice"), PageRequest::new(1)).await.unwrap().records.len(), 1);
}
