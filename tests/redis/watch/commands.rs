//! Servers that lack commands of Pub/Sub: all instances agree on the commands that they use.

use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use mcp_task_store::{RedisBackend, StorageBackend};
use redis::{Connection, Value};
use rstest::rstest;

use super::{Watch, next, subscribers, until, watch};
use crate::support::redis::{Server, command};
use crate::support::{Printed, in_an_hour, keep, key, never, subscribe};

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
