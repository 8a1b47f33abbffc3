//! Every duration and count that a user can set, at extreme values: nothing panics, and each rejection is an error.

use std::sync::Arc;
use std::time::Duration;

use mcp_task_store::{
    DurableTaskManager, Expiry, ManagerConfig, MemoryBackend, NewTask, Next, PageRequest, PutOptions, Queue,
    StorageError, StoreConfig, TaskError, TaskStore,
};
use rstest_reuse::apply;
use serde_json::json;

use crate::support::{Engine, key, on_every_agenda, owner};

/// Zero, one nanosecond, more milliseconds than a signed number of 32 bits holds, and the longest `Duration`.
const DURATIONS: [Duration; 4] =
    [Duration::ZERO, Duration::from_nanos(1), Duration::from_secs(25 * 86_400), Duration::MAX];

/// Makes one call of each kind under these settings, until one fails.
async fn every_call(config: StoreConfig) -> Result<(), TaskError> {
    let tasks = TaskStore::with_config(Arc::new(MemoryBackend::new()), config);
    let (task, attempt) = tasks.start(&owner("alice"), NewTask::new("tools/call")).await?;
    attempt.renew().await?;
    attempt.set_status_message("one").await?;
    attempt.set_variables([("a", json!({ "b": ["c"] }))]).await?;
    tasks.request_input(&task.key, [("key", json!({}))]).await?;
    tasks.deliver_inputs(&task.key, [("key", json!({}))]).await?;
    tasks.list(&owner("alice"), PageRequest::new(1)).await?;
    attempt.complete(json!(1)).await?;
    tasks.wait(&task.key).await.map(drop)
}

/// Asserts that the call succeeded, or was rejected with a reason.
fn assert_ok_or_reason(setting: &str, outcome: Result<(), TaskError>) {
    match outcome {
        Ok(()) => {}
        Err(TaskError::InvalidArgument { reason }) => {
            assert!(reason.contains("1 ms") && reason.contains("; "), "{setting}: {reason}");
        }
        Err(
            TaskError::LimitExceeded { .. } | TaskError::QuotaExceeded { .. } | TaskError::Contended { .. },
        ) => {}
        // The time limit of every call is one millisecond.
        Err(TaskError::Storage(StorageError::Unavailable { reason, .. })) if setting == "call_timeout" => {
            assert!(reason.contains("within 1ms"), "{reason}");
        }
        Err(error) => panic!("{setting}: {error:?}"),
    }
}

#[tokio::test]
async fn a_store_accepts_any_duration_or_rejects_it_with_a_reason() {
    for given in DURATIONS {
        let default = StoreConfig::new;
        for (setting, config) in [
            ("default_ttl", default().max_ttl(None).default_ttl(given)),
            ("max_ttl", default().default_ttl(None).max_ttl(given)),
            ("retention", default().retention(given)),
            ("default_poll_interval", default().default_poll_interval(given)),
            ("lease", default().lease(given)),
            ("call_timeout", default().call_timeout(given)),
        ] {
            assert_ok_or_reason(setting, every_call(config).await);
        }
        let tasks = TaskStore::with_config(Arc::new(MemoryBackend::new()), default().max_ttl(None));
        for new in [NewTask::new("m").ttl(given), NewTask::new("m").poll_interval(given)] {
            assert_ok_or_reason("a task", tasks.create(&owner("alice"), new).await.map(drop));
        }
    }
}

#[tokio::test]
async fn a_store_accepts_any_count_or_rejects_it_with_a_reason() {
    for given in [0, 1, usize::MAX] {
        let (small, large) = (u32::try_from(given).unwrap_or(u32::MAX), given as u64);
        let default = StoreConfig::new;
        for (setting, config) in [
            ("max_tasks_per_owner", default().max_tasks_per_owner(large)),
            ("max_status_message_bytes", default().max_status_message_bytes(given)),
            ("max_input_requests", default().max_input_requests(given)),
            ("max_variables_bytes", default().max_variables_bytes(given)),
            ("max_variables_depth", default().max_variables_depth(given)),
            ("max_variables_string_bytes", default().max_variables_string_bytes(given)),
            ("max_conflicts", default().max_conflicts(small)),
            ("max_attempts", default().max_attempts(small)),
        ] {
            assert_ok_or_reason(setting, every_call(config).await);
        }
        let engine = MemoryBackend::new().max_value_bytes(given).max_part_bytes(given);
        let manager = ManagerConfig::new().max_concurrent(given);
        let tasks = DurableTaskManager::with_config(TaskStore::new(Arc::new(engine)), manager);
        let new = NewTask::new("m").max_attempts(small);
        assert_ok_or_reason("a task", tasks.store().create(&owner("alice"), new).await.map(drop));
        tasks.shutdown().await;
    }
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn an_engine_accepts_any_duration_or_rejects_it_with_a_reason(#[case] engine: Engine) {
    let store = engine.open().await;
    let (leases, t1) = (Queue::leases(), key("alice", "t1"));
    let assert_clear = |outcome: Result<(), StorageError>| match outcome {
        Ok(()) => {}
        Err(StorageError::InvalidExpiry { .. } | StorageError::InvalidPage { .. }) => {
            assert!(outcome.unwrap_err().to_string().contains("between"));
        }
        Err(error) => panic!("{error:?}"),
    };
    for given in DURATIONS {
        let expiry = PutOptions::new(Expiry::After(given)).quota(u64::MAX);
        assert_ok_or_reason(store.put(&t1, "data".into(), expiry).await.map(drop));
        assert_ok_or_reason(store.schedule(&leases, &t1, given).await);
        store.schedule(&leases, &t1, Duration::ZERO).await.unwrap();
        assert_ok_or_reason(store.take_due(std::slice::from_ref(&leases), usize::MAX, given).await.map(drop));
        store.schedule(&leases, &t1, Duration::ZERO).await.unwrap();
        let taken = store.take_due(std::slice::from_ref(&leases), 1, Duration::ZERO).await.unwrap();
        assert_ok_or_reason(store.resolve(&taken.due[0], Next::After(given)).await.map(drop));
    }
    for given in [0, 1, usize::MAX] {
        assert_ok_or_reason(store.list(&owner("alice"), PageRequest::new(given)).await.map(drop));
        assert_ok_or_reason(
            store.list(&owner("alice"), PageRequest::new(9).max_bytes(given)).await.map(drop),
        );
        store.take_due(std::slice::from_ref(&leases), given, Duration::ZERO).await.unwrap();
    }
}

#[cfg(feature = "redis-tests")]
mod of_redis {
    use mcp_task_store::{RedisBackend, RedisBuilder};
    use rstest::rstest;

    use super::*;

    /// Asserts that a setting is rejected before anything is sent, with its name, its value and its bounds.
    async fn assert_refused(builder: RedisBuilder, words: &[&str]) {
        // No server listens there, so a connection would fail with `Unavailable`.
        let no_server = "redis://127.0.0.1:1";
        let error = builder.clone().connect(no_server).await.unwrap_err();
        assert!(matches!(error, StorageError::Backend { outcome_unknown: false, .. }), "{error:?}");
        let text = error.to_string();
        words.iter().for_each(|word| assert!(text.contains(word), "{word}: {text}"));
        for error in [
            builder.clone().connect_cluster([no_server]).await.unwrap_err(),
            builder.clone().connect_sentinel([no_server], "redis://mymaster").await.unwrap_err(),
        ] {
            assert_eq!(error.to_string(), text);
        }
    }

    #[tokio::test]
    async fn a_time_limit_is_1_ms_to_1_h() {
        let too_long = Duration::from_secs(3600) + Duration::from_nanos(1);
        let others = [Duration::from_nanos(999_999), too_long];
        for given in DURATIONS.into_iter().chain(others) {
            let (builder, value) = (RedisBackend::builder, format!("is {given:?};"));
            let bounds = "1 ms to 1 h";
            assert_refused(builder().connect_timeout(given), &["connect_timeout", &value, bounds]).await;
            assert_refused(builder().response_timeout(given), &["response_timeout", &value, bounds]).await;
        }
        let url = crate::support::redis::url();
        let hour = Duration::from_secs(3600);
        if !url.contains(',') {
            RedisBackend::builder().connect_timeout(hour).response_timeout(hour).connect(&url).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_maximum_size_is_1_byte_to_512_mib() {
        for given in [0, (512 << 20) + 1, usize::MAX] {
            let (builder, value) = (RedisBackend::builder, format!("is {given};"));
            let bounds = "1 byte to 512 MiB";
            assert_refused(builder().max_value_bytes(given), &["max_value_bytes", &value, bounds]).await;
            assert_refused(builder().max_part_bytes(given), &["max_part_bytes", &value, bounds]).await;
        }
    }

    #[rstest]
    #[case::no_time(1, Duration::ZERO)]
    #[case::less_than_a_millisecond(1, Duration::from_nanos(999_999))]
    #[case::as_long_as_a_call(1, Duration::from_secs(2))]
    #[case::without_end(1, Duration::MAX)]
    #[case::too_many(101, Duration::from_secs(1))]
    #[case::the_most(u32::MAX, Duration::from_secs(1))]
    #[tokio::test]
    async fn a_wait_for_replicas_is_for_at_most_100_and_shorter_than_a_call(
        #[case] count: u32,
        #[case] within: Duration,
    ) {
        let builder = RedisBackend::builder().wait_for_replicas(count, within);
        let error = builder.connect("redis://127.0.0.1:1").await.unwrap_err();
        assert!(matches!(error, StorageError::Backend { .. }), "{error:?}");
        assert!(error.to_string().contains("wait_for_replicas"), "{error}");
    }
}
