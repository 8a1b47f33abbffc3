//! A Redis Cluster: failover. `tests/contract/elsewhere.rs` tests the contract on a
//! cluster.

mod layout;
mod lost_nodes;
mod migration;
mod refusals;
mod subscriptions;
mod throughput;

use std::time::{Duration, Instant};

use mcp_task_store::{PageRequest, RedisBackend, StorageBackend, StorageError, Version};
use rstest::rstest;

use crate::support::cluster::{Cluster, eventually, moment};
use crate::support::redis::{command, master_for};
use crate::support::{in_an_hour, key, owner};

const RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);

async fn connect(cluster: &Cluster) -> RedisBackend {
    let builder = RedisBackend::builder().response_timeout(RESPONSE_TIMEOUT);
    builder.connect_cluster(cluster.urls().split(',')).await.unwrap()
}

/// Writes until a write succeeds, and returns the version. Each error until then must be `Unavailable`.
async fn until_a_write_works(backend: &RedisBackend, owner: &str) -> Version {
    loop {
        match backend.put(&key(owner, "t1"), "new".into(), in_an_hour()).await {
            Ok(written) => return written.version,
            Err(error) => {
                assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}");
                // A caller that retries in a loop must pause.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_generation_grows_when_a_node_restarts_while_there_are_no_calls() {
    let mut cluster = Cluster::start(3, 0);
    let backend = connect(&cluster).await;
    backend.put(&key("alice", "t1"), "data".into(), in_an_hour()).await.unwrap();
    let before = backend.generation();
    backend.get(&key("alice", "t1")).await.unwrap();
    assert_eq!(backend.generation(), before, "no connection broke");
    let node = cluster.master_for("{alice}");
    cluster.nodes[node].kill();
    cluster.nodes[node].start_again();
    eventually(|| backend.generation() > before);
    // Without RESP3, the next call detects the restart. The generation grows before a command travels over a new
    // connection.
    let nodes: Vec<String> = cluster.urls().split(',').map(|url| format!("{url}/?protocol=resp2")).collect();
    let resp2 = RedisBackend::builder().connect_cluster(&nodes).await.unwrap();
    until_a_write_works(&resp2, "alice").await;
    let before = resp2.generation();
    cluster.nodes[node].kill();
    cluster.nodes[node].start_again();
    until_a_write_works(&resp2, "alice").await;
    assert!(resp2.generation() > before);
}

#[rstest]
#[case::is_killed("KILL")]
#[case::hangs("STOP")]
#[tokio::test(flavor = "multi_thread")]
async fn the_backend_finds_the_new_master_of_a_slot_whose_master(#[case] signal: &str) {
    let cluster = Cluster::start(3, 3);
    let backend = connect(&cluster).await;
    backend.put(&key("alice", "t1"), "old".into(), in_an_hour()).await.unwrap();
    let lost = cluster.master_for("{alice}");
    let replicated = |node: usize| {
        let keys: Vec<String> = command(&mut cluster.nodes[node].connection(), ["KEYS", "*"]);
        keys.len() == 2
    };
    eventually(|| (0..6).filter(|&node| replicated(node)).count() == 2);
    let (old, others) = (cluster.nodes[lost].url(), cluster.urls_without(lost));
    cluster.nodes[lost].signal(signal);
    let since = Instant::now();
    let failed_over = moment(move || master_for(&others, "{alice}") != old);
    until_a_write_works(&backend, "alice").await;
    let (works, failed_over) = (Instant::now(), failed_over.join().unwrap());
    println!(
        "figure | cluster, a master gets SIG{signal}: until it is failed over | {:.1?}",
        failed_over - since
    );
    let later = works.saturating_duration_since(failed_over);
    println!("figure | cluster, a master gets SIG{signal}: from there to a write that works | {later:.1?}");
    assert!(later < 10 * RESPONSE_TIMEOUT);
    let version = until_a_write_works(&backend, "alice").await;
    assert!(version > Version::FIRST, "the replica that took over has the record");
    let listed = loop {
        // Right after the election the nodes may still disagree about the cluster's state.
        match backend.list(&owner("alice"), PageRequest::new(5)).await {
            Ok(page) => break page.records.len(),
            Err(error) => assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}"),
        }
    };
    assert_eq!(listed, 1);
    // Writes of other owners succeed too.
    for name in ["bob", "carol", "dave", "erin"] {
        until_a_write_works(&backend, name).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_to_a_cluster_that_lacks_a_master_are_unavailable_and_write_nothing() {
    let cluster = Cluster::start(3, 0);
    let backend = connect(&cluster).await;
    let lost = cluster.master_for("{alice}");
    let names: Vec<String> = (0..40).map(|number| format!("owner-{number}")).collect();
    let other = names.iter().find(|name| cluster.master_for(&format!("{{{name}}}")) != lost).unwrap();
    cluster.nodes[lost].signal("KILL");
    let survivor = (0..3).find(|&node| node != lost).unwrap();
    eventually(|| {
        let info: String = command(&mut cluster.nodes[survivor].connection(), ["CLUSTER", "INFO"]);
        info.contains("cluster_state:fail")
    });
    for name in ["alice", other] {
        let error = loop {
            // The connection may break during the first calls.
            match backend.put(&key(name, "t1"), "lost".into(), in_an_hour()).await {
                Err(error) if error.outcome_unknown() => {}
                other => break other.unwrap_err(),
            }
        };
        assert!(matches!(error, StorageError::Unavailable { outcome_unknown: false, .. }), "{error:?}");
    }
    let keys: Vec<String> = command(&mut cluster.nodes[survivor].connection(), ["KEYS", "*"]);
    assert!(keys.is_empty(), "{keys:?}");
}
