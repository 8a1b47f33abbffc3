//! The log has one line when the engine begins to fail, one when it works again, and one for each task that is created or
//! ends.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use futures_util::future::join_all;
use mcp_task_store::{
    NewTask, OnWorkerLost, PageRequest, RpcError, StoreConfig, StoredTask, TaskError, TaskStore,
};
use rstest::rstest;
use serde_json::json;
use tracing::Level;
use tracing::subscriber::DefaultGuard;

use super::double::{Double, Server};
use crate::support::{Printed, owner};

/// Logs all events of this thread, background tasks included, while the guard lives.
fn listen(level: Level) -> (Printed, DefaultGuard) {
    let log = Printed::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    (log, tracing::subscriber::set_default(subscriber))
}

/// Returns the lines of one level.
fn lines(log: &Printed, level: &str) -> Vec<String> {
    let of_the_level = |line: &&str| line.split_whitespace().nth(1) == Some(level);
    log.text().lines().filter(of_the_level).map(str::to_owned).collect()
}

/// Returns the lines at INFO, without the lines about tasks.
fn about_the_engine(log: &Printed) -> Vec<String> {
    lines(log, "INFO").into_iter().filter(|line| line.contains("engine")).collect()
}

#[rstest]
#[case::that_refuses(Server::Refuses)]
#[case::that_hangs(Server::Hangs)]
#[tokio::test(start_paused = true)]
async fn an_outage_logs_one_warning_and_one_line_at_its_end(#[case] server: Server) {
    let (log, _guard) = listen(Level::INFO);
    let double = Double::new();
    let config = StoreConfig::new().call_timeout(Duration::from_millis(1500));
    let tasks = TaskStore::with_config(Arc::clone(&double), config);
    let mut created = Vec::new();
    for number in 0..10 {
        let owner = owner(&format!("owner {number}"));
        created.push(
            tasks.start(&owner, NewTask::new("tools/call").ttl(Duration::from_secs(600))).await.unwrap(),
        );
    }
    let call_all = async || {
        let calls = created.iter().map(async |(stored, attempt)| {
            let _ = tasks.get(&stored.key).await;
            let _ = attempt.renew().await;
            let _ = tasks.list(&stored.key.owner, PageRequest::new(1)).await;
            let _ = tasks.set_status_message(&stored.key, "on it").await;
            let _ = tasks.create(&stored.key.owner, NewTask::new("tools/call")).await;
            let _ = tasks.delete(&TaskKeyOf(stored).missing()).await;
        });
        join_all(calls).await;
    };
    call_all().await;
    double.set(server);
    let until = tokio::time::Instant::now() + Duration::from_secs(8);
    while tokio::time::Instant::now() < until {
        call_all().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    double.set(Server::Answers);
    for _ in 0..50 {
        call_all().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(lines(&log, "WARN").len(), 1, "{}", log.text());
    assert!(lines(&log, "WARN")[0].contains("the storage engine fails"), "{}", log.text());
    assert!(lines(&log, "ERROR").is_empty(), "{}", log.text());
    let over = about_the_engine(&log);
    assert_eq!(over.len(), 1, "{}", log.text());
    for part in ["works again", "lasted=", "failed_calls="] {
        assert!(over[0].contains(part), "{}", over[0]);
    }
}

struct TaskKeyOf<'a>(&'a StoredTask);

impl TaskKeyOf<'_> {
    /// A task of the same owner that does not exist.
    fn missing(&self) -> mcp_task_store::TaskKey {
        mcp_task_store::TaskKey { owner: self.0.key.owner.clone(), task: "missing".try_into().unwrap() }
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_some_owners_ends_when_no_call_of_theirs_fails() {
    let (log, _guard) = listen(Level::INFO);
    let double = Double::new();
    let tasks = TaskStore::new(Arc::clone(&double));
    let (bad, good) = (owner("bad"), owner("good"));
    double.refuses_owner("bad");
    for _ in 0..40 {
        assert!(tasks.list(&bad, PageRequest::new(1)).await.is_err());
        for _ in 0..15 {
            tasks.list(&good, PageRequest::new(1)).await.unwrap();
            tokio::time::advance(Duration::from_millis(100)).await;
        }
    }
    assert!(about_the_engine(&log).is_empty(), "{}", log.text());
    for _ in 0..15 {
        tasks.list(&good, PageRequest::new(1)).await.unwrap();
        tokio::time::advance(Duration::from_millis(100)).await;
    }
    assert_eq!((lines(&log, "WARN").len(), about_the_engine(&log).len()), (1, 1), "{}", log.text());
    assert!(about_the_engine(&log)[0].contains("failed_calls=40"), "{}", log.text());
    // The next failure is another outage.
    assert!(tasks.list(&bad, PageRequest::new(1)).await.is_err());
    assert_eq!(lines(&log, "WARN").len(), 2);
}

#[tokio::test]
async fn each_task_logs_once_that_it_was_created_and_how_it_ended() {
    let (log, _guard) = listen(Level::INFO);
    let double = Double::new();
    let config = StoreConfig::new().retention(Duration::from_secs(600));
    let tasks = TaskStore::with_config(Arc::clone(&double), config);
    let new = || NewTask::new("tools/call").operation("render").on_worker_lost(OnWorkerLost::Resume);
    let mut ids = Vec::new();
    for round in 0..8 {
        let is_lost = round >= 4;
        let (stored, attempt) = tasks.start(&owner("alice"), new()).await.unwrap();
        let id = stored.key.task.to_string();
        if is_lost {
            // The write that ends the task is lost, and the store resolves its outcome.
            double.loses_writes.store(1, SeqCst);
        }
        let (event, ended) = match round % 4 {
            0 => ("completed", attempt.complete(json!("secret")).await),
            1 => ("failed", attempt.fail(RpcError::new(1, "secret")).await),
            2 => ("cancelled", tasks.cancel(&stored.key).await),
            _ => {
                let released = attempt.release().await.unwrap();
                ("cancelled", tasks.request_cancel(&released).await)
            }
        };
        let ended = ended.unwrap();
        // The log has no line for rejected calls and reads.
        assert!(matches!(tasks.complete(&ended, json!(1)).await, Err(TaskError::InvalidTransition { .. })));
        tasks.get(&stored.key).await.unwrap();
        ids.push((id, event));
    }
    let overdue = tasks.create(&owner("alice"), new().ttl(Duration::from_millis(5))).await.unwrap();
    while !tasks.get(&overdue.key).await.unwrap().task.status.is_terminal() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tasks.get(&overdue.key).await.unwrap();
    ids.push((overdue.key.task.to_string(), "failed"));
    let info = lines(&log, "INFO");
    for (id, event) in ids {
        let its: Vec<&String> = info.iter().filter(|line| line.contains(&id)).collect();
        assert_eq!(its.len(), 2, "{its:?}");
        assert!(its[0].contains(": created ") && its[1].contains(&format!(": {event} ")), "{its:?}");
        for line in its {
            assert!(line.contains("owner=alice") && line.contains("operation=\"render\""), "{line}");
        }
    }
    assert!(!log.text().contains("secret"));
}

#[cfg(feature = "redis-tests")]
#[tokio::test]
async fn an_outage_of_a_redis_server_logs_one_warning_in_the_whole_crate() {
    use mcp_task_store::RedisBackend;

    let (log, _guard) = listen(Level::INFO);
    let mut server = crate::support::redis::Server::start(&[]);
    let tasks = TaskStore::new(RedisBackend::connect(&server.url()).await.unwrap());
    let created = tasks.create(&owner("alice"), NewTask::new("tools/call")).await.unwrap();
    let waiting = tokio::spawn({
        let (tasks, key) = (tasks.clone(), created.key.clone());
        async move {
            // The watch and its reads fail, too.
            while tasks.wait(&key).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let _: () = crate::support::redis::command(&mut server.connection(), ["SAVE"]);
    server.kill();
    let until = tokio::time::Instant::now() + Duration::from_secs(3);
    while tokio::time::Instant::now() < until {
        assert!(tasks.set_status_message(&created.key, "on it").await.is_err());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.start_again();
    while about_the_engine(&log).is_empty() {
        let _ = tasks.get(&created.key).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tasks.complete(&created.key, json!("done")).await.unwrap();
    waiting.await.unwrap();
    assert_eq!((lines(&log, "WARN").len(), about_the_engine(&log).len()), (1, 1), "{}", log.text());
    assert!(lines(&log, "ERROR").is_empty(), "{}", log.text());
}
