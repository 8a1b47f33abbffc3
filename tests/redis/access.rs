//! Authentication, permissions and the address: the errors that a caller receives from a server that refuses or is
//! unreachable.

mod acl;
mod additions;
#[cfg(feature = "pmcp")]
mod chains;
mod connecting;
mod credentials;
mod permissions;
mod states;
mod url;

use std::time::Duration;

use futures_util::StreamExt;
use mcp_task_store::{
    Agenda, Next, PageRequest, PartName, Queue, RedisBackend, StorageBackend, StorageError, TaskKey, Version,
};
use redis::{Commands, Connection, Value};

use crate::support::redis::{acl_rule, command};
use crate::support::{after_ms, in_an_hour, keep, key, never, owner};

/// Calls every operation of the backend, in every form that runs different commands on the server. The administrator
/// deletes a hash in between. Returns at the first error.
async fn every_operation(backend: &RedisBackend, admin: &mut Connection) -> Result<(), StorageError> {
    let (t1, t2) = (key("alice", "t1"), key("alice", "t2"));
    backend.put(&t1, "data".into(), in_an_hour().quota(9)).await?;
    backend.put(&t1, "data".into(), keep()).await?;
    backend.put(&t1, "data".into(), never()).await?;
    backend.put_if_version(&t1, "data".into(), in_an_hour(), Version::from(3)).await?;
    backend.put_if_version(&t2, "data".into(), never(), Version::ABSENT).await?;
    backend.get(&t1).await?;
    let part = PartName::from_static("input");
    backend.put(&t1, "data".into(), keep().set_part(part.clone(), "part")).await?;
    backend.part(&t1, &part).await?;
    backend.put(&t1, "data".into(), keep().clear_part(part)).await?;
    backend.clock(&t1).await?;
    backend.watch(&t1).next().await.expect("the record is live")?;
    let expired = backend.put(&key("alice", "t3"), "data".into(), after_ms(1)).await?.expires_at;
    while backend.now() < expired.unwrap() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    backend.put(&key("alice", "t4"), "data".into(), in_an_hour()).await?;
    // Two inserts at the quota: the first with an index member whose hash is gone, the second without one.
    admin.del::<_, ()>("pmcp:tasks:alice:t2").unwrap();
    backend.put(&key("alice", "t5"), "data".into(), in_an_hour().quota(3)).await?;
    match backend.put(&key("alice", "t6"), "data".into(), in_an_hour().quota(3)).await {
        Err(StorageError::CapacityExceeded { quota: Some(3), .. }) => {}
        Err(error) => return Err(error),
        Ok(_) => panic!("a put over the quota succeeded"),
    }
    // A record whose expiry on the server was removed by hand makes the backend read the server's clock.
    let kept = backend.put(&key("alice", "t7"), "data".into(), after_ms(5)).await?.expires_at.unwrap();
    let _: Value = command(admin, ["PERSIST", "pmcp:tasks:alice:t7"]);
    while backend.now() < kept {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    match backend.get(&key("alice", "t7")).await {
        Err(StorageError::NotFound { .. }) => {}
        Err(error) => return Err(error),
        Ok(_) => panic!("an expired record was read"),
    }
    for task in 100..140 {
        backend.put(&key("alice", &task.to_string()), "data".into(), in_an_hour()).await?;
    }
    let page = backend.list(&owner("alice"), PageRequest::new(100)).await?;
    assert_eq!(page.records.len(), 43);
    for task in page.records {
        backend.delete(&TaskKey { owner: owner("alice"), task: task.task }).await?;
    }
    backend.delete(&key("alice", "t7")).await?;
    backend.cleanup_expired().await?;
    every_operation_of_the_agenda(backend, admin).await
}

async fn every_operation_of_the_agenda(
    backend: &RedisBackend,
    admin: &mut Connection,
) -> Result<(), StorageError> {
    let (leases, t1, hour) =
        (Queue::try_from("leases").unwrap(), key("alice", "t1"), Duration::from_secs(3600));
    let queues = [leases.clone()];
    backend.schedule(&leases, &t1, Duration::ZERO).await?;
    admin.zadd::<_, _, _, ()>("pmcp:due:0:leases", "no task", 1).unwrap();
    let due = backend.take_due(&queues, 5, hour).await?.due.remove(0);
    assert!(backend.resolve(&due, Next::After(Duration::ZERO)).await?);
    let due = backend.take_due(&queues, 5, hour).await?.due.remove(0);
    assert_eq!(backend.timers(&leases, None).await?.total, 1);
    assert!(backend.resolve(&due, Next::Remove).await?);
    backend.owners(None).await.map(drop)
}

/// Asserts that the text of an error contains these words, and not the password.
fn assert_names(error: &StorageError, words: &[&str]) {
    let mut texts = format!("{error} {error:?}");
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        texts.push_str(&format!(" {cause} {cause:?}"));
        source = cause.source();
    }
    for word in words {
        assert!(texts.contains(word), "{word} is missing: {texts}");
    }
    assert!(!texts.contains("pass-word"), "{texts}");
}

fn url_of_the_user(port: u16) -> String {
    let rule = acl_rule();
    let password = rule.split(' ').find_map(|word| word.strip_prefix('>')).unwrap();
    format!("redis://tasks:{password}@127.0.0.1:{port}")
}
