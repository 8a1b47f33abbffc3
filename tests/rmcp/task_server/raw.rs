//! A client that writes JSON-RPC itself. The client of the SDK asks for progress in each request, and drops the notifications
//! that arrive after the answer.

use std::collections::VecDeque;

use rmcp::{ServerHandler, ServiceExt};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, Lines, ReadHalf, WriteHalf};

/// The kinds of clients that do not poll tasks, and the one that does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 2026-07-28, with the tasks extension.
    Tasks,
    /// 2026-07-28, without it.
    Plain,
    /// 2025-11-25, which begins with `initialize`.
    Old,
}

pub struct RawClient {
    kind: Kind,
    capabilities: Value,
    lines: Lines<BufReader<ReadHalf<DuplexStream>>>,
    writer: WriteHalf<DuplexStream>,
    next_id: u64,
    /// Messages of the server that are no response, and were not taken yet.
    pub messages: VecDeque<Value>,
}

impl RawClient {
    pub async fn connect(server: impl ServerHandler, kind: Kind) -> Self {
        Self::connect_with(server, kind, json!({})).await
    }

    /// Connects a client that declares these capabilities.
    pub async fn connect_with(server: impl ServerHandler, kind: Kind, mut capabilities: Value) -> Self {
        if kind == Kind::Tasks {
            capabilities["extensions"] = json!({ "io.modelcontextprotocol/tasks": {} });
        }
        let (to_server, to_client) = tokio::io::duplex(1024 * 1024);
        tokio::spawn(async move { server.serve(to_client).await.unwrap().waiting().await });
        let (reader, writer) = tokio::io::split(to_server);
        let lines = BufReader::new(reader).lines();
        let mut client = Self { kind, capabilities, lines, writer, next_id: 1, messages: VecDeque::new() };
        if kind == Kind::Old {
            let initialize = json!({
                "protocolVersion": "2025-11-25",
                "capabilities": client.capabilities,
                "clientInfo": { "name": "test", "version": "1" },
            });
            assert!(client.request("initialize", initialize).await["error"].is_null());
            client.send(json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await;
        }
        client
    }

    pub async fn send(&mut self, message: Value) {
        self.writer.write_all(format!("{message}\n").as_bytes()).await.unwrap();
    }

    /// Reads the next message.
    pub async fn read(&mut self) -> Value {
        let line = self.lines.next_line().await.unwrap().expect("the server has closed the connection");
        serde_json::from_str(&line).unwrap()
    }

    /// Sends a request, and returns its id.
    pub async fn begin(&mut self, method: &str, mut params: Value) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        if self.kind != Kind::Old {
            let meta = &mut params["_meta"];
            meta["io.modelcontextprotocol/protocolVersion"] = "2026-07-28".into();
            meta["io.modelcontextprotocol/clientInfo"] = json!({ "name": "test", "version": "1" });
            meta["io.modelcontextprotocol/clientCapabilities"] = self.capabilities.clone();
        }
        self.send(json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })).await;
        id
    }

    /// Reads until the response to this request, and returns it. Keeps every other message.
    pub async fn response(&mut self, id: u64) -> Value {
        loop {
            let message = self.read().await;
            if message["id"] == id && message["method"].is_null() {
                return message;
            }
            self.messages.push_back(message);
        }
    }

    pub async fn request(&mut self, method: &str, params: Value) -> Value {
        let id = self.begin(method, params).await;
        self.response(id).await
    }

    /// Calls a tool, and returns the response.
    pub async fn call(&mut self, tool: &str, arguments: Value) -> Value {
        self.request("tools/call", json!({ "name": tool, "arguments": arguments })).await
    }
}
