//! `pmcp`'s task store on the engines of this crate. It answers like `pmcp`'s own store, except for the differences
//! that the documentation of `PmcpTaskStore` lists.

mod comparison;
mod ending;
mod inputs;

use std::sync::Arc;
use std::time::Duration;

use mcp_task_store::{
    Agenda, LocalAgenda, MemoryBackend, PMCP_ANONYMOUS, PmcpTaskStore, StoreConfig, TaskStore,
};
use pmcp::server::task_store::{StoreConfig as PmcpConfig, TaskStore as PmcpStore, TaskStoreError};
use pmcp::types::mrtr::{InputRequests, InputResponse, InputResponses};
use pmcp::types::tasks::{Task, TaskStatus};
use pmcp::types::{CallToolResult, Content};
use rstest::rstest;
use rstest_reuse::apply;
use serde_json::{Value, json};

use crate::support::{Engine, Printed, Store, key, on_every_engine};

const ALICE: &str = "alice";

type Pmcp = PmcpTaskStore<Arc<dyn Agenda>>;

async fn open(engine: Engine) -> (Store, Pmcp) {
    open_with(engine, StoreConfig::new()).await
}

async fn open_with(engine: Engine, config: StoreConfig) -> (Store, Pmcp) {
    let store = engine.open().await;
    let tasks = PmcpTaskStore::new(TaskStore::with_config(Arc::clone(&store.backend), config));
    (store, tasks)
}

fn text(text: &str) -> CallToolResult {
    CallToolResult::new(vec![Content::text(text)])
}

fn requests(keys: &[&str]) -> InputRequests {
    let of = |key: &&str| {
        let params = json!({ "message": "which city?", "requestedSchema": { "type": "object" } });
        (key.to_string(), json!({ "method": "elicitation/create", "params": params }))
    };
    serde_json::from_value(keys.iter().map(of).collect()).unwrap()
}

fn roots() -> InputRequests {
    serde_json::from_value(json!({ "roots": { "method": "roots/list" } })).unwrap()
}

fn answers(keys: &[&str]) -> InputResponses {
    let kind = requests(&["a"])["a"].kind();
    let answer = json!({ "action": "accept", "content": { "city": "Berlin" } });
    let answer = |_| InputResponse::decode_for(kind, answer.clone()).unwrap();
    keys.iter().map(|key| (key.to_string(), answer(()))).collect()
}

async fn create(store: &dyn PmcpStore) -> String {
    store.create(ALICE, None).await.unwrap().task_id
}

/// What a call answered, apart from ids and times.
#[derive(Debug, PartialEq)]
enum Answer {
    Done(Value),
    NotFound,
    Expired,
    Invalid(TaskStatus, TaskStatus),
    Internal,
}

fn answer<T>(result: Result<T, TaskStoreError>, done: impl FnOnce(T) -> Value) -> Answer {
    match result {
        Ok(done_) => Answer::Done(done(done_)),
        Err(TaskStoreError::NotFound { .. }) => Answer::NotFound,
        Err(TaskStoreError::Expired { .. }) => Answer::Expired,
        Err(TaskStoreError::InvalidTransition { from, to, .. }) => Answer::Invalid(from, to),
        Err(TaskStoreError::Internal { .. }) => Answer::Internal,
    }
}

fn shown(task: Task) -> Value {
    json!([task.status, task.status_message, task.ttl, task.poll_interval])
}

#[apply(on_every_engine)]
#[tokio::test]
async fn after_the_ttl_an_open_task_has_failed_and_a_finished_task_is_kept(#[case] engine: Engine) {
    let config = StoreConfig::new().retention(Duration::from_secs(60));
    let (store, tasks) = open_with(engine, config).await;
    let open = tasks.create(ALICE, Some(400)).await.unwrap().task_id;
    let finished = tasks.create(ALICE, Some(400)).await.unwrap().task_id;
    tasks.set_result(&finished, ALICE, text("42")).await.unwrap();
    let deadline = tasks.tasks().get(&key(ALICE, &finished)).await.unwrap().task.deadline().unwrap();
    store.until(deadline + Duration::from_millis(1)).await;

    let shown = tasks.get(&open, ALICE).await.unwrap();
    assert_eq!((shown.status, shown.status_message.as_deref()), (TaskStatus::Failed, Some("TTL elapsed")));
    assert_eq!(tasks.get_error(&open, ALICE).await.unwrap()["message"], "TTL elapsed");
    for id in [&open, &finished] {
        assert_eq!(answer(tasks.cancel(id, ALICE).await, self::shown), Answer::Expired);
    }
    assert_eq!(answer(tasks.set_result(&open, ALICE, text("late")).await, |()| json!(null)), Answer::Expired);
    let delivered = tasks.deliver_task_inputs(&open, ALICE, answers(&["a"])).await;
    assert_eq!(answer(delivered, |delivery| json!(delivery)), Answer::Expired);
    assert_eq!(json!(tasks.get_result(&finished, ALICE).await.unwrap()), json!(text("42")));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_expired_task_is_not_found_and_does_not_count_against_the_quota(#[case] engine: Engine) {
    let config = StoreConfig::new().retention(Duration::ZERO).max_tasks_per_owner(1);
    let (store, tasks) = open_with(engine, config).await;
    let id = tasks.create(ALICE, Some(300)).await.unwrap().task_id;
    let expires_at = store.get(&key(ALICE, &id)).await.unwrap().expires_at.unwrap();
    assert_eq!(answer(tasks.create(ALICE, None).await, shown), Answer::Internal);
    store.until(expires_at).await;
    assert_eq!(answer(tasks.get(&id, ALICE).await, shown), Answer::NotFound);
    assert_eq!(tasks.list(ALICE, None).await.unwrap().0.len(), 0);
    tasks.create(ALICE, None).await.unwrap();
    let removed = if engine.holds_expired_records() { 0..=1 } else { 0..=0 };
    assert!(removed.contains(&tasks.cleanup_expired().await.unwrap()));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn pages_of_20_hold_every_task_once_newest_first(#[case] engine: Engine) {
    let (_store, tasks) = open(engine).await;
    let mut created = Vec::new();
    for _ in 0..45 {
        created.insert(0, create(&tasks).await);
    }
    tasks.create("bob", None).await.unwrap();
    let (mut listed, mut pages, mut cursor) = (Vec::new(), Vec::new(), None::<String>);
    loop {
        let (page, next) = tasks.list(ALICE, cursor.as_deref()).await.unwrap();
        pages.push(page.len());
        listed.extend(page.into_iter().map(|task| task.task_id));
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(listed, created);
    assert_eq!(pages, [20, 20, 5]);
    let (_, next) = tasks.list(ALICE, None).await.unwrap();
    for (owner, cursor) in [("bob", &*next.unwrap()), (ALICE, "nonsense"), (ALICE, &*created[3])] {
        let refused = tasks.list(owner, Some(cursor)).await;
        assert_refused!(refused, TaskStoreError::Internal { message } if message.starts_with("invalid page"));
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn clients_without_a_subject_share_one_owner_that_no_subject_can_have(#[case] engine: Engine) {
    let (_store, tasks) = open(engine).await;
    let id = tasks.create("", None).await.unwrap().task_id;
    assert_eq!(tasks.get(&id, "").await.unwrap().task_id, id);
    assert_eq!(tasks.list("", None).await.unwrap().0.len(), 1);
    tasks.tasks().get(&key(PMCP_ANONYMOUS, &id)).await.unwrap();
    for owner in [PMCP_ANONYMOUS, "local"] {
        assert_eq!(answer(tasks.get(&id, owner).await, shown), Answer::NotFound);
        assert_eq!(tasks.list(owner, None).await.unwrap().0.len(), 0);
    }
    assert_eq!(answer(tasks.create(PMCP_ANONYMOUS, None).await, shown), Answer::Internal);
    let too_long = "x".repeat(257);
    assert_eq!(answer(tasks.create(&too_long, None).await, shown), Answer::Internal);
    assert_eq!(answer(tasks.get(&id, &too_long).await, shown), Answer::NotFound);
    assert_eq!(answer(tasks.get(&too_long, ALICE).await, shown), Answer::NotFound);
}

#[tokio::test]
async fn a_call_over_a_limit_is_rejected_with_a_reason() {
    let config = StoreConfig::new().max_status_message_bytes(3).max_input_requests(1).max_tasks_per_owner(1);
    let tasks = PmcpTaskStore::new(TaskStore::with_config(MemoryBackend::new(), config));
    let id = create(&tasks).await;
    let message = |text: &str| Some(text.to_owned());
    let refusals = [
        tasks.create(ALICE, None).await.map(drop),
        tasks.create("bob", Some(0)).await.map(drop),
        tasks.set_status_message(&id, ALICE, message("long")).await.map(drop),
        tasks.update_status(&id, ALICE, TaskStatus::Completed, message("long")).await.map(drop),
        tasks.record_input_requests(&id, ALICE, requests(&["a", "b"])).await.map(drop),
    ];
    let reasons = ["has 1 tasks", "under 1 ms", "limit of 3", "limit of 3", "limit of 1"];
    for (refused, reason) in refusals.into_iter().zip(reasons) {
        assert_refused!(refused, TaskStoreError::Internal { message } if message.contains(reason));
    }
    assert_eq!(tasks.get(&id, ALICE).await.unwrap().status, TaskStatus::Working);
}

#[tokio::test]
async fn a_client_learns_that_the_storage_failed_but_not_on_which_host() {
    let printed = Printed::default();
    let logged = printed.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || logged.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let tasks = PmcpTaskStore::new(TaskStore::new(LocalAgenda::new(crate::support::failing::failing())));
    let answers = [
        tasks.create(ALICE, None).await.err(),
        tasks.get("t1", ALICE).await.err(),
        tasks.list(ALICE, None).await.err(),
        tasks.set_result("t1", ALICE, text("42")).await.err(),
        tasks.cleanup_expired().await.err(),
    ];
    for error in answers {
        let shown = format!("{0} {0:?}", error.unwrap());
        assert!(shown.contains("the task storage is unavailable"), "{shown}");
        assert!(!shown.contains("10.0.0.7") && !shown.contains("refused"), "{shown}");
    }
    assert!(
        printed.text().contains("10.0.0.7:6379") && printed.text().contains("refused"),
        "{}",
        printed.text()
    );
}

#[rstest]
#[case::defaults(StoreConfig::new(), Some(3_600_000), Some(86_400_000), 1000, 10_000)]
#[case::a_short_maximum_is_the_default(
    StoreConfig::new().max_ttl(Duration::from_secs(60)).default_ttl(None), Some(60_000), Some(60_000), 1000, 10_000)]
#[case::no_limits(
    StoreConfig::new().max_ttl(None).default_ttl(None).max_tasks_per_owner(None).default_poll_interval(None),
    None, None, 5000, usize::MAX)]
#[tokio::test]
async fn pmcp_reads_the_configuration_of_the_store(
    #[case] config: StoreConfig,
    #[case] ttl: Option<u64>,
    #[case] max_ttl: Option<u64>,
    #[case] poll_interval: u64,
    #[case] max_tasks: usize,
) {
    let tasks = PmcpTaskStore::from(TaskStore::with_config(MemoryBackend::new(), config));
    let PmcpConfig { default_ttl_ms, max_ttl_ms, default_poll_interval_ms, max_tasks_per_owner } =
        tasks.config();
    assert_eq!((*default_ttl_ms, *max_ttl_ms), (ttl, max_ttl));
    assert_eq!((*default_poll_interval_ms, *max_tasks_per_owner), (poll_interval, max_tasks));
    assert_eq!(tasks.create(ALICE, None).await.unwrap().ttl, ttl);
}
