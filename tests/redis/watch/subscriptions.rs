//! The number of subscriptions and connections that watches need.

use std::sync::Arc;

use mcp_task_store::{RedisBackend, StorageBackend};

use super::{Watch, next, subscribers, until, watch};
use crate::support::redis::{Server, command};
use crate::support::{in_an_hour, keep, key, never};

#[tokio::test]
async fn one_subscription_serves_all_watches_of_an_owner_and_ends_with_the_last() {
    let server = Server::start(&[]);
    let mut admin = server.connection();
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    for task in ["t1", "t2"] {
        backend.put(&key("alice", task), "data".into(), in_an_hour()).await.unwrap();
    }
    assert_eq!(subscribers(&mut admin), 0);
    let mut watches = ["t1", "t1", "t2"].map(|task| watch(&backend, task));
    for watch in &mut watches {
        next(watch).await;
    }
    assert_eq!(subscribers(&mut admin), 1);
    let clients: String = command(&mut admin, ["CLIENT", "LIST", "TYPE", "pubsub"]);
    assert_eq!(clients.lines().count(), 1, "{clients}");
    let [first, second, last] = watches;
    drop((first, second));
    backend.put(&key("alice", "t2"), "data".into(), keep()).await.unwrap();
    drop(last);
    // The subscription lingers, so it serves one watch after the other.
    next(&mut watch(&backend, "t1")).await;
    let subscribed: String = command(&mut admin, ["INFO", "commandstats"]);
    let calls = |line: &str| line.split("subscribe:calls=").nth(1)?.split(',').next().map(str::to_owned);
    let calls: Vec<String> =
        subscribed.lines().filter(|line| !line.contains("unsubscribe")).filter_map(calls).collect();
    assert_eq!(calls, ["2"], "the probe at the start, and one subscription for all watches");
    until(|| subscribers(&mut admin) == 0).await;
    // The next watch subscribes again, over the same connection.
    next(&mut watch(&backend, "t1")).await;
}

/// This is the situation after a failover: each instance sends a probe, and receives the messages of the other probes
/// too.
#[tokio::test(flavor = "multi_thread")]
async fn instances_that_connect_at_the_same_time_subscribe_by_the_same_command() {
    const INSTANCES: usize = 60;
    let server = Server::start(&[]);
    let (url, mut admin) = (server.url(), server.connection());
    let connecting = (0..INSTANCES).map(|_| RedisBackend::connect(&url));
    let backends = futures_util::future::try_join_all(connecting).await.unwrap();
    backends[0].put(&key("alice", "t1"), "data".into(), never()).await.unwrap();
    let mut watches: Vec<Watch> = backends.iter().map(|backend| watch(backend, "t1")).collect();
    for watch in &mut watches {
        next(watch).await;
    }
    assert_eq!(subscribers(&mut admin), INSTANCES as i64);
}

#[tokio::test]
async fn one_connection_receives_the_messages_of_all_owners() {
    let server = Server::start(&[]);
    let mut admin = server.connection();
    let backend = Arc::new(RedisBackend::connect(&server.url()).await.unwrap());
    let mut watches = Vec::new();
    for owner in ["alice", "bob", "carol"] {
        let key = key(owner, "t1");
        backend.put(&key, "data".into(), never()).await.unwrap();
        watches.push(backend.watch(&key));
    }
    for watch in &mut watches {
        next(watch).await;
    }
    let clients: String = command(&mut admin, ["CLIENT", "LIST", "TYPE", "pubsub"]);
    assert_eq!(clients.lines().count(), 1, "{clients}");
}
