//! Everything that is not about task tools reaches the handler.

use std::borrow::Cow;

use mcp_task_store::TaskTools;
use rmcp::model::*;
use rmcp::service::{NotificationContext, RequestContext, SubscriptionContext};
use rmcp::{ErrorData, RoleServer, ServerHandler, ServiceExt};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, Lines, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use super::{in_memory, nothing, serve, with_tasks};
use crate::support::rmcp::within;

type Context = RequestContext<RoleServer>;
type Notified = NotificationContext<RoleServer>;
type Page = Option<PaginatedRequestParams>;

/// The error code of a marker.
const MARKED: i32 = -32099;

/// Answers each request with an error that names the method, and reports each notification.
#[derive(Clone)]
struct Marker(mpsc::UnboundedSender<&'static str>);

macro_rules! mark_requests {
    ($($method:ident($($type:ty),+) -> $returned:ty;)+) => {$(
        async fn $method(&self, $(_: $type),+) -> Result<$returned, ErrorData> {
            Err(ErrorData::new(ErrorCode(MARKED), stringify!($method), None))
        }
    )+};
}

macro_rules! report_notifications {
    ($($method:ident($($type:ty),+);)+) => {$(
        async fn $method(&self, $(_: $type),+) {
            self.0.send(stringify!($method)).unwrap();
        }
    )+};
}

#[expect(deprecated, reason = "the SDK calls these methods for clients of older protocol versions")]
impl ServerHandler for Marker {
    mark_requests! {
        ping(Context) -> ();
        discover(Context) -> DiscoverResult;
        complete(CompleteRequestParams, Context) -> CompleteResult;
        set_level(SetLevelRequestParams, Context) -> ();
        get_prompt(GetPromptRequestParams, Context) -> GetPromptResponse;
        list_prompts(Page, Context) -> ListPromptsResult;
        list_resources(Page, Context) -> ListResourcesResult;
        list_resource_templates(Page, Context) -> ListResourceTemplatesResult;
        read_resource(ReadResourceRequestParams, Context) -> ReadResourceResponse;
        listen(SubscriptionContext) -> ();
        subscribe(SubscribeRequestParams, Context) -> ();
        unsubscribe(UnsubscribeRequestParams, Context) -> ();
        call_tool(CallToolRequestParams, Context) -> CallToolResponse;
        list_tools(Page, Context) -> ListToolsResult;
        on_custom_request(CustomRequest, Context) -> CustomResult;
        get_task(GetTaskParams, Context) -> GetTaskResult;
        update_task(UpdateTaskParams, Context) -> ();
        cancel_task(CancelTaskParams, Context) -> ();
        list_skills(Page, Context) -> ListSkillsResult;
        get_skill(GetSkillRequestParams, Context) -> GetSkillResult;
        read_resource_directory(ReadResourceDirectoryRequestParams, Context) -> ReadResourceDirectoryResult;
    }

    report_notifications! {
        on_cancelled(CancelledNotificationParam, Notified);
        on_progress(ProgressNotificationParam, Notified);
        on_initialized(Notified);
        on_roots_list_changed(Notified);
        on_custom_notification(CustomNotification, Notified);
    }

    async fn initialize(
        &self,
        request: InitializeRequestParams,
        _: Context,
    ) -> Result<InitializeResult, ErrorData> {
        let mut info = self.get_info().with_instructions("initialize");
        info.protocol_version = request.protocol_version;
        Ok(info)
    }

    fn negotiate_initialize(&self, _: &InitializeRequestParams) -> Result<InitializeResult, ErrorData> {
        Ok(self.get_info().with_instructions("negotiate_initialize"))
    }

    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        Cow::Owned(vec![ProtocolVersion::V_2025_11_25, ProtocolVersion::V_2026_07_28])
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        Some(requested.clone())
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        (name == "of_the_handler").then(|| Tool::new("of_the_handler", "get_tool", JsonObject::new()))
    }

    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder()
            .enable_prompts()
            .enable_resources()
            .enable_tools()
            .enable_tool_list_changed()
            .enable_tasks()
            .enable_skills_with_directory_read()
            .build();
        ServerConfig::new(capabilities).with_instructions("get_info")
    }
}

/// A client that writes and reads the lines of the protocol itself.
struct Wire {
    read: Lines<BufReader<ReadHalf<DuplexStream>>>,
    write: WriteHalf<DuplexStream>,
    /// The `_meta` of each request.
    meta: Value,
    last_id: u64,
}

impl Wire {
    fn connect(server: impl ServerHandler, meta: Value) -> Self {
        let (here, there) = tokio::io::duplex(64 * 1024);
        tokio::spawn(async move { server.serve(there).await.unwrap().waiting().await.unwrap() });
        let (read, write) = tokio::io::split(here);
        Self { read: BufReader::new(read).lines(), write, meta, last_id: 0 }
    }

    async fn send(&mut self, mut message: Value) {
        message["jsonrpc"] = "2.0".into();
        self.write.write_all(format!("{message}\n").as_bytes()).await.unwrap();
    }

    /// Sends a request and returns its response.
    async fn request(&mut self, method: &str, mut params: Value) -> Value {
        self.last_id += 1;
        if !self.meta.is_null() {
            params["_meta"] = self.meta.clone();
        }
        self.send(json!({ "id": self.last_id, "method": method, "params": params })).await;
        loop {
            let line = within(self.read.next_line()).await.unwrap().expect("the server is connected");
            let message: Value = serde_json::from_str(&line).unwrap();
            if message["id"] == self.last_id {
                return message;
            }
        }
    }
}

/// The requests of all versions, with the methods of the handler that answer them.
fn requests() -> Vec<(&'static str, Value, &'static str)> {
    let uri = "skill://host/render/SKILL.md";
    let argument = json!({ "name": "a", "value": "b" });
    vec![
        (
            "completion/complete",
            json!({ "ref": { "type": "ref/prompt", "name": "p" }, "argument": argument }),
            "complete",
        ),
        ("prompts/get", json!({ "name": "p" }), "get_prompt"),
        ("prompts/list", json!({}), "list_prompts"),
        ("resources/list", json!({}), "list_resources"),
        ("resources/templates/list", json!({}), "list_resource_templates"),
        ("resources/read", json!({ "uri": "file:///a" }), "read_resource"),
        ("tools/call", json!({ "name": "of_the_handler" }), "call_tool"),
        ("tools/list", json!({}), "list_tools"),
        ("acme/custom", json!({}), "on_custom_request"),
        ("tasks/get", json!({ "taskId": "of_the_handler" }), "get_task"),
        ("tasks/update", json!({ "taskId": "of_the_handler", "inputResponses": {} }), "update_task"),
        ("tasks/cancel", json!({ "taskId": "of_the_handler" }), "cancel_task"),
        ("skills/list", json!({}), "list_skills"),
        ("skills/get", json!({ "uri": uri }), "get_skill"),
        ("resources/directory/read", json!({ "uri": "skill://host/render" }), "read_resource_directory"),
    ]
}

/// Returns what a client of 2025-11-25 with tasks sends with `initialize`.
fn legacy_client() -> InitializeRequestParams {
    InitializeRequestParams::new(with_tasks(), Implementation::new("test", "1"))
        .with_protocol_version(ProtocolVersion::V_2025_11_25)
}

/// Returns what a client of 2026-07-28 with tasks sends with each request.
fn newest_meta() -> Value {
    json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": { "name": "test", "version": "1" },
        "io.modelcontextprotocol/clientCapabilities": with_tasks(),
    })
}

async fn expect_marks(wire: &mut Wire, requests: Vec<(&'static str, Value, &'static str)>) {
    for (method, params, marked) in requests {
        let response = wire.request(method, params).await;
        assert_eq!(response["error"], json!({ "code": MARKED, "message": marked }), "{method}: {response}");
    }
}

fn marker() -> (super::Server<Marker>, mpsc::UnboundedReceiver<&'static str>) {
    let (send, reports) = mpsc::unbounded_channel();
    (serve(Marker(send), &in_memory(), TaskTools::new().tool("own", "Does nothing", nothing)), reports)
}

#[tokio::test]
async fn the_handler_receives_every_request_and_notification_of_a_session() {
    let (server, mut reports) = marker();
    let mut wire = Wire::connect(server, Value::Null);
    let initialize = serde_json::to_value(legacy_client()).unwrap();
    let initialized = wire.request("initialize", initialize).await;
    assert_eq!(initialized["result"]["instructions"], "initialize", "{initialized}");

    for (method, params, reported) in [
        ("notifications/initialized", json!({}), "on_initialized"),
        ("notifications/cancelled", json!({ "requestId": 99 }), "on_cancelled"),
        ("notifications/progress", json!({ "progressToken": 1, "progress": 1.0 }), "on_progress"),
        ("notifications/roots/list_changed", json!({}), "on_roots_list_changed"),
        ("notifications/acme", json!({}), "on_custom_notification"),
    ] {
        wire.send(json!({ "method": method, "params": params })).await;
        assert_eq!(within(reports.recv()).await, Some(reported));
    }

    let legacy = vec![
        ("ping", json!({}), "ping"),
        ("logging/setLevel", json!({ "level": "info" }), "set_level"),
        ("resources/subscribe", json!({ "uri": "file:///a" }), "subscribe"),
        ("resources/unsubscribe", json!({ "uri": "file:///a" }), "unsubscribe"),
    ];
    expect_marks(&mut wire, legacy).await;
    expect_marks(&mut wire, requests()).await;
}

#[tokio::test]
async fn the_handler_receives_every_request_of_2026_07_28() {
    let (server, _reports) = marker();
    let mut wire = Wire::connect(server, newest_meta());
    expect_marks(&mut wire, vec![("server/discover", json!({}), "discover")]).await;
    expect_marks(&mut wire, requests()).await;
    let filter = json!({ "notifications": { "toolsListChanged": true } });
    expect_marks(&mut wire, vec![("subscriptions/listen", filter, "listen")]).await;
}

#[tokio::test]
async fn the_server_declares_what_its_handler_declares_and_tools_and_tasks() {
    let (server, _reports) = marker();
    let info = server.get_info();
    assert_eq!(info.instructions.as_deref(), Some("get_info"));
    let versions = [ProtocolVersion::V_2025_11_25, ProtocolVersion::V_2026_07_28];
    assert_eq!(*server.supported_protocol_versions(), versions);
    assert_eq!(server.get_tool("of_the_handler").unwrap().description.as_deref(), Some("get_tool"));
    assert_eq!(server.get_tool("own").unwrap().description.as_deref(), Some("Does nothing"));
    assert_eq!(server.get_tool("of_nobody"), None);
    let negotiated = server.negotiate_initialize(&legacy_client()).unwrap();
    assert_eq!(negotiated.instructions.as_deref(), Some("negotiate_initialize"));

    let declared = serde_json::to_value(info.capabilities).unwrap();
    assert_eq!(declared["prompts"], json!({}), "what the handler declares stays");
    assert_eq!(declared["tools"], json!({ "listChanged": true }));
    assert_eq!(declared["extensions"]["io.modelcontextprotocol/skills"], json!({ "directoryRead": true }));
}

/// A handler that declares nothing.
struct Silent;

impl ServerHandler for Silent {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::default())
    }
}

#[tokio::test]
async fn a_server_whose_handler_declares_nothing_declares_tools_and_tasks() {
    let server = || serve(Silent, &in_memory(), TaskTools::new().tool("own", "Does nothing", nothing));
    let expected = json!({ "tools": {}, "extensions": { "io.modelcontextprotocol/tasks": {} } });
    let negotiated = server().negotiate_initialize(&legacy_client()).unwrap();
    for declared in [server().get_info().capabilities, negotiated.capabilities] {
        assert_eq!(serde_json::to_value(declared).unwrap(), expected);
    }
    let initialize = serde_json::to_value(legacy_client()).unwrap();
    let initialized = Wire::connect(server(), Value::Null).request("initialize", initialize).await;
    assert_eq!(initialized["result"]["capabilities"], expected, "{initialized}");
    let discovered = Wire::connect(server(), newest_meta()).request("server/discover", json!({})).await;
    assert_eq!(discovered["result"]["capabilities"], expected, "{discovered}");
}
