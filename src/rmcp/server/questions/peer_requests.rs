//! Requests of the server to a client of an older protocol, which has no request state.

use rmcp::model::{ClientResult, InputRequest, InputRequests, ServerRequest};
use rmcp::service::{Peer, PeerRequestOptions, RequestHandle, RoleServer, ServiceError};
use serde_json::Value;
use tokio::time::sleep;
use tracing::Instrument;

use crate::backend::{Agenda, TaskKey};
use crate::printable::Chain;
use crate::rmcp::asked::Asker;
use crate::rmcp::error_class::ErrorClass;
use crate::rmcp::manager::DurableTaskManager;
use crate::store::{BackOff, TaskStore};
use crate::task::StoredTask;

/// Sends these open requests to the client, one after another, because a client may show only one form at a time. Delivers
/// each answer. Returns whether the task has changed; `false` if the client does not answer one of the requests.
///
/// If the future is dropped, the request that was sent stays open at the client, and its answer is delivered.
pub(super) async fn ask<B: Agenda>(
    tasks: &DurableTaskManager<B>,
    peer: &Peer<RoleServer>,
    key: &TaskKey,
    requests: &InputRequests,
) -> bool {
    for (name, request) in requests {
        let asking = match tasks.runtime().asked.begin(key, name) {
            Asker::This(asking) => asking,
            Asker::Other(mut asked) => {
                // Nothing is sent: the receiver reports the end of its sender.
                let _ = asked.changed().await;
                return true;
            }
        };
        let sent = match send(peer, request.clone()).await {
            Ok(Some(sent)) => sent,
            Ok(None) => return false,
            Err(error) => {
                tracing::debug!(error = %Chain(&error), "a client could not be asked");
                return false;
            }
        };
        let store = tasks.store().clone();
        let question = Question { store, key: key.clone(), name: name.clone(), request: request.clone() };
        // Only the sending belongs to the future of the handler. The answer may come after the end of the call.
        let followed = async move {
            let is_closed = question.follow(sent).await;
            drop(asking);
            is_closed
        };
        if !matches!(tokio::spawn(followed.in_current_span()).await, Ok(true)) {
            return false;
        }
    }
    true
}

/// Sends a request; `None` for a kind of request that this version does not know.
async fn send(
    peer: &Peer<RoleServer>,
    request: InputRequest,
) -> Result<Option<RequestHandle<RoleServer>>, ServiceError> {
    let request = match request {
        InputRequest::CreateMessage(request) => ServerRequest::CreateMessageRequest(request),
        InputRequest::Elicitation(request) => ServerRequest::ElicitRequest(request),
        InputRequest::ListRoots(request) => ServerRequest::ListRootsRequest(request),
        _ => return Ok(None),
    };
    peer.send_request_with_option(request, PeerRequestOptions::no_options()).await.map(Some)
}

/// A request that was sent to the client.
struct Question<B> {
    store: TaskStore<B>,
    key: TaskKey,
    name: String,
    request: InputRequest,
}

impl<B: Agenda> Question<B> {
    /// Waits for the answer of the client and delivers it, until the request is closed otherwise. Returns whether it is
    /// closed.
    async fn follow(self, mut sent: RequestHandle<RoleServer>) -> bool {
        let reply = tokio::select! {
            biased;
            reply = &mut sent.rx => reply,
            () = self.closed() => {
                self.withdraw(sent).await;
                return true;
            }
        };
        let answer = match reply {
            Ok(Ok(reply)) => self.answer(reply),
            Ok(Err(error)) => {
                tracing::debug!(error = %Chain(&error), "a client has refused a question");
                None
            }
            // The connection is gone.
            Err(_) => None,
        };
        match answer {
            Some(answer) => self.deliver(answer).await,
            None => false,
        }
    }

    /// Returns the reply as the answer to the request; `None` if it is a reply to something else.
    fn answer(&self, reply: ClientResult) -> Option<Value> {
        let answer = match (&self.request, reply) {
            (InputRequest::CreateMessage(_), ClientResult::CreateMessageResult(reply)) => {
                serde_json::to_value(reply)
            }
            (InputRequest::Elicitation(_), ClientResult::ElicitResult(reply)) => serde_json::to_value(reply),
            (InputRequest::ListRoots(_), ClientResult::ListRootsResult(reply)) => serde_json::to_value(reply),
            _ => return None,
        };
        answer.ok()
    }

    /// Delivers the answer. Tries again while the engine fails, because a person may have written the answer. Returns whether
    /// the request is closed.
    async fn deliver(&self, answer: Value) -> bool {
        let mut back_off = BackOff::new();
        loop {
            match self.store.deliver_inputs(&self.key, [(self.name.clone(), answer.clone())]).await {
                Ok(_) => return true,
                Err(error) if ErrorClass::of(&error) == ErrorClass::Transient => {
                    tracing::debug!(error = %Chain(&error), "an answer could not be delivered yet");
                    sleep(back_off.next_pause()).await;
                }
                Err(error) => {
                    tracing::debug!(error = %Chain(&error), "an answer could not be delivered");
                    return ErrorClass::of(&error) == ErrorClass::Void;
                }
            }
        }
    }

    /// Waits until the request is answered otherwise or withdrawn, or the task has ended.
    async fn closed(&self) {
        let mut back_off = BackOff::new();
        loop {
            let is_closed = |stored: &StoredTask| !stored.task.input_requests.contains_key(&self.name);
            match self.store.wait_until(&self.key, is_closed).await {
                Err(error) if ErrorClass::of(&error) == ErrorClass::Transient => {
                    tracing::debug!(error = %Chain(&error), "the task of a question could not be read yet");
                    sleep(back_off.next_pause()).await;
                }
                _ => return,
            }
        }
    }

    /// Tells the client that nobody waits for its answer.
    async fn withdraw(&self, sent: RequestHandle<RoleServer>) {
        let reason = "the question was answered in another way, or its task has ended";
        if let Err(error) = sent.cancel(Some(reason.to_owned())).await {
            tracing::debug!(error = %Chain(&error), "a question could not be withdrawn");
        }
    }
}
