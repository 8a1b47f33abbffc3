//! Writes of one moment to a cluster: the writes of each owner share scripts, and a node or a slot fails its owners alone.

use std::time::Duration;

use mcp_task_store::{PageRequest, RedisBackend, StorageBackend, StorageError};

use super::{Write, assert_all_succeed, prepared, send_all};
use crate::support::cluster::{Cluster, info};
use crate::support::owner;
use crate::support::redis::command;

async fn connect(cluster: &Cluster, limit: Duration) -> RedisBackend {
    let builder = RedisBackend::builder().response_timeout(limit);
    builder.connect_cluster(cluster.urls().split(',')).await.unwrap()
}

/// Returns how many scripts the nodes have run.
fn scripts(cluster: &Cluster) -> u64 {
    let calls = |stats: String| {
        let line = stats.lines().find(|line| line.starts_with("cmdstat_eval:"))?.to_owned();
        line.split(['=', ',']).nth(1)?.parse::<u64>().ok()
    };
    cluster.nodes.iter().filter_map(|node| calls(info(&mut node.connection(), "commandstats"))).sum()
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("owner-{number}")).collect()
}

#[tokio::test]
async fn the_writes_of_each_owner_share_scripts() {
    let cluster = Cluster::start(3, 0);
    let backend = connect(&cluster, Duration::from_secs(60)).await;
    let names = names(8);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let writes = prepared(&backend, &names, 128).await;
    let before = scripts(&cluster);
    assert_all_succeed(&backend, &writes).await;
    let sent = scripts(&cluster) - before;
    // Each owner has a script of each kind, and some owners have two because the first write is alone.
    assert!((16..=64).contains(&sent), "{sent} scripts for {} writes of 8 owners", writes.len());
    for name in names {
        let listed = backend.list(&owner(name), PageRequest::new(100)).await.unwrap();
        assert_eq!(listed.records.len(), 32);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_does_not_answer_fails_only_the_owners_that_it_stores() {
    let cluster = Cluster::start(3, 0);
    let patient = connect(&cluster, Duration::from_secs(60)).await;
    let names = names(12);
    let silent = cluster.master_for(&format!("{{{}}}", names[0]));
    let is_silent = |name: &str| cluster.master_for(&format!("{{{name}}}")) == silent;
    let silent_owners: Vec<&str> = names.iter().map(String::as_str).filter(|name| is_silent(name)).collect();
    assert!(!silent_owners.is_empty() && silent_owners.len() < names.len());
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let writes = prepared(&patient, &all, 48).await;
    let backend = connect(&cluster, Duration::from_millis(500)).await;
    for name in &all {
        backend.list(&owner(name), PageRequest::new(1)).await.unwrap();
    }
    cluster.nodes[silent].signal("STOP");
    let outcomes = send_all(&backend, &writes).await;
    cluster.nodes[silent].signal("CONT");
    for (write, outcome) in writes.iter().zip(outcomes) {
        if silent_owners.contains(&write.key().owner.as_str()) {
            let error = outcome.expect_err("the node does not answer");
            assert!(matches!(error, StorageError::Unavailable { .. }), "{write:?}: {error:?}");
        } else {
            outcome.unwrap_or_else(|error| panic!("{write:?}: {error:?}"));
            write.assert_applied(&patient).await;
        }
    }
}

/// While a slot is being migrated, a script that names keys on both nodes is refused.
#[tokio::test(flavor = "multi_thread")]
async fn in_a_migrating_slot_swaps_succeed_on_either_node_and_creates_can_be_retried() {
    let cluster = Cluster::start(3, 0);
    let backend = connect(&cluster, Duration::from_secs(60)).await;
    let writes = prepared(&backend, &["alice", "bob"], 32).await;
    let from = cluster.master_for("{alice}");
    let (to, slot) = ((from + 1) % 3, cluster.slot("{alice}"));
    assert_ne!(cluster.slot("{bob}"), slot);
    cluster.set_slot(to, &slot, "IMPORTING", from);
    cluster.set_slot(from, &slot, "MIGRATING", to);
    // Half of the hashes of alice are on the other node. Her index stays.
    for (number, write) in writes.iter().enumerate() {
        if write.key().owner.as_str() == "alice" && matches!(write, Write::Swap(_)) && number % 8 == 0 {
            cluster.migrate(from, to, &format!("pmcp:tasks:{{alice}}:{}", write.key().task));
        }
    }
    let moved: Vec<String> = command(&mut cluster.nodes[to].connection(), ["KEYS", "pmcp:tasks:{alice}:*"]);
    assert!(moved.len() > 4 && moved.len() < 16, "{moved:?}");
    for (write, outcome) in writes.iter().zip(send_all(&backend, &writes).await) {
        match (write, write.key().owner.as_str()) {
            (Write::Create(_), "alice") => {
                let error = outcome.expect_err("the key of a new record is on neither node");
                assert!(
                    matches!(error, StorageError::Unavailable { outcome_unknown: false, .. }),
                    "{write:?}: {error:?}"
                );
                assert!(error.to_string().contains("migrated"), "{error}");
                write.assert_not_applied(&backend).await;
            }
            _ => {
                outcome.unwrap_or_else(|error| panic!("{write:?}: {error:?}"));
                write.assert_applied(&backend).await;
            }
        }
    }
    for (write, key) in writes.iter().map(|write| (write, write.key())) {
        if key.owner.as_str() == "alice" && matches!(write, Write::Swap(_)) {
            let hash = format!("pmcp:tasks:{{alice}}:{}", key.task);
            if !moved.contains(&hash) {
                cluster.migrate(from, to, &hash);
            }
        }
    }
    cluster.migrate(from, to, "pmcp:idx:{alice}");
    cluster.set_slot(to, &slot, "NODE", to);
    cluster.set_slot(from, &slot, "NODE", to);
    let refused: Vec<Write> = writes
        .into_iter()
        .filter(|write| matches!(write, Write::Create(key) if key.owner.as_str() == "alice"))
        .collect();
    assert_all_succeed(&backend, &refused).await;
}
