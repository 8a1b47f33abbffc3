//! Wakeups: messages between processes, and an item each second without messages.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mcp_task_store::{Agenda, RedisBackend};
use redis::Value;
use rstest::rstest;

use super::{HOUR, NOW, PATIENCE, item, keys, leases, queue, quiet, take, wakeups};
use crate::support::key;
use crate::support::redis::{Server, can_shard_publishing, command};

#[tokio::test]
async fn another_process_receives_a_wakeup_within_10_ms() {
    let server = Server::start(&[]);
    let [scheduling, waiting] = [
        RedisBackend::connect(&server.url()).await.unwrap(),
        RedisBackend::connect(&server.url()).await.unwrap(),
    ];
    let mut stream = wakeups(&waiting);
    // The first item arrives when the subscription is live.
    item(&mut stream).await;
    let mut took = Vec::new();
    for number in 0..50 {
        let after = HOUR - number * Duration::from_secs(1);
        let since = Instant::now();
        scheduling.schedule(&leases(), &key("alice", &number.to_string()), after).await.unwrap();
        item(&mut stream).await;
        took.push(since.elapsed());
    }
    took.sort();
    println!(
        "figure | from schedule to the wakeup of another process: median of 50, most | {:.1?}, {:.1?}",
        took[25], took[49]
    );
    assert!(took[25] < Duration::from_millis(100), "{took:?}");
}

#[tokio::test]
async fn one_subscription_serves_all_queues_and_streams_and_ends_with_the_last() {
    let server = Server::start(&[]);
    let mut admin = server.connection();
    let asked = if can_shard_publishing(&mut admin) { "SHARDNUMSUB" } else { "NUMSUB" };
    let mut subscribers = || {
        let [_, count]: [Value; 2] = command(&mut admin, ["PUBSUB", asked, "pmcp:wake:0"]);
        redis::from_redis_value::<i64>(count).unwrap()
    };
    let backend = Arc::new(RedisBackend::connect(&server.url()).await.unwrap());
    let mut streams: Vec<_> =
        (0..3).map(|number| backend.wakeups(&[leases(), queue(&format!("work/{number}"))])).collect();
    for stream in &mut streams {
        item(stream).await;
    }
    assert_eq!(subscribers(), 1);
    streams.truncate(1);
    quiet(&mut streams[0]).await;
    backend.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap();
    item(&mut streams[0]).await;
    drop(streams);
    let ended = async {
        while subscribers() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("the subscription ends");
}

#[rstest]
#[case::notifications_are_off("", false)]
#[case::resp2("?protocol=resp2", true)]
#[tokio::test]
async fn without_messages_an_item_comes_each_second(#[case] query: &str, #[case] notifications: bool) {
    let server = Server::start(&[]);
    let builder = RedisBackend::builder().notifications(notifications);
    let backend = builder.connect(&format!("{}{query}", server.url())).await.unwrap();
    let mut stream = wakeups(&backend);
    let since = Instant::now();
    for _ in 0..3 {
        item(&mut stream).await;
    }
    assert!(since.elapsed() > Duration::from_millis(2900), "{:?}", since.elapsed());
}

#[tokio::test]
async fn over_a_connection_of_the_caller_an_item_comes_each_second() {
    let server = Server::start(&[]);
    let client = redis::Client::open(server.url()).unwrap();
    let connection = client.get_multiplexed_async_connection().await.unwrap();
    let backend = RedisBackend::builder().over(connection).await.unwrap();
    let mut stream = wakeups(&backend);
    item(&mut stream).await;
    backend.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap();
    assert_eq!(keys(&take(&backend).await), ["alice:t1"]);
}

#[tokio::test]
async fn after_a_lost_subscription_the_backend_subscribes_again_and_yields_an_item() {
    let server = Server::start(&[]);
    let mut admin = server.connection();
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    let mut stream = wakeups(&backend);
    item(&mut stream).await;
    quiet(&mut stream).await;
    let killed: i64 = command(&mut admin, ["CLIENT", "KILL", "TYPE", "pubsub"]);
    assert_eq!(killed, 1);
    item(&mut stream).await;
    quiet(&mut stream).await;
    backend.schedule(&leases(), &key("alice", "t1"), HOUR).await.unwrap();
    item(&mut stream).await;
}

#[tokio::test]
async fn while_the_server_is_down_an_item_comes_each_second_and_messages_return_with_it() {
    let mut server = Server::start(&[]);
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    let mut stream = wakeups(&backend);
    item(&mut stream).await;
    quiet(&mut stream).await;
    server.kill();
    for _ in 0..3 {
        item(&mut stream).await;
    }
    server.start_again();
    item(&mut stream).await;
    let messages_return = async {
        // Messages arrive again once an item takes less than a second.
        for number in 0.. {
            let after = HOUR - number * Duration::from_secs(1);
            let t1 = key("alice", &number.to_string());
            while backend.schedule(&leases(), &t1, after).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            quiet(&mut stream).await;
            let since = Instant::now();
            backend.schedule(&leases(), &t1, after / 2).await.unwrap();
            item(&mut stream).await;
            if since.elapsed() < Duration::from_millis(100) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, messages_return).await.expect("messages arrive again");
}
