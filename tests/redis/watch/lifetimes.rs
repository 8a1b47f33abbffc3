//! Watches, backends and runtimes that end.

use std::time::Duration;

use mcp_task_store::{RedisBackend, StorageBackend};
use redis::Connection;

use super::{next, until, watch};
use crate::support::cluster::Cluster;
use crate::support::redis::{Server, command};
use crate::support::{keep, key, never};

#[tokio::test]
async fn a_runtime_that_is_shut_down_ends_no_watch_of_another_runtime() {
    let server = Server::start(&[]);
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    let t1 = key("alice", "t1");
    backend.put(&t1, "one".into(), never()).await.unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let begun = backend.clone();
    let of_bob = key("bob", "t1");
    backend.put(&of_bob, "one".into(), never()).await.unwrap();
    // The subscription runs on the other runtime, and serves this one too.
    let first = runtime.spawn(async move {
        let mut watch = watch(&begun, "t1");
        next(&mut watch).await;
        watch
    });
    let _first = first.await.unwrap();
    let mut before = watch(&backend, "t1");
    next(&mut before).await;
    let mut bobs = backend.watch(&of_bob);
    next(&mut bobs).await;
    runtime.shutdown_background();
    for data in ["two", "three"] {
        let mut after = watch(&backend, "t1");
        next(&mut after).await;
        backend.put(&t1, data.into(), keep()).await.unwrap();
        next(&mut after).await;
    }
    next(&mut before).await;
    // The connection for all owners ran on the other runtime too.
    let notified = async {
        while backend.get(&of_bob).await.unwrap().data != "notified" {
            next(&mut bobs).await;
        }
    };
    let (_, written) = tokio::join!(notified, backend.put(&of_bob, "notified".into(), keep()));
    written.unwrap();
}

#[test]
fn watch_returns_on_a_runtime_that_was_shut_down() {
    let server = Server::start(&[]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let backend = runtime.block_on(RedisBackend::connect(&server.url())).unwrap();
    let handle = runtime.handle().clone();
    drop(runtime);
    let (returned, has_returned) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _runtime = handle.enter();
        drop(watch(&backend, "t1"));
        returned.send(()).unwrap();
    });
    has_returned.recv_timeout(Duration::from_secs(60)).expect("watch returns");
}

#[tokio::test]
async fn nothing_outlives_a_backend_and_its_watches() {
    let server = Server::start(&[]);
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    leaves_nothing(backend, tasks, &mut [server.connection()]).await;
}

#[tokio::test]
async fn nothing_outlives_a_backend_of_a_cluster_and_its_watches() {
    let cluster = Cluster::start(2, 0);
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let backend = RedisBackend::builder().connect_cluster(cluster.urls().split(',')).await.unwrap();
    let mut admins: Vec<Connection> = cluster.nodes.iter().map(Server::connection).collect();
    leaves_nothing(backend, tasks, &mut admins).await;
}

/// Drops the backend while it reconnects, and checks that no connection and no task is left. `tasks` is their number before.
async fn leaves_nothing(backend: RedisBackend, tasks: usize, admins: &mut [Connection]) {
    let t1 = key("alice", "t1");
    backend.put(&t1, "one".into(), never()).await.unwrap();
    let mut watched = watch(&backend, "t1");
    next(&mut watched).await;
    for admin in &mut *admins {
        let _: i64 = command(admin, ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    }
    // The backend may send the write over a connection that has broken.
    let _ = backend.put(&t1, "two".into(), never()).await;
    drop((watched, backend));
    until(|| {
        let is_alone = |admin: &mut Connection| {
            let clients: String = command(admin, ["CLIENT", "LIST"]);
            clients.lines().count() == 1
        };
        let metrics = tokio::runtime::Handle::current().metrics();
        admins.iter_mut().all(is_alone) && metrics.num_alive_tasks() == tasks
    })
    .await;
}
