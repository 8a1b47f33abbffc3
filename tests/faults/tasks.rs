//! Tasks whose writes, or the replies to them, are lost on the network to a real server or arrive late.

mod life;
mod many;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::proxy::Fault::{Late, LoseReply, LoseWrite, Pass};
use crate::support::proxy::{Delivery, Fault, Proxy};
use crate::support::redis::{Server, command, connection};
use crate::support::{in_an_hour, keep, key, owner};
use mcp_task_store::{
    NewTask, PageRequest, RedisBackend, StorageBackend, StorageError, StoreConfig, StoredTask, TaskError,
    TaskStatus, TaskStore, Version,
};
use redis::Value as Reply;
use rstest::rstest;
use serde_json::json;

type Tasks = TaskStore<RedisBackend>;

async fn backend(url: &str) -> RedisBackend {
    RedisBackend::builder().response_timeout(Duration::from_secs(20)).connect(url).await.unwrap()
}

fn call() -> NewTask {
    NewTask::new("tools/call")
}

/// A server, a task store behind a proxy, and a task store that is connected to the server directly.
struct Setup {
    server: Server,
    proxy: Proxy,
    faults: Arc<Mutex<VecDeque<Fault>>>,
    tasks: Tasks,
    direct: Tasks,
}

impl Setup {
    async fn start(config: StoreConfig) -> Self {
        let server = Server::start(&[]);
        let faults = Arc::new(Mutex::new(VecDeque::new()));
        let next = Arc::clone(&faults);
        let proxy =
            Proxy::start(server.port, move || next.lock().unwrap().pop_front().unwrap_or(Fault::Pass)).await;
        let tasks = TaskStore::with_config(backend(&proxy.url()).await, config);
        let direct = TaskStore::new(backend(&server.url()).await);
        Self { server, proxy, faults, tasks, direct }
    }

    /// Sets the faults of the next writes, in turn. Later writes pass.
    fn inject(&self, faults: &[Fault]) {
        self.faults.lock().unwrap().extend(faults);
    }

    async fn created(&self) -> StoredTask {
        self.tasks.create(&owner("alice"), call()).await.unwrap()
    }

    /// Returns the faults of the writes after the first `count`.
    fn faults_since(&self, count: usize) -> Vec<Fault> {
        assert!(self.faults.lock().unwrap().is_empty(), "each fault has happened to a write");
        self.proxy.faults().split_off(count)
    }
}

fn is_conflict(delivery: &Delivery) -> bool {
    // The script found a live record at another version.
    matches!(&delivery.reply, Reply::ServerError(error)
        if error.code() == "FOUND" && error.details().is_some_and(|found| found.ends_with(",1,true,true]")))
}

/// The write arrives just after the read that did not find it, and before the store sends it again.
const BEHIND_THE_READ: Fault = Late { after: 1 };

#[rstest]
#[case::whose_reply_is_lost(&[LoseReply], &[])]
#[case::that_is_lost(&[LoseWrite], &[Pass])]
#[case::that_is_lost_again_and_again(&[LoseWrite, LoseWrite, LoseWrite], &[Pass])]
#[case::that_is_lost_and_whose_reply_is_lost_then(&[LoseWrite, LoseReply], &[])]
#[case::that_arrives_when_it_was_sent_again(&[Fault::HELD_BACK], &[Pass])]
#[case::that_arrives_before_it_is_sent_again(&[BEHIND_THE_READ], &[Pass])]
#[case::that_arrives_when_the_reply_to_the_second_is_lost(&[Fault::HELD_BACK, LoseReply], &[])]
#[case::of_which_two_copies_arrive_late(&[Fault::HELD_BACK, Fault::HELD_BACK], &[Pass])]
#[tokio::test]
async fn a_write_is_acknowledged_and_applied_exactly_once(
    #[case] faults: &[Fault],
    #[case] sent_again: &[Fault],
    #[values(false, true)] by_copy: bool,
) {
    let setup = Setup::start(StoreConfig::new()).await;
    let created = setup.created().await;
    let before = setup.proxy.faults().len();
    setup.inject(faults);
    let done = match by_copy {
        true => setup.tasks.complete(&created, json!("done")).await.unwrap(),
        false => setup.tasks.complete(&created.key, json!("done")).await.unwrap(),
    };
    assert_eq!(
        setup.faults_since(before),
        [faults, sent_again].concat(),
        "the write is sent only as many times as necessary"
    );
    assert_eq!((done.task.status, done.version.get()), (TaskStatus::Completed, 2));
    assert_eq!(done.task.result, Some(json!("done").into()));
    assert_eq!(setup.direct.get(&done.key).await.unwrap(), done);

    // A late copy finds another version, and leaves the task as it was acknowledged.
    let late = setup.proxy.deliver_late().await;
    assert_eq!(late.len(), faults.iter().filter(|fault| **fault == Fault::HELD_BACK).count());
    assert!(late.iter().all(is_conflict), "{late:?}");
    assert_eq!(setup.direct.get(&done.key).await.unwrap(), done);
    assert_eq!(setup.proxy.deliveries().iter().filter(|delivery| delivery.is_applied()).count(), 2);
}

#[rstest]
#[case::whose_reply_is_lost(&[LoseReply])]
#[case::that_is_lost(&[LoseWrite])]
#[case::that_is_lost_and_whose_reply_is_lost_then(&[LoseWrite, LoseReply])]
#[case::that_arrives_when_it_was_sent_again(&[Fault::HELD_BACK])]
#[case::that_arrives_before_it_is_sent_again(&[BEHIND_THE_READ])]
#[tokio::test]
async fn a_create_is_acknowledged_and_counted_exactly_once(#[case] faults: &[Fault]) {
    // If a copy counted twice, the quota would refuse the second task.
    let setup = Setup::start(StoreConfig::new().max_tasks_per_owner(2)).await;
    let mut created = Vec::new();
    for _ in 0..2 {
        setup.inject(faults);
        let task = setup.created().await;
        assert_eq!(task.version, Version::FIRST);
        created.insert(0, task);
    }
    assert_refused!(setup.tasks.create(&owner("alice"), call()).await, TaskError::QuotaExceeded { quota: 2 });
    for _ in 0..2 {
        let page = setup.direct.list(&owner("alice"), PageRequest::new(9)).await.unwrap();
        assert_eq!(page.tasks, created);
        let indexed: u64 = command(&mut setup.server.connection(), ["ZCARD", "pmcp:idx:alice"]);
        assert_eq!(indexed, 4, "two members for each");
        // The same holds after the late copies have arrived.
        let late = setup.proxy.deliver_late().await;
        assert!(late.iter().all(is_conflict), "{late:?}");
    }
}

#[tokio::test]
async fn an_acknowledged_update_is_not_undone_by_a_late_copy_of_an_earlier_one() {
    let setup = Setup::start(StoreConfig::new()).await;
    let created = setup.created().await;
    for value in 1..=6 {
        setup.inject(&[Fault::HELD_BACK]);
        setup.tasks.set_variables(&created.key, [("value", json!(value))]).await.unwrap();
    }
    let asked = setup.tasks.request_input(&created.key, [("name", json!({}))]).await.unwrap();
    setup.inject(&[Fault::HELD_BACK]);
    let answered = setup.tasks.deliver_inputs(&asked, [("name", json!("alice"))]).await.unwrap();
    assert_eq!(answered.version.get(), 9);
    let late = setup.proxy.deliver_late().await;
    assert!(late.len() == 7 && late.iter().all(is_conflict), "{late:?}");
    assert_eq!(setup.direct.get(&created.key).await.unwrap(), answered);
}

#[rstest]
#[case::was_applied(LoseReply, true, true)]
#[case::was_not_applied(LoseWrite, false, false)]
#[case::is_applied_later(Fault::HELD_BACK, false, true)]
#[tokio::test]
async fn a_delete_whose_outcome_is_unknown_returns_outcome_unknown(
    #[case] fault: Fault,
    #[case] is_gone: bool,
    #[case] goes: bool,
) {
    let setup = Setup::start(StoreConfig::new()).await;
    let created = setup.created().await;
    let before = setup.proxy.faults().len();
    setup.inject(&[fault]);
    let error = setup.tasks.delete(&created.key).await.unwrap_err();
    assert!(error.outcome_unknown() && error.is_retryable() && error.code() == -32603, "{error:?}");
    assert_eq!(setup.faults_since(before), [fault], "the store does not send the delete again");
    for gone in [is_gone, goes] {
        match setup.direct.get(&created.key).await {
            Ok(found) => assert!(!gone && found == created),
            Err(error) => assert!(gone && matches!(error, TaskError::NotFound { .. }), "{error:?}"),
        }
        setup.proxy.deliver_late().await;
    }
}

#[tokio::test]
async fn complete_returns_outcome_unknown_if_the_record_has_lost_its_write_id() {
    let server = Server::start(&[]);
    let (url, mut writes) = (server.url(), 0);
    let proxy = Proxy::start(server.port, move || {
        writes += 1;
        if writes != 2 {
            return Pass;
        }
        // Meanwhile, other instances write more often than the record has room for write ids.
        let mut connection = connection(&url);
        let keys: Vec<String> = command(&mut connection, ["KEYS", "pmcp:tasks:*"]);
        let _: u64 = command(&mut connection, ["HINCRBY", &keys[0], "version", "5"]);
        LoseWrite
    });
    let proxy = proxy.await;
    let tasks = TaskStore::new(backend(&proxy.url()).await);
    let created = tasks.create(&owner("alice"), call()).await.unwrap();
    let error = tasks.complete(&created, json!("done")).await.unwrap_err();
    assert!(error.outcome_unknown() && error.is_retryable() && error.code() == -32603, "{error:?}");
    assert_eq!(tasks.get(&created.key).await.unwrap().task.status, TaskStatus::Working);
    let done = tasks.complete(&created, json!("done")).await.unwrap();
    assert_eq!((done.task.status, done.version.get()), (TaskStatus::Completed, 7));
}

#[rstest]
#[tokio::test]
async fn the_backend_itself_sends_no_command_twice(
    #[values(Pass, LoseWrite, LoseReply, Fault::HELD_BACK)] fault: Fault,
) {
    let setup = Setup::start(StoreConfig::new()).await;
    let backend = setup.tasks.backend();
    let task = key("alice", "t1");
    let data = || "data".into();
    let mut scripts = 0;
    for round in 0..5 {
        // The record exists, at version 1.
        setup.direct.backend().delete(&task).await.unwrap();
        let put = setup.direct.backend().put(&task, data(), in_an_hour()).await.unwrap();
        assert_eq!(put.version, Version::FIRST);
        setup.inject(&[fault]);
        let outcome = match round {
            0 => backend.put(&task, data(), keep()).await.map(drop),
            1 => backend.put_if_version(&task, data(), keep(), Version::FIRST).await.map(drop),
            2 => backend.put_if_version(&task, data(), in_an_hour(), Version::FIRST).await.map(drop),
            3 => backend.delete(&task).await.map(drop),
            _ => {
                setup.direct.backend().delete(&task).await.unwrap();
                backend.put_if_version(&task, data(), in_an_hour(), Version::ABSENT).await.map(drop)
            }
        };
        match outcome {
            Ok(()) => assert_eq!(fault, Pass),
            Err(error) => assert!(fault != Pass && error.outcome_unknown(), "{round}: {error:?}"),
        }
        scripts += 1;
        assert_eq!(setup.proxy.scripts(), scripts, "{round}");

        // A read succeeds, whatever happened to the connection before.
        let found = backend.get(&task).await;
        assert!(matches!(found, Ok(_) | Err(StorageError::NotFound { .. })), "{found:?}");
        assert_eq!(setup.proxy.scripts(), scripts, "a read is no script");
        backend.list(&owner("alice"), PageRequest::new(9)).await.unwrap();
        scripts += 1;
        assert_eq!(setup.proxy.scripts(), scripts, "a page is one script");
    }
    assert!(setup.faults_since(0).len() == 5 && setup.proxy.deliver_late().await.len() <= 5);
}
