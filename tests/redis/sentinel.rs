//! A master behind sentinels: failover. The module `replicas` tests writes that wait for replicas.

mod replicas;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use mcp_task_store::{
    PutOptions, RedisBackend, RedisBuilder, StorageBackend, StorageError, TaskKey, Version,
};
use redis::{Commands, Value};
use rstest::rstest;

use crate::support::cluster::{eventually, moment};
use crate::support::fake::{Answer, Fake, greeting};
use crate::support::redis::{Server, command, connection, free_port};
use crate::support::sentinel::{MASTER, Watched, master_of};
use crate::support::{in_an_hour, keep, key};

const RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a write waits for replicas.
const PATIENCE: Duration = Duration::from_millis(300);

fn builder() -> RedisBuilder {
    RedisBackend::builder().response_timeout(RESPONSE_TIMEOUT)
}

async fn connect(watched: &Watched) -> RedisBackend {
    builder().connect_sentinel(watched.sentinel_urls(), &format!("redis://{MASTER}")).await.unwrap()
}

/// Writes until a write succeeds. Each error until then must be `Unavailable`.
async fn until_a_write_works(backend: &RedisBackend, task: &TaskKey, options: PutOptions) {
    while let Err(error) = backend.put(task, "new".into(), options.clone()).await {
        assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Asserts that the watch `changes`, which began before a failover, yields an item for each write of `writer`.
async fn assert_notified(
    changes: &mut BoxStream<'static, Result<(), StorageError>>,
    backend: &RedisBackend,
    writer: &RedisBackend,
    options: PutOptions,
) {
    let t1 = key("alice", "t1");
    for data in ["newer", "newest"] {
        writer.put(&t1, data.into(), options.clone()).await.unwrap();
        let notified = async {
            while changes.next().await.unwrap().is_err() || backend.get(&t1).await.unwrap().data != data {}
        };
        tokio::time::timeout(Duration::from_secs(60), notified)
            .await
            .expect("the watch receives a notification");
    }
}

/// Lets the old master, which hung, return as a replica.
fn return_as_a_replica(master: &Server) {
    master.signal("CONT");
    eventually(|| {
        // The sentinels close the connections of a server that they make a replica.
        let mut info = redis::cmd("INFO");
        let info = info.arg("replication").query::<String>(&mut master.connection());
        info.is_ok_and(|info| info.contains("role:slave"))
    });
}

#[rstest]
#[case::is_killed("KILL")]
#[case::hangs("STOP")]
#[tokio::test(flavor = "multi_thread")]
async fn the_backend_finds_the_new_master_when_the_old_one(#[case] signal: &str) {
    let watched = Watched::start(&[]);
    let backend = connect(&watched).await;
    backend.put(&key("alice", "t1"), "old".into(), in_an_hour()).await.unwrap();
    let mut replica = watched.replica.connection();
    eventually(|| replica.exists("pmcp:tasks:alice:t1").unwrap());
    let mut changes = backend.watch(&key("alice", "t1"));
    changes.next().await.unwrap().unwrap();
    watched.master.signal(signal);
    let since = Instant::now();
    let (sentinel, port) = (watched.sentinels[0].url(), watched.replica.port);
    let failed_over = moment(move || master_of(&sentinel) == Some(port));
    until_a_write_works(&backend, &key("alice", "t1"), keep()).await;
    let (works, failed_over) = (Instant::now(), failed_over.join().unwrap());
    println!(
        "figure | sentinel, the master gets SIG{signal}: until it is failed over | {:.1?}",
        failed_over - since
    );
    let later = works.saturating_duration_since(failed_over);
    println!(
        "figure | sentinel, the master gets SIG{signal}: from there to a write that works | {later:.1?}"
    );
    assert!(later < 10 * RESPONSE_TIMEOUT);
    // A server that becomes a master closes its connections.
    let mut replica = watched.replica.connection();
    let stored: String = replica.hget("pmcp:tasks:alice:t1", "data").unwrap();
    assert_eq!(stored, "new", "the write went to the server that was the replica");
    assert!(backend.get(&key("alice", "t1")).await.unwrap().version > Version::FIRST);
    if signal == "STOP" {
        // The old master returns as a replica. The backend must send it no more writes.
        return_as_a_replica(&watched.master);
        backend.put(&key("alice", "t2"), "data".into(), in_an_hour()).await.unwrap();
        assert!(replica.exists::<_, bool>("pmcp:tasks:alice:t2").unwrap());
    }
    // The watch that began before the failover receives notifications from the new master.
    assert_notified(&mut changes, &backend, &backend, keep()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_backend_leaves_a_master_after_a_manual_failover() {
    let watched = Watched::start(&[]);
    let backend = connect(&watched).await;
    backend.put(&key("alice", "t1"), "old".into(), in_an_hour()).await.unwrap();
    let _: () = command(&mut watched.sentinels[0].connection(), ["SENTINEL", "FAILOVER", MASTER]);
    watched.failed_over();
    // The server closes connections while it becomes a replica.
    let replication = || {
        let client = redis::Client::open(watched.master.url()).ok()?;
        redis::cmd("INFO").arg("replication").query::<String>(&mut client.get_connection().ok()?).ok()
    };
    eventually(|| replication().is_some_and(|replication| replication.contains("role:slave")));
    until_a_write_works(&backend, &key("alice", "t1"), keep()).await;
    let stored: String = watched.replica.connection().hget("pmcp:tasks:alice:t1", "data").unwrap();
    assert_eq!(stored, "new");
}

#[tokio::test]
async fn the_error_for_unreachable_sentinels_or_an_unknown_master_names_them() {
    let port = free_port();
    let error = builder()
        .connect_sentinel([format!("redis://127.0.0.1:{port}")], "redis://mymaster")
        .await
        .unwrap_err();
    assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}");
    assert!(error.to_string().contains(&format!("mymaster (by the sentinels 127.0.0.1:{port})")), "{error}");

    let watched = Watched::start(&[]);
    let url = "redis://user:pass-word@another";
    let error = builder().connect_sentinel(watched.sentinel_urls(), url).await.unwrap_err();
    assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}");
    assert!(error.to_string().contains("another (by the sentinels"), "{error}");
    assert!(!format!("{error:?}").contains("pass-word"), "{error:?}");
}

/// A sentinel that does not help.
enum BadSentinel {
    /// It accepts connections and never replies.
    Hangs,
    /// It reports a server that accepts connections and never replies.
    ReportsASilentServer,
}

/// Listens on a port without a reply to any connection. The operating system accepts the connections.
fn silent_port() -> std::net::TcpListener {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap()
}

#[rstest]
#[case::hangs(BadSentinel::Hangs)]
#[case::reports_a_silent_server(BadSentinel::ReportsASilentServer)]
#[tokio::test(flavor = "multi_thread")]
async fn one_bad_sentinel_of_three_delays_neither_the_connection_nor_the_first_write_after_a_failover(
    #[case] bad: BadSentinel,
) {
    // Far longer than the times that this test measures.
    const LIMIT: Duration = Duration::from_secs(60);
    const SOON: Duration = Duration::from_secs(6);
    let mut watched = Watched::start(&[]);
    let silent = silent_port();
    let silent_at = silent.local_addr().unwrap().port();
    let fake = Fake::start(move |_, words| match &*words[0].to_ascii_uppercase() {
        "SENTINEL" if words[1] == "GET-MASTER-ADDR-BY-NAME" => {
            let port = silent_at.to_string();
            Answer::Bytes(format!("*2\r\n$9\r\n127.0.0.1\r\n${}\r\n{port}\r\n", port.len()).into_bytes())
        }
        "SENTINEL" => Answer::Bytes(b"-NOPERM no\r\n".to_vec()),
        _ => greeting(words),
    })
    .await;
    let mut urls = watched.sentinel_urls();
    urls[0] = match bad {
        BadSentinel::Hangs => format!("redis://127.0.0.1:{silent_at}"),
        BadSentinel::ReportsASilentServer => fake.url(),
    };
    let name = format!("redis://{MASTER}");
    let connect = || {
        let builder = RedisBackend::builder().connect_timeout(LIMIT).response_timeout(LIMIT);
        builder.connect_sentinel(urls.clone(), &name)
    };
    let since = Instant::now();
    let backend = connect().await.unwrap();
    println!("figure | sentinel, the first of three is bad: until connected | {:.1?}", since.elapsed());
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    let t1 = key("alice", "t1");
    backend.put(&t1, "old".into(), in_an_hour()).await.unwrap();
    watched.master.kill();
    tokio::task::block_in_place(|| watched.failed_over());
    let since = Instant::now();
    until_a_write_works(&backend, &t1, in_an_hour()).await;
    println!(
        "figure | sentinel, the first of three is bad: from a failover to a write | {:.1?}",
        since.elapsed()
    );
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    let fresh = connect().await.unwrap();
    assert_eq!(fresh.get(&t1).await.unwrap().data, "new");
}

/// How the backend can detect that its master has lost its replicas.
#[derive(Clone, Copy, PartialEq)]
enum Lack {
    NotDetected,
    NoReplicas,
    TooFewConfirm,
}

/// Connects to a server as the user `tasks`, which has all permissions.
fn connection_of_the_user(server: &Server) -> redis::Connection {
    let rule = "ACL SETUSER tasks on >secret ~* &* +@all";
    let _: () = command(&mut server.connection(), rule.split(' '));
    connection(&format!("redis://tasks:secret@127.0.0.1:{}", server.port))
}

#[rstest]
#[case::acknowledges_writes(Lack::NotDetected)]
#[case::refuses_writes(Lack::NoReplicas)]
#[case::confirms_no_write(Lack::TooFewConfirm)]
#[tokio::test(flavor = "multi_thread")]
async fn the_backend_leaves_a_deposed_master_that_still_answers_and(#[case] lack: Lack) {
    let watched = Watched::start(&[]);
    let [mut at_master, _] = [&watched.master, &watched.replica].map(connection_of_the_user);
    let builder = match lack {
        Lack::TooFewConfirm => builder().wait_for_replicas(1, PATIENCE),
        _ => builder(),
    };
    let url = format!("redis://tasks:secret@{MASTER}");
    let backend = Arc::new(builder.connect_sentinel(watched.sentinel_urls(), &url).await.unwrap());
    let t1 = key("alice", "t1");
    backend.put(&t1, "old".into(), in_an_hour()).await.unwrap();
    let mut changes = backend.watch(&t1);
    changes.next().await.unwrap().unwrap();
    watched.master.is_replicated();
    if lack == Lack::NoReplicas {
        for (setting, value) in [("min-replicas-to-write", "1"), ("min-replicas-max-lag", "1")] {
            let _: () = command(&mut at_master, ["CONFIG", "SET", setting, value]);
        }
    }
    // The sentinels and the replica can no longer use the master. The master still answers the backend.
    let _: () = command(&mut at_master, ["ACL", "SETUSER", "default", "-@all"]);
    let _: i64 = command(&mut at_master, ["CLIENT", "KILL", "TYPE", "replica"]);
    tokio::task::block_in_place(|| watched.failed_over());
    let since = Instant::now();
    let at_new = RedisBackend::connect(&watched.replica.url()).await.unwrap();
    at_new.put(&t1, "new".into(), in_an_hour()).await.unwrap();
    let role: (String, Value, Value) = redis::cmd("ROLE").query(&mut at_master).unwrap();
    assert_eq!(role.0, "master", "the old master still considers itself the master");
    let follows = async {
        while backend.get(&t1).await.unwrap().data != "new" {
            if lack != Lack::NotDetected {
                // Neither master has a replica that could confirm the write.
                let refused = backend.put(&key("alice", "t2"), "data".into(), in_an_hour()).await;
                assert!(refused.is_ok() || refused.as_ref().unwrap_err().is_retryable(), "{refused:?}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), follows).await.expect("the backend leaves the old master");
    println!("figure | sentinel, a deposed master that answers: until it is left | {:.1?}", since.elapsed());
    // The watch has left the old master too: it yields an item for each write at the new one.
    assert_notified(&mut changes, &backend, &at_new, in_an_hour()).await;
}
