//! Calls whose operation starts in memory: what each costs, when its task is stored, and what is left of it.

mod spy;

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};

use rmcp::model::{
    CallToolResult, ContentBlock, ElicitRequest, ElicitRequestParams, ElicitationSchema, InputRequest,
};
use rmcp::task_manager::TaskExit;
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::*;
use crate::backend::{PageRequest, StorageBackend};
use crate::rmcp::stage::StopRequest;
use crate::store::StoreConfig;
use crate::task::{Payload, Progress, TaskStatus};
use spy::Spy;

type Manager = DurableTaskManager<Arc<Spy>>;

const HOUR: Duration = Duration::from_secs(3600);

fn alice() -> OwnerId {
    OwnerId::try_from("alice").unwrap()
}

fn manager_with(config: StoreConfig) -> (Arc<Spy>, Manager) {
    let spy = Arc::new(Spy::new());
    let store = TaskStore::with_config(Arc::clone(&spy), config.lease(HOUR));
    (spy, DurableTaskManager::new(store))
}

fn manager() -> (Arc<Spy>, Manager) {
    manager_with(StoreConfig::new())
}

fn said(text: &str) -> Result<CallToolResult, TaskExit> {
    Ok(CallToolResult::success(vec![ContentBlock::text(text)]))
}

fn limits() -> CallLimits {
    CallLimits {
        answer_within: Duration::from_millis(200),
        hold_for: Duration::from_secs(50),
        drain: Duration::from_secs(10),
    }
}

/// Calls an operation with the default limits.
async fn call<F>(manager: &Manager, operation: impl FnOnce(TaskContext) -> F) -> Result<CallAnswer, TaskError>
where
    F: Future<Output = Result<CallToolResult, TaskExit>> + Send + 'static,
{
    call_within(manager, limits(), operation).await
}

async fn call_within<F>(
    manager: &Manager,
    limits: CallLimits,
    operation: impl FnOnce(TaskContext) -> F,
) -> Result<CallAnswer, TaskError>
where
    F: Future<Output = Result<CallToolResult, TaskExit>> + Send + 'static,
{
    let new = NewTask::new("tools/call").operation("test");
    let operation = |context| -> TaskFuture { Box::pin(operation(context)) };
    manager.call(Span::current(), &alice(), new, limits, StopRequest::new().1, operation).await
}

fn text(result: &CallToolResult) -> serde_json::Value {
    serde_json::to_value(result).unwrap()["content"][0]["text"].clone()
}

#[track_caller]
fn ended(answer: Result<CallAnswer, TaskError>) -> serde_json::Value {
    match answer {
        Ok(CallAnswer::Ended(Outcome::Returned(Ok(result)))) => text(&result),
        Ok(CallAnswer::Ended(_)) => panic!("the operation failed"),
        Ok(CallAnswer::Stored(_)) => panic!("the task was stored"),
        Err(error) => panic!("{error}"),
    }
}

#[track_caller]
fn stored(answer: Result<CallAnswer, TaskError>) -> Arc<StoredTask> {
    match answer {
        Ok(CallAnswer::Stored(call)) => call,
        Ok(CallAnswer::Ended(_)) => panic!("the operation ended first"),
        Err(error) => panic!("{error}"),
    }
}

#[track_caller]
fn refused(answer: Result<CallAnswer, TaskError>) -> TaskError {
    match answer {
        Ok(_) => panic!("the call has no error"),
        Err(error) => error,
    }
}

async fn all_tasks(manager: &Manager) -> Vec<StoredTask> {
    manager.store().list(&alice(), PageRequest::new(256)).await.unwrap().tasks
}

/// Waits until nothing runs any more.
async fn runs_end(manager: &Manager) {
    timeout(HOUR, manager.runtime().runs.is_zero()).await.expect("a run has not ended");
    assert_eq!(manager.running_task_count(), 0);
}

/// Says when it is dropped.
struct DropFlag(Arc<AtomicBool>);

impl Drop for DropFlag {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Returns an operation that never ends, and whether it was dropped.
fn endless() -> (impl FnOnce(TaskContext) -> TaskFuture, Arc<AtomicBool>) {
    let is_dropped = Arc::new(AtomicBool::new(false));
    let flag = DropFlag(Arc::clone(&is_dropped));
    let operation = move |_| -> TaskFuture {
        Box::pin(async move {
            let _flag = flag;
            std::future::pending().await
        })
    };
    (operation, is_dropped)
}

fn question() -> InputRequest {
    InputRequest::Elicitation(ElicitRequest::new(ElicitRequestParams::FormElicitationParams {
        meta: None,
        message: "Which name?".to_owned(),
        requested_schema: ElicitationSchema::new([].into()),
    }))
}

fn output(task: &StoredTask) -> serde_json::Value {
    match &task.task.result {
        Some(Payload::Inline(result)) => result["content"][0]["text"].clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_quick_call_makes_no_call_of_the_engine() {
    let (spy, one) = manager();
    let answer = call(&one, |task| async move {
        task.progress(1, 2, "half");
        let checkpoint: Option<u32> = task.last_checkpoint().await?;
        assert_eq!((checkpoint, task.is_cancel_requested(), task.attempt()), (None, false, 1));
        sleep(Duration::from_millis(199)).await;
        said(task.owner().as_str())
    });
    assert_eq!(ended(answer.await), "alice");
    runs_end(&one).await;
    assert_eq!(spy.calls(), 0);
    let panics = call(&one, |_| async { panic!("a bug") }).await;
    assert!(matches!(panics, Ok(CallAnswer::Ended(Outcome::Panicked(_)))));
    runs_end(&one).await;
    assert_eq!(spy.calls(), 0);
    assert!(all_tasks(&one).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn options_that_the_store_does_not_accept_are_refused_before_the_operation_starts() {
    let (spy, one) = manager();
    for new in [
        NewTask::new("tools/call").ttl(HOUR * 25),
        NewTask::new("tools/call").poll_interval(Duration::ZERO),
        NewTask::new("tools/call").status_message("x".repeat(100_000)),
    ] {
        let operation = |_| -> TaskFuture { panic!("the operation has started") };
        refused(one.call(Span::current(), &alice(), new, limits(), StopRequest::new().1, operation).await);
    }
    let reserved = OwnerId::try_from("\0mcp/alice").unwrap();
    let operation = |_| -> TaskFuture { panic!("the operation has started") };
    refused(
        one.call(
            Span::current(),
            &reserved,
            NewTask::new("tools/call"),
            limits(),
            StopRequest::new().1,
            operation,
        )
        .await,
    );
    assert_eq!((spy.calls(), one.running_task_count()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_task_goes_out_only_after_its_create_was_acknowledged() {
    let (spy, one) = manager();
    spy.holds_creates.send_replace(true);
    let (finish, finished) = oneshot::channel::<()>();
    let mut answer = pin!(call(&one, |task| async move {
        task.progress(1, 2, "half");
        finished.await.unwrap();
        said("done")
    }));
    let begun = Instant::now();
    tokio::select! {
        biased;
        _ = &mut answer => panic!("the call is answered before the task is stored"),
        () = spy.receives_creates(1) => {}
    }
    assert_eq!(begun.elapsed().as_millis(), 200);
    assert!(timeout(Duration::from_secs(3), &mut answer).await.is_err());
    assert!(all_tasks(&one).await.is_empty());
    spy.holds_creates.send_replace(false);
    let task = stored(answer.await);
    let found = one.store().get(&task.key).await.unwrap();
    assert_eq!(found.task.status, TaskStatus::Working);
    assert_eq!(found.task.status_message.as_deref(), Some("half"));
    assert_eq!(found.task.progress, Some(Progress::new(1, 2)));
    sleep(Duration::from_secs(1)).await;
    let unchanged = one.store().get(&task.key).await.unwrap();
    assert_eq!(unchanged.version, task.version, "the create was the only write");
    finish.send(()).unwrap();
    let done = one.store().wait(&task.key).await.unwrap();
    assert_eq!(output(&done), "done");
    runs_end(&one).await;
}

#[tokio::test(start_paused = true)]
async fn a_create_that_is_refused_stops_the_operation_and_leaves_nothing() {
    let (_spy, one) = manager_with(StoreConfig::new().max_tasks_per_owner(1));
    let only = one.store().create(&alice(), NewTask::new("tools/call")).await.unwrap();
    let (operation, is_dropped) = endless();
    let begun = Instant::now();
    let error = refused(call(&one, operation).await);
    assert!(matches!(error, TaskError::QuotaExceeded { quota: 1 }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(1), "the create is not repeated");
    assert!(is_dropped.load(Ordering::SeqCst), "the operation is stopped before the call is answered");
    runs_end(&one).await;
    let left = all_tasks(&one).await;
    assert_eq!(left.iter().map(|task| &task.key).collect::<Vec<_>>(), [&only.key]);
}

#[tokio::test(start_paused = true)]
async fn a_create_that_fails_for_five_seconds_holds_the_call_and_leaves_one_record() {
    for loses_reply in [false, true] {
        let (spy, one) = manager();
        spy.is_down.store(!loses_reply, Ordering::SeqCst);
        spy.loses_reply.store(loses_reply, Ordering::SeqCst);
        let (finish, finished) = oneshot::channel::<()>();
        let begun = Instant::now();
        let mut answer = pin!(call(&one, |_| async move {
            finished.await.unwrap();
            said("done")
        }));
        assert!(timeout(Duration::from_secs(5), &mut answer).await.is_err(), "the call is held");
        spy.is_down.store(false, Ordering::SeqCst);
        let task = stored(answer.await);
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        assert_eq!(all_tasks(&one).await.len(), 1);
        finish.send(()).unwrap();
        let done = one.store().wait(&task.key).await.unwrap();
        assert_eq!(output(&done), "done", "loses_reply: {loses_reply}");
        runs_end(&one).await;
        assert_eq!(all_tasks(&one).await.len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn an_outcome_during_the_create_is_answered_at_once_and_ends_the_record() {
    let (spy, one) = manager();
    spy.holds_creates.send_replace(true);
    let (finish, finished) = oneshot::channel::<()>();
    let mut answer = pin!(call(&one, |_| async move {
        finished.await.unwrap();
        said("done")
    }));
    tokio::select! {
        biased;
        _ = &mut answer => panic!("the call is answered before the operation ends"),
        () = spy.receives_creates(1) => {}
    }
    finish.send(()).unwrap();
    assert_eq!(ended(answer.await), "done");
    assert!(all_tasks(&one).await.is_empty(), "the create is still under way");
    assert_eq!(one.running_task_count(), 1);
    spy.holds_creates.send_replace(false);
    runs_end(&one).await;
    let tasks = all_tasks(&one).await;
    let [task] = &*tasks else { panic!("{tasks:?}") };
    assert_eq!((task.task.status, output(task)), (TaskStatus::Completed, "done".into()));
    let lives = (task.expires_at.unwrap() - spy.now()).num_seconds();
    assert!((290..=300).contains(&lives), "the record lives for {lives} s");
}

#[tokio::test(start_paused = true)]
async fn an_outcome_after_a_create_without_a_reply_ends_the_record() {
    let (spy, one) = manager();
    spy.loses_reply.store(true, Ordering::SeqCst);
    let (finish, finished) = oneshot::channel::<()>();
    let mut answer = pin!(call(&one, |_| async move {
        finished.await.unwrap();
        said("done")
    }));
    assert!(timeout(Duration::from_secs(5), &mut answer).await.is_err(), "the call is held");
    finish.send(()).unwrap();
    assert_eq!(ended(answer.await), "done");
    spy.is_down.store(false, Ordering::SeqCst);
    runs_end(&one).await;
    let tasks = all_tasks(&one).await;
    let [task] = &*tasks else { panic!("{tasks:?}") };
    assert_eq!((task.task.status, output(task)), (TaskStatus::Completed, "done".into()));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_cannot_be_stored_within_the_hold_is_stopped_and_leaves_no_open_record() {
    for loses_reply in [false, true] {
        let (spy, one) = manager();
        spy.is_down.store(!loses_reply, Ordering::SeqCst);
        spy.loses_reply.store(loses_reply, Ordering::SeqCst);
        let (operation, is_dropped) = endless();
        let begun = Instant::now();
        let error = refused(call(&one, operation).await);
        assert!(error.is_retryable(), "{error}");
        assert_eq!(begun.elapsed().as_secs(), 50);
        assert!(is_dropped.load(Ordering::SeqCst));
        spy.is_down.store(false, Ordering::SeqCst);
        runs_end(&one).await;
        let statuses: Vec<_> = all_tasks(&one).await.iter().map(|task| task.task.status).collect();
        assert_eq!(statuses, if loses_reply { vec![TaskStatus::Failed] } else { vec![] });
    }
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_needs_its_task_has_it_stored_at_once() {
    let (spy, one) = manager();
    let limits = CallLimits { answer_within: HOUR, ..limits() };
    let begun = Instant::now();
    let asks = call_within(&one, limits, |task| async move {
        task.set_status_message("a question");
        let answer = task.request_input("a", question()).await?;
        said(answer["content"]["name"].as_str().unwrap())
    });
    let task = stored(asks.await);
    assert!(begun.elapsed() < Duration::from_secs(1));
    let asked = one.store().wait(&task.key).await.unwrap();
    assert_eq!(asked.task.status, TaskStatus::InputRequired);
    let answer = json!({ "action": "accept", "content": { "name": "x" } });
    one.update_task(&alice(), task.key.task.as_str(), [("a".to_owned(), answer)]).await.unwrap();
    let done = one.store().wait(&task.key).await.unwrap();
    assert_eq!(output(&done), "x");
    runs_end(&one).await;

    let sets = call_within(&one, limits, |task| async move {
        task.set_ttl(Duration::from_secs(60)).await?;
        task.set_poll_interval(Duration::from_secs(2)).await?;
        task.checkpoint("first").await?;
        assert_eq!(task.last_checkpoint::<String>().await?.as_deref(), Some("first"));
        task.cancelled().await;
        Err(TaskExit::Cancelled)
    });
    let task = stored(sets.await);
    let set = async {
        loop {
            let found = one.store().get(&task.key).await.unwrap();
            if found.task.checkpoint.is_some() {
                return found;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    let set = timeout(HOUR, set).await.unwrap();
    assert_eq!((set.task.ttl_ms, set.task.poll_interval_ms), (Some(60_000), Some(2_000)));
    one.cancel_task(&alice(), task.key.task.as_str()).await.unwrap();
    assert_eq!(one.store().wait(&task.key).await.unwrap().task.status, TaskStatus::Cancelled);
    runs_end(&one).await;
    assert_eq!(*spy.creates.borrow(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_for_calls_that_are_not_stored_and_then_answers_an_error() {
    let (spy, one) = manager();
    let limits = CallLimits { answer_within: Duration::from_secs(5), ..limits() };
    let ends_in_time = call_within(&one, limits, |_| async {
        sleep(Duration::from_secs(8)).await;
        said("in time")
    });
    let (operation, is_dropped) = endless();
    let never_ends = call_within(&one, limits, operation);
    let asks = call_within(&one, limits, |task| async move {
        sleep(Duration::from_secs(2)).await;
        task.checkpoint("first").await?;
        said("stored")
    });
    let shutdown = async {
        sleep(Duration::from_secs(1)).await;
        let begun = Instant::now();
        one.shutdown().await;
        begun.elapsed()
    };
    let timed = async {
        let begun = Instant::now();
        (refused(asks.await), begun.elapsed())
    };
    let (in_time, never, (asked, asked_after), took) =
        tokio::join!(ends_in_time, never_ends, timed, shutdown);
    assert_eq!(ended(in_time), "in time");
    assert!(matches!(refused(never), TaskError::ShuttingDown));
    assert!(matches!(asked, TaskError::ShuttingDown));
    assert_eq!((asked_after.as_secs(), took.as_secs()), (2, 10));
    assert!(is_dropped.load(Ordering::SeqCst));
    assert_eq!((spy.calls(), one.running_task_count()), (0, 0));
    let late = call(&one, |_| async { said("late") }).await;
    assert!(matches!(refused(late), TaskError::ShuttingDown));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_during_a_create_that_does_not_return_ends_within_its_limit() {
    let (spy, one) = manager_with(StoreConfig::new().call_timeout(HOUR));
    spy.holds_creates.send_replace(true);
    let (operation, is_dropped) = endless();
    let shutdown = async {
        spy.receives_creates(1).await;
        let begun = Instant::now();
        one.shutdown().await;
        begun.elapsed()
    };
    let (answer, took) = tokio::join!(call(&one, operation), shutdown);
    assert!(matches!(refused(answer), TaskError::ShuttingDown));
    assert!(is_dropped.load(Ordering::SeqCst));
    assert!(took <= Duration::from_secs(16), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_client_has_left_runs_on_and_is_stored_when_it_takes_long() {
    let (_spy, one) = manager();
    let (finish, finished) = oneshot::channel::<()>();
    let left = call(&one, |_| async move {
        finished.await.unwrap();
        said("done")
    });
    assert!(timeout(Duration::from_millis(100), left).await.is_err());
    sleep(Duration::from_secs(1)).await;
    let tasks = all_tasks(&one).await;
    let [task] = &*tasks else { panic!("{tasks:?}") };
    finish.send(()).unwrap();
    assert_eq!(output(&one.store().wait(&task.key).await.unwrap()), "done");
    runs_end(&one).await;
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_is_asked_to_stop_before_its_task_is_stored_leaves_nothing() {
    for is_down in [false, true] {
        let (spy, one) = manager();
        spy.is_down.store(is_down, Ordering::SeqCst);
        // While the engine is down, the operation is asked to stop during the tries to store its task.
        let after = Duration::from_secs(5);
        let limits = CallLimits { answer_within: if is_down { after / 5 } else { HOUR }, ..limits() };
        let (owner, (stop, signal)) = (alice(), StopRequest::new());
        let new = NewTask::new("tools/call").operation("test");
        let stops =
            one.call(Span::current(), &owner, new, limits, signal, |task: TaskContext| -> TaskFuture {
                Box::pin(async move {
                    task.cancelled().await;
                    assert!(task.is_cancel_requested());
                    Err(TaskExit::Cancelled)
                })
            });
        let begun = Instant::now();
        let asks = async {
            sleep(after).await;
            stop.send();
        };
        let (answer, ()) = tokio::join!(stops, asks);
        assert!(matches!(answer, Ok(CallAnswer::Ended(Outcome::Returned(Err(TaskExit::Cancelled))))));
        assert_eq!(begun.elapsed(), after);
        spy.is_down.store(false, Ordering::SeqCst);
        runs_end(&one).await;
        assert!(all_tasks(&one).await.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn an_operation_whose_call_has_its_answer_is_not_asked_to_stop() {
    let (_spy, one) = manager();
    let (owner, (stop, signal)) = (alice(), StopRequest::new());
    let new = NewTask::new("tools/call").operation("test");
    let waits = one.call(Span::current(), &owner, new, limits(), signal, |task: TaskContext| -> TaskFuture {
        Box::pin(async move {
            let stopped = timeout(Duration::from_secs(5), task.cancelled()).await.is_ok();
            said(if stopped || task.is_cancel_requested() { "stopped" } else { "done" })
        })
    });
    let task = stored(waits.await);
    drop(stop);
    assert_eq!(output(&one.store().wait(&task.key).await.unwrap()), "done");
    runs_end(&one).await;
}
