//! A client of one instance, built on the SDK. It polls a task until the task has an expected state.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, CancelTaskParams, ClientCapabilities,
    ClientConfig, DetailedTask, ElicitRequestParams, GetTaskParams, Implementation, InputRequest,
    ProtocolVersion, Task, TaskPayload, TaskStatus, UpdateTaskParams,
};
use rmcp::service::RunningService;
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::{ClientLifecycleMode, ClientServiceExt, RoleClient};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::Failure;
use crate::operation::{Arguments, Digested, Progress};
use crate::server::DIGEST_FOLDER;

/// How long a task may stay unchanged before the client reports it as stuck.
const STUCK_AFTER: Duration = Duration::from_secs(30);

pub struct Client(RunningService<RoleClient, ClientConfig>);

impl Client {
    pub async fn connect(url: &str) -> Result<Self, Failure> {
        // The servers are on this machine, so the client uses no proxy. It keeps no idle connection, which would delay the shutdown of
        // a server.
        let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build()?;
        let config = StreamableHttpClientTransportConfig::with_uri(url);
        let transport = StreamableHttpClientTransport::with_client(http, config);
        let lifecycle =
            ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] };
        // A server may respond with a task only to a client that supports tasks.
        let capabilities = ClientCapabilities::builder().enable_tasks().build();
        let implementation = Implementation::new("digest_server's client", env!("CARGO_PKG_VERSION"));
        let client = ClientConfig::new(capabilities, implementation);
        Ok(Self(client.serve_with_lifecycle(transport, lifecycle).await?))
    }

    /// Calls the tool, which responds with a task.
    pub async fn digest_folder(&self, arguments: &Arguments) -> Result<Task, Failure> {
        let Value::Object(arguments) = serde_json::to_value(arguments)? else {
            return Err("the arguments are not an object".into());
        };
        let call = CallToolRequestParams::new(DIGEST_FOLDER).with_arguments(arguments);
        match self.0.call_tool_once(call).await? {
            CallToolResponse::Task(created) => Ok(created.task),
            other => Err(format!("the server responded with {other:?}, not with a task").into()),
        }
    }

    /// Polls until the task has an open request. Returns its key and its message.
    pub async fn question(&self, task: &Task) -> Result<(String, String), Failure> {
        let asked = self.poll(task, |state| state.status() == TaskStatus::InputRequired).await?;
        let TaskPayload::InputRequired { input_requests } = asked.payload else {
            return Err(format!("task {} has no open request", short(task)).into());
        };
        match input_requests.into_iter().next() {
            Some((key, InputRequest::Elicitation(request))) => match request.params {
                ElicitRequestParams::FormElicitationParams { message, .. } => Ok((key, message)),
                other => Err(format!("task {} requests {other:?}", short(task)).into()),
            },
            other => Err(format!("task {} requests {other:?}", short(task)).into()),
        }
    }

    /// Accepts the request with this key.
    pub async fn accept(&self, task: &Task, key: String) -> Result<(), Failure> {
        let accepted = json!({ "action": "accept", "content": {} });
        let update = UpdateTaskParams::new(&task.task_id, [(key, accepted)].into());
        Ok(self.0.update_task(update).await?)
    }

    pub async fn cancel(&self, task: &Task) -> Result<(), Failure> {
        Ok(self.0.cancel_task(CancelTaskParams::new(&task.task_id)).await?)
    }

    /// Polls until the progress matches, and returns it.
    pub async fn progress(
        &self,
        task: &Task,
        matches: impl Fn(&Progress) -> bool,
    ) -> Result<Progress, Failure> {
        let state =
            self.poll(task, |state| progress(state).is_some_and(|progress| matches(&progress))).await?;
        progress(&state).ok_or_else(|| "the task has no progress".into())
    }

    /// Polls until the task is cancelled. Returns the last status message of the operation.
    pub async fn cancelled(&self, task: &Task) -> Result<String, Failure> {
        let state = self.poll(task, |state| state.status() == TaskStatus::Cancelled).await?;
        Ok(state.task.status_message.unwrap_or_default())
    }

    /// Polls until the task is completed. Returns its result.
    pub async fn digested(&self, task: &Task) -> Result<Digested, Failure> {
        let state = self.poll(task, |state| state.status() == TaskStatus::Completed).await?;
        let TaskPayload::Completed { result } = state.payload else {
            return Err(format!("task {} has no result", short(task)).into());
        };
        let result: CallToolResult = serde_json::from_value(Value::Object(result))?;
        if result.is_error == Some(true) {
            let texts: Vec<_> = result.content.iter().filter_map(|content| content.as_text()).collect();
            return Err(texts.iter().map(|text| text.text.as_str()).collect::<String>().into());
        }
        Ok(result.into_typed()?)
    }

    /// Polls at the interval of the task until it has the expected state. It is an error if the task ends in another state, makes
    /// an unexpected request, or stays unchanged for 30 s.
    async fn poll(
        &self,
        task: &Task,
        expected: impl Fn(&DetailedTask) -> bool,
    ) -> Result<DetailedTask, Failure> {
        let bar = Bar::new(task);
        let pause = Duration::from_millis(task.poll_interval_ms.unwrap_or(1000));
        let (mut seen, mut give_up) = (None, Instant::now() + STUCK_AFTER);
        loop {
            let state = self.0.get_task(GetTaskParams::new(&task.task_id)).await?.task;
            bar.show(&state);
            if expected(&state) {
                return Ok(state);
            }
            let message = state.task.status_message.as_deref().unwrap_or("no message");
            if state.status().is_terminal() || state.status() == TaskStatus::InputRequired {
                let status = state.status();
                return Err(format!("task {} became {status:?} unexpectedly ({message})", short(task)).into());
            }
            if seen.as_ref() != Some(&state) {
                (seen, give_up) = (Some(state), Instant::now() + STUCK_AFTER);
            } else if Instant::now() >= give_up {
                return Err(
                    format!("task {} has not changed for {STUCK_AFTER:?} ({message})", short(task)).into()
                );
            }
            sleep(pause).await;
        }
    }
}

fn progress(state: &DetailedTask) -> Option<Progress> {
    state.task.status_message.as_deref()?.parse().ok()
}

/// Returns the first characters of a task's id, for the output.
pub fn short(task: &Task) -> &str {
    task.task_id.get(..8).unwrap_or(&task.task_id)
}

/// Shows the progress of a task while it is polled, on a terminal only.
struct Bar(ProgressBar);

impl Bar {
    fn new(task: &Task) -> Self {
        let style = ProgressStyle::with_template("         {prefix} {bar:40} {msg}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stdout());
        Self(bar.with_style(style).with_prefix(format!("task {}", short(task))))
    }

    fn show(&self, state: &DetailedTask) {
        if let Some(progress) = progress(state) {
            self.0.set_length(progress.files as u64);
            self.0.set_position(progress.done as u64);
        }
        self.0.set_message(state.task.status_message.clone().unwrap_or_default());
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
