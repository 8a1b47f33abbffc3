//! Whether the engine answers, for the overview and for `/healthz`.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use mcp_task_store::{StorageBackend, StorageError, TaskKey};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::router::{Shared, Store};

/// How long the engine may take to answer.
const IN_TIME: Duration = Duration::from_secs(2);
/// How long an answer of `/healthz` holds. Everybody may ask, and many requests must not load the engine.
const HOLDS: Duration = Duration::from_secs(1);

/// The last answer of `/healthz`, and when it was found.
#[derive(Default)]
pub(crate) struct LastHealth(Mutex<Option<(Instant, bool)>>);

/// Reads a record that does not exist. Returns how long the answer took.
pub(crate) async fn read(store: &Store) -> Result<Duration, StorageError> {
    let key = TaskKey::new("mcp-task-console", "health")?;
    let begun = Instant::now();
    match store.backend().get(&key).await {
        Ok(_) | Err(StorageError::NotFound { .. }) => Ok(begun.elapsed()),
        Err(error) => Err(error),
    }
}

/// Answers `/healthz`. It says nothing else, because it needs no access.
pub(crate) async fn answer(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let mut last = shared.health.0.lock().await;
    let known = last.filter(|(found, _)| found.elapsed() < HOLDS).map(|(_, is_well)| is_well);
    let is_well = match known {
        Some(is_well) => is_well,
        None => matches!(timeout(IN_TIME, read(&shared.store)).await, Ok(Ok(_))),
    };
    if known.is_none() {
        *last = Some((Instant::now(), is_well));
    }
    match is_well {
        true => (StatusCode::OK, "ok\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "unavailable\n"),
    }
}
