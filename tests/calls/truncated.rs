//! A reply that is cut off by an orderly close is an outage, as a reset is.

use std::pin::Pin;

use mcp_task_store::{
    NewTask, PageRequest, PartName, RedisBackend, StorageBackend, StorageError, TaskStatus, TaskStore,
    Version,
};
use rstest::rstest;
use serde_json::json;

use super::support::proxy::{Fault, Proxy};
use super::support::redis::Server;
use super::support::{in_an_hour, keep, key, owner};

type Outcome<'a> = Pin<Box<dyn Future<Output = Result<(), StorageError>> + Send + 'a>>;

struct Call {
    /// The command whose reply is cut off.
    command: &'static str,
    is_write: bool,
    run: fn(&RedisBackend, usize) -> Outcome<'_>,
}

fn part() -> PartName {
    const { PartName::from_static("input") }
}

/// Both connections work again. Without RESP3, the first call over a connection finds out that it was closed.
async fn heals(backend: &RedisBackend) {
    for _ in 0..2 {
        if let Err(error) = backend.get(&key("alice", "t1")).await {
            assert!(error.is_retryable(), "{error:?}");
        }
        if let Err(error) = backend.part(&key("alice", "t1"), &part()).await {
            assert!(error.is_retryable(), "{error:?}");
        }
    }
    backend.get(&key("alice", "t1")).await.unwrap();
    backend.part(&key("alice", "t1"), &part()).await.unwrap();
}

const CALLS: [Call; 8] = [
    Call {
        command: "HMGET",
        is_write: false,
        run: |backend, _| Box::pin(async { backend.get(&key("alice", "t1")).await.map(drop) }),
    },
    Call {
        command: "HMGET",
        is_write: false,
        run: |backend, _| Box::pin(async { backend.part(&key("alice", "t1"), &part()).await.map(drop) }),
    },
    Call {
        command: "HMGET",
        is_write: false,
        run: |backend, _| {
            Box::pin(async { backend.list(&owner("alice"), PageRequest::new(9)).await.map(drop) })
        },
    },
    Call {
        command: "EVAL",
        is_write: false,
        run: |backend, _| {
            Box::pin(async { backend.list(&owner("alice"), PageRequest::new(9)).await.map(drop) })
        },
    },
    Call {
        command: "TIME",
        is_write: false,
        run: |backend, _| Box::pin(async { backend.clock(&key("alice", "t1")).await.map(drop) }),
    },
    Call {
        command: "EVAL",
        is_write: true,
        run: |backend, _| {
            Box::pin(async { backend.put(&key("alice", "t1"), "data".into(), keep()).await.map(drop) })
        },
    },
    Call {
        command: "EVAL",
        is_write: true,
        run: |backend, round| {
            Box::pin(async move {
                let new = key("bob", &format!("t{round}"));
                backend.put_if_version(&new, "data".into(), in_an_hour(), Version::ABSENT).await.map(drop)
            })
        },
    },
    Call {
        command: "EVAL",
        is_write: true,
        run: |backend, _| Box::pin(async { backend.delete(&key("carol", "t1")).await.map(drop) }),
    },
];

#[rstest]
#[case::resp3("")]
#[case::resp2("/?protocol=resp2")]
#[tokio::test]
async fn a_truncated_reply_is_unavailable_at_every_byte(#[case] parameters: &str) {
    let server = Server::start(&[]);
    let proxy = Proxy::start(server.port, || Fault::Pass).await;
    let backend = RedisBackend::connect(&format!("{}{parameters}", proxy.url())).await.unwrap();
    let options = || in_an_hour().set_part(part(), "a part of the record");
    for task in ["t1", "t2"] {
        backend.put(&key("alice", task), "the data of a record".into(), options()).await.unwrap();
    }
    for (number, Call { command, is_write, run }) in CALLS.into_iter().enumerate() {
        let mut cut_off = 0;
        for after in 0.. {
            proxy.cut(command, after);
            let outcome = run(&backend, after).await;
            assert!(!proxy.is_to_cut(), "call {number} sends {command}");
            // The first of a page's pipelined replies is whole, and the others are missing.
            let Err(error) = outcome else { break };
            assert!(
                matches!(error, StorageError::Unavailable { .. }),
                "call {number}, cut off after {after} bytes: {error:?}"
            );
            assert_eq!((error.is_retryable(), error.outcome_unknown()), (true, is_write), "{error:?}");
            cut_off += 1;
            if cut_off > 250 {
                break;
            }
            heals(&backend).await;
        }
        heals(&backend).await;
        assert!(cut_off > 3, "call {number} was cut off {cut_off} times");
    }
}

#[tokio::test]
async fn a_completed_task_is_not_failed_by_a_truncated_reply() {
    let server = Server::start(&[]);
    let proxy = Proxy::start(server.port, || Fault::Pass).await;
    let tasks = TaskStore::new(RedisBackend::connect(&proxy.url()).await.unwrap());
    for (command, after) in [("HMGET", 0), ("HMGET", 20), ("EVAL", 0), ("EVAL", 10)] {
        let created = tasks.create(&owner("alice"), NewTask::new("tools/call")).await.unwrap();
        proxy.cut(command, after);
        let done = loop {
            match tasks.complete(&created.key, json!("done")).await {
                Ok(done) => break done,
                Err(error) => assert!(error.is_retryable(), "{error:?}"),
            }
        };
        assert!(!proxy.is_to_cut());
        assert_eq!((done.task.status, done.version.get()), (TaskStatus::Completed, 2));
    }
}

#[rstest]
#[case::the_greeting("HELLO")]
#[case::the_first_command("TIME")]
#[tokio::test]
async fn a_connection_that_is_cut_off_while_it_is_made_is_unavailable(#[case] command: &'static str) {
    let server = Server::start(&[]);
    let proxy = Proxy::start(server.port, || Fault::Pass).await;
    let mut cut_off = 0;
    // The replies behind the greeting are missing, however much of it comes.
    for after in 0..250 {
        proxy.cut(command, after);
        match RedisBackend::connect(&proxy.url()).await {
            Ok(_) => break,
            Err(error) => assert!(error.is_retryable(), "cut off after {after} bytes: {error:?}"),
        }
        cut_off += 1;
    }
    assert!(cut_off > 10, "{cut_off}");
}
