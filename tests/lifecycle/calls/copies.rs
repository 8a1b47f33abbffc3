//! When a copy of a task saves the read, and when it must not.

use std::sync::Arc;
use std::time::Duration;

use mcp_task_store::{
    MemoryBackend, NewTask, PutOptions, StorageBackend, StoredTask, Task, TaskStatus, TaskStore, Version,
};
use rstest::rstest;
use serde_json::json;

use super::double::Double;
use crate::support::intercept::Intercept;
use crate::support::owner;

type Tasks = TaskStore<Arc<Intercept<Double>>>;

async fn created() -> (Arc<Intercept<Double>>, Tasks, StoredTask) {
    let double = Double::new();
    let tasks = TaskStore::new(Arc::clone(&double));
    let created = tasks.create(&owner("alice"), NewTask::new("tools/call")).await.unwrap();
    (double, tasks, created)
}

/// Returns how many reads a change of this copy needs.
async fn reads(double: &Double, tasks: &Tasks, copy: &StoredTask) -> usize {
    let before = double.counts().0;
    tasks.set_status_message(copy, "on it").await.unwrap();
    double.counts().0 - before
}

#[tokio::test(start_paused = true)]
async fn a_copy_saves_the_read_for_a_second_and_until_the_engine_reconnects() {
    let (double, tasks, created) = created().await;
    assert_eq!(reads(&double, &tasks, &created).await, 0, "as created");
    let read = tasks.get(&created.key).await.unwrap();
    tokio::time::advance(Duration::from_millis(999)).await;
    assert_eq!(reads(&double, &tasks, &read).await, 0, "as read 999 ms ago");
    let read = tasks.get(&created.key).await.unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(reads(&double, &tasks, &read).await, 1, "as read a second ago");
    let read = tasks.get(&created.key).await.unwrap();
    double.reconnect();
    assert_eq!(reads(&double, &tasks, &read).await, 1, "as read over another connection");
    let listed = tasks.list(&created.key.owner, mcp_task_store::PageRequest::new(1)).await.unwrap();
    assert_eq!(reads(&double, &tasks, &listed.tasks[0]).await, 0, "as listed");
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_the_caller_has_altered_is_never_written() {
    let (double, tasks, created) = created().await;
    let other =
        tasks.create(&owner("alice"), NewTask::new("tools/call").status_message("other")).await.unwrap();
    let mut foreign = created.clone();
    foreign.key = other.key.clone();
    assert_eq!(reads(&double, &tasks, &foreign).await, 1, "the key of another task");
    let written = tasks.get(&other.key).await.unwrap();
    assert_eq!(written.task.task_id, other.key.task);

    let mut later = created.clone();
    tasks.set_variables(&created, [("answer", json!(42))]).await.unwrap();
    later.version = Version::from(2);
    assert_eq!(reads(&double, &tasks, &later).await, 1, "the version of a later write");
    let written = tasks.get(&created.key).await.unwrap();
    assert_eq!(written.task.variables["answer"], json!(42));

    let mut own = Task::clone(&written.task);
    own.status = TaskStatus::Cancelled;
    assert_eq!(written.task.status, TaskStatus::Working);
    assert_eq!(written.task.clone().into_task().status, TaskStatus::Working);

    let elsewhere = TaskStore::new(Double::of(MemoryBackend::new()));
    assert!(elsewhere.set_status_message(&written, "x").await.is_err(), "the copy of another store's engine");
}

/// Replaces the server by one that has lost every write but the create, and has since acknowledged a write of another
/// client.
async fn replace_history(double: &Double, created: &StoredTask, key: &mcp_task_store::TaskKey) {
    let memory = Arc::new(MemoryBackend::new());
    let data = serde_json::to_vec(&*created.task).unwrap();
    memory.put_if_version(key, data.into(), PutOptions::default(), Version::ABSENT).await.unwrap();
    let others = TaskStore::new(Arc::clone(&memory));
    others.set_variables(key, [("answer", json!("acknowledged"))]).await.unwrap();
    double.replace(memory);
}

#[rstest]
#[case::the_engine_reconnects(true)]
#[case::a_proxy_hides_the_reconnect(false)]
#[tokio::test(start_paused = true)]
async fn a_copy_of_a_lost_history_overwrites_nothing(#[case] is_seen: bool) {
    let (double, tasks, created) = created().await;
    let held = tasks.set_variables(&created, [("answer", json!("lost"))]).await.unwrap();
    replace_history(&double, &created, &created.key).await;
    match is_seen {
        true => double.reconnect(),
        false => tokio::time::advance(Duration::from_secs(1)).await,
    }
    let written = tasks.set_status_message(&held, "on it").await.unwrap();
    assert_eq!((written.version.get(), &written.task.variables["answer"]), (3, &json!("acknowledged")));
}

#[cfg(feature = "redis-tests")]
mod redis {
    use mcp_task_store::{RedisBackend, TaskKey};

    use super::*;
    use crate::support::redis::{Server, command};

    /// Connects like a user of the crate.
    async fn store(server: &Server, parameters: &str) -> TaskStore<RedisBackend> {
        let url = format!("{}/{parameters}", server.url());
        TaskStore::new(RedisBackend::builder().connect(&url).await.unwrap())
    }

    async fn answer(tasks: &TaskStore<RedisBackend>, key: &TaskKey) -> serde_json::Value {
        tasks.get(key).await.unwrap().task.variables["answer"].clone()
    }

    /// Restarts a server without its last write while the process is idle, and lets another process write.
    async fn restored(parameters: &str) -> (Server, TaskStore<RedisBackend>, StoredTask) {
        let mut server = Server::start(&[]);
        let tasks = store(&server, parameters).await;
        let created = tasks.create(&owner("alice"), NewTask::new("tools/call")).await.unwrap();
        let _: () = command(&mut server.connection(), ["SAVE"]);
        let held = tasks.set_variables(&created, [("answer", json!("lost"))]).await.unwrap();
        let before = tasks.backend().generation();
        server.kill();
        server.start_again();
        let others = store(&server, "").await;
        let written = others.set_variables(&created.key, [("answer", json!("acknowledged"))]).await.unwrap();
        assert_eq!(written.version, held.version, "the version is reused");
        if parameters.is_empty() {
            assert!(tasks.backend().generation() > before, "the connection reports that it broke");
        }
        (server, tasks, held)
    }

    #[tokio::test]
    async fn a_copy_of_a_write_that_a_restored_server_has_lost_overwrites_no_acknowledged_write() {
        let (_server, tasks, held) = restored("").await;
        let written = tasks.set_status_message(&held, "on it").await.unwrap();
        assert_eq!(written.task.variables["answer"], json!("acknowledged"));
        assert_eq!(answer(&tasks, &held.key).await, json!("acknowledged"));
    }

    #[tokio::test]
    async fn a_connection_of_the_caller_may_reconnect_unseen_so_no_copy_saves_the_read() {
        let server = Server::start(&[]);
        let client = ::redis::Client::open(server.url()).unwrap();
        let connection = client.get_multiplexed_async_connection().await.unwrap();
        let backend = RedisBackend::builder().over(connection).await.unwrap();
        assert!(backend.generation() < backend.generation());
        let tasks = TaskStore::new(backend);
        let created = tasks.create(&owner("alice"), NewTask::new("tools/call")).await.unwrap();
        let reads = || -> String {
            let statistics: String = command(&mut server.connection(), ["INFO", "commandstats"]);
            let line = statistics.lines().find(|line| line.starts_with("cmdstat_hmget:"));
            line.and_then(|line| line.split([':', ',']).nth(1)).unwrap_or("calls=0").to_owned()
        };
        let before = reads();
        tasks.set_status_message(&created, "on it").await.unwrap();
        assert_ne!(reads(), before);
    }

    /// The connection does not report that it broke. The write over it fails, and the store resolves its outcome by a
    /// record of another history that has the same version. The store must not send the write again because of the
    /// version alone.
    #[tokio::test]
    async fn a_write_over_a_connection_that_detects_the_restart_late_overwrites_no_acknowledged_write() {
        let (_server, tasks, held) = restored("?protocol=resp2").await;
        match tasks.set_status_message(&held, "on it").await {
            Ok(written) => assert_eq!(written.task.variables["answer"], json!("acknowledged")),
            Err(error) => assert!(error.outcome_unknown(), "{error:?}"),
        }
        assert_eq!(answer(&tasks, &held.key).await, json!("acknowledged"));
    }
}
