//! Calls of task tools by a client of the SDK, over a connection in this process.

use std::sync::Arc;

use async_trait::async_trait;
use mcp_task_store::{
    Agenda, MemoryBackend, OwnerSource, PageRequest, Priority, Queue, StorageError, TaskContext, TaskServer,
    TaskTools,
};
use rmcp::model::*;
use rmcp::service::{NotificationContext, RunningService, ServiceError};
use rmcp::task_manager::TaskExit;
use rmcp::{ClientLifecycleMode, RoleClient, RoleServer, ServerHandler};
use rstest::rstest;
use rstest_reuse::apply;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::{Router, in_memory, render, serve, until_cancelled, with_tasks};
use crate::support::intercept::{Call, Hooks, Intercept, Reply};
use crate::support::rmcp::*;
use crate::support::{Engine, on_every_engine, owner};

type Client = RunningService<RoleClient, ClientConfig>;

fn frames(frames: impl Into<Value>) -> JsonObject {
    JsonObject::from_iter([("frames".to_owned(), frames.into())])
}

/// Calls a tool and returns the id of its task.
async fn call(client: &Client, tool: &'static str, arguments: JsonObject) -> String {
    let call = CallToolRequestParams::new(tool).with_arguments(arguments);
    match client.call_tool_once(call).await.unwrap() {
        CallToolResponse::Task(created) => created.task.task_id,
        other => panic!("{other:?}"),
    }
}

/// Polls a task until it meets a condition.
async fn poll(client: &Client, task_id: &str, wanted: impl Fn(&DetailedTask) -> bool) -> TaskPayload {
    let polls = async {
        loop {
            let task = client.get_task(GetTaskParams::new(task_id)).await.unwrap().task;
            if wanted(&task) {
                return task.payload;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    within(polls).await
}

async fn end(client: &Client, task_id: &str) -> TaskPayload {
    poll(client, task_id, |task| task.status().is_terminal()).await
}

/// Asks the client, and returns its answer.
async fn publish(task: TaskContext, _: EmptyObject) -> Result<CallToolResult, TaskExit> {
    let answer = task.request_input("confirm", elicitation("Publish?")).await?;
    Ok(text(format!("the client has said {}", answer["action"].as_str().unwrap())))
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_client_with_tasks_receives_the_task_of_a_call_and_polls_answers_and_cancels_it(
    #[case] engine: Engine,
    #[values(newest(), ClientLifecycleMode::Initialize)] lifecycle: ClientLifecycleMode,
) {
    let (_store, one, _) = open(engine, LONG).await;
    let tools = TaskTools::new().tool("publish", "Publishes", publish).tool(
        "wait",
        "Waits",
        until_cancelled::<EmptyObject>,
    );
    let client = connect(serve(Router, &one, tools), with_tasks(), lifecycle).await;

    let published = call(&client, "publish", JsonObject::new()).await;
    let asked = poll(&client, &published, |task| task.status() == TaskStatus::InputRequired).await;
    let TaskPayload::InputRequired { input_requests } = asked else { panic!("{asked:?}") };
    assert!(input_requests.contains_key("confirm"), "{input_requests:?}");
    let answers = [("confirm".to_owned(), json!({ "action": "accept" }))].into();
    client.update_task(UpdateTaskParams::new(&published, answers)).await.unwrap();
    assert_eq!(said(&end(&client, &published).await), "the client has said accept");

    let waits = call(&client, "wait", JsonObject::new()).await;
    client.cancel_task(CancelTaskParams::new(&waits)).await.unwrap();
    assert!(matches!(end(&client, &waits).await, TaskPayload::Cancelled));

    let echo = client.call_tool_once(CallToolRequestParams::new("echo")).await.unwrap();
    let CallToolResponse::Complete(echo) = echo else {
        panic!("the tool of the handler stays as it is: {echo:?}")
    };
    assert_eq!(echo.content, text("echo of the handler").content);
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn arguments_that_do_not_have_the_type_are_refused_before_anything_is_stored_or_runs() {
    let backend: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
    let tasks = manager(&backend, LONG);
    let tools =
        TaskTools::new().tool("once", "Renders", render).tool("resumable", "Renders", render).resumable();
    let client = connect(serve(Router, &tasks, tools), with_tasks(), newest()).await;
    for tool in ["once", "resumable"] {
        for (arguments, expected) in
            [(JsonObject::new(), "missing field `frames`"), (frames("many"), "invalid type: string \"many\"")]
        {
            let call = CallToolRequestParams::new(tool).with_arguments(arguments);
            let Err(ServiceError::McpError(error)) = client.call_tool_once(call).await else {
                panic!("{expected}")
            };
            assert_eq!(error.code, ErrorCode::INVALID_PARAMS);
            assert!(error.message.contains(expected) && error.message.contains(tool), "{error:?}");
        }
    }
    assert_eq!(tasks.running_task_count(), 0);
    assert!(tasks.store().list(&alice(), PageRequest::new(10)).await.unwrap().tasks.is_empty());
    for queue in [Queue::leases(), Queue::work("resumable", Priority::Normal).unwrap()] {
        assert_eq!(backend.timers(&queue, None).await.unwrap().total, 0);
    }
    client.cancel().await.unwrap();
}

#[rstest]
#[tokio::test]
async fn a_client_without_tasks_is_refused_before_anything_is_stored_or_runs_if_the_tool_says_so(
    #[values(newest(), ClientLifecycleMode::Initialize)] lifecycle: ClientLifecycleMode,
) {
    let tasks = in_memory();
    let tools = TaskTools::new().tool("wait", "Waits", until_cancelled::<EmptyObject>).required();
    let client = connect(serve(Router, &tasks, tools), ClientCapabilities::default(), lifecycle).await;
    let refused = client.call_tool_once(CallToolRequestParams::new("wait")).await;
    let Err(ServiceError::McpError(error)) = refused else { panic!("{refused:?}") };
    assert_eq!(error, rmcp::ErrorData::missing_required_client_capability(with_tasks()));
    assert_eq!(tasks.running_task_count(), 0);
    assert!(tasks.store().list(&alice(), PageRequest::new(10)).await.unwrap().tasks.is_empty());
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn a_foreign_task_and_an_unknown_task_are_the_same_error_in_each_request() {
    let tasks = in_memory();
    let tools = TaskTools::new().tool("wait", "Waits", until_cancelled::<EmptyObject>);
    let of_alice = connect(serve(Router, &tasks, tools.clone()), with_tasks(), newest()).await;
    let of_bob = TaskServer::new(Router, tasks.clone(), OwnerSource::fixed(owner("bob")), tools).unwrap();
    let of_bob = connect(of_bob, with_tasks(), newest()).await;
    let foreign = call(&of_alice, "wait", JsonObject::new()).await;

    let errors = async |id: &str| {
        [
            of_bob.get_task(GetTaskParams::new(id)).await.unwrap_err().to_string(),
            of_bob.update_task(UpdateTaskParams::new(id, Default::default())).await.unwrap_err().to_string(),
            of_bob.cancel_task(CancelTaskParams::new(id)).await.unwrap_err().to_string(),
        ]
        .map(|error| error.replace(id, "ID"))
    };
    let unknown = errors("no-such-task").await;
    assert_eq!(errors(&foreign).await, unknown);
    assert!(unknown.iter().all(|error| *error == unknown[0]), "{unknown:?}");
    let cancels = of_alice.get_task(GetTaskParams::new(&foreign)).await.unwrap();
    assert_eq!(cancels.task.status(), TaskStatus::Working, "nobody has cancelled it");
    of_alice.cancel().await.unwrap();
    of_bob.cancel().await.unwrap();
}

#[apply(on_every_engine)]
#[tokio::test]
async fn another_instance_runs_a_call_of_a_resumable_tool_again(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    let (send, mut started) = mpsc::unbounded_channel();
    let until_resumed = move |task: TaskContext, arguments: super::Render| {
        let send = send.clone();
        async move {
            send.send(task.attempt()).unwrap();
            if task.attempt() == 1 {
                task.cancelled().await;
                return Err(TaskExit::Cancelled);
            }
            render(task, arguments).await
        }
    };
    let tools = TaskTools::new().tool("render", "Renders", until_resumed).resumable();
    let client = connect(serve(Router, &one, tools.clone()), with_tasks(), newest()).await;
    let rendered = call(&client, "render", frames(240)).await;
    assert_eq!(within(started.recv()).await, Some(1));
    within(one.shutdown()).await;
    client.cancel().await.unwrap();

    let client = connect(serve(Router, &other, tools), with_tasks(), newest()).await;
    assert_eq!(said(&end(&client, &rendered).await), "240 frames in attempt 2");
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn stored_arguments_that_the_function_of_another_version_cannot_take_fail_the_task() {
    let tasks = in_memory();
    let tools = TaskTools::new().tool("render", "Renders", render).resumable();
    let _server = serve(Router, &tasks, tools);
    let of_an_older_version = json!({ "scenes": 3 });
    let started = tasks.spawn_registered(&alice(), "render", of_an_older_version, resume()).await.unwrap();
    let TaskPayload::Failed { error } = ended(&tasks, &started.task_id).await else {
        panic!("the task fails")
    };
    assert_eq!(error["code"], -32602);
    assert!(error["message"].as_str().unwrap().contains("missing field `frames`"), "{error:?}");
}

/// Holds all writes of records while it is closed.
struct Held {
    engine: Arc<dyn Agenda>,
    is_open: watch::Sender<bool>,
    /// The number of writes that have arrived.
    writes: watch::Sender<usize>,
}

#[async_trait]
impl Hooks for Held {
    fn engine(&self) -> Arc<dyn Agenda> {
        Arc::clone(&self.engine)
    }

    async fn call(&self, call: Call) -> Result<Reply, StorageError> {
        if call.is_write() {
            self.writes.send_modify(|writes| *writes += 1);
            self.is_open.subscribe().wait_for(|is_open| *is_open).await.unwrap();
        }
        call.send(&*self.engine).await
    }
}

/// Reports cancelled requests.
struct Cancellations(mpsc::UnboundedSender<()>);

impl ServerHandler for Cancellations {
    async fn on_cancelled(&self, _: CancelledNotificationParam, _: NotificationContext<RoleServer>) {
        self.0.send(()).unwrap();
    }
}

/// Calls a tool, and cancels the call while its task is being created.
async fn cancel_early(
    client: &Client,
    held: &Held,
    cancelled: &mut mpsc::UnboundedReceiver<()>,
    tool: &'static str,
) {
    held.is_open.send_replace(false);
    let (peer, before) = (client.peer().clone(), *held.writes.borrow());
    let call = tokio::spawn(async move { peer.call_tool_once(CallToolRequestParams::new(tool)).await });
    within(held.writes.subscribe().wait_for(|writes| *writes > before)).await.unwrap();
    // The client of the SDK cancels a call whose future is dropped.
    call.abort();
    within(cancelled.recv()).await.unwrap();
    held.is_open.send_replace(true);
}

#[tokio::test]
async fn a_call_that_is_cancelled_before_its_answer_cancels_its_task_if_the_tool_says_so() {
    let held = Intercept::new(Held {
        engine: Arc::new(MemoryBackend::new()),
        is_open: watch::Sender::new(true),
        writes: watch::Sender::new(0),
    });
    let tasks = manager(&held.agenda(), LONG);
    let tools = TaskTools::new()
        .tool("cancels", "Waits", until_cancelled::<EmptyObject>)
        .cancel_with_request()
        .tool("runs_on", "Waits", until_cancelled::<EmptyObject>);
    let (send, mut cancelled) = mpsc::unbounded_channel();
    let client = connect(serve(Cancellations(send), &tasks, tools), with_tasks(), newest()).await;

    cancel_early(&client, &held, &mut cancelled, "cancels").await;
    until(|| *held.writes.borrow() > 1 && tasks.running_task_count() == 0).await;
    let page = tasks.store().list(&alice(), PageRequest::new(10)).await.unwrap();
    let statuses: Vec<_> = page.tasks.iter().map(|stored| stored.task.status).collect();
    assert_eq!(statuses, [mcp_task_store::TaskStatus::Cancelled]);

    let before = *held.writes.borrow();
    cancel_early(&client, &held, &mut cancelled, "runs_on").await;
    until(|| tasks.running_task_count() == 1).await;
    // A cancel would be written before the server has answered later requests.
    client.list_all_tools().await.unwrap();
    client.call_tool_once(CallToolRequestParams::new("runs_on")).await.unwrap();
    assert_eq!(*held.writes.borrow(), before + 2, "both tasks were created, and nothing else was written");
    client.cancel().await.unwrap();
}
