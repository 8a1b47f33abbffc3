//! When a backend reconnects, how often it tries, and where the new connection leads.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use mcp_task_store::{PageRequest, PartName, RedisBackend, StorageBackend, StorageError};
use redis::Connection;
use rstest::rstest;
use tokio::net::{TcpListener, TcpStream};

use super::{LIMIT, assert_as_before, connect, prepared, rounds};
use crate::support::cluster::info;
use crate::support::fake::{Answer, Fake, greeting};
use crate::support::redis::{Server, command, connection, free_port};
use crate::support::{in_an_hour, keep, key, owner};

/// The first row of the table in docs/failures.md promises this.
#[tokio::test(flavor = "multi_thread")]
async fn attempts_to_reconnect_are_at_most_250_ms_apart() {
    const CAP: Duration = Duration::from_millis(250);
    let attempts = Arc::new(Mutex::new(Vec::new()));
    // After the first script, the server accepts no connection.
    let log = Arc::clone(&attempts);
    let is_closed = AtomicBool::new(false);
    let fake = Fake::start(move |_, words| match &*words[0].to_ascii_uppercase() {
        "EVAL" => {
            is_closed.store(true, Ordering::SeqCst);
            Answer::Close
        }
        "HELLO" if is_closed.load(Ordering::SeqCst) => {
            log.lock().unwrap().push(Instant::now());
            Answer::Close
        }
        _ => greeting(words),
    });
    let fake = fake.await;
    let backend = connect(&fake.url()).await;
    backend.put(&key("alice", "t1"), "data".into(), keep()).await.unwrap_err();
    let wanted = 8 + 2 * rounds();
    while attempts.lock().unwrap().len() < wanted {
        let error = backend.get(&key("alice", "t1")).await.unwrap_err();
        assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}");
    }
    let attempts = attempts.lock().unwrap();
    let mut apart: Vec<Duration> = attempts.windows(2).map(|two| two[1] - two[0]).collect();
    apart.sort();
    let (median, highest) = (apart[apart.len() / 2], apart[(apart.len() - 1) * 99 / 100]);
    println!("figure | a server that accepts no connection: between two attempts, median | {median:.1?}");
    println!(
        "figure | a server that accepts no connection: between two attempts, 99th percentile | {highest:.1?}"
    );
    assert!(apart[apart.len() - 1] < 10 * CAP, "{apart:?}");
    assert!(median > Duration::from_millis(25), "there is a pause between two attempts: {apart:?}");
}

/// The name of a master may lead to another server by then.
#[tokio::test(flavor = "multi_thread")]
async fn the_backend_reconnects_after_a_server_has_turned_out_to_be_a_replica() {
    // The server is a replica until the backend opens more connections than it had at the first script.
    let (connections, at_first) = (AtomicUsize::new(0), OnceLock::new());
    let fake = Fake::start(move |_, words| match &*words[0].to_ascii_uppercase() {
        "HELLO" => {
            connections.fetch_add(1, Ordering::Relaxed);
            greeting(words)
        }
        "EVAL"
            if connections.load(Ordering::Relaxed)
                == *at_first.get_or_init(|| connections.load(Ordering::Relaxed)) =>
        {
            Answer::Bytes(b"-READONLY You can't write against a read only replica.\r\n".to_vec())
        }
        "EVAL" => Answer::Bytes(b"$15\r\n1795000000 0 1 \r\n".to_vec()),
        _ => greeting(words),
    });
    let fake = fake.await;
    let backend = connect(&fake.url()).await;
    let error = backend.put(&key("alice", "t1"), "data".into(), keep()).await.unwrap_err();
    assert!(matches!(error, StorageError::Unavailable { outcome_unknown: false, .. }), "{error:?}");
    backend.put(&key("alice", "t1"), "data".into(), keep()).await.unwrap();
}

/// A connection that detects that it was closed serves no call, however short it lived.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_closed_soon_after_it_was_opened_fails_no_call() {
    let server = Server::start(&[]);
    let backend = connect(&server.url()).await;
    backend.put(&key("alice", "t1"), "data".into(), keep()).await.unwrap();
    for _ in 0..5 {
        let _: i64 = command(&mut server.connection(), ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        // A test cannot see from outside when the backend has detected it.
        tokio::time::sleep(Duration::from_millis(200)).await;
        backend.get(&key("alice", "t1")).await.unwrap();
    }
}

/// Otherwise the backend would reconnect without end to a server that closes every connection.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_next_call_replaces_a_short_lived_connection() {
    let connections = |admin: &mut Connection| -> u64 {
        let stats = info(admin, "stats");
        let line = stats.lines().find(|line| line.starts_with("total_connections_received:")).unwrap();
        line.split(':').nth(1).unwrap().trim().parse().unwrap()
    };
    loop {
        let since = Instant::now();
        let (_server, backend, mut admin) = prepared(&[]).await;
        let _: i64 = command(&mut admin, ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        let before = connections(&mut admin);
        if since.elapsed() > Duration::from_millis(900) {
            // On a busy machine it has lived long.
            continue;
        }
        // Enough time for several connections, if anything but a call opened them.
        tokio::time::sleep(LIMIT).await;
        assert_eq!(connections(&mut admin), before);
        assert_as_before(&backend).await;
        break;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_could_not_connect_does_not_keep_trying() {
    let fake = Fake::start(|_, words| match &*words[0].to_ascii_uppercase() {
        "TIME" => Answer::Close,
        _ => greeting(words),
    });
    let fake = fake.await;
    RedisBackend::builder().response_timeout(LIMIT).connect(&fake.url()).await.unwrap_err();
    let made = fake.received("HELLO").len();
    tokio::time::sleep(LIMIT).await;
    assert_eq!(fake.received("HELLO").len(), made);
}

/// Opens a port that leads each new connection to the current target, as a name in the DNS does.
async fn name_of(target: Arc<AtomicU16>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let port = target.load(Ordering::SeqCst);
            tokio::spawn(async move {
                let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    port
}

/// A managed server fails over by changing its name in the DNS, and the old master may keep its connections.
#[rstest]
#[case::no_replicas(0)]
#[case::writes_that_wait_for_replicas(1)]
#[tokio::test]
async fn after_a_server_refuses_a_write_as_a_replica_the_backend_reads_from_the_new_master(
    #[case] replicas: u32,
) {
    let (old, new) = (Server::start(&[]), Server::start(&[]));
    let _replica =
        (replicas > 0).then(|| Server::start(&["--replicaof", "127.0.0.1", &new.port.to_string()]));
    let target = Arc::new(AtomicU16::new(new.port));
    let url = format!("redis://127.0.0.1:{}", name_of(Arc::clone(&target)).await);
    let (t1, part) = (key("alice", "t1"), PartName::from_static("output"));
    let at_new = connect(&new.url()).await;
    at_new.put(&t1, "new".into(), in_an_hour().set_part(part.clone(), "new")).await.unwrap();
    let at_old = connect(&old.url()).await;
    at_old.put(&t1, "old".into(), in_an_hour().set_part(part.clone(), "old")).await.unwrap();

    target.store(old.port, Ordering::SeqCst);
    let builder = RedisBackend::builder().wait_for_replicas(replicas, Duration::from_millis(50));
    let backend = builder.connect(&url).await.unwrap();
    // The old master applies the write with and without replicas.
    let written = backend.put(&t1, "old".into(), keep()).await;
    assert_eq!(written.is_ok(), replicas == 0);
    assert_eq!(backend.get(&t1).await.unwrap().data, "old");
    assert_eq!(backend.part(&t1, &part).await.unwrap().unwrap().data, "old");
    let mut watch = backend.watch(&t1);
    watch.next().await.unwrap().unwrap();
    target.store(new.port, Ordering::SeqCst);
    // The old master cannot reach its own master, so its data stay the same.
    let _: () = command(&mut connection(&old.url()), ["REPLICAOF", "127.0.0.1", &free_port().to_string()]);
    let refused = backend.put(&t1, "lost".into(), keep()).await.unwrap_err();
    assert!(matches!(refused, StorageError::Unavailable { outcome_unknown: false, .. }), "{refused:?}");
    assert_eq!(backend.get(&t1).await.unwrap().data, "new");
    assert_eq!(backend.part(&t1, &part).await.unwrap().unwrap().data, "new");
    let page = backend.list(&owner("alice"), PageRequest::new(1)).await.unwrap();
    assert_eq!(page.records[0].data, "new");
    // The new master publishes to the watch from now on.
    tokio::time::timeout(Duration::from_secs(60), watch.next()).await.unwrap().unwrap().unwrap();
    at_new.put(&t1, "newer".into(), keep()).await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), watch.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(backend.get(&t1).await.unwrap().data, "newer");
}
