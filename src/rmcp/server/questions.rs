//! How the questions of an operation reach a client without tasks, and its answers the operation.
//!
//! * `declared` says which questions a client can answer.
//! * `request_state` names the task of a call that the client repeats with its answers.
//! * `peer_requests` sends requests to a client of an older protocol.
//! * `text` states the questions for the model of a client that can answer neither way.

mod declared;
mod peer_requests;
mod request_state;
mod text;

use std::pin::pin;

use rmcp::model::{CallToolResponse, CallToolResult, ErrorData, InputRequests, InputRequiredResult};
use rmcp::service::{RequestContext, RoleServer};

use super::client::Client;
use super::companion_names::{Companion, Companions};
use super::held::HeldCall;
use super::retry::while_engine_fails;
use crate::backend::Agenda;
use crate::rmcp::error_class::ErrorClass;
use crate::rmcp::manager::DurableTaskManager;
use crate::task::StoredTask;
pub(super) use request_state::resume;

/// Asks the client of one call the questions of its task.
pub(super) struct Questions<'a, B> {
    pub(super) tasks: &'a DurableTaskManager<B>,
    pub(super) client: &'a Client,
    pub(super) context: &'a RequestContext<RoleServer>,
    pub(super) companions: &'a Companions,
    /// The name of the called tool.
    pub(super) tool: &'a str,
}

/// What follows after the client was asked.
pub(super) enum Asked {
    /// A question is closed, the task has changed, or the client has cancelled the call. The call is held further.
    HoldOn,
    /// The answer of the call. It has the open questions.
    Answer(Box<CallToolResponse>),
}

impl Asked {
    fn answer(response: impl Into<CallToolResponse>) -> Self {
        Self::Answer(Box::new(response.into()))
    }
}

impl<B: Agenda> Questions<'_, B> {
    /// Asks the client these open requests of a task, in the way that the client understands, at most until `limit` is ready.
    /// Call it from the future of the handler: a request that is sent from another future belongs to no call.
    ///
    /// A request to the client stays open after the limit, and if the future is dropped. Its answer is delivered when it
    /// arrives.
    ///
    /// # Errors
    /// The errors of the store.
    pub(super) async fn ask(
        &self,
        held: &mut HeldCall<'_>,
        stored: &StoredTask,
        requests: InputRequests,
        limit: impl Future<Output = ()>,
    ) -> Result<Asked, ErrorData> {
        let can_answer = |request| declared::can_answer(&self.client.capabilities, request);
        if requests.is_empty() || !requests.values().all(can_answer) {
            return Ok(self.ask_in_text(stored, &requests));
        }
        if self.client.repeats_calls {
            return held.wait(self.ask_in_result(stored, requests, limit)).await;
        }
        let asked = peer_requests::ask(self.tasks, &self.context.peer, &stored.key, &requests);
        let asked = async {
            tokio::select! {
                biased;
                () = self.context.ct.cancelled() => Asked::HoldOn,
                is_closed = asked => match is_closed {
                    true => Asked::HoldOn,
                    false => self.ask_in_text(stored, &requests),
                },
                () = limit => Asked::answer(text::being_asked(stored, self.companions.name(Companion::Result))),
            }
        };
        Ok(held.wait(asked).await)
    }

    /// Returns the questions as text, for a model.
    fn ask_in_text(&self, stored: &StoredTask, requests: &InputRequests) -> Asked {
        Asked::answer(in_text(stored, requests, self.companions))
    }

    /// Returns the questions as a result that makes the client repeat its call.
    async fn ask_in_result(
        &self,
        stored: &StoredTask,
        requests: InputRequests,
        limit: impl Future<Output = ()>,
    ) -> Result<Asked, ErrorData> {
        let limit = pin!(async {
            tokio::select! {
                () = limit => {}
                () = self.context.ct.cancelled() => {}
            }
        });
        let with_secret = || self.tasks.store().with_secret(stored);
        let stored = match while_engine_fails(with_secret, limit).await {
            Ok(stored) => stored,
            // The record has no room for a secret.
            Err(error) if ErrorClass::of(&error) == ErrorClass::Permanent => {
                return Ok(self.ask_in_text(stored, &requests));
            }
            Err(_) => return Ok(Asked::HoldOn),
        };
        let state = request_state::seal(&stored, self.tool)?;
        Ok(Asked::answer(InputRequiredResult::new(Some(requests), Some(state))))
    }
}

/// Returns the open questions of a task as the result of a call, for a model.
pub(super) fn in_text(
    stored: &StoredTask,
    requests: &InputRequests,
    companions: &Companions,
) -> CallToolResult {
    text::questions(stored, requests, companions.name(Companion::Answer))
}
