//! What the library measures, through the [`metrics`](https://docs.rs/metrics) facade.
//!
//! Install a recorder, for example the Prometheus exporter, and call [`describe`]. [`METRICS`] lists every metric. Each process counts what it
//! does itself, so add up the processes of a fleet.
//!
//! No label holds an owner, the id of a task, or text of a client. The label `tool` is the name of a registered operation, and `other` for
//! every other task. `DurableTaskManager` registers its operations, and `TaskServer` its tools. Workers of your own call [`register_tool`].
//!
//! ```
//! use mcp_task_store::telemetry;
//!
//! telemetry::describe();
//! telemetry::register_tool("render");
//! assert!(telemetry::METRICS.iter().all(|metric| metric.name.starts_with("mcp_")));
//! ```

// Call sites have no `cfg`: without the feature, the functions do nothing.
#[cfg(any(
    feature = "metrics",
    all(feature = "otel", any(feature = "postgres", feature = "redis", feature = "sqlite"))
))]
mod outcome;
#[cfg(feature = "metrics")]
mod recorded;
#[cfg(not(feature = "metrics"))]
mod silent;
#[cfg(feature = "metrics")]
mod table;

#[cfg(any(
    feature = "metrics",
    all(feature = "otel", any(feature = "postgres", feature = "redis", feature = "sqlite"))
))]
pub(crate) use outcome::Outcome;
#[cfg(all(feature = "metrics", any(feature = "postgres", feature = "redis", feature = "sqlite")))]
pub(crate) use recorded::batch;
#[cfg(all(feature = "metrics", feature = "rmcp"))]
pub(crate) use recorded::ended;
#[cfg(all(feature = "metrics", feature = "redis"))]
pub(crate) use recorded::reconnected;
#[cfg(feature = "metrics")]
pub(crate) use recorded::{CallTimer, RunningAttempt, conflict, events, watched};
#[cfg(feature = "metrics")]
pub use recorded::{describe, register_tool};
#[cfg(not(feature = "metrics"))]
pub(crate) use silent::*;
#[cfg(feature = "metrics")]
pub use table::{METRICS, Metric, MetricKind};

use crate::backend::StorageError;

/// A call of an engine, as the label `call` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EngineCall {
    Get,
    List,
    Part,
    Put,
    Create,
    Delete,
    Clock,
    Cleanup,
    Owners,
    Schedule,
    TakeDue,
    Resolve,
    Timers,
}

/// Awaits a call of an engine, and measures it.
pub(crate) async fn timed<T>(
    call: EngineCall,
    answer: impl Future<Output = Result<T, StorageError>>,
) -> Result<T, StorageError> {
    let mut timer = CallTimer::start(call);
    let answer = answer.await;
    timer.answered(&answer);
    answer
}
