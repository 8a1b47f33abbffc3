//! The status machine: which operation is allowed in which status.

use mcp_task_store::{RpcError, StoredTask, TaskError, TaskRef, TaskStatus};
use rstest_reuse::apply;
use serde_json::{Value, json};

use super::{STATUSES, Tasks, in_status, open};
use crate::support::{Engine, Store, on_every_engine};

/// What a call does to an open task, and to a task that has ended.
struct Operation {
    name: &'static str,
    /// The status that the call leads to; `None` if the status stays.
    to: Option<TaskStatus>,
    on_open: OnOpen,
    on_ended: OnEnded,
}

#[derive(PartialEq)]
enum OnOpen {
    Changes,
    HasNoEffect,
}

#[derive(PartialEq)]
enum OnEnded {
    IsRejected,
    HasNoEffect,
}

const OPERATIONS: [Operation; 8] = {
    use OnEnded::IsRejected;
    use OnOpen::Changes;
    use TaskStatus::{Cancelled, Completed, Failed, InputRequired, Working};
    const fn operation(
        name: &'static str,
        to: Option<TaskStatus>,
        on_open: OnOpen,
        on_ended: OnEnded,
    ) -> Operation {
        Operation { name, to, on_open, on_ended }
    }
    [
        operation("set_status_message", None, Changes, IsRejected),
        operation("request_input", Some(InputRequired), Changes, IsRejected),
        operation("deliver_inputs", None, OnOpen::HasNoEffect, OnEnded::HasNoEffect),
        operation("complete", Some(Completed), Changes, IsRejected),
        operation("fail", Some(Failed), Changes, IsRejected),
        operation("cancel", Some(Cancelled), Changes, IsRejected),
        operation("request_cancel", Some(Working), Changes, OnEnded::HasNoEffect),
        operation("set_variables", None, Changes, IsRejected),
    ]
};

async fn apply_operation(tasks: &Tasks, name: &str, task: TaskRef<'_>) -> Result<StoredTask, TaskError> {
    match name {
        "set_status_message" => tasks.set_status_message(task, "x").await,
        "request_input" => tasks.request_input(task, [("more", json!({}))]).await,
        "deliver_inputs" => tasks.deliver_inputs(task, [("unknown", json!({}))]).await,
        "complete" => tasks.complete(task, Value::Null).await,
        "fail" => tasks.fail(task, RpcError::new(7, "x")).await,
        "cancel" => tasks.cancel(task).await,
        "request_cancel" => tasks.request_cancel(task).await,
        "set_variables" => tasks.set_variables(task, [("name", json!(1))]).await,
        other => panic!("unknown operation {other}"),
    }
}

async fn check_operation(
    store: &Store,
    tasks: &Tasks,
    from: TaskStatus,
    operation: &Operation,
    by_copy: bool,
) {
    let before = in_status(tasks, from).await;
    let raw = store.get(&before.key).await.unwrap();
    let task: TaskRef<'_> = if by_copy { (&before).into() } else { (&before.key).into() };
    let outcome = apply_operation(tasks, operation.name, task).await;
    let after = store.get(&before.key).await.unwrap();
    let case = format!("{} of a task that is {from}", operation.name);
    let has_no_effect = match from.is_terminal() {
        true => operation.on_ended == OnEnded::HasNoEffect,
        false => operation.on_open == OnOpen::HasNoEffect,
    };
    if has_no_effect {
        assert_eq!((outcome.unwrap(), after), (before.clone(), raw), "{case}");
    } else if from.is_terminal() {
        assert_refused!(outcome, TaskError::InvalidTransition { from: stated, .. } if stated == from);
        assert_eq!(after, raw, "{case}");
    } else {
        let (changed, to) = (outcome.unwrap(), operation.to.unwrap_or(from));
        assert_eq!(changed.task.status, to, "{case}");
        assert_eq!(Some(changed.version), before.version.next(), "{case}: one write");
        assert!(changed.task.last_updated_at >= before.task.last_updated_at, "{case}");
        assert!(to == TaskStatus::InputRequired || changed.task.input_requests.is_empty(), "{case}");
        assert_eq!(tasks.get(&before.key).await.unwrap(), changed, "{case}");
    }
    tasks.delete(&before.key).await.unwrap();
}

#[apply(on_every_engine)]
#[tokio::test]
async fn each_status_allows_the_calls_of_the_table_and_a_rejected_call_changes_nothing(
    #[case] engine: Engine,
) {
    let (store, tasks) = open(engine).await;
    for from in STATUSES {
        for operation in &OPERATIONS {
            for by_copy in [false, true] {
                check_operation(&store, &tasks, from, operation, by_copy).await;
            }
        }
    }
}
