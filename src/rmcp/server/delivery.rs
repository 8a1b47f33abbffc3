//! Answers the call of a stored task: with its end, its questions, or its state.

use std::sync::Arc;

use rmcp::model::{CallToolResponse, CreateTaskResult, ErrorData, TaskPayload};
use rmcp::service::{RequestContext, RoleServer};
use tokio::time::{Instant, sleep_until};

use super::answers;
use super::call_error::CallError;
use super::call_settings::CallSettings;
use super::client::Client;
use super::companion_names::Companion;
use super::config::TaskServerConfig;
use super::held::{HeldCall, HoldEnd};
use super::questions::{Asked, Questions};
use crate::backend::{Agenda, TaskKey};
use crate::rmcp::count::CountGuard;
use crate::rmcp::manager::DurableTaskManager;
use crate::rmcp::wire;
use crate::task::StoredTask;

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

    /// Holds the call until the task has ended, asks the client its questions, and answers the call.
    pub(super) async fn deliver(mut self, key: &TaskKey) -> Result<CallToolResponse, CallError> {
        loop {
            let limit = limit_elapsed(self.tasks, self.config, self.until);
            let (stored, task) = match self.held.hold(self.tasks.store(), key, limit).await? {
                HoldEnd::Over { stored, task } => (stored, task),
                HoldEnd::TimeElapsed => return Ok(self.answer_open(&*self.newest(key).await?)),
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

    /// Returns the newest state of the task that was read.
    async fn newest(&self, key: &TaskKey) -> Result<Arc<StoredTask>, CallError> {
        match self.held.seen() {
            Some(seen) => Ok(seen),
            None => Ok(Arc::new(self.tasks.store().get(key).await?)),
        }
    }

    /// Ends a call whose client takes no answer any more. Its task runs on, unless the tool says otherwise.
    async fn leave(&self, key: &TaskKey) -> Result<CallToolResponse, CallError> {
        if self.cancels_with_request {
            self.tasks.cancel_task(&key.owner, key.task.as_str()).await?;
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
