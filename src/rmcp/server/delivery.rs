//! Answers the call of a stored task: with its end, its questions, or its state.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rmcp::model::{CallToolResponse, CreateTaskResult, DetailedTask, ErrorData, InputResponses, TaskPayload};
use rmcp::service::{RequestContext, RoleServer};
use tokio::time::{Instant, sleep_until, timeout};

use super::answers;
use super::call_error::CallError;
use super::call_settings::CallSettings;
use super::client::Client;
use super::companion_names::Companion;
use super::config::TaskServerConfig;
use super::held::{HeldCall, HoldEnd};
use super::questions::{Asked, Questions, resume};
use super::retry::while_engine_fails;
use crate::backend::{Agenda, OwnerId, TaskKey};
use crate::printable::Chain;
use crate::rmcp::count::CountGuard;
use crate::rmcp::manager::DurableTaskManager;
use crate::rmcp::wire;
use crate::task::StoredTask;

/// How long the result of an ended task may still be read after the call should have been answered.
const LATE: Duration = Duration::from_secs(2);

/// One call whose client waits for the end of a task.
pub(super) struct Delivery<'a, B> {
    tasks: &'a DurableTaskManager<B>,
    config: &'a TaskServerConfig,
    client: Client,
    context: &'a RequestContext<RoleServer>,
    /// The name of the called tool.
    tool: &'a str,
    pub(super) held: HeldCall<'a>,
    /// When the call must be answered.
    until: Instant,
    /// The task is asked to cancel when the client cancels the call.
    cancels_with_request: bool,
    /// A shutdown waits for the call.
    _counted: CountGuard,
}

impl<'a, B: Agenda> Delivery<'a, B> {
    /// Begins to hold a call of this tool.
    pub(super) fn begin(
        settings: &CallSettings<'a, B>,
        context: &'a RequestContext<RoleServer>,
        tool: &'a str,
    ) -> Self {
        let CallSettings { tasks, config, .. } = *settings;
        let client = Client::of(context);
        let held = HeldCall::new(&client, context);
        let until = Instant::now() + config.hold_limit(&client);
        Self {
            tasks,
            config,
            client,
            context,
            tool,
            held,
            until,
            cancels_with_request: false,
            _counted: tasks.runtime().calls.add(),
        }
    }

    pub(super) fn cancels_with_request(mut self, cancels: bool) -> Self {
        self.cancels_with_request = cancels;
        self
    }

    /// Holds the call of a task that was just stored. A client with tasks whose time is over receives the task without a read.
    pub(super) async fn deliver_stored(self, stored: Arc<StoredTask>) -> Result<CallToolResponse, CallError> {
        self.held.see(Arc::clone(&stored));
        self.deliver(&stored.key).await
    }

    /// Continues a call that the client of this owner repeats with a request state.
    pub(super) async fn resume(
        mut self,
        owner: &OwnerId,
        state: &str,
        answers: Option<InputResponses>,
    ) -> Result<CallToolResponse, CallError> {
        let Self { tasks, config, tool, until, .. } = self;
        let limit = pin!(limit_elapsed(tasks, config, until));
        let resumed = resume(tasks.store(), owner, tool, state, answers, limit);
        let task = self.held.wait(resumed).await?;
        self.deliver(&task.key).await
    }

    /// Holds the call until the task has ended, asks the client its questions, and answers the call.
    pub(super) async fn deliver(mut self, key: &TaskKey) -> Result<CallToolResponse, CallError> {
        loop {
            let limit = limit_elapsed(self.tasks, self.config, self.until);
            let (stored, task) = match self.held.hold(self.tasks.store(), key, limit).await? {
                HoldEnd::Over { stored, task } => (stored, task),
                HoldEnd::TimeElapsed => match self.held.seen() {
                    // A call that is held for no time has not read the task.
                    None => self.held.read(self.tasks.store(), key).await?,
                    Some(seen) => return self.answer_late(seen).await,
                },
                HoldEnd::Cancelled => return self.leave(key).await,
            };
            let TaskPayload::InputRequired { input_requests } = task.payload else {
                return self.answer_ended(stored, answers::of_ended(*task));
            };
            if self.client.has_tasks() {
                return Ok(self.answer_open(&stored));
            }
            let limit = limit_elapsed(self.tasks, self.config, self.until);
            let Self { tasks, config, client, context, tool, held, .. } = &mut self;
            let companions = &config.companions;
            let questions = Questions { tasks, client, context, companions, tool };
            match questions.ask(held, &stored, input_requests, limit).await? {
                Asked::Answer(answer) => return Ok(*answer),
                Asked::HoldOn => {}
            }
        }
    }

    fn answer_ended(
        &self,
        stored: Arc<StoredTask>,
        answer: Option<Result<CallToolResponse, ErrorData>>,
    ) -> Result<CallToolResponse, CallError> {
        let Some(answer) = answer else { return Ok(self.answer_open(&stored)) };
        self.tasks.shorten_retention(stored);
        Ok(answer?)
    }

    /// Answers the call while its task goes on.
    fn answer_open(&self, stored: &StoredTask) -> CallToolResponse {
        if self.client.has_tasks() {
            return CreateTaskResult::new(wire::task(stored)).into();
        }
        let tool = stored.task.operation.as_deref().unwrap_or(self.tool);
        answers::of_running(tool, stored, self.config.companions.name(Companion::Result)).into()
    }

    /// Answers a call whose time is over. If the task has ended, its result may still be under way.
    async fn answer_late(&self, seen: Arc<StoredTask>) -> Result<CallToolResponse, CallError> {
        if seen.task.status.is_terminal()
            && let Some(task) = self.ended_task(&seen).await
        {
            return self.answer_ended(seen, answers::of_ended(task));
        }
        Ok(self.answer_open(&seen))
    }

    /// Reads the result of an ended task; `None` if that fails. The client can then ask for it again.
    async fn ended_task(&self, ended: &StoredTask) -> Option<DetailedTask> {
        match timeout(LATE, wire::detailed(self.tasks.store(), ended)).await {
            Ok(Ok(task)) => return Some(task),
            Ok(Err(error)) => {
                tracing::debug!(error = %Chain(&error), "the result of a held call could not be read");
            }
            Err(_) => tracing::debug!("the result of a held call could not be read within {LATE:?}"),
        }
        None
    }

    /// Ends a call whose client takes no answer any more. Its task runs on, unless the tool says otherwise.
    async fn leave(&self, key: &TaskKey) -> Result<CallToolResponse, CallError> {
        if self.cancels_with_request {
            let until = Instant::now() + self.config.hold_for;
            let limit = pin!(limit_elapsed(self.tasks, self.config, until));
            let cancel = || self.tasks.cancel_task(&key.owner, key.task.as_str());
            while_engine_fails(cancel, limit).await?;
        }
        Err(ErrorData::internal_error("the client has cancelled the call", None).into())
    }
}

/// Waits until a call must be answered: at `until`, or soon after a shutdown has begun.
async fn limit_elapsed<B: Agenda>(tasks: &DurableTaskManager<B>, config: &TaskServerConfig, until: Instant) {
    let shutdown = tasks.runtime().shutdown.signal();
    tokio::select! {
        () = sleep_until(until) => {}
        () = shutdown.limit_elapsed(config.drain) => {}
    }
}
