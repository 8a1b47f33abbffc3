//! What the tests of `DurableTaskManager` share.

use std::sync::Arc;
use std::time::Duration;

use ::rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ClientCapabilities, ClientConfig, ContentBlock,
    DetailedTask, ElicitRequest, ElicitRequestParams, ElicitationSchema, Implementation, InputRequest,
    ProtocolVersion, ServerCapabilities, ServerConfig, TaskPayload, TaskStatus,
};
use ::rmcp::service::{RequestContext, RunningService};
use ::rmcp::task_manager::{TaskExit, TaskFuture, TaskOptions};
use ::rmcp::{
    ClientHandler, ClientLifecycleMode, ClientServiceExt, ErrorData, RoleClient, RoleServer, ServerHandler,
    ServiceExt,
};
use mcp_task_store::{
    Agenda, DurableTaskManager, OnWorkerLost, OwnerId, RegisteredOptions, StoreConfig, TaskContext, TaskKey,
    TaskStore,
};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::elsewhere::elsewhere;
// Only the program `rmcp` uses these.
#[allow(unused_imports)]
pub use super::gate::{Gate, backend_error, corrupt_error, denied_error, unreachable_error};
#[allow(unused_imports)]
pub use super::intercept::Intercept;
use super::{Engine, Store, owner};

pub type Manager = DurableTaskManager<Arc<dyn Agenda>>;

/// A lease that does not lapse during a test, and one that does.
pub const LONG: Duration = Duration::from_secs(3600);
pub const SHORT: Duration = Duration::from_millis(300);

/// A server that responds to each call with a task. The tool `closure` runs the closure; any other name is that of a registered
/// operation.
#[derive(Clone)]
pub struct Responder {
    pub tasks: Manager,
    pub closure: fn(TaskContext) -> TaskFuture,
    pub registered: RegisteredOptions,
}

impl ServerHandler for Responder {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().enable_tasks().build())
    }

    async fn call_tool(
        &self,
        call: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        match &*call.name {
            "closure" => {
                self.tasks.spawn_for(&context, &alice(), "closure", TaskOptions::new(), self.closure).await
            }
            name => {
                let options = self.registered.clone();
                self.tasks.spawn_registered_for(&context, &alice(), name, Value::Null, options).await
            }
        }
    }
}

pub fn manager(backend: &Arc<dyn Agenda>, lease: Duration) -> Manager {
    // The record of a task whose TTL has elapsed lives longer than a test.
    let config = StoreConfig::new().lease(lease).retention(LONG);
    DurableTaskManager::new(TaskStore::with_config(Arc::clone(backend), config))
}

/// Opens a store and two instances of a server on it.
pub async fn open(engine: Engine, lease: Duration) -> (Store, Manager, Manager) {
    let store = engine.open().await;
    // The instances take each other for instances in another process.
    let (one, other) = (manager(&elsewhere(&store.backend), lease), manager(&store.backend, lease));
    (store, one, other)
}

/// The lifecycle of clients from 2026-07-28 on.
pub fn newest() -> ClientLifecycleMode {
    ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] }
}

/// Connects a client of the SDK to a server.
pub async fn connect(
    server: impl ServerHandler,
    capabilities: ClientCapabilities,
    lifecycle: ClientLifecycleMode,
) -> RunningService<RoleClient, ClientConfig> {
    let client = ClientConfig::new(capabilities, Implementation::new("test", "1"));
    connect_client(server, client, lifecycle).await
}

/// Connects a client of the SDK with a handler of its own to a server.
pub async fn connect_client<H: ClientHandler>(
    server: impl ServerHandler,
    client: H,
    lifecycle: ClientLifecycleMode,
) -> RunningService<RoleClient, H> {
    let (to_server, to_client) = tokio::io::duplex(64 * 1024);
    tokio::spawn(async move {
        let running = server.serve(to_client).await.unwrap();
        running.waiting().await.unwrap();
    });
    client.serve_with_lifecycle(to_server, lifecycle).await.unwrap()
}

pub fn alice() -> OwnerId {
    owner("alice")
}

pub fn text(text: impl Into<String>) -> CallToolResult {
    CallToolResult::success(vec![ContentBlock::text(text)])
}

pub fn elicitation(message: &str) -> InputRequest {
    InputRequest::Elicitation(ElicitRequest::new(ElicitRequestParams::FormElicitationParams {
        meta: None,
        message: message.to_owned(),
        requested_schema: ElicitationSchema::new([].into()),
    }))
}

pub async fn spawn<F>(manager: &Manager, operation: impl FnOnce(TaskContext) -> F) -> String
where
    F: Future<Output = Result<CallToolResult, TaskExit>> + Send + 'static,
{
    let options = TaskOptions::new();
    manager.spawn(&alice(), "test", options, |context| Box::pin(operation(context))).await.unwrap().task_id
}

/// Spawns an operation that returns "done" once the sender sends. Returns the sender and the id of the task.
pub async fn spawn_until_finished(manager: &Manager) -> (oneshot::Sender<()>, String) {
    let (finish, finished) = oneshot::channel();
    let task_id = spawn(manager, |_| async move {
        finished.await.unwrap();
        Ok(text("done"))
    })
    .await;
    (finish, task_id)
}

pub fn key(task_id: &str) -> TaskKey {
    super::key("alice", task_id)
}

pub fn resume() -> RegisteredOptions {
    RegisteredOptions::new().on_worker_lost(OnWorkerLost::Resume)
}

/// Polls a task, as a client does, until it meets a condition.
pub async fn polled(
    manager: &Manager,
    task_id: &str,
    wanted: impl Fn(&DetailedTask) -> bool,
) -> DetailedTask {
    let polling = async {
        loop {
            let task = manager.get_task(&alice(), task_id).await.unwrap();
            if wanted(&task) {
                return task;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), polling)
        .await
        .expect("the task meets the condition within a minute")
}

pub async fn ended(manager: &Manager, task_id: &str) -> TaskPayload {
    polled(manager, task_id, |task| task.status().is_terminal()).await.payload
}

pub async fn asks(manager: &Manager, task_id: &str) -> TaskPayload {
    polled(manager, task_id, |task| task.status() == TaskStatus::InputRequired).await.payload
}

/// Returns the text of a completed task, or the message of a failed one.
pub fn said(payload: &TaskPayload) -> String {
    match payload {
        TaskPayload::Completed { result } => result["content"][0]["text"].as_str().unwrap().to_owned(),
        TaskPayload::Failed { error } => error["message"].as_str().unwrap().to_owned(),
        other => format!("{other:?}"),
    }
}

pub async fn until(reached: impl Fn() -> bool) {
    within(async {
        while !reached() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("the future ends within a minute")
}

/// An instance in a runtime of its own. When the test kills it, everything in the runtime ends.
pub struct Mortal {
    pub runtime: tokio::runtime::Runtime,
    pub manager: Manager,
}

impl Mortal {
    pub fn start(store: &Store, lease: Duration) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        // Its connections end with its runtime.
        let connect = || runtime.block_on(store.of_another_process());
        let engine = std::thread::scope(|scope| scope.spawn(connect).join().unwrap());
        let guard = runtime.enter();
        let manager = manager(&elsewhere(&engine), lease);
        drop(guard);
        Self { runtime, manager }
    }

    /// Starts a task in its runtime.
    pub async fn spawn<T: Send + 'static>(&self, begin: impl Future<Output = T> + Send + 'static) -> T {
        self.runtime.spawn(begin).await.unwrap()
    }

    /// Ends the instance as `SIGKILL` does: it releases nothing.
    pub fn kill(self) {
        self.runtime.shutdown_background();
    }
}

/// Registers an operation that reports its attempts. The first attempt waits, and later ones complete.
pub fn register(manager: &Manager) -> mpsc::UnboundedReceiver<(u32, Value)> {
    let (send, attempts) = mpsc::unbounded_channel();
    manager.register("wait", move |context: TaskContext, arguments: Value| -> TaskFuture {
        let send = send.clone();
        Box::pin(async move {
            // A test may have dropped the receiver.
            let _ = send.send((context.attempt(), arguments));
            if context.attempt() > 1 {
                return Ok(text(format!("attempt {}", context.attempt())));
            }
            context.cancelled().await;
            Err(TaskExit::Cancelled)
        })
    });
    attempts
}
