//! A client that writes JSON-RPC itself. Each of its requests goes to another instance.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use super::instance::OWNER;

/// The kinds of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// 2026-07-28 with the tasks extension.
    Tasks,
    /// 2026-07-28 without the extension. It asks for notifications about progress.
    Progress,
    /// 2026-07-28 without anything.
    Plain,
    /// 2025-11-25. Without a session, its capabilities never reach the server.
    Old,
}

pub const KINDS: [Kind; 4] = [Kind::Tasks, Kind::Progress, Kind::Plain, Kind::Old];

/// How a call was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// With the result, as the answer of the call.
    Held,
    /// With a task, which the client polled.
    Polled,
    /// With the state of the task. The client called `task_result` later.
    Fetched,
}

/// The addresses of the instances, which take turns.
pub struct RoundRobin {
    addresses: Vec<String>,
    next: AtomicUsize,
}

impl RoundRobin {
    pub fn new(addresses: Vec<String>) -> Self {
        Self { addresses, next: AtomicUsize::new(0) }
    }

    fn next(&self) -> &str {
        &self.addresses[self.next.fetch_add(1, SeqCst) % self.addresses.len()]
    }
}

/// What a client receives for one request.
struct Response {
    result: Value,
    notifications: u64,
}

pub struct Client {
    http: reqwest::Client,
    fleet: Arc<RoundRobin>,
    owner: String,
    kind: Kind,
    last_id: u64,
    /// How many notifications about progress the client has received.
    pub notifications: u64,
}

impl Client {
    pub fn new(http: reqwest::Client, fleet: Arc<RoundRobin>, owner: String, kind: Kind) -> Self {
        Self { http, fleet, owner, kind, last_id: 0, notifications: 0 }
    }

    /// Calls `work`, and waits for its result. Fails unless the result is that of this call.
    pub async fn work(&mut self, call: &str, duration: Duration) -> Result<Way, String> {
        let arguments = json!({ "call": call, "milliseconds": duration.as_millis() as u64 });
        let mut result = self.call_tool("work", arguments).await?;
        let way = if result["resultType"] == "task" {
            result = self.poll(&text_of(&result["taskId"])?).await?;
            Way::Polled
        } else if result["structuredContent"]["taskId"].is_string() {
            result = self.fetch(&text_of(&result["structuredContent"]["taskId"])?).await?;
            Way::Fetched
        } else {
            Way::Held
        };
        match result["content"][0]["text"] == call && result["isError"] != true {
            true => Ok(way),
            false => Err(format!("the call {call} received {result}")),
        }
    }

    /// Polls a task until it has ended, and returns its result.
    async fn poll(&mut self, task: &str) -> Result<Value, String> {
        loop {
            let state = self.request("tasks/get", task, json!({ "taskId": task })).await?.result;
            match state["status"].as_str() {
                Some("working") => {
                    let interval = state["pollIntervalMs"].as_u64().ok_or("the task has no interval")?;
                    sleep(Duration::from_millis(interval)).await;
                }
                Some("completed") => return Ok(state["result"].clone()),
                _ => return Err(format!("the task {task} is {state}")),
            }
        }
    }

    /// Calls `task_result` until it returns the result of the tool.
    async fn fetch(&mut self, task: &str) -> Result<Value, String> {
        loop {
            let result = self.call_tool("task_result", json!({ "taskId": task })).await?;
            if result["structuredContent"]["taskId"].is_null() {
                return Ok(result);
            }
        }
    }

    async fn call_tool(&mut self, tool: &str, arguments: Value) -> Result<Value, String> {
        let response =
            self.request("tools/call", tool, json!({ "name": tool, "arguments": arguments })).await?;
        self.notifications += response.notifications;
        Ok(response.result)
    }

    /// Sends a request to the next instance. Fails unless exactly one response arrives.
    async fn request(&mut self, method: &str, name: &str, mut params: Value) -> Result<Response, String> {
        self.last_id += 1;
        let (id, version) = (self.last_id, if self.kind == Kind::Old { "2025-11-25" } else { "2026-07-28" });
        let mut request = self
            .http
            .post(format!("http://{}/mcp", self.fleet.next()))
            .header(OWNER, &self.owner)
            .header("Content-Type", "application/json")
            .header("Accept", "application/json, text/event-stream")
            .header("MCP-Protocol-Version", version);
        if self.kind != Kind::Old {
            request = request.header("Mcp-Method", method).header("Mcp-Name", name);
            params["_meta"] = self.meta(version, id);
        }
        let message = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        let sent = request.body(message.to_string()).send().await.map_err(|error| format!("{error:?}"))?;
        let body = sent.text().await.map_err(|error| format!("{error:?}"))?;
        self.read(id, &body).map_err(|reason| format!("{reason}; {method} of {name} received {body}"))
    }

    fn meta(&self, version: &str, id: u64) -> Value {
        let capabilities = match self.kind {
            Kind::Tasks => json!({ "extensions": { "io.modelcontextprotocol/tasks": {} } }),
            _ => json!({}),
        };
        let mut meta = json!({
            "io.modelcontextprotocol/protocolVersion": version,
            "io.modelcontextprotocol/clientInfo": { "name": "fleet", "version": "1" },
            "io.modelcontextprotocol/clientCapabilities": capabilities,
        });
        if self.kind == Kind::Progress {
            meta["progressToken"] = id.into();
        }
        meta
    }

    /// Reads the messages of one response.
    fn read(&self, id: u64, body: &str) -> Result<Response, String> {
        let data = body.lines().filter_map(|line| line.strip_prefix("data:").map(str::trim));
        let messages: Vec<Value> = data
            .filter(|data| !data.is_empty())
            .map(|data| serde_json::from_str(data).map_err(|error| error.to_string()))
            .collect::<Result<_, _>>()?;
        let (mut result, mut notifications, mut progress) = (None, 0, f64::NEG_INFINITY);
        for message in messages {
            if message["method"] == "notifications/progress" {
                let next = message["params"]["progress"].as_f64().ok_or("progress without a number")?;
                if self.kind != Kind::Progress || result.is_some() || next <= progress {
                    return Err(format!("a notification of {next} after {progress}"));
                }
                (progress, notifications) = (next, notifications + 1);
            } else if message["id"] != id || !message["result"].is_object() || result.is_some() {
                return Err(format!("an unexpected message: {message}"));
            } else {
                result = Some(message["result"].clone());
            }
        }
        let result = result.ok_or("no response")?;
        Ok(Response { result, notifications })
    }
}

fn text_of(value: &Value) -> Result<String, String> {
    value.as_str().map(str::to_owned).ok_or_else(|| format!("{value} is no text"))
}
