//! Every limit of the lifecycle: at the limit, and one past it. A rejected call leaves the task as it was.

mod extremes;

use std::sync::Arc;
use std::time::Duration;

use mcp_task_store::{
    Expiry, MemoryBackend, NewTask, PageRequest, RpcError, StorageBackend, StoreConfig, StoredTask,
    TaskError, TaskStatus, TaskStore, Ttl,
};
use rstest::rstest;
use serde_json::{Map, Value, json};

use crate::common::content_bytes;
use crate::support::{Engine, owner};

type Tasks = TaskStore<Arc<MemoryBackend>>;

fn with(config: StoreConfig) -> Tasks {
    TaskStore::with_config(Arc::new(MemoryBackend::new()), config)
}

fn call() -> NewTask {
    NewTask::new("tools/call")
}

async fn create(tasks: &Tasks) -> StoredTask {
    tasks.create(&owner("alice"), call()).await.unwrap()
}

/// Asserts that a call was rejected with the limit in its error, and changed nothing.
async fn assert_limit(
    tasks: &Tasks,
    before: &StoredTask,
    outcome: Result<StoredTask, TaskError>,
    limit: &str,
) {
    match outcome {
        Err(error @ TaskError::LimitExceeded { .. }) => {
            assert_eq!((error.code(), error.is_retryable()), (-32602, false));
            assert!(error.to_string().ends_with(&format!("over the limit of {limit}; reduce it")), "{error}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(tasks.get(&before.key).await.unwrap(), *before);
}

/// Asserts that a create was rejected and stored nothing.
async fn assert_not_created(tasks: &Tasks, new: NewTask) -> TaskError {
    let error = tasks.create(&owner("alice"), new).await.unwrap_err();
    assert_eq!(error.code(), -32602, "{error:?}");
    assert!(tasks.list(&owner("alice"), PageRequest::new(1)).await.unwrap().tasks.is_empty());
    error
}

fn nested(depth: usize) -> Value {
    (1..depth).fold(
        json!("deep"),
        |inner, level| if level % 2 == 0 { json!([inner]) } else { json!({ "x": inner }) },
    )
}

#[tokio::test]
async fn an_owner_has_at_most_as_many_tasks_as_the_quota() {
    assert_quota(Engine::Memory).await;
    #[cfg(feature = "redis-tests")]
    assert_quota(Engine::Redis).await;
}

async fn assert_quota(engine: Engine) {
    let store = engine.open().await;
    let tasks = TaskStore::with_config(Arc::clone(&store.backend), StoreConfig::new().max_tasks_per_owner(2));
    let alice = owner("alice");
    let first = tasks.create(&alice, call()).await.unwrap();
    tasks.complete(&first, json!("it is kept, so it counts")).await.unwrap();
    tasks.create(&alice, call()).await.unwrap();
    let error = tasks.create(&alice, call()).await.unwrap_err();
    assert!(matches!(error, TaskError::QuotaExceeded { quota: 2 }), "{error:?}");
    assert_eq!((error.code(), error.is_retryable()), (-32603, true));
    let text = error.to_string();
    assert!(text.contains("2 tasks") && text.contains("StoreConfig::max_tasks_per_owner"), "{text}");
    tasks.create(&owner("bob"), call()).await.unwrap();
    tasks.delete(&first.key).await.unwrap();
    tasks.create(&alice, call()).await.unwrap();
    let unlimited =
        TaskStore::with_config(Arc::clone(&store.backend), StoreConfig::new().max_tasks_per_owner(None));
    unlimited.create(&alice, call()).await.unwrap();
}

#[tokio::test]
async fn the_quota_is_10_000_unless_it_is_set() {
    let tasks = with(StoreConfig::new());
    for _ in 0..10_000 {
        create(&tasks).await;
    }
    assert_refused!(tasks.create(&owner("alice"), call()).await, TaskError::QuotaExceeded { quota: 10_000 });
}

#[tokio::test]
async fn a_poll_interval_is_1_ms_to_24_hours() {
    let day = Duration::from_secs(24 * 3600);
    let outside = [Duration::ZERO, Duration::from_micros(999), day + Duration::from_nanos(1), Duration::MAX];
    for interval in outside {
        let tasks = with(StoreConfig::new());
        let error = assert_not_created(&tasks, call().poll_interval(interval)).await;
        assert!(matches!(error, TaskError::InvalidArgument { .. }), "{error:?}");
        let tasks = with(StoreConfig::new().default_poll_interval(interval));
        let error = assert_not_created(&tasks, call()).await;
        assert!(matches!(error, TaskError::InvalidArgument { .. }), "{error:?}");
    }
    for (interval, millis) in [(Duration::from_millis(1), 1), (day, 86_400_000)] {
        let tasks = with(StoreConfig::new().default_poll_interval(interval));
        assert_eq!(create(&tasks).await.task.poll_interval_ms, Some(millis));
    }
}

#[tokio::test]
async fn extensions_have_at_most_4_kib_and_a_traceparent_is_valid() {
    let tasks = with(StoreConfig::new());
    let bytes = |bytes: usize| Map::from_iter([("a".to_owned(), json!("x".repeat(bytes - 8)))]);
    let over = assert_not_created(&tasks, call().extensions(bytes(4097))).await;
    let expected = "bytes of the extensions as JSON: 4097 is over the limit of 4096; reduce it";
    assert_eq!(over.to_string(), expected);
    let deep = Map::from_iter([("a".to_owned(), nested(101))]);
    let over = assert_not_created(&tasks, call().extensions(deep)).await;
    assert!(matches!(over, TaskError::LimitExceeded { .. }), "{over:?}");
    let malformed = assert_not_created(&tasks, call().traceparent("00-1-2-01")).await;
    assert!(matches!(malformed, TaskError::InvalidArgument { .. }), "{malformed:?}");

    let kept = tasks.create(&owner("alice"), call().extensions(bytes(4096))).await.unwrap();
    assert_eq!(tasks.get(&kept.key).await.unwrap().task.extensions, bytes(4096));
}

#[tokio::test]
async fn a_variable_is_never_null_and_is_removed_by_its_name() {
    let tasks = with(StoreConfig::new());
    let task =
        tasks.set_variables(&create(&tasks).await, [("a", json!(1)), ("b", json!([null]))]).await.unwrap();
    for null in [Value::Null, json!(f64::NAN), json!(f64::INFINITY)] {
        let error = tasks.set_variables(&task, [("a", json!(2)), ("b", null)]).await.unwrap_err();
        assert!(matches!(error, TaskError::InvalidArgument { .. }) && error.code() == -32602, "{error:?}");
        assert_eq!(tasks.get(&task.key).await.unwrap(), task);
    }
    assert_eq!(tasks.remove_variables(&task, ["c"]).await.unwrap(), task, "nothing is written");
    let task = tasks.remove_variables(&task, ["b", "c"]).await.unwrap();
    assert_eq!(json!(task.task.variables), json!({ "a": 1 }));
    let (task, attempt) = tasks.start(&owner("alice"), call()).await.unwrap();
    attempt.set_variables([("a", json!(1))]).await.unwrap();
    assert_refused!(attempt.set_variables([("a", Value::Null)]).await, TaskError::InvalidArgument { .. });
    assert!(attempt.remove_variables(["a"]).await.unwrap().task.variables.is_empty());
    tasks.cancel(&task.key).await.unwrap();
    assert_refused!(tasks.remove_variables(&task, ["a"]).await, TaskError::InvalidTransition { .. });
}

#[tokio::test]
async fn a_ttl_is_1_ms_to_the_maximum() {
    let tasks = with(StoreConfig::new().max_ttl(Duration::from_secs(10)));
    for refused in [Ttl::After(Duration::from_millis(10_001)), Ttl::Unlimited] {
        let error = assert_not_created(&tasks, call().ttl(refused)).await;
        assert!(matches!(&error, TaskError::LimitExceeded { limit, .. } if limit == "10000"), "{error:?}");
    }
    for refused in [Duration::ZERO, Duration::from_micros(999)] {
        let error = assert_not_created(&tasks, call().ttl(refused)).await;
        assert!(matches!(error, TaskError::InvalidArgument { .. }), "{error:?}");
    }
    for (asked, given) in [
        (Ttl::After(Duration::from_millis(10_000)), 10_000),
        (Ttl::After(Duration::from_millis(1)), 1),
        (Ttl::Default, 10_000),
    ] {
        let created = tasks.create(&owner("alice"), call().ttl(asked)).await.unwrap();
        assert_eq!(created.task.ttl_ms, Some(given), "{asked:?}");
    }
}

#[rstest]
#[case::both(Some(60), Some(600), Some(60_000))]
#[case::default_over_the_maximum(Some(600), Some(60), Some(60_000))]
#[case::no_default(None, Some(60), Some(60_000))]
#[case::no_maximum(Some(60), None, Some(60_000))]
#[case::neither(None, None, None)]
#[tokio::test]
async fn a_task_without_a_ttl_gets_the_default_within_the_maximum(
    #[case] default: Option<u64>,
    #[case] max: Option<u64>,
    #[case] given: Option<u64>,
) {
    let seconds = |seconds: Option<u64>| seconds.map(Duration::from_secs);
    let tasks = with(StoreConfig::new().default_ttl(seconds(default)).max_ttl(seconds(max)));
    let created = create(&tasks).await;
    assert_eq!((created.task.ttl_ms, created.expires_at.is_some()), (given, given.is_some()));
}

#[tokio::test]
async fn a_configured_ttl_is_at_least_1_ms() {
    for config in [StoreConfig::new().default_ttl(Duration::ZERO), StoreConfig::new().max_ttl(Duration::ZERO)]
    {
        let error = assert_not_created(&with(config), call()).await;
        assert!(matches!(error, TaskError::InvalidArgument { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn ttl_and_retention_are_at_most_100_years() {
    let tasks = with(StoreConfig::new().max_ttl(None));
    let error = assert_not_created(&tasks, call().ttl(Expiry::MAX / 2 + Duration::from_millis(1))).await;
    assert!(matches!(error, TaskError::InvalidArgument { .. }), "{error:?}");
    tasks.create(&owner("alice"), call().ttl(Expiry::MAX / 2)).await.unwrap();
}

#[tokio::test]
async fn a_method_is_not_empty() {
    let tasks = with(StoreConfig::new());
    let error = assert_not_created(&tasks, NewTask::new("")).await;
    assert!(matches!(error, TaskError::InvalidArgument { .. }), "{error:?}");
}

#[tokio::test]
async fn a_status_message_has_at_most_the_configured_bytes() {
    let tasks = with(StoreConfig::new().max_status_message_bytes(8));
    let error = assert_not_created(&tasks, call().status_message("123456789")).await;
    assert!(matches!(error, TaskError::LimitExceeded { .. }), "{error:?}");
    let task = tasks.create(&owner("alice"), call().status_message("12345678")).await.unwrap();
    let outcome = tasks.set_status_message(&task, "ééééé").await;
    assert_limit(&tasks, &task, outcome, "8").await;
    tasks.set_status_message(&task, "éééé").await.unwrap();
}

#[tokio::test]
async fn a_task_makes_at_most_the_configured_input_requests_in_its_life() {
    let tasks = with(StoreConfig::new().max_input_requests(3));
    let task = create(&tasks).await;
    let four = ["a", "b", "c", "d"].map(|key| (key, json!({})));
    let outcome = tasks.request_input(&task, four).await;
    assert_limit(&tasks, &task, outcome, "3").await;
    let task = tasks.request_input(&task, [("a", json!({})), ("b", json!({}))]).await.unwrap();
    let task = tasks.deliver_inputs(&task, [("a", json!({}))]).await.unwrap();
    let task = tasks.request_input(&task, [("c", json!({}))]).await.unwrap();
    let outcome = tasks.request_input(&task, [("d", json!({}))]).await;
    assert_limit(&tasks, &task, outcome, "3").await;
}

#[tokio::test]
async fn variables_have_at_most_the_configured_bytes_after_the_merge() {
    // {"a":"xxxx","b":"xxxx"} has 23 bytes.
    let tasks = with(StoreConfig::new().max_variables_bytes(23));
    let task = create(&tasks).await;
    let task = tasks.set_variables(&task, [("a", json!("xxxx"))]).await.unwrap();
    let outcome = tasks.set_variables(&task, [("b", json!("xxxxx"))]).await;
    assert_limit(&tasks, &task, outcome, "23").await;
    let task = tasks.set_variables(&task, [("b", json!("xxxx"))]).await.unwrap();
    let outcome = tasks.set_variables(&task, [("c", json!(1))]).await;
    assert_limit(&tasks, &task, outcome, "23").await;
    // Removing a variable frees space.
    let task = tasks.remove_variables(&task, ["b"]).await.unwrap();
    tasks.set_variables(&task, [("c", json!("xxxx"))]).await.unwrap();
}

#[tokio::test]
async fn a_variable_is_nested_at_most_as_deep_as_configured() {
    let tasks = with(StoreConfig::new().max_variables_depth(3));
    let task = create(&tasks).await;
    for deep in [nested(4), json!([[[[]]]])] {
        let outcome = tasks.set_variables(&task, [("a", deep)]).await;
        assert_limit(&tasks, &task, outcome, "3").await;
    }
    let fitting = [("a", nested(3)), ("b", json!([[[]]])), ("c", json!(1))];
    tasks.set_variables(&task, fitting).await.unwrap();
    // No configuration allows JSON that the store could not read back.
    let tasks = with(StoreConfig::new().max_variables_depth(500));
    let task = create(&tasks).await;
    let outcome = tasks.set_variables(&task, [("a", nested(101))]).await;
    assert_limit(&tasks, &task, outcome, "100").await;
    let task = tasks.set_variables(&task, [("a", nested(100))]).await.unwrap();
    assert_eq!(tasks.get(&task.key).await.unwrap(), task);
}

#[tokio::test]
async fn a_string_in_a_variable_has_at_most_the_configured_bytes() {
    let tasks = with(StoreConfig::new().max_variables_string_bytes(4));
    let task = create(&tasks).await;
    let too_long = [
        ("12345", json!(1)),
        ("a", json!("12345")),
        ("a", json!(["1", { "x": ["12345"] }])),
        ("a", json!({ "12345": 1 })),
    ];
    for variable in too_long {
        let outcome = tasks.set_variables(&task, [variable]).await;
        assert_limit(&tasks, &task, outcome, "4").await;
    }
    tasks.set_variables(&task, [("1234", json!(["1234", { "1234": "éé" }]))]).await.unwrap();
}

#[tokio::test]
async fn json_is_nested_at_most_100_levels_deep_and_can_be_read_back() {
    let tasks = with(StoreConfig::new());
    let (fits, too_deep) = (nested(100), nested(101));
    let error = assert_not_created(&tasks, call().arguments(too_deep.clone())).await;
    assert!(matches!(error, TaskError::LimitExceeded { .. }), "{error:?}");
    let task = tasks.create(&owner("alice"), call().arguments(fits.clone())).await.unwrap();
    let outcome = tasks.request_input(&task, [("a", too_deep.clone())]).await;
    assert_limit(&tasks, &task, outcome, "100").await;
    let task = tasks.request_input(&task, [("a", fits.clone()), ("b", json!(1))]).await.unwrap();
    let outcome = tasks.deliver_inputs(&task, [("a", too_deep.clone())]).await;
    assert_limit(&tasks, &task, outcome, "100").await;
    let task = tasks.deliver_inputs(&task, [("a", fits.clone())]).await.unwrap();
    let outcome = tasks.complete(&task, too_deep.clone()).await;
    assert_limit(&tasks, &task, outcome, "100").await;
    let error = |data: &Value| RpcError::new(1, "").with_data(data.clone());
    let outcome = tasks.fail(&task, error(&too_deep)).await;
    assert_limit(&tasks, &task, outcome, "100").await;
    let other = create(&tasks).await;
    tasks.fail(&other, error(&fits)).await.unwrap();
    let done = tasks.complete(&task, fits).await.unwrap();
    assert_eq!(tasks.get(&done.key).await.unwrap(), done);
    tasks.get(&other.key).await.unwrap();
}

/// An engine whose records have room for 1000 bytes of content, for the history, and for the reserve that only the lifecycle may use.
fn small() -> Tasks {
    TaskStore::new(Arc::new(MemoryBackend::new().max_value_bytes(1000 + 2 * 1024)))
}

async fn content(tasks: &Tasks, task: &StoredTask) -> usize {
    content_bytes(&tasks.backend().get(&task.key).await.unwrap().data)
}

#[tokio::test]
async fn a_record_is_at_most_as_large_as_the_engine_accepts() {
    let tasks = small();
    let task = create(&tasks).await;
    let message = |bytes| "x".repeat(bytes);
    let outcome = tasks.set_status_message(&task, message(1000)).await;
    assert_limit(&tasks, &task, outcome, "1000").await;
    // The first try shows how many bytes the record has without the message.
    let empty = tasks.set_status_message(&create(&tasks).await, "").await.unwrap();
    let other_bytes = content(&tasks, &empty).await;
    let outcome = tasks.set_status_message(&task, message(1001 - other_bytes)).await;
    assert_limit(&tasks, &task, outcome, "1000").await;
    let full = tasks.set_status_message(&task, message(1000 - other_bytes)).await.unwrap();
    let outcome = tasks.fail(&full, RpcError::new(1, message(3048))).await;
    assert_limit(&tasks, &full, outcome, "3048").await;
    tasks.fail(&full, RpcError::new(1, message(800))).await.unwrap();
}

#[tokio::test]
async fn a_task_whose_record_is_full_fails_after_its_ttl_like_any_other() {
    let tasks = small();
    let new = |bytes| call().ttl(Duration::from_millis(50)).arguments(json!("x".repeat(bytes)));
    let small = tasks.create(&owner("alice"), new(1)).await.unwrap();
    let other_bytes = content(&tasks, &small).await - 1;
    let full = tasks.create(&owner("alice"), new(1000 - other_bytes)).await.unwrap();
    while tasks.backend().now() < full.task.deadline().unwrap() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for operation in [tasks.complete(&full, json!(1)).await, tasks.cancel(&full.key).await] {
        let refused = matches!(operation, Err(TaskError::InvalidTransition { from: TaskStatus::Failed, .. }));
        assert!(refused, "{operation:?}");
    }
    assert_eq!(tasks.get(&full.key).await.unwrap().task.status, TaskStatus::Failed);
    assert_eq!(tasks.list(&owner("alice"), PageRequest::new(9)).await.unwrap().tasks.len(), 2);
}

#[tokio::test]
async fn an_outdated_copy_does_not_count_against_the_limits() {
    let tasks = small();
    let large = json!("x".repeat(500));
    let old = tasks.set_variables(&create(&tasks).await, [("a", large.clone())]).await.unwrap();
    tasks.remove_variables(&old.key, ["a"]).await.unwrap();
    tasks.set_variables(&old, [("b", large)]).await.unwrap();

    // The same is true of the limits that the store itself checks.
    let tasks = with(StoreConfig::new().max_variables_bytes(10));
    let old = tasks.set_variables(&create(&tasks).await, [("a", json!("xx"))]).await.unwrap();
    tasks.remove_variables(&old.key, ["a"]).await.unwrap();
    tasks.set_variables(&old, [("b", json!("xx"))]).await.unwrap();
}

#[tokio::test]
async fn a_page_has_1_to_256_tasks() {
    let tasks = with(StoreConfig::new().max_tasks_per_owner(None));
    for _ in 0..257 {
        create(&tasks).await;
    }
    for limit in [1, 256] {
        let page = tasks.list(&owner("alice"), PageRequest::new(limit)).await.unwrap();
        assert_eq!(page.tasks.len(), limit);
    }
    for limit in [0, 257] {
        let error = tasks.list(&owner("alice"), PageRequest::new(limit)).await.unwrap_err();
        assert!(matches!(error, TaskError::InvalidPage { .. }), "{error:?}");
    }
}
