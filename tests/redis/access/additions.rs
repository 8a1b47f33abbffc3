//! The permissions that docs/operations.md adds to the ACL rule for a cluster, for sentinels and for replicas.

use std::time::Duration;

use mcp_task_store::{NewTask, RedisBackend, StorageBackend, StorageError, TaskStore};
use redis::{Connection, Value};

use super::{assert_names, url_of_the_user};
use crate::support::cluster::Cluster;
use crate::support::redis::{acl_rule, command};
use crate::support::sentinel::{MASTER, Watched};
use crate::support::{in_an_hour, keep, key, owner, page};

/// Returns the permissions that docs/operations.md adds to the ACL rule for this case.
fn documented_addition(case: &str) -> Vec<String> {
    let page = page("docs/operations.md");
    let line = page.lines().find(|line| line.starts_with("ACL SETUSER ") && line.ends_with(case)).unwrap();
    line.split_whitespace().filter(|word| word.starts_with('+')).map(str::to_owned).collect()
}

/// Gives the user of the ACL rule the permissions of the rule and these.
fn permit(admin: &mut Connection, words: &[String]) {
    let rule = acl_rule();
    let reset = rule.replace("SETUSER tasks ", "SETUSER tasks reset ");
    let words = reset.split(' ').chain(words.iter().map(String::as_str));
    let _: Value = command(admin, words);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_additions_for_a_cluster_are_sufficient_and_each_is_needed() {
    let cluster = Cluster::start(2, 0);
    let (from, slot) = (cluster.master_for("{alice}"), cluster.slot("{alice}"));
    let permit_all = |words: &[String]| {
        cluster.nodes.iter().for_each(|node| permit(&mut node.connection(), words));
    };
    let urls: Vec<String> = cluster.nodes.iter().map(|node| url_of_the_user(node.port)).collect();
    let all = documented_addition("# in a cluster");
    permit_all(&all);
    let backend = RedisBackend::builder().connect_cluster(&urls).await.unwrap();
    let t1 = key("alice", "t1");
    backend.put(&t1, "data".into(), in_an_hour()).await.unwrap();
    // While the slot is being migrated, the backend sends ASKING to the other node.
    cluster.set_slot(1 - from, &slot, "IMPORTING", from);
    cluster.set_slot(from, &slot, "MIGRATING", 1 - from);
    cluster.migrate(from, 1 - from, "pmcp:tasks:{alice}:t1");
    backend.get(&t1).await.unwrap();
    for word in &all {
        let without: Vec<String> = all.iter().filter(|other| *other != word).cloned().collect();
        permit_all(&without);
        let failed = match RedisBackend::builder().connect_cluster(&urls).await {
            Ok(backend) => backend.get(&t1).await.map(drop),
            Err(error) => Err(error),
        };
        assert!(matches!(failed, Err(StorageError::Denied { .. })), "{word} is not needed: {failed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_additions_for_sentinels_and_replicas_are_sufficient_and_each_is_needed() {
    let watched = Watched::start(&[]);
    let url = url_of_the_user(watched.master.port).replace("127.0.0.1", MASTER);
    let connect = || RedisBackend::builder().connect_sentinel(watched.sentinel_urls(), &url);
    permit(&mut watched.master.connection(), &[]);
    let denied = connect().await.unwrap_err();
    assert!(matches!(denied, StorageError::Denied { .. }), "{denied:?}");
    let role = documented_addition("# behind sentinels");
    permit(&mut watched.master.connection(), &role);
    connect().await.unwrap().put(&key("alice", "t1"), "data".into(), in_an_hour()).await.unwrap();

    let wait = RedisBackend::builder().wait_for_replicas(1, Duration::from_secs(1));
    let denied = wait.clone().connect_sentinel(watched.sentinel_urls(), &url).await.unwrap_err();
    assert!(matches!(denied, StorageError::Denied { .. }), "{denied:?}");
    assert!(denied.to_string().contains("WAIT"), "{denied}");
    let more = documented_addition("# with wait_for_replicas");
    permit(&mut watched.master.connection(), &[role.clone(), more.clone()].concat());
    let waiting = wait.connect_sentinel(watched.sentinel_urls(), &url).await.unwrap();
    permit(&mut watched.master.connection(), &role);
    let refused = waiting.put(&key("alice", "t1"), "data".into(), keep()).await.unwrap_err();
    assert!(refused.outcome_unknown(), "the master wrote it, and no replica was waited for: {refused:?}");
    assert_names(&refused, &["0 of 1 replicas", "'wait' command"]);
    let store = TaskStore::new(waiting.clone());
    store.create(&owner("alice"), NewTask::new("tools/call")).await.unwrap_err();
    permit(&mut watched.master.connection(), &[role, more].concat());
    waiting.put(&key("alice", "t1"), "data".into(), keep()).await.unwrap();
}
