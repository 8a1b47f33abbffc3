//! The request state of a call that a client repeats with its answers: the id of the task, and a seal.
//!
//! The secret of the seal is in the record of the task, so every instance can check it. The seal covers the owner, the tool and
//! the id. So nobody can forge a state, and no other owner, tool or task accepts it. The secret ends with the task.

use std::pin::Pin;

use rmcp::model::{ErrorData, InputResponses, RequestStateCodec, RequestStateError, SealOptions};

use crate::backend::{Agenda, OwnerId, TaskId, TaskKey};
use crate::printable::Chain;
use crate::rmcp::server::retry::while_engine_fails;
use crate::store::{TaskError, TaskStore};
use crate::task::StoredTask;

/// Separates the id of the task from the seal. A seal has dots too, an id of this crate has none.
const SEPARATOR: char = '.';

/// Returns the request state that names a task with a secret.
pub(super) fn seal(stored: &StoredTask, tool: &str) -> Result<String, ErrorData> {
    let sealed = codec(stored).map(|codec| {
        // The state has nothing to hide or to carry: the seal covers what it names.
        codec.seal_with(&[], &SealOptions::new().associated_data(&covered(&stored.key, tool)))
    });
    match sealed {
        Ok(seal) => Ok(format!("{}{SEPARATOR}{seal}", stored.key.task)),
        Err(error) => {
            tracing::error!(%error, "the state of a request could not be sealed");
            Err(ErrorData::internal_error("the question of the task cannot be sent", None))
        }
    }
}

/// Continues a call that the client repeats with this state: delivers the answers, and returns the task. The client may
/// answer some of the questions, or none. While the engine fails, the call tries again until `limit` is ready, because a person may
/// have written the answers.
///
/// # Errors
/// `-32602` (invalid params), always the same, if the server has not given this state to this owner for this tool, and after
/// the task has ended; the errors of the store.
pub(in crate::rmcp::server) async fn resume<B: Agenda>(
    store: &TaskStore<B>,
    owner: &OwnerId,
    tool: &str,
    state: &str,
    answers: Option<InputResponses>,
    mut limit: Pin<&mut impl Future<Output = ()>>,
) -> Result<StoredTask, ErrorData> {
    let stored = open(store, owner, tool, state, limit.as_mut()).await?;
    match answers {
        Some(answers) if !answers.is_empty() => {
            let deliver = || store.deliver_inputs(&stored, answers.clone());
            Ok(while_engine_fails(deliver, limit).await?)
        }
        _ => Ok(stored),
    }
}

/// Returns the open task that a state names.
async fn open<B: Agenda>(
    store: &TaskStore<B>,
    owner: &OwnerId,
    tool: &str,
    state: &str,
    limit: Pin<&mut impl Future<Output = ()>>,
) -> Result<StoredTask, ErrorData> {
    let Some((id, seal)) = state.split_once(SEPARATOR) else { return Err(invalid()) };
    let task = TaskId::try_from(id).map_err(|_| invalid())?;
    let key = TaskKey { owner: owner.clone(), task };
    let stored = match while_engine_fails(|| store.get(&key), limit).await {
        Ok(stored) => stored,
        Err(TaskError::NotFound { .. }) => return Err(invalid()),
        Err(error) => return Err(error.into()),
    };
    let opened = codec(&stored).and_then(|codec| codec.open_with(seal, &covered(&stored.key, tool)));
    match opened {
        Ok(_) if !stored.task.status.is_terminal() => Ok(stored),
        Ok(_) => Err(invalid()),
        Err(error) => {
            tracing::debug!(error = %Chain(&error), "a client has sent a request state that is not valid");
            Err(invalid())
        }
    }
}

fn codec(stored: &StoredTask) -> Result<RequestStateCodec, RequestStateError> {
    // A task without a secret has given out no state. The empty secret is too short for a codec.
    RequestStateCodec::try_new(
        stored.task.adapter.secret.as_ref().map_or(&[][..], |secret| secret.as_bytes()),
    )
}

/// Returns what the seal of a state covers.
fn covered(key: &TaskKey, tool: &str) -> Vec<u8> {
    let mut covered = Vec::new();
    for text in [key.owner.as_str(), tool, key.task.as_str()] {
        // The length separates the texts: ("a", "bc") is not ("ab", "c").
        covered.extend((text.len() as u64).to_le_bytes());
        covered.extend(text.as_bytes());
    }
    covered
}

fn invalid() -> ErrorData {
    let message = "the request state is not valid: it is unknown, or its task has ended; call the tool again without it";
    ErrorData::invalid_params(message, None)
}
