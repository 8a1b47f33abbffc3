//! A `pmcp` server whose tasks are on the engines of this crate, and `pmcp`'s client.

use std::sync::Arc;
use std::time::Duration;

use crate::support::{Engine, Store, on_every_engine};
use async_trait::async_trait;
use mcp_task_store::{PmcpTaskStore, TaskStore};
use pmcp::server::task_store::{CreatedTask, TaskStore as PmcpStore};
use pmcp::server::typed_tool::TypedTool;
use pmcp::shared::{Transport, TransportMessage};
use pmcp::types::mrtr::InputResponse;
use pmcp::types::tasks::{Task, TaskStatus};
use pmcp::types::{CallToolResult, ClientCapabilities, Content, TaskSupport, ToolExecution};
use pmcp::{Client, Error, RequestHandlerExtra, Server, ToolCallResponse};
use rstest_reuse::apply;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// One end of a connection inside the process.
#[derive(Debug)]
struct End {
    sends: mpsc::UnboundedSender<TransportMessage>,
    receives: mpsc::UnboundedReceiver<TransportMessage>,
}

#[async_trait]
impl Transport for End {
    async fn send(&mut self, message: TransportMessage) -> pmcp::Result<()> {
        self.sends.send(message).map_err(|_| Error::internal("the other end is gone"))
    }

    async fn receive(&mut self) -> pmcp::Result<TransportMessage> {
        self.receives.recv().await.ok_or_else(|| Error::internal("the other end is gone"))
    }

    async fn close(&mut self) -> pmcp::Result<()> {
        Ok(())
    }
}

fn connection() -> (End, End) {
    let (to_server, at_server) = mpsc::unbounded_channel();
    let (to_client, at_client) = mpsc::unbounded_channel();
    (End { sends: to_server, receives: at_client }, End { sends: to_client, receives: at_server })
}

type Worker = fn(Arc<dyn PmcpStore>, CreatedTask) -> tokio::task::JoinHandle<()>;

/// Returns a tool whose answer makes `pmcp` create a task, and that starts `worker` on the task.
fn tool(answer: Value, store: Arc<dyn PmcpStore>, worker: Option<Worker>) -> impl pmcp::ToolHandler {
    let handler = move |_: Value, extra: RequestHandlerExtra| {
        if let Some(worker) = worker {
            let store = Arc::clone(&store);
            extra.on_task_created(move |created| drop(worker(store, created)));
        }
        let answer = answer.clone();
        Box::pin(async move { Ok(answer) }) as std::pin::Pin<Box<dyn Future<Output = _> + Send>>
    };
    TypedTool::new_with_schema("tool", json!({ "type": "object" }), handler)
        .with_execution(ToolExecution::new().with_task_support(TaskSupport::Required))
}

fn working() -> Value {
    json!({ "taskId": "the store chooses it", "status": "working", "ttl": 60_000 })
}

async fn complete(store: Arc<dyn PmcpStore>, CreatedTask { task, owner_id, .. }: CreatedTask) {
    store.set_status_message(&task.task_id, &owner_id, Some("1/2".into())).await.unwrap();
    store.set_result(&task.task_id, &owner_id, CallToolResult::new(vec![Content::text("42")])).await.unwrap();
    store.update_status(&task.task_id, &owner_id, TaskStatus::Completed, Some("done".into())).await.unwrap();
}

async fn fail(store: Arc<dyn PmcpStore>, CreatedTask { task, owner_id, .. }: CreatedTask) {
    let error = json!({ "code": -32000, "message": "out of paper" });
    store.set_error(&task.task_id, &owner_id, error).await.unwrap();
    store.update_status(&task.task_id, &owner_id, TaskStatus::Failed, Some("no paper".into())).await.unwrap();
}

/// Continues once the client has answered.
async fn complete_when_answered(store: Arc<dyn PmcpStore>, created: CreatedTask) {
    let (id, owner) = (&created.task.task_id, &created.owner_id);
    while store.get(id, owner).await.unwrap().status != TaskStatus::Working {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let snapshot = store.task_input_snapshot(id, owner).await.unwrap();
    let Some(InputResponse::Roots(answer)) = snapshot.input_responses.get("roots") else {
        panic!("{:?}", snapshot.input_responses);
    };
    let result = CallToolResult::new(vec![Content::text(format!("{} roots", answer.roots.len()))]);
    store.set_result(id, owner, result).await.unwrap();
    store.update_status(id, owner, TaskStatus::Completed, None).await.unwrap();
}

struct Running {
    client: Client<End>,
    store: Arc<dyn PmcpStore>,
    _store: Store,
}

async fn start(engine: Engine) -> Running {
    let opened = engine.open().await;
    let tasks = TaskStore::new(Arc::clone(&opened.backend));
    let store: Arc<dyn PmcpStore> = Arc::new(PmcpTaskStore::new(tasks));
    let content = json!({ "content": [{ "type": "text", "text": "at once" }] });
    let at_once = json!({ "taskId": "x", "status": "completed", "result": content });
    let asking = json!({
        "taskId": "x", "status": "input_required", "inputRequests": { "roots": { "method": "roots/list" } },
    });
    let tools: [(&str, Value, Option<Worker>); 5] = [
        ("idle", working(), None),
        ("at_once", at_once, None),
        ("completing", working(), Some(|store, created| tokio::spawn(complete(store, created)))),
        ("failing", working(), Some(|store, created| tokio::spawn(fail(store, created)))),
        ("asking", asking, Some(|store, created| tokio::spawn(complete_when_answered(store, created)))),
    ];
    let mut server = Server::builder().name("server").version("1.0.0").task_store(Arc::clone(&store));
    for (name, answer, worker) in tools {
        server = server.tool(name, tool(answer, Arc::clone(&store), worker));
    }
    let (here, there) = connection();
    tokio::spawn(server.build().unwrap().run(there));
    let mut client = Client::new(here);
    let initialized = client.initialize(ClientCapabilities::default()).await.unwrap();
    assert!(initialized.capabilities.tasks.is_some(), "the server offers tasks");
    Running { client, store, _store: opened }
}

impl Running {
    async fn call(&self, tool: &str) -> Task {
        match self.client.call_tool_with_task(tool.to_owned(), json!({})).await.unwrap() {
            ToolCallResponse::Task(task) => task,
            ToolCallResponse::Result(result) => panic!("{result:?}"),
        }
    }

    async fn ended(&self, id: &str) -> Task {
        loop {
            let task = self.client.tasks_get(id).await.unwrap();
            if task.status.is_terminal() {
                return task;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn result(&self, id: &str) -> Value {
        json!(self.client.tasks_result(id).await.unwrap().content)[0]["text"].clone()
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_call_that_completes_at_once_is_a_completed_task(#[case] engine: Engine) {
    let running = start(engine).await;
    let task = running.call("at_once").await;
    assert_eq!((task.status, task.ttl), (TaskStatus::Completed, Some(3_600_000)));
    assert_eq!(running.client.tasks_get(&task.task_id).await.unwrap().status, TaskStatus::Completed);
    assert_eq!(running.result(&task.task_id).await, "at once");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_worker_completes_a_task_and_the_client_fetches_the_result(#[case] engine: Engine) {
    let running = start(engine).await;
    let task = running.call("completing").await;
    assert_eq!((task.status, task.ttl, task.poll_interval), (TaskStatus::Working, Some(60_000), Some(1000)));
    let ended = running.ended(&task.task_id).await;
    assert_eq!(ended.status, TaskStatus::Completed);
    assert_eq!(running.result(&task.task_id).await, "42");
    // The second call may arrive after the client's read.
    for _ in 0..200 {
        if running.client.tasks_get(&task.task_id).await.unwrap().status_message.as_deref() == Some("done") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the second call did not set its message");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_worker_fails_a_task(#[case] engine: Engine) {
    let running = start(engine).await;
    let task = running.call("failing").await;
    assert_eq!(running.ended(&task.task_id).await.status, TaskStatus::Failed);
    let error = running.store.get_error(&task.task_id, "local").await.unwrap();
    assert_eq!(error, json!({ "code": -32000, "message": "out of paper" }));
    assert!(running.client.tasks_result(&task.task_id).await.is_err());
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_call_that_requests_input_continues_when_it_is_answered(#[case] engine: Engine) {
    let running = start(engine).await;
    let task = running.call("asking").await;
    assert_eq!(task.status, TaskStatus::InputRequired);
    let snapshot = running.store.task_input_snapshot(&task.task_id, "local").await.unwrap();
    let kind = snapshot.kind_of("roots").unwrap();
    let answer = json!({ "roots": [{ "uri": "file:///a" }, { "uri": "file:///b" }] });
    let answer = [("roots".to_owned(), InputResponse::decode_for(kind, answer).unwrap())].into();
    assert!(running.store.deliver_task_inputs(&task.task_id, "local", answer).await.unwrap().complete);
    assert_eq!(running.ended(&task.task_id).await.status, TaskStatus::Completed);
    assert_eq!(running.result(&task.task_id).await, "2 roots");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn tasks_are_listed_and_cancelled_and_foreign_ids_are_not_found(#[case] engine: Engine) {
    let running = start(engine).await;
    let client = &running.client;
    let ids = [running.call("idle").await.task_id, running.call("idle").await.task_id];
    let listed = client.tasks_list(None).await.unwrap();
    let listed: Vec<&str> = listed.tasks.iter().map(|task| &*task.task_id).collect();
    assert_eq!(listed, [&*ids[1], &*ids[0]]);

    let pending = client.tasks_result(&ids[0]).await.unwrap_err().to_string();
    assert!(pending.contains("not completed"), "{pending}");
    assert_eq!(client.tasks_cancel(&ids[0]).await.unwrap().status, TaskStatus::Cancelled);
    let again = client.tasks_cancel(&ids[0]).await.unwrap_err().to_string();
    assert!(again.contains("cancelled -> cancelled"), "{again}");

    let theirs = running.store.create("somebody", None).await.unwrap().task_id;
    let (foreign, unknown) = (client.tasks_get(&theirs).await, client.tasks_get("none").await);
    let said = |error: pmcp::Result<Task>, id: &str| error.unwrap_err().to_string().replace(id, "ID");
    assert_eq!(said(foreign, &theirs), said(unknown, "none"));
}
