//! `doctor` and `init` on every engine.

use mcp_task_store::{Agenda, Queue, StoredTask};
use rstest_reuse::apply;
use serde_json::Value;

use crate::support::{Ended, Engine, Store, command, name, on_every_engine};

/// Returns the line of a check. Fails if there is none, or more than one.
pub fn line(ended: &Ended, check: &str) -> Value {
    let lines = ended.out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let found: Vec<Value> = lines.filter(|line| line["check"] == check).collect();
    let [line] = &found[..] else { panic!("{check}: {ended:?}") };
    line.clone()
}

/// Asserts the exit code, as the worst line states it. Leaves out the latency, which depends on what else the machine does.
pub fn assert_worst(ended: &Ended, expected: i32) {
    let lines = ended.out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let codes: Vec<(bool, i32)> = lines
        .map(|line| {
            let code =
                ["green", "yellow", "red"].iter().position(|health| line["health"] == *health).unwrap();
            (line["check"] == "latency", i32::try_from(code).unwrap())
        })
        .collect();
    assert_eq!(ended.code, codes.iter().map(|(_, code)| *code).max(), "{ended:?}");
    let others = codes.iter().filter(|(is_latency, _)| !is_latency);
    assert_eq!(others.map(|(_, code)| *code).max(), Some(expected), "{ended:?}");
}

/// Asserts the health of a check, and how many faults were found and repaired.
pub fn assert_counts(ended: &Ended, check: &str, health: &str, found: u64, repaired: u64) {
    let line = line(ended, check);
    assert_eq!((&line["health"], &line["found"]), (&Value::from(health), &Value::from(found)), "{line}");
    assert_eq!(line["repaired"], Value::from(repaired), "{line}");
    assert_eq!(line["advice"].is_null(), health == "green", "{line}");
}

/// Creates an open task with a lease and without a timer.
async fn without_timer(store: &Store) -> StoredTask {
    let running = store.running("alice", "render").await;
    let record = store.record(&running.key).await.unwrap();
    let key = store.put("alice", "lost", record_as("lost", record)).await;
    store.tasks.get(&key).await.unwrap()
}

fn record_as(task: &str, mut record: Value) -> Value {
    record["taskId"] = task.into();
    record
}

async fn timers(store: &Store) -> Vec<String> {
    let page = store.tasks.backend().timers(&Queue::leases(), None).await.unwrap();
    page.timers.iter().map(|timer| name(&timer.key)).collect()
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_store_with_tasks_of_every_kind_has_no_faults(#[case] engine: Engine) {
    let store = engine.open().await;
    store.running("alice", "render").await;
    store.waiting("a:{b}%", "render").await;
    store.dead("bob", "render").await;
    store.completed("bob", "render").await;
    let ended = store.run(&["doctor", "--json", "-q"]);
    for check in [
        "unreadable records",
        "members, no record",
        "records, no member",
        "counts of owners",
        "tasks, no timer",
        "overdue timers",
        "timers, no task",
    ] {
        assert_counts(&ended, check, "green", 0, 0);
    }
    assert_eq!(line(&ended, "records")["what"], "4 records were read");
    let timers = line(&ended, "timers");
    assert!(timers["what"].as_str().unwrap().ends_with("for 2 open tasks with a lease"), "{timers}");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn the_timer_of_an_open_task_is_missed_and_re_created(#[case] engine: Engine) {
    let store = engine.open().await;
    let lost = name(&without_timer(&store).await.key);
    assert!(!timers(&store).await.contains(&lost));
    for _ in 0..2 {
        let ended = store.run(&["doctor", "--json"]);
        assert_worst(&ended, 2);
        assert_counts(&ended, "tasks, no timer", "red", 1, 0);
        assert!(line(&ended, "tasks, no timer")["what"].as_str().unwrap().contains(&lost), "{ended:?}");
    }
    assert_counts(&store.run(&["doctor", "--json", "--repair"]), "tasks, no timer", "green", 1, 1);
    assert!(timers(&store).await.contains(&lost));
    assert_counts(&store.run(&["doctor", "--json"]), "tasks, no timer", "green", 0, 0);
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn an_ended_task_and_a_task_without_a_lease_need_no_timer(#[case] engine: Engine) {
    let store = engine.open().await;
    let running = store.running("alice", "render").await;
    let mut record = record_as("ended", store.record(&running.key).await.unwrap());
    record["status"] = "completed".into();
    store.put("alice", "ended", record).await;
    store.put("alice", "plain", serde_json::json!({})).await;
    assert_counts(&store.run(&["doctor", "--json"]), "tasks, no timer", "green", 0, 0);
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_begin_and_end_meanwhile_are_no_faults(#[case] engine: Engine) {
    let store = engine.open().await;
    for _ in 0..50 {
        store.waiting("alice", "render").await;
    }
    let tasks = store.tasks.clone();
    let churn = tokio::spawn(async move {
        for number in 0_u64.. {
            let owner = crate::support::owner(["alice", "bob"][(number % 2) as usize]);
            let (stored, attempt) = tasks.start(&owner, crate::support::resumable("render")).await.unwrap();
            attempt.complete(Value::from(number)).await.unwrap();
            if number % 3 == 0 {
                tasks.delete(&stored.key).await.unwrap();
            }
        }
    });
    for more in [&[] as &[&str], &["--repair"], &[], &["--repair"]] {
        let doctor = store.command(&[&["doctor", "--json", "-q"], more].concat());
        let ended = tokio::task::spawn_blocking(move || Ended::of(doctor, "")).await.unwrap();
        assert!(!churn.is_finished());
        for check in ["members, no record", "records, no member", "counts of owners", "tasks, no timer"] {
            assert_counts(&ended, check, "green", 0, 0);
        }
    }
    churn.abort();
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_no_task_is_named(#[case] engine: Engine) {
    let store = engine.open().await;
    store.put("alice", "odd", serde_json::json!({ "createdAt": 7 })).await;
    let ended = store.run(&["doctor", "--json"]);
    assert_counts(&ended, "unreadable records", "yellow", 1, 0);
    assert!(line(&ended, "unreadable records")["what"].as_str().unwrap().contains("alice:odd"), "{ended:?}");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn faults_are_found_on_every_page_of_a_large_store(#[case] engine: Engine) {
    let store = engine.open().await;
    let running = store.running("alice", "render").await;
    let record = store.record(&running.key).await.unwrap();
    for number in 0..700 {
        let task = format!("t{number}");
        store
            .put(if number % 2 == 0 { "alice" } else { "bob" }, &task, record_as(&task, record.clone()))
            .await;
    }
    let ended = store.run(&["doctor", "--json", "--repair", "--rate", "100000"]);
    assert_counts(&ended, "tasks, no timer", "green", 700, 700);
    assert_eq!(line(&ended, "records")["what"], "701 records were read");
    assert_eq!(store.tasks.backend().timers(&Queue::leases(), None).await.unwrap().total, 701);
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn quick_reads_no_records(#[case] engine: Engine) {
    let store = engine.open().await;
    without_timer(&store).await;
    let ended = store.run(&["doctor", "--json", "--quick"]);
    line(&ended, "connection");
    line(&ended, "version");
    assert!(!ended.out.contains("tasks, no timer") && !ended.err.contains("scans"), "{ended:?}");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_person_reads_the_health_the_check_and_the_advice(#[case] engine: Engine) {
    let store = engine.open().await;
    without_timer(&store).await;
    let ended = store.run(&["doctor"]);
    let mut lines = ended.out.lines().skip_while(|line| !line.contains("tasks, no timer"));
    let found = lines.next().unwrap();
    assert!(found.starts_with("red ") && found.contains("alice:lost"), "{found}");
    assert_eq!(lines.next().unwrap().trim(), "-> run doctor --repair");
    assert!(ended.err.contains("scans"), "{ended:?}");
}

#[test]
fn a_store_that_cannot_be_opened_is_red_and_a_wrong_command_line_is_an_error() {
    let run = |args: &[&str]| {
        let mut command = command();
        command.args(args);
        Ended::of(command, "")
    };
    let folder = tempfile::tempdir().unwrap();
    let missing = format!("sqlite:{}", folder.path().join("none.db").display());
    for url in ["redis://127.0.0.1:1", &missing] {
        let ended = run(&["doctor", "--json", "--url", url]);
        assert_worst(&ended, 2);
        assert_eq!(line(&ended, "connection")["health"], "red");
    }
    assert!(run(&["doctor"]).failed(2).contains("no store was named"));
    assert!(run(&["init"]).failed(2).contains("no store was named"));
    run(&["doctor", "--quick", "--repair", "--url", &missing]).failed(2);
}

#[test]
fn init_prints_what_to_set_for_each_engine() {
    for (engine, url) in [
        ("sqlite", "sqlite:"),
        ("redis", "redis://"),
        ("redis-cluster", "redis+cluster://"),
        ("redis-sentinel", "redis+sentinel://"),
    ] {
        let mut command = command();
        command.args(["init", "--backend", engine]);
        let printed = Ended::of(command, "").ok();
        assert!(printed.starts_with(&format!("export MCP_TASKS_URL={url}")), "{printed}");
    }
}
