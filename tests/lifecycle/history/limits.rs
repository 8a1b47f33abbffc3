//! The room of the history in the record: it never takes the room of a lease, a cancel or the end of the task.

use mcp_task_store::TaskError;
use rstest_reuse::apply;
use serde_json::{Value, json};

use super::{EventKind, events, open, set};
use crate::common::{claim_now, content_bytes, history_bytes, plain, record, resumable, start};
use crate::support::{Engine, MAX_VALUE_BYTES, on_every_engine, owner};

#[apply(on_every_engine)]
#[tokio::test]
async fn a_history_has_at_most_32_events_and_1_kib_and_keeps_the_first_and_the_last_ones(
    #[case] engine: Engine,
) {
    let store = engine.open_roomy().await;
    let tasks = open(&store);
    let key = tasks.enqueue(&owner("alice"), resumable()).await.unwrap().key;
    for _ in 0..25 {
        claim_now(&tasks, &key).await.release().await.unwrap();
    }
    let history = record(&*store, &key).await.history;
    assert_eq!((history.len(), &history[0].kind), (32, &EventKind::Created));
    let last: Vec<_> = history[1..].iter().map(|event| event.attempt.unwrap()).collect();
    let expected: Vec<u32> = (1..=25).flat_map(|attempt| [attempt, attempt]).collect();
    assert_eq!(last, expected[expected.len() - last.len()..]);

    // Long details use more room.
    let name = |number: usize| format!("{number:>60}");
    for number in 0..20 {
        tasks.request_input(&key, [(name(number), json!({}))]).await.unwrap();
        tasks.deliver_inputs(&key, [(name(number), json!(1))]).await.unwrap();
        let bytes = history_bytes(&store.get(&key).await.unwrap().data);
        assert!(bytes <= 1024, "{bytes}");
    }
    let history = record(&*store, &key).await.history;
    assert!((10..20).contains(&history.len()), "{history:?}");
    assert_eq!(history[0].kind, EventKind::Created);
    assert!(history[1..].iter().all(|event| event.detail.as_ref().is_some_and(|detail| detail.len() == 40)));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn the_content_of_a_task_has_the_same_room_with_a_long_history_and_with_a_short_one(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let tasks = open(&store);
    let max = MAX_VALUE_BYTES - 2 * 1024;
    for releases in [0, 30] {
        let (key, mut attempt) = start(&tasks, resumable()).await;
        for _ in 0..releases {
            attempt.release().await.unwrap();
            attempt = claim_now(&tasks, &key).await;
        }
        for _ in 0..4 {
            attempt.set_variables([("pad", json!(""))]).await.unwrap();
        }
        let room = max - content_bytes(&store.get(&key).await.unwrap().data);
        let pad = |bytes: usize| [("pad", json!("x".repeat(bytes)))];
        let refused = attempt.set_variables(pad(room + 1)).await;
        let error = refused.expect_err("one byte too much");
        assert!(
            matches!(&error, TaskError::LimitExceeded { actual, limit, .. }
                if (&**actual, &**limit) == (&*(max + 1).to_string(), &*max.to_string())),
            "{error}"
        );
        attempt.set_variables(pad(room)).await.unwrap();
        let data = store.get(&key).await.unwrap().data;
        assert_eq!(content_bytes(&data), max);
        assert!(if releases == 0 { history_bytes(&data) < 200 } else { history_bytes(&data) > 600 });
        attempt.release().await.unwrap();
        let ended = claim_now(&tasks, &key).await.complete(json!("done")).await.unwrap();
        assert_eq!(ended.task.history.last().unwrap().kind, EventKind::Completed);
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_record_that_an_earlier_version_has_filled_loses_events_and_no_change(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = open(&store);
    for left in [200, 60, 35] {
        let (key, attempt) = start(&tasks, plain()).await;
        for _ in 0..4 {
            attempt.renew().await.unwrap();
        }
        let room = MAX_VALUE_BYTES - left - store.get(&key).await.unwrap().data.len();
        set(&store, &key, "pad", json!("x".repeat(room - r#","pad":"""#.len()))).await;
        tasks.request_cancel(&key).await.unwrap();
        let data = store.get(&key).await.unwrap().data;
        assert!(data.len() <= MAX_VALUE_BYTES);
        let requested = events(&record(&*store, &key).await);
        let expected: &[&str] = match left {
            200 | 60 => &["created", "started 1", "cancel_requested 1"],
            _ => &["created", "cancel_requested 1"],
        };
        assert_eq!(requested, expected, "{left}");
        attempt.renew().await.unwrap();
        attempt.cancel().await.unwrap();
    }
    // No event fits.
    let (key, attempt) = start(&tasks, plain()).await;
    set(&store, &key, "history", Value::Null).await;
    for _ in 0..4 {
        attempt.renew().await.unwrap();
    }
    let room = MAX_VALUE_BYTES - 40 - store.get(&key).await.unwrap().data.len();
    set(&store, &key, "pad", json!("x".repeat(room - r#","pad":"""#.len()))).await;
    tasks.request_cancel(&key).await.unwrap();
    let requested = record(&*store, &key).await;
    assert_eq!((requested.cancel_requested, &*events(&requested)), (true, &[][..] as &[String]));
}
