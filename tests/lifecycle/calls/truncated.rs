//! A reply that an orderly close cuts off is an outage, like a reset.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use mcp_task_store::{
    NewTask, PageRequest, PartName, RedisBackend, StorageBackend, StorageError, TaskStatus, TaskStore,
    Version,
};
use rstest::rstest;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Notify;

use crate::support::proxy::{Fault, Proxy};
use crate::support::redis::Server;
use crate::support::{in_an_hour, keep, key, owner};

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

/// Waits until both connections work again. Without RESP3, only the first call over a connection detects that it was closed.
async fn until_connected(backend: &RedisBackend) {
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
async fn a_reply_that_is_cut_off_at_any_byte_is_unavailable(#[case] parameters: &str) {
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
            assert!(!proxy.has_cut_left(), "call {number} sends {command}");
            // The first of the pipelined replies of a page is complete, and the others are missing.
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
            until_connected(&backend).await;
        }
        until_connected(&backend).await;
        assert!(cut_off > 3, "call {number} was cut off {cut_off} times");
    }
}

#[tokio::test]
async fn a_truncated_reply_does_not_fail_a_completed_task() {
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
        assert!(!proxy.has_cut_left());
        assert_eq!((done.task.status, done.version.get()), (TaskStatus::Completed, 2));
    }
}

#[rstest]
#[case::the_greeting("HELLO")]
#[case::the_first_command("TIME")]
#[tokio::test]
async fn a_connection_that_is_cut_off_during_its_handshake_is_unavailable(#[case] command: &'static str) {
    let server = Server::start(&[]);
    let proxy = Proxy::start(server.port, || Fault::Pass).await;
    let mut cut_off = 0;
    // The later replies of the handshake are always missing, even if the whole greeting arrives.
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

/// Makes the proxy stop in the middle of a large reply, until the test lets it continue.
#[derive(Default)]
struct Stall {
    is_wanted: AtomicBool,
    began: Notify,
    ends: Notify,
}

/// Returns the URL of a proxy that buffers little, so that a large reply waits at the server.
async fn narrow(server_port: u16, stall: Arc<Stall>) -> String {
    const BEGINNING: usize = 64 * 1024;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(16 * 1024).unwrap();
            let Ok(server) = socket.connect(([127, 0, 0, 1], server_port).into()).await else { continue };
            let stall = Arc::clone(&stall);
            tokio::spawn(async move {
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                tokio::spawn(async move { copy(&mut from_client, &mut to_server).await });
                let (mut buffer, mut passed) = ([0; 4096], 0);
                // The proxy passes on what it has received before it closes.
                while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
                    if to_client.write_all(&buffer[..count]).await.is_err() {
                        return;
                    }
                    passed += count;
                    if passed > BEGINNING && stall.is_wanted.swap(false, SeqCst) {
                        stall.began.notify_one();
                        stall.ends.notified().await;
                    }
                }
            });
        }
    });
    format!("redis://127.0.0.1:{port}")
}

#[tokio::test]
async fn a_server_that_is_killed_while_it_sends_a_large_part_is_unavailable() {
    // This is more than the system buffers for a process, so the rest is lost with the process.
    const LARGE: usize = 16 * 1024 * 1024;
    let mut server = Server::start(&[]);
    let stall = Arc::new(Stall::default());
    let url = narrow(server.port, Arc::clone(&stall)).await;
    let backend = RedisBackend::builder().max_part_bytes(LARGE).connect(&url).await.unwrap();
    let large = in_an_hour().set_part(part(), vec![b'x'; LARGE]);
    backend.put(&key("alice", "t1"), "data".into(), large).await.unwrap();
    stall.is_wanted.store(true, SeqCst);
    let name = part();
    let read = tokio::spawn(async move { backend.part(&key("alice", "t1"), &name).await });
    stall.began.notified().await;
    server.kill();
    stall.ends.notify_one();
    let error = read.await.unwrap().unwrap_err();
    assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}");
    assert!(error.to_string().contains("in the middle of a reply"), "{error}");
}
