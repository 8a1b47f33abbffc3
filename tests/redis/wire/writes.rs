//! The commands of writes. Each write is one script. It publishes before it writes. The first command that writes changes
//! nothing: a server that accepts no writes at the moment refuses it. A command that could be refused too late first runs
//! where it has no effect.

use mcp_task_store::{PartName, PutOptions, RedisBackend, StorageBackend, StorageError, Version, Written};
use rstest::rstest;

use super::{Monitor, open};
use crate::support::redis::Namespace;
use crate::support::{in_an_hour, keep, key, never};

/// Opens a store with two records that expire: `t0` and `t1`, at the first version.
async fn with_two_records() -> (Namespace, RedisBackend, Monitor) {
    let (namespace, backend, mut monitor) = open().await;
    for task in ["t1", "t0"] {
        backend.put(&key("alice", task), "data".into(), in_an_hour().quota(100)).await.unwrap();
    }
    monitor.sent().await;
    (namespace, backend, monitor)
}

/// Writes `t1` by `put`, or by `put_if_version` if a version is expected.
async fn write(
    backend: &RedisBackend,
    options: PutOptions,
    expected: Option<Version>,
) -> Result<Written, StorageError> {
    let t1 = key("alice", "t1");
    match expected {
        None => backend.put(&t1, "data".into(), options).await,
        Some(version) => backend.put_if_version(&t1, "data".into(), options, version).await,
    }
}

#[tokio::test]
async fn an_insert_publishes_nothing() {
    let (_namespace, backend, mut monitor) = open().await;
    let [first, second, third] = ["t1", "t0", "t2"].map(|task| key("alice", task));
    let quota = || in_an_hour().quota(100);
    let put = backend.put(&first, "data".into(), quota());
    monitor.assert_script(put, "TIME EXISTS ZCARD ZADD PEXPIREAT ZADD PEXPIREAT HSET PEXPIREAT").await;
    let put = backend.put(&second, "data".into(), quota());
    let ran = "TIME EXISTS ZCARD ZCOUNT ZRANGE ZRANGE ZADD PEXPIREAT HSET PEXPIREAT";
    monitor.assert_script(put, ran).await;
    let put = backend.put_if_version(&third, "data".into(), keep(), Version::ABSENT);
    monitor.assert_sends(put, &["EVAL"]).await;
}

#[rstest]
#[case::put(None, "TIME EXISTS HEXISTS HMGET HSETNX PUBLISH HSET", "TIME EXISTS HEXISTS HMGET HSET")]
#[case::put_if_version(Some(Version::FIRST), "TIME HMGET HSETNX PUBLISH HSET", "TIME HMGET HSETNX HSET")]
#[tokio::test]
async fn a_write_that_keeps_the_expiry_touches_only_the_hash_and_publishes_unless_it_is_quiet(
    #[case] expected: Option<Version>,
    #[case] ran: &str,
    #[case] ran_quietly: &str,
) {
    let (namespace, backend, mut monitor) = with_two_records().await;
    let commands = monitor.assert_script(write(&backend, keep(), expected), ran).await;
    let hash = format!("{}:tasks:alice:t1", namespace.prefix);
    let publish = monitor.publish;
    let mut touched = commands.iter().filter(|command| command[0] != "TIME" && command[0] != publish);
    assert!(touched.all(|command| command[1] == hash), "{commands:?}");
    let expires_at = backend.get(&key("alice", "t1")).await.unwrap().expires_at.unwrap().timestamp_millis();
    // A put does not read the expiry.
    let message = if expected.is_none() { format!("? {hash}") } else { format!("{expires_at} {hash}") };
    let channel = format!("{}:watch:alice", namespace.prefix);
    assert!(commands.contains(&vec![publish.to_owned(), channel, message]), "{commands:?}");
    monitor.sent().await;
    let next = expected.and_then(Version::next);
    monitor.assert_script(write(&backend, keep().quiet(), next), ran_quietly).await;
}

#[rstest]
#[case::put(None)]
#[case::put_if_version(Some(Version::FIRST))]
#[tokio::test]
async fn a_write_that_sets_the_expiry_updates_the_index(#[case] expected: Option<Version>) {
    let (_namespace, backend, mut monitor) = with_two_records().await;
    let ran = "TIME EXISTS HEXISTS HMGET HSETNX PUBLISH ZCARD ZCOUNT ZRANGE ZRANGE \
               HSET ZADD ZADD PEXPIREAT PEXPIREAT HSET";
    monitor.assert_script(write(&backend, in_an_hour(), expected), ran).await;
}

#[tokio::test]
async fn a_write_that_removes_the_expiry_updates_the_index() {
    let (_namespace, backend, mut monitor) = with_two_records().await;
    let ran = "TIME EXISTS HEXISTS HMGET HSETNX PUBLISH ZCARD ZCOUNT ZRANGE ZRANGE \
               HSET HDEL ZADD ZADD PERSIST PERSIST HSET HDEL";
    monitor.assert_script(write(&backend, never(), None), ran).await;
}

#[tokio::test]
async fn a_write_of_a_part_touches_no_other_key() {
    let (_namespace, backend, mut monitor) = with_two_records().await;
    write(&backend, never(), None).await.unwrap();
    monitor.sent().await;
    let part = PartName::from_static("output");
    let set = write(&backend, keep().set_part(part.clone(), "output"), None);
    monitor.assert_script(set, "TIME EXISTS HEXISTS HMGET HSETNX PUBLISH HSET").await;
    let clear = write(&backend, keep().clear_part(part), None);
    monitor.assert_script(clear, "TIME EXISTS HEXISTS HMGET HSETNX PUBLISH HSET HDEL HSET HDEL").await;
}

#[rstest]
#[case::of_an_old_version("t1", in_an_hour(), Version::FIRST, "TIME EXISTS HEXISTS HMGET")]
#[case::of_a_record_that_exists("t1", keep(), Version::ABSENT, "TIME EXISTS HEXISTS HMGET")]
#[case::of_an_absent_record("t3", keep(), Version::FIRST, "TIME HMGET HEXISTS")]
#[tokio::test]
async fn a_refused_write_runs_no_command_that_writes(
    #[case] task: &str,
    #[case] options: PutOptions,
    #[case] expected: Version,
    #[case] ran: &str,
) {
    let (_namespace, backend, mut monitor) = with_two_records().await;
    backend.put(&key("alice", "t1"), "data".into(), never()).await.unwrap();
    monitor.sent().await;
    let task = key("alice", task);
    monitor.assert_script(backend.put_if_version(&task, "data".into(), options, expected), ran).await;
}

#[tokio::test]
async fn a_delete_is_one_script() {
    let (_namespace, backend, mut monitor) = open().await;
    let t2 = key("alice", "t2");
    backend.put_if_version(&t2, "data".into(), keep(), Version::ABSENT).await.unwrap();
    monitor.sent().await;
    monitor.assert_script(backend.delete(&t2), "TIME HGET ZRANGE ZREM PUBLISH DEL ZREM").await;
}
