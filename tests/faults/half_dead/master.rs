//! Connections to one server that stay open and are not answered, or that lead to another server than a new connection would.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use mcp_task_store::{PageRequest, PartName, Queue, RedisBackend, StorageBackend, StorageError, TaskKey};
use redis::Connection;
use rstest::rstest;

use super::Watch;
use crate::support::cluster::eventually;
use crate::support::redis::{Server, command};
use crate::support::relay::Relay;
use crate::support::{in_an_hour, keep, key, never, owner};

/// The response timeout.
const LIMIT: Duration = Duration::from_millis(300);
/// How many calls in a row may fail over a connection that does not answer. They fail while the backend probes it.
const MOST_FAILURES: usize = 10;
const PATIENCE: Duration = Duration::from_secs(60);

fn output() -> PartName {
    PartName::from_static("output")
}

/// The kinds of calls. Each uses a connection of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Call {
    Get,
    Put,
    Schedule,
    List,
    Part,
}

impl Call {
    async fn run(self, backend: &RedisBackend) -> Result<(), StorageError> {
        use mcp_task_store::Agenda;
        let t1 = key("alice", "t1");
        match self {
            Self::Get => backend.get(&t1).await.map(drop),
            Self::Put => backend.put(&t1, "data".into(), keep()).await.map(drop),
            Self::Schedule => {
                let leases = Queue::try_from("leases").unwrap();
                backend.schedule(&leases, &t1, Duration::from_secs(3600)).await
            }
            Self::List => backend.list(&owner("alice"), PageRequest::new(1)).await.map(drop),
            Self::Part => backend.part(&t1, &output()).await.map(drop),
        }
    }
}

/// Starts a server, and a replica if writes wait for one.
fn servers(replicas: u32) -> (Server, Option<Server>) {
    let server = Server::start(&[]);
    let replica =
        (replicas > 0).then(|| Server::start(&["--replicaof", "127.0.0.1", &server.port.to_string()]));
    if replica.is_some() {
        server.is_replicated();
    }
    (server, replica)
}

async fn connect(url: &str, replicas: u32) -> RedisBackend {
    let builder = RedisBackend::builder().response_timeout(LIMIT).connect_timeout(PATIENCE);
    builder.wait_for_replicas(replicas, LIMIT / 3).connect(url).await.unwrap()
}

async fn create(backend: &RedisBackend, data: &'static str) {
    let options = in_an_hour().set_part(output(), data);
    backend.put(&key("alice", "t1"), data.into(), options).await.unwrap();
}

#[rstest]
#[case::read(Call::Get, 0)]
#[case::write(Call::Put, 0)]
#[case::write_that_waits_for_replicas(Call::Put, 1)]
#[case::timer(Call::Schedule, 0)]
#[case::page(Call::List, 0)]
#[case::part(Call::Part, 0)]
#[tokio::test(flavor = "multi_thread")]
async fn the_backend_replaces_an_open_connection_that_does_not_answer_after_a_timeout_of_a(
    #[case] call: Call,
    #[case] replicas: u32,
) {
    let (server, _replica) = servers(replicas);
    let relay = Relay::start(server.port).await;
    let backend = connect(&relay.url(), replicas).await;
    create(&backend, "data").await;
    call.run(&backend).await.unwrap();
    let before = backend.generation();
    relay.silence_connections();
    let (mut failures, mut first) = (0, None);
    while let Err(error) = call.run(&backend).await {
        let first = *first.get_or_insert_with(Instant::now);
        assert!(
            matches!(error, StorageError::Unavailable { .. } | StorageError::TooFewReplicas { .. }),
            "{error:?}"
        );
        let writes = matches!(call, Call::Put | Call::Schedule);
        assert_eq!(error.outcome_unknown(), writes, "the call was sent: {error:?}");
        failures += 1;
        assert!(failures <= MOST_FAILURES, "{failures} calls in {:?}", first.elapsed());
    }
    let took = first.expect("the first call fails").elapsed();
    println!(
        "figure | an open connection answers nothing: from the first timeout of a {call:?} to one that works | {took:.1?}"
    );
    assert!(backend.generation() > before, "the generation grows, so copies of records are void");
    // The calls of the other kinds recover as well, each over its own connection.
    for other in [Call::Get, Call::Put, Call::List, Call::Part] {
        let mut failures = 0;
        while let Err(error) = other.run(&backend).await {
            failures += 1;
            assert!(failures <= MOST_FAILURES, "{other:?}: {error:?}");
        }
    }
}

#[rstest]
#[case::calls(Call::Get)]
#[case::pages(Call::List)]
#[tokio::test(flavor = "multi_thread")]
async fn the_backend_reconnects_through_a_silent_proxy_once_it_passes_new_connections(#[case] call: Call) {
    let server = Server::start(&[]);
    let relay = Relay::start(server.port).await;
    let builder = RedisBackend::builder().response_timeout(LIMIT).connect_timeout(LIMIT);
    let backend = builder.connect(&relay.url()).await.unwrap();
    create(&backend, "data").await;
    call.run(&backend).await.unwrap();
    relay.silence();
    for _ in 0..6 {
        let error = call.run(&backend).await.unwrap_err();
        assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}");
    }
    relay.pass_new_connections();
    let mut failures = 0;
    while let Err(error) = call.run(&backend).await {
        failures += 1;
        assert!(failures <= MOST_FAILURES, "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_on_a_silent_connection_subscribes_over_another_connection() {
    let server = Server::start(&[]);
    let relay = Relay::start(server.port).await;
    let backend = connect(&relay.url(), 0).await;
    create(&backend, "old").await;
    let mut watch = watch(&backend).await;
    relay.silence_connections();
    let direct = connect(&server.url(), 0).await;
    direct.put(&key("alice", "t1"), "new".into(), keep()).await.unwrap();
    // The backend makes no call during this time.
    next(&mut watch).await;
    direct.put(&key("alice", "t1"), "newer".into(), keep()).await.unwrap();
    next(&mut watch).await;
}

/// The checks of a new connection take longer than a call may.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_server_accepts_writes_after_a_reconnect() {
    const WRITES: usize = 8;
    let server = Server::start(&[]);
    let relay = Relay::start(server.port).await;
    let backend = RedisBackend::connect(&relay.url()).await.unwrap();
    create(&backend, "data").await;
    relay.slow_new_connections(Duration::from_millis(350));
    let mut admin = server.connection();
    let _: i64 = command(&mut admin, ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    let begun = Instant::now();
    let recovered = async {
        loop {
            let writes = (0..WRITES).map(|n| {
                let (backend, key) = (backend.clone(), key("alice", &format!("w{n}")));
                async move { backend.put(&key, "data".into(), in_an_hour()).await }
            });
            let written = futures_util::future::join_all(writes).await;
            if written.iter().all(Result::is_ok) {
                break;
            }
            for error in written.into_iter().filter_map(Result::err) {
                assert!(error.is_retryable(), "{error:?}");
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), recovered).await.expect("every write of a round succeeds");
    println!("figure | a slow server takes writes after a reconnect, after | {:.1?}", begun.elapsed());
}

/// The subscriptions over the silent connection fail at different times.
#[tokio::test(flavor = "multi_thread")]
async fn channels_that_leave_a_silent_connection_one_after_the_other_share_the_next_connection() {
    const OWNERS: usize = 60;
    let server = Server::start(&[]);
    let mut admin = server.connection();
    let relay = Relay::start(server.port).await;
    let backend = RedisBackend::connect(&relay.url()).await.unwrap();
    let direct = RedisBackend::connect(&server.url()).await.unwrap();
    let keys: Vec<TaskKey> = (0..OWNERS).map(|n| key(&format!("owner{n}"), "t1")).collect();
    for key in &keys {
        direct.put(key, "data".into(), in_an_hour()).await.unwrap();
    }
    let watch = |key: &TaskKey| backend.watch(key);
    let mut watches = vec![watch(&keys[0])];
    next(&mut watches[0]).await;
    relay.silence_connections();
    for key in &keys[1..] {
        watches.push(watch(key));
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    for watch in &mut watches {
        next(watch).await;
    }
    // The relay does not close the silent connection.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let clients: String = command(&mut admin, ["CLIENT", "LIST", "TYPE", "pubsub"]);
    assert!(clients.lines().count() <= 3, "{clients}");
}

/// The backend keeps its connection to a server that was slow for a moment.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_answers_the_probe_is_kept() {
    let server = Server::start(&[]);
    let mut admin = server.connection();
    let backend = connect(&server.url(), 0).await;
    create(&backend, "data").await;
    let before = connections(&mut admin);
    for _ in 0..3 {
        server.signal("STOP");
        let error = Call::Put.run(&backend).await.unwrap_err();
        server.signal("CONT");
        assert!(matches!(error, StorageError::Unavailable { outcome_unknown: true, .. }), "{error:?}");
        Call::Put.run(&backend).await.unwrap();
    }
    // A probe that waits for its reply has ended by now.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(connections(&mut admin), before);
}

async fn watch(backend: &RedisBackend) -> Watch {
    let mut watch = backend.watch(&key("alice", "t1"));
    next(&mut watch).await;
    watch
}

/// Waits for the next item that is not an error.
async fn next(watch: &mut Watch) {
    let good = async {
        while let Err(error) = watch.next().await.expect("the record lives") {
            assert!(error.is_retryable(), "{error}");
        }
    };
    tokio::time::timeout(PATIENCE, good).await.expect("an item");
}

/// Which connection breaks.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Broken {
    Calls,
    Pages,
    WaitingWrites,
    Subscriptions,
}

impl Broken {
    /// Closes such connections at the server. The last command of each connection shows which connection it is.
    fn close(self, admin: &mut Connection) {
        let (kind, last) = match self {
            Self::Calls => ("normal", "cmd=time"),
            Self::Pages => ("normal", "cmd=hmget"),
            Self::WaitingWrites => ("normal", "cmd=wait"),
            Self::Subscriptions => ("pubsub", ""),
        };
        let clients: String = command(admin, ["CLIENT", "LIST", "TYPE", kind]);
        let ids: Vec<String> = clients.lines().filter(|line| line.contains(last)).map(id).collect();
        assert!(!ids.is_empty(), "the backend must have such a connection");
        for id in &ids {
            let _: i64 = command(admin, ["CLIENT", "KILL", "ID", id]);
        }
    }
}

/// Returns the ids of the connections of the backend to this server.
fn connections(admin: &mut Connection) -> BTreeSet<String> {
    let own: u64 = command(admin, ["CLIENT", "ID"]);
    let mut ids = BTreeSet::new();
    for kind in ["normal", "pubsub"] {
        let clients: String = command(admin, ["CLIENT", "LIST", "TYPE", kind]);
        ids.extend(clients.lines().map(id));
    }
    ids.remove(&own.to_string());
    ids
}

/// Returns the id in a line about a connection.
fn id(line: &str) -> String {
    line.split(' ').next().unwrap().trim_start_matches("id=").to_owned()
}

/// The old server still runs, and only one of the connections to it breaks.
#[rstest]
#[case::calls_breaks(Broken::Calls, 0)]
#[case::pages_breaks(Broken::Pages, 0)]
#[case::subscriptions_breaks(Broken::Subscriptions, 0)]
#[case::calls_breaks_and_writes_wait(Broken::Calls, 1)]
#[case::waiting_writes_breaks(Broken::WaitingWrites, 1)]
#[case::pages_breaks_and_writes_wait(Broken::Pages, 1)]
#[case::subscriptions_breaks_and_writes_wait(Broken::Subscriptions, 1)]
#[tokio::test(flavor = "multi_thread")]
async fn after_an_address_has_moved_every_connection_follows_once_the_one_for(
    #[case] broken: Broken,
    #[case] replicas: u32,
) {
    let ((old, _of_old), (new, _of_new)) = (servers(replicas), servers(replicas));
    create(&connect(&new.url(), 0).await, "new").await;
    create(&connect(&old.url(), 0).await, "old").await;
    let relay = Relay::start(old.port).await;
    let mut admin = old.connection();
    eventually(|| connections(&mut admin).is_empty());

    let backend = connect(&relay.url(), replicas).await;
    let t1 = key("alice", "t1");
    let mut watch = watch(&backend).await;
    // The last command of each connection shows which connection it is.
    backend.put(&t1, "old".into(), keep()).await.unwrap();
    Call::Part.run(&backend).await.unwrap();
    backend.clock(&t1).await.unwrap();

    relay.lead_to(new.port);
    broken.close(&mut admin);
    // The next use of the connection detects that it broke. The new connection leads to the new server.
    match broken {
        Broken::Calls => works(Call::Get, &backend).await,
        Broken::Pages => works(Call::Part, &backend).await,
        Broken::WaitingWrites => works(Call::Put, &backend).await,
        // An item may stand for an earlier change.
        Broken::Subscriptions => {
            while backend.get(&t1).await.unwrap().data == "old" {
                next(&mut watch).await;
            }
        }
    }
    leads_to_new(&backend, &t1, &mut watch, &new).await;
    assert_eq!(
        connect(&old.url(), 0).await.get(&t1).await.unwrap().data,
        "old",
        "the backend does not write there"
    );
}

/// Calls until one succeeds over a new connection.
async fn works(call: Call, backend: &RedisBackend) {
    let before = backend.generation();
    let works = async { while call.run(backend).await.is_err() || backend.generation() == before {} };
    tokio::time::timeout(PATIENCE, works).await.expect("a call succeeds again");
    // The call that detected the change may have received its reply over the old connection.
    call.run(backend).await.unwrap();
}

async fn leads_to_new(backend: &RedisBackend, t1: &TaskKey, watch: &mut Watch, new: &Server) {
    let read = backend.get(t1).await.unwrap();
    let part = backend.part(t1, &output()).await.unwrap().unwrap();
    let page = backend.list(&owner("alice"), PageRequest::new(1)).await.unwrap();
    assert_ne!(read.data, "old");
    assert_eq!(part.data, "new");
    assert_eq!(page.records[0].data, read.data);
    let direct = connect(&new.url(), 0).await;
    for data in ["by the other", "by the other again"] {
        direct.put(t1, data.into(), keep()).await.unwrap();
        // An item may stand for an earlier change.
        while backend.get(t1).await.unwrap().data != data {
            next(watch).await;
        }
        next(watch).await;
    }
    backend.put(t1, "by the backend".into(), keep()).await.unwrap();
    assert_eq!(direct.get(t1).await.unwrap().data, "by the backend");
}

#[rstest]
#[case::without_replicas(0)]
#[case::that_waits_for_replicas(1)]
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_was_given_up_before_it_was_sent_has_a_known_outcome(#[case] replicas: u32) {
    let (server, _replica) = servers(replicas);
    let relay = Relay::start(server.port).await;
    let backend = connect(&relay.url(), replicas).await;
    create(&backend, "old").await;
    relay.silence();
    // Writes are sent over the open connections until those are closed.
    let error = Call::Put.run(&backend).await.unwrap_err();
    assert!(error.outcome_unknown(), "the call was sent: {error:?}");
    assert_eq!(matches!(error, StorageError::TooFewReplicas { .. }), replicas > 0, "{error:?}");
    let _: i64 = command(&mut server.connection(), ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    // Until the backend has detected that they are closed.
    let found = async {
        loop {
            match Call::Put.run(&backend).await.unwrap_err() {
                error if error.outcome_unknown() => {}
                error => break error,
            }
        }
    };
    let error = tokio::time::timeout(PATIENCE, found).await.expect("a write is not sent");
    assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}");
    for _ in 0..3 {
        for call in [Call::Put, Call::Schedule] {
            let error = call.run(&backend).await.unwrap_err();
            assert!(!error.outcome_unknown(), "nothing was sent: {error:?}");
            assert!(!matches!(error, StorageError::TooFewReplicas { .. }), "{error:?}");
        }
    }
}

/// The pool has at most 32 connections for writes that wait for replicas. Puts without an expiry share no script.
#[tokio::test(flavor = "multi_thread")]
async fn the_outcome_of_a_write_that_got_no_connection_from_the_pool_is_known() {
    const WRITES: usize = 40;
    const CONNECTIONS: usize = 32;
    let (server, replica) = servers(1);
    let builder = RedisBackend::builder().response_timeout(LIMIT).connect_timeout(PATIENCE);
    let backend = builder.wait_for_replicas(1, LIMIT / 3).connect(&server.url()).await.unwrap();
    let put = |number: usize| {
        let backend = backend.clone();
        async move { backend.put(&key("alice", &number.to_string()), "data".into(), never()).await }
    };
    // Opens the connections.
    for written in futures_util::future::join_all((0..CONNECTIONS).map(put)).await {
        written.unwrap();
    }
    server.signal("STOP");
    let written = futures_util::future::join_all((0..WRITES).map(put)).await;
    server.signal("CONT");
    let errors: Vec<StorageError> = written.into_iter().map(Result::unwrap_err).collect();
    let unknown = errors.iter().filter(|error| error.outcome_unknown()).count();
    assert!(unknown <= CONNECTIONS, "{unknown}");
    assert!(unknown > 0);
    for error in errors.iter().filter(|error| !error.outcome_unknown()) {
        assert!(!matches!(error, StorageError::TooFewReplicas { .. }), "{error:?}");
    }
    drop(replica);
}
