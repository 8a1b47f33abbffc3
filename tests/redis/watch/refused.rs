//! Writes that the server refuses: subscribers receive no message.

use std::time::Duration;

use futures_util::StreamExt;
use mcp_task_store::{Agenda, PartName, Queue, RedisBackend, StorageBackend, Version};
use redis::Value;
use rstest::rstest;

use crate::support::redis::{Server, command};
use crate::support::{in_an_hour, keep, key, never};

/// The command that makes a server refuse writes, and whether it still accepts deletes.
#[rstest]
#[case::is_a_replica(&["REPLICAOF", "127.0.0.1", "1"], false)]
#[case::has_too_few_replicas(&["CONFIG", "SET", "min-replicas-to-write", "1"], false)]
#[case::is_out_of_memory(&["CONFIG", "SET", "maxmemory", "1"], true)]
#[tokio::test]
async fn a_refused_write_publishes_nothing_if_the_server(#[case] state: &[&str], #[case] deletes: bool) {
    let server = Server::start(&[]);
    let mut admin = server.connection();
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    let (t1, leases) = (key("alice", "t1"), Queue::try_from("leases").unwrap());
    let part = PartName::from_static("input");
    backend.put(&t1, "data".into(), in_an_hour().set_part(part.clone(), "part")).await.unwrap();
    backend.schedule(&leases, &t1, Duration::from_secs(3600)).await.unwrap();
    let due = backend.take_due(std::slice::from_ref(&leases), 1, Duration::ZERO).await.unwrap();
    assert!(due.due.is_empty());
    let _: Value = command(&mut admin, state.iter().copied());
    let client = redis::Client::open(server.url()).unwrap();
    let mut seen = client.get_async_monitor().await.unwrap().into_on_message::<String>();
    let mut refused = vec![
        backend.put(&t1, "lost".into(), keep()).await.map(drop),
        backend.put(&t1, "lost".into(), in_an_hour()).await.map(drop),
        backend.put(&t1, "lost".into(), never()).await.map(drop),
        backend.put(&t1, "lost".into(), keep().clear_part(part)).await.map(drop),
        backend.put_if_version(&t1, "lost".into(), keep(), Version::FIRST).await.map(drop),
        backend.schedule(&leases, &t1, Duration::ZERO).await,
    ];
    if !deletes {
        refused.push(backend.delete(&t1).await.map(drop));
    }
    for refused in refused {
        let error = refused.unwrap_err();
        assert!(error.is_retryable() && !error.outcome_unknown(), "{error:?}");
    }
    let _: Value = command(&mut admin, ["ECHO", "the end"]);
    let (mut scripts, mut published) = (0, Vec::new());
    loop {
        let line = seen.next().await.unwrap();
        if line.contains("the end") {
            break;
        }
        scripts += usize::from(line.contains("pmcp:tasks:alice:t1"));
        // A backend that reconnects sends probes on another channel.
        if line.contains("lua] \"SPUBLISH\"") && !line.contains(":probe") {
            published.push(line);
        }
    }
    assert!(scripts > 5 && published.is_empty(), "{scripts} {published:?}");
}
