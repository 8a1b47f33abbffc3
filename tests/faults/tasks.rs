//! What becomes of tasks when writes, and the replies to them, get lost on the way to a real server or come late.
//!
//! The long form: `cargo test --features redis-tests --test faults -- --ignored --nocapture tasks::`.

mod life;

use std::cell::Cell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt::Display;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::proxy::Fault::{Late, LoseReply, LoseWrite, Pass};
use crate::support::proxy::{Delivery, Fault, Proxy};
use crate::support::redis::{Server, command, connection};
use crate::support::{Random, in_an_hour, keep, key, owner};
use futures_util::StreamExt;
use life::{CALLS, Told, Worked, check_task, work};
use mcp_task_store::{
    NewTask, PageRequest, RedisBackend, StorageBackend, StorageError, StoreConfig, StoredTask, TaskError,
    TaskStatus, TaskStore, Version,
};
use redis::Value as Reply;
use rstest::rstest;
use serde_json::{Value, json};

type Tasks = TaskStore<RedisBackend>;

async fn backend(url: &str) -> RedisBackend {
    RedisBackend::builder().response_timeout(Duration::from_secs(20)).connect(url).await.unwrap()
}

fn call() -> NewTask {
    NewTask::new("tools/call")
}

// One fault at a time

/// A server, a task store behind a proxy, and one that goes straight to the server.
struct Bench {
    server: Server,
    proxy: Proxy,
    faults: Arc<Mutex<VecDeque<Fault>>>,
    tasks: Tasks,
    straight: Tasks,
}

impl Bench {
    async fn start(config: StoreConfig) -> Self {
        let server = Server::start(&[]);
        let faults = Arc::new(Mutex::new(VecDeque::new()));
        let next = Arc::clone(&faults);
        let proxy =
            Proxy::start(server.port, move || next.lock().unwrap().pop_front().unwrap_or(Fault::Pass)).await;
        let tasks = TaskStore::with_config(backend(&proxy.url()).await, config);
        let straight = TaskStore::new(backend(&server.url()).await);
        Self { server, proxy, faults, tasks, straight }
    }

    /// Sets what befalls the next writes, in turn; those behind them pass.
    fn befall(&self, faults: &[Fault]) {
        self.faults.lock().unwrap().extend(faults);
    }

    async fn created(&self) -> StoredTask {
        self.tasks.create(&owner("alice"), call()).await.unwrap()
    }

    /// What befell the writes since the last `count`.
    fn befallen_since(&self, count: usize) -> Vec<Fault> {
        assert!(self.faults.lock().unwrap().is_empty(), "each fault has found its write");
        self.proxy.befallen().split_off(count)
    }
}

fn is_conflict(delivery: &Delivery) -> bool {
    // The write found a live record at another version.
    matches!(&delivery.reply, Reply::ServerError(error)
        if error.code() == "FOUND" && error.details().is_some_and(|found| found.ends_with(",1,true,true]")))
}

/// A write that arrives just behind the look that did not find it, and so before it is sent again.
const BEHIND_THE_LOOK: Fault = Late { after: 1 };

#[rstest]
#[case::whose_reply_is_lost(&[LoseReply], &[])]
#[case::that_is_lost(&[LoseWrite], &[Pass])]
#[case::that_is_lost_again_and_again(&[LoseWrite, LoseWrite, LoseWrite], &[Pass])]
#[case::that_is_lost_and_whose_reply_is_lost_then(&[LoseWrite, LoseReply], &[])]
#[case::that_arrives_when_it_was_sent_again(&[Fault::HELD_BACK], &[Pass])]
#[case::that_arrives_before_it_is_sent_again(&[BEHIND_THE_LOOK], &[Pass])]
#[case::that_arrives_when_the_reply_to_the_second_is_lost(&[Fault::HELD_BACK, LoseReply], &[])]
#[case::of_which_two_copies_arrive_late(&[Fault::HELD_BACK, Fault::HELD_BACK], &[Pass])]
#[tokio::test]
async fn a_write_is_acknowledged_and_applied_exactly_once(
    #[case] faults: &[Fault],
    #[case] sent_again: &[Fault],
    #[values(false, true)] by_copy: bool,
) {
    let bench = Bench::start(StoreConfig::new()).await;
    let created = bench.created().await;
    let before = bench.proxy.befallen().len();
    bench.befall(faults);
    let done = match by_copy {
        true => bench.tasks.complete(&created, json!("done")).await.unwrap(),
        false => bench.tasks.complete(&created.key, json!("done")).await.unwrap(),
    };
    assert_eq!(bench.befallen_since(before), [faults, sent_again].concat(), "sent as often as it has to be");
    assert_eq!((done.task.status, done.version.get()), (TaskStatus::Completed, 2));
    assert_eq!(done.task.result, Some(json!("done").into()));
    assert_eq!(bench.straight.get(&done.key).await.unwrap(), done);

    // Whatever arrives now finds another version, and leaves the task as it was acknowledged.
    let late = bench.proxy.deliver_late().await;
    assert_eq!(late.len(), faults.iter().filter(|fault| **fault == Fault::HELD_BACK).count());
    assert!(late.iter().all(is_conflict), "{late:?}");
    assert_eq!(bench.straight.get(&done.key).await.unwrap(), done);
    assert_eq!(bench.proxy.deliveries().iter().filter(|delivery| delivery.is_applied()).count(), 2);
}

#[rstest]
#[case::whose_reply_is_lost(&[LoseReply])]
#[case::that_is_lost(&[LoseWrite])]
#[case::that_is_lost_and_whose_reply_is_lost_then(&[LoseWrite, LoseReply])]
#[case::that_arrives_when_it_was_sent_again(&[Fault::HELD_BACK])]
#[case::that_arrives_before_it_is_sent_again(&[BEHIND_THE_LOOK])]
#[tokio::test]
async fn a_create_is_acknowledged_and_counted_exactly_once(#[case] faults: &[Fault]) {
    // A copy that counted twice would be refused, or keep the second task out.
    let bench = Bench::start(StoreConfig::new().max_tasks_per_owner(2)).await;
    let mut created = Vec::new();
    for _ in 0..2 {
        bench.befall(faults);
        let task = bench.created().await;
        assert_eq!(task.version, Version::FIRST);
        created.insert(0, task);
    }
    assert_refused!(bench.tasks.create(&owner("alice"), call()).await, TaskError::QuotaExceeded { quota: 2 });
    for _ in 0..2 {
        let page = bench.straight.list(&owner("alice"), PageRequest::new(9)).await.unwrap();
        assert_eq!(page.tasks, created);
        let indexed: u64 = command(&mut bench.server.connection(), ["ZCARD", "pmcp:idx:alice"]);
        assert_eq!(indexed, 4, "two members for each");
        // And the same when the late copies are there.
        let late = bench.proxy.deliver_late().await;
        assert!(late.iter().all(is_conflict), "{late:?}");
    }
}

#[tokio::test]
async fn an_acknowledged_update_is_not_undone_by_a_late_copy_of_an_earlier_one() {
    let bench = Bench::start(StoreConfig::new()).await;
    let created = bench.created().await;
    for value in 1..=6 {
        bench.befall(&[Fault::HELD_BACK]);
        bench.tasks.set_variables(&created.key, [("value", json!(value))]).await.unwrap();
    }
    let asked = bench.tasks.request_input(&created.key, [("name", json!({}))]).await.unwrap();
    bench.befall(&[Fault::HELD_BACK]);
    let answered = bench.tasks.deliver_inputs(&asked, [("name", json!("alice"))]).await.unwrap();
    assert_eq!(answered.version.get(), 9);
    let late = bench.proxy.deliver_late().await;
    assert!(late.len() == 7 && late.iter().all(is_conflict), "{late:?}");
    assert_eq!(bench.straight.get(&created.key).await.unwrap(), answered);
}

#[rstest]
#[case::was_applied(LoseReply, true, true)]
#[case::was_not_applied(LoseWrite, false, false)]
#[case::is_applied_later(Fault::HELD_BACK, false, true)]
#[tokio::test]
async fn a_delete_whose_outcome_is_unknown_says_so(
    #[case] fault: Fault,
    #[case] is_gone: bool,
    #[case] goes: bool,
) {
    let bench = Bench::start(StoreConfig::new()).await;
    let created = bench.created().await;
    let before = bench.proxy.befallen().len();
    bench.befall(&[fault]);
    let error = bench.tasks.delete(&created.key).await.unwrap_err();
    assert!(error.outcome_unknown() && error.is_retryable() && error.code() == -32603, "{error:?}");
    assert_eq!(bench.befallen_since(before), [fault], "it is not sent again");
    for gone in [is_gone, goes] {
        match bench.straight.get(&created.key).await {
            Ok(found) => assert!(!gone && found == created),
            Err(error) => assert!(gone && matches!(error, TaskError::NotFound { .. }), "{error:?}"),
        }
        bench.proxy.deliver_late().await;
    }
}

#[tokio::test]
async fn where_the_record_does_not_tell_the_caller_of_complete_is_told_so() {
    let server = Server::start(&[]);
    let (url, mut writes) = (server.url(), 0);
    let proxy = Proxy::start(server.port, move || {
        writes += 1;
        if writes != 2 {
            return Pass;
        }
        // Others write while the completion is under way, and more often than the record remembers.
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
async fn the_backend_itself_sends_nothing_twice(
    #[values(Pass, LoseWrite, LoseReply, Fault::HELD_BACK)] fault: Fault,
) {
    let bench = Bench::start(StoreConfig::new()).await;
    let backend = bench.tasks.backend();
    let task = key("alice", "t1");
    let data = || "data".into();
    let mut scripts = 0;
    for round in 0..5 {
        // The record is there, and at version 1.
        bench.straight.backend().delete(&task).await.unwrap();
        let put = bench.straight.backend().put(&task, data(), in_an_hour()).await.unwrap();
        assert_eq!(put.version, Version::FIRST);
        bench.befall(&[fault]);
        let outcome = match round {
            0 => backend.put(&task, data(), keep()).await.map(drop),
            1 => backend.put_if_version(&task, data(), keep(), Version::FIRST).await.map(drop),
            2 => backend.put_if_version(&task, data(), in_an_hour(), Version::FIRST).await.map(drop),
            3 => backend.delete(&task).await.map(drop),
            _ => {
                bench.straight.backend().delete(&task).await.unwrap();
                backend.put_if_version(&task, data(), in_an_hour(), Version::ABSENT).await.map(drop)
            }
        };
        match outcome {
            Ok(()) => assert_eq!(fault, Pass),
            Err(error) => assert!(fault != Pass && error.outcome_unknown(), "{round}: {error:?}"),
        }
        scripts += 1;
        assert_eq!(bench.proxy.scripts(), scripts, "{round}");

        // A read passes, whatever befell the connection before.
        let found = backend.get(&task).await;
        assert!(matches!(found, Ok(_) | Err(StorageError::NotFound { .. })), "{found:?}");
        assert_eq!(bench.proxy.scripts(), scripts, "a read is no script");
        backend.list(&owner("alice"), PageRequest::new(9)).await.unwrap();
        scripts += 1;
        assert_eq!(bench.proxy.scripts(), scripts, "a page is one");
    }
    assert!(bench.befallen_since(0).len() == 5 && bench.proxy.deliver_late().await.len() <= 5);
}

// All faults at once, on many tasks

/// How much is done.
struct Form {
    tasks: usize,
    /// How many tasks are worked on at once, and by how many instances of the server.
    at_once: usize,
    instances: usize,
}

const SHORT: Form = Form { tasks: 30, at_once: 12, instances: 6 };
const LONG: Form = Form { tasks: 2000, at_once: 48, instances: 24 };
const SEED: u64 = 20_251_123;

/// Most writes pass; the late ones come at once, a little later, much later, or when all is over.
fn at_random(mut random: Random) -> impl FnMut() -> Fault {
    move || match random.below(100) {
        0..6 => LoseWrite,
        6..12 => LoseReply,
        12..14 => BEHIND_THE_LOOK,
        14..16 => Late { after: random.below(10) },
        16..18 => Late { after: random.below(1000) },
        18..20 => Fault::HELD_BACK,
        _ => Pass,
    }
}

/// What is stored, by the server's key.
fn stored<'a>(
    server: &Server,
    keys: impl IntoIterator<Item = &'a String>,
) -> HashMap<String, (u64, Vec<u8>)> {
    let mut connection = server.connection();
    let read = |key: &String| {
        let (version, data): (Option<u64>, Option<Vec<u8>>) =
            command(&mut connection, ["HMGET", key, "version", "data"]);
        (key.clone(), (version.unwrap_or(0), data.unwrap_or_default()))
    };
    keys.into_iter().map(read).collect()
}

/// The writes of each record that the server applied, in the order of their versions.
fn applied(deliveries: &[Delivery]) -> HashMap<String, Vec<(u64, Value)>> {
    let mut applied: HashMap<String, Vec<(u64, Value)>> = HashMap::new();
    for delivery in deliveries {
        let writes = applied.entry(delivery.key.clone()).or_default();
        if let Some(version) = delivery.version {
            writes.push((version, serde_json::from_slice(&delivery.data).unwrap()));
        }
    }
    applied.values_mut().for_each(|writes| writes.sort_by_key(|(version, _)| *version));
    applied
}

/// A task without what every write changes.
fn content(task: &Value) -> Value {
    let mut task = task.clone();
    task.as_object_mut().unwrap().retain(|field, _| field != "writeIds" && field != "lastUpdatedAt");
    task
}

fn figure(what: &str, value: impl Display) {
    println!("figure | {what} | {value}");
}

/// Each write that was applied has a version and an id of its own and changes the task: no update is in it
/// twice, neither by a copy of its write nor by another write that says the same.
fn check_writes(key: &str, writes: &[(u64, Value)]) {
    let versions: Vec<u64> = writes.iter().map(|(version, _)| *version).collect();
    assert_eq!(versions, (1..=writes.len() as u64).collect::<Vec<_>>(), "{key}");
    assert!(writes.len() as u64 <= CALLS, "{key}");
    let last_id = |task: &Value| task["writeIds"].as_array().unwrap().last().unwrap().to_string();
    let ids: HashSet<String> = writes.iter().map(|(_, task)| last_id(task)).collect();
    assert_eq!(ids.len(), writes.len(), "{key}");
    for two in writes.windows(2) {
        assert_ne!(content(&two[0].1), content(&two[1].1), "{key}");
    }
}

async fn settles(form: Form) {
    let server = Server::start(&[]);
    let proxy = Proxy::start(server.port, at_random(Random(SEED))).await;
    let mut instances = Vec::new();
    for _ in 0..form.instances {
        let config = StoreConfig::new().max_tasks_per_owner(None);
        instances.push(TaskStore::with_config(backend(&proxy.url()).await, config));
    }
    let started = Instant::now();
    let working = (0..form.tasks).map(|number| work(number, &instances));
    let worked: Vec<Worked> =
        futures_util::stream::iter(working).buffer_unordered(form.at_once).collect().await;
    let took = started.elapsed();

    let keys: HashSet<String> = proxy.deliveries().into_iter().map(|write| write.key).collect();
    let before = stored(&server, &keys);
    let last = proxy.deliver_late().await;
    let deliveries = proxy.deliveries();
    let applied = applied(&deliveries);
    let after = stored(&server, applied.keys());

    let befallen = proxy.befallen();
    let faults = |kind: fn(&Fault) -> bool| befallen.iter().filter(|fault| kind(fault)).count();
    let calls = |kind: fn(&Told) -> &Cell<u64>| worked.iter().map(|task| kind(&task.told).get()).sum::<u64>();
    let late: Vec<&Delivery> = deliveries.iter().filter(|delivery| delivery.is_late).collect();
    let conflicts = late.iter().filter(|delivery| is_conflict(delivery)).count();
    let completed = worked.iter().filter(|task| task.result.is_some()).count();
    figure("tasks driven through faults", form.tasks);
    figure("tasks whose completion was acknowledged", completed);
    let is_certain = |task: &&Worked| task.told.unknown.get() == 0;
    let certain = worked.iter().filter(is_certain).count();
    figure("tasks of which every call was acknowledged", certain);
    figure("calls acknowledged", calls(|told| &told.acknowledged));
    figure("calls whose outcome the store could not tell", calls(|told| &told.unknown));
    figure("calls refused and made again", calls(|told| &told.refused));
    figure("writes sent", befallen.len());
    figure("writes lost", faults(|fault| *fault == LoseWrite));
    figure("replies lost", faults(|fault| *fault == LoseReply));
    figure("writes delivered late", late.len());
    figure("late writes that the server refused as conflicts", conflicts);
    figure("late writes that the server applied, each once", late.len() - conflicts);
    figure("writes delivered when all calls had ended", last.len());
    figure("time under load", format!("{:.1} s", took.as_secs_f64()));

    for (key, writes) in &applied {
        check_writes(key, writes);
        assert_eq!(after[key].0, writes.len() as u64, "the version of {key} counts its writes");
    }
    let straight = TaskStore::new(backend(&server.url()).await);
    for worked in &worked {
        let Some(key) = &worked.key else { continue };
        check_task(worked, &straight.get(key).await.unwrap().task);
        let at = format!("pmcp:tasks:{}:{}", key.owner, key.task);
        if is_certain(&worked) {
            assert_eq!(after[&at].0, CALLS, "each call was one write: {at}");
            assert_eq!(before[&at], after[&at], "the last late copies change nothing: {at}");
        }
    }
    // A load without one of these would prove less than it seems to.
    for kind in [LoseWrite, LoseReply, BEHIND_THE_LOOK, Fault::HELD_BACK] {
        assert!(befallen.contains(&kind), "{kind:?}");
    }
    assert!(conflicts > 0 && certain > form.tasks / 5 && completed > form.tasks / 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tasks_driven_through_lost_and_late_writes_hold_what_was_acknowledged() {
    settles(SHORT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "takes a while"]
async fn long_form_of_tasks_driven_through_lost_and_late_writes() {
    settles(LONG).await;
}
