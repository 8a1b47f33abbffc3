//! A connection of the client of the SDK to the server.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rmcp::model::{
    CallToolRequest, CallToolRequestParams, CallToolResponse, CallToolResult, ClientCapabilities,
    ClientConfig, ClientRequest, ElicitRequestParams, ElicitResult, ElicitationAction, ErrorData,
    Implementation, ProgressNotificationParam, ProtocolVersion, ServerResult,
};
use rmcp::service::{NotificationContext, PeerRequestOptions, RequestContext, RunningService, ServiceError};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::{ClientHandler, ClientLifecycleMode, ClientServiceExt, RoleClient};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::Mode;
use crate::scenario::Failure;

/// Where the server is.
pub enum Server {
    Program { program: String, arguments: Vec<String> },
    Url(String),
}

/// A client that is connected.
pub struct Connection {
    pub client: RunningService<RoleClient, Handler>,
    /// The server, if this client started it.
    child: Option<Child>,
}

/// Answers the questions of the server, and notes what it receives.
#[derive(Clone)]
pub struct Handler {
    config: ClientConfig,
    questions: Arc<AtomicUsize>,
    progress: watch::Sender<Vec<f64>>,
}

impl ClientHandler for Handler {
    fn get_info(&self) -> ClientConfig {
        self.config.clone()
    }

    async fn create_elicitation(
        &self,
        request: ElicitRequestParams,
        _: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        self.questions.fetch_add(1, Ordering::Relaxed);
        Ok(ElicitResult::new(ElicitationAction::Accept).with_content(json!({ "name": name(&request)? })))
    }

    async fn on_progress(&self, progress: ProgressNotificationParam, _: NotificationContext<RoleClient>) {
        self.progress.send_modify(|noted| noted.push(progress.progress));
    }
}

/// Returns the answer to a question.
fn name(request: &ElicitRequestParams) -> Result<&'static str, ErrorData> {
    match request {
        ElicitRequestParams::FormElicitationParams { message, .. } if message == "Which name?" => Ok("Ada"),
        other => Err(ErrorData::invalid_params(format!("unexpected: {other:?}"), None)),
    }
}

impl Connection {
    pub async fn open(server: &Server, mode: Mode) -> Result<Self, Failure> {
        let capabilities = ClientCapabilities::builder().enable_elicitation();
        let capabilities = match mode {
            Mode::Tasks => capabilities.enable_tasks().build(),
            Mode::Plain | Mode::Legacy => capabilities.build(),
        };
        let lifecycle = match mode {
            Mode::Legacy => ClientLifecycleMode::Initialize,
            Mode::Plain | Mode::Tasks => {
                ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] }
            }
        };
        let handler = Handler {
            config: ClientConfig::new(capabilities, Implementation::new("clients_rmcp", "1")),
            questions: Arc::default(),
            progress: watch::Sender::default(),
        };
        match server {
            Server::Program { program, arguments } => {
                let mut child = Command::new(program)
                    .args(arguments)
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .kill_on_drop(true)
                    .spawn()?;
                let (Some(stdout), Some(stdin)) = (child.stdout.take(), child.stdin.take()) else {
                    return Err("the server has no standard input and output".into());
                };
                let client = handler.serve_with_lifecycle((stdout, stdin), lifecycle).await?;
                Ok(Self { client, child: Some(child) })
            }
            Server::Url(url) => {
                // The server is on this machine, so the client uses no proxy.
                let http = reqwest::Client::builder().no_proxy().build()?;
                let config = StreamableHttpClientTransportConfig::with_uri(url.as_str());
                let transport = StreamableHttpClientTransport::with_client(http, config);
                let client = handler.serve_with_lifecycle(transport, lifecycle).await?;
                Ok(Self { client, child: None })
            }
        }
    }

    /// Calls a tool. Answers the questions of the server meanwhile.
    pub async fn call(&self, tool: &'static str, arguments: Value) -> Result<CallToolResult, ServiceError> {
        self.client.call_tool(request(tool, arguments)).await
    }

    /// Calls a tool with a limit that each notification of its progress extends.
    pub async fn call_with_extended_limit(
        &self,
        tool: &'static str,
        arguments: Value,
        limit: Duration,
    ) -> Result<CallToolResult, Failure> {
        let call = ClientRequest::CallToolRequest(CallToolRequest::new(request(tool, arguments)));
        let options = PeerRequestOptions::with_timeout(limit).reset_timeout_on_progress();
        match self.client.send_cancellable_request(call, options).await?.await_response().await? {
            ServerResult::CallToolResult(result) => Ok(result),
            other => Err(format!("unexpected: {other:?}").into()),
        }
    }

    /// Calls a tool, and returns the first answer of the server.
    pub async fn call_once(
        &self,
        tool: &'static str,
        arguments: Value,
    ) -> Result<CallToolResponse, ServiceError> {
        self.client.call_tool_once(request(tool, arguments)).await
    }

    /// Returns whether the server has asked the client.
    pub fn was_asked(&self) -> bool {
        self.client.service().questions.load(Ordering::Relaxed) > 0
    }

    /// Returns whether the client was notified of its progress, and the progress increased each time.
    pub fn was_notified(&self) -> bool {
        let noted = self.client.service().progress.borrow();
        !noted.is_empty() && noted.is_sorted_by(|earlier, later| earlier < later)
    }

    pub async fn close(self) -> Result<(), Failure> {
        self.client.cancel().await?;
        if let Some(mut child) = self.child {
            child.wait().await?;
        }
        Ok(())
    }
}

fn request(tool: &'static str, arguments: Value) -> CallToolRequestParams {
    let Value::Object(arguments) = arguments else { return CallToolRequestParams::new(tool) };
    CallToolRequestParams::new(tool).with_arguments(arguments)
}
