//! The server's clock alone counts: a process whose wall clock is wrong, or jumps, does as the others do, and
//! after a failover the backend follows the clock of the new server.
//!
//! The wrong clocks are Debian's `faketime`.

mod leases;
mod other;
mod process;

use std::time::{Duration, Instant};

use crate::support::clock::{libraries, set_clock};
use crate::support::redis::{Server, command};
use crate::support::sentinel::{MASTER, Watched};
use crate::support::{after_ms, in_an_hour, key, owner};
use chrono::{DateTime, TimeDelta, Utc};
use mcp_task_store::{
    Agenda, Expiry, NewTask, Next, PageRequest, Queue, RedisBackend, StorageBackend, StorageError,
    StoreConfig, TaskError, TaskKey, TaskStatus, TaskStore, Version,
};
use other::Other;
use process::{Call, Clocks, Process, moment};
use rstest::rstest;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::block_in_place;

const HOUR_MS: u64 = 3_600_000;
/// Long enough that a busy machine sees the record before it goes.
const SOON_MS: u64 = 700;
/// How far `now()` may lag behind the server: ten times the second that is promised.
const MOST_LAG: TimeDelta = TimeDelta::seconds(10);

fn figure(what: &str, value: TimeDelta) {
    println!("figure | {what} | {:.3} ms", value.as_seconds_f64() * 1000.0);
}

fn time_of(server: &Server) -> DateTime<Utc> {
    let (seconds, micros) = command(&mut server.connection(), ["TIME"]);
    moment(seconds, micros)
}

// Two processes

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "is the other process of the tests in this file"]
async fn the_other_process() {
    other::serve().await;
}

/// This process, whose clock is right, and another one.
struct Pair {
    server: Server,
    own: Process,
    other: Other,
    /// When the other's clocks were looked at before, and what they said.
    checked: Option<(Instant, Clocks)>,
}

impl Pair {
    async fn start(offset: &str) -> Self {
        let server = Server::start(&[]);
        let own = Process::start(&server.url()).await;
        let other = Other::start(&server.url(), offset);
        Self { server, own, other, checked: None }
    }

    /// Lets both make a call at once.
    async fn both(&mut self, call: Call) -> [Value; 2] {
        self.other.send(&call);
        let own = self.own.perform(call).await;
        [own, self.other.reply()]
    }

    /// Lets both make a call, and asserts that they see the same.
    async fn alike(&mut self, call: Call) -> Value {
        let [own, theirs] = self.both(call.clone()).await;
        assert_eq!(own, theirs, "{call:?}");
        own
    }

    /// Lets one of them make a call.
    async fn one(&mut self, other: bool, call: Call) -> Value {
        if other {
            self.other.send(&call);
            self.other.reply()
        } else {
            self.own.perform(call).await
        }
    }

    fn server_time(&self) -> DateTime<Utc> {
        time_of(&self.server)
    }

    /// Asserts that the other's wall clock is wrong by so much and its monotonic clock has gone right since it
    /// was checked before, as all else would prove nothing without; and that `now()` is right in both.
    async fn check_clocks(&mut self, wrong_by: TimeDelta) {
        let started = Instant::now();
        let [own, theirs] = self.both(Call::Clocks).await;
        let [own, theirs]: [Clocks; 2] = [own, theirs].map(|clocks| serde_json::from_value(clocks).unwrap());
        let apart = TimeDelta::microseconds(theirs.wall_us - own.wall_us) - wrong_by;
        assert!(apart.abs() < TimeDelta::minutes(1), "{apart}");
        if let Some((since, before)) = self.checked.replace((started, theirs)) {
            let (passed, most) = (theirs.monotonic - before.monotonic, since.elapsed());
            assert!(passed <= most, "the monotonic clock has jumped too: {passed:?} in {most:?}");
        }
        for (whose, clocks) in [("a right", own), ("a wrong", theirs)] {
            let lag = TimeDelta::microseconds(clocks.lag_us);
            figure(&format!("most that now() lags behind the server, with {whose} wall clock"), lag);
            assert!(lag < MOST_LAG, "{whose}: {lag}");
        }
    }
}

fn time(value: &Value) -> DateTime<Utc> {
    match value {
        Value::String(in_a_task) => in_a_task.parse().unwrap(),
        micros => DateTime::from_timestamp_micros(micros.as_i64().unwrap()).unwrap(),
    }
}

fn names(page: &Value) -> Vec<&str> {
    page.as_array().unwrap().iter().map(|record| record[0].as_str().unwrap()).collect()
}

/// Everything that two processes can do, by turns, with nothing to tell them apart.
async fn do_alike(pair: &mut Pair) {
    // Writes, reads and lists.
    let tasks = ["t0", "t1", "t2", "t3", "t4", "t5"];
    for (turn, task) in tasks.into_iter().enumerate() {
        let earliest = pair.server_time();
        let put = Call::Put { task: task.to_owned(), lives_ms: HOUR_MS };
        let written = pair.one(turn % 2 == 1, put).await;
        let latest = pair.server_time();
        assert_eq!(written[0], 1);
        let since = time(&written[1]) - TimeDelta::hours(1);
        assert!(earliest <= since && since <= latest + TimeDelta::milliseconds(1), "{since}");
        let read = pair.alike(Call::Get { task: task.to_owned() }).await;
        assert_eq!((&read[1], &read[2]), (&written[0], &written[1]));
    }
    let listed = pair.alike(Call::List).await;
    assert_eq!(names(&listed), ["t5", "t4", "t3", "t2", "t1", "t0"], "the newest first, whoever wrote it");
    for (turn, task) in tasks.into_iter().enumerate() {
        let (writer, late) = (turn % 2 == 0, turn % 2 == 1);
        let update = Call::PutIfVersion { task: task.to_owned(), expected: 1 };
        let written = pair.one(writer, update.clone()).await;
        assert_eq!((&written[0], &written[1]), (&json!(2), &listed[5 - turn][2]), "the expiry is kept");
        let refused = pair.one(late, update.clone()).await;
        assert!(refused.as_str().unwrap().contains("expected 1, found 2"), "{refused}");
        assert_eq!(pair.alike(update).await, refused);
        pair.alike(Call::Get { task: task.to_owned() }).await;
        assert_eq!(pair.one(late, Call::Delete { task: task.to_owned() }).await, json!(true));
        let absent = pair.alike(Call::Get { task: task.to_owned() }).await;
        assert!(absent.as_str().unwrap().contains("no record"), "{absent}");
    }
    assert_eq!(pair.alike(Call::List).await, json!([]));

    // Expiry.
    for writer in [false, true] {
        let task = format!("short {writer}");
        pair.one(writer, Call::Put { task: task.clone(), lives_ms: SOON_MS }).await;
        let seen = pair.both(Call::SeeExpire { task }).await;
        assert!(seen.iter().all(|times| times.as_u64().unwrap() > 0), "both saw it before: {seen:?}");
    }

    // Tasks and their TTL.
    let mut created = Vec::new();
    for creator in [false, true] {
        let earliest = pair.server_time() - MOST_LAG;
        let task = pair.one(creator, Call::Create { ttl_ms: HOUR_MS }).await;
        let latest = pair.server_time();
        let created_at = time(&task[0]["createdAt"]);
        assert!(earliest <= created_at && created_at <= latest, "{created_at}");
        created.insert(0, task);
    }
    assert_eq!(pair.alike(Call::ListTasks).await, json!(created));
    for (finisher, task) in [false, true].into_iter().zip(&created) {
        let id = task[0]["taskId"].as_str().unwrap().to_owned();
        assert_eq!(&pair.alike(Call::GetTask { task: id.clone() }).await, task);
        assert_eq!(task[0]["status"], "working");
        let done = pair.one(finisher, Call::Complete { task: id.clone() }).await;
        assert_eq!(done[0]["status"], "completed", "{done}");
        let took = time(&done[0]["lastUpdatedAt"]) - time(&done[0]["createdAt"]);
        assert!(took < TimeDelta::minutes(5), "{took}");
        assert_eq!(pair.alike(Call::GetTask { task: id.clone() }).await, done);
        pair.one(finisher, Call::Delete { task: id }).await;
    }
    for creator in [false, true] {
        let task = pair.one(creator, Call::Create { ttl_ms: SOON_MS }).await;
        let task = task[0]["taskId"].as_str().unwrap().to_owned();
        let seen = pair.both(Call::SeeFail { task: task.clone() }).await;
        assert!(seen.iter().all(|times| times.as_u64().unwrap() > 0), "both saw it at work: {seen:?}");
        let failed = pair.alike(Call::GetTask { task: task.clone() }).await;
        assert_eq!((&failed[0]["status"], &failed[1]), (&json!("failed"), &json!(2)), "settled once");
        pair.one(creator, Call::Delete { task }).await;
    }
}

#[rstest]
#[case::an_hour_ahead("+1h", TimeDelta::hours(1))]
#[case::an_hour_behind("-1h", TimeDelta::hours(-1))]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_with_a_wrong_wall_clock_does_as_the_others_do(
    #[case] offset: &str,
    #[case] wrong_by: TimeDelta,
) {
    let mut pair = Pair::start(offset).await;
    pair.check_clocks(wrong_by).await;
    do_alike(&mut pair).await;
    pair.check_clocks(wrong_by).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_whose_wall_clock_jumps_does_as_the_others_do() {
    let mut pair = Pair::start("+0").await;
    pair.check_clocks(TimeDelta::zero()).await;
    let jumps = [("+1h", TimeDelta::hours(1)), ("-1h", TimeDelta::hours(-1)), ("+0", TimeDelta::zero())];
    for (offset, wrong_by) in jumps {
        // What was written before the jump is judged after it, and one record while it happens.
        let task = pair.own.perform(Call::Create { ttl_ms: HOUR_MS }).await;
        let id = task[0]["taskId"].as_str().unwrap().to_owned();
        let short = "since before the jump".to_owned();
        pair.one(true, Call::Put { task: short.clone(), lives_ms: SOON_MS }).await;
        pair.other.send(&Call::SeeExpire { task: short.clone() });
        pair.other.set_clock(offset);
        pair.own.perform(Call::SeeExpire { task: short }).await;
        assert!(pair.other.reply().as_u64().unwrap() > 0);
        assert_eq!(pair.alike(Call::GetTask { task: id.clone() }).await, task);
        pair.one(true, Call::Delete { task: id }).await;
        pair.check_clocks(wrong_by).await;
        do_alike(&mut pair).await;
    }
    pair.check_clocks(TimeDelta::zero()).await;
}

// A server whose clock is set back

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_only_reads_sees_what_is_live_after_the_servers_clock_was_set_back() {
    let clock = TempDir::new().unwrap();
    set_clock(clock.path(), "+1h");
    let file = clock.path().join("offset");
    let mut server = Server::start_in(
        &[],
        &[
            ("LD_PRELOAD", &libraries()),
            ("FAKETIME_TIMESTAMP_FILE", file.to_str().unwrap()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ],
    );
    let reader = RedisBackend::connect(&server.url()).await.unwrap();
    let ahead = time_of(&server);
    assert!(ahead - Utc::now() > TimeDelta::minutes(50));
    set_clock(clock.path(), "+0");
    while time_of(&server) > ahead {}
    let writer = RedisBackend::connect(&server.url()).await.unwrap();
    let written = writer.put(&key("alice", "t1"), "live".into(), after_ms(HOUR_MS / 6)).await.unwrap();
    // Expired by the clock as the reader last saw it.
    assert!(written.expires_at.unwrap() < reader.now());
    assert_eq!(reader.get(&key("alice", "t1")).await.unwrap().data, "live");
    assert_eq!(reader.list(&owner("alice"), PageRequest::new(5)).await.unwrap().records.len(), 1);
    // A server that is killed leaves `faketime`'s shared memory behind.
    server.shut_down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_servers_clock_was_set_back_by_a_day_timers_are_late_by_at_most_a_day() {
    let (clock, day, hour) = (TempDir::new().unwrap(), TimeDelta::days(1), Duration::from_secs(3600));
    set_clock(clock.path(), "+1d");
    let file = clock.path().join("offset");
    let mut server = Server::start_in(
        &[],
        &[
            ("LD_PRELOAD", &libraries()),
            ("FAKETIME_TIMESTAMP_FILE", file.to_str().unwrap()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ],
    );
    let agenda = RedisBackend::connect(&server.url()).await.unwrap();
    let queues = [Queue::try_from("leases").unwrap()];
    let [before, after] = ["before", "after"].map(|task| key("alice", task));
    agenda.schedule(&queues[0], &before, hour).await.unwrap();
    let ahead = time_of(&server);
    set_clock(clock.path(), "+0");
    while time_of(&server) > ahead {}

    let next_in = agenda.take_due(&queues, 5, hour).await.unwrap().next_in.unwrap();
    let late_by = TimeDelta::from_std(next_in - hour).unwrap();
    assert!(late_by <= day && late_by > day - TimeDelta::minutes(10), "{late_by}");
    // What is scheduled since is in time, and brings a late timer back.
    for key in [&after, &before] {
        agenda.schedule(&queues[0], key, Duration::ZERO).await.unwrap();
        let taken = agenda.take_due(&queues, 5, hour).await.unwrap();
        assert_eq!(taken.due.iter().map(|due| &due.key).collect::<Vec<_>>(), [key]);
        assert!(agenda.resolve(&taken.due[0], Next::Remove).await.unwrap());
    }
    // A server that is killed leaves `faketime`'s shared memory behind.
    server.shut_down();
}

// A failover to a server with another clock

/// A master, and a replica whose clock is wrong.
struct Crooked(Watched);

impl Crooked {
    fn start(offset: &str) -> Self {
        Self(Watched::start(&[
            ("LD_PRELOAD", &libraries()),
            ("FAKETIME", offset),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ]))
    }
}

impl Drop for Crooked {
    fn drop(&mut self) {
        // A server that is killed leaves `faketime`'s shared memory behind.
        self.0.replica.shut_down();
    }
}

/// Makes a call again until the backend has found the new master.
async fn answered<T>(call: impl AsyncFn() -> Result<T, StorageError>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match call().await {
            Ok(reply) => return reply,
            Err(error) => assert!(error.is_retryable() && Instant::now() < deadline, "{error:?}"),
        }
    }
}

#[rstest]
#[case::an_hour_behind("-1h", TimeDelta::hours(-1))]
#[case::an_hour_ahead("+1h", TimeDelta::hours(1))]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failover_to_a_server_with_another_clock_the_backend_follows_the_new_one(
    #[case] offset: &str,
    #[case] wrong_by: TimeDelta,
) {
    let mut crooked = block_in_place(|| Crooked::start(offset));
    let watched = &mut crooked.0;
    let is_ahead = wrong_by > TimeDelta::zero();
    let apart = time_of(&watched.replica) - time_of(&watched.master) - wrong_by;
    assert!(
        apart.abs() < TimeDelta::minutes(1),
        "the replica's clock is not as wrong as it should be: {apart}"
    );
    let backend = RedisBackend::builder()
        .connect_sentinel(watched.sentinel_urls(), &format!("redis://{MASTER}"))
        .await
        .unwrap();
    let config = StoreConfig::new().retention(Duration::from_secs(4 * 3600));
    let tasks = TaskStore::with_config(backend.clone(), config);
    let alice = owner("alice");
    let create = |minutes: u64| {
        tasks.create(&alice, NewTask::new("tools/call").ttl(Duration::from_secs(60 * minutes)))
    };
    let (long, done, half_an_hour) =
        (create(120).await.unwrap(), create(120).await.unwrap(), create(30).await.unwrap());
    let done = tasks.complete(&done, json!("done")).await.unwrap();
    backend.put(&key("bob", "never"), "stays".into(), Expiry::Never.into()).await.unwrap();
    let brief = key("bob", "half an hour");
    let written = backend.put(&brief, "goes".into(), after_ms(HOUR_MS / 2)).await.unwrap();
    let replicated: u64 = command(&mut watched.master.connection(), ["WAIT", "1", "20000"]);
    assert_eq!(replicated, 1);

    block_in_place(|| {
        watched.master.kill();
        watched.failed_over();
    });
    let failed_over = Instant::now();
    let read = answered(async || backend.get(&key("bob", "never")).await).await;
    let until_then = TimeDelta::from_std(failed_over.elapsed()).unwrap();
    figure("failover done by the sentinels to first reply", until_then);
    assert_eq!((&*read.data, read.version), (&b"stays"[..], Version::FIRST));

    let new_time = || time_of(&watched.replica);
    let earliest = new_time();
    let now = backend.now();
    let latest = new_time();
    assert!(now <= latest, "now() says {now} and leads the new server, which says {latest} later");
    figure("most that now() lags behind the new server after a failover", latest - now);
    assert!(latest - now < MOST_LAG);

    // What was written before is judged by the clock of the server that holds it now.
    for task in [&long, &done] {
        assert_eq!(&tasks.get(&task.key).await.unwrap(), task);
    }
    let short = tasks.get(&half_an_hour.key).await.unwrap();
    match (is_ahead, backend.get(&brief).await) {
        (true, Err(StorageError::NotFound { .. })) => assert_eq!(short.task.status, TaskStatus::Failed),
        (false, Ok(record)) => {
            assert_eq!(record.expires_at, written.expires_at);
            assert_eq!(short, half_an_hour);
        }
        (_, other) => panic!("{other:?}"),
    }

    // What is written now lives by it too, and the newest comes first although the clock was set back.
    let newest = create(60).await.unwrap();
    assert!(newest.task.created_at <= new_time() && newest.task.created_at > earliest - MOST_LAG);
    let page = tasks.list(&alice, PageRequest::new(9)).await.unwrap();
    let listed: Vec<&TaskKey> = page.tasks.iter().map(|task| &task.key).collect();
    assert_eq!(listed, [&newest.key, &half_an_hour.key, &done.key, &long.key]);
    let completed = tasks.complete(&long, json!("done")).await.unwrap();
    assert!(completed.task.last_updated_at >= completed.task.created_at, "never before it was created");
    assert_eq!(tasks.get(&long.key).await.unwrap(), completed);
    let late = tasks.complete(&half_an_hour, json!("late")).await;
    assert_eq!(matches!(late, Err(TaskError::InvalidTransition { .. })), is_ahead, "{late:?}");

    let before = new_time();
    let written = backend.put(&key("bob", "an hour"), "x".into(), in_an_hour()).await.unwrap();
    let since = written.expires_at.unwrap() - TimeDelta::hours(1);
    assert!(before <= since && since <= new_time() + TimeDelta::milliseconds(1), "{since}");
    let process = Process::start(&watched.replica.url()).await;
    backend.put(&key("bob", "soon"), "x".into(), after_ms(SOON_MS)).await.unwrap();
    assert!(process.see_expire(&key("bob", "soon")).await > 0);
}
