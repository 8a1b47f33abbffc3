//! Whose tasks a request is about, by what the rmcp SDK hands to a server over HTTP.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, request};
use http_body_util::{BodyExt, Full};
use mcp_task_store::{OwnerId, OwnerSource};
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ServerCapabilities, ServerConfig,
};
use rmcp::service::RequestContext;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ErrorData, RoleServer, ServerHandler};
use serde_json::{Value, json};

/// Answers each call with the owner of its request.
#[derive(Clone)]
struct WhoAmI(OwnerSource);

impl ServerHandler for WhoAmI {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    async fn call_tool(
        &self,
        _: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let owner = self.0.owner(&context)?;
        Ok(CallToolResult::success(vec![ContentBlock::text(owner.as_str())]).into())
    }
}

struct Server(StreamableHttpService<WhoAmI, LocalSessionManager>);

/// What came back: the session, and the JSON-RPC message if there is one.
struct Reply {
    status: u16,
    session: Option<String>,
    message: Value,
}

impl Reply {
    /// The owner that the server saw, or the code of its error.
    fn owner(&self) -> Result<&str, i64> {
        match self.message["result"]["content"][0]["text"].as_str() {
            Some(owner) => Ok(owner),
            None => Err(self.message["error"]["code"].as_i64().unwrap_or(self.status.into())),
        }
    }
}

impl Server {
    fn start(source: OwnerSource, legacy_session_mode: bool) -> Self {
        let config = StreamableHttpServerConfig::default().with_legacy_session_mode(legacy_session_mode);
        let server = WhoAmI(source);
        Self(StreamableHttpService::new(move || Ok(server.clone()), Arc::default(), config))
    }

    async fn post(&self, request: request::Builder, message: Value) -> Reply {
        let request = request
            .method("POST")
            .uri("http://127.0.0.1/mcp")
            .header("Host", "127.0.0.1")
            .header("Content-Type", "application/json")
            .header("Accept", "application/json, text/event-stream")
            .body(Full::<Bytes>::from(message.to_string()))
            .unwrap();
        let response = self.0.handle(request).await;
        let (status, headers) = (response.status().as_u16(), response.headers());
        let session = headers.get("Mcp-Session-Id").map(|id| id.to_str().unwrap().to_owned());
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        let lines = text.lines().map(|line| line.strip_prefix("data: ").unwrap_or(line));
        let mut message = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let message = message.rfind(Value::is_object).unwrap_or_default();
        Reply { status, session, message }
    }

    /// Opens a session as clients before 2026-07-28 do.
    async fn initialize(&self) -> Reply {
        let initialize = json!({
            "jsonrpc": "2.0", "id": 1, "method": "initialize",
            "params": {
                "protocolVersion": "2025-06-18", "capabilities": {},
                "clientInfo": { "name": "test", "version": "1" },
            },
        });
        let reply = self.post(Request::builder(), initialize).await;
        let mut request = Request::builder().header("MCP-Protocol-Version", "2025-06-18");
        if let Some(session) = &reply.session {
            request = request.header("Mcp-Session-Id", session);
        }
        self.post(request, json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await;
        reply
    }

    async fn call(&self, request: request::Builder) -> Reply {
        let call = json!({
            "jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": { "name": "whoami", "arguments": {} },
        });
        self.post(request.header("MCP-Protocol-Version", "2025-06-18"), call).await
    }

    /// The same as clients from 2026-07-28 on do, which know no sessions.
    async fn call_without_handshake(&self, request: request::Builder) -> Reply {
        let call = json!({
            "jsonrpc": "2.0", "id": 2, "method": "tools/call",
            "params": {
                "name": "whoami", "arguments": {},
                "_meta": {
                    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                    "io.modelcontextprotocol/clientInfo": { "name": "test", "version": "1" },
                    "io.modelcontextprotocol/clientCapabilities": {},
                },
            },
        });
        let request = request.header("MCP-Protocol-Version", "2026-07-28");
        self.post(request.header("Mcp-Method", "tools/call").header("Mcp-Name", "whoami"), call).await
    }
}

/// What an authentication layer in front of the server might put into a request.
#[derive(Clone)]
struct Subject(&'static str);

fn by_subject() -> OwnerSource {
    OwnerSource::extensions(|extensions| {
        let Subject(subject) = extensions.get::<request::Parts>()?.extensions.get()?;
        OwnerId::try_from(*subject).ok()
    })
}

fn fixed() -> OwnerSource {
    OwnerSource::Fixed(OwnerId::try_from("the only one").unwrap())
}

/// The code of an invalid request: there is nobody who could own a task.
const NO_SUBJECT: Result<&str, i64> = Err(-32600);

#[tokio::test]
async fn the_owner_is_what_the_authentication_layer_has_put_into_the_request() {
    let server = Server::start(by_subject(), false);
    let authenticated = || Request::builder().extension(Subject("alice"));
    assert_eq!(server.call_without_handshake(authenticated()).await.owner(), Ok("alice"));
    assert_eq!(server.call(authenticated()).await.owner(), Ok("alice"));
    for claimed in ["Subject", "Authorization", "Mcp-Session-Id"] {
        let claimed = || Request::builder().header(claimed, "alice");
        assert_eq!(server.call_without_handshake(claimed()).await.owner(), NO_SUBJECT);
        assert_eq!(server.call(claimed()).await.owner(), NO_SUBJECT);
    }
    // A subject that cannot be an owner is none.
    let empty = Request::builder().extension(Subject(""));
    assert_eq!(server.call_without_handshake(empty).await.owner(), NO_SUBJECT);
}

#[tokio::test]
async fn a_session_is_an_owner_where_the_sdk_has_looked_it_up() {
    let server = Server::start(OwnerSource::session(true), true);
    let (one, other) =
        (server.initialize().await.session.unwrap(), server.initialize().await.session.unwrap());
    for session in [&one, &other] {
        let reply = server.call(Request::builder().header("Mcp-Session-Id", session)).await;
        assert_eq!(reply.owner(), Ok(&**session));
    }
    // One that does not exist does not get as far as the server.
    let forged = server.call(Request::builder().header("Mcp-Session-Id", "forged")).await;
    assert_eq!(forged.owner(), Err(404));
    // Newer clients have no session, whatever the header says.
    for header in ["forged", &one] {
        let request = Request::builder().header("Mcp-Session-Id", header);
        assert_eq!(server.call_without_handshake(request).await.owner(), NO_SUBJECT);
    }
}

/// The SDK goes by the header or by `_meta` to decide whether a session is looked up.
#[tokio::test]
async fn a_client_that_claims_two_versions_cannot_choose_its_session() {
    const VERSIONS: [Option<&str>; 3] = [None, Some("2025-06-18"), Some("2026-07-28")];
    let server = Server::start(OwnerSource::session(true), true);
    for header in VERSIONS {
        for meta in VERSIONS {
            let mut call = json!({
                "jsonrpc": "2.0", "id": 2, "method": "tools/call",
                "params": { "name": "whoami", "arguments": {} },
            });
            if let Some(version) = meta {
                call["params"]["_meta"] = json!({
                    "io.modelcontextprotocol/protocolVersion": version,
                    "io.modelcontextprotocol/clientInfo": { "name": "test", "version": "1" },
                    "io.modelcontextprotocol/clientCapabilities": {},
                });
            }
            let mut request = Request::builder().header("Mcp-Session-Id", "forged");
            if let Some(version) = header {
                request = request.header("MCP-Protocol-Version", version);
            }
            let request = request.header("Mcp-Method", "tools/call").header("Mcp-Name", "whoami");
            let reply = server.post(request, call).await;
            assert!(reply.owner().is_err(), "{header:?} {meta:?}: {:?}", reply.owner());
        }
    }
}

#[tokio::test]
async fn where_the_sdk_keeps_no_sessions_none_is_an_owner() {
    let server = Server::start(OwnerSource::session(false), false);
    for request in [Request::builder(), Request::builder().header("Mcp-Session-Id", "forged")] {
        assert_eq!(server.call(request).await.owner(), NO_SUBJECT);
    }
    let forged = Request::builder().header("Mcp-Session-Id", "forged");
    assert_eq!(server.call_without_handshake(forged).await.owner(), NO_SUBJECT);
}

#[tokio::test]
async fn a_fixed_owner_has_all_requests() {
    let server = Server::start(fixed(), false);
    assert_eq!(server.call_without_handshake(Request::builder()).await.owner(), Ok("the only one"));
    assert_eq!(server.call(Request::builder()).await.owner(), Ok("the only one"));
}
