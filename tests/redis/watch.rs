//! Watches on Redis: subscriptions, and lost servers and connections.

use std::sync::Arc;
use std::time::Duration;

use crate::support::cluster::Cluster;
use crate::support::redis::{Server, can_shard_publishing, command};
use crate::support::{Printed, in_an_hour, keep, key, never, subscribe};
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use mcp_task_store::{Agenda, PartName, Queue, RedisBackend, StorageBackend, StorageError, Version};
use redis::{Connection, Value};
use rstest::rstest;

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

/// The settings of a server that lacks these commands.
fn without(commands: &[&str]) -> Vec<String> {
    commands.iter().flat_map(|command| ["--rename-command", command, ""]).map(str::to_owned).collect()
}

fn server_without(commands: &[&str]) -> Server {
    let settings = without(commands);
    Server::start(&settings.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Checks that the watch of each backend receives a notification for the writes of each.
async fn assert_all_notify_each_other(backends: &[RedisBackend]) {
    let t1 = key("alice", "t1");
    backends[0].put(&t1, "first".into(), never()).await.unwrap();
    for (number, writer) in backends.iter().enumerate() {
        let mut watches: Vec<Watch> = backends.iter().map(|backend| watch(backend, "t1")).collect();
        for watch in &mut watches {
            next(watch).await;
        }
        for write in 0..3 {
            let data = format!("{number}-{write}");
            match write {
                0 => assert!(writer.put(&t1, data.clone().into(), keep()).await.is_ok()),
                1 => assert!(writer.put(&t1, data.clone().into(), in_an_hour()).await.is_ok()),
                _ => {
                    let version = writer.get(&t1).await.unwrap().version;
                    writer.put_if_version(&t1, data.clone().into(), keep(), version).await.unwrap();
                }
            }
            for (watch, backend) in watches.iter_mut().zip(backends) {
                next(watch).await;
                assert_eq!(backend.get(&t1).await.unwrap().data, data);
            }
        }
    }
}

#[rstest]
#[case::nothing(&[], Some("SPUBLISH"))]
#[case::spublish(&["SPUBLISH"], Some("PUBLISH"))]
#[case::ssubscribe(&["SSUBSCRIBE"], Some("PUBLISH"))]
#[case::both_of_redis_7(&["SPUBLISH", "SSUBSCRIBE"], Some("PUBLISH"))]
#[case::what_publishes(&["SPUBLISH", "PUBLISH"], None)]
#[case::what_subscribes(&["SSUBSCRIBE", "SUBSCRIBE"], None)]
#[tokio::test]
async fn instances_agree_on_the_commands_of_a_server_that_lacks(
    #[case] commands: &[&str],
    #[case] publish: Option<&str>,
) {
    let printed = Printed::default();
    let _printing = subscribe(&printed, tracing::Level::WARN);
    let server = server_without(commands);
    let (one, other) =
        (RedisBackend::connect(&server.url()).await, RedisBackend::connect(&server.url()).await);
    let backends = [one.unwrap(), other.unwrap()];
    let since_start = |admin: &mut Connection| -> Vec<String> {
        let stats: String = command(admin, ["INFO", "commandstats"]);
        let published = stats.lines().filter(|line| line.contains("publish:"));
        published.map(|line| line.split(",usec").next().unwrap().to_owned()).collect()
    };
    let mut admin = server.connection();
    let probed = since_start(&mut admin);
    assert_all_notify_each_other(&backends).await;
    // The notifications were messages, or the watches polled.
    let published = since_start(&mut admin);
    assert_eq!(published != probed, publish.is_some(), "{published:?}");
    if let Some(publish) = publish {
        let with = published.iter().find(|line| !probed.contains(line)).unwrap();
        assert!(with.starts_with(&format!("cmdstat_{}:", publish.to_lowercase())), "{published:?}");
    }
    let warnings =
        printed.text().lines().filter(|line| line.contains("delivers no Pub/Sub messages")).count();
    assert_eq!(
        warnings,
        if publish.is_some() { 0 } else { 2 },
        "one warning for each instance: {}",
        printed.text()
    );
}

#[tokio::test]
async fn a_process_that_cannot_subscribe_publishes_with_the_command_that_the_server_knows() {
    let server = server_without(&["SPUBLISH"]);
    let client = redis::Client::open(server.url()).unwrap();
    let connection = client.get_multiplexed_async_connection().await.unwrap();
    let given = RedisBackend::builder().over(connection).await.unwrap();
    let resp2 = RedisBackend::connect(&format!("{}?protocol=resp2", server.url())).await.unwrap();
    let listening = RedisBackend::connect(&server.url()).await.unwrap();
    let t1 = key("alice", "t1");
    listening.put(&t1, "one".into(), never()).await.unwrap();
    let mut listens = watch(&listening, "t1");
    next(&mut listens).await;
    for backend in [given, resp2] {
        backend.put(&t1, "more".into(), keep()).await.unwrap();
        next(&mut listens).await;
    }
}

#[rstest]
#[case::downgraded(&[], &["SPUBLISH", "SSUBSCRIBE"])]
#[case::upgraded(&["SPUBLISH", "SSUBSCRIBE"], &[])]
#[case::able_at_last(&["SPUBLISH", "PUBLISH"], &[])]
#[case::able_no_more(&[], &["SPUBLISH", "PUBLISH"])]
#[tokio::test]
async fn instances_agree_again_after_the_server_was(#[case] before: &[&str], #[case] after: &[&str]) {
    let mut server = server_without(before);
    let (one, other) =
        (RedisBackend::connect(&server.url()).await, RedisBackend::connect(&server.url()).await);
    // The second instance has no subscriptions before, so only its writes start probes.
    let backends = [one.unwrap(), other.unwrap()];
    let t1 = key("alice", "t1");
    backends[0].put(&t1, "one".into(), never()).await.unwrap();
    let mut watched = watch(&backends[0], "t1");
    next(&mut watched).await;
    server.shut_down();
    let settings = without(after);
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let _server = Server::start_at(server.port, &settings, &[]).unwrap();
    // The records were lost with the old server. The first write after a reconnect sends a notification.
    for data in ["two", "three"] {
        while let Err(error) = backends[1].put(&t1, data.into(), never()).await {
            assert!(error.is_retryable(), "{error:?}");
        }
    }
    let mut watched = watch(&backends[0], "t1");
    next(&mut watched).await;
    for data in ["four", "five"] {
        backends[1].put(&t1, data.into(), never()).await.unwrap();
        next(&mut watched).await;
        assert_eq!(backends[0].get(&t1).await.unwrap().data, data);
    }
    // The third instance has not known the old server.
    let [one, other] = backends;
    assert_all_notify_each_other(&[one, other, RedisBackend::connect(&server.url()).await.unwrap()]).await;
}

/// While a server loads its data, it accepts a subscription, and no probe is possible.
#[tokio::test]
async fn an_instance_that_subscribed_while_an_upgraded_server_loaded_its_data_receives_messages() {
    let mut old = server_without(&["SPUBLISH", "SSUBSCRIBE"]);
    let backend = RedisBackend::connect(&old.url()).await.unwrap();
    let t1 = key("alice", "t1");
    backend.put(&t1, "one".into(), never()).await.unwrap();
    let mut watched = watch(&backend, "t1");
    next(&mut watched).await;
    let mut admin = old.connection();
    let fill = "for i = 1, 2000 do redis.call('SET', 'fill:' .. i, string.rep('x', 100)) end return 0";
    let _: i64 = command(&mut admin, ["EVAL", fill, "0"]);
    let _: () = command(&mut admin, ["SAVE"]);
    let folder = old.folder().to_str().unwrap().to_owned();
    old.shut_down();
    // Microseconds for each key.
    let slowly =
        ["--dir", &folder, "--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024"];
    let server = Server::start_at(old.port, &slowly, &[]).unwrap();
    let mut admin = server.connection();
    let mut is_subscribed = false;
    until(|| {
        let persistence: String = command(&mut admin, ["INFO", "persistence"]);
        let is_loading = persistence.contains("\nloading:1");
        let [_, count]: [Value; 2] = command(&mut admin, ["PUBSUB", "NUMSUB", "pmcp:watch:alice"]);
        is_subscribed |= is_loading && count == Value::Int(1);
        !is_loading
    })
    .await;
    assert!(is_subscribed, "the instance subscribed while the server loaded its data");
    let fresh = RedisBackend::connect(&server.url()).await.unwrap();
    until(|| subscribers(&mut admin) == 1).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    while watched.next().now_or_never().is_some() {}
    for data in ["two", "three"] {
        fresh.put(&t1, data.into(), never()).await.unwrap();
        next(&mut watched).await;
        assert_eq!(backend.get(&t1).await.unwrap().data, data);
    }
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

/// The command that makes a server refuse writes, and whether it still accepts deletes.
#[rstest]
#[case::is_a_replica(&["REPLICAOF", "127.0.0.1", "1"], false)]
#[case::has_too_few_replicas(&["CONFIG", "SET", "min-replicas-to-write", "1"], false)]
#[case::is_out_of_memory(&["CONFIG", "SET", "maxmemory", "1"], true)]
#[tokio::test]
async fn a_refused_write_publishes_nothing_if_the_server(#[case] state: &[&str], #[case] deletes: bool) {
    let server = Server::start(&[]);
    let mut admin = server.connection();
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    let (t1, leases) = (key("alice", "t1"), Queue::try_from("leases").unwrap());
    let part = PartName::from_static("input");
    backend.put(&t1, "data".into(), in_an_hour().set_part(part.clone(), "part")).await.unwrap();
    backend.schedule(&leases, &t1, Duration::from_secs(3600)).await.unwrap();
    let due = backend.take_due(std::slice::from_ref(&leases), 1, Duration::ZERO).await.unwrap();
    assert!(due.due.is_empty());
    let _: Value = command(&mut admin, state.iter().copied());
    let client = redis::Client::open(server.url()).unwrap();
    let mut seen = client.get_async_monitor().await.unwrap().into_on_message::<String>();
    let mut refused = vec![
        backend.put(&t1, "lost".into(), keep()).await.map(drop),
        backend.put(&t1, "lost".into(), in_an_hour()).await.map(drop),
        backend.put(&t1, "lost".into(), never()).await.map(drop),
        backend.put(&t1, "lost".into(), keep().clear_part(part)).await.map(drop),
        backend.put_if_version(&t1, "lost".into(), keep(), Version::FIRST).await.map(drop),
        backend.schedule(&leases, &t1, Duration::ZERO).await,
    ];
    if !deletes {
        refused.push(backend.delete(&t1).await.map(drop));
    }
    for refused in refused {
        let error = refused.unwrap_err();
        assert!(error.is_retryable() && !error.outcome_unknown(), "{error:?}");
    }
    let _: Value = command(&mut admin, ["ECHO", "the end"]);
    let (mut scripts, mut published) = (0, Vec::new());
    loop {
        let line = seen.next().await.unwrap();
        if line.contains("the end") {
            break;
        }
        scripts += usize::from(line.contains("pmcp:tasks:alice:t1"));
        // A backend that reconnects sends probes on another channel.
        if line.contains("lua] \"SPUBLISH\"") && !line.contains(":probe") {
            published.push(line);
        }
    }
    assert!(scripts > 5 && published.is_empty(), "{scripts} {published:?}");
}
