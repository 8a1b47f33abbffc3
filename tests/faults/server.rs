//! What a caller sees when a server fails: the table of docs/failures.md, with one test for each row.
//!
//! `FAULT_ROUNDS` sets how many times each call is made while the fault lasts.

mod reconnects;

use std::time::{Duration, Instant};

use crate::support::cluster::{eventually, info};
use crate::support::fake::{Answer, Fake, greeting};
use crate::support::redis::{Server, command, free_port};
use crate::support::{in_an_hour, keep, key, owner, page};
use mcp_task_store::{
    Agenda, PageRequest, PartName, Queue, RedisBackend, StorageBackend, StorageError, Version,
};
use redis::{Connection, Value};

/// The response timeout.
const LIMIT: Duration = Duration::from_millis(300);
/// How much longer a call may take. The tests allow ten times as much.
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

/// The server does not handle calls within their time limit.
const NOT_HANDLED: Row = Row {
    server: "",
    error: "Unavailable",
    retryable: true,
    unknown: true,
    reads: false,
    afterwards: "the writes, once the server continues",
};
/// The server receives no call, or accepts none.
const UNAVAILABLE: Row = Row { unknown: false, afterwards: "as before", ..NOT_HANDLED };
const DENIED: Row = Row { error: "Denied", retryable: false, ..UNAVAILABLE };
/// A call that was sent gets no reply, or an unreadable one.
const UNANSWERED: Row = Row { afterwards: "the writes that reached it", ..NOT_HANDLED };
const UNREADABLE: Row = Row { error: "Backend", retryable: false, ..UNANSWERED };

fn yes_or_no(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}

impl Row {
    fn line(&self) -> String {
        let Self { server, error, retryable, unknown, reads, afterwards } = self;
        let (retryable, unknown, reads) = (yes_or_no(*retryable), yes_or_no(*unknown), yes_or_no(*reads));
        format!("| {server} | `{error}` | {retryable} | {unknown} | {reads} | {afterwards} |")
    }

    /// Writes and reads while the fault lasts, and compares the errors with the row.
    async fn check(&self, backend: &RedisBackend) {
        let page = page("docs/failures.md");
        assert!(page.contains(&self.line()), "docs/failures.md lacks this row:\n{}", self.line());
        let mut times = Vec::new();
        for _ in 0..rounds() {
            let started = Instant::now();
            let error = backend.put(&key("alice", "t1"), "new".into(), keep()).await.unwrap_err();
            times.push(started.elapsed());
            self.check_error(&error);
            assert_eq!(error.outcome_unknown(), self.unknown, "{error:?}");
            let started = Instant::now();
            match backend.get(&key("alice", "t1")).await {
                Ok(_) => assert!(self.reads, "a read is served"),
                Err(error) => {
                    times.push(started.elapsed());
                    assert!(!self.reads, "{error:?}");
                    self.check_error(&error);
                    assert!(!error.outcome_unknown(), "{error:?}");
                    self.check_parts_and_timers(backend).await;
                }
            }
        }
        times.sort();
        let (median, highest) = (times[times.len() / 2], times[(times.len() - 1) * 99 / 100]);
        println!("figure | the server {}: a call fails after, median | {median:.1?}", self.server);
        println!("figure | the server {}: a call fails after, 99th percentile | {highest:.1?}", self.server);
        assert!(times[times.len() - 1] < 10 * (LIMIT + ALLOWANCE), "{times:?}");
    }

    /// If the server serves no reads, calls for parts and timers fail like calls for records.
    async fn check_parts_and_timers(&self, backend: &RedisBackend) {
        let (t1, part) = (key("alice", "t1"), PartName::from_static("output"));
        let leases = Queue::try_from("leases").unwrap();
        let error = backend.part(&t1, &part).await.unwrap_err();
        self.check_error(&error);
        assert!(!error.outcome_unknown(), "{error:?}");
        if self.unknown {
            // The test counts the writes that arrive later.
            return;
        }
        let put = backend.put(&t1, "new".into(), keep().set_part(part, "part")).await;
        let scheduled = backend.schedule(&leases, &t1, Duration::from_secs(3600)).await;
        let taken = backend.take_due(&[leases], 1, Duration::from_secs(60)).await;
        for error in [put.map(drop).unwrap_err(), scheduled.unwrap_err(), taken.unwrap_err()] {
            self.check_error(&error);
            assert!(!error.outcome_unknown(), "{error:?}");
        }
    }

    fn check_error(&self, error: &StorageError) {
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

/// Starts a server and writes the record `t1` of alice, before a fault happens.
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

/// Asserts that the fault did not change the record, and that a write works.
async fn assert_as_before(backend: &RedisBackend) {
    let record = record(backend).await;
    assert_eq!((record.data, record.version), ("old".into(), Version::FIRST));
    let written = backend.put(&key("alice", "t1"), "new".into(), keep()).await.unwrap();
    assert_eq!(written.version, Version::from(2));
}

/// Reads the record as soon as reads succeed again.
async fn record(backend: &RedisBackend) -> mcp_task_store::Record {
    loop {
        match backend.get(&key("alice", "t1")).await {
            Ok(record) => return record,
            Err(error) => assert!(error.is_retryable(), "{error:?}"),
        }
    }
}

/// Asserts that each write of a row was applied exactly once after the fault.
async fn assert_all_writes_applied(backend: &RedisBackend, admin: &mut Connection) {
    let sent = writes(admin);
    eventually(|| writes(admin) == sent);
    // One put came before the fault. The others waited until the fault ended.
    assert_eq!(record(backend).await.version, Version::from(sent));
    assert!(sent > 1);
    assert_eq!(record(backend).await.data, "new");
}

/// Returns how many times records were written. Each write is one command of a script, and the probe at the start was
/// one more.
fn writes(admin: &mut Connection) -> u64 {
    let stats = info(admin, "commandstats");
    let line = stats.lines().find(|line| line.starts_with("cmdstat_hset:")).unwrap();
    line.split(['=', ',']).nth(1).unwrap().parse::<u64>().unwrap() - 1
}

fn set(admin: &mut Connection, name: &str, value: &str) {
    let _: () = command(admin, ["CONFIG", "SET", name, value]);
}

/// Closes the backend's connections, and waits until the backend has detected it.
async fn disconnect(backend: &RedisBackend, admin: &mut Connection) {
    let _: Value = command(admin, ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    // A read, because its outcome is never unknown.
    let _ = backend.get(&key("alice", "t1")).await;
}

#[tokio::test]
async fn errors_are_as_documented_for_a_server_that_is_down() {
    let mut server = Server::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let backend = connect(&server.url()).await;
    backend.put(&key("alice", "t1"), "old".into(), in_an_hour()).await.unwrap();
    server.kill();
    // The connection broke while no call was under way.
    let _ = backend.get(&key("alice", "t1")).await;
    let row = Row { server: "is down: no process listens at the port", ..UNAVAILABLE };
    row.check(&backend).await;
    server.start_again();
    record(&backend).await;
    assert_as_before(&backend).await;
}

#[tokio::test]
async fn errors_are_as_documented_for_a_server_that_hangs() {
    let (server, backend, mut admin) = prepared(&[]).await;
    server.signal("STOP");
    let row = Row { server: "hangs (`SIGSTOP`)", ..NOT_HANDLED };
    row.check(&backend).await;
    server.signal("CONT");
    assert_all_writes_applied(&backend, &mut admin).await;
}

#[tokio::test]
async fn errors_are_as_documented_for_a_server_that_is_paused() {
    let (_server, backend, mut admin) = prepared(&[]).await;
    // The pause is longer than all calls of the row together.
    let millis = (LIMIT * (3 * rounds() as u32 + 2)).as_millis().to_string();
    let _: () = command(&mut admin, ["CLIENT", "PAUSE", &millis]);
    let row = Row { server: "is slow (`CLIENT PAUSE`)", ..NOT_HANDLED };
    row.check(&backend).await;
    assert_all_writes_applied(&backend, &mut admin).await;
}

#[tokio::test]
async fn errors_are_as_documented_for_a_server_that_sleeps() {
    // Redis 7.0 and later lock the command unless this setting unlocks it.
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
    let row = Row { server: "is slow (`DEBUG SLEEP`)", ..NOT_HANDLED };
    row.check(&backend).await;
    asleep.join().unwrap();
    assert_all_writes_applied(&backend, &mut admin).await;
}

#[tokio::test]
async fn errors_are_as_documented_for_a_server_without_a_connection_to_spare() {
    let (_server, backend, mut admin) = prepared(&[]).await;
    set(&mut admin, "maxclients", "1");
    disconnect(&backend, &mut admin).await;
    let row = Row { server: "takes no more connections (`maxclients`)", ..UNAVAILABLE };
    row.check(&backend).await;
    set(&mut admin, "maxclients", "100");
    assert_as_before(&backend).await;
}

#[tokio::test]
async fn errors_are_as_documented_for_a_server_that_is_out_of_memory() {
    let (_server, backend, mut admin) = prepared(&[]).await;
    set(&mut admin, "maxmemory", "1");
    let row = Row {
        server: "is out of memory (`noeviction`)",
        error: "CapacityExceeded",
        reads: true,
        afterwards: "as before; `delete` works",
        ..UNAVAILABLE
    };
    row.check(&backend).await;
    backend.put(&key("alice", "t2"), "new".into(), in_an_hour()).await.unwrap_err();
    assert!(!backend.delete(&key("alice", "t2")).await.unwrap());
    set(&mut admin, "maxmemory", "0");
    assert_as_before(&backend).await;
}

#[tokio::test]
async fn errors_are_as_documented_for_a_server_that_evicts() {
    let page = page("docs/failures.md");
    let row = "| evicts (`allkeys-lru`) | none | | | yes, `NotFound` for what is evicted | \
        the records that the server kept; the next page removes the index members of the others |";
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
    // A write makes the server evict, and succeeds. With this policy, only the record of that write is certain to
    // exist.
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
    // Each page removes index members without a record. The server may have evicted the index too.
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
async fn errors_are_as_documented_for_a_server_that_cannot_save() {
    let (server, backend, mut admin) = prepared(&["--save", "3600 1"]).await;
    // A folder where the server writes its snapshot.
    let obstacle = server.folder().join("dump.rdb");
    std::fs::create_dir(&obstacle).unwrap();
    let _: Value = command(&mut admin, ["BGSAVE"]);
    eventually(|| info(&mut admin, "persistence").contains("rdb_last_bgsave_status:err"));
    let row = Row { server: "cannot save its data (`MISCONF`)", reads: true, ..UNAVAILABLE };
    row.check(&backend).await;
    std::fs::remove_dir(&obstacle).unwrap();
    let _: Value = command(&mut admin, ["BGSAVE"]);
    eventually(|| info(&mut admin, "persistence").contains("rdb_last_bgsave_status:ok"));
    assert_as_before(&backend).await;
}

#[tokio::test]
async fn errors_are_as_documented_for_a_server_that_loads_its_data() {
    // A server that loads serves its connections only from time to time, and less often on a busy machine. A call needs that
    // several times.
    let limit = Duration::from_secs(2);
    let (mut server, backend, mut admin) =
        prepared_within(limit, &["--loading-process-events-interval-bytes", "1024"]).await;
    let fill = "for i = 1, 20000 do redis.call('SET', 'fill:' .. i, string.rep('x', 100)) end return 0";
    let _: i64 = command(&mut admin, ["EVAL", fill, "0"]);
    let _: () = command(&mut admin, ["SAVE"]);
    server.kill();
    // Microseconds for each key.
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
    row.check(&backend).await;
    server.kill();
    server.start_again();
    assert_as_before(&backend).await;
}

#[tokio::test]
async fn errors_are_as_documented_for_a_server_that_becomes_a_replica() {
    let master = Server::start(&[]);
    let (_server, backend, mut admin) = prepared(&[]).await;
    let _: () = command(&mut admin, ["REPLICAOF", "127.0.0.1", &master.port.to_string()]);
    eventually(|| info(&mut admin, "replication").contains("master_link_status:up"));
    // The replica has the data of its master now.
    connect(&master.url()).await.put(&key("alice", "t1"), "old".into(), in_an_hour()).await.unwrap();
    eventually(|| info(&mut admin, "keyspace").contains("keys=2"));
    let row = Row { server: "is a read-only replica", reads: true, ..UNAVAILABLE };
    row.check(&backend).await;
    let _: () = command(&mut admin, ["REPLICAOF", "NO", "ONE"]);
    assert_as_before(&backend).await;
}

#[tokio::test]
async fn errors_are_as_documented_for_a_server_whose_password_was_changed() {
    let (_server, backend, mut admin) = prepared(&[]).await;
    set(&mut admin, "requirepass", "another");
    disconnect(&backend, &mut admin).await;
    let row = Row { server: "no longer accepts the password", ..DENIED };
    row.check(&backend).await;
    // The same backend works again once its password is right.
    set(&mut admin, "requirepass", "");
    while backend.get(&key("alice", "t1")).await.is_err() {}
    assert_as_before(&backend).await;
}

#[tokio::test]
async fn errors_are_as_documented_for_a_user_that_has_lost_a_permission() {
    let (_server, backend, mut admin) = prepared(&[]).await;
    let _: () = command(&mut admin, ["ACL", "SETUSER", "default", "-hset"]);
    let row = Row { server: "has taken a permission away", reads: true, ..DENIED };
    row.check(&backend).await;
    let _: () = command(&mut admin, ["ACL", "SETUSER", "default", "+hset"]);
    assert_as_before(&backend).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_as_documented_for_a_server_that_closes_idle_connections() {
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
    // The server closes the backend's connection, and the backend reconnects before a call needs it.
    eventually(|| ids(&mut admin).iter().any(|id| !before.contains(id)));
    set(&mut admin, "timeout", "0");
    assert_as_before(&backend).await;
}

/// Checks a row against a fake server that replies to scripts and reads with this answer.
async fn check_against_fake(row: Row, answer: Answer) {
    let fake = Fake::start(move |_, words| match &*words[0].to_ascii_uppercase() {
        "EVAL" | "HMGET" => answer.clone(),
        _ => greeting(words),
    });
    let fake = fake.await;
    row.check(&connect(&fake.url()).await).await;
    assert_eq!(fake.received("EVAL").len(), rounds(), "each write was sent once");
}

#[tokio::test]
async fn errors_are_as_documented_for_a_server_that_resets_the_connection_in_the_middle_of_a_reply() {
    let row = Row { server: "resets the connection in the middle of a reply", ..UNANSWERED };
    check_against_fake(row, Answer::BytesAndReset(b"$33\r\n17950".to_vec())).await;
}

#[tokio::test]
async fn errors_are_as_documented_for_a_server_that_answers_with_garbage() {
    let row = Row { server: "answers with garbage", ..UNREADABLE };
    check_against_fake(row, Answer::Bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())).await;
}

#[tokio::test]
async fn errors_are_as_documented_for_a_server_that_answers_with_another_reply() {
    let row = Row { server: "answers with a reply of another form", ..UNREADABLE };
    check_against_fake(row, Answer::Bytes(b"+QUEUED\r\n".to_vec())).await;
}
