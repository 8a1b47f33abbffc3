//! Watches continue after a lost subscription, server or node.

use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use mcp_task_store::{RedisBackend, StorageBackend, StorageError};

use super::{next, watch};
use crate::support::cluster::Cluster;
use crate::support::redis::{Server, command};
use crate::support::{keep, key, never};

#[tokio::test]
async fn after_a_lost_subscription_the_backend_subscribes_again_and_notifies_each_watch() {
    let server = Server::start(&[]);
    let mut admin = server.connection();
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    let mut watches = Vec::new();
    for task in ["t1", "t2"] {
        backend.put(&key("alice", task), "data".into(), never()).await.unwrap();
        watches.push(watch(&backend, task));
        next(watches.last_mut().unwrap()).await;
    }
    let killed: i64 = command(&mut admin, ["CLIENT", "KILL", "TYPE", "pubsub"]);
    assert_eq!(killed, 1);
    for watch in &mut watches {
        next(watch).await;
    }
    for watch in &mut watches {
        assert!(watch.next().now_or_never().is_none(), "the watch was notified once");
    }
    backend.put(&key("alice", "t1"), "data".into(), keep()).await.unwrap();
    next(&mut watches[0]).await;
}

#[tokio::test]
async fn a_write_during_an_outage_notifies_the_watch_afterwards() {
    let mut server = Server::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    let t1 = key("alice", "t1");
    backend.put(&t1, "one".into(), never()).await.unwrap();
    let mut watch = watch(&backend, "t1");
    next(&mut watch).await;
    server.kill();
    // During the outage the watch yields errors and continues.
    let error = watch.next().await.unwrap().unwrap_err();
    assert!(matches!(error, StorageError::Unavailable { .. }), "{error}");
    server.start_again();
    let other = RedisBackend::connect(&server.url()).await.unwrap();
    let seen = loop {
        match other.get(&t1).await {
            Ok(record) => break record.version,
            // The server replies before it has loaded its data.
            Err(error) => assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}"),
        }
    };
    other.put_if_version(&t1, "two".into(), keep(), seen).await.unwrap();
    loop {
        next(&mut watch).await;
        if backend.get(&t1).await.is_ok_and(|record| record.data == "two") {
            break;
        }
    }
}

#[tokio::test]
async fn a_watch_detects_a_server_that_hangs() {
    let server = Server::start(&[]);
    let limit = Duration::from_millis(300);
    let backend = RedisBackend::builder().connect_timeout(limit).response_timeout(limit);
    let backend = backend.connect(&server.url()).await.unwrap();
    backend.put(&key("alice", "t1"), "one".into(), never()).await.unwrap();
    let mut watch = watch(&backend, "t1");
    next(&mut watch).await;
    server.signal("STOP");
    let noticed = tokio::time::timeout(Duration::from_secs(60), watch.next()).await;
    server.signal("CONT");
    let error = noticed.expect("the silence is noticed").unwrap().unwrap_err();
    assert!(matches!(error, StorageError::Unavailable { .. }), "{error}");
    next(&mut watch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_follows_its_owner_to_another_node_of_the_cluster() {
    let cluster = Cluster::start(2, 0);
    let backend = RedisBackend::builder().connect_cluster(cluster.urls().split(',')).await.unwrap();
    let t1 = key("alice", "t1");
    backend.put(&t1, "one".into(), never()).await.unwrap();
    let mut watch = watch(&backend, "t1");
    next(&mut watch).await;
    let (from, slot) = (cluster.master_for("{alice}"), cluster.slot("{alice}"));
    cluster.set_slot(1 - from, &slot, "IMPORTING", from);
    cluster.set_slot(from, &slot, "MIGRATING", 1 - from);
    for key in ["pmcp:tasks:{alice}:t1", "pmcp:idx:{alice}"] {
        cluster.migrate(from, 1 - from, key);
    }
    cluster.set_slot(1 - from, &slot, "NODE", 1 - from);
    cluster.set_slot(from, &slot, "NODE", 1 - from);
    // The node that lost the slot ends the subscription, which yields an item.
    next(&mut watch).await;
    let version = backend.get(&t1).await.unwrap().version;
    backend.put_if_version(&t1, "two".into(), keep(), version).await.unwrap();
    next(&mut watch).await;
}
