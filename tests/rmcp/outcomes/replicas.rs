//! Outcomes on an engine that waits for replicas.

use std::sync::Arc;
use std::time::Duration;

use mcp_task_store::{Agenda, RedisBackend, StorageBackend};

use crate::support::redis::Server;
use crate::support::rmcp::*;

/// Another server may become the master. The outcome is lost then if no replica has it.
#[tokio::test]
async fn an_outcome_is_stored_only_once_a_replica_has_confirmed_it() {
    let master = Server::start(&[]);
    let replica = Server::start(&["--replicaof", "127.0.0.1", &master.port.to_string()]);
    master.is_replicated();
    let replicated = RedisBackend::builder().wait_for_replicas(1, Duration::from_millis(200));
    let backend: Arc<dyn Agenda> = Arc::new(replicated.connect(&master.url()).await.unwrap());
    let reader = RedisBackend::connect(&master.url()).await.unwrap();
    let manager = manager(&backend, Duration::from_secs(60));
    let (finish, task_id) = spawn_until_finished(&manager).await;
    replica.signal("STOP");
    finish.send(()).unwrap();
    ended(&manager, &task_id).await;
    let applied = reader.get(&key(&task_id)).await.unwrap().version;
    // The run writes the record again until a replica has it.
    within(async {
        while reader.get(&key(&task_id)).await.unwrap().version.get() < applied.get() + 2 {
            assert_eq!(manager.running_task_count(), 1, "no replica has the outcome");
        }
    })
    .await;
    replica.signal("CONT");
    until(|| manager.running_task_count() == 0).await;
    let at_replica = RedisBackend::connect(&replica.url()).await.unwrap();
    let stored = at_replica.get(&key(&task_id)).await.unwrap();
    assert!(stored.version > applied, "{stored:?}");
}
