//! Backends without notifications: their watches poll.

use mcp_task_store::{RedisBackend, StorageBackend, Version};
use redis::Connection;

use super::{next, subscribers, watch};
use crate::support::redis::{Server, command};
use crate::support::{keep, key, never};

#[tokio::test]
async fn without_notifications_nothing_is_published_and_a_watch_polls() {
    let server = Server::start(&[]);
    let mut admin = server.connection();
    let quiet = RedisBackend::builder().notifications(false).connect(&server.url()).await.unwrap();
    let t1 = key("alice", "t1");
    quiet.put(&t1, "one".into(), never()).await.unwrap();
    let t2 = key("alice", "t2");
    quiet.put(&t2, "one".into(), never()).await.unwrap();
    quiet.put_if_version(&t2, "two".into(), keep(), Version::FIRST).await.unwrap();
    assert!(quiet.delete(&t2).await.unwrap());
    let mut polling = watch(&quiet, "t1");
    next(&mut polling).await;
    let published = |admin: &mut Connection| -> u64 {
        let stats: String = command(admin, ["INFO", "commandstats"]);
        let calls = |line: &str| line.split("calls=").nth(1)?.split(',').next()?.parse::<u64>().ok();
        stats.lines().filter(|line| line.contains("publish:")).filter_map(calls).sum()
    };
    assert_eq!(published(&mut admin), 0);
    let listening = RedisBackend::connect(&server.url()).await.unwrap();
    // The messages of the probes at the start.
    let probed = published(&mut admin);
    assert_eq!(probed, 1);
    listening.put(&t1, "two".into(), keep()).await.unwrap();
    next(&mut polling).await;
    assert_eq!((published(&mut admin), subscribers(&mut admin)), (probed + 1, 0));
}

#[tokio::test]
async fn over_a_connection_of_the_caller_or_resp2_writes_are_published_and_a_watch_polls() {
    let server = Server::start(&[]);
    let mut admin = server.connection();
    let client = redis::Client::open(server.url()).unwrap();
    let connection = client.get_multiplexed_async_connection().await.unwrap();
    let given = RedisBackend::builder().over(connection).await.unwrap();
    let resp2 = RedisBackend::connect(&format!("{}?protocol=resp2", server.url())).await.unwrap();
    let listening = RedisBackend::connect(&server.url()).await.unwrap();
    for (number, backend) in [given, resp2].iter().enumerate() {
        let task = format!("t{number}");
        backend.put(&key("alice", &task), "one".into(), never()).await.unwrap();
        let (mut polling, mut notified) = (watch(backend, &task), watch(&listening, &task));
        next(&mut polling).await;
        next(&mut notified).await;
        assert_eq!(subscribers(&mut admin), 1, "the backend with notifications");
        backend.put_if_version(&key("alice", &task), "two".into(), keep(), Version::FIRST).await.unwrap();
        next(&mut polling).await;
        next(&mut notified).await;
    }
}
