//! The records of tasks that are retried: full ones, and those of an earlier version.

use mcp_task_store::{PutOptions, Retry, RpcError, TaskError};
use rstest_reuse::apply;
use serde_json::{Value, json};

use super::{claim, error, message, open, retry};
use crate::common::{LONG, claim_now, resumable, start};
use crate::support::{Engine, MAX_VALUE_BYTES, on_every_engine};

fn pad(bytes: usize) -> [(&'static str, Value); 1] {
    [("pad", json!("x".repeat(bytes)))]
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_long_message_is_cut_and_a_full_record_keeps_only_the_number_of_the_attempt(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let tasks = open(&store);
    let long = RpcError::new(1, "\u{1}ä".repeat(2_000));
    let (key, attempt) = start(&tasks, resumable().retry(retry())).await;
    // The message fits neither with its control characters escaped, nor with the reserve of the record free.
    let retried = attempt.retry(long.clone()).await.unwrap();
    assert_eq!(message(&retried), "attempt 1 of 3 failed; next in 20 ms");
    let (_, attempt) = claim(&tasks, &key).await;
    for bytes in (0..MAX_VALUE_BYTES).rev().step_by(16) {
        match attempt.set_variables(pad(bytes)).await {
            Ok(_) => break,
            Err(error) => assert!(matches!(error, TaskError::LimitExceeded { .. }), "{error:?}"),
        }
    }
    let retried = attempt.retry(RpcError::new(1, "x".repeat(500))).await.unwrap();
    assert_eq!(message(&retried), "attempt 2 of 3 failed; next in 40 ms");
    let (_, attempt) = claim(&tasks, &key).await;
    for _ in 0..11 {
        attempt.renew().await.unwrap();
    }
    // An error that does not fit is refused, as by `fail`, and the attempt can end the task in another way.
    assert!(matches!(attempt.retry(long).await, Err(TaskError::LimitExceeded { .. })));
    let failed = attempt.retry(RpcError::new(1, "x".repeat(200))).await.unwrap();
    assert_eq!(
        (failed.task.gave_up_after, failed.task.error.as_ref().unwrap().message.len()),
        (Some(3), 200)
    );
}

#[apply(on_every_engine)]
#[tokio::test]
async fn the_record_states_the_policy_so_that_any_instance_applies_it_to_a_lost_worker(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let tasks = open(&store);
    let policy = Retry::exponential(5, std::time::Duration::from_micros(1_500), LONG).jittered();
    let (key, _attempt) = start(&tasks, resumable().retry(policy)).await;
    let json: Value = serde_json::from_slice(&store.get(&key).await.unwrap().data).unwrap();
    assert_eq!(json["retry"], json!({ "firstMs": 2, "maxMs": 3_600_000, "jittered": true }));
    assert_eq!(json["maxAttempts"], json!(5));
    let (key, _attempt) = start(&tasks, resumable().retry(retry())).await;
    let json: Value = serde_json::from_slice(&store.get(&key).await.unwrap().data).unwrap();
    assert_eq!(json["retry"], json!({ "firstMs": 20, "maxMs": 1_000 }));
    assert_eq!(json.get("maxAttempts"), None, "the record does not contain the default");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_that_an_earlier_version_has_stored_is_retried_like_any_other(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = open(&store);
    let (key, attempt) = start(&tasks, resumable().retry(retry())).await;
    attempt.release().await.unwrap();
    let mut json: Value = serde_json::from_slice(&store.get(&key).await.unwrap().data).unwrap();
    json.as_object_mut().unwrap().remove("retry").unwrap();
    let lease = json["lease"].as_object_mut().unwrap();
    lease.remove("delayMs").unwrap();
    lease.insert("losses".to_owned(), json!(1));
    json["statusMessage"] = json!("frame 7");
    store.put(&key, json.to_string().into(), PutOptions::default()).await.unwrap();
    let (claimed, attempt) = tasks.claim(&key).await.unwrap().unwrap();
    assert_eq!(message(&claimed), "frame 7");
    let retried = attempt.retry(error()).await.unwrap();
    assert_eq!(message(&retried), "attempt 2 of 3 failed: out of paper; next in 10 s");
    let failed = claim_now(&tasks, &key).await.retry(error()).await.unwrap();
    assert_eq!(failed.task.gave_up_after, Some(3));
}
