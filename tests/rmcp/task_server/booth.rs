//! A tool whose calls enter and leave when the test says so, and a client whose calls become tasks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mcp_task_store::{OwnerSource, TaskContext, TaskServer, TaskServerConfig, TaskTools};
use rmcp::RoleClient;
use rmcp::model::*;
use rmcp::service::RunningService;
use rmcp::task_manager::TaskExit;
use tokio::sync::Semaphore;

use super::{Router, Server, with_tasks};
use crate::support::rmcp::*;

pub type Client = RunningService<RoleClient, ClientConfig>;

/// Serves tools whose calls become tasks at once.
pub fn serve(tasks: &Manager, tools: TaskTools) -> Server<Router> {
    let config = TaskServerConfig::new().answer_within(Duration::ZERO);
    TaskServer::with_config(Router, tasks.clone(), OwnerSource::fixed(alice()), tools, config).unwrap()
}

pub async fn client_of(tasks: &Manager, tools: TaskTools) -> Client {
    connect(serve(tasks, tools), with_tasks(), newest()).await
}

/// Calls a tool and returns the id of its task.
pub async fn call(client: &Client, tool: &'static str, arguments: JsonObject) -> String {
    let call = CallToolRequestParams::new(tool).with_arguments(arguments);
    match client.call_tool_once(call).await.unwrap() {
        CallToolResponse::Task(created) => created.task.task_id,
        other => panic!("{other:?}"),
    }
}

pub fn frames(frames: u64) -> JsonObject {
    JsonObject::from_iter([("frames".to_owned(), frames.into())])
}

/// A tool that counts how many of its calls run, and holds each until the test lets one leave.
#[derive(Clone)]
pub struct Booth {
    entered: Arc<AtomicUsize>,
    inside: Arc<AtomicUsize>,
    pub exits: Arc<Semaphore>,
}

impl Booth {
    pub fn new() -> Self {
        Self { entered: Arc::default(), inside: Arc::default(), exits: Arc::new(Semaphore::new(0)) }
    }

    pub fn tools(&self) -> TaskTools {
        let booth = self.clone();
        TaskTools::new().tool("photo", "Takes a photo", move |task, _: EmptyObject| booth.clone().enter(task))
    }

    pub async fn enter(self, task: TaskContext) -> Result<CallToolResult, TaskExit> {
        self.entered.fetch_add(1, Ordering::SeqCst);
        self.inside.fetch_add(1, Ordering::SeqCst);
        tokio::select! {
            exit = self.exits.acquire() => exit.unwrap().forget(),
            () = task.cancelled() => {}
        }
        self.inside.fetch_sub(1, Ordering::SeqCst);
        Ok(text(format!("photo of attempt {}", task.attempt())))
    }

    pub fn inside(&self) -> usize {
        self.inside.load(Ordering::SeqCst)
    }

    pub fn entered(&self) -> usize {
        self.entered.load(Ordering::SeqCst)
    }
}
