//! The throughput of writes over several masters.

use std::sync::Arc;
use std::time::Instant;

use mcp_task_store::{StorageBackend, Version};
use tokio::task::JoinSet;

use super::connect;
use crate::support::cluster::{Cluster, info};
use crate::support::redis::Server;
use crate::support::{in_an_hour, keep, key};

/// Measures the compare-and-swaps a second, as far as the cores of the machine allow it, and the time that the busiest
/// server spends in scripts for each write. A server runs scripts on one core.
async fn throughput(calls: u64) {
    const CALLERS: usize = 64;
    for masters in 1..=3 {
        let cluster = Cluster::start(masters, 0);
        let backend = Arc::new(connect(&cluster).await);
        let (mut callers, since) = (JoinSet::new(), Instant::now());
        for caller in 0..CALLERS {
            let backend = Arc::clone(&backend);
            callers.spawn(async move {
                let key = key(&format!("owner-{caller}"), "t1");
                let data = bytes::Bytes::from(vec![b'x'; 700]);
                backend.put(&key, data.clone(), in_an_hour()).await.unwrap();
                for version in 1..calls {
                    let version = Version::from(version);
                    backend.put_if_version(&key, data.clone(), keep(), version).await.unwrap();
                }
            });
        }
        while let Some(caller) = callers.join_next().await {
            caller.unwrap();
        }
        let writes = CALLERS as u64 * calls;
        let a_second = writes as f64 / since.elapsed().as_secs_f64();
        println!("figure | cluster of {masters} masters: writes a second by one process | {a_second:.0}");
        let share = cluster.nodes.iter().map(micros_in_scripts).max().unwrap() as f64 / writes as f64;
        println!(
            "figure | cluster of {masters} masters: the busiest one's time in scripts, a write | {share:.1} µs"
        );
    }
}

fn micros_in_scripts(node: &Server) -> u64 {
    let stats = info(&mut node.connection(), "commandstats");
    let eval = stats.lines().find(|line| line.starts_with("cmdstat_eval:"));
    eval.map_or(0, |line| line.split("usec=").nth(1).unwrap().split(',').next().unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_of_many_owners_spread_over_the_masters() {
    throughput(10).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: measures for some seconds"]
async fn long_writes_of_many_owners_spread_over_the_masters() {
    throughput(1000).await;
}
