//! How the questions of an operation reach clients without tasks.

mod calls;
mod peer_requests;
mod request_state;
mod text;

use std::sync::Arc;
use std::time::Duration;

use mcp_task_store::{Agenda, Companions, OwnerId, OwnerSource, TaskServer, TaskServerConfig, TaskTools};
use rmcp::ErrorData;
use rmcp::model::*;
use rmcp::service::{RequestContext, RunningService};
use rmcp::{ClientHandler, RoleClient};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use super::Router;
use crate::support::rmcp::*;

type Server = TaskServer<Router, Arc<dyn Agenda>>;

/// A server of this owner whose calls are held for this long.
fn serve_for(owner: OwnerId, tasks: &Manager, hold_for: Duration, companions: Companions) -> Server {
    let config =
        TaskServerConfig::new().hold_for(hold_for).hold_for_with_progress(hold_for).companions(companions);
    let owners = OwnerSource::fixed(owner);
    TaskServer::with_config(Router, tasks.clone(), owners, TaskTools::new(), config).unwrap()
}

fn serve(tasks: &Manager) -> Server {
    serve_for(alice(), tasks, LONG, Companions::new())
}

/// A call of the companion that waits for the result of a task.
fn result_of(task_id: &str) -> CallToolRequestParams {
    let arguments = JsonObject::from_iter([("taskId".to_owned(), task_id.into())]);
    CallToolRequestParams::new("task_result").with_arguments(arguments)
}

/// Starts a task that asks two questions at once, and says what the client has answered.
async fn two_questions(tasks: &Manager) -> String {
    let task_id = spawn(tasks, |task| async move {
        let (first, second) = tokio::join!(
            task.request_input("first", elicitation("First?")),
            task.request_input("second", elicitation("Second?")),
        );
        let said = |answer: Result<serde_json::Value, _>| answer.map(|answer| answer["action"].to_string());
        Ok(text(format!("{}, {}", said(first)?, said(second)?)))
    })
    .await;
    polled(tasks, &task_id, |task| match &task.payload {
        TaskPayload::InputRequired { input_requests } => input_requests.len() == 2,
        _ => false,
    })
    .await;
    task_id
}

/// Starts a task that asks this question, and says what the client has answered.
async fn one_question(tasks: &Manager, question: InputRequest) -> String {
    let task_id = spawn(tasks, |task| async move {
        let answer = task.request_input("confirm", question).await?;
        Ok(text(answer.to_string()))
    })
    .await;
    asks(tasks, &task_id).await;
    task_id
}

/// A client of the SDK whose user a test plays.
#[derive(Clone)]
struct Person {
    capabilities: ClientCapabilities,
    forms: mpsc::UnboundedSender<Form>,
}

/// A form that the user sees.
struct Form {
    message: String,
    /// The user answers, or the client refuses.
    reply: oneshot::Sender<Result<ElicitResult, ErrorData>>,
    /// The server does not wait for the answer any more.
    withdrawn: oneshot::Receiver<()>,
}

impl Form {
    fn answer(self, action: ElicitationAction) {
        self.reply.send(Ok(ElicitResult::new(action))).unwrap();
    }
}

impl Person {
    fn new(capabilities: ClientCapabilities) -> (Self, mpsc::UnboundedReceiver<Form>) {
        let (send, forms) = mpsc::unbounded_channel();
        (Self { capabilities, forms: send }, forms)
    }

    fn with_elicitation() -> (Self, mpsc::UnboundedReceiver<Form>) {
        Self::new(ClientCapabilities::builder().enable_elicitation().build())
    }
}

impl ClientHandler for Person {
    fn get_info(&self) -> ClientConfig {
        ClientConfig::new(self.capabilities.clone(), Implementation::new("test", "1"))
    }

    async fn create_elicitation(
        &self,
        request: ElicitRequestParams,
        context: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        let ElicitRequestParams::FormElicitationParams { message, .. } = request else {
            panic!("{request:?}")
        };
        let (reply, replied) = oneshot::channel();
        let (withdraw, withdrawn) = oneshot::channel();
        self.forms.send(Form { message, reply, withdrawn }).unwrap();
        tokio::select! {
            reply = replied => reply.unwrap(),
            () = context.ct.cancelled() => {
                withdraw.send(()).unwrap();
                Err(ErrorData::internal_error("withdrawn", None))
            }
        }
    }
}

/// Begins to wait for the result of a task.
fn begin(
    client: &RunningService<RoleClient, Person>,
    task_id: &str,
) -> tokio::task::JoinHandle<CallToolResult> {
    let (peer, call) = (client.peer().clone(), result_of(task_id));
    tokio::spawn(async move { complete(peer.call_tool_once(call).await.unwrap()) })
}

fn complete(response: CallToolResponse) -> CallToolResult {
    let CallToolResponse::Complete(result) = response else { panic!("{response:?}") };
    result
}

fn said_in(result: &CallToolResult) -> &str {
    &result.content[0].as_text().unwrap().text
}
