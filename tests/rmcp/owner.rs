//! Which owner a request over HTTP belongs to, for each source of owners.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, request};
use http_body_util::{BodyExt, Full};
use mcp_task_store::{OwnerId, OwnerSource, TaskError};
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

/// A response: the session, and the JSON-RPC message if there is one.
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

    /// Calls the tool as clients before 2026-07-28 do.
    async fn call(&self, request: request::Builder) -> Reply {
        let call = json!({
            "jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": { "name": "whoami", "arguments": {} },
        });
        self.post(request.header("MCP-Protocol-Version", "2025-06-18"), call).await
    }

    /// Calls the tool as clients from 2026-07-28 on do. They have no sessions.
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

    /// Calls the tool under a forged session, with one protocol version in the header and one in `_meta`.
    async fn call_as(&self, header: Option<&str>, meta: Option<&str>) -> Reply {
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
        self.post(request, call).await
    }
}

/// The subject that an authentication layer in front of the server inserts into a request.
#[derive(Clone)]
struct Subject(&'static str);

fn by_subject() -> OwnerSource {
    OwnerSource::extensions(|extensions| {
        let Subject(subject) = extensions.get::<request::Parts>()?.extensions.get()?;
        OwnerId::try_from(*subject).ok()
    })
}

fn fixed() -> OwnerSource {
    OwnerSource::fixed(OwnerId::try_from("the only one").unwrap())
}

/// The code of an invalid request, which a request without an owner receives.
const NO_OWNER: Result<&str, i64> = Err(-32600);

#[tokio::test]
async fn the_owner_is_the_subject_that_the_authentication_layer_inserts_into_the_request() {
    let server = Server::start(by_subject(), false);
    let authenticated = || Request::builder().extension(Subject("alice"));
    assert_eq!(server.call_without_handshake(authenticated()).await.owner(), Ok("alice"));
    assert_eq!(server.call(authenticated()).await.owner(), Ok("alice"));
    for claimed in ["Subject", "Authorization", "Mcp-Session-Id"] {
        let claimed = || Request::builder().header(claimed, "alice");
        assert_eq!(server.call_without_handshake(claimed()).await.owner(), NO_OWNER);
        assert_eq!(server.call(claimed()).await.owner(), NO_OWNER);
    }
    // An empty subject cannot be an owner.
    let empty = Request::builder().extension(Subject(""));
    assert_eq!(server.call_without_handshake(empty).await.owner(), NO_OWNER);
}

#[tokio::test]
async fn a_session_that_the_sdk_has_validated_is_an_owner() {
    let server = Server::start(OwnerSource::session(true).unwrap(), true);
    let (one, other) =
        (server.initialize().await.session.unwrap(), server.initialize().await.session.unwrap());
    for session in [&one, &other] {
        let reply = server.call(Request::builder().header("Mcp-Session-Id", session)).await;
        assert_eq!(reply.owner(), Ok(&**session));
    }
    // The SDK refuses a session that does not exist.
    let forged = server.call(Request::builder().header("Mcp-Session-Id", "forged")).await;
    assert_eq!(forged.owner(), Err(404));
    // Newer clients have no session, whatever they write into the header.
    for header in ["forged", &one] {
        let request = Request::builder().header("Mcp-Session-Id", header);
        assert_eq!(server.call_without_handshake(request).await.owner(), NO_OWNER);
    }
}

/// The SDK decides by the header or by `_meta` whether it validates a session.
#[tokio::test]
async fn a_client_that_claims_two_versions_cannot_choose_its_session() {
    const VERSIONS: [Option<&str>; 3] = [None, Some("2025-06-18"), Some("2026-07-28")];
    let server = Server::start(OwnerSource::session(true).unwrap(), true);
    for header in VERSIONS {
        for meta in VERSIONS {
            let reply = server.call_as(header, meta).await;
            assert!(reply.owner().is_err(), "{header:?} {meta:?}: {:?}", reply.owner());
        }
    }
}

#[test]
fn sessions_cannot_be_owners_while_session_mode_is_off() {
    let refused = OwnerSource::session(false);
    assert!(matches!(refused, Err(TaskError::InvalidArgument { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_request_without_a_validated_session_has_no_owner() {
    let server = Server::start(OwnerSource::session(true).unwrap(), false);
    for request in [Request::builder(), Request::builder().header("Mcp-Session-Id", "forged")] {
        assert_eq!(server.call_without_handshake(request).await.owner(), NO_OWNER);
    }
    assert_eq!(server.call(Request::builder()).await.owner(), NO_OWNER);
}

#[tokio::test]
async fn a_fixed_owner_owns_all_requests() {
    let server = Server::start(fixed(), false);
    assert_eq!(server.call_without_handshake(Request::builder()).await.owner(), Ok("the only one"));
    assert_eq!(server.call(Request::builder()).await.owner(), Ok("the only one"));
}
