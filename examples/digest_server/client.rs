//! A client of one server, on the SDK, that polls tasks until they look as expected.

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
use crate::server::{Arguments, DIGEST_FOLDER, Digested, Progress};

/// For how long a task may stand still before it is taken for stuck.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Client(RunningService<RoleClient, ClientConfig>);

impl Client {
    pub async fn connect(url: &str) -> Result<Self, Failure> {
        // Whatever proxy the environment names, the servers are on this machine. No connection is kept, so that a server
        // which stops waits for none.
        let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build()?;
        let config = StreamableHttpClientTransportConfig::with_uri(url);
        let transport = StreamableHttpClientTransport::with_client(http, config);
        let lifecycle =
            ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] };
        // A server may answer with a task only if the client says that it knows what to do with one.
        let capabilities = ClientCapabilities::builder().enable_tasks().build();
        let itself = Implementation::new("digest_server's client", env!("CARGO_PKG_VERSION"));
        let client = ClientConfig::new(capabilities, itself);
        Ok(Self(client.serve_with_lifecycle(transport, lifecycle).await?))
    }

    /// Calls the tool, which answers with a task.
    pub async fn digest_folder(&self, arguments: &Arguments) -> Result<Task, Failure> {
        let Value::Object(arguments) = serde_json::to_value(arguments)? else {
            return Err("the arguments are not an object".into());
        };
        let call = CallToolRequestParams::new(DIGEST_FOLDER).with_arguments(arguments);
        match self.0.call_tool_once(call).await? {
            CallToolResponse::Task(created) => Ok(created.task),
            other => Err(format!("the server answered with {other:?}, not with a task").into()),
        }
    }

    /// Polls until the task asks something, and says what, by the key of the question.
    pub async fn question(&self, task: &Task) -> Result<(String, String), Failure> {
        let asked = self.poll(task, |state| state.status() == TaskStatus::InputRequired).await?;
        let TaskPayload::InputRequired { input_requests } = asked.payload else {
            return Err(format!("task {} asks nothing", short(task)).into());
        };
        match input_requests.into_iter().next() {
            Some((key, InputRequest::Elicitation(request))) => match request.params {
                ElicitRequestParams::FormElicitationParams { message, .. } => Ok((key, message)),
                other => Err(format!("task {} asks for {other:?}", short(task)).into()),
            },
            other => Err(format!("task {} asks for {other:?}", short(task)).into()),
        }
    }

    /// Answers a question with yes.
    pub async fn accept(&self, task: &Task, key: String) -> Result<(), Failure> {
        let accepted = json!({ "action": "accept", "content": {} });
        let update = UpdateTaskParams::new(&task.task_id, [(key, accepted)].into());
        Ok(self.0.update_task(update).await?)
    }

    pub async fn cancel(&self, task: &Task) -> Result<(), Failure> {
        Ok(self.0.cancel_task(CancelTaskParams::new(&task.task_id)).await?)
    }

    /// Polls until the work is so far.
    pub async fn progress(&self, task: &Task, far: impl Fn(&Progress) -> bool) -> Result<Progress, Failure> {
        let state = self.poll(task, |state| progress(state).is_some_and(|progress| far(&progress))).await?;
        progress(&state).ok_or_else(|| "the task has no progress".into())
    }

    /// Polls until the task is cancelled, and returns what the operation said when it stopped.
    pub async fn cancelled(&self, task: &Task) -> Result<String, Failure> {
        let state = self.poll(task, |state| state.status() == TaskStatus::Cancelled).await?;
        Ok(state.task.status_message.unwrap_or_default())
    }

    /// Polls until the task is completed, and returns its result.
    pub async fn digested(&self, task: &Task) -> Result<Digested, Failure> {
        let state = self.poll(task, |state| state.status() == TaskStatus::Completed).await?;
        let TaskPayload::Completed { result } = state.payload else {
            return Err(format!("task {} has no result", short(task)).into());
        };
        let result: CallToolResult = serde_json::from_value(Value::Object(result))?;
        if result.is_error == Some(true) {
            let said: Vec<_> = result.content.iter().filter_map(|content| content.as_text()).collect();
            return Err(said.iter().map(|text| text.text.as_str()).collect::<String>().into());
        }
        Ok(result.into_typed()?)
    }

    /// Polls as often as the server says, until the task is as expected. One that ends otherwise, asks what it should
    /// not, or stands still for long is an error.
    async fn poll(
        &self,
        task: &Task,
        expected: impl Fn(&DetailedTask) -> bool,
    ) -> Result<DetailedTask, Failure> {
        let bar = Bar::new(task);
        let pause = Duration::from_millis(task.poll_interval_ms.unwrap_or(1000));
        let (mut seen, mut give_up) = (None, Instant::now() + PATIENCE);
        loop {
            let state = self.0.get_task(GetTaskParams::new(&task.task_id)).await?.task;
            bar.show(&state);
            if expected(&state) {
                return Ok(state);
            }
            let message = state.task.status_message.as_deref().unwrap_or("no message");
            if state.status().is_terminal() || state.status() == TaskStatus::InputRequired {
                let status = state.status();
                return Err(format!("task {} is {status:?} too early ({message})", short(task)).into());
            }
            if seen.as_ref() != Some(&state) {
                (seen, give_up) = (Some(state), Instant::now() + PATIENCE);
            } else if Instant::now() >= give_up {
                return Err(format!("task {} stands still ({message})", short(task)).into());
            }
            sleep(pause).await;
        }
    }
}

fn progress(state: &DetailedTask) -> Option<Progress> {
    state.task.status_message.as_deref()?.parse().ok()
}

/// Enough of a task's id to tell it from the others.
pub fn short(task: &Task) -> &str {
    task.task_id.get(..8).unwrap_or(&task.task_id)
}

/// Shows where a task stands while it is polled, on a terminal only.
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
