//! A watch follows the master of its slot, however often the master changes.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use mcp_task_store::{RedisBackend, StorageBackend, StorageError, TaskKey};
use tokio::task::JoinSet;

use super::connect;
use crate::support::bus::Buses;
use crate::support::cluster::{Cluster, eventually, info};
use crate::support::redis::command;
use crate::support::{keep, key, never};

const OWNERS: usize = 200;
const FAILOVERS: usize = 10;

type Watch = BoxStream<'static, Result<(), StorageError>>;

/// Makes a replica the master, and waits until the former master is its replica. With `by_vote`, the other masters vote
/// on the failover. They vote for the same slots once in two seconds.
fn fail_over(cluster: &Cluster, master: usize, replica: usize, by_vote: bool) {
    let has_role = |node: usize, role: &str| {
        info(&mut cluster.nodes[node].connection(), "replication").contains(&format!("role:{role}"))
    };
    eventually(|| {
        // The command fails while the replica is behind its master, or if it is the master already.
        let mut admin = cluster.nodes[replica].connection();
        let mut failover = redis::cmd("CLUSTER");
        failover.arg("FAILOVER");
        if !by_vote {
            failover.arg("TAKEOVER");
        }
        let _ = failover.query::<()>(&mut admin);
        let patience = Instant::now() + Duration::from_secs(5);
        while !has_role(replica, "master") && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(10));
        }
        has_role(replica, "master")
    });
    eventually(|| has_role(master, "slave"));
    eventually(|| {
        info(&mut cluster.nodes[master].connection(), "replication").contains("master_link_status:up")
    });
}

/// Makes one write for each watch from another instance, and waits until each watch has yielded an item for it.
async fn assert_all_notified(
    watches: Vec<(TaskKey, Watch)>,
    backend: &RedisBackend,
    other: &RedisBackend,
) -> Vec<(TaskKey, Watch)> {
    let mut notified = JoinSet::new();
    for (key, mut watch) in watches {
        let (backend, other) = (backend.clone(), other.clone());
        notified.spawn(async move {
            let version = loop {
                match other.put(&key, "written".into(), keep()).await {
                    Ok(written) => break written.version,
                    // A node may need a moment to detect that the cluster is up.
                    Err(error) => assert!(error.is_retryable(), "{error:?}"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            };
            loop {
                let _ = watch.next().await.expect("the record lives");
                if backend.get(&key).await.is_ok_and(|record| record.version >= version) {
                    return (key, watch);
                }
            }
        });
    }
    let all = tokio::time::timeout(Duration::from_secs(60), notified.join_all());
    all.await.expect("each watch receives a notification of each write")
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_receive_every_write_after_ten_failovers_and_when_the_demoted_node_leaves() {
    let (buses, nodes) = Buses::start(4, &[]);
    let cluster = Cluster::join(nodes, 3);
    // The first node and the last one take over from each other.
    let pair = [0, 3];
    let (backend, other) = (connect(&cluster).await, connect(&cluster).await);
    let mut names = (0..).map(|number| format!("owner-{number}"));
    let mut watches = Vec::new();
    while watches.len() < OWNERS {
        let name = names.next().unwrap();
        if cluster.master_for(&format!("{{{name}}}")) != pair[0] {
            continue;
        }
        let key = key(&name, "t1");
        backend.put(&key, "one".into(), never()).await.unwrap();
        let mut watch = backend.watch(&key);
        watch.next().await.unwrap().unwrap();
        watches.push((key, watch));
    }
    for round in 1..FAILOVERS {
        tokio::task::block_in_place(|| fail_over(&cluster, pair[(round + 1) % 2], pair[round % 2], false));
    }
    // One node does not learn of the last failover, and reports the old master of the slots for a while.
    let (demoted, elected) = (pair[(FAILOVERS + 1) % 2], pair[FAILOVERS % 2]);
    tokio::task::block_in_place(|| {
        buses.cut(&cluster.id(1));
        fail_over(&cluster, demoted, elected, true);
        let subscribed = |node: usize| {
            let channels: Vec<String> =
                command(&mut cluster.nodes[node].connection(), ["PUBSUB", "SHARDCHANNELS"]);
            channels.len()
        };
        eventually(|| subscribed(demoted) + subscribed(elected) >= OWNERS);
        buses.join();
        cluster.settled();
    });
    let mut admin = cluster.nodes[demoted].connection();
    let _: () = command(&mut admin, ["CLUSTER", "REPLICATE", &cluster.id(2)]);
    let since = Instant::now();
    let watches = assert_all_notified(watches, &backend, &other).await;
    println!(
        "figure | cluster, ten failovers: until {OWNERS} watches receive a notification | {:.1?}",
        since.elapsed()
    );
    let _: () = command(&mut admin, ["CLUSTER", "RESET"]);
    let watches = assert_all_notified(watches, &backend, &other).await;
    // A second round, because a watch yields an item whenever its subscription begins.
    assert_all_notified(watches, &backend, &other).await;
}
