//! What a caller sees of each way in which a server can fail: the table of docs/failures.md, one test a row.
//!
//! `FAULT_ROUNDS` sets how often each call is made while the fault lasts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use crate::support::cluster::{eventually, info};
use crate::support::fake::{Answer, Fake, greeting};
use crate::support::redis::{Server, command, connection, free_port};
use crate::support::{in_an_hour, keep, key, owner, page};
use futures_util::StreamExt;
use mcp_task_store::{
    Agenda, PageRequest, PartName, Queue, RedisBackend, StorageBackend, StorageError, Version,
};
use redis::{Connection, Value};
use rstest::rstest;
use tokio::net::{TcpListener, TcpStream};

/// The response timeout.
const LIMIT: Duration = Duration::from_millis(300);
/// What a call may take beyond it. A test asserts ten times as much.
const ALLOWANCE: Duration = Duration::from_millis(100);

/// One row of the table.
struct Row {
    server: &'static str,
    error: &'static str,
    retryable: bool,
    unknown: bool,
    /// Whether reads are served.
    reads: bool,
    afterwards: &'static str,
}

/// Calls are held up until their time is over.
const HELD_UP: Row = Row {
    server: "",
    error: "Unavailable",
    retryable: true,
    unknown: true,
    reads: false,
    afterwards: "the writes, once it goes on",
};
/// Nothing reaches the server, or nothing is let in.
const UNAVAILABLE: Row = Row { unknown: false, afterwards: "as before", ..HELD_UP };
const DENIED: Row = Row { error: "Denied", retryable: false, ..UNAVAILABLE };
/// What was sent gets no reply, or none that can be understood.
const UNANSWERED: Row = Row { afterwards: "the writes that reached it", ..HELD_UP };
const NOT_UNDERSTOOD: Row = Row { error: "Backend", retryable: false, ..UNANSWERED };

fn yes(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

impl Row {
    fn line(&self) -> String {
        let Self { server, error, retryable, unknown, reads, afterwards } = self;
        let (retryable, unknown, reads) = (yes(*retryable), yes(*unknown), yes(*reads));
        format!("| {server} | `{error}` | {retryable} | {unknown} | {reads} | {afterwards} |")
    }

    /// Writes and reads while the fault lasts.
    async fn holds(&self, backend: &RedisBackend) {
        let page = page("docs/failures.md");
        assert!(page.contains(&self.line()), "docs/failures.md lacks this row:\n{}", self.line());
        let mut times = Vec::new();
        for _ in 0..rounds() {
            let started = Instant::now();
            let error = backend.put(&key("alice", "t1"), "new".into(), keep()).await.unwrap_err();
            times.push(started.elapsed());
            self.is(&error);
            assert_eq!(error.outcome_unknown(), self.unknown, "{error:?}");
            let started = Instant::now();
            match backend.get(&key("alice", "t1")).await {
                Ok(_) => assert!(self.reads, "a read is served"),
                Err(error) => {
                    times.push(started.elapsed());
                    assert!(!self.reads, "{error:?}");
                    self.is(&error);
                    assert!(!error.outcome_unknown(), "{error:?}");
                    self.holds_for_parts_and_timers(backend).await;
                }
            }
        }
        times.sort();
        let (median, highest) = (times[times.len() / 2], times[(times.len() - 1) * 99 / 100]);
        println!("figure | the server {}: a call fails after, median | {median:.1?}", self.server);
        println!("figure | the server {}: a call fails after, 99th percentile | {highest:.1?}", self.server);
        assert!(times[times.len() - 1] < 10 * (LIMIT + ALLOWANCE), "{times:?}");
    }

    /// Where nothing is served, a part and a timer fail as a record does.
    async fn holds_for_parts_and_timers(&self, backend: &RedisBackend) {
        let (t1, part) = (key("alice", "t1"), PartName::from_static("output"));
        let leases = Queue::try_from("leases").unwrap();
        let error = backend.part(&t1, &part).await.unwrap_err();
        self.is(&error);
        assert!(!error.outcome_unknown(), "{error:?}");
        if self.unknown {
            // The writes that arrive are counted.
            return;
        }
        let put = backend.put(&t1, "new".into(), keep().set_part(part, "part")).await;
        let scheduled = backend.schedule(&leases, &t1, Duration::from_secs(3600)).await;
        let taken = backend.take_due(&[leases], 1, Duration::from_secs(60)).await;
        for error in [put.map(drop).unwrap_err(), scheduled.unwrap_err(), taken.unwrap_err()] {
            self.is(&error);
            assert!(!error.outcome_unknown(), "{error:?}");
        }
    }

    fn is(&self, error: &StorageError) {
        let variant = format!("{error:?}");
        assert!(variant.starts_with(self.error), "{error:?}");
        assert_eq!(error.is_retryable(), self.retryable, "{error:?}");
    }
}

fn rounds() -> usize {
    std::env::var("FAULT_ROUNDS").map_or(3, |rounds| rounds.parse().unwrap())
}

async fn connect(url: &str) -> RedisBackend {
    RedisBackend::builder().response_timeout(LIMIT).connect(url).await.unwrap()
}

/// A server with the record `t1` of alice, which a fault is about to strike.
async fn prepared(settings: &[&str]) -> (Server, RedisBackend, Connection) {
    prepared_within(LIMIT, settings).await
}

async fn prepared_within(limit: Duration, settings: &[&str]) -> (Server, RedisBackend, Connection) {
    let server = Server::start(settings);
    let backend = RedisBackend::builder().response_timeout(limit).connect(&server.url()).await.unwrap();
    backend.put(&key("alice", "t1"), "old".into(), in_an_hour()).await.unwrap();
    let admin = server.connection();
    (server, backend, admin)
}

/// The record is as it was before the fault, and a write works.
async fn is_as_before(backend: &RedisBackend) {
    let record = record(backend).await;
    assert_eq!((record.data, record.version), ("old".into(), Version::FIRST));
    let written = backend.put(&key("alice", "t1"), "new".into(), keep()).await.unwrap();
    assert_eq!(written.version, Version::from(2));
}

/// The record, when it can be read again.
async fn record(backend: &RedisBackend) -> mcp_task_store::Record {
    loop {
        match backend.get(&key("alice", "t1")).await {
            Ok(record) => return record,
            Err(error) => assert!(error.is_retryable(), "{error:?}"),
        }
    }
}

/// Each write of a row was applied once, after the fault: none was lost, and none sent again.
async fn has_all_writes(backend: &RedisBackend, admin: &mut Connection) {
    let sent = writes(admin);
    eventually(|| writes(admin) == sent);
    // One put before the fault, and those that it held up.
    assert_eq!(record(backend).await.version, Version::from(sent));
    assert!(sent > 1);
    assert_eq!(record(backend).await.data, "new");
}

/// How many times records were written, each by one command of a script. One more was the trial at the start.
fn writes(admin: &mut Connection) -> u64 {
    let stats = info(admin, "commandstats");
    let line = stats.lines().find(|line| line.starts_with("cmdstat_hset:")).unwrap();
    line.split(['=', ',']).nth(1).unwrap().parse::<u64>().unwrap() - 1
}

fn set(admin: &mut Connection, name: &str, value: &str) {
    let _: () = command(admin, ["CONFIG", "SET", name, value]);
}

/// Closes the backend's connections, and waits until it must have noticed.
async fn disconnect(backend: &RedisBackend, admin: &mut Connection) {
    let _: Value = command(admin, ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    // A read, as its outcome is never unknown.
    let _ = backend.get(&key("alice", "t1")).await;
}

#[tokio::test]
async fn a_server_that_is_down() {
    let mut server = Server::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let backend = connect(&server.url()).await;
    backend.put(&key("alice", "t1"), "old".into(), in_an_hour()).await.unwrap();
    server.kill();
    // The connection broke while no call was under way.
    let _ = backend.get(&key("alice", "t1")).await;
    let row = Row { server: "is down, and nobody listens", ..UNAVAILABLE };
    row.holds(&backend).await;
    server.start_again();
    record(&backend).await;
    is_as_before(&backend).await;
}

#[tokio::test]
async fn a_server_that_hangs() {
    let (server, backend, mut admin) = prepared(&[]).await;
    server.signal("STOP");
    let row = Row { server: "hangs (`SIGSTOP`)", ..HELD_UP };
    row.holds(&backend).await;
    server.signal("CONT");
    has_all_writes(&backend, &mut admin).await;
}

#[tokio::test]
async fn a_server_that_is_paused() {
    let (_server, backend, mut admin) = prepared(&[]).await;
    // Longer than all calls of the row take.
    let millis = (LIMIT * (3 * rounds() as u32 + 2)).as_millis().to_string();
    let _: () = command(&mut admin, ["CLIENT", "PAUSE", &millis]);
    let row = Row { server: "is slow (`CLIENT PAUSE`)", ..HELD_UP };
    row.holds(&backend).await;
    has_all_writes(&backend, &mut admin).await;
}

#[tokio::test]
async fn a_server_that_sleeps() {
    // From 7.0 on the command is locked unless it is asked for.
    let unlocked = ["--enable-debug-command", "yes"];
    let server = (0..5).find_map(|_| Server::start_at(free_port(), &unlocked, &[]));
    let server = server.unwrap_or_else(|| Server::start(&[]));
    let backend = connect(&server.url()).await;
    backend.put(&key("alice", "t1"), "old".into(), in_an_hour()).await.unwrap();
    let mut admin = server.connection();
    let seconds = (LIMIT * (3 * rounds() as u32 + 2)).as_secs_f64().to_string();
    let asleep = std::thread::spawn({
        let mut admin = server.connection();
        move || command::<()>(&mut admin, ["DEBUG", "SLEEP", &seconds])
    });
    while backend.get(&key("alice", "t1")).await.is_ok() {}
    let row = Row { server: "is slow (`DEBUG SLEEP`)", ..HELD_UP };
    row.holds(&backend).await;
    asleep.join().unwrap();
    has_all_writes(&backend, &mut admin).await;
}

#[tokio::test]
async fn a_server_without_a_connection_to_spare() {
    let (_server, backend, mut admin) = prepared(&[]).await;
    set(&mut admin, "maxclients", "1");
    disconnect(&backend, &mut admin).await;
    let row = Row { server: "takes no more connections (`maxclients`)", ..UNAVAILABLE };
    row.holds(&backend).await;
    set(&mut admin, "maxclients", "100");
    is_as_before(&backend).await;
}

#[tokio::test]
async fn a_server_that_is_out_of_memory() {
    let (_server, backend, mut admin) = prepared(&[]).await;
    set(&mut admin, "maxmemory", "1");
    let row = Row {
        server: "is out of memory (`noeviction`)",
        error: "CapacityExceeded",
        reads: true,
        afterwards: "as before; `delete` works",
        ..UNAVAILABLE
    };
    row.holds(&backend).await;
    backend.put(&key("alice", "t2"), "new".into(), in_an_hour()).await.unwrap_err();
    assert!(!backend.delete(&key("alice", "t2")).await.unwrap());
    set(&mut admin, "maxmemory", "0");
    is_as_before(&backend).await;
}

#[tokio::test]
async fn a_server_that_evicts() {
    let page = page("docs/failures.md");
    let row = "| evicts (`allkeys-lru`) | none | | | yes, `NotFound` for what is evicted | \
        less; index members of evicted records go with the next page |";
    assert!(page.contains(row), "{row}");
    let (_server, backend, mut admin) = prepared(&["--maxmemory-policy", "allkeys-lru"]).await;
    const RECORDS: usize = 400;
    let data = bytes::Bytes::from(vec![b'x'; 4096]);
    for task in 0..RECORDS {
        backend.put(&key("alice", &task.to_string()), data.clone(), in_an_hour()).await.unwrap();
    }
    let used: u64 = {
        let memory = info(&mut admin, "memory");
        let line = memory.lines().find(|line| line.starts_with("used_memory:")).unwrap();
        line.split(':').nth(1).unwrap().trim().parse().unwrap()
    };
    set(&mut admin, "maxmemory", &(used - 800_000).to_string());
    // A write lets the server evict, and works: only this one record is promised with such a policy.
    let fresh = backend.put(&key("bob", "t1"), "data".into(), in_an_hour()).await.unwrap();
    assert_eq!(backend.get(&key("bob", "t1")).await.unwrap().version, fresh.version);
    let mut evicted = 0;
    for task in 0..RECORDS {
        match backend.get(&key("alice", &task.to_string())).await {
            Ok(record) => assert_eq!(record.data, data),
            Err(StorageError::NotFound { .. }) => evicted += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(evicted > 0);
    set(&mut admin, "maxmemory", "0");
    // The index heals, page by page, whether or not the server took it too.
    let mut listed = 0;
    let mut request = PageRequest::new(256);
    loop {
        let page = backend.list(&owner("alice"), request.clone()).await.unwrap();
        listed += page.records.len();
        match page.next {
            Some(next) => request = PageRequest::new(256).after(next),
            None => break,
        }
    }
    let (hashes, members): (Vec<String>, u64) = (
        command(&mut admin, ["KEYS", "pmcp:tasks:alice:*"]),
        command(&mut admin, ["ZCARD", "pmcp:idx:alice"]),
    );
    assert_eq!(members, 2 * listed as u64, "no member without a record is left");
    assert!(listed == hashes.len() || listed == 0, "{listed} of {}", hashes.len());
}

#[tokio::test]
async fn a_server_that_cannot_save() {
    let (server, backend, mut admin) = prepared(&["--save", "3600 1"]).await;
    // Stands in the way of the file.
    let obstacle = server.folder().join("dump.rdb");
    std::fs::create_dir(&obstacle).unwrap();
    let _: Value = command(&mut admin, ["BGSAVE"]);
    eventually(|| info(&mut admin, "persistence").contains("rdb_last_bgsave_status:err"));
    let row = Row { server: "cannot save its data (`MISCONF`)", reads: true, ..UNAVAILABLE };
    row.holds(&backend).await;
    std::fs::remove_dir(&obstacle).unwrap();
    let _: Value = command(&mut admin, ["BGSAVE"]);
    eventually(|| info(&mut admin, "persistence").contains("rdb_last_bgsave_status:ok"));
    is_as_before(&backend).await;
}

#[tokio::test]
async fn a_server_that_loads_its_data() {
    // While it loads, it looks at its connections only now and then. A call needs several looks, which are rare on a busy
    // machine.
    let limit = Duration::from_secs(2);
    let (mut server, backend, mut admin) =
        prepared_within(limit, &["--loading-process-events-interval-bytes", "1024"]).await;
    let fill = "for i = 1, 20000 do redis.call('SET', 'fill:' .. i, string.rep('x', 100)) end return 0";
    let _: i64 = command(&mut admin, ["EVAL", fill, "0"]);
    let _: () = command(&mut admin, ["SAVE"]);
    server.kill();
    // Microseconds for each key, until it is told otherwise.
    server.launch_again_with(&["--key-load-delay", "1000"]);
    eventually(|| {
        let client = redis::Client::open(server.url()).unwrap();
        let connection = client.get_connection().ok();
        connection.is_some_and(|mut connection| info(&mut connection, "persistence").contains("loading:1"))
    });
    while !matches!(backend.get(&key("alice", "t1")).await, Err(error) if error.to_string().contains("loading"))
    {
    }
    let row = Row { server: "loads its data at start (`LOADING`)", ..UNAVAILABLE };
    row.holds(&backend).await;
    server.kill();
    server.start_again();
    is_as_before(&backend).await;
}

#[tokio::test]
async fn a_server_that_becomes_a_replica() {
    let master = Server::start(&[]);
    let (_server, backend, mut admin) = prepared(&[]).await;
    let _: () = command(&mut admin, ["REPLICAOF", "127.0.0.1", &master.port.to_string()]);
    eventually(|| info(&mut admin, "replication").contains("master_link_status:up"));
    // It has the data of its master now.
    connect(&master.url()).await.put(&key("alice", "t1"), "old".into(), in_an_hour()).await.unwrap();
    eventually(|| info(&mut admin, "keyspace").contains("keys=2"));
    let row = Row { server: "is a read-only replica", reads: true, ..UNAVAILABLE };
    row.holds(&backend).await;
    let _: () = command(&mut admin, ["REPLICAOF", "NO", "ONE"]);
    is_as_before(&backend).await;
}

#[tokio::test]
async fn a_server_whose_password_was_changed() {
    let (_server, backend, mut admin) = prepared(&[]).await;
    set(&mut admin, "requirepass", "another");
    disconnect(&backend, &mut admin).await;
    let row = Row { server: "no longer accepts the password", ..DENIED };
    row.holds(&backend).await;
    // The same backend works again when the password is right again.
    set(&mut admin, "requirepass", "");
    while backend.get(&key("alice", "t1")).await.is_err() {}
    is_as_before(&backend).await;
}

#[tokio::test]
async fn a_user_that_has_lost_a_permission() {
    let (_server, backend, mut admin) = prepared(&[]).await;
    let _: () = command(&mut admin, ["ACL", "SETUSER", "default", "-hset"]);
    let row = Row { server: "has taken a permission away", reads: true, ..DENIED };
    row.holds(&backend).await;
    let _: () = command(&mut admin, ["ACL", "SETUSER", "default", "+hset"]);
    is_as_before(&backend).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_closes_idle_connections() {
    let page = page("docs/failures.md");
    let row = "| closes idle connections (`timeout`) | none | | | yes | the write |";
    assert!(page.contains(row), "{row}");
    let (_server, backend, mut admin) = prepared(&[]).await;
    let ids = |admin: &mut Connection| -> Vec<String> {
        let clients: String = command(admin, ["CLIENT", "LIST", "TYPE", "normal"]);
        clients.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect()
    };
    let before = ids(&mut admin);
    set(&mut admin, "timeout", "1");
    // The backend's connection is closed, and made anew before anybody needs it.
    eventually(|| ids(&mut admin).iter().any(|id| !before.contains(id)));
    set(&mut admin, "timeout", "0");
    is_as_before(&backend).await;
}

/// A row about a server that only pretends to be one.
async fn pretended(row: Row, answer: Answer) {
    let fake = Fake::start(move |_, words| match &*words[0].to_ascii_uppercase() {
        "EVAL" | "HMGET" => answer.clone(),
        _ => greeting(words),
    });
    let fake = fake.await;
    row.holds(&connect(&fake.url()).await).await;
    assert_eq!(fake.received("EVAL").len(), rounds(), "each write was sent once");
}

#[tokio::test]
async fn a_server_that_resets_the_connection_in_the_middle_of_a_reply() {
    let row = Row { server: "resets the connection in the middle of a reply", ..UNANSWERED };
    pretended(row, Answer::BytesAndReset(b"$33\r\n17950".to_vec())).await;
}

#[tokio::test]
async fn a_server_that_answers_with_garbage() {
    let row = Row { server: "answers with garbage", ..NOT_UNDERSTOOD };
    pretended(row, Answer::Bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())).await;
}

#[tokio::test]
async fn a_server_that_answers_with_another_reply() {
    let row = Row { server: "answers with a reply of another form", ..NOT_UNDERSTOOD };
    pretended(row, Answer::Bytes(b"+QUEUED\r\n".to_vec())).await;
}

/// Not a row, but the promise behind the first of them.
#[tokio::test(flavor = "multi_thread")]
async fn attempts_to_reconnect_are_at_most_250_ms_apart() {
    const CAP: Duration = Duration::from_millis(250);
    let attempts = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    // After the first script, the server accepts no connection.
    let log = std::sync::Arc::clone(&attempts);
    let is_closed = std::sync::atomic::AtomicBool::new(false);
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
    println!("figure | a server that lets nobody in: between two attempts, median | {median:.1?}");
    println!("figure | a server that lets nobody in: between two attempts, 99th percentile | {highest:.1?}");
    assert!(apart[apart.len() - 1] < 10 * CAP, "{apart:?}");
    assert!(median > Duration::from_millis(25), "they are not without a pause either: {apart:?}");
}

/// The name of a master may lead to another server by now.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_turned_out_to_be_a_replica_is_connected_to_anew() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    // Until another connection was made than there were at the first script.
    let (connections, at_first) = (AtomicUsize::new(0), std::sync::OnceLock::new());
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

/// A connection that says by itself that it was closed is not given to a call, however short it lived.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_closed_soon_after_it_was_made_fails_no_call() {
    let server = Server::start(&[]);
    let backend = connect(&server.url()).await;
    backend.put(&key("alice", "t1"), "data".into(), keep()).await.unwrap();
    for _ in 0..5 {
        let _: i64 = command(&mut server.connection(), ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        // Nothing shows from outside that the other end has noticed.
        tokio::time::sleep(Duration::from_millis(200)).await;
        backend.get(&key("alice", "t1")).await.unwrap();
    }
}

/// Otherwise a server that lets nobody stay would be connected to for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_did_not_live_long_is_made_anew_by_the_next_call_only() {
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
            continue; // It has lived long, on a machine that is busy.
        }
        // Time for several, if anything but a call made them.
        tokio::time::sleep(LIMIT).await;
        assert_eq!(connections(&mut admin), before);
        is_as_before(&backend).await;
        break;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_could_not_be_connected_goes_on_trying_for_nobody() {
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

/// A port that leads each new connection to the server that a name in the DNS stands for at that time.
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

/// A managed server fails over by its name in the DNS, and the old master may keep its connections.
#[rstest]
#[case::no_replicas(0)]
#[case::writes_that_wait_for_replicas(1)]
#[tokio::test]
async fn once_a_write_has_found_a_replica_no_read_goes_there_any_more(#[case] replicas: u32) {
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
    // The old master applies it, whether or not it has replicas.
    let written = backend.put(&t1, "old".into(), keep()).await;
    assert_eq!(written.is_ok(), replicas == 0);
    assert_eq!(backend.get(&t1).await.unwrap().data, "old");
    assert_eq!(backend.part(&t1, &part).await.unwrap().unwrap().data, "old");
    let mut watch = backend.watch(&t1);
    watch.next().await.unwrap().unwrap();
    target.store(new.port, Ordering::SeqCst);
    // Its master cannot be reached, so what it has stays what it was.
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
