//! Timers on a master with replicas: confirmation, and failover.

use std::time::{Duration, Instant};

use mcp_task_store::{Agenda, Next, RedisBackend, StorageError};
use redis::Commands;

use super::{DUE, HOUR, NOW, PATIENCE, RESPONSE_TIMEOUT, item, keys, leases, quiet, take, wakeups};
use crate::support::cluster::eventually;
use crate::support::key;
use crate::support::redis::Server;
use crate::support::sentinel::{MASTER, Watched};

#[tokio::test]
async fn with_wait_for_replicas_a_timer_that_no_replica_has_is_not_acknowledged() {
    let server = Server::start(&[]);
    let builder = RedisBackend::builder().wait_for_replicas(1, Duration::from_millis(50));
    let backend = builder.connect(&server.url()).await.unwrap();
    let refused = backend.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap_err();
    assert!(
        matches!(refused, StorageError::TooFewReplicas { .. }) && refused.outcome_unknown(),
        "{refused:?}"
    );
    // Taking and removing do not wait for replicas: a timer that a failover restores does no harm.
    let due = take(&backend).await.due.remove(0);
    assert_refused!(backend.resolve(&due, Next::After(HOUR)).await, StorageError::TooFewReplicas { .. });
    backend.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap_err();
    let due = take(&backend).await.due.remove(0);
    assert!(backend.resolve(&due, Next::Remove).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_sentinels_the_agenda_works_after_a_failover() {
    let watched = Watched::start(&[]);
    let builder = RedisBackend::builder().response_timeout(RESPONSE_TIMEOUT);
    let backend =
        builder.connect_sentinel(watched.sentinel_urls(), &format!("redis://{MASTER}")).await.unwrap();
    backend.schedule(&leases(), &key("alice", "before"), NOW).await.unwrap();
    let mut stream = wakeups(&backend);
    item(&mut stream).await;
    let mut replica = watched.replica.connection();
    eventually(|| replica.exists(DUE).unwrap());
    watched.master.signal("KILL");
    watched.failed_over();
    let t1 = key("alice", "after");
    while let Err(error) = backend.schedule(&leases(), &t1, NOW).await {
        assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let taken = take(&backend).await;
    assert_eq!(keys(&taken), ["alice:before", "alice:after"]);
    for due in &taken.due {
        assert!(backend.resolve(due, Next::Remove).await.unwrap());
    }
    let messages_arrive = async {
        for number in 0.. {
            quiet(&mut stream).await;
            let since = Instant::now();
            let after = HOUR - number * Duration::from_secs(1);
            backend.schedule(&leases(), &key("alice", &number.to_string()), after).await.unwrap();
            item(&mut stream).await;
            if since.elapsed() < Duration::from_millis(100) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, messages_arrive).await.expect("messages of the new master arrive");
}
