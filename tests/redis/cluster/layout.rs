//! The forms in which nodes report which node serves which slot.

use futures_util::StreamExt;
use mcp_task_store::{PageRequest, RedisBackend, StorageBackend, StorageError, Version};
use rstest::rstest;

use super::connect;
use crate::support::cluster::Cluster;
use crate::support::fake::{Answer, Fake, greeting_of_a_node};
use crate::support::{in_an_hour, keep, key, owner};

#[rstest]
#[case::unknown(&["--cluster-preferred-endpoint-type", "unknown-endpoint"])]
#[case::a_name_that_not_all_have(&["--cluster-preferred-endpoint-type", "hostname"])]
#[case::a_name(&["--cluster-preferred-endpoint-type", "hostname", "--cluster-announce-hostname", "localhost"])]
#[tokio::test(flavor = "multi_thread")]
async fn the_backend_finds_nodes_that_announce(#[case] endpoint: &[&str]) {
    let cluster = Cluster::start_with(3, 0, endpoint);
    let backend = connect(&cluster).await;
    let (t1, t2) = (key("alice", "t1"), key("alice", "t2"));
    for task in [&t1, &t2] {
        backend.put(task, "one".into(), in_an_hour()).await.unwrap();
    }
    let mut watch = backend.watch(&t1);
    watch.next().await.unwrap().unwrap();
    // First half of the keys migrate, and nodes reply ASK. Then all of them, and nodes reply MOVED.
    let (from, slot) = (cluster.master_for("{alice}"), cluster.slot("{alice}"));
    let to = (from + 1) % 3;
    cluster.set_slot(to, &slot, "IMPORTING", from);
    cluster.set_slot(from, &slot, "MIGRATING", to);
    cluster.migrate(from, to, "pmcp:tasks:{alice}:t1");
    assert_eq!(backend.get(&t1).await.unwrap().version, Version::FIRST);
    backend.put_if_version(&t1, "two".into(), keep(), Version::FIRST).await.unwrap();
    assert_eq!(backend.get(&t2).await.unwrap().version, Version::FIRST);
    for key in ["pmcp:tasks:{alice}:t2", "pmcp:idx:{alice}"] {
        cluster.migrate(from, to, key);
    }
    cluster.set_slot(to, &slot, "NODE", to);
    cluster.set_slot(from, &slot, "NODE", to);
    backend.put(&t1, "three".into(), in_an_hour()).await.unwrap();
    assert_eq!(backend.list(&owner("alice"), PageRequest::new(5)).await.unwrap().records.len(), 2);
    let notified = async {
        loop {
            // While the slot is being migrated, an item may be an error that can be retried.
            let _ = watch.next().await.expect("the record lives");
            if backend.get(&t1).await.unwrap().data == "three" {
                return;
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), notified).await.expect("an item");
}

/// The only node of a cluster. It replies with this error to each script and each read. `PORT` stands for the port of
/// the node.
async fn replying(with: &'static str) -> Fake {
    Fake::start(move |port, words| match &*words[0].to_ascii_uppercase() {
        "EVAL" | "HMGET" => {
            Answer::Bytes(format!("-{}\r\n", with.replace("PORT", &port.to_string())).into_bytes())
        }
        _ => greeting_of_a_node(port, words),
    })
    .await
}

#[rstest]
#[case::moved_nowhere("MOVED 1234")]
#[case::moved_without_a_port("MOVED 1234 10.0.0.7")]
#[case::moved_to_no_port("MOVED 1234 10.0.0.7:port")]
#[case::asked_for_elsewhere("ASK elsewhere 10.0.0.7:6379")]
#[tokio::test]
async fn the_error_for_a_malformed_redirection_quotes_it_and_the_command_did_not_run(
    #[case] said: &'static str,
) {
    let fake = replying(said).await;
    let backend = RedisBackend::builder().notifications(false).connect_cluster([fake.url()]).await.unwrap();
    for refused in [
        backend.put(&key("alice", "t1"), "data".into(), in_an_hour()).await.map(drop),
        backend.get(&key("alice", "t1")).await.map(drop),
    ] {
        let error = refused.unwrap_err();
        assert!(matches!(error, StorageError::Backend { outcome_unknown: false, .. }), "{error:?}");
        assert!(format!("{error:?}").contains(said), "{error:?}");
    }
    assert_eq!(fake.received("HMGET").len(), 1);
}

#[tokio::test]
async fn a_call_that_nodes_redirect_in_a_circle_is_unavailable_and_no_node_runs_the_command() {
    let circle = replying("MOVED 1234 :PORT").await;
    let backend = RedisBackend::builder().notifications(false).connect_cluster([circle.url()]).await.unwrap();
    let error = backend.put(&key("alice", "t1"), "data".into(), in_an_hour()).await.unwrap_err();
    assert!(matches!(error, StorageError::Unavailable { outcome_unknown: false, .. }), "{error:?}");
    let sent = circle.received("EVAL").len();
    assert!((2..20).contains(&sent), "{sent}");
}
