//! The agenda on Redis: stored keys, messages, and lost servers. The tests of the contract are elsewhere.

mod lost_masters;
mod messages;
mod owners;
mod permissions;
mod replicas;
mod slow_shards;
mod stored;

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use mcp_task_store::{Agenda, Queue, RedisBackend, Taken};
use redis::{Commands, Connection};

use crate::support::cluster::Cluster;

const NOW: Duration = Duration::ZERO;
const HOUR: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_secs(60);
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);
const DUE: &str = "pmcp:due:0:leases";

fn queue(name: &str) -> Queue {
    name.try_into().unwrap()
}

fn leases() -> Queue {
    queue("leases")
}

async fn take(agenda: &RedisBackend) -> Taken {
    agenda.take_due(&[leases()], 256, HOUR).await.unwrap()
}

fn keys(taken: &Taken) -> Vec<String> {
    taken.due.iter().map(|due| due.key.to_string()).collect()
}

async fn item(wakeups: &mut BoxStream<'static, ()>) {
    tokio::time::timeout(PATIENCE, wakeups.next()).await.expect("an item").expect("the stream does not end");
}

/// Waits until earlier messages yield no more items.
async fn quiet(wakeups: &mut BoxStream<'static, ()>) {
    while tokio::time::timeout(Duration::from_millis(200), wakeups.next()).await.is_ok() {}
}

fn wakeups(backend: &RedisBackend) -> BoxStream<'static, ()> {
    backend.wakeups(&[leases()])
}

/// The scores of a queue's timers as the server prints them.
fn scores(connection: &mut Connection, due: &str) -> BTreeMap<String, f64> {
    let pairs: Vec<(String, f64)> = connection.zrange_withscores(due, 0, -1).unwrap();
    pairs.into_iter().collect()
}

async fn connect(cluster: &Cluster) -> RedisBackend {
    let builder = RedisBackend::builder().response_timeout(RESPONSE_TIMEOUT);
    builder.connect_cluster(cluster.urls().split(',')).await.unwrap()
}
