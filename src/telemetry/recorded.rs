//! The functions of a build with the feature `metrics`.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Instant;

use chrono::TimeDelta;
use futures_core::Stream;
use futures_core::stream::BoxStream;
use metrics::{Key, Label, Level, Metadata, SharedString, counter, gauge, histogram};
use once_cell::sync::Lazy;

use super::table::{self, METRICS, Metric, MetricKind};
use super::{EngineCall, Outcome};
use crate::backend::StorageError;
#[cfg(feature = "rmcp")]
use crate::task::TaskStatus;
use crate::task::history::TTL_ELAPSED;
use crate::task::{EventKind, Task, TaskEvent};

/// Describes every metric of [`METRICS`] to the recorder. Call it once, after you have installed the recorder.
pub fn describe() {
    for Metric { name, kind, unit, description, .. } in METRICS {
        match kind {
            MetricKind::Counter => metrics::describe_counter!(*name, *unit, *description),
            MetricKind::Gauge => metrics::describe_gauge!(*name, *unit, *description),
            MetricKind::Histogram => metrics::describe_histogram!(*name, *unit, *description),
        }
    }
}

/// The label of tasks whose operation is not registered.
const OTHER: &str = "other";

/// The operations of this process. Their names are constants of the server, so there are few.
static TOOLS: Lazy<RwLock<HashSet<Arc<str>>>> = Lazy::new(RwLock::default);

/// Makes the name of an operation a value of the label `tool`. Do not pass text of a client.
pub fn register_tool(name: &str) {
    TOOLS.write().unwrap_or_else(PoisonError::into_inner).insert(name.into());
}

fn tool(operation: Option<&str>) -> SharedString {
    let tools = TOOLS.read().unwrap_or_else(PoisonError::into_inner);
    let registered = operation.and_then(|name| tools.get(name));
    registered.map_or(SharedString::const_str(OTHER), |name| SharedString::from_shared(Arc::clone(name)))
}

fn count(metric: &Metric, tool: &SharedString) {
    counter!(metric.name, "tool" => tool.clone()).increment(1);
}

fn observe(metric: &Metric, tool: &SharedString, lasted: TimeDelta) {
    // The clock of the engine may have been set back.
    let seconds = lasted.to_std().unwrap_or_default().as_secs_f64();
    histogram!(metric.name, "tool" => tool.clone()).record(seconds);
}

/// Counts the last events of a task, which a write has stored.
pub(crate) fn events(task: &Task, new: usize) {
    if new == 0 {
        return;
    }
    let tool = tool(task.operation.as_deref());
    for at in task.history.len().saturating_sub(new)..task.history.len() {
        let (before, event) = (&task.history[..at], &task.history[at]);
        if let Some(metric) = counted(&event.kind) {
            count(&metric, &tool);
        }
        if event.kind == EventKind::Failed {
            if event.detail.as_deref() == Some(TTL_ELAPSED) {
                count(&table::EXPIRED, &tool);
            }
            if task.gave_up_after.is_some() {
                count(&table::DEAD, &tool);
            }
        }
        if let Some((metric, since)) = ended_span(event, before) {
            observe(&metric, &tool, event.at - since.at);
        }
        if is_end(&event.kind) {
            observe(&table::TOTAL, &tool, event.at - task.created_at);
        }
    }
}

fn counted(kind: &EventKind) -> Option<Metric> {
    Some(match kind {
        EventKind::Created => table::CREATED,
        EventKind::Started => table::STARTED,
        EventKind::Resumed => table::RESUMED,
        EventKind::Completed => table::COMPLETED,
        EventKind::Failed => table::FAILED,
        EventKind::Cancelled => table::CANCELLED,
        EventKind::AttemptFailed => table::RETRIED,
        EventKind::LeaseLost => table::LEASE_LOSSES,
        _ => return None,
    })
}

fn is_end(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Completed | EventKind::Failed | EventKind::Cancelled)
}

fn begins_attempt(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Started | EventKind::Resumed)
}

fn leaves_attempt(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Released | EventKind::LeaseLost | EventKind::AttemptFailed)
}

fn begins_to_wait(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Enqueued | EventKind::Requeued) || leaves_attempt(kind)
}

/// Returns the span of time that an event ends, and the event with which it began: the wait for a worker, or an attempt.
fn ended_span<'a>(event: &TaskEvent, before: &'a [TaskEvent]) -> Option<(Metric, &'a TaskEvent)> {
    let last = before.iter().rfind(|event| begins_attempt(&event.kind) || begins_to_wait(&event.kind))?;
    if begins_attempt(&event.kind) {
        return begins_to_wait(&last.kind).then_some((table::QUEUE, last));
    }
    let ends_attempt = is_end(&event.kind) || leaves_attempt(&event.kind);
    (ends_attempt && begins_attempt(&last.kind)).then_some((table::RUN, last))
}

/// Counts the end of a task whose write nobody has awaited.
#[cfg(feature = "rmcp")]
pub(crate) fn ended(status: TaskStatus, operation: Option<&str>) {
    let metric = match status {
        TaskStatus::Completed => table::COMPLETED,
        TaskStatus::Failed => table::FAILED,
        TaskStatus::Cancelled => table::CANCELLED,
        TaskStatus::Working | TaskStatus::InputRequired => return,
    };
    count(&metric, &tool(operation));
}

/// An attempt of this process, until it is dropped.
#[derive(Debug)]
pub(crate) struct RunningAttempt(());

impl RunningAttempt {
    pub(crate) fn begin() -> Self {
        gauge!(table::RUNNING.name).increment(1);
        Self(())
    }
}

impl Drop for RunningAttempt {
    fn drop(&mut self) {
        gauge!(table::RUNNING.name).decrement(1);
    }
}

/// Counts a compare-and-swap that is tried again.
pub(crate) fn conflict() {
    counter!(table::CONFLICTS.name).increment(1);
}

/// Records how many writes of an engine share a script or a transaction.
#[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
pub(crate) fn batch(engine: &'static str, writes: usize) {
    histogram!(table::BATCH.name, "engine" => engine).record(writes as f64);
}

/// Counts a connection that replaces an earlier one.
#[cfg(feature = "redis")]
pub(crate) fn reconnected() {
    counter!(table::RECONNECTS.name).increment(1);
}

impl EngineCall {
    const ALL: [Self; 13] = [
        Self::Get,
        Self::List,
        Self::Part,
        Self::Put,
        Self::Create,
        Self::Delete,
        Self::Clock,
        Self::Cleanup,
        Self::Owners,
        Self::Schedule,
        Self::TakeDue,
        Self::Resolve,
        Self::Timers,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Part => "part",
            Self::Put => "put",
            Self::Create => "create",
            Self::Delete => "delete",
            Self::Clock => "clock",
            Self::Cleanup => "cleanup",
            Self::Owners => "owners",
            Self::Schedule => "schedule",
            Self::TakeDue => "take_due",
            Self::Resolve => "resolve",
            Self::Timers => "timers",
        }
    }
}

/// The key of each outcome of each call. A key that is built once saves every call an allocation and a hash.
static CALL_KEYS: Lazy<Vec<[Key; Outcome::ALL.len()]>> = Lazy::new(|| {
    let key = |call: EngineCall, outcome: Outcome| {
        let labels = [Label::new("call", call.as_str()), Label::new("outcome", outcome.as_str())];
        Key::from_parts(table::ENGINE_CALL.name, labels.to_vec())
    };
    EngineCall::ALL.into_iter().map(|call| Outcome::ALL.map(|outcome| key(call, outcome))).collect()
});

/// Measures one call of an engine.
pub(crate) struct CallTimer {
    call: EngineCall,
    started: Instant,
    outcome: Outcome,
}

impl CallTimer {
    pub(crate) fn start(call: EngineCall) -> Self {
        Self { call, started: Instant::now(), outcome: Outcome::Abandoned }
    }

    /// Sets the outcome of the call. Without it, the caller has given up.
    pub(crate) fn answered<T>(&mut self, answer: &Result<T, StorageError>) {
        self.outcome = Outcome::of(answer);
    }
}

impl Drop for CallTimer {
    fn drop(&mut self) {
        static METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));
        let key = &CALL_KEYS[self.call as usize][self.outcome as usize];
        metrics::with_recorder(|recorder| {
            recorder.register_histogram(key, &METADATA).record(self.started.elapsed().as_secs_f64());
        });
    }
}

/// Counts a subscription until its stream is dropped.
pub(crate) fn watched<T: 'static>(changes: BoxStream<'static, T>) -> BoxStream<'static, T> {
    gauge!(table::WATCHES.name).increment(1);
    Box::pin(Watched { changes })
}

struct Watched<T> {
    changes: BoxStream<'static, T>,
}

impl<T> Stream for Watched<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        self.changes.as_mut().poll_next(context)
    }
}

impl<T> Drop for Watched<T> {
    fn drop(&mut self) {
        gauge!(table::WATCHES.name).decrement(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_call_names_the_call_and_its_outcome() {
        for call in EngineCall::ALL {
            for outcome in Outcome::ALL {
                let key = &CALL_KEYS[call as usize][outcome as usize];
                let labels: Vec<_> = key.labels().map(|label| (label.key(), label.value())).collect();
                assert_eq!(labels, [("call", call.as_str()), ("outcome", outcome.as_str())]);
            }
        }
    }
}
