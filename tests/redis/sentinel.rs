//! A master behind sentinels: failover, and writes that wait for replicas.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::cluster::{eventually, moment};
use crate::support::fake::{Answer, Fake, greeting};
use crate::support::redis::{Server, command, free_port};
use crate::support::sentinel::{MASTER, Watched, master_of};
use crate::support::{in_an_hour, keep, key, owner};
use futures_util::StreamExt;
use mcp_task_store::{
    NewTask, PageRequest, RedisBackend, RedisBuilder, StorageBackend, StorageError, StoreConfig, TaskError,
    TaskStore, Version,
};
use redis::{Commands, Value};
use rstest::rstest;

const RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);

fn builder() -> RedisBuilder {
    RedisBackend::builder().response_timeout(RESPONSE_TIMEOUT)
}

async fn connect(watched: &Watched) -> RedisBackend {
    builder().connect_sentinel(watched.sentinel_urls(), &format!("redis://{MASTER}")).await.unwrap()
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
    loop {
        match backend.put(&key("alice", "t1"), "new".into(), keep()).await {
            Ok(_) => break,
            Err(error) => assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
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
        watched.master.signal("CONT");
        eventually(|| {
            // The sentinels close the connections of a server that they make a replica.
            let mut info = redis::cmd("INFO");
            let info = info.arg("replication").query::<String>(&mut watched.master.connection());
            info.is_ok_and(|info| info.contains("role:slave"))
        });
        backend.put(&key("alice", "t2"), "data".into(), in_an_hour()).await.unwrap();
        assert!(replica.exists::<_, bool>("pmcp:tasks:alice:t2").unwrap());
    }
    // The watch that began before the failover receives notifications from the new master.
    for data in ["newer", "newest"] {
        backend.put(&key("alice", "t1"), data.into(), keep()).await.unwrap();
        let notified = async {
            while backend.get(&key("alice", "t1")).await.unwrap().data != data
                || changes.next().await.unwrap().is_err()
            {}
        };
        tokio::time::timeout(Duration::from_secs(60), notified)
            .await
            .expect("the watch receives a notification");
    }
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
    loop {
        match backend.put(&key("alice", "t1"), "new".into(), keep()).await {
            Ok(_) => break,
            Err(error) => assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}"),
        }
    }
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
    loop {
        match backend.put(&t1, "new".into(), in_an_hour()).await {
            Ok(_) => break,
            Err(error) => assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}"),
        }
    }
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

#[rstest]
#[case::acknowledges_writes(Lack::NotDetected)]
#[case::refuses_writes(Lack::NoReplicas)]
#[case::confirms_no_write(Lack::TooFewConfirm)]
#[tokio::test(flavor = "multi_thread")]
async fn the_backend_leaves_a_deposed_master_that_still_answers_and(#[case] lack: Lack) {
    let watched = Watched::start(&[]);
    let rule = "ACL SETUSER tasks on >secret ~* &* +@all";
    for server in [&watched.master, &watched.replica] {
        let _: () = command(&mut server.connection(), rule.split(' '));
    }
    let mut at_master =
        redis::Client::open(format!("redis://tasks:secret@127.0.0.1:{}", watched.master.port))
            .unwrap()
            .get_connection()
            .unwrap();
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
    for data in ["newer", "newest"] {
        at_new.put(&t1, data.into(), in_an_hour()).await.unwrap();
        let notified = async {
            while changes.next().await.unwrap().is_err() || backend.get(&t1).await.unwrap().data != data {}
        };
        tokio::time::timeout(Duration::from_secs(60), notified)
            .await
            .expect("the watch receives a notification");
    }
}

fn with_replica() -> (Server, Server) {
    let master = Server::start(&[]);
    let port = master.port.to_string();
    let replica = Server::start(&["--replicaof", "127.0.0.1", &port]);
    master.is_replicated();
    (master, replica)
}

const PATIENCE: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_has_a_confirmed_write_when_the_call_returns() {
    let (master, replica) = with_replica();
    let backend = builder().wait_for_replicas(1, PATIENCE).connect(&master.url()).await.unwrap();
    let mut at_replica = replica.connection();
    let t1 = key("alice", "t1");
    for version in 1..=50 {
        let options = if version == 1 { in_an_hour() } else { keep() };
        backend.put_if_version(&t1, "data".into(), options, Version::from(version - 1)).await.unwrap();
        let there: u64 = at_replica.hget("pmcp:tasks:alice:t1", "version").unwrap();
        assert_eq!(there, version);
    }
    // A write that the master refuses waits for no replica.
    let conflict = backend.put_if_version(&t1, "lost".into(), keep(), Version::FIRST).await;
    assert_refused!(conflict, StorageError::VersionConflict { .. });
    assert!(backend.delete(&t1).await.unwrap());
    assert!(!at_replica.exists::<_, bool>("pmcp:tasks:alice:t1").unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_too_few_replicas_confirm_is_refused_with_an_unknown_outcome() {
    let (master, replica) = with_replica();
    let backend = builder().wait_for_replicas(1, PATIENCE).connect(&master.url()).await.unwrap();
    let t1 = key("alice", "t1");
    backend.put(&t1, "old".into(), in_an_hour()).await.unwrap();
    replica.signal("STOP");
    let (written, read) = tokio::join!(backend.put(&t1, "new".into(), keep()), async {
        // A read does not queue behind a write that waits for replicas.
        let mut reads = 0;
        while backend.get(&t1).await.unwrap().data == "old" {}
        for _ in 0..20 {
            backend.get(&t1).await.unwrap();
            reads += 1;
        }
        reads
    });
    let error = written.unwrap_err();
    assert!(error.is_retryable() && error.outcome_unknown(), "{error:?}");
    let StorageError::TooFewReplicas { wanted, acknowledged, within, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!((wanted, acknowledged, within), (1, 0, PATIENCE));
    assert_eq!(read, 20);
    let record = backend.get(&t1).await.unwrap();
    assert_eq!(
        (record.data, record.version),
        ("new".into(), Version::from(2)),
        "the master applied the write"
    );

    replica.signal("CONT");
    backend.put(&t1, "confirmed".into(), keep()).await.unwrap();
}

/// There are more creates at the same time than connections. Some exceed the time limit of a call while they wait for
/// replicas, the others while they wait for a connection.
#[tokio::test(flavor = "multi_thread")]
async fn the_store_acknowledges_no_create_that_no_replica_confirmed() {
    let (master, replica) = with_replica();
    // A write that is about to be sent when its time limit ends may or may not be applied. So the limit ends while all
    // connections wait for a replica: no write is about to be sent then. The server checks ten times a second whether a WAIT
    // has timed out, so the first wait ends after 300 to 400 ms and the second after 600 to 800 ms.
    let builder = builder().response_timeout(PATIENCE * 5 / 3).wait_for_replicas(1, PATIENCE);
    let backend = builder.connect(&master.url()).await.unwrap();
    let store = TaskStore::with_config(backend, StoreConfig::default().max_tasks_per_owner(None));
    replica.signal("STOP");
    let mut creates = tokio::task::JoinSet::new();
    for _ in 0..150 {
        let store = store.clone();
        creates.spawn(async move { store.create(&owner("alice"), NewTask::new("tools/call")).await });
    }
    let (mut few, mut unsent) = (0, 0);
    while let Some(created) = creates.join_next().await {
        let error = created.unwrap().unwrap_err();
        let TaskError::Storage(error) = error else { panic!("{error:?}") };
        assert!(error.is_retryable(), "{error:?}");
        let is_unconfirmed = matches!(error, StorageError::TooFewReplicas { .. });
        *if is_unconfirmed { &mut few } else { &mut unsent } += 1;
        assert_eq!(error.outcome_unknown(), is_unconfirmed, "{error:?}");
    }
    assert!(few > 0 && unsent > 0, "{few} were sent, {unsent} were not");
    replica.signal("CONT");
    store.create(&owner("bob"), NewTask::new("tools/call")).await.unwrap();
    let records = store.backend().list(&owner("alice"), PageRequest::new(256)).await.unwrap().records;
    assert_eq!(records.len(), few, "the master holds the tasks of the creates that were sent, and no others");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_writers_than_connections_wait_and_succeed() {
    let (master, _replica) = with_replica();
    let backend = builder().wait_for_replicas(1, PATIENCE).connect(&master.url()).await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..100 {
        let backend = backend.clone();
        writers.spawn(async move {
            backend.put(&key("alice", &writer.to_string()), "data".into(), in_an_hour()).await.unwrap();
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer.unwrap();
    }
    let clients: String = command(&mut master.connection(), ["CLIENT", "LIST", "TYPE", "normal"]);
    assert!(clients.lines().count() < 40, "{clients}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_write_is_sent_over_a_connection_that_was_closed_while_idle() {
    let (master, _replica) = with_replica();
    let backend = builder().wait_for_replicas(1, PATIENCE).connect(&master.url()).await.unwrap();
    let put = |task: &'static str| {
        let backend = backend.clone();
        async move { backend.put(&key("alice", task), "data".into(), in_an_hour()).await }
    };
    for round in 0..10 {
        let (one, two, three) = tokio::join!(put("t1"), put("t2"), put("t3"));
        assert!(one.is_ok() && two.is_ok() && three.is_ok(), "round {round}: {one:?} {two:?} {three:?}");
        let kill = ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"];
        let _: i64 = command(&mut master.connection(), kill);
        // By then, all pooled connections have detected that they were closed.
        while backend.get(&key("alice", "t1")).await.is_err() {}
        backend.get(&key("alice", "t1")).await.unwrap();
    }
}

#[rstest]
#[case::no_time(Duration::ZERO)]
#[case::as_long_as_a_call(Duration::from_secs(1))]
#[tokio::test]
async fn an_invalid_time_to_wait_for_replicas_is_refused(#[case] within: Duration) {
    let master = Server::start(&[]);
    let error = builder().wait_for_replicas(1, within).connect(&master.url()).await.unwrap_err();
    assert!(matches!(error, StorageError::Backend { outcome_unknown: false, .. }), "{error:?}");
}
