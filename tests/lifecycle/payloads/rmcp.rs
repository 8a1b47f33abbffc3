//! Servers on rmcp: which payloads a poll loads, and which a resumed operation receives.

use crate::support::rmcp::{LONG, alice, ended, key, manager, register, resume, said, text, within};
use ::rmcp::ErrorData;
use ::rmcp::model::{TaskPayload, TaskStatus};
use ::rmcp::task_manager::{TaskExit, TaskFuture, TaskOptions};
use mcp_task_store::TaskContext;

use super::*;

#[apply(on_every_engine)]
#[tokio::test]
async fn a_poll_of_a_running_task_loads_nothing_and_a_poll_of_a_finished_task_only_its_result(
    #[case] engine: Engine,
) {
    let store = engine.open_roomy().await;
    let (recording, backend) = Recording::of(&store.backend);
    let manager = manager(&backend, LONG);
    manager.register("echo", |context: TaskContext, arguments: Value| -> TaskFuture {
        Box::pin(async move {
            context.cancelled().await;
            Ok(text(arguments.as_str().unwrap()))
        })
    });
    let arguments = sized(LARGE, 'i');
    let task = manager.spawn_registered(&alice(), "echo", arguments.clone(), TaskOptions::new()).await;
    let task_id = task.unwrap().task_id;
    for _ in 0..3 {
        let polled = manager.get_task(&alice(), &task_id).await.unwrap();
        assert_eq!(polled.status(), TaskStatus::Working);
    }
    manager.cancel_task(&alice(), &task_id).await.unwrap();
    within(manager.store().wait(&key(&task_id))).await.unwrap();
    assert_eq!(recording.loaded().len(), 0);
    let TaskPayload::Completed { result } = manager.get_task(&alice(), &task_id).await.unwrap().payload
    else {
        panic!("the task has not completed")
    };
    assert_eq!(result["content"][0]["text"], arguments);
    assert_eq!(recording.loaded(), ["output"]);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_failed_and_a_cancelled_task_are_polled_without_loading_anything(#[case] engine: Engine) {
    let store = engine.open_roomy().await;
    let (recording, backend) = Recording::of(&store.backend);
    let manager = manager(&backend, LONG);
    let exits: [fn() -> TaskExit; 2] =
        [|| TaskExit::Cancelled, || TaskExit::Error(ErrorData::internal_error("broken", None))];
    for exit in exits {
        manager.register("fail", move |_: TaskContext, _: Value| -> TaskFuture {
            Box::pin(async move { Err(exit()) })
        });
        let task = manager.spawn_registered(&alice(), "fail", sized(LARGE, 'i'), TaskOptions::new()).await;
        ended(&manager, &task.unwrap().task_id).await;
    }
    assert_eq!(recording.loaded().len(), 0);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_resumed_operation_receives_its_large_arguments(#[case] engine: Engine) {
    let store = engine.open_roomy().await;
    let (one, other) = (manager(&store.backend, LONG), manager(&store.backend, LONG));
    register(&one);
    let mut received = register(&other);
    let arguments = json!({ "frames": sized(LARGE, 'i') });
    let task = one.spawn_registered(&alice(), "wait", arguments.clone(), resume()).await.unwrap();
    within(one.shutdown()).await;
    assert_eq!(said(&ended(&other, &task.task_id).await), "attempt 2");
    assert_eq!(within(received.recv()).await.unwrap(), (2, arguments));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_whose_arguments_cannot_be_read_fails_instead_of_waiting_forever(#[case] engine: Engine) {
    let store = engine.open_roomy().await;
    let one = manager(&store.backend, LONG);
    register(&one);
    let task = one.spawn_registered(&alice(), "wait", sized(LARGE, 'i'), resume()).await.unwrap();
    within(one.shutdown()).await;
    let record = store.get(&key(&task.task_id)).await.unwrap();
    let spoiled = PutOptions::default().set_part(PayloadKind::Input.part(), "{");
    store.put_if_version(&key(&task.task_id), record.data, spoiled, record.version).await.unwrap();
    let other = manager(&store.backend, LONG);
    let _told = register(&other);
    let TaskPayload::Failed { error } = ended(&other, &task.task_id).await else {
        panic!("the task has not failed")
    };
    assert_eq!(error["code"], -32603);
}
