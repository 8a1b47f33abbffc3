//! Watches stay with the master of their slot, however often that changes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use mcp_task_store::StorageBackend;
use rstest::rstest;
use tokio::task::JoinSet;

use super::connect;
use super::support::cluster::{Cluster, eventually, info};
use super::support::redis::command;
use super::support::{keep, key, never};

const OWNERS: usize = 200;
const FAILOVERS: usize = 10;

/// Makes a replica the master of its slots, and waits until the one that was is its replica.
fn fail_over(cluster: &Cluster, master: usize, replica: usize) {
    let has_role = |node: usize, role: &str| {
        info(&mut cluster.nodes[node].connection(), "replication").contains(&format!("role:{role}"))
    };
    eventually(|| {
        // An error says that it is not in step with its master, or that it is the master already.
        let mut admin = cluster.nodes[replica].connection();
        let _ = redis::cmd("CLUSTER").arg("FAILOVER").query::<()>(&mut admin);
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

#[rstest]
#[case::follows_another_master("REPLICATE")]
#[case::leaves_the_cluster("RESET")]
#[tokio::test(flavor = "multi_thread")]
async fn watches_hear_of_every_write_after_ten_failovers_and_when_the_demoted_node(#[case] then: &str) {
    let cluster = Cluster::start(3, 1);
    // The first node and the last fail over to each other.
    let pair = [0, 3];
    let backend = connect(&cluster).await;
    let mut names = (0..).map(|number| format!("owner-{number}"));
    let mut watches = Vec::new();
    while watches.len() < OWNERS {
        let name = names.next().unwrap();
        if cluster.keeper(&format!("{{{name}}}")) != pair[0] {
            continue;
        }
        let key = key(&name, "t1");
        backend.put(&key, "one".into(), never()).await.unwrap();
        let mut watch = Arc::new(backend.clone()).watch(&key);
        watch.next().await.unwrap().unwrap();
        watches.push((key, watch));
    }
    tokio::task::block_in_place(|| {
        for round in 0..FAILOVERS {
            fail_over(&cluster, pair[round % 2], pair[(round + 1) % 2]);
        }
        let demoted = pair[(FAILOVERS + 1) % 2];
        let mut admin = cluster.nodes[demoted].connection();
        if then == "REPLICATE" {
            let other = cluster.id(1);
            let _: () = command(&mut admin, ["CLUSTER", "REPLICATE", &other]);
        } else {
            let _: () = command(&mut admin, ["CLUSTER", "RESET"]);
        }
    });
    let (others, since) = (connect(&cluster).await, Instant::now());
    let mut hearing = JoinSet::new();
    for (key, mut watch) in watches {
        let version = others.put(&key, "last".into(), keep()).await.unwrap().version;
        let backend = backend.clone();
        hearing.spawn(async move {
            while backend.get(&key).await.unwrap().version < version {
                let _ = watch.next().await.expect("the record lives");
            }
            // The next one comes over the subscription at the master.
            let version = backend.put(&key, "after".into(), keep()).await.unwrap().version;
            loop {
                let _ = watch.next().await.expect("the record lives");
                if backend.get(&key).await.unwrap().version >= version {
                    return;
                }
            }
        });
    }
    let all = tokio::time::timeout(Duration::from_secs(60), hearing.join_all());
    assert_eq!(all.await.expect("each watch hears of each write").len(), OWNERS);
    println!(
        "figure | cluster, ten failovers, then {then}: until {OWNERS} watches hear again | {:.1?}",
        since.elapsed()
    );
}
