//! Users that a cluster denies.

use std::time::Duration;

use mcp_task_store::{RedisBackend, StorageBackend, StorageError};
use rstest::rstest;

use super::{RESPONSE_TIMEOUT, until_a_write_works};
use crate::support::cluster::Cluster;
use crate::support::redis::{command, free_port};
use crate::support::{in_an_hour, key};

const RULE: [&str; 7] = ["ACL", "SETUSER", "app", "on", ">first", "~*", "&*"];

fn everywhere(cluster: &Cluster, words: &[&str]) {
    for node in &cluster.nodes {
        let _: redis::Value = command(&mut node.connection(), words.iter().copied());
    }
}

fn urls(cluster: &Cluster, user: &str) -> Vec<String> {
    cluster.nodes.iter().map(|node| format!("redis://{user}@127.0.0.1:{}", node.port)).collect()
}

#[rstest]
#[case::a_wrong_password("app:second")]
#[case::an_unknown_user("somebody:first")]
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_denies(#[case] user: &str) {
    let cluster = Cluster::start(2, 0);
    everywhere(&cluster, &[&RULE[..], &["+@all"]].concat());
    let mut urls = urls(&cluster, user);
    // The cluster must deny the user even if one of the URLs is unreachable.
    urls.insert(0, format!("redis://{user}@127.0.0.1:{}", free_port()));
    let error = RedisBackend::builder().connect_cluster(&urls).await.unwrap_err();
    assert!(matches!(error, StorageError::Denied { .. }), "{error:?}");
    assert!(!error.is_retryable() && !error.outcome_unknown());
    assert!(!format!("{error:?} {error}").contains("first"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_user_is_denied_until_it_is_enabled_again() {
    let cluster = Cluster::start(2, 0);
    everywhere(&cluster, &[&RULE[..], &["+@all"]].concat());
    let builder = RedisBackend::builder().response_timeout(RESPONSE_TIMEOUT);
    let backend = builder.connect_cluster(&urls(&cluster, "app:first")).await.unwrap();
    until_a_write_works(&backend, "alice").await;
    everywhere(&cluster, &["ACL", "SETUSER", "app", "off"]);
    everywhere(&cluster, &["CLIENT", "KILL", "USER", "app"]);
    // The first calls may be under way when the server closes their connection.
    let mut denied = 0;
    while denied < 20 {
        match backend.put(&key("alice", "t1"), "data".into(), in_an_hour()).await.unwrap_err() {
            StorageError::Denied { .. } => denied += 1,
            error => assert!(denied == 0 && matches!(error, StorageError::Unavailable { .. }), "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    everywhere(&cluster, &["ACL", "SETUSER", "app", "on"]);
    let works = async {
        while let Err(error) = backend.put(&key("alice", "t1"), "data".into(), in_an_hour()).await {
            assert!(matches!(error, StorageError::Denied { .. }), "{error:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), works).await.expect("a write succeeds again");
}
