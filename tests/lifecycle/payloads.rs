//! Arguments, results and checkpoints: large payloads are parts of the record. Only calls that set or load a payload
//! transfer it.

mod any_sequence;
#[cfg(feature = "rmcp")]
mod rmcp;

use std::sync::Arc;
use std::time::Duration;

use crate::support::intercept::Intercept;
use crate::support::recording::{Loss, Recording};
use crate::support::{Engine, Store, on_every_engine, owner};
use mcp_task_store::{
    Agenda, Attempt, DEFAULT_MAX_PART_BYTES, NewTask, OnWorkerLost, PageRequest, PartChange, PartName,
    Payload, PayloadKind, PutOptions, RpcError, StoreConfig, StoredTask, TaskError, TaskStatus, TaskStore,
    Version,
};
use rstest_reuse::apply;
use serde_json::{Value, json};

const INLINE: usize = 4096;
const LARGE: usize = 100_000;
const KINDS: [PayloadKind; 3] = [PayloadKind::Input, PayloadKind::Output, PayloadKind::Checkpoint];

type Tasks = TaskStore<Arc<dyn Agenda>>;
type Working = Attempt<Arc<dyn Agenda>>;

async fn open(engine: Engine) -> (Store, Arc<Intercept<Recording>>, Tasks) {
    let store = engine.open_roomy().await;
    let (recording, backend) = Recording::of(&store.backend);
    (store, recording, TaskStore::new(backend))
}

/// Returns a value whose JSON has this many bytes.
fn sized(bytes: usize, letter: char) -> Value {
    Value::String(letter.to_string().repeat(bytes - 2))
}

fn call() -> NewTask {
    NewTask::new("tools/call").operation("render").on_worker_lost(OnWorkerLost::Resume)
}

/// Releases a task, and claims it for the next attempt.
async fn next_attempt(tasks: &Tasks, attempt: &Working) -> Working {
    attempt.release().await.unwrap();
    tasks.claim(attempt.key()).await.unwrap().unwrap().1
}

/// Compares a payload with the value that was set, in the task that a call returned and in the task as it is read.
async fn assert_payload(tasks: &Tasks, returned: &StoredTask, kind: PayloadKind, value: Option<&Value>) {
    let read = tasks.get(&returned.key).await.unwrap();
    assert_eq!(read.task, returned.task, "a change returns what is stored");
    let bytes = value.map_or(0, |value| value.to_string().len());
    let expected = value.map(|value| match bytes {
        0..=INLINE => Payload::Inline(value.clone()),
        bytes => Payload::Stored { bytes },
    });
    assert_eq!(read.task.payload(kind), expected.as_ref());
    for task in [returned, &read] {
        assert_eq!(tasks.payload(task, kind).await.unwrap().as_ref(), value);
    }
    let record = tasks.backend().get(&returned.key).await.unwrap();
    let part = expected.is_some_and(|payload| payload.is_stored()).then_some(bytes);
    assert_eq!(record.parts.get(&kind.part()).copied(), part);
    let json: Value = serde_json::from_slice(&record.data).unwrap();
    let name = match kind {
        PayloadKind::Input => "arguments",
        PayloadKind::Output => "result",
        _ => "checkpoint",
    };
    let inline = if part.is_some() { None } else { value };
    assert_eq!(json.get(name), inline, "the record mentions inline payloads only");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_payload_over_4_kib_is_a_part_and_is_loaded_as_it_was_set(
    #[case] engine: Engine,
    #[values(3, INLINE - 1, INLINE, INLINE + 1, LARGE)] bytes: usize,
) {
    let (_store, recording, tasks) = open(engine).await;
    let [input, output, checkpoint] = ['i', 'o', 'c'].map(|letter| sized(bytes, letter));
    let (created, attempt) = tasks.start(&owner("alice"), call().arguments(input.clone())).await.unwrap();
    assert_payload(&tasks, &created, PayloadKind::Input, Some(&input)).await;
    assert_payload(&tasks, &created, PayloadKind::Checkpoint, None).await;
    let kept = attempt.set_checkpoint(checkpoint.clone()).await.unwrap();
    assert_payload(&tasks, &kept, PayloadKind::Checkpoint, Some(&checkpoint)).await;
    assert_payload(&tasks, &kept, PayloadKind::Output, None).await;
    let done = attempt.complete(output.clone()).await.unwrap();
    assert_payload(&tasks, &done, PayloadKind::Output, Some(&output)).await;
    assert_payload(&tasks, &done, PayloadKind::Input, Some(&input)).await;
    assert_payload(&tasks, &done, PayloadKind::Checkpoint, None).await;
    let loads = recording.loaded().len();
    assert_eq!(loads > 0, bytes > INLINE, "an inline payload is not loaded");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_result_and_a_checkpoint_may_be_null_and_null_arguments_count_as_none(#[case] engine: Engine) {
    let (_store, _, tasks) = open(engine).await;
    let (created, attempt) = tasks.start(&owner("alice"), call().arguments(Value::Null)).await.unwrap();
    assert_payload(&tasks, &created, PayloadKind::Input, None).await;
    let kept = attempt.set_checkpoint(Value::Null).await.unwrap();
    assert_payload(&tasks, &kept, PayloadKind::Checkpoint, Some(&Value::Null)).await;
    let done = attempt.complete(Value::Null).await.unwrap();
    assert_payload(&tasks, &done, PayloadKind::Output, Some(&Value::Null)).await;
}

// Checkpoints

#[apply(on_every_engine)]
#[tokio::test]
async fn a_checkpoint_replaces_the_previous_checkpoint_and_the_next_attempt_loads_it(#[case] engine: Engine) {
    let (_store, _, tasks) = open(engine).await;
    let (_, attempt) = tasks.start(&owner("alice"), call()).await.unwrap();
    for bytes in [LARGE, LARGE + 1, 10, 20, LARGE, 30, LARGE] {
        let kept = attempt.set_checkpoint(sized(bytes, 'c')).await.unwrap();
        assert_payload(&tasks, &kept, PayloadKind::Checkpoint, Some(&sized(bytes, 'c'))).await;
    }
    let next = next_attempt(&tasks, &attempt).await;
    let read = next.read().await.unwrap();
    assert_payload(&tasks, &read, PayloadKind::Checkpoint, Some(&sized(LARGE, 'c'))).await;
    let late = attempt.set_checkpoint(json!("late")).await;
    assert_refused!(late, TaskError::LeaseLost { attempt: 1, .. });
    assert_payload(&tasks, &read, PayloadKind::Checkpoint, Some(&sized(LARGE, 'c'))).await;
    next.cancel().await.unwrap();
    let late = next.set_checkpoint(json!("late")).await;
    assert_refused!(late, TaskError::InvalidTransition { from: TaskStatus::Cancelled, .. });
}

#[apply(on_every_engine)]
#[tokio::test]
async fn every_end_of_a_task_removes_its_checkpoint(
    #[case] engine: Engine,
    #[values(10, LARGE)] bytes: usize,
) {
    let (_store, _, tasks) = open(engine).await;
    for end in 0..4 {
        let (_, attempt) = tasks.start(&owner("alice"), call()).await.unwrap();
        let kept = attempt.set_checkpoint(sized(bytes, 'c')).await.unwrap();
        let ended = match end {
            0 => attempt.complete(json!("done")).await,
            1 => attempt.fail(RpcError::new(1, "broken")).await,
            2 => tasks.cancel(&kept).await,
            _ => {
                attempt.release().await.unwrap();
                tasks.request_cancel(attempt.key()).await
            }
        };
        let ended = ended.unwrap();
        assert!(ended.task.status.is_terminal());
        assert_payload(&tasks, &ended, PayloadKind::Checkpoint, None).await;
    }
}

#[tokio::test]
async fn a_checkpoint_is_nested_at_most_100_levels_deep() {
    let (_store, _, tasks) = open(Engine::Memory).await;
    let (_, attempt) = tasks.start(&owner("alice"), call()).await.unwrap();
    let nested = |depth| (1..depth).fold(json!(1), |inner, _| json!([inner]));
    let refused = attempt.set_checkpoint(nested(101)).await;
    assert_refused!(refused, TaskError::LimitExceeded { what, .. } if what == "depth of a checkpoint");
    let kept = attempt.set_checkpoint(nested(100)).await.unwrap();
    assert_payload(&tasks, &kept, PayloadKind::Checkpoint, Some(&nested(100))).await;
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_checkpoint_does_not_change_the_time_of_the_last_update(#[case] engine: Engine) {
    let (store, _, tasks) = open(engine).await;
    let (created, attempt) = tasks.start(&owner("alice"), call()).await.unwrap();
    store.until(created.task.created_at + Duration::from_millis(5)).await;
    let kept = attempt.set_checkpoint(sized(LARGE, 'c')).await.unwrap();
    assert_eq!(kept.task.last_updated_at, created.task.last_updated_at);
}

// Which calls send and load payloads

#[apply(on_every_engine)]
#[tokio::test]
async fn twenty_status_messages_on_a_task_with_4_mb_of_arguments_send_less_than_100_kb(
    #[case] engine: Engine,
) {
    let (_store, recording, tasks) = open(engine).await;
    let mut sums = Vec::new();
    for bytes in [INLINE + 1, 4_000_000] {
        let arguments = sized(bytes, 'i');
        let mut task = tasks.create(&owner("alice"), call().arguments(arguments.clone())).await.unwrap();
        recording.sent();
        for message in 10..30 {
            task = match message % 2 {
                0 => tasks.set_status_message(&task, message.to_string()).await.unwrap(),
                _ => tasks.set_status_message(&task.key, message.to_string()).await.unwrap(),
            };
        }
        let sent = recording.sent();
        assert_eq!((sent.len(), recording.loaded().len()), (20, 0));
        sums.push(sent.iter().map(|sent| sent.bytes()).sum::<usize>());
        assert_payload(&tasks, &task, PayloadKind::Input, Some(&arguments)).await;
        recording.loaded();
    }
    assert!(sums[1] < 100_000, "{sums:?}");
    assert_eq!(sums[0], sums[1], "the size of the arguments makes no difference");
    println!("{} bytes", sums[1]);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn reading_listing_and_waiting_load_no_payload(#[case] engine: Engine) {
    let (_store, recording, tasks) = open(engine).await;
    let new = call().arguments(sized(LARGE, 'i'));
    let (created, attempt) = tasks.start(&owner("alice"), new).await.unwrap();
    attempt.set_checkpoint(sized(LARGE, 'c')).await.unwrap();
    attempt.read().await.unwrap();
    attempt.renew().await.unwrap();
    let done = attempt.complete(sized(LARGE, 'o')).await.unwrap();
    assert_eq!(tasks.wait(&created.key).await.unwrap(), done);
    let page = tasks.list(&owner("alice"), PageRequest::new(9)).await.unwrap();
    assert_eq!(page.tasks, std::slice::from_ref(&done));
    assert_eq!(done.task.result, Some(Payload::Stored { bytes: LARGE }));
    assert_eq!(recording.loaded().len(), 0);
    tasks.payload(&done, PayloadKind::Output).await.unwrap();
    assert_eq!(recording.loaded(), ["output"]);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_that_expires_or_loses_its_worker_keeps_its_arguments_and_loses_its_checkpoint(
    #[case] engine: Engine,
) {
    let store = engine.open_roomy().await;
    let (recording, backend) = Recording::of(&store.backend);
    let lease = Duration::from_millis(20);
    let tasks = TaskStore::with_config(backend, StoreConfig::new().lease(lease));
    let arguments = sized(LARGE, 'i');
    let with_ttl = call().ttl(Duration::from_secs(1));
    let without_worker = NewTask::new("tools/call");
    let mut keys = Vec::new();
    for new in [with_ttl, without_worker] {
        let new = new.arguments(arguments.clone());
        let (created, attempt) = tasks.start(&owner("alice"), new).await.unwrap();
        attempt.set_checkpoint(sized(LARGE, 'c')).await.unwrap();
        keys.push(created.key);
    }
    recording.sent();
    for key in keys {
        let failed = tokio::time::timeout(Duration::from_secs(60), tasks.wait(&key)).await;
        let failed = failed.expect("the wait ends").unwrap();
        assert_eq!(failed.task.status, TaskStatus::Failed);
        assert_payload(&tasks, &failed, PayloadKind::Input, Some(&arguments)).await;
        assert_payload(&tasks, &failed, PayloadKind::Checkpoint, None).await;
    }
    let set = recording.sent().into_iter().flat_map(|sent| sent.parts.into_values());
    assert!(set.into_iter().all(|change| change == PartChange::Clear));
}

// Loading

#[apply(on_every_engine)]
#[tokio::test]
async fn a_payload_that_was_replaced_since_the_task_was_read_is_loaded_in_its_current_form(
    #[case] engine: Engine,
) {
    let (_store, _, tasks) = open(engine).await;
    let (_, attempt) = tasks.start(&owner("alice"), call()).await.unwrap();
    let old = attempt.set_checkpoint(sized(LARGE, 'c')).await.unwrap();
    for bytes in [LARGE * 2, 10] {
        attempt.set_checkpoint(sized(bytes, 'd')).await.unwrap();
        let loaded = tasks.payload(&old, PayloadKind::Checkpoint).await.unwrap();
        assert_eq!(loaded, Some(sized(bytes, 'd')));
    }
    attempt.complete(json!("done")).await.unwrap();
    assert_eq!(tasks.payload(&old, PayloadKind::Checkpoint).await.unwrap(), None);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_removed_payload_is_not_found_and_a_payload_that_is_not_json_is_unreadable(#[case] engine: Engine) {
    let (store, _, tasks) = open(engine).await;
    let created = tasks.create(&owner("alice"), call().arguments(sized(LARGE, 'i'))).await.unwrap();
    let data = store.get(&created.key).await.unwrap().data;
    let spoiled = PutOptions::default().set_part(PayloadKind::Input.part(), &b"{\"a\": "[..]);
    store.put_if_version(&created.key, data, spoiled, created.version).await.unwrap();
    let read = tasks.get(&created.key).await.unwrap();
    assert_eq!(read.task.arguments, Payload::Stored { bytes: 6 });
    let error = tasks.payload(&read, PayloadKind::Input).await.unwrap_err();
    assert!(matches!(error, TaskError::Unreadable { .. }) && error.code() == -32603, "{error:?}");
    tasks.delete(&created.key).await.unwrap();
    assert_refused!(tasks.payload(&read, PayloadKind::Input).await, TaskError::NotFound { .. });
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_instance_loads_the_payloads_that_another_one_stored(#[case] engine: Engine) {
    let (store, _, one) = open(engine).await;
    let other = TaskStore::new(store.of_another_process().await);
    let (created, attempt) = one.start(&owner("alice"), call().arguments(sized(LARGE, 'i'))).await.unwrap();
    let read = other.get(&created.key).await.unwrap();
    assert_payload(&other, &read, PayloadKind::Input, Some(&sized(LARGE, 'i'))).await;
    attempt.set_checkpoint(sized(LARGE, 'c')).await.unwrap();
    // This copy has no checkpoint, so its write conflicts, and the store applies the change to the current task.
    let done = other.complete(&read, sized(LARGE, 'o')).await.unwrap();
    for (kind, value) in [
        (PayloadKind::Input, Some(sized(LARGE, 'i'))),
        (PayloadKind::Output, Some(sized(LARGE, 'o'))),
        (PayloadKind::Checkpoint, None),
    ] {
        assert_payload(&one, &done, kind, value.as_ref()).await;
        assert_payload(&other, &done, kind, value.as_ref()).await;
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn fields_and_parts_of_later_versions_survive_an_update(#[case] engine: Engine) {
    let (store, _, tasks) = open(engine).await;
    let created = tasks.create(&owner("alice"), call().arguments(sized(LARGE, 'i'))).await.unwrap();
    let mut json: Value = serde_json::from_slice(&store.get(&created.key).await.unwrap().data).unwrap();
    json["stages"] = json!({ "of": [1, 2, null] });
    let later = PartName::try_from("later".to_owned()).unwrap();
    let options = PutOptions::default().set_part(later.clone(), "as it was");
    let data = serde_json::to_vec(&json).unwrap().into();
    store.put_if_version(&created.key, data, options, created.version).await.unwrap();
    let done = tasks.complete(&created.key, sized(LARGE, 'o')).await.unwrap();
    assert_eq!(done.task.extra["stages"], json["stages"]);
    assert_eq!(store.part(&created.key, &later).await.unwrap().unwrap().data, "as it was");
    assert_payload(&tasks, &done, PayloadKind::Input, Some(&sized(LARGE, 'i'))).await;
    assert_payload(&tasks, &done, PayloadKind::Output, Some(&sized(LARGE, 'o'))).await;
}

// Limits

#[apply(on_every_engine)]
#[tokio::test]
async fn a_payload_over_the_maximum_is_rejected_and_nothing_is_written(#[case] engine: Engine) {
    let (store, _, tasks) = open(engine).await;
    let too_large = || sized(DEFAULT_MAX_PART_BYTES + 1, 'x');
    let assert_limit = |error: TaskError, part: &str| {
        assert!(matches!(error, TaskError::LimitExceeded { .. }), "{error:?}");
        assert_eq!((error.code(), error.is_retryable()), (-32602, false));
        let text = error.to_string();
        assert!(
            text.contains(part) && text.ends_with("4194305 is over the limit of 4194304; reduce it"),
            "{text}"
        );
    };
    let error = tasks.create(&owner("alice"), call().arguments(too_large())).await.unwrap_err();
    assert_limit(error, "input");
    assert!(store.ids("alice").await.is_empty());
    let (created, attempt) = tasks.start(&owner("alice"), call()).await.unwrap();
    assert_limit(attempt.set_checkpoint(too_large()).await.unwrap_err(), "checkpoint");
    assert_limit(attempt.complete(too_large()).await.unwrap_err(), "output");
    assert_limit(tasks.complete(&created, too_large()).await.unwrap_err(), "output");
    assert_eq!(tasks.get(&created.key).await.unwrap(), created);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn each_payload_may_have_the_maximum_size(#[case] engine: Engine) {
    let (_store, _, tasks) = open(engine).await;
    let largest = |letter| sized(DEFAULT_MAX_PART_BYTES, letter);
    let (_, attempt) = tasks.start(&owner("alice"), call().arguments(largest('i'))).await.unwrap();
    let kept = attempt.set_checkpoint(largest('c')).await.unwrap();
    assert_payload(&tasks, &kept, PayloadKind::Checkpoint, Some(&largest('c'))).await;
    let done = attempt.complete(largest('o')).await.unwrap();
    assert_payload(&tasks, &done, PayloadKind::Input, Some(&largest('i'))).await;
    assert_payload(&tasks, &done, PayloadKind::Output, Some(&largest('o'))).await;
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_reserved_owner_is_rejected(#[case] engine: Engine) {
    let (store, _, tasks) = open(engine).await;
    for id in ["\0mcp/", "\0mcp/workers"] {
        let created = tasks.create(&owner(id), call()).await;
        assert_refused!(created, TaskError::InvalidArgument { .. });
        let started = tasks.start(&owner(id), call()).await.map(|(task, _)| task);
        assert_refused!(started, TaskError::InvalidArgument { .. });
        assert!(store.ids(id).await.is_empty());
    }
    tasks.create(&owner("\0mcp"), call()).await.unwrap();
}

#[apply(on_every_engine)]
#[tokio::test]
async fn no_call_reaches_the_records_of_a_reserved_owner(#[case] engine: Engine) {
    let (store, _, tasks) = open(engine).await;
    let created = tasks.create(&owner("alice"), call()).await.unwrap();
    let record = store.get(&created.key).await.unwrap();
    let key = crate::support::key("\0mcp/workers", "t1");
    store.put(&key, record.data, PutOptions::default()).await.unwrap();

    assert_refused!(tasks.get(&key).await, TaskError::NotFound { .. });
    assert_refused!(tasks.wait(&key).await, TaskError::NotFound { .. });
    assert_refused!(tasks.complete(&key, json!(1)).await, TaskError::NotFound { .. });
    assert_refused!(tasks.request_cancel(&key).await, TaskError::NotFound { .. });
    assert_refused!(tasks.delete(&key).await, TaskError::NotFound { .. });
    let mut foreign = created.clone();
    foreign.key = key.clone();
    assert_refused!(tasks.complete(&foreign, json!(1)).await, TaskError::NotFound { .. });
    assert_refused!(tasks.payload(&foreign, PayloadKind::Input).await, TaskError::NotFound { .. });
    assert!(tasks.claim(&key).await.unwrap().is_none());
    let page = tasks.list(&key.owner, PageRequest::new(10)).await.map(|page| page.tasks);
    assert_refused!(page, TaskError::InvalidArgument { .. });
    assert_eq!(store.get(&key).await.unwrap().version, Version::FIRST);
}

// Writes without an answer

#[apply(on_every_engine)]
#[tokio::test]
async fn a_write_of_a_payload_without_an_answer_is_resolved_and_applied_exactly_once(
    #[case] engine: Engine,
    #[values(&[Loss::Reply], &[Loss::Write], &[Loss::Write, Loss::Reply])] losses: &[Loss],
) {
    let (_store, recording, tasks) = open(engine).await;
    let lose = || losses.iter().for_each(|loss| recording.lose(*loss));
    lose();
    let (created, attempt) = tasks.start(&owner("alice"), call().arguments(sized(LARGE, 'i'))).await.unwrap();
    assert_eq!(created.version, Version::FIRST);
    assert_payload(&tasks, &created, PayloadKind::Input, Some(&sized(LARGE, 'i'))).await;
    lose();
    let kept = attempt.set_checkpoint(sized(LARGE, 'c')).await.unwrap();
    assert_payload(&tasks, &kept, PayloadKind::Checkpoint, Some(&sized(LARGE, 'c'))).await;
    lose();
    let done = attempt.complete(sized(LARGE, 'o')).await.unwrap();
    assert_eq!(done.version.get(), 3);
    assert_payload(&tasks, &done, PayloadKind::Output, Some(&sized(LARGE, 'o'))).await;
    assert_payload(&tasks, &done, PayloadKind::Checkpoint, None).await;
}
