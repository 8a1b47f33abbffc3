//! The same server over streamable HTTP: with the sessions of older clients, and without sessions.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use mcp_task_store::{OwnerSource, PageRequest, TaskContext, TaskServer, TaskStatus, TaskTools};
use rmcp::model::{CallToolResult, EmptyObject};
use rmcp::task_manager::TaskExit;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};
use rstest::rstest;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{Render, Router, Server, in_memory, until_cancelled};
use crate::support::rmcp::*;

type Response = http::Response<BoxBody<Bytes, Infallible>>;

/// The protocols of clients over HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// 2026-07-28 with the tasks extension. It has no sessions.
    Tasks,
    /// 2026-07-28 without the extension.
    Plain,
    /// 2025-11-25 with a session.
    Session,
    /// 2025-11-25 to a server that keeps no sessions.
    Sessionless,
}

pub struct Http {
    service: StreamableHttpService<Server<Router>, LocalSessionManager>,
    protocol: Protocol,
    capabilities: Value,
    session: Option<String>,
}

impl Http {
    async fn connect(server: Server<Router>, protocol: Protocol) -> Self {
        Self::connect_with(server, protocol, json!({})).await
    }

    /// Connects a client that declares these capabilities.
    pub async fn connect_with(server: Server<Router>, protocol: Protocol, mut capabilities: Value) -> Self {
        if protocol == Protocol::Tasks {
            capabilities["extensions"] = json!({ "io.modelcontextprotocol/tasks": {} });
        }
        let config = StreamableHttpServerConfig::default()
            .with_legacy_session_mode(protocol == Protocol::Session)
            // Its timer runs without end in paused time.
            .with_sse_keep_alive(None);
        let service = StreamableHttpService::new(move || Ok(server.clone()), Arc::default(), config);
        let mut http = Self { service, protocol, capabilities, session: None };
        if http.is_old() {
            let initialize = json!({
                "jsonrpc": "2.0", "id": 0, "method": "initialize",
                "params": {
                    "protocolVersion": "2025-11-25", "capabilities": http.capabilities,
                    "clientInfo": { "name": "test", "version": "1" },
                },
            });
            let response = http.post(initialize, None).await;
            let session = response.headers().get("Mcp-Session-Id");
            http.session = session.map(|id| id.to_str().unwrap().to_owned());
            assert_eq!(http.session.is_some(), protocol == Protocol::Session);
            http.post(json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }), None).await;
        }
        http
    }

    fn is_old(&self) -> bool {
        matches!(self.protocol, Protocol::Session | Protocol::Sessionless)
    }

    pub async fn post(&self, message: Value, name: Option<&str>) -> Response {
        let version = if self.is_old() { "2025-11-25" } else { "2026-07-28" };
        let mut request = Request::post("http://127.0.0.1/mcp")
            .header("Host", "127.0.0.1")
            .header("Content-Type", "application/json")
            .header("Accept", "application/json, text/event-stream")
            .header("MCP-Protocol-Version", version);
        if let Some(session) = &self.session {
            request = request.header("Mcp-Session-Id", session);
        }
        if !self.is_old() {
            request = request.header("Mcp-Method", message["method"].as_str().unwrap());
        }
        if let Some(name) = name.filter(|_| !self.is_old()) {
            request = request.header("Mcp-Name", name);
        }
        self.service.handle(request.body(Full::<Bytes>::from(message.to_string())).unwrap()).await
    }

    /// Begins a call of a tool, and returns the response whose body may still arrive.
    pub async fn begin(&self, tool: &str, arguments: Value) -> Response {
        let mut params = json!({ "name": tool, "arguments": arguments, "_meta": { "progressToken": "p1" } });
        if !self.is_old() {
            let meta = &mut params["_meta"];
            meta["io.modelcontextprotocol/protocolVersion"] = "2026-07-28".into();
            meta["io.modelcontextprotocol/clientInfo"] = json!({ "name": "test", "version": "1" });
            meta["io.modelcontextprotocol/clientCapabilities"] = self.capabilities.clone();
        }
        let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params });
        self.post(call, Some(tool)).await
    }

    /// Calls a tool. Returns all messages of the response.
    pub async fn call(&self, tool: &str, arguments: Value) -> Vec<Value> {
        let body = self.begin(tool, arguments).await.into_body().collect().await.unwrap().to_bytes();
        messages(&body)
    }
}

/// Returns the messages in this part of a body.
fn messages(body: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(body).unwrap();
    let lines = text.lines().map(|line| line.strip_prefix("data: ").unwrap_or(line));
    lines.filter_map(|line| serde_json::from_str(line).ok()).filter(Value::is_object).collect()
}

/// Reads a response until a message meets a condition, and returns the message.
pub async fn read_until(response: &mut Response, wanted: impl Fn(&Value) -> bool) -> Value {
    loop {
        let frame = response.frame().await.expect("the stream has ended").unwrap();
        // The server writes each event in a frame of its own.
        let message = frame.data_ref().and_then(|event| messages(event).into_iter().find(&wanted));
        if let Some(message) = message {
            return message;
        }
    }
}

async fn slow(task: TaskContext, render: Render) -> Result<CallToolResult, TaskExit> {
    task.set_status_message("rendering");
    sleep(Duration::from_secs(render.frames)).await;
    Ok(text("rendered"))
}

fn serve(tasks: &Manager, tools: TaskTools) -> Server<Router> {
    TaskServer::new(Router, tasks.clone(), OwnerSource::fixed(alice()), tools).unwrap()
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_call_over_http_is_answered_as_over_stdio(
    #[values(Protocol::Tasks, Protocol::Plain, Protocol::Session, Protocol::Sessionless)] protocol: Protocol,
) {
    let tasks = in_memory();
    let http = Http::connect(serve(&tasks, TaskTools::new().tool("slow", "Renders", slow)), protocol).await;
    let quick = http.call("slow", json!({ "frames": 0 })).await;
    let [answer] = &quick[..] else { panic!("{quick:?}") };
    assert_eq!(answer["result"]["content"][0]["text"], "rendered");
    let of_handler = http.call("echo", json!({})).await;
    assert_eq!(of_handler[0]["result"]["content"][0]["text"], "echo of the handler");

    let slow = http.call("slow", json!({ "frames": 30 })).await;
    let (answer, notifications) = slow.split_last().unwrap();
    if protocol == Protocol::Tasks {
        assert_eq!(answer["result"]["resultType"], "task", "{answer}");
        assert!(notifications.is_empty(), "{notifications:?}");
        return;
    }
    assert_eq!(answer["result"]["content"][0]["text"], "rendered", "{answer}");
    assert!(notifications.len() >= 6, "one at least every 5 s: {notifications:?}");
    assert!(notifications.iter().all(|sent| sent["method"] == "notifications/progress"));
    assert!(notifications.iter().any(|sent| sent["params"]["message"] == "rendering"));
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_closed_stream_lets_the_task_run_on_unless_the_tool_says_otherwise(
    #[values(Protocol::Plain, Protocol::Sessionless)] protocol: Protocol,
    #[values(false, true)] cancels: bool,
) {
    let tasks = in_memory();
    let tools = TaskTools::new().tool("waits", "Waits", until_cancelled::<EmptyObject>);
    let tools = if cancels { tools.cancel_with_request() } else { tools };
    let http = Http::connect(serve(&tasks, tools), protocol).await;
    let response = http.begin("waits", json!({})).await;
    sleep(Duration::from_secs(2)).await;
    drop(response);
    sleep(Duration::from_secs(20)).await;
    let page = tasks.store().list(&alice(), PageRequest::new(10)).await.unwrap();
    let statuses: Vec<_> = page.tasks.iter().map(|stored| stored.task.status).collect();
    assert_eq!(statuses, [if cancels { TaskStatus::Cancelled } else { TaskStatus::Working }]);
}

#[tokio::test]
async fn the_transport_checks_the_headers_of_a_call_of_a_task_tool() {
    let tasks = in_memory();
    let http =
        Http::connect(serve(&tasks, TaskTools::new().tool("slow", "Renders", slow)), Protocol::Plain).await;
    let call = json!({
        "jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {
            "name": "slow", "arguments": { "frames": 0 },
            "_meta": {
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientInfo": { "name": "test", "version": "1" },
                "io.modelcontextprotocol/clientCapabilities": {},
            },
        },
    });
    assert_eq!(http.post(call.clone(), Some("slow")).await.status(), 200);
    assert_eq!(http.post(call, Some("echo")).await.status(), 400);
}
