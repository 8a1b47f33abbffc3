//! What a record keeps of a later version through the writes of an attempt.

use mcp_task_store::{PutOptions, TaskKey};
use rstest_reuse::apply;
use serde_json::json;

use super::{open, resumable};
use crate::common::{LONG, start};
use crate::support::{Engine, Store, on_every_engine};

/// Replaces `from` with `to` in the record of a task.
async fn rewrite(store: &Store, key: &TaskKey, from: &str, to: &str) {
    let record = store.get(key).await.unwrap();
    let json = String::from_utf8(record.data.to_vec()).unwrap();
    assert!(json.contains(from), "{from} in {json}");
    store.put(key, json.replacen(from, to, 1).into(), PutOptions::default()).await.unwrap();
}

async fn json_of(store: &Store, key: &TaskKey) -> String {
    String::from_utf8(store.get(key).await.unwrap().data.to_vec()).unwrap()
}

#[apply(on_every_engine)]
#[tokio::test]
async fn fields_of_a_later_version_stay_in_a_lease_while_the_same_attempt_holds_it(#[case] engine: Engine) {
    let (store, tasks, other) = open(engine, LONG).await;
    let (key, attempt) = start(&tasks, resumable()).await;
    rewrite(&store, &key, r#""lease":{"#, r#""lease":{"zone":{"id":18446744073709551616},"#).await;
    attempt.renew().await.unwrap();
    // The writes of other callers do not remove these fields either.
    other.set_variables(&key, [("a", json!(1))]).await.unwrap();
    let renewed = json_of(&store, &key).await;
    assert!(renewed.contains(r#""zone":{"id":18446744073709551616}"#), "{renewed}");
    attempt.release().await.unwrap();
    assert!(!json_of(&store, &key).await.contains("zone"), "the lease without a holder is a new one");
    let (claimed, _attempt) = other.claim(&key).await.unwrap().unwrap();
    assert!(claimed.task.lease.as_ref().unwrap().extra.is_empty());
}

#[apply(on_every_engine)]
#[tokio::test]
async fn integers_that_a_value_cannot_hold_survive_every_write_digit_by_digit(#[case] engine: Engine) {
    let (store, tasks, other) = open(engine, LONG).await;
    let new = resumable().arguments(json!({ "n": "@", "text": "18446744073709551616" }));
    let (key, attempt) = start(&tasks, new).await;
    rewrite(&store, &key, r#""@""#, "-9223372036854775809").await;
    rewrite(&store, &key, r#""method""#, r#""later":[18446744073709551617,18446744073709551616],"method""#)
        .await;
    let is_whole = async |step: &str| {
        let json = json_of(&store, &key).await;
        for part in [
            r#""n":-9223372036854775809"#,
            r#""text":"18446744073709551616""#,
            r#""later":[18446744073709551617,18446744073709551616]"#,
        ] {
            assert!(json.contains(part), "{step}: {part} in {json}");
        }
    };
    attempt.renew().await.unwrap();
    is_whole("a renewal").await;
    let changed = other.set_variables(&key, [("a", json!(1))]).await.unwrap();
    other.set_status_message(&changed, "at work").await.unwrap();
    is_whole("a change of a copy").await;
    attempt.release().await.unwrap();
    let (_, next) = other.claim(&key).await.unwrap().unwrap();
    is_whole("a claim").await;
    next.complete(json!("done")).await.unwrap();
    is_whole("the end").await;
}
