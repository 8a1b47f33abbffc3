//! The task store of `pmcp-tasks` works on the engines of this crate.

use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;

use crate::support::{Engine, MAX_VALUE_BYTES, Printed, Store, key, on_every_engine};
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use mcp_task_store::{Agenda, PMCP_ANONYMOUS, PmcpTasksBackend, StorageError};
use pmcp_tasks::store::backend::{StorageBackend as PmcpBackend, StorageError as PmcpError};
use pmcp_tasks::{
    GenericTaskStore, InMemoryBackend, ListTasksOptions, StoreConfig, TaskError, TaskSecurityConfig,
    TaskStatus,
};
use rstest::rstest;
use rstest_reuse::apply;
use serde_json::{Value, json};

type Adapter = PmcpTasksBackend<Arc<dyn Agenda>>;

async fn open(engine: Engine) -> (Store, Adapter) {
    let store = engine.open().await;
    let adapter = PmcpTasksBackend::new(Arc::clone(&store.backend));
    (store, adapter)
}

fn tasks(adapter: Adapter) -> GenericTaskStore<Adapter> {
    GenericTaskStore::new(adapter)
        .with_security(TaskSecurityConfig::default().with_max_tasks_per_owner(10_000))
}

fn expiring(at: impl Into<Value>) -> Vec<u8> {
    json!({ "task": {}, "expiresAt": at.into() }).to_string().into_bytes()
}

fn rfc3339(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Nanos, true)
}

async fn expires_at(store: &Store) -> Option<DateTime<Utc>> {
    store.get(&key("alice", "t1")).await.unwrap().expires_at
}

async fn task_ids(tasks: &GenericTaskStore<Adapter>, owner: &str) -> Vec<String> {
    let (mut ids, mut cursor) = (Vec::new(), None);
    loop {
        let options = ListTasksOptions { owner_id: owner.to_owned(), cursor, limit: None };
        let page = tasks.list(options).await.unwrap();
        ids.extend(page.tasks.into_iter().map(|record| record.task.task_id));
        cursor = page.next_cursor;
        if cursor.is_none() {
            return ids;
        }
    }
}

/// Makes every call, and returns what each answered.
async fn answers_of(backend: &dyn PmcpBackend) -> Vec<String> {
    let mut seen = Vec::new();
    let mut see = |answer: String| seen.push(answer);
    let key = "alice:t1";
    see(format!("{:?}", backend.get(key).await));
    see(format!("{:?}", backend.put_if_version(key, b"{}", 1).await));
    see(format!("{:?}", backend.put_if_version(key, b"{}", 0).await));
    see(format!("{:?}", backend.delete(key).await));
    see(format!("{:?}", backend.put(key, b"not JSON \xff").await));
    see(format!("{:?}", backend.get(key).await));
    see(format!("{:?}", backend.put(key, b"{}").await));
    see(format!("{:?}", backend.put_if_version(key, b"[]", 2).await));
    for version in [0, 2, 4, u64::MAX] {
        see(format!("{:?}", backend.put_if_version(key, b"{}", version).await));
    }
    see(format!("{:?}", backend.get(key).await));
    for key in ["alice:t2", "alice:u1", "bob:t1", "org:alice:t1"] {
        see(format!("{:?}", backend.put(key, key.as_bytes()).await));
        see(format!("{:?}", backend.get(key).await));
    }
    for prefix in ["alice:", "alice:t", "alice:t2", "bob:", "org:alice:", "nobody:"] {
        let mut listed = backend.list_by_prefix(prefix).await.unwrap();
        listed.sort_by(|(left, _), (right, _)| left.cmp(right));
        see(format!("{prefix} {listed:?}"));
    }
    for key in ["no colon", "alice:", ""] {
        see(format!("{:?}", backend.get(key).await));
        see(format!("{:?}", backend.put_if_version(key, b"{}", 1).await));
        see(format!("{:?}", backend.delete(key).await));
    }
    see(format!("{:?}", backend.delete(key).await));
    see(format!("{:?}", backend.delete(key).await));
    see(format!("{:?}", backend.put(key, b"{}").await));
    see(format!("{:?}", backend.cleanup_expired().await));
    seen
}

#[apply(on_every_engine)]
#[tokio::test]
async fn every_call_answers_like_the_call_of_pmcp_tasks_own_backend(#[case] engine: Engine) {
    let (_store, ours) = open(engine).await;
    let theirs = answers_of(&InMemoryBackend::new()).await;
    for (ours, theirs) in answers_of(&ours).await.iter().zip(&theirs) {
        assert_eq!(ours, theirs);
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_key_is_split_at_its_last_colon(#[case] engine: Engine) {
    let (store, adapter) = open(engine).await;
    adapter.put("auth0|7:org:alice:t1", b"{}").await.unwrap();
    assert_eq!(store.get(&key("auth0|7:org:alice", "t1")).await.unwrap().data, "{}");
    adapter.put("auth0|7:t2", b"{}").await.unwrap();
    let listed = adapter.list_by_prefix("auth0|7:").await.unwrap();
    assert_eq!(listed.len(), 1, "the prefix of an owner lists no task of an owner with a longer name");
    assert_eq!(listed[0].0, "auth0|7:t2");
    assert_eq!(adapter.list_by_prefix("auth0|7:org:alice:").await.unwrap()[0].0, "auth0|7:org:alice:t1");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn keys_that_no_record_can_have_are_rejected(#[case] engine: Engine) {
    let (_store, adapter) = open(engine).await;
    let keys = [
        "t1".to_owned(),
        "alice:".to_owned(),
        format!("alice:{}", "x".repeat(257)),
        format!("{PMCP_ANONYMOUS}:t1"),
    ];
    for key in keys {
        assert_refused!(adapter.put(&key, b"{}").await, PmcpError::Backend { message, .. } if message.starts_with("invalid key"));
        assert_refused!(adapter.get(&key).await, PmcpError::NotFound { key: asked } if asked == key);
        assert_refused!(adapter.put_if_version(&key, b"{}", 1).await, PmcpError::NotFound { .. });
        assert!(!adapter.delete(&key).await.unwrap());
    }
    assert_refused!(adapter.list_by_prefix("").await, PmcpError::Backend { .. });
    assert_refused!(adapter.list_by_prefix("alice").await, PmcpError::Backend { .. });
    assert!(adapter.list_by_prefix(&format!("{PMCP_ANONYMOUS}:")).await.unwrap().is_empty());
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_record_expires_at_its_expires_at_and_every_write_sets_it_again(#[case] engine: Engine) {
    let (store, adapter) = open(engine).await;
    let in_an_hour = store.now() + TimeDelta::hours(1);
    let is = |expires_at: Option<DateTime<Utc>>, at: DateTime<Utc>| {
        let late = expires_at.unwrap() - at;
        // The estimate of the engine's clock may lag, and times are whole milliseconds.
        assert!((TimeDelta::zero()..TimeDelta::milliseconds(500)).contains(&late), "{late}");
    };
    adapter.put("alice:t1", &expiring(rfc3339(in_an_hour))).await.unwrap();
    is(expires_at(&store).await, in_an_hour);
    for version in 1..6 {
        adapter.put_if_version("alice:t1", &expiring(rfc3339(in_an_hour)), version).await.unwrap();
        is(expires_at(&store).await, in_an_hour);
    }
    let tomorrow = in_an_hour + TimeDelta::days(1);
    adapter.put_if_version("alice:t1", &expiring(rfc3339(tomorrow)), 6).await.unwrap();
    is(expires_at(&store).await, tomorrow);
    // The same time in another time zone.
    let zone = chrono::FixedOffset::east_opt(2 * 3600).unwrap();
    adapter.put("alice:t1", &expiring(tomorrow.with_timezone(&zone).to_rfc3339())).await.unwrap();
    is(expires_at(&store).await, tomorrow);
    for endless in [expiring(Value::Null), b"{}".to_vec(), b"[1]".to_vec(), b"no JSON".to_vec(), Vec::new()] {
        adapter.put("alice:t1", &expiring(rfc3339(in_an_hour))).await.unwrap();
        adapter.put("alice:t1", &endless).await.unwrap();
        assert_eq!(expires_at(&store).await, None);
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_record_is_not_found_after_its_expires_at(#[case] engine: Engine) {
    let (store, adapter) = open(engine).await;
    for past in [TimeDelta::zero(), TimeDelta::milliseconds(1), TimeDelta::days(30_000)] {
        adapter.put("alice:t1", b"{}").await.unwrap();
        let written =
            adapter.put_if_version("alice:t1", &expiring(rfc3339(store.now() - past)), 1).await.unwrap();
        assert_eq!(written, 2);
        store.until(store.now() + TimeDelta::milliseconds(3)).await;
        assert_refused!(adapter.get("alice:t1").await, PmcpError::NotFound { .. });
        assert_refused!(adapter.put_if_version("alice:t1", b"{}", 2).await, PmcpError::NotFound { .. });
        assert!(adapter.list_by_prefix("alice:").await.unwrap().is_empty());
        assert!(!adapter.delete("alice:t1").await.unwrap());
        assert_eq!(adapter.put("alice:t1", b"{}").await.unwrap(), 1, "the versions start again");
        adapter.delete("alice:t1").await.unwrap();
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_time_in_the_far_future_counts_as_100_years(#[case] engine: Engine) {
    let (store, adapter) = open(engine).await;
    for far in ["9999-12-31T23:59:59Z".to_owned(), rfc3339(DateTime::<Utc>::MAX_UTC - TimeDelta::days(1))] {
        if DateTime::parse_from_rfc3339(&far).is_ok() {
            adapter.put("alice:t1", &expiring(far)).await.unwrap();
            let lives = expires_at(&store).await.unwrap() - store.now();
            assert!((36_524..36_526).contains(&lives.num_days()), "{lives}");
        }
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_time_that_cannot_be_read_is_rejected_and_nothing_is_written(#[case] engine: Engine) {
    let (store, adapter) = open(engine).await;
    adapter.put("alice:t1", b"{}").await.unwrap();
    for at in
        [json!("soon"), json!(""), json!(1_795_000_000), json!({}), json!(false), json!("2026-01-31 12:00")]
    {
        let refused = adapter.put("alice:t1", &expiring(at.clone())).await;
        assert_refused!(refused, PmcpError::Backend { message, .. } if message.contains("expiresAt"));
        let refused = adapter.put_if_version("alice:t1", &expiring(at.clone()), 1).await;
        assert_refused!(refused, PmcpError::Backend { .. });
        assert_refused!(adapter.put("alice:t2", &expiring(at)).await, PmcpError::Backend { .. });
    }
    assert_eq!(store.get(&key("alice", "t1")).await.unwrap().version.get(), 1);
    assert_eq!(store.ids("alice").await, ["t1"]);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_of_pmcp_tasks_receives_input_ends_and_expires(#[case] engine: Engine) {
    let (store, adapter) = open(engine).await;
    let tasks = tasks(adapter);
    let created = tasks.create("alice", "tools/call", Some(1_500)).await.unwrap();
    let id = created.task.task_id;
    let ends = created.expires_at.unwrap();
    tasks.set_variables(&id, "alice", HashMap::from([("step".to_owned(), json!(1))])).await.unwrap();
    let asked =
        tasks.record_input_requests(&id, "alice", json!({ "a": { "method": "roots/list" } })).await.unwrap();
    assert_eq!(asked["status"], "input_required");
    let delivered =
        tasks.deliver_inputs(&id, "alice", json!({ "a": { "roots": [] }, "x": 1 })).await.unwrap();
    assert_eq!(delivered, json!({ "accepted": ["a"], "ignored": ["x"], "complete": true }));
    let done = tasks
        .complete_with_result(&id, "alice", TaskStatus::Completed, None, json!({ "n": 42 }))
        .await
        .unwrap();
    assert_eq!(done.version, 5);

    let read = tasks.get(&id, "alice").await.unwrap();
    assert_eq!(
        (read.version, read.result, read.variables["step"].clone()),
        (5, Some(json!({ "n": 42 })), json!(1))
    );
    assert_eq!(read.expires_at, Some(ends));
    let lives = store.get(&key("alice", &id)).await.unwrap().expires_at.unwrap() - ends;
    assert!((TimeDelta::zero()..TimeDelta::milliseconds(500)).contains(&lives), "{lives}");
    assert_refused!(tasks.get(&id, "bob").await, TaskError::NotFound { .. });

    // Another process writes in between.
    let stale = store.get(&key("alice", &id)).await.unwrap();
    store.put(&key("alice", &id), stale.data.clone(), crate::support::keep()).await.unwrap();
    let adapter = tasks.backend();
    let conflict = adapter.put_if_version(&format!("alice:{id}"), &stale.data, 5).await;
    assert_refused!(conflict, PmcpError::VersionConflict { key, expected: 5, actual: 6 } if key == format!("alice:{id}"));

    store.until(store.get(&key("alice", &id)).await.unwrap().expires_at.unwrap()).await;
    assert_refused!(tasks.get(&id, "alice").await, TaskError::NotFound { .. });
    assert!(task_ids(&tasks, "alice").await.is_empty());
    let removed = tasks.cleanup_expired().await.unwrap();
    assert_eq!(removed, usize::from(engine.holds_expired_records()));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn all_tasks_of_an_owner_are_listed_over_several_pages(#[case] engine: Engine) {
    let (_store, adapter) = open(engine).await;
    let written = tasks(adapter.clone());
    let mut records = Vec::new();
    // The test writes the other records through the adapter, because the store of `pmcp-tasks` reads all records for
    // each create.
    let template = written.create("alice", "tools/call", None).await.unwrap();
    records.push(template.task.task_id.clone());
    for n in 1..600 {
        let mut record = template.clone();
        record.task.task_id = format!("task-{n}");
        let key = format!("alice:{}", record.task.task_id);
        adapter.put(&key, &serde_json::to_vec(&record).unwrap()).await.unwrap();
        records.push(record.task.task_id);
    }
    written.create("bob", "tools/call", None).await.unwrap();
    let mut listed = task_ids(&written, "alice").await;
    listed.sort();
    records.sort();
    assert_eq!(listed, records);

    let full = GenericTaskStore::new(adapter)
        .with_security(TaskSecurityConfig::default().with_max_tasks_per_owner(600));
    let refused = full.create("alice", "tools/call", None).await;
    assert_refused!(refused, TaskError::ResourceExhausted { .. });
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_empty_owner_has_tasks_that_no_other_owner_sees(#[case] engine: Engine) {
    let (store, adapter) = open(engine).await;
    let security = TaskSecurityConfig::default().with_allow_anonymous(true);
    let tasks = GenericTaskStore::new(adapter.clone()).with_security(security);
    let id = tasks.create("", "tools/call", None).await.unwrap().task.task_id;
    assert_eq!(tasks.get(&id, "").await.unwrap().task.task_id, id);
    assert_eq!(adapter.list_by_prefix(":").await.unwrap()[0].0, format!(":{id}"));
    assert_eq!(store.ids(PMCP_ANONYMOUS).await, std::slice::from_ref(&id));
    assert_refused!(tasks.get(&id, PMCP_ANONYMOUS).await, TaskError::NotFound { .. });
    assert_refused!(tasks.get(&id, "local").await, TaskError::NotFound { .. });
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_value_that_is_too_large_is_rejected_with_its_size(#[case] engine: Engine) {
    let (_store, adapter) = open(engine).await;
    let refused = adapter.put("alice:t1", &vec![b'x'; MAX_VALUE_BYTES + 1]).await;
    assert_refused!(refused, PmcpError::Backend { message, .. } if message.contains("4097"));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_server_of_pmcp_runs_on_pmcp_tasks_over_an_engine(#[case] engine: Engine) {
    use pmcp::server::task_store::TaskStore;
    use pmcp::types::{CallToolResult, Content};
    let (_store, adapter) = open(engine).await;
    let config = StoreConfig { max_ttl_ms: Some(60_000), ..StoreConfig::default() };
    let tasks = pmcp_tasks::ServerTaskStore::new(GenericTaskStore::new(adapter).with_config(config));
    let id = tasks.create("alice", Some(120_000)).await.unwrap().task_id;
    tasks.set_result(&id, "alice", CallToolResult::new(vec![Content::text("42")])).await.unwrap();
    let done =
        tasks.update_status(&id, "alice", pmcp::types::tasks::TaskStatus::Completed, None).await.unwrap();
    assert_eq!((done.status.is_terminal(), done.ttl), (true, Some(60_000)));
    assert_eq!(tasks.get_result(&id, "alice").await.unwrap().content.len(), 1);
}

#[cfg(feature = "redis-tests")]
#[tokio::test]
async fn a_damaged_record_is_left_out_of_a_listing() {
    let (store, adapter) = open(Engine::Redis).await;
    for task in ["good", "bad"] {
        adapter.put(&format!("alice:{task}"), b"{}").await.unwrap();
    }
    let _: i64 = store.redis.as_ref().unwrap().run(&["HSET", "{}:tasks:alice:bad", "version", "x"]);
    let listed = adapter.list_by_prefix("alice:").await.unwrap();
    assert_eq!(listed.iter().map(|(key, _)| &**key).collect::<Vec<_>>(), ["alice:good"]);
    assert_refused!(
        adapter.get("alice:bad").await,
        PmcpError::Backend { message, .. } if message == "the record of the task cannot be read"
    );
    assert!(adapter.delete("alice:bad").await.unwrap());
}

#[rstest]
#[tokio::test]
async fn an_error_of_the_engine_is_in_the_source_and_not_in_the_message() {
    let printed = Printed::default();
    let logged = printed.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || logged.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let adapter = PmcpTasksBackend::new(crate::support::failing::failing());
    let errors = [
        adapter.get("alice:t1").await.err(),
        adapter.put("alice:t1", b"{}").await.err(),
        adapter.put_if_version("alice:t1", b"{}", 1).await.err(),
        adapter.delete("alice:t1").await.err(),
        adapter.list_by_prefix("alice:").await.err(),
        adapter.cleanup_expired().await.err(),
    ];
    for error in errors {
        let error = error.unwrap();
        assert!(
            error.to_string().contains("unavailable") && !error.to_string().contains("10.0.0.7"),
            "{error}"
        );
        let source = error.source().unwrap().downcast_ref::<StorageError>().unwrap();
        assert!(source.is_retryable() && source.to_string().contains("10.0.0.7:6379"));
    }
    assert!(printed.text().contains("10.0.0.7:6379"), "{}", printed.text());

    let tasks = GenericTaskStore::new(adapter);
    let shown = tasks.create("alice", "tools/call", None).await.unwrap_err();
    assert!(!format!("{shown} {shown:?}").contains("10.0.0.7"), "{shown:?}");
}
