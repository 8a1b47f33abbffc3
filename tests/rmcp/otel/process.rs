//! A server and workers in processes of their own, which export their spans.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use mcp_task_store::{
    Agenda, DurableTaskManager, OwnerSource, StoreConfig, TaskContext, TaskServer, TaskServerConfig,
    TaskStore, TaskTools, Worker,
};
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider};
use rmcp::model::{CallToolResult, JsonObject};
use rmcp::task_manager::TaskExit;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry};

use super::{SECRET, TRACEPARENT};
use crate::support::place::Place;
use crate::support::rmcp::{alice, text, within};
use crate::task_server::Router;
use crate::task_server::raw::{Kind, RawClient};

/// The environment variable with the settings of a process.
const SETTINGS: &str = "OTEL_PROCESS_SETTINGS";
/// Precedes a message of a process, among the lines that the test harness prints.
const MESSAGE: &str = "otel> ";
/// A lease that lapses during the test.
const LEASE: Duration = Duration::from_millis(500);

#[derive(Serialize, Deserialize)]
struct Settings {
    role: Role,
    place: Place,
    endpoint: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Answers a call of the tool with a task that waits for a worker.
    Server,
    /// Begins the task, sets a checkpoint, and never ends.
    Stuck,
    /// Ends the task.
    Worker,
}

/// Exports the spans of this process to the collector. This is the setup of the guide, with a short delay.
fn export(endpoint: &str, service: Role) -> SdkTracerProvider {
    let exporter = SpanExporter::builder().with_http().with_protocol(Protocol::HttpJson);
    let exporter = exporter.with_endpoint(endpoint).build().unwrap();
    let batches = BatchConfigBuilder::default().with_scheduled_delay(Duration::from_millis(50)).build();
    let batches = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
    let resource = Resource::builder().with_service_name(format!("{service:?}")).build();
    let provider = SdkTracerProvider::builder().with_span_processor(batches).with_resource(resource).build();
    let engines = Targets::new()
        .with_default(LevelFilter::INFO)
        .with_target("mcp_task_store::redis", LevelFilter::DEBUG)
        .with_target("mcp_task_store::sqlite", LevelFilter::DEBUG);
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test")).with_filter(engines);
    tracing::subscriber::set_global_default(Registry::default().with(layer)).unwrap();
    provider
}

async fn render(task: TaskContext, _: JsonObject) -> Result<CallToolResult, TaskExit> {
    Ok(text(format!("attempt {}", task.attempt())))
}

async fn render_forever(task: TaskContext, _: JsonObject) -> Result<CallToolResult, TaskExit> {
    task.checkpoint(&json!("begun")).await?;
    send(&json!("begun"));
    std::future::pending().await
}

fn send(message: &Value) {
    println!("{MESSAGE}{message}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the tests of this module, in a process of its own"]
async fn process() {
    let Ok(settings) = std::env::var(SETTINGS) else { return };
    let Settings { role, place, endpoint } = serde_json::from_str(&settings).unwrap();
    let provider = export(&endpoint, role);
    let store = TaskStore::with_config(place.open().await.unwrap(), StoreConfig::new().lease(LEASE));
    match role {
        Role::Server => send(&serve_one_call(store).await),
        Role::Stuck => work(store, TaskTools::new().tool("render", "Renders", render_forever)).await,
        Role::Worker => work(store, TaskTools::new().tool("render", "Renders", render)).await,
    }
    tokio::task::spawn_blocking(move || provider.shutdown()).await.unwrap().unwrap();
}

/// Serves a client that calls the tool once. Returns the response.
async fn serve_one_call(store: TaskStore<Arc<dyn Agenda>>) -> Value {
    let tools = TaskTools::new().tool("render", "Renders", render).resumable();
    let (config, owner) = (TaskServerConfig::new().enqueue_only(), OwnerSource::fixed(alice()));
    let manager = DurableTaskManager::new(store);
    let server = TaskServer::with_config(Router, manager.clone(), owner, tools, config).unwrap();
    let mut client = RawClient::connect(server, Kind::Tasks).await;
    let call = json!({
        "name": "render",
        "arguments": { "text": SECRET },
        "_meta": { "traceparent": TRACEPARENT },
    });
    let response = client.request("tools/call", call).await;
    manager.shutdown().await;
    response
}

/// Works until standard input ends.
async fn work(store: TaskStore<Arc<dyn Agenda>>, tools: TaskTools) {
    let worker = Worker::new(store).operations(tools.resumable());
    let stop = async { drop(tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await) };
    worker.run_until(stop).await.unwrap();
}

/// A process, from the side of the test.
pub struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    pub fn start(role: Role, place: &Place, endpoint: &str) -> Self {
        let settings = Settings { role, place: place.clone(), endpoint: endpoint.to_owned() };
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "otel::process::process", "--nocapture", "--test-threads", "1"])
            .env(SETTINGS, serde_json::to_string(&settings).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Waits for the next message.
    pub async fn message(&mut self) -> Value {
        let read = async {
            loop {
                let line = self.lines.next_line().await.unwrap().expect("the process has ended");
                if let Some((_, message)) = line.split_once(MESSAGE) {
                    return serde_json::from_str(message).unwrap();
                }
            }
        };
        within(read).await
    }

    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Closes standard input, and waits until the process has exported its last spans and ended.
    pub async fn end(mut self) {
        drop(self.child.stdin.take());
        let read_on = async { while self.lines.next_line().await.unwrap().is_some() {} };
        within(read_on).await;
        assert!(within(self.child.wait()).await.unwrap().success());
    }
}
